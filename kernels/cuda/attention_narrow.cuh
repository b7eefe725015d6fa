/* A narrow item: 16 query rows, four warps, one partial or all of them.
 *
 * Each warp makes the scores of 16 of a tile's 64 positions; maxima and weights go through shared
 * memory, and each warp makes a quarter of the output's columns over all 64. Tiles come in a ring
 * of STAGES. When the item is one of several, its result goes to its slot, and the one that comes
 * last folds all in their order.
 */
#ifndef KERNELS_CUDA_ATTENTION_NARROW_CUH
#define KERNELS_CUDA_ATTENTION_NARROW_CUH

#include "kernels/cuda/attention_body.cuh"

enum { NARROW_WARPS = 4, NARROW_THREADS = NARROW_WARPS * WARP };

/* Shared memory of one item's warps. */
template <int C, int STAGES> struct narrow_shared {
    alignas(1024) uint8_t stage[STAGES][2 * tile_layout<C>::BYTES];
    uint4 weight[KV_TILE / 16][WARP]; /* A operands of P */
    int64_t offset[STAGES][KV_TILE];
    float maximum[NARROW_WARPS][NARROW_ROWS];
    float sum[NARROW_WARPS][NARROW_ROWS];
    int32_t next; /* item */
    bool last;
};

/* What a thread holds of a tile of rows: rows g and g + 8, columns of its warp. */
template <int C> struct narrow_state {
    static constexpr int32_t COLUMNS = (C / 8 + NARROW_WARPS - 1) / NARROW_WARPS;
    float value[COLUMNS][4]; /* of this partial */
    float total[COLUMNS][4]; /* of those before it */
    struct running row[2];
    float sum[2]; /* this thread's positions of this partial */
    struct row_total before[2];
};

/* The warps of one item wait for each other. */
__device__ static inline void group_sync(int32_t group)
{
    asm volatile("bar.sync %0, %1;" ::"r"(group + 1), "n"((int)NARROW_THREADS) : "memory");
}

template <int C>
__device__ static inline void
narrow_scores(float (&score)[2][4], const uint32_t (&query)[C / 16][4], uint32_t keys, int32_t warp)
{
    int32_t lane = threadIdx.x % WARP;
    int32_t r = warp * 16 + lane / 16 * 8 + lane % 8;
#pragma unroll
    for (int32_t k = 0; k < C / 16; k++) {
        uint32_t b[4];
        load_matrices(b, keys + tile_layout<C>::at(r, 2 * k + lane / 8 % 2));
        mma(score[0], query[k], b[0], b[1]);
        mma(score[1], query[k], b[2], b[3]);
    }
}

/* Cap, mask, maximum of the warp's positions for rows g and g + 8. */
__device__ static inline void narrow_mask(float (&score)[2][4], float (&maximum)[2],
                                          const struct attention_args &args,
                                          const struct query_row (&row)[2], int32_t position)
{
#pragma unroll
    for (int32_t i = 0; i < 2; i++) {
        maximum[i] = -CUDART_INF_F;
#pragma unroll
        for (int32_t j = 0; j < 4; j++) {
            float &own = score[j / 2][2 * i + j % 2];
            int32_t at = position + j / 2 * 8 + j % 2;
            own = at >= row[i].low && at <= row[i].high ? capped(own, args) : -CUDART_INF_F;
            maximum[i] = fmaxf(maximum[i], own);
        }
        maximum[i] = quad_max(maximum[i]);
    }
}

template <int C>
__device__ static inline void narrow_values(narrow_state<C> &state, const uint4 (*weight)[WARP],
                                            uint32_t values, int32_t warp)
{
    int32_t lane = threadIdx.x % WARP;
    uint32_t p[KV_TILE / 16][4];
#pragma unroll
    for (int32_t k = 0; k < KV_TILE / 16; k++) {
        uint4 own = weight[k][lane];
        p[k][0] = own.x, p[k][1] = own.y, p[k][2] = own.z, p[k][3] = own.w;
    }
#pragma unroll
    for (int32_t n = 0; n < narrow_state<C>::COLUMNS; n++) {
        int32_t chunk = warp + n * NARROW_WARPS;
        if (C / 8 % NARROW_WARPS != 0 && chunk >= C / 8)
            break;
#pragma unroll
        for (int32_t i = 0; i < 4; i++)
            state.value[n][i] = __fmul_rn(state.value[n][i], state.row[i / 2].factor);
#pragma unroll
        for (int32_t k = 0; k < KV_TILE / 16; k += 2) {
            uint32_t b[4];
            load_matrices_turned(b, values + tile_layout<C>::at(k * 16 + lane, chunk));
            mma(state.value[n], p[k], b[0], b[1]);
            mma(state.value[n], p[k + 1], b[2], b[3]);
        }
    }
}

/* One tile of keys and values. */
template <int C, int STAGES>
__device__ static inline void
narrow_tile(narrow_state<C> &state, narrow_shared<C, STAGES> &shared,
            const struct attention_call &call, const uint32_t (&query)[C / 16][4],
            const struct query_row (&row)[2], int32_t position, int32_t stage)
{
    int32_t thread = threadIdx.x % NARROW_THREADS, warp = thread / WARP, lane = thread % WARP;
    int32_t group = threadIdx.x / NARROW_THREADS, g = lane / 4;
    uint32_t keys = (uint32_t)__cvta_generic_to_shared(shared.stage[stage]);
    float score[2][4] = {}, maximum[2];

    narrow_scores<C>(score, query, keys, warp);
    narrow_mask(score, maximum, call.args, row, position + warp * 16 + lane % 4 * 2);
    if (lane % 4 == 0) {
        shared.maximum[warp][g] = maximum[0];
        shared.maximum[warp][g + 8] = maximum[1];
    }
    group_sync(group);
    uint32_t packed[4];
#pragma unroll
    for (int32_t i = 0; i < 2; i++) {
        float most = shared.maximum[0][g + 8 * i];
        for (int32_t w = 1; w < NARROW_WARPS; w++)
            most = fmaxf(most, shared.maximum[w][g + 8 * i]);
        advance(state.row[i], most, call.scale);
        float weight[4];
#pragma unroll
        for (int32_t j = 0; j < 4; j++)
            weight[j] = weight_of(score[j / 2][2 * i + j % 2], call.scale, state.row[i].base);
        float sum = __fadd_rn(__fadd_rn(__fadd_rn(weight[0], weight[1]), weight[2]), weight[3]);
        state.sum[i] = __fmaf_rn(state.sum[i], state.row[i].factor, sum);
        packed[i] = pack_half(weight[0], weight[1]);
        packed[i + 2] = pack_half(weight[2], weight[3]);
    }
    shared.weight[warp][lane] = {packed[0], packed[1], packed[2], packed[3]};
    group_sync(group);
    narrow_values<C>(state, shared.weight, keys + tile_layout<C>::BYTES, warp);
}

template <int C> __device__ static inline void narrow_clear(narrow_state<C> &state)
{
    for (int32_t i = 0; i < 2; i++) {
        state.row[i].maximum = -CUDART_INF_F;
        state.sum[i] = 0.0f;
    }
#pragma unroll
    for (int32_t n = 0; n < narrow_state<C>::COLUMNS; n++)
        for (int32_t i = 0; i < 4; i++)
            state.value[n][i] = 0.0f;
}

/* The whole sums of this partial for rows g and g + 8, in every thread. */
template <int C, int STAGES>
__device__ static inline void narrow_sums(float (&sum)[2], const narrow_state<C> &state,
                                          narrow_shared<C, STAGES> &shared)
{
    int32_t thread = threadIdx.x % NARROW_THREADS, warp = thread / WARP, lane = thread % WARP;
    int32_t group = threadIdx.x / NARROW_THREADS, g = lane / 4;
    for (int32_t i = 0; i < 2; i++) {
        float own = quad_sum(state.sum[i]);
        if (lane % 4 == 0)
            shared.sum[warp][g + 8 * i] = own;
    }
    group_sync(group);
    for (int32_t i = 0; i < 2; i++) {
        sum[i] = shared.sum[0][g + 8 * i];
        for (int32_t w = 1; w < NARROW_WARPS; w++)
            sum[i] = __fadd_rn(sum[i], shared.sum[w][g + 8 * i]);
    }
    group_sync(group);
}

/* Folds the partial into those before it and begins the next. */
template <int C, int STAGES>
__device__ static inline void narrow_close(narrow_state<C> &state, narrow_shared<C, STAGES> &shared)
{
    float sum[2];
    narrow_sums<C, STAGES>(sum, state, shared);
    for (int32_t i = 0; i < 2; i++) {
        float2 factor = partial_factors(state.before[i].maximum, state.row[i].maximum);
        state.before[i].sum = partial_fold(state.before[i].sum, sum[i], factor);
#pragma unroll
        for (int32_t n = 0; n < narrow_state<C>::COLUMNS; n++)
            for (int32_t j = 0; j < 2; j++)
                state.total[n][2 * i + j] =
                    partial_fold(state.total[n][2 * i + j], state.value[n][2 * i + j], factor);
    }
    narrow_clear<C>(state);
}

/* Starts the copies of an item's first tiles. */
template <int C, int STAGES>
__device__ static inline void narrow_begin(narrow_shared<C, STAGES> &shared,
                                           const struct attention_call &call,
                                           const struct attention_tile &tile)
{
    int32_t thread = threadIdx.x % NARROW_THREADS, group = threadIdx.x / NARROW_THREADS;
    int32_t first = tile.begin / KV_TILE, count = (tile.end - 1) / KV_TILE + 1 - first;
    uint32_t stages = (uint32_t)__cvta_generic_to_shared(shared.stage[0]);

    for (int32_t i = thread; i < STAGES * KV_TILE; i += NARROW_THREADS)
        shared.offset[i / KV_TILE][i % KV_TILE] = key_offset(call, tile, first * KV_TILE + i);
    group_sync(group);
    for (int32_t i = 0; i < STAGES - 1; i++) {
        if (i < count)
            load_tile<C, NARROW_THREADS>(stages + i * 2 * tile_layout<C>::BYTES, shared.offset[i],
                                         call.layer);
        copy_commit();
    }
}

/* Goes through tile.begin .. tile.end, whose first tiles are on their way; the last partial is
 * left open. */
template <int C, int STAGES>
__device__ static inline void narrow_walk(narrow_state<C> &state, narrow_shared<C, STAGES> &shared,
                                          const struct attention_call &call,
                                          const struct attention_tile &tile,
                                          const struct query_row (&row)[2])
{
    int32_t thread = threadIdx.x % NARROW_THREADS, group = threadIdx.x / NARROW_THREADS;
    int32_t first = tile.begin / KV_TILE, count = (tile.end - 1) / KV_TILE + 1 - first;
    uint32_t stages = (uint32_t)__cvta_generic_to_shared(shared.stage[0]);
    constexpr uint32_t STAGE_BYTES = 2 * tile_layout<C>::BYTES;
    uint32_t query[C / 16][4];
#pragma unroll
    for (int32_t k = 0; k < C / 16; k++)
        query_step(query[k], row, k);

    for (int32_t i = 0; i < count; i++) {
        int32_t position = (first + i) * KV_TILE, stage = i % STAGES;
        int32_t coming = (i + STAGES - 1) % STAGES;
        copy_wait<STAGES - 2>();
        group_sync(group);
        if (i + STAGES - 1 < count)
            load_tile<C, NARROW_THREADS>(stages + coming * STAGE_BYTES, shared.offset[coming],
                                         call.layer);
        copy_commit();
        int64_t offset =
            thread < KV_TILE ? key_offset(call, tile, position + STAGES * KV_TILE + thread) : 0;
        if (i > 0 && position % call.work.partial_tokens == 0)
            narrow_close<C, STAGES>(state, shared);
        narrow_tile<C, STAGES>(state, shared, call, query, row, position, stage);
        if (thread < KV_TILE) /* by now it has come */
            shared.offset[stage][thread] = offset;
    }
}

/* All partials in one item: the output. */
template <int C, int STAGES>
__device__ static inline void
narrow_finish(narrow_state<C> &state, narrow_shared<C, STAGES> &shared,
              const struct attention_call &call, const struct query_row (&row)[2])
{
    int32_t thread = threadIdx.x % NARROW_THREADS, warp = thread / WARP, lane = thread % WARP;
    narrow_close<C, STAGES>(state, shared);
    for (int32_t i = 0; i < 2; i++) {
        if (row[i].query == NULL)
            continue;
        const float *sinks = call.args.sinks;
        float factor = with_sink(state.before[i], sinks == NULL ? NULL : sinks + row[i].head);
#pragma unroll
        for (int32_t n = 0; n < narrow_state<C>::COLUMNS; n++) {
            int32_t chunk = warp + n * NARROW_WARPS;
            if (C / 8 % NARROW_WARPS != 0 && chunk >= C / 8)
                break;
            *(uint32_t *)(row[i].out + chunk * 8 + lane % 4 * 2) =
                pack_bf16(quotient(state.total[n][2 * i], factor, state.before[i].sum),
                          quotient(state.total[n][2 * i + 1], factor, state.before[i].sum));
        }
    }
}

/* One partial of several: to its slot. [K, NARROW_ROWS, C + 2] */
template <int C, int STAGES>
__device__ static inline void narrow_put(const narrow_state<C> &state,
                                         narrow_shared<C, STAGES> &shared, float *slot,
                                         const struct query_row (&row)[2])
{
    int32_t thread = threadIdx.x % NARROW_THREADS, warp = thread / WARP, lane = thread % WARP;
    float sum[2];
    narrow_sums<C, STAGES>(sum, state, shared);
    for (int32_t i = 0; i < 2; i++) {
        if (row[i].query == NULL)
            continue;
        float *target = slot + (lane / 4 + 8 * i) * (C + 2);
#pragma unroll
        for (int32_t n = 0; n < narrow_state<C>::COLUMNS; n++) {
            int32_t chunk = warp + n * NARROW_WARPS;
            if (C / 8 % NARROW_WARPS != 0 && chunk >= C / 8)
                break;
            __stcg((float2 *)(target + chunk * 8 + lane % 4 * 2),
                   make_float2(state.value[n][2 * i], state.value[n][2 * i + 1]));
        }
        if (warp == 0 && lane % 4 == 0)
            __stcg((float2 *)(target + C), make_float2(state.row[i].maximum, sum[i]));
    }
}

/* Folds `count` partials in their order, the first at `slot`, and puts out the rows. */
template <int C>
__device__ static inline void narrow_merge(const struct attention_call &call,
                                           const struct attention_tile &tile, const float *slot,
                                           int64_t slot_stride, int32_t count)
{
    int32_t thread = threadIdx.x % NARROW_THREADS;
    for (int32_t i = thread; i < tile.count * (C / 2); i += NARROW_THREADS) {
        int32_t r = i / (C / 2), column = i % (C / 2) * 2;
        struct query_row row = row_of(call, tile, r);
        struct row_total total = {-CUDART_INF_F, 0.0f};
        float2 value = {0.0f, 0.0f};
        const float *source = slot + r * (C + 2);
#pragma unroll 4
        for (int32_t p = 0; p < count; p++, source += slot_stride) {
            float2 partial = __ldcg((const float2 *)(source + column));
            float2 state = __ldcg((const float2 *)(source + C));
            float2 factor = partial_factors(total.maximum, state.x);
            total.sum = partial_fold(total.sum, state.y, factor);
            value.x = partial_fold(value.x, partial.x, factor);
            value.y = partial_fold(value.y, partial.y, factor);
        }
        const float *sinks = call.args.sinks;
        float factor = with_sink(total, sinks == NULL ? NULL : sinks + row.head);
        *(uint32_t *)(row.out + column) =
            pack_bf16(quotient(value.x, factor, total.sum), quotient(value.y, factor, total.sum));
    }
}

/* True in all threads when this partial is the last of `count` to be there. */
template <int C, int STAGES>
__device__ static inline bool narrow_arrive(narrow_shared<C, STAGES> &shared, int32_t *arrived,
                                            int32_t count)
{
    int32_t group = threadIdx.x / NARROW_THREADS;
    group_sync(group);
    if (threadIdx.x % NARROW_THREADS == 0) {
        __threadfence(); /* for all that the barrier has seen */
        shared.last = atomicAdd(arrived, 1) == count - 1;
        if (shared.last)
            *arrived = 0; /* for the next launch */
        __threadfence();
    }
    group_sync(group);
    return shared.last;
}

template <int C> __device__ static inline void narrow_start(narrow_state<C> &state)
{
    narrow_clear<C>(state);
    for (int32_t i = 0; i < 2; i++)
        state.before[i] = {-CUDART_INF_F, 0.0f};
#pragma unroll
    for (int32_t n = 0; n < narrow_state<C>::COLUMNS; n++)
        for (int32_t i = 0; i < 4; i++)
            state.total[n][i] = 0.0f;
}

/* What an item gave goes out, or to its slot. */
template <int C, int STAGES>
__device__ static inline void narrow_end(narrow_state<C> &state, narrow_shared<C, STAGES> &shared,
                                         const struct attention_call &call,
                                         const struct attention_tile &tile,
                                         const struct query_row (&row)[2])
{
    const struct attention_item &item = tile.item;
    if (item.partial < 0) {
        narrow_finish<C, STAGES>(state, shared, call, row);
        return;
    }
    int32_t K = call.args.kv_head_count;
    int32_t first = tile.low / call.work.partial_tokens;
    int32_t count = tile.high / call.work.partial_tokens + 1 - first;
    int64_t head_stride = NARROW_ROWS * (C + 2), slot_stride = K * head_stride;
    float *head = call.work.partial + tile.kv_head * head_stride;
    narrow_put<C, STAGES>(state, shared, head + (item.slot + item.partial) * slot_stride, row);
    int32_t *arrived = call.work.arrived + item.arrival * K + tile.kv_head;
    if (narrow_arrive<C, STAGES>(shared, arrived, count))
        narrow_merge<C>(call, tile, head + (item.slot + first) * slot_stride, slot_stride, count);
}

/* Works on items until there are none. The next one's copies start before this one's result goes
 * out; which it is is known one item earlier still. */
template <int C, int STAGES>
__device__ static inline void narrow_items(narrow_shared<C, STAGES> &shared,
                                           const struct attention_call &call, int32_t index,
                                           int32_t places)
{
    int32_t group = threadIdx.x / NARROW_THREADS, lane = threadIdx.x % WARP;
    int32_t heads = call.args.kv_head_count, count = call.work.plan->narrow_count * heads;
    bool leads = threadIdx.x % NARROW_THREADS == 0;
    if (index >= count)
        return;
    if (leads)
        shared.next = places + atomicAdd(&call.work.ticket[1], 1);
    struct attention_tile tile =
        tile_of(call, call.work.narrow[index / heads], index % heads, NARROW_ROWS);
    narrow_begin<C, STAGES>(shared, call, tile);
    for (;;) {
        index = shared.next;
        struct attention_item following = call.work.narrow[min(index, count - 1) / heads];
        int32_t ticket = leads ? atomicAdd(&call.work.ticket[1], 1) : 0;
        struct query_row row[2] = {row_of(call, tile, lane / 4), row_of(call, tile, lane / 4 + 8)};
        struct attention_tile next = tile_of(call, following, index % heads, NARROW_ROWS);
        narrow_state<C> state;
        narrow_start<C>(state);
        narrow_walk<C, STAGES>(state, shared, call, tile, row);
        copy_wait<0>();
        group_sync(group); /* the stages are free */
        if (leads)
            shared.next = places + ticket;
        if (index < count)
            narrow_begin<C, STAGES>(shared, call, next);
        narrow_end<C, STAGES>(state, shared, call, tile, row);
        if (index >= count)
            return;
        tile = next;
        group_sync(group);
    }
}

#endif
