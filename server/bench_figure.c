/* Percentiles, floors and JSON of `quire bench`; see bench_figure.h. */
#include "server/bench_figure.h"

#include "server/command.h"
#include "server/config.h"

#include <assert.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
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

/* ---- printing ---- */

/* Names and devices come from files: nothing in them may break the line. */
static void print_text(const char *key, const char *value)
{
    printf("\"%s\": \"", key);
    for (; *value != '\0'; value++)
        if ((unsigned char)*value >= 32 && *value != '"' && *value != '\\')
            putchar(*value);
    printf("\", ");
}

static void print_spread(const char *key, const struct bench_spread *spread)
{
    printf("\"%s\": {\"mean\": %.1f, \"p50\": %" PRId64 ", \"p90\": %" PRId64 ", \"p99\": %" PRId64
           "}, ",
           key, spread->mean, spread->p50, spread->p90, spread->p99);
}

static void print_machine(const struct config *config, const struct model_info *info)
{
    bool cpu = config->device == CONFIG_DEVICE_CPU;

    print_text("backend", cpu ? "cpu" : "cuda");
    print_text("device", info->device);
    print_text("model", info->name);
    print_text("dtype", info->format);
    if (cpu)
        printf("\"threads\": %ld, ",
               config->threads > 0 ? (long)config->threads : sysconf(_SC_NPROCESSORS_ONLN));
}

static void print_reads(const struct bench_figure *figure, double rate)
{
    const struct bench_reads *reads = &figure->reads;
    double parts = figure->reads_each ? (double)reads->step_count : 1;

    printf("\"read_bytes\": %.0f, \"bytes_per_s\": %.4g, ", (double)reads->bytes / parts,
           (double)reads->bytes * 1e6 / (double)(reads->taken_us > 0 ? reads->taken_us : 1));
    if (rate > 0)
        printf("\"read_rate\": %.4g, \"floor_us\": %.1f, \"share_of_floor\": %.3f, ", rate,
               bench_floor_us(reads, rate) / parts, bench_floor_share(reads, rate));
}

static void print_latency(const struct bench_latency *latency)
{
    printf("\"request_rate\": %g, \"total_tokens_per_s\": %.1f, ", latency->request_rate,
           latency->total_tokens_per_s);
    print_spread("ttft_us", &latency->ttft_us);
    print_spread("tpot_us", &latency->tpot_us);
    print_spread("itl_us", &latency->itl_us);
    print_spread("e2e_us", &latency->e2e_us);
}

void bench_print(const struct config *config, const struct model_info *info,
                 struct bench_figure *figure)
{
    assert(figure->taken_us.count > 0 && figure->rate_millis.count > 0);
    struct bench_spread taken = bench_spread(&figure->taken_us);
    struct bench_spread rate = bench_spread(&figure->rate_millis);

    printf("{");
    print_text("name", figure->name);
    print_machine(config, info);
    printf("\"shape\": {\"batch\": %d, \"prompt_tokens\": %d, \"output_tokens\": %d}, ",
           figure->batch, figure->prompt_tokens, figure->output_tokens);
    printf("\"repeat\": %d, \"median_us\": %" PRId64 ", \"p90_us\": %" PRId64
           ", \"p99_us\": %" PRId64 ", ",
           figure->repeat, taken.p50, taken.p90, taken.p99);
    printf("\"tokens_per_s\": %.1f, ", (double)rate.p50 / 1e3);
    if (figure->latency != NULL)
        print_latency(figure->latency);
    if (figure->reads.step_count > 0)
        print_reads(figure, info->read_rate);
    printf("\"host_us\": %" PRId64 ", ", figure->host_us);
    print_text("commit", command_commit());
    printf("\"hash\": \"%016" PRIx64 "\"}\n", figure->hash);
    fflush(stdout);
}
