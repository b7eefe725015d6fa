/* norm: out = x / sqrt(mean(x^2) + eps) * weight. add_norm: x += branch, the branch normed first
 * where it has a weight; then out = norm(x) * weight. All in f32.
 *
 * A block is one row; thread i has columns i, i + THREADS, ..., so that sums do not depend on
 * how many rows there are, and a row may be normed in place.
 */
#include "kernels/cuda/reduce.cuh"

enum { THREADS = 256 };

/* 1 / sqrt(mean(x^2) + eps) of a row of `width`. */
__device__ static float inverse_rms(const float *x, int32_t width, float eps, float *scratch)
{
    float sum = 0.0f;
    for (int32_t i = threadIdx.x; i < width; i += THREADS)
        sum += x[i] * x[i];
    return 1.0f / sqrtf(block_sum<THREADS>(sum, scratch) / (float)width + eps);
}

__global__ void norm_kernel(float *out, int64_t out_stride, const float *x, int64_t x_stride,
                            const float *__restrict__ weight, int32_t width, float eps)
{
    __shared__ float scratch[THREADS / WARP];
    const float *row = x + blockIdx.x * x_stride;
    float inverse = inverse_rms(row, width, eps, scratch);
    for (int32_t i = threadIdx.x; i < width; i += THREADS)
        out[blockIdx.x * out_stride + i] = row[i] * inverse * weight[i];
}

/* Rows of one add_norm. */
struct add_norm_rows {
    float *out;
    float *x;
    const float *branch;
    int64_t out_stride, x_stride, branch_stride;
};

__global__ void add_norm_kernel(struct add_norm_rows rows, const float *__restrict__ branch_weight,
                                const float *__restrict__ weight, int32_t width, float eps)
{
    __shared__ float scratch[THREADS / WARP];
    float *x = rows.x + blockIdx.x * rows.x_stride;
    const float *branch = rows.branch + blockIdx.x * rows.branch_stride;
    float *out = rows.out + blockIdx.x * rows.out_stride;

    if (branch_weight == NULL) {
        for (int32_t i = threadIdx.x; i < width; i += THREADS)
            x[i] += branch[i];
    } else {
        float inverse = inverse_rms(branch, width, eps, scratch);
        for (int32_t i = threadIdx.x; i < width; i += THREADS)
            x[i] += branch[i] * inverse * branch_weight[i];
    }

    float inverse = inverse_rms(x, width, eps, scratch);
    for (int32_t i = threadIdx.x; i < width; i += THREADS)
        out[i] = x[i] * inverse * weight[i];
}

void cuda_norm(struct device *device, struct activation out, struct activation x,
               const float *weight, float eps, int32_t count, int32_t D)
{
    if (count == 0)
        return;
    norm_kernel<<<count, THREADS, 0, device->stream>>>(
        (float *)out.data, out.stride, (const float *)x.data, x.stride, weight, D, eps);
    launch_check(device, __func__);
}

void cuda_add_norm(struct device *device, struct activation out, struct activation x,
                   struct activation branch, const float *branch_weight, const float *weight,
                   float eps, int32_t T, int32_t D)
{
    struct add_norm_rows rows = {};
    if (T == 0)
        return;
    rows.out = (float *)out.data;
    rows.out_stride = out.stride;
    rows.x = (float *)x.data;
    rows.x_stride = x.stride;
    rows.branch = (const float *)branch.data;
    rows.branch_stride = branch.stride;
    add_norm_kernel<<<T, THREADS, 0, device->stream>>>(rows, branch_weight, weight, D, eps);
    launch_check(device, __func__);
}
