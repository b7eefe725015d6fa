/* The cache: one pool of blocks for all groups, and block tables by slot.
 *
 * A block id belongs to one group at a time, so a block has room for the group with most layers.
 * [block, layer of the group, k or v, position, K, C], f16, zeroed at start: a position that was
 * never written must not be a NaN.
 */
#include "kernels/cuda/attention.cuh"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { THREADS = 256, COPY_BLOCKS = 32 };

/* Move blockIdx.y, cut into COPY_BLOCKS strips of 16-byte words. No block is written twice, or
 * read and written, by the copies of one step. */
__global__ void copy_kernel(struct kv_view kv, struct step_view step)
{
    struct step_move move = step.move[blockIdx.y];
    const uint4 *source = (const uint4 *)(kv.pool + move.source * kv.block_stride);
    uint4 *target = (uint4 *)(kv.pool + move.target * kv.block_stride);
    int64_t words = kv.block_stride * (int64_t)sizeof(__half) / (int64_t)sizeof(uint4);
    int64_t first = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    for (int64_t i = first; i < words; i += COPY_BLOCKS * THREADS)
        target[i] = source[i];
}

/* The greatest number of layers in a group; each layer's place in its own goes to `index`. */
static int32_t group_layers(const struct kv_shape *shape, int32_t *index)
{
    int32_t count[KV_GROUP_MAX] = {}, most = 0;
    assert(shape->group_count <= KV_GROUP_MAX);
    for (int32_t layer = 0; layer < shape->layer_count; layer++) {
        int32_t group = shape->layer_group[layer];
        assert(group >= 0 && group < shape->group_count);
        if (index != NULL)
            index[layer] = count[group];
        count[group]++;
        if (count[group] > most)
            most = count[group];
    }
    return most;
}

/* Elements of one layer's keys (or values) in a block. */
static int64_t half_elements(const struct kv_shape *shape)
{
    return (int64_t)shape->block_tokens * shape->kv_head_count * shape->head_width;
}

/* Elements of a block, rounded up to whole 16-byte words for the copies. */
static int64_t block_elements(const struct kv_shape *shape)
{
    return (group_layers(shape, NULL) * 2 * half_elements(shape) + 7) / 8 * 8;
}

size_t cuda_kv_block_bytes(struct device *device, const struct kv_shape *shape)
{
    (void)device;
    return (size_t)block_elements(shape) * sizeof(__half);
}

static size_t table_bytes(const struct device *device, const struct kv_shape *shape)
{
    size_t width = (size_t)ceil_div(device->options.context_max, shape->block_tokens);
    return (size_t)device->options.slot_max * (size_t)shape->group_count * width * sizeof(int32_t);
}

size_t cuda_kv_fixed_bytes(struct device *device, const struct kv_shape *shape)
{
    return table_bytes(device, shape) + cuda_attention_bytes(device, shape);
}

int cuda_kv_open(struct device *device, const struct kv_shape *shape)
{
    struct kv_view *kv = &device->kv;
    size_t layer_bytes = (size_t)shape->layer_count * sizeof(int32_t);
    assert(kv->pool == NULL);
    cuda_load_end(device); /* all weights are there */
    if (device->options.kv_dtype != KV_AUTO)
        return -ENOTSUP;
    kv->group_count = shape->group_count;
    kv->block_tokens = shape->block_tokens;
    kv->table_width = ceil_div(device->options.context_max, shape->block_tokens);
    kv->half_stride = half_elements(shape);
    kv->block_stride = block_elements(shape);
    device->kv_shape = *shape;
    device->layer_group = (int32_t *)malloc(layer_bytes);
    device->layer_index = (int32_t *)malloc(layer_bytes);
    if (device->layer_group == NULL || device->layer_index == NULL)
        return -ENOMEM;
    memcpy(device->layer_group, shape->layer_group, layer_bytes);
    (void)group_layers(shape, device->layer_index);
    device->kv_shape.layer_group = device->layer_group;

    kv->table = (int32_t *)cuda_alloc(device, table_bytes(device, shape));
    kv->pool = (__half *)cuda_alloc(device, (size_t)shape->block_count *
                                                cuda_kv_block_bytes(device, shape));
    bool good = kv->table != NULL && kv->pool != NULL && cuda_attention_open(device, shape);
    return good ? 0 : -ENOMEM;
}

void cuda_kv_close(struct device *device)
{
    free(device->layer_group);
    free(device->layer_index);
}

struct kv_layer cuda_kv_layer(const struct device *device, int32_t layer)
{
    const struct kv_view *kv = &device->kv;
    struct kv_layer view = {};
    assert(layer < device->kv_shape.layer_count);
    view.key = kv->pool + device->layer_index[layer] * 2 * kv->half_stride;
    view.value_offset = kv->half_stride;
    view.block_stride = kv->block_stride;
    view.row_stride = (int64_t)device->kv_shape.kv_head_count * device->kv_shape.head_width;
    view.table = kv->table + device->layer_group[layer] * kv->table_width;
    view.table_stride = (int64_t)kv->group_count * kv->table_width;
    view.block_tokens = kv->block_tokens;
    return view;
}

void cuda_kv_copy(struct device *device, int32_t move_count)
{
    if (move_count == 0)
        return;
    dim3 grid(COPY_BLOCKS, move_count);
    copy_kernel<<<grid, THREADS, 0, device->stream>>>(device->kv, device->step);
    launch_check(device, __func__);
}
