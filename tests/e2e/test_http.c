/* HTTP itself: connections that are kept, bodies in pieces, clients that stall; and how the
 * process starts.
 */
#include "tests/e2e/ask.h"
#include "tests/fake_model.h"
#include "tests/test.h"

#include <ctype.h>
#include <signal.h>
#include <time.h>

static struct server server;

static const char used_blocks[] = "quire_kv_blocks{state=\"used\"}";
static const char small_body[] =
    "{\"prompt\": \"Hello\", \"temperature\": 0, \"ignore_eos\": true, \"max_tokens\": 5}";

static void sleep_ms(int ms)
{
    nanosleep(&(struct timespec){ms / 1000, ms % 1000 * 1000000L}, NULL);
}

/* The text of small_body's answer. */
static const char *small_text(void)
{
    static struct ask_answer want;

    ask_expected(&want, "Hello", NULL, 0, 5, true);
    return want.text;
}

static void expect_small_reply(const struct client *client)
{
    cJSON *root = client->body != NULL ? cJSON_Parse(client->body) : NULL;

    EXPECT_INT(client->status, ==, 200);
    EXPECT_STRING(ask_string(root, "choices/0/text"), small_text());
    cJSON_Delete(root);
}

static void expect_field(const struct client *client, const char *name, const char *want)
{
    char *value = client->head != NULL ? client_field(client, name) : NULL;

    EXPECT_STRING(value, want);
    free(value);
}

/* ---- connections ---- */

static void a_connection_takes_many_requests(void)
{
    struct client client;

    EXPECT(client_open(&client, server.port));
    for (int i = 0; i < 20; i++) {
        EXPECT(client_send(&client, "POST", "/v1/completions", "", small_body));
        EXPECT(client_wait(&client));
        expect_small_reply(&client);
        client_again(&client);
        EXPECT(client_send(&client, "GET", "/health", "", NULL));
        EXPECT(client_wait(&client));
        EXPECT_INT(client.status, ==, 200);
        client_again(&client);
    }
    client_close(&client);
}

static void a_stream_leaves_its_connection_good_for_more(void)
{
    struct client client;
    static const char body[] = "{\"prompt\": \"a\", \"stream\": true, \"max_tokens\": 9}";

    EXPECT(client_open(&client, server.port));
    for (int i = 0; i < 3; i++) {
        EXPECT(client_send(&client, "POST", "/v1/completions", "", body));
        EXPECT(client_wait(&client));
        EXPECT(client_body_has(&client, "data: [DONE]\n\n"));
        expect_field(&client, "Cache-Control", "no-cache");
        expect_field(&client, "X-Accel-Buffering", "no");
        client_again(&client);
    }
    client_close(&client);
}

static void pipelined_requests_are_answered_in_order(void)
{
    struct client client;
    char text[1024];

    snprintf(text, sizeof(text),
             "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
             "Content-Length: %zu\r\n\r\n%sGET /version HTTP/1.1\r\nHost: x\r\n\r\n",
             strlen(small_body), small_body);
    EXPECT(client_open(&client, server.port));
    EXPECT(client_send_raw(&client, text, strlen(text)));
    EXPECT(client_wait(&client));
    expect_small_reply(&client);
    client_again(&client);
    EXPECT(client_wait(&client));
    EXPECT(client_body_has(&client, "version"));
    client_close(&client);
}

static void a_body_may_come_in_any_pieces(void)
{
    struct client client;
    char head[256];

    EXPECT(client_open(&client, server.port));
    snprintf(head, sizeof(head),
             "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
             "Content-Length: %zu\r\n\r\n",
             strlen(small_body));
    EXPECT(client_send_raw(&client, head, strlen(head)));
    for (const char *byte = small_body; *byte != '\0'; byte++)
        EXPECT(client_send_raw(&client, byte, 1));
    EXPECT(client_wait(&client));
    expect_small_reply(&client);
    client_again(&client);

    snprintf(head, sizeof(head),
             "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
             "Transfer-Encoding: chunked\r\n\r\n");
    EXPECT(client_send_raw(&client, head, strlen(head)));
    for (size_t at = 0; at < strlen(small_body); at += 7) {
        char chunk[32];
        size_t bytes = strlen(small_body + at) < 7 ? strlen(small_body + at) : 7;
        snprintf(chunk, sizeof(chunk), "%zx\r\n%.*s\r\n", bytes, (int)bytes, small_body + at);
        EXPECT(client_send_raw(&client, chunk, strlen(chunk)));
    }
    EXPECT(client_send_raw(&client, "0\r\n\r\n", 5));
    EXPECT(client_wait(&client));
    expect_small_reply(&client);
    client_close(&client);
}

static void who_asks_first_is_told_to_go_on(void)
{
    struct client client;
    char head[256];

    EXPECT(client_open(&client, server.port));
    snprintf(head, sizeof(head),
             "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
             "Content-Length: %zu\r\nExpect: 100-continue\r\n\r\n",
             strlen(small_body));
    EXPECT(client_send_raw(&client, head, strlen(head)));
    for (int i = 0; i < 200 && !client.continued; i++) {
        client_feed(&client);
        sleep_ms(5);
    }
    EXPECT(client.continued);
    EXPECT(client_send_raw(&client, small_body, strlen(small_body)));
    EXPECT(client_wait(&client));
    expect_small_reply(&client);
    client_close(&client);
}

static void old_clients_get_a_stream_that_ends_with_the_connection(void)
{
    struct client client;
    static const char text[] = "POST /v1/completions HTTP/1.0\r\nContent-Type: application/json\r\n"
                               "Content-Length: 48\r\n\r\n"
                               "{\"prompt\": \"a\", \"stream\": true, \"max_tokens\": 9}";

    EXPECT(client_open(&client, server.port));
    EXPECT(client_send_raw(&client, text, strlen(text)));
    EXPECT(client_wait(&client));
    EXPECT(!client.chunked);
    EXPECT(client_body_has(&client, "data: [DONE]\n\n"));
    client_close(&client);
}

/* ---- paths and fields ---- */

static void the_version_in_the_path_may_be_left_out(void)
{
    static const char *const path[] = {"/completions", "/v1/completions", "/v1/completions/",
                                       "/v1/completions?api-version=1"};
    struct client client;

    for (size_t i = 0; i < sizeof(path) / sizeof(path[0]); i++) {
        client_call(&client, server.port, "POST", path[i], "", small_body);
        expect_small_reply(&client);
        client_close(&client);
    }
}

static void a_request_id_is_echoed_or_made(void)
{
    struct client client;
    char *first, *second;

    client_call(&client, server.port, "POST", "/v1/completions", "X-Request-Id: my-id.7\r\n",
                small_body);
    expect_field(&client, "x-request-id", "my-id.7");
    EXPECT(client_body_has(&client, "\"cmpl-my-id.7\""));
    client_close(&client);
    client_call(&client, server.port, "GET", "/health", "X-Request-Id: bad id\r\n", NULL);
    first = client_field(&client, "x-request-id");
    client_close(&client);
    client_call(&client, server.port, "GET", "/health", "", NULL);
    second = client_field(&client, "x-request-id");
    client_close(&client);
    EXPECT(first != NULL && second != NULL && strcmp(first, second) != 0);
    EXPECT(first != NULL && strcmp(first, "bad id") != 0);
    free(first);
    free(second);
}

static void head_and_options_answer(void)
{
    struct client client;

    EXPECT(client_open(&client, server.port));
    client.no_body = true;
    EXPECT(client_send(&client, "HEAD", "/v1/models", "", NULL));
    EXPECT(client_wait(&client));
    EXPECT_INT(client.status, ==, 200);
    client_close(&client);
    client_call(&client, server.port, "OPTIONS", "/v1/completions", "", NULL);
    EXPECT(client.status == 200 || client.status == 204);
    char *allow = client_field(&client, "Allow");
    EXPECT(allow != NULL && strstr(allow, "POST") != NULL && strstr(allow, "OPTIONS") != NULL);
    free(allow);
    client_close(&client);
}

/* ---- the page of metrics ---- */

/* "name{labels} number" or "# ..." */
static bool is_metric_line(const char *line, size_t bytes)
{
    const char *space = memrchr(line, ' ', bytes);
    char *end;

    if (bytes == 0 || line[0] == '#')
        return true;
    if (space == NULL || (!isalpha((unsigned char)line[0]) && line[0] != '_'))
        return false;
    strtod(space + 1, &end);
    return end == line + bytes;
}

static void the_metrics_page_is_well_formed_and_counts_once(void)
{
    struct client client;
    double before = server_metric(&server, "quire_generation_tokens_total");

    for (int i = 0; i < 3; i++) {
        client_call(&client, server.port, "POST", "/v1/completions", "", small_body);
        client_close(&client);
    }
    EXPECT(server_metric_becomes(&server, "quire_generation_tokens_total", before + 15, 2000));
    client_call(&client, server.port, "GET", "/metrics", "", NULL);
    EXPECT_INT(client.status, ==, 200);
    for (const char *line = client.body; line != NULL && *line != '\0';) {
        size_t bytes = strcspn(line, "\n");
        if (!is_metric_line(line, bytes)) {
            printf("%.*s\n", (int)bytes, line);
            EXPECT(!"a line of metrics");
        }
        line += bytes + (line[bytes] == '\n');
    }
    EXPECT(client_body_has(&client, "\nvllm:num_requests_running{"));
    EXPECT(client_body_has(&client, "\nquire_requests_running "));
    EXPECT(client_body_has(&client, "\nquire_time_to_first_token_seconds_bucket{"));
    client_close(&client);
}

/* Siblings draw from a prompt that the first of them computed: they have no first step of their
 * own, and no time begins at 0. */
static void times_of_several_answers_are_times_of_a_request(void)
{
    struct client client;

    client_call(&client, server.port, "POST", "/v1/completions", "",
                "{\"prompt\": \"several\", \"n\": 3, \"max_tokens\": 2, \"ignore_eos\": true}");
    EXPECT_INT(client.status, ==, 200);
    client_close(&client);
    double whole = server_metric(&server, "quire_e2e_request_latency_seconds_sum");
    EXPECT(server_metric(&server, "quire_request_inference_time_seconds_sum") <= whole);
    EXPECT(server_metric(&server, "quire_request_prefill_time_seconds_sum") <= whole);
    EXPECT(server_metric(&server, "quire_time_to_first_token_seconds_sum") <= whole);
}

/* ---- clients that stall or leave ---- */

static void a_client_that_leaves_a_whole_reply_frees_its_blocks(void)
{
    struct client client;

    fake_model_delay(5000);
    EXPECT(client_open(&client, server.port));
    EXPECT(client_send(&client, "POST", "/v1/completions", "",
                       "{\"prompt\": \"Hello\", \"ignore_eos\": true, \"max_tokens\": 2000}"));
    EXPECT(server_metric_becomes(&server, "quire_requests_running", 1, 2000));
    client_close(&client);
    EXPECT(server_metric_becomes(&server, used_blocks, 0, 2000));
    fake_model_delay(0);
}

static void a_request_that_never_becomes_whole_ends(void)
{
    static const char *const part[] = {
        "",
        "POST /v1/comp",
        "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Le",
        "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        "Content-Length: 100\r\n\r\n{\"prompt\"",
    };
    enum { COUNT = sizeof(part) / sizeof(part[0]) };
    struct server impatient = server_start("--request-timeout 1 --keep-alive-timeout 1");
    struct client client[COUNT];

    for (int i = 0; i < COUNT; i++) {
        EXPECT(client_open(&client[i], impatient.port));
        EXPECT(client_send_raw(&client[i], part[i], strlen(part[i])));
    }
    for (int ms = 0; ms < 8000; ms += 20) {
        bool open = false;
        for (int i = 0; i < COUNT; i++)
            open = client_feed(&client[i]) || open;
        if (!open)
            break;
        sleep_ms(20);
    }
    for (int i = 0; i < COUNT; i++) {
        EXPECT(!client_feed(&client[i])); /* closed, or answered */
        EXPECT(client[i].status == 0 || client[i].status == 408);
        client_close(&client[i]);
    }
    EXPECT_INT(server_stop(&impatient), ==, 0);
}

/* ---- the process ---- */

static void while_it_loads_it_says_so(void)
{
    struct client client;

    fake_model_load(600000);
    struct server loading = server_start_early("");
    client_call(&client, loading.port, "GET", "/health", "", NULL);
    EXPECT_INT(client.status, ==, 503);
    client_close(&client);
    client_call(&client, loading.port, "GET", "/health/live", "", NULL);
    EXPECT_INT(client.status, ==, 200);
    client_close(&client);
    client_call(&client, loading.port, "POST", "/v1/completions", "", small_body);
    EXPECT_INT(client.status, ==, 503);
    EXPECT(client_body_has(&client, "model_loading"));
    char *after = client_field(&client, "Retry-After");
    EXPECT(after != NULL && atoi(after) > 0);
    free(after);
    client_close(&client);
    for (int i = 0; i < 200 && !server_logged(&loading, "ready url="); i++)
        sleep_ms(10);
    client_call(&client, loading.port, "POST", "/v1/completions", "", small_body);
    expect_small_reply(&client);
    client_close(&client);
    EXPECT_INT(server_stop(&loading), ==, 0);

    fake_model_load(20000000);
    loading = server_start_early("");
    EXPECT_INT(server_stop(&loading), ==, 0); /* at once */
    fake_model_load(0);
}

static void a_start_tells_what_decides_performance(void)
{
    struct server told = server_start("--max-num-seqs 7 --num-gpu-blocks-override 600"),
                  asked = server_start("--device cpu --max-model-len 512");

    EXPECT(server_logged(&told, " device=\"a table of hashes\""));
    EXPECT(server_logged(&told, "memory weights_mib=0.0 kv_mib="));
    EXPECT(server_logged(&told, "limits kv_blocks=600 block_tokens=16 kv_tokens=9600 context=8192 "
                                "slots=7 step_tokens="));
    EXPECT(server_logged(&told, "ready url=http://127.0.0.1:"));
    EXPECT(server_logged(&told, " seconds="));
    EXPECT(!server_logged(&asked, "serving on the CPU"));     /* it was asked for */
    EXPECT(!server_logged(&asked, "the memory holds"));       /* so was the short context */
    if (!server_logged(&told, "slots=7 step_tokens=8192"))    /* those of a GPU */
        EXPECT(server_logged(&told, "serving on the CPU: ")); /* it says why */
    EXPECT_INT(server_stop(&told), ==, 0);
    EXPECT_INT(server_stop(&asked), ==, 0);
}

static void a_port_in_use_is_a_line_and_an_exit_code(void)
{
    char options[64], log[4096];

    snprintf(options, sizeof(options), "--port %d", server.port);
    EXPECT_INT(server_run(options, log, sizeof(log)), ==, 1);
    EXPECT(strstr(log, "in use") != NULL);
    EXPECT_INT(server_run("--prot 8000", log, sizeof(log)), ==, 2);
    EXPECT(strstr(log, "--port") != NULL); /* the nearest name */
    EXPECT_INT(server_run("--port 99999", log, sizeof(log)), ==, 2);
    EXPECT(strstr(log, "99999") != NULL && strstr(log, "65535") != NULL);
    EXPECT_INT(server_run("--config /nowhere/quire.yaml", log, sizeof(log)), ==, 3);
    EXPECT(strstr(log, "/nowhere/quire.yaml") != NULL);
}

/* As Ctrl-Z and fg do: it goes on as if nothing had been. */
static void a_server_that_was_stopped_and_continued_serves_on(void)
{
    struct client client;

    server_signal(&server, SIGSTOP);
    sleep_ms(50);
    server_signal(&server, SIGCONT);
    sleep_ms(200);
    EXPECT(!server_logged(&server, "stopping"));
    client_call(&client, server.port, "GET", "/health", "", NULL);
    EXPECT_INT(client.status, ==, 200);
    client_close(&client);
}

static void the_server_ends_well(void)
{
    EXPECT_INT(fake_model_faults(), ==, 0);
    EXPECT_INT(server_stop(&server), ==, 0);
}

int main(void)
{
    server = server_start("--num-gpu-blocks-override 500");
    TEST(a_connection_takes_many_requests);
    TEST(a_stream_leaves_its_connection_good_for_more);
    TEST(pipelined_requests_are_answered_in_order);
    TEST(a_body_may_come_in_any_pieces);
    TEST(who_asks_first_is_told_to_go_on);
    TEST(old_clients_get_a_stream_that_ends_with_the_connection);
    TEST(the_version_in_the_path_may_be_left_out);
    TEST(a_request_id_is_echoed_or_made);
    TEST(head_and_options_answer);
    TEST(the_metrics_page_is_well_formed_and_counts_once);
    TEST(times_of_several_answers_are_times_of_a_request);
    TEST(a_client_that_leaves_a_whole_reply_frees_its_blocks);
    TEST(a_request_that_never_becomes_whole_ends);
    TEST(while_it_loads_it_says_so);
    TEST(a_start_tells_what_decides_performance);
    TEST(a_port_in_use_is_a_line_and_an_exit_code);
    TEST(a_server_that_was_stopped_and_continued_serves_on);
    TEST(the_server_ends_well);
    return test_report();
}
