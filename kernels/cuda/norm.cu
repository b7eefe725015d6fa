/* norm: out = x / sqrt(mean(x^2) + eps) * weight. add_norm: x += branch, the branch normed first
 * where it has a weight; then out = norm(x) * weight. Sums are in f32; x is the residual stream.
 *
 * A block is one row, which stays in registers between its passes: thread i has the chunks i,
 * i + THREADS, ... . Rows that do not come in chunks, or are too long, are read by single columns
 * and more than once. Which way it is depends on the width alone, and so does the order of sums.
 */
#include "kernels/cuda/activation.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/reduce.cuh"

#include <assert.h>

enum { THREADS = 256, CHUNKS_MAX = 8 };

/* Rows of one norm or add_norm. */
struct norm_rows {
    bf16 *out;
    float *x;
    const bf16 *branch;         /* NULL: nothing is added */
    const float *branch_weight; /* NULL: the branch is added as it is */
    const float *weight;
    int64_t out_stride, x_stride, branch_stride;
    int32_t width;
    float eps;
};

/* 1 / sqrt(mean + eps), from each thread's sum of squares. */
__device__ static inline float inverse_rms(float square, const struct norm_rows &rows,
                                           float *scratch)
{
    return 1.0f / sqrtf(block_sum<THREADS>(square, scratch) / (float)rows.width + rows.eps);
}

template <int CHUNKS> struct norm_row {
    float value[CHUNKS][CHUNK];
};

template <int CHUNKS> __device__ static inline float squares(const struct norm_row<CHUNKS> &row)
{
    float square = 0.0f;
#pragma unroll
    for (int32_t c = 0; c < CHUNKS; c++)
#pragma unroll
        for (int32_t i = 0; i < CHUNK; i++)
            square = fmaf(row.value[c][i], row.value[c][i], square);
    return square;
}

/* row = row * inverse * weight; zeros stay where the row has ended. */
template <int CHUNKS>
__device__ static inline void scale(struct norm_row<CHUNKS> &row, float inverse,
                                    const struct norm_row<CHUNKS> &weight)
{
#pragma unroll
    for (int32_t c = 0; c < CHUNKS; c++)
#pragma unroll
        for (int32_t i = 0; i < CHUNK; i++)
            row.value[c][i] = row.value[c][i] * inverse * weight.value[c][i];
}

template <int CHUNKS, typename T>
__device__ static inline void load_row(struct norm_row<CHUNKS> &row, const T *source, int32_t width)
{
#pragma unroll
    for (int32_t c = 0; c < CHUNKS; c++) {
        int32_t column = (c * THREADS + threadIdx.x) * CHUNK;
        if (column < width)
            load_chunk(row.value[c], source + column);
        else
            for (int32_t i = 0; i < CHUNK; i++)
                row.value[c][i] = 0.0f;
    }
}

template <int CHUNKS, typename T>
__device__ static inline void store_row(T *target, const struct norm_row<CHUNKS> &row,
                                        int32_t width)
{
#pragma unroll
    for (int32_t c = 0; c < CHUNKS; c++) {
        int32_t column = (c * THREADS + threadIdx.x) * CHUNK;
        if (column < width)
            store_chunk(target + column, row.value[c]);
    }
}

template <int CHUNKS> __global__ void __launch_bounds__(THREADS) norm_kernel(struct norm_rows rows)
{
    __shared__ float scratch[THREADS / WARP];
    float *x = rows.x + blockIdx.x * rows.x_stride;
    struct norm_row<CHUNKS> row, weight;
    kernel_yield();
    load_row<CHUNKS>(weight, rows.weight, rows.width); /* nobody writes it: before the wait */
    kernel_wait();
    load_row<CHUNKS>(row, x, rows.width);
    if (rows.branch != NULL) {
        struct norm_row<CHUNKS> branch;
        load_row<CHUNKS>(branch, rows.branch + blockIdx.x * rows.branch_stride, rows.width);
        if (rows.branch_weight != NULL) {
            struct norm_row<CHUNKS> factor;
            load_row<CHUNKS>(factor, rows.branch_weight, rows.width);
            scale<CHUNKS>(branch, inverse_rms(squares<CHUNKS>(branch), rows, scratch), factor);
        }
#pragma unroll
        for (int32_t c = 0; c < CHUNKS; c++)
#pragma unroll
            for (int32_t i = 0; i < CHUNK; i++)
                row.value[c][i] += branch.value[c][i];
        store_row<CHUNKS>(x, row, rows.width);
    }
    scale<CHUNKS>(row, inverse_rms(squares<CHUNKS>(row), rows, scratch), weight);
    store_row<CHUNKS>(rows.out + blockIdx.x * rows.out_stride, row, rows.width);
}

/* By single columns. */
__global__ void __launch_bounds__(THREADS) norm_columns_kernel(struct norm_rows rows)
{
    __shared__ float scratch[THREADS / WARP];
    float *x = rows.x + blockIdx.x * rows.x_stride;
    const bf16 *branch = rows.branch + blockIdx.x * rows.branch_stride;
    float square = 0.0f, inverse = 1.0f;
    kernel_yield();
    kernel_wait();
    if (rows.branch != NULL && rows.branch_weight != NULL) {
        for (int32_t i = threadIdx.x; i < rows.width; i += THREADS)
            square = fmaf(to_float(branch[i]), to_float(branch[i]), square);
        inverse = inverse_rms(square, rows, scratch);
    }
    for (int32_t i = threadIdx.x; rows.branch != NULL && i < rows.width; i += THREADS) {
        float factor = rows.branch_weight != NULL ? rows.branch_weight[i] : 1.0f;
        x[i] += to_float(branch[i]) * inverse * factor;
    }
    square = 0.0f;
    for (int32_t i = threadIdx.x; i < rows.width; i += THREADS)
        square = fmaf(x[i], x[i], square);
    inverse = inverse_rms(square, rows, scratch);
    for (int32_t i = threadIdx.x; i < rows.width; i += THREADS)
        from_float(&rows.out[blockIdx.x * rows.out_stride + i], x[i] * inverse * rows.weight[i]);
}

static void run(struct device *device, const struct norm_rows &rows, int32_t count)
{
    struct launch_shape shape = {dim3(count), dim3(THREADS), 0};
    int32_t chunks = ceil_div(rows.width, THREADS * CHUNK);
    bool whole = in_chunks(rows.out, rows.out_stride, rows.width) &&
                 in_chunks(rows.x, rows.x_stride, rows.width) &&
                 in_chunks(rows.branch, rows.branch_stride, rows.width);
    if (!whole || chunks > CHUNKS_MAX)
        launch(device, __func__, norm_columns_kernel, shape, rows);
    else if (chunks == 1)
        launch(device, __func__, norm_kernel<1>, shape, rows);
    else if (chunks == 2)
        launch(device, __func__, norm_kernel<2>, shape, rows);
    else if (chunks <= 4)
        launch(device, __func__, norm_kernel<4>, shape, rows);
    else
        launch(device, __func__, norm_kernel<CHUNKS_MAX>, shape, rows);
}

void cuda_norm(struct device *device, struct activation out, struct activation x,
               const float *weight, float eps, int32_t count, int32_t D)
{
    struct norm_rows rows = {};
    assert(x.residual && !out.residual);
    if (count == 0)
        return;
    rows.out = (bf16 *)out.data;
    rows.out_stride = out.stride;
    rows.x = (float *)x.data;
    rows.x_stride = x.stride;
    rows.weight = weight;
    rows.width = D;
    rows.eps = eps;
    run(device, rows, count);
}

void cuda_add_norm(struct device *device, struct activation out, struct activation x,
                   struct activation branch, const float *branch_weight, const float *weight,
                   float eps, int32_t T, int32_t D)
{
    struct norm_rows rows = {};
    assert(x.residual && !out.residual && !branch.residual);
    if (T == 0)
        return;
    rows.out = (bf16 *)out.data;
    rows.out_stride = out.stride;
    rows.x = (float *)x.data;
    rows.x_stride = x.stride;
    rows.branch = (const bf16 *)branch.data;
    rows.branch_stride = branch.stride;
    rows.branch_weight = branch_weight;
    rows.weight = weight;
    rows.width = D;
    rows.eps = eps;
    run(device, rows, T);
}
