/* A wide item where attention_prompt.cu does not fit: 16 query rows a warp, W warps on the same
 * keys and values, all partials.
 *
 * The tile of the matrix unit is flash attention's: scores, weights and values of a warp's rows
 * stay in its registers. Values of the partials before are in shared memory, a place a thread.
 * Tiles come two at a time: one is worked on while the next is on its way.
 */
#ifndef KERNELS_CUDA_ATTENTION_WIDE_CUH
#define KERNELS_CUDA_ATTENTION_WIDE_CUH

#include "kernels/cuda/attention_body.cuh"

enum { WIDE_STAGES = 2, SUM_PARTS = KV_TILE / 16, SCORE_TILES = KV_TILE / 8 };

template <int C, int W> struct wide_shape {
    static constexpr int32_t WARPS = W;
    static constexpr int32_t THREADS = WARPS * WARP;
    static constexpr int32_t ROWS = WARPS * 16;
    static constexpr bool QUERY_SHARED = C > 192; /* else in registers */
    static constexpr int32_t QUERIES = QUERY_SHARED ? C / 16 : 1;
    static constexpr int32_t QUERY_THREADS = QUERY_SHARED ? THREADS : 1;
};

template <int C, int W> struct wide_shared {
    alignas(1024) uint8_t stage[WIDE_STAGES][2 * tile_layout<C>::BYTES];
    float total[C / 2][wide_shape<C, W>::THREADS]; /* of the partials before; a place a thread */
    /* of a warp's rows, where registers do not hold them */
    uint4 query[wide_shape<C, W>::QUERIES][wide_shape<C, W>::QUERY_THREADS];
    int64_t offset[WIDE_STAGES][KV_TILE];
    int32_t next; /* item */
};

template <int C> struct wide_state {
    float value[C / 8][4];
    float sum[2][SUM_PARTS];
    struct running row[2];
    struct row_total before[2];
    bool folded; /* `total` holds something */
};

template <int C, int W>
__device__ static inline void wide_query(uint32_t (&a)[4], const uint32_t (&held)[C / 16][4],
                                         const wide_shared<C, W> &shared, int32_t k)
{
    uint4 own = {held[k][0], held[k][1], held[k][2], held[k][3]};
    if (wide_shape<C, W>::QUERY_SHARED)
        own = shared.query[k][threadIdx.x];
    a[0] = own.x, a[1] = own.y, a[2] = own.z, a[3] = own.w;
}

template <int C, int W>
__device__ static inline void wide_scores(float (&score)[SCORE_TILES][4],
                                          const uint32_t (&held)[C / 16][4],
                                          const wide_shared<C, W> &shared, uint32_t keys)
{
    int32_t lane = threadIdx.x % WARP, r = lane / 16 * 8 + lane % 8;
#pragma unroll
    for (int32_t k = 0; k < C / 16; k++) {
        uint32_t query[4];
        wide_query<C, W>(query, held, shared, k);
#pragma unroll
        for (int32_t n = 0; n < SCORE_TILES; n += 2) {
            uint32_t b[4];
            load_matrices(b, keys + tile_layout<C>::at(r + n * 8, 2 * k + lane / 8 % 2));
            mma(score[n], query, b[0], b[1]);
            mma(score[n + 1], query, b[2], b[3]);
        }
    }
}

/* Cap and mask of rows g and g + 8; `position` is the thread's first. */
__device__ static inline void wide_mask(float (&score)[SCORE_TILES][4],
                                        const struct attention_args &args,
                                        const struct query_row (&row)[2], int32_t position)
{
#pragma unroll
    for (int32_t n = 0; n < SCORE_TILES; n++)
#pragma unroll
        for (int32_t j = 0; j < 4; j++) {
            int32_t at = position + n * 8 + j % 2;
            bool seen = at >= row[j / 2].low && at <= row[j / 2].high;
            score[n][j] = seen ? capped(score[n][j], args) : -CUDART_INF_F;
        }
}

/* Scores become weights, packed as A operands; bases and sums go on. */
template <int C>
__device__ static inline void wide_softmax(wide_state<C> &state, float (&score)[SCORE_TILES][4],
                                           uint32_t (&weight)[SUM_PARTS][4], float scale)
{
#pragma unroll
    for (int32_t i = 0; i < 2; i++) {
        float most = -CUDART_INF_F;
#pragma unroll
        for (int32_t n = 0; n < SCORE_TILES; n++)
            most = fmaxf(most, fmaxf(score[n][2 * i], score[n][2 * i + 1]));
        advance(state.row[i], quad_max(most), scale);
#pragma unroll
        for (int32_t k = 0; k < SUM_PARTS; k++) {
            float p[4];
#pragma unroll
            for (int32_t j = 0; j < 4; j++)
                p[j] = weight_of(score[2 * k + j / 2][2 * i + j % 2], scale, state.row[i].base);
            float sum = __fadd_rn(__fadd_rn(__fadd_rn(p[0], p[1]), p[2]), p[3]);
            state.sum[i][k] = __fmaf_rn(state.sum[i][k], state.row[i].factor, sum);
            weight[k][i] = pack_half(p[0], p[1]);
            weight[k][i + 2] = pack_half(p[2], p[3]);
        }
    }
}

template <int C> __device__ static inline void wide_shrink(wide_state<C> &state)
{
    bool grown = state.row[0].factor != 1.0f || state.row[1].factor != 1.0f;
    if (!__any_sync(0xffffffffu, grown)) /* times 1 changes nothing */
        return;
#pragma unroll
    for (int32_t n = 0; n < C / 8; n++)
#pragma unroll
        for (int32_t i = 0; i < 4; i++)
            state.value[n][i] = __fmul_rn(state.value[n][i], state.row[i / 2].factor);
}

template <int C>
__device__ static inline void wide_values(wide_state<C> &state,
                                          const uint32_t (&weight)[SUM_PARTS][4], uint32_t values)
{
    int32_t lane = threadIdx.x % WARP;
#pragma unroll
    for (int32_t k = 0; k < KV_TILE / 16; k++)
#pragma unroll
        for (int32_t n = 0; n < C / 8; n += 2) {
            uint32_t b[4];
            load_matrices_turned(b, values + tile_layout<C>::at(k * 16 + lane % 16, n + lane / 16));
            mma(state.value[n], weight[k], b[0], b[1]);
            mma(state.value[n + 1], weight[k], b[2], b[3]);
        }
}

template <int C> __device__ static inline void wide_clear(wide_state<C> &state)
{
#pragma unroll
    for (int32_t n = 0; n < C / 8; n++)
#pragma unroll
        for (int32_t i = 0; i < 4; i++)
            state.value[n][i] = 0.0f;
    for (int32_t i = 0; i < 2; i++) {
        state.row[i].maximum = -CUDART_INF_F;
#pragma unroll
        for (int32_t k = 0; k < SUM_PARTS; k++)
            state.sum[i][k] = 0.0f;
    }
}

/* Folds the partial into those before it; into nothing it is a copy. `state.value` then has what
 * shared memory has. */
template <int C, int W>
__device__ static inline void wide_fold(wide_state<C> &state, wide_shared<C, W> &shared)
{
#pragma unroll
    for (int32_t i = 0; i < 2; i++) {
        float sum = quad_sum(state.sum[i][0]);
#pragma unroll
        for (int32_t k = 1; k < SUM_PARTS; k++)
            sum = __fadd_rn(sum, quad_sum(state.sum[i][k]));
        float2 factor = partial_factors(state.before[i].maximum, state.row[i].maximum);
        state.before[i].sum = partial_fold(state.before[i].sum, sum, factor);
#pragma unroll
        for (int32_t n = 0; n < C / 8; n++)
#pragma unroll
            for (int32_t j = 0; j < 2; j++) {
                float &own = state.value[n][2 * i + j];
                float before = 0.0f;
                if (state.folded)
                    before = shared.total[n * 4 + 2 * i + j][threadIdx.x];
                own = partial_fold(before, own, factor);
            }
    }
}

template <int C, int W>
__device__ static inline void wide_close(wide_state<C> &state, wide_shared<C, W> &shared)
{
    wide_fold<C, W>(state, shared);
#pragma unroll
    for (int32_t n = 0; n < C / 8; n++)
#pragma unroll
        for (int32_t i = 0; i < 4; i++)
            shared.total[n * 4 + i][threadIdx.x] = state.value[n][i];
    state.folded = true;
    wide_clear<C>(state);
}

template <int C, int W>
__device__ static inline void wide_finish(wide_state<C> &state, wide_shared<C, W> &shared,
                                          const struct attention_call &call,
                                          const struct query_row (&row)[2])
{
    wide_fold<C, W>(state, shared);
#pragma unroll
    for (int32_t i = 0; i < 2; i++) {
        if (row[i].query == NULL)
            continue;
        const float *sinks = call.args.sinks;
        float factor = with_sink(state.before[i], sinks == NULL ? NULL : sinks + row[i].head);
#pragma unroll
        for (int32_t n = 0; n < C / 8; n++) {
            *(uint32_t *)(row[i].out + n * 8 + threadIdx.x % 4 * 2) =
                pack_bf16(quotient(state.value[n][2 * i], factor, state.before[i].sum),
                          quotient(state.value[n][2 * i + 1], factor, state.before[i].sum));
        }
    }
}

/* Positions from which on a warp's rows need a mask, and those that they see at all. */
struct warp_view {
    int32_t low, high;         /* seen by one row at least */
    int32_t all_low, all_high; /* seen by every row */
};

template <int C>
__device__ static inline struct warp_view view_of(const struct attention_call &call,
                                                  const struct attention_tile &tile)
{
    constexpr int32_t ROWS = 16;
    int32_t first = threadIdx.x / WARP * ROWS, last = min(first + ROWS - 1, tile.count - 1);
    struct warp_view view = {0, -1, 0, -1};
    if (first >= tile.count)
        return view;
    struct query_row top = row_of(call, tile, first), bottom = row_of(call, tile, last);
    view = {top.low, bottom.high, bottom.low, top.high};
    if (last < first + ROWS - 1) /* rows past the count see nothing */
        view.all_high = -1;
    return view;
}

/* One tile of keys and values, for a warp that sees some of it. */
template <int C, int W>
__device__ static inline void
wide_tile(wide_state<C> &state, const wide_shared<C, W> &shared, const struct attention_call &call,
          uint32_t (&query)[C / 16][4], const struct query_row (&row)[2],
          const struct warp_view &view, int32_t position, int32_t stage)
{
    uint32_t keys = (uint32_t)__cvta_generic_to_shared(shared.stage[stage]);
    float score[SCORE_TILES][4] = {};
    uint32_t weight[SUM_PARTS][4];
    wide_scores<C, W>(score, query, shared, keys);
    if (position < view.all_low || position + KV_TILE - 1 > view.all_high ||
        call.args.softcap > 0.0f)
        wide_mask(score, call.args, row, position + threadIdx.x % 4 * 2);
    wide_softmax<C>(state, score, weight, call.scale);
    wide_shrink<C>(state);
    wide_values<C>(state, weight, keys + tile_layout<C>::BYTES);
}

template <int C, int W>
__device__ static inline void
wide_walk(wide_state<C> &state, wide_shared<C, W> &shared, const struct attention_call &call,
          const struct attention_tile &tile, const struct query_row (&row)[2])
{
    constexpr int32_t THREADS = wide_shape<C, W>::THREADS;
    constexpr uint32_t STAGE_BYTES = 2 * tile_layout<C>::BYTES;
    int32_t thread = threadIdx.x;
    int32_t first = tile.begin / KV_TILE, count = (tile.end - 1) / KV_TILE + 1 - first;
    uint32_t stages = (uint32_t)__cvta_generic_to_shared(shared.stage[0]);
    struct warp_view view = view_of<C>(call, tile);

    if (thread < WIDE_STAGES * KV_TILE)
        shared.offset[thread / KV_TILE][thread % KV_TILE] =
            key_offset(call, tile, first * KV_TILE + thread);
    __syncthreads();
    load_tile<C, THREADS>(stages, shared.offset[0], call.layer);
    copy_commit();
    uint32_t query[C / 16][4];
#pragma unroll
    for (int32_t k = 0; k < C / 16; k++) {
        query_step(query[k], row, k);
        if (wide_shape<C, W>::QUERY_SHARED)
            shared.query[k][thread] = {query[k][0], query[k][1], query[k][2], query[k][3]};
    }

    for (int32_t i = 0; i < count; i++) {
        int32_t position = (first + i) * KV_TILE;
        copy_wait<0>();
        __syncthreads();
        if (i + 1 < count)
            load_tile<C, THREADS>(stages + (i + 1) % WIDE_STAGES * STAGE_BYTES,
                                  shared.offset[(i + 1) % WIDE_STAGES], call.layer);
        copy_commit();
        int64_t offset = thread < KV_TILE
                             ? key_offset(call, tile, position + WIDE_STAGES * KV_TILE + thread)
                             : 0;
        if (i > 0 && position % call.work.partial_tokens == 0)
            wide_close<C, W>(state, shared);
        if (position <= view.high && position + KV_TILE > view.low)
            wide_tile<C, W>(state, shared, call, query, row, view, position, i % WIDE_STAGES);
        if (thread < KV_TILE)
            shared.offset[i % WIDE_STAGES][thread] = offset;
    }
}

template <int C, int W>
__device__ static inline void wide_item(wide_shared<C, W> &shared,
                                        const struct attention_call &call,
                                        struct attention_item item, int32_t kv_head)
{
    int32_t r = threadIdx.x / WARP * 16 + threadIdx.x % WARP / 4;
    struct attention_tile tile = tile_of(call, item, kv_head, wide_shape<C, W>::ROWS);
    struct query_row row[2] = {row_of(call, tile, r), row_of(call, tile, r + 8)};
    wide_state<C> state;
    wide_clear<C>(state);
    state.folded = false;
    for (int32_t i = 0; i < 2; i++)
        state.before[i] = {-CUDART_INF_F, 0.0f};
    wide_walk<C, W>(state, shared, call, tile, row);
    wide_finish<C, W>(state, shared, call, row);
    __syncthreads(); /* the stages are free for the next item */
}

#endif
