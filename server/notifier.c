/* Wakes and watches; see notifier.h. */
#include "server/notifier.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

/* Descriptors are reused: an event names the descriptor and a serial number, never a pointer,
 * and counts only while the watch of that serial is still there. */
struct watch {
    struct stream *stream; /* held; NULL: nothing is watched */
    uint32_t serial;
};

struct notifier {
    pthread_t thread;
    int epoll;
    int event; /* written to when the wake list was empty, or to stop */

    pthread_mutex_t lock;
    /* guarded by lock */
    struct stream **wake; /* [wake_count] held */
    int32_t wake_count;
    int32_t wake_max;
    struct watch *watch; /* [watch_max] by descriptor */
    int32_t watch_max;
    uint32_t serial;
    bool stopping;
};

static void signal_event(struct notifier *notifier)
{
    uint64_t one = 1;
    ssize_t written = write(notifier->event, &one, sizeof one);
    assert(written == sizeof one || errno == EAGAIN);
}

/* The wake list is replaced, not emptied in place: whoever hands over never waits for us. */
static void wake_all(struct stream **stream, int32_t count)
{
    for (int32_t i = 0; i < count; i++) {
        stream_wake(stream[i]);
        stream_release(stream[i]);
    }
}

static void hang_up(struct notifier *notifier, int fd, uint32_t serial)
{
    struct stream *stream = NULL;

    pthread_mutex_lock(&notifier->lock);
    if (fd < notifier->watch_max && notifier->watch[fd].serial == serial) {
        stream = notifier->watch[fd].stream;
        if (stream != NULL)
            stream_hold(stream);
    }
    pthread_mutex_unlock(&notifier->lock);
    if (stream == NULL)
        return;
    stream_cancel(stream);
    stream_wake(stream);
    stream_release(stream);
}

static void drain(struct notifier *notifier, struct stream ***spare, int32_t *spare_max,
                  bool *stopping)
{
    pthread_mutex_lock(&notifier->lock);
    struct stream **list = notifier->wake;
    int32_t count = notifier->wake_count;
    int32_t max = notifier->wake_max;
    notifier->wake = *spare;
    notifier->wake_max = *spare_max;
    notifier->wake_count = 0;
    *stopping = notifier->stopping;
    pthread_mutex_unlock(&notifier->lock);

    wake_all(list, count);
    *spare = list;
    *spare_max = max;
}

static void *run(void *context)
{
    struct notifier *notifier = context;
    struct stream **spare = NULL;
    int32_t spare_max = 0;
    bool stopping = false;

    while (!stopping) {
        struct epoll_event ready[64];
        int count = epoll_wait(notifier->epoll, ready, 64, -1);
        for (int i = 0; i < count; i++) {
            int fd = (int)(ready[i].data.u64 & 0xffffffff);
            if (fd != notifier->event) {
                hang_up(notifier, fd, (uint32_t)(ready[i].data.u64 >> 32));
                continue;
            }
            uint64_t ignored;
            ssize_t got = read(notifier->event, &ignored, sizeof ignored);
            assert(got == sizeof ignored || errno == EAGAIN);
            drain(notifier, &spare, &spare_max, &stopping);
        }
    }
    free(spare);
    return NULL;
}

static void notifier_free(struct notifier *notifier)
{
    if (notifier->epoll >= 0)
        close(notifier->epoll);
    if (notifier->event >= 0)
        close(notifier->event);
    for (int32_t i = 0; i < notifier->wake_count; i++)
        stream_release(notifier->wake[i]);
    for (int32_t i = 0; i < notifier->watch_max; i++)
        stream_release(notifier->watch[i].stream);
    pthread_mutex_destroy(&notifier->lock);
    free(notifier->wake);
    free(notifier->watch);
    free(notifier);
}

struct notifier *notifier_start(void)
{
    struct notifier *notifier = calloc(1, sizeof *notifier);

    if (notifier == NULL)
        return NULL;
    pthread_mutex_init(&notifier->lock, NULL);
    notifier->epoll = epoll_create1(EPOLL_CLOEXEC);
    notifier->event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    struct epoll_event wanted = {.events = EPOLLIN, .data.u64 = (uint64_t)notifier->event};
    if (notifier->epoll < 0 || notifier->event < 0 ||
        epoll_ctl(notifier->epoll, EPOLL_CTL_ADD, notifier->event, &wanted) < 0 ||
        pthread_create(&notifier->thread, NULL, run, notifier) != 0) {
        notifier_free(notifier);
        return NULL;
    }
    pthread_setname_np(notifier->thread, "notifier");
    return notifier;
}

void notifier_stop(struct notifier *notifier)
{
    if (notifier == NULL)
        return;
    pthread_mutex_lock(&notifier->lock);
    notifier->stopping = true;
    pthread_mutex_unlock(&notifier->lock);
    signal_event(notifier);
    pthread_join(notifier->thread, NULL);
    /* What was handed over since the last drain still has to be woken. */
    wake_all(notifier->wake, notifier->wake_count);
    notifier->wake_count = 0;
    notifier_free(notifier);
}

/* Room for `more` streams in the wake list; lock held. */
static bool wake_room(struct notifier *notifier, int32_t more)
{
    if (notifier->wake_count + more <= notifier->wake_max)
        return true;
    int32_t max = (notifier->wake_count + more) * 2;
    struct stream **grown = realloc(notifier->wake, (size_t)max * sizeof(struct stream *));
    if (grown == NULL)
        return false;
    notifier->wake = grown;
    notifier->wake_max = max;
    return true;
}

void notifier_wake(struct notifier *notifier, struct stream *const *stream, int32_t count)
{
    if (count == 0)
        return;
    pthread_mutex_lock(&notifier->lock);
    bool first = notifier->wake_count == 0;
    bool fits = wake_room(notifier, count);
    if (fits) {
        memcpy(notifier->wake + notifier->wake_count, stream,
               (size_t)count * sizeof(struct stream *));
        notifier->wake_count += count;
    }
    pthread_mutex_unlock(&notifier->lock);
    if (!fits) /* Out of memory: late is better than never. */
        wake_all((struct stream **)stream, count);
    else if (first)
        signal_event(notifier);
}

/* Room for descriptor `fd`; lock held. */
static bool watch_room(struct notifier *notifier, int fd)
{
    if (fd < notifier->watch_max)
        return true;
    int32_t max = fd + fd / 2 + 64;
    struct watch *grown = realloc(notifier->watch, (size_t)max * sizeof *grown);
    if (grown == NULL)
        return false;
    memset(grown + notifier->watch_max, 0, (size_t)(max - notifier->watch_max) * sizeof *grown);
    notifier->watch = grown;
    notifier->watch_max = max;
    return true;
}

void notifier_watch(struct notifier *notifier, int fd, struct stream *stream)
{
    struct stream *old = NULL;

    pthread_mutex_lock(&notifier->lock);
    if (watch_room(notifier, fd)) {
        struct watch *watch = &notifier->watch[fd];
        old = watch->stream;
        stream_hold(stream);
        watch->stream = stream;
        watch->serial = ++notifier->serial;
        struct epoll_event wanted = {
            .events = EPOLLRDHUP | EPOLLONESHOT,
            .data.u64 = (uint64_t)watch->serial << 32 | (uint32_t)fd,
        };
        if (epoll_ctl(notifier->epoll, EPOLL_CTL_ADD, fd, &wanted) < 0 && errno == EEXIST)
            (void)epoll_ctl(notifier->epoll, EPOLL_CTL_MOD, fd, &wanted);
    }
    pthread_mutex_unlock(&notifier->lock);
    stream_release(old);
}

void notifier_unwatch(struct notifier *notifier, int fd, struct stream *stream)
{
    struct stream *old = NULL;

    pthread_mutex_lock(&notifier->lock);
    if (fd < notifier->watch_max && notifier->watch[fd].stream == stream) {
        old = stream;
        notifier->watch[fd].stream = NULL;
        notifier->watch[fd].serial = 0;
        (void)epoll_ctl(notifier->epoll, EPOLL_CTL_DEL, fd, NULL);
    }
    pthread_mutex_unlock(&notifier->lock);
    stream_release(old);
}
