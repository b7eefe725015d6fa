/* Requests that arrive, wait, run and end; see bench_load.h. */
#include "server/bench_load.h"

#include "server/bench.h"
#include "server/bench_figure.h"

#include <errno.h>
#include <stdlib.h>
#include <time.h>

/* When things happened to a request, on the bench's clock. */
struct request_times {
    int64_t arrival_us, first_us, final_us;
    int32_t token_count;
};

struct load {
    struct bench *bench;
    const struct config *config;
    struct request_times *request; /* [config->requests] by arrival */
    int32_t added_count;
    struct bench_samples itl_us;
    struct bench_reads reads;
    int64_t token_count; /* put out */
    int64_t host_us, step_count;
    int64_t slept_us; /* nothing had arrived */
};

/* splitmix64: times of arrival must not depend on what prompts take of the bench's own numbers. */
static uint64_t next_random(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15u;

    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

static void plan_arrivals(struct load *load, int64_t start_us)
{
    uint64_t state = (uint64_t)load->config->seed;
    int64_t arrival_us = start_us;

    for (int32_t i = 0; i < load->config->requests; i++) {
        if (load->config->request_rate > 0)
            arrival_us += bench_gap_us(load->config->request_rate, next_random(&state));
        load->request[i].arrival_us = arrival_us;
    }
}

/* Called by bench_turn for each token. */
static void take_token(void *context, int64_t index, int64_t now_us)
{
    struct load *load = context;
    struct request_times *request = &load->request[index];

    if (request->token_count == 0)
        request->first_us = now_us;
    else
        bench_samples_add(&load->itl_us, now_us - request->final_us);
    request->final_us = now_us;
    request->token_count++;
    load->token_count++;
}

static void add_arrived(struct load *load)
{
    const struct config *config = load->config;
    int64_t now_us = bench_now_us();

    while (load->added_count < config->requests &&
           load->request[load->added_count].arrival_us <= now_us)
        bench_add(load->bench, config->prompt_tokens, config->output_tokens, load->added_count++);
}

static void sleep_until(int64_t until_us)
{
    struct timespec until = {until_us / 1000000, until_us % 1000000 * 1000};

    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL) == EINTR)
        continue;
}

static int run(struct load *load)
{
    struct bench_step step;

    for (;;) {
        add_arrived(load);
        int result = bench_turn(load->bench, &step);
        if (result < 0)
            return result;
        if (result > 0) {
            load->reads.bytes += step.read_bytes;
            load->host_us += step.host_us;
            load->step_count++;
            continue;
        }
        if (load->added_count == load->config->requests)
            return 0;
        int64_t before_us = bench_now_us();
        sleep_until(load->request[load->added_count].arrival_us);
        load->slept_us += bench_now_us() - before_us;
    }
}

/* The spread of one figure over all requests; false: out of memory. */
static bool spread(const struct load *load, struct bench_spread *target,
                   int64_t (*value)(const struct request_times *request))
{
    struct bench_samples samples;
    bool good = bench_samples_init(&samples, load->config->requests);

    for (int32_t i = 0; good && i < load->config->requests; i++)
        bench_samples_add(&samples, value(&load->request[i]));
    if (good)
        *target = bench_spread(&samples);
    bench_samples_release(&samples);
    return good;
}

static int64_t ttft(const struct request_times *request)
{
    return request->first_us - request->arrival_us;
}

static int64_t tpot(const struct request_times *request)
{
    int32_t gap_count = request->token_count - 1;

    return gap_count > 0 ? (request->final_us - request->first_us) / gap_count : 0;
}

static int64_t e2e(const struct request_times *request)
{
    return request->final_us - request->arrival_us;
}

static int write_figure(struct load *load, int64_t taken_us, struct json *text)
{
    const struct config *config = load->config;
    int64_t prompt_tokens = (int64_t)config->requests * config->prompt_tokens;
    double per_s = 1e6 / (double)taken_us;
    struct bench_latency latency = {
        .request_rate = config->request_rate,
        .total_tokens_per_s = (double)(prompt_tokens + load->token_count) * per_s,
        .itl_us = bench_spread(&load->itl_us),
    };
    struct bench_figure figure = {
        .name = "requests",
        .batch = config->requests,
        .prompt_tokens = config->prompt_tokens,
        .output_tokens = config->output_tokens,
        .repeat = 1,
        .host_us = load->step_count > 0 ? load->host_us / load->step_count : 0,
        .hash = bench_hash(load->bench),
        .reads = load->reads,
        .latency = &latency,
    };
    bool good = spread(load, &latency.ttft_us, ttft) && spread(load, &latency.tpot_us, tpot) &&
                spread(load, &latency.e2e_us, e2e) && bench_samples_init(&figure.taken_us, 1) &&
                bench_samples_init(&figure.rate_millis, 1);

    figure.reads.step_count = load->step_count;
    figure.reads.taken_us = taken_us - load->slept_us;
    if (good) {
        bench_samples_add(&figure.taken_us, taken_us);
        bench_samples_add(&figure.rate_millis, (int64_t)((double)load->token_count * per_s * 1e3));
        bench_write(text, config, bench_info(load->bench), &figure);
    }
    bench_samples_release(&figure.taken_us);
    bench_samples_release(&figure.rate_millis);
    return good ? 0 : -ENOMEM;
}

int bench_load(struct bench *bench, const struct config *config, struct json *text)
{
    struct load load = {.bench = bench, .config = config};
    int64_t gap_max = (int64_t)config->requests * (config->output_tokens - 1);
    int result = 0;

    load.request = calloc((size_t)config->requests, sizeof *load.request);
    if (load.request == NULL || !bench_samples_init(&load.itl_us, gap_max))
        result = -ENOMEM;
    if (result == 0) {
        int64_t start_us = bench_now_us();
        plan_arrivals(&load, start_us);
        bench_on_token(bench, take_token, &load);
        result = run(&load);
        bench_on_token(bench, NULL, NULL);
        if (result == 0)
            result = write_figure(&load, bench_now_us() - start_us, text);
    }
    bench_samples_release(&load.itl_us);
    free(load.request);
    return result;
}
