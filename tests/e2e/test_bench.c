/* `quire bench` over a fake model: every figure is printed, and equal runs give equal tokens. */
#include "server/command.h"
#include "tests/fake_model.h"
#include "tests/test.h"

#include <fcntl.h>
#include <unistd.h>

/* What cmd_bench prints to standard output, NUL-terminated; the caller frees it. */
static char *bench(const char *line, int *exit_code)
{
    static char copy[1024];
    char path[] = "/tmp/quire-bench-XXXXXX", *argv[24] = {(char *)"bench"}, *save;
    int argc = 1, file = mkstemp(path), standard = dup(STDOUT_FILENO);

    snprintf(copy, sizeof copy, "%s", line);
    for (char *word = strtok_r(copy, " ", &save); word != NULL && argc < 24;
         word = strtok_r(NULL, " ", &save))
        argv[argc++] = word;
    unlink(path);
    fflush(stdout);
    dup2(file, STDOUT_FILENO);
    *exit_code = cmd_bench(argc, argv);
    fflush(stdout);
    dup2(standard, STDOUT_FILENO);
    close(standard);
    off_t bytes = lseek(file, 0, SEEK_END);
    char *text = calloc((size_t)bytes + 1, 1);
    if (text == NULL || pread(file, text, (size_t)bytes, 0) != bytes)
        abort();
    close(file);
    return text;
}

static int32_t count(const char *text, const char *word)
{
    int32_t found = 0;

    for (const char *at = text; (at = strstr(at, word)) != NULL; at += strlen(word))
        found++;
    return found;
}

/* The hash of figure `index`, 0 when there is none. */
static uint64_t hash_of(const char *text, int32_t index)
{
    const char *at = text;

    for (int32_t i = 0; at != NULL && i <= index; i++) {
        at = strstr(at, "\"hash\": \"");
        at = at != NULL ? at + 9 : NULL;
    }
    return at != NULL ? strtoull(at, NULL, 16) : 0;
}

static void a_smoke_run_prints_every_figure(void)
{
    int code;
    char *text = bench("fake --device cpu --smoke", &code);

    EXPECT_INT(code, ==, EXIT_CODE_OK);
    EXPECT_INT(count(text, "\n"), ==, 4);
    EXPECT_INT(count(text, "{\"name\": \"prompt\""), ==, 1);
    EXPECT_INT(count(text, "{\"name\": \"decode\""), ==, 2);
    EXPECT_INT(count(text, "{\"name\": \"requests\""), ==, 1);
    EXPECT_INT(count(text, "\"tokens_per_s\": "), ==, 4);
    EXPECT_INT(count(text, "\"tokens_per_s\": 0.0"), ==, 0);
    free(text);
}

static void equal_runs_give_equal_tokens_whatever_the_depth(void)
{
    int first_code, second_code;
    char *first = bench("fake --device cpu --smoke", &first_code);
    char *second = bench("fake --device cpu --smoke --no-async-scheduling", &second_code);

    EXPECT_INT(first_code, ==, EXIT_CODE_OK);
    EXPECT_INT(second_code, ==, EXIT_CODE_OK);
    for (int32_t i = 0; i < 2; i++) { /* with more sequences the order of samples may differ */
        EXPECT(hash_of(first, i) != 0);
        EXPECT(hash_of(first, i) == hash_of(second, i));
    }
    free(first);
    free(second);
}

static void reads_are_weights_once_a_step_and_the_cache_of_every_row(void)
{
    int code;
    char *text = bench("fake --device cpu --smoke", &code), want[64];
    /* 16 tokens of prompt, 8 put out: the steps counted see 18 to 23. */
    int32_t decode = FAKE_WEIGHT_BYTES + FAKE_KV_BYTES * 41 / 2;
    /* 4 prompts of 32 in one step, then 7 steps that see 33 to 39 of each. */
    int32_t requests = 8 * FAKE_WEIGHT_BYTES + 4 * FAKE_KV_BYTES * (32 + 7 * 36);

    EXPECT_INT(code, ==, EXIT_CODE_OK);
    snprintf(want, sizeof want, "\"read_bytes\": %d,", decode);
    EXPECT_INT(count(text, want), ==, 1);
    snprintf(want, sizeof want, "\"read_bytes\": %d,", decode + FAKE_KV_BYTES * 41 / 2);
    EXPECT_INT(count(text, want), ==, 1); /* the batch of two */
    snprintf(want, sizeof want, "\"read_bytes\": %d,", requests);
    EXPECT_INT(count(text, want), ==, 1);
    snprintf(want, sizeof want, "\"floor_us\": %.1f,", requests * 1e6 / FAKE_READ_RATE);
    EXPECT_INT(count(text, want), ==, 1);
    EXPECT_INT(count(text, "\"share_of_floor\": "), ==, 3); /* a prompt has none */
    free(text);
}

static void latencies_are_told_for_either_kind_of_arrival(void)
{
    static const char *const line[] = {
        "fake --device cpu --smoke --requests 4",
        "fake --device cpu --smoke --requests 4 --request-rate 500 --seed 3"};

    for (int i = 0; i < 2; i++) {
        int code;
        char *text = bench(line[i], &code);

        EXPECT_INT(code, ==, EXIT_CODE_OK);
        EXPECT_INT(count(text, i == 0 ? "\"request_rate\": 0," : "\"request_rate\": 1000,"), ==, 1);
        EXPECT_INT(count(text, "\"ttft_us\": {\"mean\": "), ==, 1);
        EXPECT_INT(count(text, "\"tpot_us\": {\"mean\": "), ==, 1);
        EXPECT_INT(count(text, "\"itl_us\": {\"mean\": "), ==, 1);
        EXPECT_INT(count(text, "\"e2e_us\": {\"mean\": "), ==, 1);
        EXPECT_INT(count(text, "\"mean\": 0.0"), ==, 0);
        free(text);
    }
}

static void prompts_may_be_computed_together(void)
{
    int code;
    char *text = bench("fake --device cpu --smoke --prompt-batch 3 --requests 0 --batch 1 "
                       "--decode-prompt-tokens 40",
                       &code);

    EXPECT_INT(code, ==, EXIT_CODE_OK);
    EXPECT_INT(count(text, "\"shape\": {\"batch\": 3, \"prompt_tokens\": 32,"), ==, 1);
    EXPECT_INT(count(text, "\"shape\": {\"batch\": 1, \"prompt_tokens\": 40,"), ==, 1);
    free(text);
}

static void wrong_options_are_refused(void)
{
    int code;

    fclose(stderr); /* the lines themselves are checked in test_server_config */
    free(bench("fake --batch 0", &code));
    EXPECT_INT(code, ==, EXIT_CODE_USAGE);
    free(bench("fake --request-rate -1", &code));
    EXPECT_INT(code, ==, EXIT_CODE_USAGE);
    free(bench("fake --prompt-batch 0", &code));
    EXPECT_INT(code, ==, EXIT_CODE_USAGE);
    free(bench("fake --port 1", &code));
    EXPECT_INT(code, ==, EXIT_CODE_USAGE);
    free(bench("--smoke", &code));
    EXPECT_INT(code, ==, EXIT_CODE_USAGE);
}

int main(void)
{
    TEST(a_smoke_run_prints_every_figure);
    TEST(equal_runs_give_equal_tokens_whatever_the_depth);
    TEST(reads_are_weights_once_a_step_and_the_cache_of_every_row);
    TEST(latencies_are_told_for_either_kind_of_arrival);
    TEST(prompts_may_be_computed_together);
    TEST(wrong_options_are_refused);
    return test_report();
}
