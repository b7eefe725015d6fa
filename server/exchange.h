/* One request and its reply, as http.c and exchange.c share it; endpoints see api.h only.
 *
 * Everything of an exchange belongs to the HTTP thread of its connection, except what says so.
 */
#ifndef SERVER_EXCHANGE_H
#define SERVER_EXCHANGE_H

#include "server/api.h"
#include "server/head.h"

#include <pthread.h>
#include <stdatomic.h>

struct MHD_Connection;
struct MHD_Daemon;
struct deadlines;
struct peer;

enum { EXCHANGE_HEADER_MAX = 4 };

struct http {
    const struct config *config;
    struct MHD_Daemon *daemon;
    struct deadlines *deadlines;
    uint16_t port;
    int listen_fd; /* ours again once quiesced; -1: closed */
    uint64_t id_seed[2];
    _Atomic uint64_t id_serial;
    _Atomic(struct engine *) engine;
    atomic_bool draining;

    pthread_mutex_t lock;
    pthread_cond_t idle;
    struct exchange *running; /* guarded by lock: those with a stream */
    int64_t running_count;    /* guarded by lock */
    bool stopping;            /* guarded by lock: nothing may begin to run */
};

enum phase {
    PHASE_BODY,    /* arriving */
    PHASE_RUNNING, /* the engine works on it */
    PHASE_REPLIED, /* a reply is queued */
};

struct header {
    char name[32];
    char value[HEAD_ID_MAX + 1];
};

struct exchange {
    struct http *http;
    struct MHD_Connection *connection;
    struct peer *peer;
    const struct route *route; /* NULL: none */
    char *path;
    const char *rest; /* within path */
    enum phase phase;
    bool alive; /* whether the callback in progress lets the connection live */
    int64_t arrival_us;
    char id[HEAD_ID_MAX + 1];

    bool refused; /* the reply is `refusal`; the body is read, not kept */
    bool close;   /* the connection must end with the reply */
    struct stream_error refusal;

    char *body;
    size_t body_bytes, body_max;
    size_t discarded_bytes;

    struct header header[EXCHANGE_HEADER_MAX];
    int32_t header_count;
    int32_t status; /* 0: no reply yet */
    int64_t reply_bytes;

    /* A reply from the engine. */
    struct stream *stream; /* held; NULL: none */
    struct stream_waiter waiter;
    struct output output;
    struct json out; /* formatted, not yet sent */
    size_t out_sent;
    bool streaming;
    bool ended; /* everything was formatted */
    bool gone;  /* there is no one to send it to */

    struct exchange *next, *previous; /* guarded by http->lock */
    bool told;                        /* guarded by http->lock: its stream was failed */
};

struct exchange *exchange_create(struct http *http, const char *path); /* NULL: no memory */
void exchange_free(struct exchange *exchange);
void exchange_choose_id(struct exchange *exchange, const struct head *head);

/* The list of exchanges that the engine works for; false: the server is stopping. */
bool exchange_enter(struct exchange *exchange);
void exchange_leave(struct exchange *exchange);
int64_t exchange_running(struct http *http);
/* Fails the streams of all that run, with 503; lets none begin from then on. */
void exchange_fail_all(struct http *http);

/* Appends `bytes` of body; false: out of memory. `said` is what Content-Length said, or -1. */
bool exchange_append(struct exchange *exchange, const char *text, size_t bytes, int64_t said);
/* Formats what the stream has, up to a write's worth. */
enum output_state exchange_fill(struct exchange *exchange);
/* Moves at most max bytes of what is formatted: whole events if one fits. */
size_t exchange_drain(struct exchange *exchange, char *buffer, size_t max);

/* The access log's line, if one is wanted. */
void exchange_log(const struct exchange *exchange, const struct stream_usage *usage);

#endif
