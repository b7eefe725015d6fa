/* wgmma: four warps multiply their 64 rows at once with an operand in shared memory. */
#ifndef KERNELS_CUDA_WGMMA_CUH
#define KERNELS_CUDA_WGMMA_CUH

#include "kernels/cuda/device.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || !defined(__CUDA_ARCH__)

/* d = a . b, or d += a . b where `add`: a 64x16, its rows a warp as mma's; b 16x64, TURNED where
 * its rows are the reduction's. Runs until it is waited for. */
template <bool TURNED>
__device__ static inline void wgmma_64(float (*d)[4], const uint32_t (&a)[4], uint64_t b,
                                       int32_t add)
{
    asm volatile(
        "{.reg .pred p; setp.ne.b32 p, %37, 0; "
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 "
        "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, "
        "%12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, "
        "%24, %25, %26, %27, %28, %29, %30, %31}, "
        "{%32, %33, %34, %35}, %36, p, 1, 1, %38;}"
        : "+f"(d[0][0]), "+f"(d[0][1]), "+f"(d[0][2]), "+f"(d[0][3]), "+f"(d[1][0]), "+f"(d[1][1]),
          "+f"(d[1][2]), "+f"(d[1][3]), "+f"(d[2][0]), "+f"(d[2][1]), "+f"(d[2][2]), "+f"(d[2][3]),
          "+f"(d[3][0]), "+f"(d[3][1]), "+f"(d[3][2]), "+f"(d[3][3]), "+f"(d[4][0]), "+f"(d[4][1]),
          "+f"(d[4][2]), "+f"(d[4][3]), "+f"(d[5][0]), "+f"(d[5][1]), "+f"(d[5][2]), "+f"(d[5][3]),
          "+f"(d[6][0]), "+f"(d[6][1]), "+f"(d[6][2]), "+f"(d[6][3]), "+f"(d[7][0]), "+f"(d[7][1]),
          "+f"(d[7][2]), "+f"(d[7][3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add), "n"(TURNED ? 1 : 0));
}

#define ACCUMULATORS(n) "+f"(d[n][0]), "+f"(d[n][1]), "+f"(d[n][2]), "+f"(d[n][3])
#define ACCUMULATORS_8(n)                                                                          \
    ACCUMULATORS(n), ACCUMULATORS((n) + 1), ACCUMULATORS((n) + 2), ACCUMULATORS((n) + 3),          \
        ACCUMULATORS((n) + 4), ACCUMULATORS((n) + 5), ACCUMULATORS((n) + 6), ACCUMULATORS((n) + 7)

/* The same with b 16x128, TURNED. */
__device__ static inline void wgmma_128(float (*d)[4], const uint32_t (&a)[4], uint64_t b,
                                        int32_t add)
{
    asm volatile("{.reg .pred p; setp.ne.b32 p, %69, 0; "
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 "
                 "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
                 "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
                 "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
                 "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
                 "{%64, %65, %66, %67}, %68, p, 1, 1, 1;}"
                 : ACCUMULATORS_8(0), ACCUMULATORS_8(8)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add));
}

#undef ACCUMULATORS
#undef ACCUMULATORS_8

/* Registers are as they should be; what other threads copied in is there. */
__device__ static inline void wgmma_fence(void)
{
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

/* Ends a group of products. */
__device__ static inline void wgmma_commit(void)
{
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

/* Until at most COUNT groups run. */
template <int COUNT> __device__ static inline void wgmma_wait_but(void)
{
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(COUNT) : "memory");
}

/* After a thread's own writes and copies to shared memory, before the barrier that shows them. */
__device__ static inline void wgmma_show(void)
{
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

/* From now on this warpgroup's threads have at most, or at least, so many registers; whoever asks
 * for more waits until others have given up theirs. */
template <int COUNT> __device__ static inline void registers_give(void)
{
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT));
}

template <int COUNT> __device__ static inline void registers_take(void)
{
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT));
}

#else /* other GPUs: never launched, see cuda_attention_prompt_fits */

template <bool TURNED>
__device__ static inline void wgmma_64(float (*)[4], const uint32_t (&)[4], uint64_t, int32_t)
{
}

__device__ static inline void wgmma_128(float (*)[4], const uint32_t (&)[4], uint64_t, int32_t)
{
}

__device__ static inline void wgmma_fence(void)
{
}

__device__ static inline void wgmma_commit(void)
{
}

template <int COUNT> __device__ static inline void wgmma_wait_but(void)
{
}

__device__ static inline void wgmma_show(void)
{
}

template <int COUNT> __device__ static inline void registers_give(void)
{
}

template <int COUNT> __device__ static inline void registers_take(void)
{
}

#endif

/* Keeps the compiler from moving what it does with accumulators to the other side of a fence or
 * a wait: that they are in use between is not in the asm statements' operands. */
template <int COUNT> __device__ static inline void wgmma_hold(float (*d)[4])
{
#pragma unroll
    for (int32_t n = 0; n < COUNT; n++)
#pragma unroll
        for (int32_t i = 0; i < 4; i++)
            asm volatile("" : "+f"(d[n][i])::"memory");
}

/* The same for operands in registers: made before the fence, not after it. */
template <int COUNT> __device__ static inline void wgmma_hold(uint32_t (*a)[4])
{
#pragma unroll
    for (int32_t n = 0; n < COUNT; n++)
#pragma unroll
        for (int32_t i = 0; i < 4; i++)
            asm volatile("" : "+r"(a[n][i])::"memory");
}

/* An operand at `address` in 128-byte swizzled rows: 1,024 bytes between groups of eight rows,
 * `leading` bytes between pieces of 64 columns where it is turned. */
__device__ static inline uint64_t wgmma_operand(uint32_t address, uint32_t leading)
{
    return (uint64_t)(address >> 4 & 0x3fff) | (uint64_t)(leading >> 4 & 0x3fff) << 16 |
           (uint64_t)(1024 >> 4) << 32 | (uint64_t)1 << 62;
}

#endif
