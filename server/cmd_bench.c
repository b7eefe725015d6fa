/* `quire bench MODEL`: the engine without HTTP; one JSON object a figure on standard output.
 *
 *   prompt   a prompt alone, until its first token
 *   decode   steps in which every sequence of a batch gets one token, and nothing else happens
 *   requests many sequences at once, until the last token of the last one
 *
 * Prompts are random tokens and never repeat, so that no figure rests on the prefix cache.
 */
#include "server/bench.h"
#include "server/command.h"
#include "server/config.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { DECODE_PROMPT = 16, BATCH_MAX = 4096 };

struct figure {
    const char *name;
    int32_t batch, prompt_tokens, output_tokens;
    int32_t repeat;
    int64_t *sample_us; /* [sample_count] of one prompt, one step, one run */
    int32_t sample_count, sample_max;
    double *rate; /* [repeat] tokens a second of each run */
    int64_t host_us;
    uint64_t hash;
};

struct measuring {
    const struct config *config;
    struct bench *bench;
    int32_t batch[32];
    int32_t batch_count;
    struct bench_limits limits;
};

/* ---- figures ---- */

static int compare_int(const void *left, const void *right)
{
    int64_t a = *(const int64_t *)left, b = *(const int64_t *)right;

    return a < b ? -1 : a > b;
}

static int compare_real(const void *left, const void *right)
{
    double a = *(const double *)left, b = *(const double *)right;

    return a < b ? -1 : a > b;
}

/* Names and devices come from files: nothing in them may break the line. */
static void print_text(const char *key, const char *value)
{
    printf("\"%s\": \"", key);
    for (; *value != '\0'; value++)
        if ((unsigned char)*value >= 32 && *value != '"' && *value != '\\')
            putchar(*value);
    printf("\", ");
}

static void print_figure(const struct measuring *measuring, struct figure *figure)
{
    const struct model_info *info = bench_info(measuring->bench);
    const struct config *config = measuring->config;
    bool cpu = config->device == CONFIG_DEVICE_CPU;

    assert(figure->sample_count > 0);
    qsort(figure->sample_us, (size_t)figure->sample_count, sizeof(int64_t), compare_int);
    qsort(figure->rate, (size_t)figure->repeat, sizeof(double), compare_real);
    int64_t median_us = figure->sample_us[figure->sample_count / 2];
    printf("{");
    print_text("name", figure->name);
    print_text("backend", cpu ? "cpu" : "cuda");
    print_text("device", info->device);
    print_text("model", info->name);
    print_text("dtype", info->format);
    if (cpu)
        printf("\"threads\": %ld, ",
               config->threads > 0 ? (long)config->threads : sysconf(_SC_NPROCESSORS_ONLN));
    printf("\"shape\": {\"batch\": %d, \"prompt_tokens\": %d, \"output_tokens\": %d}, ",
           figure->batch, figure->prompt_tokens, figure->output_tokens);
    printf("\"repeat\": %d, \"median_us\": %" PRId64 ", \"p90_us\": %" PRId64 ", ", figure->repeat,
           median_us, figure->sample_us[figure->sample_count * 9 / 10]);
    printf("\"tokens_per_s\": %.1f, ", figure->rate[figure->repeat / 2]);
    /* A step reads every weight once; what it reads of the KV comes on top. */
    if (strcmp(figure->name, "decode") == 0)
        printf("\"bytes_per_s\": %.4g, ", (double)info->weight_bytes * 1e6 / (double)median_us);
    printf("\"host_us\": %" PRId64 ", ", figure->host_us);
    print_text("commit", command_commit());
    printf("\"hash\": \"%016" PRIx64 "\"}\n", figure->hash);
    fflush(stdout);
}

static void add_sample(struct figure *figure, int64_t sample_us)
{
    if (figure->sample_count < figure->sample_max)
        figure->sample_us[figure->sample_count++] = sample_us;
}

static int figure_init(struct figure *figure, int32_t sample_max)
{
    figure->sample_max = sample_max;
    figure->sample_us = calloc((size_t)sample_max, sizeof(int64_t));
    figure->rate = calloc((size_t)figure->repeat, sizeof(double));
    return figure->sample_us == NULL || figure->rate == NULL ? -ENOMEM : 0;
}

static void figure_release(struct figure *figure)
{
    free(figure->sample_us);
    free(figure->rate);
}

/* ---- runs ---- */

/* Runs everything that was added; the tokens computed and the mean of the host's time a step. */
static int run_all(struct bench *bench, int64_t *token_count, int64_t *host_us)
{
    struct bench_step step;
    int64_t step_count = 0;
    int result;

    *token_count = *host_us = 0;
    while ((result = bench_turn(bench, &step)) > 0) {
        *token_count += step.token_count;
        *host_us += step.host_us;
        step_count++;
    }
    if (step_count > 0)
        *host_us /= step_count;
    return result;
}

static int measure_prompt(const struct measuring *measuring)
{
    const struct config *config = measuring->config;
    struct figure figure = {.name = "prompt",
                            .batch = 1,
                            .prompt_tokens = config->prompt_tokens,
                            .output_tokens = 1,
                            .repeat = config->repeat};
    int result = figure_init(&figure, config->repeat);

    for (int32_t i = -1; result == 0 && i < config->repeat; i++) { /* the first only warms up */
        int64_t token_count, start_us = bench_now_us();
        bench_add(measuring->bench, config->prompt_tokens, 1);
        result = run_all(measuring->bench, &token_count, &figure.host_us);
        int64_t taken_us = bench_now_us() - start_us;
        if (i < 0)
            continue;
        add_sample(&figure, taken_us);
        figure.rate[i] = (double)config->prompt_tokens * 1e6 / (double)taken_us;
    }
    figure.hash = bench_hash(measuring->bench);
    if (result == 0)
        print_figure(measuring, &figure);
    figure_release(&figure);
    return result;
}

/* One batch from its prompts to its end; only steps that give every sequence one token and
 * follow such a step are counted. */
static int run_batch(const struct measuring *measuring, struct figure *figure, int32_t run)
{
    struct bench_step step;
    int64_t before_us = 0, taken_us = 0, step_count = 0;
    int result;

    for (int32_t i = 0; i < figure->batch; i++)
        bench_add(measuring->bench, figure->prompt_tokens, figure->output_tokens);
    while ((result = bench_turn(measuring->bench, &step)) > 0) {
        bool steady = step.token_count == figure->batch && step.draw_count == figure->batch;
        if (steady && before_us > 0 && run >= 0) {
            add_sample(figure, step.end_us - before_us);
            taken_us += step.end_us - before_us;
            figure->host_us += step.host_us;
            step_count++;
        }
        before_us = steady ? step.end_us : 0;
    }
    if (run >= 0 && step_count > 0)
        figure->rate[run] = (double)(step_count * figure->batch) * 1e6 / (double)taken_us;
    return result;
}

static int measure_decode(const struct measuring *measuring, int32_t batch)
{
    const struct config *config = measuring->config;
    struct figure figure = {.name = "decode",
                            .batch = batch,
                            .prompt_tokens = DECODE_PROMPT,
                            .output_tokens = config->output_tokens,
                            .repeat = config->repeat};
    int result = figure_init(&figure, config->repeat * config->output_tokens);

    if (result == 0)
        result = run_batch(measuring, &figure, -1);
    for (int32_t i = 0; result == 0 && i < config->repeat; i++)
        result = run_batch(measuring, &figure, i);
    figure.hash = bench_hash(measuring->bench);
    if (result == 0 && figure.sample_count == 0) {
        fprintf(stderr,
                "quire bench: batch %d never ran as a whole; more --output-tokens or KV "
                "blocks are needed\n",
                batch);
    } else if (result == 0) {
        figure.host_us /= figure.sample_count;
        print_figure(measuring, &figure);
    }
    figure_release(&figure);
    return result;
}

static int measure_requests(const struct measuring *measuring)
{
    const struct config *config = measuring->config;
    struct figure figure = {.name = "requests",
                            .batch = config->requests,
                            .prompt_tokens = config->prompt_tokens,
                            .output_tokens = config->output_tokens,
                            .repeat = 1};
    int64_t token_count, start_us = bench_now_us();
    int result = figure_init(&figure, 1);

    for (int32_t i = 0; result == 0 && i < config->requests; i++)
        bench_add(measuring->bench, config->prompt_tokens, config->output_tokens);
    if (result == 0)
        result = run_all(measuring->bench, &token_count, &figure.host_us);
    int64_t taken_us = bench_now_us() - start_us;
    if (result == 0) {
        add_sample(&figure, taken_us);
        figure.rate[0] = (double)config->requests * config->output_tokens * 1e6 / (double)taken_us;
        figure.hash = bench_hash(measuring->bench);
        print_figure(measuring, &figure);
    }
    figure_release(&figure);
    return result;
}

/* ---- the command ---- */

static int32_t larger(int32_t left, int32_t right)
{
    return left > right ? left : right;
}

/* Tiny sizes; the defaults of the rest stay. */
static void shrink(struct config *config)
{
    config->prompt_tokens = 32;
    config->output_tokens = 8;
    config->requests = 4;
    config->repeat = 1;
    config->batch.count = config->batch.count < 2 ? config->batch.count : 2;
}

static int read_batches(struct measuring *measuring)
{
    const struct config_list *list = &measuring->config->batch;

    assert(list->count <= 32);
    for (int32_t i = 0; i < list->count; i++) {
        char *end;
        long value = strtol(list->item[i], &end, 10);
        if (*end != '\0' || value < 1 || value > BATCH_MAX) {
            fprintf(stderr, "quire bench: --batch: must be 1 to %d, not \"%s\"\n", BATCH_MAX,
                    list->item[i]);
            return -EINVAL;
        }
        measuring->batch[measuring->batch_count++] = (int32_t)value;
        measuring->limits.sequence_max = larger(measuring->limits.sequence_max, (int32_t)value);
    }
    return 0;
}

static int measure(struct measuring *measuring)
{
    int result = measure_prompt(measuring);

    for (int32_t i = 0; result == 0 && i < measuring->batch_count; i++)
        result = measure_decode(measuring, measuring->batch[i]);
    if (result == 0 && measuring->config->requests > 0)
        result = measure_requests(measuring);
    if (result == -EIO)
        fprintf(stderr, "quire bench: a device is lost\n");
    else if (result < 0)
        fprintf(stderr, "quire bench: %s\n", strerror(-result));
    return command_exit_code(result);
}

int cmd_bench(int argc, char **argv)
{
    struct config config;
    struct measuring measuring = {.config = &config};
    char error[1024];
    int code;

    if (!command_configure(&config, CONFIG_BENCH, argc, argv, &code)) {
        config_release(&config);
        return code;
    }
    if (config.smoke)
        shrink(&config);
    code = EXIT_CODE_USAGE;
    if (read_batches(&measuring) == 0) {
        int32_t running =
            config.requests < config.max_num_seqs ? config.requests : config.max_num_seqs;
        measuring.limits.sequence_max = larger(measuring.limits.sequence_max, running);
        measuring.limits.waiting_max = larger(config.requests, measuring.limits.sequence_max) + 1;
        measuring.limits.length_max =
            larger(config.prompt_tokens, DECODE_PROMPT) + config.output_tokens + 1;
        int result = bench_open(&measuring.bench, &config, &measuring.limits, error, sizeof error);
        if (result < 0)
            fprintf(stderr, "quire bench: %s\n", error);
        code = result < 0 ? command_exit_code(result) : measure(&measuring);
        bench_close(measuring.bench);
    }
    config_release(&config);
    return code;
}
