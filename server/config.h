/* Every option of quire, in one table.
 *
 * From the table come the struct below, the flags, the environment's names, the keys of the YAML
 * file, ranges, --help, --dump-config, docs/config.md and configs/quire.yaml. An option is a line
 * here and the code that reads its member; nothing else.
 *
 * Precedence: flag > environment (QUIRE_ and the name in capitals) > file (--config) > default.
 * Filled by main before any thread starts, constant from then on: any thread may read it.
 */
#ifndef SERVER_CONFIG_H
#define SERVER_CONFIG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

/* Kinds, and the member's type:
 *   STRING  const char *, "" when not given      LIST, SECRETS  struct config_list
 *   INT     int32_t                              BIG     int64_t
 *   LENGTH  int32_t tokens; "auto" and -1 are 0  BYTES   int64_t
 *   REAL    double                               BOOL    bool (--x, --no-x)
 *   CHOICE  int32_t, the index among `choices`
 * Whole numbers take vLLM's suffixes: k, m, g, t are powers of 1,000 and K, M, G, T of 1,024.
 * The member is vLLM's flag in snake_case wherever the meaning is vLLM's. Defaults are written as
 * a user would write them and go through the same parser. Where 0 means "chosen from the device",
 * config_resolve puts in what was chosen.
 *
 * OPTION(group, kind, member, default, least, greatest, choices, what it does) */
#define CONFIG_OPTIONS(OPTION)                                                                     \
    OPTION(MODEL, STRING, model, "", 0, 0, "",                                                     \
           "path of the model: a .gguf file or a Hugging Face folder; also MODEL")                 \
    OPTION(MODEL, LIST, served_model_name, "", 0, 64, "",                                          \
           "names that requests may use; the first is reported; default: the file's name")         \
    OPTION(MODEL, LENGTH, max_model_len, "auto", 1, 1 << 24, "",                                   \
           "longest sequence, prompt and output; auto: the model's own, or what fits")             \
    OPTION(                                                                                        \
        MODEL, BIG, seed, "0", 0, INT64_MAX, "",                                                   \
        "start of the seeds of requests that bring none; of quire bench's prompts and arrivals")   \
    OPTION(MODEL, CHOICE, load_format, "auto", 0, 1, "auto|dummy",                                 \
           "dummy: random weights of the shape in a folder's config.json, to try speed")           \
    OPTION(MODEL, BOOL, skip_tokenizer_init, "false", 0, 1, "",                                    \
           "serve token ids alone, without the model's tokenizer")                                 \
    OPTION(DEVICE, CHOICE, device, "auto", 0, 2, "auto|cpu|cuda",                                  \
           "where to compute; auto: a GPU when there is one")                                      \
    OPTION(DEVICE, INT, threads, "0", 0, 1024, "", "threads that compute on a CPU; 0: one a core") \
    OPTION(                                                                                        \
        DEVICE, STRING, tune_table, "", 0, 0, "",                                                  \
        "file that quire tune wrote on this kind of GPU: how products run best; goes before the "  \
        "table of this kind that is built in, if there is one")                                    \
    OPTION(                                                                                        \
        DEVICE, CHOICE, gpu_kernels, "auto", 0, 1, "auto|portable",                                \
        "kernels made for this GPU where there are some, or those that run on any from sm_80 on")  \
    OPTION(DEVICE, REAL, gpu_memory_utilization, "0", 0, 1, "",                                    \
           "share of the device's memory that this server takes at most, refused where others "    \
           "have it (on a CPU: of the free memory); 0: 0.92 on a GPU; 0.5 on a CPU, and a KV "     \
           "cache of at most 4 GiB")                                                               \
    OPTION(DEVICE, BYTES, kv_cache_memory_bytes, "0", 0, INT64_MAX, "",                            \
           "size of the KV cache, whatever gpu-memory-utilization says; 0: from that")             \
    OPTION(DEVICE, CHOICE, kv_cache_dtype, "auto", 0, 2, "auto|f16|f32",                           \
           "what keys and values are kept in; auto is f16; f32 on a CPU only")                     \
    OPTION(DEVICE, INT, num_gpu_blocks_override, "0", 0, 1 << 28, "",                              \
           "exact number of KV blocks, on a CPU too; 0: from the sizes above")                     \
    OPTION(DEVICE, INT, block_size, "16", 1, 256, "", "tokens a KV block holds; a power of two")   \
    OPTION(SCHEDULER, INT, max_num_seqs, "0", 0, 65536, "",                                        \
           "sequences that run at once; 0: 64 on a CPU, 256 on a GPU")                             \
    OPTION(SCHEDULER, INT, max_num_batched_tokens, "0", 0, 1 << 20, "",                            \
           "tokens of one step; 0: 512 on a CPU; on a GPU 512 to 8192, the fewer the larger the "  \
           "model")                                                                                \
    OPTION(SCHEDULER, INT, long_prefill_token_threshold, "0", 0, 1 << 20, "",                      \
           "prompt tokens of one sequence in one step; 0: no limit but the step's")                \
    OPTION(SCHEDULER, INT, max_num_queued_reqs, "1024", 1, 1 << 20, "",                            \
           "sequences that may wait; beyond, requests are refused with 429")                       \
    OPTION(SCHEDULER, BOOL, enable_prefix_caching, "true", 0, 1, "",                               \
           "let requests share the KV of equal beginnings")                                        \
    OPTION(SCHEDULER, BOOL, async_scheduling, "true", 0, 1, "",                                    \
           "plan the next step while the last one is computed")                                    \
    OPTION(SCHEDULER, INT, text_threads, "2", 1, 64, "",                                           \
           "threads that tokenise prompts and turn tokens into text")                              \
    OPTION(HTTP, STRING, host, "127.0.0.1", 0, 0, "",                                              \
           "address to listen on; 0.0.0.0 or :: for all")                                          \
    OPTION(HTTP, INT, port, "8000", 0, 65535, "", "port to listen on; 0: any free one")            \
    OPTION(HTTP, SECRETS, api_key, "", 0, 1024, "",                                                \
           "keys that requests may bring; better in a file or the environment: ps shows flags")    \
    OPTION(HTTP, STRING, api_key_file, "", 0, 0, "",                                               \
           "file with one key a line; empty lines and lines that begin with # do not count")       \
    OPTION(HTTP, INT, http_threads, "4", 1, 256, "", "threads that serve connections")             \
    OPTION(HTTP, INT, max_connections, "4096", 1, 1 << 20, "",                                     \
           "open connections; further ones wait in the kernel")                                    \
    OPTION(HTTP, REAL, keep_alive_timeout, "75", 1, 86400, "",                                     \
           "seconds that an idle connection is kept; more than a proxy's own")                     \
    OPTION(HTTP, REAL, request_timeout, "60", 1, 86400, "",                                        \
           "seconds that headers and body of one request may take to arrive")                      \
    OPTION(HTTP, REAL, shutdown_timeout, "30", 0, 86400, "",                                       \
           "seconds that running requests may take to end after SIGTERM; 0: none; also "           \
           "drain-timeout")                                                                        \
    OPTION(LIMITS, BYTES, max_body_bytes, "32M", 1024, 1LL << 32, "", "bytes of a request's body") \
    OPTION(LIMITS, INT, max_prompts, "1024", 1, 1 << 16, "", "prompts in one request")             \
    OPTION(LIMITS, INT, max_n, "128", 1, 16384, "", "answers to one prompt")                       \
    OPTION(LIMITS, INT, max_stop_strings, "64", 0, 4096, "", "stop strings of one request")        \
    OPTION(LIMITS, BYTES, max_stop_bytes, "4K", 1, 1 << 20, "", "bytes of one stop string")        \
    OPTION(LIMITS, INT, max_logprobs, "20", 0, 32, "",                                             \
           "likeliest tokens that a request may ask for")                                          \
    OPTION(LIMITS, STRING, generation_config, "auto", 0, 0, "",                                    \
           "sampling defaults of requests: auto (the model's generation_config.json), vllm "       \
           "(neutral ones), or the path of a folder with such a file, whose max_new_tokens "       \
           "then bounds every answer")                                                             \
    OPTION(LIMITS, STRING, override_generation_config, "", 0, 0, "",                               \
           "JSON object laid over them: temperature, top_p, top_k, min_p, repetition_penalty, "    \
           "and max_new_tokens, which bounds every answer")                                        \
    OPTION(LOG, CHOICE, log_level, "info", 0, 3, "error|warn|info|debug", "least severe to log")   \
    OPTION(LOG, CHOICE, log_format, "text", 0, 1, "text|json", "form of a log line")               \
    OPTION(LOG, BOOL, access_log, "true", 0, 1, "", "log a line for each request at its end")      \
    OPTION(LOG, BOOL, disable_log_stats, "false", 0, 1, "",                                        \
           "leave out the periodic line of throughput and load")                                   \
    OPTION(LOG, REAL, log_stats_interval, "10", 0.1, 86400, "",                                    \
           "seconds between such lines while there is work")                                       \
    OPTION(LOG, STRING, step_log, "", 0, 0, "",                                                    \
           "file that gets a line for each step of the engine: its time and what was in it")       \
    OPTION(BENCH, INT, prompt_tokens, "512", 1, 1 << 20, "",                                       \
           "tokens of a prompt; its figure has no floor, as arithmetic bounds it and no peak of "  \
           "that is measured")                                                                     \
    OPTION(BENCH, INT, prompt_batch, "1", 1, 4096, "",                                             \
           "prompts computed together in the prompt's figure")                                     \
    OPTION(BENCH, INT, decode_prompt_tokens, "16", 1, 1 << 20, "",                                 \
           "tokens of the prompts in front of the decode steps")                                   \
    OPTION(BENCH, INT, output_tokens, "128", 1, 1 << 20, "", "tokens of an answer")                \
    OPTION(BENCH, LIST, batch, "1,2,4,8,16,32", 0, 32, "", "sizes of the batches to decode")       \
    OPTION(BENCH, INT, requests, "32", 0, 1 << 20, "",                                             \
           "requests of the throughput run; 0: leave it out")                                      \
    OPTION(BENCH, REAL, request_rate, "0", 0, 1e6, "",                                             \
           "of these, arrivals a second, as a Poisson process of --seed; 0: all at once")          \
    OPTION(BENCH, INT, repeat, "5", 1, 1000, "", "runs of a figure; the median counts")            \
    OPTION(BENCH, BOOL, smoke, "false", 0, 1, "", "tiny sizes: shows that it runs, not how fast")

#define CONFIG_GROUPS(GROUP)                                                                       \
    GROUP(MODEL, "Model")                                                                          \
    GROUP(DEVICE, "Device and memory")                                                             \
    GROUP(SCHEDULER, "Scheduler")                                                                  \
    GROUP(HTTP, "HTTP")                                                                            \
    GROUP(LIMITS, "Limits and defaults of a request")                                              \
    GROUP(LOG, "Log")                                                                              \
    GROUP(BENCH, "Benchmark")

struct config_list {
    char **item; /* [count] */
    int32_t count;
};

/* Indexes of the CHOICE options. */
enum config_load { CONFIG_LOAD_AUTO, CONFIG_LOAD_DUMMY };
enum config_device { CONFIG_DEVICE_AUTO, CONFIG_DEVICE_CPU, CONFIG_DEVICE_CUDA };
enum config_kernels { CONFIG_KERNELS_AUTO, CONFIG_KERNELS_PORTABLE };
enum config_log_level { CONFIG_LOG_ERROR, CONFIG_LOG_WARN, CONFIG_LOG_INFO, CONFIG_LOG_DEBUG };
enum config_log_format { CONFIG_LOG_TEXT, CONFIG_LOG_JSON };

#define CONFIG_TYPE_STRING  const char *
#define CONFIG_TYPE_LIST    struct config_list
#define CONFIG_TYPE_SECRETS struct config_list
#define CONFIG_TYPE_INT     int32_t
#define CONFIG_TYPE_LENGTH  int32_t
#define CONFIG_TYPE_BIG     int64_t
#define CONFIG_TYPE_BYTES   int64_t
#define CONFIG_TYPE_REAL    double
#define CONFIG_TYPE_BOOL    bool
#define CONFIG_TYPE_CHOICE  int32_t

enum config_option {
#define OPTION(group, kind, member, fallback, least, greatest, choices, help) CONFIG_##member,
    CONFIG_OPTIONS(OPTION)
#undef OPTION
        CONFIG_OPTION_COUNT
};

/* Who said what an option is. */
enum config_source {
    CONFIG_BY_DEFAULT,
    CONFIG_BY_DEVICE, /* a default that config_resolve chose */
    CONFIG_BY_FILE,
    CONFIG_BY_ENVIRONMENT,
    CONFIG_BY_FLAG,
};

enum config_command { CONFIG_SERVE, CONFIG_BENCH, CONFIG_TUNE };

/* What the command line asks for. */
enum config_action { CONFIG_RUN, CONFIG_HELP, CONFIG_VERSION, CONFIG_DUMP, CONFIG_CHECK };

struct config {
#define OPTION(group, kind, member, fallback, least, greatest, choices, help)                      \
    CONFIG_TYPE_##kind member;
    CONFIG_OPTIONS(OPTION)
#undef OPTION

    enum config_command command;
    enum config_action action;
    const char *file; /* --config, or NULL */
    struct config_origin {
        enum config_source source;
        int32_t line; /* of the file */
    } origin[CONFIG_OPTION_COUNT];
    char warning[256];        /* one line that an operator should see, or "" */
    char no_gpu[256];         /* why auto means the CPU, or "" */
    struct config_text *text; /* what the strings above point into */
};

/* Fills *config from the defaults, the file, the environment and argv[1 ...]; argv[0] is the
 * command's name. 0; -EINVAL: a flag or an environment variable is wrong; -EBADMSG: the file is,
 * or the key file. Then one line is in `error`. Call config_release in either case. */
int config_read(struct config *config, enum config_command command, int argc, char **argv,
                char *error, size_t error_bytes);
/* The defaults alone; for tests and tools. */
int config_defaults(struct config *config, enum config_command command);
/* Reads a file's text (YAML, named `name` in messages) over what *config holds, as config_read
 * does for --config: 0 or -EBADMSG and one line. */
int config_read_yaml(struct config *config, const char *name, const char *text, size_t text_bytes,
                     char *error, size_t error_bytes);
/* Puts in what 0 and auto left to the device, which is a GPU or a CPU: afterwards `device` is
 * never auto, and max_num_seqs and max_num_batched_tokens are above 0. */
void config_resolve(struct config *config, bool gpu);
void config_release(struct config *config);

/* An environment variable of another name than an option's (NOTIFY_SOCKET), or NULL. */
const char *config_environment(const char *name);

void config_print_help(FILE *out, enum config_command command);
/* YAML of what is in force, with the source of each option; secrets are left out. */
void config_print_dump(FILE *out, const struct config *config);
void config_print_yaml(FILE *out); /* configs/quire.yaml */
void config_print_docs(FILE *out); /* docs/config.md */

/* The nearest name to `word` among count names, or NULL when none is near. */
const char *config_nearest(const char *word, const char *const *name, int32_t count);

#endif
