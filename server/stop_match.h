/* Stop strings: matched on text as it comes, across the borders of tokens.
 *
 * The match that ends first wins; of those that end at the same byte the longest (so that no part
 * of a stop string is left in the text). What may still become a match is held back. Work is
 * linear in the text. A set is immutable and may be shared; a match belongs to one thread.
 */
#ifndef SERVER_STOP_MATCH_H
#define SERVER_STOP_MATCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct stop_set; /* opaque */

/* Of `count` strings, none empty, copied. NULL: out of memory. */
struct stop_set *stop_set_create(const char *const *string, int32_t count);
void stop_set_free(struct stop_set *set); /* NULL is fine */

/* Where one text stands; {.set = set} to begin, set NULL: there are no stop strings. */
struct stop_match {
    const struct stop_set *set;
    int32_t state;
    int64_t seen_bytes; /* fed so far */
};

struct stop_result {
    int32_t string;     /* index of the string that matched, or -1 */
    int64_t safe_bytes; /* of the text from its beginning, what may be sent: all that cannot become
                           part of a match; at a match what precedes the stop string */
    int64_t end_bytes;  /* at a match: of the text from its beginning, including the stop string */
};

/* The next bytes of the text. Not to be called again after a match. */
struct stop_result stop_match_feed(struct stop_match *match, const char *text, size_t text_bytes);

#endif
