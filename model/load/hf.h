/* A Hugging Face folder: settings by key, tensors by role. Behind source.h. One thread. */
#ifndef MODEL_LOAD_HF_H
#define MODEL_LOAD_HF_H

#include "model/load/hf_config.h"
#include "model/load/source.h"

struct safetensors;

struct hf_folder {
    struct hf_config config;
    struct safetensors *safetensors; /* NULL: dummy weights */
    const char *prefix;              /* of the names of all tensors but the head */
    bool *used;                      /* [tensor_count] */
    struct source_summary dummy;     /* sums of dummy tensors */
};

/* Opens config.json, generation_config.json where it is there, and, if not `dummy`, the weights.
 * 0, -EINVAL, -ENOTSUP, -ENOENT, -ENOMEM, or open's errno, with the reason. */
int hf_folder_open(struct hf_folder **folder, const char *path, bool dummy, char *error,
                   size_t error_bytes);
/* A folder's generation_config.json alone, into a zeroed config. */
int hf_generation_read(struct hf_config *config, const char *path, char *error, size_t error_bytes);
void hf_folder_close(struct hf_folder *folder); /* NULL is fine */

/* As the files spell it. */
void hf_folder_name(const struct hf_folder *folder, enum tensor_role role, int32_t layer,
                    const char *ending, char *name, size_t max);
bool hf_folder_has(const struct hf_folder *folder, enum tensor_role role, int32_t layer);
/* False: there is none; the name is filled in any case. `*unsupported` becomes its type's name
 * where that is no format of weights, else NULL. */
bool hf_folder_tensor(struct hf_folder *folder, enum tensor_role role, int32_t layer,
                      const char *ending, struct tensor *tensor, const char **unsupported);
/* A tensor that was never asked for and cannot be ignored, or NULL. */
const char *hf_folder_unused(const struct hf_folder *folder);
/* Fills all but names. */
void hf_folder_summary(const struct hf_folder *folder, struct source_summary *summary);

#endif
