/* Narrow items of attention, those of decode and of short chunks: a kernel of their own beside the
 * wide items' (attention.cu). All its blocks have room at once, and share the items among them. */
#include "kernels/cuda/attention_narrow.cuh"
#include "kernels/cuda/attention_narrow_feed.cuh"

#include <assert.h>

template <int C, bool CAPPED>
__global__ void __launch_bounds__(NARROW_BLOCK, narrow_shape<C>::BLOCKS)
    narrow_kernel(const __grid_constant__ struct attention_call call,
                  const __grid_constant__ CUtensorMap keys,
                  const __grid_constant__ CUtensorMap values)
{
    extern __shared__ __align__(1024) uint8_t memory[];
    narrow_shared<C> &shared = *reinterpret_cast<narrow_shared<C> *>(memory);
    int32_t warp = threadIdx.x / WARP;
    narrow_open<C>(shared);
    if (warp < NARROW_WARPS)
        narrow_work<C, CAPPED>(shared, call);
    else if (warp == NARROW_WARPS)
        narrow_feed<C>(shared, keys, values, call);
    else
        narrow_bring<C>(shared, call);
}

template <int C> static void narrow_launch(struct device *device, const struct attention_call &call)
{
    static_assert(sizeof(narrow_shared<C>) <= narrow_shape<C>::BYTES, "BLOCKS of them fit");
    int32_t bytes = (int32_t)sizeof(narrow_shared<C>);
    /* no more than have room at once: they wait for each other */
    struct launch_shape shape = {dim3(narrow_shape<C>::BLOCKS * device->core_count),
                                 dim3(NARROW_BLOCK), (size_t)bytes};
    auto kernel = call.args.softcap > 0.0f ? narrow_kernel<C, true> : narrow_kernel<C, false>;
    CUtensorMap keys, values;
    if (!map_pages<C>(device, &keys, call, call.layer.key) ||
        !map_pages<C>(device, &values, call, call.layer.key + call.layer.value_offset))
        return;
    launch(device, __func__, kernel, shape, call, keys, values);
}

void cuda_attention_narrow(struct device *device, const struct attention_call &call)
{
    switch (call.args.head_width) {
#define WIDTH(width)                                                                               \
    case width:                                                                                    \
        narrow_launch<width>(device, call);                                                        \
        break;
        TENSOR_WIDTHS(WIDTH)
#undef WIDTH
    default:
        assert(false);
    }
}
