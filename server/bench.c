/* The engine's turn without threads, streams or text; see bench.h. */
#include "server/bench.h"

#include "scheduler/scheduler.h"
#include "server/command.h"
#include "server/engine_batch.h"
#include "server/engine_turn.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

struct flight {
    const struct plan *plan;
    struct batch *batch;
    int64_t host_us, read_bytes;
};

struct bench {
    struct model *model;
    struct scheduler *scheduler;
    struct job job;               /* all sequences' parameters */
    struct engine_seq *seq;       /* [handles] */
    struct sample_result *result; /* [sample_max] */
    int32_t *prompt;              /* [length_max] */
    struct flight flight[PLAN_DEPTH];
    int32_t flight_count, flight_max;
    uint64_t random, hash;
    void (*token)(void *context, int64_t request, int64_t now_us); /* or NULL */
    void *token_context;
};

int64_t bench_now_us(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

static int32_t larger(int32_t left, int32_t right)
{
    return left > right ? left : right;
}

int bench_open(struct bench **created, const struct config *config,
               const struct bench_limits *limits, char *error, size_t error_bytes)
{
    struct bench *bench = calloc(1, sizeof *bench);
    struct model_options options;

    *created = bench;
    if (bench == NULL) {
        snprintf(error, error_bytes, "out of memory");
        return -ENOMEM;
    }
    command_model_options(config, &options);
    options.read_rate = true;
    options.slot_max = larger(options.slot_max, limits->sequence_max);
    options.token_max = options.sample_max = larger(options.token_max, options.slot_max);
    if (options.context_max == 0)
        options.context_max = larger(limits->length_max, 512);
    /* On a CPU, whose memory others use too, room for the largest run and no more; a GPU's is
     * taken as the server takes it. The figures do not depend on what lies idle. */
    if (config->device == CONFIG_DEVICE_CPU && options.block_count == 0 && options.kv_bytes == 0)
        options.block_count =
            (limits->length_max / options.block_tokens + 2) * larger(limits->sequence_max, 4);
    int result = model_open(&bench->model, &options, error, error_bytes);
    if (result < 0)
        return result;
    struct scheduler_config settings = engine_scheduler_config(
        config, model_info(bench->model), options.slot_max, limits->waiting_max);
    bench->scheduler = scheduler_create(&settings);
    bench->result = calloc((size_t)settings.sample_max, sizeof *bench->result);
    bench->prompt = calloc((size_t)limits->length_max, sizeof *bench->prompt);
    if (bench->scheduler != NULL)
        bench->seq = calloc((size_t)scheduler_seq_max(bench->scheduler), sizeof *bench->seq);
    if (bench->seq == NULL || bench->result == NULL || bench->prompt == NULL) {
        snprintf(error, error_bytes, "no memory for %d sequences", settings.slot_max);
        return -ENOMEM;
    }
    bench->job.sampling =
        (struct sampling){.temperature = 0, .top_p = 1, .repetition_penalty = 1, .top_count = -1};
    bench->flight_max = settings.plan_depth;
    bench->random = 0x9e3779b97f4a7c15u ^ (uint64_t)config->seed * 0xbf58476d1ce4e5b9u;
    bench->random = bench->random != 0 ? bench->random : 1;
    return 0;
}

void bench_close(struct bench *bench)
{
    if (bench == NULL)
        return;
    scheduler_destroy(bench->scheduler);
    model_close(bench->model);
    free(bench->seq);
    free(bench->result);
    free(bench->prompt);
    free(bench);
}

const struct model_info *bench_info(const struct bench *bench)
{
    return model_info(bench->model);
}

/* xorshift64*: any sequence will do, as long as it is the same in every run. */
static uint64_t next_random(struct bench *bench)
{
    bench->random ^= bench->random >> 12;
    bench->random ^= bench->random << 25;
    bench->random ^= bench->random >> 27;
    return bench->random * 0x2545f4914f6cdd1du;
}

void bench_on_token(struct bench *bench,
                    void (*token)(void *context, int64_t request, int64_t now_us), void *context)
{
    bench->token = token;
    bench->token_context = context;
}

void bench_add(struct bench *bench, int32_t prompt_count, int32_t output_count, int64_t request)
{
    uint64_t vocab_count = (uint64_t)model_info(bench->model)->vocab_count;
    struct seq_spec spec = {
        .token = bench->prompt,
        .token_count = prompt_count,
        .output_max = output_count,
        .sibling_count = 1,
    };
    int32_t seq;

    for (int32_t i = 0; i < prompt_count; i++)
        bench->prompt[i] = (int32_t)(next_random(bench) % vocab_count);
    int32_t result = scheduler_add(bench->scheduler, &spec, &seq);
    assert(result == 0); /* bench_open made room */
    bench->seq[seq] = (struct engine_seq){.job = &bench->job, .serial = request};
}

/* Every weight once, and what lies in the cache of each row up to its last token. */
static int64_t read_bytes(const struct bench *bench, const struct plan *plan)
{
    int64_t bytes = model_info(bench->model)->step_bytes;

    for (int32_t i = 0; i < plan->row_count; i++)
        bytes += model_kv_bytes(bench->model, plan->row[i].position + plan->row[i].token_count);
    return bytes;
}

static bool start_step(struct bench *bench)
{
    if (bench->flight_count == bench->flight_max)
        return false;
    int64_t start_us = bench_now_us();
    const struct plan *plan = scheduler_plan(bench->scheduler, start_us);
    if (plan == NULL)
        return false;
    struct batch *batch = model_batch(bench->model);
    engine_fill(batch, plan, bench->seq);
    int64_t host_us = bench_now_us() - start_us;
    model_start(bench->model, batch);
    bench->flight[bench->flight_count++] =
        (struct flight){plan, batch, host_us, read_bytes(bench, plan)};
    return true;
}

static int finish_step(struct bench *bench, struct bench_step *step)
{
    struct flight flight = bench->flight[0];
    const struct plan *plan = flight.plan;
    struct seq_end end;

    if (model_wait(bench->model, flight.batch) < 0)
        return -EIO;
    *step = (struct bench_step){.end_us = bench_now_us(),
                                .token_count = plan->token_count,
                                .row_count = plan->row_count,
                                .read_bytes = flight.read_bytes};
    for (int32_t i = 0; i < plan->sample_count; i++) {
        const int32_t *token = &flight.batch->result.token[i];
        bench->result[i] = (struct sample_result){.token = token, .token_count = 1};
        int32_t wanted = scheduler_wants(bench->scheduler, &plan->sample[i], 1);
        step->draw_count += wanted;
        if (wanted > 0 && bench->token != NULL)
            bench->token(bench->token_context, bench->seq[plan->sample[i].seq].serial,
                         step->end_us);
        bench->hash = (bench->hash ^ (uint64_t)*token) * 0x100000001b3u;
    }
    scheduler_commit(bench->scheduler, plan, bench->result);
    bench->flight_count--;
    bench->flight[0] = bench->flight[1];
    while (scheduler_reap(bench->scheduler, &end) > 0)
        bench->seq[end.seq] = (struct engine_seq){0};
    step->host_us = flight.host_us + bench_now_us() - step->end_us;
    return 1;
}

int bench_turn(struct bench *bench, struct bench_step *step)
{
    do {
        bool started = start_step(bench);
        if (bench->flight_count > 0 && (!started || bench->flight_count == bench->flight_max))
            return finish_step(bench, step);
    } while (bench->flight_count > 0);
    assert(scheduler_idle(bench->scheduler));
    return 0;
}

uint64_t bench_hash(struct bench *bench)
{
    uint64_t hash = bench->hash;

    bench->hash = 0;
    return hash;
}
