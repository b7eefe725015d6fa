/* Starts the daemon by fork, watches its log, ends it. */
#include "tests/e2e/server.h"

#include "server/command.h"
#include "tests/e2e/client.h"
#include "tests/fake_model.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { ARGUMENT_MAX = 48, SLICE_MS = 5, LOG_SHOWN = 3000 };

static void sleep_ms(int ms)
{
    nanosleep(&(struct timespec){ms / 1000, ms % 1000 * 1000000L}, NULL);
}

static char *read_log(const struct server *server)
{
    off_t bytes = lseek(server->log_fd, 0, SEEK_END);
    char *text = calloc((size_t)bytes + 1, 1);

    if (text != NULL && pread(server->log_fd, text, (size_t)bytes, 0) < 0)
        text[0] = '\0';
    return text;
}

static void print_log(const struct server *server)
{
    char *text = read_log(server);

    size_t bytes = strlen(text);
    printf("---- end of the server's log ----\n%s--------\n",
           bytes > LOG_SHOWN ? text + bytes - LOG_SHOWN : text);
    free(text);
}

bool server_logged(const struct server *server, const char *text)
{
    char *log = read_log(server);
    bool found = strstr(log, text) != NULL;

    free(log);
    return found;
}

bool server_logged_again(const struct server *server, const char *text)
{
    char *log = read_log(server);
    const char *first = strstr(log, text);
    bool again = first != NULL && strstr(first + 1, text) != NULL;

    free(log);
    return again;
}

static void run(const struct server *server, int argc, char **argv)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL); /* not to outlive a test that fails */
    dup2(server->log_fd, STDERR_FILENO);
    signal(SIGPIPE, SIG_IGN);
    exit(cmd_serve(argc, argv));
}

/* The port once the log has `mark`, 0: not yet. */
static int logged_port(const struct server *server, const char *mark)
{
    char *log = read_log(server);
    const char *line = strstr(log, "listening host=");
    const char *port = line != NULL ? strstr(line, " port=") : NULL;
    int number = port != NULL && strstr(log, mark) != NULL ? atoi(port + 6) : 0;

    free(log);
    return number;
}

/* A later --port counts, not the 0 here. */
static struct server spawn(const char *options)
{
    static char name[] = "serve", model[] = "fake", flag[] = "--port", zero[] = "0";
    char path[] = "/tmp/quire-e2e-XXXXXX", *copy = strdup(options), *rest = copy, *next;
    char *argv[ARGUMENT_MAX + 1] = {name, model, flag, zero};
    int argc = strstr(options, "--port ") != NULL ? 2 : 4;
    struct server server = {.log_fd = mkstemp(path)};

    while (argc < ARGUMENT_MAX && (next = strsep(&rest, " ")) != NULL)
        if (next[0] != '\0')
            argv[argc++] = next;
    argv[argc] = NULL;
    unlink(path);
    fake_model_share();
    fflush(stdout);
    server.pid = fork();
    if (server.pid == 0)
        run(&server, argc, argv);
    free(copy);
    return server;
}

static struct server start(const char *options, const char *mark)
{
    struct server server = spawn(options);

    for (int ms = 0; ms < CLIENT_WAIT_MS && server.port == 0; ms += SLICE_MS) {
        sleep_ms(SLICE_MS);
        server.port = logged_port(&server, mark);
    }
    if (server.port == 0) {
        print_log(&server);
        abort();
    }
    return server;
}

struct server server_start(const char *options)
{
    return start(options, "ready url=");
}

struct server server_start_early(const char *options)
{
    return start(options, "listening host=");
}

int server_run(const char *options, char *log, size_t log_max)
{
    struct server server = spawn(options);
    int status = 0;

    waitpid(server.pid, &status, 0);
    char *text = read_log(&server);
    snprintf(log, log_max, "%s", text);
    free(text);
    close(server.log_fd);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

void server_signal(const struct server *server, int number)
{
    kill(server->pid, number);
}

int server_wait(struct server *server)
{
    int status = 0;
    pid_t ended = 0;

    for (int ms = 0; ms < CLIENT_WAIT_MS && ended == 0; ms += SLICE_MS) {
        ended = waitpid(server->pid, &status, WNOHANG);
        if (ended == 0)
            sleep_ms(SLICE_MS);
    }
    bool good = ended == server->pid && WIFEXITED(status);
    bool usual = good && (WEXITSTATUS(status) == 0 || WEXITSTATUS(status) == EXIT_CODE_LOST);
    if (!usual)
        print_log(server);
    if (ended == 0) {
        kill(server->pid, SIGKILL);
        waitpid(server->pid, &status, 0);
    }
    close(server->log_fd);
    server->pid = 0;
    return good ? WEXITSTATUS(status) : -1;
}

int server_stop(struct server *server)
{
    server_signal(server, SIGTERM);
    return server_wait(server);
}

double server_metric(const struct server *server, const char *sample)
{
    struct client client;
    size_t bytes = strlen(sample);
    double value = -1;

    client_call(&client, server->port, "GET", "/metrics", "Connection: close\r\n", NULL);
    for (const char *line = client.body; line != NULL; line = strchr(line, '\n')) {
        line += *line == '\n';
        if (strncmp(line, sample, bytes) == 0 && line[bytes] == ' ') {
            value = atof(line + bytes);
            break;
        }
    }
    client_close(&client);
    return value;
}

bool server_metric_becomes(const struct server *server, const char *sample, double value,
                           int wait_ms)
{
    for (int ms = 0; ms < wait_ms; ms += SLICE_MS) {
        if (server_metric(server, sample) == value)
            return true;
        sleep_ms(SLICE_MS);
    }
    printf("%s is %g, not %g\n", sample, server_metric(server, sample), value);
    return false;
}

int64_t server_rss_kib(const struct server *server)
{
    char path[64], line[256];
    int64_t kib = -1;

    snprintf(path, sizeof(path), "/proc/%d/status", (int)server->pid);
    FILE *file = fopen(path, "r");
    while (file != NULL && fgets(line, sizeof(line), file) != NULL)
        if (strncmp(line, "VmRSS:", 6) == 0)
            kib = atoll(line + 6);
    if (file != NULL)
        fclose(file);
    return kib;
}
