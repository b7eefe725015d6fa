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
 * it empty. The takers are blocks that have no items left, and all blocks of the launch have room
 * at once. */
enum { SLOT_EMPTY = -1, MERGE_AHEAD = 8 /* chunks of a thread on their way */ };

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

/* Up to ROWS rows of a tile whose partials are folded at once, four columns a thread. They lie
 * beside each other in a slot. */
template <int C, int ROWS> struct merge_shape {
    static constexpr int32_t ROW_CHUNKS = C / 4; /* of 16 bytes */
    static constexpr int32_t CHUNKS = ROWS * ROW_CHUNKS;
    static constexpr int32_t SLOTS = /* that there is room for in what was the ring */
        narrow_shape<C>::STAGES * page_tile<C>::BYTES / (CHUNKS * 16 + ROWS * 8);
    static_assert(CHUNKS <= NARROW_THREADS, "a chunk a thread");
};
template <int C> __host__ __device__ static constexpr int32_t merge_rows_max(void)
{
    return NARROW_THREADS * 4 / C < NARROW_ROWS ? NARROW_THREADS * 4 / C : (int)NARROW_ROWS;
}

/* Takes `slots` slots' rows to shared memory: values, [SLOTS][CHUNKS], and states, [SLOTS][ROWS].
 */
template <int C, int ROWS>
__device__ static inline void merge_take(float4 *value, float2 *state, float *slot, int64_t stride,
                                         int32_t slots, int32_t first, int32_t rows)
{
    using shape = merge_shape<C, ROWS>;
    int32_t count = slots * shape::CHUNKS, thread = threadIdx.x;
    for (int32_t i = thread; i < slots * ROWS; i += NARROW_THREADS) {
        float *own = slot + i / ROWS * stride + NARROW_ROWS * C + 2 * (first + i % ROWS);
        if (i % ROWS < rows)
            state[i] = slot_take_state(own);
    }
#pragma unroll 1
    for (int32_t base = thread; base < count; base += MERGE_AHEAD * NARROW_THREADS) {
        uint4 v[MERGE_AHEAD];
        float *own[MERGE_AHEAD];
#pragma unroll
        for (int32_t k = 0; k < MERGE_AHEAD; k++) {
            int32_t i = base + k * NARROW_THREADS, chunk = i % shape::CHUNKS;
            bool there = i < count && chunk < rows * shape::ROW_CHUNKS;
            own[k] = there ? slot + i / shape::CHUNKS * stride + first * C + chunk * 4 : NULL;
            if (there)
                v[k] = slot_look(own[k]);
        }
#pragma unroll
        for (int32_t k = 0; k < MERGE_AHEAD; k++) {
            if (own[k] == NULL)
                continue;
            while (!slot_is_full(v[k]))
                v[k] = slot_look(own[k]);
            slot_clear(own[k]);
            ((uint4 *)value)[base + k * NARROW_THREADS] = v[k];
        }
    }
}

/* Folds rows first .. first + rows - 1 of a tile, slot after slot, and puts them out. */
template <int C, int ROWS>
__device__ static inline void
merge_rows(narrow_shared<C> &shared, const struct attention_call &call,
           const struct attention_tile &tile, int32_t first, int32_t rows)
{
    using shape = merge_shape<C, ROWS>;
    float *slot = slot_of<C>(call, tile);
    int64_t stride = (int64_t)call.args.kv_head_count * (NARROW_ROWS * (C + 2));
    float4 *value = (float4 *)shared.stage, all = {0.0f, 0.0f, 0.0f, 0.0f};
    float2 *state = (float2 *)(value + shape::SLOTS * shape::CHUNKS);
    struct row_total total = {-CUDART_INF_F, 0.0f};
    int32_t thread = threadIdx.x, r = thread / shape::ROW_CHUNKS, count = tile.item.partial_count;
#pragma unroll 1
    for (int32_t done = 0; done < count; done += shape::SLOTS) {
        int32_t slots = min(count - done, shape::SLOTS);
        narrow_sync(); /* nobody reads what was there */
        merge_take<C, ROWS>(value, state, slot + done * stride, stride, slots, first, rows);
        narrow_sync();
#pragma unroll 4
        for (int32_t s = 0; s < slots; s++) {
            float4 partial = value[s * shape::CHUNKS + min(thread, shape::CHUNKS - 1)];
            float2 own = state[s * ROWS + min(r, ROWS - 1)];
            float2 factor = partial_factors(total.maximum, own.x);
            total.sum = partial_fold(total.sum, own.y, factor);
            all.x = partial_fold(all.x, partial.x, factor);
            all.y = partial_fold(all.y, partial.y, factor);
            all.z = partial_fold(all.z, partial.z, factor);
            all.w = partial_fold(all.w, partial.w, factor);
        }
    }
    if (r >= rows)
        return;
    struct query_row row = row_of(call, tile, first + r);
    const float *sinks = call.args.sinks;
    float factor = with_sink(total, sinks == NULL ? NULL : sinks + row.head);
    struct row_quotient by = quotient_of(total.sum, factor);
    uint32_t *out = (uint32_t *)(row.out + thread % shape::ROW_CHUNKS * 4);
    out[0] = quotient_pair(all.x, all.y, by);
    out[1] = quotient_pair(all.z, all.w, by);
}

/* The block's share of merges, ROWS rows of a tile and kv head at a time. */
template <int C, int ROWS>
__device__ static inline void merge_share(narrow_shared<C> &shared,
                                          const struct attention_call &call)
{
    const struct attention_plan plan = *call.work.plan;
    int32_t tiles = plan.merge_count * call.args.kv_head_count;
    int32_t count = tiles * ((plan.merge_rows + ROWS - 1) / ROWS);
    for (int32_t i = blockIdx.x; i < count; i += gridDim.x) {
        int32_t first = i / tiles * ROWS, index = i % tiles, heads = call.args.kv_head_count;
        struct attention_tile tile =
            tile_of(call, call.work.merge[index / heads], index % heads, NARROW_ROWS);
        int32_t rows = min(tile.count - first, ROWS);
        if (rows > 0)
            merge_rows<C, ROWS>(shared, call, tile, first, rows);
    }
}

/* What the step's tiles that are several items come to. By the warps that compute, when the block
 * has no items left: row by row where that keeps blocks busy, else several rows at once. */
template <int C>
__device__ static inline void narrow_merge(narrow_shared<C> &shared,
                                           const struct attention_call &call)
{
    const struct attention_plan plan = *call.work.plan;
    int32_t rows = plan.merge_count * call.args.kv_head_count * plan.merge_rows;
    if (rows > (int32_t)gridDim.x)
        merge_share<C, merge_rows_max<C>()>(shared, call);
    else if (rows > 0)
        merge_share<C, 1>(shared, call);
}

#endif
