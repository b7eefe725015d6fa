/* out[t, f] = act(gate) * up of [gate | up], in f32. A block is one row. */
#include "kernels/cuda/device.cuh"

enum { THREADS = 256 };

__device__ static inline float activate(enum act_kind act, float x)
{
    if (act == ACT_SILU)
        return x / (1.0f + expf(-x));
    return 0.5f * x * (1.0f + tanhf(0.7978845608f * x * (1.0f + 0.044715f * x * x)));
}

__global__ void act_mul_kernel(float *out, int64_t out_stride, const float *gate_up, int64_t stride,
                               int32_t width, enum act_kind act)
{
    const float *row = gate_up + blockIdx.x * stride;
    for (int32_t i = threadIdx.x; i < width; i += THREADS)
        out[blockIdx.x * out_stride + i] = activate(act, row[i]) * row[width + i];
}

void cuda_act_mul(struct device *device, struct activation out, struct activation gate_up,
                  enum act_kind act, int32_t T, int32_t F)
{
    if (T == 0)
        return;
    act_mul_kernel<<<T, THREADS, 0, device->stream>>>(
        (float *)out.data, out.stride, (const float *)gate_up.data, gate_up.stride, F, act);
    launch_check(device, __func__);
}
