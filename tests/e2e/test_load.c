/* Many streams at once, clients that leave, read slowly or are too many, and the server's end. */
#include "tests/e2e/ask.h"
#include "tests/fake_model.h"
#include "tests/test.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
static const bool sanitized = true;
#else
static const bool sanitized = false;
#endif

enum { STREAM_MAX = 256 };

static struct client client[STREAM_MAX];
static struct ask_stream stream[STREAM_MAX];

static const char used_blocks[] = "quire_kv_blocks{state=\"used\"}";

static int64_t now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000LL + now.tv_nsec / 1000000;
}

static void sleep_ms(int ms)
{
    nanosleep(&(struct timespec){ms / 1000, ms % 1000 * 1000000L}, NULL);
}

/* The text of a prompt of its own for each stream. */
static void prompt_of(int index, char *prompt, size_t max)
{
    snprintf(prompt, max, "stream %d of the %d", index, index * index * 7 % 1000);
}

static void open_stream_with(const struct server *server, int index, int token_max,
                             const char *more)
{
    char prompt[64], body[320];

    prompt_of(index, prompt, sizeof(prompt));
    snprintf(body, sizeof(body),
             "{\"prompt\": \"%s\", \"stream\": true, \"temperature\": 0, \"ignore_eos\": true, "
             "\"max_tokens\": %d, \"stream_options\": {\"include_usage\": true}%s}",
             prompt, token_max, more);
    memset(&stream[index], 0, sizeof(stream[index]));
    EXPECT(client_open(&client[index], server->port));
    EXPECT(client_send(&client[index], "POST", "/v1/completions", "", body));
}

static void open_stream(const struct server *server, int index, int token_max)
{
    open_stream_with(server, index, token_max, "");
}

static void take_events(int index)
{
    char *event;

    while ((event = client_event_ready(&client[index])) != NULL) {
        ask_take(&stream[index], event);
        free(event);
    }
}

/* Reads all open streams until they have ended, or have `event_count` events. */
static void read_streams(int count, int event_count)
{
    struct pollfd poll_fd[STREAM_MAX];
    int64_t end_ms = now_ms() + CLIENT_WAIT_MS;

    for (bool open = true; open && now_ms() < end_ms;) {
        open = false;
        for (int i = 0; i < count; i++) {
            bool wanted = client[i].fd >= 0 && !client[i].done && !client[i].broken &&
                          stream[i].event_count < event_count;
            poll_fd[i] = (struct pollfd){.fd = wanted ? client[i].fd : -1, .events = POLLIN};
            open = open || wanted;
        }
        if (!open || poll(poll_fd, (nfds_t)count, 1000) <= 0)
            continue;
        for (int i = 0; i < count; i++) {
            if (poll_fd[i].revents == 0)
                continue;
            client_feed(&client[i]);
            take_events(i);
        }
    }
}

static void expect_whole(int index, int token_max)
{
    static struct ask_answer want;
    char prompt[64];

    prompt_of(index, prompt, sizeof(prompt));
    ask_expected(&want, prompt, NULL, 0, token_max, true);
    EXPECT(client[index].done);
    EXPECT(!client[index].split);
    EXPECT_STRING(stream[index].broken, "");
    EXPECT_STRING(stream[index].error, "");
    EXPECT_STRING(stream[index].choice[0].text, want.text);
    EXPECT_STRING(stream[index].choice[0].finish, "length");
    EXPECT_INT(stream[index].choice[0].finish_count, ==, 1);
    EXPECT_INT(stream[index].usage_count, ==, 1);
    EXPECT_INT(stream[index].prompt_tokens, ==, want.prompt_count);
    EXPECT_INT(stream[index].completion_tokens, ==, token_max);
    EXPECT(stream[index].done);
}

/* ---- tests ---- */

static void every_event_of_256_streams_arrives_in_order(void)
{
    struct server server = server_start(
        "--max-num-seqs 256 --max-num-batched-tokens 512 --num-gpu-blocks-override 4000");

    for (int i = 0; i < STREAM_MAX; i++)
        open_stream(&server, i, 100);
    read_streams(STREAM_MAX, INT32_MAX);
    for (int i = 0; i < STREAM_MAX; i++) {
        expect_whole(i, 100);
        client_close(&client[i]);
    }
    EXPECT(server_metric_becomes(&server, used_blocks, 0, 2000));
    EXPECT_INT(fake_model_faults(), ==, 0);
    EXPECT_INT(server_stop(&server), ==, 0);
}

/* At contexts of 400 tokens and more, full. */
static void hardly_a_slot_of_the_cache_is_wasted(void)
{
    struct server server =
        server_start("--max-num-seqs 64 --num-gpu-blocks-override 1600 --max-num-batched-tokens "
                     "1024 --no-enable-prefix-caching");
    enum { COUNT = 64, TOKENS = 400 };
    double worst = 0, fullest = 0;

    fake_model_delay(2000);
    for (int i = 0; i < COUNT; i++)
        open_stream(&server, i, TOKENS);
    read_streams(COUNT, 330);
    for (int i = 0; i < 20; i++) {
        double waste = server_metric(&server, "quire_kv_waste_ratio");
        double usage = server_metric(&server, "quire_kv_cache_usage_ratio");
        worst = waste > worst ? waste : worst;
        fullest = usage > fullest ? usage : fullest;
        sleep_ms(2);
    }
    printf("%.1f %% of the blocks in use, at most %.1f %% of their slots wasted\n", 100 * fullest,
           100 * worst);
    EXPECT(fullest > 0.8);
    EXPECT(worst < 0.04);
    fake_model_delay(0);
    read_streams(COUNT, INT32_MAX);
    for (int i = 0; i < COUNT; i++)
        client_close(&client[i]);
    EXPECT_INT(server_stop(&server), ==, 0);
}

/* More streams than slots and far fewer blocks than they need: some wait, some are preempted. */
static void streams_survive_waiting_and_preemption(void)
{
    struct server server = server_start("--max-num-seqs 24 --max-num-batched-tokens 96 "
                                        "--block-size 4 --num-gpu-blocks-override 300");
    enum { COUNT = 80, TOKENS = 120 };

    for (int i = 0; i < COUNT; i++)
        open_stream(&server, i, TOKENS);
    read_streams(COUNT, INT32_MAX);
    for (int i = 0; i < COUNT; i++) {
        expect_whole(i, TOKENS);
        client_close(&client[i]);
    }
    EXPECT(server_metric(&server, "quire_preemptions_total") > 0);
    EXPECT(server_metric_becomes(&server, used_blocks, 0, 2000));
    EXPECT_INT(fake_model_faults(), ==, 0);
    EXPECT_INT(server_stop(&server), ==, 0);
}

static void the_blocks_of_clients_that_leave_are_free_within_steps(void)
{
    struct server server = server_start(
        "--max-num-seqs 256 --max-num-batched-tokens 512 --num-gpu-blocks-override 20000");
    enum { TOKENS = 400, LEFT = STREAM_MAX / 2 };

    fake_model_delay(10000);
    for (int i = 0; i < STREAM_MAX; i++)
        open_stream(&server, i, TOKENS);
    read_streams(STREAM_MAX, 20);
    double before = server_metric(&server, used_blocks);
    EXPECT_INT(server_metric(&server, "quire_requests_running"), ==, STREAM_MAX);
    for (int i = 0; i < STREAM_MAX; i += 2)
        client_close(&client[i]);
    int64_t steps = fake_model_steps();
    EXPECT(server_metric_becomes(&server, "quire_requests_running", LEFT, 2000));
    steps = fake_model_steps() - steps;
    double after = server_metric(&server, used_blocks);
    printf("%d of %d clients left: %.0f blocks, then %.0f, within %d steps of 10 ms\n",
           STREAM_MAX - LEFT, STREAM_MAX, before, after, (int)steps);
    EXPECT(after < 0.6 * before);
    EXPECT_INT(steps, <, 20);
    EXPECT_INT(server_metric(&server, "quire_requests_aborted_total{reason=\"disconnect\"}"), ==,
               STREAM_MAX - LEFT);
    fake_model_delay(0);
    read_streams(STREAM_MAX, INT32_MAX);
    for (int i = 1; i < STREAM_MAX; i += 2) {
        expect_whole(i, TOKENS);
        client_close(&client[i]);
    }
    EXPECT(server_metric_becomes(&server, used_blocks, 0, 2000));
    EXPECT_INT(fake_model_faults(), ==, 0);
    EXPECT_INT(server_stop(&server), ==, 0);
}

/* Replies that nobody reads, longer than what sockets buffer, keep neither their sequences running
 * nor others waiting; and they can be read later. */
static void a_slow_reader_holds_up_nobody(void)
{
    struct server server = server_start(
        "--max-num-seqs 32 --num-gpu-blocks-override 4000 --max-num-batched-tokens 64");
    enum { SLOW = 3, N = 6, TOKENS = 2000 };

    for (int i = 0; i < SLOW; i++)
        open_stream_with(&server, i, TOKENS, ", \"logprobs\": 20, \"n\": 6");
    EXPECT(server_metric_becomes(
        &server, "quire_requests_total{endpoint=\"completions\",finish_reason=\"length\"}",
        SLOW * N, 20000));
    EXPECT(server_metric_becomes(&server, used_blocks, 0, 2000)); /* done, and not yet read */
    open_stream(&server, SLOW, 20);
    while (client_feed(&client[SLOW]))
        sleep_ms(1);
    take_events(SLOW);
    expect_whole(SLOW, 20);
    client_close(&client[SLOW]);
    EXPECT_INT(server_metric(&server, "quire_sse_streams"), ==, SLOW);
    read_streams(SLOW, INT32_MAX);
    for (int i = 0; i < SLOW; i++) {
        EXPECT_STRING(stream[i].broken, "");
        EXPECT_INT(stream[i].choice_count, ==, N);
        EXPECT_INT(stream[i].completion_tokens, ==, N * TOKENS);
        EXPECT(stream[i].done);
        for (int k = 1; k < N; k++)
            EXPECT(strcmp(stream[i].choice[k].text, stream[i].choice[0].text) == 0);
        client_close(&client[i]);
    }
    EXPECT_INT(server_stop(&server), ==, 0);
}

static void a_full_queue_refuses_and_says_when_to_come_back(void)
{
    struct server server =
        server_start("--max-num-seqs 2 --max-num-queued-reqs 4 --num-gpu-blocks-override 500");
    enum { COUNT = 20 };
    int served = 0, refused = 0;

    fake_model_delay(20000);
    for (int i = 0; i < COUNT; i++)
        open_stream(&server, i, 10);
    fake_model_delay(2000);
    read_streams(COUNT, INT32_MAX);
    for (int i = 0; i < COUNT; i++) {
        EXPECT(client_wait(&client[i]));
        if (client[i].status == 200) {
            expect_whole(i, 10);
            served++;
        } else {
            char *after = client_field(&client[i], "Retry-After");
            EXPECT_INT(client[i].status, ==, 429);
            EXPECT(after != NULL && atoi(after) >= 1 && atoi(after) <= 60);
            EXPECT(client_body_has(&client[i], "queue_full"));
            EXPECT(client_body_has(&client[i], "overloaded_error"));
            free(after);
            refused++;
        }
        client_close(&client[i]);
    }
    EXPECT_INT(served, >=, 6);
    EXPECT_INT(refused, >=, 1);
    EXPECT_INT(server_metric(&server, "quire_requests_rejected_total{reason=\"queue_full\"}"), ==,
               refused);
    fake_model_delay(0);
    EXPECT(server_metric_becomes(&server, used_blocks, 0, 2000));
    EXPECT_INT(server_stop(&server), ==, 0);
}

/* A seed gives the same text alone and among many others that come and go. */
static void a_seed_is_worth_the_same_in_a_batch(void)
{
    static const char body[] = "{'prompt': 'the seed', 'seed': 99, 'temperature': 1.2, "
                               "'ignore_eos': true, 'max_tokens': 60, 'logprobs': 2}";
    struct server server =
        server_start("--max-num-seqs 32 --max-num-batched-tokens 48 --num-gpu-blocks-override 800");
    enum { COUNT = 40 };
    cJSON *alone = ask_completion(&server, body);
    char *alone_logprobs = cJSON_PrintUnformatted(ask_at(alone, "choices/0/logprobs"));

    fake_model_delay(1000);
    for (int i = 0; i < COUNT; i++)
        open_stream(&server, i, 20 + 5 * i);
    cJSON *among = ask_completion(&server, body);
    char *among_logprobs = cJSON_PrintUnformatted(ask_at(among, "choices/0/logprobs"));
    EXPECT(strlen(ask_string(alone, "choices/0/text")) > 20);
    EXPECT_STRING(ask_string(among, "choices/0/text"), ask_string(alone, "choices/0/text"));
    EXPECT_STRING(among_logprobs, alone_logprobs);
    fake_model_delay(0);
    read_streams(COUNT, INT32_MAX);
    for (int i = 0; i < COUNT; i++) {
        expect_whole(i, 20 + 5 * i);
        client_close(&client[i]);
    }
    free(alone_logprobs);
    free(among_logprobs);
    cJSON_Delete(alone);
    cJSON_Delete(among);
    EXPECT_INT(server_stop(&server), ==, 0);
}

/* ---- the end ---- */

static bool refused_now(int port)
{
    struct client late;
    bool open = client_open(&late, port);

    if (open) {
        client_send(&late, "POST", "/v1/completions", "", "{\"prompt\": \"late\"}");
        client_wait(&late);
        open = late.status != 503 && late.status != 0;
    }
    client_close(&late);
    return !open;
}

static void after_sigterm_what_runs_is_finished(void)
{
    struct server server = server_start("--max-num-seqs 32 --num-gpu-blocks-override 800");
    enum { COUNT = 20, TOKENS = 100 };

    fake_model_delay(3000);
    for (int i = 0; i < COUNT; i++)
        open_stream(&server, i, TOKENS);
    read_streams(COUNT, 5);
    server_signal(&server, SIGTERM);
    sleep_ms(60);
    EXPECT(refused_now(server.port));
    read_streams(COUNT, INT32_MAX);
    for (int i = 0; i < COUNT; i++) {
        expect_whole(i, TOKENS);
        client_close(&client[i]);
    }
    fake_model_delay(0);
    EXPECT_INT(server_wait(&server), ==, 0);
}

static void a_second_sigterm_ends_at_once(void)
{
    struct server server = server_start("--max-num-seqs 32 --num-gpu-blocks-override 4000");
    enum { COUNT = 10 };

    fake_model_delay(20000);
    for (int i = 0; i < COUNT; i++)
        open_stream(&server, i, 1000);
    read_streams(COUNT, 3);
    server_signal(&server, SIGTERM);
    sleep_ms(50);
    int64_t start_ms = now_ms();
    server_signal(&server, SIGTERM);
    EXPECT_INT(server_wait(&server), ==, 0);
    EXPECT_INT(now_ms() - start_ms, <, 3000);
    fake_model_delay(0);
    for (int i = 0; i < COUNT; i++)
        client_close(&client[i]);
}

static void the_grace_is_limited(void)
{
    struct server server = server_start("--shutdown-timeout 0.2 --num-gpu-blocks-override 4000");

    fake_model_delay(20000);
    open_stream(&server, 0, 1000);
    read_streams(1, 3);
    server_signal(&server, SIGTERM);
    int64_t start_ms = now_ms();
    EXPECT_INT(server_wait(&server), ==, 0);
    EXPECT_INT(now_ms() - start_ms, <, 3000);
    read_streams(1, INT32_MAX);
    EXPECT(!stream[0].done); /* cut off is not the same as finished */
    fake_model_delay(0);
    client_close(&client[0]);
}

static void a_lost_device_ends_streams_with_an_error_and_the_process(void)
{
    struct server server = server_start("--num-gpu-blocks-override 4000");

    fake_model_delay(5000);
    open_stream(&server, 0, 500);
    open_stream(&server, 1, 500);
    read_streams(2, 5);
    fake_model_lose(true);
    read_streams(2, INT32_MAX);
    for (int i = 0; i < 2; i++) {
        EXPECT(stream[i].error[0] != '\0');
        EXPECT(!stream[i].done);
        EXPECT_INT(stream[i].choice[0].finish_count, ==, 0);
        EXPECT_STRING(stream[i].broken, "");
        client_close(&client[i]);
    }
    EXPECT_INT(server_wait(&server), ==, 70);
    fake_model_lose(false);
    fake_model_delay(0);
}

/* ---- resources ---- */

static int64_t cpu_ticks(const struct server *server)
{
    char path[64], line[1024] = "";
    long long user = 0, system = 0;

    snprintf(path, sizeof(path), "/proc/%d/stat", (int)server->pid);
    FILE *file = fopen(path, "r");
    if (file != NULL && fgets(line, sizeof(line), file) != NULL) {
        const char *fields = strrchr(line, ')');
        if (fields != NULL)
            (void)sscanf(fields, ") %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lld %lld", &user,
                         &system);
    }
    if (file != NULL)
        fclose(file);
    return user + system;
}

static void an_idle_server_uses_no_cpu_and_keeps_its_memory(void)
{
    struct server server = server_start("--max-num-seqs 64 --num-gpu-blocks-override 2000");
    int64_t kib = 0;

    for (int round = 0; round < 20; round++) {
        for (int i = 0; i < 64; i++)
            open_stream(&server, i, 40);
        read_streams(64, INT32_MAX);
        for (int i = 0; i < 64; i++)
            client_close(&client[i]);
        if (round == 7)
            kib = server_rss_kib(&server);
    }
    int64_t grown_kib = server_rss_kib(&server) - kib;
    EXPECT(server_metric_becomes(&server, used_blocks, 0, 2000));
    sleep_ms(300);
    int64_t ticks = cpu_ticks(&server);
    sleep_ms(3000);
    EXPECT_INT(cpu_ticks(&server) - ticks, <=, 1);
    printf("memory grew by %d KiB over 768 streams\n", (int)grown_kib);
    EXPECT(sanitized || grown_kib < 8192); /* a sanitizer keeps what is freed for a while */
    EXPECT_INT(server_stop(&server), ==, 0);
}

int main(void)
{
    struct rlimit limit = {.rlim_cur = 4096, .rlim_max = 4096};

    setrlimit(RLIMIT_NOFILE, &limit);
    TEST(every_event_of_256_streams_arrives_in_order);
    TEST(hardly_a_slot_of_the_cache_is_wasted);
    TEST(streams_survive_waiting_and_preemption);
    TEST(the_blocks_of_clients_that_leave_are_free_within_steps);
    TEST(a_slow_reader_holds_up_nobody);
    TEST(a_full_queue_refuses_and_says_when_to_come_back);
    TEST(a_seed_is_worth_the_same_in_a_batch);
    TEST(after_sigterm_what_runs_is_finished);
    TEST(a_second_sigterm_ends_at_once);
    TEST(the_grace_is_limited);
    TEST(a_lost_device_ends_streams_with_an_error_and_the_process);
    TEST(an_idle_server_uses_no_cpu_and_keeps_its_memory);
    return test_report();
}
