/* Tokens that are cut out of a text before anything else looks at it.
 *
 * Matched leftmost first and the longest there, by narrowing a sorted list one byte at a time: no
 * text costs more than its bytes times the longest pattern. Immutable once ready; thread-safe.
 */
#ifndef MODEL_TEXT_SPECIAL_H
#define MODEL_TEXT_SPECIAL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum special_flags {
    SPECIAL_CONTROL = 1,     /* only where control tokens may be written in text */
    SPECIAL_STRIP_LEFT = 2,  /* takes the white space before it */
    SPECIAL_STRIP_RIGHT = 4, /* and after it */
    SPECIAL_WORD = 8,        /* only where no letter, digit or underscore touches it */
};

struct special {
    size_t first; /* into the patterns' bytes */
    size_t bytes;
    int32_t token;
    unsigned flags;
};

/* Zeroed is empty. */
struct special_set {
    char *pattern; /* all patterns, one after the other */
    size_t pattern_bytes, pattern_max;
    struct special *special; /* [special_count] by their bytes */
    int32_t special_count, special_max;
    int32_t first[257]; /* those that start with byte b: [b] to [b + 1] - 1 */
};

struct special_match {
    int32_t token;
    size_t first, final; /* text[first ... final - 1], white space that it takes included */
};

/* One more pattern, of at least one byte. False: out of memory. */
bool special_add(struct special_set *set, const char *pattern, size_t bytes, int32_t token,
                 unsigned flags);
/* After the last one was added, before the first search; equal patterns: the lower token. */
void special_ready(struct special_set *set);
/* The next one at or after text[from], which does not reach back before `from`. */
bool special_next(const struct special_set *set, const char *text, size_t text_bytes, size_t from,
                  bool control, struct special_match *match);
void special_release(struct special_set *set);

#endif
