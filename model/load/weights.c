/* Finds tensors by role, checks their shapes, and measures or packs them. */
#include "model/load/weights.h"

#include "model/load/dummy.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum { VECTOR_ALIGN = 64 };

int loader_begin_packing(struct loader *loader)
{
    assert(loader->measure);
    loader->measure = false;
    loader->weight_bytes = 0;
    loader->vector_used = 0;
    loader->vector = loader->ops->alloc(loader->device, loader->vector_bytes);
    return loader->vector == NULL ? -ENOMEM : 0;
}

void loader_end(struct loader *loader)
{
    for (int i = 0; i < WEIGHT_PART_MAX; i++)
        free(loader->dummy[i]);
}

/* Values of a tensor as f32, on the host; NULL after a refusal. The caller frees them. */
static float *as_f32(struct loader *loader, const struct tensor *tensor, size_t count)
{
    const struct format_info *info = format_info(tensor->format);
    float *values = malloc(count * sizeof(*values));

    if (values == NULL)
        source_refuse(loader->source, -ENOMEM, "no memory for tensor %s", tensor->name);
    else
        format_dequantise(tensor->format, tensor->data, (int64_t)count / info->block_values,
                          values);
    return values;
}

static bool find(struct loader *loader, enum tensor_role role, int32_t layer, int64_t out,
                 int64_t in, struct tensor *tensor)
{
    if (source_is_dummy(loader->source)) {
        *tensor = source_dummy(loader->source, role, layer, out, in);
        if (loader->measure)
            source_count_dummy(loader->source, tensor);
        return true;
    }
    if (!source_tensor(loader->source, role, layer, tensor)) {
        source_refuse(loader->source, -EINVAL, "tensor %s is missing", tensor->name);
        return false;
    }
    if (tensor->out == out && tensor->in == in)
        return true;
    if (source_status(loader->source) != 0)
        return false;
    source_refuse(loader->source, -EINVAL,
                  "tensor %s has rows of %" PRId64 " and %" PRId64 " of them, not %" PRId64
                  " and %" PRId64,
                  tensor->name, tensor->in, tensor->out, in, out);
    return false;
}

/* The values of a vector as they are computed with; those of a dummy are 1, as of a fresh norm. */
static float *vector_values(struct loader *loader, enum tensor_role role,
                            const struct tensor *tensor, size_t count)
{
    float offset = source_norm_offset(loader->source, role), *values;

    if (!source_is_dummy(loader->source)) {
        values = as_f32(loader, tensor, count);
        for (size_t i = 0; values != NULL && i < count; i++)
            values[i] += offset;
        return values;
    }
    values = malloc(count * sizeof(*values));
    if (values == NULL)
        source_refuse(loader->source, -ENOMEM, "no memory for tensor %s", tensor->name);
    for (size_t i = 0; values != NULL && i < count; i++)
        values[i] = 1.0f;
    return values;
}

void loader_vector(struct loader *loader, const float **vector, enum tensor_role role,
                   int32_t layer, int32_t count)
{
    size_t bytes = (size_t)count * sizeof(float);
    size_t room = (bytes + VECTOR_ALIGN - 1) / VECTOR_ALIGN * VECTOR_ALIGN;
    struct tensor tensor;
    float *values;

    if (source_status(loader->source) != 0 || !find(loader, role, layer, 1, count, &tensor))
        return;
    if (loader->measure) {
        loader->vector_bytes += room;
        return;
    }
    values = vector_values(loader, role, &tensor, (size_t)count);
    if (values == NULL)
        return;
    assert(loader->vector_used + room <= loader->vector_bytes);
    loader->ops->upload(loader->device, loader->vector + loader->vector_used, values, bytes);
    *vector = (const float *)(const void *)(loader->vector + loader->vector_used);
    loader->vector_used += room;
    free(values);
}

/* The bias of one part at `target`; false: it has none, or a refusal. */
static bool read_bias(struct loader *loader, int32_t layer, const struct loader_part *part,
                      float *target)
{
    struct tensor tensor;
    float *values;

    if (source_is_dummy(loader->source)) {
        if (part->bias)
            dummy_fill(FORMAT_F32, dummy_seed(part->role, layer) + 1, (size_t)part->out, target);
        return part->bias;
    }
    if (!part->bias && source_states_biases(loader->source))
        return false;
    if (!source_bias(loader->source, part->role, layer, &tensor)) {
        if (part->bias)
            source_refuse(loader->source, -EINVAL, "tensor %s is missing", tensor.name);
        return false;
    }
    if (source_status(loader->source) != 0)
        return false;
    if (tensor.out != 1 || tensor.in != part->out) {
        source_refuse(loader->source, -EINVAL,
                      "tensor %s has %" PRId64 " rows of %" PRId64 " values, not one of %" PRId32,
                      tensor.name, tensor.out, tensor.in, part->out);
        return false;
    }
    values = as_f32(loader, &tensor, (size_t)part->out);
    if (values != NULL)
        memcpy(target, values, (size_t)part->out * sizeof(*values));
    free(values);
    return true;
}

/* The parts' biases joined, zero where a part has none, into *bias; NULL when no part has one.
 * False: a refusal. */
static bool join_biases(struct loader *loader, int32_t layer, const struct loader_part *part,
                        int32_t part_count, float **bias)
{
    int32_t out = 0, first = 0;
    bool any = false;

    for (int32_t i = 0; i < part_count; i++)
        out += part[i].out;
    *bias = calloc((size_t)out, sizeof(**bias));
    if (*bias == NULL) {
        source_refuse(loader->source, -ENOMEM, "no memory for %" PRId32 " biases", out);
        return false;
    }
    for (int32_t i = 0; i < part_count; first += part[i].out, i++)
        any = read_bias(loader, layer, &part[i], *bias + first) || any;
    if (!any) {
        free(*bias);
        *bias = NULL;
    }
    return source_status(loader->source) == 0;
}

/* Random values for part `index`; false: no memory. */
static bool fill_dummy(struct loader *loader, int32_t layer, const struct loader_part *part,
                       int32_t index, struct weight_source *source)
{
    size_t bytes = format_row_bytes(source->format, source->in) * (size_t)source->out;

    if (bytes > loader->dummy_bytes[index]) {
        free(loader->dummy[index]);
        loader->dummy[index] = malloc(bytes);
        loader->dummy_bytes[index] = loader->dummy[index] == NULL ? 0 : bytes;
        if (loader->dummy[index] == NULL) {
            source_refuse(loader->source, -ENOMEM, "no memory for dummy weights");
            return false;
        }
    }
    dummy_fill(source->format, dummy_seed(part->role, layer),
               (size_t)source->out * (size_t)source->in, loader->dummy[index]);
    source->data = loader->dummy[index];
    return true;
}

static void pack(struct loader *loader, struct weight *weight, const char *name,
                 const struct weight_source *part, int32_t part_count, const float *bias,
                 bool gated)
{
    int status = loader->ops->weight_pack(loader->device, weight, part, part_count, bias, gated);

    if (status == -ENOTSUP)
        source_refuse(loader->source, status, "tensor %s: the %s device does not take %s", name,
                      loader->ops->name, format_info(part[0].format)->name);
    else if (status != 0)
        source_refuse(loader->source, status, "tensor %s: no memory on the %s device", name,
                      loader->ops->name);
}

static void load_linear(struct loader *loader, struct weight *weight, int32_t layer,
                        const struct loader_part *part, int32_t part_count, int32_t in, bool gated)
{
    struct weight_source sources[WEIGHT_PART_MAX];
    struct tensor tensor = {0};
    float *bias = NULL;

    assert(part_count >= 1 && part_count <= WEIGHT_PART_MAX);
    if (source_status(loader->source) != 0)
        return;
    for (int32_t i = 0; i < part_count; i++) {
        if (!find(loader, part[i].role, layer, part[i].out, in, &tensor))
            return;
        sources[i] = (struct weight_source){tensor.format, part[i].out, in, tensor.data};
        if (source_is_dummy(loader->source) && !loader->measure &&
            !fill_dummy(loader, layer, &part[i], i, &sources[i]))
            return;
        loader->weight_bytes +=
            loader->ops->weight_bytes(loader->device, tensor.format, part[i].out, in);
    }
    if (!join_biases(loader, layer, part, part_count, &bias)) {
        free(bias);
        return;
    }
    for (int32_t i = 0; bias != NULL && i < part_count; i++)
        loader->weight_bytes += (size_t)part[i].out * sizeof(*bias);
    if (!loader->measure) {
        pack(loader, weight, tensor.name, sources, part_count, bias, gated);
        if (loader->progress != NULL)
            loader->progress(loader->progress_context, loader->weight_bytes);
    }
    free(bias);
}

void loader_linear(struct loader *loader, struct weight *weight, int32_t layer,
                   const struct loader_part *part, int32_t part_count, int32_t in)
{
    load_linear(loader, weight, layer, part, part_count, in, false);
}

void loader_gated_linear(struct loader *loader, struct weight *weight, int32_t layer,
                         const struct loader_part *part, int32_t part_count, int32_t in)
{
    load_linear(loader, weight, layer, part, part_count, in, true);
}
