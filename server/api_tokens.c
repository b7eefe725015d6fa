/* /tokenize and /detokenize: the model's vocabulary for clients that have none of their own. */
#include "server/api.h"
#include "server/config.h"
#include "server/engine.h"
#include "server/fields.h"
#include "server/metrics.h"

#include "model/text/detokenizer.h"
#include "model/text/tokenizer.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* Longer texts would hold an HTTP thread, and with it the streams of its connections. */
enum { TEXT_BYTES_MAX = 4 << 20 };

struct tokenize {
    struct json_value model;
    struct json_value prompt;
    bool add_special;
    bool strings;
};

struct detokenize {
    struct json_value model;
    struct json_value tokens;
};

#define MEMBER(name) offsetof(struct tokenize, name)
static const struct field tokenize_field[] = {
    {"model", FIELD_STRING, MEMBER(model), 0, "", 0, 0, "", "a served name"},
    {"prompt", FIELD_STRING, MEMBER(prompt), 0, "", 0, 0, "", "the text; required"},
    {"add_special_tokens", FIELD_BOOL, MEMBER(add_special), 0, "true", 0, 0, "",
     "put the model's first token in front"},
    {"return_token_strs", FIELD_BOOL, MEMBER(strings), 0, "false", 0, 0, "",
     "also give the tokens as the vocabulary spells them"},
    {"messages", FIELD_REFUSED, 0, 0, "", 0, 0, "", "this version has no chat templates"},
    {"chat_template", FIELD_REFUSED, 0, 0, "", 0, 0, "", "this version has no chat templates"},
    {"tools", FIELD_REFUSED, 0, 0, "", 0, 0, "", "this version has no chat templates"},
};
#undef MEMBER
#define MEMBER(name) offsetof(struct detokenize, name)
static const struct field detokenize_field[] = {
    {"model", FIELD_STRING, MEMBER(model), 0, "", 0, 0, "", "a served name"},
    {"tokens", FIELD_VALUE, MEMBER(tokens), 0, "", 0, 0, "a list of token ids",
     "the ids; required"},
};
#undef MEMBER
enum {
    TOKENIZE_FIELDS = sizeof tokenize_field / sizeof tokenize_field[0],
    DETOKENIZE_FIELDS = sizeof detokenize_field / sizeof detokenize_field[0],
};

static bool missing(struct stream_error *error, const char *name)
{
    *error = stream_error_make(400, "missing_required_parameter", name,
                               "Missing required parameter: '%s'.", name);
    return false;
}

static bool out_of_memory(struct stream_error *error)
{
    *error = stream_error_make(503, "out_of_memory", NULL, "There is no memory for this request.");
    return false;
}

static bool parse(struct exchange *exchange, const struct field *field, int32_t field_count,
                  void *target, struct stream_error *error)
{
    struct json_value object;
    size_t bytes;
    const char *body = exchange_body(exchange, &bytes);

    fields_preset(field, field_count, target);
    return fields_parse(body, bytes, &object, error) &&
           fields_read(field, field_count, &object, "", target, error) &&
           api_model_check(exchange_config(exchange), (struct json_value *)target, error);
}

static void write_spellings(struct json *body, const struct tokenizer *tokenizer,
                            const int32_t *token, int64_t count)
{
    json_raw(body, "[");
    for (int64_t i = 0; i < count; i++) {
        size_t bytes;
        const char *spelling = tokenizer_spelling(tokenizer, token[i], &bytes);
        if (i > 0)
            json_raw(body, ",");
        json_string(body, spelling, bytes);
    }
    json_raw(body, "]");
}

static bool tokenize(struct exchange *exchange, struct json *body, struct stream_error *error)
{
    struct tokenize request = {0};
    struct model *model = engine_model(exchange_engine(exchange));
    const struct tokenizer *tokenizer = model_tokenizer(model);
    int32_t *token;

    if (!parse(exchange, tokenize_field, TOKENIZE_FIELDS, &request, error))
        return false;
    if (request.prompt.text == NULL)
        return missing(error, "prompt");
    if (request.prompt.bytes > TEXT_BYTES_MAX)
        return fields_refuse(error, "prompt", "'prompt' must be at most %d bytes, got %zu.",
                             TEXT_BYTES_MAX, request.prompt.bytes);
    char *text = malloc(request.prompt.bytes);
    if (text == NULL)
        return out_of_memory(error);
    size_t bytes = json_text(&request.prompt, text);
    unsigned flags = TOKENIZER_PARSE_SPECIAL | (request.add_special ? TOKENIZER_ADD_SPECIAL : 0);
    int64_t count = tokenizer_encode(tokenizer, text, bytes, flags, &token);
    free(text);
    if (count == -EOVERFLOW)
        return fields_refuse(error, "prompt",
                             "'prompt' has a run that the model's pattern takes "
                             "too long for.");
    if (count < 0)
        return out_of_memory(error);
    json_print(body, "{\"count\":%lld,\"max_model_len\":%d,\"tokens\":", (long long)count,
               model_info(model)->context_max);
    json_ints(body, token, (int32_t)count);
    json_raw(body, ",\"token_strs\":");
    if (request.strings)
        write_spellings(body, tokenizer, token, count);
    else
        json_raw(body, "null");
    json_raw(body, "}");
    free(token);
    return true;
}

/* The text of all tokens, special ones by their names, as the model's own library decodes. */
static char *decode(const struct tokenizer *tokenizer, const int32_t *token, int64_t count,
                    size_t *text_bytes)
{
    struct detokenizer detokenizer;
    size_t max = DETOKENIZER_TEXT_MAX;

    for (int64_t i = 0; i < count; i++)
        max += 3 * tokenizer_bytes(tokenizer, token[i], NULL, 0) + DETOKENIZER_TEXT_MAX;
    char *text = malloc(max);
    if (text == NULL)
        return NULL;
    *text_bytes = 0;
    detokenizer_init(&detokenizer, tokenizer, false);
    bool fits = true;
    for (int64_t i = 0; i < count; i++)
        fits &= detokenizer_put(&detokenizer, token[i], text, text_bytes, max);
    fits &= detokenizer_end(&detokenizer, text, text_bytes, max);
    if (fits)
        return text;
    free(text);
    return NULL;
}

static bool detokenize(struct exchange *exchange, struct json *body, struct stream_error *error)
{
    struct detokenize request = {0};
    struct model *model = engine_model(exchange_engine(exchange));
    const struct tokenizer *tokenizer = model_tokenizer(model);
    int32_t *token;
    int64_t count;
    size_t bytes;

    if (!parse(exchange, detokenize_field, DETOKENIZE_FIELDS, &request, error))
        return false;
    if (request.tokens.text == NULL)
        return missing(error, "tokens");
    if (request.tokens.kind != JSON_LIST)
        return fields_wrong_type(error, "tokens", "a list of token ids", &request.tokens);
    if (!fields_tokens(&request.tokens, "tokens", tokenizer_count(tokenizer), TEXT_BYTES_MAX / 4,
                       &token, &count, error))
        return false;
    if (count > TEXT_BYTES_MAX / 4) {
        free(token);
        return fields_refuse(error, "tokens", "'tokens' must hold at most %d ids, got %lld.",
                             TEXT_BYTES_MAX / 4, (long long)count);
    }
    char *text = decode(tokenizer, token, count, &bytes);
    free(token);
    if (text == NULL)
        return out_of_memory(error);
    json_raw(body, "{\"prompt\":");
    json_string(body, text, bytes);
    json_raw(body, "}");
    free(text);
    return true;
}

typedef bool endpoint(struct exchange *exchange, struct json *body, struct stream_error *error);

static void answer(struct exchange *exchange, endpoint *work)
{
    struct stream_error error;
    struct json body = {0};

    if (model_tokenizer(engine_model(exchange_engine(exchange))) == NULL) {
        error =
            stream_error_make(400, "unsupported_value", "model", "This model has no vocabulary.");
        exchange_error(exchange, &error);
    } else if (work(exchange, &body, &error)) {
        exchange_json(exchange, &body);
    } else {
        json_release(&body);
        exchange_error(exchange, &error);
    }
}

void api_tokenize(struct exchange *exchange)
{
    answer(exchange, tokenize);
}

void api_detokenize(struct exchange *exchange)
{
    answer(exchange, detokenize);
}

void api_tokens_document(struct json *text)
{
    json_raw(text, "| field | takes | default | meaning |\n|---|---|---|---|\n");
    fields_document(text, tokenize_field, TOKENIZE_FIELDS, "");
    fields_document(text, detokenize_field + 1, DETOKENIZE_FIELDS - 1, "");
}
