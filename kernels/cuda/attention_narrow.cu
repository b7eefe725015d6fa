/* Narrow items of attention, those of decode and of short chunks: a kernel of their own beside the
 * wide items' (attention.cu), whose blocks go through every gridDim.x-th item, and behind it the
 * merge of what is in several partials, where the step has such rows. */
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
        narrow_feed<C, PLANE_KEY>(shared, keys, call);
    else
        narrow_feed<C, PLANE_VALUE>(shared, values, call);
}

/* The list was whole before the kernel before this one began to yield. */
template <int C>
__global__ void __launch_bounds__(MERGE_THREADS)
    merge_kernel(const __grid_constant__ struct attention_call call)
{
    int32_t heads = call.args.kv_head_count, count = call.work.plan->merge_count * heads;
    kernel_yield();
    kernel_wait();
    for (int32_t i = blockIdx.x; i < count; i += gridDim.x)
        merge_tile<C>(call, tile_of(call, call.work.merge[i / heads], i % heads, NARROW_ROWS));
}

template <int C>
static void narrow_launch(struct device *device, const struct attention_call &call, bool merges)
{
    static_assert(sizeof(narrow_shared<C>) <= narrow_shape<C>::BYTES, "BLOCKS of them fit");
    int32_t bytes = (int32_t)sizeof(narrow_shared<C>);
    struct launch_shape shape = {dim3(narrow_shape<C>::BLOCKS * device->core_count),
                                 dim3(NARROW_BLOCK), (size_t)bytes};
    struct launch_shape merge = {dim3(4 * device->core_count), dim3(MERGE_THREADS), 0};
    auto kernel = call.args.softcap > 0.0f ? narrow_kernel<C, true> : narrow_kernel<C, false>;
    CUtensorMap keys, values;
    if (!map_pages<C>(device, &keys, call, call.layer.key) ||
        !map_pages<C>(device, &values, call, call.layer.key + call.layer.value_offset))
        return;
    (void)cuda_check(
        device, cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
        __func__);
    launch(device, __func__, kernel, shape, call, keys, values);
    if (merges)
        launch(device, __func__, merge_kernel<C>, merge, call);
}

void cuda_attention_narrow(struct device *device, const struct attention_call &call, bool merges)
{
    switch (call.args.head_width) {
    case 64:
        narrow_launch<64>(device, call, merges);
        break;
    case 80:
        narrow_launch<80>(device, call, merges);
        break;
    case 96:
        narrow_launch<96>(device, call, merges);
        break;
    case 128:
        narrow_launch<128>(device, call, merges);
        break;
    case 192:
        narrow_launch<192>(device, call, merges);
        break;
    case 256:
        narrow_launch<256>(device, call, merges);
        break;
    default:
        assert(false);
    }
}
