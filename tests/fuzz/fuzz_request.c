/* Any bytes as the body of POST /v1/completions: refused with a 4xx and a sentence, or taken with
 * every number in its range, and then it makes as many jobs as it has prompts. */
#include "server/api.h"
#include "server/api_completions.h"
#include "server/engine.h"
#include "server/json_read.h"

#include <assert.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static void nothing(void *context)
{
    (void)context;
}

static void check_error(const struct stream_error *error)
{
    struct json text = {0};
    struct json_value value;
    size_t offset;
    const char *why;

    assert(error->status >= 400 && error->status < 500);
    assert(error->code[0] != '\0' && error->message[0] != '\0');
    api_error_write(&text, error);
    assert(json_check(text.text, text.bytes, &value, &offset, &why));
    json_release(&text);
}

static void check_ranges(const struct completion *completion, const struct config *config)
{
    const struct sampling *sampling = &completion->sampling;

    assert(completion->n >= 1 && completion->n <= config->max_n);
    assert(completion->prompt_count >= 1 && completion->prompt_count <= config->max_prompts);
    assert(completion->max_tokens >= 0);
    assert(sampling->top_count >= -1 && sampling->top_count <= config->max_logprobs);
    assert(sampling->bias_count <= SAMPLING_BIAS_MAX && sampling->stop_count < SAMPLING_STOP_MAX);
#define PARAMETER(type, field, fallback, least, greatest, help)                                    \
    assert(sampling->field >= (__typeof__(sampling->field))(least));                               \
    assert((double)sampling->field <= (double)(greatest));
    SAMPLING_PARAMETERS(PARAMETER)
#undef PARAMETER
}

static void check_jobs(const struct completion *completion, const struct completion_limits *limits)
{
    struct stream_waiter waiter = {NULL, nothing, nothing};
    struct stream *stream = stream_create(completion->prompt_count * completion->n, &waiter);
    struct stream_error error;
    struct job *jobs = completion_jobs(completion, limits, stream, 1, &error);
    int32_t count = 0;

    stream_release(stream);
    if (jobs == NULL) {
        check_error(&error);
        return;
    }
    while (jobs != NULL) {
        struct job *next = jobs->next;
        assert(jobs->prompt_index == count++);
        assert(jobs->text != NULL || jobs->token_count > 0);
        for (int32_t i = 0; i < jobs->token_count; i++)
            assert(jobs->token[i] >= 0 && jobs->token[i] < limits->vocab_count);
        job_free(jobs);
        jobs = next;
    }
    assert(count == completion->prompt_count);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    static struct completion completion;
    static struct config config;
    struct completion_limits limits = {&config, 1000, 512, 16, NULL};
    struct stream_error error = {0};

    if (config.max_n == 0) {
        if (config_defaults(&config, CONFIG_SERVE) < 0)
            abort();
        config.model = "tiny.gguf";
    }
    if (!completion_parse(&completion, (const char *)data, bytes, &limits, &error)) {
        check_error(&error);
        return 0;
    }
    check_ranges(&completion, &config);
    check_jobs(&completion, &limits);
    return 0;
}
