/* attention: out[t, h] = sum over p of softmax(cap(scale * q . k[p])) * v[p], p from the window's
 * first position to the token's own, all read from the cache.
 *
 * A block is one head of one token. It goes through the positions in tiles of TILE that start at
 * multiples of TILE from position 0, one position a thread for the scores and one column a thread
 * for the values, with the running maximum and sum of an online softmax. The order is that of
 * positions alone: the same in a prompt, in decode, and however a prompt was cut.
 */
#include "kernels/cuda/kv.cuh"
#include "kernels/cuda/reduce.cuh"

#include <assert.h>
#include <math_constants.h>

enum { TILE = 128, COLUMNS = 4, HEAD_WIDTH_MAX = TILE * COLUMNS };

__device__ static float score(const float *query, const __half *key,
                              const struct attention_args &args)
{
    float dot = 0.0f;
    for (int32_t i = 0; i < args.head_width; i++)
        dot = fmaf(query[i], __half2float(key[i]), dot);
    dot *= args.scale;
    return args.softcap > 0.0f ? args.softcap * tanhf(dot / args.softcap) : dot;
}

__global__ void attention_kernel(float *out, int64_t out_stride, const float *qkv, int64_t stride,
                                 struct attention_args args, struct kv_layer layer,
                                 struct step_view step)
{
    __shared__ float query[HEAD_WIDTH_MAX];
    __shared__ float weight[TILE];
    __shared__ int64_t offset[TILE];
    __shared__ float scratch[TILE / WARP];
    int32_t t = blockIdx.x, h = blockIdx.y, thread = threadIdx.x, width = args.head_width;
    float *target = out + t * out_stride + (int64_t)h * width;
    if (t >= step.counts->token_count) {
        for (int32_t i = thread; i < width; i += TILE)
            target[i] = 0.0f;
        return;
    }

    /* load */
    int32_t slot = step.slot[t], final = step.position[t];
    int32_t first = args.window > 0 ? max(final - args.window + 1, 0) : 0;
    int64_t column = (int64_t)(h / (args.head_count / args.kv_head_count)) * width;
    for (int32_t i = thread; i < width; i += TILE)
        query[i] = qkv[t * stride + (int64_t)h * width + i];
    __syncthreads();

    /* compute: of a masked position neither key nor value is read, they may be anything */
    float max_score = -CUDART_INF_F, sum = 0.0f, value[COLUMNS] = {};
    for (int32_t tile = first / TILE * TILE; tile <= final; tile += TILE) {
        int32_t position = tile + thread;
        float own = -CUDART_INF_F;
        if (position >= first && position <= final) {
            offset[thread] = kv_offset(layer, slot, position) + column;
            own = score(query, layer.key + offset[thread], args);
        }
        float new_max = fmaxf(max_score, block_max<TILE>(own, scratch));
        float shrink = expf(max_score - new_max);
        weight[thread] = expf(own - new_max);
        sum = sum * shrink + block_sum<TILE>(weight[thread], scratch);
        for (int32_t c = 0; c < COLUMNS; c++)
            value[c] *= shrink;
        int32_t begin = max(first - tile, 0), end = min(final - tile + 1, (int32_t)TILE);
        for (int32_t p = begin; p < end; p++) {
            const __half *row = layer.key + layer.value_offset + offset[p];
            for (int32_t c = 0; c < COLUMNS; c++)
                if (thread + c * TILE < width)
                    value[c] = fmaf(weight[p], __half2float(row[thread + c * TILE]), value[c]);
        }
        max_score = new_max;
        __syncthreads(); /* weight and offset are free for the next tile */
    }

    /* store: a sink takes part in the sum and has no value */
    if (args.sinks != NULL) {
        float new_max = fmaxf(max_score, args.sinks[h]);
        float shrink = expf(max_score - new_max);
        sum = sum * shrink + expf(args.sinks[h] - new_max);
        for (int32_t c = 0; c < COLUMNS; c++)
            value[c] *= shrink;
    }
    for (int32_t c = 0; c < COLUMNS; c++)
        if (thread + c * TILE < width)
            target[thread + c * TILE] = value[c] / sum;
}

void cuda_attention(struct device *device, struct activation out, struct activation qkv,
                    const struct attention_args *args, int32_t T)
{
    assert(args->head_width <= HEAD_WIDTH_MAX);
    assert(args->head_count % args->kv_head_count == 0);
    if (T == 0)
        return;
    dim3 grid(T, args->head_count);
    attention_kernel<<<grid, TILE, 0, device->stream>>>(
        (float *)out.data, out.stride, (const float *)qkv.data, qkv.stride, *args,
        cuda_kv_layer(device, args->layer), device->step);
    launch_check(device, __func__);
}
