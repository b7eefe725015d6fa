/* The daemon over a fake model, in a process of its own. */
#ifndef TESTS_E2E_SERVER_H
#define TESTS_E2E_SERVER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct server {
    pid_t pid;
    int port;
    int log_fd; /* what it wrote to standard error */
};

/* `quire serve fake --port 0` and further options, parted by spaces; waits until it is ready.
 * Aborts with its log if it never is. fake_model_* settings are shared with it. */
struct server server_start(const char *options);
/* The same without waiting for the model: only until it listens. */
struct server server_start_early(const char *options);
/* Runs it until it ends by itself: its exit code, and what it wrote to standard error. */
int server_run(const char *options, char *log, size_t log_max);
/* Sends the signal. */
void server_signal(const struct server *server, int number);
/* Waits for its end: the exit code, or -1 and the log is printed: it crashed or did not end. */
int server_wait(struct server *server);
/* SIGTERM, and the exit code. */
int server_stop(struct server *server);
/* Whether its log has `text`. */
bool server_logged(const struct server *server, const char *text);
/* Whether it has it more than once. */
bool server_logged_again(const struct server *server, const char *text);

/* A sample of /metrics by its whole name and labels, -1: not there. */
double server_metric(const struct server *server, const char *sample);
/* Waits until the sample is `value`; false: it never was within `wait_ms`. */
bool server_metric_becomes(const struct server *server, const char *sample, double value,
                           int wait_ms);
/* KiB that the process has in memory. */
int64_t server_rss_kib(const struct server *server);

#endif
