/* A stream of tokens to text, so that any split of the tokens gives the same text as the whole.
 *
 * Bytes are held back until a code point is complete (at most 3) and, for SPM, while a run of
 * byte tokens may still become valid; ill-formed parts become U+FFFD. One thread an object.
 */
#ifndef MODEL_TEXT_DETOKENIZER_H
#define MODEL_TEXT_DETOKENIZER_H

#include "model/text/tokenizer.h"

struct detokenizer {
    const struct tokenizer *tokenizer;
    bool skip_special;
    bool started;           /* a leading space was dealt with */
    int32_t held_count;     /* bytes of a code point or byte run not yet complete */
    unsigned char held[64];
};

void detokenizer_init(struct detokenizer *detokenizer, const struct tokenizer *tokenizer,
                      bool skip_special);
/* Text that `token` completes, appended to text[*text_bytes ...]; at most DETOKENIZER_TEXT_MAX
 * bytes plus the token's own. False: `max` is too small, nothing was changed. */
enum { DETOKENIZER_TEXT_MAX = 256 };
bool detokenizer_put(struct detokenizer *detokenizer, int32_t token, char *text,
                     size_t *text_bytes, size_t max);
/* The end: what is held back, as U+FFFD where ill-formed. */
bool detokenizer_end(struct detokenizer *detokenizer, char *text, size_t *text_bytes, size_t max);

#endif
