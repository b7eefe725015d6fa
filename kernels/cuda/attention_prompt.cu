/* Wide items of attention on Hopper, those of prompts: a persistent kernel whose blocks take them
 * off the step's work list (attention_feed.cuh, attention_prompt.cuh).
 *
 * Which widths: those that are pieces of 64 columns, as wgmma reads them, and fit into a
 * multiprocessor's registers.
 */
#include "kernels/cuda/attention_prompt.cuh"
#include "kernels/cuda/launch.cuh"

#include <assert.h>
#include <cudaTypedefs.h>

template <int C>
__global__ void __launch_bounds__(prompt_shape<C>::THREADS, 1)
    prompt_kernel(const __grid_constant__ struct attention_call call,
                  const __grid_constant__ struct prompt_maps maps)
{
    using shape = prompt_shape<C>;
    extern __shared__ __align__(1024) uint8_t memory[];
    prompt_shared<C> &shared = *reinterpret_cast<prompt_shared<C> *>(memory);
    if (threadIdx.x == 0)
        prompt_open<C>(shared);
    __syncthreads();
    kernel_wait();
    kernel_yield(); /* not before: see launch.cuh, and narrow_wait */
    if (threadIdx.x >= shape::WORKERS) {
        registers_give<shape::COPY_REGISTERS>();
        if (threadIdx.x < shape::WORKERS + WARP)
            prompt_copy_keys<C>(shared, call, maps);
        else if (threadIdx.x < shape::WORKERS + 2 * WARP)
            prompt_copy_values<C>(shared, call, maps);
    } else {
        registers_take<shape::WORK_REGISTERS>();
        if (call.args.softcap > 0.0f)
            prompt_multiply<C, true>(shared, call);
        else
            prompt_multiply<C, false>(shared, call);
        prompt_shut<C>(call);
    }
}

/* A map of a layer's pages, whose boxes have `rows` positions. */
static bool map_pages(struct device *device, CUtensorMap *map, const struct attention_call &call,
                      int32_t rows)
{
    auto encode = (PFN_cuTensorMapEncodeTiled_v12000)device->encode;
    const struct kv_layer &layer = call.layer;
    const cuuint64_t bytes = sizeof(__half);
    const cuuint64_t sizes[] = {(cuuint64_t)call.args.head_width,
                                (cuuint64_t)call.args.kv_head_count, (cuuint64_t)layer.block_tokens,
                                2, (cuuint64_t)device->kv_shape.block_count};
    const cuuint64_t strides[] = {
        (cuuint64_t)call.args.head_width * bytes, (cuuint64_t)layer.row_stride * bytes,
        (cuuint64_t)layer.value_offset * bytes, (cuuint64_t)layer.block_stride * bytes};
    const cuuint32_t box[] = {64, 1, (cuuint32_t)rows, 1, 1}, steps[] = {1, 1, 1, 1, 1};
    CUresult result = encode(map, CU_TENSOR_MAP_DATA_TYPE_FLOAT16, 5, layer.key, sizes, strides,
                             box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                             bulk_promotion, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    return cuda_check(device, result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue,
                      __func__);
}

template <int C> static void prompt_launch(struct device *device, const struct attention_call &call)
{
    int32_t bytes = (int32_t)sizeof(prompt_shared<C>), tokens = call.layer.block_tokens;
    struct prompt_maps maps;
    static_assert(sizeof(prompt_shared<C>) <= 227 * 1024, "a block has a core's memory");
    if (!map_pages(device, &maps.page, call, tokens < KV_TILE ? tokens : (int32_t)KV_TILE) ||
        !map_pages(device, &maps.row, call, 1))
        return;
    struct launch_shape shape = {dim3(device->core_count), dim3(prompt_shape<C>::THREADS),
                                 (size_t)bytes};
    launch(device, __func__, prompt_kernel<C>, shape, call, maps);
}

bool cuda_attention_prompt_fits(const struct device *device, int32_t head_width)
{
    bool width = head_width == 64 || head_width == 128 || head_width == 192;
    return width && device->hopper;
}

void cuda_attention_prompt(struct device *device, const struct attention_call &call)
{
    switch (call.args.head_width) {
    case 64:
        prompt_launch<64>(device, call);
        break;
    case 128:
        prompt_launch<128>(device, call);
        break;
    case 192:
        prompt_launch<192>(device, call);
        break;
    default:
        assert(false);
    }
    launch_check(device, __func__);
}
