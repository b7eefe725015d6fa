/* A tile of keys or values in shared memory, as bulk copies bring it from the pages of the cache.
 *
 * A map shows a layer's keys, or its values, as [block, kv head, piece, position, column], pieces
 * of COLUMNS columns; a box of it is all pieces of up to KV_TILE positions of one page. In shared
 * memory a tile is [box][piece][position][COLUMNS], its 16-byte chunks exchanged as the copy does
 * it, so that reading one chunk of eight positions meets no bank twice.
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
    static constexpr int32_t BYTES = KV_TILE * C * 2;
    static_assert(C % 16 == 0, "whole steps of the matrix unit");
};

enum { BOX_ROWS_MIN = 8 }; /* so that a piece begins where the exchange of chunks does */

/* Where a row of a tile lies; `box` is log2 of a box's rows. */
template <int C> struct page_row {
    uint32_t piece_bytes;
    uint32_t start;  /* of chunk 0, but for the exchange */
    uint32_t turned; /* what a chunk's number is exchanged with */

    __device__ static inline page_row of(int32_t row, int32_t box)
    {
        using shape = page_tile<C>;
        uint32_t inside = (uint32_t)row & ((1u << box) - 1);
        uint32_t start = (((uint32_t)row >> box) * shape::PIECES << box) + inside;
        return {(uint32_t)shape::ROW_BYTES << box, start * shape::ROW_BYTES,
                (uint32_t)row / (8 / shape::CHUNKS) % shape::CHUNKS};
    }
    __device__ inline uint32_t at(int32_t chunk) const
    {
        using shape = page_tile<C>;
        return start + (uint32_t)(chunk / shape::CHUNKS) * piece_bytes +
               (((uint32_t)(chunk % shape::CHUNKS) ^ turned) << 4);
    }
};

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

__device__ static inline struct page_boxes boxes_of(const struct attention_tile &tile,
                                                    int32_t number, int32_t shift)
{
    int32_t start = number * KV_TILE;
    struct page_boxes boxes;
    boxes.first = max(tile.begin - start, 0) >> shift;
    boxes.end = ((min(tile.end - start, (int32_t)KV_TILE) - 1) >> shift) + 1;
    int32_t old = max(tile.item.position - start, 0) >> shift;
    boxes.split = min(max(old, boxes.first), boxes.end);
    return boxes;
}

/* A warp's view of a block table: a window of WARP entries, one a thread. */
struct page_window {
    const int32_t *table; /* of the sequence */
    int32_t first;        /* page of thread 0's entry */
    int32_t last;         /* page that is read at most */
    int32_t entry;
};

__device__ static inline struct page_window
window_of(const struct attention_call &call, const struct attention_tile &tile, int32_t page_shift)
{
    struct page_window window;
    window.table = call.layer.table + tile.item.sequence * call.layer.table_stride;
    window.first = tile.begin >> page_shift;
    window.last = (tile.end - 1) >> page_shift;
    window.entry = window.table[min(window.first + (int32_t)threadIdx.x % WARP, window.last)];
    return window;
}

/* The block of a page. All threads of the warp ask for the same one. */
__device__ static inline int32_t block_of(struct page_window &window, int32_t page)
{
    if (page < window.first || page >= window.first + WARP) {
        window.first = page;
        window.entry = window.table[min(page + (int32_t)threadIdx.x % WARP, window.last)];
    }
    return __shfl_sync(0xffffffffu, window.entry, page - window.first);
}

/* Sizes of pages and boxes, as shifts. */
struct page_shifts {
    int32_t page, box;
};

__device__ static inline struct page_shifts shifts_of(const struct kv_layer &layer)
{
    return {__ffs(layer.block_tokens) - 1, __ffs(box_rows(layer)) - 1};
}

/* A warp starts the copies of boxes first .. end - 1 of tile `number`. */
template <int C>
__device__ static inline void
load_boxes(uint32_t stage, uint32_t barrier, const CUtensorMap &map, struct page_window &window,
           struct page_shifts shifts, int32_t kv_head, int32_t number, int32_t first, int32_t end)
{
#pragma unroll 1
    for (int32_t box = first; box < end; box++) {
        int32_t row = box << shifts.box, position = number * KV_TILE + row;
        const int32_t place[5] = {0, position & ((1 << shifts.page) - 1), 0, kv_head,
                                  block_of(window, position >> shifts.page)};
        if (threadIdx.x % WARP == 0)
            bulk_load(stage + (uint32_t)(row * C * 2), &map, place, barrier);
        __syncwarp();
    }
}

/* On the host. */
static inline bool pages_fit(const struct device *device)
{
    return device->hopper && device->kv_shape.block_tokens >= BOX_ROWS_MIN;
}

/* Of keys, or of values where `first` is theirs. */
template <int C>
static bool map_pages(struct device *device, CUtensorMap *map, const struct attention_call &call,
                      __half *first)
{
    using shape = page_tile<C>;
    auto encode = (PFN_cuTensorMapEncodeTiled_v12000)device->encode;
    const struct kv_layer &layer = call.layer;
    const cuuint64_t bytes = sizeof(__half);
    const cuuint64_t sizes[] = {shape::COLUMNS, (cuuint64_t)layer.block_tokens, shape::PIECES,
                                (cuuint64_t)call.args.kv_head_count,
                                (cuuint64_t)device->kv_shape.block_count};
    const cuuint64_t strides[] = {(cuuint64_t)layer.row_stride * bytes, shape::COLUMNS * bytes,
                                  C * bytes, (cuuint64_t)layer.block_stride * bytes};
    const cuuint32_t box[] = {shape::COLUMNS, (cuuint32_t)box_rows(layer), shape::PIECES, 1, 1};
    const cuuint32_t steps[] = {1, 1, 1, 1, 1};
    const CUtensorMapSwizzle swizzle = shape::ROW_BYTES == 128  ? CU_TENSOR_MAP_SWIZZLE_128B
                                       : shape::ROW_BYTES == 64 ? CU_TENSOR_MAP_SWIZZLE_64B
                                                                : CU_TENSOR_MAP_SWIZZLE_32B;
    CUresult result = encode(map, CU_TENSOR_MAP_DATA_TYPE_FLOAT16, 5, first, sizes, strides, box,
                             steps, CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle, bulk_promotion,
                             CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    return cuda_check(device, result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue,
                      __func__);
}

#endif
