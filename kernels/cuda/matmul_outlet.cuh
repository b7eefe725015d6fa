/* How the sums of many tokens leave a block: through shared memory, by bulk copies that run while
 * the next tile is multiplied.
 *
 * Rows are tokens, columns outputs. A warpgroup has two places for a box of its 64 rows and some
 * columns. It fills one while the other is copied out, and the rows and columns that are none are
 * left out by the copy.
 */
#ifndef KERNELS_CUDA_MATMUL_OUTLET_CUH
#define KERNELS_CUDA_MATMUL_OUTLET_CUH

#include "kernels/cuda/matmul_body.cuh"

enum { OUTLET_BYTES = 2 * GROUP_ROWS * ROW_BYTES }; /* of a warpgroup */

/* One warpgroup's. */
struct outlet {
    const CUtensorMap *map;
    uint32_t place; /* two boxes */
    uint32_t turn;  /* which of them is next */
};

/* Columns of a box, of tiles of N columns. */
__host__ __device__ static constexpr int32_t outlet_columns(int32_t N, bool gated)
{
    return (gated ? N / 2 : N) % 64 == 0 ? 64 : 32;
}

__device__ static inline void group_sync(void)
{
    asm volatile("bar.sync %0, %1;" ::"r"(1 + threadIdx.x / WARPGROUP), "n"((int32_t)WARPGROUP)
                 : "memory");
}

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900

/* Two eights of columns of a warp's 16 rows, each thread's pairs as mma has them, to the rows whose
 * addresses the lanes give. */
__device__ static inline void put_eights(uint32_t address, const uint32_t (&pair)[4])
{
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address),
                 "r"(pair[0]), "r"(pair[1]), "r"(pair[2]), "r"(pair[3])
                 : "memory");
}

#else /* earlier GPUs: never launched */

__device__ static inline void put_eights(uint32_t, const uint32_t (&)[4])
{
}

#endif

/* Two neighbouring outputs' bias. */
__device__ static inline float2 bias_at(const struct matmul &call, int32_t column)
{
    return call.bias != NULL && column < call.count ? *(const float2 *)(call.bias + column)
                                                    : make_float2(0.0f, 0.0f);
}

/* Eight outputs of a thread's two rows: the sums of columns from n * 8 on, or gate and up there. */
template <int N, bool GATED>
__device__ static inline void eight_of(uint32_t *pair, const float (&sum)[N / 8][4], int32_t n,
                                       const struct matmul &call, int32_t column)
{
    float2 bias = bias_at(call, column), up = make_float2(0.0f, 0.0f);
    if (GATED)
        up = bias_at(call, column + 8);
#pragma unroll
    for (int32_t half = 0; half < 2; half++) {
        float first = sum[n][2 * half] + bias.x, second = sum[n][2 * half + 1] + bias.y;
        if (GATED) {
            first = activate(call.act, first) * (sum[n + 1][2 * half] + up.x);
            second = activate(call.act, second) * (sum[n + 1][2 * half + 1] + up.y);
        }
        pair[half] = pack_bf16(first, second);
    }
}

template <int N, bool GATED>
__device__ static inline void send(const float (&sum)[N / 8][4], const struct matmul &call,
                                   struct tile_place place, struct outlet &outlet)
{
    constexpr int32_t COLUMNS = outlet_columns(N, GATED), STEP = GATED ? 2 : 1;
    constexpr int32_t EIGHTS = COLUMNS / 8; /* of a box */
    const int32_t lane = threadIdx.x % WARP, warp = threadIdx.x % WARPGROUP / WARP;
    const int32_t row = warp * 16 + lane % 16; /* to which the lane's address is */
    const uint32_t swizzle = COLUMNS == 64 ? row % 8 : row / 2 % 4;
    const bool first = threadIdx.x % WARPGROUP == 0;
    int32_t token = place.row + (int32_t)threadIdx.x / WARPGROUP * GROUP_ROWS;

#pragma unroll
    for (int32_t n = 0; n < N / 8; n += EIGHTS * STEP) {
        uint32_t box = outlet.place + outlet.turn * (GROUP_ROWS * ROW_BYTES);
        if (first)
            bulk_read_but<1>();
        group_sync();
#pragma unroll
        for (int32_t e = 0; e < EIGHTS; e += 2) {
            int32_t m = n + e * STEP;
            uint32_t pair[4], chunk = (e + lane / 16) ^ swizzle;
            int32_t column = place.column + m * 8 + lane % 4 * 2;
            eight_of<N, GATED>(pair, sum, m, call, column);
            eight_of<N, GATED>(pair + 2, sum, m + STEP, call, column + STEP * 8);
            put_eights(box + row * (COLUMNS * 2) + chunk * 16, pair);
        }
        wgmma_show();
        group_sync();
        if (first) {
            bulk_store(outlet.map, (place.column + n * 8) / STEP, token, box);
            bulk_commit();
        }
        outlet.turn ^= 1;
    }
}

#endif
