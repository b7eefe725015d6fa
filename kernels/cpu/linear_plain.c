/* The kernels of `linear` in plain C: the meaning of what the others do with vectors, and what a
 * machine without AVX2 runs. A unit is one strip of 16 rows. */
#include "kernels/cpu/linear_layout.h"

#include <math.h>

enum { UNIT_ROWS = LINEAR_STRIP_ROWS };

/* ---- activations ---- */

/* Largest magnitude as the bits of an f32: NaN is above infinity, infinity above all others. */
static uint32_t largest_bits(const float x[LINEAR_BLOCK])
{
    uint32_t largest = 0;

    for (int32_t i = 0; i < LINEAR_BLOCK; i++) {
        uint32_t bits;

        memcpy(&bits, &x[i], sizeof bits);
        bits &= 0x7fffffff;
        largest = bits > largest ? bits : largest;
    }
    return largest;
}

static void quantise(const float *x, int32_t in, struct linear_block *target)
{
    for (int32_t b = 0; b < in / LINEAR_BLOCK; b++) {
        const float *from = x + (ptrdiff_t)b * LINEAR_BLOCK;
        struct linear_block *block = &target[b];
        struct linear_factors factors = linear_factors(largest_bits(from));
        int16_t q[LINEAR_BLOCK];
        int32_t sum[2] = {0, 0};

        for (int32_t i = 0; i < LINEAR_BLOCK; i++) {
            q[i] = factors.inverse == 0 ? 0 : (int16_t)lrintf(from[i] * factors.inverse);
            sum[i / 16] += q[i];
        }
        memcpy(block->value, q, sizeof q);
        linear_set_sums(block, factors.scale, sum[0], sum[1]);
    }
}

/* ---- panels ---- */

static uint8_t panel_code(const struct format_scheme *scheme, int32_t code)
{
    return (uint8_t)(scheme->table != NULL ? scheme->table[code] + LINEAR_TABLE_ZERO : code);
}

static void decode_tile(const struct format_scheme *scheme, const uint8_t *tile, uint8_t *code)
{
    if (scheme->code_bits == 8) {
        memcpy(code, tile, LINEAR_TILE_BYTES);
        return;
    }
    for (int32_t v = 0; v < 8; v++) {
        for (int32_t i = 0; i < 64; i++) {
            int32_t value = linear_tile_code(scheme->code_bits, tile, v, i);

            code[64 * v + i] = panel_code(scheme, value);
        }
    }
}

static void decode(const struct linear_tile *t)
{
    struct linear_panel *panel = t->panel;

    for (int32_t b = 0; b < t->block_count; b++) {
        decode_tile(t->layout->scheme,
                    t->group + linear_tile_at(t->layout, t->strip, t->block_first + b),
                    panel->code + (size_t)b * LINEAR_TILE_BYTES);
        for (int32_t i = 0; i < 2 * UNIT_ROWS; i++) {
            int32_t value = (t->block_first + b) * LINEAR_BLOCK + i / UNIT_ROWS * 16;
            struct linear_scale scale =
                linear_scale(t->layout, t->group, t->strip * UNIT_ROWS + i % UNIT_ROWS, value);

            panel->scale[b * 2 * UNIT_ROWS + i] = scale.scale;
            panel->min[b * 2 * UNIT_ROWS + i] = scale.min;
        }
    }
}

/* ---- tiles ---- */

/* Products of code and q over values [first, first + count) of a block, for all rows. */
static void dot(const uint8_t *code, const int16_t *q, int32_t first, int32_t count,
                int32_t dots[UNIT_ROWS])
{
    for (int32_t i = first; i < first + count; i++) {
        const uint8_t *column = code + i / 4 * 64 + i % 4;

        for (int32_t row = 0; row < UNIT_ROWS; row++)
            dots[row] += column[4 * row] * q[i];
    }
}

/* One token, one block of 32 values. */
static void add_block(const struct linear_layout *layout, const struct linear_panel *panel,
                      int32_t b, const struct linear_block *block, float *sum)
{
    int32_t sub_values = layout->scheme->sub_values;
    int16_t q[LINEAR_BLOCK];

    memcpy(q, block->value, sizeof q);
    for (int32_t sub = 0; sub < LINEAR_BLOCK / sub_values; sub++) {
        const float *scale = panel->scale + (b * 2 + sub) * UNIT_ROWS;
        const float *min = panel->min + (b * 2 + sub) * UNIT_ROWS;
        bool whole = sub_values == LINEAR_BLOCK;
        int32_t minus_sum = whole ? block->minus_sum : block->minus_half_sum[sub];
        float sum_scaled = whole ? block->sum_scaled : block->half_sum_scaled[sub];
        int32_t dots[UNIT_ROWS];

        for (int32_t row = 0; row < UNIT_ROWS; row++)
            dots[row] = minus_sum * layout->zero;
        dot(panel->code + (size_t)b * LINEAR_TILE_BYTES, q, sub * sub_values, sub_values, dots);
        for (int32_t row = 0; row < UNIT_ROWS; row++) {
            sum[row] = fmaf((float)dots[row], scale[row] * block->scale, sum[row]);
            if (layout->scheme->has_min)
                sum[row] = fmaf(-min[row], sum_scaled, sum[row]);
        }
    }
}

static void tile(const struct linear_tile *t)
{
    for (int32_t token = 0; token < t->token_count; token++) {
        const struct linear_block *block = t->block + token * t->block_stride;

        for (int32_t b = 0; b < t->block_count; b++)
            add_block(t->layout, t->panel, b, &block[b], t->sum + (ptrdiff_t)token * UNIT_ROWS);
    }
}

/* ---- floats ---- */

static void tile_float(const struct linear_float_tile *t)
{
    size_t bytes = (size_t)format_info(t->format)->block_bytes;

    for (int32_t i = 0; i < t->in; i++) {
        float w[UNIT_ROWS];

        size_t first = (size_t)i * LINEAR_ROWS + (size_t)(t->strip * UNIT_ROWS);

        format_dequantise(t->format, t->group + first * bytes, UNIT_ROWS, w);
        for (int32_t token = 0; token < t->token_count; token++) {
            float x = t->x[token * t->x_stride + i];
            float *sum = t->sum + (ptrdiff_t)token * UNIT_ROWS;

            for (int32_t row = 0; row < UNIT_ROWS; row++)
                sum[row] = fmaf(w[row], x, sum[row]);
        }
    }
}

const struct linear_kernels linear_plain = {
    .unit_rows = UNIT_ROWS,
    .quantise = quantise,
    .decode = decode,
    .tile = tile,
    .tile_float = tile_float,
};
