/* The SentencePiece kind of tokenizer, from the vocabulary of a GGUF: pieces with scores.
 *
 * Text is cut into characters, and the neighbours whose joined text is the best-scored piece are
 * joined, ties to the left, until none is left; characters without a piece become byte tokens.
 */
#ifndef MODEL_TEXT_SPM_H
#define MODEL_TEXT_SPM_H

#include "model/text/tokenizer.h"

enum {
    SPM_TOKEN_MAX = 1 << 24,   /* tokens of a vocabulary */
    SPM_SPELLING_MAX = 1 << 12 /* bytes of one token */
};

/* What a file says, borrowed for the call. Types are those of `tokenizer.ggml.token_type`:
 * 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte ("<0x0A>"). */
struct spm_vocabulary {
    int32_t token_count;
    const char *const *spelling;  /* [token_count], UTF-8, "▁" for a space; no NUL needed */
    const size_t *spelling_bytes; /* [token_count] */
    const float *score;           /* [token_count] */
    const int32_t *type;          /* [token_count]; NULL: all normal but the ids below */
    int32_t bos, eos, unknown;    /* -1: none; defaults of a file that is silent: 1, 2, 0 */
    int32_t eot, eom;             /* further ends, -1: none */
    bool add_bos;                 /* default true */
    bool add_eos;                 /* default false */
    bool add_space_prefix;        /* default true */
};

/* NULL with one line in `error`: the vocabulary is broken (empty, doubled, ill-formed or
 * overlong spellings; scores that are no numbers; ids beyond it; unknown types; neither an
 * unknown token nor all byte tokens), or there is no memory. */
struct tokenizer *tokenizer_create_spm(const struct spm_vocabulary *vocabulary, char *error,
                                       size_t error_bytes);

#endif
