/* The CUDA backend: the table of ops, a device's life, its memory and its weights.
 *
 * Linked statically against the runtime, so the binary starts on a machine without a driver;
 * `open` then says so. Weights stay on the device as they lie in a GGUF file and are dequantised
 * where they are used. How a step runs is told in kernels/cuda/device.cuh.
 */
#include "kernels/cuda/activation.cuh"
#include "kernels/cuda/launch.cuh"

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
    device->memory_bytes += bytes;
    (void)cuda_check(device, cudaMemsetAsync(memory, 0, bytes, device->stream), __func__);
    return memory;
}

static size_t cuda_memory_free(struct device *device)
{
    size_t free_bytes = 0, total_bytes = 0;
    (void)cuda_check(device, cudaMemGetInfo(&free_bytes, &total_bytes), __func__);
    return free_bytes;
}

static size_t cuda_memory_taken(struct device *device)
{
    return device->memory_bytes;
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

/* Between f32 and activations, through a copy in f32; for tests and tools. */
template <typename Target, typename Source>
__global__ void convert_kernel(Target *target, int64_t target_stride, const Source *source,
                               int64_t source_stride, int32_t width)
{
    for (int32_t i = threadIdx.x; i < width; i += blockDim.x)
        from_float(&target[blockIdx.x * target_stride + i],
                   to_float(source[blockIdx.x * source_stride + i]));
}

static void cuda_put(struct device *device, struct activation target, const float *source,
                     int32_t rows, int32_t width)
{
    size_t bytes = (size_t)rows * (size_t)width * sizeof(float);
    float *staged = NULL;
    if (bytes == 0 || !cuda_check(device, cudaMalloc((void **)&staged, bytes), __func__))
        return;
    cuda_upload(device, staged, source, bytes);
    if (target.residual)
        convert_kernel<<<rows, 256, 0, device->stream>>>((float *)target.data, target.stride,
                                                         staged, width, width);
    else
        convert_kernel<<<rows, 256, 0, device->stream>>>((bf16 *)target.data, target.stride, staged,
                                                         width, width);
    launch_check(device, __func__);
    (void)cuda_check(device, cudaStreamSynchronize(device->stream), __func__);
    (void)cudaFree(staged);
}

static void cuda_get(struct device *device, float *target, struct activation source, int32_t rows,
                     int32_t width)
{
    size_t bytes = (size_t)rows * (size_t)width * sizeof(float);
    float *staged = NULL;
    if (bytes == 0 || !cuda_check(device, cudaMalloc((void **)&staged, bytes), __func__))
        return;
    if (source.residual)
        convert_kernel<<<rows, 256, 0, device->stream>>>(staged, width, (const float *)source.data,
                                                         source.stride, width);
    else
        convert_kernel<<<rows, 256, 0, device->stream>>>(staged, width, (const bf16 *)source.data,
                                                         source.stride, width);
    launch_check(device, __func__);
    cuda_download(device, target, staged, bytes);
    (void)cudaFree(staged);
}

/* ---- weights ---- */

static size_t cuda_weight_bytes(struct device *device, enum format format, int32_t out, int32_t in)
{
    (void)device;
    return (size_t)out * format_row_bytes(format, in);
}

/* Behind the last row: rows are read in sixteens of bytes (matmul_packed.cu). */
enum { WEIGHT_SLACK = 16 };

/* Parts of one format lie behind each other and become one: a single product makes them all. */
static bool joined(const struct weight_source *source, int32_t part_count)
{
    for (int32_t i = 1; i < part_count; i++)
        if (source[i].format != source[0].format)
            return false;
    return true;
}

static bool pack_part(struct device *device, struct weight::weight_part *part,
                      const struct weight_source *source, int32_t count)
{
    size_t bytes = 0, done = 0;
    part->format = source[0].format;
    part->out = 0;
    for (int32_t i = 0; i < count; i++) {
        part->out += source[i].out;
        bytes += cuda_weight_bytes(device, source[i].format, source[i].out, source[i].in);
    }
    part->data = cuda_alloc(device, bytes + WEIGHT_SLACK);
    bool good = part->data != NULL;
    for (int32_t i = 0; good && i < count; i++) {
        size_t own = cuda_weight_bytes(device, source[i].format, source[i].out, source[i].in);
        struct weight_bytes whole = {{(const uint8_t *)source[i].data, NULL}, own, 0};
        good = cuda_load(device, (uint8_t *)part->data + done, &whole);
        done += own;
    }
    return good;
}

/* Eight outputs of gate, the eight of up that go with them, and so on: a thread of the product has
 * both (matmul.cu). True when the parts can be laid out so. */
static bool interleaves(const struct weight_source *source, int32_t part_count)
{
    bool even = part_count == 1
                    ? source[0].out % 16 == 0
                    : part_count == 2 && source[0].out == source[1].out && source[0].out % 8 == 0;
    return even && source[0].format == FORMAT_BF16 && joined(source, part_count) &&
           source[0].in % CHUNK == 0;
}

static bool pack_gated(struct device *device, struct weight *weight,
                       const struct weight_source *source, int32_t part_count)
{
    size_t row_bytes = format_row_bytes(source[0].format, source[0].in), eight = 8 * row_bytes;
    size_t half = (size_t)weight->out / 2;
    uint8_t *target = (uint8_t *)cuda_alloc(device, 2 * half * row_bytes + WEIGHT_SLACK);
    const uint8_t *gate = (const uint8_t *)source[0].data;
    const uint8_t *up = part_count == 2 ? (const uint8_t *)source[1].data : gate + half * row_bytes;
    struct weight_bytes striped = {{gate, up}, 2 * half * row_bytes, eight};
    if (target == NULL || !cuda_load(device, target, &striped))
        return false;
    weight->part_count = 1;
    weight->part[0].format = source[0].format;
    weight->part[0].out = weight->out;
    weight->part[0].data = target;
    weight->interleaved = true;
    return true;
}

static bool pack_bias(struct device *device, struct weight *weight, const float *bias)
{
    size_t count = (size_t)weight->out, bytes = count * sizeof(float);
    float *ordered = (float *)malloc(bytes);
    weight->bias = (float *)cuda_alloc(device, bytes);
    bool good = weight->bias != NULL && ordered != NULL;
    for (size_t i = 0; good && i < count; i++) {
        size_t half = count / 2, of = i % half;
        size_t place = weight->interleaved ? of / 8 * 16 + i / half * 8 + of % 8 : i;
        ordered[place] = bias[i];
    }
    if (good)
        cuda_upload(device, weight->bias, ordered, bytes);
    free(ordered);
    return good;
}

static int cuda_weight_pack(struct device *device, struct weight *weight,
                            const struct weight_source *source, int32_t part_count,
                            const float *bias, bool gated)
{
    bool good = true;
    assert(part_count > 0);
    assert(part_count <= WEIGHT_PART_MAX);
    *weight = {};
    weight->in = source[0].in;
    weight->gated = gated;
    for (int32_t i = 0; i < part_count; i++) {
        assert(source[i].in == weight->in);
        weight->out += source[i].out;
    }
    if (gated && interleaves(source, part_count)) {
        good = pack_gated(device, weight, source, part_count);
    } else {
        weight->part_count = joined(source, part_count) ? 1 : part_count;
        for (int32_t i = 0; good && i < weight->part_count; i++)
            good = pack_part(device, &weight->part[i], source + i,
                             weight->part_count == 1 ? part_count : 1);
    }
    if (good && bias != NULL)
        good = pack_bias(device, weight, bias);
    return good ? 0 : -ENOMEM;
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
    cuda_load_end(device);
    cuda_graph_close(device);
    tuned_release(&device->tuned);
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

/* The driver is not linked: the binary starts without one. */
static void *driver_function(const char *name)
{
    void *function = NULL;
    cudaDriverEntryPointQueryResult found;
    cudaError_t error =
        cudaGetDriverEntryPointByVersion(name, &function, 12000, cudaEnableDefault, &found);
    return error == cudaSuccess && found == cudaDriverEntryPointSuccess ? function : NULL;
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
    if (device->options.portable && device->shared_bytes > SHARED_BYTES_LEAST)
        device->shared_bytes = SHARED_BYTES_LEAST;
    if (error == cudaSuccess)
        device->encode = driver_function("cuTensorMapEncodeTiled");
    /* newer GPUs have code that the driver makes of sm_80's */
    device->overlaps = error == cudaSuccess && prop.major == 9 && prop.minor == 0;
    device->hopper = device->overlaps && device->encode != NULL && !device->options.portable;
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
    .activation_bytes = sizeof(bf16),
    .residual_bytes = sizeof(float),
    .logit_rows = 256,
    .open = cuda_open,
    .close = cuda_close,
    .memory_free = cuda_memory_free,
    .memory_total = cuda_memory_total,
    .memory_taken = cuda_memory_taken,
    .describe = cuda_describe,
    .read_rate = cuda_read_rate,
    .alloc = cuda_alloc,
    .upload = cuda_upload,
    .download = cuda_download,
    .put = cuda_put,
    .get = cuda_get,
    .weight_bytes = cuda_weight_bytes,
    .weight_pack = cuda_weight_pack,
    .tune = cuda_tune,
    .tuned = cuda_tuned,
    .kv_block_bytes = cuda_kv_block_bytes,
    .kv_fixed_bytes = cuda_kv_fixed_bytes,
    .kv_open = cuda_kv_open,
    .immediate = false,
    .step_begin = cuda_step_begin,
    .step_end = cuda_step_end,
    .sync = cuda_sync,
    .fault = cuda_fault,
    .graph_begin = cuda_graph_begin,
    .graph_end = cuda_graph_end,
    .graph_launch = cuda_graph_launch,
    .graph_bytes = cuda_graph_bytes,
    .embed = cuda_embed,
    .norm = cuda_norm,
    .add_norm = cuda_add_norm,
    .linear = cuda_linear,
    .gated_linear = cuda_gated_linear,
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
