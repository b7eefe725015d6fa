/* Figures of `quire bench`: samples, their percentiles, the floor of what was measured, and the
 * line of JSON that is printed. Arithmetic and text only; one thread. */
#ifndef SERVER_BENCH_FIGURE_H
#define SERVER_BENCH_FIGURE_H

#include "model/model.h"

#include <stdbool.h>
#include <stdint.h>

struct config; /* server/config.h */
struct json;   /* server/json_write.h */

/* Whole numbers of a growing list with a limit that is known before: what is added beyond it is
 * dropped. */
struct bench_samples {
    int64_t *value; /* [max] */
    int64_t count, max;
};
/* False: out of memory. Freed by bench_samples_release in either case. */
bool bench_samples_init(struct bench_samples *samples, int64_t max);
void bench_samples_release(struct bench_samples *samples);
void bench_samples_add(struct bench_samples *samples, int64_t value);

struct bench_spread {
    double mean;
    int64_t p50, p90, p99;
};
/* Percentiles by the nearest rank: the least value that so many percent do not exceed. Sorts the
 * samples; all zeros where there are none. */
struct bench_spread bench_spread(struct bench_samples *samples);

/* Microseconds to the next arrival of a Poisson process of `rate` a second, for a random number
 * that is even over all of its values. */
int64_t bench_gap_us(double rate, uint64_t random);

/* Reads that no implementation can do without: every weight of a step once, the keys and values
 * of its sequences once. */
struct bench_reads {
    int64_t bytes;      /* of all steps counted */
    int64_t taken_us;   /* of all steps counted */
    int64_t step_count; /* 0: nothing was measured */
};
/* Microseconds that the reads take at `rate` bytes a second. */
double bench_floor_us(const struct bench_reads *reads, double rate);
/* The floor over what was taken: 1 is at the floor, 0.5 twice as slow. */
double bench_floor_share(const struct bench_reads *reads, double rate);

struct bench_figure {
    const char *name;
    int32_t batch, prompt_tokens, output_tokens, repeat;
    struct bench_samples taken_us;       /* of one prompt, one step, one run */
    struct bench_samples rate_millis;    /* tokens a thousand seconds, of each run */
    int64_t host_us;                     /* the host's time a step, mean */
    uint64_t hash;                       /* of the tokens drawn */
    struct bench_reads reads;            /* no step counted: the figure has no floor */
    bool reads_each;                     /* print them a step, not as sums */
    const struct bench_latency *latency; /* NULL: none */
};

/* What those who asked saw. */
struct bench_latency {
    double request_rate;         /* a second; 0: all at once */
    double total_tokens_per_s;   /* prompts too */
    struct bench_spread ttft_us; /* from the arrival to the first token */
    struct bench_spread tpot_us; /* mean time between two tokens of a request */
    struct bench_spread itl_us;  /* time between two tokens */
    struct bench_spread e2e_us;  /* from the arrival to the last token */
};

/* Adds one line of JSON. Sorts the figure's samples, of which there are some. */
void bench_write(struct json *text, const struct config *config, const struct model_info *info,
                 struct bench_figure *figure);

#endif
