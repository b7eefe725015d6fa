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
    GROUP_ROWS = 64, /* that a warpgroup multiplies */
    STAGES_MAX = 32,
    SHARED_MAX = 227 * 1024 - 1024, /* without barriers */
    SHARED_ALIGN = 1024,
    BAND = 8, /* row tiles that are worked on for all columns before the next ones */
};

/* What a launch is besides its operands. */
struct matmul_tiles {
    int32_t tile_rows; /* at most GROUP_ROWS, or twice that with two warpgroups */
    int32_t row_tiles; /* padded to whole clusters */
    int32_t column_tiles;
    int32_t stage_count;
    int32_t row_last, column_last; /* the furthest that a tile may begin */
    int32_t row_box, column_box;   /* rows of what one bulk copy brings */
};

/* Of a panel: the columns' part, then that of the rows. */
template <int N> __device__ __host__ static inline int32_t panel_bytes(int32_t tile_rows)
{
    return (N + tile_rows) * ROW_BYTES;
}

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

/* Tile `index` of this block: a band of rows after the other, in it rows first. One that would
 * reach past the end is moved up to end there: values that two tiles have are the same in both,
 * and bulk copies of what lies outside take longer than those of what is there. */
template <int CLUSTER, int N>
__device__ static inline struct tile_place place_of(int32_t index, const struct matmul_tiles &tiles,
                                                    uint32_t rank)
{
    int32_t rows = tiles.row_tiles / CLUSTER; /* in whole clusters */
    int32_t band = index / (BAND * tiles.column_tiles);
    int32_t height = min((int32_t)BAND, rows - band * BAND);
    int32_t in_band = index - band * BAND * tiles.column_tiles;
    struct tile_place place;
    int32_t row = ((band * BAND + in_band % height) * CLUSTER + (int32_t)rank) * tiles.tile_rows;
    place.row = min(row, tiles.row_last);
    place.column = min(in_band / height * N, tiles.column_last);
    return place;
}

/* ---- consumers ---- */

/* Which warpgroup a thread is of. Through the shuffle the compiler knows it to be one for the warp,
 * so that operands' addresses stay in registers of the warp: made for each thread and moved there
 * they take longer than a small product. */
__device__ static inline uint32_t group_index(void)
{
    return __shfl_sync(0xffffffffu, threadIdx.x / WARPGROUP, 0);
}

/* Says in all blocks of the cluster that this warp has read the stage. */
template <int CLUSTER> __device__ static inline void release(uint32_t barrier)
{
    uint32_t lane = threadIdx.x % WARP;
    if (CLUSTER == 1 && lane == 0)
        barrier_arrive(barrier);
    if (CLUSTER > 1 && lane < CLUSTER)
        barrier_arrive_at(barrier, lane);
}

/* COUNT panels' products, begun. */
template <int N, int COUNT>
__device__ static inline void multiply_panels(float (&sum)[N / 8][4], uint32_t panel, int32_t bytes,
                                              uint32_t group, bool first)
{
    wgmma_hold<N / 8>(sum);
    wgmma_fence();
#pragma unroll
    for (int32_t p = 0; p < COUNT; p++, panel += bytes) {
        uint64_t b = wgmma_operand(panel, 0);
        uint64_t a = wgmma_operand(panel + (N + group * GROUP_ROWS) * ROW_BYTES, 0);
#pragma unroll
        for (int32_t k = 0; k < DEPTH / 16; k++) /* 32 bytes further in the swizzled rows */
            wgmma_bf16<N>::multiply(sum, a + k * 2, b + k * 2, !first || p > 0 || k > 0);
    }
    wgmma_commit();
    wgmma_hold<N / 8>(sum);
}

/* One tile's sums: `steps` panels, PANELS of them a stage. */
template <int N, int CLUSTER, int PANELS>
__device__ static inline void multiply(float (&sum)[N / 8][4], struct ring &ring,
                                       const struct matmul_tiles &tiles, int32_t steps,
                                       uint32_t stages, uint32_t full, uint32_t empty)
{
    const int32_t bytes = panel_bytes<N>(tiles.tile_rows);
    uint32_t group = group_index(), before = 0;
    for (int32_t i = 0; i < steps; i += PANELS) {
        uint32_t stage = stages + ring.stage * PANELS * bytes;
        barrier_wait(full + ring.stage * 8, ring.parity);
        if (PANELS == 1 || i + PANELS <= steps)
            multiply_panels<N, PANELS>(sum, stage, bytes, group, i == 0);
        else
            for (int32_t p = 0; p < steps - i; p++)
                multiply_panels<N, 1>(sum, stage + p * bytes, bytes, group, i + p == 0);
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

/* ---- launches ---- */

/* Boxes of box_rows rows and DEPTH columns of [rows, width]. */
static inline bool map_box(struct device *device, CUtensorMap *map, const void *data,
                           int64_t stride, int32_t width, int32_t rows, int32_t box_columns,
                           int32_t box_rows)
{
    auto encode = (PFN_cuTensorMapEncodeTiled_v12000)device->encode;
    const cuuint64_t sizes[] = {(cuuint64_t)width, (cuuint64_t)rows};
    const cuuint64_t strides[] = {(cuuint64_t)stride * sizeof(bf16)};
    const cuuint32_t box[] = {(cuuint32_t)box_columns, (cuuint32_t)box_rows}, steps[] = {1, 1};
    CUresult result =
        encode(map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, (void *)data, sizes, strides, box, steps,
               CU_TENSOR_MAP_INTERLEAVE_NONE,
               box_columns == 32 ? CU_TENSOR_MAP_SWIZZLE_64B : CU_TENSOR_MAP_SWIZZLE_128B,
               bulk_promotion, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    return cuda_check(device, result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue,
                      __func__);
}

static inline bool map_rows(struct device *device, CUtensorMap *map, const void *data,
                            int64_t stride, int32_t width, int32_t rows, int32_t box_rows)
{
    return map_box(device, map, data, stride, width, rows, DEPTH, box_rows);
}

static inline int32_t padded_to(int32_t value, int32_t unit)
{
    return ceil_div(value, unit) * unit;
}

/* Of `count` rows, or columns, in tiles of so many. */
static inline int32_t tile_last(int32_t count, int32_t tile)
{
    return count > tile ? count - tile : 0;
}

#endif
