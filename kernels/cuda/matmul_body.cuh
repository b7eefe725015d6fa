/* What the products of weights as they are (matmul.cu) and of packed ones (matmul_packed.cu) share:
 * the ring of stages, the warpgroups that multiply, and how sums are put out. */
#ifndef KERNELS_CUDA_MATMUL_BODY_CUH
#define KERNELS_CUDA_MATMUL_BODY_CUH

#include "kernels/cuda/bulk.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/matmul.cuh"
#include "kernels/cuda/wgmma_bf16.cuh"

#include <assert.h>
#include <cudaTypedefs.h>

enum {
    WARPGROUP = 128,
    DEPTH = 64,            /* columns of `in` a stage: 128 bytes, as wide as they are swizzled */
    ROW_BYTES = DEPTH * 2, /* of a stage */
    GROUP_ROWS = 64,       /* that a warpgroup multiplies */
    STAGES_MAX = 32,
    SHARED_MAX = 227 * 1024 - 1024, /* without barriers */
    SHARED_ALIGN = 1024,
    BAND = 16, /* row tiles that are worked on for all columns before the next ones */
};

/* What a launch is besides its operands. */
struct matmul_tiles {
    int32_t tile_rows; /* at most GROUP_ROWS, or twice that with two warpgroups */
    int32_t row_tiles; /* padded to whole clusters */
    int32_t column_tiles;
    int32_t stage_count;
};

template <int GROUPS, int N> struct matmul_stage {
    static constexpr int32_t COLUMN_BYTES = N * ROW_BYTES;
    __device__ __host__ static int32_t bytes(int32_t tile_rows)
    {
        return COLUMN_BYTES + tile_rows * ROW_BYTES;
    }
};

/* Where a step of the ring is: stage, and the parity of its use. */
struct ring {
    int32_t stage, parity;
    __device__ void next(int32_t stage_count)
    {
        if (++stage == stage_count) {
            stage = 0;
            parity ^= 1;
        }
    }
};

struct tile_place {
    int32_t row, column; /* first of the tile */
};

/* Tile `index` of this block: a band of rows after the other, in it rows first. */
template <int CLUSTER, int N>
__device__ static inline struct tile_place place_of(int32_t index, const struct matmul_tiles &tiles,
                                                    uint32_t rank)
{
    int32_t rows = tiles.row_tiles / CLUSTER; /* in whole clusters */
    int32_t band = index / (BAND * tiles.column_tiles);
    int32_t height = min((int32_t)BAND, rows - band * BAND);
    int32_t in_band = index - band * BAND * tiles.column_tiles;
    struct tile_place place;
    place.row = ((band * BAND + in_band % height) * CLUSTER + (int32_t)rank) * tiles.tile_rows;
    place.column = in_band / height * N;
    return place;
}

/* ---- consumers ---- */

/* Says in all blocks of the cluster that this warp has read the stage. */
template <int CLUSTER> __device__ static inline void release(uint32_t barrier)
{
    uint32_t lane = threadIdx.x % WARP;
    if (CLUSTER == 1 && lane == 0)
        barrier_arrive(barrier);
    if (CLUSTER > 1 && lane < CLUSTER)
        barrier_arrive_at(barrier, lane);
}

/* One tile's sums. */
template <int GROUPS, int N, int CLUSTER>
__device__ static inline void multiply(float (&sum)[N / 8][4], struct ring &ring,
                                       const struct matmul_tiles &tiles, int32_t steps,
                                       uint32_t stages, uint32_t full, uint32_t empty)
{
    const int32_t bytes = matmul_stage<GROUPS, N>::bytes(tiles.tile_rows);
    uint32_t group = threadIdx.x / WARPGROUP, before = 0;
    for (int32_t i = 0; i < steps; i++) {
        uint32_t stage = stages + ring.stage * bytes;
        uint64_t b = wgmma_operand(stage, 0);
        uint64_t a = wgmma_operand(stage + (N + group * GROUP_ROWS) * ROW_BYTES, 0);
        barrier_wait(full + ring.stage * 8, ring.parity);
        wgmma_hold<N / 8>(sum);
        wgmma_fence();
#pragma unroll
        for (int32_t k = 0; k < DEPTH / 16; k++) /* 32 bytes further in the swizzled rows */
            wgmma_bf16<N>::multiply(sum, a + k * 2, b + k * 2, i > 0 || k > 0);
        wgmma_commit();
        wgmma_hold<N / 8>(sum);
        wgmma_wait_but<1>();
        if (i > 0)
            release<CLUSTER>(empty + before * 8);
        before = ring.stage;
        ring.next(tiles.stage_count);
    }
    wgmma_wait_but<0>();
    wgmma_hold<N / 8>(sum);
    release<CLUSTER>(empty + before * 8);
}

__device__ static inline float finished(float value, float bias, float softcap)
{
    value += bias;
    return softcap > 0.0f ? softcap * tanhf(value / softcap) : value;
}

__device__ static inline uint32_t turned(uint32_t pair)
{
    uint32_t result;
    asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(result) : "r"(pair));
    return result;
}

/* The same of a gated weight: eight rows of gate are the upper half of a warp's, their eight of up
 * the lower one. */
template <int N>
__device__ static inline void store_gated_turned(const float (&sum)[N / 8][4],
                                                 const struct matmul &call, int32_t tile_rows,
                                                 struct tile_place place)
{
    int32_t lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
    int32_t row = threadIdx.x / WARP * 16, output = place.row + row;
    if (row >= tile_rows || output >= call.count)
        return;
    float gate_bias = call.bias != NULL ? call.bias[output + g] : 0.0f;
    float up_bias = call.bias != NULL ? call.bias[output + 8 + g] : 0.0f;
#pragma unroll
    for (int32_t n = 0; n < N / 8; n++) {
        int32_t token = place.column + n * 8;
        if (token >= call.T)
            break;
        float first = activate(call.act, sum[n][0] + gate_bias) * (sum[n][2] + up_bias);
        float second = activate(call.act, sum[n][1] + gate_bias) * (sum[n][3] + up_bias);
        uint32_t pair = turned(pack_bf16(first, second));
        bf16 *out = (bf16 *)call.out + (token + g) * call.out_stride + output / 2 + 2 * t;
        if (token + g < call.T)
            *(uint32_t *)out = pair;
    }
}

/* Rows are outputs, columns tokens. Four bytes of a thread, whole sectors of a warp. */
template <int N, bool F32>
__device__ static inline void store_turned(const float (&sum)[N / 8][4], const struct matmul &call,
                                           int32_t tile_rows, struct tile_place place)
{
    int32_t lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
    int32_t warp_row = threadIdx.x / WARP * 16;
#pragma unroll
    for (int32_t half = 0; half < 2; half++) {
        int32_t row = warp_row + half * 8, output = place.row + row;
        if (row >= tile_rows || output >= call.count)
            return;
        float bias = call.bias != NULL ? call.bias[output + g] : 0.0f;
#pragma unroll
        for (int32_t n = 0; n < N / 8; n++) {
            int32_t token = place.column + n * 8;
            float first = finished(sum[n][2 * half], bias, call.softcap);
            float second = finished(sum[n][2 * half + 1], bias, call.softcap);
            if (token >= call.T)
                break;
            if (F32) {
                float *out = (float *)call.out + (token + 2 * t) * call.out_stride + output + g;
                if (token + 2 * t < call.T)
                    out[0] = first;
                if (token + 2 * t + 1 < call.T)
                    out[call.out_stride] = second;
            } else {
                uint32_t pair = turned(pack_bf16(first, second));
                bf16 *out = (bf16 *)call.out + (token + g) * call.out_stride + output + 2 * t;
                if (token + g < call.T)
                    *(uint32_t *)out = pair;
            }
        }
    }
}

/* Four threads have four pieces each, piece j of tile j; now each has a tile's four pieces. */
__device__ static inline void exchange(uint32_t (&piece)[4])
{
    bool odd = threadIdx.x & 1, upper = threadIdx.x & 2;
#pragma unroll
    for (int32_t i = 0; i < 4; i += 2) {
        uint32_t other = __shfl_xor_sync(0xffffffffu, odd ? piece[i] : piece[i + 1], 1);
        piece[i] = odd ? other : piece[i];
        piece[i + 1] = odd ? piece[i + 1] : other;
    }
#pragma unroll
    for (int32_t i = 0; i < 2; i++) {
        uint32_t other = __shfl_xor_sync(0xffffffffu, upper ? piece[i] : piece[i + 2], 2);
        piece[i] = upper ? other : piece[i];
        piece[i + 2] = upper ? piece[i + 2] : other;
    }
}

/* Rows are tokens, columns outputs. Sixteen bytes of a thread. */
template <int N>
__device__ static inline void store(const float (&sum)[N / 8][4], const struct matmul &call,
                                    struct tile_place place)
{
    int32_t lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
#pragma unroll
    for (int32_t n = 0; n < N / 8; n += 4) {
        int32_t output = place.column + n * 8;
        float2 bias[4];
#pragma unroll
        for (int32_t j = 0; j < 4; j++) {
            int32_t own = output + j * 8 + 2 * t;
            bias[j] = call.bias != NULL && own < call.count ? *(const float2 *)(call.bias + own)
                                                            : make_float2(0.0f, 0.0f);
        }
#pragma unroll
        for (int32_t half = 0; half < 2; half++) {
            int32_t token = place.row + threadIdx.x / WARP * 16 + half * 8 + g;
            uint32_t piece[4];
#pragma unroll
            for (int32_t j = 0; j < 4; j++)
                piece[j] = pack_bf16(finished(sum[n + j][2 * half], bias[j].x, call.softcap),
                                     finished(sum[n + j][2 * half + 1], bias[j].y, call.softcap));
            exchange(piece);
            if (token < call.T && output + t * 8 < call.count)
                *(uint4 *)((bf16 *)call.out + token * call.out_stride + output + t * 8) =
                    make_uint4(piece[0], piece[1], piece[2], piece[3]);
        }
    }
}

/* The same of a gated weight: of neighbouring eights of columns, one is gate and one up. */
template <int N>
__device__ static inline void store_gated(const float (&sum)[N / 8][4], const struct matmul &call,
                                          struct tile_place place)
{
    int32_t lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
#pragma unroll
    for (int32_t n = 0; n < N / 8; n += 8) {
        int32_t output = (place.column + n * 8) / 2;
#pragma unroll
        for (int32_t half = 0; half < 2; half++) {
            int32_t token = place.row + threadIdx.x / WARP * 16 + half * 8 + g;
            uint32_t piece[4];
#pragma unroll
            for (int32_t j = 0; j < 4; j++) {
                int32_t own = place.column + (n + 2 * j) * 8 + 2 * t, m = n + 2 * j;
                bool biased = call.bias != NULL && own < call.count;
                float2 gate = biased ? *(const float2 *)(call.bias + own) : make_float2(0, 0);
                float2 up = biased ? *(const float2 *)(call.bias + own + 8) : make_float2(0, 0);
                piece[j] = pack_bf16(activate(call.act, sum[m][2 * half] + gate.x) *
                                         (sum[m + 1][2 * half] + up.x),
                                     activate(call.act, sum[m][2 * half + 1] + gate.y) *
                                         (sum[m + 1][2 * half + 1] + up.y));
            }
            exchange(piece);
            if (token < call.T && output + t * 8 < call.count / 2)
                *(uint4 *)((bf16 *)call.out + token * call.out_stride + output + t * 8) =
                    make_uint4(piece[0], piece[1], piece[2], piece[3]);
        }
    }
}

/* ---- launches ---- */

/* Boxes of box_rows rows and DEPTH columns of [rows, width]. */
static inline bool map_rows(struct device *device, CUtensorMap *map, const void *data,
                            int64_t stride, int32_t width, int32_t rows, int32_t box_rows)
{
    auto encode = (PFN_cuTensorMapEncodeTiled_v12000)device->encode;
    const cuuint64_t sizes[] = {(cuuint64_t)width, (cuuint64_t)rows};
    const cuuint64_t strides[] = {(cuuint64_t)stride * sizeof(bf16)};
    const cuuint32_t box[] = {DEPTH, (cuuint32_t)box_rows}, steps[] = {1, 1};
    CUresult result = encode(map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, (void *)data, sizes, strides,
                             box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    return cuda_check(device, result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue,
                      __func__);
}

static inline int32_t padded_to(int32_t value, int32_t unit)
{
    return ceil_div(value, unit) * unit;
}

#endif
