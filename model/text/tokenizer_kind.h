/* Inside of the tokenizers: what all kinds share, and what one kind gives (one file a kind).
 *
 * A kind's constructor takes the memory, calls tokenizer_fill, sets kinds of tokens and special
 * ids, and calls tokenizer_ready last. Included by tokenizer.c, detokenizer.c and the kinds only.
 */
#ifndef MODEL_TEXT_TOKENIZER_KIND_H
#define MODEL_TEXT_TOKENIZER_KIND_H

#include "model/text/tokenizer.h"

/* A list that grows; zeroed is empty. */
struct token_list {
    int32_t *token; /* [count] */
    int64_t count;
    int64_t max;
};
bool token_list_add(struct token_list *list, int32_t token); /* false: out of memory */

struct tokenizer_kind {
    /* Tokens of `text` (bytes from 1), a stretch without special tokens, appended to `list`.
     * False: out of memory. */
    bool (*encode)(const struct tokenizer *tokenizer, const char *text, size_t text_bytes,
                   struct token_list *list);
    /* As tokenizer_bytes, for a token that is neither control, unknown nor beyond the
     * vocabulary. */
    size_t (*bytes)(const struct tokenizer *tokenizer, int32_t token, char *bytes, size_t max);
    void (*release)(struct tokenizer *tokenizer); /* what the kind took, not the struct */
};

struct tokenizer_entry {
    uint32_t tag;  /* upper half of the spelling's hash */
    int32_t token; /* -1: empty */
};

struct tokenizer {
    const struct tokenizer_kind *kind;
    int32_t token_count;
    int32_t bos, eos, unknown; /* -1: none */
    bool add_bos, add_eos;
    bool space_prefix; /* a space was put before the text: decoding drops one */

    char *spelling;           /* all spellings, one after the other */
    uint32_t *spelling_first; /* [token_count + 1] */
    uint8_t *token_kind;      /* [token_count] enum token_kind */
    uint8_t *token_ends;      /* [token_count] 1: ends generation */

    struct tokenizer_entry *entry; /* [entry_mask + 1] spelling to token, open addressing */
    uint32_t entry_mask;

    int32_t *special; /* [special_count] control, unknown and user tokens, by their bytes */
    int32_t special_count;
    int32_t special_first[257]; /* those that start with byte b: [b] to [b + 1] - 1 */
};

/* Copies the spellings and makes them findable; kinds become TOKEN_NORMAL. 0, or a negative errno
 * and one line in `error`: -EINVAL (empty, doubled or overlong spellings), -ENOMEM. */
int tokenizer_fill(struct tokenizer *tokenizer, int32_t token_count, const char *const *spelling,
                   const size_t *spelling_bytes, char *error, size_t error_bytes);
/* Once kinds and ids are set: the tokens to be cut out of text, and those that end generation.
 * 0, or -ENOMEM and one line in `error`. */
int tokenizer_ready(struct tokenizer *tokenizer, char *error, size_t error_bytes);

#endif
