/* out[t, o] = sum over k of x[t, k] * W[o, k], + bias[o]; W dequantised as it is read.
 *
 * A warp makes one output o for a tile of TOKENS tokens, so that a weight is dequantised once
 * for all of them; a block is WARPS outputs. Lane l adds k = l, l + 32, ... in this order and
 * the lanes are joined by a butterfly: the order depends on `in` alone, never on T or the tile.
 * The plain version, not tuned.
 */
#include "kernels/cuda/dequantise.cuh"
#include "kernels/cuda/reduce.cuh"

#include <assert.h>

enum { TOKENS = 8, WARPS = 4 };

/* One part of a weight and where its outputs go. */
struct linear_part {
    float *out; /* [T, count], rows of out_stride */
    int64_t out_stride;
    const float *x; /* [T, in], rows of x_stride */
    int64_t x_stride;
    const uint8_t *weight; /* [count] rows of row_bytes */
    int64_t row_bytes;
    const float *bias; /* [count], or NULL */
    int32_t count;
    int32_t in;
    int32_t T;
    float softcap; /* 0: none */
};

template <enum format F> __global__ void linear_kernel(struct linear_part part)
{
    constexpr int32_t VALUES = format_size<F>::VALUES;
    constexpr int32_t BYTES = format_size<F>::BYTES;
    int32_t o = blockIdx.x * WARPS + threadIdx.x / WARP;
    int32_t lane = threadIdx.x % WARP;
    int32_t first = blockIdx.y * TOKENS;
    if (o >= part.count)
        return;

    /* Tokens past T read the last one's x again; their sums are dropped. */
    const float *x[TOKENS];
    float sum[TOKENS];
#pragma unroll
    for (int32_t j = 0; j < TOKENS; j++) {
        x[j] = part.x + min(first + j, part.T - 1) * part.x_stride;
        sum[j] = 0.0f;
    }

    const uint8_t *row = part.weight + o * part.row_bytes;
    for (int32_t k = lane; k < part.in; k += WARP) {
        float weight = dequantise<F>(row + (int64_t)(k / VALUES) * BYTES, k % VALUES);
#pragma unroll
        for (int32_t j = 0; j < TOKENS; j++)
            sum[j] = fmaf(x[j][k], weight, sum[j]);
    }

    float bias = part.bias != NULL ? part.bias[o] : 0.0f;
#pragma unroll
    for (int32_t j = 0; j < TOKENS; j++) {
        float value = warp_sum(sum[j]) + bias;
        if (part.softcap > 0.0f)
            value = part.softcap * tanhf(value / part.softcap);
        if (lane == 0 && first + j < part.T)
            part.out[(first + j) * part.out_stride + o] = value;
    }
}

static void linear_part(struct device *device, enum format format, const struct linear_part *part)
{
    dim3 grid(ceil_div(part->count, WARPS), ceil_div(part->T, TOKENS));
    dim3 block(WARPS * WARP);
    switch (format) {
#define FORMAT(constant, name, id, values, bytes)                                                  \
    case constant:                                                                                 \
        linear_kernel<constant><<<grid, block, 0, device->stream>>>(*part);                        \
        break;
        FORMATS(FORMAT)
#undef FORMAT
    case FORMAT_COUNT:
        assert(false);
    }
    launch_check(device, __func__);
}

static void linear(struct device *device, struct linear_part part, const struct weight *weight)
{
    float *out = part.out;
    int32_t done = 0;
    if (part.T == 0)
        return;
    part.in = weight->in;
    for (int32_t i = 0; i < weight->part_count; i++) {
        part.out = out + done;
        part.count = weight->part[i].out;
        part.weight = (const uint8_t *)weight->part[i].data;
        part.row_bytes = (int64_t)format_row_bytes(weight->part[i].format, weight->in);
        part.bias = weight->bias != NULL ? weight->bias + done : NULL;
        linear_part(device, weight->part[i].format, &part);
        done += weight->part[i].out;
    }
}

void cuda_linear(struct device *device, struct activation out, struct activation x,
                 const struct weight *weight, int32_t T)
{
    struct linear_part part = {};
    part.out = (float *)out.data;
    part.out_stride = out.stride;
    part.x = (const float *)x.data;
    part.x_stride = x.stride;
    part.T = T;
    linear(device, part, weight);
}

void cuda_logits(struct device *device, float *logits, struct activation x,
                 const struct weight *head, float softcap, int32_t count)
{
    struct linear_part part = {};
    part.out = logits;
    part.out_stride = head->out;
    part.x = (const float *)x.data;
    part.x_stride = x.stride;
    part.T = count;
    part.softcap = softcap;
    linear(device, part, head);
}
