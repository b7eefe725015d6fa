/* How `linear` lays out weights and activations, and the table of kernels that an instruction set
 * fills. Private to linear*.c.
 *
 * Packed weights. A group is 64 output rows, four strips of 16; groups follow each other. A group
 * of a quantised format is a record for each block of the file (32 or 256 values), in the order in
 * which it is read: the headers of the four strips, then for each 32 values the tiles of the four
 * strips.
 *   A header holds the scales of one block of the file of the 16 rows.
 *   A tile holds the codes of 32 values of the 16 rows. In its plainest form, 8 vectors of 64
 *   bytes, byte 4 * row + j of vector v is value 4 * v + j of that row. Narrower codes:
 *     4 bits: byte i of vector n (of 4) has code (n, i) in its low and (n + 4, i) in its high half.
 *     5 bits: the same, then one vector whose byte i has bit 4 of code (v, i) as its bit v.
 *     6 bits: the same 4 vectors, then two whose byte i has bits 4 and 5 of code (4 * n + f, i) as
 *             its bits 2 * f and 2 * f + 1, for vector n.
 * A group of F32, F16 or BF16 is [in][64] values.
 *
 * A panel is what the kernels read: codes as the instruction set wants them, scales as f32, of
 * `unit_rows` rows (one strip or all four) and up to PANEL_BLOCKS blocks of 32 values. It fits the
 * L1 cache.
 */
#ifndef KERNELS_CPU_LINEAR_LAYOUT_H
#define KERNELS_CPU_LINEAR_LAYOUT_H

#include "kernels/cpu/linear.h"
#include "kernels/format_codes.h"

#include <stdbool.h>
#include <stdint.h>

enum {
    LINEAR_BLOCK = 32,      /* values of an activation block and of a tile */
    LINEAR_STRIP_ROWS = 16, /* rows in the lanes of a tile */
    LINEAR_STRIPS = LINEAR_ROWS / LINEAR_STRIP_ROWS,
    LINEAR_PANEL_BLOCKS = 8,    /* blocks of a panel */
    LINEAR_TILE_BYTES = 8 * 64, /* of plain codes */
    LINEAR_Q_MAX = 32639,       /* of an activation: its high byte, rounded, is 127 */
    LINEAR_TOKENS_SPARE = 1,
    LINEAR_TABLE_ZERO = 128, /* what codes of tables are shifted by in a panel */
};

enum linear_scales {
    SCALES_F16,     /* f16 scale[16] */
    SCALES_F16_MIN, /* f16 scale[16], f16 min[16] (the file's, which is added) */
    SCALES_SIX_BIT, /* byte[12][16] as Q4_K's, f16 scale[16], f16 min[16] */
    SCALES_NIBBLE,  /* byte[16][16] as Q2_K's, f16 scale[16], f16 min[16] */
    SCALES_S8,      /* int8 sub_scale[16][16], f16 scale[16] */
    SCALES_E8,      /* byte exponent[16] */
};

struct linear_layout {
    const struct format_scheme *scheme;
    enum linear_scales scales;
    int32_t block_values; /* that a header is for: 32 or 256 */
    int32_t header_bytes; /* of a strip */
    int32_t tile_bytes;   /* of a strip */
    int32_t record_bytes;
    int32_t record_shift; /* log2 of the blocks of 32 values in a record */
    int32_t zero;         /* code in a panel - zero = q: tables are applied as a panel is made */
    int32_t zero_shift;   /* log2 of zero; 32 where zero is 0 */
};

/* The layout of a quantised format. */
struct linear_layout linear_layout(enum format format);

/* True for F32, F16 and BF16, which have no layout of codes. */
bool linear_is_float(enum format format);

/* Bytes of one group, a multiple of 64. */
size_t linear_group_bytes(enum format format, int32_t in);

/* Where the header of a strip for block `block` (of 32 values) is in its group. */
static inline ptrdiff_t linear_header_at(const struct linear_layout *layout, int32_t strip,
                                         int32_t block)
{
    return (ptrdiff_t)(block >> layout->record_shift) * layout->record_bytes +
           (ptrdiff_t)strip * layout->header_bytes;
}

/* Which of its record's blocks `block` is. */
static inline int32_t linear_block_in_record(const struct linear_layout *layout, int32_t block)
{
    return block & ((1 << layout->record_shift) - 1);
}

/* Where the tile of a strip for block `block` is in its group. */
static inline ptrdiff_t linear_tile_at(const struct linear_layout *layout, int32_t strip,
                                       int32_t block)
{
    int32_t tile = linear_block_in_record(layout, block) * LINEAR_STRIPS + strip;

    return linear_header_at(layout, LINEAR_STRIPS, block) + (ptrdiff_t)tile * layout->tile_bytes;
}

/* Code (vector, byte) of a tile. */
static inline int32_t linear_tile_code(int32_t code_bits, const uint8_t *tile, int32_t vector,
                                       int32_t byte)
{
    if (code_bits == 8)
        return tile[64 * vector + byte];

    int32_t code = tile[vector % 4 * 64 + byte] >> vector / 4 * 4 & 15;

    if (code_bits == 5)
        code |= (tile[256 + byte] >> vector & 1) << 4;
    if (code_bits == 6)
        code |= (tile[256 + vector / 4 * 64 + byte] >> vector % 4 * 2 & 3) << 4;
    return code;
}

/* Scale and min of value `value` of a row of a group. */
struct linear_scale {
    float scale;
    float min;
};
struct linear_scale linear_scale(const struct linear_layout *layout, const uint8_t *group,
                                 int32_t row, int32_t value);

/* 32 activations of a token as integers: x = q * scale. Sums are over all 32 and over each 16. */
struct linear_block {
    uint8_t value[64]; /* the q, in the order that the instruction set wants */
    float scale;
    float sum_scaled;         /* scale * sum of q */
    float half_sum_scaled[2]; /* the same of the first and last 16 */
    int32_t minus_sum;
    int32_t minus_half_sum[2];
    int32_t unused;
};

/* The factors for a block whose largest magnitude has these f32 bits: q = round(x * inverse),
 * x = q * scale. A block of values below 1e-30 counts as zeros (inverse and scale 0); one that is
 * not finite gets inverse 0 and scale NaN. */
struct linear_factors {
    float inverse;
    float scale;
};
static inline struct linear_factors linear_factors(uint32_t largest_bits)
{
    float largest = format_float(largest_bits);

    if (largest_bits >= 0x7f800000)
        return (struct linear_factors){0, format_float(0x7fc00000)};
    if (largest < 1e-30F)
        return (struct linear_factors){0, 0};
    return (struct linear_factors){(float)LINEAR_Q_MAX / largest, largest / (float)LINEAR_Q_MAX};
}

static inline void linear_set_sums(struct linear_block *block, float scale, int32_t first_half,
                                   int32_t second_half)
{
    int32_t sum = first_half + second_half;

    block->scale = scale;
    block->sum_scaled = scale * (float)sum;
    block->half_sum_scaled[0] = scale * (float)first_half;
    block->half_sum_scaled[1] = scale * (float)second_half;
    block->minus_sum = -sum;
    block->minus_half_sum[0] = -first_half;
    block->minus_half_sum[1] = -second_half;
    block->unused = 0;
}

struct linear_panel {
    /* two bytes a code at most */
    _Alignas(64) uint8_t code[LINEAR_PANEL_BLOCKS * LINEAR_STRIPS * 2 * LINEAR_TILE_BYTES];
    /* [blocks][2][unit_rows]: of the first and last 16 values; only [0] where 32 share it */
    _Alignas(64) float scale[LINEAR_PANEL_BLOCKS * 2 * LINEAR_ROWS];
    _Alignas(64) float min[LINEAR_PANEL_BLOCKS * 2 * LINEAR_ROWS];
};

/* Some tokens of one unit. Kernels may compute up to LINEAR_TOKENS_SPARE tokens too many: the
 * blocks and sums beyond the last token are memory of the caller's that nobody else uses. */
struct linear_tile {
    const struct linear_layout *layout;
    const uint8_t *group;
    int32_t strip; /* the unit's first in the group */
    int32_t block_first;
    int32_t block_count;
    bool direct;   /* tile decodes each block itself: reading and computing overlap */
    int32_t ahead; /* bytes from what is computed to what should be fetched; 0: nothing */
    struct linear_panel *panel;       /* decode writes it, tile reads it */
    const struct linear_block *block; /* of the first token, at block_first */
    int64_t block_stride;             /* to the next token */
    int32_t token_count;
    float *sum; /* [token_count][unit_rows], added to */
};

struct linear_float_tile {
    enum format format;
    const uint8_t *group;
    int32_t strip; /* the unit's first in the group */
    int32_t in;
    int32_t ahead; /* as above */
    const float *x;
    int64_t x_stride;
    int32_t token_count;
    float *sum; /* [token_count][unit_rows], added to */
};

struct linear_kernels {
    int32_t unit_rows;     /* that are computed at a time: 16 or 64 */
    int32_t direct_tokens; /* up to so many tokens may be `direct` */
    /* `in` values of one token to blocks. */
    void (*quantise)(const float *x, int32_t in, struct linear_block *target);
    /* Some blocks of the unit to the panel, and from there to the sums. */
    void (*decode)(const struct linear_tile *tile);
    void (*tile)(const struct linear_tile *tile);
    void (*tile_float)(const struct linear_float_tile *tile);
};

extern const struct linear_kernels linear_plain;
extern const struct linear_kernels linear_avx2;
extern const struct linear_kernels linear_avx512;
extern const struct linear_kernels linear_avx512bf16;

#endif
