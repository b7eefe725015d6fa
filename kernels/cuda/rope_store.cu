/* rope_store: q = rotate(norm(q)) in place, cache k = rotate(norm(k)), cache v = v, for every
 * token at its position. Norm and rotation are in f32; the cache is f16.
 *
 * Two ways. Where heads come in chunks a thread has CHUNK columns of one head, or the same of
 * several, and a warp as many heads at once as it has threads for; columns that are rotated
 * together meet by shuffles. Else a warp is one head, which lies in shared memory between the norm
 * and the rotation. Which way it is depends on the model's shape alone, and so does the order of
 * sums.
 */
#include "kernels/cuda/activation.cuh"
#include "kernels/cuda/kv.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/reduce.cuh"

#include <assert.h>

enum { WARPS = 4, HEAD_WIDTH_MAX = 512 };

/* Rounds to f16; what would overflow stays the greatest f16, so that no infinity is cached. */
__device__ static inline __half saturate(float value)
{
    return __float2half_rn(fminf(fmaxf(value, -65504.0f), 65504.0f));
}

/* head = head / sqrt(mean(head^2) + eps) * weight */
__device__ static void norm_head(float *head, const float *weight, int32_t width, float eps)
{
    int32_t lane = threadIdx.x % WARP;
    float sum = 0.0f;
    for (int32_t i = lane; i < width; i += WARP)
        sum = fmaf(head[i], head[i], sum);
    float inverse = 1.0f / sqrtf(warp_sum(sum) / (float)width + eps);
    for (int32_t i = lane; i < width; i += WARP)
        head[i] = head[i] * inverse * weight[i];
    __syncwarp();
}

/* A column of a pair: `other` is the second one, negative, of the first, and the first one of the
 * second. Roundings are spelt out, so that all kernels have the same. */
__device__ static inline float rotated(float own, float other, float2 angle)
{
    return __fmaf_rn(own, angle.x, __fmul_rn(other, angle.y)); /* cosine, sine */
}

__device__ static void rotate_head(float *head, const float *rope, int32_t rotary,
                                   enum rope_pairing pairing)
{
    int32_t pair_count = rotary / 2;
    for (int32_t i = threadIdx.x % WARP; i < pair_count; i += WARP) {
        int32_t first = pairing == ROPE_HALVES ? i : 2 * i;
        int32_t second = pairing == ROPE_HALVES ? i + pair_count : 2 * i + 1;
        float2 angle = *(const float2 *)(rope + 2 * i); /* cosine and sine */
        float a = head[first], b = head[second];
        head[first] = rotated(a, -b, angle);
        head[second] = rotated(b, a, angle);
    }
    __syncwarp();
}

__global__ void __launch_bounds__(WARPS *WARP)
    any_kernel(bf16 *qkv, int64_t stride, struct rope_store_args args, struct kv_layer layer,
               struct step_view step)
{
    __shared__ float heads[WARPS][HEAD_WIDTH_MAX];
    int32_t lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    int32_t t = blockIdx.x, h = blockIdx.y * WARPS + warp, width = args.head_width;
    float *head = heads[warp];
    kernel_yield();
    kernel_wait();
    if (t >= step.counts->token_count || h >= args.head_count + 2 * args.kv_head_count)
        return;
    int32_t position = step.position[t];
    bf16 *source = qkv + t * stride + (int64_t)h * width;
    bool is_query = h < args.head_count;
    bool is_key = !is_query && h < args.head_count + args.kv_head_count;

    for (int32_t i = lane; i < width; i += WARP)
        head[i] = to_float(source[i]);
    __syncwarp();
    if (is_query || is_key) {
        const float *weight = is_query ? args.q_norm : args.k_norm;
        if (weight != NULL)
            norm_head(head, weight, width, args.norm_eps);
        rotate_head(head, args.rope + (int64_t)position * args.rotary, args.rotary, args.pairing);
    }
    if (is_query) {
        for (int32_t i = lane; i < width; i += WARP)
            from_float(&source[i], head[i]);
        return;
    }
    int32_t kv_head = h - args.head_count - (is_key ? 0 : args.kv_head_count);
    __half *target = layer.key + (is_key ? 0 : layer.value_offset) +
                     kv_offset(layer, step.slot[t], position) + (int64_t)kv_head * width;
    for (int32_t i = lane; i < width; i += WARP)
        target[i] = saturate(head[i]);
}

/* ---- by chunks ---- */

/* A head of C columns: its threads, and this one's place among them. */
template <int C> struct head_lanes {
    static constexpr int32_t COUNT = C / CHUNK;
    static constexpr int32_t HEADS = WARP / COUNT; /* a warp has */
    static_assert(WARP % COUNT == 0, "whole heads in a warp");
};

/* value = value / sqrt(mean(value^2) + eps) * weight */
template <int C>
__device__ static inline void norm_chunk(float (&value)[CHUNK], const float (&weight)[CHUNK],
                                         float eps)
{
    float sum = 0.0f;
#pragma unroll
    for (int32_t i = 0; i < CHUNK; i++)
        sum = fmaf(value[i], value[i], sum);
#pragma unroll
    for (int32_t offset = head_lanes<C>::COUNT / 2; offset > 0; offset /= 2)
        sum += __shfl_xor_sync(0xffffffffu, sum, offset);
    float inverse = 1.0f / sqrtf(sum / (float)C + eps);
#pragma unroll
    for (int32_t i = 0; i < CHUNK; i++)
        value[i] = value[i] * inverse * weight[i];
}

/* Cosines and sines of a chunk's pairs. Of halves each column has its own pair. */
struct chunk_angles {
    float2 angle[CHUNK];
    int32_t other; /* chunk that has the other column of each pair; -1: none is rotated */
    bool second;   /* this one's are the second columns */
};

template <int C>
__device__ static inline struct chunk_angles load_angles(const struct rope_store_args &args,
                                                         int32_t chunk, int32_t position)
{
    struct chunk_angles angles;
    int32_t half = args.rotary / 2 / CHUNK, column = chunk * CHUNK;
    const float *row = args.rope + (int64_t)position * args.rotary;
    angles.other = -1;
    angles.second = false;
    if (column >= args.rotary)
        return angles;
    angles.other = chunk;
    if (args.pairing == ROPE_HALVES) {
        angles.second = chunk >= half;
        angles.other = angles.second ? chunk - half : chunk + half;
        row += 2 * (angles.second ? column - args.rotary / 2 : column);
    } else {
        row += column;
    }
    int32_t count = args.pairing == ROPE_HALVES ? CHUNK : CHUNK / 2;
#pragma unroll
    for (int32_t i = 0; i < CHUNK; i += 2) {
        if (i >= count)
            break;
        float4 two = *(const float4 *)(row + 2 * i);
        angles.angle[i] = make_float2(two.x, two.y);
        angles.angle[i + 1] = make_float2(two.z, two.w);
    }
    return angles;
}

template <int C>
__device__ static inline void rotate_chunk(float (&value)[CHUNK], const struct chunk_angles &angles,
                                           enum rope_pairing pairing, int32_t chunk)
{
    if (pairing == ROPE_HALVES) {
        int32_t lane = threadIdx.x % WARP;
        int32_t other = angles.other < 0 ? lane : lane - chunk + angles.other;
#pragma unroll
        for (int32_t i = 0; i < CHUNK; i++) {
            float own = value[i], pair = __shfl_sync(0xffffffffu, own, other);
            float2 angle = angles.angle[i];
            if (angles.other >= 0)
                value[i] = rotated(own, angles.second ? pair : -pair, angle);
        }
        return;
    }
    if (angles.other < 0)
        return;
#pragma unroll
    for (int32_t i = 0; i < CHUNK; i += 2) {
        float a = value[i], b = value[i + 1];
        value[i] = rotated(a, -b, angles.angle[i / 2]);
        value[i + 1] = rotated(b, a, angles.angle[i / 2]);
    }
}

__device__ static inline void store_cached(__half *target, const float (&value)[CHUNK])
{
    alignas(16) __half bits[CHUNK];
#pragma unroll
    for (int32_t i = 0; i < CHUNK; i++)
        bits[i] = saturate(value[i]);
    *(uint4 *)target = *(const uint4 *)bits;
}

/* Which of the token's heads one is. */
enum head_kind { HEAD_QUERY, HEAD_KEY, HEAD_VALUE };

__device__ static inline enum head_kind kind_of(const struct rope_store_args &args, int32_t h)
{
    if (h < args.head_count)
        return HEAD_QUERY;
    return h < args.head_count + args.kv_head_count ? HEAD_KEY : HEAD_VALUE;
}

/* Norm and rotation of a thread's chunk of a head. All lanes meet in it. */
template <int C>
__device__ static inline void
turn_chunk(float (&value)[CHUNK], const float (&weight)[CHUNK], const struct rope_store_args &args,
           const struct chunk_angles &angles, enum head_kind kind, int32_t chunk)
{
    if (args.q_norm != NULL || args.k_norm != NULL) {
        bool has = kind != HEAD_VALUE && (kind == HEAD_QUERY ? args.q_norm : args.k_norm) != NULL;
        float normed[CHUNK];
#pragma unroll
        for (int32_t i = 0; i < CHUNK; i++)
            normed[i] = value[i];
        norm_chunk<C>(normed, weight, args.norm_eps);
#pragma unroll
        for (int32_t i = 0; i < CHUNK; i++)
            value[i] = has ? normed[i] : value[i];
    }
    rotate_chunk<C>(value, kind == HEAD_VALUE ? chunk_angles{{}, -1, false} : angles, args.pairing,
                    chunk);
}

/* A chunk's norm weights, for heads h, h + those of a round, ... */
template <int C, int ROUNDS>
__device__ static inline void load_weights(float (&weight)[ROUNDS][CHUNK],
                                           const struct rope_store_args &args, int32_t h,
                                           int32_t chunk)
{
#pragma unroll
    for (int32_t r = 0; r < ROUNDS; r++, h += WARPS * head_lanes<C>::HEADS) {
        enum head_kind kind = kind_of(args, h);
        const float *norm = kind == HEAD_QUERY ? args.q_norm : args.k_norm;
        if (norm != NULL && kind != HEAD_VALUE)
            load_chunk(weight[r], norm + chunk * CHUNK);
    }
}

/* A thread's chunk of head `h`: a query goes back, a key or a value to the cache. */
template <int C>
__device__ static inline void
put_chunk(const float (&value)[CHUNK], const struct rope_store_args &args,
          const struct kv_layer &layer, bf16 *source, __half *cached, int32_t h)
{
    int32_t kv_head = h - args.head_count;
    if (kv_head < 0)
        store_chunk(source + (int64_t)h * C, value);
    else if (kv_head < args.kv_head_count)
        store_cached(cached + (int64_t)kv_head * C, value);
    else
        store_cached(cached + layer.value_offset + (int64_t)(kv_head - args.kv_head_count) * C,
                     value);
}

/* A thread has the same chunk of ROUNDS heads of a token at once, and then of others, where the
 * grid has not blocks for all: they share its angles, which are more bytes than a head has, and
 * where the token is. What the step and the model say is read before the kernel before this one has
 * ended. */
template <int C, int ROUNDS>
__global__ void __launch_bounds__(WARPS *WARP)
    chunk_kernel(bf16 *qkv, int64_t stride, struct rope_store_args args, struct kv_layer layer,
                 struct step_view step)
{
    using lanes = head_lanes<C>;
    constexpr int32_t HEADS = WARPS * lanes::HEADS; /* of a round */
    int32_t lane = threadIdx.x % WARP, chunk = lane % lanes::COUNT, t = blockIdx.x;
    int32_t own = threadIdx.x / WARP * lanes::HEADS + lane / lanes::COUNT; /* of a round's heads */
    int32_t heads = args.head_count + 2 * args.kv_head_count;
    kernel_yield();
    if (t >= step.counts->token_count) {
        kernel_wait();
        return;
    }
    int32_t position = step.position[t], first = blockIdx.y * ROUNDS * HEADS;
    bool once = (int32_t)gridDim.y * ROUNDS * HEADS >= heads;
    struct chunk_angles angles = {};
    __half *cached = NULL;
    if (first < args.head_count + args.kv_head_count) /* not all are values */
        angles = load_angles<C>(args, chunk, position);
    if (!once || first + ROUNDS * HEADS > args.head_count) /* not all are queries */
        cached = layer.key + kv_offset(layer, step.slot[t], position) + chunk * CHUNK;
    bf16 *source = qkv + t * stride + chunk * CHUNK;
    float weight[ROUNDS][CHUNK] = {};
    load_weights<C, ROUNDS>(weight, args, first + own, chunk);
    kernel_wait();

    for (;;) {
        float value[ROUNDS][CHUNK] = {};
#pragma unroll
        for (int32_t r = 0; r < ROUNDS; r++)
            if (first + own + r * HEADS < heads)
                load_chunk(value[r], source + (int64_t)(first + own + r * HEADS) * C);
#pragma unroll
        for (int32_t r = 0; r < ROUNDS; r++) {
            int32_t h = first + own + r * HEADS;
            turn_chunk<C>(value[r], weight[r], args, angles, kind_of(args, h), chunk);
            if (h < heads)
                put_chunk<C>(value[r], args, layer, source, cached, h);
        }
        first += gridDim.y * ROUNDS * HEADS;
        if (first >= heads)
            return;
        load_weights<C, ROUNDS>(weight, args, first + own, chunk);
    }
}

/* Where one head a thread would be many blocks, two at once; and no more blocks than begin at once,
 * which go on. Both numbers are measured: blocks a multiprocessor. */
enum { SINGLE_BLOCKS = 4, PAIR_BLOCKS = 6 };

template <int C>
static void chunk_launch(struct device *device, struct activation qkv,
                         const struct rope_store_args *args, int32_t T)
{
    constexpr int32_t HEADS = WARPS * head_lanes<C>::HEADS;
    int32_t rounds = ceil_div(args->head_count + 2 * args->kv_head_count, HEADS);
    bool two = rounds > 1 && (int64_t)T * rounds > SINGLE_BLOCKS * device->core_count;
    int32_t columns = rounds;
    if (two) {
        int32_t pairs = ceil_div(rounds, 2), wanted = ceil_div(PAIR_BLOCKS * device->core_count, T);
        columns = wanted < pairs ? wanted : pairs;
    }
    auto kernel = two ? chunk_kernel<C, 2> : chunk_kernel<C, 1>;
    struct launch_shape shape = {dim3(T, columns), dim3(WARPS * WARP), 0};
    launch(device, __func__, kernel, shape, (bf16 *)qkv.data, qkv.stride, *args,
           cuda_kv_layer(device, args->layer), device->step);
}

/* Whether columns that meet in a rotation lie in whole chunks. */
static bool fits_chunks(struct activation qkv, const struct rope_store_args *args)
{
    int32_t unit = args->pairing == ROPE_HALVES ? 2 * CHUNK : CHUNK;
    return in_chunks(qkv.data, qkv.stride, args->head_width) && args->rotary % unit == 0;
}

void cuda_rope_store(struct device *device, struct activation qkv,
                     const struct rope_store_args *args, int32_t T)
{
    assert(args->head_width <= HEAD_WIDTH_MAX);
    assert(args->rotary % 2 == 0);
    if (T == 0)
        return;
    if (fits_chunks(qkv, args)) {
        switch (args->head_width) {
        case 64:
            chunk_launch<64>(device, qkv, args, T);
            return;
        case 128:
            chunk_launch<128>(device, qkv, args, T);
            return;
        case 256:
            chunk_launch<256>(device, qkv, args, T);
            return;
        }
    }
    struct launch_shape shape = {
        dim3(T, ceil_div(args->head_count + 2 * args->kv_head_count, WARPS)), dim3(WARPS * WARP),
        0};
    launch(device, __func__, any_kernel, shape, (bf16 *)qkv.data, qkv.stride, *args,
           cuda_kv_layer(device, args->layer), device->step);
}
