/* Sampling's parts: what they share, private to sample.cu.
 *
 * A run is RUN consecutive logits of a sample, the work of one warp: it reads a run, applies the
 * effects of bias, mask and penalties to it in registers, and does with it what a pass is for. So
 * logits stay raw and nothing is written back; a pass that comes again reads again.
 *
 * Masses are integers, in units of 2^-MASS_BITS of the likeliest token's weight. Sums of integers
 * are the same in any order, so warps may share any pass and use atomics, and what a sum is over
 * is all that decides its bits: the ways of drawing (sample_pick.cuh) differ in speed alone.
 */
#ifndef KERNELS_CUDA_SAMPLE_CUH
#define KERNELS_CUDA_SAMPLE_CUH

#include "kernels/cuda/device.cuh"
#include "kernels/sampling_math.h"

enum {
    THREADS = 256,
    WARPS = THREADS / WARP,
    RUN = 512,
    QUADS = RUN / WARP / 4, /* a lane has QUADS times four neighbours of a run */
    LANE_VALUES = 4 * QUADS,
    LIST_MAX = 2048,          /* candidates that are sorted in shared memory */
    BINS = 2048,              /* of a histogram, a power of two */
    STRIP = 2048,             /* runs that are listed at a time */
    FLOOR_RUNS = 3 * THREADS, /* of whose maxima a floor is made; fewer than 1024 */
    FLOOR_BITS = 16,          /* of a floor's order, even */
    MASS_BITS = 39,           /* V is at most 2^24 */
};

/* A run's likeliest token, and the sum of weights relative to it where that is wanted. */
struct __align__(16) run_sum
{
    float max;
    float mass;
    int32_t token;
};

/* log2(e) / temperature, as a sum of two. */
struct heat {
    float high, low;
};

/* The logits of one sample as a pass reads them: raw, or after the effects. */
struct source {
    const float *logits; /* [V] */
    const struct sampling *sampling;
    const int32_t *seen; /* [V]; NULL: no penalties */
    struct run_sum *sum; /* [run_count] */
    int32_t V, run_count;
    bool quads;   /* rows may be read 16 bytes at a time */
    bool changed; /* bias, mask or penalties change something */
    bool masked;  /* stop ids are not drawn yet */
    bool weighed; /* the draw needs the runs' masses */
    struct heat heat;
    float max; /* of all; set when the sums are there */
};

/* What a block has in shared memory. */
struct pick {
    union {
        uint64_t list[LIST_MAX];
        uint64_t bin[BINS];
    };
    uint16_t active[STRIP]; /* runs of a strip that a pass reads */
    int32_t active_count;
    int32_t list_count; /* may be more than LIST_MAX: then the list is not whole */
    uint64_t part[WARPS];
    uint32_t tally[2][WARPS];
    uint64_t found_mass;
    int32_t found;
    struct source drawn, raw;
};

/* ---- keys: larger for likelier ---- */

/* The order of values as integers; -inf has more than 0. */
__device__ static inline uint32_t order_of(float value)
{
    uint32_t bits = __float_as_uint(value == 0.0f ? 0.0f : value);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

__device__ static inline float value_of(uint32_t order)
{
    return __uint_as_float(order & 0x80000000u ? order & 0x7fffffffu : ~order);
}

/* The value's order, then the lower id: no two tokens of a sample have the same. */
__device__ static inline uint64_t key_of(float value, int32_t token)
{
    return (uint64_t)order_of(value) << 32 | (uint32_t)~token;
}

__device__ static inline int32_t key_token(uint64_t key)
{
    return (int32_t) ~(uint32_t)key;
}

__device__ static inline float key_value(uint64_t key)
{
    return value_of((uint32_t)(key >> 32));
}

/* The least key of a token with this value. */
__device__ static inline uint64_t key_from(float value)
{
    return (uint64_t)order_of(value) << 32;
}

/* ---- weights and masses ---- */

__device__ static inline struct heat heat_of(float temperature)
{
    const float log2e = 1.44269502f, rest = 1.92596303e-8f;
    struct heat heat;
    heat.high = __fdiv_rn(log2e, temperature);
    heat.low = __fdiv_rn(__fmaf_rn(-heat.high, temperature, log2e) + rest, temperature);
    return heat;
}

/* exp(distance / temperature) of a distance from the maximum: at most 1, and 0 for -inf and where
 * the maximum is -inf itself. */
__device__ static inline float weight_of(float distance, struct heat heat)
{
    float least = fmaxf(distance, -1e30f), weight;
    float power = __fmaf_rn(least, heat.high, __fmul_rn(least, heat.low));
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(weight) : "f"(power));
    return weight;
}

__device__ static inline uint64_t mass_of(float value, const struct source &source)
{
    const float unit = (float)(1ull << MASS_BITS);
    return __float2ull_rn(weight_of(value - source.max, source.heat) * unit);
}

/* What a run's sum is of the whole: units for one of its own weights. */
__device__ static inline double run_unit(float run_max, const struct source &source)
{
    return (double)weight_of(run_max - source.max, source.heat) * (double)(1ull << MASS_BITS);
}

/* Where a draw ends: the first token at which the running mass exceeds this. */
__device__ static inline uint64_t goal_of(double u, uint64_t total)
{
    return min((uint64_t)(u * (double)total), total - 1);
}

/* True if a draw needs the mass of all that is there. */
__device__ static inline bool needs_mass(const struct sampling *sampling, int32_t V)
{
    return !sampling_greedy(sampling) && !(sampling->min_p > 0.0f) &&
           sampling_keep_count(sampling, V) == V;
}

/* ---- a warp and its run ---- */

__device__ static inline int32_t lane_of(void)
{
    return (int32_t)threadIdx.x % WARP;
}

__device__ static inline int32_t warp_of(void)
{
    return (int32_t)threadIdx.x / WARP;
}

/* The id of a lane's value. */
__device__ static inline int32_t token_of(int32_t run, int32_t index)
{
    return run * RUN + (index / 4 * WARP + lane_of()) * 4 + index % 4;
}

/* Past V there is -inf. */
__device__ static __forceinline__ void fetch(float (&x)[LANE_VALUES], const struct source &source,
                                             int32_t run)
{
    if (source.quads) {
#pragma unroll
        for (int32_t j = 0; j < QUADS; j++) {
            int32_t first = token_of(run, 4 * j);
            float4 quad = make_float4(-INFINITY, -INFINITY, -INFINITY, -INFINITY);
            if (first < source.V)
                quad = *(const float4 *)(source.logits + first);
            x[4 * j] = quad.x;
            x[4 * j + 1] = quad.y;
            x[4 * j + 2] = quad.z;
            x[4 * j + 3] = quad.w;
        }
    } else {
#pragma unroll
        for (int32_t i = 0; i < LANE_VALUES; i++) {
            int32_t token = token_of(run, i);
            x[i] = token < source.V ? source.logits[token] : -INFINITY;
        }
    }
}

/* sampling_finite of each: a maximum with NaN is the other one. */
__device__ static __forceinline__ void settle(float (&x)[LANE_VALUES])
{
#pragma unroll
    for (int32_t i = 0; i < LANE_VALUES; i++)
        x[i] = fminf(fmaxf(x[i], -INFINITY), FLT_MAX);
}

/* x[token] += value, or = -inf, in the lane that has it. */
__device__ static __forceinline__ void change_one(float (&x)[LANE_VALUES], int32_t run,
                                                  int32_t token, float value)
{
#pragma unroll
    for (int32_t i = 0; i < LANE_VALUES; i++)
        if (token == token_of(run, i))
            x[i] += value;
}

/* Each of the list that is in the run, in the order of the list; ids outside V change nothing.
 * `value` is NULL for -inf. */
__device__ static __forceinline__ void change_listed(float (&x)[LANE_VALUES], int32_t run,
                                                     const int32_t *token, const float *value,
                                                     int32_t count)
{
    for (int32_t first = 0; first < count; first += WARP) {
        int32_t i = first + lane_of();
        int32_t own = i < count ? token[i] : -1;
        float change = value != NULL && i < count ? value[i] : -INFINITY;
        uint32_t here = __ballot_sync(0xffffffffu, own >= 0 && own / RUN == run);
        for (; here != 0; here &= here - 1) {
            int32_t lane = __ffs((int32_t)here) - 1;
            change_one(x, run, __shfl_sync(0xffffffffu, own, lane),
                       __shfl_sync(0xffffffffu, change, lane));
        }
    }
}

__device__ static __forceinline__ void penalise(float (&x)[LANE_VALUES],
                                                const struct source &source, int32_t run)
{
    int32_t seen[LANE_VALUES];
#pragma unroll
    for (int32_t i = 0; i < LANE_VALUES; i++) {
        int32_t token = token_of(run, i);
        seen[i] = token < source.V ? source.seen[token] : 0;
    }
#pragma unroll
    for (int32_t i = 0; i < LANE_VALUES; i++)
        if (seen[i] != 0)
            x[i] = sampling_finite(sampling_penalise(source.sampling, x[i], seen[i] / 2));
}

__device__ static __forceinline__ void change(float (&x)[LANE_VALUES], const struct source &source,
                                              int32_t run)
{
    const struct sampling *sampling = source.sampling;
    change_listed(x, run, sampling->bias_token, sampling->bias_value, sampling->bias_count);
    if (source.masked)
        change_listed(x, run, sampling->stop_token, NULL, sampling->stop_count);
    if (source.seen != NULL)
        penalise(x, source, run);
}

/* The run's maximum, and the lowest id that has it. */
__device__ static __forceinline__ void find_top(struct run_sum *sum, const float (&x)[LANE_VALUES],
                                                int32_t run)
{
    float max = x[0];
#pragma unroll
    for (int32_t i = 1; i < LANE_VALUES; i++)
        max = fmaxf(max, x[i]);
    sum->max = value_of(__reduce_max_sync(0xffffffffu, order_of(max)));
    int32_t first = INT32_MAX;
#pragma unroll
    for (int32_t i = LANE_VALUES - 1; i >= 0; i--)
        if (x[i] == sum->max)
            first = token_of(run, i);
    sum->token = __reduce_min_sync(0xffffffffu, first);
}

/* Sum of weights in an order that RUN alone decides. */
__device__ static __forceinline__ float run_mass(float max, const float (&x)[LANE_VALUES],
                                                 struct heat heat)
{
    float sum[QUADS];
#pragma unroll
    for (int32_t j = 0; j < QUADS; j++) {
        float left = weight_of(x[4 * j] - max, heat) + weight_of(x[4 * j + 1] - max, heat);
        float right = weight_of(x[4 * j + 2] - max, heat) + weight_of(x[4 * j + 3] - max, heat);
        sum[j] = left + right;
    }
    static_assert(QUADS == 4, "summed as two pairs");
    float mass = (sum[0] + sum[1]) + (sum[2] + sum[3]);
    for (int32_t offset = WARP / 2; offset > 0; offset /= 2)
        mass += __shfl_xor_sync(0xffffffffu, mass, offset);
    return mass;
}

__device__ static inline struct run_sum sum_of(const struct source &source, int32_t run)
{
    float4 words = *(const float4 *)&source.sum[run];
    struct run_sum sum;
    sum.max = words.x;
    sum.mass = words.y;
    sum.token = __float_as_int(words.z);
    return sum;
}

/* ---- all threads of a block ---- */

/* Sum of the values of lower threads, and of all. */
__device__ static uint64_t scan(struct pick *pick, uint64_t value, uint64_t *total)
{
    uint64_t sum = value, before = 0, all = 0;
    for (int32_t offset = 1; offset < WARP; offset *= 2) {
        uint64_t other = __shfl_up_sync(0xffffffffu, sum, offset);
        sum += lane_of() >= offset ? other : 0;
    }
    if (lane_of() == WARP - 1)
        pick->part[warp_of()] = sum;
    __syncthreads();
    for (int32_t i = 0; i < WARPS; i++) {
        before += i < warp_of() ? pick->part[i] : 0;
        all += pick->part[i];
    }
    __syncthreads();
    *total = all;
    return before + sum - value;
}

__device__ static uint64_t max_all(struct pick *pick, uint64_t key)
{
    for (int32_t offset = WARP / 2; offset > 0; offset /= 2)
        key = max(key, __shfl_xor_sync(0xffffffffu, key, offset));
    if (lane_of() == 0)
        pick->part[warp_of()] = key;
    __syncthreads();
    for (int32_t i = 0; i < WARPS; i++)
        key = max(key, pick->part[i]);
    __syncthreads();
    return key;
}

/* Finds the maximum of all and gives the lowest id that has it. */
__device__ static int32_t find_max(struct pick *pick, struct source *source)
{
    uint64_t best = 0;
    for (int32_t run = threadIdx.x; run < source->run_count; run += THREADS) {
        struct run_sum sum = sum_of(*source, run);
        best = max(best, key_of(sum.max, sum.token));
    }
    best = max_all(pick, best);
    if (threadIdx.x == 0)
        source->max = key_value(best);
    __syncthreads();
    return key_token(best);
}

/* The runs from `first` on, STRIP at most, that have something of at least `floor`. In any order,
 * which no result depends on. */
__device__ static void make_active(struct pick *pick, const struct source &source, int32_t first,
                                   float floor)
{
    int32_t end = min(first + STRIP, source.run_count);
    __syncthreads();
    if (threadIdx.x == 0)
        pick->active_count = 0;
    __syncthreads();
    for (int32_t run = first + (int32_t)threadIdx.x; run < end; run += THREADS)
        if (source.sum[run].max >= floor)
            pick->active[atomicAdd(&pick->active_count, 1)] = (uint16_t)(run - first);
    __syncthreads();
}

/* Has the logits of the i-th active run, as the source has them, and the raw ones of this warp's
 * next on their way; a warp goes from warp_of() on in steps of WARPS. Which run it is. */
__device__ static __forceinline__ int32_t take(float (&x)[LANE_VALUES], float (&ahead)[LANE_VALUES],
                                               const struct pick *pick, const struct source &source,
                                               int32_t first, int32_t i)
{
    int32_t run = first + pick->active[i];
    if (i < WARPS)
        fetch(ahead, source, run);
#pragma unroll
    for (int32_t j = 0; j < LANE_VALUES; j++)
        x[j] = ahead[j];
    if (i + WARPS < pick->active_count)
        fetch(ahead, source, first + pick->active[i + WARPS]);
    settle(x);
    if (source.changed)
        change(x, source, run);
    return run;
}

/* Adds to a sum in shared memory by atomics of 32 bits, which the hardware has. */
__device__ static inline void add_mass(uint64_t *sum, uint64_t mass)
{
    uint32_t *word = (uint32_t *)sum, low = (uint32_t)mass;
    uint32_t high = (uint32_t)(mass >> 32);
    if (atomicAdd(word, low) > UINT32_MAX - low)
        high++;
    if (high > 0)
        atomicAdd(word + 1, high);
}

/* Mass of all, by the sums of runs. */
__device__ static uint64_t total_mass(struct pick *pick, const struct source &source)
{
    uint64_t own = 0, total;
    for (int32_t run = threadIdx.x; run < source.run_count; run += THREADS) {
        struct run_sum sum = sum_of(source, run);
        own += __double2ull_rn((double)sum.mass * run_unit(sum.max, source));
    }
    (void)scan(pick, own, &total);
    return total;
}

#endif
