/* The CPU backend: its life and memory, and the table of its ops.
 *
 * Ops run when they are called, on the pool's threads and the caller's; activations are f32. The
 * files of kernels/cpu/ hold the ops, one concept each. */
#include "kernels/backend.h"

#include "kernels/cpu/device.h"
#include "kernels/cpu/linear.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { ALIGN = 64, MAP_BYTES_MIN = 1 << 20 };

/* ---- memory ---- */

static bool remember(struct device *device, void *data, size_t bytes, bool mapped)
{
    if (device->allocation_count == device->allocation_max) {
        int32_t more = device->allocation_max * 2 + 64;
        struct cpu_allocation *list =
            realloc(device->allocation, (size_t)more * sizeof(*device->allocation));
        if (list == NULL)
            return false;
        device->allocation = list;
        device->allocation_max = more;
    }
    device->allocation[device->allocation_count++] = (struct cpu_allocation){data, bytes, mapped};
    return true;
}

static void release(const struct cpu_allocation *allocation)
{
    if (allocation->mapped)
        (void)munmap(allocation->data, allocation->bytes);
    else
        free(allocation->data);
}

static void *keep(struct device *device, void *data, size_t bytes, bool mapped)
{
    if (data == NULL)
        return NULL;
    if (remember(device, data, bytes, mapped))
        return data;
    release(&(struct cpu_allocation){data, bytes, mapped});
    return NULL;
}

static void *map(size_t bytes)
{
    void *data = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return data == MAP_FAILED ? NULL : data;
}

void *cpu_alloc_lazy(struct device *device, size_t bytes)
{
    return keep(device, map(bytes + ALIGN), bytes + ALIGN, true);
}

/* Fresh pages are zero, and take memory when they are touched; huge ones spare the large weights
 * and caches most of their address translations. */
void *cpu_alloc(struct device *device, size_t bytes)
{
    size_t whole = (bytes + ALIGN) / ALIGN * ALIGN;

    if (whole < MAP_BYTES_MIN) {
        void *data = aligned_alloc(ALIGN, whole);
        if (data != NULL)
            memset(data, 0, whole);
        return keep(device, data, whole, false);
    }
    if (whole > cpu_memory_free(device))
        return NULL;
    void *data = map(whole);
    if (data != NULL)
        (void)madvise(data, whole, MADV_HUGEPAGE);
    return keep(device, data, whole, true);
}

void cpu_free(struct device *device, void *data)
{
    int32_t i = 0;

    while (device->allocation[i].data != data) {
        i++;
        assert(i < device->allocation_count);
    }
    release(&device->allocation[i]);
    device->allocation[i] = device->allocation[--device->allocation_count];
}

static void cpu_copy(struct device *device, void *target, const void *source, size_t bytes)
{
    (void)device;
    memcpy(target, source, bytes);
}

static void cpu_put(struct device *device, struct activation target, const float *source,
                    int32_t rows, int32_t width)
{
    (void)device;
    for (int64_t i = 0; i < rows; i++)
        memcpy((float *)target.data + i * target.stride, source + i * width,
               (size_t)width * sizeof(float));
}

static void cpu_get(struct device *device, float *target, struct activation source, int32_t rows,
                    int32_t width)
{
    (void)device;
    for (int64_t i = 0; i < rows; i++)
        memcpy(target + i * width, (const float *)source.data + i * source.stride,
               (size_t)width * sizeof(float));
}

/* ---- life ---- */

void cpu_set_isa(struct device *device, enum cpu_isa isa)
{
    device->isa = isa;
    device->vector = cpu_vector(isa);
}

static void cpu_close(struct device *device)
{
    if (device == NULL)
        return;
    pool_destroy(device->pool);
    for (int32_t i = 0; i < device->allocation_count; i++)
        release(&device->allocation[i]);
    free(device->allocation);
    free(device);
}

static void describe_machine(char *text, size_t bytes, enum cpu_isa isa, int32_t threads)
{
    FILE *file = fopen("/proc/cpuinfo", "r");
    char line[256], name[64] = "CPU";

    while (file != NULL && fgets(line, sizeof(line), file) != NULL) {
        if (sscanf(line, "model name : %63[^\n]", name) == 1)
            break;
    }
    if (file != NULL)
        (void)fclose(file);
    (void)snprintf(text, bytes, "%s, %s, %d thread%s", name, cpu_isa_name(isa), threads,
                   threads == 1 ? "" : "s");
}

static int open_parts(struct device *device)
{
    int error = cpu_step_open(device);

    if (error == 0)
        error = cpu_slot_open(device);
    if (error == 0)
        error = cpu_sample_open(device);
    return error;
}

static int cpu_open(struct device **opened, const struct device_options *options, char *error,
                    size_t error_bytes)
{
    struct device *device = calloc(1, sizeof(*device));

    assert(options->slot_max > 0 && options->token_max > 0 && options->sample_max > 0);
    assert(options->vocab_count > 0 && options->context_max > 0);
    if (device == NULL) {
        (void)snprintf(error, error_bytes, "could not open the CPU: out of memory");
        return -ENOMEM;
    }
    device->options = *options;
    cpu_set_isa(device, cpu_isa_best());
    device->pool = pool_create(options->thread_count);
    if (device->pool == NULL) {
        cpu_close(device);
        (void)snprintf(error, error_bytes, "could not start %d compute threads; lower --threads",
                       options->thread_count);
        return -EAGAIN;
    }
    int result = open_parts(device);
    if (result != 0) {
        cpu_close(device);
        (void)snprintf(error, error_bytes,
                       "could not allocate state for %d sequences of %d tokens on the CPU; lower "
                       "--max-num-seqs or --max-num-batched-tokens",
                       options->slot_max, options->context_max);
        return result;
    }
    describe_machine(device->description, sizeof(device->description), device->isa,
                     pool_thread_count(device->pool));
    *opened = device;
    return 0;
}

static const char *cpu_describe(struct device *device)
{
    return device->description;
}

static const struct device_ops ops = {
    .name = "cpu",
    .activation_bytes = sizeof(float),
    .residual_bytes = sizeof(float),
    .logit_rows = 64,
    .open = cpu_open,
    .close = cpu_close,
    .memory_free = cpu_memory_free,
    .describe = cpu_describe,
    .read_rate = cpu_read_rate,
    .alloc = cpu_alloc,
    .upload = cpu_copy,
    .download = cpu_copy,
    .put = cpu_put,
    .get = cpu_get,
    .weight_bytes = cpu_weight_bytes,
    .weight_pack = cpu_weight_pack,
    .kv_block_bytes = cpu_kv_block_bytes,
    .kv_open = cpu_kv_open,
    .immediate = true,
    .step_begin = cpu_step_begin,
    .step_end = cpu_step_end,
    .sync = cpu_sync,
    .embed = cpu_embed,
    .norm = cpu_norm,
    .add_norm = cpu_add_norm,
    .linear = cpu_linear,
    .gated_linear = cpu_gated_linear,
    .act_mul = cpu_act_mul,
    .rope_store = cpu_rope_store,
    .attention = cpu_attention,
    .gather = cpu_gather,
    .logits = cpu_logits,
    .sample = cpu_sample,
};

const struct device_ops *backend_cpu(void)
{
    return &ops;
}
