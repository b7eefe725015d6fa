/* Activations on a GPU: bf16, and the residual stream f32.
 *
 * bf16 is what the checkpoints were trained in and what the tensor cores take. The residual stream
 * is the sum of all branches: rounded to bf16 after each of them it would lose what the late ones
 * add, and it is a small part of a step's traffic.
 */
#ifndef KERNELS_CUDA_ACTIVATION_CUH
#define KERNELS_CUDA_ACTIVATION_CUH

#include "kernels/cuda/device.cuh"

#include <cuda_bf16.h>

using bf16 = __nv_bfloat16;

enum { CHUNK = 8 }; /* values that a thread reads or writes at once: 16 bytes of bf16 */

__device__ static inline float to_float(float value)
{
    return value;
}

__device__ static inline float to_float(bf16 value)
{
    return __bfloat162float(value);
}

__device__ static inline void from_float(float *target, float value)
{
    *target = value;
}

__device__ static inline void from_float(bf16 *target, float value)
{
    *target = __float2bfloat16_rn(value);
}

/* Both are x * sigmoid(u), of the GPU's own exponential and reciprocal: within some units of f32's
 * last place, a thousandth of bf16's, and few instructions, which stand at the end of a tile, where
 * no tensor core works. What is below 2^-126 is 0. */
__device__ static inline float activate(enum act_kind act, float x)
{
    float u = act == ACT_SILU ? x : 1.5957691216f * x * (1.0f + 0.044715f * x * x);
    float power, share;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(u * -1.4426950409f));
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(share) : "f"(1.0f + power));
    return x * share;
}

/* Two floats to bf16, `low` in the lower half. */
__device__ static inline uint32_t pack_bf16(float low, float high)
{
    __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return *(uint32_t *)&pair;
}

__device__ static inline float2 unpack_bf16(uint32_t pair)
{
    return make_float2(__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u));
}

/* CHUNK values at an address of 16 bytes. */
__device__ static inline void load_chunk(float (&value)[CHUNK], const float *source)
{
    *(float4 *)value = *(const float4 *)source;
    *(float4 *)(value + 4) = *(const float4 *)(source + 4);
}

__device__ static inline void load_chunk(float (&value)[CHUNK], const bf16 *source)
{
    uint4 bits = *(const uint4 *)source;
    const uint32_t pair[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
    for (int32_t i = 0; i < 4; i++) {
        float2 two = unpack_bf16(pair[i]);
        value[2 * i] = two.x;
        value[2 * i + 1] = two.y;
    }
}

__device__ static inline void store_chunk(float *target, const float (&value)[CHUNK])
{
    *(float4 *)target = *(const float4 *)value;
    *(float4 *)(target + 4) = *(const float4 *)(value + 4);
}

__device__ static inline void store_chunk(bf16 *target, const float (&value)[CHUNK])
{
    *(uint4 *)target = make_uint4(pack_bf16(value[0], value[1]), pack_bf16(value[2], value[3]),
                                  pack_bf16(value[4], value[5]), pack_bf16(value[6], value[7]));
}

/* Whether rows of `width` can be read by chunks. */
static inline bool in_chunks(const void *data, int64_t stride, int32_t width)
{
    return (uintptr_t)data % 16 == 0 && stride % CHUNK == 0 && width % CHUNK == 0;
}

#endif
