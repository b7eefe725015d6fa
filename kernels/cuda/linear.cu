/* out[t, o] = sum over k of x[t, k] * W[o, k], + bias[o]; W dequantised as it is read.
 *
 * A warp makes one output o for a tile of TOKENS tokens, so that a weight is dequantised once
 * for all of them; a block is WARPS outputs. Lane l adds k = l, l + 32, ... in this order and
 * the lanes are joined by a butterfly: the order depends on `in` alone, never on T or the tile.
 * The plain version, for other GPUs and rows that do not come in chunks: matmul.cu and
 * matmul_packed.cu have the rest.
 */
#include "kernels/cuda/activation.cuh"
#include "kernels/cuda/dequantise.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/matmul.cuh"
#include "kernels/cuda/reduce.cuh"

#include <assert.h>

enum { TOKENS = 8, WARPS = 4 };

/* One part of a weight and where its outputs go. */
struct linear_part {
    void *out; /* [T, count], rows of out_stride; bf16, or f32 of logits */
    int64_t out_stride;
    const bf16 *x; /* [T, in], rows of x_stride */
    int64_t x_stride;
    const uint8_t *weight; /* [count] rows of row_bytes */
    int64_t row_bytes;
    const float *bias; /* [count], or NULL */
    int32_t count;
    int32_t in;
    int32_t T;
    float softcap; /* 0: none */
};

template <enum format F, typename Out> __global__ void linear_kernel(struct linear_part part)
{
    constexpr int32_t VALUES = format_size<F>::VALUES;
    constexpr int32_t BYTES = format_size<F>::BYTES;
    int32_t o = blockIdx.x * WARPS + threadIdx.x / WARP;
    int32_t lane = threadIdx.x % WARP;
    int32_t first = blockIdx.y * TOKENS;
    kernel_yield();
    kernel_wait();
    if (o >= part.count)
        return;

    /* Tokens past T read the last one's x again; their sums are dropped. */
    const bf16 *x[TOKENS];
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
            sum[j] = fmaf(to_float(x[j][k]), weight, sum[j]);
    }

    float bias = part.bias != NULL ? part.bias[o] : 0.0f;
#pragma unroll
    for (int32_t j = 0; j < TOKENS; j++) {
        float value = warp_sum(sum[j]) + bias;
        if (part.softcap > 0.0f)
            value = part.softcap * tanhf(value / part.softcap);
        if (lane == 0 && first + j < part.T)
            from_float((Out *)part.out + (first + j) * part.out_stride + o, value);
    }
}

template <typename Out>
static void linear_part(struct device *device, enum format format, const struct linear_part *part)
{
    struct launch_shape shape = {dim3(ceil_div(part->count, WARPS), ceil_div(part->T, TOKENS)),
                                 dim3(WARPS * WARP), 0};
    switch (format) {
#define FORMAT(constant, name, id, values, bytes)                                                  \
    case constant:                                                                                 \
        launch(device, __func__, linear_kernel<constant, Out>, shape, *part);                      \
        break;
        FORMATS(FORMAT)
#undef FORMAT
    case FORMAT_COUNT:
        assert(false);
    }
}

static struct matmul matmul_of(const struct linear_part &part)
{
    struct matmul call = {};
    call.out = part.out;
    call.out_stride = part.out_stride;
    call.x = part.x;
    call.x_stride = part.x_stride;
    call.weight = (const bf16 *)part.weight;
    call.bias = part.bias;
    call.count = part.count;
    call.in = part.in;
    call.T = part.T;
    call.softcap = part.softcap;
    return call;
}

/* On the tensor cores: true when this GPU and these rows are for them. */
static bool matmul(struct device *device, const struct linear_part &part, enum format format,
                   bool f32)
{
    struct matmul call = matmul_of(part);
    call.f32 = f32;
    if (format == FORMAT_BF16 && cuda_matmul_fits(device, call))
        cuda_matmul(device, call);
    else if (format != FORMAT_BF16 && cuda_matmul_packed_fits(device, call, format))
        cuda_matmul_packed(device, call, format, part.weight);
    else
        return false;
    return true;
}

template <typename Out>
static void linear(struct device *device, struct linear_part part, const struct weight *weight)
{
    Out *out = (Out *)part.out;
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
        if (!matmul(device, part, weight->part[i].format, sizeof(Out) == sizeof(float)))
            linear_part<Out>(device, weight->part[i].format, &part);
        done += weight->part[i].out;
    }
}

void cuda_linear(struct device *device, struct activation out, struct activation x,
                 const struct weight *weight, int32_t T)
{
    struct linear_part part = {};
    assert(!weight->interleaved);
    part.out = out.data;
    part.out_stride = out.stride;
    part.x = (const bf16 *)x.data;
    part.x_stride = x.stride;
    part.T = T;
    linear<bf16>(device, part, weight);
}

void cuda_gated_linear(struct device *device, struct activation out, struct activation gate_up,
                       struct activation x, const struct weight *weight, enum act_kind act,
                       int32_t T)
{
    struct linear_part part = {};
    assert(weight->gated);
    if (T == 0)
        return;
    if (!weight->interleaved) {
        cuda_linear(device, gate_up, x, weight, T);
        cuda_act_mul(device, out, gate_up, act, T, weight->out / 2);
        return;
    }
    part.out = out.data;
    part.out_stride = out.stride;
    part.x = (const bf16 *)x.data;
    part.x_stride = x.stride;
    part.weight = (const uint8_t *)weight->part[0].data;
    part.bias = weight->bias;
    part.count = weight->out;
    part.in = weight->in;
    part.T = T;
    struct matmul call = matmul_of(part);
    call.gated = true;
    call.act = act;
    assert(cuda_matmul_fits(device, call)); /* activations come in chunks, or pack would not have */
    cuda_matmul(device, call);
}

void cuda_logits(struct device *device, float *logits, struct activation x,
                 const struct weight *head, float softcap, int32_t count)
{
    struct linear_part part = {};
    part.out = logits;
    part.out_stride = head->out;
    part.x = (const bf16 *)x.data;
    part.x_stride = x.stride;
    part.T = count;
    part.softcap = softcap;
    linear<float>(device, part, head);
}
