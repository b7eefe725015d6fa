/* The HTTP server; see http.h, and api.h for what endpoints see of it.
 *
 * The life of a request: `begin` judges its head (first callback), `take_body` collects its body,
 * `dispatch` calls its handler (last callback). A handler that started work leaves the connection
 * parked; MHD calls again when the stream's notifier resumed it, and `go_on` sends the reply.
 * A reply in the first callback makes MHD close the connection: only faults that must close do.
 *
 * Threads: an exchange belongs to the MHD thread of its connection. Other threads only end its
 * stream, and resume the connection through the stream's waiter; a parked connection is suspended
 * and an unparked one is not, so that no resume can come for an exchange that is gone.
 */
#include "server/http.h"

#include "server/deadline.h"
#include "server/engine.h"
#include "server/exchange.h"
#include "server/judge.h"
#include "server/listen.h"
#include "server/log.h"
#include "server/metrics.h"

#include <errno.h>
#include <microhttpd.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

enum {
    CONNECTION_MEMORY = 16 << 10, /* headers, and a chunk of the body or of the stream */
    STOP_WAIT_US = 1000000,
};

const char *exchange_query(struct exchange *exchange, const char *key)
{
    return MHD_lookup_connection_value(exchange->connection, MHD_GET_ARGUMENT_KIND, key);
}

const char *exchange_header(struct exchange *exchange, const char *name)
{
    return MHD_lookup_connection_value(exchange->connection, MHD_HEADER_KIND, name);
}

/* ---- replies ---- */

/* Queues `response` (taken) with the headers that every reply has. */
static void queue(struct exchange *exchange, int32_t status, struct MHD_Response *response,
                  const char *media_type)
{
    char elapsed[32];

    exchange->phase = PHASE_REPLIED;
    exchange->status = status;
    if (response == NULL) {
        exchange->alive = false;
        return;
    }
    if (media_type != NULL)
        MHD_add_response_header(response, "Content-Type", media_type);
    MHD_add_response_header(response, "x-request-id", exchange->id);
    snprintf(elapsed, sizeof elapsed, "%lld",
             (long long)(deadlines_now() - exchange->arrival_us) / 1000);
    MHD_add_response_header(response, "openai-processing-ms", elapsed);
    for (int32_t i = 0; i < exchange->header_count; i++)
        MHD_add_response_header(response, exchange->header[i].name, exchange->header[i].value);
    if (exchange->close || atomic_load(&exchange->http->draining))
        MHD_add_response_header(response, "Connection", "close");
    exchange->alive =
        MHD_queue_response(exchange->connection, (unsigned)status, response) == MHD_YES;
    MHD_destroy_response(response);
}

void exchange_reply(struct exchange *exchange, int32_t status, const char *media_type,
                    struct json *body)
{
    struct MHD_Response *response;

    if (body->lost) { /* Half a reply is none. */
        json_release(body);
        struct stream_error error =
            stream_error_make(503, "out_of_memory", NULL, "There is no memory for this reply.");
        api_error_write(body, &error);
        status = error.status;
        media_type = "application/json";
    }
    exchange->reply_bytes = (int64_t)body->bytes;
    if (body->bytes > 0) {
        response = MHD_create_response_from_buffer(body->bytes, body->text, MHD_RESPMEM_MUST_FREE);
        *body = (struct json){0};
    } else {
        response = MHD_create_response_from_buffer(0, (void *)"", MHD_RESPMEM_PERSISTENT);
        json_release(body);
    }
    queue(exchange, status, response, media_type);
}

void exchange_json(struct exchange *exchange, struct json *body)
{
    exchange_reply(exchange, 200, "application/json", body);
}

void exchange_error(struct exchange *exchange, const struct stream_error *error)
{
    struct json body = {0};

    if (error->status == 429 || error->status == 503) {
        bool loading = strcmp(error->code, "model_loading") == 0;
        exchange_header_add(exchange, "Retry-After", loading ? "5" : "1");
        exchange_header_add(exchange, "retry-after-ms", loading ? "5000" : "1000");
    }
    if (exchange->route == NULL || !(exchange->route->flags & ROUTE_QUIET))
        metrics_error(error->code);
    if (error->status == 401)
        exchange_header_add(exchange, "WWW-Authenticate", "Bearer");
    api_error_write(&body, error);
    exchange_reply(exchange, error->status, "application/json", &body);
}

/* ---- replies from the engine ---- */

static void park(void *context)
{
    struct exchange *exchange = context;
    MHD_suspend_connection(exchange->connection);
}

static void resume(void *context)
{
    struct exchange *exchange = context;
    MHD_resume_connection(exchange->connection);
}

const struct stream_waiter *exchange_waiter(struct exchange *exchange)
{
    exchange->waiter = (struct stream_waiter){exchange, park, resume};
    return &exchange->waiter;
}

static ssize_t read_events(void *context, uint64_t position, char *buffer, size_t max)
{
    struct exchange *exchange = context;

    (void)position;
    while (exchange->out_sent == exchange->out.bytes) {
        if (exchange->gone)
            return MHD_CONTENT_READER_END_WITH_ERROR;
        if (exchange->ended)
            return MHD_CONTENT_READER_END_OF_STREAM;
        if (exchange_fill(exchange) == OUTPUT_EMPTY && exchange->out.bytes == 0 &&
            stream_wait(exchange->stream, false) == STREAM_PARKED)
            return 0;
    }
    return (ssize_t)exchange_drain(exchange, buffer, max);
}

static void begin_events(struct exchange *exchange)
{
    struct MHD_Response *response =
        MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, 4096, read_events, exchange, NULL);

    if (response != NULL) {
        MHD_add_response_header(response, "Cache-Control", "no-cache");
        MHD_add_response_header(response, "X-Accel-Buffering", "no");
    }
    exchange->streaming = true;
    metrics_move(METRIC_SSE_STREAMS, 1);
    queue(exchange, 200, response, "text/event-stream; charset=utf-8");
}

/* No one is there to read a reply. */
static void abandon(struct exchange *exchange)
{
    exchange->gone = true;
    exchange->alive = false;
}

static void send_failure(struct exchange *exchange)
{
    struct stream_error error = stream_error(exchange->stream);

    if (error.status == 499)
        abandon(exchange);
    else
        exchange_error(exchange, &error);
}

static void send_whole(struct exchange *exchange)
{
    enum output_state state;

    do
        state = exchange->output.write(exchange->output.context, exchange->stream, &exchange->out);
    while (state == OUTPUT_MORE);
    if (state != OUTPUT_END) {
        send_failure(exchange);
        return;
    }
    exchange->ended = true;
    exchange_json(exchange, &exchange->out);
}

/* The stream may have something for us, or not yet. */
static void go_on(struct exchange *exchange)
{
    enum stream_state state = stream_wait(exchange->stream, exchange->output.whole);

    exchange->alive = true;
    if (state == STREAM_PARKED)
        return;
    if (state == STREAM_ERROR)
        send_failure(exchange);
    else if (exchange->output.whole)
        send_whole(exchange);
    else
        begin_events(exchange);
}

static int socket_of(struct exchange *exchange)
{
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(exchange->connection, MHD_CONNECTION_INFO_CONNECTION_FD);
    return info != NULL ? info->connect_fd : -1;
}

static void refuse_jobs(struct exchange *exchange, struct job *jobs, int reason)
{
    struct stream_error error;

    while (jobs != NULL) {
        struct job *next = jobs->next;
        job_free(jobs);
        jobs = next;
    }
    if (reason == -EAGAIN) {
        metrics_add(METRIC_REJECT_QUEUE, 1);
        error = stream_error_make(429, "queue_full", NULL,
                                  "Too many requests are waiting; try again in a moment.");
    } else {
        metrics_add(METRIC_REJECT_UNREADY, 1);
        error = stream_error_make(503, "shutting_down", NULL, "The server is shutting down.");
    }
    exchange_error(exchange, &error);
}

void exchange_run(struct exchange *exchange, struct stream *stream, struct job *jobs,
                  const struct output *output)
{
    struct engine *engine = exchange_engine(exchange);

    exchange->stream = stream; /* first: a stop that finds the exchange fails its stream */
    if (!exchange_enter(exchange)) {
        exchange->stream = NULL;
        refuse_jobs(exchange, jobs, -ESHUTDOWN);
        output->free(output->context);
        stream_release(stream);
        return;
    }
    exchange->output = *output;
    exchange->phase = PHASE_RUNNING;
    engine_watch(engine, socket_of(exchange), stream);
    int result = engine_submit(engine, jobs);
    if (result == 0)
        go_on(exchange);
    else
        refuse_jobs(exchange, jobs, result);
}

/* ---- arriving requests ---- */

static enum MHD_Result collect(void *context, enum MHD_ValueKind kind, const char *key,
                               size_t key_bytes, const char *value, size_t value_bytes)
{
    struct head *head = context;

    (void)kind;
    if (head->field_count < HEAD_FIELD_MAX)
        head->field[head->field_count] =
            (struct head_field){key, key_bytes, value != NULL ? value : "", value_bytes};
    head->field_count++;
    return MHD_YES;
}

static int64_t microseconds(double seconds)
{
    return (int64_t)(seconds * 1e6);
}

static struct peer *peer_of(struct MHD_Connection *connection)
{
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(connection, MHD_CONNECTION_INFO_SOCKET_CONTEXT);
    return info != NULL ? info->socket_context : NULL;
}

static void judge(struct exchange *exchange, const struct head *head)
{
    struct judgement judgement;

    judge_head(&judgement, head, exchange->http->config, exchange_state(exchange));
    exchange->route = judgement.route;
    exchange->rest = judgement.rest;
    exchange->refused = judgement.refused;
    exchange->refusal = judgement.error;
    exchange->close = judgement.close;
    if (judgement.allow[0] != '\0')
        exchange_header_add(exchange, "Allow", judgement.allow);
}

/* First callback: the head is there. */
static enum MHD_Result begin(struct http *http, struct MHD_Connection *connection, const char *path,
                             const char *method, const char *version, void **slot)
{
    struct exchange *exchange = exchange_create(http, path);

    if (exchange == NULL)
        return MHD_NO;
    *slot = exchange;
    exchange->connection = connection;
    exchange->peer = peer_of(connection);
    deadlines_arrive(http->deadlines, exchange->peer,
                     exchange->arrival_us + microseconds(http->config->request_timeout));

    struct head head = {.method = method, .path = exchange->path, .version = version};
    MHD_get_connection_values_n(connection, MHD_HEADER_KIND, collect, &head);
    exchange_choose_id(exchange, &head);
    judge(exchange, &head);
    exchange->alive = true;
    if (exchange->refused && exchange->close)
        exchange_error(exchange, &exchange->refusal);
    return exchange->alive ? MHD_YES : MHD_NO;
}

static enum MHD_Result take_body(struct exchange *exchange, const char *text, size_t bytes)
{
    const struct config *config = exchange->http->config;
    size_t limit = (size_t)config->max_body_bytes;
    const char *said = exchange_header(exchange, "Content-Length");

    if (!exchange->refused && exchange->body_bytes + bytes > limit) {
        exchange->refused = true;
        exchange->refusal = judge_too_large(config);
    }
    if (!exchange->refused &&
        !exchange_append(exchange, text, bytes, said != NULL ? atoll(said) : -1)) {
        exchange->refused = true;
        exchange->refusal =
            stream_error_make(503, "out_of_memory", NULL, "There is no memory for this request.");
    }
    if (exchange->refused)
        exchange->discarded_bytes += bytes;
    return exchange->discarded_bytes <= JUDGE_DISCARD_FACTOR * limit ? MHD_YES : MHD_NO;
}

/* Last callback: the request is whole. */
static enum MHD_Result dispatch(struct exchange *exchange)
{
    struct json empty = {0};

    deadlines_rest(exchange->http->deadlines, exchange->peer, 0);
    metrics_add(METRIC_REQUEST_BYTES, (int64_t)exchange->body_bytes);
    exchange->alive = true;
    if (exchange->refused)
        exchange_error(exchange, &exchange->refusal);
    else if (exchange->route == NULL) /* OPTIONS: the Allow header is the reply */
        exchange_reply(exchange, 204, NULL, &empty);
    else
        exchange->route->handle(exchange);
    return exchange->alive ? MHD_YES : MHD_NO;
}

static enum MHD_Result on_request(void *context, struct MHD_Connection *connection,
                                  const char *path, const char *method, const char *version,
                                  const char *text, size_t *bytes, void **slot)
{
    struct exchange *exchange = *slot;

    if (exchange == NULL)
        return begin(context, connection, path, method, version, slot);
    if (*bytes > 0) {
        enum MHD_Result result = take_body(exchange, text, *bytes);
        *bytes = 0;
        return result;
    }
    if (exchange->phase == PHASE_BODY)
        return dispatch(exchange);
    if (exchange->phase == PHASE_RUNNING)
        go_on(exchange);
    return exchange->alive ? MHD_YES : MHD_NO;
}

/* ---- the end of a request, of a connection ---- */

/* Ends what the engine still does for it, exactly once. */
static void leave_engine(struct exchange *exchange, struct stream_usage *usage)
{
    stream_cancel(exchange->stream); /* no-op when it has ended */
    engine_unwatch(exchange_engine(exchange), socket_of(exchange), exchange->stream);
    *usage = stream_usage(exchange->stream);
    if (exchange->output.free != NULL)
        exchange->output.free(exchange->output.context);
    if (exchange->streaming)
        metrics_move(METRIC_SSE_STREAMS, -1);
    exchange_leave(exchange);
    stream_release(exchange->stream);
    exchange->stream = NULL;
}

/* Whether the client left before its reply was whole. */
static bool cut_short(const struct exchange *exchange, enum MHD_RequestTerminationCode code)
{
    if (exchange->gone || exchange->status == 0)
        return true;
    return exchange->streaming && !exchange->ended && code != MHD_REQUEST_TERMINATED_COMPLETED_OK;
}

static void on_completed(void *context, struct MHD_Connection *connection, void **slot,
                         enum MHD_RequestTerminationCode code)
{
    struct http *http = context;
    struct exchange *exchange = *slot;
    struct stream_usage usage = {0};
    int64_t now = deadlines_now();

    (void)connection;
    if (exchange == NULL)
        return;
    *slot = NULL;
    if (cut_short(exchange, code)) {
        exchange->status = 499;
        metrics_add(METRIC_ABORT_DISCONNECT, 1);
    }
    if (exchange->stream != NULL)
        leave_engine(exchange, &usage);
    deadlines_rest(
        http->deadlines, exchange->peer,
        now + microseconds(http->config->keep_alive_timeout + http->config->request_timeout));
    metrics_add(METRIC_REPLY_BYTES, exchange->reply_bytes);
    if (exchange->route == NULL || !(exchange->route->flags & ROUTE_QUIET)) {
        metrics_http(exchange->route != NULL ? (int32_t)(exchange->route - routes) : -1,
                     exchange->status);
        metrics_observe(METRIC_HTTP_TIME, (double)(now - exchange->arrival_us) / 1e6);
    }
    exchange_log(exchange, &usage);
    exchange_free(exchange);
}

static void on_connection(void *context, struct MHD_Connection *connection, void **slot,
                          enum MHD_ConnectionNotificationCode code)
{
    struct http *http = context;
    const union MHD_ConnectionInfo *info;

    if (code == MHD_CONNECTION_NOTIFY_CLOSED) {
        metrics_move(METRIC_CONNECTIONS, -1);
        deadlines_remove(http->deadlines, *slot);
        *slot = NULL;
        return;
    }
    metrics_move(METRIC_CONNECTIONS, 1);
    info = MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CONNECTION_FD);
    if (info != NULL)
        *slot = deadlines_add(http->deadlines, info->connect_fd,
                              deadlines_now() + microseconds(http->config->request_timeout));
}

/* ---- start and stop ---- */

static void on_log(void *context, const char *format, va_list list)
{
    char message[512];

    (void)context;
    vsnprintf(message, sizeof message, format, list);
    message[strcspn(message, "\n")] = '\0';
    log_debug("http", "libmicrohttpd: %s", message);
}

static void on_panic(void *context, const char *file, unsigned line, const char *reason)
{
    (void)context;
    (void)file;
    log_error("http", "libmicrohttpd gave up: %s line=%u", reason != NULL ? reason : "", line);
    abort();
}

/* Before 1.0 the library takes bare line feeds, folded headers and text behind a NUL, and shows
 * none of it: docs/api.md says what that means. */
#if MHD_VERSION >= 0x01000000
#define STRICTNESS MHD_OPTION_CLIENT_DISCIPLINE_LVL, 1,
#else
#define STRICTNESS
#endif

/* As the library does it, except that %00 stays: a path must not end before its end. */
static size_t unescape(void *context, struct MHD_Connection *connection, char *text)
{
    (void)context;
    (void)connection;
    return head_unescape(text);
}

static bool start_daemon(struct http *http)
{
    const struct config *config = http->config;
    unsigned limit = (unsigned)config->max_connections * 2; /* MHD divides it among its threads */
    unsigned idle_s = (unsigned)(config->keep_alive_timeout + 0.999);
    unsigned threads = config->http_threads > 1 ? (unsigned)config->http_threads : 0;

    MHD_set_panic_func(on_panic, NULL);
    http->daemon = MHD_start_daemon(
        MHD_USE_EPOLL_INTERNAL_THREAD | MHD_ALLOW_SUSPEND_RESUME | MHD_USE_ERROR_LOG | MHD_USE_ITC,
        0, NULL, NULL, on_request, http, MHD_OPTION_EXTERNAL_LOGGER, on_log, NULL,
        MHD_OPTION_UNESCAPE_CALLBACK, unescape, NULL, STRICTNESS MHD_OPTION_LISTEN_SOCKET,
        http->listen_fd, MHD_OPTION_THREAD_POOL_SIZE, threads, MHD_OPTION_CONNECTION_LIMIT, limit,
        MHD_OPTION_CONNECTION_TIMEOUT, idle_s, MHD_OPTION_CONNECTION_MEMORY_LIMIT,
        (size_t)CONNECTION_MEMORY, MHD_OPTION_NOTIFY_COMPLETED, on_completed, http,
        MHD_OPTION_NOTIFY_CONNECTION, on_connection, http, MHD_OPTION_END);
    return http->daemon != NULL;
}

static void http_free(struct http *http)
{
    deadlines_stop(http->deadlines);
    if (http->listen_fd >= 0)
        close(http->listen_fd);
    pthread_cond_destroy(&http->idle);
    pthread_mutex_destroy(&http->lock);
    free(http);
}

static struct http *http_create(const struct config *config)
{
    struct http *http = calloc(1, sizeof *http);
    pthread_condattr_t attributes;

    if (http == NULL)
        return NULL;
    http->config = config;
    http->listen_fd = -1;
    pthread_mutex_init(&http->lock, NULL);
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&http->idle, &attributes);
    pthread_condattr_destroy(&attributes);
    if (getrandom(http->id_seed, sizeof http->id_seed, 0) != sizeof http->id_seed)
        http->id_seed[0] = (uint64_t)deadlines_now();
    return http;
}

int http_start(struct http **out, const struct config *config, char *error, size_t error_bytes)
{
    struct http *http = http_create(config);

    *out = NULL;
    if (http == NULL) {
        snprintf(error, error_bytes, "could not start the HTTP server: out of memory");
        return -ENOMEM;
    }
    http->listen_fd = listen_open(config->host, (uint16_t)config->port, error, error_bytes);
    if (http->listen_fd < 0) {
        int reason = http->listen_fd;
        http_free(http);
        return reason;
    }
    int64_t files = listen_raise_limit((int64_t)config->max_connections * 2 + 256);
    if (files < (int64_t)config->max_connections + 64)
        log_warn("http", "the limit of open files is low open_files=%lld max_connections=%d",
                 (long long)files, config->max_connections);
    http->port = listen_port(http->listen_fd);
    http->deadlines = deadlines_start();
    if (http->deadlines == NULL || !start_daemon(http)) {
        snprintf(error, error_bytes, "could not start the HTTP server: no memory or no thread");
        http_free(http);
        return -ENOMEM;
    }
    *out = http;
    return 0;
}

void http_set_engine(struct http *http, struct engine *engine)
{
    atomic_store(&http->engine, engine);
    metrics_set(METRIC_READY, 1);
}

void http_drain(struct http *http)
{
    if (atomic_exchange(&http->draining, true))
        return;
    metrics_set(METRIC_READY, 0);
    if (MHD_quiesce_daemon(http->daemon) != MHD_INVALID_SOCKET) {
        close(http->listen_fd);
        http->listen_fd = -1;
    }
}

int64_t http_wait_idle(struct http *http, int64_t grace_us)
{
    int64_t at = deadlines_now() + grace_us;
    struct timespec until = {.tv_sec = at / 1000000, .tv_nsec = at % 1000000 * 1000};
    int result = 0;

    pthread_mutex_lock(&http->lock);
    while (http->running_count > 0 && result == 0)
        result = pthread_cond_timedwait(&http->idle, &http->lock, &until);
    int64_t left = http->running_count;
    pthread_mutex_unlock(&http->lock);
    return left;
}

void http_stop(struct http *http)
{
    if (http == NULL)
        return;
    http_drain(http);
    exchange_fail_all(http);
    /* Time to hear why. From now on no stream parks its connection any more, and MHD takes in the
     * resumed ones before it closes all: it would abort on a suspended one. */
    http_wait_idle(http, STOP_WAIT_US);
    MHD_stop_daemon(http->daemon);
    http_free(http);
}

uint16_t http_port(const struct http *http)
{
    return http->port;
}
