/* The CUDA backend: the table of ops, a device's life, its memory and its weights.
 *
 * Linked statically against the runtime, so the binary starts on a machine without a driver;
 * `open` then says so. Weights stay on the device as they lie in a GGUF file and are dequantised
 * where they are used. How a step runs is told in kernels/cuda/device.cuh.
 */
#include "kernels/cuda/device.cuh"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

/* ---- faults ---- */

bool cuda_check(struct device *device, cudaError_t error, const char *where)
{
    if (error != cudaSuccess && device->fault == cudaSuccess) {
        device->fault = error;
        (void)snprintf(device->fault_text, sizeof(device->fault_text), "GPU %d: %.40s: %.100s",
                       device->options.index, where, cudaGetErrorString(error));
    }
    return error == cudaSuccess;
}

static const char *cuda_fault(struct device *device)
{
    return device->fault == cudaSuccess ? NULL : device->fault_text;
}

/* ---- memory ---- */

void *cuda_alloc(struct device *device, size_t bytes)
{
    void *memory = NULL;
    if (device->memory_count == device->memory_max) {
        int32_t max = device->memory_max == 0 ? 256 : 2 * device->memory_max;
        void *grown = realloc(device->memory, (size_t)max * sizeof(void *));
        if (grown == NULL)
            return NULL;
        device->memory = (void **)grown;
        device->memory_max = max;
    }
    if (cudaMalloc(&memory, bytes == 0 ? 1 : bytes) != cudaSuccess) {
        (void)cudaGetLastError(); /* a refusal, not a fault: the next launch must not find it */
        return NULL;
    }
    device->memory[device->memory_count++] = memory;
    (void)cuda_check(device, cudaMemsetAsync(memory, 0, bytes, device->stream), __func__);
    return memory;
}

static size_t cuda_memory_free(struct device *device)
{
    size_t free_bytes = 0, total_bytes = 0;
    (void)cuda_check(device, cudaMemGetInfo(&free_bytes, &total_bytes), __func__);
    return free_bytes;
}

static size_t cuda_memory_total(struct device *device)
{
    size_t free_bytes = 0, total_bytes = 0;
    (void)cuda_check(device, cudaMemGetInfo(&free_bytes, &total_bytes), __func__);
    return total_bytes;
}

/* Copies and waits. */
static void copy(struct device *device, void *target, const void *source, size_t bytes,
                 enum cudaMemcpyKind kind)
{
    (void)cuda_check(device, cudaMemcpyAsync(target, source, bytes, kind, device->stream),
                     __func__);
    (void)cuda_check(device, cudaStreamSynchronize(device->stream), __func__);
}

static void cuda_upload(struct device *device, void *target, const void *source, size_t bytes)
{
    copy(device, target, source, bytes, cudaMemcpyHostToDevice);
}

static void cuda_download(struct device *device, void *target, const void *source, size_t bytes)
{
    copy(device, target, source, bytes, cudaMemcpyDeviceToHost);
}

static void cuda_put(struct device *device, struct activation target, const float *source,
                     int32_t rows, int32_t width)
{
    size_t row_bytes = (size_t)width * sizeof(float);
    (void)cuda_check(device,
                     cudaMemcpy2DAsync(target.data, (size_t)target.stride * sizeof(float), source,
                                       row_bytes, row_bytes, (size_t)rows, cudaMemcpyHostToDevice,
                                       device->stream),
                     __func__);
    (void)cuda_check(device, cudaStreamSynchronize(device->stream), __func__);
}

static void cuda_get(struct device *device, float *target, struct activation source, int32_t rows,
                     int32_t width)
{
    size_t row_bytes = (size_t)width * sizeof(float);
    (void)cuda_check(device,
                     cudaMemcpy2DAsync(target, row_bytes, source.data,
                                       (size_t)source.stride * sizeof(float), row_bytes,
                                       (size_t)rows, cudaMemcpyDeviceToHost, device->stream),
                     __func__);
    (void)cuda_check(device, cudaStreamSynchronize(device->stream), __func__);
}

/* ---- weights ---- */

static size_t cuda_weight_bytes(struct device *device, enum format format, int32_t out, int32_t in)
{
    (void)device;
    return (size_t)out * format_row_bytes(format, in);
}

static int cuda_weight_pack(struct device *device, struct weight *weight,
                            const struct weight_source *source, int32_t part_count,
                            const float *bias)
{
    assert(part_count > 0);
    assert(part_count <= WEIGHT_PART_MAX);
    *weight = {};
    weight->part_count = part_count;
    weight->in = source[0].in;
    for (int32_t i = 0; i < part_count; i++) {
        assert(source[i].in == weight->in);
        size_t bytes = cuda_weight_bytes(device, source[i].format, source[i].out, source[i].in);
        weight->part[i].format = source[i].format;
        weight->part[i].out = source[i].out;
        weight->part[i].data = cuda_alloc(device, bytes);
        if (weight->part[i].data == NULL)
            return -ENOMEM;
        cuda_upload(device, weight->part[i].data, source[i].data, bytes);
        weight->out += source[i].out;
    }
    if (bias == NULL)
        return 0;
    size_t bias_bytes = (size_t)weight->out * sizeof(float);
    weight->bias = (float *)cuda_alloc(device, bias_bytes);
    if (weight->bias == NULL)
        return -ENOMEM;
    cuda_upload(device, weight->bias, bias, bias_bytes);
    return 0;
}

/* ---- life ---- */

__global__ void probe_kernel(void)
{
}

static void cuda_close(struct device *device)
{
    if (device == NULL)
        return;
    if (device->stream != NULL)
        (void)cudaStreamSynchronize(device->stream);
    cuda_graph_close(device);
    cuda_step_close(device);
    cuda_kv_close(device);
    for (int32_t i = 0; i < device->memory_count; i++)
        (void)cudaFree(device->memory[i]);
    free(device->memory);
    if (device->stream != NULL)
        (void)cudaStreamDestroy(device->stream);
    (void)cudaGetLastError(); /* what a refused `open` left behind is not the next device's */
    free(device);
}

/* What the operator can act on: the runtime's own words hide a missing driver. */
static const char *reason(cudaError_t error)
{
    int version = 0;
    if (error == cudaErrorInsufficientDriver && cudaDriverGetVersion(&version) == cudaSuccess &&
        version == 0)
        return "there is no NVIDIA driver here";
    return cudaGetErrorString(error);
}

/* Finds the GPU and makes its stream. */
static cudaError_t find(struct device *device)
{
    struct cudaDeviceProp prop;
    struct cudaFuncAttributes attributes;
    int count = 0;
    cudaError_t error = cudaGetDeviceCount(&count);
    if (error == cudaSuccess && device->options.index >= count)
        error = cudaErrorInvalidDevice;
    if (error == cudaSuccess)
        error = cudaSetDevice(device->options.index);
    if (error == cudaSuccess)
        error = cudaGetDeviceProperties(&prop, device->options.index);
    if (error == cudaSuccess) /* fails when the build has no code for this GPU */
        error = cudaFuncGetAttributes(&attributes, (const void *)probe_kernel);
    if (error == cudaSuccess)
        error = cudaStreamCreateWithFlags(&device->stream, cudaStreamNonBlocking);
    device->core_count = error == cudaSuccess ? prop.multiProcessorCount : 0;
    device->shared_bytes = error == cudaSuccess ? (int32_t)prop.sharedMemPerBlockOptin : 0;
    if (error == cudaSuccess)
        (void)snprintf(device->description, sizeof(device->description),
                       "%.100s, compute capability %d.%d, %.1f GiB", prop.name, prop.major,
                       prop.minor, (double)prop.totalGlobalMem / (1 << 30));
    return error;
}

static int cuda_open(struct device **opened, const struct device_options *options, char *error,
                     size_t error_bytes)
{
    struct device *device = (struct device *)calloc(1, sizeof(*device));
    if (device == NULL) {
        (void)snprintf(error, error_bytes, "could not open a GPU: no memory on the host");
        return -ENOMEM;
    }
    device->options = *options;
    cudaError_t found = find(device);
    if (found != cudaSuccess) {
        (void)snprintf(error, error_bytes, "could not open GPU %d: %s", options->index,
                       reason(found));
        cuda_close(device);
        return -ENODEV;
    }
    bool good = cuda_step_open(device);
    (void)cuda_check(device, cudaStreamSynchronize(device->stream), __func__);
    if (device->fault != cudaSuccess) {
        (void)snprintf(error, error_bytes, "%s", device->fault_text);
        cuda_close(device);
        return -ENODEV;
    }
    if (!good) {
        (void)snprintf(error, error_bytes,
                       "could not open GPU %d: no memory, on it or pinned on the host, for %d "
                       "slots and %d samples of %d tokens; lower max-num-seqs",
                       options->index, options->slot_max, options->sample_max,
                       options->vocab_count);
        cuda_close(device);
        return -ENOMEM;
    }
    *opened = device;
    return 0;
}

static const char *cuda_describe(struct device *device)
{
    return device->description;
}

static const struct device_ops ops = {
    .name = "cuda",
    .activation_bytes = sizeof(float),
    .open = cuda_open,
    .close = cuda_close,
    .memory_free = cuda_memory_free,
    .memory_total = cuda_memory_total,
    .describe = cuda_describe,
    .read_rate = cuda_read_rate,
    .alloc = cuda_alloc,
    .upload = cuda_upload,
    .download = cuda_download,
    .put = cuda_put,
    .get = cuda_get,
    .weight_bytes = cuda_weight_bytes,
    .weight_pack = cuda_weight_pack,
    .kv_block_bytes = cuda_kv_block_bytes,
    .kv_open = cuda_kv_open,
    .step_begin = cuda_step_begin,
    .step_end = cuda_step_end,
    .sync = cuda_sync,
    .fault = cuda_fault,
    .graph_begin = cuda_graph_begin,
    .graph_end = cuda_graph_end,
    .graph_launch = cuda_graph_launch,
    .embed = cuda_embed,
    .norm = cuda_norm,
    .add_norm = cuda_add_norm,
    .linear = cuda_linear,
    .act_mul = cuda_act_mul,
    .rope_store = cuda_rope_store,
    .attention = cuda_attention,
    .gather = cuda_gather,
    .logits = cuda_logits,
    .sample = cuda_sample,
};

extern "C" const struct device_ops *backend_cuda(void)
{
    return &ops;
}
