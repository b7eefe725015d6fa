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

#define ACCUMULATORS(n)    "+f"(d[n][0]), "+f"(d[n][1]), "+f"(d[n][2]), "+f"(d[n][3])
#define ACCUMULATORS_2(n)  ACCUMULATORS(n), ACCUMULATORS((n) + 1)
#define ACCUMULATORS_4(n)  ACCUMULATORS_2(n), ACCUMULATORS_2((n) + 2)
#define ACCUMULATORS_8(n)  ACCUMULATORS_4(n), ACCUMULATORS_4((n) + 4)
#define ACCUMULATORS_16(n) ACCUMULATORS_8(n), ACCUMULATORS_8((n) + 8)

/* Their names in the instruction, the first so many. */
#define NAMES_4  "%0, %1, %2, %3"
#define NAMES_8  NAMES_4 ", %4, %5, %6, %7"
#define NAMES_16 NAMES_8 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define NAMES_32                                                                                   \
    NAMES_16 ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define NAMES_48                                                                                   \
    NAMES_32 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define NAMES_64                                                                                   \
    NAMES_48 ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define NAMES_80                                                                                   \
    NAMES_64 ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79"
#define NAMES_96                                                                                   \
    NAMES_80 ", %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define NAMES_112                                                                                  \
    NAMES_96 ", %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, "  \
             "%110, %111"
#define NAMES_128                                                                                  \
    NAMES_112 ", %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, "   \
              "%125, %126, %127"

/* Of N columns: `names` of all accumulators, then a, b and `add` by their numbers. */
#define WGMMA_BF16(N, names, a_name, b_name, add_name, ...)                                        \
    template <> struct wgmma_bf16<N> {                                                             \
        __device__ static inline void multiply(float (&d)[N / 8][4], uint64_t a, uint64_t b,       \
                                               int32_t add)                                        \
        {                                                                                          \
            asm volatile("{.reg .pred p; setp.ne.b32 p, " add_name ", 0; "                         \
                         "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.bf16.bf16 {" names        \
                         "}, " a_name ", " b_name ", p, 1, 1, 0, 0;}"                              \
                         : __VA_ARGS__                                                             \
                         : "l"(a), "l"(b), "r"(add));                                              \
        }                                                                                          \
    };

WGMMA_BF16(8, NAMES_4, "%4", "%5", "%6", ACCUMULATORS(0))
WGMMA_BF16(16, NAMES_8, "%8", "%9", "%10", ACCUMULATORS_2(0))
WGMMA_BF16(32, NAMES_16, "%16", "%17", "%18", ACCUMULATORS_4(0))
WGMMA_BF16(64, NAMES_32, "%32", "%33", "%34", ACCUMULATORS_8(0))
WGMMA_BF16(96, NAMES_48, "%48", "%49", "%50", ACCUMULATORS_8(0), ACCUMULATORS_4(8))
WGMMA_BF16(128, NAMES_64, "%64", "%65", "%66", ACCUMULATORS_16(0))
WGMMA_BF16(160, NAMES_80, "%80", "%81", "%82", ACCUMULATORS_16(0), ACCUMULATORS_4(16))
WGMMA_BF16(192, NAMES_96, "%96", "%97", "%98", ACCUMULATORS_16(0), ACCUMULATORS_8(16))
WGMMA_BF16(224, NAMES_112, "%112", "%113", "%114", ACCUMULATORS_16(0), ACCUMULATORS_8(16),
           ACCUMULATORS_4(24))
WGMMA_BF16(256, NAMES_128, "%128", "%129", "%130", ACCUMULATORS_16(0), ACCUMULATORS_16(16))

#undef WGMMA_BF16
#undef NAMES_4
#undef NAMES_8
#undef NAMES_16
#undef NAMES_32
#undef NAMES_48
#undef NAMES_64
#undef NAMES_80
#undef NAMES_96
#undef NAMES_112
#undef NAMES_128
#undef ACCUMULATORS
#undef ACCUMULATORS_2
#undef ACCUMULATORS_4
#undef ACCUMULATORS_8
#undef ACCUMULATORS_16

#else /* other GPUs: never launched, see cuda_matmul_fits */

template <int N> struct wgmma_bf16 {
    __device__ static inline void multiply(float (&)[N / 8][4], uint64_t, uint64_t, int32_t)
    {
    }
};

#endif

#endif
