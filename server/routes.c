/* The table of endpoints. A new one is an api_NAME.c and a line here. */
#include "server/api.h"
#include "server/metrics.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>

const struct route routes[] = {
    {"POST", "/v1/completions", api_completions, ROUTE_TEXT,
     "Continues a prompt; a JSON reply, or an event stream with `stream`."},
    {"GET", "/v1/models", api_models, 0, "Lists the model under all its names."},
    {"GET", "/v1/models/*", api_model, 0, "One model; 404 `model_not_found` for others."},
    {"POST", "/tokenize", api_tokenize, ROUTE_TEXT, "Text to token ids."},
    {"POST", "/detokenize", api_detokenize, ROUTE_TEXT, "Token ids to text."},
    {"GET", "/health", api_health, ROUTE_OPEN | ROUTE_QUIET | ROUTE_EARLY,
     "200 when ready; 503 while loading or draining, or with a dead engine."},
    {"GET", "/health/ready", api_health, ROUTE_OPEN | ROUTE_QUIET | ROUTE_EARLY, "As `/health`."},
    {"GET", "/health/live", api_live, ROUTE_OPEN | ROUTE_QUIET | ROUTE_EARLY,
     "200 unless the engine is dead."},
    {"GET", "/ping", api_health, ROUTE_OPEN | ROUTE_QUIET | ROUTE_EARLY, "As `/health`."},
    {"POST", "/ping", api_health, ROUTE_OPEN | ROUTE_QUIET | ROUTE_EARLY, "As `/health`."},
    {"GET", "/version", api_version, ROUTE_OPEN | ROUTE_QUIET | ROUTE_EARLY, "The version."},
    {"GET", "/load", api_load, ROUTE_QUIET | ROUTE_EARLY, "Requests in flight."},
    {"GET", "/metrics", api_metrics, ROUTE_QUIET | ROUTE_EARLY,
     "Prometheus text; `?names=quire` or `?names=vllm` for one set of names."},
    {"POST", "/reset_prefix_cache", api_reset_cache, 0,
     "Forgets cached prefixes; `success` is false while a block is in use."},
};

const int32_t route_count = sizeof routes / sizeof routes[0];
_Static_assert(sizeof routes / sizeof routes[0] < METRIC_ROUTE_MAX, "more routes than counters");

static unsigned method_bit(const char *method)
{
    return strcmp(method, "GET") == 0 ? ROUTE_GET | ROUTE_HEAD : ROUTE_POST;
}

/* Whether `pattern` takes `path`; *rest is what its "*" stands for. */
static bool takes(const char *pattern, const char *path, const char **rest)
{
    size_t bytes = strlen(pattern);

    if (pattern[bytes - 1] != '*') {
        /* One slash too many at the end is forgiven, as most servers do. */
        size_t path_bytes = strlen(path);
        if (path_bytes == bytes + 1 && path[bytes] == '/')
            path_bytes--;
        return path_bytes == bytes && memcmp(pattern, path, bytes) == 0;
    }
    if (strncmp(pattern, path, bytes - 1) != 0 || path[bytes - 1] == '\0')
        return false;
    *rest = path + bytes - 1;
    return true;
}

const struct route *route_find(const char *method, const char *path, const char **rest,
                               unsigned *allow)
{
    const struct route *found = NULL;
    bool head = strcmp(method, "HEAD") == 0;

    *allow = 0;
    *rest = "";
    for (int32_t i = 0; i < route_count; i++) {
        const char *pattern = routes[i].path;
        bool versioned = strncmp(pattern, "/v1/", 4) == 0;
        const char *taken = "";
        if (!takes(pattern, path, &taken) && !(versioned && takes(pattern + 3, path, &taken)))
            continue;
        *allow |= method_bit(routes[i].method) | ROUTE_OPTIONS;
        if (found == NULL && strcmp(routes[i].method, head ? "GET" : method) == 0) {
            found = &routes[i];
            *rest = taken;
        }
    }
    return found;
}

void route_methods(unsigned allow, char *text, size_t max)
{
    static const char *const name[] = {"GET", "HEAD", "POST", "OPTIONS"};
    size_t bytes = 0;

    assert(max >= 32);
    text[0] = '\0';
    for (int i = 0; i < 4; i++) {
        if (allow & 1U << i)
            bytes +=
                (size_t)snprintf(text + bytes, max - bytes, "%s%s", bytes > 0 ? ", " : "", name[i]);
    }
}

void route_document(struct json *text)
{
    json_raw(text, "# The HTTP interface\n\n"
                   "Made from the tables in `server/`; do not edit. Every path under `/v1` "
                   "answers without `/v1` too.\n\n"
                   "Errors are `{\"error\": {\"message\", \"type\", \"param\", \"code\"}}` with "
                   "all four members. Every reply has `x-request-id`: the caller's, or a new one. "
                   "In a stream a failure is one event with that object, and no `[DONE]`.\n\n"
                   "A head that a proxy might read in another way (two lengths, a length and a "
                   "chunked body, two hosts, odd names) gets 400 and the end of the connection. "
                   "libmicrohttpd before 1.0 hides bare line feeds, folded headers and NUL "
                   "characters from us: with it, keep a strict proxy between quire and people "
                   "whom you do not trust.\n\n"
                   "## Endpoints\n\n"
                   "| method | path | key | while loading | what it does |\n"
                   "|---|---|---|---|---|\n");
    for (int32_t i = 0; i < route_count; i++)
        json_print(text, "| %s | `%s` | %s | %s | %s |\n", routes[i].method, routes[i].path,
                   routes[i].flags & ROUTE_OPEN ? "no" : "yes",
                   routes[i].flags & ROUTE_EARLY ? "answers" : "503", routes[i].help);
    json_raw(text, "\n## Fields of `POST /v1/completions`\n\n"
                   "`temperature`, `top_p`, `top_k`, `min_p` and `repetition_penalty` have the "
                   "defaults of the model's `generation_config.json` where it has some, unless "
                   "`--generation-config` or `--override-generation-config` says otherwise; a "
                   "`max_new_tokens` of those two options bounds `max_tokens`.\n\n");
    api_completions_document(text);
    json_raw(text, "\n## Fields of `POST /tokenize` and `POST /detokenize`\n\n");
    api_tokens_document(text);
    json_raw(text, "\n## Metrics\n\n");
    metrics_document(text);
}
