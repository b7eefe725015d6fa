/* Lines of the table to and from text, and finding them; see tuned.h. */
#include "kernels/tuned.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const kind_name[TUNED_KINDS] = {"bf16", "gated", "f32"};

void tuned_print(const struct tuned_line *line, char text[TUNED_TEXT_MAX])
{
    const struct tuned_product *product = &line->product;
    const struct tuned_way *way = &line->way;
    int count = snprintf(text, TUNED_TEXT_MAX, "%s %d %d %d: %s %d %d %d %d rows %d",
                         kind_name[product->kind], product->out, product->in, line->token_count,
                         way->few ? "few" : "many", way->groups, way->columns, way->cluster,
                         way->panels, way->tile_rows);

    assert(count > 0 && count < TUNED_TEXT_MAX);
}

/* Numbers that any product and way has. */
static bool is_sound(const struct tuned_line *line)
{
    const struct tuned_way *way = &line->way;

    return line->product.out > 0 && line->product.in > 0 && line->token_count > 0 &&
           way->groups > 0 && way->columns > 0 && way->cluster > 0 && way->panels > 0 &&
           way->tile_rows > 0;
}

bool tuned_parse(struct tuned_line *line, const char *text)
{
    char kind[8], rows[8];
    int end = 0;
    struct tuned_way *way = &line->way;

    memset(line, 0, sizeof(*line));
    int count =
        sscanf(text, "%7s %9d %9d %9d: %7s %9d %9d %9d %9d rows %9d%n", kind, &line->product.out,
               &line->product.in, &line->token_count, rows, &way->groups, &way->columns,
               &way->cluster, &way->panels, &way->tile_rows, &end);
    if (count != 10 || text[end] != '\0' || !is_sound(line))
        return false;
    way->few = strcmp(rows, "few") == 0;
    if (!way->few && strcmp(rows, "many") != 0)
        return false;
    for (int i = 0; i < TUNED_KINDS; i++) {
        line->product.kind = (enum tuned_kind)i;
        if (strcmp(kind, kind_name[i]) == 0)
            return true;
    }
    return false;
}

/* Of products and tokens: below, at, or above. */
static int compare(const struct tuned_line *line, const struct tuned_product *product,
                   int32_t token_count)
{
    if (line->product.kind != product->kind)
        return line->product.kind < product->kind ? -1 : 1;
    if (line->product.out != product->out)
        return line->product.out < product->out ? -1 : 1;
    if (line->product.in != product->in)
        return line->product.in < product->in ? -1 : 1;
    if (line->token_count != token_count)
        return line->token_count < token_count ? -1 : 1;
    return 0;
}

/* The first line that is not below. */
static int32_t place_of(const struct tuned_table *table, const struct tuned_product *product,
                        int32_t token_count)
{
    int32_t first = 0, end = table->count;

    while (first < end) {
        int32_t middle = first + (end - first) / 2;
        if (compare(&table->line[middle], product, token_count) < 0)
            first = middle + 1;
        else
            end = middle;
    }
    return first;
}

bool tuned_add(struct tuned_table *table, const struct tuned_line *line)
{
    int32_t place = place_of(table, &line->product, line->token_count);

    if (place < table->count &&
        compare(&table->line[place], &line->product, line->token_count) == 0) {
        table->line[place] = *line;
        return true;
    }
    if (table->count == table->max) {
        int32_t max = table->max * 2 + 64;
        struct tuned_line *grown = realloc(table->line, (size_t)max * sizeof(*grown));
        if (grown == NULL)
            return false;
        table->line = grown;
        table->max = max;
    }
    memmove(table->line + place + 1, table->line + place,
            (size_t)(table->count - place) * sizeof(*table->line));
    table->line[place] = *line;
    table->count++;
    return true;
}

const struct tuned_line *tuned_find(const struct tuned_table *table,
                                    const struct tuned_product *product, int32_t token_count)
{
    int32_t place = place_of(table, product, token_count);

    if (place == table->count)
        return NULL;
    const struct tuned_line *line = &table->line[place];
    return compare(line, product, line->token_count) == 0 ? line : NULL;
}

void tuned_release(struct tuned_table *table)
{
    free(table->line);
    *table = (struct tuned_table){0};
}
