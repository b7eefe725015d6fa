/* Quantised blocks taken apart: what dequantisation and the packers of the backends share.
 *
 * Every quantised format here is value = scale * q - min, with one scale (and min) for each
 * sub-block of 16 or 32 values, where q is the code less a zero point, or a table's entry.
 * Private to kernels/. Pure; any thread.
 */
#ifndef KERNELS_FORMAT_CODES_H
#define KERNELS_FORMAT_CODES_H

#include "kernels/formats.h"

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

enum {
    FORMAT_BLOCK_MAX = 256,   /* values in the largest block */
    FORMAT_SUB_BLOCK_MAX = 16 /* sub-blocks of it */
};

struct format_scheme {
    int32_t code_bits;   /* 4, 5, 6 or 8: codes are below 1 << code_bits */
    int32_t sub_values;  /* values that share a scale: 16 or 32 */
    int32_t zero;        /* q = code - zero, where there is no table */
    bool has_min;        /* false: every min is 0 */
    const int8_t *table; /* [16] q of a code, or NULL */
};

struct format_codes {
    uint8_t code[FORMAT_BLOCK_MAX];
    float scale[FORMAT_SUB_BLOCK_MAX];
    float min[FORMAT_SUB_BLOCK_MAX];
};

/* How `format` is quantised; NULL for F32, F16 and BF16. */
const struct format_scheme *format_scheme(enum format format);

/* Takes one block of a quantised format apart. */
void format_codes(enum format format, const void *block, struct format_codes *codes);

static inline float format_float(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* Exact; subnormals too: as f32 bits the number is 2^112 times too small. */
static inline float format_f16(uint16_t half)
{
    uint32_t sign = (uint32_t)(half & 0x8000U) << 16;
    uint32_t rest = (uint32_t)(half & 0x7fffU) << 13;

    if (rest >= 0x7c00U << 13)
        return format_float(sign | 0x7f800000U | rest);
    return format_float(sign | 0x77800000U) * format_float(rest);
}

static inline float format_bf16(uint16_t half)
{
    return format_float((uint32_t)half << 16);
}

/* Half of 2^(exponent - 127); below exponent 2 that is a subnormal. */
static inline float format_e8_half(uint8_t exponent)
{
    if (exponent < 2)
        return format_float(0x00200000U << exponent);
    return format_float((uint32_t)(exponent - 1) << 23);
}

#endif
