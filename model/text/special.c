/* Special tokens: a sorted list, narrowed a byte at a time. */
#include "model/text/special.h"

#include "model/text/unicode.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

static bool set_reserve(struct special_set *set, size_t bytes)
{
    if (bytes > set->pattern_max - set->pattern_bytes) {
        size_t max = 2 * set->pattern_max + bytes + 64;
        char *grown = realloc(set->pattern, max);
        if (grown == NULL)
            return false;
        set->pattern = grown;
        set->pattern_max = max;
    }
    if (set->special_count == set->special_max) {
        int32_t max = 2 * set->special_max + 16;
        struct special *grown = realloc(set->special, (size_t)max * sizeof(*grown));
        if (grown == NULL)
            return false;
        set->special = grown;
        set->special_max = max;
    }
    return true;
}

bool special_add(struct special_set *set, const char *pattern, size_t bytes, int32_t token,
                 unsigned flags)
{
    assert(bytes > 0);
    if (!set_reserve(set, bytes))
        return false;
    memcpy(set->pattern + set->pattern_bytes, pattern, bytes);
    set->special[set->special_count++] = (struct special){
        .first = set->pattern_bytes, .bytes = bytes, .token = token, .flags = flags};
    set->pattern_bytes += bytes;
    return true;
}

static int compare_specials(const void *left, const void *right, void *context)
{
    const struct special_set *set = context;
    const struct special *a = left, *b = right;
    int order = memcmp(set->pattern + a->first, set->pattern + b->first,
                       a->bytes < b->bytes ? a->bytes : b->bytes);

    if (order != 0)
        return order;
    if (a->bytes != b->bytes)
        return a->bytes < b->bytes ? -1 : 1;
    return (a->token > b->token) - (a->token < b->token);
}

/* Drops all but the first of equal patterns. */
static void drop_doubles(struct special_set *set)
{
    int32_t kept = 0;

    for (int32_t i = 0; i < set->special_count; i++) {
        const struct special *last = kept > 0 ? &set->special[kept - 1] : NULL;
        const struct special *next = &set->special[i];
        if (last != NULL && last->bytes == next->bytes &&
            memcmp(set->pattern + last->first, set->pattern + next->first, next->bytes) == 0)
            continue;
        set->special[kept++] = *next;
    }
    set->special_count = kept;
}

void special_ready(struct special_set *set)
{
    if (set->special_count == 0)
        return;
    qsort_r(set->special, (size_t)set->special_count, sizeof(*set->special), compare_specials, set);
    drop_doubles(set);
    memset(set->first, 0, sizeof(set->first));
    for (int32_t i = 0; i < set->special_count; i++)
        set->first[(unsigned char)set->pattern[set->special[i].first] + 1]++;
    for (int32_t byte = 0; byte < 256; byte++)
        set->first[byte + 1] += set->first[byte];
}

void special_release(struct special_set *set)
{
    free(set->pattern);
    free(set->special);
    *set = (struct special_set){0};
}

/* The first of the sorted specials first ... final - 1 whose byte at `depth` is `byte` or more;
 * all of them agree on the bytes before and are longer than `depth`. */
static int32_t bound(const struct special_set *set, int32_t first, int32_t final, size_t depth,
                     int byte)
{
    while (first < final) {
        int32_t middle = first + (final - first) / 2;
        if ((unsigned char)set->pattern[set->special[middle].first + depth] < byte)
            first = middle + 1;
        else
            final = middle;
    }
    return first;
}

/* The longest special that `text` starts with, or NULL. */
static const struct special *special_at(const struct special_set *set, const char *text,
                                        size_t text_bytes, bool control)
{
    unsigned char byte = (unsigned char)text[0];
    int32_t first = set->first[byte], final = set->first[byte + 1];
    const struct special *found = NULL;

    for (size_t depth = 1; first < final; depth++) {
        const struct special *special = &set->special[first]; /* the shortest is the first */
        if (special->bytes == depth) {
            if (control || (special->flags & SPECIAL_CONTROL) == 0)
                found = special;
            first++;
        }
        if (depth == text_bytes)
            break;
        byte = (unsigned char)text[depth];
        first = bound(set, first, final, depth, byte);
        final = bound(set, first, final, depth, byte + 1);
    }
    return found;
}

/* ---- borders and white space ---- */

/* Whether no word character stands right before text[at] or right at text[at]. */
static bool stands_alone(const char *text, size_t text_bytes, size_t first, size_t final)
{
    if (first > 0 && unicode_is_word(unicode_before(text, first)))
        return false;
    return final == text_bytes || !unicode_is_word(unicode_at(text + final, text_bytes - final));
}

static size_t strip_left(const char *text, size_t first, size_t least)
{
    while (first > least && unicode_is_space(unicode_before(text, first))) {
        do
            first--;
        while (first > least && (text[first] & 0xC0) == 0x80);
    }
    return first;
}

static size_t strip_right(const char *text, size_t text_bytes, size_t final)
{
    size_t taken;

    while (final < text_bytes && unicode_is_space(unicode_at(text + final, text_bytes - final))) {
        unicode_next(text + final, text_bytes - final, &taken);
        final += taken;
    }
    return final;
}

bool special_next(const struct special_set *set, const char *text, size_t text_bytes, size_t from,
                  bool control, struct special_match *match)
{
    if (set->special_count == 0)
        return false;
    for (size_t at = from; at < text_bytes;) {
        const struct special *special = special_at(set, text + at, text_bytes - at, control);
        if (special == NULL) {
            at++;
            continue;
        }
        size_t first = at, final = at + special->bytes;
        at = final;
        if ((special->flags & SPECIAL_WORD) != 0 && !stands_alone(text, text_bytes, first, final))
            continue;
        if ((special->flags & SPECIAL_STRIP_LEFT) != 0)
            first = strip_left(text, first, from);
        if ((special->flags & SPECIAL_STRIP_RIGHT) != 0)
            final = strip_right(text, text_bytes, final);
        *match = (struct special_match){.token = special->token, .first = first, .final = final};
        return true;
    }
    return false;
}
