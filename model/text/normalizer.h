/* What a tokenizer changes in a text before it cuts it up: a list of steps from tokenizer.json.
 *
 * Immutable once made; thread-safe. Work is O(n log n) in the text, hostile runs of combining
 * marks included.
 */
#ifndef MODEL_TEXT_NORMALIZER_H
#define MODEL_TEXT_NORMALIZER_H

#include "model/text/regex.h"

#include <stdbool.h>
#include <stddef.h>

enum normalizer_kind {
    NORMALIZE_NFC,
    NORMALIZE_NFD,
    NORMALIZE_NFKC,
    NORMALIZE_NFKD,
    NORMALIZE_LOWERCASE,
    NORMALIZE_STRIP_ACCENTS,
    NORMALIZE_STRIP,   /* white space at the ends */
    NORMALIZE_REPLACE, /* matches of a pattern by a text */
    NORMALIZE_PREPEND, /* a text, unless there is none to put it before */
};

struct normalizer_step {
    enum normalizer_kind kind;
    bool left, right;    /* STRIP */
    struct regex *regex; /* REPLACE */
    char *content;       /* REPLACE, PREPEND: [content_bytes] */
    size_t content_bytes;
};

enum { NORMALIZER_STEP_MAX = 16 };

/* Zeroed changes nothing. */
struct normalizer {
    int step_count;
    struct normalizer_step step[NORMALIZER_STEP_MAX];
};

/* A text that is either borrowed or on the heap. */
struct normalized {
    const char *text;
    size_t bytes;
    char *memory; /* to be freed; NULL: `text` is what was given */
};

/* All steps on well-formed text. 0, or -ENOMEM, -EFBIG (it grows past what is counted in 31 bits),
 * -EOVERFLOW (a pattern gave up); then *normalized holds nothing. */
int normalizer_run(const struct normalizer *normalizer, struct regex_scratch *scratch,
                   const char *text, size_t bytes, struct normalized *normalized);
void normalizer_release(struct normalizer *normalizer);

#endif
