/* Launches that begin while the kernel before them ends.
 *
 * A kernel that is launched so calls kernel_yield, and kernel_wait in all threads before it
 * touches what another kernel wrote or reads. As every kernel of a stream waits for the one before
 * it to be whole, each knows all earlier ones whole. Kernels launched in the plain way may stand
 * between.
 *
 * Where a kernel yields only after it has waited, all that are behind it begin when what was before
 * it is whole, and may read that before they wait. embed does so: what step_begin put down, and
 * the cache as earlier steps left it, may be read at once. Narrow attention does so: the work list.
 * Behind the wide items' kernel, which yields so, it goes further: it does all its work beside that
 * one, as what is before both is whole, and waits before it ends (narrow_wait).
 */
#ifndef KERNELS_CUDA_LAUNCH_CUH
#define KERNELS_CUDA_LAUNCH_CUH

#include "kernels/cuda/device.cuh"

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900

/* The kernel behind this one may be set up once all blocks of this one are here. */
__device__ static inline void kernel_yield(void)
{
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}

/* Until the kernel before this one has ended, and what it wrote is there. */
__device__ static inline void kernel_wait(void)
{
    asm volatile("griddepcontrol.wait;" ::: "memory");
}

#else /* earlier GPUs: launched when the one before has ended */

__device__ static inline void kernel_yield(void)
{
}

__device__ static inline void kernel_wait(void)
{
}

#endif

struct launch_shape {
    dim3 grid;
    dim3 block;
    size_t shared_bytes;
    uint32_t cluster = 1; /* blocks, neighbours along x */
};

template <typename... Parameters, typename... Arguments>
static inline void launch(struct device *device, const char *where, void (*kernel)(Parameters...),
                          struct launch_shape shape, Arguments... arguments)
{
    cudaLaunchAttribute attribute[2] = {};
    cudaLaunchConfig_t config = {};
    uint32_t count = 0;
    if (device->overlaps) {
        attribute[count].id = cudaLaunchAttributeProgrammaticStreamSerialization;
        attribute[count++].val.programmaticStreamSerializationAllowed = 1;
    }
    if (shape.cluster > 1) {
        attribute[count].id = cudaLaunchAttributeClusterDimension;
        attribute[count++].val.clusterDim = {shape.cluster, 1, 1};
    }
    if (shape.shared_bytes > 0) /* it may be more than what is there without asking */
        (void)cuda_check(device,
                         cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                              (int)shape.shared_bytes),
                         where);
    config.gridDim = shape.grid;
    config.blockDim = shape.block;
    config.dynamicSmemBytes = shape.shared_bytes;
    config.stream = device->stream;
    config.attrs = attribute;
    config.numAttrs = count;
    (void)cuda_check(device, cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...), where);
}

#endif
