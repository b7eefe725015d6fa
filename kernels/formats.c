/* The table of weight formats and their one dequantisation formula.
 *
 * Decoders take a block apart into codes, scales and mins (format_codes.h); the formula is then
 * the same for all: scale * q - min. Scales are products of a half and a small integer, exact in
 * f32, so that the only roundings are those of the reference.
 */
#include "kernels/formats.h"

#include "kernels/format_codes.h"

#include <assert.h>

static const struct format_info table[FORMAT_COUNT] = {
#define FORMAT(constant, name, id, values, bytes) [constant] = {name, id, values, bytes},
    FORMATS(FORMAT)
#undef FORMAT
};

const struct format_info *format_info(enum format format)
{
    assert((unsigned)format < FORMAT_COUNT);
    return &table[format];
}

int32_t format_by_gguf_id(int64_t gguf_id)
{
    for (int32_t i = 0; i < FORMAT_COUNT; i++) {
        if (table[i].gguf_id == gguf_id)
            return i;
    }
    return -1;
}

const char *format_gguf_name(int64_t gguf_id)
{
    static const char *const name[] = {
        "F32",   "F16",        "Q4_0",       "Q4_1",       "Q4_2",     "Q4_3",     "Q5_0",
        "Q5_1",  "Q8_0",       "Q8_1",       "Q2_K",       "Q3_K",     "Q4_K",     "Q5_K",
        "Q6_K",  "Q8_K",       "IQ2_XXS",    "IQ2_XS",     "IQ3_XXS",  "IQ1_S",    "IQ4_NL",
        "IQ3_S", "IQ2_S",      "IQ4_XS",     "I8",         "I16",      "I32",      "I64",
        "F64",   "IQ1_M",      "BF16",       "Q4_0_4_4",   "Q4_0_4_8", "Q4_0_8_8", "TQ1_0",
        "TQ2_0", "IQ4_NL_4_4", "IQ4_NL_4_8", "IQ4_NL_8_8", "MXFP4",    "NVFP4",    "Q1_0",
        "Q2_0",
    };

    if (gguf_id < 0 || gguf_id >= (int64_t)(sizeof name / sizeof name[0]))
        return NULL;
    return name[gguf_id];
}

size_t format_row_bytes(enum format format, int64_t value_count)
{
    const struct format_info *info = format_info(format);

    assert(value_count >= 0);
    assert(value_count % info->block_values == 0);
    return (size_t)(value_count / info->block_values) * (size_t)info->block_bytes;
}

/* ---- schemes ---- */

static const int8_t iq4_table[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                     1,    13,   25,  38,  53,  69,  89,  113};

/* Twice the value, so that they are integers; the scale is halved instead. */
static const int8_t fp4_table[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

static const struct format_scheme scheme[FORMAT_COUNT] = {
    [FORMAT_Q4_0] = {.code_bits = 4, .sub_values = 32, .zero = 8},
    [FORMAT_Q4_1] = {.code_bits = 4, .sub_values = 32, .has_min = true},
    [FORMAT_Q5_0] = {.code_bits = 5, .sub_values = 32, .zero = 16},
    [FORMAT_Q5_1] = {.code_bits = 5, .sub_values = 32, .has_min = true},
    [FORMAT_Q8_0] = {.code_bits = 8, .sub_values = 32, .zero = 128},
    [FORMAT_Q2_K] = {.code_bits = 4, .sub_values = 16, .has_min = true},
    [FORMAT_Q3_K] = {.code_bits = 4, .sub_values = 16, .zero = 4},
    [FORMAT_Q4_K] = {.code_bits = 4, .sub_values = 32, .has_min = true},
    [FORMAT_Q5_K] = {.code_bits = 5, .sub_values = 32, .has_min = true},
    [FORMAT_Q6_K] = {.code_bits = 6, .sub_values = 16, .zero = 32},
    [FORMAT_IQ4_NL] = {.code_bits = 4, .sub_values = 32, .table = iq4_table},
    [FORMAT_IQ4_XS] = {.code_bits = 4, .sub_values = 32, .table = iq4_table},
    [FORMAT_MXFP4] = {.code_bits = 4, .sub_values = 32, .table = fp4_table},
};

const struct format_scheme *format_scheme(enum format format)
{
    assert((unsigned)format < FORMAT_COUNT);
    return scheme[format].code_bits == 0 ? NULL : &scheme[format];
}

/* ---- decoders: one block each ---- */

static uint16_t load_u16(const uint8_t *source)
{
    return (uint16_t)(source[0] | source[1] << 8);
}

static float load_f16(const uint8_t *source)
{
    return format_f16(load_u16(source));
}

/* Value j of 32 is the low nibble of byte j, value j + 16 the high one. */
static void nibbles_halves(const uint8_t *source, uint8_t *code)
{
    for (int32_t j = 0; j < 16; j++) {
        code[j] = source[j] & 15;
        code[j + 16] = source[j] >> 4;
    }
}

/* Bit j of the little-endian word is the fifth bit of value j. */
static void add_fifth_bits(const uint8_t *source, uint8_t *code)
{
    for (int32_t j = 0; j < 32; j++)
        code[j] = (uint8_t)(code[j] | (source[j / 8] >> j % 8 & 1) << 4);
}

static void codes_q4_0(const uint8_t *block, struct format_codes *codes)
{
    codes->scale[0] = load_f16(block);
    codes->min[0] = 0;
    nibbles_halves(block + 2, codes->code);
}

static void codes_q4_1(const uint8_t *block, struct format_codes *codes)
{
    codes->scale[0] = load_f16(block);
    codes->min[0] = -load_f16(block + 2);
    nibbles_halves(block + 4, codes->code);
}

static void codes_q5_0(const uint8_t *block, struct format_codes *codes)
{
    codes->scale[0] = load_f16(block);
    codes->min[0] = 0;
    nibbles_halves(block + 6, codes->code);
    add_fifth_bits(block + 2, codes->code);
}

static void codes_q5_1(const uint8_t *block, struct format_codes *codes)
{
    codes->scale[0] = load_f16(block);
    codes->min[0] = -load_f16(block + 2);
    nibbles_halves(block + 8, codes->code);
    add_fifth_bits(block + 4, codes->code);
}

static void codes_q8_0(const uint8_t *block, struct format_codes *codes)
{
    codes->scale[0] = load_f16(block);
    codes->min[0] = 0;
    for (int32_t j = 0; j < 32; j++)
        codes->code[j] = block[2 + j] ^ 0x80;
}

static void codes_mxfp4(const uint8_t *block, struct format_codes *codes)
{
    codes->scale[0] = format_e8_half(block[0]); /* the table is doubled */
    codes->min[0] = 0;
    nibbles_halves(block + 1, codes->code);
}

/* Two bits a value: bits 2c and 2c + 1 of byte 32h + l, h = i / 128, c = i % 128 / 32. */
static void two_bit_codes(const uint8_t *source, uint8_t *code)
{
    for (int32_t i = 0; i < 256; i++)
        code[i] = source[i / 128 * 32 + i % 32] >> i % 128 / 32 * 2 & 3;
}

static void codes_q2_k(const uint8_t *block, struct format_codes *codes)
{
    float scale = load_f16(block + 80), min = load_f16(block + 82);

    for (int32_t j = 0; j < 16; j++) {
        codes->scale[j] = scale * (float)(block[j] & 15);
        codes->min[j] = min * (float)(block[j] >> 4);
    }
    two_bit_codes(block + 16, codes->code);
}

static void codes_q3_k(const uint8_t *block, struct format_codes *codes)
{
    const uint8_t *scales = block + 96;
    float scale = load_f16(block + 108);

    for (int32_t j = 0; j < 16; j++) {
        int32_t low = j < 8 ? scales[j] & 15 : scales[j - 8] >> 4;
        int32_t high = scales[8 + j % 4] >> j / 4 * 2 & 3;

        codes->scale[j] = scale * (float)((low | high << 4) - 32);
        codes->min[j] = 0;
    }
    two_bit_codes(block + 32, codes->code);
    for (int32_t i = 0; i < 256; i++)
        codes->code[i] = (uint8_t)(codes->code[i] | (block[i % 32] >> i / 32 & 1) << 2);
}

/* Eight scales and mins of six bits in twelve bytes: Q4_K and Q5_K. */
static void six_bit_scales(const uint8_t *block, struct format_codes *codes)
{
    const uint8_t *bytes = block + 4;
    float scale = load_f16(block), min = load_f16(block + 2);

    for (int32_t j = 0; j < 8; j++) {
        int32_t scale_six, min_six;

        if (j < 4) {
            scale_six = bytes[j] & 63;
            min_six = bytes[j + 4] & 63;
        } else {
            scale_six = (bytes[j + 4] & 15) | bytes[j - 4] >> 6 << 4;
            min_six = bytes[j + 4] >> 4 | bytes[j] >> 6 << 4;
        }
        codes->scale[j] = scale * (float)scale_six;
        codes->min[j] = min * (float)min_six;
    }
}

/* Byte 32 * (i / 64) + i % 32; the low nibble when i % 64 < 32. */
static void nibbles_of_64(const uint8_t *source, uint8_t *code)
{
    for (int32_t i = 0; i < 256; i++)
        code[i] = source[i / 64 * 32 + i % 32] >> i % 64 / 32 * 4 & 15;
}

static void codes_q4_k(const uint8_t *block, struct format_codes *codes)
{
    six_bit_scales(block, codes);
    nibbles_of_64(block + 16, codes->code);
}

static void codes_q5_k(const uint8_t *block, struct format_codes *codes)
{
    six_bit_scales(block, codes);
    nibbles_of_64(block + 48, codes->code);
    for (int32_t i = 0; i < 256; i++)
        codes->code[i] = (uint8_t)(codes->code[i] | (block[16 + i % 32] >> i / 32 & 1) << 4);
}

static void codes_q6_k(const uint8_t *block, struct format_codes *codes)
{
    float scale = load_f16(block + 208);

    for (int32_t j = 0; j < 16; j++) {
        codes->scale[j] = scale * (float)(int8_t)block[192 + j];
        codes->min[j] = 0;
    }
    for (int32_t i = 0; i < 256; i++) {
        int32_t half = i / 128, quarter = i % 128 / 32;
        int32_t low = block[64 * half + 32 * (quarter % 2) + i % 32] >> quarter / 2 * 4 & 15;
        int32_t high = block[128 + 32 * half + i % 32] >> quarter * 2 & 3;

        codes->code[i] = (uint8_t)(low | high << 4);
    }
}

static void codes_iq4_xs(const uint8_t *block, struct format_codes *codes)
{
    float scale = load_f16(block);
    uint16_t high = load_u16(block + 2);

    for (int32_t j = 0; j < 8; j++) {
        int32_t low = block[4 + j / 2] >> j % 2 * 4 & 15;

        codes->scale[j] = scale * (float)((low | (high >> 2 * j & 3) << 4) - 32);
        codes->min[j] = 0;
        nibbles_halves(block + 8 + (ptrdiff_t)16 * j, codes->code + (ptrdiff_t)32 * j);
    }
}

static void (*const decoder[FORMAT_COUNT])(const uint8_t *, struct format_codes *) = {
    [FORMAT_Q4_0] = codes_q4_0,   [FORMAT_Q4_1] = codes_q4_1,   [FORMAT_Q5_0] = codes_q5_0,
    [FORMAT_Q5_1] = codes_q5_1,   [FORMAT_Q8_0] = codes_q8_0,   [FORMAT_Q2_K] = codes_q2_k,
    [FORMAT_Q3_K] = codes_q3_k,   [FORMAT_Q4_K] = codes_q4_k,   [FORMAT_Q5_K] = codes_q5_k,
    [FORMAT_Q6_K] = codes_q6_k,   [FORMAT_IQ4_NL] = codes_q4_0, [FORMAT_IQ4_XS] = codes_iq4_xs,
    [FORMAT_MXFP4] = codes_mxfp4,
};

void format_codes(enum format format, const void *block, struct format_codes *codes)
{
    assert((unsigned)format < FORMAT_COUNT);
    assert(decoder[format] != NULL);
    decoder[format](block, codes);
}

/* ---- the formula ---- */

static void dequantise_floats(enum format format, const uint8_t *source, int64_t count,
                              float *target)
{
    if (format == FORMAT_F32) {
        memcpy(target, source, (size_t)count * sizeof *target);
        return;
    }
    for (int64_t i = 0; i < count; i++) {
        uint16_t half = load_u16(source + 2 * i);

        target[i] = format == FORMAT_F16 ? format_f16(half) : format_bf16(half);
    }
}

static void dequantise_block(const struct format_scheme *s, const struct format_codes *codes,
                             int32_t value_count, float *target)
{
    for (int32_t i = 0; i < value_count; i++) {
        int32_t sub = i / s->sub_values;
        int32_t q = s->table != NULL ? s->table[codes->code[i]] : codes->code[i] - s->zero;

        target[i] = codes->scale[sub] * (float)q - codes->min[sub];
    }
}

void format_dequantise(enum format format, const void *source, int64_t block_count, float *target)
{
    const struct format_info *info = format_info(format);
    const struct format_scheme *s = format_scheme(format);
    const uint8_t *block = source;

    if (s == NULL) {
        dequantise_floats(format, block, block_count, target);
        return;
    }
    for (int64_t i = 0; i < block_count; i++) {
        struct format_codes codes;

        format_codes(format, block, &codes);
        dequantise_block(s, &codes, info->block_values, target);
        block += info->block_bytes;
        target += info->block_values;
    }
}
