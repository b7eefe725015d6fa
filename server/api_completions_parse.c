/* Reading POST /v1/completions: the table of its fields, what a table cannot say, and jobs. */
#include "server/api_completions.h"

#include "server/api.h"
#include "server/defaults.h"
#include "server/engine.h"
#include "server/fields.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <assert.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

enum {
    STOP_COPY_BYTES = 32 << 20,             /* stop strings times prompts */
    OWN_STOPS_MAX = SAMPLING_STOP_MAX - 16, /* the model's own ends need the rest */
};

#define AT(member) offsetof(struct completion, member), 0
#define GIVEN(member)                                                                              \
    offsetof(struct completion, member), offsetof(struct completion, member##_given)
#define SAMPLING(member) offsetof(struct completion, sampling.member), 0
#define NONE             0, 0
#define INT32            -2147483648.0, 2147483647.0

#define SAMPLING_LINE(type, field, fallback, least, greatest, help)                                \
    {#field, FIELD_SAMPLING_TYPE_##type, SAMPLING(field), #fallback, least, greatest, "", help},
#define REFUSED(name, reason)                                                                      \
    {                                                                                              \
        name, FIELD_REFUSED, NONE, "", 0, 0, "", reason                                            \
    }

static const struct field completion_field[] = {
    {"model", FIELD_STRING, AT(model), "", 0, 0, "", "a served name; the first one when absent"},
    {"prompt", FIELD_VALUE, AT(prompt), "", 0, 0,
     "a string, a list of strings, a list of token ids or a list of such lists",
     "what to continue; required"},
    {"max_tokens", FIELD_INT32, GIVEN(max_tokens), "16", 0, 2147483647, "",
     "tokens to put out at most; 0 only with `echo`"},
    {"max_completion_tokens", FIELD_INT32, GIVEN(max_completion_tokens), "", 1, 2147483647, "",
     "the chat endpoint's name of `max_tokens`, which counts before it"},
    {"n", FIELD_INT32, AT(n), "1", 1, 16384, "", "answers to each prompt"},
    {"best_of", FIELD_INT32, GIVEN(best_of), "", 1, 16384, "", "must equal `n`"},
    {"stream", FIELD_BOOL, AT(stream), "false", 0, 0, "", "send events as tokens come"},
    {"stream_options", FIELD_VALUE, AT(stream_options), "", 0, 0, "an object", "with `stream`"},
    {"echo", FIELD_BOOL, AT(echo), "false", 0, 0, "", "put the prompt in front of the text"},
    {"logprobs", FIELD_INT32, GIVEN(logprobs), "", 0, SAMPLING_TOP_MAX, "",
     "log-probabilities of the tokens and of this many likeliest ones"},
    SAMPLING_PARAMETERS(SAMPLING_LINE){
        "logit_bias", FIELD_VALUE, AT(logit_bias), "", 0, 0, "an object",
        "token id to a number from -100 to 100 that is added to its logit"},
    {"seed", FIELD_INT64, GIVEN(seed), "", 0, 0, "",
     "makes draws repeatable; answer i uses seed + i; -1 is none"},
    {"stop", FIELD_VALUE, AT(stop), "", 0, 0, "a string or a list of strings",
     "text that ends an answer; it is not part of it"},
    {"stop_token_ids", FIELD_VALUE, AT(stop_token_ids), "", 0, 0, "a list of token ids",
     "tokens that end an answer"},
    {"include_stop_str_in_output", FIELD_BOOL, AT(keep_stop), "false", 0, 0, "",
     "leave what stopped an answer in its text"},
    {"ignore_eos", FIELD_BOOL, AT(ignore_eos), "false", 0, 0, "",
     "go on behind the model's end token"},
    {"skip_special_tokens", FIELD_BOOL, AT(skip_special), "true", 0, 0, "",
     "leave special tokens out of the text"},
    {"add_special_tokens", FIELD_BOOL, AT(add_special), "true", 0, 0, "",
     "put the model's first token before prompts of text"},
    {"return_token_ids", FIELD_BOOL, AT(return_token_ids), "false", 0, 0, "",
     "add `prompt_token_ids` and `token_ids` to choices"},
    {"return_tokens_as_token_ids", FIELD_BOOL, AT(tokens_as_ids), "false", 0, 0, "",
     "spell tokens in `logprobs` as `token_id:N`"},
    {"priority", FIELD_INT32, AT(priority), "0", INT32, "",
     "lower runs earlier; the header X-Vllm-Priority counts before it"},
    {"cache_salt", FIELD_STRING, AT(cache_salt), "", 0, 0, "",
     "requests of different salts share no cached prefixes"},
    {"request_id", FIELD_STRING, AT(request_id), "", 0, 0, "",
     "the id to use when there is no x-request-id header"},
    {"response_format", FIELD_VALUE, AT(response_format), "", 0, 0, "an object",
     "only {\"type\": \"text\"}"},
    {"user", FIELD_IGNORED, NONE, "", 0, 0, "", "nothing"},
    {"spaces_between_special_tokens", FIELD_IGNORED, NONE, "", 0, 0, "", "nothing"},
    REFUSED("suffix", "this model has no fill-in-the-middle tokens"),
    REFUSED("prompt_embeds", "only text and token ids are taken"),
    REFUSED("prompt_logprobs", "use echo with logprobs"),
    REFUSED("logprob_token_ids", "this version reports the likeliest tokens only"),
    REFUSED("use_beam_search", "this version has no beam search"),
    {"length_penalty", FIELD_REFUSED, NONE, "1", 0, 0, "", "this version has no beam search"},
    REFUSED("early_stopping", "this version has no beam search"),
    REFUSED("structured_outputs", "this version has no structured output"),
    REFUSED("guided_json", "this version has no structured output"),
    REFUSED("guided_regex", "this version has no structured output"),
    REFUSED("guided_choice", "this version has no structured output"),
    REFUSED("guided_grammar", "this version has no structured output"),
    REFUSED("guided_decoding_backend", "this version has no structured output"),
    REFUSED("guided_whitespace_pattern", "this version has no structured output"),
    REFUSED("grammar", "this version has no structured output"),
    REFUSED("json_schema", "this version has no structured output"),
    REFUSED("logits_processors", "code is not taken from requests"),
    REFUSED("allowed_token_ids", "this version has logit_bias only"),
    REFUSED("bad_words", "this version has logit_bias only"),
    REFUSED("truncate_prompt_tokens", "this version does not cut prompts"),
    REFUSED("truncation_side", "this version does not cut prompts"),
    REFUSED("repetition_detection", "this version has presence, frequency and repetition penalty"),
    REFUSED("thinking_token_budget", "this version knows no thinking"),
    REFUSED("stream_interval", "this version sends tokens as they come"),
    REFUSED("n_predict", "its name here is max_tokens"),
    REFUSED("typical_p", "this version has top_p, top_k and min_p"),
    REFUSED("mirostat", "this version has top_p, top_k and min_p"),
    REFUSED("dry_multiplier", "this version has presence, frequency and repetition penalty"),
    REFUSED("xtc_probability", "this version has top_p, top_k and min_p"),
    REFUSED("messages", "chat is POST /v1/chat/completions, which this version does not have"),
    REFUSED("tools", "this version has no tools"),
    REFUSED("tool_choice", "this version has no tools"),
    REFUSED("functions", "this version has no tools"),
    REFUSED("function_call", "this version has no tools"),
};
enum { COMPLETION_FIELDS = sizeof completion_field / sizeof completion_field[0] };
_Static_assert((int)COMPLETION_FIELDS <= (int)FIELD_MAX, "more fields than fields.h takes");

static const struct field stream_field[] = {
    {"include_usage", FIELD_BOOL, AT(include_usage), "false", 0, 0, "",
     "a last event with the usage"},
    {"continuous_usage_stats", FIELD_BOOL, AT(continuous_usage), "false", 0, 0, "",
     "with `include_usage`: usage in every event"},
    {"include_obfuscation", FIELD_IGNORED, NONE, "", 0, 0, "", "nothing"},
};
enum { STREAM_FIELDS = sizeof stream_field / sizeof stream_field[0] };

void api_completions_document(struct json *text)
{
    json_raw(text, "| field | takes | default | meaning |\n|---|---|---|---|\n");
    fields_document(text, completion_field, COMPLETION_FIELDS, "");
    fields_document(text, stream_field, STREAM_FIELDS, "stream_options.");
}

/* ---- what a table cannot say ---- */

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

static bool check_stream_options(struct completion *completion, struct stream_error *error)
{
    const struct json_value *options = &completion->stream_options;

    if (options->text == NULL)
        return true;
    if (options->kind != JSON_OBJECT)
        return fields_wrong_type(error, "stream_options", "an object", options);
    if (!completion->stream)
        return fields_refuse(error, "stream_options", "'stream_options' needs stream=true.");
    fields_preset(stream_field, STREAM_FIELDS, completion);
    return fields_read(stream_field, STREAM_FIELDS, options, "stream_options.", completion, error);
}

static bool check_format(const struct json_value *format, struct stream_error *error)
{
    struct json_value key, value, type = {0};

    if (format->text == NULL)
        return true;
    if (format->kind != JSON_OBJECT)
        return fields_wrong_type(error, "response_format", "an object", format);
    for (struct json_walk walk = json_walk(format); json_next(&walk, &key, &value);) {
        if (json_is(&key, "type"))
            type = value;
    }
    if (type.text == NULL)
        return missing(error, "response_format.type");
    if (json_is(&type, "text"))
        return true;
    *error = stream_error_make(
        400, "unsupported_value", "response_format",
        "'response_format' is not supported: this version writes plain text only.");
    return false;
}

static bool check_counts(struct completion *completion, const struct completion_limits *limits,
                         struct stream_error *error)
{
    const struct config *config = limits->config;
    int32_t most = limits->defaults != NULL ? limits->defaults->output_limit : 0;

    if (completion->n > config->max_n)
        return fields_refuse(error, "n", "'n' must be between 1 and %d, got %d.", config->max_n,
                             completion->n);
    if (completion->best_of_given && completion->best_of < completion->n)
        return fields_refuse(error, "best_of", "'best_of' must be at least n (%d), got %d.",
                             completion->n, completion->best_of);
    if (completion->best_of_given && completion->best_of > completion->n)
        return fields_unsupported(error, "best_of",
                                  "this version returns all answers that it computes, so it must "
                                  "equal n");
    if (completion->logprobs_given && completion->logprobs > config->max_logprobs)
        return fields_refuse(error, "logprobs", "'logprobs' must be between 0 and %d, got %d.",
                             config->max_logprobs, completion->logprobs);
    if (completion->max_completion_tokens_given && !completion->max_tokens_given) {
        completion->max_tokens = completion->max_completion_tokens;
        completion->max_tokens_given = true;
    }
    if (most > 0 && completion->max_tokens > most)
        completion->max_tokens = most;
    if (completion->max_tokens == 0 && !completion->echo)
        return fields_refuse(error, "max_tokens",
                             "'max_tokens' must be at least 1, got 0 (0 needs echo=true).");
    if (completion->sampling.min_tokens > completion->max_tokens)
        return fields_refuse(error, "min_tokens",
                             "'min_tokens' must be between 0 and max_tokens (%d), got %d.",
                             completion->max_tokens, completion->sampling.min_tokens);
    return true;
}

static bool check_one_stop(const struct json_value *value, const char *path,
                           const struct config *config, size_t *total, struct stream_error *error)
{
    if (value->kind != JSON_STRING)
        return fields_wrong_type(error, path, "a string", value);
    if (value->bytes == 2)
        return fields_refuse(error, path, "'%s' must not hold an empty string.", path);
    if (value->bytes - 2 > (size_t)config->max_stop_bytes)
        return fields_refuse(error, path, "'%s' must be at most %lld bytes, got %zu.", path,
                             (long long)config->max_stop_bytes, value->bytes - 2);
    if (json_has_nul(value))
        return fields_refuse(error, path, "'%s' must not hold a NUL character.", path);
    *total += value->bytes;
    return true;
}

static bool check_stop(const struct completion *completion, const struct config *config,
                       struct stream_error *error)
{
    const struct json_value *stop = &completion->stop;
    struct json_value value;
    int32_t count = 0;
    size_t total = 0;
    char path[32];

    if (stop->text == NULL)
        return true;
    if (stop->kind == JSON_STRING)
        return check_one_stop(stop, "stop", config, &total, error);
    if (stop->kind != JSON_LIST)
        return fields_wrong_type(error, "stop", "a string or a list of strings", stop);
    for (struct json_walk walk = json_walk(stop); json_next(&walk, NULL, &value); count++) {
        if (count == config->max_stop_strings)
            return fields_refuse(error, "stop", "'stop' must hold at most %d strings.",
                                 config->max_stop_strings);
        snprintf(path, sizeof path, "stop[%d]", count);
        if (!check_one_stop(&value, path, config, &total, error))
            return false;
    }
    if (total * (size_t)completion->prompt_count > STOP_COPY_BYTES)
        return fields_refuse(error, "stop", "'stop' is too long for this many prompts.");
    return true;
}

static bool read_stop_ids(struct completion *completion, int32_t vocab_count,
                          struct stream_error *error)
{
    const struct json_value *list = &completion->stop_token_ids;
    struct sampling *sampling = &completion->sampling;
    int32_t *token;
    int64_t count;

    if (list->text == NULL)
        return true;
    if (list->kind != JSON_LIST)
        return fields_wrong_type(error, "stop_token_ids", "a list of token ids", list);
    if (!fields_tokens(list, "stop_token_ids", vocab_count, OWN_STOPS_MAX, &token, &count, error))
        return false;
    if (count <= OWN_STOPS_MAX) {
        memcpy(sampling->stop_token, token, (size_t)count * sizeof *token);
        sampling->stop_count = (int32_t)count;
    }
    free(token);
    if (count > OWN_STOPS_MAX)
        return fields_refuse(error, "stop_token_ids",
                             "'stop_token_ids' must hold at most %d ids, got %lld.", OWN_STOPS_MAX,
                             (long long)count);
    return true;
}

/* The id that a key of logit_bias spells, or -1. */
static int64_t bias_token(const struct json_value *key)
{
    int64_t token = 0;

    if (key->bytes < 3 || key->bytes > 12)
        return -1;
    for (size_t i = 1; i + 1 < key->bytes; i++) {
        if (key->text[i] < '0' || key->text[i] > '9')
            return -1;
        token = token * 10 + (key->text[i] - '0');
    }
    return token;
}

static bool add_bias(struct sampling *sampling, int32_t token, float value)
{
    int32_t i = 0;

    while (i < sampling->bias_count && sampling->bias_token[i] != token)
        i++;
    if (i == SAMPLING_BIAS_MAX)
        return false;
    if (i == sampling->bias_count)
        sampling->bias_count++;
    sampling->bias_token[i] = token;
    sampling->bias_value[i] = value;
    return true;
}

static bool read_bias(struct completion *completion, int32_t vocab_count,
                      struct stream_error *error)
{
    const struct json_value *object = &completion->logit_bias;
    struct json_value key, value;
    char path[64];

    if (object->text == NULL)
        return true;
    if (object->kind != JSON_OBJECT)
        return fields_wrong_type(error, "logit_bias", "an object", object);
    for (struct json_walk walk = json_walk(object); json_next(&walk, &key, &value);) {
        int64_t token = bias_token(&key);
        if (token < 0 || token >= vocab_count)
            return fields_refuse(error, "logit_bias",
                                 "'logit_bias' must have token ids below %d as names, got %.*s.",
                                 vocab_count, key.bytes < 24 ? (int)key.bytes : 24, key.text);
        snprintf(path, sizeof path, "logit_bias.%lld", (long long)token);
        if (value.kind != JSON_NUMBER)
            return fields_wrong_type(error, path, "a number", &value);
        double number = json_number(&value);
        if (!(number >= -100 && number <= 100))
            return fields_wrong_range(error, path, -100, 100, &value);
        if (!add_bias(&completion->sampling, (int32_t)token, (float)number))
            return fields_refuse(error, "logit_bias", "'logit_bias' must hold at most %d entries.",
                                 SAMPLING_BIAS_MAX);
    }
    return true;
}

/* ---- prompts ---- */

/* Tells a list of prompts from a list of ids; counts prompts. */
static bool check_prompt(struct completion *completion, const struct config *config,
                         struct stream_error *error)
{
    const struct json_value *prompt = &completion->prompt;
    struct json_value value;
    int64_t count = 0;

    completion->prompt_count = 1;
    if (prompt->text == NULL)
        return missing(error, "prompt");
    if (prompt->kind == JSON_STRING)
        return true;
    if (prompt->kind != JSON_LIST)
        return fields_wrong_type(error, "prompt",
                                 "a string, a list of strings, a list of token ids or a list of "
                                 "such lists",
                                 prompt);
    struct json_walk walk = json_walk(prompt);
    if (!json_next(&walk, NULL, &value))
        return fields_refuse(error, "prompt", "'prompt' must not be empty.");
    if (value.kind == JSON_NUMBER)
        return true;
    completion->prompt_is_list = true;
    do
        count++;
    while (count <= config->max_prompts && json_next(&walk, NULL, &value));
    if (count > config->max_prompts)
        return fields_refuse(error, "prompt", "'prompt' must hold at most %d prompts.",
                             config->max_prompts);
    completion->prompt_count = (int32_t)count;
    return true;
}

/* More than can ever wait at once would be told to come again for ever. */
static bool check_answers(const struct completion *completion, const struct config *config,
                          struct stream_error *error)
{
    int64_t count = (int64_t)completion->prompt_count * completion->n;

    if (count <= config->max_num_queued_reqs)
        return true;
    return fields_refuse(error, completion->n > 1 ? "n" : "prompt",
                         "n times the number of prompts must be at most %d, got %lld.",
                         config->max_num_queued_reqs, (long long)count);
}

/* The words that clients match; `at_least` is what is known without tokenising. */
static bool too_long(struct stream_error *error, int32_t context_max, int64_t prompt_tokens,
                     int64_t output_tokens)
{
    *error = stream_error_make(
        400, "context_length_exceeded", "prompt",
        "This model's maximum context length is %d tokens. However, you requested "
        "%lld tokens (%lld in the prompt, %lld in the completion).",
        context_max, (long long)(prompt_tokens + output_tokens), (long long)prompt_tokens,
        (long long)output_tokens);
    return false;
}

static bool read_text(struct job *job, const struct json_value *prompt,
                      const struct completion_limits *limits, int32_t max_tokens,
                      struct stream_error *error)
{
    job->text = malloc(prompt->bytes);
    if (job->text == NULL)
        return out_of_memory(error);
    job->text_bytes = json_text(prompt, job->text);
    /* What cannot fit, however well it is cut, keeps no text thread busy. */
    int64_t least = (int64_t)job->text_bytes / limits->token_bytes_max;
    return least <= limits->context_max || too_long(error, limits->context_max, least, max_tokens);
}

static bool read_tokens(struct job *job, const struct json_value *prompt, const char *path,
                        const struct completion_limits *limits, int32_t max_tokens,
                        struct stream_error *error)
{
    int64_t count;

    if (!fields_tokens(prompt, path, limits->vocab_count, limits->context_max, &job->token, &count,
                       error))
        return false;
    if (count == 0)
        return fields_refuse(error, path, "'%s' must not be empty.", path);
    if (count > limits->context_max)
        return too_long(error, limits->context_max, count, max_tokens);
    job->token_count = (int32_t)count;
    return true;
}

static bool read_prompt(struct job *job, const struct json_value *prompt, const char *path,
                        const struct completion_limits *limits, int32_t max_tokens,
                        struct stream_error *error)
{
    if (prompt->kind == JSON_STRING)
        return read_text(job, prompt, limits, max_tokens, error);
    if (prompt->kind == JSON_LIST)
        return read_tokens(job, prompt, path, limits, max_tokens, error);
    return fields_wrong_type(error, path, "a string or a list of token ids", prompt);
}

bool completion_parse(struct completion *completion, const char *body, size_t bytes,
                      const struct completion_limits *limits, struct stream_error *error)
{
    const struct config *config = limits->config;
    struct json_value object;

    memset(completion, 0, sizeof *completion);
    fields_preset(completion_field, COMPLETION_FIELDS, completion);
    if (limits->defaults != NULL)
        defaults_apply(limits->defaults, &completion->sampling);
    if (!fields_parse(body, bytes, &object, error) ||
        !fields_read(completion_field, COMPLETION_FIELDS, &object, "", completion, error))
        return false;
    if (completion->cache_salt.text != NULL && completion->cache_salt.bytes == 2)
        return fields_refuse(error, "cache_salt", "'cache_salt' must not be an empty string.");
    completion->sampling.top_count = completion->logprobs_given ? completion->logprobs : -1;
    return api_model_check(config, &completion->model, error) &&
           check_counts(completion, limits, error) && check_stream_options(completion, error) &&
           check_format(&completion->response_format, error) &&
           check_prompt(completion, config, error) && check_answers(completion, config, error) &&
           check_stop(completion, config, error) &&
           read_stop_ids(completion, limits->vocab_count, error) &&
           read_bias(completion, limits->vocab_count, error);
}

/* ---- jobs ---- */

void completion_stop_free(char **stop, int32_t count)
{
    for (int32_t i = 0; i < count; i++)
        free(stop[i]);
    free(stop);
}

static bool add_stop(char **stop, int32_t *count, const struct json_value *value)
{
    char *text = malloc(value->bytes);

    if (text == NULL)
        return false;
    text[json_text(value, text)] = '\0';
    stop[(*count)++] = text;
    return true;
}

bool completion_stop(const struct completion *completion, char ***stop, int32_t *count)
{
    const struct json_value *list = &completion->stop;
    struct json_value value;
    int32_t max = 0;
    bool good = true;

    *stop = NULL;
    *count = 0;
    if (list->text == NULL)
        return true;
    if (list->kind == JSON_STRING)
        max = 1;
    else
        for (struct json_walk walk = json_walk(list); json_next(&walk, NULL, &value);)
            max++;
    if (max == 0)
        return true;
    *stop = calloc((size_t)max, sizeof **stop);
    if (*stop == NULL)
        return false;
    if (list->kind == JSON_STRING)
        good = add_stop(*stop, count, list);
    else
        for (struct json_walk walk = json_walk(list); good && json_next(&walk, NULL, &value);)
            good = add_stop(*stop, count, &value);
    if (good)
        return true;
    completion_stop_free(*stop, *count);
    *stop = NULL;
    *count = 0;
    return false;
}

static pthread_once_t salt_once = PTHREAD_ONCE_INIT;
static unsigned char salt_secret[XXH3_SECRET_SIZE_MIN];

static void make_salt_secret(void)
{
    ssize_t bytes = getrandom(salt_secret, sizeof salt_secret, 0);
    assert(bytes == sizeof salt_secret);
}

/* Salts are told apart by a keyed hash: whoever does not know the key cannot look for two that
 * collide. 0 is no salt. */
static uint64_t salt_of(const struct json_value *salt)
{
    if (salt->text == NULL)
        return 0;
    pthread_once(&salt_once, make_salt_secret);
    uint64_t hash =
        XXH3_64bits_withSecret(salt->text, salt->bytes, salt_secret, sizeof salt_secret);
    return hash != 0 ? hash : 1;
}

static struct job *make_job(const struct completion *completion, struct stream *stream,
                            int32_t index, uint64_t seed)
{
    struct job *job = job_create();

    if (job == NULL)
        return NULL;
    stream_hold(stream);
    job->stream = stream;
    job->prompt_index = index;
    job->sibling_count = completion->n;
    job->add_special = completion->add_special;
    job->sampling = completion->sampling;
    job->sampling.seed = seed;
    job->stop_token_count = completion->sampling.stop_count;
    job->output_max = completion->max_tokens;
    job->output_max_given = completion->max_tokens_given;
    job->echo = completion->echo;
    /* Without tokens to put out, scoring is all there is to do, wanted or not. */
    job->score_prompt =
        completion->echo && (completion->logprobs_given || completion->max_tokens == 0);
    job->ignore_eos = completion->ignore_eos;
    job->skip_special = completion->skip_special;
    job->keep_stop = completion->keep_stop;
    job->priority = completion->priority;
    job->salt = salt_of(&completion->cache_salt);
    if (completion_stop(completion, &job->stop, &job->stop_count))
        return job;
    job_free(job);
    return NULL;
}

static void free_jobs(struct job *jobs)
{
    while (jobs != NULL) {
        struct job *next = jobs->next;
        job_free(jobs);
        jobs = next;
    }
}

struct job *completion_jobs(const struct completion *completion,
                            const struct completion_limits *limits, struct stream *stream,
                            uint64_t seed, struct stream_error *error)
{
    struct json_value prompt = completion->prompt;
    struct json_walk walk = {0};
    struct job *first = NULL, **end = &first;
    char path[32] = "prompt";

    if (completion->prompt_is_list)
        walk = json_walk(&completion->prompt);
    for (int32_t i = 0; i < completion->prompt_count; i++) {
        if (completion->prompt_is_list) {
            (void)json_next(&walk, NULL, &prompt);
            snprintf(path, sizeof path, "prompt[%d]", i);
        }
        struct job *job = make_job(completion, stream, i, seed);
        if (job == NULL) {
            free_jobs(first);
            out_of_memory(error);
            return NULL;
        }
        *end = job;
        end = &job->next;
        if (!read_prompt(job, &prompt, path, limits, completion->max_tokens, error)) {
            free_jobs(first);
            return NULL;
        }
    }
    return first;
}
