/* Byte-pair encoding of one piece: its smallest tokens, joined pair by pair, lowest rank first.
 *
 * Inside of the BPE kind of tokenizer. Immutable once made but for a memo of which tokens come
 * out of their own text, which any thread may fill in; thread-safe, with one struct bpe_work a
 * call. A piece of n bytes costs O(n log n).
 */
#ifndef MODEL_TEXT_BPE_MODEL_H
#define MODEL_TEXT_BPE_MODEL_H

#include "model/text/tokenizer_kind.h"

struct bpe_merge {
    int32_t left, right; /* tokens, left -1: an empty entry */
    int32_t rank;
    int32_t result;
};

struct bpe_model {
    const struct tokenizer *base;
    bool byte_level;    /* pieces are bytes, spelled in GPT-2's alphabet; else characters */
    bool byte_fallback; /* characters without a token become their "<0xNN>" */
    bool ignore_merges; /* a piece that is a token needs no merges */
    bool fuse_unknown;
    int32_t unknown; /* -1: what has no token is dropped */

    uint8_t *state;          /* [token_count] enum bpe_state, atomic */
    int32_t byte_token[256]; /* -1: none; of a byte, or "<0xNN>" */
    int32_t ascii_token[128];
    uint32_t token_bytes_max;
    bool bridged[256]; /* characters: by byte, some token has it right before a space mark */

    struct bpe_merge *merge; /* [merge_mask + 1] open addressing */
    uint32_t merge_mask;
};

/* What the own text of a token becomes. */
enum bpe_state {
    BPE_OUTSIDE, /* no token of the vocabulary: added, or a hole; no piece becomes it */
    BPE_UNSEEN,
    BPE_WHOLE, /* the token itself */
    BPE_PARTS, /* something else */
};

/* One call's memory; zeroed before the first piece. */
struct bpe_work {
    struct bpe_symbol *symbol; /* [symbol_max] */
    uint64_t *heap;            /* [heap_max] rank and position of candidates, least first */
    size_t symbol_max, symbol_count;
    size_t heap_max, heap_count;
    bool after_unknown;
};

/* Room for so many merges, with `base` filled and state set. False: out of memory. */
bool bpe_model_reserve(struct bpe_model *model, int32_t merge_count);
/* The pair's later rank holds where it is given twice. */
void bpe_model_add(struct bpe_model *model, int32_t left, int32_t right, int32_t rank,
                   int32_t result);
/* Finds the smallest tokens, once all states are set. */
void bpe_model_ready(struct bpe_model *model);
/* A piece of at least one byte and at most 2^30, any bytes. False: out of memory. */
bool bpe_model_encode(const struct bpe_model *model, struct bpe_work *work, const char *text,
                      size_t bytes, struct token_list *list);
void bpe_work_release(struct bpe_work *work);
void bpe_model_release(struct bpe_model *model);

/* ---- GPT-2's alphabet: a printable character for every byte ---- */

/* The character of a byte in UTF-8, two bytes at most; how many. */
size_t bpe_spell_byte(unsigned char byte, char *target);
/* The bytes that a spelling stands for; where a character is not in the alphabet, the spelling
 * itself. Up to `max` are written, all are counted. */
size_t bpe_unspell(const char *spelling, size_t spelling_bytes, char *bytes, size_t max);
/* The value of "<0xNN>", or -1. */
int bpe_byte_of(const char *spelling, size_t bytes);

#endif
