/* Counters, gauges and histograms, and the page that shows them (Prometheus text 0.0.4).
 *
 * Every family has a line in one of three tables: its quire name (printed as quire_NAME, no
 * colon), vLLM's name for the same figure (printed as vllm:NAME with vLLM's labels; "" where
 * vLLM has none), labels of either, and what it says. Both are printed from the same cell, so
 * that nothing is counted twice. Rows of one family stand together.
 *
 * metrics_add, _set, _move and _observe are a few atomic instructions: any thread, the engine's
 * too, never blocking. metrics_write is for an HTTP thread.
 */
#ifndef SERVER_METRICS_H
#define SERVER_METRICS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct json; /* server/json_write.h: a growing text */

/* COUNTER(enum, quire name, quire labels, vLLM name, vLLM labels, help) */
#define METRIC_COUNTERS(COUNTER)                                                                   \
    COUNTER(METRIC_PROMPT_TOKENS, "prompt_tokens_total", "", "prompt_tokens_total", "",            \
            "Prompt tokens of admitted requests.")                                                 \
    COUNTER(METRIC_GENERATION_TOKENS, "generation_tokens_total", "", "generation_tokens_total",    \
            "", "Tokens put out.")                                                                 \
    COUNTER(METRIC_PROMPT_TOKENS_CACHED, "prompt_tokens_cached_total", "",                         \
            "prompt_tokens_cached_total", "", "Prompt tokens taken from the prefix cache.")        \
    COUNTER(METRIC_PREFIX_QUERIES, "prefix_cache_queries_total", "", "prefix_cache_queries_total", \
            "", "Prompt tokens looked up in the prefix cache.")                                    \
    COUNTER(METRIC_PREFIX_HITS, "prefix_cache_hits_total", "", "prefix_cache_hits_total", "",      \
            "Prompt tokens found in the prefix cache.")                                            \
    COUNTER(METRIC_PREEMPTIONS, "preemptions_total", "", "num_preemptions_total", "",              \
            "Sequences that gave up their blocks and were computed again.")                        \
    COUNTER(METRIC_FINISH_STOP, "requests_total",                                                  \
            "endpoint=\"completions\",finish_reason=\"stop\"", "request_success_total",            \
            "finished_reason=\"stop\"", "Sequences that ended, by why.")                           \
    COUNTER(METRIC_FINISH_LENGTH, "requests_total",                                                \
            "endpoint=\"completions\",finish_reason=\"length\"", "request_success_total",          \
            "finished_reason=\"length\"", "Sequences that ended, by why.")                         \
    COUNTER(METRIC_FINISH_ABORT, "requests_total",                                                 \
            "endpoint=\"completions\",finish_reason=\"abort\"", "request_success_total",           \
            "finished_reason=\"abort\"", "Sequences that ended, by why.")                          \
    COUNTER(METRIC_FINISH_ERROR, "requests_total",                                                 \
            "endpoint=\"completions\",finish_reason=\"error\"", "request_success_total",           \
            "finished_reason=\"error\"", "Sequences that ended, by why.")                          \
    COUNTER(METRIC_ABORT_DISCONNECT, "requests_aborted_total", "reason=\"disconnect\"", "", "",    \
            "Requests ended before their end.")                                                    \
    COUNTER(METRIC_ABORT_SHUTDOWN, "requests_aborted_total", "reason=\"shutdown\"", "", "",        \
            "Requests ended before their end.")                                                    \
    COUNTER(METRIC_REJECT_QUEUE, "requests_rejected_total", "reason=\"queue_full\"", "", "",       \
            "Requests refused before any work.")                                                   \
    COUNTER(METRIC_REJECT_UNREADY, "requests_rejected_total", "reason=\"not_ready\"", "", "",      \
            "Requests refused before any work.")                                                   \
    COUNTER(METRIC_REJECT_KEY, "requests_rejected_total", "reason=\"key\"", "", "",                \
            "Requests refused before any work.")                                                   \
    COUNTER(METRIC_REQUEST_BYTES, "http_request_bytes_total", "", "", "",                          \
            "Bytes of request bodies.")                                                            \
    COUNTER(METRIC_REPLY_BYTES, "http_response_bytes_total", "", "", "", "Bytes of reply bodies.") \
    COUNTER(METRIC_SSE_EVENTS, "sse_events_total", "", "", "", "Events sent on streams.")          \
    COUNTER(METRIC_UNKNOWN_FIELDS, "request_unknown_fields_total", "", "", "",                     \
            "Request fields that were ignored because nothing knows them.")                        \
    COUNTER(METRIC_GRAPHS, "engine_graphs_total", "", "", "",                                      \
            "Sizes of steps whose launches a GPU recorded: those of decode at the start; others "  \
            "when the first step of their size comes, which is slower.")                           \
    COUNTER(METRIC_STEPS, "engine_steps_total", "", "", "", "Steps of the engine.")

/* GAUGE(enum, quire name, quire labels, vLLM name, vLLM labels, help) */
#define METRIC_GAUGES(GAUGE)                                                                       \
    GAUGE(METRIC_RUNNING, "requests_running", "", "num_requests_running", "",                      \
          "Sequences with a slot.")                                                                \
    GAUGE(METRIC_WAITING, "requests_waiting", "", "num_requests_waiting", "",                      \
          "Sequences that wait for a slot.")                                                       \
    GAUGE(METRIC_KV_USAGE, "kv_cache_usage_ratio", "", "kv_cache_usage_perc", "",                  \
          "Blocks in use over all blocks, 0 to 1; cached blocks count as free.")                   \
    GAUGE(METRIC_KV_TOTAL, "kv_blocks", "state=\"total\"", "", "", "KV blocks by state.")          \
    GAUGE(METRIC_KV_USED, "kv_blocks", "state=\"used\"", "", "", "KV blocks by state.")            \
    GAUGE(METRIC_KV_CACHED, "kv_blocks", "state=\"cached\"", "", "", "KV blocks by state.")        \
    GAUGE(METRIC_KV_FREE, "kv_blocks", "state=\"free\"", "", "", "KV blocks by state.")            \
    GAUGE(METRIC_KV_WASTE, "kv_waste_ratio", "", "", "",                                           \
          "Slots of used blocks that hold no token, over all slots of used blocks.")               \
    GAUGE(METRIC_READY, "ready", "", "", "", "1 while requests are taken.")                        \
    GAUGE(METRIC_LOAD, "requests_in_flight", "", "", "", "Requests accepted and not ended.")       \
    GAUGE(METRIC_CONNECTIONS, "http_connections", "", "", "", "Open connections.")                 \
    GAUGE(METRIC_SSE_STREAMS, "sse_streams", "", "", "", "Streams being sent.")

/* HISTOGRAM(enum, quire name, vLLM name, edges, help). Edges: a list of metrics.c. */
#define METRIC_HISTOGRAMS(HISTOGRAM)                                                               \
    HISTOGRAM(METRIC_TTFT, "time_to_first_token_seconds", "time_to_first_token_seconds", FIRST,    \
              "From the request's arrival to its first token.")                                    \
    HISTOGRAM(METRIC_ITL, "inter_token_latency_seconds", "inter_token_latency_seconds", TOKEN,     \
              "Between two tokens of a sequence.")                                                 \
    HISTOGRAM(METRIC_TPOT, "request_time_per_output_token_seconds",                                \
              "request_time_per_output_token_seconds", TOKEN,                                      \
              "Mean time between two tokens of a finished sequence.")                              \
    HISTOGRAM(METRIC_E2E, "e2e_request_latency_seconds", "e2e_request_latency_seconds", REQUEST,   \
              "From arrival to the last token.")                                                   \
    HISTOGRAM(METRIC_QUEUE, "request_queue_time_seconds", "request_queue_time_seconds", REQUEST,   \
              "From arrival to the first step that computes the sequence.")                        \
    HISTOGRAM(METRIC_INFERENCE, "request_inference_time_seconds",                                  \
              "request_inference_time_seconds", REQUEST,                                           \
              "From the first step that computes the sequence to its last token.")                 \
    HISTOGRAM(METRIC_PREFILL, "request_prefill_time_seconds", "request_prefill_time_seconds",      \
              REQUEST, "From the first step that computes the sequence to its first token.")       \
    HISTOGRAM(METRIC_DECODE, "request_decode_time_seconds", "request_decode_time_seconds",         \
              REQUEST, "From the first token to the last.")                                        \
    HISTOGRAM(METRIC_PROMPT_LENGTH, "request_prompt_tokens", "request_prompt_tokens", LENGTH,      \
              "Tokens of a prompt.")                                                               \
    HISTOGRAM(METRIC_OUTPUT_LENGTH, "request_generation_tokens", "request_generation_tokens",      \
              LENGTH, "Tokens that a sequence put out.")                                           \
    HISTOGRAM(METRIC_PARAM_MAX_TOKENS, "request_params_max_tokens", "request_params_max_tokens",   \
              LENGTH, "max_tokens as asked for.")                                                  \
    HISTOGRAM(METRIC_PARAM_N, "request_params_n", "request_params_n", COUNT, "n as asked for.")    \
    HISTOGRAM(METRIC_STEP_TOKENS, "iteration_tokens", "iteration_tokens_total", STEP,              \
              "Tokens of a step.")                                                                 \
    HISTOGRAM(METRIC_STEP_ROWS, "batch_size", "", STEP, "Sequences of a step.")                    \
    HISTOGRAM(METRIC_STEP_TIME, "engine_step_seconds", "", TOKEN, "Time of a step.")               \
    HISTOGRAM(METRIC_HTTP_TIME, "http_request_duration_seconds", "", FIRST,                        \
              "From a request's first byte to its reply's last.")

#define METRIC_ENUM(name, ...) name,
enum metric_counter { METRIC_COUNTERS(METRIC_ENUM) METRIC_COUNTER_COUNT };
enum metric_gauge { METRIC_GAUGES(METRIC_ENUM) METRIC_GAUGE_COUNT };
enum metric_histogram { METRIC_HISTOGRAMS(METRIC_ENUM) METRIC_HISTOGRAM_COUNT };
#undef METRIC_ENUM

enum { METRIC_ROUTE_MAX = 64 };

void metrics_add(enum metric_counter counter, int64_t amount);
void metrics_set(enum metric_gauge gauge, double value);
void metrics_move(enum metric_gauge gauge, double change); /* up or down */
void metrics_observe(enum metric_histogram histogram, double value);

/* What they are now: for other modules' decisions, and tests. */
int64_t metrics_counter(enum metric_counter counter);
double metrics_gauge(enum metric_gauge gauge);
int64_t metrics_count(enum metric_histogram histogram);

/* One reply went out; `route` is an index of routes.c, or -1 for a path that nothing serves. */
void metrics_http(int32_t route, int32_t status);

/* One request ended in an error with this code, as a reply or within its stream. */
void metrics_error(const char *code);

/* What the info families say. Strings must stay. Once, before the server starts; the number of
 * blocks, which is not known then, goes into METRIC_KV_TOTAL later. */
struct metrics_info {
    const char *model_name;
    const char *version;
    const char *cache_dtype;
    int32_t block_tokens;
    int32_t block_count;
};
void metrics_describe(const struct metrics_info *info);

enum metrics_names { METRICS_OWN = 1, METRICS_VLLM = 2 };
/* The page: families of quire, of vLLM, or both. */
void metrics_write(struct json *text, unsigned names);
/* Markdown table of all families, for docs. */
void metrics_document(struct json *text);

#endif
