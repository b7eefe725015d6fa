/* The kernels of `linear` for AVX2, FMA and F16C: products of pairs of 16-bit integers. */
#include "kernels/cpu/linear_layout.h"

#include <immintrin.h>

#define INLINE static inline __attribute__((always_inline))

enum { LANES = 8, VECTORS = 2, TILE_TOKENS = 4 };

typedef __m256i vint;
typedef __m256 vfloat;

INLINE vint v_load(const uint8_t *source)
{
    return _mm256_loadu_si256((const __m256i *)(const void *)source);
}
INLINE void v_store_ints(uint8_t *target, vint value)
{
    _mm256_storeu_si256((__m256i *)(void *)target, value);
}
INLINE vint v_bytes(int32_t value)
{
    return _mm256_set1_epi8((char)value);
}
INLINE vint v_ints(int32_t value)
{
    return _mm256_set1_epi32(value);
}
INLINE vint v_and(vint a, vint b)
{
    return _mm256_and_si256(a, b);
}
INLINE vint v_or(vint a, vint b)
{
    return _mm256_or_si256(a, b);
}
INLINE vint v_sub_bytes(vint a, vint b)
{
    return _mm256_sub_epi8(a, b);
}
/* Shifts of 16-bit parts. */
INLINE vint v_left(vint a, int32_t count)
{
    return _mm256_slli_epi16(a, count);
}
INLINE vint v_right(vint a, int32_t count)
{
    return _mm256_srli_epi16(a, count);
}
INLINE vint v_left_ints(vint a, int32_t count)
{
    return _mm256_slli_epi32(a, count);
}
INLINE vint v_right_ints(vint a, int32_t count)
{
    return _mm256_srli_epi32(a, count);
}
/* By a count that is not known when this is compiled; 32 and more give 0. */
INLINE vint v_shift_ints(vint a, int32_t count)
{
    return _mm256_sll_epi32(a, _mm_cvtsi32_si128(count));
}
INLINE vint v_add_pairs(vint sum, vint a, vint b)
{
    return _mm256_add_epi32(sum, _mm256_madd_epi16(a, b));
}
/* 16 bytes, once in every 16. */
INLINE vint v_table(const int8_t *table)
{
    return _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)(const void *)table));
}
INLINE vint v_look_up(vint table, vint index)
{
    return _mm256_shuffle_epi8(table, index);
}
INLINE vint v_load_u8(const uint8_t *source)
{
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)source));
}
INLINE vint v_load_s8(const uint8_t *source)
{
    return _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)source));
}
INLINE vfloat v_to_float(vint a)
{
    return _mm256_cvtepi32_ps(a);
}
INLINE vfloat v_zero(void)
{
    return _mm256_setzero_ps();
}
INLINE vfloat v_load_f16(const uint8_t *source)
{
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)source));
}
INLINE vfloat v_load_bf16(const uint8_t *source)
{
    __m128i halves = _mm_loadu_si128((const __m128i *)(const void *)source);

    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
}
/* format_e8_half of every lane. */
INLINE vfloat v_e8_half(vint exponent)
{
    vint normal = _mm256_slli_epi32(_mm256_sub_epi32(exponent, v_ints(1)), 23);
    vint small = _mm256_sllv_epi32(v_ints(0x00200000), exponent);
    vint is_small = _mm256_cmpgt_epi32(v_ints(2), exponent);

    return _mm256_castsi256_ps(_mm256_blendv_epi8(normal, small, is_small));
}
INLINE vfloat v_load_float(const float *source)
{
    return _mm256_loadu_ps(source);
}
INLINE vfloat v_floats(const float *source)
{
    return _mm256_broadcast_ss(source);
}
INLINE void v_store(float *target, vfloat value)
{
    _mm256_storeu_ps(target, value);
}
INLINE vfloat v_mul(vfloat a, vfloat b)
{
    return _mm256_mul_ps(a, b);
}
INLINE vfloat v_sub(vfloat a, vfloat b)
{
    return _mm256_sub_ps(a, b);
}
INLINE vfloat v_fma(vfloat a, vfloat b, vfloat c)
{
    return _mm256_fmadd_ps(a, b, c);
}
INLINE vfloat v_fnma(vfloat a, vfloat b, vfloat c)
{
    return _mm256_fnmadd_ps(a, b, c);
}

#include "kernels/cpu/linear_pairs.h"

/* Largest magnitude of 32 values, as f32 bits. */
INLINE uint32_t largest(const float *x)
{
    vint most = _mm256_setzero_si256();
    uint32_t lane[8], result = 0;

    for (int32_t i = 0; i < 4; i++) {
        vint bits = _mm256_castps_si256(_mm256_loadu_ps(x + 8 * i));

        most = _mm256_max_epi32(most, _mm256_and_si256(bits, v_ints(0x7fffffff)));
    }
    _mm256_storeu_si256((__m256i *)(void *)lane, most);
    for (int32_t i = 0; i < 8; i++)
        result = lane[i] > result ? lane[i] : result;
    return result;
}

INLINE vint v_round(const float *x, float inverse)
{
    return _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x), _mm256_set1_ps(inverse)));
}

INLINE int32_t v_total(vint a)
{
    __m128i four = _mm_add_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
    __m128i two = _mm_add_epi32(four, _mm_unpackhi_epi64(four, four));

    return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 1)));
}

/* In the order of the pairs: 0 and 2, 1 and 3 of every four. */
INLINE void put_activations(const float *x, float inverse, uint8_t *target, int32_t sum[2])
{
    for (int32_t i = 0; i < 2; i++) {
        vint first = v_round(x + 16 * i, inverse);
        vint second = v_round(x + 16 * i + 8, inverse);
        vint words = _mm256_permute4x64_epi64(_mm256_packs_epi32(first, second), 0xd8);

        sum[i] = v_total(_mm256_add_epi32(first, second));
        words = _mm256_shufflehi_epi16(_mm256_shufflelo_epi16(words, 0xd8), 0xd8);
        _mm256_storeu_si256((__m256i *)(void *)(target + 32 * i), words);
    }
}

#include "kernels/cpu/linear_simd.h"

const struct linear_kernels linear_avx2 = {
    .unit_rows = UNIT_ROWS,
    .direct_tokens = TILE_TOKENS,
    .quantise = quantise,
    .decode = decode,
    .tile = tile,
    .tile_float = tile_float,
};
