/* Exchanges without their socket: what endpoints ask, the list of running ones, bytes on their
 * way in and out. http.c does the rest.
 */
#include "server/exchange.h"

#include "server/deadline.h"
#include "server/engine.h"
#include "server/log.h"
#include "server/metrics.h"

#include <assert.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { COALESCE_BYTES = 8 << 10 }; /* of events that are put together before a write */

/* ---- what endpoints see ---- */

const char *exchange_body(struct exchange *exchange, size_t *bytes)
{
    *bytes = exchange->body_bytes;
    return exchange->body != NULL ? exchange->body : "";
}

const char *exchange_rest(struct exchange *exchange)
{
    return exchange->rest;
}

const char *exchange_id(struct exchange *exchange)
{
    return exchange->id;
}

int64_t exchange_arrival_us(struct exchange *exchange)
{
    return exchange->arrival_us;
}

struct engine *exchange_engine(struct exchange *exchange)
{
    return atomic_load(&exchange->http->engine);
}

const struct config *exchange_config(struct exchange *exchange)
{
    return exchange->http->config;
}

enum api_state exchange_state(struct exchange *exchange)
{
    struct http *http = exchange->http;
    struct engine *engine = atomic_load(&http->engine);

    if (engine != NULL && !engine_alive(engine))
        return API_DEAD;
    if (atomic_load(&http->draining))
        return API_DRAINING;
    return engine == NULL ? API_LOADING : API_READY;
}

int64_t exchange_load(struct exchange *exchange)
{
    return exchange_running(exchange->http);
}

void exchange_header_add(struct exchange *exchange, const char *name, const char *value)
{
    assert(exchange->header_count < EXCHANGE_HEADER_MAX);
    struct header *header = &exchange->header[exchange->header_count++];
    snprintf(header->name, sizeof header->name, "%s", name);
    snprintf(header->value, sizeof header->value, "%s", value);
}

static void write_member(struct json *text, const char *name, const char *value)
{
    json_raw(text, name);
    if (value[0] != '\0')
        json_string(text, value, strlen(value));
    else
        json_raw(text, "null");
}

void api_error_write(struct json *text, const struct stream_error *error)
{
    json_raw(text, "{\"error\":{\"message\":");
    json_string(text, error->message, strlen(error->message));
    json_raw(text, ",\"type\":");
    json_string(text, error->type, strlen(error->type));
    write_member(text, ",\"param\":", error->param);
    write_member(text, ",\"code\":", error->code);
    json_raw(text, "}}");
}

/* ---- from birth to death ---- */

struct exchange *exchange_create(struct http *http, const char *path)
{
    struct exchange *exchange = calloc(1, sizeof *exchange);

    if (exchange == NULL)
        return NULL;
    exchange->http = http;
    exchange->arrival_us = deadlines_now();
    exchange->rest = "";
    exchange->path = strdup(path);
    if (exchange->path == NULL) {
        exchange_free(exchange);
        return NULL;
    }
    return exchange;
}

void exchange_free(struct exchange *exchange)
{
    json_release(&exchange->out);
    free(exchange->body);
    free(exchange->path);
    free(exchange);
}

static uint64_t mix(uint64_t x)
{
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ULL;
    x = (x ^ x >> 27) * 0x94d049bb133111ebULL;
    return x ^ x >> 31;
}

/* The caller's id when it is safe, else a fresh one: not secret, but unlikely to come twice. */
void exchange_choose_id(struct exchange *exchange, const struct head *head)
{
    struct http *http = exchange->http;
    const char *id = head_value(head, "x-request-id");

    if (head_id_good(id)) {
        snprintf(exchange->id, sizeof exchange->id, "%s", id);
        return;
    }
    uint64_t serial = atomic_fetch_add(&http->id_serial, 1);
    snprintf(exchange->id, sizeof exchange->id, "%016llx%016llx",
             (unsigned long long)mix(http->id_seed[0] + serial),
             (unsigned long long)mix(http->id_seed[1] ^ serial * 0x9e3779b97f4a7c15ULL));
}

bool exchange_enter(struct exchange *exchange)
{
    struct http *http = exchange->http;

    pthread_mutex_lock(&http->lock);
    bool enters = !http->stopping;
    if (enters) {
        exchange->next = http->running;
        if (exchange->next != NULL)
            exchange->next->previous = exchange;
        http->running = exchange;
        http->running_count++;
    }
    pthread_mutex_unlock(&http->lock);
    return enters;
}

void exchange_leave(struct exchange *exchange)
{
    struct http *http = exchange->http;

    pthread_mutex_lock(&http->lock);
    if (exchange->next != NULL)
        exchange->next->previous = exchange->previous;
    if (exchange->previous != NULL)
        exchange->previous->next = exchange->next;
    else
        http->running = exchange->next;
    http->running_count--;
    if (http->running_count == 0)
        pthread_cond_broadcast(&http->idle);
    pthread_mutex_unlock(&http->lock);
}

int64_t exchange_running(struct http *http)
{
    pthread_mutex_lock(&http->lock);
    int64_t count = http->running_count;
    pthread_mutex_unlock(&http->lock);
    return count;
}

/* One stream that was not told yet, held; NULL: there is none. */
static struct stream *next_untold(struct http *http)
{
    struct stream *stream = NULL;

    pthread_mutex_lock(&http->lock);
    http->stopping = true;
    for (struct exchange *exchange = http->running; exchange != NULL && stream == NULL;
         exchange = exchange->next) {
        if (!exchange->told) {
            exchange->told = true;
            stream = exchange->stream;
            stream_hold(stream);
        }
    }
    pthread_mutex_unlock(&http->lock);
    return stream;
}

void exchange_fail_all(struct http *http)
{
    const struct stream_error error =
        stream_error_make(503, "shutting_down", NULL, "The server is shutting down.");
    struct stream *stream;

    while ((stream = next_untold(http)) != NULL) {
        stream_fail(stream, &error);
        stream_wake(stream);
        stream_release(stream);
        metrics_add(METRIC_ABORT_SHUTDOWN, 1);
    }
}

/* ---- bytes in and out ---- */

bool exchange_append(struct exchange *exchange, const char *text, size_t bytes, int64_t said)
{
    size_t need = exchange->body_bytes + bytes;

    if (need > exchange->body_max) {
        size_t max = need + need / 2 + 1024;
        if (exchange->body == NULL && said >= (int64_t)need)
            max = (size_t)said;
        char *grown = realloc(exchange->body, max);
        if (grown == NULL)
            return false;
        exchange->body = grown;
        exchange->body_max = max;
    }
    memcpy(exchange->body + exchange->body_bytes, text, bytes);
    exchange->body_bytes = need;
    return true;
}

enum output_state exchange_fill(struct exchange *exchange)
{
    enum output_state state = OUTPUT_MORE;

    json_clear(&exchange->out);
    exchange->out_sent = 0;
    while (state == OUTPUT_MORE && exchange->out.bytes < COALESCE_BYTES)
        state = exchange->output.write(exchange->output.context, exchange->stream, &exchange->out);
    if (state == OUTPUT_END || state == OUTPUT_FAILED)
        exchange->ended = true;
    if (state == OUTPUT_GONE || exchange->out.lost)
        exchange->gone = true;
    return state;
}

/* How much of what is formatted to hand over at once. */
static size_t portion(const char *text, size_t left, size_t max)
{
    if (left <= max)
        return left;
    for (size_t bytes = max; bytes >= 2; bytes--) {
        if (text[bytes - 1] == '\n' && text[bytes - 2] == '\n')
            return bytes;
    }
    return max;
}

size_t exchange_drain(struct exchange *exchange, char *buffer, size_t max)
{
    const char *text = exchange->out.text + exchange->out_sent;
    size_t bytes = portion(text, exchange->out.bytes - exchange->out_sent, max);

    memcpy(buffer, text, bytes);
    exchange->out_sent += bytes;
    exchange->reply_bytes += (int64_t)bytes;
    return bytes;
}

void exchange_log(const struct exchange *exchange, const struct stream_usage *usage)
{
    double ms = (double)(deadlines_now() - exchange->arrival_us) / 1000;
    const struct route *route = exchange->route;

    if (!exchange->http->config->access_log || (route != NULL && route->flags & ROUTE_QUIET))
        return;
    log_info("http",
             "request id=%s method=%s route=%s status=%d ms=%.1f bytes=%lld prompt_tokens=%lld "
             "cached_tokens=%lld completion_tokens=%lld",
             exchange->id, route != NULL ? route->method : "other",
             route != NULL ? route->path : "other", exchange->status, ms,
             (long long)exchange->reply_bytes, (long long)usage->prompt_tokens,
             (long long)usage->cached_tokens, (long long)usage->completion_tokens);
}
