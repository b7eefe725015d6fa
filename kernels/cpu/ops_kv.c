/* The KV cache of the CPU backend: its layout, block tables and moves.
 *
 * Halves (f16, saturating) and not bf16: keys and values of the models served stay far below
 * 65504 after their norms, and three more bits of significand make what rounding the cache costs
 * eight times smaller, at the same speed: both convert at load in one instruction or two.
 * Keys lie transposed by runs of 16 positions, so that a vector holds one column of 16 keys and
 * scores need no sum across lanes. docs/kernels.md has the picture. */
#include "kernels/cpu/device.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

/* Floats are for those who compare with a reference: they cost twice the memory, and attention
 * over them takes the slower of its two ways. */
static int32_t element_halves(const struct device *device)
{
    return device->options.kv_dtype == KV_F32 ? 2 : 1;
}

static int64_t layer_halves(const struct device *device, const struct kv_shape *shape)
{
    return 2 * (int64_t)shape->block_tokens * shape->kv_head_count * shape->head_width *
           element_halves(device);
}

/* A block serves any group, so it has room for the group of most layers. */
static int32_t group_layer_max(const struct kv_shape *shape)
{
    int32_t count[KV_GROUP_MAX] = {0};
    int32_t most = 0;

    for (int32_t i = 0; i < shape->layer_count; i++) {
        int32_t group = shape->layer_group[i];
        assert(group >= 0 && group < KV_GROUP_MAX);
        if (++count[group] > most)
            most = count[group];
    }
    return most;
}

size_t cpu_kv_block_bytes(struct device *device, const struct kv_shape *shape)
{
    return (size_t)(layer_halves(device, shape) * group_layer_max(shape)) * sizeof(uint16_t);
}

static void index_layers(struct cpu_kv *kv, const struct kv_shape *shape)
{
    int32_t count[KV_GROUP_MAX] = {0};

    for (int32_t i = 0; i < shape->layer_count; i++) {
        kv->layer_group[i] = shape->layer_group[i];
        kv->layer_index[i] = count[shape->layer_group[i]]++;
    }
}

int cpu_kv_open(struct device *device, const struct kv_shape *shape)
{
    struct cpu_kv *kv = &device->kv;
    size_t layers = (size_t)shape->layer_count;
    size_t slots = (size_t)device->options.slot_max;

    assert(kv->data == NULL);
    assert(shape->block_tokens > 0 && (shape->block_tokens & (shape->block_tokens - 1)) == 0);
    assert(shape->group_count >= 1 && shape->group_count <= KV_GROUP_MAX);
    *kv = (struct cpu_kv){
        .layer_count = shape->layer_count,
        .block_count = shape->block_count,
        .block_tokens = shape->block_tokens,
        .kv_head_count = shape->kv_head_count,
        .head_width = shape->head_width,
        .group_count = shape->group_count,
        .halves = element_halves(device),
        .lanes = shape->block_tokens < ATTEND_RUN ? shape->block_tokens : ATTEND_RUN,
        .table_length = (device->options.context_max - 1) / shape->block_tokens + 1,
        .layer_stride = layer_halves(device, shape),
        .block_stride = layer_halves(device, shape) * group_layer_max(shape),
    };
    size_t entries = (size_t)kv->group_count * slots * (size_t)kv->table_length;
    kv->layer_group = cpu_alloc(device, layers * sizeof(*kv->layer_group));
    kv->layer_index = cpu_alloc(device, layers * sizeof(*kv->layer_index));
    kv->table = cpu_alloc(device, entries * sizeof(*kv->table));
    kv->data =
        cpu_alloc(device, (size_t)kv->block_count * (size_t)kv->block_stride * sizeof(*kv->data));
    if (kv->layer_group == NULL || kv->layer_index == NULL || kv->table == NULL || kv->data == NULL)
        return -ENOMEM;
    index_layers(kv, shape);
    memset(kv->table, 0xff, entries * sizeof(*kv->table));
    return cpu_attention_open(device);
}

void cpu_kv_change(struct device *device, const struct step_change *change)
{
    struct cpu_kv *kv = &device->kv;
    int64_t list = (int64_t)change->group * device->options.slot_max + change->slot;

    assert(change->group >= 0 && change->group < kv->group_count);
    assert(change->slot >= 0 && change->slot < device->options.slot_max);
    assert(change->index >= 0 && change->index < kv->table_length);
    assert(change->block >= -1 && change->block < kv->block_count);
    kv->table[list * kv->table_length + change->index] = change->block;
}

/* There is no host tier on a CPU: its device memory is the host's. */
void cpu_kv_move(struct device *device, const struct step_move *move)
{
    struct cpu_kv *kv = &device->kv;

    assert(move->kind == STEP_COPY);
    assert(move->source >= 0 && move->source < kv->block_count);
    assert(move->target >= 0 && move->target < kv->block_count);
    memcpy(kv->data + move->target * kv->block_stride, kv->data + move->source * kv->block_stride,
           (size_t)kv->block_stride * sizeof(*kv->data));
}

const int32_t *cpu_kv_table(const struct device *device, int32_t layer, int32_t slot)
{
    const struct cpu_kv *kv = &device->kv;
    int64_t list = (int64_t)kv->layer_group[layer] * device->options.slot_max + slot;

    return kv->table + list * kv->table_length;
}

uint16_t *cpu_kv_key(const struct device *device, int32_t layer, int32_t head, int32_t block,
                     int32_t offset)
{
    const struct cpu_kv *kv = &device->kv;
    int64_t position = (int64_t)head * kv->block_tokens + offset / kv->lanes * kv->lanes;

    assert(block >= 0);
    return kv->data + block * kv->block_stride + kv->layer_index[layer] * kv->layer_stride +
           position * kv->head_width * kv->halves;
}

uint16_t *cpu_kv_value(const struct device *device, int32_t layer, int32_t head, int32_t block,
                       int32_t offset)
{
    const struct cpu_kv *kv = &device->kv;
    int64_t position = (int64_t)(kv->kv_head_count + head) * kv->block_tokens + offset;

    assert(block >= 0);
    return kv->data + block * kv->block_stride + kv->layer_index[layer] * kv->layer_stride +
           position * kv->head_width * kv->halves;
}
