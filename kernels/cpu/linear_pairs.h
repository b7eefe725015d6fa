/* Products of pairs of 16-bit integers, for instruction sets without byte products: what
 * linear_avx2.c and linear_avx512.c share before linear_simd.h. */
#ifndef KERNELS_CPU_LINEAR_PAIRS_H
#define KERNELS_CPU_LINEAR_PAIRS_H

enum { STEPS = 16 };

/* Of 4 codes a lane, 0 and 2 are the pair of one step, 1 and 3 that of the next. */
INLINE void put_codes(uint8_t *target, int32_t v, vint code)
{
    ptrdiff_t step_bytes = (ptrdiff_t)VECTORS * 4 * LANES;

    v_store_ints(target + 2 * v * step_bytes, v_and(code, v_ints(0x00ff00ff)));
    v_store_ints(target + (2 * v + 1) * step_bytes, v_right(code, 8));
}

INLINE vint pair(const struct linear_block *block, int32_t step)
{
    int32_t both;

    memcpy(&both, block->value + 4 * step, sizeof both);
    return v_ints(both);
}

/* Products of codes and activations of a block (or half of it), less zero * sum. */
INLINE void dot_steps(const uint8_t *code, const struct linear_tile *t, int32_t b, int32_t tokens,
                      bool whole, int32_t sub, vint dots[TILE_TOKENS][VECTORS])
{
    const struct linear_block *block = t->block + b;
    int32_t first = whole ? 0 : 8 * sub;
    int32_t end = whole ? 16 : first + 8;

    for (int32_t n = 0; n < tokens; n++) {
        const struct linear_block *own = &block[n * t->block_stride];
        vint minus = v_ints(whole ? own->minus_sum : own->minus_half_sum[sub]);

        for (int32_t v = 0; v < VECTORS; v++)
            dots[n][v] = v_shift_ints(minus, t->layout->zero_shift);
    }
    for (int32_t step = first; step < end; step++) {
        vint w[VECTORS];

        for (int32_t v = 0; v < VECTORS; v++)
            w[v] = v_load(code + (ptrdiff_t)(step * VECTORS + v) * 4 * LANES);
        for (int32_t n = 0; n < tokens; n++) {
            vint q = pair(&block[n * t->block_stride], step);

            for (int32_t v = 0; v < VECTORS; v++)
                dots[n][v] = v_add_pairs(dots[n][v], w[v], q);
        }
    }
}

#endif
