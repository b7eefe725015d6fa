/* The step log: a line for each step that says what was in it, and files that cannot be written. */
#include "server/command.h"
#include "tests/e2e/ask.h"
#include "tests/fake_model.h"
#include "tests/test.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { COLUMN_MAX = 32 };

/* A log as it was read: its columns' names, and the sums of the numbers below them. */
struct table {
    char text[1 << 20];
    char *name[COLUMN_MAX];
    int column_count;
    int line_count;   /* without the header */
    int header_count; /* lines that are the header again */
    int broken_count; /* lines with another number of columns */
    double sum[COLUMN_MAX];
};

static struct table table;
static char folder[] = "/tmp/quire-step-log-XXXXXX";

static const char *path_of(const char *name)
{
    static char path[128];

    snprintf(path, sizeof(path), "%s/%s", folder, name);
    return path;
}

static struct server start(const char *name, const char *options)
{
    char all[512];

    snprintf(all, sizeof(all), "--step-log %s %s", path_of(name), options);
    return server_start(all);
}

static void take_line(char *line)
{
    char *rest = line, *field;
    double value[COLUMN_MAX] = {0};
    int count = 0;

    if (strncmp(line, "time,", 5) == 0)
        table.header_count++;
    while ((field = strsep(&rest, ",")) != NULL && count < COLUMN_MAX) {
        if (table.header_count == 1 && table.line_count == 0 && table.column_count == count)
            table.name[table.column_count++] = field;
        value[count++] = atof(field);
    }
    if (strcmp(line, "time") == 0)
        return;
    table.line_count++;
    table.broken_count += count != table.column_count;
    for (int i = 0; i < count; i++)
        table.sum[i] += value[i];
}

static void read_table(const char *name)
{
    int fd = open(path_of(name), O_RDONLY);
    char *rest = table.text, *line;

    memset(&table, 0, sizeof(table));
    EXPECT(fd >= 0 && read(fd, table.text, sizeof(table.text) - 1) > 0);
    close(fd);
    while ((line = strsep(&rest, "\n")) != NULL)
        if (line[0] != '\0')
            take_line(line);
    EXPECT_INT(table.header_count, ==, 1);
    EXPECT_INT(table.broken_count, ==, 0);
}

static double sum(const char *name)
{
    for (int i = 0; i < table.column_count; i++)
        if (strcmp(table.name[i], name) == 0)
            return table.sum[i];
    printf("there is no column %s\n", name);
    return -1;
}

/* Waits until the log has a line for each step that the metrics count. */
static void await_lines(const struct server *server, const char *name)
{
    for (int i = 0; i < 400; i++) {
        read_table(name);
        if (table.line_count == (int)server_metric(server, "quire_engine_steps_total"))
            return;
        nanosleep(&(struct timespec){.tv_nsec = 5000000}, NULL);
    }
    EXPECT_INT(table.line_count, ==, server_metric(server, "quire_engine_steps_total"));
}

static void complete(const struct server *server, const char *body)
{
    cJSON_Delete(ask_completion(server, body));
}

/* ---- tests ---- */

static void a_sequence_alone_is_counted_exactly(void)
{
    struct server server =
        start("alone", "--max-num-batched-tokens 4 --max-num-seqs 4 --no-enable-prefix-caching");
    enum { PROMPT = 10, TOKENS = 7 };

    complete(&server, "{'prompt': [1, 9, 8, 7, 6, 5, 4, 3, 9, 8], 'max_tokens': 7, "
                      "'ignore_eos': true, 'temperature': 0}");
    await_lines(&server, "alone"); /* nothing runs: they are written without waiting for more */
    EXPECT_INT(table.line_count, ==, 3 + TOKENS - 1);
    EXPECT_INT(sum("prompt_tokens"), ==, PROMPT);
    EXPECT_INT(sum("prompt_context"), ==, PROMPT * (PROMPT + 1) / 2);
    EXPECT_INT(sum("decode_rows"), ==, TOKENS - 1);
    EXPECT_INT(sum("decode_context"), ==, (11 + 16) * 6 / 2);
    EXPECT_INT(sum("samples"), ==, TOKENS);
    EXPECT_INT(sum("drawn"), ==, 0);
    EXPECT_INT(sum("penalised") + sum("logprobs") + sum("scores"), ==, 0);
    EXPECT_INT(sum("starts"), ==, 1);
    EXPECT_INT(sum("alone"), >=, 1);
    EXPECT(sum("duration_us") >= sum("wait_us"));
    EXPECT_INT(server_stop(&server), ==, 0);
    read_table("alone");
    EXPECT_INT(table.line_count, ==, 3 + TOKENS - 1);
}

static void what_costs_time_has_its_column(void)
{
    struct server server = start("kinds", "--no-enable-prefix-caching");

    complete(&server, "{'prompt': 'warm', 'max_tokens': 5, 'ignore_eos': true, 'temperature': 1, "
                      "'seed': 1, 'n': 3}");
    complete(&server, "{'prompt': 'rare', 'max_tokens': 6, 'ignore_eos': true, 'temperature': 0, "
                      "'frequency_penalty': 0.5}");
    complete(&server, "{'prompt': 'seen', 'max_tokens': 8, 'ignore_eos': true, 'temperature': 0, "
                      "'logprobs': 2, 'echo': true}");
    await_lines(&server, "kinds");
    EXPECT_INT(sum("drawn"), ==, 3 * 5);
    EXPECT_INT(sum("penalised"), ==, 6);
    EXPECT_INT(sum("scores"), ==, sum("prompt_tokens") / 3 - 1); /* prompts of equal lengths */
    EXPECT_INT(sum("logprobs"), ==, 8 + sum("scores"));
    EXPECT_INT(sum("starts"), ==, 5);
    EXPECT_INT(sum("moves"), ==, 2); /* of the block that the prompt's siblings share */
    EXPECT_INT(server_stop(&server), ==, 0);
}

static void preempted_sequences_are_seen_to_come_back(void)
{
    struct server server = start("preempted", "--max-num-seqs 24 --max-num-batched-tokens 96 "
                                              "--block-size 4 --num-gpu-blocks-override 100");

    complete(&server, "{'prompt': ['a', 'bc', 'def', 'ghij', 'klmno', 'pqrstu', 'vwxyz', 'A'], "
                      "'max_tokens': 90, 'ignore_eos': true, 'temperature': 0}");
    await_lines(&server, "preempted");
    double preempted = server_metric(&server, "quire_preemptions_total");
    EXPECT(preempted > 0);
    EXPECT_INT(sum("preempted"), ==, preempted);
    EXPECT_INT(sum("resumed"), >, 0);
    EXPECT_INT(sum("resumed"), <=, preempted);
    EXPECT_INT(sum("starts"), ==, 8 + preempted);
    EXPECT_INT(server_stop(&server), ==, 0);
}

static void a_busy_engine_writes_within_a_second_or_so(void)
{
    struct server server = start("busy", "--num-gpu-blocks-override 4000");
    struct client client;

    fake_model_delay(10000);
    EXPECT(client_open(&client, server.port));
    char *body = ask_json("{'prompt': 'x', 'max_tokens': 3000, 'ignore_eos': true}");
    EXPECT(client_send(&client, "POST", "/v1/completions", "", body));
    free(body);
    nanosleep(&(struct timespec){.tv_sec = 2, .tv_nsec = 500000000}, NULL);
    read_table("busy");
    EXPECT_INT(table.line_count, >, 10);
    EXPECT(server_metric(&server, "quire_requests_running") == 1);
    fake_model_lose(true); /* the process ends without closing anything */
    EXPECT_INT(server_wait(&server), ==, EXIT_CODE_LOST);
    int count = table.line_count;
    read_table("busy");
    EXPECT_INT(table.line_count, >, count);
    fake_model_lose(false);
    fake_model_delay(0);
    client_close(&client);
}

static void a_file_is_gone_on_with(void)
{
    int count = 0;

    for (int i = 0; i < 2; i++) {
        struct server server = start("again", "");
        complete(&server, "{'prompt': 'x', 'max_tokens': 4, 'ignore_eos': true}");
        EXPECT_INT(server_stop(&server), ==, 0);
        read_table("again");
        EXPECT_INT(table.line_count, >, count);
        count = table.line_count;
    }
}

static void a_file_that_cannot_be_opened_is_told_at_the_start(void)
{
    char options[256], log[4096];

    fake_model_load(60000000); /* nobody waits for the model first */
    snprintf(options, sizeof(options), "--step-log %s", path_of("no/folder"));
    EXPECT_INT(server_run(options, log, sizeof(log)), ==, EXIT_CODE_RUNTIME);
    EXPECT(strstr(log, "could not open the step log ") != NULL);
    EXPECT(strstr(log, "no/folder: No such file or directory") != NULL);
    fake_model_load(0);
}

/* Serves on, and tells it once. */
static void expect_ends(const char *path, const char *reason)
{
    char options[256], mark[64];

    snprintf(options, sizeof(options), "--step-log %s --num-gpu-blocks-override 4000", path);
    struct server server = server_start(options);
    for (int i = 0; i < 3; i++)
        complete(&server, "{'prompt': 'x', 'max_tokens': 1000, 'ignore_eos': true}");
    snprintf(mark, sizeof(mark), "reason=\"%s\"", reason);
    EXPECT(server_logged(&server, "the step log ends here: could not write"));
    EXPECT(server_logged(&server, mark));
    EXPECT(!server_logged_again(&server, "the step log ends here"));
    complete(&server, "{'prompt': 'x', 'max_tokens': 4}");
    EXPECT_INT(server_stop(&server), ==, 0);
}

static void a_full_disk_ends_the_log_and_not_the_server(void)
{
    expect_ends("/dev/full", "No space left on device");
}

static void a_pipe_that_nobody_reads_holds_up_nothing(void)
{
    const char *path = path_of("pipe");
    char log[4096], options[256];

    EXPECT_INT(mkfifo(path, 0600), ==, 0);
    snprintf(options, sizeof(options), "--step-log %s", path);
    EXPECT_INT(server_run(options, log, sizeof(log)), ==, EXIT_CODE_RUNTIME); /* no reader */
    int reader = open(path, O_RDONLY | O_NONBLOCK);
    EXPECT(reader >= 0);
    expect_ends(path, "Resource temporarily unavailable");
    close(reader);
}

static void clean_up(void)
{
    static const char *const name[] = {"alone", "kinds", "preempted", "busy", "again", "pipe"};

    for (size_t i = 0; i < sizeof(name) / sizeof(name[0]); i++)
        unlink(path_of(name[i]));
    rmdir(folder);
}

int main(void)
{
    if (mkdtemp(folder) == NULL)
        abort();
    TEST(a_sequence_alone_is_counted_exactly);
    TEST(what_costs_time_has_its_column);
    TEST(preempted_sequences_are_seen_to_come_back);
    TEST(a_busy_engine_writes_within_a_second_or_so);
    TEST(a_file_is_gone_on_with);
    TEST(a_file_that_cannot_be_opened_is_told_at_the_start);
    TEST(a_full_disk_ends_the_log_and_not_the_server);
    TEST(a_pipe_that_nobody_reads_holds_up_nothing);
    clean_up();
    return test_report();
}
