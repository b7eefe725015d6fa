/* `quire bench MODEL`: the engine without HTTP; one JSON object a figure on standard output.
 *
 *   prompt   a prompt alone (or some together), until the last one's first token
 *   decode   steps in which every sequence of a batch gets one token, and nothing else happens
 *   requests many sequences, at once or as they come, until the last token of the last one
 *
 * A floor is what the bytes that must be read take at the rate that the device was measured at when
 * it was opened. A prompt has none: arithmetic bounds it, and no peak of that is measured.
 *
 * Prompts are random tokens and never repeat, so that no figure rests on the prefix cache.
 */
#include "server/bench.h"
#include "server/bench_figure.h"
#include "server/bench_load.h"
#include "server/command.h"
#include "server/config.h"
#include "server/json_write.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { BATCH_MAX = 4096 };

struct measuring {
    const struct config *config;
    struct bench *bench;
    int32_t batch[32];
    int32_t batch_count;
    struct bench_limits limits;
};

static int figure_init(struct bench_figure *figure, int64_t sample_max)
{
    bool good = bench_samples_init(&figure->taken_us, sample_max);

    return bench_samples_init(&figure->rate_millis, figure->repeat) && good ? 0 : -ENOMEM;
}

static void figure_release(struct bench_figure *figure)
{
    bench_samples_release(&figure->taken_us);
    bench_samples_release(&figure->rate_millis);
}

/* A finished line to standard output; takes the text. -ENOMEM, or -EPIPE: it is not there. */
static int print_line(struct json *text)
{
    bool good = !text->lost && fwrite(text->text, 1, text->bytes, stdout) == text->bytes &&
                fflush(stdout) == 0;
    int result = text->lost ? -ENOMEM : good ? 0 : -EPIPE;

    json_release(text);
    return result;
}

static int print_figure(const struct measuring *measuring, struct bench_figure *figure)
{
    struct json text = {0};

    bench_write(&text, measuring->config, bench_info(measuring->bench), figure);
    return print_line(&text);
}

static int print_load(const struct measuring *measuring)
{
    struct json text = {0};
    int result = bench_load(measuring->bench, measuring->config, &text);

    if (result == 0)
        return print_line(&text);
    json_release(&text);
    return result;
}

/* Tokens a thousand seconds, as bench_figure.h keeps rates. */
static int64_t rate_millis(int64_t token_count, int64_t taken_us)
{
    return taken_us > 0 ? (int64_t)((double)token_count * 1e9 / (double)taken_us) : 0;
}

/* ---- runs ---- */

/* Runs everything that was added; the mean of the host's time a step. */
static int run_all(struct bench *bench, int64_t *host_us)
{
    struct bench_step step;
    int64_t step_count = 0;
    int result;

    *host_us = 0;
    while ((result = bench_turn(bench, &step)) > 0) {
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
    struct bench_figure figure = {.name = "prompt",
                                  .batch = config->prompt_batch,
                                  .prompt_tokens = config->prompt_tokens,
                                  .output_tokens = 1,
                                  .repeat = config->repeat};
    int64_t token_count = (int64_t)config->prompt_batch * config->prompt_tokens;
    int result = figure_init(&figure, config->repeat);

    for (int32_t i = -1; result == 0 && i < config->repeat; i++) { /* the first only warms up */
        int64_t start_us = bench_now_us();
        for (int32_t k = 0; k < config->prompt_batch; k++)
            bench_add(measuring->bench, config->prompt_tokens, 1, 0);
        result = run_all(measuring->bench, &figure.host_us);
        int64_t taken_us = bench_now_us() - start_us;
        if (i < 0)
            continue;
        bench_samples_add(&figure.taken_us, taken_us);
        bench_samples_add(&figure.rate_millis, rate_millis(token_count, taken_us));
    }
    figure.hash = bench_hash(measuring->bench);
    if (result == 0)
        result = print_figure(measuring, &figure);
    figure_release(&figure);
    return result;
}

/* One batch from its prompts to its end; only steps that give every sequence one token and
 * follow such a step are counted. A run below 0 only warms up. */
static int run_batch(const struct measuring *measuring, struct bench_figure *figure, int32_t run)
{
    struct bench_step step;
    int64_t before_us = 0, taken_us = 0, step_count = 0;
    int result;

    for (int32_t i = 0; i < figure->batch; i++)
        bench_add(measuring->bench, figure->prompt_tokens, figure->output_tokens, 0);
    while ((result = bench_turn(measuring->bench, &step)) > 0) {
        bool steady = step.token_count == figure->batch && step.draw_count == figure->batch;
        if (steady && before_us > 0 && run >= 0) {
            bench_samples_add(&figure->taken_us, step.end_us - before_us);
            taken_us += step.end_us - before_us;
            figure->host_us += step.host_us;
            figure->reads.bytes += step.read_bytes;
            step_count++;
        }
        before_us = steady ? step.end_us : 0;
    }
    figure->reads.taken_us += taken_us;
    figure->reads.step_count += step_count;
    if (step_count > 0)
        bench_samples_add(&figure->rate_millis, rate_millis(step_count * figure->batch, taken_us));
    return result;
}

static int measure_decode(const struct measuring *measuring, int32_t batch)
{
    const struct config *config = measuring->config;
    struct bench_figure figure = {.name = "decode",
                                  .batch = batch,
                                  .prompt_tokens = config->decode_prompt_tokens,
                                  .output_tokens = config->output_tokens,
                                  .repeat = config->repeat,
                                  .reads_each = true};
    int result = figure_init(&figure, (int64_t)config->repeat * config->output_tokens);

    if (result == 0)
        result = run_batch(measuring, &figure, -1);
    for (int32_t i = 0; result == 0 && i < config->repeat; i++)
        result = run_batch(measuring, &figure, i);
    figure.hash = bench_hash(measuring->bench);
    if (result == 0 && figure.taken_us.count == 0) {
        fprintf(stderr,
                "quire bench: batch %d never ran as a whole; more --output-tokens or KV "
                "blocks are needed\n",
                batch);
    } else if (result == 0) {
        figure.host_us /= figure.taken_us.count;
        result = print_figure(measuring, &figure);
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
    config->request_rate = config->request_rate > 0 ? 1000 : 0;
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
        result = print_load(measuring);
    if (result == 0 && bench_info(measuring->bench)->read_rate == 0)
        fprintf(stderr, "quire bench: no floors: there was not the memory to measure the device's "
                        "read rate with\n");
    if (result == -EPIPE) {
        fprintf(stderr, "quire bench: could not write to standard output\n");
        return EXIT_CODE_RUNTIME;
    }
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
        running = larger(running, config.prompt_batch);
        measuring.limits.sequence_max = larger(measuring.limits.sequence_max, running);
        measuring.limits.waiting_max = larger(config.requests, measuring.limits.sequence_max) + 1;
        measuring.limits.length_max =
            larger(config.prompt_tokens, config.decode_prompt_tokens) + config.output_tokens + 1;
        if (config.no_gpu[0] != '\0')
            fprintf(stderr, "quire bench: on the CPU: %s\n", config.no_gpu);
        int result = bench_open(&measuring.bench, &config, &measuring.limits, error, sizeof error);
        if (result < 0)
            fprintf(stderr, "quire bench: %s\n", error);
        code = result < 0 ? command_exit_code(result) : measure(&measuring);
        bench_close(measuring.bench);
    }
    config_release(&config);
    return code;
}
