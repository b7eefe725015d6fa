/* What the device's memory gives: the floor of a step that reads every weight once.
 *
 * A buffer many times the L2 cache is read from end to end, 16 bytes a thread, by as many blocks
 * as the device holds; the best of a few passes counts.
 */
#include "kernels/cuda/device.cuh"

enum {
    READ_THREADS = 512,
    READ_BLOCKS = 4, /* a multiprocessor: all of its threads */
    READ_UNROLL = 4, /* loads in flight a thread */
    READ_PASSES = 12,
};

static const size_t read_bytes_most = (size_t)2 << 30;

__global__ void __launch_bounds__(READ_THREADS)
    read_kernel(const uint4 *data, int64_t count, uint32_t *sink)
{
    int64_t stride = (int64_t)gridDim.x * blockDim.x;
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    uint32_t sum = 0;

    for (; i + (READ_UNROLL - 1) * stride < count; i += READ_UNROLL * stride) {
        uint4 part[READ_UNROLL];
#pragma unroll
        for (int32_t k = 0; k < READ_UNROLL; k++)
            part[k] = __ldcs(&data[i + k * stride]);
#pragma unroll
        for (int32_t k = 0; k < READ_UNROLL; k++)
            sum += part[k].x ^ part[k].y ^ part[k].z ^ part[k].w;
    }
    for (; i < count; i += stride)
        sum += data[i].x ^ data[i].y ^ data[i].z ^ data[i].w;
    if (sum == 1) /* never: the buffer is zeros; but the compiler does not know */
        *sink = sum;
}

/* Milliseconds of the best pass; 0: a call failed, which is kept. */
static float time_passes(struct device *device, const void *data, size_t bytes, uint32_t *sink)
{
    cudaEvent_t begin = NULL, end = NULL;
    float best = 0, taken = 0;
    bool good = cuda_check(device, cudaEventCreate(&begin), __func__) &&
                cuda_check(device, cudaEventCreate(&end), __func__);

    for (int32_t i = 0; good && i < READ_PASSES; i++) {
        (void)cudaEventRecord(begin, device->stream);
        read_kernel<<<READ_BLOCKS * device->core_count, READ_THREADS, 0, device->stream>>>(
            (const uint4 *)data, (int64_t)(bytes / sizeof(uint4)), sink);
        (void)cudaEventRecord(end, device->stream);
        good = cuda_check(device, cudaGetLastError(), __func__) &&
               cuda_check(device, cudaEventSynchronize(end), __func__) &&
               cuda_check(device, cudaEventElapsedTime(&taken, begin, end), __func__);
        best = best == 0 || taken < best ? taken : best;
    }
    if (begin != NULL)
        (void)cudaEventDestroy(begin);
    if (end != NULL)
        (void)cudaEventDestroy(end);
    return good ? best : 0;
}

double cuda_read_rate(struct device *device)
{
    size_t free_bytes = 0, total_bytes = 0;
    void *data = NULL;
    float best = 0;

    if (!cuda_check(device, cudaMemGetInfo(&free_bytes, &total_bytes), __func__))
        return 0;
    size_t bytes = free_bytes / 2 < read_bytes_most ? free_bytes / 2 : read_bytes_most;
    bytes = bytes / sizeof(uint4) * sizeof(uint4);
    if (cudaMalloc(&data, bytes + sizeof(uint4)) != cudaSuccess) {
        (void)cudaGetLastError(); /* a refusal, not a fault */
        return 0;
    }
    if (cuda_check(device, cudaMemsetAsync(data, 0, bytes, device->stream), __func__))
        best = time_passes(device, data, bytes, (uint32_t *)((uint8_t *)data + bytes));
    (void)cuda_check(device, cudaFree(data), __func__);
    return best > 0 ? (double)bytes * 1e3 / (double)best : 0;
}
