/* sample: draws a token, or scores one, from a row of logits by kernels/sampling_math.h.
 *
 * A block is one sample; up to SAMPLE_ROWS blocks go through the samples. The logits stay raw
 * (log-probabilities are theirs) and effects are applied to a copy in the block's work row.
 * A token's place in "likeliest first" is one 64-bit key, value above id, so that top_k and top_p
 * are each a least key that is kept, found by bisection: no sort, and exact also among ties.
 * Masses are summed in f64 in an order of V alone.
 */
#include "kernels/cuda/device.cuh"
#include "kernels/sampling_math.h"

#include <assert.h>

enum { THREADS = 1024 };

/* What a block shares. */
struct shared_sums {
    double mass[THREADS];
    uint64_t key[THREADS];
};

/* Work rows of a block: x after the effects, and what it is drawn with. */
struct draw {
    const float *x; /* [V] */
    int32_t V;
    float max;
    float temperature;
};

/* ---- device helpers ---- */

/* Larger for likelier: the float's order, then the lower id. No two tokens have the same. */
__device__ static inline uint64_t order_key(float value, int32_t token)
{
    uint32_t bits = __float_as_uint(value == 0.0f ? 0.0f : value);
    uint32_t order = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    return (uint64_t)order << 32 | (uint32_t)~token;
}

__device__ static inline int32_t key_token(uint64_t key)
{
    return (int32_t) ~(uint32_t)key;
}

__device__ static double sum_all(double value, struct shared_sums *shared)
{
    shared->mass[threadIdx.x] = value;
    __syncthreads();
    for (int32_t half = THREADS / 2; half > 0; half /= 2) {
        if ((int32_t)threadIdx.x < half)
            shared->mass[threadIdx.x] += shared->mass[threadIdx.x + half];
        __syncthreads();
    }
    double sum = shared->mass[0];
    __syncthreads();
    return sum;
}

__device__ static uint64_t max_all(uint64_t key, struct shared_sums *shared)
{
    shared->key[threadIdx.x] = key;
    __syncthreads();
    for (int32_t half = THREADS / 2; half > 0; half /= 2) {
        if ((int32_t)threadIdx.x < half)
            shared->key[threadIdx.x] =
                max(shared->key[threadIdx.x], shared->key[threadIdx.x + half]);
        __syncthreads();
    }
    uint64_t max_key = shared->key[0];
    __syncthreads();
    return max_key;
}

/* The greatest key below `bound` of finite(x); 0 when there is none. */
__device__ static uint64_t next_key(const float *x, int32_t V, uint64_t bound,
                                    struct shared_sums *shared)
{
    uint64_t best = 0;
    for (int32_t i = threadIdx.x; i < V; i += THREADS) {
        uint64_t key = order_key(sampling_finite(x[i]), i);
        if (key < bound)
            best = max(best, key);
    }
    return max_all(best, shared);
}

__device__ static inline double weight_of(const struct draw &draw, int32_t token)
{
    return (double)expf((draw.x[token] - draw.max) / draw.temperature);
}

/* Mass (or number, where `counts`) of the tokens with keys of at least `least`. */
__device__ static double mass_from(const struct draw &draw, uint64_t least, bool counts,
                                   struct shared_sums *shared)
{
    double sum = 0.0;
    for (int32_t i = threadIdx.x; i < draw.V; i += THREADS)
        if (order_key(draw.x[i], i) >= least)
            sum += counts ? 1.0 : weight_of(draw, i);
    return sum_all(sum, shared);
}

/* The least key, from `least` on, such that the mass (or number) above it is below `limit`. A
 * token is kept exactly when its key is not below that. */
__device__ static uint64_t least_kept(const struct draw &draw, uint64_t least, double limit,
                                      bool counts, struct shared_sums *shared)
{
    uint64_t low = least, high = order_key(draw.max, 0);
    while (low < high) {
        uint64_t middle = low + (high - low) / 2;
        if (mass_from(draw, middle + 1, counts, shared) < limit)
            high = middle;
        else
            low = middle + 1;
    }
    return low;
}

/* Every id once: a token that is listed twice gets both biases, in their order. */
__device__ static void add_bias(float *x, const struct sampling *sampling)
{
    for (int32_t i = threadIdx.x; i < sampling->bias_count; i += THREADS) {
        int32_t token = sampling->bias_token[i];
        bool is_first = true;
        for (int32_t j = 0; j < i; j++)
            is_first = is_first && sampling->bias_token[j] != token;
        for (int32_t j = i; is_first && j < sampling->bias_count; j++)
            if (sampling->bias_token[j] == token)
                x[token] += sampling->bias_value[j];
    }
    __syncthreads();
}

/* x = the logits after all effects before the temperature. */
__device__ static void apply_effects(float *x, const float *logits, int32_t V,
                                     const struct sampling *sampling, const int32_t *seen,
                                     int32_t output_index)
{
    for (int32_t i = threadIdx.x; i < V; i += THREADS)
        x[i] = sampling_finite(logits[i]);
    __syncthreads();
    add_bias(x, sampling);
    if (output_index < sampling->min_tokens) {
        for (int32_t i = threadIdx.x; i < sampling->stop_count; i += THREADS)
            x[sampling->stop_token[i]] = -INFINITY;
        __syncthreads();
    }
    if (sampling_penalises(sampling)) {
        for (int32_t i = threadIdx.x; i < V; i += THREADS)
            if (seen[i] != 0)
                x[i] = sampling_finite(sampling_penalise(sampling, x[i], seen[i] / 2));
        __syncthreads();
    }
}

/* The first id at which the running mass of the kept exceeds u times all of it. Thread i has the
 * i-th run of ids; the runs are joined in order. */
__device__ static int32_t draw_token(const struct draw &draw, uint64_t least, double u,
                                     struct shared_sums *shared)
{
    __shared__ int32_t token;
    int32_t run = (draw.V + THREADS - 1) / THREADS;
    int32_t first = min((int32_t)threadIdx.x * run, draw.V), end = min(first + run, draw.V);
    double own = 0.0;
    for (int32_t i = first; i < end; i++)
        if (order_key(draw.x[i], i) >= least)
            own += weight_of(draw, i);
    shared->mass[threadIdx.x] = own;
    __syncthreads();

    double total = 0.0, before = 0.0;
    int32_t chosen = 0;
    for (int32_t i = 0; i < THREADS; i++)
        total += shared->mass[i];
    for (int32_t i = 0; i < THREADS && before <= u * total; i++) {
        if (shared->mass[i] > 0.0)
            chosen = i;
        before += shared->mass[i];
    }
    if ((int32_t)threadIdx.x == chosen) {
        /* Where rounding leaves none that exceeds, the run's last one. */
        double running = 0.0;
        for (int32_t i = 0; i < chosen; i++)
            running += shared->mass[i];
        for (int32_t i = first; i < end && running <= u * total; i++) {
            double weight = order_key(draw.x[i], i) >= least ? weight_of(draw, i) : 0.0;
            running += weight;
            if (weight > 0.0)
                token = i;
        }
    }
    __syncthreads();
    int32_t result = token;
    __syncthreads();
    return result;
}

/* The token of a STEP_DRAW sample. */
__device__ static int32_t pick(const float *x, int32_t V, const struct sampling *sampling,
                               int32_t output_index, struct shared_sums *shared)
{
    uint64_t best = next_key(x, V, UINT64_MAX, shared);
    int32_t top = key_token(best);
    if (!(x[top] > -INFINITY))
        return 0;
    if (sampling_greedy(sampling))
        return top;

    struct draw draw = {x, V, x[top], sampling->temperature};
    uint64_t least = 0;
    if (sampling->min_p > 0.0f)
        least = order_key(sampling_floor(sampling, draw.max), -1) & ~(uint64_t)UINT32_MAX;
    int32_t keep_count = sampling_keep_count(sampling, V);
    if (keep_count < V)
        least = least_kept(draw, least, (double)keep_count, true, shared);
    if (sampling->top_p < 1.0f) {
        double mass = mass_from(draw, least, false, shared);
        least = least_kept(draw, least, (double)sampling->top_p * mass, false, shared);
    }
    return draw_token(draw, least, sampling_uniform(sampling->seed, output_index), shared);
}

/* log softmax; logits may be so large that the mass is lost in their sum. */
__device__ static inline float log_share(float x, float max_logit, double log_mass)
{
    return (float)((double)x - (double)max_logit - log_mass);
}

/* Log-probability, rank and likeliest tokens of the raw logits. */
__device__ static void report(struct drawn *drawn, const float *logits, int32_t V, int32_t token,
                              int32_t top_count, struct shared_sums *shared)
{
    uint64_t key = next_key(logits, V, UINT64_MAX, shared);
    float own = sampling_finite(logits[token]);
    float max_logit = sampling_finite(logits[key_token(key)]);
    double sum = 0.0, above = 0.0;
    for (int32_t i = threadIdx.x; i < V; i += THREADS) {
        float x = sampling_finite(logits[i]);
        sum += max_logit > -INFINITY ? (double)expf(x - max_logit) : 0.0;
        above += x > own ? 1.0 : 0.0;
    }
    double log_mass = log(sum_all(sum, shared));
    double rank = sum_all(above, shared);
    bool any = max_logit > -INFINITY;
    if (threadIdx.x == 0) {
        drawn->logprob = any ? log_share(own, max_logit, log_mass) : -INFINITY;
        drawn->rank = (int32_t)rank;
    }
    for (int32_t i = 0; i < min(top_count, V); i++) {
        float x = sampling_finite(logits[key_token(key)]);
        if (!(x > -INFINITY)) /* what follows has no probability */
            break;
        if (threadIdx.x == 0) {
            drawn->top_token[i] = key_token(key);
            drawn->top_logprob[i] = log_share(x, max_logit, log_mass);
        }
        key = next_key(logits, V, key, shared);
    }
}

/* ---- kernels ---- */

__global__ void __launch_bounds__(THREADS)
    sample_kernel(struct drawn *drawn, float *work, const float *logits, struct step_view step,
                  struct slot_view slots, int32_t V, int32_t first, int32_t count)
{
    __shared__ struct shared_sums shared;
    float *x = work + (int64_t)blockIdx.x * V;
    for (int32_t i = blockIdx.x; i < count; i += gridDim.x) {
        int32_t s = first + i;
        if (s >= step.counts->sample_count)
            return;
        const struct step_sample *sample = &step.sample[s];
        const float *row = logits + (int64_t)i * V;
        int32_t token = sample->token;
        if (sample->kind == STEP_DRAW) {
            const struct sampling *sampling = &slots.sampling[sample->slot];
            int32_t *seen = slots.seen + (int64_t)sample->slot * V;
            apply_effects(x, row, V, sampling, seen, sample->output_index);
            token = pick(x, V, sampling, sample->output_index, &shared);
            if (threadIdx.x == 0) {
                seen[token] += 2;
                slots.last[sample->slot] = token;
            }
        }
        if (threadIdx.x < SAMPLING_TOP_MAX) {
            drawn[s].top_token[threadIdx.x] = -1;
            drawn[s].top_logprob[threadIdx.x] = 0.0f;
        }
        if (threadIdx.x == 0) {
            drawn[s].token = token;
            drawn[s].logprob = 0.0f;
            drawn[s].rank = 0;
        }
        __syncthreads();
        if (sample->top_count >= 0)
            report(&drawn[s], row, V, token, sample->top_count, &shared);
        __syncthreads();
    }
}

/* A block is one start. */
__global__ void __launch_bounds__(THREADS)
    start_kernel(struct slot_view slots, struct step_view step, int32_t V)
{
    const struct step_start *start = &step.start[blockIdx.x];
    int32_t *seen = slots.seen + (int64_t)start->slot * V;
    const int32_t *source = (const int32_t *)&start->sampling;
    int32_t *target = (int32_t *)&slots.sampling[start->slot];
    static_assert(sizeof(struct sampling) % sizeof(int32_t) == 0, "copied by words");
    for (int32_t i = threadIdx.x; i < (int32_t)(sizeof(struct sampling) / 4); i += THREADS)
        target[i] = source[i];
    for (int32_t i = threadIdx.x; i < V; i += THREADS)
        seen[i] = 0;
    __syncthreads();
    for (int32_t i = threadIdx.x; i < start->token_count; i += THREADS) {
        int32_t token = step.history[start->token_first + i];
        if (i < start->prompt_count)
            atomicOr(&seen[token], 1);
        else
            atomicAdd(&seen[token], 2);
    }
}

/* ---- launchers ---- */

void cuda_sample_start(struct device *device, int32_t start_count)
{
    if (start_count == 0)
        return;
    start_kernel<<<start_count, THREADS, 0, device->stream>>>(device->slots, device->step,
                                                              device->options.vocab_count);
    launch_check(device, __func__);
}

void cuda_sample(struct device *device, float *logits, int32_t first, int32_t count)
{
    assert(first + count <= device->options.sample_max);
    if (count == 0)
        return;
    int32_t blocks = count < SAMPLE_ROWS ? count : (int32_t)SAMPLE_ROWS;
    sample_kernel<<<blocks, THREADS, 0, device->stream>>>(
        device->drawn, device->work, logits, device->step, device->slots,
        device->options.vocab_count, first, count);
    launch_check(device, __func__);
}
