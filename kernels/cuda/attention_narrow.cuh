/* A narrow item: 16 query rows, four warps, one partial or all of them.
 *
 * One more warp feeds them: it goes through the block's items ahead of the others and keeps a ring
 * of tiles full, of this item and of those that follow, so that what happens at an item's end
 * takes no time from the memory. The tiles come span by span, SPAN_TILES of keys and then their
 * values: the running maxima of a span are known at once, and two meetings of the warps do for
 * it. Each warp makes the scores of 16 of a tile's 64 positions and, over all 64, a quarter of the
 * output's columns. When the item is one of several partials its result goes to its slot, and the
 * one that comes last folds all in their order.
 */
#ifndef KERNELS_CUDA_ATTENTION_NARROW_CUH
#define KERNELS_CUDA_ATTENTION_NARROW_CUH

#include "kernels/cuda/attention_pages.cuh"
#include "kernels/cuda/launch.cuh"

enum {
    NARROW_WARPS = 4,
    NARROW_THREADS = NARROW_WARPS * WARP, /* that compute */
    NARROW_BLOCK = NARROW_THREADS + WARP,
    NARROW_JOBS = 3, /* items whose queries are there or on their way */
    SPAN_TILES = 4,
    CORE_SHARED_BYTES = 228 * 1024, /* of a multiprocessor, and what a block has besides its own */
    BLOCK_SHARED_BYTES = 1024,
};

static_assert(PARTIAL_TOKENS % (SPAN_TILES * KV_TILE) == 0, "a span belongs to one partial");

template <int C> struct narrow_shape {
    static constexpr int32_t BLOCKS = C <= 128 ? NARROW_BLOCKS_MAX : 1;
    static constexpr int32_t BYTES = CORE_SHARED_BYTES / BLOCKS - BLOCK_SHARED_BYTES;
    static constexpr int32_t QUERY_BYTES = C * 2 + 16; /* of a row: free of bank conflicts */
    static constexpr int32_t OTHER_BYTES =
        SPAN_TILES * 2304 + NARROW_JOBS * NARROW_ROWS * QUERY_BYTES + 1024;
    static constexpr int32_t STAGES_FIT = (BYTES - OTHER_BYTES) / page_tile<C>::BYTES;
    static constexpr int32_t STAGES = STAGES_FIT > 8 ? 8 : STAGES_FIT;
    static_assert(STAGES >= 2, "a span's scores take two tiles at a time");
};

template <int C> struct narrow_shared {
    alignas(1024) uint8_t stage[narrow_shape<C>::STAGES][page_tile<C>::BYTES];
    uint4 weight[SPAN_TILES][KV_TILE / 16][WARP]; /* A operands of P */
    float4 maximum[SPAN_TILES][NARROW_ROWS];      /* of each warp */
    float4 sum[NARROW_ROWS];
    alignas(16) uint8_t query[NARROW_JOBS][NARROW_ROWS][narrow_shape<C>::QUERY_BYTES];
    struct attention_item job[NARROW_JOBS];
    uint64_t full[narrow_shape<C>::STAGES], empty[narrow_shape<C>::STAGES];
    uint64_t job_full[NARROW_JOBS], job_empty[NARROW_JOBS];
    bool last;
};

/* A place in a ring of COUNT, and the parity of the phase that is to end there. */
template <int COUNT> struct ring_place {
    int32_t index;
    uint32_t parity;
    __device__ static inline ring_place first(void)
    {
        return {0, 0};
    }
    __device__ inline void step(void)
    {
        if (++index == COUNT) {
            index = 0;
            parity ^= 1;
        }
    }
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

/* The tiles of a span that an item goes through. */
struct narrow_span {
    int32_t first, count;
};

__device__ static inline struct narrow_span span_at(const struct attention_tile &tile,
                                                    int32_t first)
{
    int32_t end = min((first / SPAN_TILES + 1) * SPAN_TILES, (tile.end - 1) / KV_TILE + 1);
    return {first, end - first};
}

/* The computing warps wait for each other; barrier 0 is the whole block's. */
__device__ static inline void narrow_sync(void)
{
    asm volatile("bar.sync 1, %0;" ::"n"((int)NARROW_THREADS) : "memory");
}

/* ---- the feeding warp ---- */

/* A copy of an item's: keys of a span's tiles, then their values. */
struct narrow_copy {
    struct narrow_span span;
    int32_t tile; /* of the span */
    enum page_plane plane;
};

__device__ static inline struct narrow_copy copy_first(const struct attention_tile &tile)
{
    return {span_at(tile, tile.begin / KV_TILE), 0, PLANE_KEY};
}

__device__ static inline void copy_step(struct narrow_copy &copy, const struct attention_tile &tile)
{
    if (++copy.tile < copy.span.count)
        return;
    copy.tile = 0;
    if (copy.plane == PLANE_VALUE)
        copy.span = span_at(tile, copy.span.first + copy.span.count);
    copy.plane = copy.plane == PLANE_KEY ? PLANE_VALUE : PLANE_KEY;
}

__device__ static inline int32_t copy_count(const struct attention_tile &tile)
{
    return 2 * ((tile.end - 1) / KV_TILE + 1 - tile.begin / KV_TILE);
}

/* Announces a tile's bytes. */
template <int C>
__device__ static inline void expect_tile(narrow_shared<C> &shared, int32_t stage,
                                          const struct attention_call &call,
                                          const struct page_boxes &boxes)
{
    int32_t rows = (boxes.end - boxes.first) * box_rows(call.layer);
    if (threadIdx.x % WARP == 0)
        barrier_expect(shared_address(&shared.full[stage]), (uint32_t)(rows * C * 2));
    __syncwarp();
}

/* Before the kernel before this one has ended: the block's first tiles, but for the pages that
 * this step writes to. How many. */
template <int C>
__device__ static inline int32_t feed_early(narrow_shared<C> &shared, const CUtensorMap &map,
                                            const struct attention_call &call,
                                            const struct attention_tile &tile)
{
    int32_t count = min(copy_count(tile), (int32_t)narrow_shape<C>::STAGES);
    struct narrow_copy copy = copy_first(tile);
    for (int32_t s = 0; s < count; s++, copy_step(copy, tile)) {
        int32_t number = copy.span.first + copy.tile;
        struct page_boxes boxes = boxes_of(call, tile, number);
        expect_tile<C>(shared, s, call, boxes);
        load_boxes<C>(shared_address(shared.stage[s]), shared_address(&shared.full[s]), map, call,
                      tile, number, copy.plane, boxes.first, boxes.split);
    }
    return count;
}

/* Of the same tiles, those pages; `copy` becomes the one that follows. */
template <int C>
__device__ static inline void feed_late(narrow_shared<C> &shared, const CUtensorMap &map,
                                        const struct attention_call &call,
                                        const struct attention_tile &tile,
                                        struct narrow_copy &copy, int32_t count)
{
    for (int32_t s = 0; s < count; s++, copy_step(copy, tile)) {
        int32_t number = copy.span.first + copy.tile;
        struct page_boxes boxes = boxes_of(call, tile, number);
        load_boxes<C>(shared_address(shared.stage[s]), shared_address(&shared.full[s]), map, call,
                      tile, number, copy.plane, boxes.split, boxes.end);
    }
}

/* The item and its queries, as they are. Rows past the count stay what they were. */
template <int C>
__device__ static inline void feed_job(narrow_shared<C> &shared, const struct attention_call &call,
                                       const struct attention_tile &tile, int32_t job)
{
    int32_t lane = threadIdx.x % WARP;
    uint64_t own = (uint64_t)row_of(call, tile, lane % NARROW_ROWS).query;
    for (int32_t r = 0; r < tile.count; r++) {
        const bf16 *query = (const bf16 *)__shfl_sync(0xffffffffu, own, r);
        uint32_t target = shared_address(shared.query[job][r]);
        for (int32_t pair = lane; pair < C / 2; pair += WARP)
            asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(target + pair * 4),
                         "l"(query + pair * 2)
                         : "memory");
    }
    barrier_arrive_copied(shared_address(&shared.job_full[job]));
    if (lane == 0) {
        shared.job[job] = tile.item;
        barrier_arrive(shared_address(&shared.job_full[job]));
    }
}

/* The next tile, when there is room for it. */
template <int C>
__device__ static inline void feed_tile(narrow_shared<C> &shared, const CUtensorMap &map,
                                        const struct attention_call &call,
                                        const struct attention_tile &tile,
                                        const struct narrow_copy &copy,
                                        ring_place<narrow_shape<C>::STAGES> stage)
{
    int32_t number = copy.span.first + copy.tile;
    struct page_boxes boxes = boxes_of(call, tile, number);
    barrier_wait(shared_address(&shared.empty[stage.index]), stage.parity ^ 1);
    expect_tile<C>(shared, stage.index, call, boxes);
    load_boxes<C>(shared_address(shared.stage[stage.index]),
                  shared_address(&shared.full[stage.index]), map, call, tile, number, copy.plane,
                  boxes.first, boxes.end);
}

template <int C>
__device__ static inline void narrow_feed(narrow_shared<C> &shared, const CUtensorMap &map,
                                          const struct attention_call &call)
{
    auto stage = ring_place<narrow_shape<C>::STAGES>::first();
    auto job = ring_place<NARROW_JOBS>::first();
    int32_t heads = call.args.kv_head_count, index = blockIdx.x;
    bool waited = call.work.fresh;
    if (waited)
        kernel_wait();
    bulk_see();
    int32_t count = call.work.plan->narrow_count * heads;
    struct attention_item item = call.work.narrow[index / heads];
    for (; index < count; index += gridDim.x) {
        struct attention_tile tile = tile_of(call, item, index % heads, NARROW_ROWS);
        int32_t left = copy_count(tile);
        struct narrow_copy copy = copy_first(tile);
        item = call.work.narrow[min(index + (int32_t)gridDim.x, count - 1) / heads];
        if (!waited) {
            int32_t done = feed_early<C>(shared, map, call, tile);
            kernel_wait();
            bulk_see();
            feed_late<C>(shared, map, call, tile, copy, done);
            left -= done;
            for (; done > 0; done--)
                stage.step();
            waited = true;
        }
        barrier_wait(shared_address(&shared.job_empty[job.index]), job.parity ^ 1);
        feed_job<C>(shared, call, tile, job.index);
        job.step();
        for (; left > 0; left--, copy_step(copy, tile), stage.step())
            feed_tile<C>(shared, map, call, tile, copy, stage);
    }
}

/* ---- the computing warps ---- */

/* Two bf16 to f16 as pack_query does it: what overflows, and what is no number, saturates. */
__device__ static inline uint32_t query_pair(uint32_t pair)
{
    const __half most = __ushort_as_half(0x7bff);
    float2 value = unpack_bf16(pair);
    uint32_t bits = pack_half(value.x, value.y);
    __half2 packed = *(__half2 *)&bits;
    packed = __hmin2(__hmax2(packed, __half2half2(__hneg(most))), __half2half2(most));
    return *(uint32_t *)&packed;
}

/* A operands of the item's rows; zeros past the count. */
template <int C>
__device__ static inline void narrow_query(uint32_t (&query)[C / 16][4],
                                           const narrow_shared<C> &shared, int32_t job,
                                           int32_t count)
{
    int32_t lane = threadIdx.x % WARP;
    uint32_t own = shared_address(shared.query[job][lane % 16]) + (uint32_t)(lane / 16 * 16);
    bool low = lane / 4 < count, high = lane / 4 + 8 < count;
#pragma unroll
    for (int32_t k = 0; k < C / 16; k++) {
        load_matrices(query[k], own + k * 32);
        query[k][0] = low ? query_pair(query[k][0]) : 0;
        query[k][2] = low ? query_pair(query[k][2]) : 0;
    }
    if (count <= 8) {
#pragma unroll
        for (int32_t k = 0; k < C / 16; k++)
            query[k][1] = query[k][3] = 0;
        return;
    }
#pragma unroll
    for (int32_t k = 0; k < C / 16; k++) {
        query[k][1] = high ? query_pair(query[k][1]) : 0;
        query[k][3] = high ? query_pair(query[k][3]) : 0;
    }
}

/* A warp has read what it needs of this stage. */
template <int C>
__device__ static inline void release_stage(narrow_shared<C> &shared, int32_t stage)
{
    __syncwarp();
    if (threadIdx.x % WARP == 0)
        barrier_arrive(shared_address(&shared.empty[stage]));
}

/* Scores of the warp's 16 positions of the next TILES tiles. */
template <int C, int TILES>
__device__ static inline void
narrow_scores(float (*score)[2][4], const uint32_t (&query)[C / 16][4], narrow_shared<C> &shared,
              ring_place<narrow_shape<C>::STAGES> &place)
{
    int32_t lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    int32_t r = warp * 16 + lane / 16 * 8 + lane % 8, stage[TILES];
    uint32_t keys[TILES];
#pragma unroll
    for (int32_t i = 0; i < TILES; i++, place.step()) {
        stage[i] = place.index;
        keys[i] = shared_address(shared.stage[stage[i]]);
        barrier_wait(shared_address(&shared.full[stage[i]]), place.parity);
    }
#pragma unroll
    for (int32_t k = 0; k < C / 16; k++)
#pragma unroll
        for (int32_t i = 0; i < TILES; i++) {
            uint32_t b[4];
            load_matrices(b, keys[i] + page_tile<C>::at(r, 2 * k + lane / 8 % 2));
            mma(score[i][0], query[k], b[0], b[1]);
            mma(score[i][1], query[k], b[2], b[3]);
        }
#pragma unroll
    for (int32_t i = 0; i < TILES; i++)
        release_stage<C>(shared, stage[i]);
}

/* Positions that a row sees. */
struct row_view {
    int32_t low, high;
};

/* Cap, mask, maximum of the warp's positions for row g + 8 i. */
__device__ static inline float narrow_mask(float (&score)[2][4], const struct attention_args &args,
                                           struct row_view row, int32_t i, int32_t position)
{
    float maximum = -CUDART_INF_F;
#pragma unroll
    for (int32_t j = 0; j < 4; j++) {
        float &own = score[j / 2][2 * i + j % 2];
        int32_t at = position + j / 2 * 8 + j % 2;
        own = at >= row.low && at <= row.high ? capped(own, args) : -CUDART_INF_F;
        maximum = fmaxf(maximum, own);
    }
    return quad_max(maximum);
}

/* The weights of row g + 8 i in one tile; the row's state goes on. */
template <int C>
__device__ static inline void narrow_weigh(narrow_state<C> &state, uint32_t (&packed)[4],
                                           const float (&score)[2][4], float4 maximum, float scale,
                                           int32_t i)
{
    float weight[4];
    advance(state.row[i], fmaxf(fmaxf(maximum.x, maximum.y), fmaxf(maximum.z, maximum.w)), scale);
#pragma unroll
    for (int32_t j = 0; j < 4; j++)
        weight[j] = weight_of(score[j / 2][2 * i + j % 2], scale, state.row[i].base);
    float sum = __fadd_rn(__fadd_rn(__fadd_rn(weight[0], weight[1]), weight[2]), weight[3]);
    state.sum[i] = __fmaf_rn(state.sum[i], state.row[i].factor, sum);
    packed[i] = pack_half(weight[0], weight[1]);
    packed[i + 2] = pack_half(weight[2], weight[3]);
}

/* From a span's scores to its weights in shared memory, and the factors that go before each tile;
 * after a partial's last span also the sums. Rows g + 8 are there where the item is `tall`. */
template <int C>
__device__ static inline void
narrow_softmax(narrow_state<C> &state, float (&factor)[SPAN_TILES][2],
               float (&score)[SPAN_TILES][2][4], narrow_shared<C> &shared,
               const struct attention_call &call, const struct row_view (&row)[2],
               struct narrow_span span, bool tall, bool closes)
{
    int32_t lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, g = lane / 4;
    int32_t position = span.first * KV_TILE + warp * 16 + lane % 4 * 2;
#pragma unroll
    for (int32_t t = 0; t < SPAN_TILES; t++) {
#pragma unroll
        for (int32_t i = 0; i < 2; i++) {
            if (t >= span.count || (i == 1 && !tall))
                break;
            float most = narrow_mask(score[t], call.args, row[i], i, position + t * KV_TILE);
            if (lane % 4 == 0)
                ((float *)&shared.maximum[t][g + 8 * i])[warp] = most;
        }
    }
    narrow_sync();
#pragma unroll
    for (int32_t t = 0; t < SPAN_TILES; t++) {
        uint32_t packed[4] = {};
        if (t >= span.count)
            break;
#pragma unroll
        for (int32_t i = 0; i < 2; i++) {
            if (i == 1 && !tall)
                break;
            narrow_weigh<C>(state, packed, score[t], shared.maximum[t][g + 8 * i], call.scale, i);
            factor[t][i] = state.row[i].factor;
        }
        shared.weight[t][warp][lane] = {packed[0], packed[1], packed[2], packed[3]};
    }
    for (int32_t i = 0; closes && i < 2; i++) {
        float sum = quad_sum(state.sum[i]);
        if (lane % 4 == 0)
            ((float *)&shared.sum[g + 8 * i])[warp] = sum;
    }
    narrow_sync();
}

/* Which of a tile's positions are gone through, as masks of B operands: what lies in shared memory
 * for the others may be anything. */
__device__ static inline void narrow_seen(uint32_t (&seen)[KV_TILE / 16][2],
                                          const struct attention_tile &tile, int32_t start)
{
#pragma unroll
    for (int32_t i = 0; i < KV_TILE / 8; i++) {
        int32_t at = start + i * 8 + threadIdx.x % 4 * 2;
        seen[i / 2][i % 2] = (at >= tile.begin && at < tile.end ? 0x0000ffffu : 0) |
                             (at + 1 >= tile.begin && at + 1 < tile.end ? 0xffff0000u : 0);
    }
}

/* One tile of values. */
template <int C, bool WHOLE>
__device__ static inline void narrow_values(narrow_state<C> &state, const uint4 (*weight)[WARP],
                                            const float (&factor)[2],
                                            const uint32_t (&seen)[KV_TILE / 16][2],
                                            uint32_t values)
{
    int32_t lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    uint32_t p[KV_TILE / 16][4];
#pragma unroll
    for (int32_t k = 0; k < KV_TILE / 16; k++) {
        uint4 own = weight[k][lane];
        p[k][0] = own.x, p[k][1] = own.y, p[k][2] = own.z, p[k][3] = own.w;
    }
#pragma unroll
    for (int32_t n = 0; n < narrow_state<C>::COLUMNS; n++) {
#pragma unroll
        for (int32_t i = 0; i < 4; i++)
            state.value[n][i] = __fmul_rn(state.value[n][i], factor[i / 2]);
    }
#pragma unroll
    for (int32_t k = 0; k < KV_TILE / 16; k += 2)
#pragma unroll
        for (int32_t n = 0; n < narrow_state<C>::COLUMNS; n++) {
            uint32_t b[4];
            int32_t chunk = warp + n * NARROW_WARPS;
            if (C / 8 % NARROW_WARPS != 0 && chunk >= C / 8)
                break;
            load_matrices_turned(b, values + page_tile<C>::at(k * 16 + lane, chunk));
#pragma unroll
            for (int32_t i = 0; i < 4 && !WHOLE; i++)
                b[i] &= seen[k + i / 2][i % 2];
            mma(state.value[n], p[k], b[0], b[1]);
            mma(state.value[n], p[k + 1], b[2], b[3]);
        }
}

/* A span's values. */
template <int C>
__device__ static inline void
narrow_span_values(narrow_state<C> &state, const float (&factor)[SPAN_TILES][2],
                   narrow_shared<C> &shared, const struct attention_tile &tile,
                   struct narrow_span span, ring_place<narrow_shape<C>::STAGES> &place)
{
#pragma unroll
    for (int32_t t = 0; t < SPAN_TILES; t++) {
        if (t >= span.count)
            break;
        int32_t start = (span.first + t) * KV_TILE;
        uint32_t values = shared_address(shared.stage[place.index]), seen[KV_TILE / 16][2];
        barrier_wait(shared_address(&shared.full[place.index]), place.parity);
        if (start >= tile.begin && start + KV_TILE <= tile.end) {
            narrow_values<C, true>(state, shared.weight[t], factor[t], seen, values);
        } else {
            narrow_seen(seen, tile, start);
            narrow_values<C, false>(state, shared.weight[t], factor[t], seen, values);
        }
        release_stage<C>(shared, place.index);
        place.step();
    }
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

/* The whole sum of the partial that has just closed, of row g + 8 i. */
template <int C>
__device__ static inline float narrow_sum(const narrow_shared<C> &shared, int32_t i)
{
    float4 part = shared.sum[threadIdx.x % WARP / 4 + 8 * i];
    return __fadd_rn(__fadd_rn(__fadd_rn(part.x, part.y), part.z), part.w);
}

/* Folds the partial into those before it and begins the next. */
template <int C>
__device__ static inline void narrow_close(narrow_state<C> &state, const narrow_shared<C> &shared)
{
    for (int32_t i = 0; i < 2; i++) {
        float2 factor = partial_factors(state.before[i].maximum, state.row[i].maximum);
        state.before[i].sum = partial_fold(state.before[i].sum, narrow_sum<C>(shared, i), factor);
#pragma unroll
        for (int32_t n = 0; n < narrow_state<C>::COLUMNS; n++)
            for (int32_t j = 0; j < 2; j++)
                state.total[n][2 * i + j] =
                    partial_fold(state.total[n][2 * i + j], state.value[n][2 * i + j], factor);
    }
    narrow_clear<C>(state);
}

/* Goes through tile.begin .. tile.end. The last partial is folded too where all are the item's. */
template <int C>
__device__ static inline void narrow_walk(narrow_state<C> &state, narrow_shared<C> &shared,
                                          const struct attention_call &call,
                                          const struct attention_tile &tile,
                                          const uint32_t (&query)[C / 16][4],
                                          const struct row_view (&row)[2],
                                          ring_place<narrow_shape<C>::STAGES> &place)
{
    int32_t end = (tile.end - 1) / KV_TILE + 1;
    bool tall = tile.count > 8;
    struct narrow_span span = span_at(tile, tile.begin / KV_TILE);
    for (; span.first < end; span = span_at(tile, span.first + span.count)) {
        float score[SPAN_TILES][2][4] = {}, factor[SPAN_TILES][2] = {};
        int32_t next = span.first + span.count;
        bool closes = next == end || next * KV_TILE % call.work.partial_tokens == 0;
#pragma unroll
        for (int32_t t = 0; t < SPAN_TILES; t += 2) {
            if (t + 1 < span.count)
                narrow_scores<C, 2>(score + t, query, shared, place);
            else if (t < span.count)
                narrow_scores<C, 1>(score + t, query, shared, place);
        }
        narrow_softmax<C>(state, factor, score, shared, call, row, span, tall, closes);
        narrow_span_values<C>(state, factor, shared, tile, span, place);
        if (closes && tile.item.partial < 0)
            narrow_close<C>(state, shared);
    }
}

/* All partials in one item: the output. */
template <int C>
__device__ static inline void narrow_finish(narrow_state<C> &state,
                                            const struct attention_call &call,
                                            const struct query_row (&row)[2])
{
    int32_t warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
#pragma unroll
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

/* One partial of several: to its slot, [NARROW_ROWS, C] values, then [NARROW_ROWS] maxima and
 * sums. */
template <int C>
__device__ static inline void narrow_put(const narrow_state<C> &state,
                                         const narrow_shared<C> &shared, float *slot,
                                         const struct query_row (&row)[2])
{
    int32_t warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
#pragma unroll
    for (int32_t i = 0; i < 2; i++) {
        if (row[i].query == NULL)
            continue;
        int32_t r = lane / 4 + 8 * i;
#pragma unroll
        for (int32_t n = 0; n < narrow_state<C>::COLUMNS; n++) {
            int32_t chunk = warp + n * NARROW_WARPS;
            if (C / 8 % NARROW_WARPS != 0 && chunk >= C / 8)
                break;
            __stcg((float2 *)(slot + r * C + chunk * 8 + lane % 4 * 2),
                   make_float2(state.value[n][2 * i], state.value[n][2 * i + 1]));
        }
        if (warp == 0 && lane % 4 == 0)
            __stcg((float2 *)(slot + NARROW_ROWS * C + 2 * r),
                   make_float2(state.row[i].maximum, narrow_sum<C>(shared, i)));
    }
}

/* Folds `count` partials in their order, the first at `slot`, and puts out the rows. */
template <int C>
__device__ static inline void narrow_merge(const struct attention_call &call,
                                           const struct attention_tile &tile, const float *slot,
                                           int64_t slot_stride, int32_t count)
{
    constexpr int32_t AHEAD = 8; /* partials on their way */
    for (int32_t i = threadIdx.x; i < tile.count * (C / 4); i += NARROW_THREADS) {
        int32_t r = i / (C / 4), column = i % (C / 4) * 4;
        struct query_row row = row_of(call, tile, r);
        struct row_total total = {-CUDART_INF_F, 0.0f};
        float value[4] = {};
        for (int32_t first = 0; first < count; first += AHEAD) {
            float4 partial[AHEAD];
            float2 state[AHEAD];
#pragma unroll
            for (int32_t p = 0; p < AHEAD; p++) {
                const float *source = slot + min(first + p, count - 1) * slot_stride;
                partial[p] = __ldcg((const float4 *)(source + r * C + column));
                state[p] = __ldcg((const float2 *)(source + NARROW_ROWS * C + 2 * r));
            }
#pragma unroll
            for (int32_t p = 0; p < AHEAD; p++) {
                if (first + p >= count)
                    break;
                float2 factor = partial_factors(total.maximum, state[p].x);
                total.sum = partial_fold(total.sum, state[p].y, factor);
                value[0] = partial_fold(value[0], partial[p].x, factor);
                value[1] = partial_fold(value[1], partial[p].y, factor);
                value[2] = partial_fold(value[2], partial[p].z, factor);
                value[3] = partial_fold(value[3], partial[p].w, factor);
            }
        }
        const float *sinks = call.args.sinks;
        float factor = with_sink(total, sinks == NULL ? NULL : sinks + row.head);
#pragma unroll
        for (int32_t j = 0; j < 4; j += 2)
            *(uint32_t *)(row.out + column + j) =
                pack_bf16(quotient(value[j], factor, total.sum),
                          quotient(value[j + 1], factor, total.sum));
    }
}

/* True in all threads when this partial is the last of `count` to be there. */
template <int C>
__device__ static inline bool narrow_arrive(narrow_shared<C> &shared, int32_t *arrived,
                                            int32_t count)
{
    narrow_sync();
    if (threadIdx.x == 0) {
        __threadfence(); /* for all that the barrier has seen */
        shared.last = atomicAdd(arrived, 1) == count - 1;
        if (shared.last)
            *arrived = 0; /* for the next launch */
        __threadfence();
    }
    narrow_sync();
    return shared.last;
}

/* What an item gave goes out, or to its slot. */
template <int C>
__device__ static inline void
narrow_end(narrow_state<C> &state, narrow_shared<C> &shared, const struct attention_call &call,
           const struct attention_tile &tile)
{
    const struct attention_item &item = tile.item;
    int32_t g = threadIdx.x % WARP / 4;
    struct query_row row[2] = {row_of(call, tile, g), row_of(call, tile, g + 8)};
    if (item.partial < 0) {
        narrow_finish<C>(state, call, row);
        return;
    }
    int32_t K = call.args.kv_head_count;
    int32_t first = tile.low / call.work.partial_tokens;
    int32_t count = tile.high / call.work.partial_tokens + 1 - first;
    int64_t head_stride = NARROW_ROWS * (C + 2), slot_stride = K * head_stride;
    float *head = call.work.partial + tile.kv_head * head_stride;
    narrow_put<C>(state, shared, head + (item.slot + item.partial) * slot_stride, row);
    int32_t *arrived = call.work.arrived + item.arrival * K + tile.kv_head;
    if (narrow_arrive<C>(shared, arrived, count))
        narrow_merge<C>(call, tile, head + (item.slot + first) * slot_stride, slot_stride, count);
}

template <int C>
__device__ static inline void narrow_work(narrow_shared<C> &shared,
                                          const struct attention_call &call)
{
    auto place = ring_place<narrow_shape<C>::STAGES>::first();
    auto job = ring_place<NARROW_JOBS>::first();
    int32_t heads = call.args.kv_head_count, lane = threadIdx.x % WARP;
    kernel_wait();
    kernel_yield(); /* not before: what is behind this kernel may take what was before it as done */
    int32_t count = call.work.plan->narrow_count * heads;
    for (int32_t index = blockIdx.x; index < count; index += gridDim.x, job.step()) {
        barrier_wait(shared_address(&shared.job_full[job.index]), job.parity);
        struct attention_tile tile =
            tile_of(call, shared.job[job.index], index % heads, NARROW_ROWS);
        struct query_row low = row_of(call, tile, lane / 4), high = row_of(call, tile, lane / 4 + 8);
        struct row_view row[2] = {{low.low, low.high}, {high.low, high.high}};
        uint32_t query[C / 16][4];
        narrow_state<C> state;
        narrow_query<C>(query, shared, job.index, tile.count);
        __syncwarp();
        if (lane == 0)
            barrier_arrive(shared_address(&shared.job_empty[job.index]));
        narrow_start<C>(state);
        narrow_walk<C>(state, shared, call, tile, query, row, place);
        narrow_end<C>(state, shared, call, tile);
    }
}

template <int C> __device__ static inline void narrow_open(narrow_shared<C> &shared)
{
    if (threadIdx.x == 0) {
        for (int32_t i = 0; i < narrow_shape<C>::STAGES; i++) {
            barrier_make(shared_address(&shared.full[i]), 1);
            barrier_make(shared_address(&shared.empty[i]), NARROW_WARPS);
        }
        for (int32_t i = 0; i < NARROW_JOBS; i++) { /* each lane's queries, and the item */
            barrier_make(shared_address(&shared.job_full[i]), WARP + 1);
            barrier_make(shared_address(&shared.job_empty[i]), NARROW_WARPS);
        }
        barrier_show();
    }
    __syncthreads();
}

#endif
