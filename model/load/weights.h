/* Tensors of a source to weights on a device: found by role, checked, joined, packed.
 *
 * An architecture's `load` runs twice over the same calls: once measuring, which checks every
 * tensor and adds up bytes (the memory ledger), and once packing. Refusals stick in the source.
 * Called by the rank's thread.
 */
#ifndef MODEL_LOAD_WEIGHTS_H
#define MODEL_LOAD_WEIGHTS_H

#include "kernels/backend.h"
#include "model/load/source.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct loader {
    struct source *source;
    const struct device_ops *ops;
    struct device *device;
    bool measure;        /* add up only */
    size_t weight_bytes; /* of packed linear maps and their biases, as packed so far */
    size_t vector_bytes; /* of all vectors, known after measuring */
    size_t vector_used;
    unsigned char *vector; /* on the device: the arena of all vectors */
    /* Called after each linear map is packed. */
    void (*progress)(void *context, size_t weight_bytes);
    void *progress_context;
    void *dummy[WEIGHT_PART_MAX]; /* random values, of use until the next linear map */
    size_t dummy_bytes[WEIGHT_PART_MAX];
};

/* One of the tensors that are joined along their outputs. */
struct loader_part {
    enum tensor_role role;
    int32_t out;
    bool bias; /* must have one; else it may, where the settings do not say */
};

/* Between measuring and packing: takes the arena. -ENOMEM. */
int loader_begin_packing(struct loader *loader);
/* At the end, also after a refusal. */
void loader_end(struct loader *loader);

/* A vector of `count` f32 on the device, which must be there. */
void loader_vector(struct loader *loader, const float **vector, enum tensor_role role,
                   int32_t layer, int32_t count);
/* The linear map [sum of the parts' out, in]; all parts must be there. Biases are optional, part
 * by part. */
void loader_linear(struct loader *loader, struct weight *weight, int32_t layer,
                   const struct loader_part *part, int32_t part_count, int32_t in);
/* The same of gate and up, for the backend's gated_linear. */
void loader_gated_linear(struct loader *loader, struct weight *weight, int32_t layer,
                         const struct loader_part *part, int32_t part_count, int32_t in);

#endif
