/* The kernels of `linear` over vectors, written once: linear_avx2.c, linear_avx512.c and
 * linear_avx512bf16.c define the vectors and their operations, and include this.
 *
 * A unit of rows is VECTORS wide: the two halves of a strip where a vector has 8 lanes, four
 * strips where it has 16. What the including file gives:
 *   LANES, vint, vfloat       lanes of 32 bits, and the vectors
 *   VECTORS, TILE_TOKENS      sums in registers: of so many vectors of rows, for so many tokens
 *   STEPS                     vectors of codes of a block of 32 values in a panel, for each of
 * VECTORS v_*                       operations, named where they are defined put_codes one vector
 * of 4 codes a lane to its steps of a panel dot_steps                 integer products of a block
 *   largest, put_activations  the two parts of quantising 32 values
 */
#ifndef KERNELS_CPU_LINEAR_SIMD_H
#define KERNELS_CPU_LINEAR_SIMD_H

enum {
    UNIT_ROWS = VECTORS * LANES,
    VECTOR_BYTES = 4 * LANES,
    UNIT_STRIPS = UNIT_ROWS / LINEAR_STRIP_ROWS,
    BLOCK_CODE_BYTES = STEPS * VECTORS * VECTOR_BYTES, /* of a block in a panel */
};

/* ---- activations ---- */

static void quantise(const float *x, int32_t in, struct linear_block *target)
{
    for (int32_t b = 0; b < in / LINEAR_BLOCK; b++) {
        const float *from = x + (ptrdiff_t)b * LINEAR_BLOCK;
        struct linear_factors factors = linear_factors(largest(from));
        int32_t sum[2] = {0, 0};

        if (factors.inverse == 0)
            memset(target[b].value, 0, sizeof target[b].value);
        else
            put_activations(from, factors.inverse, target[b].value, sum);
        linear_set_sums(&target[b], factors.scale, sum[0], sum[1]);
    }
}

/* ---- panels: codes ---- */

/* Codes of 4 to 8 bits, 8 vectors of them, from a tile (or half of its columns). */
INLINE void load_codes(int32_t code_bits, const uint8_t *tile, vint code[8])
{
    for (int32_t n = 0; n < 4; n++) {
        if (code_bits == 8) {
            code[n] = v_load(tile + 64 * n);
            code[n + 4] = v_load(tile + 64 * (n + 4));
        } else {
            vint both = v_load(tile + 64 * n);

            code[n] = v_and(both, v_bytes(15));
            code[n + 4] = v_and(v_right(both, 4), v_bytes(15));
        }
    }
    for (int32_t v = 0; v < 8 && code_bits == 5; v++) {
        vint bits = v_load(tile + 256);

        bits = v < 4 ? v_left(bits, 4 - v) : v_right(bits, v - 4);
        code[v] = v_or(code[v], v_and(bits, v_bytes(16)));
    }
    for (int32_t v = 0; v < 8 && code_bits == 6; v++) {
        vint bits = v_load(tile + 256 + v / 4 * 64);

        bits = v % 4 < 2 ? v_left(bits, 4 - v % 4 * 2) : v_right(bits, v % 4 * 2 - 4);
        code[v] = v_or(code[v], v_and(bits, v_bytes(48)));
    }
}

INLINE vint load_table(const int8_t *table)
{
    return v_sub_bytes(v_table(table), v_bytes(LINEAR_TABLE_ZERO));
}

/* Codes of one tile (or half of its columns) to a vector of rows of a panel's block. */
INLINE void decode_tile(int32_t code_bits, const int8_t *table, const uint8_t *tile,
                        uint8_t *target)
{
    vint code[8];

    load_codes(code_bits, tile, code);
    for (int32_t v = 0; v < 8; v++) {
        if (table != NULL)
            code[v] = v_look_up(load_table(table), code[v]);
        put_codes(target, v, code[v]);
    }
}

INLINE void decode_codes(const struct format_scheme *scheme, const uint8_t *tile, uint8_t *target)
{
    if (scheme->table != NULL)
        decode_tile(4, scheme->table, tile, target);
    else if (scheme->code_bits == 4)
        decode_tile(4, NULL, tile, target);
    else if (scheme->code_bits == 5)
        decode_tile(5, NULL, tile, target);
    else if (scheme->code_bits == 6)
        decode_tile(6, NULL, tile, target);
    else
        decode_tile(8, NULL, tile, target);
}

/* ---- panels: scales ---- */

/* Scale and min of sub-block j of 8, as Q4_K packs them. */
INLINE void six_bits(const uint8_t *header, int32_t j, vfloat *scale, vfloat *min)
{
    vint first = v_load_u8(header + j % 4 * LINEAR_STRIP_ROWS);
    vint second = v_load_u8(header + (j % 4 + 4) * LINEAR_STRIP_ROWS);
    vint both = v_load_u8(header + (j % 4 + 8) * LINEAR_STRIP_ROWS);

    if (j < 4) {
        *scale = v_to_float(v_and(first, v_ints(63)));
        *min = v_to_float(v_and(second, v_ints(63)));
        return;
    }
    first = v_left_ints(v_right_ints(first, 6), 4);
    second = v_left_ints(v_right_ints(second, 6), 4);
    *scale = v_to_float(v_or(v_and(both, v_ints(15)), first));
    *min = v_to_float(v_or(v_right_ints(both, 4), second));
}

/* Scales and mins of the first and last 16 of 32 values of the LANES rows whose header this is.
 * `j` counts the 32 values in the header's block. */
INLINE void load_scales(enum linear_scales scales, const uint8_t *bytes, const uint8_t *halves,
                        int32_t j, vfloat scale[2], vfloat min[2])
{
    min[0] = v_zero();
    min[1] = v_zero();
    switch (scales) {
    case SCALES_F16_MIN:
        min[0] = v_sub(v_zero(), v_load_f16(halves + 32));
        scale[0] = v_load_f16(halves);
        scale[1] = scale[0];
        break;
    case SCALES_SIX_BIT:
        six_bits(bytes, j, &scale[0], &min[0]);
        scale[0] = v_mul(v_load_f16(halves + 192), scale[0]);
        min[0] = v_mul(v_load_f16(halves + 224), min[0]);
        scale[1] = scale[0];
        break;
    case SCALES_NIBBLE:
        for (int32_t i = 0; i < 2; i++) {
            vint both = v_load_u8(bytes + (2 * j + i) * LINEAR_STRIP_ROWS);

            scale[i] = v_to_float(v_and(both, v_ints(15)));
            min[i] = v_to_float(v_right_ints(both, 4));
            scale[i] = v_mul(v_load_f16(halves + 256), scale[i]);
            min[i] = v_mul(v_load_f16(halves + 288), min[i]);
        }
        break;
    case SCALES_S8:
        for (int32_t i = 0; i < 2; i++) {
            scale[i] = v_to_float(v_load_s8(bytes + (2 * j + i) * LINEAR_STRIP_ROWS));
            scale[i] = v_mul(v_load_f16(halves + 256), scale[i]);
        }
        break;
    case SCALES_E8:
        scale[0] = v_e8_half(v_load_u8(bytes));
        scale[1] = scale[0];
        break;
    default:
        scale[0] = v_load_f16(halves);
        scale[1] = scale[0];
        break;
    }
}

/* Block b of a vector of rows to its place in a panel's block. */
INLINE void decode_vector(const struct linear_tile *t, int32_t vector, int32_t b,
                          int32_t panel_block)
{
    const struct linear_layout *layout = t->layout;
    int32_t block = t->block_first + b, lane = vector * LANES % LINEAR_STRIP_ROWS;
    int32_t strip = t->strip + vector * LANES / LINEAR_STRIP_ROWS;
    const uint8_t *header = t->group + linear_header_at(layout, strip, block);
    const uint8_t *tile = t->group + linear_tile_at(layout, strip, block);
    ptrdiff_t at = (ptrdiff_t)panel_block * 2 * UNIT_ROWS + (ptrdiff_t)vector * LANES;
    vfloat scale[2], min[2];

    decode_codes(layout->scheme, tile + (ptrdiff_t)4 * lane,
                 t->panel->code + (ptrdiff_t)panel_block * BLOCK_CODE_BYTES +
                     (ptrdiff_t)vector * VECTOR_BYTES);
    load_scales(layout->scales, header + lane, header + (ptrdiff_t)2 * lane,
                linear_block_in_record(layout, block), scale, min);
    for (int32_t i = 0; i < 2; i++) {
        v_store(t->panel->scale + at + (ptrdiff_t)i * UNIT_ROWS, scale[i]);
        v_store(t->panel->min + at + (ptrdiff_t)i * UNIT_ROWS, min[i]);
    }
}

/* Block b of a tile to a block of a panel. */
static void decode_block(const struct linear_tile *t, int32_t b, int32_t panel_block)
{
    for (int32_t vector = 0; vector < VECTORS; vector++)
        decode_vector(t, vector, b, panel_block);
}

static void decode(const struct linear_tile *t)
{
    for (int32_t b = 0; b < t->block_count; b++)
        decode_block(t, b, b);
}

/* ---- tiles ---- */

INLINE void prefetch(const uint8_t *first, ptrdiff_t bytes)
{
    for (ptrdiff_t i = 0; i < bytes; i += 64)
        __builtin_prefetch(first + i);
}

/* Asks for what lies `ahead` of block b: weights are one stream, so these are the next blocks, of
 * this group or the next. */
INLINE void prefetch_block(const struct linear_tile *t, int32_t b)
{
    const struct linear_layout *layout = t->layout;
    const uint8_t *next = t->group + t->ahead;
    int32_t block = t->block_first + b;

    if (linear_block_in_record(layout, block) == 0)
        prefetch(next + linear_header_at(layout, t->strip, block),
                 (ptrdiff_t)UNIT_STRIPS * layout->header_bytes);
    prefetch(next + linear_tile_at(layout, t->strip, block),
             (ptrdiff_t)UNIT_STRIPS * layout->tile_bytes);
}

/* A block of a panel: codes, and scales and mins of its first and last 16 values. */
struct panel_block {
    const uint8_t *code;
    const float *scale;
    const float *min;
};

/* What a kernel is compiled for. */
struct kind {
    bool whole; /* 32 values share a scale; false: 16 do */
    bool has_min;
};

/* One sub-block (16 values) or block (32) of `tokens` tokens. The sums stay in memory: the
 * registers are for the integers. */
INLINE void add_sub_block(const struct linear_tile *t, int32_t tokens, int32_t b, int32_t sub,
                          struct panel_block panel, struct kind kind)
{
    const float *scale = panel.scale + (ptrdiff_t)sub * UNIT_ROWS;
    const float *min = panel.min + (ptrdiff_t)sub * UNIT_ROWS;
    vint dots[TILE_TOKENS][VECTORS];

    dot_steps(panel.code, t, b, tokens, kind.whole, sub, dots);
    for (int32_t n = 0; n < tokens; n++) {
        const struct linear_block *block = t->block + n * t->block_stride + b;
        vfloat factor = v_floats(&block->scale);
        vfloat q = v_floats(kind.whole ? &block->sum_scaled : &block->half_sum_scaled[sub]);

        for (int32_t v = 0; v < VECTORS; v++) {
            float *target = t->sum + (ptrdiff_t)n * UNIT_ROWS + (ptrdiff_t)v * LANES;
            vfloat both = v_mul(v_load_float(scale + (ptrdiff_t)v * LANES), factor);
            vfloat sum = v_fma(v_to_float(dots[n][v]), both, v_load_float(target));

            if (kind.has_min)
                sum = v_fnma(v_load_float(min + (ptrdiff_t)v * LANES), q, sum);
            v_store(target, sum);
        }
    }
}

INLINE void tile_tokens(const struct linear_tile *t, int32_t tokens, struct kind kind)
{
    for (int32_t b = 0; b < t->block_count; b++) {
        int32_t panel_block = t->direct ? 0 : b;
        struct panel_block panel = {
            .code = t->panel->code + (ptrdiff_t)panel_block * BLOCK_CODE_BYTES,
            .scale = t->panel->scale + (ptrdiff_t)panel_block * 2 * UNIT_ROWS,
            .min = t->panel->min + (ptrdiff_t)panel_block * 2 * UNIT_ROWS,
        };

        if (t->ahead != 0)
            prefetch_block(t, b);
        if (t->direct)
            decode_block(t, b, 0);
        add_sub_block(t, tokens, b, 0, panel, kind);
        if (!kind.whole)
            add_sub_block(t, tokens, b, 1, panel, kind);
    }
}

/* All tokens of a tile, as many at a time as there are registers for; the last three with one
 * beyond the end, whose sums nobody reads. */
INLINE void tile_all(const struct linear_tile *all, struct kind kind)
{
    struct linear_tile t = *all;

    for (; t.token_count > 2; t.token_count -= TILE_TOKENS) {
        tile_tokens(&t, TILE_TOKENS, kind);
        t.block += TILE_TOKENS * t.block_stride;
        t.sum += (ptrdiff_t)TILE_TOKENS * UNIT_ROWS;
        t.ahead = 0;
    }
    if (t.token_count == 2)
        tile_tokens(&t, 2, kind);
    else if (t.token_count == 1)
        tile_tokens(&t, 1, kind);
}

static void tile(const struct linear_tile *t)
{
    const struct format_scheme *scheme = t->layout->scheme;

    if (scheme->sub_values == LINEAR_BLOCK && !scheme->has_min)
        tile_all(t, (struct kind){.whole = true});
    else if (scheme->sub_values == LINEAR_BLOCK)
        tile_all(t, (struct kind){.whole = true, .has_min = true});
    else if (!scheme->has_min)
        tile_all(t, (struct kind){.whole = false});
    else
        tile_all(t, (struct kind){.whole = false, .has_min = true});
}

/* ---- floats ---- */

INLINE vfloat load_value(enum format format, const uint8_t *source)
{
    if (format == FORMAT_F32)
        return v_load_float((const float *)(const void *)source);
    return format == FORMAT_F16 ? v_load_f16(source) : v_load_bf16(source);
}

INLINE void float_tokens(const struct linear_float_tile *t, int32_t tokens, enum format format,
                         ptrdiff_t value_bytes)
{
    const uint8_t *first = t->group + (ptrdiff_t)t->strip * LINEAR_STRIP_ROWS * value_bytes;
    vfloat sum[TILE_TOKENS][VECTORS];

    for (int32_t i = 0; i < tokens * VECTORS; i++)
        sum[i / VECTORS][i % VECTORS] = v_load_float(t->sum + (ptrdiff_t)i * LANES);
    for (int32_t k = 0; k < t->in; k++) {
        vfloat w[VECTORS];

        for (int32_t v = 0; v < VECTORS; v++) {
            const uint8_t *from = first + ((ptrdiff_t)k * LINEAR_ROWS + v * LANES) * value_bytes;

            w[v] = load_value(format, from);
            if (t->ahead != 0 && v * LANES * value_bytes % 64 == 0)
                __builtin_prefetch(from + t->ahead);
        }
        for (int32_t n = 0; n < tokens; n++) {
            vfloat x = v_floats(t->x + n * t->x_stride + k);

            for (int32_t v = 0; v < VECTORS; v++)
                sum[n][v] = v_fma(w[v], x, sum[n][v]);
        }
    }
    for (int32_t i = 0; i < tokens * VECTORS; i++)
        v_store(t->sum + (ptrdiff_t)i * LANES, sum[i / VECTORS][i % VECTORS]);
}

/* All tokens; unlike blocks, activations beyond the last token are not ours to read. */
INLINE void float_all(const struct linear_float_tile *all, enum format format,
                      ptrdiff_t value_bytes)
{
    struct linear_float_tile t = *all;

    while (t.token_count > 0) {
        int32_t tokens = 1;

        if (t.token_count >= TILE_TOKENS) {
            tokens = TILE_TOKENS;
            float_tokens(&t, TILE_TOKENS, format, value_bytes);
        } else if (t.token_count >= 2) {
            tokens = 2;
            float_tokens(&t, 2, format, value_bytes);
        } else {
            float_tokens(&t, 1, format, value_bytes);
        }
        t.x += tokens * t.x_stride;
        t.sum += (ptrdiff_t)tokens * UNIT_ROWS;
        t.token_count -= tokens;
        t.ahead = 0;
    }
}

static void tile_float(const struct linear_float_tile *t)
{
    if (t->format == FORMAT_F32)
        float_all(t, FORMAT_F32, 4);
    else if (t->format == FORMAT_F16)
        float_all(t, FORMAT_F16, 2);
    else
        float_all(t, FORMAT_BF16, 2);
}

#endif
