/* Listening; see listen.h. */
#include "server/listen.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

enum { BACKLOG = 4096 };

static int open_one(const struct addrinfo *address)
{
    int on = 1;
    int fd = socket(address->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    if (fd < 0)
        return -errno;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(fd, address->ai_addr, address->ai_addrlen) < 0 || listen(fd, BACKLOG) < 0) {
        int reason = -errno;
        close(fd);
        return reason;
    }
    return fd;
}

int listen_open(const char *host, uint16_t port, char *error, size_t error_bytes)
{
    struct addrinfo wanted = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE};
    struct addrinfo *address;
    char service[8];

    snprintf(service, sizeof service, "%u", port);
    int fault = getaddrinfo(host[0] != '\0' ? host : NULL, service, &wanted, &address);
    if (fault != 0) {
        snprintf(error, error_bytes, "could not listen on %s: %s; change --host", host,
                 gai_strerror(fault));
        return -EADDRNOTAVAIL;
    }
    int fd = -EADDRNOTAVAIL;
    for (struct addrinfo *one = address; one != NULL && fd < 0; one = one->ai_next)
        fd = open_one(one);
    freeaddrinfo(address);
    if (fd < 0)
        snprintf(error, error_bytes, "could not listen on %s port %u: %s; choose another --port",
                 host, port, strerror(-fd));
    return fd;
}

uint16_t listen_port(int fd)
{
    struct sockaddr_storage address = {0};
    socklen_t bytes = sizeof address;

    if (getsockname(fd, (struct sockaddr *)&address, &bytes) < 0)
        return 0;
    if (address.ss_family == AF_INET6)
        return ntohs(((struct sockaddr_in6 *)&address)->sin6_port);
    /* NOLINTNEXTLINE(clang-analyzer-core.CallAndMessage): getsockname wrote it */
    return ntohs(((struct sockaddr_in *)&address)->sin_port);
}

int64_t listen_raise_limit(int64_t wanted)
{
    struct rlimit limit;

    if (getrlimit(RLIMIT_NOFILE, &limit) < 0)
        return 0;
    rlim_t goal = (rlim_t)wanted;
    if (limit.rlim_max != RLIM_INFINITY && goal > limit.rlim_max)
        goal = limit.rlim_max;
    if (limit.rlim_cur != RLIM_INFINITY && limit.rlim_cur < goal) {
        limit.rlim_cur = goal;
        (void)setrlimit(RLIMIT_NOFILE, &limit);
        (void)getrlimit(RLIMIT_NOFILE, &limit);
    }
    return limit.rlim_cur == RLIM_INFINITY ? INT64_MAX : (int64_t)limit.rlim_cur;
}
