/* A tokenizer.json from end to end: the vocabulary and the merges, which are nearly all of it, are
 * read where they stand; the small components go through cJSON.
 */
#include "model/text/tokenizer_json.h"

#include "model/text/json_parts.h"
#include "model/text/json_reader.h"
#include "model/text/spm.h"

#include <cjson/cJSON.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SPREAD_MAX = 4, SPREAD_MORE = 4096 }; /* how far ids may reach beyond their count */

/* A value where it stands in the file. */
struct span {
    const char *json; /* NULL: not there */
    size_t bytes;
};

struct parts {
    struct span added, normalizer, splitter, frame, decoder;
    struct span type, vocab, merges, unknown, ignore_merges, fallback, fuse, dropout, prefix,
        suffix;
};

struct entry {
    const char *spelling;
    size_t bytes;
    int32_t token;
};

/* One call. */
struct opening {
    struct bpe *bpe;
    struct parts parts;
    char *decoded, *decoded_next; /* strings with escapes, as long as the whole file */
    struct entry *entry;          /* [entry_count] vocabulary first, then added tokens */
    size_t entry_count, entry_max;
    cJSON *added; /* the list of added tokens; NULL: none */
    char *error;
    size_t error_bytes;
};

static bool refuse(struct opening *opening, const char *what, const char *detail)
{
    snprintf(opening->error, opening->error_bytes, "tokenizer.json: %s%.120s", what, detail);
    return false;
}

static bool refuse_json(struct opening *opening, const struct json_reader *reader,
                        const char *where)
{
    snprintf(opening->error, opening->error_bytes, "tokenizer.json: %s in %s, at byte %zu of it",
             reader->error == NULL ? "no JSON" : reader->error, where,
             (size_t)(reader->at - reader->start));
    return false;
}

/* ---- where the parts are ---- */

struct member {
    const char *name;
    struct span *span;
    const struct member *inside; /* NULL: its members are not looked for */
};

/* The members of an object; the reader says what is wrong. */
static bool find_members(struct json_reader *reader, char **decoded, const struct member *member)
{
    const char *key;
    size_t key_bytes;
    int64_t count = 0;

    if (!json_enter(reader, '{'))
        return false;
    while (json_more(reader, '{', &count)) {
        const struct member *known = member;
        struct span value;
        if (!json_key(reader, decoded, &key, &key_bytes))
            return false;
        while (known->name != NULL &&
               (strlen(known->name) != key_bytes || memcmp(known->name, key, key_bytes) != 0))
            known++;
        if (known->inside != NULL) {
            if (!find_members(reader, decoded, known->inside))
                return false;
            continue;
        }
        if (!json_skip(reader, &value.json, &value.bytes))
            return false;
        if (known->span != NULL)
            *known->span = value;
    }
    return reader->error == NULL;
}

static bool find_parts(struct opening *opening, const char *json, size_t json_bytes)
{
    struct parts *parts = &opening->parts;
    const struct member model[] = {
        {"type", &parts->type, NULL},
        {"vocab", &parts->vocab, NULL},
        {"merges", &parts->merges, NULL},
        {"unk_token", &parts->unknown, NULL},
        {"ignore_merges", &parts->ignore_merges, NULL},
        {"byte_fallback", &parts->fallback, NULL},
        {"fuse_unk", &parts->fuse, NULL},
        {"dropout", &parts->dropout, NULL},
        {"continuing_subword_prefix", &parts->prefix, NULL},
        {"end_of_word_suffix", &parts->suffix, NULL},
        {NULL, NULL, NULL},
    };
    const struct member file[] = {
        {"model", NULL, model},
        {"added_tokens", &parts->added, NULL},
        {"normalizer", &parts->normalizer, NULL},
        {"pre_tokenizer", &parts->splitter, NULL},
        {"decoder", &parts->decoder, NULL},
        {"post_processor", &parts->frame, NULL},
        {NULL, NULL, NULL},
    };
    struct json_reader reader;

    json_reader_init(&reader, json, json_bytes);
    return find_members(&reader, &opening->decoded_next, file) ||
           refuse_json(opening, &reader, "the file");
}

static bool span_is(struct span span, const char *text)
{
    return span.json != NULL && span.bytes == strlen(text) &&
           memcmp(span.json, text, span.bytes) == 0;
}

/* cJSON's strings end at a NUL, so that one inside of them would be lost. */
static bool parse(struct opening *opening, struct span span, const char *where, cJSON **tree)
{
    static const char nul[] = "\\u0000";

    *tree = NULL;
    if (span.json == NULL)
        return true;
    if (memmem(span.json, span.bytes, nul, sizeof(nul) - 1) != NULL)
        return refuse(opening, "a NUL character in ", where);
    *tree = cJSON_ParseWithLength(span.json, span.bytes);
    return *tree != NULL || refuse(opening, "no JSON, or no memory for it, in ", where);
}

/* ---- the model ---- */

static bool check_model(struct opening *opening)
{
    const struct parts *parts = &opening->parts;
    struct bpe_model *model = &opening->bpe->model;
    char name[64] = "";

    if (parts->type.json != NULL && !span_is(parts->type, "\"BPE\"")) {
        snprintf(name, sizeof(name), "%.*s", (int)(parts->type.bytes < 60 ? parts->type.bytes : 60),
                 parts->type.json);
        return refuse(opening, "model: supported is BPE, not ", name);
    }
    if (parts->vocab.json == NULL || parts->merges.json == NULL)
        return refuse(opening, "model: no vocab, or no merges", "");
    if (parts->dropout.json != NULL && !span_is(parts->dropout, "null") &&
        !span_is(parts->dropout, "0.0") && !span_is(parts->dropout, "0"))
        return refuse(opening, "model: dropout", "");
    if (parts->prefix.json != NULL && !span_is(parts->prefix, "null") &&
        !span_is(parts->prefix, "\"\""))
        return refuse(opening, "model: continuing_subword_prefix", "");
    if (parts->suffix.json != NULL && !span_is(parts->suffix, "null") &&
        !span_is(parts->suffix, "\"\""))
        return refuse(opening, "model: end_of_word_suffix", "");
    model->ignore_merges = span_is(parts->ignore_merges, "true");
    model->byte_fallback = span_is(parts->fallback, "true");
    model->fuse_unknown = span_is(parts->fuse, "true");
    return true;
}

static bool add_entry(struct opening *opening, struct entry entry)
{
    if (opening->entry_count == opening->entry_max) {
        size_t max = 2 * opening->entry_max + 1024;
        struct entry *grown = realloc(opening->entry, max * sizeof(*grown));
        if (grown == NULL)
            return refuse(opening, "out of memory", "");
        opening->entry = grown;
        opening->entry_max = max;
    }
    opening->entry[opening->entry_count++] = entry;
    return true;
}

static bool read_vocabulary(struct opening *opening)
{
    struct json_reader reader;
    int64_t count = 0;

    json_reader_init(&reader, opening->parts.vocab.json, opening->parts.vocab.bytes);
    if (!json_enter(&reader, '{'))
        return refuse_json(opening, &reader, "vocab");
    while (json_more(&reader, '{', &count)) {
        struct entry entry;
        if (!json_key(&reader, &opening->decoded_next, &entry.spelling, &entry.bytes) ||
            !json_take_int(&reader, &entry.token))
            break;
        if (!add_entry(opening, entry))
            return false;
    }
    return reader.error == NULL || refuse_json(opening, &reader, "vocab");
}

static bool read_merge(struct opening *opening, struct json_reader *reader)
{
    const char *text[2] = {NULL, NULL};
    size_t bytes[2] = {0, 0};
    int64_t count = 0;
    char **target = &opening->decoded_next;

    if (json_peek(reader) == '"')
        return json_take_text(reader, target, &text[0], &bytes[0]) &&
               bpe_merge_line(opening->bpe, text[0], bytes[0], opening->error,
                              opening->error_bytes);
    if (!json_enter(reader, '['))
        return false;
    while (json_more(reader, '[', &count)) {
        if (count > 2)
            return refuse(opening, "a merge of more than two", "");
        if (!json_take_text(reader, target, &text[count - 1], &bytes[count - 1]))
            return false;
    }
    if (reader->error != NULL)
        return false;
    if (count < 2)
        return refuse(opening, "a merge of fewer than two", "");
    return bpe_merge_pair(opening->bpe, text[0], bytes[0], text[1], bytes[1], opening->error,
                          opening->error_bytes);
}

static bool read_merges(struct opening *opening)
{
    struct span merges = opening->parts.merges;
    struct json_reader reader;
    int64_t count = 0;

    json_reader_init(&reader, merges.json, merges.bytes);
    if (!json_enter(&reader, '['))
        return refuse_json(opening, &reader, "merges");
    while (json_more(&reader, '[', &count)) {
        const char *value;
        size_t bytes;
        if (!json_skip(&reader, &value, &bytes))
            return refuse_json(opening, &reader, "merges");
    }
    if (reader.error != NULL)
        return refuse_json(opening, &reader, "merges");
    if (count > 4 * (int64_t)SPM_TOKEN_MAX)
        return refuse(opening, "too many merges", "");
    if (!bpe_reserve(opening->bpe, (int32_t)count, opening->error, opening->error_bytes))
        return false;
    json_reader_init(&reader, merges.json, merges.bytes);
    json_enter(&reader, '[');
    for (count = 0; json_more(&reader, '[', &count);) {
        if (read_merge(opening, &reader))
            continue;
        return reader.error == NULL ? false : refuse_json(opening, &reader, "merges");
    }
    return reader.error == NULL || refuse_json(opening, &reader, "merges");
}

/* ---- tokens ---- */

/* The entries by id, each id one spelling; what follows the vocabulary's entries are added ones,
 * whose ids may be in it. */
static bool fill(struct opening *opening)
{
    size_t limit = SPREAD_MAX * opening->entry_count + SPREAD_MORE;
    int32_t token_count = 0;

    if (limit > SPM_TOKEN_MAX)
        limit = SPM_TOKEN_MAX;
    for (size_t i = 0; i < opening->entry_count; i++) {
        int32_t token = opening->entry[i].token;
        if (token < 0 || (size_t)token >= limit)
            return refuse(opening, "an id that is negative or far beyond the tokens", "");
        if (token >= token_count)
            token_count = token + 1;
    }
    if (token_count == 0)
        return refuse(opening, "an empty vocabulary", "");
    const char **spelling = calloc((size_t)token_count, sizeof(*spelling));
    size_t *bytes = calloc((size_t)token_count, sizeof(*bytes));
    bool good = (spelling != NULL && bytes != NULL) || refuse(opening, "out of memory", "");
    for (size_t i = 0; good && i < opening->entry_count; i++) {
        const struct entry *entry = &opening->entry[i];
        if (spelling[entry->token] != NULL &&
            (bytes[entry->token] != entry->bytes ||
             memcmp(spelling[entry->token], entry->spelling, entry->bytes) != 0))
            good = refuse(opening, "two tokens of one id", "");
        spelling[entry->token] = entry->spelling;
        bytes[entry->token] = entry->bytes;
    }
    good = good && bpe_set_tokens(opening->bpe, token_count, spelling, bytes, opening->error,
                                  opening->error_bytes);
    free(spelling);
    free(bytes);
    return good;
}

/* An added token's text and id. */
static bool added_entry(struct opening *opening, const cJSON *added, struct entry *entry)
{
    const cJSON *id = cJSON_GetObjectItemCaseSensitive(added, "id");

    entry->spelling = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(added, "content"));
    if (entry->spelling == NULL || entry->spelling[0] == '\0' || !cJSON_IsNumber(id) ||
        !(id->valuedouble >= 0 && id->valuedouble < SPM_TOKEN_MAX))
        return refuse(opening, "an added token without content or id", "");
    entry->bytes = strlen(entry->spelling);
    entry->token = (int32_t)id->valuedouble;
    return true;
}

static bool truth(const cJSON *json, const char *name)
{
    return cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(json, name));
}

static unsigned flags_of(const cJSON *added)
{
    return (truth(added, "special") ? SPECIAL_CONTROL : 0U) |
           (truth(added, "lstrip") ? SPECIAL_STRIP_LEFT : 0U) |
           (truth(added, "rstrip") ? SPECIAL_STRIP_RIGHT : 0U) |
           (truth(added, "single_word") ? SPECIAL_WORD : 0U);
}

/* A token that is looked for in normalised text is looked for in its normalised form. */
static bool add_normalized(struct opening *opening, const char *content, int32_t token,
                           unsigned flags)
{
    struct bpe *bpe = opening->bpe;
    struct normalized normalized;
    struct regex_scratch *scratch = regex_scratch_create();
    bool good = scratch != NULL && normalizer_run(&bpe->normalizer, scratch, content,
                                                  strlen(content), &normalized) == 0;

    regex_scratch_destroy(scratch);
    if (!good)
        return refuse(opening, "could not normalise an added token", "");
    good = normalized.bytes == 0 ||
           special_add(&bpe->normalized, normalized.text, normalized.bytes, token, flags);
    free(normalized.memory);
    return good || refuse(opening, "out of memory", "");
}

static bool set_added(struct opening *opening)
{
    struct bpe *bpe = opening->bpe;
    const cJSON *added;

    cJSON_ArrayForEach(added, opening->added)
    {
        struct entry entry;
        if (!added_entry(opening, added, &entry))
            return false;
        int32_t token = tokenizer_find(&bpe->base, entry.spelling, entry.bytes);
        unsigned flags = flags_of(added);
        if (token < 0)
            return refuse(opening, "two added tokens of one id", "");
        bpe->base.token_kind[token] = (flags & SPECIAL_CONTROL) != 0 ? TOKEN_CONTROL : TOKEN_USER;
        if (truth(added, "normalized")) {
            if (!add_normalized(opening, entry.spelling, token, flags))
                return false;
        } else if (!special_add(&bpe->base.special, entry.spelling, entry.bytes, token, flags)) {
            return refuse(opening, "out of memory", "");
        }
    }
    return true;
}

static bool add_added(struct opening *opening)
{
    const cJSON *added;

    if (opening->added != NULL && !cJSON_IsArray(opening->added) && !cJSON_IsNull(opening->added))
        return refuse(opening, "added_tokens is no list", "");
    cJSON_ArrayForEach(added, opening->added)
    {
        struct entry entry;
        if (!added_entry(opening, added, &entry) || !add_entry(opening, entry))
            return false;
    }
    return true;
}

static bool set_unknown(struct opening *opening)
{
    struct bpe *bpe = opening->bpe;
    struct json_reader reader;
    const char *name;
    size_t bytes;

    if (opening->parts.unknown.json == NULL || span_is(opening->parts.unknown, "null"))
        return true;
    json_reader_init(&reader, opening->parts.unknown.json, opening->parts.unknown.bytes);
    if (!json_take_text(&reader, &opening->decoded_next, &name, &bytes))
        return refuse(opening, "unk_token is no text", "");
    bpe->base.unknown = bpe->model.unknown = tokenizer_find(&bpe->base, name, bytes);
    return bpe->base.unknown >= 0 || refuse(opening, "unk_token is no token", "");
}

static bool read_tokens(struct opening *opening)
{
    if (!parse(opening, opening->parts.added, "added_tokens", &opening->added) ||
        !read_vocabulary(opening))
        return false;
    size_t vocabulary_count = opening->entry_count;
    if (!add_added(opening) || !fill(opening))
        return false;
    for (size_t i = 0; i < vocabulary_count; i++)
        bpe_inside(opening->bpe, opening->entry[i].token);
    return set_unknown(opening);
}

/* ---- the other parts ---- */

typedef bool (*read_part)(struct bpe *bpe, const struct cJSON *json, char *error,
                          size_t error_bytes);

static bool read_span(struct opening *opening, struct span span, const char *name, read_part read)
{
    char detail[256] = "";
    cJSON *tree;

    if (!parse(opening, span, name, &tree))
        return false;
    bool good = read(opening->bpe, tree, detail, sizeof(detail));
    cJSON_Delete(tree);
    return good || refuse(opening, detail, "");
}

static bool read_all(struct opening *opening, const char *json, size_t json_bytes)
{
    const struct parts *parts = &opening->parts;

    return find_parts(opening, json, json_bytes) && check_model(opening) &&
           read_span(opening, parts->normalizer, "normalizer", json_read_normalizer) &&
           read_span(opening, parts->splitter, "pre_tokenizer", json_read_splitter) &&
           read_tokens(opening) && read_merges(opening) && set_added(opening) &&
           read_span(opening, parts->decoder, "decoder", json_read_decoder) &&
           read_span(opening, parts->frame, "post_processor", json_read_frame);
}

static int32_t find_name(const struct tokenizer *base, const char *name)
{
    return name == NULL ? -1 : tokenizer_find(base, name, strlen(name));
}

static void use_hints(struct tokenizer *base, const struct tokenizer_hints *hints)
{
    base->bos = find_name(base, hints->bos);
    base->eos = find_name(base, hints->eos);
    if (base->bos < 0 && hints->bos_count > 0 && hints->bos_token >= 0 &&
        hints->bos_token < base->token_count)
        base->bos = hints->bos_token;
    if (base->bos < 0 && base->before.count > 0)
        base->bos = base->before.token[0];
    for (int32_t i = 0; i < hints->end_count; i++) {
        int32_t token = hints->end[i];
        if (token < 0 || token >= base->token_count)
            continue;
        base->token_ends[token] = 1;
        if (base->eos < 0)
            base->eos = token;
    }
}

struct tokenizer *tokenizer_open_json(const char *json, size_t json_bytes,
                                      const struct tokenizer_hints *hints, char *error,
                                      size_t error_bytes)
{
    static const struct tokenizer_hints none;
    struct opening opening = {.error = error, .error_bytes = error_bytes};

    opening.bpe = bpe_new(error, error_bytes);
    if (opening.bpe == NULL)
        return NULL;
    opening.decoded = opening.decoded_next = malloc(2 * json_bytes + 1);
    bool good = opening.decoded != NULL || refuse(&opening, "out of memory", "");
    good = good && read_all(&opening, json, json_bytes);
    if (good) {
        use_hints(&opening.bpe->base, hints == NULL ? &none : hints);
        good = bpe_ready(opening.bpe, error, error_bytes);
    }
    free(opening.decoded);
    free(opening.entry);
    cJSON_Delete(opening.added);
    if (good)
        return &opening.bpe->base;
    tokenizer_free(&opening.bpe->base);
    return NULL;
}
