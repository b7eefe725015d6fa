/* embed: out[t] = row token[t] of the table, dequantised, times scale. gather: out[s] = x[index
 * of sample s]. Rows past the step's own are zeros, so that what a graph computes for its padding
 * stays finite. A block is one row.
 */
#include "kernels/cuda/activation.cuh"
#include "kernels/cuda/dequantise.cuh"
#include "kernels/cuda/launch.cuh"

#include <assert.h>

enum { THREADS = 128 };

/* Rows first .. first + count - 1 of the table, which are one part of the weight. */
struct embed_part {
    float *out; /* [T, width] */
    int64_t out_stride;
    const uint8_t *table; /* [count] rows of row_bytes */
    int64_t row_bytes;
    int32_t first;
    int32_t count;
    int32_t width;
    float scale;
};

template <enum format F> __global__ void embed_kernel(struct embed_part part, struct step_view step)
{
    constexpr int32_t VALUES = format_size<F>::VALUES;
    constexpr int32_t BYTES = format_size<F>::BYTES;
    int32_t t = blockIdx.x;
    float *out = part.out + t * part.out_stride;
    kernel_wait();
    kernel_yield(); /* not before: see launch.cuh */
    if (t >= step.counts->token_count) {
        for (int32_t i = threadIdx.x; i < part.width; i += THREADS)
            out[i] = 0.0f;
        return;
    }
    int32_t row = step.token[t] - part.first;
    if (row < 0 || row >= part.count)
        return;
    const uint8_t *source = part.table + row * part.row_bytes;
    for (int32_t i = threadIdx.x; i < part.width; i += THREADS) {
        float value = dequantise<F>(source + (int64_t)(i / VALUES) * BYTES, i % VALUES);
        out[i] = __fmul_rn(value, part.scale);
    }
}

template <typename T>
__global__ void gather_kernel(T *out, int64_t out_stride, const T *x, int64_t x_stride,
                              int32_t width, struct step_view step)
{
    int32_t s = blockIdx.x;
    kernel_yield();
    kernel_wait();
    bool real = s < step.counts->sample_count;
    const T *source = x + (real ? step.sample[s].index : 0) * x_stride;
    for (int32_t i = threadIdx.x; i < width; i += THREADS)
        from_float(&out[s * out_stride + i], real ? to_float(source[i]) : 0.0f);
}

static void embed_part(struct device *device, enum format format, const struct embed_part *part,
                       int32_t T)
{
    struct launch_shape shape = {dim3(T), dim3(THREADS), 0};
    switch (format) {
#define FORMAT(constant, name, id, values, bytes)                                                  \
    case constant:                                                                                 \
        launch(device, __func__, embed_kernel<constant>, shape, *part, device->step);              \
        break;
        FORMATS(FORMAT)
#undef FORMAT
    case FORMAT_COUNT:
        assert(false);
    }
}

void cuda_embed(struct device *device, struct activation out, const struct weight *table,
                float scale, int32_t T)
{
    struct embed_part part = {};
    assert(out.residual);
    if (T == 0)
        return;
    part.out = (float *)out.data;
    part.out_stride = out.stride;
    part.width = table->in;
    part.scale = scale;
    for (int32_t i = 0; i < table->part_count; i++) {
        part.table = (const uint8_t *)table->part[i].data;
        part.row_bytes = (int64_t)format_row_bytes(table->part[i].format, table->in);
        part.count = table->part[i].out;
        embed_part(device, table->part[i].format, &part, T);
        part.first += part.count;
    }
}

void cuda_gather(struct device *device, struct activation out, struct activation x, int32_t S,
                 int32_t D)
{
    if (S == 0)
        return;
    struct launch_shape shape = {dim3(S), dim3(THREADS), 0};
    assert(out.residual == x.residual);
    if (x.residual)
        launch(device, __func__, gather_kernel<float>, shape, (float *)out.data, out.stride,
               (const float *)x.data, x.stride, D, device->step);
    else
        launch(device, __func__, gather_kernel<bf16>, shape, (bf16 *)out.data, out.stride,
               (const bf16 *)x.data, x.stride, D, device->step);
}
