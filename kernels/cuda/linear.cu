/* out[t, o] = sum over k of x[t, k] * W[o, k], + bias[o]; W dequantised as it is read.
 *
 * A warp makes one output o for a tile of TOKENS tokens, so that a weight is dequantised once
 * for all of them; a block is WARPS outputs. Lane l adds k = l, l + 32, ... in this order and
 * the lanes are joined by a butterfly: the order depends on `in` alone, never on T or the tile.
 * The plain version, for rows that do not come in chunks: matmul*.cu have the rest.
 */
#include "kernels/cuda/activation.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/matmul.cuh"
#include "kernels/cuda/reduce.cuh"
#include "kernels/cuda/unpack.cuh"

#include <assert.h>

enum { TOKENS = 8, WARPS = 4 };

template <enum format F, typename Out> __global__ void linear_kernel(struct matmul call)
{
    constexpr int32_t VALUES = format_size<F>::VALUES;
    constexpr int32_t BYTES = format_size<F>::BYTES;
    int32_t o = blockIdx.x * WARPS + threadIdx.x / WARP;
    int32_t lane = threadIdx.x % WARP;
    int32_t first = blockIdx.y * TOKENS;
    kernel_yield();
    kernel_wait();
    if (o >= call.count)
        return;

    /* Tokens past T read the last one's x again; their sums are dropped. */
    const bf16 *x[TOKENS];
    float sum[TOKENS];
#pragma unroll
    for (int32_t j = 0; j < TOKENS; j++) {
        x[j] = call.x + min(first + j, call.T - 1) * call.x_stride;
        sum[j] = 0.0f;
    }

    const uint8_t *row = (const uint8_t *)call.weight + o * (int64_t)(call.in / VALUES * BYTES);
    for (int32_t k = lane; k < call.in; k += WARP) {
        float weight = dequantise<F>(row + (int64_t)(k / VALUES) * BYTES, k % VALUES);
#pragma unroll
        for (int32_t j = 0; j < TOKENS; j++)
            sum[j] = fmaf(to_float(x[j][k]), weight, sum[j]);
    }

    float bias = call.bias != NULL ? call.bias[o] : 0.0f;
#pragma unroll
    for (int32_t j = 0; j < TOKENS; j++) {
        float value = warp_sum(sum[j]) + bias;
        if (call.softcap > 0.0f)
            value = call.softcap * tanhf(value / call.softcap);
        if (lane == 0 && first + j < call.T)
            from_float((Out *)call.out + (first + j) * call.out_stride + o, value);
    }
}

template <typename Out>
static void plain(struct device *device, enum format format, const struct matmul &call)
{
    struct launch_shape shape = {dim3(ceil_div(call.count, WARPS), ceil_div(call.T, TOKENS)),
                                 dim3(WARPS * WARP), 0};
    switch (format) {
#define FORMAT(constant, name, id, values, bytes)                                                  \
    case constant:                                                                                 \
        launch(device, __func__, linear_kernel<constant, Out>, shape, call);                       \
        break;
        FORMATS(FORMAT)
#undef FORMAT
    case FORMAT_COUNT:
        assert(false);
    }
}

static void tensor(struct device *device, const struct matmul &call)
{
    if (device->hopper)
        cuda_matmul(device, call);
    else
        cuda_matmul_sm80(device, call);
}

static void tensor_packed(struct device *device, const struct matmul &call, enum format format)
{
    if (device->hopper)
        cuda_matmul_packed(device, call, format);
    else
        cuda_matmul_packed_sm80(device, call, format);
}

bool cuda_matmul_packed_fits(const struct matmul &call, enum format format)
{
    struct matmul rows = call;
    rows.weight = NULL; /* which may lie anywhere */
    return cuda_matmul_fits(rows) && call.in % format_info(format)->block_values == 0 &&
           call.in % RUN == 0;
}

/* One part of a weight: on the tensor cores where these rows are for them. */
static void part(struct device *device, enum format format, const struct matmul &call)
{
    if (format == FORMAT_BF16 && cuda_matmul_fits(call))
        tensor(device, call);
    else if (format != FORMAT_BF16 && cuda_matmul_packed_fits(call, format))
        tensor_packed(device, call, format);
    else if (call.f32)
        plain<float>(device, format, call);
    else
        plain<bf16>(device, format, call);
}

static struct matmul call_of(void *out, int64_t out_stride, struct activation x,
                             const struct weight *weight, int32_t T)
{
    struct matmul call = {};
    call.out = out;
    call.out_stride = out_stride;
    call.x = (const bf16 *)x.data;
    call.x_stride = x.stride;
    call.weight = weight->part[0].data;
    call.bias = weight->bias;
    call.count = weight->out;
    call.in = weight->in;
    call.T = T;
    return call;
}

/* All parts of a weight, their outputs behind each other. */
static void linear(struct device *device, const struct matmul &whole, const struct weight *weight)
{
    int64_t done = 0, value_bytes = whole.f32 ? sizeof(float) : sizeof(bf16);
    assert(!weight->interleaved);
    if (whole.T == 0)
        return;
    for (int32_t i = 0; i < weight->part_count; i++) {
        struct matmul call = whole;
        call.out = (uint8_t *)whole.out + done * value_bytes;
        call.count = weight->part[i].out;
        call.weight = weight->part[i].data;
        call.bias = whole.bias != NULL ? whole.bias + done : NULL;
        part(device, weight->part[i].format, call);
        done += weight->part[i].out;
    }
}

void cuda_linear(struct device *device, struct activation out, struct activation x,
                 const struct weight *weight, int32_t T)
{
    linear(device, call_of(out.data, out.stride, x, weight, T), weight);
}

void cuda_gated_linear(struct device *device, struct activation out, struct activation gate_up,
                       struct activation x, const struct weight *weight, enum act_kind act,
                       int32_t T)
{
    assert(weight->gated);
    if (T == 0)
        return;
    if (!weight->interleaved) {
        cuda_linear(device, gate_up, x, weight, T);
        cuda_act_mul(device, out, gate_up, act, T, weight->out / 2);
        return;
    }
    struct matmul call = call_of(out.data, out.stride, x, weight, T);
    call.gated = true;
    call.act = act;
    assert(cuda_matmul_fits(call)); /* activations come in chunks, or pack would not have */
    tensor(device, call);
}

void cuda_logits(struct device *device, float *logits, struct activation x,
                 const struct weight *head, float softcap, int32_t count)
{
    struct matmul call = call_of(logits, head->out, x, head, count);
    call.softcap = softcap;
    call.f32 = true;
    linear(device, call, head);
}
