/* Cuts connections whose request takes too long to arrive, or whose sender has left meanwhile.
 *
 * libmicrohttpd's own timeout counts from the last byte, so that a byte a minute lives for ever;
 * and before 1.0 it does not see the end of a connection that came right behind some bytes.
 * One thread that sleeps until something is due, or until there is a peer at all.
 */
#ifndef SERVER_DEADLINE_H
#define SERVER_DEADLINE_H

#include <stdint.h>

struct deadlines; /* opaque */
struct peer;      /* one open connection */

struct deadlines *deadlines_start(void);          /* NULL: no memory or no thread */
void deadlines_stop(struct deadlines *deadlines); /* after the last peer was removed; NULL: fine */

int64_t deadlines_now(void); /* CLOCK_MONOTONIC, microseconds */

/* A new peer, from which a request should have arrived by at_us. When it is cut, both directions
 * of `fd` are shut down, whereupon its owner closes it. NULL: out of memory. */
struct peer *deadlines_add(struct deadlines *deadlines, int fd, int64_t at_us);
/* A request is arriving: it is whole before at_us and its sender stays, or the peer is cut. */
void deadlines_arrive(struct deadlines *deadlines, struct peer *peer, int64_t at_us);
/* Nothing is arriving; at at_us the peer is cut, 0: never. */
void deadlines_rest(struct deadlines *deadlines, struct peer *peer, int64_t at_us);
/* Before fd is closed, so that never a stranger's descriptor is cut. NULL is fine. */
void deadlines_remove(struct deadlines *deadlines, struct peer *peer);

#endif
