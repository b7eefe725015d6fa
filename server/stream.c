/* The output of one response; see stream.h.
 *
 * Everything is under one lock that is held for a few instructions, never while waiting. The
 * waiter's suspend and resume run under it too: that is what makes "found nothing, so park"
 * and "there is something, so wake" one decision each (docs/architecture.md, threads).
 */
#include "server/stream.h"
#include "server/stream_private.h"

#include <assert.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct prompt {
    int32_t *token; /* [token_count] */
    int32_t token_count;
};

struct stream {
    atomic_int hold_count;
    int32_t choice_count;        /* constant */
    struct stream_waiter waiter; /* constant */

    pthread_mutex_t lock;
    /* guarded by lock */
    bool parked;
    bool parked_whole; /* the reader waits for the end of the response */
    bool failed;
    bool cancelled;
    int32_t finished_count;
    struct piece *first;
    struct piece *final;
    struct stream_error error;
    struct stream_usage usage;
    struct prompt *prompt; /* [prompt_count] */
    int32_t prompt_count;
    stream_cancel_hook *cancel_hook;
    void *cancel_context;
};

void piece_free(struct piece *piece)
{
    free(piece); /* text and tokens lie behind it in one allocation */
}

struct piece *piece_create(size_t text_bytes, int32_t token_count, int32_t top_count)
{
    size_t token_bytes = (size_t)token_count * sizeof(struct token_record);
    size_t top_bytes = (size_t)top_count * sizeof(struct token_top);
    struct piece *piece = calloc(1, sizeof *piece + token_bytes + top_bytes + text_bytes + 1);

    if (piece == NULL)
        return NULL;
    piece->stop_token = -1;
    piece->stop_string = -1;
    piece->token_count = token_count;
    piece->token = (struct token_record *)(piece + 1);
    piece->text_bytes = text_bytes;
    piece->text = (char *)piece->token + token_bytes + top_bytes;
    return piece;
}

struct token_top *piece_top(struct piece *piece)
{
    return (struct token_top *)(piece->token + piece->token_count);
}

static const char *error_type(int32_t status)
{
    if (status == 429)
        return "overloaded_error";
    if (status == 503)
        return "service_unavailable_error";
    return status >= 500 ? "server_error" : "invalid_request_error";
}

struct stream_error stream_error_make(int32_t status, const char *code, const char *param,
                                      const char *format, ...)
{
    struct stream_error error = {.status = status};
    va_list list;

    snprintf(error.type, sizeof error.type, "%s", error_type(status));
    snprintf(error.code, sizeof error.code, "%s", code);
    snprintf(error.param, sizeof error.param, "%s", param != NULL ? param : "");
    va_start(list, format);
    vsnprintf(error.message, sizeof error.message, format, list);
    va_end(list);
    return error;
}

struct stream *stream_create(int32_t choice_count, const struct stream_waiter *waiter)
{
    assert(choice_count > 0);

    struct stream *stream = calloc(1, sizeof *stream);
    if (stream == NULL)
        return NULL;
    atomic_init(&stream->hold_count, 1);
    stream->choice_count = choice_count;
    stream->waiter = *waiter;
    pthread_mutex_init(&stream->lock, NULL);
    return stream;
}

void stream_hold(struct stream *stream)
{
    atomic_fetch_add_explicit(&stream->hold_count, 1, memory_order_relaxed);
}

void stream_release(struct stream *stream)
{
    if (stream == NULL)
        return;
    int before = atomic_fetch_sub_explicit(&stream->hold_count, 1, memory_order_acq_rel);
    assert(before > 0);
    if (before > 1)
        return;

    while (stream->first != NULL) {
        struct piece *piece = stream->first;
        stream->first = piece->next;
        piece_free(piece);
    }
    for (int32_t i = 0; i < stream->prompt_count; i++)
        free(stream->prompt[i].token);
    free(stream->prompt);
    pthread_mutex_destroy(&stream->lock);
    free(stream);
}

/* Whether the whole response is there. Lock held. */
static bool whole(const struct stream *stream)
{
    return stream->finished_count == stream->choice_count;
}

/* Whether a reader that waits for a piece (or for the whole response) has something to do. */
static bool readable(const struct stream *stream, bool wants_whole)
{
    if (stream->failed || stream->cancelled || whole(stream))
        return true;
    return !wants_whole && stream->first != NULL;
}

static enum stream_state park(struct stream *stream, bool wants_whole)
{
    stream->parked = true;
    stream->parked_whole = wants_whole;
    stream->waiter.suspend(stream->waiter.context);
    return STREAM_PARKED;
}

enum stream_state stream_take(struct stream *stream, struct piece **piece)
{
    enum stream_state state;

    pthread_mutex_lock(&stream->lock);
    if (stream->first != NULL && !stream->cancelled) {
        *piece = stream->first;
        stream->first = (*piece)->next;
        if (stream->first == NULL)
            stream->final = NULL;
        (*piece)->next = NULL;
        state = STREAM_PIECE;
    } else if (stream->failed || stream->cancelled) {
        state = STREAM_ERROR;
    } else if (whole(stream)) {
        state = STREAM_END;
    } else {
        state = STREAM_EMPTY;
    }
    pthread_mutex_unlock(&stream->lock);
    return state;
}

enum stream_state stream_wait(struct stream *stream, bool wants_whole)
{
    enum stream_state state;

    pthread_mutex_lock(&stream->lock);
    if (stream->cancelled || (stream->failed && (wants_whole || stream->first == NULL)))
        state = STREAM_ERROR;
    else if (readable(stream, wants_whole))
        state = STREAM_READY;
    else
        state = park(stream, wants_whole);
    pthread_mutex_unlock(&stream->lock);
    return state;
}

struct stream_usage stream_usage(struct stream *stream)
{
    pthread_mutex_lock(&stream->lock);
    struct stream_usage usage = stream->usage;
    pthread_mutex_unlock(&stream->lock);
    return usage;
}

struct stream_error stream_error(struct stream *stream)
{
    static const struct stream_error gone = {
        .status = 499, .type = "server_error", .code = "cancelled", .message = "Client is gone."};

    pthread_mutex_lock(&stream->lock);
    struct stream_error error = stream->failed ? stream->error : gone;
    pthread_mutex_unlock(&stream->lock);
    return error;
}

const int32_t *stream_prompt(struct stream *stream, int32_t index, int32_t *token_count)
{
    const int32_t *token = NULL;

    pthread_mutex_lock(&stream->lock);
    if (index >= 0 && index < stream->prompt_count) {
        token = stream->prompt[index].token;
        *token_count = stream->prompt[index].token_count;
    }
    pthread_mutex_unlock(&stream->lock);
    return token;
}

void stream_cancel(struct stream *stream)
{
    stream_cancel_hook *hook = NULL;
    void *context = NULL;

    pthread_mutex_lock(&stream->lock);
    /* After a failure too: the engine may still work for its other choices. */
    if (!stream->cancelled && !whole(stream)) {
        stream->cancelled = true;
        hook = stream->cancel_hook;
        context = stream->cancel_context;
    }
    pthread_mutex_unlock(&stream->lock);
    /* Outside the lock: the hook takes the mailbox's, and no function holds two of our locks. */
    if (hook != NULL)
        hook(context, stream);
}

bool stream_cancelled(struct stream *stream)
{
    pthread_mutex_lock(&stream->lock);
    bool cancelled = stream->cancelled;
    pthread_mutex_unlock(&stream->lock);
    return cancelled;
}

bool stream_dead(struct stream *stream)
{
    pthread_mutex_lock(&stream->lock);
    bool dead = stream->cancelled || stream->failed;
    pthread_mutex_unlock(&stream->lock);
    return dead;
}

void stream_set_cancel(struct stream *stream, stream_cancel_hook *hook, void *context)
{
    pthread_mutex_lock(&stream->lock);
    stream->cancel_hook = hook;
    stream->cancel_context = context;
    pthread_mutex_unlock(&stream->lock);
}

void stream_append(struct stream *stream, struct piece *piece)
{
    assert(piece->choice >= 0 && piece->choice < stream->choice_count);

    pthread_mutex_lock(&stream->lock);
    piece->next = NULL;
    if (stream->final == NULL)
        stream->first = piece;
    else
        stream->final->next = piece;
    stream->final = piece;
    if (piece->finish != FINISH_NONE)
        stream->finished_count++;
    if (!piece->prompt)
        stream->usage.completion_tokens += piece->token_count;
    assert(stream->finished_count <= stream->choice_count);
    pthread_mutex_unlock(&stream->lock);
}

void stream_fail(struct stream *stream, const struct stream_error *error)
{
    pthread_mutex_lock(&stream->lock);
    if (!stream->failed && !stream->cancelled && !whole(stream)) {
        stream->failed = true;
        stream->error = *error;
    }
    pthread_mutex_unlock(&stream->lock);
}

/* Makes room for prompt `index`. Lock held. */
static bool prompt_room(struct stream *stream, int32_t index)
{
    if (index < stream->prompt_count)
        return true;
    struct prompt *grown = realloc(stream->prompt, (size_t)(index + 1) * sizeof *stream->prompt);
    if (grown == NULL)
        return false;
    memset(grown + stream->prompt_count, 0,
           (size_t)(index + 1 - stream->prompt_count) * sizeof *grown);
    stream->prompt = grown;
    stream->prompt_count = index + 1;
    return true;
}

bool stream_set_prompt(struct stream *stream, int32_t index, const int32_t *token,
                       int32_t token_count)
{
    int32_t *copy = malloc((size_t)(token_count + 1) * sizeof *copy);

    if (copy == NULL)
        return false;
    memcpy(copy, token, (size_t)token_count * sizeof *copy);
    pthread_mutex_lock(&stream->lock);
    bool fits = prompt_room(stream, index) && stream->prompt[index].token == NULL;
    if (fits) {
        stream->prompt[index] = (struct prompt){copy, token_count};
        stream->usage.prompt_tokens += token_count;
    }
    pthread_mutex_unlock(&stream->lock);
    if (!fits)
        free(copy);
    return fits;
}

void stream_add_cached(struct stream *stream, int64_t cached_tokens)
{
    pthread_mutex_lock(&stream->lock);
    stream->usage.cached_tokens += cached_tokens;
    pthread_mutex_unlock(&stream->lock);
}

void stream_wake(struct stream *stream)
{
    pthread_mutex_lock(&stream->lock);
    if (stream->parked && readable(stream, stream->parked_whole)) {
        stream->parked = false;
        stream->waiter.resume(stream->waiter.context);
    }
    pthread_mutex_unlock(&stream->lock);
}
