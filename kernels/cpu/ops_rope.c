/* Norm and rotation of queries and keys, and the writes into the cache. */
#include "kernels/cpu/device.h"

#include <assert.h>
#include <string.h>

enum { GRAIN = 4096, WIDTH_MAX = 512 };

struct rope_call {
    struct device *device;
    struct activation qkv;
    const struct rope_store_args *args;
    int32_t count, task_count;
};

static void turn(const struct rope_call *call, float *head, const float *norm, int32_t position)
{
    const struct rope_store_args *args = call->args;
    const struct cpu_vector *vector = call->device->vector;
    int32_t pair_count = args->rotary / 2;

    if (norm != NULL)
        vector->norm(head, head, norm, args->norm_eps, args->head_width);
    vector->rotate(head, args->rope + (int64_t)position * pair_count * 2, pair_count,
                   args->pairing);
}

static void store_head(const struct rope_call *call, const float *key, const float *value,
                       int32_t head, int32_t block, int32_t offset)
{
    struct device *device = call->device;
    int32_t C = call->args->head_width, lanes = device->kv.lanes;
    uint16_t half[WIDTH_MAX];
    uint16_t *run = cpu_kv_key(device, call->args->layer, head, block, offset);

    device->vector->to_f16(half, key, C);
    for (int32_t c = 0; c < C; c++)
        run[c * lanes + offset % lanes] = half[c];
    device->vector->to_f16(cpu_kv_value(device, call->args->layer, head, block, offset), value, C);
}

static void store_head_f32(const struct rope_call *call, const float *key, const float *value,
                           int32_t head, int32_t block, int32_t offset)
{
    struct device *device = call->device;
    int32_t C = call->args->head_width, lanes = device->kv.lanes, layer = call->args->layer;
    float *run = (float *)(void *)cpu_kv_key(device, layer, head, block, offset);

    for (int32_t c = 0; c < C; c++)
        run[c * lanes + offset % lanes] = key[c];
    memcpy(cpu_kv_value(device, layer, head, block, offset), value, (size_t)C * sizeof(*value));
}

static void rope_token(const struct rope_call *call, int32_t t)
{
    struct device *device = call->device;
    const struct rope_store_args *args = call->args;
    const struct step_row *row = &device->step.row[device->step.token_row[t]];
    int32_t C = args->head_width;
    int32_t position = row->position + (t - row->token_first);
    int32_t index = position / device->kv.block_tokens;
    int32_t block = cpu_kv_table(device, args->layer, row->slot)[index];
    float *q = (float *)call->qkv.data + t * call->qkv.stride;
    float *k = q + (int64_t)args->head_count * C;
    void (*store)(const struct rope_call *, const float *, const float *, int32_t, int32_t,
                  int32_t) = device->kv.halves == 2 ? store_head_f32 : store_head;
    float *v = k + (int64_t)args->kv_head_count * C;

    for (int32_t h = 0; h < args->head_count; h++)
        turn(call, q + (int64_t)h * C, args->q_norm, position);
    for (int32_t h = 0; h < args->kv_head_count; h++) {
        turn(call, k + (int64_t)h * C, args->k_norm, position);
        store(call, k + (int64_t)h * C, v + (int64_t)h * C, h, block,
              position % device->kv.block_tokens);
    }
}

static void rope_task(void *context, int32_t task, int32_t worker)
{
    const struct rope_call *call = context;
    int64_t end = pool_task_first(call->count, call->task_count, task + 1);

    (void)worker;
    for (int64_t t = pool_task_first(call->count, call->task_count, task); t < end; t++)
        rope_token(call, (int32_t)t);
}

void cpu_rope_store(struct device *device, struct activation qkv,
                    const struct rope_store_args *args, int32_t T)
{
    struct rope_call call = {.device = device, .qkv = qkv, .args = args};
    int32_t width = (args->head_count + 2 * args->kv_head_count) * args->head_width;

    assert(args->head_width == device->kv.head_width && args->head_width <= WIDTH_MAX);
    assert(args->kv_head_count == device->kv.kv_head_count);
    call.count = T < device->step.token_count ? T : device->step.token_count;
    if (call.count == 0)
        return;
    call.task_count = pool_task_count(device->pool, call.count, GRAIN / width + 1);
    pool_run(device->pool, rope_task, &call, call.task_count);
}
