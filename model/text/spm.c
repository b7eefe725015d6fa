/* SentencePiece's greedy joining, over the vocabulary of a GGUF.
 *
 * A heap of candidate joins over a linked list of symbols, stale candidates skipped: O(n log n)
 * in the bytes of a stretch. No join can cross from a byte into a following space mark unless
 * some piece holds that byte before one, so the text is cut there first ("words"): the same
 * tokens from small heaps.
 */
#include "model/text/spm.h"

#include "model/text/tokenizer_kind.h"
#include "model/text/unicode.h"

#include <assert.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char space_mark[] = "\xE2\x96\x81"; /* U+2581 */
enum { SPACE_MARK_BYTES = sizeof(space_mark) - 1 };

/* Types of `tokenizer.ggml.token_type`. */
enum { TYPE_NORMAL = 1, TYPE_UNKNOWN, TYPE_CONTROL, TYPE_USER, TYPE_UNUSED, TYPE_BYTE };

struct spm {
    struct tokenizer base;   /* first: tokenizer_free frees both */
    float *score;            /* [token_count] */
    int32_t byte_token[256]; /* -1: none */
    bool bridged[256];       /* by byte: some piece has it right before a space mark */
};

struct symbol {
    uint32_t first;      /* into the word */
    uint32_t bytes;      /* 0: joined to the one on its left */
    int32_t left, right; /* neighbours, -1: none */
    int32_t join;        /* that made it, -1: a character */
};

/* How a symbol came about, for pieces that may be used on the way but not put out. */
struct join {
    uint32_t left_bytes;
    int32_t left, right; /* joins that made the halves, -1: characters */
};

struct candidate {
    float score;
    int32_t left, right; /* symbols */
    uint32_t bytes;      /* of both when it was made; other now: stale */
};

/* One call's memory; the arrays are as long as the longest word needs. */
struct work {
    const struct spm *spm;
    const char *word;
    int32_t symbol_max;
    struct symbol *symbol;  /* [symbol_max] */
    struct join *join;      /* [symbol_max] */
    struct candidate *heap; /* [2 * symbol_max] best first */
    int32_t symbol_count, join_count, heap_count;
    bool after_unknown; /* the last token of this stretch is the unknown one */
    struct token_list *list;
};

/* ---- the heap ---- */

static bool better(const struct candidate *a, const struct candidate *b)
{
    return a->score > b->score || (a->score == b->score && a->left < b->left);
}

static void heap_push(struct work *work, struct candidate candidate)
{
    int32_t at = work->heap_count++;

    assert(at < 2 * work->symbol_max);
    while (at > 0 && better(&candidate, &work->heap[(at - 1) / 2])) {
        work->heap[at] = work->heap[(at - 1) / 2];
        at = (at - 1) / 2;
    }
    work->heap[at] = candidate;
}

static struct candidate heap_pop(struct work *work)
{
    struct candidate best = work->heap[0];
    struct candidate last = work->heap[--work->heap_count];
    int32_t at = 0;

    for (;;) {
        int32_t child = 2 * at + 1;
        if (child + 1 < work->heap_count && better(&work->heap[child + 1], &work->heap[child]))
            child++;
        if (child >= work->heap_count || !better(&work->heap[child], &last))
            break;
        work->heap[at] = work->heap[child];
        at = child;
    }
    work->heap[at] = last;
    return best;
}

/* ---- one word ---- */

/* The piece of this text that joins may make, or -1. */
static int32_t piece_find(const struct spm *spm, const char *text, size_t bytes)
{
    int32_t token = tokenizer_find(&spm->base, text, bytes);

    if (token < 0)
        return -1;
    switch ((enum token_kind)spm->base.token_kind[token]) {
    case TOKEN_NORMAL:
    case TOKEN_USER:
    case TOKEN_UNUSED:
        return token;
    case TOKEN_UNKNOWN: /* control and byte tokens are never made from text */
    case TOKEN_CONTROL:
    case TOKEN_BYTE:
        break;
    }
    return -1;
}

static void offer_join(struct work *work, int32_t left, int32_t right)
{
    if (left < 0 || right < 0)
        return;
    const struct symbol *a = &work->symbol[left];
    uint32_t bytes = a->bytes + work->symbol[right].bytes;
    int32_t token = piece_find(work->spm, work->word + a->first, bytes);
    if (token < 0)
        return;
    heap_push(work,
              (struct candidate){
                  .score = work->spm->score[token], .left = left, .right = right, .bytes = bytes});
}

static void join_symbols(struct work *work, int32_t left, int32_t right)
{
    struct symbol *a = &work->symbol[left], *b = &work->symbol[right];

    work->join[work->join_count] =
        (struct join){.left_bytes = a->bytes, .left = a->join, .right = b->join};
    a->join = work->join_count++;
    a->bytes += b->bytes;
    b->bytes = 0;
    a->right = b->right;
    if (b->right >= 0)
        work->symbol[b->right].left = left;
}

/* A character without a piece: its bytes if all are tokens, else one unknown token a run. */
static bool put_character(struct work *work, const char *text, size_t bytes)
{
    const struct spm *spm = work->spm;
    size_t known = 0;

    while (known < bytes && spm->byte_token[(unsigned char)text[known]] >= 0)
        known++;
    if (known < bytes) {
        bool fused = work->after_unknown;
        work->after_unknown = true;
        return fused || token_list_add(work->list, spm->base.unknown);
    }
    work->after_unknown = false;
    for (size_t i = 0; i < bytes; i++) {
        if (!token_list_add(work->list, spm->byte_token[(unsigned char)text[i]]))
            return false;
    }
    return true;
}

/* Puts out a symbol; one that is no piece or an unused one falls back into what was joined.
 * As deep as joins are nested: at most SPM_SPELLING_MAX. */
static bool put_symbol(struct work *work, uint32_t first, uint32_t bytes, int32_t join)
{
    const char *text = work->word + first;
    int32_t token = piece_find(work->spm, text, bytes);

    if (token >= 0 && work->spm->base.token_kind[token] != TOKEN_UNUSED) {
        work->after_unknown = false;
        return token_list_add(work->list, token);
    }
    if (join < 0)
        return put_character(work, text, bytes);
    const struct join *halves = &work->join[join];
    return put_symbol(work, first, halves->left_bytes, halves->left) &&
           put_symbol(work, first + halves->left_bytes, bytes - halves->left_bytes, halves->right);
}

static bool work_reserve(struct work *work, size_t symbol_count)
{
    if (symbol_count <= (size_t)work->symbol_max)
        return true;
    free(work->symbol);
    free(work->join);
    free(work->heap);
    work->symbol = malloc(symbol_count * sizeof(*work->symbol));
    work->join = malloc(symbol_count * sizeof(*work->join));
    work->heap = malloc(2 * symbol_count * sizeof(*work->heap));
    work->symbol_max = (int32_t)symbol_count;
    return work->symbol != NULL && work->join != NULL && work->heap != NULL;
}

static void split_characters(struct work *work, size_t bytes)
{
    size_t at = 0, taken;

    work->symbol_count = 0;
    for (; at < bytes; at += taken) {
        unicode_next(work->word + at, bytes - at, &taken);
        work->symbol[work->symbol_count] = (struct symbol){.first = (uint32_t)at,
                                                           .bytes = (uint32_t)taken,
                                                           .left = work->symbol_count - 1,
                                                           .right = work->symbol_count + 1,
                                                           .join = -1};
        work->symbol_count++;
    }
    work->symbol[work->symbol_count - 1].right = -1;
}

static bool encode_word(struct work *work, const char *word, size_t bytes)
{
    if (!work_reserve(work, bytes < 256 ? 256 : bytes))
        return false;
    work->word = word;
    work->join_count = 0;
    work->heap_count = 0;
    split_characters(work, bytes);
    for (int32_t i = 1; i < work->symbol_count; i++)
        offer_join(work, i - 1, i);

    while (work->heap_count > 0) {
        struct candidate best = heap_pop(work);
        const struct symbol *left = &work->symbol[best.left];
        const struct symbol *right = &work->symbol[best.right];
        if (left->bytes == 0 || right->bytes == 0 || left->bytes + right->bytes != best.bytes)
            continue;
        join_symbols(work, best.left, best.right);
        offer_join(work, left->left, best.left);
        offer_join(work, best.left, left->right);
    }
    for (int32_t i = 0; i >= 0; i = work->symbol[i].right) {
        const struct symbol *symbol = &work->symbol[i];
        if (!put_symbol(work, symbol->first, symbol->bytes, symbol->join))
            return false;
    }
    return true;
}

/* ---- one stretch ---- */

static bool is_space_mark(const char *text, size_t bytes)
{
    return bytes >= SPACE_MARK_BYTES && memcmp(text, space_mark, SPACE_MARK_BYTES) == 0;
}

/* The text with a mark for every space, and one before it where the model wants it. */
static char *mark_spaces(const struct spm *spm, const char *text, size_t bytes, size_t *marked)
{
    size_t space_count = spm->base.space_prefix ? 1 : 0;

    for (size_t i = 0; i < bytes; i++)
        space_count += text[i] == ' ';
    char *target = calloc(bytes + SPACE_MARK_BYTES * space_count + 1, 1);
    if (target == NULL)
        return NULL;
    *marked = 0;
    if (spm->base.space_prefix) {
        memcpy(target, space_mark, SPACE_MARK_BYTES);
        *marked = SPACE_MARK_BYTES;
    }
    for (size_t i = 0; i < bytes; i++) {
        if (text[i] != ' ') {
            target[(*marked)++] = text[i];
            continue;
        }
        memcpy(target + *marked, space_mark, SPACE_MARK_BYTES);
        *marked += SPACE_MARK_BYTES;
    }
    return target;
}

/* Bytes of the word that starts at `first`: up to the next mark that nothing can join to. */
static size_t word_bytes(const struct spm *spm, const char *text, size_t first, size_t bytes)
{
    size_t at = first + 1;

    while (at < bytes &&
           (spm->bridged[(unsigned char)text[at - 1]] || !is_space_mark(text + at, bytes - at)))
        at++;
    return at - first;
}

static int spm_encode(const struct tokenizer *tokenizer, const struct token_stretch *stretch,
                      struct token_list *list)
{
    const struct spm *spm = (const struct spm *)tokenizer;
    struct work work = {.spm = spm, .list = list};
    size_t bytes = 0;

    if (stretch->text_bytes > INT32_MAX / 8) /* symbols and their bytes are counted in 32 bits */
        return -EFBIG;
    char *marked = mark_spaces(spm, stretch->text, stretch->text_bytes, &bytes);
    bool good = marked != NULL;
    for (size_t at = 0; good && at < bytes;) {
        size_t word = word_bytes(spm, marked, at, bytes);
        good = encode_word(&work, marked + at, word);
        at += word;
    }
    free(marked);
    free(work.symbol);
    free(work.join);
    free(work.heap);
    return good ? 0 : -ENOMEM;
}

/* ---- tokens to bytes ---- */

static int hex_digit(char digit)
{
    if (digit >= '0' && digit <= '9')
        return digit - '0';
    if (digit >= 'A' && digit <= 'F')
        return digit - 'A' + 10;
    if (digit >= 'a' && digit <= 'f')
        return digit - 'a' + 10;
    return -1;
}

/* The value of "<0xNN>", or -1. */
static int byte_of(const char *spelling, size_t bytes)
{
    if (bytes != 6 || memcmp(spelling, "<0x", 3) != 0 || spelling[5] != '>')
        return -1;
    int high = hex_digit(spelling[3]), low = hex_digit(spelling[4]);
    return high < 0 || low < 0 ? -1 : 16 * high + low;
}

static size_t spm_bytes(const struct tokenizer *tokenizer, int32_t token, char *bytes, size_t max)
{
    size_t spelling_bytes, count = 0;
    const char *spelling = tokenizer_spelling(tokenizer, token, &spelling_bytes);

    if (tokenizer->token_kind[token] == TOKEN_BYTE) {
        if (max > 0)
            bytes[0] = (char)byte_of(spelling, spelling_bytes);
        return 1;
    }
    for (size_t at = 0; at < spelling_bytes; count++) {
        bool mark = is_space_mark(spelling + at, spelling_bytes - at);
        const char *byte = mark ? " " : spelling + at;
        if (count < max)
            bytes[count] = *byte;
        at += mark ? SPACE_MARK_BYTES : 1;
    }
    return count;
}

static void spm_release(struct tokenizer *tokenizer)
{
    free(((struct spm *)tokenizer)->score);
}

static const struct tokenizer_kind spm_kind = {
    .encode = spm_encode,
    .bytes = spm_bytes,
    .release = spm_release,
};

/* ---- making one ---- */

static bool refuse(char *error, size_t error_bytes, const char *what, int32_t token)
{
    snprintf(error, error_bytes, "could not use the vocabulary: token %d %s", token, what);
    return false;
}

/* Gemma's placeholders, "<unused12>", are control tokens in its GGUFs; the original tokenizer has
 * them as added tokens that are not special: cut out of any text, kept in output. */
static bool is_placeholder(const char *spelling, size_t bytes)
{
    static const char name[] = "<unused";
    size_t at = sizeof(name) - 1;

    if (bytes < at + 2 || memcmp(spelling, name, at) != 0)
        return false;
    while (at < bytes && spelling[at] >= '0' && spelling[at] <= '9')
        at++;
    return at > sizeof(name) - 1 && at + 1 == bytes && spelling[at] == '>';
}

static int32_t type_of(const struct spm_vocabulary *vocabulary, int32_t token)
{
    if (vocabulary->type != NULL)
        return vocabulary->type[token];
    if (token == vocabulary->unknown)
        return TYPE_UNKNOWN;
    if (token == vocabulary->bos || token == vocabulary->eos)
        return TYPE_CONTROL;
    if (byte_of(vocabulary->spelling[token], vocabulary->spelling_bytes[token]) >= 0)
        return TYPE_BYTE;
    return TYPE_NORMAL;
}

static bool set_byte(struct spm *spm, int32_t token, char *error, size_t error_bytes)
{
    size_t bytes;
    const char *spelling = tokenizer_spelling(&spm->base, token, &bytes);
    int byte = byte_of(spelling, bytes);

    if (byte < 0)
        return refuse(error, error_bytes, "is a byte token but not spelled <0xNN>", token);
    if (spm->byte_token[byte] >= 0)
        return refuse(error, error_bytes, "is a second token of its byte", token);
    spm->byte_token[byte] = token;
    spm->base.token_kind[token] = TOKEN_BYTE;
    return true;
}

/* Bytes that stand right before a space mark in this piece. */
static void set_bridges(struct spm *spm, int32_t token)
{
    size_t bytes;
    const char *spelling = tokenizer_spelling(&spm->base, token, &bytes);

    for (size_t at = 1; at + SPACE_MARK_BYTES <= bytes; at++) {
        if (is_space_mark(spelling + at, bytes - at))
            spm->bridged[(unsigned char)spelling[at - 1]] = true;
    }
}

static bool set_kind(struct spm *spm, int32_t token, int32_t type, char *error, size_t error_bytes)
{
    size_t bytes;
    const char *spelling = tokenizer_spelling(&spm->base, token, &bytes);
    enum token_kind kind;

    if (!unicode_valid(spelling, bytes))
        return refuse(error, error_bytes, "is not UTF-8", token);
    switch (type) {
    case TYPE_NORMAL:
        kind = TOKEN_NORMAL;
        break;
    case TYPE_UNKNOWN:
        kind = TOKEN_UNKNOWN;
        break;
    case TYPE_CONTROL:
        kind = is_placeholder(spelling, bytes) ? TOKEN_USER : TOKEN_CONTROL;
        break;
    case TYPE_USER:
        kind = TOKEN_USER;
        break;
    case TYPE_UNUSED:
        kind = TOKEN_UNUSED;
        break;
    case TYPE_BYTE:
        return set_byte(spm, token, error, error_bytes);
    default:
        return refuse(error, error_bytes, "has a type that is not 1 to 6", token);
    }
    spm->base.token_kind[token] = (uint8_t)kind;
    set_bridges(spm, token);
    return true;
}

static bool set_tokens(struct spm *spm, const struct spm_vocabulary *vocabulary, char *error,
                       size_t error_bytes)
{
    memset(spm->byte_token, 0xFF, sizeof(spm->byte_token)); /* -1 */
    for (int32_t i = 0; i < vocabulary->token_count; i++) {
        if (!isfinite(vocabulary->score[i]))
            return refuse(error, error_bytes, "has a score that is not a number", i);
        spm->score[i] = vocabulary->score[i];
        if (!set_kind(spm, i, type_of(vocabulary, i), error, error_bytes))
            return false;
    }
    for (int32_t byte = 0; byte < 256; byte++) {
        if (spm->byte_token[byte] >= 0 || spm->base.unknown >= 0)
            continue;
        snprintf(error, error_bytes,
                 "could not use the vocabulary: it has neither a token for byte 0x%02X nor an "
                 "unknown token",
                 (unsigned)byte);
        return false;
    }
    return true;
}

static bool check_ids(const struct spm_vocabulary *vocabulary, char *error, size_t error_bytes)
{
    const int32_t id[] = {vocabulary->bos, vocabulary->eos, vocabulary->unknown, vocabulary->eot,
                          vocabulary->eom};
    static const char *const name[] = {"bos", "eos", "unknown", "eot", "eom"};

    if (vocabulary->token_count < 1 || vocabulary->token_count > SPM_TOKEN_MAX) {
        snprintf(error, error_bytes, "could not use the vocabulary: it has %d tokens, not 1 to %d",
                 vocabulary->token_count, SPM_TOKEN_MAX);
        return false;
    }
    for (size_t i = 0; i < sizeof(id) / sizeof(id[0]); i++) {
        if (id[i] >= -1 && id[i] < vocabulary->token_count)
            continue;
        snprintf(error, error_bytes,
                 "could not use the vocabulary: its %s token is %d, not below its %d tokens",
                 name[i], id[i], vocabulary->token_count);
        return false;
    }
    return true;
}

static void set_ids(struct tokenizer *base, const struct spm_vocabulary *vocabulary)
{
    base->bos = vocabulary->bos;
    base->eos = vocabulary->eos;
    base->unknown = vocabulary->unknown;
    if (vocabulary->add_bos && base->bos >= 0)
        base->before.token[base->before.count++] = base->bos;
    if (vocabulary->add_eos && base->eos >= 0)
        base->after.token[base->after.count++] = base->eos;
    base->space_prefix = vocabulary->add_space_prefix;
}

static void set_ends(struct tokenizer *base, const struct spm_vocabulary *vocabulary)
{
    if (vocabulary->eot >= 0)
        base->token_ends[vocabulary->eot] = 1;
    if (vocabulary->eom >= 0)
        base->token_ends[vocabulary->eom] = 1;
}

struct tokenizer *tokenizer_create_spm(const struct spm_vocabulary *vocabulary, char *error,
                                       size_t error_bytes)
{
    if (!check_ids(vocabulary, error, error_bytes))
        return NULL;
    struct spm *spm = calloc(1, sizeof(*spm));
    if (spm == NULL) {
        snprintf(error, error_bytes, "could not use the vocabulary: out of memory");
        return NULL;
    }
    struct tokenizer *base = &spm->base;
    base->kind = &spm_kind;
    set_ids(base, vocabulary);
    if (tokenizer_fill(base, vocabulary->token_count, vocabulary->spelling,
                       vocabulary->spelling_bytes, error, error_bytes) != 0)
        goto failed;
    spm->score = malloc((size_t)vocabulary->token_count * sizeof(*spm->score));
    if (spm->score == NULL) {
        snprintf(error, error_bytes, "could not use the vocabulary: out of memory");
        goto failed;
    }
    if (!set_tokens(spm, vocabulary, error, error_bytes))
        goto failed;
    set_ends(base, vocabulary);
    if (!tokenizer_cut_kinds(base)) {
        snprintf(error, error_bytes, "could not use the vocabulary: out of memory");
        goto failed;
    }
    tokenizer_ready(base);
    return base;
failed:
    tokenizer_free(base);
    return NULL;
}
