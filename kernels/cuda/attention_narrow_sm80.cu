/* Narrow items of attention on any GPU from sm_80 on, and the merges of those that were cut; Hopper
 * has kernels of its own (attention_narrow.cu). Wide items come here too, in tiles of NARROW_ROWS,
 * where a block's shared memory does not hold what attention_wide.cuh needs.
 *
 * Four warps share 16 query rows. Tiles of keys and of values take turns in a ring, by asynchronous
 * copies: each warp makes the scores of 16 of a tile's 64 positions; maxima and weights go through
 * shared memory; then each warp makes a quarter of the output's columns over all 64. An item that
 * has not all partials puts what it has in its slot, and the kernel behind this one folds them.
 */
#include "kernels/cuda/attention_body.cuh"
#include "kernels/cuda/launch.cuh"

#include <assert.h>

enum {
    NARROW_WARPS = 4,
    NARROW_THREADS = NARROW_WARPS * WARP,
    UNIT_RING_BYTES = 48 * 1024, /* two blocks a multiprocessor of sm_89 */
    OFFSET_TILES = 8,            /* of which pages are known, a power of two */
    OFFSET_AHEAD = 4,
    MERGE_BLOCKS = 4, /* a multiprocessor */
};

template <int C> struct sm80_shape {
    static constexpr int32_t UNIT_BYTES = tile_layout<C>::BYTES; /* keys or values of a tile */
    static constexpr int32_t FIT = UNIT_RING_BYTES / UNIT_BYTES;
    static constexpr int32_t UNITS = FIT < 2 ? 2 : FIT > 6 ? 6 : FIT;
    static constexpr int32_t COLUMNS = (C / 8 + NARROW_WARPS - 1) / NARROW_WARPS; /* of a warp */
    static_assert(UNITS / 2 < OFFSET_AHEAD, "pages are known before they are copied");
    /* Its column n, and whether it has one. */
    __device__ static inline int32_t chunk(int32_t n)
    {
        return threadIdx.x / WARP + n * NARROW_WARPS;
    }
    __device__ static inline bool has(int32_t n)
    {
        return C / 8 % NARROW_WARPS == 0 || chunk(n) < C / 8;
    }
};

template <int C> struct sm80_shared {
    alignas(1024) uint8_t unit[sm80_shape<C>::UNITS][sm80_shape<C>::UNIT_BYTES];
    uint4 weight[KV_TILE / 16][WARP]; /* A operands of P */
    int64_t offset[OFFSET_TILES][KV_TILE];
    float maximum[NARROW_WARPS][NARROW_ROWS];
    float sum[NARROW_WARPS][NARROW_ROWS];
};

/* What a thread holds: rows g and g + 8, columns of its warp. */
template <int C> struct sm80_state {
    float value[sm80_shape<C>::COLUMNS][4]; /* of this partial */
    float total[sm80_shape<C>::COLUMNS][4]; /* of those before it */
    struct running row[2];
    float sum[2]; /* this thread's positions of this partial */
    struct row_total before[2];
};

template <int C> __device__ static inline void sm80_clear(sm80_state<C> &state)
{
#pragma unroll
    for (int32_t i = 0; i < 2; i++) {
        state.row[i].maximum = -CUDART_INF_F;
        state.sum[i] = 0.0f;
    }
#pragma unroll
    for (int32_t n = 0; n < sm80_shape<C>::COLUMNS; n++)
#pragma unroll
        for (int32_t i = 0; i < 4; i++)
            state.value[n][i] = 0.0f;
}

template <int C> __device__ static inline void sm80_start(sm80_state<C> &state)
{
    sm80_clear<C>(state);
    for (int32_t i = 0; i < 2; i++)
        state.before[i] = {-CUDART_INF_F, 0.0f};
#pragma unroll
    for (int32_t n = 0; n < sm80_shape<C>::COLUMNS; n++)
#pragma unroll
        for (int32_t i = 0; i < 4; i++)
            state.total[n][i] = 0.0f;
}

/* Scores of the warp's 16 positions. */
template <int C>
__device__ static inline void sm80_scores(float (&score)[2][4], const uint32_t (&query)[C / 16][4],
                                          uint32_t keys)
{
    int32_t lane = threadIdx.x % WARP;
    int32_t r = threadIdx.x / WARP * 16 + lane / 16 * 8 + lane % 8;
#pragma unroll
    for (int32_t k = 0; k < C / 16; k++) {
        uint32_t b[4];
        load_matrices(b, keys + tile_layout<C>::at(r, 2 * k + lane / 8 % 2));
        mma(score[0], query[k], b[0], b[1]);
        mma(score[1], query[k], b[2], b[3]);
    }
}

/* Cap and mask; the maxima of the warp's positions go to shared memory. */
template <int C>
__device__ static inline void sm80_mask(float (&score)[2][4], sm80_shared<C> &shared,
                                        const struct attention_args &args,
                                        const struct query_row (&row)[2], int32_t position)
{
    int32_t warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
#pragma unroll
    for (int32_t i = 0; i < 2; i++) {
        float maximum = narrow_mask<true>(score, args, {row[i].low, row[i].high}, i,
                                          position + warp * 16 + lane % 4 * 2);
        if (lane % 4 == 0)
            shared.maximum[warp][lane / 4 + 8 * i] = maximum;
    }
}

/* All warps' maxima are there: weights go to shared memory, the rows' states go on. */
template <int C>
__device__ static inline void sm80_weigh(sm80_state<C> &state, const float (&score)[2][4],
                                         sm80_shared<C> &shared, float scale)
{
    int32_t warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    uint32_t packed[4];
#pragma unroll
    for (int32_t i = 0; i < 2; i++) {
        int32_t r = lane / 4 + 8 * i;
        float most = shared.maximum[0][r];
#pragma unroll
        for (int32_t w = 1; w < NARROW_WARPS; w++)
            most = fmaxf(most, shared.maximum[w][r]);
        narrow_weigh(state.row[i], state.sum[i], packed, score, most, scale, i);
    }
    shared.weight[warp][lane] = {packed[0], packed[1], packed[2], packed[3]};
}

/* All warps' weights are there. */
template <int C>
__device__ static inline void sm80_values(sm80_state<C> &state, const sm80_shared<C> &shared,
                                          uint32_t values)
{
    int32_t lane = threadIdx.x % WARP;
    uint32_t p[KV_TILE / 16][4];
#pragma unroll
    for (int32_t k = 0; k < KV_TILE / 16; k++) {
        uint4 own = shared.weight[k][lane];
        p[k][0] = own.x, p[k][1] = own.y, p[k][2] = own.z, p[k][3] = own.w;
    }
#pragma unroll
    for (int32_t n = 0; n < sm80_shape<C>::COLUMNS; n++) {
        if (!sm80_shape<C>::has(n))
            break;
#pragma unroll
        for (int32_t i = 0; i < 4; i++)
            state.value[n][i] = __fmul_rn(state.value[n][i], state.row[i / 2].factor);
#pragma unroll
        for (int32_t k = 0; k < KV_TILE / 16; k += 2) {
            uint32_t b[4];
            int32_t chunk = sm80_shape<C>::chunk(n);
            load_matrices_turned(b, values + tile_layout<C>::at(k * 16 + lane, chunk));
            mma(state.value[n], p[k], b[0], b[1]);
            mma(state.value[n], p[k + 1], b[2], b[3]);
        }
    }
}

/* Folds the partial into those before it and begins the next; into nothing it is a copy. */
template <int C>
__device__ static inline void sm80_close(sm80_state<C> &state, sm80_shared<C> &shared)
{
    int32_t warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    for (int32_t i = 0; i < 2; i++) {
        float own = quad_sum(state.sum[i]);
        if (lane % 4 == 0)
            shared.sum[warp][lane / 4 + 8 * i] = own;
    }
    __syncthreads();
    for (int32_t i = 0; i < 2; i++) {
        float sum = shared.sum[0][lane / 4 + 8 * i];
        for (int32_t w = 1; w < NARROW_WARPS; w++)
            sum = __fadd_rn(sum, shared.sum[w][lane / 4 + 8 * i]);
        float2 factor = partial_factors(state.before[i].maximum, state.row[i].maximum);
        state.before[i].sum = partial_fold(state.before[i].sum, sum, factor);
#pragma unroll
        for (int32_t n = 0; n < sm80_shape<C>::COLUMNS; n++)
#pragma unroll
            for (int32_t j = 0; j < 2; j++)
                state.total[n][2 * i + j] =
                    partial_fold(state.total[n][2 * i + j], state.value[n][2 * i + j], factor);
    }
    __syncthreads();
    sm80_clear<C>(state);
}

/* Unit u of an item: the keys of its tile u / 2, or the values. A group of copies in any case. */
template <int C>
__device__ static inline void sm80_load(sm80_shared<C> &shared, const struct kv_layer &layer,
                                        int32_t unit, int32_t tile_count)
{
    using layout = tile_layout<C>;
    uint32_t target = (uint32_t)__cvta_generic_to_shared(shared.unit[unit % sm80_shape<C>::UNITS]);
    const int64_t *offset = shared.offset[unit / 2 % OFFSET_TILES];
    const __half *first = layer.key + (unit % 2 == 0 ? 0 : layer.value_offset);
    if (unit < 2 * tile_count) {
#pragma unroll 4
        for (int32_t i = threadIdx.x; i < KV_TILE * layout::CHUNKS; i += NARROW_THREADS) {
            int32_t r = i / layout::CHUNKS, chunk = i % layout::CHUNKS;
            int64_t at = offset[r];
            copy_async(target + layout::at(r, chunk), first + (at < 0 ? 0 : at + chunk * 8),
                       at < 0 ? 0 : 16);
        }
    }
    copy_commit();
}

/* Goes through tile.begin .. tile.end. */
template <int C>
__device__ static inline void
sm80_walk(sm80_state<C> &state, sm80_shared<C> &shared, const struct attention_call &call,
          const struct attention_tile &tile, const struct query_row (&row)[2])
{
    constexpr int32_t UNITS = sm80_shape<C>::UNITS;
    int32_t thread = threadIdx.x;
    int32_t first = tile.begin / KV_TILE, count = (tile.end - 1) / KV_TILE + 1 - first;
    uint32_t units = (uint32_t)__cvta_generic_to_shared(shared.unit[0]);

    for (int32_t i = thread; i < OFFSET_AHEAD * KV_TILE; i += NARROW_THREADS)
        shared.offset[i / KV_TILE][i % KV_TILE] = key_offset(call, tile, first * KV_TILE + i);
    __syncthreads();
    for (int32_t u = 0; u < UNITS - 1; u++)
        sm80_load<C>(shared, call.layer, u, count);
    uint32_t query[C / 16][4];
#pragma unroll
    for (int32_t k = 0; k < C / 16; k++)
        query_step(query[k], row, k);

#pragma unroll 1
    for (int32_t i = 0; i < count; i++) {
        int32_t position = (first + i) * KV_TILE, ahead = i + OFFSET_AHEAD;
        float score[2][4] = {};
        copy_wait<UNITS - 2>();
        __syncthreads(); /* keys are there; all have done with the values before */
        sm80_load<C>(shared, call.layer, 2 * i + UNITS - 1, count);
        int64_t offset =
            thread < KV_TILE ? key_offset(call, tile, (first + ahead) * KV_TILE + thread) : 0;
        if (i > 0 && position % call.work.partial_tokens == 0)
            sm80_close<C>(state, shared);
        sm80_scores<C>(score, query, units + 2 * i % UNITS * sm80_shape<C>::UNIT_BYTES);
        sm80_mask<C>(score, shared, call.args, row, position);
        if (thread < KV_TILE)
            shared.offset[ahead % OFFSET_TILES][thread] = offset;
        __syncthreads(); /* maxima are there; all have done with the keys */
        sm80_weigh<C>(state, score, shared, call.scale);
        copy_wait<UNITS - 2>();
        __syncthreads(); /* weights and values are there */
        sm80_load<C>(shared, call.layer, 2 * i + UNITS, count);
        sm80_values<C>(state, shared, units + (2 * i + 1) % UNITS * sm80_shape<C>::UNIT_BYTES);
    }
    copy_wait<0>();
    sm80_close<C>(state, shared);
}

/* What the partials of a row come to. */
template <int C>
__device__ static inline void sm80_finish(const sm80_state<C> &state,
                                          const struct attention_call &call,
                                          const struct query_row (&row)[2])
{
    int32_t lane = threadIdx.x % WARP;
    for (int32_t i = 0; i < 2; i++) {
        if (row[i].query == NULL)
            continue;
        struct row_total total = state.before[i];
        const float *sinks = call.args.sinks;
        float factor = with_sink(total, sinks == NULL ? NULL : sinks + row[i].head);
#pragma unroll
        for (int32_t n = 0; n < sm80_shape<C>::COLUMNS; n++) {
            if (!sm80_shape<C>::has(n))
                break;
            *(uint32_t *)(row[i].out + sm80_shape<C>::chunk(n) * 8 + lane % 4 * 2) =
                pack_bf16(quotient(state.total[n][2 * i], factor, total.sum),
                          quotient(state.total[n][2 * i + 1], factor, total.sum));
        }
    }
}

/* A slot: [K][NARROW_ROWS][C] values, and [NARROW_ROWS] maxima and sums behind each head's. */
template <int C>
__device__ static inline float *sm80_slot(const struct attention_call &call, int32_t slot,
                                          int32_t kv_head)
{
    int64_t place = (int64_t)slot * call.args.kv_head_count + kv_head;
    return call.work.partial + place * (NARROW_ROWS * (C + 2));
}

template <int C>
__device__ static inline void sm80_put(const sm80_state<C> &state, float *slot, int32_t count)
{
    int32_t warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    for (int32_t i = 0; i < 2; i++) {
        int32_t r = lane / 4 + 8 * i;
        if (r >= count)
            continue;
#pragma unroll
        for (int32_t n = 0; n < sm80_shape<C>::COLUMNS; n++) {
            if (!sm80_shape<C>::has(n))
                break;
            *(float2 *)(slot + r * C + sm80_shape<C>::chunk(n) * 8 + lane % 4 * 2) =
                make_float2(state.total[n][2 * i], state.total[n][2 * i + 1]);
        }
        if (warp == 0 && lane % 4 == 0)
            *(float2 *)(slot + NARROW_ROWS * C + 2 * r) =
                make_float2(state.before[i].maximum, state.before[i].sum);
    }
}

/* The items of one of the work's lists. */
template <int C>
__global__ void __launch_bounds__(NARROW_THREADS)
    narrow_sm80_kernel(const __grid_constant__ struct attention_call call, bool wide)
{
    extern __shared__ __align__(1024) uint8_t memory[];
    sm80_shared<C> &shared = *reinterpret_cast<sm80_shared<C> *>(memory);
    kernel_yield();
    kernel_wait();
    const struct attention_item *list = wide ? call.work.wide : call.work.narrow;
    int32_t heads = call.args.kv_head_count, lane = threadIdx.x % WARP;
    int32_t count = (wide ? call.work.plan->wide_count : call.work.plan->narrow_count) * heads;
    for (int32_t i = blockIdx.x; i < count; i += gridDim.x) {
        struct attention_tile tile = tile_of(call, list[i / heads], i % heads, NARROW_ROWS);
        struct query_row row[2] = {row_of(call, tile, lane / 4), row_of(call, tile, lane / 4 + 8)};
        sm80_state<C> state;
        sm80_start<C>(state);
        sm80_walk<C>(state, shared, call, tile, row);
        if (tile.item.partial < 0)
            sm80_finish<C>(state, call, row);
        else
            sm80_put<C>(state, sm80_slot<C>(call, tile.item.slot, tile.kv_head), tile.count);
    }
}

/* Folds a tile's slots in their order, two columns of a row a thread. */
template <int C>
__global__ void __launch_bounds__(NARROW_THREADS)
    merge_sm80_kernel(const __grid_constant__ struct attention_call call)
{
    kernel_yield();
    kernel_wait();
    int32_t heads = call.args.kv_head_count, count = call.work.plan->merge_count * heads;
    int64_t stride = (int64_t)heads * NARROW_ROWS * (C + 2);
    for (int32_t m = blockIdx.x; m < count; m += gridDim.x) {
        struct attention_tile tile =
            tile_of(call, call.work.merge[m / heads], m % heads, NARROW_ROWS);
        const float *slot = sm80_slot<C>(call, tile.item.slot, tile.kv_head);
        for (int32_t i = threadIdx.x; i < tile.count * (C / 2); i += NARROW_THREADS) {
            int32_t r = i / (C / 2), column = i % (C / 2) * 2;
            struct query_row row = row_of(call, tile, r);
            struct row_total total = {-CUDART_INF_F, 0.0f};
            float2 value = {0.0f, 0.0f};
            const float *source = slot;
#pragma unroll 4
            for (int32_t p = 0; p < tile.item.partial_count; p++, source += stride) {
                float2 own = *(const float2 *)(source + r * C + column);
                float2 state = *(const float2 *)(source + NARROW_ROWS * C + 2 * r);
                float2 factor = partial_factors(total.maximum, state.x);
                total.sum = partial_fold(total.sum, state.y, factor);
                value.x = partial_fold(value.x, own.x, factor);
                value.y = partial_fold(value.y, own.y, factor);
            }
            const float *sinks = call.args.sinks;
            float factor = with_sink(total, sinks == NULL ? NULL : sinks + row.head);
            *(uint32_t *)(row.out + column) = pack_bf16(quotient(value.x, factor, total.sum),
                                                        quotient(value.y, factor, total.sum));
        }
    }
}

template <int C>
static void sm80_launch(struct device *device, const struct attention_call &call, bool wide)
{
    struct launch_shape items = {dim3(narrow_blocks(C) * device->core_count), dim3(NARROW_THREADS),
                                 sizeof(sm80_shared<C>)};
    struct launch_shape merges = {dim3(MERGE_BLOCKS * device->core_count), dim3(NARROW_THREADS), 0};
    static_assert(sizeof(sm80_shared<C>) <= SHARED_BYTES_LEAST, "a block has the memory");
    launch(device, __func__, narrow_sm80_kernel<C>, items, call, wide);
    if (!wide)
        launch(device, __func__, merge_sm80_kernel<C>, merges, call);
}

void cuda_attention_narrow_sm80(struct device *device, const struct attention_call &call, bool wide)
{
    switch (call.args.head_width) {
#define WIDTH(width)                                                                               \
    case width:                                                                                    \
        sm80_launch<width>(device, call, wide);                                                    \
        break;
        TENSOR_WIDTHS(WIDTH)
#undef WIDTH
    default:
        assert(false);
    }
}
