/* wgmma in bf16: a warpgroup's 64 rows times N columns, both operands in shared memory. */
#ifndef KERNELS_CUDA_WGMMA_BF16_CUH
#define KERNELS_CUDA_WGMMA_BF16_CUH

#include "kernels/cuda/wgmma.cuh"

/* d = a . b, or d += a . b where `add`: a [64, 16] and b [N, 16], both with the reduction's columns
 * side by side (wgmma_operand); d as mma's accumulators, 16 rows a warp. Runs until it is waited
 * for. One such product adds its sixteen terms in an order of the hardware's own that does not
 * depend on N: test_matmul holds it to that. */
template <int N> struct wgmma_bf16;

#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || !defined(__CUDA_ARCH__)

#define ACCUMULATORS(n) "+f"(d[n][0]), "+f"(d[n][1]), "+f"(d[n][2]), "+f"(d[n][3])
#define ACCUMULATORS_4(n)                                                                          \
    ACCUMULATORS(n), ACCUMULATORS((n) + 1), ACCUMULATORS((n) + 2), ACCUMULATORS((n) + 3)
#define ACCUMULATORS_16(n)                                                                         \
    ACCUMULATORS_4(n), ACCUMULATORS_4((n) + 4), ACCUMULATORS_4((n) + 8), ACCUMULATORS_4((n) + 12)

template <> struct wgmma_bf16<8> {
    __device__ static inline void multiply(float (&d)[1][4], uint64_t a, uint64_t b, int32_t add)
    {
        asm volatile("{.reg .pred p; setp.ne.b32 p, %6, 0; "
                     "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 "
                     "{%0, %1, %2, %3}, "
                     "%4, %5, p, 1, 1, 0, 0;}"
                     : ACCUMULATORS(0)
                     : "l"(a), "l"(b), "r"(add));
    }
};

template <> struct wgmma_bf16<16> {
    __device__ static inline void multiply(float (&d)[2][4], uint64_t a, uint64_t b, int32_t add)
    {
        asm volatile("{.reg .pred p; setp.ne.b32 p, %10, 0; "
                     "wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 "
                     "{%0, %1, %2, %3, %4, %5, %6, %7}, "
                     "%8, %9, p, 1, 1, 0, 0;}"
                     : ACCUMULATORS(0), ACCUMULATORS(1)
                     : "l"(a), "l"(b), "r"(add));
    }
};

template <> struct wgmma_bf16<32> {
    __device__ static inline void multiply(float (&d)[4][4], uint64_t a, uint64_t b, int32_t add)
    {
        asm volatile("{.reg .pred p; setp.ne.b32 p, %18, 0; "
                     "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 "
                     "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15}, "
                     "%16, %17, p, 1, 1, 0, 0;}"
                     : ACCUMULATORS_4(0)
                     : "l"(a), "l"(b), "r"(add));
    }
};

template <> struct wgmma_bf16<64> {
    __device__ static inline void multiply(float (&d)[8][4], uint64_t a, uint64_t b, int32_t add)
    {
        asm volatile(
            "{.reg .pred p; setp.ne.b32 p, %34, 0; "
            "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
            "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
            "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
            "%32, %33, p, 1, 1, 0, 0;}"
            : ACCUMULATORS_4(0), ACCUMULATORS_4(4)
            : "l"(a), "l"(b), "r"(add));
    }
};

template <> struct wgmma_bf16<96> {
    __device__ static inline void multiply(float (&d)[12][4], uint64_t a, uint64_t b, int32_t add)
    {
        asm volatile(
            "{.reg .pred p; setp.ne.b32 p, %50, 0; "
            "wgmma.mma_async.sync.aligned.m64n96k16.f32.bf16.bf16 "
            "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
            "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
            "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47}, "
            "%48, %49, p, 1, 1, 0, 0;}"
            : ACCUMULATORS_4(0), ACCUMULATORS_4(4), ACCUMULATORS_4(8)
            : "l"(a), "l"(b), "r"(add));
    }
};

template <> struct wgmma_bf16<128> {
    __device__ static inline void multiply(float (&d)[16][4], uint64_t a, uint64_t b, int32_t add)
    {
        asm volatile(
            "{.reg .pred p; setp.ne.b32 p, %66, 0; "
            "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
            "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
            "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
            "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
            "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
            "%64, %65, p, 1, 1, 0, 0;}"
            : ACCUMULATORS_16(0)
            : "l"(a), "l"(b), "r"(add));
    }
};

template <> struct wgmma_bf16<160> {
    __device__ static inline void multiply(float (&d)[20][4], uint64_t a, uint64_t b, int32_t add)
    {
        asm volatile(
            "{.reg .pred p; setp.ne.b32 p, %82, 0; "
            "wgmma.mma_async.sync.aligned.m64n160k16.f32.bf16.bf16 "
            "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
            "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
            "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
            "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
            "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79}, "
            "%80, %81, p, 1, 1, 0, 0;}"
            : ACCUMULATORS_16(0), ACCUMULATORS_4(16)
            : "l"(a), "l"(b), "r"(add));
    }
};

template <> struct wgmma_bf16<192> {
    __device__ static inline void multiply(float (&d)[24][4], uint64_t a, uint64_t b, int32_t add)
    {
        asm volatile(
            "{.reg .pred p; setp.ne.b32 p, %98, 0; "
            "wgmma.mma_async.sync.aligned.m64n192k16.f32.bf16.bf16 "
            "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
            "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
            "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
            "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
            "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
            "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95}, "
            "%96, %97, p, 1, 1, 0, 0;}"
            : ACCUMULATORS_16(0), ACCUMULATORS_4(16), ACCUMULATORS_4(20)
            : "l"(a), "l"(b), "r"(add));
    }
};

template <> struct wgmma_bf16<224> {
    __device__ static inline void multiply(float (&d)[28][4], uint64_t a, uint64_t b, int32_t add)
    {
        asm volatile(
            "{.reg .pred p; setp.ne.b32 p, %114, 0; "
            "wgmma.mma_async.sync.aligned.m64n224k16.f32.bf16.bf16 "
            "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
            "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
            "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
            "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
            "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
            "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "
            "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, "
            "%111}, "
            "%112, %113, p, 1, 1, 0, 0;}"
            : ACCUMULATORS_16(0), ACCUMULATORS_4(16), ACCUMULATORS_4(20), ACCUMULATORS_4(24)
            : "l"(a), "l"(b), "r"(add));
    }
};

template <> struct wgmma_bf16<256> {
    __device__ static inline void multiply(float (&d)[32][4], uint64_t a, uint64_t b, int32_t add)
    {
        asm volatile(
            "{.reg .pred p; setp.ne.b32 p, %130, 0; "
            "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 "
            "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
            "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
            "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
            "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
            "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
            "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "
            "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, "
            "%111, "
            "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, "
            "%126, %127}, "
            "%128, %129, p, 1, 1, 0, 0;}"
            : ACCUMULATORS_16(0), ACCUMULATORS_16(16)
            : "l"(a), "l"(b), "r"(add));
    }
};

#undef ACCUMULATORS
#undef ACCUMULATORS_4
#undef ACCUMULATORS_16

#else /* other GPUs: never launched, see cuda_matmul_fits */

template <int N> struct wgmma_bf16 {
    __device__ static inline void multiply(float (&)[N / 8][4], uint64_t, uint64_t, int32_t)
    {
    }
};

#endif

#endif
