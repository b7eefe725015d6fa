/* POST /v1/completions: from a body to jobs, and how their output is to be written. */
#include "server/api_completions.h"

#include "server/api.h"
#include "server/engine.h"
#include "server/fields.h"
#include "server/head.h"
#include "server/metrics.h"

#include "model/text/tokenizer.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* Seeds of requests that bring none: far apart, so that answer i (seed + i) of one request never
 * draws as one of another does; repeatable for a server started alike and asked alike. */
static uint64_t own_seed(const struct config *config)
{
    static _Atomic uint64_t serial;
    uint64_t turn = atomic_fetch_add_explicit(&serial, 1, memory_order_relaxed);
    uint64_t x = (uint64_t)config->seed + turn * 0x9e3779b97f4a7c15ULL;

    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ULL;
    x = (x ^ x >> 27) * 0x94d049bb133111ebULL;
    return x ^ x >> 31;
}

/* The header counts before the field, as vLLM has it. */
static bool read_priority(struct exchange *exchange, struct completion *completion,
                          struct stream_error *error)
{
    const char *text = exchange_header(exchange, "X-Vllm-Priority");
    char *end;

    if (text == NULL)
        return true;
    long value = strtol(text, &end, 10);
    if (end == text || *end != '\0' || value < INT32_MIN || value > INT32_MAX)
        return fields_refuse(error, "priority", "X-Vllm-Priority must be an integer of 32 bits.");
    completion->priority = (int32_t)value;
    return true;
}

/* The response's id: the header's, the body's, or the one that was made for this request. */
static bool choose_id(struct exchange *exchange, const struct completion *completion,
                      char id[HEAD_ID_MAX + 1], struct stream_error *error)
{
    const struct json_value *given = &completion->request_id;

    snprintf(id, HEAD_ID_MAX + 1, "%s", exchange_id(exchange));
    if (given->text == NULL || head_id_good(exchange_header(exchange, "x-request-id")))
        return true;
    if (given->bytes <= HEAD_ID_MAX) {
        id[json_text(given, id)] = '\0';
        if (head_id_good(id))
            return true;
    }
    return fields_refuse(error, "request_id",
                         "'request_id' must be 1 to %d letters, digits and -_.: characters.",
                         HEAD_ID_MAX - 2);
}

static bool make_output(struct exchange *exchange, const struct completion *completion,
                        const char *id, struct output *output)
{
    struct engine *engine = exchange_engine(exchange);
    char fingerprint[64];
    struct completion_reply reply = {
        .id = id,
        .model = api_model_called(exchange_config(exchange), &completion->model),
        .fingerprint = fingerprint,
        .created = (int64_t)time(NULL),
        .choice_count = completion->prompt_count * completion->n,
        .sibling_count = completion->n,
        .stream = completion->stream,
        .include_usage = completion->include_usage,
        .continuous_usage = completion->continuous_usage,
        .logprobs = completion->logprobs_given,
        .return_token_ids = completion->return_token_ids,
        .tokens_as_ids = completion->tokens_as_ids,
        .skip_special = completion->skip_special,
        .tokenizer = model_tokenizer(engine_model(engine)),
    };

    api_fingerprint(engine, fingerprint, sizeof fingerprint);
    if (!completion_stop(completion, &reply.stop, &reply.stop_count))
        return false;
    if (completion_output(&reply, output))
        return true;
    completion_stop_free(reply.stop, reply.stop_count);
    return false;
}

static bool run(struct exchange *exchange, const struct completion *completion,
                const struct completion_limits *limits, const char *id, struct stream_error *error)
{
    int32_t choice_count = completion->prompt_count * completion->n;
    bool seeded = completion->seed_given && completion->seed != -1;
    uint64_t seed = seeded ? (uint64_t)completion->seed : own_seed(limits->config);
    struct stream *stream = stream_create(choice_count, exchange_waiter(exchange));
    struct output output;

    *error = stream_error_make(503, "out_of_memory", NULL, "There is no memory for this request.");
    if (stream == NULL)
        return false;
    struct job *jobs = completion_jobs(completion, limits, stream, seed, error);
    if (jobs == NULL) {
        stream_release(stream);
        return false;
    }
    for (struct job *job = jobs; job != NULL; job = job->next) {
        job->arrival_us = exchange_arrival_us(exchange);
        snprintf(job->request_id, sizeof job->request_id, "%.63s", id);
    }
    if (!make_output(exchange, completion, id, &output)) {
        while (jobs != NULL) {
            struct job *next = jobs->next;
            job_free(jobs);
            jobs = next;
        }
        stream_release(stream);
        return false;
    }
    metrics_observe(METRIC_PARAM_N, completion->n);
    metrics_observe(METRIC_PARAM_MAX_TOKENS, completion->max_tokens);
    exchange_run(exchange, stream, jobs, &output);
    return true;
}

/* The bytes of the longest token, found once. */
static int32_t longest_token(const struct tokenizer *tokenizer)
{
    static _Atomic int32_t found;
    int32_t longest = atomic_load_explicit(&found, memory_order_relaxed);

    if (longest > 0 || tokenizer == NULL)
        return longest > 0 ? longest : 1;
    for (int32_t i = 0; i < tokenizer_count(tokenizer); i++) {
        int32_t bytes = (int32_t)tokenizer_bytes(tokenizer, i, NULL, 0);
        longest = bytes > longest ? bytes : longest;
    }
    longest = longest > 0 ? longest : 1;
    atomic_store_explicit(&found, longest, memory_order_relaxed);
    return longest;
}

void api_completions(struct exchange *exchange)
{
    const struct model *model = engine_model(exchange_engine(exchange));
    const struct model_info *info = model_info(model);
    struct completion_limits limits = {
        .config = exchange_config(exchange),
        .vocab_count = info->vocab_count,
        .context_max = info->context_max,
        .token_bytes_max = longest_token(model_tokenizer(model)),
        .defaults = engine_defaults(exchange_engine(exchange)),
    };
    struct completion completion;
    struct stream_error error;
    char id[HEAD_ID_MAX + 1];
    size_t bytes;
    const char *body = exchange_body(exchange, &bytes);

    if (!completion_parse(&completion, body, bytes, &limits, &error) ||
        !read_priority(exchange, &completion, &error) ||
        !choose_id(exchange, &completion, id, &error) ||
        !run(exchange, &completion, &limits, id, &error))
        exchange_error(exchange, &error);
}
