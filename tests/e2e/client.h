/* An HTTP client for tests, over raw sockets, that sees what is on the wire.
 *
 * A connection is fed as bytes come, so that one thread can follow hundreds of streams. Waiting
 * functions give up after CLIENT_WAIT_MS. One thread a connection.
 */
#ifndef TESTS_E2E_CLIENT_H
#define TESTS_E2E_CLIENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { CLIENT_WAIT_MS = 120000 }; /* a sanitizer on a busy machine is slow, not wrong */

struct client {
    int fd;   /* -1: closed */
    char *in; /* [in_bytes] as received, from `parsed` on not yet looked at */
    size_t in_bytes, in_max, parsed;
    char *head; /* status line and fields, NUL-terminated; NULL: not yet whole */
    int status;
    bool chunked;
    bool done;       /* the reply is whole */
    bool broken;     /* the peer closed or broke the rules before that */
    bool split;      /* a chunk of an event stream did not hold whole events */
    int64_t rest;    /* bytes of the body, or of the chunk, to come; -1: a chunk's size is next */
    bool continued;  /* 100 Continue came */
    bool open_ended; /* the body ends with the connection */
    bool no_body;    /* set by the caller of HEAD: the length says nothing */
    char *body;      /* [body_bytes] NUL-terminated */
    size_t body_bytes, body_max;
    size_t event_at; /* where client_event goes on */
};

/* Connects to 127.0.0.1; false: refused. Close with client_close in either case. */
bool client_open(struct client *client, int port);
void client_close(struct client *client);

/* `fields` are whole lines with their CR LF, or "". A body brings its Content-Length and, unless
 * fields have one, Content-Type: application/json. False: the connection is gone. */
bool client_send(struct client *client, const char *method, const char *path, const char *fields,
                 const char *body);
bool client_send_raw(struct client *client, const char *bytes, size_t byte_count);

/* For another request on the same connection, once the reply is whole. */
void client_again(struct client *client);

/* Takes what is there without waiting; false: nothing more will come. */
bool client_feed(struct client *client);
/* Until the reply is whole; false: it never was. */
bool client_wait(struct client *client);
/* The data of the next event (to be freed), or NULL: none came, or the reply ended. */
char *client_event(struct client *client);
/* As client_event, of what has come, without waiting. */
char *client_event_ready(struct client *client);

/* The value of a header field of the reply, to be freed; NULL: it has none. */
char *client_field(const struct client *client, const char *name);

bool client_body_has(const struct client *client, const char *text);

/* A whole exchange on a connection of its own. */
void client_call(struct client *client, int port, const char *method, const char *path,
                 const char *fields, const char *body);

#endif
