/* Text to tokens and tokens to bytes.
 *
 * A tokenizer is immutable once made; all functions are thread-safe and allocate only their
 * result. Text is UTF-8; ill-formed bytes become their byte tokens, or the unknown token where
 * there are none, and never fail. Work is O(n log n) in the text's bytes.
 */
#ifndef MODEL_TEXT_TOKENIZER_H
#define MODEL_TEXT_TOKENIZER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct tokenizer; /* opaque */

enum token_kind {
    TOKEN_NORMAL,
    TOKEN_UNKNOWN,
    TOKEN_CONTROL, /* special: skipped by skip_special, cut out of text first */
    TOKEN_USER,    /* added, not special: cut out of text first, kept in output */
    TOKEN_UNUSED,
    TOKEN_BYTE,
};

enum tokenizer_flags {
    TOKENIZER_ADD_SPECIAL = 1,   /* BOS (and EOS) as the model's files ask for */
    TOKENIZER_PARSE_SPECIAL = 2, /* special tokens written in the text become those tokens */
};

/* Tokens of `text`: their count and, in *token, an array that the caller frees (never NULL, even
 * for none); or a negative errno and NULL: -ENOMEM; -EFBIG: the text is too long (from 256 MiB);
 * -EOVERFLOW: a pattern of the tokenizer's file took too many steps on it. */
int64_t tokenizer_encode(const struct tokenizer *tokenizer, const char *text, size_t text_bytes,
                         unsigned flags, int32_t **token);

int32_t tokenizer_count(const struct tokenizer *tokenizer); /* ids are below this */
enum token_kind tokenizer_kind(const struct tokenizer *tokenizer, int32_t token);
int32_t tokenizer_bos(const struct tokenizer *tokenizer); /* -1: none */
int32_t tokenizer_eos(const struct tokenizer *tokenizer); /* -1: none */
/* Whether this token ends generation: the set of formats.md 5.9. */
bool tokenizer_ends(const struct tokenizer *tokenizer, int32_t token);

/* The bytes that one token adds to a text (a byte token: its byte; SPM's mark: a space; control
 * tokens: their name); up to `max` are written, all are counted. An id beyond the vocabulary
 * has none. */
size_t tokenizer_bytes(const struct tokenizer *tokenizer, int32_t token, char *bytes, size_t max);
/* The token as its file spells it ("▁the"), for /tokenize; not NUL-terminated. */
const char *tokenizer_spelling(const struct tokenizer *tokenizer, int32_t token, size_t *bytes);
/* The id of a token by its spelling, or -1. */
int32_t tokenizer_find(const struct tokenizer *tokenizer, const char *spelling, size_t bytes);

void tokenizer_free(struct tokenizer *tokenizer); /* NULL is fine */

#endif
