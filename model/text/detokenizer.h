/* A stream of tokens to text, so that any split of the tokens gives the same text as the whole.
 *
 * What comes out is always whole, well-formed code points. Bytes of a run of byte tokens are held
 * back until they are a code point, at most 3; from the first one that can be none on, each byte
 * of that run becomes one U+FFFD. Where any token may end inside a character (byte-level BPE), all
 * tokens are one such run, and each ill-formed part of it becomes one U+FFFD, as Unicode advises.
 * One thread an object.
 */
#ifndef MODEL_TEXT_DETOKENIZER_H
#define MODEL_TEXT_DETOKENIZER_H

#include "model/text/tokenizer.h"

struct detokenizer {
    const struct tokenizer *tokenizer;
    bool skip_special;
    bool started;       /* text was put out: no leading space is dropped any more */
    bool broken;        /* the run of byte tokens is ill-formed */
    int32_t held_count; /* bytes of a code point not yet complete */
    char held[4];
};

/* For the start of a text: the space that the tokenizer put before it is dropped again. With
 * skip_special, control and unknown tokens give nothing. */
void detokenizer_init(struct detokenizer *detokenizer, const struct tokenizer *tokenizer,
                      bool skip_special);
/* After _init: the tokens to come follow on a text, so that a leading space is theirs. */
void detokenizer_continue(struct detokenizer *detokenizer);
/* Text that `token` completes, appended to text[*text_bytes ...]; at most DETOKENIZER_TEXT_MAX
 * bytes plus the token's own; an id beyond the vocabulary gives none. False: `max` is too small,
 * nothing was changed. */
enum { DETOKENIZER_TEXT_MAX = 256 };
bool detokenizer_put(struct detokenizer *detokenizer, int32_t token, char *text, size_t *text_bytes,
                     size_t max);
/* The end: what is held back, as U+FFFD. False: `max` is too small. */
bool detokenizer_end(struct detokenizer *detokenizer, char *text, size_t *text_bytes, size_t max);
/* Whether bytes are held back: the text of the last token is not complete. */
bool detokenizer_holds(const struct detokenizer *detokenizer);

#endif
