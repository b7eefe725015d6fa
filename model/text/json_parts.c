/* The components of tokenizer.json around its model: tables of names, and what each one sets. */
#include "model/text/json_parts.h"

#include "model/text/spm.h"

#include <cjson/cJSON.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Where a component is being read, and what went wrong. */
struct reading {
    struct bpe *bpe;
    const char *part; /* "normalizer", ... */
    char *error;
    size_t error_bytes;
    int depth;        /* of Sequences in each other */
    bool after_bytes; /* pre-tokenizers: ByteLevel has been */
    bool fused;       /* decoders: Fuse has been */
};

enum { SEQUENCE_DEPTH_MAX = 8 };

typedef bool (*read_component)(struct reading *reading, const struct cJSON *json);

struct component {
    const char *type;
    read_component read;
};

static bool refuse(struct reading *reading, const char *what, const char *name)
{
    snprintf(reading->error, reading->error_bytes, "%s: %s%.60s", reading->part, what, name);
    return false;
}

/* ---- members ---- */

static const char *member_text(const struct cJSON *json, const char *name)
{
    return cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(json, name));
}

static bool member_truth(const struct cJSON *json, const char *name, bool fallback)
{
    const cJSON *member = cJSON_GetObjectItemCaseSensitive(json, name);

    return cJSON_IsBool(member) ? cJSON_IsTrue(member) : fallback;
}

/* The pattern of a Split or Replace; NULL: refused. */
static struct regex *member_pattern(struct reading *reading, const struct cJSON *json)
{
    const cJSON *pattern = cJSON_GetObjectItemCaseSensitive(json, "pattern");
    const char *plain = cJSON_GetStringValue(pattern); /* as some files have it */
    char reason[200] = "a pattern that is neither String nor Regex";
    struct regex *regex = NULL;

    if (plain == NULL)
        plain = member_text(pattern, "String");
    const char *expression = member_text(pattern, "Regex");
    if (plain != NULL)
        regex = regex_create_plain(plain, strlen(plain), reason, sizeof(reason));
    else if (expression != NULL)
        regex = regex_create(expression, strlen(expression), reason, sizeof(reason));
    if (regex == NULL)
        snprintf(reading->error, reading->error_bytes, "%s: %s", reading->part, reason);
    return regex;
}

/* A component by its type; the elements of a Sequence one after the other. */
static bool read_by_type(struct reading *reading, const struct cJSON *json,
                         const struct component *known, const char *list_name)
{
    const char *type = member_text(json, "type");

    if (type == NULL)
        return refuse(reading, "a component without a type", "");
    if (strcmp(type, "Sequence") == 0) {
        const cJSON *list = cJSON_GetObjectItemCaseSensitive(json, list_name);
        const cJSON *element;
        bool good = true;
        if (!cJSON_IsArray(list) || ++reading->depth > SEQUENCE_DEPTH_MAX)
            return refuse(reading, "a Sequence without a list, or nested too deeply", "");
        cJSON_ArrayForEach(element, list)
        {
            good = good && read_by_type(reading, element, known, list_name);
        }
        reading->depth--;
        return good;
    }
    for (; known->type != NULL; known++) {
        if (strcmp(known->type, type) == 0)
            return known->read(reading, json);
    }
    return refuse(reading, "unknown type ", type);
}

/* ---- normalizer ---- */

static struct normalizer_step *add_normalizer(struct reading *reading, enum normalizer_kind kind)
{
    struct normalizer *normalizer = &reading->bpe->normalizer;

    if (normalizer->step_count == NORMALIZER_STEP_MAX) {
        refuse(reading, "too many steps", "");
        return NULL;
    }
    struct normalizer_step *step = &normalizer->step[normalizer->step_count++];
    *step = (struct normalizer_step){.kind = kind};
    return step;
}

static bool read_form(struct reading *reading, const struct cJSON *json)
{
    static const struct {
        const char *type;
        enum normalizer_kind kind;
    } form[] = {
        {"NFC", NORMALIZE_NFC},
        {"NFD", NORMALIZE_NFD},
        {"NFKC", NORMALIZE_NFKC},
        {"NFKD", NORMALIZE_NFKD},
        {"Lowercase", NORMALIZE_LOWERCASE},
        {"StripAccents", NORMALIZE_STRIP_ACCENTS},
    };
    const char *type = member_text(json, "type");
    size_t at = 0;

    while (strcmp(form[at].type, type) != 0)
        at++;
    return add_normalizer(reading, form[at].kind) != NULL;
}

static bool read_strip(struct reading *reading, const struct cJSON *json)
{
    struct normalizer_step *step = add_normalizer(reading, NORMALIZE_STRIP);

    if (step == NULL)
        return false;
    step->left = member_truth(json, "strip_left", true);
    step->right = member_truth(json, "strip_right", true);
    return true;
}

static bool set_content(struct reading *reading, struct normalizer_step *step, const char *content)
{
    if (content == NULL)
        return refuse(reading, "a step without its text", "");
    step->content = strdup(content);
    step->content_bytes = strlen(content);
    return step->content != NULL || refuse(reading, "out of memory", "");
}

static bool read_replace(struct reading *reading, const struct cJSON *json)
{
    struct normalizer_step *step = add_normalizer(reading, NORMALIZE_REPLACE);

    if (step == NULL || !set_content(reading, step, member_text(json, "content")))
        return false;
    step->regex = member_pattern(reading, json);
    return step->regex != NULL;
}

static bool read_prepend(struct reading *reading, const struct cJSON *json)
{
    struct normalizer_step *step = add_normalizer(reading, NORMALIZE_PREPEND);

    return step != NULL && set_content(reading, step, member_text(json, "prepend"));
}

static const struct component normalizer_known[] = {
    {"NFC", read_form},    {"NFD", read_form},        {"NFKC", read_form},
    {"NFKD", read_form},   {"Lowercase", read_form},  {"StripAccents", read_form},
    {"Strip", read_strip}, {"Replace", read_replace}, {"Prepend", read_prepend},
    {NULL, NULL},
};

bool json_read_normalizer(struct bpe *bpe, const struct cJSON *json, char *error,
                          size_t error_bytes)
{
    struct reading reading = {
        .bpe = bpe, .part = "normalizer", .error = error, .error_bytes = error_bytes};

    return json == NULL || cJSON_IsNull(json) ||
           read_by_type(&reading, json, normalizer_known, "normalizers");
}

/* ---- pre-tokenizer ---- */

static struct splitter_step *add_splitter(struct reading *reading, enum splitter_kind kind,
                                          enum splitter_behavior behavior)
{
    struct splitter *splitter = &reading->bpe->splitter;

    if (reading->after_bytes || splitter->step_count == SPLITTER_STEP_MAX) {
        refuse(reading, reading->after_bytes ? "a step after ByteLevel" : "too many steps", "");
        return NULL;
    }
    struct splitter_step *step = &splitter->step[splitter->step_count++];
    *step = (struct splitter_step){.kind = kind, .behavior = behavior};
    return step;
}

static bool add_pattern(struct reading *reading, const char *pattern,
                        enum splitter_behavior behavior, bool invert)
{
    char reason[200];
    struct splitter_step *step = add_splitter(reading, SPLIT_PATTERN, behavior);

    if (step == NULL)
        return false;
    step->invert = invert;
    step->regex = regex_create(pattern, strlen(pattern), reason, sizeof(reason));
    return step->regex != NULL || refuse(reading, reason, "");
}

static bool read_behavior(struct reading *reading, const char *name,
                          enum splitter_behavior *behavior)
{
    static const char *const known[] = {
        [SPLIT_ISOLATED] = "Isolated",
        [SPLIT_REMOVED] = "Removed",
        [SPLIT_CONTIGUOUS] = "Contiguous",
        [SPLIT_MERGED_WITH_PREVIOUS] = "MergedWithPrevious",
        [SPLIT_MERGED_WITH_NEXT] = "MergedWithNext",
    };

    for (size_t i = 0; name != NULL && i < sizeof(known) / sizeof(known[0]); i++) {
        if (strcmp(known[i], name) == 0) {
            *behavior = (enum splitter_behavior)i;
            return true;
        }
    }
    return refuse(reading, "unknown behavior ", name == NULL ? "null" : name);
}

static bool read_split(struct reading *reading, const struct cJSON *json)
{
    enum splitter_behavior behavior;

    if (!read_behavior(reading, member_text(json, "behavior"), &behavior))
        return false;
    struct splitter_step *step = add_splitter(reading, SPLIT_PATTERN, behavior);
    if (step == NULL)
        return false;
    step->invert = member_truth(json, "invert", false);
    step->regex = member_pattern(reading, json);
    return step->regex != NULL;
}

static struct splitter_step *add_prefix(struct reading *reading, const char *content)
{
    struct splitter_step *step = add_splitter(reading, SPLIT_PREFIX, SPLIT_ISOLATED);
    size_t bytes = strlen(content);

    if (step == NULL)
        return NULL;
    if (bytes == 0 || bytes > sizeof(step->content)) {
        refuse(reading, "a replacement that is no character", "");
        return NULL;
    }
    memcpy(step->content, content, bytes);
    step->content_bytes = bytes;
    return step;
}

static bool read_byte_level(struct reading *reading, const struct cJSON *json)
{
    if (member_truth(json, "add_prefix_space", true) && add_prefix(reading, " ") == NULL)
        return false;
    if (member_truth(json, "use_regex", true) &&
        !add_pattern(reading,
                     "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+"
                     "|\\s+(?!\\S)|\\s+",
                     SPLIT_ISOLATED, false))
        return false;
    reading->after_bytes = true;
    reading->bpe->model.byte_level = true;
    return true;
}

static bool read_digits(struct reading *reading, const struct cJSON *json)
{
    bool single = member_truth(json, "individual_digits", false);

    return add_splitter(reading, SPLIT_DIGITS, single ? SPLIT_ISOLATED : SPLIT_CONTIGUOUS) != NULL;
}

static bool read_punctuation(struct reading *reading, const struct cJSON *json)
{
    const char *name = member_text(json, "behavior");
    enum splitter_behavior behavior;

    /* Unicode's punctuation and the ASCII signs that Unicode calls symbols. */
    return read_behavior(reading, name == NULL ? "Isolated" : name, &behavior) &&
           add_pattern(reading, "[\\p{P}$+<=>^`|~]", behavior, false);
}

static bool read_space_split(struct reading *reading, const struct cJSON *json)
{
    (void)json;
    return add_splitter(reading, SPLIT_SPACE, SPLIT_REMOVED) != NULL;
}

static bool read_space(struct reading *reading, const struct cJSON *json)
{
    (void)json;
    return add_pattern(reading, "\\w+|[^\\w\\s]+", SPLIT_REMOVED, true);
}

static bool read_metaspace(struct reading *reading, const struct cJSON *json)
{
    const char *mark = member_text(json, "replacement"), *scheme;
    bool always = member_truth(json, "add_prefix_space", true); /* older files */

    scheme = member_text(json, "prepend_scheme");
    if (mark == NULL)
        return refuse(reading, "Metaspace without its replacement", "");
    if (scheme == NULL)
        scheme = always ? "always" : "never";
    if (strcmp(scheme, "always") != 0 && strcmp(scheme, "first") != 0 &&
        strcmp(scheme, "never") != 0)
        return refuse(reading, "unknown prepend_scheme ", scheme);
    struct splitter_step *step = add_prefix(reading, mark);
    if (step == NULL)
        return false;
    step->kind = SPLIT_MARK;
    if (strcmp(scheme, "never") != 0) {
        step = add_prefix(reading, mark);
        if (step == NULL)
            return false;
        step->begins = strcmp(scheme, "first") == 0;
    }
    if (!member_truth(json, "split", true))
        return true;
    step = add_splitter(reading, SPLIT_PATTERN, SPLIT_MERGED_WITH_NEXT);
    if (step == NULL)
        return false;
    char reason[200];
    step->regex = regex_create_plain(mark, strlen(mark), reason, sizeof(reason));
    return step->regex != NULL || refuse(reading, reason, "");
}

static const struct component splitter_known[] = {
    {"Split", read_split},
    {"ByteLevel", read_byte_level},
    {"Digits", read_digits},
    {"Punctuation", read_punctuation},
    {"WhitespaceSplit", read_space_split},
    {"Whitespace", read_space},
    {"Metaspace", read_metaspace},
    {NULL, NULL},
};

bool json_read_splitter(struct bpe *bpe, const struct cJSON *json, char *error, size_t error_bytes)
{
    struct reading reading = {
        .bpe = bpe, .part = "pre_tokenizer", .error = error, .error_bytes = error_bytes};

    return json == NULL || cJSON_IsNull(json) ||
           read_by_type(&reading, json, splitter_known, "pretokenizers");
}

/* ---- decoder ---- */

static bool decode_bytes(struct reading *reading, const struct cJSON *json)
{
    (void)json;
    reading->bpe->base.byte_stream = true;
    return true;
}

static bool set_mark(struct reading *reading, const char *mark, const char *space)
{
    struct bpe *bpe = reading->bpe;
    size_t mark_bytes = mark == NULL ? 0 : strlen(mark);
    size_t space_bytes = space == NULL ? 0 : strlen(space);

    if (bpe->mark_bytes > 0 || mark_bytes == 0 || mark_bytes > BPE_MARK_BYTES_MAX ||
        space_bytes > mark_bytes)
        return refuse(reading, "a replacement that is not one character by a shorter one", "");
    memcpy(bpe->mark, mark, mark_bytes);
    bpe->mark_bytes = mark_bytes;
    if (space_bytes > 0)
        memcpy(bpe->space, space, space_bytes);
    bpe->space_bytes = space_bytes;
    return true;
}

static bool decode_replace(struct reading *reading, const struct cJSON *json)
{
    const cJSON *pattern = cJSON_GetObjectItemCaseSensitive(json, "pattern");

    if (reading->fused)
        return refuse(reading, "Replace after Fuse", "");
    return set_mark(reading, member_text(pattern, "String"), member_text(json, "content"));
}

static bool decode_fallback(struct reading *reading, const struct cJSON *json)
{
    struct tokenizer *base = &reading->bpe->base;

    (void)json;
    for (int32_t i = 0; i < base->token_count; i++) {
        size_t bytes;
        const char *spelling = tokenizer_spelling(base, i, &bytes);
        if (base->token_kind[i] == TOKEN_NORMAL && bpe_byte_of(spelling, bytes) >= 0)
            base->token_kind[i] = TOKEN_BYTE;
    }
    return true;
}

static bool decode_fuse(struct reading *reading, const struct cJSON *json)
{
    (void)json;
    reading->fused = true;
    return true;
}

/* One space at the start of the whole text, as SentencePiece's kinds have it. */
static bool decode_strip(struct reading *reading, const struct cJSON *json)
{
    const char *content = member_text(json, "content");
    double start = cJSON_GetNumberValue(cJSON_GetObjectItemCaseSensitive(json, "start"));
    double stop = cJSON_GetNumberValue(cJSON_GetObjectItemCaseSensitive(json, "stop"));

    if (!reading->fused || content == NULL || strcmp(content, " ") != 0 || !(stop == 0) ||
        !(start == 0 || start == 1))
        return refuse(reading, "a Strip of other than one leading space of the whole text", "");
    reading->bpe->base.space_prefix = start == 1;
    return true;
}

static bool decode_metaspace(struct reading *reading, const struct cJSON *json)
{
    const char *scheme = member_text(json, "prepend_scheme");
    bool always = member_truth(json, "add_prefix_space", true);

    reading->bpe->base.space_prefix = scheme == NULL ? always : strcmp(scheme, "never") != 0;
    return set_mark(reading, member_text(json, "replacement"), " ");
}

static const struct component decoder_known[] = {
    {"ByteLevel", decode_bytes},
    {"Replace", decode_replace},
    {"Fuse", decode_fuse},
    {"ByteFallback", decode_fallback},
    {"Strip", decode_strip},
    {"Metaspace", decode_metaspace},
    {NULL, NULL},
};

bool json_read_decoder(struct bpe *bpe, const struct cJSON *json, char *error, size_t error_bytes)
{
    struct reading reading = {
        .bpe = bpe, .part = "decoder", .error = error, .error_bytes = error_bytes};

    if (json == NULL || cJSON_IsNull(json))
        return refuse(&reading, "there is none", "");
    if (!read_by_type(&reading, json, decoder_known, "decoders"))
        return false;
    if (bpe->base.byte_stream && (bpe->mark_bytes > 0 || bpe->base.space_prefix))
        return refuse(&reading, "ByteLevel together with others", "");
    return true;
}

/* ---- post-processor ---- */

static bool add_framing(struct reading *reading, struct token_frame *frame, const struct cJSON *id)
{
    int32_t count = reading->bpe->base.token_count;

    if (!cJSON_IsNumber(id) || !(id->valuedouble >= 0 && id->valuedouble < count))
        return refuse(reading, "a special token that is none of the vocabulary", "");
    if (frame->count == TOKEN_FRAME_MAX)
        return refuse(reading, "too many special tokens", "");
    frame->token[frame->count++] = (int32_t)id->valuedouble;
    return true;
}

static bool add_special(struct reading *reading, struct token_frame *frame,
                        const struct cJSON *table, const char *name)
{
    const cJSON *special = cJSON_GetObjectItemCaseSensitive(table, name == NULL ? "" : name);
    const cJSON *ids = cJSON_GetObjectItemCaseSensitive(special, "ids"), *id;
    bool good = true;

    if (!cJSON_IsArray(ids))
        return refuse(reading, "a template with an unknown special token", "");
    cJSON_ArrayForEach(id, ids)
    {
        good = good && add_framing(reading, frame, id);
    }
    return good;
}

/* `single` is a list of special tokens around one sequence A. */
static bool frame_template(struct reading *reading, const struct cJSON *json)
{
    const cJSON *list = cJSON_GetObjectItemCaseSensitive(json, "single"), *element;
    const cJSON *table = cJSON_GetObjectItemCaseSensitive(json, "special_tokens");
    struct tokenizer *base = &reading->bpe->base;
    struct token_frame *frame = &base->before;
    bool good = true;

    if (!cJSON_IsArray(list) || base->before.count + base->after.count > 0)
        return refuse(reading, "a template without a list, or a second one", "");
    cJSON_ArrayForEach(element, list)
    {
        const cJSON *special = cJSON_GetObjectItemCaseSensitive(element, "SpecialToken");
        if (special != NULL)
            good = good && add_special(reading, frame, table, member_text(special, "id"));
        else if (cJSON_GetObjectItemCaseSensitive(element, "Sequence") != NULL &&
                 frame == &base->before)
            frame = &base->after;
        else
            return refuse(reading, "a template that is not one sequence among tokens", "");
    }
    return good && (frame == &base->after || refuse(reading, "a template without text", ""));
}

/* [CLS] before and [SEP] after, each given as a pair of name and id. */
static bool frame_pair(struct reading *reading, const struct cJSON *json)
{
    struct tokenizer *base = &reading->bpe->base;
    const cJSON *before = cJSON_GetObjectItemCaseSensitive(json, "cls");
    const cJSON *after = cJSON_GetObjectItemCaseSensitive(json, "sep");

    if (base->before.count + base->after.count > 0)
        return refuse(reading, "a second template", "");
    return add_framing(reading, &base->before, cJSON_GetArrayItem(before, 1)) &&
           add_framing(reading, &base->after, cJSON_GetArrayItem(after, 1));
}

static bool frame_nothing(struct reading *reading, const struct cJSON *json)
{
    (void)reading;
    (void)json;
    return true;
}

static const struct component frame_known[] = {
    {"TemplateProcessing", frame_template},
    {"ByteLevel", frame_nothing},
    {"RobertaProcessing", frame_pair},
    {"BertProcessing", frame_pair},
    {NULL, NULL},
};

bool json_read_frame(struct bpe *bpe, const struct cJSON *json, char *error, size_t error_bytes)
{
    struct reading reading = {
        .bpe = bpe, .part = "post_processor", .error = error, .error_bytes = error_bytes};

    return json == NULL || cJSON_IsNull(json) ||
           read_by_type(&reading, json, frame_known, "processors");
}
