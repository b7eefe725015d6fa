/* How a tokenizer cuts a text into the pieces that it then joins tokens in: a list of steps from
 * tokenizer.json ("pre_tokenizer"), each of which cuts the pieces of the one before.
 *
 * Immutable once made; thread-safe, with one struct pieces a call.
 */
#ifndef MODEL_TEXT_SPLITTER_H
#define MODEL_TEXT_SPLITTER_H

#include "model/text/regex.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum splitter_kind {
    SPLIT_PATTERN, /* where a pattern matches */
    SPLIT_DIGITS,  /* between numbers and the rest */
    SPLIT_SPACE,   /* at white space, which goes away */
    SPLIT_PREFIX,  /* cuts nothing: puts `content` before pieces that do not start with it */
    SPLIT_MARK,    /* cuts nothing: `content` for every space */
};

/* What becomes of the matches. */
enum splitter_behavior {
    SPLIT_ISOLATED,
    SPLIT_REMOVED,
    SPLIT_CONTIGUOUS,
    SPLIT_MERGED_WITH_PREVIOUS,
    SPLIT_MERGED_WITH_NEXT,
};

struct splitter_step {
    enum splitter_kind kind;
    enum splitter_behavior behavior;
    bool invert;         /* PATTERN: what does not match is the match */
    bool begins;         /* PREFIX: only where the whole text begins */
    struct regex *regex; /* PATTERN */
    char content[8];     /* PREFIX, MARK */
    size_t content_bytes;
};

enum { SPLITTER_STEP_MAX = 16 };

/* Zeroed cuts nothing. */
struct splitter {
    int step_count;
    struct splitter_step step[SPLITTER_STEP_MAX];
};

struct piece {
    uint32_t first, final; /* text[first ... final - 1], never empty */
};

struct piece_list {
    struct piece *piece; /* [count] */
    size_t count, max;
};

struct pieces {
    const char *text; /* what the pieces are of: what was given, or the memory */
    size_t bytes;
    char *memory;
    struct piece_list now, next; /* `now` holds the result */
};

/* The pieces of well-formed text of below 2^31 bytes, whose first byte the whole text begins with
 * where `begins`. `pieces` is zeroed before the first call, may be used again, and is released at
 * the end. 0, or -ENOMEM, -EFBIG, -EOVERFLOW. */
int splitter_run(const struct splitter *splitter, struct regex_scratch *scratch, const char *text,
                 size_t bytes, bool begins, struct pieces *pieces);
void pieces_release(struct pieces *pieces);
void splitter_release(struct splitter *splitter);

#endif
