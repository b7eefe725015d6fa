/* The notifier thread: wakes parked connections, and watches their sockets for hang-ups.
 *
 * libmicrohttpd does not see a hang-up on a suspended connection, and resuming many connections
 * takes milliseconds: neither may happen on the engine's thread (docs/architecture.md). Others
 * hand over a list and go on; the thread sleeps in epoll when there is nothing to do.
 */
#ifndef SERVER_NOTIFIER_H
#define SERVER_NOTIFIER_H

#include "server/stream.h"

struct notifier; /* opaque */

struct notifier *notifier_start(void);         /* NULL: out of memory, threads or descriptors */
void notifier_stop(struct notifier *notifier); /* joins; NULL is fine */

/* Wakes these streams' readers, soon. Takes one hold of each. Any thread. */
void notifier_wake(struct notifier *notifier, struct stream *const *stream, int32_t count);

/* A hang-up of `fd` cancels and wakes the stream. Any thread; unwatch before the descriptor is
 * closed. After notifier_unwatch has returned the stream is not touched on behalf of fd. */
void notifier_watch(struct notifier *notifier, int fd, struct stream *stream);
void notifier_unwatch(struct notifier *notifier, int fd, struct stream *stream);

#endif
