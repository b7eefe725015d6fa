/* Inside of the tokenizers: what all kinds share, and what one kind gives (one file a kind).
 *
 * A kind's constructor takes the memory, calls tokenizer_fill, sets kinds of tokens and special
 * ids, and calls tokenizer_ready last. Included by tokenizer.c, detokenizer.c and the kinds only.
 */
#ifndef MODEL_TEXT_TOKENIZER_KIND_H
#define MODEL_TEXT_TOKENIZER_KIND_H

#include "model/text/special.h"
#include "model/text/tokenizer.h"

/* A list that grows; zeroed is empty. */
struct token_list {
    int32_t *token; /* [count] */
    int64_t count;
    int64_t max;
    bool control; /* control tokens may be written in text */
};
bool token_list_add(struct token_list *list, int32_t token); /* false: out of memory */

/* Text between special tokens, at least one byte. */
struct token_stretch {
    const char *text;
    size_t text_bytes;
    bool control; /* as in the list */
    bool begins;  /* the whole text begins here */
};

/* Tokens put before or after every text. */
enum { TOKEN_FRAME_MAX = 8 };
struct token_frame {
    int32_t count;
    int32_t token[TOKEN_FRAME_MAX];
};

struct tokenizer_kind {
    /* The stretch's tokens, appended to `list`. 0, or a negative errno: -ENOMEM, -EFBIG (the
     * stretch is too long), -EOVERFLOW (a pattern gave up on it). */
    int (*encode)(const struct tokenizer *tokenizer, const struct token_stretch *stretch,
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
    struct token_frame before, after;
    bool space_prefix; /* a space was put before the text: decoding drops one */
    bool byte_stream;  /* any token's bytes may be a part of a character */

    char *spelling;           /* all spellings, one after the other */
    uint32_t *spelling_first; /* [token_count + 1] */
    uint8_t *token_kind;      /* [token_count] enum token_kind */
    uint8_t *token_ends;      /* [token_count] 1: ends generation */

    struct tokenizer_entry *entry; /* [entry_mask + 1] spelling to token, open addressing */
    uint32_t entry_mask;

    struct special_set special; /* cut out of the raw text */
};

/* Copies the spellings and makes them findable; kinds become TOKEN_NORMAL. An id whose spelling is
 * NULL is no token: TOKEN_UNUSED, without a spelling. 0, or a negative errno and one line in
 * `error`: -EINVAL (empty, doubled or overlong spellings), -ENOMEM. */
int tokenizer_fill(struct tokenizer *tokenizer, int32_t token_count, const char *const *spelling,
                   const size_t *spelling_bytes, char *error, size_t error_bytes);
/* Control, unknown and user tokens are to be cut out of text. False: out of memory. */
bool tokenizer_cut_kinds(struct tokenizer *tokenizer);
/* Once kinds, ids and what is cut out of text are set. */
void tokenizer_ready(struct tokenizer *tokenizer);

#endif
