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
    _mm512_storeu_si512(target + (ptrdiff_t)v * VECTORS * 64, code);
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

/* The compiler would keep the codes of the first pass for the second, in memory again: there are
 * more than registers. */
INLINE void reload(void)
{
    __asm__ volatile("" ::: "memory");
}

/* Adds products of the codes of steps [first, end) with the high bytes of the activations
 * (offset 0) or the low ones (32). */
INLINE void add_bytes(const uint8_t *code, const struct linear_block *block, int64_t block_stride,
                      int32_t tokens, const int32_t range[2], int32_t offset,
                      vint dots[TILE_TOKENS][VECTORS])
{
    for (int32_t step = range[0]; step < range[1]; step++) {
        vint w[VECTORS];

        reload();
        for (int32_t v = 0; v < VECTORS; v++)
            w[v] = v_load(code + (ptrdiff_t)(step * VECTORS + v) * 64);
        for (int32_t n = 0; n < tokens; n++) {
            vint q = four(&block[n * block_stride], offset + 4 * step);

            for (int32_t v = 0; v < VECTORS; v++)
                dots[n][v] = _mm512_dpbusd_epi32(dots[n][v], w[v], q);
        }
    }
}

/* Products of codes and activations of a block (or half of it), less zero * sum. */
INLINE void dot_steps(const uint8_t *code, const struct linear_tile *t, int32_t b, int32_t tokens,
                      bool whole, int32_t sub, vint dots[TILE_TOKENS][VECTORS])
{
    const struct linear_block *block = t->block + b;
    int32_t range[2] = {whole ? 0 : 4 * sub, whole ? 8 : 4 * sub + 4};

    for (int32_t i = 0; i < tokens * VECTORS; i++)
        dots[i / VECTORS][i % VECTORS] = _mm512_setzero_si512();
    add_bytes(code, block, t->block_stride, tokens, range, 0, dots);
    for (int32_t n = 0; n < tokens; n++) {
        const struct linear_block *own = &block[n * t->block_stride];
        vint minus = v_ints(whole ? own->minus_sum : own->minus_half_sum[sub]);

        minus = v_shift_ints(minus, t->layout->zero_shift);
        for (int32_t v = 0; v < VECTORS; v++)
            dots[n][v] = _mm512_add_epi32(v_left_ints(dots[n][v], 8), minus);
    }
    add_bytes(code, block, t->block_stride, tokens, range, 32, dots);
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
