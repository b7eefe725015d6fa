/* Deadlines of arriving requests; see deadline.h. */
#include "server/deadline.h"

#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>

enum { LOOK_US = 2000000 }; /* between looks at whether a sender is still there */

struct peer {
    struct peer *next, *previous; /* guarded by lock */
    int fd;                       /* constant */
    _Atomic int64_t at_us;        /* 0: none */
    atomic_bool arriving;
};

struct deadlines {
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct peer *first;       /* guarded by lock */
    bool stopping;            /* guarded by lock */
    _Atomic int64_t until_us; /* when the thread wakes by itself */
};

int64_t deadlines_now(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

static bool left(const struct peer *peer)
{
    struct pollfd look = {.fd = peer->fd, .events = POLLRDHUP};

    return poll(&look, 1, 0) > 0;
}

/* Cuts what is due and says when to come back. Lock held. */
static int64_t sweep(struct deadlines *deadlines)
{
    int64_t now = deadlines_now();
    int64_t next = INT64_MAX;

    for (struct peer *peer = deadlines->first; peer != NULL; peer = peer->next) {
        int64_t at = atomic_load(&peer->at_us);
        bool arriving = atomic_load(&peer->arriving);
        if (at == 0)
            continue;
        if (at <= now || (arriving && left(peer))) {
            atomic_store(&peer->at_us, 0);
            shutdown(peer->fd, SHUT_RDWR);
            continue;
        }
        if (arriving && at > now + LOOK_US)
            at = now + LOOK_US;
        if (at < next)
            next = at;
    }
    return next;
}

static void *run(void *context)
{
    struct deadlines *deadlines = context;

    pthread_mutex_lock(&deadlines->lock);
    while (!deadlines->stopping) {
        /* Everything set from here on sees INT64_MAX and signals. */
        atomic_store(&deadlines->until_us, INT64_MAX);
        int64_t next = sweep(deadlines);
        atomic_store(&deadlines->until_us, next);
        if (next == INT64_MAX) {
            pthread_cond_wait(&deadlines->changed, &deadlines->lock);
            continue;
        }
        struct timespec at = {.tv_sec = next / 1000000, .tv_nsec = next % 1000000 * 1000};
        pthread_cond_timedwait(&deadlines->changed, &deadlines->lock, &at);
    }
    pthread_mutex_unlock(&deadlines->lock);
    return NULL;
}

struct deadlines *deadlines_start(void)
{
    struct deadlines *deadlines = calloc(1, sizeof *deadlines);
    pthread_condattr_t attributes;

    if (deadlines == NULL)
        return NULL;
    pthread_mutex_init(&deadlines->lock, NULL);
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&deadlines->changed, &attributes);
    pthread_condattr_destroy(&attributes);
    atomic_init(&deadlines->until_us, INT64_MAX);
    if (pthread_create(&deadlines->thread, NULL, run, deadlines) != 0) {
        free(deadlines);
        return NULL;
    }
    pthread_setname_np(deadlines->thread, "deadlines");
    return deadlines;
}

void deadlines_stop(struct deadlines *deadlines)
{
    if (deadlines == NULL)
        return;
    pthread_mutex_lock(&deadlines->lock);
    deadlines->stopping = true;
    pthread_cond_signal(&deadlines->changed);
    pthread_mutex_unlock(&deadlines->lock);
    pthread_join(deadlines->thread, NULL);
    pthread_cond_destroy(&deadlines->changed);
    pthread_mutex_destroy(&deadlines->lock);
    free(deadlines);
}

struct peer *deadlines_add(struct deadlines *deadlines, int fd, int64_t at_us)
{
    struct peer *peer = calloc(1, sizeof *peer);

    if (peer == NULL)
        return NULL;
    peer->fd = fd;
    pthread_mutex_lock(&deadlines->lock);
    peer->next = deadlines->first;
    if (peer->next != NULL)
        peer->next->previous = peer;
    deadlines->first = peer;
    pthread_mutex_unlock(&deadlines->lock);
    deadlines_arrive(deadlines, peer, at_us);
    return peer;
}

static void set(struct deadlines *deadlines, struct peer *peer, int64_t at_us, bool arriving)
{
    if (peer == NULL)
        return;
    atomic_store(&peer->arriving, arriving);
    atomic_store(&peer->at_us, at_us);
    if (at_us == 0)
        return;
    int64_t look = arriving ? deadlines_now() + LOOK_US : at_us;
    /* Spans are long and alike: nearly always the thread wakes early enough by itself. */
    if ((look < at_us ? look : at_us) >= atomic_load(&deadlines->until_us))
        return;
    pthread_mutex_lock(&deadlines->lock);
    pthread_cond_signal(&deadlines->changed);
    pthread_mutex_unlock(&deadlines->lock);
}

void deadlines_arrive(struct deadlines *deadlines, struct peer *peer, int64_t at_us)
{
    set(deadlines, peer, at_us, true);
}

void deadlines_rest(struct deadlines *deadlines, struct peer *peer, int64_t at_us)
{
    set(deadlines, peer, at_us, false);
}

void deadlines_remove(struct deadlines *deadlines, struct peer *peer)
{
    if (peer == NULL)
        return;
    pthread_mutex_lock(&deadlines->lock);
    if (peer->next != NULL)
        peer->next->previous = peer->previous;
    if (peer->previous != NULL)
        peer->previous->next = peer->next;
    else
        deadlines->first = peer->next;
    pthread_mutex_unlock(&deadlines->lock);
    free(peer);
}
