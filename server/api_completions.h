/* POST /v1/completions between its files: what was asked for (api_completions_parse.c), what is
 * answered (api_completions_format.c), and the endpoint itself (api_completions.c).
 */
#ifndef SERVER_API_COMPLETIONS_H
#define SERVER_API_COMPLETIONS_H

#include "kernels/sampling.h"
#include "server/config.h"
#include "server/json_read.h"
#include "server/json_write.h"
#include "server/stream.h"

struct defaults;  /* server/defaults.h */
struct job;       /* server/engine.h */
struct output;    /* server/api.h */
struct tokenizer; /* model/text/tokenizer.h */

/* A request as read; values point into its body. */
struct completion {
    struct json_value model, prompt, stop, stop_token_ids, logit_bias;
    struct json_value stream_options, response_format, cache_salt, request_id;
    bool stream, echo, ignore_eos, keep_stop, skip_special, add_special;
    bool return_token_ids, tokens_as_ids;
    bool max_tokens_given, max_completion_tokens_given, logprobs_given, best_of_given, seed_given;
    int32_t n, best_of, max_tokens, max_completion_tokens, logprobs, priority;
    int64_t seed;
    struct sampling sampling; /* all of it but the seed */
    bool include_usage, continuous_usage;

    int32_t prompt_count;
    bool prompt_is_list; /* of prompts; else it is one */
};

/* What a request is measured against. */
struct completion_limits {
    const struct config *config;
    int32_t vocab_count;
    int32_t context_max;
    int32_t token_bytes_max;         /* no token stands for more bytes of text */
    const struct defaults *defaults; /* for what it leaves out; NULL: the table's */
};

/* Reads and checks the whole body. False: *error says what is wrong. */
bool completion_parse(struct completion *completion, const char *body, size_t bytes,
                      const struct completion_limits *limits, struct stream_error *error);

/* One job a prompt, in order, all of `stream` (held once by each); seed of the first answer to
 * each is `seed`. NULL: *error says what is wrong. */
struct job *completion_jobs(const struct completion *completion,
                            const struct completion_limits *limits, struct stream *stream,
                            uint64_t seed, struct stream_error *error);

/* What the reply needs to know of the request. */
struct completion_reply {
    const char *id; /* without "cmpl-" */
    const char *model;
    const char *fingerprint;
    int64_t created;
    int32_t choice_count;
    int32_t sibling_count;
    bool stream, include_usage, continuous_usage;
    bool logprobs; /* wanted */
    bool return_token_ids, tokens_as_ids, skip_special;
    const struct tokenizer *tokenizer; /* NULL: the model has none */
    int32_t stop_count;
    char **stop; /* [stop_count] taken: for stop_reason */
};

/* The writer of a reply, for exchange_run. Copies the strings and takes `stop`. False: out of
 * memory. */
bool completion_output(const struct completion_reply *reply, struct output *output);

/* The caller's stop strings, NUL-terminated: an array that completion_stop_free frees. NULL with
 * *count 0: none; false: out of memory. The list was checked by completion_parse. */
bool completion_stop(const struct completion *completion, char ***stop, int32_t *count);
void completion_stop_free(char **stop, int32_t count);

#endif
