/* out[t, f] = act(gate) * up of [gate | up], in f32 between. A thread is one chunk of a row, or
 * one column where rows do not come in chunks. */
#include "kernels/cuda/activation.cuh"
#include "kernels/cuda/launch.cuh"

enum { THREADS = 256 };

struct act_mul_rows {
    bf16 *out;
    const bf16 *gate_up;
    int64_t out_stride, stride;
    int32_t width;
    enum act_kind act;
};

__global__ void __launch_bounds__(THREADS) act_mul_kernel(struct act_mul_rows rows)
{
    int32_t column = (blockIdx.y * THREADS + threadIdx.x) * CHUNK;
    const bf16 *row = rows.gate_up + blockIdx.x * rows.stride;
    float gate[CHUNK], up[CHUNK];
    kernel_yield();
    kernel_wait();
    if (column >= rows.width)
        return;
    load_chunk(gate, row + column);
    load_chunk(up, row + rows.width + column);
#pragma unroll
    for (int32_t i = 0; i < CHUNK; i++)
        up[i] *= activate(rows.act, gate[i]);
    store_chunk(rows.out + blockIdx.x * rows.out_stride + column, up);
}

__global__ void __launch_bounds__(THREADS) act_mul_columns_kernel(struct act_mul_rows rows)
{
    int32_t i = blockIdx.y * THREADS + threadIdx.x;
    const bf16 *row = rows.gate_up + blockIdx.x * rows.stride;
    kernel_yield();
    kernel_wait();
    if (i < rows.width)
        from_float(&rows.out[blockIdx.x * rows.out_stride + i],
                   activate(rows.act, to_float(row[i])) * to_float(row[rows.width + i]));
}

void cuda_act_mul(struct device *device, struct activation out, struct activation gate_up,
                  enum act_kind act, int32_t T, int32_t F)
{
    struct act_mul_rows rows = {};
    if (T == 0)
        return;
    rows.out = (bf16 *)out.data;
    rows.out_stride = out.stride;
    rows.gate_up = (const bf16 *)gate_up.data;
    rows.stride = gate_up.stride;
    rows.width = F;
    rows.act = act;
    bool whole = in_chunks(out.data, out.stride, F) && in_chunks(gate_up.data, gate_up.stride, F);
    int32_t blocks = ceil_div(F, whole ? THREADS * CHUNK : (int32_t)THREADS);
    struct launch_shape shape = {dim3(T, blocks), dim3(THREADS), 0};
    if (whole)
        launch(device, __func__, act_mul_kernel, shape, rows);
    else
        launch(device, __func__, act_mul_columns_kernel, shape, rows);
}
