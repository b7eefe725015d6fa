/* What an endpoint sees of HTTP.
 *
 * A handler is called once, on an HTTP thread, when the request is whole and may be answered
 * (method, path, key, media type, size and readiness were checked). It replies with exactly one
 * of exchange_reply, exchange_error and exchange_run, and does no long work: prompts are
 * tokenised by the text threads. All functions here are for that thread.
 */
#ifndef SERVER_API_H
#define SERVER_API_H

#include "server/json_write.h"
#include "server/stream.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct exchange; /* one request and its reply; http.c */
struct engine;   /* server/engine.h */
struct config;   /* server/config.h */
struct job;      /* server/engine.h */

/* The table of endpoints: routes.c. A path that ends in "/" + "*" takes the rest, which may hold
 * slashes. Every path under /v1 answers without /v1 too. */
enum route_flags {
    ROUTE_OPEN = 1,  /* needs no key */
    ROUTE_QUIET = 2, /* no line in the access log */
    ROUTE_EARLY = 4, /* answers while the model loads and while draining */
    ROUTE_TEXT = 8,  /* takes a JSON body */
};

struct route {
    const char *method;
    const char *path;
    void (*handle)(struct exchange *exchange);
    unsigned flags;
    const char *help; /* one sentence, for docs/api.md */
};

extern const struct route routes[];
extern const int32_t route_count;

/* The route of `method` and `path` (decoded, without query), or NULL. *rest: what "*" took.
 * *allow: the methods that the path knows, as bits of route_methods; 0: an unknown path. */
const struct route *route_find(const char *method, const char *path, const char **rest,
                               unsigned *allow);
enum { ROUTE_GET = 1, ROUTE_HEAD = 2, ROUTE_POST = 4, ROUTE_OPTIONS = 8 };
/* "GET, HEAD, OPTIONS" */
void route_methods(unsigned allow, char *text, size_t max);
/* Markdown table of all endpoints, and of the fields of those that take fields: docs/api.md. */
void route_document(struct json *text);

/* The request. */
const char *exchange_body(struct exchange *exchange, size_t *bytes);    /* not NUL-terminated */
const char *exchange_rest(struct exchange *exchange);                   /* what "*" took */
const char *exchange_query(struct exchange *exchange, const char *key); /* NULL: not there */
const char *exchange_header(struct exchange *exchange, const char *name);
const char *exchange_id(struct exchange *exchange); /* x-request-id: the caller's or a new one */
int64_t exchange_arrival_us(struct exchange *exchange); /* CLOCK_MONOTONIC */

/* The server. The engine is NULL until the model is loaded (ROUTE_EARLY handlers only). */
struct engine *exchange_engine(struct exchange *exchange);
const struct config *exchange_config(struct exchange *exchange);
enum api_state { API_LOADING, API_READY, API_DRAINING, API_DEAD };
enum api_state exchange_state(struct exchange *exchange);
int64_t exchange_load(struct exchange *exchange); /* requests in flight in the engine */

/* The reply. `body` is taken: it is empty afterwards. */
void exchange_reply(struct exchange *exchange, int32_t status, const char *media_type,
                    struct json *body);
void exchange_json(struct exchange *exchange, struct json *body); /* 200 */
void exchange_header_add(struct exchange *exchange, const char *name, const char *value);

/* Errors: always {"error": {message, type, param, code}}. */
void exchange_error(struct exchange *exchange, const struct stream_error *error);
/* The error object as JSON, without a line feed. */
void api_error_write(struct json *text, const struct stream_error *error);

/* A reply that comes from an engine's stream. */
enum output_state {
    OUTPUT_MORE,   /* something was written; call again */
    OUTPUT_EMPTY,  /* nothing is there now */
    OUTPUT_END,    /* all was written */
    OUTPUT_FAILED, /* the stream failed and the error was written: end without a good end */
    OUTPUT_GONE,   /* the client is gone: nothing to write */
};

struct output {
    bool whole; /* one JSON reply when all is there, else an event stream from the first piece */
    /* Writes what the stream has: for whole, everything at once. */
    enum output_state (*write)(void *context, struct stream *stream, struct json *text);
    void (*free)(void *context);
    void *context;
};

/* The waiter to create a stream with: it parks and resumes this exchange's connection. */
const struct stream_waiter *exchange_waiter(struct exchange *exchange);
/* Submits the jobs (taken, whatever happens) and sends what becomes of them through `output`
 * (its context is taken too). The exchange takes over the caller's hold of the stream. */
void exchange_run(struct exchange *exchange, struct stream *stream, struct job *jobs,
                  const struct output *output);

/* api_models.c: the names that the model answers to; the first one is reported. */
const char *api_model_name(const struct config *config, int32_t index); /* NULL: no more */
/* Whether a request's "model" (no value, "" or null: ours) means the served one; else *error. */
struct json_value; /* server/json_read.h */
bool api_model_check(const struct config *config, const struct json_value *model,
                     struct stream_error *error);
/* The name to report for it: as asked for, else the first one. */
const char *api_model_called(const struct config *config, const struct json_value *model);
/* "quire-0.1.0-..." : the build, the model and what decides its numbers. */
void api_fingerprint(struct engine *engine, char *text, size_t max);

/* Tables of fields, for docs/api.md. */
void api_completions_document(struct json *text);
void api_tokens_document(struct json *text);

/* Endpoints: one file each; routes.c has the table. */
void api_completions(struct exchange *exchange);
void api_models(struct exchange *exchange);
void api_model(struct exchange *exchange);
void api_tokenize(struct exchange *exchange);
void api_detokenize(struct exchange *exchange);
void api_health(struct exchange *exchange);
void api_live(struct exchange *exchange);
void api_version(struct exchange *exchange);
void api_load(struct exchange *exchange);
void api_metrics(struct exchange *exchange);
void api_reset_cache(struct exchange *exchange);

#endif
