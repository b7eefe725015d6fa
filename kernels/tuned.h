/* A table of how products run best on one kind of device, as `quire tune` measures it.
 *
 * Text, a line a product and number of tokens; it holds for fewer tokens too, down to those of the
 * line before:
 *
 *     bf16 28672 4096 64: few 1 64 1 2 rows 48
 *
 * kind of product, outputs, inputs, tokens; then the way: which operand is the tile's rows, its
 * warpgroups, columns, blocks of a cluster, panels a stage (matmul.cu), rows of a tile. A way that
 * a build does not have is skipped: no way changes a bit of a result, so a table never has to be
 * followed.
 */
#ifndef KERNELS_TUNED_H
#define KERNELS_TUNED_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* What comes out: bf16, act(gate) * up in bf16, or f32. */
enum tuned_kind { TUNED_BF16, TUNED_GATED, TUNED_F32, TUNED_KINDS };

struct tuned_product {
    enum tuned_kind kind;
    int32_t out, in;
};

struct tuned_way {
    bool few; /* weights are the rows of a tile, else tokens */
    int32_t groups, columns, cluster, panels;
    int32_t tile_rows;
};

struct tuned_line {
    struct tuned_product product;
    int32_t token_count;
    struct tuned_way way;
};

enum { TUNED_TEXT_MAX = 160 }; /* of a line, with its NUL */

/* Without an end of line. */
void tuned_print(const struct tuned_line *line, char text[TUNED_TEXT_MAX]);
/* False: `text`, a line without its end, is none. */
bool tuned_parse(struct tuned_line *line, const char *text);

/* Lines in the order of product and tokens. One thread. */
struct tuned_table {
    struct tuned_line *line; /* [count] */
    int32_t count, max;
};

/* In place of what it has for that product and number of tokens. False: out of memory. */
bool tuned_add(struct tuned_table *table, const struct tuned_line *line);
/* The line of the fewest tokens that are at least so many; NULL: there is none. */
const struct tuned_line *tuned_find(const struct tuned_table *table,
                                    const struct tuned_product *product, int32_t token_count);
void tuned_release(struct tuned_table *table);

/* The tables that come with the source: the files of configs/tune, one behind the other. Made by
 * the Makefile; a line "device NAME" begins what is good for a device. */
extern const char tuned_builtin[];

#endif
