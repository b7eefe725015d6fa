/* A tile of keys or values in shared memory, as bulk copies bring it from the pages of the cache.
 *
 * One map shows a layer as [block, k or v, position, kv head, column]; a box of it is a piece of
 * COLUMNS columns of up to KV_TILE positions of one page. In shared memory a tile is
 * [piece][position][COLUMNS], its 16-byte chunks exchanged as the copy does it, so that reading
 * one chunk of eight positions meets no bank twice.
 */
#ifndef KERNELS_CUDA_ATTENTION_PAGES_CUH
#define KERNELS_CUDA_ATTENTION_PAGES_CUH

#include "kernels/cuda/attention_body.cuh"
#include "kernels/cuda/bulk.cuh"

#include <cudaTypedefs.h>

template <int C> struct page_tile {
    static constexpr int32_t COLUMNS = C % 64 == 0 ? 64 : C % 32 == 0 ? 32 : 16;
    static constexpr int32_t PIECES = C / COLUMNS;
    static constexpr int32_t CHUNKS = COLUMNS / 8;
    static constexpr int32_t ROW_BYTES = COLUMNS * 2;
    static constexpr int32_t PIECE_BYTES = KV_TILE * ROW_BYTES;
    static constexpr int32_t BYTES = PIECES * PIECE_BYTES;
    static_assert(C % 16 == 0, "whole steps of the matrix unit");

    /* Where chunk `chunk` of row `row` lies. */
    __device__ static inline uint32_t at(int32_t row, int32_t chunk)
    {
        int32_t turned = chunk % CHUNKS ^ row / (8 / CHUNKS) % CHUNKS;
        return (uint32_t)(chunk / CHUNKS * PIECE_BYTES + row * ROW_BYTES + turned * 16);
    }
};

enum page_plane { PLANE_KEY, PLANE_VALUE };

/* How many positions a box has: a page's, at most a tile's. */
__host__ __device__ static inline int32_t box_rows(const struct kv_layer &layer)
{
    return layer.block_tokens < KV_TILE ? layer.block_tokens : (int32_t)KV_TILE;
}

/* The boxes of tile `number` that hold positions to go through, and which of them, from `split`
 * on, hold positions that this step brings. */
struct page_boxes {
    int32_t first, split, end;
};

__device__ static inline struct page_boxes boxes_of(const struct attention_call &call,
                                                    const struct attention_tile &tile,
                                                    int32_t number)
{
    int32_t start = number * KV_TILE, shift = __ffs(box_rows(call.layer)) - 1;
    struct page_boxes boxes;
    boxes.first = max(tile.begin - start, 0) >> shift;
    boxes.end = ((min(tile.end - start, (int32_t)KV_TILE) - 1) >> shift) + 1;
    int32_t old = max(tile.item.position - start, 0) >> shift;
    boxes.split = min(max(old, boxes.first), boxes.end);
    return boxes;
}

/* A warp starts the copies of boxes first .. end - 1 of tile `number`. */
template <int C>
__device__ static inline void load_boxes(uint32_t stage, uint32_t barrier, const CUtensorMap &map,
                                         const struct attention_call &call,
                                         const struct attention_tile &tile, int32_t number,
                                         enum page_plane plane, int32_t first, int32_t end)
{
    using shape = page_tile<C>;
    const struct kv_layer &layer = call.layer;
    const int32_t *table = layer.table + tile.item.sequence * layer.table_stride;
    int32_t page_shift = __ffs(layer.block_tokens) - 1;
    int32_t box_shift = __ffs(box_rows(layer)) - 1;
    for (int32_t i = threadIdx.x % WARP; i < (end - first) * shape::PIECES; i += WARP) {
        int32_t row = (first + i / shape::PIECES) << box_shift, piece = i % shape::PIECES;
        int32_t position = number * KV_TILE + row;
        const int32_t place[5] = {piece * shape::COLUMNS, tile.kv_head,
                                  position & (layer.block_tokens - 1), plane,
                                  table[position >> page_shift]};
        bulk_load_box(stage + (uint32_t)(piece * shape::PIECE_BYTES + row * shape::ROW_BYTES), &map,
                      place, barrier);
    }
}

/* On the host. Where a box is too small for a copy, pages_fit is false. */
static inline bool pages_fit(const struct device *device, int32_t head_width)
{
    int32_t row_bytes = head_width % 64 == 0 ? 128 : head_width % 32 == 0 ? 64 : 32;
    return device->hopper && device->encode != NULL &&
           device->kv_shape.block_tokens * row_bytes % 128 == 0;
}

template <int C>
static bool map_pages(struct device *device, CUtensorMap *map, const struct attention_call &call)
{
    using shape = page_tile<C>;
    auto encode = (PFN_cuTensorMapEncodeTiled_v12000)device->encode;
    const struct kv_layer &layer = call.layer;
    const cuuint64_t bytes = sizeof(__half);
    const cuuint64_t sizes[] = {C, (cuuint64_t)call.args.kv_head_count,
                                (cuuint64_t)layer.block_tokens, 2,
                                (cuuint64_t)device->kv_shape.block_count};
    const cuuint64_t strides[] = {C * bytes, (cuuint64_t)layer.row_stride * bytes,
                                  (cuuint64_t)layer.value_offset * bytes,
                                  (cuuint64_t)layer.block_stride * bytes};
    const cuuint32_t box[] = {shape::COLUMNS, 1, (cuuint32_t)box_rows(layer), 1, 1};
    const cuuint32_t steps[] = {1, 1, 1, 1, 1};
    const CUtensorMapSwizzle swizzle = shape::ROW_BYTES == 128  ? CU_TENSOR_MAP_SWIZZLE_128B
                                       : shape::ROW_BYTES == 64 ? CU_TENSOR_MAP_SWIZZLE_64B
                                                                : CU_TENSOR_MAP_SWIZZLE_32B;
    CUresult result = encode(map, CU_TENSOR_MAP_DATA_TYPE_FLOAT16, 5, layer.key, sizes, strides,
                             box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle,
                             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    return cuda_check(device, result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue,
                      __func__);
}

#endif
