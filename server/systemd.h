/* News for the service manager: the sd_notify protocol, one datagram to $NOTIFY_SOCKET. */
#ifndef SERVER_SYSTEMD_H
#define SERVER_SYSTEMD_H

#include <stdbool.h>

/* Sends "READY=1", "STATUS=...", "STOPPING=1" or lines of them. False: nobody listens. Any
 * thread. */
bool systemd_notify(const char *state);

#endif
