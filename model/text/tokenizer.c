/* What all kinds of tokenizers share: spellings, ids, and special tokens cut out of raw text.
 *
 * Special tokens are matched before any change to the text; a kind may look for more of them in
 * what it makes of a stretch.
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
        if (spelling[i] == NULL)
            continue;
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
    tokenizer->spelling = malloc(all + 1);
    tokenizer->spelling_first = malloc(((size_t)tokenizer->token_count + 1) * sizeof(uint32_t));
    if (tokenizer->spelling == NULL || tokenizer->spelling_first == NULL) {
        snprintf(error, error_bytes, "could not use the vocabulary: out of memory");
        return -ENOMEM;
    }
    uint32_t at = 0;
    for (int32_t i = 0; i < tokenizer->token_count; i++) {
        tokenizer->spelling_first[i] = at;
        if (spelling[i] == NULL)
            continue;
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
        if (bytes == 0) { /* an id without a token */
            tokenizer->token_kind[i] = TOKEN_UNUSED;
            continue;
        }
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

bool tokenizer_cut_kinds(struct tokenizer *tokenizer)
{
    for (int32_t i = 0; i < tokenizer->token_count; i++) {
        enum token_kind kind = tokenizer->token_kind[i];
        if (kind != TOKEN_CONTROL && kind != TOKEN_USER && kind != TOKEN_UNKNOWN)
            continue;
        size_t bytes;
        const char *spelling = tokenizer_spelling(tokenizer, i, &bytes);
        unsigned flags = kind == TOKEN_USER ? 0 : SPECIAL_CONTROL;
        if (!special_add(&tokenizer->special, spelling, bytes, i, flags))
            return false;
    }
    return true;
}

void tokenizer_ready(struct tokenizer *tokenizer)
{
    for (size_t i = 0; i < sizeof(end_name) / sizeof(end_name[0]); i++) {
        int32_t token = tokenizer_find(tokenizer, end_name[i], strlen(end_name[i]));
        if (token >= 0 && tokenizer->token_kind[token] == TOKEN_CONTROL)
            tokenizer->token_ends[token] = 1;
    }
    if (tokenizer->eos >= 0)
        tokenizer->token_ends[tokenizer->eos] = 1;
    special_ready(&tokenizer->special);
}

/* ---- encoding ---- */

static int encode_stretch(const struct tokenizer *tokenizer, const char *text, size_t first,
                          size_t final, struct token_list *list)
{
    struct token_stretch stretch = {.text = text + first,
                                    .text_bytes = final - first,
                                    .control = list->control,
                                    .begins = first == 0};

    return first == final ? 0 : tokenizer->kind->encode(tokenizer, &stretch, list);
}

static int encode_text(const struct tokenizer *tokenizer, const char *text, size_t text_bytes,
                       struct token_list *list)
{
    struct special_match match;
    size_t done = 0;

    while (special_next(&tokenizer->special, text, text_bytes, done, list->control, &match)) {
        int result = encode_stretch(tokenizer, text, done, match.first, list);
        if (result != 0)
            return result;
        if (!token_list_add(list, match.token))
            return -ENOMEM;
        done = match.final;
    }
    return encode_stretch(tokenizer, text, done, text_bytes, list);
}

static int add_tokens(struct token_list *list, const struct token_frame *frame)
{
    for (int32_t i = 0; i < frame->count; i++) {
        if (!token_list_add(list, frame->token[i]))
            return -ENOMEM;
    }
    return 0;
}

int64_t tokenizer_encode(const struct tokenizer *tokenizer, const char *text, size_t text_bytes,
                         unsigned flags, int32_t **token)
{
    struct token_list list = {.control = (flags & TOKENIZER_PARSE_SPECIAL) != 0};
    bool add = (flags & TOKENIZER_ADD_SPECIAL) != 0;

    *token = NULL;
    list.token = malloc(sizeof(int32_t)); /* so that no tokens are an array too */
    list.max = 1;
    int result = list.token == NULL ? -ENOMEM : 0;
    if (result == 0 && add)
        result = add_tokens(&list, &tokenizer->before);
    if (result == 0)
        result = encode_text(tokenizer, text, text_bytes, &list);
    if (result == 0 && add)
        result = add_tokens(&list, &tokenizer->after);
    if (result != 0) {
        free(list.token);
        return result;
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
    special_release(&tokenizer->special);
    free(tokenizer);
}
