/* The kernels of `linear` for AVX-512 without VNNI: products of pairs of 16-bit integers. */
#include "kernels/cpu/linear_vectors_512.h"

enum { STEPS = 16 };

/* Of 4 codes a lane, the even ones are one pair of a step and the odd ones another. */
INLINE void put_codes(uint8_t *target, int32_t v, vint code)
{
    _mm512_storeu_si512(target + (4 * v) * 64, _mm512_and_si512(code, v_ints(0x00ff00ff)));
    _mm512_storeu_si512(target + (4 * v + 2) * 64, _mm512_srli_epi16(code, 8));
}

/* In the order of the pairs: 0 and 2, 1 and 3 of every four. */
INLINE void put_activations(const float *x, float inverse, uint8_t *target, int32_t sum[2])
{
    for (int32_t i = 0; i < 2; i++) {
        vint q = v_round(x + 16 * i, inverse);
        __m256i words = _mm512_cvtepi32_epi16(q);

        sum[i] = _mm512_reduce_add_epi32(q);
        words = _mm256_shufflehi_epi16(_mm256_shufflelo_epi16(words, 0xd8), 0xd8);
        _mm256_storeu_si256((__m256i *)(void *)(target + 32 * i), words);
    }
}

INLINE vint pair(const struct linear_block *block, int32_t step)
{
    int32_t both;

    memcpy(&both, block->value + 4 * step, sizeof both);
    return v_ints(both);
}

/* Products of codes and activations, less zero * sum. */
INLINE void dot_steps(const uint8_t *code, const struct linear_tile *t, int32_t b, int32_t tokens,
                      bool whole, int32_t sub, vint dots[TILE_TOKENS][2])
{
    __m128i zero_shift = _mm_cvtsi32_si128(t->layout->zero_shift);
    int32_t first = whole ? 0 : 8 * sub;
    int32_t end = whole ? 16 : first + 8;

    for (int32_t n = 0; n < tokens; n++) {
        const struct linear_block *block = t->block + n * t->block_stride + b;
        vint minus = v_ints(whole ? block->minus_sum : block->minus_half_sum[sub]);

        dots[n][0] = _mm512_sll_epi32(minus, zero_shift);
        dots[n][1] = dots[n][0];
    }
    for (int32_t step = first; step < end; step++) {
        vint left = v_load(code + (ptrdiff_t)step * 128);
        vint right = v_load(code + (ptrdiff_t)step * 128 + 64);

        for (int32_t n = 0; n < tokens; n++) {
            vint q = pair(t->block + n * t->block_stride + b, step);

            dots[n][0] = _mm512_add_epi32(dots[n][0], _mm512_madd_epi16(left, q));
            dots[n][1] = _mm512_add_epi32(dots[n][1], _mm512_madd_epi16(right, q));
        }
    }
}

#include "kernels/cpu/linear_simd.h"

const struct linear_kernels linear_avx512 = {
    .unit_rows = UNIT_ROWS,
    .direct_tokens = TILE_TOKENS,
    .quantise = quantise,
    .decode = decode,
    .tile = tile,
    .tile_float = tile_float,
};
