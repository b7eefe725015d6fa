/* Heads, routes, log lines, metrics, and a real server on a real socket while it loads. */
#include "server/api.h"
#include "server/deadline.h"
#include "server/head.h"
#include "server/http.h"
#include "server/judge.h"
#include "server/listen.h"
#include "server/log.h"
#include "server/metrics.h"
#include "tests/test.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static struct config config;

/* ---- heads ---- */

static struct head head_of(const char *method, const char *path)
{
    return (struct head){.method = method, .path = path, .version = "HTTP/1.1"};
}

static void add(struct head *head, const char *name, const char *value)
{
    head->field[head->field_count++] =
        (struct head_field){name, strlen(name), value, strlen(value)};
}

static struct head sound_head(void)
{
    struct head head = head_of("POST", "/v1/completions");

    add(&head, "Host", "x");
    add(&head, "content-length", "7");
    return head;
}

static void a_sound_head_has_no_fault(void)
{
    struct head head = sound_head();

    EXPECT(head_fault(&head) == NULL);
    EXPECT_INT(head_body_bytes(&head), ==, 7);
    head = head_of("GET", "/");
    head.version = "HTTP/1.0";
    EXPECT(head_fault(&head) == NULL);
    head = head_of("OPTIONS", "*");
    add(&head, "Host", "x");
    EXPECT(head_fault(&head) == NULL);
}

static void heads_that_two_could_read_differently_are_faults(void)
{
    static const char *const pair[][2] = {
        {"Content-Length", "7"},
        {"Transfer-Encoding", "chunked"},
        {"Host", "y"},
        {"Content-Length ", "7"},
        {"", "7"},
        {"a b", "c"},
        {"a\x01", "c"},
        {"a", "b\rc"},
        {"a", "b\x7f"},
    };

    for (size_t i = 0; i < sizeof pair / sizeof pair[0]; i++) {
        struct head head = sound_head();
        add(&head, pair[i][0], pair[i][1]);
        EXPECT(head_fault(&head) != NULL);
    }
    static const char *const length[] = {
        "+7", "-7", "0x7", "7, 7", "", " 7", "99999999999999999999"};
    for (size_t i = 0; i < sizeof length / sizeof length[0]; i++) {
        struct head head = head_of("POST", "/");
        add(&head, "Host", "x");
        add(&head, "Content-Length", length[i]);
        EXPECT(head_fault(&head) != NULL);
    }
    static const char *const coding[] = {"xchunked", "chunked, identity", "identity",
                                         "gzip, chunked"};
    for (size_t i = 0; i < sizeof coding / sizeof coding[0]; i++) {
        struct head head = head_of("POST", "/");
        add(&head, "Host", "x");
        add(&head, "Transfer-Encoding", coding[i]);
        EXPECT(head_fault(&head) != NULL);
    }
    struct head head = head_of("GET", "/");
    EXPECT(head_fault(&head) != NULL); /* no Host */
    head = head_of("GET", "http://evil/");
    add(&head, "Host", "x");
    EXPECT(head_fault(&head) != NULL);
    head = head_of("GET", "/");
    add(&head, "Host", "x");
    head.field_count = HEAD_FIELD_MAX + 1;
    EXPECT(head_fault(&head) != NULL);
}

static void only_json_is_read_and_never_from_another_site_unasked(void)
{
    static const struct {
        const char *type, *origin;
        bool good;
    } row[] = {
        {"application/json", NULL, true},
        {"Application/JSON; charset=utf-8", NULL, true},
        {"application/json ", "https://a", true},
        {NULL, NULL, true},
        {NULL, "https://a", false},
        {"application/jsonx", NULL, false},
        {"text/plain", NULL, false},
        {"application/x-www-form-urlencoded", NULL, false},
    };

    for (size_t i = 0; i < sizeof row / sizeof row[0]; i++) {
        struct head head = sound_head();
        if (row[i].type != NULL)
            add(&head, "Content-Type", row[i].type);
        if (row[i].origin != NULL)
            add(&head, "Origin", row[i].origin);
        EXPECT(head_media_good(&head) == row[i].good);
    }
}

static void keys_are_taken_exactly(void)
{
    char *item[] = {(char *)"first", (char *)"second"};
    struct config_list key = {item, 2};
    static const struct {
        const char *text;
        bool good;
    } row[] = {
        {"Bearer first", true},   {"bearer second", true},  {"BEARER first", true},
        {"Bearer firs", false},   {"Bearer first ", false}, {"Bearer firstt", false},
        {"Bearer ", false},       {"Basic first", false},   {"first", false},
        {"Bearer  first", false},
    };

    for (size_t i = 0; i < sizeof row / sizeof row[0]; i++) {
        struct head head = sound_head();
        add(&head, "Authorization", row[i].text);
        EXPECT(head_key_good(&head, &key) == row[i].good);
        add(&head, "Authorization", row[i].text);
        EXPECT(!head_key_good(&head, &key));
    }
}

static void ids_are_echoed_only_when_safe(void)
{
    char longest[HEAD_ID_MAX + 2];

    memset(longest, 'a', sizeof longest);
    longest[HEAD_ID_MAX] = '\0';
    EXPECT(head_id_good(longest));
    longest[HEAD_ID_MAX] = 'a';
    longest[HEAD_ID_MAX + 1] = '\0';
    EXPECT(!head_id_good(longest));
    EXPECT(head_id_good("req_1-2.3:4"));
    EXPECT(!head_id_good(""));
    EXPECT(!head_id_good(NULL));
    EXPECT(!head_id_good("a b"));
    EXPECT(!head_id_good("a\"b"));
    EXPECT(!head_id_good("a\nb"));
}

static void escapes_in_paths_are_decoded_but_never_to_nul(void)
{
    char text[] = "/a%2Fb%20c%00d%zz%4";

    EXPECT_INT(head_unescape(text), ==, 15);
    EXPECT_STRING(text, "/a/b c%00d%zz%4");
}

/* ---- routes ---- */

static void paths_find_their_routes(void)
{
    const char *rest;
    unsigned allow;

    EXPECT(route_find("POST", "/v1/completions", &rest, &allow) != NULL);
    EXPECT(route_find("POST", "/completions", &rest, &allow) != NULL);
    EXPECT(route_find("GET", "/metrics/", &rest, &allow) != NULL);
    EXPECT(route_find("HEAD", "/v1/models", &rest, &allow) != NULL);
    const struct route *model = route_find("GET", "/v1/models/a/b", &rest, &allow);
    EXPECT(model != NULL && model->handle == api_model);
    EXPECT_STRING(rest, "a/b");
    EXPECT(route_find("GET", "/models/x", &rest, &allow) == model);
    EXPECT_STRING(rest, "x");
    EXPECT(route_find("GET", "/v1/completions", &rest, &allow) == NULL);
    EXPECT_INT(allow, ==, ROUTE_POST | ROUTE_OPTIONS);
    EXPECT(route_find("DELETE", "/ping", &rest, &allow) == NULL);
    EXPECT_INT(allow, ==, ROUTE_GET | ROUTE_HEAD | ROUTE_POST | ROUTE_OPTIONS);
    EXPECT(route_find("GET", "//v1/models", &rest, &allow) == NULL);
    EXPECT_INT(allow, ==, 0);
    EXPECT(route_find("GET", "/v1/models/../x", &rest, &allow) == model); /* a name, no file */
    EXPECT(route_find("GET", "", &rest, &allow) == NULL);
}

static struct judgement judged(const struct head *head, enum api_state state)
{
    struct judgement judgement;

    judge_head(&judgement, head, &config, state);
    return judgement;
}

static void without_a_key_nothing_is_told(void)
{
    char *item[] = {(char *)"secret"};
    static const char *const guarded[] = {"/v1/models",  "/v1/completions", "/tokenize",
                                          "/metrics",    "/nothing",        "//v1/models",
                                          "/v1/models/", "/v1/../v1/models"};
    static const char *const open[] = {"/health", "/ping", "/version", "/health/live"};

    config.api_key = (struct config_list){item, 1};
    for (size_t i = 0; i < sizeof guarded / sizeof guarded[0]; i++) {
        struct head head = head_of("GET", guarded[i]);
        add(&head, "Host", "x");
        struct judgement judgement = judged(&head, API_READY);
        EXPECT(judgement.refused && judgement.error.status == 401);
        add(&head, "Authorization", "Bearer secret");
        judgement = judged(&head, API_READY);
        EXPECT(judgement.error.status != 401);
    }
    for (size_t i = 0; i < sizeof open / sizeof open[0]; i++) {
        struct head head = head_of("GET", open[i]);
        add(&head, "Host", "x");
        EXPECT(!judged(&head, API_READY).refused);
    }
    config.api_key = (struct config_list){0};
}

static void the_head_decides_size_and_readiness(void)
{
    struct head head = sound_head();

    EXPECT(!judged(&head, API_READY).refused);
    struct judgement judgement = judged(&head, API_LOADING);
    EXPECT_INT(judgement.error.status, ==, 503);
    EXPECT_STRING(judgement.error.code, "model_loading");
    EXPECT_STRING(judged(&head, API_DRAINING).error.code, "shutting_down");
    EXPECT_STRING(judged(&head, API_DEAD).error.code, "engine_dead");
    head = head_of("POST", "/v1/completions");
    add(&head, "Host", "x");
    add(&head, "Content-Length", "33554433");
    judgement = judged(&head, API_READY);
    EXPECT(judgement.error.status == 413 && !judgement.close);
    add(&head, "Expect", "100-continue");
    EXPECT(judged(&head, API_READY).close);
    head = head_of("POST", "/v1/completions");
    add(&head, "Host", "x");
    add(&head, "Content-Length", "999999999999");
    EXPECT(judged(&head, API_READY).close);
}

/* ---- log lines ---- */

static void log_lines_cannot_be_forged(void)
{
    char line[512];
    size_t bytes =
        log_line(LOG_FORM_TEXT, LOG_LEVEL_WARN, "http", "a\nb\x1b[31m id=1", line, sizeof line);

    line[bytes] = '\0';
    EXPECT(strchr(line, '\n') == line + bytes - 1);
    EXPECT(strchr(line, 0x1b) == NULL);
    EXPECT(strstr(line, " warn http a\\nb\\x1b[31m id=1\n") != NULL);
}

static void json_lines_have_members(void)
{
    char line[512];
    size_t bytes = log_line(LOG_FORM_JSON, LOG_LEVEL_INFO, "http",
                            "request done id=abc n=12 ms=1.5 path=\"a b\" q=\"x\" zero=007", line,
                            sizeof line);

    line[bytes] = '\0';
    EXPECT(strstr(line, "\"level\":\"info\",\"module\":\"http\",\"event\":\"request done\","
                        "\"id\":\"abc\",\"n\":12,\"ms\":1.5,\"path\":\"a b\",\"q\":\"x\","
                        "\"zero\":\"007\"}\n") != NULL);
    bytes = log_line(LOG_FORM_JSON, LOG_LEVEL_INFO, "a", "x=\"\\\" y=1", line, sizeof line);
    line[bytes] = '\0';
    EXPECT(line[bytes - 1] == '\n' && line[bytes - 2] == '}');
    char small[64];
    bytes = log_line(LOG_FORM_JSON, LOG_LEVEL_INFO, "a", "very long event text that does not fit",
                     small, sizeof small);
    EXPECT(bytes <= sizeof small && small[bytes - 1] == '\n');
}

/* ---- metrics ---- */

static int64_t value_of(const char *page, const char *line)
{
    const char *at = strstr(page, line);
    return at != NULL ? atoll(at + strlen(line)) : -1;
}

static void both_names_show_the_same_cell(void)
{
    struct json page = {0};

    metrics_describe(&(struct metrics_info){"a\"b\\c\n", "1", "auto", 16, 100});
    metrics_add(METRIC_GENERATION_TOKENS, 41);
    metrics_add(METRIC_GENERATION_TOKENS, 1);
    metrics_set(METRIC_RUNNING, 3);
    metrics_move(METRIC_RUNNING, -1);
    metrics_observe(METRIC_QUEUE, 0.4);
    metrics_observe(METRIC_QUEUE, 1e9);
    metrics_write(&page, METRICS_OWN | METRICS_VLLM);
    json_bytes(&page, "", 1);
    EXPECT_INT(value_of(page.text, "\nquire_generation_tokens_total "), ==, 42);
    EXPECT_INT(value_of(page.text, "\nvllm:generation_tokens_total{model_name=\"a\\\"b\\\\c\\n\","
                                   "engine=\"0\"} "),
               ==, 42);
    EXPECT_INT(value_of(page.text, "\nquire_requests_running "), ==, 2);
    EXPECT_INT(value_of(page.text, "\nquire_request_queue_time_seconds_bucket{le=\"0.3\"} "), ==,
               0);
    EXPECT_INT(value_of(page.text, "\nquire_request_queue_time_seconds_bucket{le=\"0.5\"} "), ==,
               1);
    EXPECT_INT(value_of(page.text, "\nquire_request_queue_time_seconds_bucket{le=\"+Inf\"} "), ==,
               2);
    EXPECT_INT(value_of(page.text, "\nquire_request_queue_time_seconds_count "), ==, 2);
    EXPECT_INT(metrics_count(METRIC_QUEUE), ==, 2);
    json_release(&page);
}

static void one_set_of_names_has_no_colon(void)
{
    struct json page = {0};

    metrics_write(&page, METRICS_OWN);
    json_bytes(&page, "", 1);
    for (char *line = page.text; *line != '\0'; line = strchr(line, '\n') + 1) {
        size_t name = strcspn(line, " {\n");
        EXPECT(line[0] == '#' || memchr(line, ':', name) == NULL);
    }
    json_release(&page);
}

/* ---- a server ---- */

static int dial(uint16_t port)
{
    struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct timeval patience = {.tv_sec = 5};
    int fd = socket(AF_INET, SOCK_STREAM, 0);

    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    if (connect(fd, (struct sockaddr *)&address, sizeof address) < 0) {
        close(fd);
        return -1;
    }
    return fd;
}

/* Everything that comes back on a connection of its own, asked to close. */
static void ask(uint16_t port, const char *request, char *reply, size_t max)
{
    int fd = dial(port);
    size_t bytes = 0;
    ssize_t got;

    EXPECT(fd >= 0);
    EXPECT(write(fd, request, strlen(request)) == (ssize_t)strlen(request));
    while (bytes + 1 < max && (got = read(fd, reply + bytes, max - 1 - bytes)) > 0)
        bytes += (size_t)got;
    reply[bytes] = '\0';
    close(fd);
}

#define CLOSE "Host: x\r\nConnection: close\r\n"

static void a_server_answers_while_its_model_loads(void)
{
    struct http *http;
    char error[256], reply[8192];

    config.port = 0;
    EXPECT_INT(http_start(&http, &config, error, sizeof error), ==, 0);
    uint16_t port = http_port(http);

    ask(port, "GET /health HTTP/1.1\r\n" CLOSE "\r\n", reply, sizeof reply);
    EXPECT(strncmp(reply, "HTTP/1.1 503", 12) == 0);
    EXPECT(strstr(reply, "\"code\":\"model_loading\"") != NULL);
    EXPECT(strstr(reply, "Retry-After: ") != NULL);
    ask(port, "GET /health/live HTTP/1.1\r\n" CLOSE "\r\n", reply, sizeof reply);
    EXPECT(strncmp(reply, "HTTP/1.1 200", 12) == 0);
    ask(port, "GET /version HTTP/1.1\r\n" CLOSE "X-Request-Id: my-id\r\n\r\n", reply, sizeof reply);
    EXPECT(strstr(reply, "{\"version\":\"") != NULL);
    EXPECT(strstr(reply, "x-request-id: my-id\r\n") != NULL);
    ask(port, "GET /metrics HTTP/1.1\r\n" CLOSE "\r\n", reply, sizeof reply);
    EXPECT(strstr(reply, "text/plain; version=0.0.4") != NULL);
    ask(port,
        "POST /v1/completions HTTP/1.1\r\n" CLOSE
        "Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{}",
        reply, sizeof reply);
    EXPECT(strncmp(reply, "HTTP/1.1 503", 12) == 0);
    ask(port, "GET /v1/completions HTTP/1.1\r\n" CLOSE "\r\n", reply, sizeof reply);
    EXPECT(strncmp(reply, "HTTP/1.1 405", 12) == 0);
    EXPECT(strstr(reply, "Allow: POST, OPTIONS\r\n") != NULL);
    ask(port, "OPTIONS /v1/models HTTP/1.1\r\n" CLOSE "Origin: https://evil\r\n\r\n", reply,
        sizeof reply);
    EXPECT(strncmp(reply, "HTTP/1.1 204", 12) == 0);
    EXPECT(strstr(reply, "Access-Control") == NULL);
    ask(port, "HEAD /version HTTP/1.1\r\n" CLOSE "\r\n", reply, sizeof reply);
    EXPECT(strncmp(reply, "HTTP/1.1 200", 12) == 0 && strstr(reply, "{") == NULL);
    ask(port, "GET /%2e%2e/etc/passwd HTTP/1.1\r\n" CLOSE "\r\n", reply, sizeof reply);
    EXPECT(strncmp(reply, "HTTP/1.1 404", 12) == 0);
    EXPECT(strstr(reply, "\"param\":null,\"code\":\"unknown_url\"") != NULL);
    http_stop(http);
    EXPECT(dial(port) < 0);
}

static void smuggled_requests_end_their_connection(void)
{
    static const char *const request[] = {
        "POST /version HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nTransfer-Encoding: "
        "chunked\r\n\r\n0\r\n\r\nGET /version HTTP/1.1\r\nHost: x\r\n\r\n",
        "POST /version HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nContent-Length: "
        "0\r\n\r\nGET /version HTTP/1.1\r\nHost: x\r\n\r\n",
        "GET /version HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\nGET /version HTTP/1.1\r\nHost: "
        "x\r\n\r\n",
        "GET /version HTTP/1.1\r\n\r\nGET /version HTTP/1.1\r\nHost: x\r\n\r\n",
    };
    struct http *http;
    char error[256], reply[8192];

    config.port = 0;
    EXPECT_INT(http_start(&http, &config, error, sizeof error), ==, 0);
    for (size_t i = 0; i < sizeof request / sizeof request[0]; i++) {
        ask(http_port(http), request[i], reply, sizeof reply);
        EXPECT(strncmp(reply, "HTTP/1.1 400", 12) == 0);
        EXPECT(strstr(reply + 12, "HTTP/1.1") == NULL); /* one reply, and the end */
    }
    http_stop(http);
}

static void a_request_that_takes_too_long_is_cut(void)
{
    struct http *http;
    char error[256], byte;

    config.port = 0;
    config.request_timeout = 1;
    EXPECT_INT(http_start(&http, &config, error, sizeof error), ==, 0);
    int head = dial(http_port(http)), body = dial(http_port(http));
    static const char begin[] = "POST /version HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n";
    EXPECT(write(head, begin, 10) == 10);
    EXPECT(write(body, begin, sizeof begin - 1) == sizeof begin - 1);
    int64_t start = deadlines_now();
    for (int i = 0; i < 4; i++) { /* activity does not help */
        usleep(200000);
        EXPECT(write(head, "a", 1) == 1);
        EXPECT(write(body, "a", 1) == 1);
    }
    EXPECT(read(head, &byte, 1) <= 0);
    EXPECT(read(body, &byte, 1) <= 0);
    int64_t us = deadlines_now() - start;
    EXPECT(us > 700000 && us < 3000000);
    close(head);
    close(body);
    http_stop(http);
    config.request_timeout = 60;
}

static void a_sender_that_left_is_noticed(void)
{
    struct deadlines *deadlines = deadlines_start();
    char byte;
    int pair[2];

    EXPECT(deadlines != NULL);
    EXPECT(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
    struct peer *peer = deadlines_add(deadlines, pair[0], deadlines_now() + 60000000);
    EXPECT(write(pair[1], "POST", 4) == 4);
    EXPECT(read(pair[0], &byte, 1) == 1); /* and no further edge will come */
    EXPECT(shutdown(pair[1], SHUT_WR) == 0);
    struct timeval patience = {.tv_sec = 10};
    setsockopt(pair[1], SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    int64_t start = deadlines_now();
    EXPECT_INT(read(pair[1], &byte, 1), ==, 0); /* cut */
    EXPECT(deadlines_now() - start < 5000000);
    deadlines_remove(deadlines, peer);
    deadlines_stop(deadlines);
    close(pair[0]);
    close(pair[1]);
}

static void a_port_in_use_is_said_so(void)
{
    struct http *http;
    char error[256];
    int fd = listen_open("127.0.0.1", 0, error, sizeof error);

    EXPECT(fd >= 0);
    config.port = listen_port(fd);
    EXPECT_INT(http_start(&http, &config, error, sizeof error), ==, -EADDRINUSE);
    EXPECT(strstr(error, "could not listen") != NULL && strchr(error, '\n') == NULL);
    close(fd);
}

int main(void)
{
    if (config_defaults(&config, CONFIG_SERVE) < 0)
        return 1;
    config.access_log = false;
    TEST(a_sound_head_has_no_fault);
    TEST(heads_that_two_could_read_differently_are_faults);
    TEST(only_json_is_read_and_never_from_another_site_unasked);
    TEST(keys_are_taken_exactly);
    TEST(ids_are_echoed_only_when_safe);
    TEST(escapes_in_paths_are_decoded_but_never_to_nul);
    TEST(paths_find_their_routes);
    TEST(without_a_key_nothing_is_told);
    TEST(the_head_decides_size_and_readiness);
    TEST(log_lines_cannot_be_forged);
    TEST(json_lines_have_members);
    TEST(both_names_show_the_same_cell);
    TEST(one_set_of_names_has_no_colon);
    TEST(a_server_answers_while_its_model_loads);
    TEST(smuggled_requests_end_their_connection);
    TEST(a_request_that_takes_too_long_is_cut);
    TEST(a_sender_that_left_is_noticed);
    TEST(a_port_in_use_is_said_so);
    config_release(&config);
    return test_report();
}
