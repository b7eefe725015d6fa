/* The real model against f32 truth: prompt scores, likeliest tokens and greedy continuations, the
 * truth's tokens fed step by step; and the same bits alone, in a batch, in chunks, with other
 * blocks and with two steps in flight. `--device cuda` (or `portable`) judges a GPU, which must
 * then be there. */
#include "tests/golden/driver.h"

#include <cjson/cJSON.h>
#include <math.h>

enum { PROMPT_MAX = 8, TOKEN_MAX = 1024, BATCH = 16, OUTPUT = 24 };

static const char model_path[] = "build/models/gemma-3-270m-q4_k_m.gguf";
static const char truth_path[] = "../shared/models/gemma3-270m/truth.json";

struct prompt {
    const char *name;
    int32_t token[TOKEN_MAX];
    int32_t token_count;
    const cJSON *scores, *greedy, *top;
};

static struct driver driver;
static struct prompt prompt[PROMPT_MAX];
static int32_t prompt_count;
static cJSON *truth;
static const char *missing; /* why there is nothing to do */

static char *read_file(const char *path)
{
    FILE *file = fopen(path, "rb");
    char *text = NULL;
    long bytes;

    if (file == NULL)
        return NULL;
    if (fseek(file, 0, SEEK_END) == 0 && (bytes = ftell(file)) >= 0 &&
        fseek(file, 0, SEEK_SET) == 0)
        text = calloc((size_t)bytes + 1, 1);
    if (text != NULL && fread(text, 1, (size_t)bytes, file) != (size_t)bytes) {
        free(text);
        text = NULL;
    }
    fclose(file);
    return text;
}

static void read_truth(void)
{
    char *text = read_file(truth_path);
    const cJSON *item;

    truth = text == NULL ? NULL : cJSON_Parse(text);
    free(text);
    if (truth == NULL)
        missing = "../shared/models/gemma3-270m/truth.json is not there";
    cJSON_ArrayForEach(item, truth)
    {
        struct prompt *one = &prompt[prompt_count++];
        const cJSON *token;

        one->name = cJSON_GetStringValue(cJSON_GetObjectItem(item, "name"));
        one->scores = cJSON_GetObjectItem(item, "prompt_logprobs");
        one->greedy = cJSON_GetObjectItem(item, "greedy");
        one->top = cJSON_GetObjectItem(item, "top");
        cJSON_ArrayForEach(token, cJSON_GetObjectItem(item, "tokens"))
            one->token[one->token_count++] = token->valueint;
    }
}

static void open_model(void)
{
    FILE *file = fopen(model_path, "rb");

    if (file == NULL) {
        missing = "build/models/gemma-3-270m-q4_k_m.gguf is not there (make run brings it)";
        return;
    }
    fclose(file);
    read_truth();
    if (missing == NULL && !driver_open(&driver, model_path, TOKEN_MAX))
        missing = "the model did not open";
}

/* ---- accuracy ---- */

struct error_sum {
    double sum, worst;
    int32_t count;
};

static void add_error(struct error_sum *error, double ours, double theirs)
{
    double delta = fabs(ours - theirs);

    error->sum += delta;
    error->worst = delta > error->worst ? delta : error->worst;
    error->count++;
}

static double entry_logprob(const cJSON *entry)
{
    return cJSON_GetArrayItem(entry, 1)->valuedouble;
}

/* One token is computed (or the whole prompt), and the truth's likeliest are scored after it.
 * Returns our best token. */
static int32_t judge_position(struct sequence *sequence, const int32_t *token, int32_t count,
                              const cJSON *top, struct error_sum *tops)
{
    struct batch *batch = model_batch(driver.model);
    int32_t from = sequence->fed, asked = 0, best;
    const cJSON *entry;

    driver_row(&driver, &batch->step, 0, sequence, token, count);
    for (int32_t i = 0; from == 0 && i < count - 1; i++, asked++)
        driver_sample(&batch->step, STEP_SCORE, 0, i, 0, token[i + 1]);
    cJSON_ArrayForEach(entry, top) driver_sample(&batch->step, STEP_SCORE, 0, count - 1, 0,
                                                 cJSON_GetArrayItem(entry, 0)->valueint);
    model_start(driver.model, batch);
    EXPECT_INT(model_wait(driver.model, batch), ==, 0);
    for (int32_t i = 0; i < asked; i++)
        sequence->score[i] = batch->result.logprob[i];
    best = batch->result.top_token[asked * SAMPLING_TOP_MAX];
    cJSON_ArrayForEach(entry, top)
        add_error(tops, (double)batch->result.logprob[asked++], entry_logprob(entry));
    return best;
}

static void judge_prompt(const struct prompt *one)
{
    struct sequence sequence = sequence_create(one->token, one->token_count, 0);
    struct error_sum scores = {0}, tops = {0};
    int32_t steps = cJSON_GetArraySize(one->greedy), equal = 0, sure = 0, wrong = 0;
    bool close = false;

    driver_reset(&driver, 1);
    for (int32_t i = 0; i < steps; i++) {
        const cJSON *top = cJSON_GetArrayItem(one->top, i);
        int32_t said = cJSON_GetArrayItem(one->greedy, i)->valueint;
        int32_t before = i == 0 ? 0 : cJSON_GetArrayItem(one->greedy, i - 1)->valueint;
        double margin =
            entry_logprob(cJSON_GetArrayItem(top, 0)) - entry_logprob(cJSON_GetArrayItem(top, 1));
        int32_t best = judge_position(&sequence, i == 0 ? one->token : &before,
                                      i == 0 ? one->token_count : 1, top, &tops);

        close = close || margin < 0.1;
        sure += !close;
        wrong += !close && best != said;
        equal += best == said;
    }
    for (int32_t i = 0; i + 1 < one->token_count; i++)
        add_error(&scores, (double)sequence.score[i],
                  cJSON_GetArrayItem(one->scores, i)->valuedouble);
    printf("%-12s prompt: mean %.5f worst %.5f of %d; top: mean %.5f worst %.5f of %d; greedy: "
           "%d of %d equal, %d before the first close one\n",
           one->name, scores.sum / scores.count, scores.worst, scores.count, tops.sum / tops.count,
           tops.worst, tops.count, equal, steps, sure);
    EXPECT(scores.sum / scores.count <= 0.05);
    EXPECT(tops.sum / tops.count <= 0.05);
    EXPECT_INT(wrong, ==, 0);
    sequence_free(&sequence);
}

static void log_probabilities_and_greedy_tokens_are_the_truths(void)
{
    if (missing != NULL)
        SKIP(missing);
    for (int32_t i = 0; i < prompt_count; i++)
        judge_prompt(&prompt[i]);
}

/* ---- determinism ---- */

/* Prompts by index, each with OUTPUT tokens to draw. */
static void create_sequences(struct sequence *sequence, int32_t count)
{
    for (int32_t i = 0; i < count; i++) {
        const struct prompt *one = &prompt[i % prompt_count];
        /* The copies beyond the truth's prompts are cut, so that a batch mixes lengths. */
        int32_t cut = i < prompt_count ? 0 : one->token_count / 3;

        sequence[i] = sequence_create(one->token, one->token_count - cut, OUTPUT);
        sequence[i].score_step = 16; /* scores are most of the work */
    }
}

static void free_sequences(struct sequence *sequence, int32_t count)
{
    for (int32_t i = 0; i < count; i++)
        sequence_free(&sequence[i]);
}

static struct sequence alone[PROMPT_MAX];

static void run_alone(void)
{
    create_sequences(alone, prompt_count);
    for (int32_t i = 0; i < prompt_count; i++) {
        driver_reset(&driver, 1);
        EXPECT_INT(driver_run(&driver, &alone[i], 1, TOKEN_MAX, TOKEN_MAX, 1), ==, 0);
    }
}

/* Runs `count` sequences at once and compares those that are the truth's prompts. */
static void expect_same_bits(int32_t count, int32_t chunk, int32_t token_max, int32_t stride,
                             int depth)
{
    struct sequence sequence[BATCH];

    create_sequences(sequence, count);
    driver_reset(&driver, stride);
    EXPECT_INT(driver_run(&driver, sequence, count, chunk, token_max, depth), ==, 0);
    for (int32_t i = 0; i < prompt_count && i < count; i++)
        EXPECT(sequence_equal(&sequence[i], &alone[i]));
    free_sequences(sequence, count);
}

static void a_batch_of_16_gives_the_bits_of_each_alone(void)
{
    if (missing != NULL)
        SKIP(missing);
    run_alone();
    expect_same_bits(BATCH, 300, 512, 1, 1);
}

static void chunks_of_7_give_the_same_bits(void)
{
    if (missing != NULL)
        SKIP(missing);
    expect_same_bits(prompt_count, 7, TOKEN_MAX, 1, 1);
}

static void other_block_tables_give_the_same_bits(void)
{
    if (missing != NULL)
        SKIP(missing);
    expect_same_bits(prompt_count, 128, TOKEN_MAX, 389, 1);
}

static void two_steps_in_flight_give_the_same_bits(void)
{
    if (missing != NULL)
        SKIP(missing);
    expect_same_bits(BATCH, 64, 200, 77, STEP_DEPTH);
}

static void a_prefix_hit_gives_the_same_bits(void)
{
    if (missing != NULL)
        SKIP(missing);
    for (int32_t i = 0; i < prompt_count; i++)
        EXPECT(driver_prefix_hit_is_equal(&driver, &alone[i], 128, TOKEN_MAX));
}

static void a_preemption_gives_the_same_bits(void)
{
    if (missing != NULL)
        SKIP(missing);
    for (int32_t i = 0; i < prompt_count; i++)
        EXPECT(driver_preemption_is_equal(&driver, &alone[i], 9, 200, TOKEN_MAX));
}

int main(int argc, char **argv)
{
    driver_arguments(argc, argv);
    open_model();
    if (driver_device == MODEL_DEVICE_CUDA && missing != NULL) {
        printf("%s\n", missing);
        return 1;
    }
    TEST(log_probabilities_and_greedy_tokens_are_the_truths);
    TEST(a_batch_of_16_gives_the_bits_of_each_alone);
    TEST(chunks_of_7_give_the_same_bits);
    TEST(other_block_tables_give_the_same_bits);
    TEST(two_steps_in_flight_give_the_same_bits);
    TEST(a_prefix_hit_gives_the_same_bits);
    TEST(a_preemption_gives_the_same_bits);
    free_sequences(alone, prompt_count);
    model_close(driver.model);
    cJSON_Delete(truth);
    return test_report();
}
