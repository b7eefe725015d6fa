/* sample: draws a token, or scores one, from a row of logits by kernels/sampling_math.h.
 *
 * One launch reads each logit once: a warp makes the sum of its run (sample.cuh), and the block
 * that is the last of a sample's to be done chooses the token from the sums (sample_pick.cuh),
 * while other blocks read other samples. What it must look at again is in the L2 cache mostly.
 * Which sample a block works on, and what for, it finds on the device, so one launch fits every
 * step of its padded size. A run's sum depends on its logits alone, and what is put together of
 * runs are maxima and integers: nothing depends on the number of samples or on who is last.
 *
 * seen[] is a slot's only while its sequence penalises: cleared and counted when such a sequence
 * starts, and left as it is by all others, which neither read nor write it.
 */
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/sample_pick.cuh"

#include <assert.h>

enum {
    START_THREADS = 1024,
    BLOCKS = 3,   /* of a multiprocessor */
    DEPTH = 2,    /* runs that a warp has on their way */
    SPAN_MAX = 9, /* runs of a warp */
};

/* ---- sums of runs ---- */

/* A sample's two sources: the raw logits, as `raw` says where they are, and what is drawn from. */
__device__ static void open_sources(struct source *source, struct source raw,
                                    const struct step_sample &sample, struct slot_view slots)
{
    raw.heat = heat_of(1.0f);
    source[0] = raw;
    raw.sum += raw.run_count;
    if (sample.kind == STEP_DRAW) {
        const struct sampling *sampling = &slots.sampling[sample.slot];
        raw.sampling = sampling;
        if (sampling_penalises(sampling))
            raw.seen = slots.seen + (int64_t)sample.slot * raw.V;
        raw.masked = sample.output_index < sampling->min_tokens && sampling->stop_count > 0;
        raw.changed = raw.masked || raw.seen != NULL || sampling->bias_count > 0;
        raw.weighed = needs_mass(sampling, raw.V);
        if (!sampling_greedy(sampling))
            raw.heat = heat_of(sampling->temperature);
    }
    source[1] = raw;
}

__device__ static inline void write_sum(struct run_sum *target, const struct run_sum &sum)
{
    *(float4 *)target = make_float4(sum.max, sum.mass, __int_as_float(sum.token), 0.0f);
}

/* The sums of a run that is in x: of the raw logits where they are reported, and of what is drawn
 * from. */
template <bool changed>
__device__ static __forceinline__ void sum_run(float (&x)[LANE_VALUES], const struct source *source,
                                               bool reports, int32_t run)
{
    struct run_sum sum = {0.0f, 0.0f, 0};
    settle(x);
    if (reports) {
        find_top(&sum, x, run);
        sum.mass = run_mass(sum.max, x, source[0].heat);
        if (lane_of() == 0)
            write_sum(&source[0].sum[run], sum);
    }
    if (changed)
        change(x, source[1], run);
    if (changed || !reports)
        find_top(&sum, x, run);
    if (source[1].weighed)
        sum.mass = run_mass(sum.max, x, source[1].heat);
    if (lane_of() == 0)
        write_sum(&source[1].sum[run], sum);
}

/* Every WARPS-th run from `run` to `end`; the first DEPTH of them are on their way. */
template <bool changed, int depth>
__device__ static __forceinline__ void sum_runs(float (&x)[DEPTH][LANE_VALUES],
                                                const struct source *source, bool reports,
                                                int32_t run, int32_t end)
{
    for (; run < end; run += depth * WARPS) {
#pragma unroll
        for (int32_t j = 0; j < depth; j++) {
            if (run + j * WARPS < end)
                sum_run<changed>(x[j], source, reports, run + j * WARPS);
            if (run + (j + depth) * WARPS < end)
                fetch(x[j], source[0], run + (j + depth) * WARPS);
        }
    }
}

/* True in the block that is the last of a sample's to come here: it sees what the others wrote. */
__device__ static inline bool is_last(uint32_t *arrived)
{
    __shared__ bool last;
    __syncthreads();
    if (threadIdx.x == 0) {
        __threadfence();
        last = atomicInc(arrived, gridDim.x - 1) == gridDim.x - 1;
        __threadfence();
    }
    __syncthreads();
    return last;
}

/* ---- what is reported ---- */

/* log softmax; logits may be so large that the mass is lost in their sum. */
__device__ static inline float log_share(float x, float max_logit, double log_mass)
{
    return (float)((double)x - (double)max_logit - log_mass);
}

/* How many logits are above `own`. */
__device__ static int32_t rank_of(struct pick *pick, const struct source &source, float own)
{
    uint64_t above = 0, total;
    float x[LANE_VALUES], ahead[LANE_VALUES];
    if (!(source.max > own))
        return 0;
    for (int32_t first = 0; first < source.run_count; first += STRIP) {
        make_active(pick, source, first, own);
        for (int32_t i = warp_of(); i < pick->active_count; i += WARPS) {
            (void)take(x, ahead, pick, source, first, i);
#pragma unroll
            for (int32_t j = 0; j < LANE_VALUES; j++)
                above += x[j] > own ? 1 : 0;
        }
    }
    (void)scan(pick, above, &total);
    return (int32_t)total;
}

/* Puts the `count` likeliest in front of the list; how many there are. */
__device__ static int32_t list_likeliest(struct pick *pick, const struct source &source,
                                         int32_t count)
{
    float floor = floor_of_count(pick, source, count);
    int32_t listed = collect(pick, source, key_from(floor), UINT64_MAX);
    if (listed > LIST_MAX) {
        uint64_t least = least_kept(pick, source, key_from(-FLT_MAX), (uint64_t)count, true);
        listed = collect(pick, source, least, UINT64_MAX);
    }
    sort(pick, listed);
    return min(listed, count);
}

/* Log-probability, rank and likeliest tokens of the raw logits. */
__device__ static void report(struct pick *pick, struct drawn *drawn, struct source *source,
                              int32_t token, int32_t top_count)
{
    int32_t lane = threadIdx.x, listed = 0;
    float own = sampling_finite(source->logits[token]);
    (void)find_max(pick, source);
    bool any = source->max > -INFINITY;
    double mass = any ? (double)total_mass(pick, *source) : 1.0;
    double log_mass = log(mass / (double)(1ull << MASS_BITS));
    int32_t rank = rank_of(pick, *source, own);
    if (any && top_count > 0)
        listed = list_likeliest(pick, *source, min(top_count, source->V));
    if (lane < SAMPLING_TOP_MAX) {
        uint64_t key = lane < listed ? pick->list[lane] : 0;
        drawn->top_token[lane] = lane < listed ? key_token(key) : -1;
        drawn->top_logprob[lane] =
            lane < listed ? log_share(key_value(key), source->max, log_mass) : 0.0f;
    }
    if (lane == 0) {
        drawn->logprob = any ? log_share(own, source->max, log_mass) : -INFINITY;
        drawn->rank = rank;
    }
}

__device__ static void report_nothing(struct drawn *drawn)
{
    if (threadIdx.x < SAMPLING_TOP_MAX) {
        drawn->top_token[threadIdx.x] = -1;
        drawn->top_logprob[threadIdx.x] = 0.0f;
    }
    if (threadIdx.x == 0) {
        drawn->logprob = 0.0f;
        drawn->rank = 0;
    }
}

/* ---- kernels ---- */

/* By the last block of a sample. Its own function, so that what it needs of registers is not what
 * the sums get. */
__device__ static __noinline__ void finish(const struct source *source, struct drawn *drawn,
                                           const struct step_sample *sample, struct slot_view slots,
                                           uint64_t *kept)
{
    __shared__ struct pick pick;
    int32_t token = sample->token;
    if (threadIdx.x == 0) {
        pick.raw = source[0];
        pick.drawn = source[1];
    }
    __syncthreads();
    if (sample->kind == STEP_DRAW) {
        token = draw_token(&pick, &pick.drawn, sample->output_index, kept);
        if (threadIdx.x == 0) {
            if (pick.drawn.seen != NULL)
                slots.seen[(int64_t)sample->slot * pick.drawn.V + token] += 2;
            slots.last[sample->slot] = token;
        }
    }
    if (threadIdx.x == 0)
        drawn->token = token;
    if (sample->top_count >= 0)
        report(&pick, drawn, &pick.raw, token, sample->top_count);
    else
        report_nothing(drawn);
}

/* Blocks (x, i) work on sample first + i, a warp on `span` of its runs. */
__global__ void __launch_bounds__(THREADS, BLOCKS)
    sample_kernel(struct sample_view view, struct drawn *drawn, const float *logits,
                  struct step_view step, struct slot_view slots, int32_t V, int32_t first,
                  int32_t span)
{
    __shared__ struct source source[2]; /* raw, and what is drawn from */
    int32_t i = blockIdx.y, s = first + i, run_count = (V + RUN - 1) / RUN;
    kernel_yield();
    kernel_wait();
    if (s >= step.counts->sample_count)
        return;
    const struct step_sample *sample = &step.sample[s];
    struct source raw = {};
    raw.logits = logits + (int64_t)i * V;
    raw.V = V;
    raw.run_count = run_count;
    raw.quads = V % 4 == 0 && (uintptr_t)logits % sizeof(float4) == 0;
    raw.sum = view.sum + (int64_t)(2 * i) * run_count;

    int32_t run = (int32_t)blockIdx.x * span * WARPS + warp_of();
    int32_t end = min((int32_t)(blockIdx.x + 1) * span * WARPS, run_count);
    float x[DEPTH][LANE_VALUES];
#pragma unroll
    for (int32_t j = 0; j < DEPTH; j++) /* before anything waits for the sample's parameters */
        if (run + j * WARPS < end)
            fetch(x[j], raw, run + j * WARPS);
    if (threadIdx.x == 0)
        open_sources(source, raw, *sample, slots);
    __syncthreads();
    bool reports = sample->top_count >= 0;
    if (source[1].changed)
        sum_runs<true, 1>(x, source, reports, run, end);
    else
        sum_runs<false, DEPTH>(x, source, reports, run, end);
    if (is_last(&view.arrived[i]))
        finish(source, &drawn[s], sample, slots, view.kept + (int64_t)i * run_count);
}

/* A block is one start. */
__global__ void __launch_bounds__(START_THREADS)
    start_kernel(struct slot_view slots, struct step_view step, int32_t V)
{
    const struct step_start *start = &step.start[blockIdx.x];
    int32_t *seen = slots.seen + (int64_t)start->slot * V;
    const int32_t *source = (const int32_t *)&start->sampling;
    int32_t *target = (int32_t *)&slots.sampling[start->slot];
    static_assert(sizeof(struct sampling) % sizeof(int32_t) == 0, "copied by words");
    for (int32_t i = threadIdx.x; i < (int32_t)(sizeof(struct sampling) / 4); i += START_THREADS)
        target[i] = source[i];
    if (!sampling_penalises(&start->sampling))
        return;
    for (int32_t i = threadIdx.x; i < V; i += START_THREADS)
        seen[i] = 0;
    __syncthreads();
    for (int32_t i = threadIdx.x; i < start->token_count; i += START_THREADS) {
        int32_t token = step.history[start->token_first + i];
        if (i < start->prompt_count)
            atomicOr(&seen[token], 1);
        else
            atomicAdd(&seen[token], 2);
    }
}

/* ---- launchers ---- */

bool cuda_sample_open(struct device *device)
{
    size_t runs = ((size_t)device->options.vocab_count + RUN - 1) / RUN * SAMPLE_ROWS;
    struct sample_view *view = &device->sample;
    view->sum = (struct run_sum *)cuda_alloc(device, 2 * runs * sizeof(struct run_sum));
    view->kept = (uint64_t *)cuda_alloc(device, runs * sizeof(uint64_t));
    view->arrived = (uint32_t *)cuda_alloc(device, SAMPLE_ROWS * sizeof(uint32_t));
    return view->sum != NULL && view->kept != NULL && view->arrived != NULL;
}

void cuda_sample_start(struct device *device, int32_t start_count)
{
    if (start_count == 0)
        return;
    start_kernel<<<start_count, START_THREADS, 0, device->stream>>>(device->slots, device->step,
                                                                    device->options.vocab_count);
    launch_check(device, __func__);
}

/* Runs that a warp takes one after another: as many as give every block a place at once, up to
 * SPAN_MAX, so that the last block's work hides behind the reading of other samples. */
static int32_t span_of(const struct device *device, int32_t runs, int32_t rows)
{
    int32_t span = ceil_div(runs * rows, device->core_count * BLOCKS * WARPS);
    return span < SPAN_MAX ? span : (int32_t)SPAN_MAX;
}

void cuda_sample(struct device *device, float *logits, int32_t first, int32_t count)
{
    int32_t V = device->options.vocab_count, runs = ceil_div(V, RUN);
    assert(first + count <= device->options.sample_max);
    for (int32_t i = 0; i < count; i += SAMPLE_ROWS) {
        int32_t rows = count - i < SAMPLE_ROWS ? count - i : (int32_t)SAMPLE_ROWS;
        int32_t span = span_of(device, runs, rows);
        struct launch_shape shape = {dim3((uint32_t)ceil_div(runs, span * WARPS), (uint32_t)rows),
                                     dim3(THREADS), 0};
        launch(device, __func__, sample_kernel, shape, device->sample, device->drawn,
               logits + (int64_t)i * V, device->step, device->slots, V, first + i, span);
    }
}
