/* Weight formats: one line each, and the one dequantisation formula of every format.
 *
 * A format names how the values of one tensor row lie in memory: blocks of `values` values in
 * `bytes` bytes. The layouts and formulas are those of GGUF (docs/kernels.md has the table).
 * Everything here is pure and may be called from any thread.
 */
#ifndef KERNELS_FORMATS_H
#define KERNELS_FORMATS_H

#include <stddef.h>
#include <stdint.h>

/* FORMAT(constant, name, type id in a GGUF file, values per block, bytes per block) */
#define FORMATS(FORMAT)                                                                            \
    FORMAT(FORMAT_F32, "F32", 0, 1, 4)                                                             \
    FORMAT(FORMAT_F16, "F16", 1, 1, 2)                                                             \
    FORMAT(FORMAT_BF16, "BF16", 30, 1, 2)                                                          \
    FORMAT(FORMAT_Q4_0, "Q4_0", 2, 32, 18)                                                         \
    FORMAT(FORMAT_Q4_1, "Q4_1", 3, 32, 20)                                                         \
    FORMAT(FORMAT_Q5_0, "Q5_0", 6, 32, 22)                                                         \
    FORMAT(FORMAT_Q5_1, "Q5_1", 7, 32, 24)                                                         \
    FORMAT(FORMAT_Q8_0, "Q8_0", 8, 32, 34)                                                         \
    FORMAT(FORMAT_Q2_K, "Q2_K", 10, 256, 84)                                                       \
    FORMAT(FORMAT_Q3_K, "Q3_K", 11, 256, 110)                                                      \
    FORMAT(FORMAT_Q4_K, "Q4_K", 12, 256, 144)                                                      \
    FORMAT(FORMAT_Q5_K, "Q5_K", 13, 256, 176)                                                      \
    FORMAT(FORMAT_Q6_K, "Q6_K", 14, 256, 210)                                                      \
    FORMAT(FORMAT_IQ4_NL, "IQ4_NL", 20, 32, 18)                                                    \
    FORMAT(FORMAT_IQ4_XS, "IQ4_XS", 23, 256, 136)                                                  \
    FORMAT(FORMAT_MXFP4, "MXFP4", 39, 32, 17)

enum format {
#define FORMAT(constant, name, id, values, bytes) constant,
    FORMATS(FORMAT)
#undef FORMAT
        FORMAT_COUNT
};

struct format_info {
    const char *name;
    int32_t gguf_id;
    int32_t block_values;
    int32_t block_bytes;
};

/* What is known of `format`, which must be below FORMAT_COUNT. */
const struct format_info *format_info(enum format format);

/* The format with this GGUF type id, or -1 when there is none here. */
int32_t format_by_gguf_id(int64_t gguf_id);

/* The name of any type id that GGUF ever used (for refusals), or NULL. */
const char *format_gguf_name(int64_t gguf_id);

/* Bytes of a row of `value_count` values, which must be a multiple of the block's values. */
size_t format_row_bytes(enum format format, int64_t value_count);

/* Values of `block_count` blocks at `source` as f32, bit for bit the reference formula of the
 * format (products in the order that docs/kernels.md writes them). */
void format_dequantise(enum format format, const void *source, int64_t block_count,
                       float *target /* [block_count * block_values] */);

#endif
