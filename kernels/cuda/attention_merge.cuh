/* What the partials of a row become: a slot for each, the merge that folds them, the quotient. */
#ifndef KERNELS_CUDA_ATTENTION_MERGE_CUH
#define KERNELS_CUDA_ATTENTION_MERGE_CUH

#include "kernels/cuda/attention_body.cuh"

/* Where a partial of a tile goes. */
template <int C>
__device__ static inline float *slot_of(const struct attention_call &call,
                                        const struct attention_tile &tile, int32_t partial)
{
    int64_t slot = (int64_t)(tile.item.slot + partial) * call.args.kv_head_count + tile.kv_head;
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
