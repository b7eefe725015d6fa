/* Cuts connections whose request takes too long to arrive.
 *
 * libmicrohttpd's own timeout counts from the last byte, so that a byte a minute lives for ever.
 * One thread that sleeps until the earliest deadline, or until there is a peer at all.
 */
#ifndef SERVER_DEADLINE_H
#define SERVER_DEADLINE_H

#include <stdint.h>

struct deadlines; /* opaque */
struct peer;      /* one open connection */

struct deadlines *deadlines_start(void);          /* NULL: no memory or no thread */
void deadlines_stop(struct deadlines *deadlines); /* after the last peer was removed; NULL: fine */

int64_t deadlines_now(void); /* CLOCK_MONOTONIC, microseconds */

/* At `at_us` both directions of `fd` are shut down, whereupon its owner closes it; 0: never.
 * NULL: out of memory. */
struct peer *deadlines_add(struct deadlines *deadlines, int fd, int64_t at_us);
void deadlines_set(struct deadlines *deadlines, struct peer *peer, int64_t at_us);
/* Before fd is closed, so that never a stranger's descriptor is cut. NULL is fine. */
void deadlines_remove(struct deadlines *deadlines, struct peer *peer);

#endif
