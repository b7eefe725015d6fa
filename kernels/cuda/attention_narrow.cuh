/* A narrow item: 16 query rows, four warps, one partial or all of them.
 *
 * Two more warps feed them, ahead of them, so that what happens at an item's end takes no time
 * from the memory: they keep a ring of tiles full, of this item and of those that follow, one the
 * keys, the other the values, and items with their queries. The tiles come span by span, SPAN_TILES of keys and then
 * their values: the running maxima of a span are known at once, and two meetings of the warps do
 * for it. Each warp makes the scores of 16 of a tile's 64 positions and, over all 64, a quarter of
 * the output's columns. When the item is one of several partials its result goes to its slot; the
 * merge, a kernel behind this one, folds them in their order. (That the partial which comes last
 * folds all was slower: its fence waits for all copies that are on their way.)
 */
#ifndef KERNELS_CUDA_ATTENTION_NARROW_CUH
#define KERNELS_CUDA_ATTENTION_NARROW_CUH

#include "kernels/cuda/attention_pages.cuh"
#include "kernels/cuda/launch.cuh"

enum {
    NARROW_WARPS = 4,
    NARROW_THREADS = NARROW_WARPS * WARP, /* that compute */
    NARROW_BLOCK = NARROW_THREADS + 2 * WARP,
    NARROW_JOBS = 3, /* items whose queries are there or on their way */
    SPAN_TILES = 2,
    CORE_SHARED_BYTES = 228 * 1024, /* of a multiprocessor, and what a block has besides its own */
    BLOCK_SHARED_BYTES = 1024,
};

static_assert(PARTIAL_TOKENS % (SPAN_TILES * KV_TILE) == 0, "a span belongs to one partial");

template <int C> struct narrow_shape {
    static constexpr int32_t BLOCKS = C <= 128 ? NARROW_BLOCKS_MAX : 1;
    static constexpr int32_t BYTES = CORE_SHARED_BYTES / BLOCKS - BLOCK_SHARED_BYTES;
    static constexpr int32_t COLUMNS = (C / 8 + NARROW_WARPS - 1) / NARROW_WARPS; /* of a warp */
    static constexpr int32_t QUERY_BYTES = C * 2 + 16; /* of a row: free of bank conflicts */
    static constexpr int32_t OTHER_BYTES = NARROW_JOBS * NARROW_ROWS * QUERY_BYTES +
                                           COLUMNS * NARROW_THREADS * 16 + SPAN_TILES * 2560 + 1024;
    static constexpr int32_t STAGES_FIT = (BYTES - OTHER_BYTES) / page_tile<C>::BYTES;
    static constexpr int32_t STAGES = STAGES_FIT > 8 ? 8 : STAGES_FIT;
    static_assert(STAGES >= SPAN_TILES, "a span's scores take their tiles at once");
};

template <int C> struct narrow_shared {
    alignas(1024) uint8_t stage[narrow_shape<C>::STAGES][page_tile<C>::BYTES];
    uint4 weight[SPAN_TILES][KV_TILE / 16][WARP]; /* A operands of P */
    float4 maximum[SPAN_TILES][NARROW_ROWS];      /* of each warp */
    float factor[SPAN_TILES][NARROW_ROWS];        /* of what is before the tile */
    float4 sum[NARROW_ROWS];
    float4 total[narrow_shape<C>::COLUMNS][NARROW_THREADS]; /* of the partials before */
    alignas(16) uint8_t query[NARROW_JOBS][NARROW_ROWS][narrow_shape<C>::QUERY_BYTES];
    uint4 zero;
    struct attention_tile job[NARROW_JOBS]; /* one without rows: there are no more */
    uint64_t full[narrow_shape<C>::STAGES], empty[narrow_shape<C>::STAGES];
    uint64_t job_full[NARROW_JOBS], job_empty[NARROW_JOBS];
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

/* ---- the warps that feed ---- */

enum page_plane { PLANE_KEY, PLANE_VALUE };

/* Where a feeding warp is: one of its tiles, and the stage that it goes to. */
template <int C, enum page_plane PLANE> struct narrow_place {
    struct narrow_span span;
    int32_t tile; /* of the span */
    ring_place<narrow_shape<C>::STAGES> stage;

    /* The other plane's stages. */
    __device__ inline void pass(int32_t count)
    {
        for (; count > 0; count--)
            stage.step();
    }
    __device__ inline void start(const struct attention_tile &all)
    {
        span = span_at(all, all.begin / KV_TILE);
        tile = 0;
        if (PLANE == PLANE_VALUE)
            pass(span.count);
    }
    __device__ inline bool is_there(const struct attention_tile &all) const
    {
        return span.first * KV_TILE < all.end;
    }
    __device__ inline void step(const struct attention_tile &all)
    {
        stage.step();
        if (++tile < span.count)
            return;
        int32_t other = span.count;
        span = span_at(all, span.first + span.count);
        tile = 0;
        if (PLANE == PLANE_VALUE)
            other = is_there(all) ? span.count : 0;
        pass(other);
    }
};

/* What part of a tile's pages to bring: before the kernel before this one has ended, those that
 * this step does not write to. */
enum narrow_part { PART_EARLY, PART_LATE, PART_WHOLE };

template <int C, enum page_plane PLANE, enum narrow_part PART>
__device__ static inline void feed_tile(narrow_shared<C> &shared, const CUtensorMap &map,
                                        const struct attention_tile &tile,
                                        struct page_window &window, struct page_shifts shifts,
                                        const narrow_place<C, PLANE> &place)
{
    int32_t number = place.span.first + place.tile;
    struct page_boxes boxes = boxes_of(tile, number, shifts.box);
    uint32_t barrier = shared_address(&shared.full[place.stage.index]);
    uint32_t bytes = (uint32_t)((boxes.end - boxes.first) << shifts.box) * C * 2;
    if (PART != PART_LATE && threadIdx.x % WARP == 0)
        barrier_expect(barrier, bytes);
    __syncwarp();
    load_boxes<C>(shared_address(shared.stage[place.stage.index]), barrier, map, window, shifts,
                  tile.kv_head, number, PART == PART_LATE ? boxes.split : boxes.first,
                  PART == PART_EARLY ? boxes.split : boxes.end);
}

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

/* The queries of the rows that there are, as f16. */
template <int C>
__device__ static inline void bring_query(narrow_shared<C> &shared,
                                          const struct attention_call &call,
                                          const struct attention_tile &tile, int32_t job)
{
    constexpr int32_t AHEAD = 8; /* pairs on their way */
    int32_t lane = threadIdx.x % WARP, pair_count = tile.count * (C / 2);
#pragma unroll 1
    for (int32_t first = lane; first < pair_count; first += AHEAD * WARP) {
        uint32_t pair[AHEAD];
#pragma unroll
        for (int32_t j = 0; j < AHEAD; j++) {
            int32_t i = min(first + j * WARP, pair_count - 1), row = tile.first + i / (C / 2);
            int32_t token = token_of(call, tile.item, row);
            int64_t column =
                (int64_t)(tile.kv_head * call.group + row - token * call.group) * C + i % (C / 2) * 2;
            pair[j] = *(const uint32_t *)(call.query +
                                          (tile.item.token_first + token) * call.stride + column);
        }
#pragma unroll
        for (int32_t j = 0; j < AHEAD; j++) {
            int32_t i = first + j * WARP;
            if (i < pair_count)
                *(uint32_t *)&shared.query[job][i / (C / 2)][i % (C / 2) * 4] =
                    query_pair(pair[j]);
        }
    }
}

/* An item and its queries. */
template <int C>
__device__ static inline void bring_job(narrow_shared<C> &shared, const struct attention_call &call,
                                        const struct attention_tile &tile,
                                        ring_place<NARROW_JOBS> &job)
{
    barrier_wait(shared_address(&shared.job_empty[job.index]), job.parity ^ 1);
    bring_query<C>(shared, call, tile, job.index);
    if (threadIdx.x % WARP == 0)
        shared.job[job.index] = tile;
    __syncwarp();
    if (threadIdx.x % WARP == 0)
        barrier_arrive(shared_address(&shared.job_full[job.index]));
    job.step();
}

/* One warp brings the keys; the other brings items and the values. */
template <int C, enum page_plane PLANE>
__device__ static inline void narrow_feed(narrow_shared<C> &shared, const CUtensorMap &map,
                                          const struct attention_call &call)
{
    constexpr bool BRINGS = PLANE == PLANE_VALUE;
    struct page_shifts shifts = shifts_of(call.layer);
    int32_t heads = call.args.kv_head_count, index = blockIdx.x;
    auto job = ring_place<NARROW_JOBS>::first();
    narrow_place<C, PLANE> place = {{}, 0, ring_place<narrow_shape<C>::STAGES>::first()};
    if (call.work.fresh)
        kernel_wait();
    bulk_see();
    struct attention_item item = call.work.narrow[index / heads];
    int32_t count = call.work.plan->narrow_count * heads;
    struct attention_tile tile = tile_of(call, item, index % heads, NARROW_ROWS);
    if (index < count) {
        struct page_window window = window_of(call, tile, shifts.page);
        place.start(tile);
        auto early = place;
#pragma unroll 1
        for (; early.is_there(tile) && early.stage.parity == 0; early.step(tile))
            feed_tile<C, PLANE, PART_EARLY>(shared, map, tile, window, shifts, early);
        kernel_wait();
        bulk_see();
        if (BRINGS)
            bring_job<C>(shared, call, tile, job);
#pragma unroll 1
        for (; place.is_there(tile) && place.stage.parity == 0; place.step(tile))
            feed_tile<C, PLANE, PART_LATE>(shared, map, tile, window, shifts, place);
#pragma unroll 1
        for (;;) {
            index += gridDim.x;
            item = call.work.narrow[min(index, count - 1) / heads];
#pragma unroll 1
            for (; place.is_there(tile); place.step(tile)) {
                barrier_wait(shared_address(&shared.empty[place.stage.index]),
                             place.stage.parity ^ 1);
                feed_tile<C, PLANE, PART_WHOLE>(shared, map, tile, window, shifts, place);
            }
            if (index >= count)
                break;
            tile = tile_of(call, item, index % heads, NARROW_ROWS);
            window = window_of(call, tile, shifts.page);
            place.start(tile);
            if (BRINGS)
                bring_job<C>(shared, call, tile, job);
        }
    }
    if (BRINGS) {
        tile.count = 0; /* there are no more */
        bring_job<C>(shared, call, tile, job);
    }
}

/* ---- the computing warps ---- */

/* What a thread holds of a tile of rows: rows g and g + 8, columns of its warp. */
template <int C> struct narrow_state {
    float value[narrow_shape<C>::COLUMNS][4]; /* of this partial */
    struct running row[2];
    float sum[2]; /* this thread's positions of this partial */
    struct row_total before[2];
    bool folded; /* `total` holds something */
};

/* They wait for each other; barrier 0 is the whole block's. */
__device__ static inline void narrow_sync(void)
{
    asm volatile("bar.sync 1, %0;" ::"n"((int)NARROW_THREADS) : "memory");
}

/* A operands of the item's rows; zeros past the count. */
template <int C>
__device__ static inline void narrow_query(uint32_t (&query)[C / 16][4],
                                           const narrow_shared<C> &shared, int32_t job,
                                           int32_t count)
{
    int32_t lane = threadIdx.x % WARP, r = lane % 16;
    uint32_t own = shared_address(&shared.zero), step = 0;
    if (r < count) {
        own = shared_address(shared.query[job][r]) + (uint32_t)(lane / 16 * 16);
        step = 32;
    }
#pragma unroll
    for (int32_t k = 0; k < C / 16; k++)
        load_matrices(query[k], own + k * step);
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
narrow_scores(float (&score)[SPAN_TILES][2][4], const uint32_t (&query)[C / 16][4],
              narrow_shared<C> &shared, ring_place<narrow_shape<C>::STAGES> &place, int32_t box)
{
    int32_t lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, stage[TILES];
    auto own = page_row<C>::of(warp * 16 + lane / 16 * 8 + lane % 8, box);
    uint32_t keys[TILES];
#pragma unroll
    for (int32_t i = 0; i < TILES; i++, place.step()) {
        stage[i] = place.index;
        keys[i] = shared_address(shared.stage[stage[i]]);
        barrier_wait(shared_address(&shared.full[stage[i]]), place.parity);
    }
#pragma unroll
    for (int32_t k = 0; k < C / 16; k++) {
        uint32_t b[TILES][4];
#pragma unroll
        for (int32_t i = 0; i < TILES; i++)
            load_matrices(b[i], keys[i] + own.at(2 * k + lane / 8 % 2));
#pragma unroll
        for (int32_t i = 0; i < TILES; i++) {
            mma(score[i][0], query[k], b[i][0], b[i][1]);
            mma(score[i][1], query[k], b[i][2], b[i][3]);
        }
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
template <bool CAPPED>
__device__ static inline float narrow_mask(float (&score)[2][4], const struct attention_args &args,
                                           struct row_view row, int32_t i, int32_t position)
{
    float maximum = -CUDART_INF_F;
#pragma unroll
    for (int32_t j = 0; j < 4; j++) {
        float &own = score[j / 2][2 * i + j % 2];
        int32_t at = position + j / 2 * 8 + j % 2;
        if (CAPPED)
            own = capped(own, args);
        own = at >= row.low && at <= row.high ? own : -CUDART_INF_F;
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
 * after a partial's last span also the sums. Rows g + 8 are there where the item is tall. */
template <int C, bool CAPPED>
__device__ static inline void
narrow_softmax(narrow_state<C> &state, float (&score)[SPAN_TILES][2][4], narrow_shared<C> &shared,
               const struct attention_call &call, const struct row_view (&row)[2],
               struct narrow_span span, bool tall, bool closes)
{
    int32_t lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, g = lane / 4;
    int32_t position = span.first * KV_TILE + warp * 16 + lane % 4 * 2;
#pragma unroll
    for (int32_t t = 0; t < SPAN_TILES; t++)
#pragma unroll
        for (int32_t i = 0; i < 2; i++) {
            if (t >= span.count || (i == 1 && !tall))
                break;
            float most =
                narrow_mask<CAPPED>(score[t], call.args, row[i], i, position + t * KV_TILE);
            if (lane % 4 == 0)
                ((float *)&shared.maximum[t][g + 8 * i])[warp] = most;
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
            if (warp == 0 && lane % 4 == 0)
                shared.factor[t][g + 8 * i] = state.row[i].factor;
        }
        shared.weight[t][warp][lane] = {packed[0], packed[1], packed[2], packed[3]};
    }
#pragma unroll
    for (int32_t i = 0; i < 2; i++) {
        if (!closes || (i == 1 && !tall))
            break;
        float sum = quad_sum(state.sum[i]);
        if (lane % 4 == 0)
            ((float *)&shared.sum[g + 8 * i])[warp] = sum;
    }
    narrow_sync();
}

/* A bit for each of a tile's positions that is gone through, the thread's first one lowest. */
__device__ static inline uint64_t narrow_seen(const struct attention_tile &tile, int32_t start)
{
    uint64_t all = ~(uint64_t)0;
    int32_t low = max(tile.begin - start, 0), high = min(tile.end - start, (int32_t)KV_TILE);
    uint64_t seen = all << low & all >> (KV_TILE - high);
    return seen >> threadIdx.x % 4 * 2;
}

/* Two positions of a B operand: what is not gone through may be anything, and becomes 0. */
__device__ static inline uint32_t keep_seen(uint32_t pair, uint64_t seen, int32_t at)
{
    uint32_t bits = (uint32_t)(seen >> at);
    return pair & ((bits & 1) * 0x0000ffffu + (bits >> 1 & 1) * 0xffff0000u);
}

/* One tile of values. Runs of positions that are not gone through have no weight. */
template <int C>
__device__ static inline void narrow_values(narrow_state<C> &state, const narrow_shared<C> &shared,
                                            int32_t t, uint32_t values,
                                            const struct attention_tile &tile, int32_t start,
                                            int32_t box)
{
    constexpr int32_t COLUMNS = narrow_shape<C>::COLUMNS, RUN = 32;
    int32_t lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    bool whole = start >= tile.begin && start + KV_TILE <= tile.end;
    uint64_t seen = whole ? 0 : narrow_seen(tile, start);
    float factor[2] = {shared.factor[t][lane / 4], shared.factor[t][lane / 4 + 8]};
#pragma unroll
    for (int32_t n = 0; n < COLUMNS; n++)
#pragma unroll
        for (int32_t i = 0; i < 4; i++)
            state.value[n][i] = __fmul_rn(state.value[n][i], factor[i / 2]);
#pragma unroll
    for (int32_t run = 0; run < KV_TILE; run += RUN) {
        if (start + run + RUN <= tile.begin || start + run >= tile.end)
            continue;
        uint4 first = shared.weight[t][run / 16][lane], second = shared.weight[t][run / 16 + 1][lane];
        const uint32_t p[2][4] = {{first.x, first.y, first.z, first.w},
                                  {second.x, second.y, second.z, second.w}};
        uint32_t b[COLUMNS][4];
        auto own = page_row<C>::of(run + lane, box);
#pragma unroll
        for (int32_t n = 0; n < COLUMNS; n++) {
            int32_t chunk = min(warp + n * NARROW_WARPS, C / 8 - 1);
            load_matrices_turned(b[n], values + own.at(chunk));
        }
        if (!whole) {
#pragma unroll
            for (int32_t n = 0; n < COLUMNS; n++)
#pragma unroll
                for (int32_t i = 0; i < 4; i++)
                    b[n][i] = keep_seen(b[n][i], seen, run + i * 8);
        }
#pragma unroll
        for (int32_t k = 0; k < 2; k++)
#pragma unroll
            for (int32_t n = 0; n < COLUMNS; n++)
                mma(state.value[n], p[k], b[n][2 * k], b[n][2 * k + 1]);
    }
}

template <int C> __device__ static inline void narrow_clear(narrow_state<C> &state)
{
#pragma unroll
    for (int32_t i = 0; i < 2; i++) {
        state.row[i].maximum = -CUDART_INF_F;
        state.sum[i] = 0.0f;
    }
#pragma unroll
    for (int32_t n = 0; n < narrow_shape<C>::COLUMNS; n++)
#pragma unroll
        for (int32_t i = 0; i < 4; i++)
            state.value[n][i] = 0.0f;
}

/* The whole sum of the partial that has just ended, of row r. */
template <int C> __device__ static inline float narrow_sum(const narrow_shared<C> &shared, int32_t r)
{
    float4 part = shared.sum[r];
    return __fadd_rn(__fadd_rn(__fadd_rn(part.x, part.y), part.z), part.w);
}

/* Folds the partial into those before it. `state.value` and `state.before` then have all; folding
 * into nothing gives the partial's own bits. */
template <int C>
__device__ static inline void narrow_fold(narrow_state<C> &state, const narrow_shared<C> &shared)
{
    float2 factor[2];
#pragma unroll
    for (int32_t i = 0; i < 2; i++) {
        float sum = narrow_sum<C>(shared, threadIdx.x % WARP / 4 + 8 * i);
        factor[i] = partial_factors(state.before[i].maximum, state.row[i].maximum);
        state.before[i].sum = partial_fold(state.before[i].sum, sum, factor[i]);
    }
    if (!state.folded)
        return;
#pragma unroll
    for (int32_t n = 0; n < narrow_shape<C>::COLUMNS; n++) {
        float4 total = shared.total[n][threadIdx.x];
        const float before[4] = {total.x, total.y, total.z, total.w};
#pragma unroll
        for (int32_t i = 0; i < 4; i++)
            state.value[n][i] = partial_fold(before[i], state.value[n][i], factor[i / 2]);
    }
}

/* The same, and the next partial begins. */
template <int C>
__device__ static inline void narrow_close(narrow_state<C> &state, narrow_shared<C> &shared)
{
    narrow_fold<C>(state, shared);
#pragma unroll
    for (int32_t n = 0; n < narrow_shape<C>::COLUMNS; n++)
        shared.total[n][threadIdx.x] = {state.value[n][0], state.value[n][1], state.value[n][2],
                                        state.value[n][3]};
    state.folded = true;
    narrow_clear<C>(state);
}

/* Goes through tile.begin .. tile.end; the last partial is left open. */
template <int C, bool CAPPED>
__device__ static inline void narrow_walk(narrow_state<C> &state, narrow_shared<C> &shared,
                                          const struct attention_call &call,
                                          const struct attention_tile &tile,
                                          const uint32_t (&query)[C / 16][4],
                                          const struct row_view (&row)[2],
                                          ring_place<narrow_shape<C>::STAGES> &place)
{
    int32_t end = (tile.end - 1) / KV_TILE + 1, box = shifts_of(call.layer).box;
    struct narrow_span span = span_at(tile, tile.begin / KV_TILE);
#pragma unroll 1
    while (span.first < end) {
        float score[SPAN_TILES][2][4] = {};
        int32_t next = span.first + span.count;
        bool closes = next == end || next * KV_TILE % call.work.partial_tokens == 0;
        if (span.count == SPAN_TILES)
            narrow_scores<C, SPAN_TILES>(score, query, shared, place, box);
        else
            narrow_scores<C, 1>(score, query, shared, place, box);
        narrow_softmax<C, CAPPED>(state, score, shared, call, row, span, tile.count > 8, closes);
#pragma unroll 1
        for (int32_t t = 0; t < span.count; t++, place.step()) {
            barrier_wait(shared_address(&shared.full[place.index]), place.parity);
            narrow_values<C>(state, shared, t, shared_address(shared.stage[place.index]), tile,
                             (span.first + t) * KV_TILE, box);
            release_stage<C>(shared, place.index);
        }
        if (closes && next < end)
            narrow_close<C>(state, shared);
        span = span_at(tile, next);
    }
}

/* quotient() of two values of a row, with its bits: the same steps as a division's where neither
 * it nor what lies between can leave the range of floats, with the reciprocal made once. */
struct row_quotient {
    float sum, factor, inverse;
};

__device__ static inline struct row_quotient quotient_of(float sum, float factor)
{
    float inverse;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(sum));
    inverse = __fmaf_rn(inverse, __fmaf_rn(-sum, inverse, 1.0f), inverse);
    return {sum, factor, inverse};
}

__device__ static inline bool is_plain(float value)
{
    float size = fabsf(value);
    return size > 0x1p-60f && size < 0x1p60f;
}

__device__ static inline float divided(float value, const struct row_quotient &by)
{
    float whole = __fmul_rn(value, by.inverse);
    whole = __fmaf_rn(__fmaf_rn(-by.sum, whole, value), by.inverse, whole);
    whole = __fmaf_rn(__fmaf_rn(-by.sum, whole, value), by.inverse, whole);
    return __fadd_rn(whole, 0.0f);
}

__device__ static inline uint32_t quotient_pair(float low, float high,
                                                const struct row_quotient &by)
{
    float a = __fmul_rn(low, by.factor), b = __fmul_rn(high, by.factor);
    if (is_plain(a) && is_plain(b) && is_plain(by.sum))
        return pack_bf16(divided(a, by), divided(b, by));
    return pack_bf16(quotient(low, by.factor, by.sum), quotient(high, by.factor, by.sum));
}

/* All partials in one item: the output. */
template <int C>
__device__ static inline void narrow_finish(narrow_state<C> &state, const narrow_shared<C> &shared,
                                            const struct attention_call &call,
                                            const struct attention_tile &tile)
{
    int32_t warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    narrow_fold<C>(state, shared);
#pragma unroll
    for (int32_t i = 0; i < 2; i++) {
        int32_t r = lane / 4 + 8 * i;
        if (r >= tile.count)
            break;
        struct query_row row = row_of(call, tile, r);
        const float *sinks = call.args.sinks;
        float factor = with_sink(state.before[i], sinks == NULL ? NULL : sinks + row.head);
        struct row_quotient by = quotient_of(state.before[i].sum, factor);
#pragma unroll
        for (int32_t n = 0; n < narrow_shape<C>::COLUMNS; n++) {
            int32_t chunk = warp + n * NARROW_WARPS;
            if (C / 8 % NARROW_WARPS != 0 && chunk >= C / 8)
                break;
            *(uint32_t *)(row.out + chunk * 8 + lane % 4 * 2) =
                quotient_pair(state.value[n][2 * i], state.value[n][2 * i + 1], by);
        }
    }
}

/* Where a partial of a tile goes. */
template <int C>
__device__ static inline float *slot_of(const struct attention_call &call,
                                        const struct attention_tile &tile, int32_t partial)
{
    int64_t slot = (int64_t)(tile.item.slot + partial) * call.args.kv_head_count + tile.kv_head;
    return call.work.partial + slot * (NARROW_ROWS * (C + 2));
}

/* One partial of several: to its slot, [NARROW_ROWS, C] values, then [NARROW_ROWS] maxima and
 * sums. */
template <int C>
__device__ static inline void narrow_put(const narrow_state<C> &state,
                                         const narrow_shared<C> &shared, float *slot, int32_t count)
{
    int32_t warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
#pragma unroll
    for (int32_t i = 0; i < 2; i++) {
        int32_t r = lane / 4 + 8 * i;
        if (r >= count)
            break;
#pragma unroll
        for (int32_t n = 0; n < narrow_shape<C>::COLUMNS; n++) {
            int32_t chunk = warp + n * NARROW_WARPS;
            if (C / 8 % NARROW_WARPS != 0 && chunk >= C / 8)
                break;
            __stcg((float2 *)(slot + r * C + chunk * 8 + lane % 4 * 2),
                   make_float2(state.value[n][2 * i], state.value[n][2 * i + 1]));
        }
        if (warp == 0 && lane % 4 == 0)
            __stcg((float2 *)(slot + NARROW_ROWS * C + 2 * r),
                   make_float2(state.row[i].maximum, narrow_sum<C>(shared, r)));
    }
}

/* What an item gave goes out, or to its slot. */
template <int C>
__device__ static inline void narrow_end(narrow_state<C> &state, narrow_shared<C> &shared,
                                         const struct attention_call &call,
                                         const struct attention_tile &tile)
{
    if (tile.item.partial < 0)
        narrow_finish<C>(state, shared, call, tile);
    else
        narrow_put<C>(state, shared, slot_of<C>(call, tile, tile.item.partial), tile.count);
}

template <int C, bool CAPPED>
__device__ static inline void narrow_work(narrow_shared<C> &shared,
                                          const struct attention_call &call)
{
    auto place = ring_place<narrow_shape<C>::STAGES>::first();
    auto job = ring_place<NARROW_JOBS>::first();
    int32_t lane = threadIdx.x % WARP;
    kernel_wait();
    kernel_yield(); /* not before: see launch.cuh */
#pragma unroll 1
    for (;; job.step()) {
        barrier_wait(shared_address(&shared.job_full[job.index]), job.parity);
        struct attention_tile tile = shared.job[job.index];
        if (tile.count == 0)
            return;
        uint32_t query[C / 16][4];
        narrow_query<C>(query, shared, job.index, tile.count);
        __syncwarp();
        if (lane == 0)
            barrier_arrive(shared_address(&shared.job_empty[job.index]));
        struct query_row low = row_of(call, tile, lane / 4), high = row_of(call, tile, lane / 4 + 8);
        struct row_view row[2] = {{low.low, low.high}, {high.low, high.high}};
        narrow_state<C> state;
        narrow_clear<C>(state);
        state.folded = false;
        for (int32_t i = 0; i < 2; i++)
            state.before[i] = {-CUDART_INF_F, 0.0f};
        narrow_walk<C, CAPPED>(state, shared, call, tile, query, row, place);
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
        for (int32_t i = 0; i < NARROW_JOBS; i++) {
            barrier_make(shared_address(&shared.job_full[i]), 1);
            barrier_make(shared_address(&shared.job_empty[i]), NARROW_WARPS);
        }
        barrier_show();
        shared.zero = {0, 0, 0, 0};
    }
    for (int32_t i = threadIdx.x; i < SPAN_TILES * NARROW_ROWS; i += NARROW_BLOCK)
        shared.factor[i / NARROW_ROWS][i % NARROW_ROWS] = 1.0f; /* of rows that no item has */
    for (int32_t i = threadIdx.x; i < NARROW_ROWS; i += NARROW_BLOCK)
        shared.sum[i] = {1.0f, 0.0f, 0.0f, 0.0f};
    __syncthreads();
}

/* ---- the merge ---- */

enum { MERGE_THREADS = 256, MERGE_AHEAD = 16 /* partials on their way */ };

/* Folds the partials of a tile in their order and puts out the rows: two columns a thread. */
template <int C>
__device__ static inline void merge_tile(const struct attention_call &call,
                                         const struct attention_tile &tile)
{
    const float *slot = slot_of<C>(call, tile, tile.item.partial);
    int64_t stride = (int64_t)call.args.kv_head_count * (NARROW_ROWS * (C + 2));
    int32_t count = tile.item.partial_count;
    for (int32_t i = threadIdx.x; i < tile.count * (C / 2); i += MERGE_THREADS) {
        int32_t r = i / (C / 2), column = i % (C / 2) * 2;
        struct query_row row = row_of(call, tile, r);
        struct row_total total = {-CUDART_INF_F, 0.0f};
        float2 value = {0.0f, 0.0f};
#pragma unroll 1
        for (int32_t first = 0; first < count; first += MERGE_AHEAD) {
            float2 partial[MERGE_AHEAD], state[MERGE_AHEAD];
#pragma unroll
            for (int32_t p = 0; p < MERGE_AHEAD; p++) {
                if (first + p >= count)
                    break;
                const float *source = slot + (first + p) * stride;
                partial[p] = __ldcg((const float2 *)(source + r * C + column));
                state[p] = __ldcg((const float2 *)(source + NARROW_ROWS * C + 2 * r));
            }
#pragma unroll
            for (int32_t p = 0; p < MERGE_AHEAD; p++) {
                if (first + p >= count)
                    break;
                float2 factor = partial_factors(total.maximum, state[p].x);
                total.sum = partial_fold(total.sum, state[p].y, factor);
                value.x = partial_fold(value.x, partial[p].x, factor);
                value.y = partial_fold(value.y, partial[p].y, factor);
            }
        }
        const float *sinks = call.args.sinks;
        float factor = with_sink(total, sinks == NULL ? NULL : sinks + row.head);
        *(uint32_t *)(row.out + column) =
            quotient_pair(value.x, value.y, quotient_of(total.sum, factor));
    }
}

#endif
