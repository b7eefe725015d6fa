/* Choosing among the logits of one sample, by one block, when the sums of its runs are there.
 *
 * The fast way needs few runs: a floor that enough tokens reach is made of the runs' maxima; what
 * reaches it is collected, sorted, cut, and drawn from. Where that does not fit the list, or is
 * not enough, the far way cuts by histograms over all that may be kept, level by level. Both find
 * the same kept tokens and add the same integers, so both draw the same.
 */
#ifndef KERNELS_CUDA_SAMPLE_PICK_CUH
#define KERNELS_CUDA_SAMPLE_PICK_CUH

#include "kernels/cuda/sample.cuh"

enum { GUESS_RUNS = 64 }; /* whose maxima make the first floor for a mass */

/* What is kept: of the tokens that reach `floor` the `count` likeliest, and of these the ones
 * with less than `share` of the mass before them. */
struct limits {
    float floor;
    int32_t count;
    float share;
    bool whole;     /* neither floor nor count drops any: the mass is `total` */
    uint64_t total; /* of all, where that is so and share is below 1 */
    double u;       /* what is drawn with */
};

/* ---- collecting ---- */

/* How many of all threads' orders reach order + step, order + 2 step and order + 3 step, in ten
 * bits each; `turn` alternates from call to call. */
__device__ static inline uint32_t count_from(struct pick *pick,
                                             const uint32_t (&own)[FLOOR_RUNS / THREADS],
                                             uint32_t order, uint32_t step, int32_t turn)
{
    uint32_t count = 0;
#pragma unroll
    for (int32_t i = 0; i < FLOOR_RUNS / THREADS; i++) {
        count += own[i] >= order + step ? 1u : 0u;
        count += own[i] >= order + 2 * step ? 1u << 10 : 0u;
        count += own[i] >= order + 3 * step ? 1u << 20 : 0u;
    }
    count = __reduce_add_sync(0xffffffffu, count);
    if (lane_of() == 0)
        pick->tally[turn][warp_of()] = count;
    __syncthreads();
    count = 0;
    for (int32_t i = 0; i < WARPS; i++)
        count += pick->tally[turn][i];
    return count;
}

/* A value that `count` tokens reach: a little below the count-th largest maximum of a run. The
 * least one where the runs are too few. */
__device__ static float floor_of_count(struct pick *pick, const struct source &source,
                                       int32_t count)
{
    int32_t runs = min(source.run_count, (int32_t)FLOOR_RUNS);
    uint32_t own[FLOOR_RUNS / THREADS], order = 0;
    static_assert(FLOOR_RUNS < 1024, "ten bits");
    if (count > runs)
        return -FLT_MAX;
#pragma unroll
    for (int32_t i = 0; i < FLOOR_RUNS / THREADS; i++) {
        int32_t run = (int32_t)threadIdx.x + i * THREADS;
        own[i] = run < runs ? order_of(source.sum[run].max) : 0;
    }
    for (int32_t shift = 30; shift > 30 - FLOOR_BITS; shift -= 2) {
        uint32_t step = 1u << shift, reached = count_from(pick, own, order, step, shift / 2 % 2);
        for (int32_t i = 0; i < 3; i++)
            order += (int32_t)(reached >> 10 * i & 1023) >= count ? step : 0;
    }
    return value_of(max(order, order_of(-FLT_MAX)));
}

__device__ static inline void list_key(struct pick *pick, uint64_t key, uint64_t low, uint64_t high)
{
    if (key < low || key > high)
        return;
    int32_t place = atomicAdd(&pick->list_count, 1);
    if (place < LIST_MAX)
        pick->list[place] = key;
}

/* Lists the keys from `low` to `high`, in any order; how many there are. More than LIST_MAX are
 * not all counted. */
__device__ static int32_t collect(struct pick *pick, const struct source &source, uint64_t low,
                                  uint64_t high)
{
    float floor = key_value(low), x[LANE_VALUES], ahead[LANE_VALUES];
    __syncthreads();
    if (threadIdx.x == 0)
        pick->list_count = 0;
    for (int32_t first = 0; first < source.run_count; first += STRIP) {
        make_active(pick, source, first, floor);
        for (int32_t i = warp_of(); i < pick->active_count; i += WARPS) {
            int32_t run = take(x, ahead, pick, source, first, i);
#pragma unroll
            for (int32_t j = 0; j < LANE_VALUES; j++)
                if (x[j] >= floor)
                    list_key(pick, key_of(x[j], token_of(run, j)), low, high);
            int32_t listed = lane_of() == 0 ? atomicAdd(&pick->list_count, 0) : 0;
            if (__shfl_sync(0xffffffffu, listed, 0) > LIST_MAX)
                break;
        }
    }
    __syncthreads();
    return pick->list_count;
}

/* One step of the sort: pairs that are `apart`, in blocks of `block` that alternate. */
__device__ static inline void sort_pairs(uint64_t *list, int32_t size, int32_t block, int32_t apart)
{
    for (int32_t i = threadIdx.x; i < size / 2; i += THREADS) {
        int32_t left = 2 * i - (i & (apart - 1)), right = left + apart;
        uint64_t a = list[left], b = list[right];
        bool descending = (left & block) == 0;
        if (descending == (a < b)) {
            list[left] = b;
            list[right] = a;
        }
    }
}

/* A key a thread: its place is the number of greater ones. */
__device__ static void sort_few(uint64_t *list, int32_t count)
{
    int32_t thread = (int32_t)threadIdx.x, place = 0;
    uint64_t own = 0;
    if (thread < count) {
        own = list[thread];
        for (int32_t i = 0; i < count; i++)
            place += list[i] > own ? 1 : 0;
    }
    __syncthreads();
    if (thread < count)
        list[place] = own;
}

/* A bitonic network. Where pairs are not more than a warp apart, a warp's pairs are its own from
 * step to step. */
__device__ static void sort_many(uint64_t *list, int32_t count)
{
    int32_t size = 2;
    while (size < count)
        size *= 2;
    for (int32_t i = count + (int32_t)threadIdx.x; i < size; i += THREADS)
        list[i] = 0;
    __syncthreads();
    for (int32_t block = 2; block <= size; block *= 2) {
        for (int32_t apart = block / 2; apart > 0; apart /= 2) {
            sort_pairs(list, size, block, apart);
            if (apart > WARP || (apart == 1 && block > WARP))
                __syncthreads();
            else
                __syncwarp();
        }
    }
}

/* Sorts the list, greatest first. */
__device__ static void sort(struct pick *pick, int32_t count)
{
    __syncthreads();
    if (count <= THREADS)
        sort_few(pick->list, count);
    else
        sort_many(pick->list, count);
    __syncthreads();
}

/* ---- drawing ---- */

/* The first token of a run at which the running mass exceeds `goal`: of keys from `least` on, in
 * `unit`s of weights relative to `max`. Where rounding leaves none, the last that has a mass. */
__device__ static int32_t draw_in_run(struct pick *pick, const struct source &source, int32_t run,
                                      uint64_t goal, uint64_t least, float max, double unit)
{
    if (warp_of() == 0) {
        float x[LANE_VALUES];
        uint64_t before = 0;
        int32_t found = INT32_MAX, last = 0;
        fetch(x, source, run);
        settle(x);
        if (source.changed)
            change(x, source, run);
#pragma unroll
        for (int32_t j = 0; j < QUADS; j++) {
            uint64_t mass[4], own = 0, sum;
            for (int32_t i = 0; i < 4; i++) {
                float value = x[4 * j + i];
                bool kept = key_of(value, token_of(run, 4 * j + i)) >= least;
                double weight = (double)weight_of(value - max, source.heat);
                mass[i] = kept ? __double2ull_rn(weight * unit) : 0;
                own += mass[i];
            }
            sum = own;
            for (int32_t offset = 1; offset < WARP; offset *= 2) {
                uint64_t other = __shfl_up_sync(0xffffffffu, sum, offset);
                sum += lane_of() >= offset ? other : 0;
            }
            uint64_t running = before + sum - own;
            for (int32_t i = 0; i < 4; i++) {
                running += mass[i];
                last = mass[i] > 0 ? token_of(run, 4 * j + i) : last;
                if (running > goal)
                    found = min(found, token_of(run, 4 * j + i));
            }
            before += __shfl_sync(0xffffffffu, sum, WARP - 1);
        }
        found = __reduce_min_sync(0xffffffffu, found);
        last = __reduce_max_sync(0xffffffffu, last);
        if (lane_of() == 0)
            pick->found = found < INT32_MAX ? found : last;
    }
    __syncthreads();
    return pick->found;
}

/* Nothing is cut off: the run by the runs' masses, then within it. */
__device__ static int32_t draw_whole(struct pick *pick, const struct source &source, double u)
{
    int32_t span = (source.run_count + THREADS - 1) / THREADS;
    int32_t first = min((int32_t)threadIdx.x * span, source.run_count);
    int32_t end = min(first + span, source.run_count);
    uint64_t own = 0, total;
    for (int32_t run = first; run < end; run++) {
        struct run_sum sum = sum_of(source, run);
        own += __double2ull_rn((double)sum.mass * run_unit(sum.max, source));
    }
    uint64_t before = scan(pick, own, &total), goal = goal_of(u, total);
    bool mine = before <= goal && goal < before + own;
    for (int32_t run = first; mine && run < end; run++) {
        struct run_sum sum = sum_of(source, run);
        uint64_t mass = __double2ull_rn((double)sum.mass * run_unit(sum.max, source));
        if (goal - before < mass) {
            pick->found = run;
            pick->found_mass = goal - before;
            break;
        }
        before += mass;
    }
    __syncthreads();
    int32_t run = pick->found;
    uint64_t rest = pick->found_mass;
    float max = source.sum[run].max;
    __syncthreads();
    return draw_in_run(pick, source, run, rest, 0, max, run_unit(max, source));
}

/* Draws among the first `count` of the sorted list, by ascending id. */
__device__ static int32_t draw_listed(struct pick *pick, const struct source &source, int32_t count,
                                      double u)
{
    __syncthreads();
    for (int32_t i = threadIdx.x; i < count; i += THREADS) /* ~id above the value */
        pick->list[i] = pick->list[i] << 32 | pick->list[i] >> 32;
    sort(pick, count);
    int32_t span = (count + THREADS - 1) / THREADS;
    int32_t first = min((int32_t)threadIdx.x * span, count), end = min(first + span, count);
    uint64_t own = 0, total;
    for (int32_t i = first; i < end; i++)
        own += mass_of(value_of((uint32_t)pick->list[i]), source);
    uint64_t before = scan(pick, own, &total), goal = goal_of(u, total);
    bool mine = before <= goal && goal < before + own;
    for (int32_t i = first; mine && i < end; i++) {
        before += mass_of(value_of((uint32_t)pick->list[i]), source);
        if (before > goal) {
            pick->found = (int32_t) ~(uint32_t)(pick->list[i] >> 32);
            break;
        }
    }
    __syncthreads();
    return pick->found;
}

/* Least mass that may not be before a token that is kept. */
__device__ static inline uint64_t mass_limit(float share, uint64_t total)
{
    return (uint64_t)ceil((double)share * (double)total);
}

/* How many of the first `count` of the sorted list are kept, or -1 where the list does not show
 * it: `complete` when nothing that may be kept is missing. */
__device__ static int32_t cut_listed(struct pick *pick, const struct source &source,
                                     const struct limits &limits, int32_t count, bool complete)
{
    int32_t span = (count + THREADS - 1) / THREADS;
    int32_t first = min((int32_t)threadIdx.x * span, count), end = min(first + span, count);
    uint64_t own = 0, mass, kept = 0, all;
    for (int32_t i = first; i < end; i++)
        own += mass_of(key_value(pick->list[i]), source);
    uint64_t before = scan(pick, own, &mass);
    uint64_t limit = mass_limit(limits.share, limits.whole ? limits.total : mass);
    if (mass < limit && !complete)
        return -1;
    for (int32_t i = first; i < end && before < limit; i++) {
        before += mass_of(key_value(pick->list[i]), source);
        kept++;
    }
    (void)scan(pick, kept, &all);
    return (int32_t)all;
}

/* The fast way; -1 where it does not do. */
__device__ static int32_t draw_above(struct pick *pick, const struct source &source,
                                     const struct limits &limits, float floor)
{
    bool complete = floor <= limits.floor;
    int32_t count = collect(pick, source, key_from(fmaxf(floor, limits.floor)), UINT64_MAX);
    if (count > LIST_MAX || (count < limits.count && !complete && !limits.whole))
        return -1;
    sort(pick, count);
    count = min(count, limits.count);
    if (limits.share < 1.0f)
        count = cut_listed(pick, source, limits, count, complete);
    return count < 0 ? -1 : draw_listed(pick, source, count, limits.u);
}

/* ---- the far way ---- */

/* Where a cut is looked for. The first bins are of equal width in values, those of the levels
 * below in keys; either way a higher bin has lower keys only. */
struct range {
    uint64_t low, high; /* keys, both within */
    float max, scale;   /* of the first level */
    int32_t shift;      /* of the others; -1: the first */
};

struct bin {
    int32_t index;   /* -1: the limit is not reached */
    uint64_t before; /* of what is asked for, in higher keys */
};

/* Added to 2^23, a number is rounded to an integer in the low bits. */
__device__ static inline int32_t value_bin(const struct range &range, float value)
{
    float place = fminf((range.max - value) * range.scale, (float)(BINS - 1));
    return __float_as_int(__fadd_rn(place, 8388608.0f)) & (BINS - 1);
}

__device__ static inline int32_t key_bin(const struct range &range, uint64_t key)
{
    return range.shift < 0 ? value_bin(range, key_value(key))
                           : (int32_t)((range.high - key) >> range.shift);
}

__device__ static inline void fill_bin(struct pick *pick, const struct source &source,
                                       const struct range &range, float value, int32_t token,
                                       bool counts)
{
    uint64_t key = key_of(value, token);
    if (key < range.low || key > range.high)
        return;
    uint64_t *bin = &pick->bin[key_bin(range, key)];
    if (counts)
        atomicAdd((uint32_t *)bin, 1);
    else
        add_mass(bin, mass_of(value, source));
}

/* Fills the bins of a range with what is asked for. */
__device__ static void fill_bins(struct pick *pick, const struct source &source,
                                 const struct range &range, bool counts)
{
    float floor = key_value(range.low), x[LANE_VALUES], ahead[LANE_VALUES];
    __syncthreads();
    for (int32_t i = threadIdx.x; i < BINS; i += THREADS)
        pick->bin[i] = 0;
    for (int32_t first = 0; first < source.run_count; first += STRIP) {
        make_active(pick, source, first, floor);
        for (int32_t i = warp_of(); i < pick->active_count; i += WARPS) {
            int32_t run = take(x, ahead, pick, source, first, i);
#pragma unroll
            for (int32_t j = 0; j < LANE_VALUES; j++)
                if (x[j] >= floor)
                    fill_bin(pick, source, range, x[j], token_of(run, j), counts);
        }
    }
    __syncthreads();
}

/* The bin in which the sum reaches `limit`. */
__device__ static struct bin find_bin(struct pick *pick, uint64_t limit)
{
    const int32_t span = BINS / THREADS;
    int32_t first = (int32_t)threadIdx.x * span;
    uint64_t own = 0, total;
    for (int32_t i = first; i < first + span; i++)
        own += pick->bin[i];
    uint64_t before = scan(pick, own, &total);
    for (int32_t i = first; i < first + span && before < limit; i++) {
        uint64_t value = pick->bin[i];
        if (before + value >= limit) {
            pick->found = i;
            pick->found_mass = before;
        }
        before += value;
    }
    __syncthreads();
    struct bin bin = {-1, 0};
    if (total >= limit) {
        bin.index = pick->found;
        bin.before = pick->found_mass;
    }
    __syncthreads();
    return bin;
}

/* The least order of a value whose bin is at most `bin`. */
__device__ static uint32_t least_order(const struct range &range, int32_t bin)
{
    uint32_t low = order_of(-FLT_MAX), high = order_of(range.max);
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (value_bin(range, value_of(middle)) <= bin)
            high = middle;
        else
            low = middle + 1;
    }
    return low;
}

/* The range of one of its bins. */
__device__ static void narrow(struct range *range, int32_t bin)
{
    uint64_t low, high;
    if (range->shift < 0) {
        low = (uint64_t)least_order(*range, bin) << 32;
        high = range->high;
        if (bin > 0)
            high = min(high, ((uint64_t)least_order(*range, bin - 1) << 32) - 1);
    } else {
        high = range->high - ((uint64_t)bin << range->shift);
        low = high - ((1ull << range->shift) - 1);
    }
    range->low = max(range->low, low);
    range->high = high;
    range->shift = max(0, 64 - __clzll((long long)(range->high - range->low)) - 11);
    static_assert(BINS == 1 << 11, "bits of a level");
}

/* The last of the sorted list that has less than `limit` before it; the list reaches the limit. */
__device__ static uint64_t find_listed(struct pick *pick, const struct source &source,
                                       int32_t count, uint64_t limit, bool counts)
{
    int32_t span = (count + THREADS - 1) / THREADS;
    int32_t first = min((int32_t)threadIdx.x * span, count), end = min(first + span, count);
    uint64_t own = 0, total;
    for (int32_t i = first; i < end; i++)
        own += counts ? 1 : mass_of(key_value(pick->list[i]), source);
    uint64_t before = scan(pick, own, &total);
    for (int32_t i = first; i < end && before < limit; i++) {
        before += counts ? 1 : mass_of(key_value(pick->list[i]), source);
        if (before >= limit)
            pick->found = i;
    }
    __syncthreads();
    uint64_t key = pick->list[pick->found];
    __syncthreads();
    return key;
}

/* The least key, from `low` on, such that the mass (or number) above it is below `limit`. */
__device__ static uint64_t least_kept(struct pick *pick, const struct source &source, uint64_t low,
                                      uint64_t limit, bool counts)
{
    struct range range = {low, UINT64_MAX, source.max, 0.0f, -1};
    int32_t count;
    range.scale = (float)BINS / 32.0f * source.heat.high;
    range.high = key_from(source.max) | UINT32_MAX;
    do {
        fill_bins(pick, source, range, counts);
        struct bin bin = find_bin(pick, limit);
        if (bin.index < 0)
            return low;
        limit -= bin.before;
        narrow(&range, bin.index);
        count = collect(pick, source, range.low, range.high);
    } while (count > LIST_MAX);
    sort(pick, count);
    return find_listed(pick, source, count, limit, counts);
}

/* The mass of the keys from `least` on; each run's is written to kept[]. */
__device__ static uint64_t sum_kept(struct pick *pick, const struct source &source, uint64_t least,
                                    uint64_t *kept)
{
    float floor = key_value(least), x[LANE_VALUES], ahead[LANE_VALUES];
    uint64_t own = 0, total;
    for (int32_t run = threadIdx.x; run < source.run_count; run += THREADS)
        kept[run] = 0;
    for (int32_t first = 0; first < source.run_count; first += STRIP) {
        make_active(pick, source, first, floor);
        for (int32_t i = warp_of(); i < pick->active_count; i += WARPS) {
            int32_t run = take(x, ahead, pick, source, first, i);
            uint64_t mass = 0;
#pragma unroll
            for (int32_t j = 0; j < LANE_VALUES; j++)
                if (key_of(x[j], token_of(run, j)) >= least)
                    mass += mass_of(x[j], source);
            for (int32_t offset = WARP / 2; offset > 0; offset /= 2)
                mass += __shfl_xor_sync(0xffffffffu, mass, offset);
            if (lane_of() == 0) {
                kept[run] = mass;
                own += mass;
            }
        }
    }
    (void)scan(pick, own, &total);
    return total;
}

/* The run in which the draw falls, by the masses of kept[], then within it. */
__device__ static int32_t draw_kept(struct pick *pick, const struct source &source, uint64_t least,
                                    const uint64_t *kept, double u)
{
    int32_t span = (source.run_count + THREADS - 1) / THREADS;
    int32_t first = min((int32_t)threadIdx.x * span, source.run_count);
    int32_t end = min(first + span, source.run_count);
    uint64_t own = 0, total;
    for (int32_t run = first; run < end; run++)
        own += kept[run];
    uint64_t before = scan(pick, own, &total), goal = goal_of(u, total);
    bool mine = before <= goal && goal < before + own;
    for (int32_t run = first; mine && run < end; run++) {
        if (goal - before < kept[run]) {
            pick->found = run;
            pick->found_mass = goal - before;
            break;
        }
        before += kept[run];
    }
    __syncthreads();
    int32_t run = pick->found;
    uint64_t rest = pick->found_mass;
    __syncthreads();
    return draw_in_run(pick, source, run, rest, least, source.max, (double)(1ull << MASS_BITS));
}

__device__ static int32_t draw_far(struct pick *pick, const struct source &source,
                                   const struct limits &limits, uint64_t *kept)
{
    uint64_t least = key_from(limits.floor);
    if (limits.count < source.V)
        least = least_kept(pick, source, least, (uint64_t)limits.count, true);
    if (limits.share < 1.0f) {
        uint64_t mass = limits.whole ? limits.total : sum_kept(pick, source, least, kept);
        least = least_kept(pick, source, least, mass_limit(limits.share, mass), false);
    }
    (void)sum_kept(pick, source, least, kept);
    return draw_kept(pick, source, least, kept, limits.u);
}

/* ---- one sample ---- */

/* A floor above which tokens have less than the rest of `share` in all. */
__device__ static inline float floor_of_mass(const struct source &source,
                                             const struct limits &limits)
{
    double rest = (1.0 - (double)limits.share) * (double)limits.total / (double)source.V;
    float below = logf((float)(rest / (double)(1ull << MASS_BITS))) - 0.01f;
    return source.max + source.sampling->temperature * below;
}

/* The token of a draw; kept[run_count] is for the far way. */
__device__ static int32_t draw_token(struct pick *pick, struct source *source, int32_t output_index,
                                     uint64_t *kept)
{
    const struct sampling *sampling = source->sampling;
    int32_t top = find_max(pick, source), token;
    if (!(source->max > -INFINITY))
        return 0;
    if (sampling_greedy(sampling))
        return top;
    double u = sampling_uniform(sampling->seed, output_index);
    struct limits limits = {-FLT_MAX,
                            sampling_keep_count(sampling, source->V),
                            sampling->top_p,
                            needs_mass(sampling, source->V),
                            0,
                            u};
    if (limits.whole && !(limits.share < 1.0f))
        return draw_whole(pick, *source, u);

    limits.floor = fmaxf(sampling_floor(sampling, source->max), -FLT_MAX);
    float floor = limits.floor;
    if (limits.whole) {
        limits.total = total_mass(pick, *source);
        floor = floor_of_count(pick, *source, min(source->run_count, (int32_t)GUESS_RUNS));
    } else if (limits.count < source->V) {
        floor = floor_of_count(pick, *source, limits.count);
    }
    token = draw_above(pick, *source, limits, floor);
    if (token < 0 && limits.whole)
        token = draw_above(pick, *source, limits, floor_of_mass(*source, limits));
    return token < 0 ? draw_far(pick, *source, limits, kept) : token;
}

#endif
