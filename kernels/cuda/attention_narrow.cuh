/* A narrow item: 16 query rows, four warps, some partials of a context or all of them.
 *
 * Two more warps feed them, ahead of them, so that what happens at an item's end takes no time
 * from the memory: one keeps a ring of tiles full, of this item and of those that follow, the other
 * brings items with their queries. The tiles come span by span, SPAN_TILES of keys and then their
 * values: the running maxima of a span are known at once, and two meetings of the warps do for it.
 * Each warp makes the scores of 16 of a tile's 64 positions and, over all 64, a quarter of the
 * output's columns. The result of an item that has not all partials goes to its slot, and a block
 * without items left folds them in their order (attention_merge.cuh).
 */
#ifndef KERNELS_CUDA_ATTENTION_NARROW_CUH
#define KERNELS_CUDA_ATTENTION_NARROW_CUH

#include "kernels/cuda/attention_merge.cuh"

/* What a thread holds of a tile of rows: rows g and g + 8, columns of its warp. */
template <int C> struct narrow_state {
    float value[narrow_shape<C>::COLUMNS][4]; /* of this partial */
    struct running row[2];
    float sum[2]; /* this thread's positions of this partial */
    struct row_total before[2];
    bool folded; /* `total` holds something */
};

/* Rows of tiles that a thread reads: of its warp's keys, and of values, 32 at a time. */
template <int C> struct narrow_rows {
    page_row<C> key, value[2];
};

template <int C>
__device__ static inline struct narrow_rows<C> rows_of(const struct kv_layer &layer) {
    int32_t lane = threadIdx.x % WARP, box = shifts_of(layer).box;
    return {page_row<C>::of(threadIdx.x / WARP * 16 + lane / 16 * 8 + lane % 8, box),
            {page_row<C>::of(lane, box), page_row<C>::of(WARP + lane, box)}};
}

/* Two bf16 to f16 as pack_query does it: what overflows, and what is no number, saturates. */
__device__ static inline uint32_t
query_pair(uint32_t pair)
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
    int32_t lane = threadIdx.x % WARP, r = lane % 16;
    uint32_t own = shared_address(&shared.zero), step = 0;
    if (r < count) {
        own = shared_address(shared.query[job][r]) + (uint32_t)(lane / 16 * 16);
        step = 32;
    }
#pragma unroll
    for (int32_t k = 0; k < C / 16; k++) {
        load_matrices(query[k], own + k * step);
#pragma unroll
        for (int32_t i = 0; i < 4; i++)
            query[k][i] = query_pair(query[k][i]);
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
narrow_scores(float (&score)[SPAN_TILES][2][4], const uint32_t (&query)[C / 16][4],
              narrow_shared<C> &shared, ring_place<narrow_shape<C>::STAGES> &place,
              const page_row<C> &own)
{
    int32_t lane = threadIdx.x % WARP, stage[TILES];
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
            float4 most = shared.maximum[t][g + 8 * i];
            narrow_weigh(state.row[i], state.sum[i], packed, score[t],
                         fmaxf(fmaxf(most.x, most.y), fmaxf(most.z, most.w)), call.scale, i);
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
__device__ static inline void
narrow_values(narrow_state<C> &state, const narrow_shared<C> &shared, int32_t t, uint32_t values,
              const struct attention_tile &tile, int32_t start, const struct narrow_rows<C> &rows)
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
        uint4 first = shared.weight[t][run / 16][lane],
              second = shared.weight[t][run / 16 + 1][lane];
        const uint32_t p[2][4] = {{first.x, first.y, first.z, first.w},
                                  {second.x, second.y, second.z, second.w}};
        uint32_t b[COLUMNS][4];
#pragma unroll
        for (int32_t n = 0; n < COLUMNS; n++) {
            int32_t chunk = min(warp + n * NARROW_WARPS, C / 8 - 1);
            load_matrices_turned(b[n], values + rows.value[run / RUN].at(chunk));
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
template <int C>
__device__ static inline float narrow_sum(const narrow_shared<C> &shared, int32_t r)
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
__device__ static inline void
narrow_walk(narrow_state<C> &state, narrow_shared<C> &shared, const struct attention_call &call,
            const struct attention_tile &tile, const uint32_t (&query)[C / 16][4],
            const struct row_view (&row)[2], const struct narrow_rows<C> &rows,
            ring_place<narrow_shape<C>::STAGES> &place)
{
    int32_t end = (tile.end - 1) / KV_TILE + 1;
    struct narrow_span span = span_at(tile, tile.begin / KV_TILE);
#pragma unroll 1
    while (span.first < end) {
        float score[SPAN_TILES][2][4] = {};
        int32_t next = span.first + span.count;
        bool closes = next == end || next * KV_TILE % call.work.partial_tokens == 0;
        if (span.count == SPAN_TILES)
            narrow_scores<C, SPAN_TILES>(score, query, shared, place, rows.key);
        else
            narrow_scores<C, 1>(score, query, shared, place, rows.key);
        narrow_softmax<C, CAPPED>(state, score, shared, call, row, span, tile.count > 8, closes);
#pragma unroll 1
        for (int32_t t = 0; t < span.count; t++, place.step()) {
            barrier_wait(shared_address(&shared.full[place.index]), place.parity);
            narrow_values<C>(state, shared, t, shared_address(shared.stage[place.index]), tile,
                             (span.first + t) * KV_TILE, rows);
            release_stage<C>(shared, place.index);
        }
        if (closes && next < end)
            narrow_close<C>(state, shared);
        span = span_at(tile, next);
    }
}

/* All partials in one item: the output. */
template <int C>
__device__ static inline void narrow_finish(narrow_state<C> &state,
                                            const struct attention_call &call,
                                            const struct attention_tile &tile)
{
    int32_t warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
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

/* Some of the partials: to the item's slot. */
template <int C>
__device__ static inline void narrow_put(const narrow_state<C> &state, float *slot, int32_t count)
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
            slot_put(slot + r * C + chunk * 8 + lane % 4 * 2, state.value[n][2 * i],
                     state.value[n][2 * i + 1]);
        }
        if (warp == 0 && lane % 4 == 0)
            slot_put(slot + NARROW_ROWS * C + 2 * r, state.before[i].maximum, state.before[i].sum);
    }
}

/* What an item gave goes out, or to its slot. */
template <int C>
__device__ static inline void narrow_end(narrow_state<C> &state, narrow_shared<C> &shared,
                                         const struct attention_call &call,
                                         const struct attention_tile &tile)
{
    narrow_fold<C>(state, shared);
    if (tile.item.partial < 0)
        narrow_finish<C>(state, call, tile);
    else
        narrow_put<C>(state, slot_of<C>(call, tile), tile.count);
}

template <int C, bool CAPPED>
__device__ static inline void narrow_work(narrow_shared<C> &shared,
                                          const struct attention_call &call)
{
    auto place = ring_place<narrow_shape<C>::STAGES>::first();
    auto job = ring_place<NARROW_JOBS>::first();
    int32_t lane = threadIdx.x % WARP;
    struct narrow_rows<C> rows = rows_of<C>(call.layer);
    narrow_wait(call);
    kernel_yield(); /* not before: see launch.cuh */
#pragma unroll 1
    for (;; job.step()) {
        barrier_wait(shared_address(&shared.job_full[job.index]), job.parity);
        struct attention_tile tile = shared.job[job.index];
        if (tile.count == 0) {
            narrow_merge<C>(shared, call, tile.low, tile.high);
            break;
        }
        uint32_t query[C / 16][4];
        narrow_query<C>(query, shared, job.index, tile.count);
        barrier_arrive(shared_address(&shared.job_empty[job.index]));
        struct query_row low = row_of(call, tile, lane / 4),
                         high = row_of(call, tile, lane / 4 + 8);
        struct row_view row[2] = {{low.low, low.high}, {high.low, high.high}};
        narrow_state<C> state;
        narrow_clear<C>(state);
        state.folded = false;
        for (int32_t i = 0; i < 2; i++)
            state.before[i] = {-CUDART_INF_F, 0.0f};
        narrow_walk<C, CAPPED>(state, shared, call, tile, query, row, rows, place);
        narrow_end<C>(state, shared, call, tile);
    }
    if (call.work.beside) /* who waits for this kernel waits for both */
        kernel_wait();
}

#endif
