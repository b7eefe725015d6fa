/* rope_store: q = rotate(norm(q)) in place, cache k = rotate(norm(k)), cache v = v, for every
 * token at its position. Norm and rotation are in f32; the cache is f16.
 *
 * A warp is one head (of H + 2K) of one token; the head lies in shared memory between the norm
 * and the rotation, which joins columns of different threads.
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

__device__ static void rotate_head(float *head, const float *rope, int32_t rotary,
                                   enum rope_pairing pairing)
{
    int32_t pair_count = rotary / 2;
    for (int32_t i = threadIdx.x % WARP; i < pair_count; i += WARP) {
        int32_t first = pairing == ROPE_HALVES ? i : 2 * i;
        int32_t second = pairing == ROPE_HALVES ? i + pair_count : 2 * i + 1;
        float2 angle = *(const float2 *)(rope + 2 * i); /* cosine and sine */
        float a = head[first], b = head[second];
        head[first] = a * angle.x - b * angle.y;
        head[second] = b * angle.x + a * angle.y;
    }
    __syncwarp();
}

__global__ void __launch_bounds__(WARPS *WARP)
    rope_store_kernel(bf16 *qkv, int64_t stride, struct rope_store_args args, struct kv_layer layer,
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

void cuda_rope_store(struct device *device, struct activation qkv,
                     const struct rope_store_args *args, int32_t T)
{
    assert(args->head_width <= HEAD_WIDTH_MAX);
    assert(args->rotary % 2 == 0);
    if (T == 0)
        return;
    int32_t heads = args->head_count + 2 * args->kv_head_count;
    struct launch_shape shape = {dim3(T, ceil_div(heads, WARPS)), dim3(WARPS * WARP), 0};
    launch(device, __func__, rope_store_kernel, shape, (bf16 *)qkv.data, qkv.stride, *args,
           cuda_kv_layer(device, args->layer), device->step);
}
