/* The byte-level BPE kind of tokenizer, from the vocabulary of a GGUF: tokens and merges.
 *
 * The name of the pre-tokenizer stands for the patterns that cut a text into pieces; names that
 * are not in the table of bpe_gguf.c are refused.
 */
#ifndef MODEL_TEXT_BPE_H
#define MODEL_TEXT_BPE_H

#include "model/text/tokenizer.h"

/* What a file says, borrowed for the call. Types are those of `tokenizer.ggml.token_type`, as in
 * struct spm_vocabulary. Texts need no NUL. */
struct bpe_vocabulary {
    int32_t token_count;
    const char *const *spelling;  /* [token_count] in GPT-2's alphabet */
    const size_t *spelling_bytes; /* [token_count] */
    const int32_t *type;          /* [token_count]; NULL: all normal */
    int32_t merge_count;
    const char *const *merge;  /* [merge_count] "left right", the first is joined first */
    const size_t *merge_bytes; /* [merge_count] */
    const char *pre;           /* `tokenizer.ggml.pre`, NUL-terminated; NULL: "default" */
    int32_t bos, eos, unknown; /* -1: none; defaults of a file that is silent: 11, 11, -1 */
    int32_t eot, eom;          /* further ends, -1: none */
    int add_bos;               /* -1: the file is silent, so that the name decides */
    bool add_eos;              /* default false */
};

/* NULL with one line in `error`: an unknown name; a broken vocabulary (see spm.h); a merge of what
 * are no tokens; or there is no memory. */
struct tokenizer *tokenizer_create_bpe(const struct bpe_vocabulary *vocabulary, char *error,
                                       size_t error_bytes);

#endif
