/* The files of a folder, and how its tensors are called. */
#include "model/load/hf.h"

#include "model/load/mapping.h"
#include "model/load/safetensors.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PATH_BYTES = 4096 };

/* Behind the prefix, for a layer behind "layers.N."; NULL: there is none of that role. Where a
 * branch's output has a norm of its own, the norm behind the attention is that one. */
static const char *role_name(const struct hf_family *family, enum tensor_role role)
{
    static const char *const plain[ROLE_COUNT] = {
        [ROLE_EMBED] = "embed_tokens",
        [ROLE_OUTPUT_NORM] = "norm",
        [ROLE_HEAD] = "lm_head",
        [ROLE_ATTN_NORM] = "input_layernorm",
        [ROLE_Q] = "self_attn.q_proj",
        [ROLE_K] = "self_attn.k_proj",
        [ROLE_V] = "self_attn.v_proj",
        [ROLE_Q_NORM] = "self_attn.q_norm",
        [ROLE_K_NORM] = "self_attn.k_norm",
        [ROLE_ATTN_OUTPUT] = "self_attn.o_proj",
        [ROLE_FFN_NORM] = "post_attention_layernorm",
        [ROLE_FFN_GATE] = "mlp.gate_proj",
        [ROLE_FFN_UP] = "mlp.up_proj",
        [ROLE_FFN_DOWN] = "mlp.down_proj",
    };

    if (family->sandwich && role == ROLE_ATTN_POST_NORM)
        return "post_attention_layernorm";
    if (family->sandwich && role == ROLE_FFN_NORM)
        return "pre_feedforward_layernorm";
    if (family->sandwich && role == ROLE_FFN_POST_NORM)
        return "post_feedforward_layernorm";
    return plain[role];
}

void hf_folder_name(const struct hf_folder *folder, enum tensor_role role, int32_t layer,
                    const char *ending, char *name, size_t max)
{
    const char *text = role_name(folder->config.family, role);
    const char *wrapper = "language_model.model.";

    if (text == NULL)
        snprintf(name, max, "(none)");
    else if (role == ROLE_HEAD)
        snprintf(name, max, "%s%s.%s",
                 strcmp(folder->prefix, wrapper) == 0 ? "language_model." : "", text, ending);
    else if (layer == LAYER_NONE)
        snprintf(name, max, "%s%s.%s", folder->prefix, text, ending);
    else
        snprintf(name, max, "%slayers.%" PRId32 ".%s.%s", folder->prefix, layer, text, ending);
}

static const struct safetensors_tensor *find(const struct hf_folder *folder, enum tensor_role role,
                                             int32_t layer, const char *ending, char *name,
                                             size_t max)
{
    hf_folder_name(folder, role, layer, ending, name, max);
    return folder->safetensors == NULL ? NULL : safetensors_find(folder->safetensors, name);
}

bool hf_folder_has(const struct hf_folder *folder, enum tensor_role role, int32_t layer)
{
    char name[SOURCE_NAME_BYTES];

    if (folder->safetensors == NULL)
        return role_name(folder->config.family, role) != NULL;
    return find(folder, role, layer, "weight", name, sizeof(name)) != NULL;
}

/* -1: no format of weights. */
static int format_of(enum safetensors_type type)
{
    switch (type) {
    case SAFETENSORS_F32:
        return FORMAT_F32;
    case SAFETENSORS_F16:
        return FORMAT_F16;
    case SAFETENSORS_BF16:
        return FORMAT_BF16;
    default:
        return -1;
    }
}

bool hf_folder_tensor(struct hf_folder *folder, enum tensor_role role, int32_t layer,
                      const char *ending, struct tensor *tensor, const char **unsupported)
{
    const struct safetensors_tensor *found =
        find(folder, role, layer, ending, tensor->name, sizeof(tensor->name));
    int format;

    *unsupported = NULL;
    if (found == NULL)
        return false;
    folder->used[found - folder->safetensors->tensor] = true;
    format = format_of(found->type);
    if (format < 0) {
        *unsupported = safetensors_type_name(found->type);
        return true;
    }
    tensor->format = (enum format)format;
    tensor->in = found->dim_count == 0 ? 1 : found->dim[found->dim_count - 1];
    tensor->out = tensor->in == 0 ? 0 : found->value_count / tensor->in;
    tensor->data = found->data;
    return true;
}

/* ---- what nobody asked for ---- */

static bool ends_with(const char *text, const char *ending)
{
    size_t count = strlen(text), wanted = strlen(ending);

    return count >= wanted && strcmp(text + count - wanted, ending) == 0;
}

/* Buffers that are no parameters, a second copy of a tied head, and the eyes of a wrapper. */
static bool is_ignorable(const struct hf_folder *folder, const char *name)
{
    if (ends_with(name, "rotary_emb.inv_freq"))
        return true;
    if (folder->config.tied && ends_with(name, "lm_head.weight"))
        return true;
    return folder->config.family->wrapped && (strstr(name, "vision_tower.") != NULL ||
                                              strstr(name, "multi_modal_projector.") != NULL);
}

const char *hf_folder_unused(const struct hf_folder *folder)
{
    const struct safetensors *safetensors = folder->safetensors;

    for (int64_t i = 0; safetensors != NULL && i < safetensors->tensor_count; i++)
        if (!folder->used[i] && !is_ignorable(folder, safetensors->tensor[i].name))
            return safetensors->tensor[i].name;
    return NULL;
}

void hf_folder_summary(const struct hf_folder *folder, struct source_summary *summary)
{
    const struct safetensors *safetensors = folder->safetensors;

    if (safetensors == NULL) {
        *summary = folder->dummy;
        return;
    }
    summary->part_count = safetensors->file_count;
    summary->file_bytes = safetensors->bytes;
    summary->tensor_count = safetensors->tensor_count;
    for (int64_t i = 0; i < safetensors->tensor_count; i++) {
        const struct safetensors_tensor *tensor = &safetensors->tensor[i];
        int format = format_of(tensor->type);

        summary->parameter_count += tensor->value_count;
        if (format < 0)
            continue;
        summary->format[format].parameter_count += tensor->value_count;
        summary->format[format].bytes += (int64_t)tensor->bytes;
        summary->format[format].tensor_count++;
        summary->format[format].matrix_count += tensor->dim_count > 1;
    }
}

/* ---- opening ---- */

/* Reads a JSON file of the folder with `read`; -ENOENT where it is not there. */
static int read_json(struct hf_config *config, const char *path, const char *name,
                     int (*read)(struct hf_config *config, const char *json, size_t bytes,
                                 char *error, size_t error_bytes),
                     char *error, size_t error_bytes)
{
    const unsigned char *map = NULL;
    char whole[PATH_BYTES], detail[512];
    size_t bytes = 0;
    int status = -ENAMETOOLONG;

    snprintf(detail, sizeof(detail), "its path is too long");
    if ((size_t)snprintf(whole, sizeof(whole), "%s/%s", path, name) < sizeof(whole))
        status = mapping_open(whole, &map, &bytes, detail, sizeof(detail));
    if (status == 0 && bytes > HF_CONFIG_BYTES_MAX) {
        snprintf(detail, sizeof(detail), "%zu bytes are too many", bytes);
        status = -EINVAL;
    }
    if (status == 0)
        status = read(config, (const char *)map, bytes, detail, sizeof(detail));
    mapping_close(map, bytes);
    if (status != 0)
        snprintf(error, error_bytes, "%s: %s", name, detail);
    return status;
}

static int read_settings(struct hf_config *config, const char *path, char *error,
                         size_t error_bytes)
{
    int status = read_json(config, path, "config.json", hf_config_read, error, error_bytes);

    if (status == 0) /* many folders lack the others */
        status = read_json(config, path, "generation_config.json", hf_config_read_generation, error,
                           error_bytes);
    if (status == 0 || (status == -ENOENT && config->family != NULL))
        status = read_json(config, path, "tokenizer_config.json", hf_config_read_tokenizer, error,
                           error_bytes);
    return status == -ENOENT && config->family != NULL ? 0 : status;
}

int hf_generation_read(struct hf_config *config, const char *path, char *error, size_t error_bytes)
{
    return read_json(config, path, "generation_config.json", hf_config_read_generation, error,
                     error_bytes);
}

static void find_prefix(struct hf_folder *folder)
{
    static const char *const prefixes[] = {"model.", "language_model.model.",
                                           "model.language_model.", ""};
    char name[SOURCE_NAME_BYTES];

    for (size_t i = 0; i < sizeof(prefixes) / sizeof(*prefixes); i++) {
        folder->prefix = prefixes[i];
        if (find(folder, ROLE_EMBED, LAYER_NONE, "weight", name, sizeof(name)) != NULL)
            return;
    }
    folder->prefix = prefixes[0];
}

static int open_weights(struct hf_folder *folder, const char *path, char *error, size_t error_bytes)
{
    int status = safetensors_open(&folder->safetensors, path, error, error_bytes);

    if (status != 0)
        return status;
    folder->used = calloc((size_t)folder->safetensors->tensor_count + 1, sizeof(*folder->used));
    if (folder->used == NULL) {
        snprintf(error, error_bytes, "no memory");
        return -ENOMEM;
    }
    return 0;
}

int hf_folder_open(struct hf_folder **target, const char *path, bool dummy, char *error,
                   size_t error_bytes)
{
    struct hf_folder *folder = calloc(1, sizeof(*folder));
    int status;

    *target = NULL;
    if (folder == NULL) {
        snprintf(error, error_bytes, "no memory");
        return -ENOMEM;
    }
    status = read_settings(&folder->config, path, error, error_bytes);
    if (status == 0 && !dummy)
        status = open_weights(folder, path, error, error_bytes);
    if (status != 0) {
        hf_folder_close(folder);
        return status;
    }
    find_prefix(folder);
    *target = folder;
    return 0;
}

void hf_folder_close(struct hf_folder *folder)
{
    if (folder == NULL)
        return;
    safetensors_close(folder->safetensors);
    free(folder->used);
    free(folder);
}
