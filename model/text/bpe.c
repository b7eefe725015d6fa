/* A stretch of text to tokens: well-formed parts are normalised, cut by special tokens and by
 * patterns, and each piece is joined; ill-formed bytes between them are pieces of their own.
 */
#include "model/text/bpe_kind.h"

#include "model/text/spm.h"
#include "model/text/unicode.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* So that no token's text grows by more than DETOKENIZER_TEXT_MAX when its bytes are ill-formed,
 * each of which becomes three. */
enum { BROKEN_BYTES_MAX = 100 };

/* ---- one stretch ---- */

struct run {
    const struct bpe *bpe;
    struct regex_scratch *scratch;
    struct pieces pieces;
    struct bpe_work work;
    struct token_list *list;
};

static int encode_pieces(struct run *run, const char *text, size_t bytes, bool begins)
{
    int result = splitter_run(&run->bpe->splitter, run->scratch, text, bytes, begins, &run->pieces);

    for (size_t i = 0; result == 0 && i < run->pieces.now.count; i++) {
        struct piece piece = run->pieces.now.piece[i];
        if (!bpe_model_encode(&run->bpe->model, &run->work, run->pieces.text + piece.first,
                              piece.final - piece.first, run->list))
            return -ENOMEM;
    }
    return result;
}

static int encode_normalized(struct run *run, const struct normalized *normalized, bool begins)
{
    struct special_match match;
    size_t done = 0;

    while (special_next(&run->bpe->normalized, normalized->text, normalized->bytes, done,
                        run->list->control, &match)) {
        int result =
            encode_pieces(run, normalized->text + done, match.first - done, begins && done == 0);
        if (result != 0)
            return result;
        if (!token_list_add(run->list, match.token))
            return -ENOMEM;
        done = match.final;
    }
    return encode_pieces(run, normalized->text + done, normalized->bytes - done,
                         begins && done == 0);
}

static int encode_valid(struct run *run, const char *text, size_t bytes, bool begins)
{
    struct normalized normalized;
    int result = normalizer_run(&run->bpe->normalizer, run->scratch, text, bytes, &normalized);

    if (result != 0)
        return result;
    if (normalized.bytes > INT32_MAX / 2)
        result = -EFBIG;
    else
        result = encode_normalized(run, &normalized, begins);
    free(normalized.memory);
    return result;
}

/* How many bytes from the start are well-formed, or, where the first is not, ill-formed. */
static size_t run_bytes(const char *text, size_t bytes, bool *valid)
{
    size_t at = 0, taken;

    *valid = (unsigned char)text[0] < 0x80 || unicode_next(text, bytes, &taken) == UNICODE_COMPLETE;
    while (at < bytes) {
        bool complete = true;
        taken = 1;
        if ((unsigned char)text[at] >= 0x80)
            complete = unicode_next(text + at, bytes - at, &taken) == UNICODE_COMPLETE;
        if (complete != *valid)
            break;
        at += taken;
    }
    return at;
}

static int encode_all(struct run *run, const char *text, size_t bytes, bool begins)
{
    size_t part;
    bool valid;

    for (size_t at = 0; at < bytes; at += part) {
        part = run_bytes(text + at, bytes - at, &valid);
        if (valid) {
            int result = encode_valid(run, text + at, part, begins && at == 0);
            if (result != 0)
                return result;
        } else if (!bpe_model_encode(&run->bpe->model, &run->work, text + at, part, run->list)) {
            return -ENOMEM;
        }
    }
    return 0;
}

static int bpe_encode(const struct tokenizer *tokenizer, const struct token_stretch *stretch,
                      struct token_list *list)
{
    struct run run = {.bpe = (const struct bpe *)tokenizer, .list = list};

    if (stretch->text_bytes > INT32_MAX / 8) /* places are counted in 32 bits, texts may grow */
        return -EFBIG;
    run.scratch = regex_scratch_create();
    int result = run.scratch == NULL ? -ENOMEM : 0;
    if (result == 0)
        result = encode_all(&run, stretch->text, stretch->text_bytes, stretch->begins);
    regex_scratch_destroy(run.scratch);
    pieces_release(&run.pieces);
    bpe_work_release(&run.work);
    return result;
}

/* ---- tokens to bytes ---- */

static bool is_mark(const struct bpe *bpe, const char *text, size_t bytes)
{
    return bpe->mark_bytes > 0 && bytes >= bpe->mark_bytes &&
           memcmp(text, bpe->mark, bpe->mark_bytes) == 0;
}

static size_t bpe_bytes(const struct tokenizer *tokenizer, int32_t token, char *bytes, size_t max)
{
    const struct bpe *bpe = (const struct bpe *)tokenizer;
    size_t spelling_bytes, count = 0;
    const char *spelling = tokenizer_spelling(tokenizer, token, &spelling_bytes);

    if (tokenizer->byte_stream)
        return bpe_unspell(spelling, spelling_bytes, bytes, max);
    if (tokenizer->token_kind[token] == TOKEN_BYTE) {
        if (max > 0)
            bytes[0] = (char)bpe_byte_of(spelling, spelling_bytes);
        return 1;
    }
    for (size_t at = 0; at < spelling_bytes;) {
        bool mark = is_mark(bpe, spelling + at, spelling_bytes - at);
        const char *part = mark ? bpe->space : spelling + at;
        size_t part_bytes = mark ? bpe->space_bytes : 1;
        for (size_t i = 0; i < part_bytes; i++, count++) {
            if (count < max)
                bytes[count] = part[i];
        }
        at += mark ? bpe->mark_bytes : 1;
    }
    return count;
}

static void bpe_release(struct tokenizer *tokenizer)
{
    struct bpe *bpe = (struct bpe *)tokenizer;

    normalizer_release(&bpe->normalizer);
    special_release(&bpe->normalized);
    splitter_release(&bpe->splitter);
    bpe_model_release(&bpe->model);
}

static const struct tokenizer_kind bpe_kind = {
    .encode = bpe_encode,
    .bytes = bpe_bytes,
    .release = bpe_release,
};

/* ---- putting one together ---- */

struct bpe *bpe_new(char *error, size_t error_bytes)
{
    struct bpe *bpe = calloc(1, sizeof(*bpe));

    if (bpe == NULL) {
        snprintf(error, error_bytes, "could not use the vocabulary: out of memory");
        return NULL;
    }
    bpe->base.kind = &bpe_kind;
    bpe->base.bos = bpe->base.eos = bpe->base.unknown = -1;
    bpe->model.base = &bpe->base;
    bpe->model.unknown = -1;
    bpe->merge_last = -1;
    return bpe;
}

static bool out_of_memory(char *error, size_t error_bytes)
{
    snprintf(error, error_bytes, "could not use the vocabulary: out of memory");
    return false;
}

bool bpe_set_tokens(struct bpe *bpe, int32_t token_count, const char *const *spelling,
                    const size_t *spelling_bytes, char *error, size_t error_bytes)
{
    if (tokenizer_fill(&bpe->base, token_count, spelling, spelling_bytes, error, error_bytes) != 0)
        return false;
    bpe->model.state = calloc((size_t)token_count, 1); /* BPE_OUTSIDE */
    if (bpe->model.state == NULL)
        return out_of_memory(error, error_bytes);
    for (int32_t i = 0; i < token_count; i++) {
        if (spelling[i] == NULL || unicode_valid(spelling[i], spelling_bytes[i]))
            continue;
        snprintf(error, error_bytes, "could not use the vocabulary: token %d is not UTF-8", i);
        return false;
    }
    return true;
}

void bpe_inside(struct bpe *bpe, int32_t token)
{
    assert(token >= 0 && token < bpe->base.token_count);
    bpe->model.state[token] = BPE_UNSEEN;
}

bool bpe_reserve(struct bpe *bpe, int32_t merge_count, char *error, size_t error_bytes)
{
    return bpe_model_reserve(&bpe->model, merge_count) || out_of_memory(error, error_bytes);
}

static int32_t find_inside(const struct bpe *bpe, const char *spelling, size_t bytes)
{
    int32_t token = tokenizer_find(&bpe->base, spelling, bytes);

    return token >= 0 && bpe->model.state[token] != BPE_OUTSIDE ? token : -1;
}

/* Tokens are mostly numbered as their merges are: the last result, or the one after it, is tried
 * before it is looked for. */
static int32_t find_result(const struct bpe *bpe, const char *joined, size_t bytes)
{
    for (int32_t token = bpe->merge_last; token >= 0 && token <= bpe->merge_last + 1; token++) {
        size_t known_bytes;
        const char *known = tokenizer_spelling(&bpe->base, token, &known_bytes);
        if (known_bytes == bytes && memcmp(known, joined, bytes) == 0 &&
            bpe->model.state[token] != BPE_OUTSIDE)
            return token;
    }
    return find_inside(bpe, joined, bytes);
}

bool bpe_merge_pair(struct bpe *bpe, const char *left, size_t left_bytes, const char *right,
                    size_t right_bytes, char *error, size_t error_bytes)
{
    char joined[SPM_SPELLING_MAX];
    int32_t left_token = find_inside(bpe, left, left_bytes);
    int32_t right_token = find_inside(bpe, right, right_bytes), result = -1;

    if (left_token >= 0 && right_token >= 0 && left_bytes + right_bytes <= sizeof(joined)) {
        memcpy(joined, left, left_bytes);
        memcpy(joined + left_bytes, right, right_bytes);
        result = find_result(bpe, joined, left_bytes + right_bytes);
    }
    if (result < 0) {
        snprintf(error, error_bytes,
                 "could not use the vocabulary: merge %d joins what are no tokens, or to none",
                 bpe->merge_count);
        return false;
    }
    bpe_model_add(&bpe->model, left_token, right_token, bpe->merge_count++, result);
    bpe->merge_last = result;
    return true;
}

bool bpe_merge_line(struct bpe *bpe, const char *line, size_t bytes, char *error,
                    size_t error_bytes)
{
    const char *space = bytes < 3 ? NULL : memchr(line + 1, ' ', bytes - 2);

    if (space == NULL) {
        snprintf(error, error_bytes,
                 "could not use the vocabulary: merge %d is not two tokens and a space",
                 bpe->merge_count);
        return false;
    }
    size_t left_bytes = (size_t)(space - line);
    return bpe_merge_pair(bpe, line, left_bytes, space + 1, bytes - left_bytes - 1, error,
                          error_bytes);
}

/* Bytes of the token that can be no part of a character, or that are only the beginning of one. */
static size_t broken_bytes(const struct bpe *bpe, int32_t token)
{
    char bytes[SPM_SPELLING_MAX];
    size_t count = tokenizer_bytes(&bpe->base, token, bytes, sizeof(bytes));
    size_t broken = 0, taken;

    for (size_t at = 0; at < count; at += taken) {
        if (unicode_next(bytes + at, count - at, &taken) != UNICODE_COMPLETE)
            broken += taken;
    }
    return broken;
}

bool bpe_ready(struct bpe *bpe, char *error, size_t error_bytes)
{
    struct tokenizer *base = &bpe->base;

    for (int32_t i = 0; base->byte_stream && i < base->token_count; i++) {
        if (broken_bytes(bpe, i) <= BROKEN_BYTES_MAX)
            continue;
        snprintf(error, error_bytes,
                 "could not use the vocabulary: more than %d bytes of token %d are no characters",
                 BROKEN_BYTES_MAX, i);
        return false;
    }
    special_ready(&bpe->normalized);
    bpe_model_ready(&bpe->model);
    tokenizer_ready(base);
    return true;
}
