/* HTTP/1.1 replies, with Content-Length or in chunks, as bytes come. */
#include "tests/e2e/client.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <unistd.h>

/* ---- sending ---- */

bool client_open(struct client *client, int port)
{
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_port = htons((uint16_t)port),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int on = 1;

    *client = (struct client){.fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), .rest = -1};
    if (client->fd < 0)
        return false;
    setsockopt(client->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    return connect(client->fd, (struct sockaddr *)&address, sizeof(address)) == 0;
}

void client_close(struct client *client)
{
    if (client->fd >= 0)
        close(client->fd);
    free(client->in);
    free(client->head);
    free(client->body);
    *client = (struct client){.fd = -1};
}

bool client_send_raw(struct client *client, const char *bytes, size_t byte_count)
{
    while (byte_count > 0) {
        ssize_t sent = send(client->fd, bytes, byte_count, MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR)
            continue;
        if (sent <= 0)
            return false;
        bytes += sent;
        byte_count -= (size_t)sent;
    }
    return true;
}

bool client_send(struct client *client, const char *method, const char *path, const char *fields,
                 const char *body)
{
    size_t body_bytes = body != NULL ? strlen(body) : 0;
    size_t max = strlen(method) + strlen(path) + strlen(fields) + body_bytes + 256;
    char *text = malloc(max);
    bool typed = strcasestr(fields, "content-type:") != NULL;
    int bytes =
        snprintf(text, max, "%s %s HTTP/1.1\r\nHost: localhost\r\n%s", method, path, fields);

    if (body != NULL)
        bytes += snprintf(text + bytes, max - (size_t)bytes, "%sContent-Length: %zu\r\n",
                          typed ? "" : "Content-Type: application/json\r\n", body_bytes);
    bytes += snprintf(text + bytes, max - (size_t)bytes, "\r\n%s", body != NULL ? body : "");
    bool good = client_send_raw(client, text, (size_t)bytes);
    free(text);
    return good;
}

/* ---- receiving ---- */

static void append(char **text, size_t *text_bytes, size_t *max, const char *more,
                   size_t more_bytes)
{
    if (*text_bytes + more_bytes + 1 > *max) {
        *max = 2 * (*text_bytes + more_bytes) + 256;
        *text = realloc(*text, *max);
        if (*text == NULL)
            abort();
    }
    memcpy(*text + *text_bytes, more, more_bytes);
    *text_bytes += more_bytes;
    (*text)[*text_bytes] = '\0';
}

char *client_field(const struct client *client, const char *name)
{
    size_t name_bytes = strlen(name);

    for (const char *line = client->head; line != NULL; line = strstr(line, "\r\n")) {
        line += line == client->head ? 0 : 2;
        if (strncasecmp(line, name, name_bytes) != 0 || line[name_bytes] != ':')
            continue;
        const char *value = line + name_bytes + 1;
        value += strspn(value, " ");
        return strndup(value, strcspn(value, "\r\n"));
    }
    return NULL;
}

/* "100 Continue" is no reply yet. */
static void skip_interim(struct client *client)
{
    static const char interim[] = "HTTP/1.1 100 Continue\r\n\r\n";
    size_t bytes = sizeof(interim) - 1;

    if (client->in_bytes - client->parsed >= bytes &&
        memcmp(client->in + client->parsed, interim, bytes) == 0) {
        client->parsed += bytes;
        client->continued = true;
    }
}

/* Once the head is whole: true. */
static bool parse_head(struct client *client)
{
    static const char end[] = "\r\n\r\n";

    skip_interim(client);
    char *start = client->in + client->parsed;
    char *found = memmem(start, client->in_bytes - client->parsed, end, 4);

    if (found == NULL)
        return false;
    client->head = strndup(start, (size_t)(found - start));
    client->parsed += (size_t)(found - start) + 4;
    if (sscanf(client->head, "HTTP/1.%*d %d ", &client->status) != 1)
        client->broken = true;
    char *coding = client_field(client, "Transfer-Encoding");
    char *length = client_field(client, "Content-Length");
    client->chunked = coding != NULL && strcmp(coding, "chunked") == 0;
    client->rest = client->chunked ? -1 : length != NULL ? atoll(length) : 0;
    client->open_ended = !client->chunked && length == NULL && client->status == 200;
    if (client->open_ended)
        client->rest = INT64_MAX;
    if (client->no_body) {
        client->chunked = client->open_ended = false;
        client->rest = 0;
    }
    free(coding);
    free(length);
    return true;
}

/* A chunk's size, once its line is whole: true. */
static bool parse_chunk_size(struct client *client)
{
    char *start = client->in + client->parsed;
    char *end = memmem(start, client->in_bytes - client->parsed, "\r\n", 2);

    if (end == NULL)
        return false;
    client->rest = strtoll(start, NULL, 16);
    client->parsed += (size_t)(end - start) + 2;
    return true;
}

static void note_chunk(struct client *client, size_t first)
{
    const char *chunk = client->body + first;
    size_t bytes = client->body_bytes - first;

    if (bytes < 8 || memcmp(chunk, "data: ", 6) != 0 || memcmp(chunk + bytes - 2, "\n\n", 2) != 0)
        client->split = true;
}

/* A whole chunk with its CR LF: true. */
static bool parse_chunk(struct client *client)
{
    size_t bytes = (size_t)client->rest, first = client->body_bytes;

    if (client->in_bytes - client->parsed < bytes + 2)
        return false;
    append(&client->body, &client->body_bytes, &client->body_max, client->in + client->parsed,
           bytes);
    client->parsed += bytes + 2;
    client->done = client->rest == 0;
    if (bytes > 0)
        note_chunk(client, first);
    client->rest = -1;
    return true;
}

static void parse(struct client *client)
{
    if (client->head == NULL && !parse_head(client))
        return;
    if (client->chunked) {
        while (!client->done &&
               (client->rest >= 0 ? parse_chunk(client) : parse_chunk_size(client)))
            ;
    } else {
        size_t there = client->in_bytes - client->parsed;
        size_t bytes = there < (size_t)client->rest ? there : (size_t)client->rest;
        append(&client->body, &client->body_bytes, &client->body_max, client->in + client->parsed,
               bytes);
        client->parsed += bytes;
        client->rest -= (int64_t)bytes;
        client->done = client->rest == 0;
    }
    if (client->parsed == client->in_bytes)
        client->parsed = client->in_bytes = 0;
}

void client_again(struct client *client)
{
    size_t left = client->in_bytes - client->parsed;

    if (left > 0) /* the next reply came with this one */
        memmove(client->in, client->in + client->parsed, left);
    free(client->head);
    free(client->body);
    *client = (struct client){
        .fd = client->fd, .in = client->in, .in_bytes = left, .in_max = client->in_max, .rest = -1};
    if (left > 0)
        parse(client);
}

bool client_feed(struct client *client)
{
    char buffer[1 << 16];

    while (!client->done && !client->broken) {
        ssize_t got = recv(client->fd, buffer, sizeof(buffer), MSG_DONTWAIT);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
            return true;
        if (got <= 0) {
            client->done = client->open_ended;
            client->broken = !client->done;
            break;
        }
        append(&client->in, &client->in_bytes, &client->in_max, buffer, (size_t)got);
        parse(client);
    }
    return false;
}

/* Waits for bytes; false: none came in time. */
static bool wait_bytes(struct client *client)
{
    struct pollfd poll_fd = {.fd = client->fd, .events = POLLIN};

    return poll(&poll_fd, 1, CLIENT_WAIT_MS) == 1;
}

bool client_wait(struct client *client)
{
    while (client_feed(client))
        if (!wait_bytes(client))
            return false;
    return client->done;
}

char *client_event_ready(struct client *client)
{
    if (client->body == NULL)
        return NULL;
    char *start = client->body + client->event_at;
    char *end = strstr(start, "\n\n");

    if (end == NULL)
        return NULL;
    client->event_at += (size_t)(end - start) + 2;
    size_t skip = strncmp(start, "data: ", 6) == 0 ? 6 : 0;
    return strndup(start + skip, (size_t)(end - start) - skip);
}

char *client_event(struct client *client)
{
    for (;;) {
        char *event = client_event_ready(client);
        if (event != NULL)
            return event;
        if (!client_feed(client)) /* ended; perhaps with the last event */
            return client_event_ready(client);
        event = client_event_ready(client);
        if (event != NULL)
            return event;
        if (!wait_bytes(client))
            return NULL;
    }
}

bool client_body_has(const struct client *client, const char *text)
{
    return client->body != NULL && strstr(client->body, text) != NULL;
}

void client_call(struct client *client, int port, const char *method, const char *path,
                 const char *fields, const char *body)
{
    if (client_open(client, port) && client_send(client, method, path, fields, body))
        client_wait(client);
}
