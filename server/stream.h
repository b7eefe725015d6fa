/* The output of one response on its way out: an append-only list of pieces.
 *
 * Two holders: the exchange (HTTP side) and the jobs (engine side); the last release frees it.
 * The engine appends tokens, the stream's text thread turns them into pieces, an HTTP thread
 * reads pieces; nobody waits for anybody. A connection that finds nothing to read is parked:
 * `suspend` runs under the stream's lock, and the notifier's `stream_wake` resumes it.
 * Meeting point of threads: every field is guarded by the stream's lock unless it says so.
 */
#ifndef SERVER_STREAM_H
#define SERVER_STREAM_H

#include "kernels/sampling.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct stream; /* opaque */

enum finish {
    FINISH_NONE,   /* more will come */
    FINISH_STOP,   /* end token, stop id, stop string */
    FINISH_LENGTH, /* max_tokens or context */
};

struct token_top {
    int32_t token;
    float logprob;
};

struct token_record {
    int32_t token;
    float logprob;     /* NAN: none (the first prompt token, or none asked for) */
    int32_t top_count; /* likeliest first; without the token itself unless it is among them */
    const struct token_top *top;
};

/* One event: text of one choice and the tokens that it completes. Either may be empty; the
 * entries of held-back text wait with it. Freed by its reader with piece_free. */
struct piece {
    struct piece *next;
    int32_t choice;      /* prompt index * n + sibling */
    bool prompt;         /* echo: the text and tokens are the prompt's */
    enum finish finish;  /* exactly one piece of a choice has one, its last */
    int32_t stop_token;  /* FINISH_STOP by a stop id of the caller's: the id; else -1 */
    int32_t stop_string; /* FINISH_STOP by a stop string: its index among the caller's; else -1 */
    size_t text_bytes;
    char *text; /* UTF-8, complete code points, NUL-terminated */
    int32_t token_count;
    struct token_record *token;
};
void piece_free(struct piece *piece);

/* Tokens so far, held-back ones not yet; exact once the stream has ended. */
struct stream_usage {
    int64_t prompt_tokens;     /* each prompt once, whatever n is */
    int64_t completion_tokens; /* up to the cut of a stop string, end tokens included */
    int64_t cached_tokens;     /* prompt tokens found in the prefix cache */
};

/* Why a response fails; status is the HTTP status if nothing was sent yet. */
struct stream_error {
    int32_t status;
    char type[32];
    char code[48];
    char param[64]; /* "" for none */
    char message[256];
};

/* The type follows from the status; `param` may be NULL. */
struct stream_error stream_error_make(int32_t status, const char *code, const char *param,
                                      const char *format, ...)
    __attribute__((format(printf, 4, 5)));

/* How a reader sleeps. Both are called with the stream's lock held. */
struct stream_waiter {
    void *context;
    void (*suspend)(void *context);
    void (*resume)(void *context);
};

enum stream_state {
    STREAM_PIECE,  /* *piece is the next one, the caller's now */
    STREAM_EMPTY,  /* stream_take only: nothing yet; stream_wait parks the reader */
    STREAM_PARKED, /* stream_wait only: the waiter was suspended and will be resumed once */
    STREAM_END,    /* all choices have finished and all pieces were read */
    STREAM_ERROR,  /* failed: stream_error says why; what came before was read */
    STREAM_READY,  /* stream_wait only: there is something to read */
};

/* A stream with one hold, the caller's. Choices must be from 1. NULL: out of memory. */
struct stream *stream_create(int32_t choice_count, const struct stream_waiter *waiter);
void stream_hold(struct stream *stream);
void stream_release(struct stream *stream);

/* HTTP side. stream_take never parks, so that a reader can take all that is there, send it, and
 * only then go to sleep: a connection that has bytes to send must not be suspended. */
enum stream_state stream_take(struct stream *stream, struct piece **piece);
/* STREAM_READY once there is something to read (or, with `whole`, once the response is whole or
 * has failed); parks otherwise. */
enum stream_state stream_wait(struct stream *stream, bool whole);
struct stream_usage stream_usage(struct stream *stream);
struct stream_error stream_error(struct stream *stream);
/* The ids of prompt `index`, for return_token_ids; NULL before the first piece. Good while the
 * stream is held. */
const int32_t *stream_prompt(struct stream *stream, int32_t index, int32_t *token_count);

/* Any thread: the client is gone or the response is not wanted: reads give STREAM_ERROR from
 * now on (status 499, or why it had failed before), and the engine drops its sequences.
 * Idempotent; no-op after the end. */
void stream_cancel(struct stream *stream);
bool stream_cancelled(struct stream *stream);

/* Text and engine side. */
/* Takes the piece; counts its tokens into usage. */
void stream_append(struct stream *stream, struct piece *piece);
void stream_fail(struct stream *stream, const struct stream_error *error); /* first one wins */
/* Copies; counts into usage. False: out of memory, or set before. */
bool stream_set_prompt(struct stream *stream, int32_t index, const int32_t *token,
                       int32_t token_count);
void stream_add_cached(struct stream *stream, int64_t cached_tokens);
/* Resumes a parked reader if it has something to do; called by the notifier. */
void stream_wake(struct stream *stream);

#endif
