/* Inside of the BPE tokenizers: what the readers of tokenizer.json and of a GGUF put together.
 *
 * In this order: bpe_new; settings, normalizer and splitter; bpe_set_tokens; kinds, bpe_inside,
 * special tokens, ids; bpe_reserve and bpe_merge_*; bpe_ready. Each gives one line in `error`.
 */
#ifndef MODEL_TEXT_BPE_KIND_H
#define MODEL_TEXT_BPE_KIND_H

#include "model/text/bpe_model.h"
#include "model/text/normalizer.h"
#include "model/text/splitter.h"

enum { BPE_MARK_BYTES_MAX = 8 };

struct bpe {
    struct tokenizer base; /* first: tokenizer_free frees all */
    struct normalizer normalizer;
    struct special_set normalized; /* cut out of the normalised text */
    struct splitter splitter;
    struct bpe_model model;
    int32_t merge_count, merge_last; /* while merges are added: the last one's result */
    /* Decoding of tokens that are not in GPT-2's alphabet: `mark` is written as `space`. */
    char mark[BPE_MARK_BYTES_MAX], space[BPE_MARK_BYTES_MAX];
    size_t mark_bytes, space_bytes;
};

struct bpe *bpe_new(char *error, size_t error_bytes);
/* As tokenizer_fill; tokens are outside of the vocabulary for now. */
bool bpe_set_tokens(struct bpe *bpe, int32_t token_count, const char *const *spelling,
                    const size_t *spelling_bytes, char *error, size_t error_bytes);
/* The token is one that pieces may become. */
void bpe_inside(struct bpe *bpe, int32_t token);
bool bpe_reserve(struct bpe *bpe, int32_t merge_count, char *error, size_t error_bytes);
/* The next merge, as "left right" (the space is the first after the first byte) or as a pair;
 * both and what they join to must be inside. */
bool bpe_merge_line(struct bpe *bpe, const char *line, size_t bytes, char *error,
                    size_t error_bytes);
bool bpe_merge_pair(struct bpe *bpe, const char *left, size_t left_bytes, const char *right,
                    size_t right_bytes, char *error, size_t error_bytes);
/* All is set: checks the tokens, finds the smallest ones, makes it immutable. False: refused. */
bool bpe_ready(struct bpe *bpe, char *error, size_t error_bytes);

#endif
