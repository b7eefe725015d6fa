/* Weights: packed by linear.c, owned by the device. */
#include "kernels/cpu/device.h"
#include "kernels/cpu/linear.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

enum { GRAIN = 16384 };

size_t cpu_weight_bytes(struct device *device, enum format format, int32_t out, int32_t in)
{
    (void)device;
    return linear_packed_bytes(format, out, in);
}

/* Scratch memory for the widest input so far, before any op needs it. */
static int grow_scratch(struct device *device, int32_t in)
{
    const struct device_options *options = &device->options;
    int32_t rows =
        options->token_max > options->sample_max ? options->token_max : options->sample_max;

    if (in <= device->linear_in_max)
        return 0;
    size_t bytes = linear_scratch_bytes(device->pool, in, rows);
    void *scratch = cpu_alloc(device, bytes > 0 ? bytes : LINEAR_ALIGN);
    if (scratch == NULL)
        return -ENOMEM;
    if (device->linear_scratch != NULL)
        cpu_free(device, device->linear_scratch);
    device->linear_scratch = scratch;
    device->linear_in_max = in;
    return 0;
}

int cpu_weight_pack(struct device *device, struct weight *weight,
                    const struct weight_source *source, int32_t part_count, const float *bias,
                    bool gated)
{
    assert(part_count >= 1 && part_count <= WEIGHT_PART_MAX);
    *weight = (struct weight){.part_count = part_count, .in = source[0].in, .gated = gated};

    for (int32_t i = 0; i < part_count; i++) {
        assert(source[i].in == weight->in);
        if (source[i].in % format_info(source[i].format)->block_values != 0)
            return -ENOTSUP;
        size_t bytes = linear_packed_bytes(source[i].format, source[i].out, source[i].in);
        void *data = cpu_alloc(device, bytes);
        if (data == NULL)
            return -ENOMEM;
        linear_pack(device->pool, &source[i], data);
        weight->part[i] = (struct weight_part){source[i].format, source[i].out, data};
        weight->out += source[i].out;
    }
    if (bias != NULL) {
        size_t bytes = (size_t)weight->out * sizeof(*bias);
        weight->bias = cpu_alloc(device, bytes);
        if (weight->bias == NULL)
            return -ENOMEM;
        memcpy(weight->bias, bias, bytes);
    }
    return grow_scratch(device, weight->in);
}

void cpu_linear(struct device *device, struct activation out, struct activation x,
                const struct weight *weight, int32_t T)
{
    if (T == 0)
        return;
    linear_run(device->pool, device->isa,
               &(struct linear_call){
                   .weight = weight,
                   .x = x.data,
                   .x_stride = x.stride,
                   .out = out.data,
                   .out_stride = out.stride,
                   .T = T,
                   .scratch = device->linear_scratch,
               });
}

void cpu_gated_linear(struct device *device, struct activation out, struct activation gate_up,
                      struct activation x, const struct weight *weight, enum act_kind act,
                      int32_t T)
{
    assert(weight->gated);
    cpu_linear(device, gate_up, x, weight, T);
    cpu_act_mul(device, out, gate_up, act, T, weight->out / 2);
}

struct softcap_call {
    struct device *device;
    float *logits;
    float softcap;
    int64_t count;
    int32_t task_count;
};

static void softcap_task(void *context, int32_t task, int32_t worker)
{
    const struct softcap_call *call = context;
    int64_t first = pool_task_first(call->count, call->task_count, task);
    int64_t end = pool_task_first(call->count, call->task_count, task + 1);

    (void)worker;
    call->device->vector->softcap(call->logits + first, call->softcap, end - first);
}

void cpu_logits(struct device *device, float *logits, struct activation x,
                const struct weight *head, float softcap, int32_t count)
{
    struct softcap_call call = {device, logits, softcap, (int64_t)count * head->out, 0};

    if (count == 0)
        return;
    cpu_linear(device, (struct activation){.data = logits, .stride = head->out}, x, head, count);
    if (softcap > 0.0f) {
        call.task_count = pool_task_count(device->pool, call.count, GRAIN);
        pool_run(device->pool, softcap_task, &call, call.task_count);
    }
}
