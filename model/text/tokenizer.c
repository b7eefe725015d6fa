/* What all kinds of tokenizers share: spellings, ids, and special tokens cut out of raw text.
 *
 * Special tokens are matched before any change to the text, leftmost first and the longest there,
 * by narrowing a sorted list one byte at a time: no text costs more than its bytes times the
 * longest special token.
 */
#include "model/text/tokenizer.h"

#include "model/text/spm.h"
#include "model/text/tokenizer_kind.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

/* Names of control tokens that end generation, whatever eos_token_id says. */
static const char *const end_name[] = {
    "<|eot_id|>", "<|im_end|>", "<|end|>",         "<end_of_turn>", "<|endoftext|>", "</s>",
    "<eos>",      "<|eom_id|>", "<|end_of_text|>", "<EOT>",         "<|return|>",    "<|call|>",
};

bool token_list_add(struct token_list *list, int32_t token)
{
    if (list->count == list->max) {
        int64_t max = list->max < 64 ? 64 : list->max + list->max / 2;
        int32_t *grown = realloc(list->token, (size_t)max * sizeof(*grown));
        if (grown == NULL)
            return false;
        list->token = grown;
        list->max = max;
    }
    list->token[list->count++] = token;
    return true;
}

/* ---- spellings ---- */

const char *tokenizer_spelling(const struct tokenizer *tokenizer, int32_t token, size_t *bytes)
{
    if (token < 0 || token >= tokenizer->token_count) {
        *bytes = 0;
        return "";
    }
    uint32_t first = tokenizer->spelling_first[token];
    *bytes = tokenizer->spelling_first[token + 1] - first;
    return tokenizer->spelling + first;
}

/* The entry of a spelling, or the empty one where it would be. */
static struct tokenizer_entry *entry_of(const struct tokenizer *tokenizer, const char *spelling,
                                        size_t bytes, uint32_t *tag)
{
    uint64_t hash = XXH3_64bits(spelling, bytes);
    uint32_t at = (uint32_t)hash & tokenizer->entry_mask;

    *tag = (uint32_t)(hash >> 32);
    for (;; at = (at + 1) & tokenizer->entry_mask) {
        struct tokenizer_entry *entry = &tokenizer->entry[at];
        if (entry->token < 0)
            return entry;
        if (entry->tag != *tag)
            continue;
        size_t known_bytes;
        const char *known = tokenizer_spelling(tokenizer, entry->token, &known_bytes);
        if (known_bytes == bytes && memcmp(known, spelling, bytes) == 0)
            return entry;
    }
}

int32_t tokenizer_find(const struct tokenizer *tokenizer, const char *spelling, size_t bytes)
{
    uint32_t tag;

    return entry_of(tokenizer, spelling, bytes, &tag)->token;
}

static int copy_spellings(struct tokenizer *tokenizer, const char *const *spelling,
                          const size_t *spelling_bytes, char *error, size_t error_bytes)
{
    size_t all = 0;

    for (int32_t i = 0; i < tokenizer->token_count; i++) {
        if (spelling_bytes[i] == 0 || spelling_bytes[i] > SPM_SPELLING_MAX) {
            snprintf(error, error_bytes,
                     "could not use the vocabulary: token %d has %zu bytes, not 1 to %d", i,
                     spelling_bytes[i], SPM_SPELLING_MAX);
            return -EINVAL;
        }
        all += spelling_bytes[i];
    }
    if (all > UINT32_MAX) {
        snprintf(error, error_bytes,
                 "could not use the vocabulary: its tokens have %zu bytes, at most %u", all,
                 UINT32_MAX);
        return -EINVAL;
    }
    tokenizer->spelling = malloc(all);
    tokenizer->spelling_first = malloc(((size_t)tokenizer->token_count + 1) * sizeof(uint32_t));
    if (tokenizer->spelling == NULL || tokenizer->spelling_first == NULL) {
        snprintf(error, error_bytes, "could not use the vocabulary: out of memory");
        return -ENOMEM;
    }
    uint32_t at = 0;
    for (int32_t i = 0; i < tokenizer->token_count; i++) {
        tokenizer->spelling_first[i] = at;
        memcpy(tokenizer->spelling + at, spelling[i], spelling_bytes[i]);
        at += (uint32_t)spelling_bytes[i];
    }
    tokenizer->spelling_first[tokenizer->token_count] = at;
    return 0;
}

static int hash_spellings(struct tokenizer *tokenizer, char *error, size_t error_bytes)
{
    for (int32_t i = 0; i < tokenizer->token_count; i++) {
        uint32_t tag;
        size_t bytes;
        const char *spelling = tokenizer_spelling(tokenizer, i, &bytes);
        struct tokenizer_entry *entry = entry_of(tokenizer, spelling, bytes, &tag);
        if (entry->token >= 0) {
            snprintf(error, error_bytes,
                     "could not use the vocabulary: tokens %d and %d are spelled alike",
                     entry->token, i);
            return -EINVAL;
        }
        *entry = (struct tokenizer_entry){.tag = tag, .token = i};
    }
    return 0;
}

int tokenizer_fill(struct tokenizer *tokenizer, int32_t token_count, const char *const *spelling,
                   const size_t *spelling_bytes, char *error, size_t error_bytes)
{
    assert(token_count > 0 && token_count <= SPM_TOKEN_MAX);
    tokenizer->token_count = token_count;
    int result = copy_spellings(tokenizer, spelling, spelling_bytes, error, error_bytes);
    if (result != 0)
        return result;

    uint32_t entry_count = 16; /* at most half full */
    while (entry_count < 2 * (uint32_t)token_count)
        entry_count *= 2;
    tokenizer->entry_mask = entry_count - 1;
    tokenizer->entry = malloc(entry_count * sizeof(*tokenizer->entry));
    tokenizer->token_kind = calloc((size_t)token_count, 1);
    tokenizer->token_ends = calloc((size_t)token_count, 1);
    if (tokenizer->entry == NULL || tokenizer->token_kind == NULL ||
        tokenizer->token_ends == NULL) {
        snprintf(error, error_bytes, "could not use the vocabulary: out of memory");
        return -ENOMEM;
    }
    memset(tokenizer->entry, 0xFF, entry_count * sizeof(*tokenizer->entry)); /* tokens of -1 */
    return hash_spellings(tokenizer, error, error_bytes);
}

/* ---- special tokens ---- */

static int compare_spellings(const void *left, const void *right, void *context)
{
    const struct tokenizer *tokenizer = context;
    size_t left_bytes, right_bytes;
    const char *a = tokenizer_spelling(tokenizer, *(const int32_t *)left, &left_bytes);
    const char *b = tokenizer_spelling(tokenizer, *(const int32_t *)right, &right_bytes);
    int order = memcmp(a, b, left_bytes < right_bytes ? left_bytes : right_bytes);

    if (order != 0)
        return order;
    return (left_bytes > right_bytes) - (left_bytes < right_bytes);
}

static bool is_special(enum token_kind kind)
{
    return kind == TOKEN_CONTROL || kind == TOKEN_USER || kind == TOKEN_UNKNOWN;
}

static int sort_special(struct tokenizer *tokenizer)
{
    int32_t count = 0;

    for (int32_t i = 0; i < tokenizer->token_count; i++)
        count += is_special(tokenizer->token_kind[i]);
    tokenizer->special = malloc(((size_t)count + 1) * sizeof(int32_t));
    if (tokenizer->special == NULL)
        return -ENOMEM;
    for (int32_t i = 0; i < tokenizer->token_count; i++) {
        if (!is_special(tokenizer->token_kind[i]))
            continue;
        unsigned char byte = (unsigned char)tokenizer->spelling[tokenizer->spelling_first[i]];
        tokenizer->special[tokenizer->special_count++] = i;
        tokenizer->special_first[byte + 1]++;
    }
    for (int32_t byte = 0; byte < 256; byte++)
        tokenizer->special_first[byte + 1] += tokenizer->special_first[byte];
    qsort_r(tokenizer->special, (size_t)count, sizeof(int32_t), compare_spellings, tokenizer);
    return 0;
}

int tokenizer_ready(struct tokenizer *tokenizer, char *error, size_t error_bytes)
{
    for (size_t i = 0; i < sizeof(end_name) / sizeof(end_name[0]); i++) {
        int32_t token = tokenizer_find(tokenizer, end_name[i], strlen(end_name[i]));
        if (token >= 0 && tokenizer->token_kind[token] == TOKEN_CONTROL)
            tokenizer->token_ends[token] = 1;
    }
    if (tokenizer->eos >= 0)
        tokenizer->token_ends[tokenizer->eos] = 1;
    if (sort_special(tokenizer) == 0)
        return 0;
    snprintf(error, error_bytes, "could not use the vocabulary: out of memory");
    return -ENOMEM;
}

/* The first of the sorted specials first ... final - 1 whose byte at `depth` is `byte` or more;
 * all of them agree on the bytes before and are longer than `depth`. */
static int32_t special_bound(const struct tokenizer *tokenizer, int32_t first, int32_t final,
                             size_t depth, int byte)
{
    while (first < final) {
        int32_t middle = first + (final - first) / 2;
        uint32_t at = tokenizer->spelling_first[tokenizer->special[middle]];
        if ((unsigned char)tokenizer->spelling[at + depth] < byte)
            first = middle + 1;
        else
            final = middle;
    }
    return first;
}

/* The longest special token that `text` starts with, or -1. */
static int32_t special_at(const struct tokenizer *tokenizer, const char *text, size_t text_bytes,
                          bool control, size_t *bytes)
{
    unsigned char byte = (unsigned char)text[0];
    int32_t first = tokenizer->special_first[byte];
    int32_t final = tokenizer->special_first[byte + 1];
    int32_t found = -1;

    for (size_t depth = 1; first < final; depth++) {
        int32_t token = tokenizer->special[first]; /* the shortest is the first */
        uint32_t at = tokenizer->spelling_first[token];
        if (tokenizer->spelling_first[token + 1] - at == depth) {
            if (control || tokenizer->token_kind[token] == TOKEN_USER) {
                found = token;
                *bytes = depth;
            }
            first++;
        }
        if (depth == text_bytes)
            break;
        byte = (unsigned char)text[depth];
        first = special_bound(tokenizer, first, final, depth, byte);
        final = special_bound(tokenizer, first, final, depth, byte + 1);
    }
    return found;
}

/* ---- encoding ---- */

static bool encode_stretch(const struct tokenizer *tokenizer, const char *text, size_t bytes,
                           struct token_list *list)
{
    return bytes == 0 || tokenizer->kind->encode(tokenizer, text, bytes, list);
}

static bool encode_text(const struct tokenizer *tokenizer, const char *text, size_t text_bytes,
                        bool control, struct token_list *list)
{
    size_t done = 0, at = 0, bytes = 0;

    while (at < text_bytes) {
        int32_t special = special_at(tokenizer, text + at, text_bytes - at, control, &bytes);
        if (special < 0) {
            at++;
            continue;
        }
        if (!encode_stretch(tokenizer, text + done, at - done, list) ||
            !token_list_add(list, special))
            return false;
        at += bytes;
        done = at;
    }
    return encode_stretch(tokenizer, text + done, at - done, list);
}

int64_t tokenizer_encode(const struct tokenizer *tokenizer, const char *text, size_t text_bytes,
                         unsigned flags, int32_t **token)
{
    struct token_list list = {0};
    bool add = (flags & TOKENIZER_ADD_SPECIAL) != 0;
    bool control = (flags & TOKENIZER_PARSE_SPECIAL) != 0;
    bool bos = add && tokenizer->add_bos && tokenizer->bos >= 0;
    bool eos = add && tokenizer->add_eos && tokenizer->eos >= 0;

    *token = NULL;
    list.token = malloc(sizeof(int32_t)); /* so that no tokens are an array too */
    list.max = 1;
    if (list.token == NULL || (bos && !token_list_add(&list, tokenizer->bos)) ||
        !encode_text(tokenizer, text, text_bytes, control, &list) ||
        (eos && !token_list_add(&list, tokenizer->eos))) {
        free(list.token);
        return -ENOMEM;
    }
    *token = list.token;
    return list.count;
}

/* ---- questions ---- */

int32_t tokenizer_count(const struct tokenizer *tokenizer)
{
    return tokenizer->token_count;
}

enum token_kind tokenizer_kind(const struct tokenizer *tokenizer, int32_t token)
{
    if (token < 0 || token >= tokenizer->token_count)
        return TOKEN_UNUSED;
    return tokenizer->token_kind[token];
}

int32_t tokenizer_bos(const struct tokenizer *tokenizer)
{
    return tokenizer->bos;
}

int32_t tokenizer_eos(const struct tokenizer *tokenizer)
{
    return tokenizer->eos;
}

bool tokenizer_ends(const struct tokenizer *tokenizer, int32_t token)
{
    return token >= 0 && token < tokenizer->token_count && tokenizer->token_ends[token] != 0;
}

size_t tokenizer_bytes(const struct tokenizer *tokenizer, int32_t token, char *bytes, size_t max)
{
    size_t count;
    const char *spelling = tokenizer_spelling(tokenizer, token, &count);

    if (count == 0)
        return 0;
    enum token_kind kind = tokenizer->token_kind[token];
    if (kind != TOKEN_CONTROL && kind != TOKEN_UNKNOWN)
        return tokenizer->kind->bytes(tokenizer, token, bytes, max);
    if (max > 0)
        memcpy(bytes, spelling, count < max ? count : max);
    return count;
}

void tokenizer_free(struct tokenizer *tokenizer)
{
    if (tokenizer == NULL)
        return;
    if (tokenizer->kind != NULL)
        tokenizer->kind->release(tokenizer);
    free(tokenizer->spelling);
    free(tokenizer->spelling_first);
    free(tokenizer->token_kind);
    free(tokenizer->token_ends);
    free(tokenizer->entry);
    free(tokenizer->special);
    free(tokenizer);
}
