/* Random servers under random requests: whatever the block size, the budget, the number of slots
 * and blocks, every answer is the one that the model's rule gives.
 *   test_random [FIRST LAST]      seeds; a failing one is printed and can be run alone
 */
#include "tests/e2e/ask.h"
#include "tests/fake_model.h"
#include "tests/test.h"

#include <poll.h>
#include <time.h>

enum {
    REQUEST_COUNT = 40,
    OPEN_MAX = 16,    /* at once */
    PROMPT_MAX = 240, /* bytes, and so tokens but for BOS */
    OUTPUT_MAX = 80,
    BASE_COUNT = 4,
};

static uint64_t random_state;

static uint32_t random_below(uint32_t bound)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)((random_state >> 32) * bound >> 32);
}

static bool chance(uint32_t percent)
{
    return random_below(100) < percent;
}

/* ---- one request ---- */

struct request {
    char prompt[PROMPT_MAX + 1];
    int32_t output_max;
    int n;
    char stop[16];   /* "" for none */
    int leave_after; /* events; 0: stays */
    bool ignore_eos;
    char text[ASK_TEXT_MAX]; /* what must come */
    const char *finish;
    struct client client;
    struct ask_stream stream;
    bool open, over;
};

static struct request request[REQUEST_COUNT];
static char base[BASE_COUNT][PROMPT_MAX + 1];

static void make_bases(void)
{
    static const char letters[] = "abcdefghij KLMNOP.,!? the of";

    for (int i = 0; i < BASE_COUNT; i++)
        for (int k = 0; k < PROMPT_MAX; k++)
            base[i][k] = letters[random_below(sizeof(letters) - 1)];
}

/* A piece of the text that will come, if one is fit to stand in JSON; it will stop there. */
static void choose_stop(struct request *from)
{
    size_t bytes = strlen(from->text), part = 1 + random_below(6);

    if (bytes < 20)
        return;
    size_t at = random_below((uint32_t)(bytes - part));
    for (size_t i = 0; i < part; i++) {
        char byte = from->text[at + i];
        if (byte < ' ' || byte == '"' || byte == '\\' || byte == 0x7F) /* no ASCII: below 0 */
            return;
    }
    memcpy(from->stop, from->text + at, part);
    from->stop[part] = '\0';
    *strstr(from->text, from->stop) = '\0';
    from->finish = "stop";
}

static void make_request(struct request *made)
{
    static struct ask_answer answer;
    const char *from = base[random_below(BASE_COUNT)];

    memset(made, 0, sizeof(*made));
    made->client.fd = -1;
    snprintf(made->prompt, 2 + random_below(PROMPT_MAX - 1), "%s", from);
    if (chance(20)) /* equal up to here */
        made->prompt[strlen(made->prompt) - 1] = 'z';
    made->output_max = (int32_t)(1 + random_below(OUTPUT_MAX));
    made->n = chance(25) ? (int)(2 + random_below(5)) : 1;
    made->ignore_eos = chance(50);
    ask_expected(&answer, made->prompt, NULL, 0, made->output_max, made->ignore_eos);
    memcpy(made->text, answer.text, sizeof(answer.text));
    made->finish = answer.finish;
    if (chance(30))
        choose_stop(made);
    if (chance(20))
        made->leave_after = (int)(1 + random_below(20));
}

static void open_request(const struct server *server, struct request *opened)
{
    char body[1024], stop[64] = "";

    if (opened->stop[0] != '\0')
        snprintf(stop, sizeof(stop), ", \"stop\": [\"%s\"]", opened->stop);
    snprintf(body, sizeof(body),
             "{\"prompt\": \"%s\", \"max_tokens\": %d, \"n\": %d, \"ignore_eos\": %s, "
             "\"temperature\": 0, \"stream\": true, \"stream_options\": "
             "{\"include_usage\": true}%s}",
             opened->prompt, opened->output_max, opened->n, opened->ignore_eos ? "true" : "false",
             stop);
    opened->open = true;
    EXPECT(client_open(&opened->client, server->port));
    EXPECT(client_send(&opened->client, "POST", "/v1/completions", "", body));
}

static void check_request(const struct request *ended)
{
    EXPECT_INT(ended->client.status, ==, 200);
    EXPECT(ended->client.done);
    EXPECT_STRING(ended->stream.broken, "");
    EXPECT_STRING(ended->stream.error, "");
    EXPECT(ended->stream.done);
    EXPECT_INT(ended->stream.choice_count, ==, ended->n);
    for (int i = 0; i < ended->stream.choice_count; i++) {
        EXPECT_STRING(ended->stream.choice[i].text, ended->text);
        EXPECT_STRING(ended->stream.choice[i].finish, ended->finish);
        EXPECT_INT(ended->stream.choice[i].finish_count, ==, 1);
    }
}

static void read_request(struct request *read)
{
    bool more = client_feed(&read->client);
    char *event;

    while ((event = client_event_ready(&read->client)) != NULL) {
        ask_take(&read->stream, event);
        free(event);
    }
    bool leaves = read->leave_after > 0 && read->stream.event_count >= read->leave_after;
    if (more && !leaves)
        return;
    if (!leaves)
        check_request(read);
    read->over = true;
    client_close(&read->client);
}

/* ---- one seed ---- */

/* Room for at least one sequence of the longest kind. */
static struct server start_server(void)
{
    char options[512];
    uint32_t block_tokens = 1u << random_below(6);
    uint32_t least = (PROMPT_MAX + 1 + OUTPUT_MAX + block_tokens - 1) / block_tokens + 2;
    uint32_t slots = 1 + random_below(24);
    uint32_t budget = slots + random_below(chance(50) ? 16 : 200);

    snprintf(options, sizeof(options),
             "--block-size %u --num-gpu-blocks-override %u --max-num-seqs %u "
             "--max-num-batched-tokens %u --long-prefill-token-threshold %u %s %s",
             block_tokens, least + random_below(4 * least), slots, budget,
             chance(30) ? 1 + random_below(20) : 0,
             chance(30) ? "--no-async-scheduling" : "--async-scheduling",
             chance(30) ? "--no-enable-prefix-caching" : "--enable-prefix-caching");
    printf("  %s\n", options);
    return server_start(options);
}

static void open_some(const struct server *server, int *opened)
{
    int open = 0;

    for (int i = 0; i < *opened; i++)
        open += request[i].open && !request[i].over;
    while (*opened < REQUEST_COUNT && open < OPEN_MAX && chance(70)) {
        open_request(server, &request[(*opened)++]);
        open++;
    }
}

static bool all_over(void)
{
    for (int i = 0; i < REQUEST_COUNT; i++)
        if (!request[i].over)
            return false;
    return true;
}

static void run_requests(const struct server *server)
{
    struct pollfd poll_fd[REQUEST_COUNT];
    time_t end = time(NULL) + CLIENT_WAIT_MS / 1000;
    int opened = 0;

    while (!all_over() && time(NULL) < end) {
        open_some(server, &opened);
        for (int i = 0; i < REQUEST_COUNT; i++) {
            bool wanted = request[i].open && !request[i].over;
            poll_fd[i] =
                (struct pollfd){.fd = wanted ? request[i].client.fd : -1, .events = POLLIN};
        }
        poll(poll_fd, REQUEST_COUNT, 20);
        for (int i = 0; i < REQUEST_COUNT; i++)
            if (poll_fd[i].fd >= 0 && poll_fd[i].revents != 0)
                read_request(&request[i]);
    }
    EXPECT(all_over());
}

static void run_seed(uint64_t seed)
{
    random_state = seed * 0x9E3779B97F4A7C15u + 1;
    make_bases();
    for (int i = 0; i < REQUEST_COUNT; i++)
        make_request(&request[i]);
    struct server server = start_server();
    fake_model_delay(chance(50) ? 200 : 0);
    run_requests(&server);
    EXPECT(server_metric_becomes(&server, "quire_kv_blocks{state=\"used\"}", 0, 3000));
    EXPECT_INT(fake_model_faults(), ==, 0);
    for (int i = 0; i < REQUEST_COUNT; i++)
        client_close(&request[i].client);
    EXPECT_INT(server_stop(&server), ==, 0);
    if (test_check_failed > 0)
        printf("seed %d failed\n", (int)seed);
}

static int first_seed = 1, last_seed = 10;

static void random_servers_give_the_model_s_answers(void)
{
    for (int seed = first_seed; seed <= last_seed && test_check_failed == 0; seed++)
        run_seed((uint64_t)seed);
}

int main(int argc, char **argv)
{
    if (argc == 3) {
        first_seed = atoi(argv[1]);
        last_seed = atoi(argv[2]);
    }
    TEST(random_servers_give_the_model_s_answers);
    return test_report();
}
