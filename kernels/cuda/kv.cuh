/* Where a position's key and value lie. */
#ifndef KERNELS_CUDA_KV_CUH
#define KERNELS_CUDA_KV_CUH

#include "kernels/cuda/device.cuh"

/* One layer of the cache, as a kernel sees it. */
struct kv_layer {
    __half *key; /* of block 0; + value_offset is the value's */
    int64_t value_offset;
    int64_t block_stride;
    int64_t row_stride;   /* from a position to the next: K C */
    const int32_t *table; /* of slot 0, for the layer's group */
    int64_t table_stride; /* from a slot to the next */
    int32_t block_tokens;
};

struct kv_layer cuda_kv_layer(const struct device *device, int32_t layer);

/* Element offset of a position's row. Products of a block id pass 2^31: 64 bits. */
__device__ static inline int64_t kv_offset(const struct kv_layer &layer, int32_t slot,
                                           int32_t position)
{
    const int32_t *table = layer.table + slot * layer.table_stride;
    int32_t shift = __ffs(layer.block_tokens) - 1; /* a power of two */
    int64_t block = table[position >> shift];
    return block * layer.block_stride + (position & (layer.block_tokens - 1)) * layer.row_stride;
}

#endif
