/* Narrow items of attention, those of decode and of short chunks: the launch of a kernel of its
 * own, beside the wide items' (attention.cu). A block goes through every gridDim.x-th item. */
#include "kernels/cuda/attention_narrow.cuh"

#include <assert.h>

template <int C>
__global__ void __launch_bounds__(NARROW_BLOCK, narrow_shape<C>::BLOCKS)
    narrow_kernel(const __grid_constant__ struct attention_call call,
                  const __grid_constant__ CUtensorMap map)
{
    extern __shared__ __align__(1024) uint8_t memory[];
    narrow_shared<C> &shared = *reinterpret_cast<narrow_shared<C> *>(memory);
    narrow_open<C>(shared);
    if (threadIdx.x < NARROW_THREADS)
        narrow_work<C>(shared, call);
    else
        narrow_feed<C>(shared, map, call);
}

template <int C>
static void narrow_launch(struct device *device, const struct attention_call &call)
{
    static_assert(sizeof(narrow_shared<C>) <= narrow_shape<C>::BYTES, "BLOCKS of them fit");
    int32_t bytes = (int32_t)sizeof(narrow_shared<C>);
    struct launch_shape shape = {dim3(narrow_shape<C>::BLOCKS * device->core_count),
                                 dim3(NARROW_BLOCK), (size_t)bytes};
    CUtensorMap map;
    if (!map_pages<C>(device, &map, call))
        return;
    (void)cuda_check(
        device,
        cudaFuncSetAttribute(narrow_kernel<C>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
        __func__);
    launch(device, __func__, narrow_kernel<C>, shape, call, map);
}

void cuda_attention_narrow(struct device *device, const struct attention_call &call)
{
    switch (call.args.head_width) {
    case 64:
        narrow_launch<64>(device, call);
        break;
    case 80:
        narrow_launch<80>(device, call);
        break;
    case 96:
        narrow_launch<96>(device, call);
        break;
    case 128:
        narrow_launch<128>(device, call);
        break;
    case 192:
        narrow_launch<192>(device, call);
        break;
    case 256:
        narrow_launch<256>(device, call);
        break;
    default:
        assert(false);
    }
}
