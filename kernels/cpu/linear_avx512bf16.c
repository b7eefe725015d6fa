/* The kernels of `linear` for AVX-512 with VNNI: products of four bytes a lane.
 *
 * An activation q is 256 * high + low with both signed bytes, so two byte products give what one
 * 16-bit product gives, at the same rate, and codes stay bytes: half the panel, and nothing to
 * widen. First the high bytes of a block, then the sum times 256, then the low bytes.
 */
#include "kernels/cpu/linear_vectors_512.h"

enum { STEPS = 8 };

INLINE void put_codes(uint8_t *target, int32_t v, vint code)
{
    _mm512_storeu_si512(target + (ptrdiff_t)v * 128, code);
}

/* 32 high bytes, then 32 low ones. */
INLINE void put_activations(const float *x, float inverse, uint8_t *target, int32_t sum[2])
{
    for (int32_t i = 0; i < 2; i++) {
        vint q = v_round(x + 16 * i, inverse);
        vint high = _mm512_srai_epi32(_mm512_add_epi32(q, v_ints(128)), 8);

        sum[i] = _mm512_reduce_add_epi32(q);
        _mm_storeu_si128((__m128i *)(void *)(target + 16 * i), _mm512_cvtepi32_epi8(high));
        _mm_storeu_si128((__m128i *)(void *)(target + 32 + 16 * i), _mm512_cvtepi32_epi8(q));
    }
}

INLINE vint four(const struct linear_block *block, int32_t at)
{
    int32_t bytes;

    memcpy(&bytes, block->value + at, sizeof bytes);
    return v_ints(bytes);
}

/* Adds products of the codes of steps [first, end) with the high bytes of the activations
 * (offset 0) or the low ones (32). */
INLINE void dot_bytes(const uint8_t *code, const struct linear_block *block, int64_t block_stride,
                      int32_t tokens, const int32_t range[2], int32_t offset,
                      vint dots[TILE_TOKENS][2])
{
    for (int32_t step = range[0]; step < range[1]; step++) {
        vint left = v_load(code + (ptrdiff_t)step * 128);
        vint right = v_load(code + (ptrdiff_t)step * 128 + 64);

        for (int32_t n = 0; n < tokens; n++) {
            vint q = four(&block[n * block_stride], offset + 4 * step);

            dots[n][0] = _mm512_dpbusd_epi32(dots[n][0], left, q);
            dots[n][1] = _mm512_dpbusd_epi32(dots[n][1], right, q);
        }
    }
}

/* Products of codes and activations, less zero * sum. */
INLINE void dot_steps(const uint8_t *code, const struct linear_tile *t, int32_t b, int32_t tokens,
                      bool whole, int32_t sub, vint dots[TILE_TOKENS][2])
{
    const struct linear_block *block = t->block + b;
    __m128i zero_shift = _mm_cvtsi32_si128(t->layout->zero_shift);
    int32_t range[2] = {whole ? 0 : 4 * sub, whole ? 8 : 4 * sub + 4};
    bool few = tokens <= 2; /* one chain of sums a row and token would leave the units idle */
    vint low[TILE_TOKENS][2];

    for (int32_t n = 0; n < tokens; n++) {
        dots[n][0] = _mm512_setzero_si512();
        dots[n][1] = _mm512_setzero_si512();
        low[n][0] = _mm512_setzero_si512();
        low[n][1] = _mm512_setzero_si512();
    }
    dot_bytes(code, block, t->block_stride, tokens, range, 0, dots);
    if (few)
        dot_bytes(code, block, t->block_stride, tokens, range, 32, low);
    for (int32_t n = 0; n < tokens; n++) {
        const struct linear_block *own = &block[n * t->block_stride];
        vint minus = v_ints(whole ? own->minus_sum : own->minus_half_sum[sub]);

        minus = _mm512_sll_epi32(minus, zero_shift);
        for (int32_t h = 0; h < 2; h++) {
            vint rest = few ? _mm512_add_epi32(low[n][h], minus) : minus;

            dots[n][h] = _mm512_add_epi32(_mm512_slli_epi32(dots[n][h], 8), rest);
        }
    }
    if (!few)
        dot_bytes(code, block, t->block_stride, tokens, range, 32, dots);
}

#include "kernels/cpu/linear_simd.h"

const struct linear_kernels linear_avx512bf16 = {
    .unit_rows = UNIT_ROWS,
    .direct_tokens = TILE_TOKENS,
    .quantise = quantise,
    .decode = decode,
    .tile = tile,
    .tile_float = tile_float,
};
