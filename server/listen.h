/* The socket that the server listens on. */
#ifndef SERVER_LISTEN_H
#define SERVER_LISTEN_H

#include <stddef.h>
#include <stdint.h>

/* Binds and listens: the descriptor, or a negative errno and one line in `error`. An empty host
 * means all addresses; port 0 any free one. */
int listen_open(const char *host, uint16_t port, char *error, size_t error_bytes);
uint16_t listen_port(int fd);
/* Raises the limit of open descriptors as far as `wanted` or the system allows; what it is. */
int64_t listen_raise_limit(int64_t wanted);

#endif
