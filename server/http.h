/* The HTTP server: libmicrohttpd's epoll pool, bodies, replies, parking, hang-ups.
 *
 * Started before the model is loaded: /health answers 503 and endpoints that need a model answer
 * 503 model_loading until http_set_engine. Nothing else includes microhttpd.h.
 */
#ifndef SERVER_HTTP_H
#define SERVER_HTTP_H

#include <stddef.h>
#include <stdint.h>

struct config; /* server/config.h */
struct engine; /* server/engine.h */
struct http;   /* opaque */

/* Listens and serves. Negative errno and a line in `error` (-EADDRINUSE: the port is taken).
 * `config` must stay as it is until http_stop. */
int http_start(struct http **http, const struct config *config, char *error, size_t error_bytes);

/* The model is loaded and the engine runs: requests are taken from now on. */
void http_set_engine(struct http *http, struct engine *engine);

/* First half of the stop: no new connections, new requests get 503, /health says 503. Running
 * ones go on. Any thread, idempotent. */
void http_drain(struct http *http);

/* Waits until no request is in flight or grace_us is over; returns how many are left. */
int64_t http_wait_idle(struct http *http, int64_t grace_us);

/* Second half: what still runs fails with 503; joins the threads. The engine must still be there
 * (engine_stop comes after); NULL is fine. */
void http_stop(struct http *http);

/* The port in use, for --port 0. */
uint16_t http_port(const struct http *http);

#endif
