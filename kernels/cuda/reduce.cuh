/* Sums and maxima over the threads of a block, in an order that depends on THREADS alone. */
#ifndef KERNELS_CUDA_REDUCE_CUH
#define KERNELS_CUDA_REDUCE_CUH

#include "kernels/cuda/device.cuh"

__device__ static inline float warp_sum(float value)
{
    for (int32_t offset = WARP / 2; offset > 0; offset /= 2)
        value += __shfl_xor_sync(0xffffffffu, value, offset);
    return value;
}

__device__ static inline float warp_max(float value)
{
    for (int32_t offset = WARP / 2; offset > 0; offset /= 2)
        value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, offset));
    return value;
}

/* For all THREADS threads of the block; `scratch` is shared, [THREADS / WARP], and free for the
 * next call when this one returns. */
template <int THREADS> __device__ static inline float block_sum(float value, float *scratch)
{
    static_assert(THREADS % WARP == 0, "whole warps");
    value = warp_sum(value);
    if (threadIdx.x % WARP == 0)
        scratch[threadIdx.x / WARP] = value;
    __syncthreads();
    float sum = 0.0f;
    for (int32_t warp = 0; warp < THREADS / WARP; warp++)
        sum += scratch[warp];
    __syncthreads();
    return sum;
}

template <int THREADS> __device__ static inline float block_max(float value, float *scratch)
{
    static_assert(THREADS % WARP == 0, "whole warps");
    value = warp_max(value);
    if (threadIdx.x % WARP == 0)
        scratch[threadIdx.x / WARP] = value;
    __syncthreads();
    float max = scratch[0];
    for (int32_t warp = 1; warp < THREADS / WARP; warp++)
        max = fmaxf(max, scratch[warp]);
    __syncthreads();
    return max;
}

#endif
