/* What the partials of a row become: slots for what is not one item, merges that fold them, the
 * quotient. */
#ifndef KERNELS_CUDA_ATTENTION_MERGE_CUH
#define KERNELS_CUDA_ATTENTION_MERGE_CUH

#include "kernels/cuda/attention_ring.cuh"

/* Where an item's result goes, [NARROW_ROWS, C] values, then [NARROW_ROWS] maxima and sums; of a
 * merge, the first item's. */
template <int C>
__device__ static inline float *slot_of(const struct attention_call &call,
                                        const struct attention_tile &tile)
{
    int64_t slot = (int64_t)tile.item.slot * call.args.kv_head_count + tile.kv_head;
    return call.work.partial + slot * (NARROW_ROWS * (C + 2));
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

/* ---- slots ---- */

/* A word of a slot is empty between launches, and what an item puts there never looks so: no sum
 * or product has these bits. So a word tells by itself that it has come: no fence, which would wait
 * for all copies on their way, no counter, and no kernel behind this one. Who takes a word leaves
 * it empty; the next launch's items put theirs only when this launch has ended.
 *
 * A block takes when it has no items left, and may wait for items of other blocks. These wait for
 * no slot, and they run: all blocks of the launch have room at once (narrow_launch) when what was
 * launched before has ended, wide items beside them too, and that waits for nobody here; what is
 * launched behind begins when all of these have (kernel_yield).
 */
enum { SLOT_EMPTY = -1, MERGE_AHEAD = 12 /* chunks of a thread on their way */ };

/* Whole for each of its words, not for their order. */
__device__ static inline uint4 slot_look(const float *word)
{
    uint4 v;
    asm volatile("ld.relaxed.gpu.global.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(word)
                 : "memory");
    return v;
}

__device__ static inline bool slot_is_full(uint4 v)
{
    return (v.x != (uint32_t)SLOT_EMPTY) & (v.y != (uint32_t)SLOT_EMPTY) &
           (v.z != (uint32_t)SLOT_EMPTY) & (v.w != (uint32_t)SLOT_EMPTY);
}

__device__ static inline void slot_clear(float *word)
{
    asm volatile("st.relaxed.gpu.global.v4.b32 [%0], {%1, %1, %1, %1};" ::"l"(word), "r"(SLOT_EMPTY)
                 : "memory");
}

__device__ static inline void slot_put(float *word, float a, float b)
{
    asm volatile("st.relaxed.gpu.global.v2.f32 [%0], {%1, %2};" ::"l"(word), "f"(a), "f"(b)
                 : "memory");
}

/* A row's maximum and sum. */
__device__ static inline float2 slot_take_state(float *word)
{
    uint32_t a, b;
    do
        asm volatile("ld.relaxed.gpu.global.v2.b32 {%0, %1}, [%2];"
                     : "=r"(a), "=r"(b)
                     : "l"(word)
                     : "memory");
    while (a == (uint32_t)SLOT_EMPTY || b == (uint32_t)SLOT_EMPTY);
    slot_put(word, __int_as_float(SLOT_EMPTY), __int_as_float(SLOT_EMPTY));
    return {__uint_as_float(a), __uint_as_float(b)};
}

/* ---- merges ---- */

/* Up to ROWS rows of a tile whose partials are folded at once. They lie beside each other in a
 * slot. What was the ring holds what is taken of SLOTS slots. */
template <int C, int ROWS> struct merge_shape {
    static constexpr int32_t COLUMNS = ROWS == 1 ? 2 : 4; /* a thread's */
    static constexpr int32_t ROW_THREADS = C / COLUMNS;
    static constexpr int32_t CHUNKS = ROWS * C / 4; /* of 16 bytes, of a slot */
    static constexpr int32_t SLOTS =
        narrow_shape<C>::STAGES * page_tile<C>::BYTES / (CHUNKS * 16 + ROWS * 16);
    static_assert(ROWS * ROW_THREADS <= NARROW_THREADS, "a thread for all columns");
};
template <int C> __host__ __device__ static constexpr int32_t merge_rows_max(void)
{
    return NARROW_THREADS * 4 / C < NARROW_ROWS ? NARROW_THREADS * 4 / C : (int)NARROW_ROWS;
}

template <int C, int ROWS> struct merge_shared {
    uint4 value[merge_shape<C, ROWS>::SLOTS][merge_shape<C, ROWS>::CHUNKS];
    float4 state[merge_shape<C, ROWS>::SLOTS][ROWS]; /* maximum, sum; see merge_factors */
};

/* What is merged: rows first .. first + rows - 1 of a tile, from `slot` on. */
struct merge_rows {
    float *slot;
    int64_t stride; /* of slots */
    int32_t first, rows;
};

/* Takes `slots` slots' rows. */
template <int C, int ROWS>
__device__ static inline void merge_take(merge_shared<C, ROWS> &shared, const merge_rows &merge,
                                         int32_t slots)
{
    constexpr int32_t CHUNKS = merge_shape<C, ROWS>::CHUNKS;
    int32_t count = slots * CHUNKS, there = merge.rows * (C / 4), thread = threadIdx.x;
    float *values = merge.slot + merge.first * C;
    float *states = merge.slot + NARROW_ROWS * C + 2 * merge.first;
#pragma unroll 1
    for (int32_t base = thread; base < count; base += MERGE_AHEAD * NARROW_THREADS) {
        uint4 v[MERGE_AHEAD];
#pragma unroll
        for (int32_t k = 0; k < MERGE_AHEAD; k++) {
            int32_t i = base + k * NARROW_THREADS;
            if (i < count && i % CHUNKS < there)
                v[k] = slot_look(values + i / CHUNKS * merge.stride + i % CHUNKS * 4);
        }
#pragma unroll
        for (int32_t k = 0; k < MERGE_AHEAD; k++) {
            int32_t i = base + k * NARROW_THREADS;
            if (i >= count || i % CHUNKS >= there)
                continue;
            float *own = values + i / CHUNKS * merge.stride + i % CHUNKS * 4;
            while (!slot_is_full(v[k]))
                v[k] = slot_look(own);
            slot_clear(own);
            shared.value[i / CHUNKS][i % CHUNKS] = v[k];
        }
    }
    for (int32_t i = thread; i < slots * ROWS; i += NARROW_THREADS) {
        if (i % ROWS >= merge.rows)
            continue;
        float2 state = slot_take_state(states + i / ROWS * merge.stride + i % ROWS * 2);
        shared.state[i / ROWS][i % ROWS] = {state.x, state.y, 0.0f, 0.0f};
    }
}

/* The factors of all slots of a row at once, by the lanes of a warp: a state becomes two factors,
 * the slot's sum, and the maximum up to there. Returns the last one. */
template <int C, int ROWS>
__device__ static inline float merge_factors(merge_shared<C, ROWS> &shared, int32_t r,
                                             int32_t slots, float maximum)
{
    int32_t lane = threadIdx.x % WARP;
#pragma unroll 1
    for (int32_t base = 0; base < slots; base += WARP) {
        bool there = base + lane < slots;
        float4 state = there ? shared.state[base + lane][r] : make_float4(-CUDART_INF_F, 0, 0, 0);
        float all = state.x;
#pragma unroll
        for (int32_t step = 1; step < WARP; step *= 2) {
            float other = __shfl_up_sync(0xffffffffu, all, step);
            all = lane >= step ? fmaxf(other, all) : all;
        }
        float before = __shfl_up_sync(0xffffffffu, all, 1);
        before = lane == 0 ? maximum : fmaxf(maximum, before);
        float both = before;
        float2 factor = partial_factors(both, state.x);
        if (there)
            shared.state[base + lane][r] = {factor.x, factor.y, state.y, both};
        maximum = fmaxf(maximum, __shfl_sync(0xffffffffu, all, WARP - 1));
    }
    return maximum;
}

/* Of up to two rows a warp. */
template <int C, int ROWS>
__device__ static inline void merge_prepare(merge_shared<C, ROWS> &shared, int32_t rows,
                                            int32_t slots, float (&maximum)[2])
{
    static_assert(ROWS <= 2 * NARROW_WARPS, "two rows a warp");
    int32_t warp = threadIdx.x / WARP;
    if (warp < rows)
        maximum[0] = merge_factors<C, ROWS>(shared, warp, slots, maximum[0]);
    if (ROWS > NARROW_WARPS && warp + NARROW_WARPS < rows)
        maximum[1] = merge_factors<C, ROWS>(shared, warp + NARROW_WARPS, slots, maximum[1]);
}

/* A thread's columns of a row. */
template <int COLUMNS> struct merge_state {
    struct row_total total;
    float value[COLUMNS];
};

template <int C, int ROWS>
__device__ static inline void merge_fold(merge_state<merge_shape<C, ROWS>::COLUMNS> &state,
                                         const merge_shared<C, ROWS> &shared, int32_t r,
                                         int32_t column, int32_t slots)
{
    constexpr int32_t COLUMNS = merge_shape<C, ROWS>::COLUMNS;
#pragma unroll 8
    for (int32_t s = 0; s < slots; s++) {
        float4 own = shared.state[s][r];
        const float *partial = (const float *)shared.value[s] + r * C + column;
        float2 factor = {own.x, own.y};
        state.total.sum = partial_fold(state.total.sum, own.z, factor);
        state.total.maximum = own.w;
#pragma unroll
        for (int32_t i = 0; i < COLUMNS; i += 2) {
            float2 two = *(const float2 *)(partial + i);
            state.value[i] = partial_fold(state.value[i], two.x, factor);
            state.value[i + 1] = partial_fold(state.value[i + 1], two.y, factor);
        }
    }
}

/* Folds the rows, slot after slot, and puts them out. */
template <int C, int ROWS>
__device__ static inline void merge_out(narrow_shared<C> &shared, const struct attention_call &call,
                                        const struct attention_tile &tile, struct merge_rows merge)
{
    using shape = merge_shape<C, ROWS>;
    auto &own = *reinterpret_cast<merge_shared<C, ROWS> *>(shared.stage);
    static_assert(sizeof(own) <= sizeof(shared.stage), "SLOTS of them fit");
    int32_t thread = threadIdx.x, r = thread / shape::ROW_THREADS;
    int32_t column = thread % shape::ROW_THREADS * shape::COLUMNS;
    merge_state<shape::COLUMNS> state = {{-CUDART_INF_F, 0.0f}, {}};
    float maximum[2] = {-CUDART_INF_F, -CUDART_INF_F};
#pragma unroll 1
    for (int32_t left = tile.item.partial_count; left > 0; left -= shape::SLOTS) {
        int32_t slots = min(left, shape::SLOTS);
        narrow_sync(); /* nobody reads what was there */
        merge_take<C, ROWS>(own, merge, slots);
        narrow_sync();
        merge_prepare<C, ROWS>(own, merge.rows, slots, maximum);
        narrow_sync();
        if (r < merge.rows)
            merge_fold<C, ROWS>(state, own, r, column, slots);
        merge.slot += slots * merge.stride;
    }
    if (r >= merge.rows)
        return;
    struct query_row row = row_of(call, tile, merge.first + r);
    const float *sinks = call.args.sinks;
    float factor = with_sink(state.total, sinks == NULL ? NULL : sinks + row.head);
    struct row_quotient by = quotient_of(state.total.sum, factor);
#pragma unroll
    for (int32_t i = 0; i < shape::COLUMNS; i += 2)
        *(uint32_t *)(row.out + column + i) = quotient_pair(state.value[i], state.value[i + 1], by);
}

/* The block's share of `tiles` merges, of one kv head each, ROWS rows at a time. */
template <int C, int ROWS>
__device__ static inline void merge_share(narrow_shared<C> &shared,
                                          const struct attention_call &call, int32_t tiles,
                                          int32_t rows)
{
    int32_t heads = call.args.kv_head_count, count = tiles * ((rows + ROWS - 1) / ROWS);
    for (int32_t i = blockIdx.x; i < count; i += gridDim.x) {
        int32_t index = i % tiles;
        struct attention_tile tile =
            tile_of(call, call.work.merge[index / heads], index % heads, NARROW_ROWS);
        struct merge_rows merge = {slot_of<C>(call, tile), (int64_t)heads * NARROW_ROWS * (C + 2),
                                   i / tiles * ROWS, 0};
        merge.rows = min(tile.count - merge.first, ROWS);
        if (merge.rows > 0)
            merge_out<C, ROWS>(shared, call, tile, merge);
    }
}

/* What the step's tiles that are several items come to; `tiles` of them with up to `rows` rows. By
 * the warps that compute, when the block has no items left: row by row where that keeps blocks
 * busy, else several rows at once. */
template <int C>
__device__ static inline void narrow_merge(narrow_shared<C> &shared,
                                           const struct attention_call &call, int32_t tiles,
                                           int32_t rows)
{
    tiles *= call.args.kv_head_count;
    if (tiles * rows > (int32_t)gridDim.x)
        merge_share<C, merge_rows_max<C>()>(shared, call, tiles, rows);
    else if (tiles > 0)
        merge_share<C, 1>(shared, call, tiles, rows);
}

#endif
