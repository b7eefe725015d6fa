/* Joining pairs of tokens. Short pieces by looking for the lowest rank in a row, long ones with a
 * heap over a linked list, where stale candidates are skipped; both give the same tokens.
 *
 * Most pieces are tokens as they stand. Whether merging would give that token again is found out
 * at its first use and kept.
 */
#include "model/text/bpe_model.h"

#include "model/text/spm.h"
#include "model/text/unicode.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

enum {
    ROW_MAX = 40, /* symbols of a short piece */
    RANK_NONE = INT32_MAX,
};

static const char space_mark[] = "\xE2\x96\x81"; /* U+2581 */
enum { SPACE_MARK_BYTES = sizeof(space_mark) - 1 };

struct bpe_symbol {
    int32_t token;
    int32_t rank, result; /* of joining it to the one on its right; RANK_NONE: never */
    int32_t left, right;  /* -1: none */
};

/* ---- the alphabet ---- */

static bool stands_for_itself(unsigned byte)
{
    return (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
}

/* Bytes that stand for themselves, else the n-th of the others is U+0100 + n. */
static unsigned code_of_byte(unsigned byte)
{
    if (stands_for_itself(byte))
        return byte;
    if (byte <= 32)
        return 0x100 + byte;
    return byte <= 160 ? 0x121 + (byte - 127) : 0x143; /* the last one is 173 */
}

static int byte_of_code(int32_t code)
{
    if (code < 0x100)
        return code >= 0 && stands_for_itself((unsigned)code) ? code : -1;
    if (code <= 0x120)
        return code - 0x100;
    if (code <= 0x142)
        return code - 0x121 + 127;
    return code == 0x143 ? 173 : -1;
}

size_t bpe_spell_byte(unsigned char byte, char *target)
{
    unsigned code = code_of_byte(byte);

    if (code < 0x80) {
        target[0] = (char)code;
        return 1;
    }
    target[0] = (char)(0xC0 | code >> 6);
    target[1] = (char)(0x80 | (code & 0x3F));
    return 2;
}

/* False: a character is not in the alphabet. */
static bool unspell(const char *spelling, size_t spelling_bytes, char *bytes, size_t max,
                    size_t *count)
{
    size_t taken;

    *count = 0;
    for (size_t at = 0; at < spelling_bytes; at += taken) {
        int byte = byte_of_code(unicode_at(spelling + at, spelling_bytes - at));
        if (byte < 0)
            return false;
        unicode_next(spelling + at, spelling_bytes - at, &taken);
        if (*count < max)
            bytes[*count] = (char)byte;
        ++*count;
    }
    return true;
}

size_t bpe_unspell(const char *spelling, size_t spelling_bytes, char *bytes, size_t max)
{
    size_t count;

    if (unspell(spelling, spelling_bytes, bytes, max, &count))
        return count;
    if (max > 0)
        memcpy(bytes, spelling, spelling_bytes < max ? spelling_bytes : max);
    return spelling_bytes;
}

static int hex_digit(char digit)
{
    if (digit >= '0' && digit <= '9')
        return digit - '0';
    return digit >= 'A' && digit <= 'F' ? digit - 'A' + 10 : -1;
}

int bpe_byte_of(const char *spelling, size_t bytes)
{
    if (bytes != 6 || memcmp(spelling, "<0x", 3) != 0 || spelling[5] != '>')
        return -1;
    int high = hex_digit(spelling[3]), low = hex_digit(spelling[4]);
    return high < 0 || low < 0 ? -1 : 16 * high + low;
}

/* ---- the table of merges ---- */

static uint32_t merge_slot(const struct bpe_model *model, int32_t left, int32_t right)
{
    uint64_t pair = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;

    pair *= UINT64_C(0x9E3779B97F4A7C15);
    return (uint32_t)(pair >> 32 ^ pair >> 15) & model->merge_mask;
}

/* The entry of a pair, or the empty one where it would be. */
static struct bpe_merge *merge_of(const struct bpe_model *model, int32_t left, int32_t right)
{
    uint32_t at = merge_slot(model, left, right);

    for (;; at = (at + 1) & model->merge_mask) {
        struct bpe_merge *merge = &model->merge[at];
        if ((merge->left == left && merge->right == right) || merge->left < 0)
            return merge;
    }
}

bool bpe_model_reserve(struct bpe_model *model, int32_t merge_count)
{
    uint32_t entry_count = 16; /* at most half full */

    while (entry_count < 2 * (uint32_t)merge_count)
        entry_count *= 2;
    model->merge = malloc(entry_count * sizeof(*model->merge));
    if (model->merge == NULL)
        return false;
    memset(model->merge, 0xFF, entry_count * sizeof(*model->merge)); /* left of -1 */
    model->merge_mask = entry_count - 1;
    return true;
}

void bpe_model_add(struct bpe_model *model, int32_t left, int32_t right, int32_t rank,
                   int32_t result)
{
    assert(left >= 0 && right >= 0 && result >= 0 && rank < RANK_NONE);
    *merge_of(model, left, right) =
        (struct bpe_merge){.left = left, .right = right, .rank = rank, .result = result};
}

/* ---- smallest tokens ---- */

/* The token of the vocabulary that is spelled so, or -1. */
static int32_t find(const struct bpe_model *model, const char *spelling, size_t bytes)
{
    int32_t token = tokenizer_find(model->base, spelling, bytes);

    if (token < 0 || __atomic_load_n(&model->state[token], __ATOMIC_RELAXED) == BPE_OUTSIDE)
        return -1;
    return token;
}

static void set_bytes(struct bpe_model *model)
{
    static const char digit[] = "0123456789ABCDEF";

    for (int byte = 0; byte < 256; byte++) {
        char spelling[8] = "<0x00>";
        size_t bytes = 6;
        spelling[3] = digit[byte >> 4];
        spelling[4] = digit[byte & 15];
        if (model->byte_level)
            bytes = bpe_spell_byte((unsigned char)byte, spelling);
        bool used = model->byte_level || model->byte_fallback;
        model->byte_token[byte] = used ? find(model, spelling, bytes) : -1;
    }
    for (int byte = 0; byte < 128; byte++) {
        char character = (char)byte;
        model->ascii_token[byte] = find(model, &character, 1);
    }
}

static bool is_space_mark(const char *text, size_t bytes)
{
    return bytes >= SPACE_MARK_BYTES && memcmp(text, space_mark, SPACE_MARK_BYTES) == 0;
}

void bpe_model_ready(struct bpe_model *model)
{
    set_bytes(model);
    for (int32_t token = 0; token < model->base->token_count; token++) {
        size_t bytes;
        const char *spelling = tokenizer_spelling(model->base, token, &bytes);
        if (model->state[token] == BPE_OUTSIDE)
            continue;
        if (bytes > model->token_bytes_max)
            model->token_bytes_max = (uint32_t)bytes;
        for (size_t at = 1; !model->byte_level && at < bytes; at++) {
            if (is_space_mark(spelling + at, bytes - at))
                model->bridged[(unsigned char)spelling[at - 1]] = true;
        }
    }
}

void bpe_model_release(struct bpe_model *model)
{
    free(model->state);
    free(model->merge);
}

static bool reserve(struct bpe_work *work, size_t bytes)
{
    if (bytes > work->symbol_max) {
        size_t max = bytes < 256 ? 256 : bytes;
        free(work->symbol);
        work->symbol = malloc(max * sizeof(*work->symbol));
        work->symbol_max = work->symbol == NULL ? 0 : max;
    }
    return work->symbol_max >= bytes;
}

void bpe_work_release(struct bpe_work *work)
{
    free(work->symbol);
    free(work->heap);
    *work = (struct bpe_work){0};
}

static void add_symbol(struct bpe_work *work, int32_t token)
{
    assert(work->symbol_count < work->symbol_max);
    work->symbol[work->symbol_count++].token = token;
}

static void add_unknown(const struct bpe_model *model, struct bpe_work *work)
{
    if (model->unknown >= 0 && !(model->fuse_unknown && work->after_unknown))
        add_symbol(work, model->unknown);
    work->after_unknown = true;
}

/* One character that has no token. */
static void add_parts(const struct bpe_model *model, struct bpe_work *work, const char *text,
                      size_t bytes)
{
    size_t known = 0;

    while (known < bytes && model->byte_token[(unsigned char)text[known]] >= 0)
        known++;
    if (known < bytes) {
        add_unknown(model, work);
        return;
    }
    for (size_t i = 0; i < bytes; i++)
        add_symbol(work, model->byte_token[(unsigned char)text[i]]);
    work->after_unknown = false;
}

static void add_character(const struct bpe_model *model, struct bpe_work *work, const char *text,
                          size_t bytes)
{
    unsigned char byte = (unsigned char)text[0];
    int32_t token = byte < 0x80 ? model->ascii_token[byte] : find(model, text, bytes);

    if (token < 0) {
        add_parts(model, work, text, bytes);
        return;
    }
    add_symbol(work, token);
    work->after_unknown = false;
}

static void split(const struct bpe_model *model, struct bpe_work *work, const char *text,
                  size_t bytes)
{
    size_t taken;

    work->symbol_count = 0;
    if (model->byte_level) {
        for (size_t at = 0; at < bytes; at++)
            add_parts(model, work, text + at, 1);
        return;
    }
    for (size_t at = 0; at < bytes; at += taken) {
        unicode_next(text + at, bytes - at, &taken);
        add_character(model, work, text + at, taken);
    }
}

/* ---- joining ---- */

static void set_rank(const struct bpe_model *model, struct bpe_symbol *symbol, int32_t right)
{
    const struct bpe_merge *merge = merge_of(model, symbol->token, right);

    symbol->rank = merge->left < 0 ? RANK_NONE : merge->rank;
    symbol->result = merge->result;
}

/* The symbols stand in a row; what is joined moves up. */
static void join_row(const struct bpe_model *model, struct bpe_work *work)
{
    struct bpe_symbol *symbol = work->symbol;
    size_t count = work->symbol_count;

    for (size_t i = 0; i + 1 < count; i++)
        set_rank(model, &symbol[i], symbol[i + 1].token);
    while (count > 1) {
        size_t best = 0;
        for (size_t i = 1; i + 1 < count; i++)
            best = symbol[i].rank < symbol[best].rank ? i : best;
        if (symbol[best].rank == RANK_NONE)
            break;
        symbol[best].token = symbol[best].result;
        count--;
        memmove(&symbol[best + 1], &symbol[best + 2], (count - best - 1) * sizeof(*symbol));
        if (best + 1 < count)
            set_rank(model, &symbol[best], symbol[best + 1].token);
        if (best > 0)
            set_rank(model, &symbol[best - 1], symbol[best].token);
    }
    work->symbol_count = count;
}

static void heap_push(struct bpe_work *work, uint64_t candidate)
{
    size_t at = work->heap_count++;

    assert(at < work->heap_max);
    while (at > 0 && candidate < work->heap[(at - 1) / 2]) {
        work->heap[at] = work->heap[(at - 1) / 2];
        at = (at - 1) / 2;
    }
    work->heap[at] = candidate;
}

static uint64_t heap_pop(struct bpe_work *work)
{
    uint64_t best = work->heap[0], last = work->heap[--work->heap_count];
    size_t at = 0;

    for (;;) {
        size_t child = 2 * at + 1;
        if (child + 1 < work->heap_count && work->heap[child + 1] < work->heap[child])
            child++;
        if (child >= work->heap_count || work->heap[child] >= last)
            break;
        work->heap[at] = work->heap[child];
        at = child;
    }
    work->heap[at] = last;
    return best;
}

/* The pair of a symbol and its right neighbour is new. */
static void offer(const struct bpe_model *model, struct bpe_work *work, int32_t left)
{
    struct bpe_symbol *symbol = &work->symbol[left];

    symbol->rank = RANK_NONE;
    if (symbol->right < 0)
        return;
    set_rank(model, symbol, work->symbol[symbol->right].token);
    if (symbol->rank != RANK_NONE)
        heap_push(work, (uint64_t)(uint32_t)symbol->rank << 32 | (uint32_t)left);
}

static bool join_heap(const struct bpe_model *model, struct bpe_work *work)
{
    struct bpe_symbol *symbol = work->symbol;
    int32_t count = (int32_t)work->symbol_count;

    if (work->heap_max < 3 * work->symbol_count) { /* one a symbol, two more a merge */
        free(work->heap);
        work->heap_max = 3 * work->symbol_count;
        work->heap = malloc(work->heap_max * sizeof(*work->heap));
        if (work->heap == NULL) {
            work->heap_max = 0;
            return false;
        }
    }
    work->heap_count = 0;
    for (int32_t i = 0; i < count; i++) {
        symbol[i].left = i - 1;
        symbol[i].right = i + 1 < count ? i + 1 : -1;
    }
    for (int32_t i = 0; i < count; i++)
        offer(model, work, i);
    while (work->heap_count > 0) {
        uint64_t best = heap_pop(work);
        struct bpe_symbol *left = &symbol[(uint32_t)best];
        if ((uint32_t)left->rank != (uint32_t)(best >> 32))
            continue;
        struct bpe_symbol *right = &symbol[left->right];
        left->token = left->result;
        left->right = right->right;
        right->rank = RANK_NONE;
        if (right->right >= 0)
            symbol[right->right].left = (int32_t)(uint32_t)best;
        offer(model, work, (int32_t)(uint32_t)best);
        if (left->left >= 0)
            offer(model, work, left->left);
    }
    return true;
}

static bool put_list(const struct bpe_work *work, struct token_list *list)
{
    for (int32_t i = 0; i >= 0; i = work->symbol[i].right) {
        if (!token_list_add(list, work->symbol[i].token))
            return false;
    }
    return true;
}

static bool encode_word(const struct bpe_model *model, struct bpe_work *work, const char *text,
                        size_t bytes, struct token_list *list)
{
    if (!reserve(work, bytes))
        return false;
    split(model, work, text, bytes);
    if (work->symbol_count == 0)
        return true;
    if (work->symbol_count > ROW_MAX)
        return join_heap(model, work) && put_list(work, list);
    join_row(model, work);
    for (size_t i = 0; i < work->symbol_count; i++) {
        if (!token_list_add(list, work->symbol[i].token))
            return false;
    }
    return true;
}

/* ---- one piece ---- */

/* The token of the vocabulary whose text this is, or -1. */
static int32_t find_piece(const struct bpe_model *model, const char *text, size_t bytes)
{
    char spelling[SPM_SPELLING_MAX + 2];
    size_t count = 0;

    if (bytes > model->token_bytes_max)
        return -1;
    if (!model->byte_level)
        return find(model, text, bytes);
    for (size_t i = 0; i < bytes && count <= model->token_bytes_max; i++)
        count += bpe_spell_byte((unsigned char)text[i], spelling + count);
    if (count > model->token_bytes_max)
        return -1;
    return find(model, spelling, count);
}

static bool encode_piece(const struct bpe_model *model, struct bpe_work *work, const char *text,
                         size_t bytes, struct token_list *list)
{
    int32_t token = find_piece(model, text, bytes);

    if (token < 0)
        return encode_word(model, work, text, bytes, list);
    uint8_t state = __atomic_load_n(&model->state[token], __ATOMIC_RELAXED);
    if (model->ignore_merges || state == BPE_WHOLE) {
        work->after_unknown = false;
        return token_list_add(list, token);
    }
    int64_t first = list->count;
    if (!encode_word(model, work, text, bytes, list))
        return false;
    bool whole = list->count == first + 1 && list->token[first] == token;
    __atomic_store_n(&model->state[token], whole ? BPE_WHOLE : BPE_PARTS, __ATOMIC_RELAXED);
    return true;
}

/* Bytes of the word that starts at `first`: up to the next mark that nothing can join to. */
static size_t word_bytes(const struct bpe_model *model, const char *text, size_t first,
                         size_t bytes)
{
    size_t at = first + 1;

    while (at < bytes &&
           (model->bridged[(unsigned char)text[at - 1]] || !is_space_mark(text + at, bytes - at)))
        at++;
    return at - first;
}

bool bpe_model_encode(const struct bpe_model *model, struct bpe_work *work, const char *text,
                      size_t bytes, struct token_list *list)
{
    assert(bytes > 0 && bytes <= (size_t)1 << 30);
    work->after_unknown = false;
    if (model->byte_level || model->ignore_merges)
        return encode_piece(model, work, text, bytes, list);
    for (size_t at = 0; at < bytes;) {
        size_t word = word_bytes(model, text, at, bytes);
        if (!encode_piece(model, work, text + at, word, list))
            return false;
        at += word;
    }
    return true;
}
