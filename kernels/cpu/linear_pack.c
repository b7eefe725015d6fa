/* Packing of weights for `linear`, and rows out of packed weights. linear_layout.h describes the
 * layout. Any thread. */
#include "kernels/cpu/linear_layout.h"

#include <assert.h>

/* ---- the layout ---- */

static const enum linear_scales scales_of[FORMAT_COUNT] = {
    [FORMAT_Q4_0] = SCALES_F16,     [FORMAT_Q4_1] = SCALES_F16_MIN, [FORMAT_Q5_0] = SCALES_F16,
    [FORMAT_Q5_1] = SCALES_F16_MIN, [FORMAT_Q8_0] = SCALES_F16,     [FORMAT_Q2_K] = SCALES_NIBBLE,
    [FORMAT_Q3_K] = SCALES_S8,      [FORMAT_Q4_K] = SCALES_SIX_BIT, [FORMAT_Q5_K] = SCALES_SIX_BIT,
    [FORMAT_Q6_K] = SCALES_S8,      [FORMAT_IQ4_NL] = SCALES_F16,   [FORMAT_IQ4_XS] = SCALES_S8,
    [FORMAT_MXFP4] = SCALES_E8,
};

/* Bytes of a header, for one row. */
static const int32_t header_row_bytes[] = {
    [SCALES_F16] = 2,     [SCALES_F16_MIN] = 4, [SCALES_SIX_BIT] = 16,
    [SCALES_NIBBLE] = 20, [SCALES_S8] = 18,     [SCALES_E8] = 1,
};

bool linear_is_float(enum format format)
{
    return format_scheme(format) == NULL;
}

struct linear_layout linear_layout(enum format format)
{
    const struct format_scheme *scheme = format_scheme(format);

    assert(scheme != NULL);
    int32_t zero = scheme->table != NULL ? LINEAR_TABLE_ZERO : scheme->zero;
    int32_t block_values = format_info(format)->block_values;
    int32_t header_bytes = header_row_bytes[scales_of[format]] * LINEAR_STRIP_ROWS;
    int32_t tile_bytes = scheme->code_bits * 64;
    int32_t tile_count = block_values / LINEAR_BLOCK;

    assert((zero & (zero - 1)) == 0);
    assert((tile_count & (tile_count - 1)) == 0);
    return (struct linear_layout){
        .scheme = scheme,
        .scales = scales_of[format],
        .block_values = block_values,
        .header_bytes = header_bytes,
        .tile_bytes = tile_bytes,
        .record_bytes = LINEAR_STRIPS * (header_bytes + tile_count * tile_bytes),
        .record_shift = __builtin_ctz((unsigned)tile_count),
        .zero = zero,
        .zero_shift = zero == 0 ? 32 : __builtin_ctz((unsigned)zero),
    };
}

size_t linear_group_bytes(enum format format, int32_t in)
{
    assert(in > 0);
    assert(in % format_info(format)->block_values == 0);
    if (linear_is_float(format))
        return format_row_bytes(format, in) * LINEAR_ROWS;

    struct linear_layout layout = linear_layout(format);

    return (size_t)(in / layout.block_values) * (size_t)layout.record_bytes;
}

int32_t linear_group_count(int32_t out)
{
    assert(out > 0);
    return (out - 1) / LINEAR_ROWS + 1;
}

size_t linear_packed_bytes(enum format format, int32_t out, int32_t in)
{
    return linear_group_bytes(format, in) * (size_t)linear_group_count(out);
}

/* ---- headers ---- */

/* Byte `index` of the row's header goes to [index][row]; halves to [index / 2][row]. */
static void put_bytes(uint8_t *header, int32_t row, const uint8_t *source, int32_t count)
{
    for (int32_t i = 0; i < count; i++)
        header[i * LINEAR_STRIP_ROWS + row] = source[i];
}

static void put_half(uint8_t *halves, int32_t row, const uint8_t *source)
{
    memcpy(halves + 2 * row, source, 2);
}

/* Scales of Q6_K, Q3_K and IQ4_XS as one signed byte for each 16 values. */
static void s8_scales(enum format format, const uint8_t *block, int8_t *scale)
{
    for (int32_t j = 0; j < 16; j++) {
        int32_t low, high;

        if (format == FORMAT_Q6_K) {
            scale[j] = (int8_t)block[192 + j];
            continue;
        }
        if (format == FORMAT_Q3_K) {
            low = block[96 + j % 8] >> j / 8 * 4 & 15;
            high = block[104 + j % 4] >> j / 4 * 2 & 3;
        } else {
            low = block[4 + j / 4] >> j / 2 % 2 * 4 & 15;
            high = (block[2] | block[3] << 8) >> j / 2 * 2 & 3;
        }
        scale[j] = (int8_t)((low | high << 4) - 32);
    }
}

/* Where the f16 scale of a block with sub-scales in bytes lies. */
static const uint8_t *s8_half(enum format format, const uint8_t *block)
{
    if (format == FORMAT_Q6_K)
        return block + 208;
    return format == FORMAT_Q3_K ? block + 108 : block;
}

/* The header of one block of one row. */
static void pack_header(enum format format, enum linear_scales scales, const uint8_t *block,
                        int32_t row, uint8_t *header)
{
    int8_t scale[16];

    switch (scales) {
    case SCALES_F16:
        put_half(header, row, block);
        break;
    case SCALES_F16_MIN:
        put_half(header, row, block);
        put_half(header + 32, row, block + 2);
        break;
    case SCALES_SIX_BIT:
        put_bytes(header, row, block + 4, 12);
        put_half(header + 192, row, block);
        put_half(header + 224, row, block + 2);
        break;
    case SCALES_NIBBLE:
        put_bytes(header, row, block, 16);
        put_half(header + 256, row, block + 80);
        put_half(header + 288, row, block + 82);
        break;
    case SCALES_S8:
        s8_scales(format, block, scale);
        put_bytes(header, row, (const uint8_t *)scale, 16);
        put_half(header + 256, row, s8_half(format, block));
        break;
    case SCALES_E8:
        header[row] = block[0];
        break;
    }
}

/* ---- tiles ---- */

/* Plain codes, 8 vectors of 64 bytes, to a tile of fewer bits. */
static void pack_tile(int32_t code_bits, const uint8_t plain[LINEAR_TILE_BYTES], uint8_t *tile)
{
    if (code_bits == 8) {
        memcpy(tile, plain, LINEAR_TILE_BYTES);
        return;
    }
    for (int32_t i = 0; i < 256; i++)
        tile[i] = (uint8_t)((plain[i] & 15) | plain[i + 256] << 4);
    if (code_bits == 5) {
        for (int32_t i = 0; i < 64; i++) {
            int32_t bits = 0;

            for (int32_t v = 0; v < 8; v++)
                bits |= (plain[64 * v + i] >> 4 & 1) << v;
            tile[256 + i] = (uint8_t)bits;
        }
    }
    if (code_bits == 6) {
        for (int32_t i = 0; i < 128; i++) {
            const uint8_t *code = plain + i / 64 * 256 + i % 64;
            int32_t bits = 0;

            for (int32_t f = 0; f < 4; f++)
                bits |= (code[64 * f] >> 4 & 3) << 2 * f;
            tile[256 + i] = (uint8_t)bits;
        }
    }
}

/* ---- packing ---- */

/* One block of the file (32 or 256 values) of all rows of a strip. */
static void pack_block(const struct weight_source *source, const struct linear_layout *layout,
                       int32_t row_first, int32_t block, uint8_t *group)
{
    const struct format_info *info = format_info(source->format);
    size_t row_bytes = format_row_bytes(source->format, source->in);
    int32_t tile_count = info->block_values / LINEAR_BLOCK;
    int32_t strip = row_first % LINEAR_ROWS / LINEAR_STRIP_ROWS;
    uint8_t plain[FORMAT_BLOCK_MAX / LINEAR_BLOCK][LINEAR_TILE_BYTES] = {0};
    uint8_t *header = group + linear_header_at(layout, strip, block * tile_count);

    memset(header, 0, (size_t)layout->header_bytes);
    for (int32_t row = 0; row < LINEAR_STRIP_ROWS && row_first + row < source->out; row++) {
        const uint8_t *from = (const uint8_t *)source->data +
                              (size_t)(row_first + row) * row_bytes +
                              (size_t)block * (size_t)info->block_bytes;
        struct format_codes codes;

        format_codes(source->format, from, &codes);
        pack_header(source->format, layout->scales, from, row, header);
        for (int32_t i = 0; i < info->block_values; i += 4)
            memcpy(&plain[i / LINEAR_BLOCK][i % LINEAR_BLOCK / 4 * 64 + 4 * row], codes.code + i,
                   4);
    }
    for (int32_t i = 0; i < tile_count; i++)
        pack_tile(layout->scheme->code_bits, plain[i],
                  group + linear_tile_at(layout, strip, block * tile_count + i));
}

static void pack_floats(const struct weight_source *source, int32_t row_first, uint8_t *group)
{
    size_t value_bytes = (size_t)format_info(source->format)->block_bytes;
    size_t row_bytes = format_row_bytes(source->format, source->in);

    memset(group, 0, linear_group_bytes(source->format, source->in));
    for (int32_t row = 0; row < LINEAR_ROWS && row_first + row < source->out; row++) {
        const uint8_t *from = (const uint8_t *)source->data + (size_t)(row_first + row) * row_bytes;

        for (int32_t i = 0; i < source->in; i++)
            memcpy(group + ((size_t)i * LINEAR_ROWS + (size_t)row) * value_bytes,
                   from + (size_t)i * value_bytes, value_bytes);
    }
}

static void pack_group(const struct weight_source *source, int32_t row_first, uint8_t *group)
{
    if (linear_is_float(source->format)) {
        pack_floats(source, row_first, group);
        return;
    }
    struct linear_layout layout = linear_layout(source->format);

    for (int32_t block = 0; block < source->in / layout.block_values; block++) {
        for (int32_t row = 0; row < LINEAR_ROWS; row += LINEAR_STRIP_ROWS)
            pack_block(source, &layout, row_first + row, block, group);
    }
}

void linear_pack_groups(const struct weight_source *source, void *target, int32_t group_first,
                        int32_t group_count)
{
    size_t group_bytes = linear_group_bytes(source->format, source->in);

    assert((uintptr_t)target % LINEAR_ALIGN == 0);
    assert(group_first >= 0);
    assert(group_first + group_count <= linear_group_count(source->out));
    for (int32_t group = group_first; group < group_first + group_count; group++)
        pack_group(source, group * LINEAR_ROWS, (uint8_t *)target + (size_t)group * group_bytes);
}

struct pack_job {
    const struct weight_source *source;
    void *target;
    int32_t group_count;
    int32_t task_count;
};

static void pack_task(void *context, int32_t task, int32_t worker)
{
    const struct pack_job *job = context;
    int64_t first = pool_task_first(job->group_count, job->task_count, task);
    int64_t end = pool_task_first(job->group_count, job->task_count, task + 1);

    (void)worker;
    linear_pack_groups(job->source, job->target, (int32_t)first, (int32_t)(end - first));
}

void linear_pack(struct pool *pool, const struct weight_source *source, void *target)
{
    struct pack_job job = {
        .source = source, .target = target, .group_count = linear_group_count(source->out)};

    job.task_count = pool_task_count(pool, job.group_count, 1);
    pool_run(pool, pack_task, &job, job.task_count);
}

/* ---- rows ---- */

static float half_at(const uint8_t *halves, int32_t row)
{
    uint16_t half;

    memcpy(&half, halves + 2 * row, 2);
    return format_f16(half);
}

/* Sub-scale and sub-min j of eight, as Q4_K packs them, from bytes that are 16 rows apart. */
static void six_bits(const uint8_t *bytes, int32_t j, int32_t *scale, int32_t *min)
{
    if (j < 4) {
        *scale = bytes[j * LINEAR_STRIP_ROWS] & 63;
        *min = bytes[(j + 4) * LINEAR_STRIP_ROWS] & 63;
        return;
    }
    int32_t both = bytes[(j + 4) * LINEAR_STRIP_ROWS];

    *scale = (both & 15) | bytes[(j - 4) * LINEAR_STRIP_ROWS] >> 6 << 4;
    *min = both >> 4 | bytes[j * LINEAR_STRIP_ROWS] >> 6 << 4;
}

struct linear_scale linear_scale(const struct linear_layout *layout, const uint8_t *group,
                                 int32_t row, int32_t value)
{
    const uint8_t *header =
        group + linear_header_at(layout, row / LINEAR_STRIP_ROWS, value / LINEAR_BLOCK);
    int32_t in_block = value % layout->block_values;
    int32_t scale, min;

    row %= LINEAR_STRIP_ROWS;
    switch (layout->scales) {
    case SCALES_F16:
        return (struct linear_scale){half_at(header, row), 0};
    case SCALES_F16_MIN:
        return (struct linear_scale){half_at(header, row), -half_at(header + 32, row)};
    case SCALES_SIX_BIT:
        six_bits(header + row, in_block / 32, &scale, &min);
        return (struct linear_scale){half_at(header + 192, row) * (float)scale,
                                     half_at(header + 224, row) * (float)min};
    case SCALES_NIBBLE:
        scale = header[in_block / 16 * LINEAR_STRIP_ROWS + row];
        return (struct linear_scale){half_at(header + 256, row) * (float)(scale & 15),
                                     half_at(header + 288, row) * (float)(scale >> 4)};
    case SCALES_S8:
        scale = (int8_t)header[in_block / 16 * LINEAR_STRIP_ROWS + row];
        return (struct linear_scale){half_at(header + 256, row) * (float)scale, 0};
    default:
        return (struct linear_scale){format_e8_half(header[row]), 0};
    }
}

static void row_of_codes(const struct weight_part *part, const uint8_t *group, int32_t in,
                         int32_t row, float *target)
{
    struct linear_layout layout = linear_layout(part->format);
    const struct format_scheme *scheme = layout.scheme;
    int32_t lane = row % LINEAR_STRIP_ROWS;

    for (int32_t first = 0; first < in; first += scheme->sub_values) {
        struct linear_scale scale = linear_scale(&layout, group, row, first);
        const uint8_t *tile =
            group + linear_tile_at(&layout, row / LINEAR_STRIP_ROWS, first / LINEAR_BLOCK);

        for (int32_t i = 0; i < scheme->sub_values; i++) {
            int32_t at = first % LINEAR_BLOCK + i;
            int32_t code = linear_tile_code(scheme->code_bits, tile, at / 4, 4 * lane + at % 4);
            int32_t q = scheme->table != NULL ? scheme->table[code] : code - scheme->zero;

            target[first + i] = scale.scale * (float)q - scale.min;
        }
    }
}

void linear_row(const struct weight_part *part, int32_t in, int32_t row, float *target)
{
    assert(row >= 0);
    assert(row < part->out);
    const uint8_t *group = (const uint8_t *)part->data +
                           (size_t)(row / LINEAR_ROWS) * linear_group_bytes(part->format, in);

    if (!linear_is_float(part->format)) {
        row_of_codes(part, group, in, row % LINEAR_ROWS, target);
        return;
    }
    size_t value_bytes = (size_t)format_info(part->format)->block_bytes;

    for (int32_t i = 0; i < in; i++) {
        const uint8_t *value = group + (size_t)(i * LINEAR_ROWS + row % LINEAR_ROWS) * value_bytes;

        format_dequantise(part->format, value, 1, target + i);
    }
}
