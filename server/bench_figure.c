/* Percentiles, floors and JSON of `quire bench`; see bench_figure.h. */
#include "server/bench_figure.h"

#include "server/command.h"
#include "server/config.h"
#include "server/json_write.h"

#include <assert.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- samples ---- */

bool bench_samples_init(struct bench_samples *samples, int64_t max)
{
    *samples = (struct bench_samples){.max = max};
    samples->value = calloc((size_t)(max > 0 ? max : 1), sizeof *samples->value);
    return samples->value != NULL;
}

void bench_samples_release(struct bench_samples *samples)
{
    free(samples->value);
    *samples = (struct bench_samples){0};
}

void bench_samples_add(struct bench_samples *samples, int64_t value)
{
    if (samples->count < samples->max)
        samples->value[samples->count++] = value;
}

static int compare(const void *left, const void *right)
{
    int64_t a = *(const int64_t *)left, b = *(const int64_t *)right;

    return a < b ? -1 : a > b;
}

static int64_t percentile(const struct bench_samples *sorted, int64_t percent)
{
    return sorted->value[(sorted->count * percent + 99) / 100 - 1];
}

struct bench_spread bench_spread(struct bench_samples *samples)
{
    double sum = 0;

    if (samples->count == 0)
        return (struct bench_spread){0};
    qsort(samples->value, (size_t)samples->count, sizeof *samples->value, compare);
    for (int64_t i = 0; i < samples->count; i++)
        sum += (double)samples->value[i];
    return (struct bench_spread){.mean = sum / (double)samples->count,
                                 .p50 = percentile(samples, 50),
                                 .p90 = percentile(samples, 90),
                                 .p99 = percentile(samples, 99)};
}

int64_t bench_gap_us(double rate, uint64_t random)
{
    double uniform = (double)(random >> 11) * 0x1p-53; /* 0 to just below 1 */

    assert(rate > 0);
    return llround(-log1p(-uniform) / rate * 1e6);
}

/* ---- floors ---- */

double bench_floor_us(const struct bench_reads *reads, double rate)
{
    assert(rate > 0);
    return (double)reads->bytes * 1e6 / rate;
}

double bench_floor_share(const struct bench_reads *reads, double rate)
{
    return reads->taken_us > 0 ? bench_floor_us(reads, rate) / (double)reads->taken_us : 0;
}

/* ---- JSON ---- */

static void write_text(struct json *text, const char *key, const char *value)
{
    json_print(text, "\"%s\": ", key);
    json_string(text, value, strlen(value));
    json_raw(text, ", ");
}

static void write_spread(struct json *text, const char *key, const struct bench_spread *spread)
{
    json_print(text,
               "\"%s\": {\"mean\": %.1f, \"p50\": %" PRId64 ", \"p90\": %" PRId64
               ", \"p99\": %" PRId64 "}, ",
               key, spread->mean, spread->p50, spread->p90, spread->p99);
}

static void write_machine(struct json *text, const struct config *config,
                          const struct model_info *info)
{
    bool cpu = config->device == CONFIG_DEVICE_CPU;

    write_text(text, "backend", cpu ? "cpu" : "cuda");
    write_text(text, "device", info->device);
    write_text(text, "model", info->name);
    write_text(text, "dtype", info->format);
    if (cpu)
        json_print(text, "\"threads\": %ld, ",
                   config->threads > 0 ? (long)config->threads : sysconf(_SC_NPROCESSORS_ONLN));
}

static void write_reads(struct json *text, const struct bench_figure *figure, double rate)
{
    const struct bench_reads *reads = &figure->reads;
    double parts = figure->reads_each ? (double)reads->step_count : 1;

    json_print(text, "\"read_bytes\": %.0f, \"bytes_per_s\": %.4g, ", (double)reads->bytes / parts,
               (double)reads->bytes * 1e6 / (double)(reads->taken_us > 0 ? reads->taken_us : 1));
    if (rate > 0)
        json_print(text, "\"read_rate\": %.4g, \"floor_us\": %.1f, \"share_of_floor\": %.3f, ",
                   rate, bench_floor_us(reads, rate) / parts, bench_floor_share(reads, rate));
}

static void write_latency(struct json *text, const struct bench_latency *latency)
{
    json_print(text, "\"request_rate\": %g, \"total_tokens_per_s\": %.1f, ", latency->request_rate,
               latency->total_tokens_per_s);
    write_spread(text, "ttft_us", &latency->ttft_us);
    write_spread(text, "tpot_us", &latency->tpot_us);
    write_spread(text, "itl_us", &latency->itl_us);
    write_spread(text, "e2e_us", &latency->e2e_us);
}

void bench_write(struct json *text, const struct config *config, const struct model_info *info,
                 struct bench_figure *figure)
{
    assert(figure->taken_us.count > 0 && figure->rate_millis.count > 0);
    struct bench_spread taken = bench_spread(&figure->taken_us);
    struct bench_spread rate = bench_spread(&figure->rate_millis);

    json_raw(text, "{");
    write_text(text, "name", figure->name);
    write_machine(text, config, info);
    json_print(text, "\"shape\": {\"batch\": %d, \"prompt_tokens\": %d, \"output_tokens\": %d}, ",
               figure->batch, figure->prompt_tokens, figure->output_tokens);
    json_print(text,
               "\"repeat\": %d, \"median_us\": %" PRId64 ", \"p90_us\": %" PRId64
               ", \"p99_us\": %" PRId64 ", ",
               figure->repeat, taken.p50, taken.p90, taken.p99);
    json_print(text, "\"tokens_per_s\": %.1f, ", (double)rate.p50 / 1e3);
    if (figure->latency != NULL)
        write_latency(text, figure->latency);
    if (figure->reads.step_count > 0)
        write_reads(text, figure, info->read_rate);
    json_print(text, "\"host_us\": %" PRId64 ", ", figure->host_us);
    write_text(text, "commit", command_commit());
    json_print(text, "\"hash\": \"%016" PRIx64 "\"}\n", figure->hash);
}
