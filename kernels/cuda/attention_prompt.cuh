/* A wide item on Hopper: 128 query rows, or 192, and two warpgroups, or three, that multiply what
 * attention_feed.cuh brings.
 *
 * Each warpgroup has 64 rows. It starts the values of a tile and the scores of the next one, then
 * turns these into weights while another warpgroup's products run. Positions go by in ascending
 * order, 64 at a time; values of the partials before the current one are in shared memory, a place
 * a thread. attention.cuh tells what all this must keep.
 */
#ifndef KERNELS_CUDA_ATTENTION_PROMPT_CUH
#define KERNELS_CUDA_ATTENTION_PROMPT_CUH

#include "kernels/cuda/attention_feed.cuh"
#include "kernels/cuda/wgmma.cuh"

enum { PROMPT_PARTS = KV_TILE / 16, PROMPT_SCORES = KV_TILE / 8 };

template <int C> struct prompt_state {
    float value[C / 8][4];
    float score[PROMPT_SCORES][4];
    uint32_t weight[PROMPT_PARTS][4];
    uint32_t query[C / 16][4];
    float sum[2][PROMPT_PARTS];
    struct running row[2];
    struct row_total before[2];
    bool folded; /* `total` holds something */
    bool begun;  /* `value` does */
};

/* Positions that the rows of a warpgroup see. */
struct prompt_view {
    int32_t low, high;               /* seen by one row at least */
    int32_t all_low, all_high;       /* seen by every row */
    int32_t row_low[2], row_high[2]; /* by this thread's */
};

__device__ static inline struct prompt_view prompt_view_of(const struct attention_call &call,
                                                           const struct attention_tile &tile,
                                                           const struct query_row (&row)[2])
{
    int32_t first = threadIdx.x / PROMPT_GROUP * PROMPT_GROUP_ROWS;
    int32_t last = min(first + PROMPT_GROUP_ROWS - 1, tile.count - 1);
    struct prompt_view view = {0, -1, 0, -1, {row[0].low, row[1].low}, {row[0].high, row[1].high}};
    if (first >= tile.count)
        return view;
    struct query_row top = row_of(call, tile, first), bottom = row_of(call, tile, last);
    view.low = top.low;
    view.high = bottom.high;
    view.all_low = bottom.low;
    if (last == first + PROMPT_GROUP_ROWS - 1) /* rows past the count see nothing */
        view.all_high = top.high;
    return view;
}

/* An operand in a register that a warp has once, where products read it: else it goes there anew
 * for each. The upper half is the same for all. */
__device__ static inline uint64_t uniform_operand(uint64_t operand)
{
    uint32_t low = __reduce_or_sync(0xffffffffu, (uint32_t)operand);
    return (wgmma_operand(0, 0) & 0xffffffff00000000u) | low;
}

/* Starts the scores of a tile. */
template <int C>
__device__ static inline void prompt_scores(prompt_state<C> &state, const uint8_t *keys)
{
    uint64_t operand = uniform_operand(wgmma_operand(shared_address(keys), 16));
    wgmma_hold<PROMPT_SCORES>(state.score);
    wgmma_hold<C / 16>(state.query);
    wgmma_fence();
#pragma unroll
    for (int32_t k = 0; k < C / 16; k++)
        wgmma_64<false>(state.score, state.query[k],
                        operand + (k / 4 * tile_layout<C>::PIECE_BYTES + k % 4 * 32) / 16, k > 0);
    wgmma_commit();
}

/* Starts the values of a tile. */
template <int C>
__device__ static inline void prompt_values(prompt_state<C> &state, const uint8_t *values)
{
    uint64_t operand =
        uniform_operand(wgmma_operand(shared_address(values), tile_layout<C>::PIECE_BYTES));
    wgmma_hold<C / 8>(state.value);
    wgmma_hold<PROMPT_PARTS>(state.weight);
    wgmma_fence();
#pragma unroll
    for (int32_t k = 0; k < PROMPT_PARTS; k++) {
        uint64_t own = operand + k * 16 * 128 / 16;
        int32_t add = state.begun || k > 0;
        if (C >= 128)
            wgmma_128(state.value, state.weight[k], own, add);
        if (C % 128 != 0)
            wgmma_64<true>(state.value + C / 128 * 16, state.weight[k],
                           own + C / 128 * 2 * tile_layout<C>::PIECE_BYTES / 16, add);
    }
    wgmma_commit();
    state.begun = true;
}

template <int C>
__device__ static inline void prompt_cap(prompt_state<C> &state, const struct attention_args &args)
{
#pragma unroll
    for (int32_t n = 0; n < PROMPT_SCORES; n++)
#pragma unroll
        for (int32_t j = 0; j < 4; j++)
            state.score[n][j] = capped(state.score[n][j], args);
}

/* Rows g and g + 8; `position` is the thread's first. */
template <int C>
__device__ static inline void prompt_mask(prompt_state<C> &state, const struct prompt_view &view,
                                          int32_t position)
{
#pragma unroll
    for (int32_t n = 0; n < PROMPT_SCORES; n++)
#pragma unroll
        for (int32_t j = 0; j < 4; j++) {
            int32_t at = position + n * 8 + j % 2;
            if (at < view.row_low[j / 2] || at > view.row_high[j / 2])
                state.score[n][j] = -CUDART_INF_F;
        }
}

/* Maxima of the scores, and what follows for the rows; true: one of the warp's is raised. */
template <int C> __device__ static inline bool prompt_maxima(prompt_state<C> &state, float scale)
{
    float most[2];
#pragma unroll
    for (int32_t i = 0; i < 2; i++) {
        float part[PROMPT_PARTS];
#pragma unroll
        for (int32_t k = 0; k < PROMPT_PARTS; k++)
            part[k] =
                fmaxf(fmaxf(state.score[2 * k][2 * i], state.score[2 * k][2 * i + 1]),
                      fmaxf(state.score[2 * k + 1][2 * i], state.score[2 * k + 1][2 * i + 1]));
        most[i] = fmaxf(fmaxf(part[0], part[1]), fmaxf(part[2], part[3]));
    }
    static_assert(PROMPT_PARTS == 4, "all parts");
    bool raised = false;
#pragma unroll
    for (int32_t i = 0; i < 2; i++)
        raised |= advance(state.row[i], quad_max(most[i]), scale);
    return __any_sync(0xffffffffu, raised);
}

/* Scores become weights, packed as operands, and `sum` is theirs. False: a row may have to be
 * raised. That asks for no maximum, which takes longer beside a busy tensor core than all sums: a
 * score for which a row is raised has an exponent of RAISE at least, as rounding keeps the order,
 * and a weight, and so a sum, of 2^RAISE but for what exp2 is off. */
template <int C>
__device__ static inline bool prompt_weights(prompt_state<C> &state, float (&sum)[2][PROMPT_PARTS],
                                             float scale)
{
    const float near = 255.0f;
    static_assert(RAISE == 8.0f, "just below 2^RAISE");
#pragma unroll
    for (int32_t k = 0; k < PROMPT_PARTS; k++)
#pragma unroll
        for (int32_t i = 0; i < 2; i++) {
            float p[4];
#pragma unroll
            for (int32_t j = 0; j < 4; j++)
                p[j] =
                    weight_of(state.score[2 * k + j / 2][2 * i + j % 2], scale, state.row[i].base);
            sum[i][k] = __fadd_rn(__fadd_rn(__fadd_rn(p[0], p[1]), p[2]), p[3]);
            state.weight[k][i] = pack_half(p[0], p[1]);
            state.weight[k][i + 2] = pack_half(p[2], p[3]);
        }
    float all[2];
#pragma unroll
    for (int32_t i = 0; i < 2; i++)
        all[i] = (sum[i][0] + sum[i][1]) + (sum[i][2] + sum[i][3]);
    return __all_sync(0xffffffffu, all[0] < near && all[1] < near);
}

/* Makes the weights, with maxima where they need them: in the partial's first tile before, else
 * when they have turned out to be too large, and then once more. Sums go on. True: a row of the
 * warp is raised, and what values it has must shrink. */
template <int C> __device__ static inline bool prompt_weigh(prompt_state<C> &state, float scale)
{
    float sum[2][PROMPT_PARTS];
    bool looked = !state.begun, raised = false;
    state.row[0].factor = state.row[1].factor = 1.0f;
    if (looked)
        raised = prompt_maxima<C>(state, scale);
    while (!prompt_weights<C>(state, sum, scale) && !looked) { /* so that its code is here once */
        looked = true;
        raised = prompt_maxima<C>(state, scale);
        if (!raised) /* the weights are right as they are */
            break;
    }
#pragma unroll
    for (int32_t k = 0; k < PROMPT_PARTS; k++)
#pragma unroll
        for (int32_t i = 0; i < 2; i++)
            state.sum[i][k] = __fmaf_rn(state.sum[i][k], state.row[i].factor, sum[i][k]);
    return raised && state.begun;
}

/* Values of the tiles before shrink to a raised maximum. */
template <int C> __device__ static inline void prompt_shrink(prompt_state<C> &state)
{
#pragma unroll
    for (int32_t n = 0; n < C / 8; n++)
#pragma unroll
        for (int32_t i = 0; i < 4; i++)
            state.value[n][i] = __fmul_rn(state.value[n][i], state.row[i / 2].factor);
}

template <int C> __device__ static inline void prompt_clear(prompt_state<C> &state)
{
    for (int32_t i = 0; i < 2; i++) {
        state.row[i].maximum = -CUDART_INF_F;
#pragma unroll
        for (int32_t k = 0; k < PROMPT_PARTS; k++)
            state.sum[i][k] = 0.0f;
    }
}

/* Ends a partial but for its values, which are folded with `factor`; the next one begins. */
template <int C>
__device__ static inline void prompt_close(prompt_state<C> &state, float2 (&factor)[2])
{
#pragma unroll
    for (int32_t i = 0; i < 2; i++) {
        float sum = quad_sum(state.sum[i][0]);
#pragma unroll
        for (int32_t k = 1; k < PROMPT_PARTS; k++)
            sum = __fadd_rn(sum, quad_sum(state.sum[i][k]));
        factor[i] = partial_factors(state.before[i].maximum, state.row[i].maximum);
        state.before[i].sum = partial_fold(state.before[i].sum, sum, factor[i]);
    }
    prompt_clear<C>(state);
}

template <int C>
__device__ static inline float4 prompt_folded(const prompt_state<C> &state,
                                              const prompt_shared<C> &shared, int32_t n,
                                              const float2 (&factor)[2])
{
    float4 total = {0.0f, 0.0f, 0.0f, 0.0f};
    if (state.folded)
        total = shared.total[n][threadIdx.x];
    total.x = partial_fold(total.x, state.value[n][0], factor[0]);
    total.y = partial_fold(total.y, state.value[n][1], factor[0]);
    total.z = partial_fold(total.z, state.value[n][2], factor[1]);
    total.w = partial_fold(total.w, state.value[n][3], factor[1]);
    return total;
}

/* Folds a partial into those before it. */
template <int C>
__device__ static inline void prompt_fold(prompt_state<C> &state, prompt_shared<C> &shared)
{
    float2 factor[2];
    prompt_close<C>(state, factor);
#pragma unroll
    for (int32_t n = 0; n < C / 8; n++)
        shared.total[n][threadIdx.x] = prompt_folded<C>(state, shared, n, factor);
    state.folded = true;
    state.begun = false;
}

/* Two warpgroups take turns to start products, so that the one's softmax falls into the other's
 * products: each has a turn for every tile of an item. Barriers 4 and 5. Of three, two have
 * products to run while one makes weights, in whatever order. */
template <int C> __device__ static inline void turn_take(void)
{
    if (prompt_shape<C>::GROUPS == 2)
        asm volatile("bar.sync %0, %1;" ::"r"(4 + threadIdx.x / PROMPT_GROUP),
                     "n"((int)prompt_shape<C>::WORKERS)
                     : "memory");
}

template <int C> __device__ static inline void turn_give(void)
{
    if (prompt_shape<C>::GROUPS == 2)
        asm volatile("bar.arrive %0, %1;" ::"r"(5 - threadIdx.x / PROMPT_GROUP),
                     "n"((int)prompt_shape<C>::WORKERS)
                     : "memory");
}

/* Tiles of the item that this warpgroup sees nothing of. */
template <int C>
__device__ static inline void prompt_pass(prompt_shared<C> &shared, stage_ring<C> &ring,
                                          int32_t count)
{
    for (int32_t i = 0; i < count; i++, ring.next()) {
        turn_take<C>();
        turn_give<C>();
        barrier_wait(shared_address(&shared.key_full[ring.stage]), ring.parity);
        prompt_release(shared.key_empty[ring.stage]);
        barrier_wait(shared_address(&shared.value_full[ring.stage]), ring.parity);
        prompt_release(shared.value_empty[ring.stage]);
    }
}

/* Scores of the tile at `position` are there: cap and mask. */
template <int C, bool CAPPED>
__device__ static inline void prompt_look(prompt_state<C> &state, const struct attention_call &call,
                                          const struct prompt_view &view, int32_t position)
{
    bool edge = position < view.all_low || position + KV_TILE - 1 > view.all_high;
    if (CAPPED)
        prompt_cap<C>(state, call.args);
    if (__builtin_expect(edge, 0))
        prompt_mask<C>(state, view, position + threadIdx.x % 4 * 2);
}

/* Scores of the tile at `ring` are there: they become weights. What the next products need is
 * waited for in between: it is there already, and to see that takes its time. */
template <int C, bool CAPPED>
__device__ static inline void prompt_softmax(prompt_state<C> &state, prompt_shared<C> &shared,
                                             const struct attention_call &call,
                                             const struct prompt_view &view,
                                             const stage_ring<C> &ring, int32_t position, bool last)
{
    stage_ring<C> next = ring;
    prompt_release(shared.key_empty[ring.stage]);
    prompt_look<C, CAPPED>(state, call, view, position);
    next.next();
    barrier_wait(shared_address(&shared.value_full[ring.stage]), ring.parity);
    if (!last)
        barrier_wait(shared_address(&shared.key_full[next.stage]), next.parity);
    if (prompt_weigh<C>(state, call.scale))
        prompt_shrink<C>(state);
}

/* Goes through `count` tiles from `position` on; the values of the last one are running then. The
 * values of a tile are started before the scores of the next, so that they are there first. */
template <int C, bool CAPPED>
__device__ static inline void
prompt_walk(prompt_state<C> &state, prompt_shared<C> &shared, const struct attention_call &call,
            const struct prompt_view &view, stage_ring<C> &ring, int32_t position, int32_t count)
{
    int32_t partial_tokens = call.work.partial_tokens;
    int32_t border = (position / partial_tokens + 1) * partial_tokens;
    barrier_wait(shared_address(&shared.key_full[ring.stage]), ring.parity);
    turn_take<C>();
    prompt_scores<C>(state, shared.key[ring.stage]);
    turn_give<C>();
    wgmma_wait_but<0>();
    wgmma_hold<PROMPT_SCORES>(state.score);
    prompt_softmax<C, CAPPED>(state, shared, call, view, ring, position, count == 1);
    for (int32_t i = 1; i < count; i++) {
        int32_t before = ring.stage;
        ring.next();
        position += KV_TILE;
        turn_take<C>();
        prompt_values<C>(state, shared.value[before]);
        prompt_scores<C>(state, shared.key[ring.stage]);
        turn_give<C>();
        wgmma_wait_but<1>();
        wgmma_hold<C / 8>(state.value);
        prompt_release(shared.value_empty[before]);
        if (position == border) {
            prompt_fold<C>(state, shared);
            border += partial_tokens;
        }
        wgmma_wait_but<0>();
        wgmma_hold<PROMPT_SCORES>(state.score);
        prompt_softmax<C, CAPPED>(state, shared, call, view, ring, position, i + 1 == count);
    }
    prompt_values<C>(state, shared.value[ring.stage]);
}

/* What divides a row's values: `quotient` by the same sum many times. */
struct divisor {
    float factor, sum, inverse;
};

/* Rounds as `quotient` does: the first correction leaves less than a unit in the last place, the
 * second none. For values whose remainders cannot underflow. */
__device__ static inline float divided(float value, const struct divisor &by)
{
    float quotient = __fmul_rn(value, by.inverse);
    quotient = __fmaf_rn(__fmaf_rn(-quotient, by.sum, value), by.inverse, quotient);
    quotient = __fmaf_rn(__fmaf_rn(-quotient, by.sum, value), by.inverse, quotient);
    return __fadd_rn(quotient, 0.0f);
}

/* Values to memory. */
template <int C, bool SMALL>
__device__ static inline void prompt_put(const prompt_state<C> &state,
                                         const struct divisor (&by)[2],
                                         const struct query_row (&row)[2])
{
#pragma unroll
    for (int32_t i = 0; i < 2; i++) {
        if (row[i].out == NULL)
            continue;
#pragma unroll
        for (int32_t n = 0; n < C / 8; n++) {
            float first = state.value[n][2 * i], second = state.value[n][2 * i + 1];
            *(uint32_t *)(row[i].out + n * 8 + threadIdx.x % 4 * 2) =
                SMALL
                    ? pack_bf16(quotient(first, 1.0f, by[i].sum), quotient(second, 1.0f, by[i].sum))
                    : pack_bf16(divided(first, by[i]), divided(second, by[i]));
        }
    }
}

/* All partials are folded; the output. */
template <int C>
__device__ static inline void prompt_finish(prompt_state<C> &state, prompt_shared<C> &shared,
                                            const struct attention_call &call,
                                            const struct query_row (&row)[2])
{
    float2 factor[2];
    struct divisor by[2];
    float least = CUDART_INF_F;
    prompt_close<C>(state, factor);
#pragma unroll
    for (int32_t i = 0; i < 2; i++) {
        const float *sinks = call.args.sinks;
        by[i].factor = with_sink(state.before[i], sinks == NULL ? NULL : sinks + row[i].head);
        by[i].sum = state.before[i].sum;
        by[i].inverse = __frcp_rn(by[i].sum);
    }
#pragma unroll
    for (int32_t n = 0; n < C / 8; n++) {
        float4 total = prompt_folded<C>(state, shared, n, factor);
        const float own[4] = {total.x, total.y, total.z, total.w};
#pragma unroll
        for (int32_t i = 0; i < 4; i++) {
            state.value[n][i] = __fmul_rn(own[i], by[i / 2].factor);
            least = fminf(least, fabsf(state.value[n][i]));
        }
    }
    if (least < 0x1p-100f)
        prompt_put<C, true>(state, by, row);
    else
        prompt_put<C, false>(state, by, row);
}

__device__ static inline void prompt_rows(struct query_row (&row)[2],
                                          const struct attention_call &call,
                                          const struct attention_tile &tile)
{
    int32_t r = threadIdx.x / WARP * 16 + threadIdx.x % WARP / 4;
    row[0] = row_of(call, tile, r);
    row[1] = row_of(call, tile, r + 8);
}

/* Queries as they lie in memory, asked for early; and as operands. */
template <int C>
__device__ static inline void query_ask(uint32_t (&query)[C / 16][4],
                                        const struct query_row (&row)[2])
{
#pragma unroll
    for (int32_t k = 0; k < C / 16; k++)
#pragma unroll
        for (int32_t i = 0; i < 4; i++) {
            const bf16 *own = row[i % 2].query;
            int32_t column = k * 16 + threadIdx.x % 4 * 2 + i / 2 * 8;
            query[k][i] = own == NULL ? 0 : *(const uint32_t *)(own + column);
        }
}

template <int C> __device__ static inline void query_pack(uint32_t (&query)[C / 16][4])
{
#pragma unroll
    for (int32_t k = 0; k < C / 16; k++)
#pragma unroll
        for (int32_t i = 0; i < 4; i++)
            query[k][i] = pack_query(query[k][i]);
}

/* Asks for the queries of an item, if there is one. */
template <int C>
__device__ static inline void prompt_ask(prompt_state<C> &state, const struct attention_call &call,
                                         const struct prompt_work &work)
{
    struct query_row row[2];
    prompt_rows(row, call, tile_of(call, work.item, work.kv_head, prompt_item_rows(C)));
    query_ask<C>(state.query, row);
}

/* What a warpgroup does for an item; the queries of the next are asked for. */
template <int C, bool CAPPED>
__device__ static inline void
prompt_item(prompt_state<C> &state, prompt_shared<C> &shared, const struct attention_call &call,
            struct prompt_work &work, stage_ring<C> &ring, work_ring &place)
{
    struct attention_tile tile = tile_of(call, work.item, work.kv_head, prompt_item_rows(C));
    struct query_row row[2];
    prompt_rows(row, call, tile);
    struct prompt_view view = prompt_view_of(call, tile, row);
    int32_t first = tile.begin / KV_TILE, end = (tile.end - 1) / KV_TILE + 1;
    int32_t own_first = view.low / KV_TILE, own_end = view.high / KV_TILE + 1;
    if (view.high < 0)
        own_first = own_end = end;
    prompt_clear<C>(state);
    for (int32_t i = 0; i < 2; i++)
        state.before[i] = {-CUDART_INF_F, 0.0f};
    state.folded = state.begun = false;
    prompt_pass<C>(shared, ring, own_first - first);
    prompt_release(shared.work_empty[place.stage]);
    place.next();
    if (own_end > own_first) {
        prompt_walk<C, CAPPED>(state, shared, call, view, ring, own_first * KV_TILE,
                               own_end - own_first);
        work = work_wait<C>(shared, place);
        prompt_ask<C>(state, call, work);
        wgmma_wait_but<0>();
        wgmma_hold<C / 8>(state.value);
        prompt_release(shared.value_empty[ring.stage]);
        ring.next();
        prompt_finish<C>(state, shared, call, row);
    } else {
        work = work_wait<C>(shared, place);
        prompt_ask<C>(state, call, work);
    }
    prompt_pass<C>(shared, ring, end - own_end);
    query_pack<C>(state.query);
}

template <int C, bool CAPPED>
__device__ static inline void prompt_multiply(prompt_shared<C> &shared,
                                              const struct attention_call &call)
{
    stage_ring<C> ring = {0, 0};
    work_ring place = {0, 0};
    prompt_state<C> state;
#pragma unroll
    for (int32_t n = 0; n < C / 8; n++)
#pragma unroll
        for (int32_t i = 0; i < 4; i++)
            state.value[n][i] = 0.0f;
#pragma unroll
    for (int32_t n = 0; n < PROMPT_SCORES; n++)
#pragma unroll
        for (int32_t i = 0; i < 4; i++)
            state.score[n][i] = 0.0f;
    if (threadIdx.x / PROMPT_GROUP == 1) /* the first turn is the other's */
        turn_give<C>();
    struct prompt_work work = work_wait<C>(shared, place);
    prompt_ask<C>(state, call, work);
    query_pack<C>(state.query);
    while (work.kv_head >= 0)
        prompt_item<C, CAPPED>(state, shared, call, work, ring, place);
    if (threadIdx.x / PROMPT_GROUP == 0) /* no turn is left at the barriers */
        turn_take<C>();
}

/* What the next launch finds. All workers; the copying warps have taken their last number. */
template <int C> __device__ static inline void prompt_shut(const struct attention_call &call)
{
    asm volatile("bar.sync 3, %0;" ::"n"((int)prompt_shape<C>::WORKERS) : "memory");
    if (threadIdx.x == 0)
        end_tickets(call.work, TICKET_WIDE);
}

#endif
