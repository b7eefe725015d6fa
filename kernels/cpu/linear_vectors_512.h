/* Vectors of 512 bits for linear_simd.h: what linear_avx512.c and linear_avx512bf16.c share. */
#ifndef KERNELS_CPU_LINEAR_VECTORS_512_H
#define KERNELS_CPU_LINEAR_VECTORS_512_H

#include "kernels/cpu/linear_layout.h"

#include <immintrin.h>

#define INLINE static inline __attribute__((always_inline))

enum { LANES = 16, VECTORS = 4, TILE_TOKENS = 4 };

typedef __m512i vint;
typedef __m512 vfloat;

INLINE vint v_load(const uint8_t *source)
{
    return _mm512_loadu_si512(source);
}
INLINE void v_store_ints(uint8_t *target, vint value)
{
    _mm512_storeu_si512(target, value);
}
INLINE vint v_bytes(int32_t value)
{
    return _mm512_set1_epi8((char)value);
}
INLINE vint v_ints(int32_t value)
{
    return _mm512_set1_epi32(value);
}
INLINE vint v_and(vint a, vint b)
{
    return _mm512_and_si512(a, b);
}
INLINE vint v_or(vint a, vint b)
{
    return _mm512_or_si512(a, b);
}
INLINE vint v_sub_bytes(vint a, vint b)
{
    return _mm512_sub_epi8(a, b);
}
/* Shifts of 16-bit parts. */
INLINE vint v_left(vint a, int32_t count)
{
    return _mm512_slli_epi16(a, (unsigned)count);
}
INLINE vint v_right(vint a, int32_t count)
{
    return _mm512_srli_epi16(a, (unsigned)count);
}
INLINE vint v_left_ints(vint a, int32_t count)
{
    return _mm512_slli_epi32(a, (unsigned)count);
}
INLINE vint v_right_ints(vint a, int32_t count)
{
    return _mm512_srli_epi32(a, (unsigned)count);
}
/* By a count that is not known when this is compiled; 32 and more give 0. */
INLINE vint v_shift_ints(vint a, int32_t count)
{
    return _mm512_sll_epi32(a, _mm_cvtsi32_si128(count));
}
/* 16 bytes, once in every 16. */
INLINE vint v_table(const int8_t *table)
{
    return _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)(const void *)table));
}
INLINE vint v_look_up(vint table, vint index)
{
    return _mm512_shuffle_epi8(table, index);
}
INLINE vint v_load_u8(const uint8_t *source)
{
    return _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(const void *)source));
}
INLINE vint v_load_s8(const uint8_t *source)
{
    return _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(const void *)source));
}
INLINE vfloat v_to_float(vint a)
{
    return _mm512_cvtepi32_ps(a);
}
INLINE vfloat v_zero(void)
{
    return _mm512_setzero_ps();
}
INLINE vfloat v_load_f16(const uint8_t *source)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)source));
}
INLINE vfloat v_load_bf16(const uint8_t *source)
{
    __m256i halves = _mm256_loadu_si256((const __m256i *)(const void *)source);

    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}
/* format_e8_half of every lane. */
INLINE vfloat v_e8_half(vint exponent)
{
    vint normal = _mm512_slli_epi32(_mm512_sub_epi32(exponent, v_ints(1)), 23);
    vint small = _mm512_sllv_epi32(v_ints(0x00200000), exponent);
    __mmask16 is_small = _mm512_cmplt_epi32_mask(exponent, v_ints(2));

    return _mm512_castsi512_ps(_mm512_mask_blend_epi32(is_small, normal, small));
}
INLINE vfloat v_load_float(const float *source)
{
    return _mm512_loadu_ps(source);
}
INLINE vfloat v_floats(const float *source)
{
    return _mm512_set1_ps(*source);
}
INLINE void v_store(float *target, vfloat value)
{
    _mm512_storeu_ps(target, value);
}
INLINE vfloat v_mul(vfloat a, vfloat b)
{
    return _mm512_mul_ps(a, b);
}
INLINE vfloat v_sub(vfloat a, vfloat b)
{
    return _mm512_sub_ps(a, b);
}
INLINE vfloat v_fma(vfloat a, vfloat b, vfloat c)
{
    return _mm512_fmadd_ps(a, b, c);
}
INLINE vfloat v_fnma(vfloat a, vfloat b, vfloat c)
{
    return _mm512_fnmadd_ps(a, b, c);
}

/* Largest magnitude of 32 values, as f32 bits. */
INLINE uint32_t largest(const float *x)
{
    vint mask = v_ints(0x7fffffff);
    vint first = _mm512_and_si512(_mm512_castps_si512(_mm512_loadu_ps(x)), mask);
    vint second = _mm512_and_si512(_mm512_castps_si512(_mm512_loadu_ps(x + 16)), mask);

    return (uint32_t)_mm512_reduce_max_epi32(_mm512_max_epi32(first, second));
}

/* 16 values as integers. */
INLINE vint v_round(const float *x, float inverse)
{
    return _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x), _mm512_set1_ps(inverse)));
}

#endif
