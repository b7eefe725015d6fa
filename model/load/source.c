/* Settings and tensors of a GGUF or a folder by the names that architectures use. The tokenizer's
 * keys are read in vocabulary.c, what formats differ in is in traits.c. */
#include "model/load/source.h"

#include "model/load/gguf.h"
#include "model/load/hf.h"
#include "model/load/json_tree.h"
#include "model/load/safetensors.h"
#include "model/load/source_private.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { KEY_BYTES = 192 };

void source_refuse(struct source *source, int status, const char *format, ...)
{
    va_list list;
    int written;

    assert(status < 0);
    if (source->status != 0)
        return;
    source->status = status;
    written = snprintf(source->error, source->error_bytes, "cannot load %s: ", source->path);
    if (written < 0 || (size_t)written >= source->error_bytes)
        return;
    va_start(list, format);
    vsnprintf(source->error + written, source->error_bytes - (size_t)written, format, list);
    va_end(list);
}

int source_status(const struct source *source)
{
    return source->status;
}

const char *source_architecture(const struct source *source)
{
    return source->architecture;
}

/* The last part of a path, without slashes behind it. */
static struct gguf_string file_name(const char *path)
{
    size_t end = strlen(path), begin;

    while (end > 1 && path[end - 1] == '/')
        end--;
    for (begin = end; begin > 0 && path[begin - 1] != '/'; begin--)
        continue;
    return (struct gguf_string){path + begin, end - begin};
}

/* A source without contents; NULL: no memory. */
static struct source *create(const char *path, char *error, size_t error_bytes)
{
    struct source *source = calloc(1, sizeof(*source));

    if (source == NULL)
        return NULL;
    source->path = strdup(path);
    source->error = error;
    source->error_bytes = error_bytes;
    if (source->path != NULL)
        return source;
    free(source);
    return NULL;
}

int source_open_gguf(struct source **target, struct gguf *gguf, const char *path, char *error,
                     size_t error_bytes)
{
    struct source *source = create(path, error, error_bytes);
    struct gguf_string name;
    int status;

    *target = NULL;
    if (source != NULL)
        source->used = calloc((size_t)gguf->tensor_count + 1, sizeof(*source->used));
    if (source == NULL || source->used == NULL) {
        snprintf(error, error_bytes, "cannot load %s: no memory", path);
        gguf_close(gguf);
        source_close(source);
        return -ENOMEM;
    }
    source->gguf = gguf;
    name = gguf_text(gguf_find(gguf, "general.architecture"));
    gguf_printable(name, source->architecture, sizeof(source->architecture));
    if (name.count == 0)
        source_refuse(source, -EINVAL, "key general.architecture is missing or no string");
    status = source->status;
    if (status == 0)
        *target = source;
    else
        source_close(source);
    return status;
}

static int open_folder(struct source **target, const char *path, bool dummy, char *error,
                       size_t error_bytes)
{
    struct source *source = create(path, error, error_bytes);
    char detail[1024];
    int status;

    if (source == NULL) {
        snprintf(error, error_bytes, "cannot load %s: no memory", path);
        return -ENOMEM;
    }
    status = hf_folder_open(&source->hf, path, dummy, detail, sizeof(detail));
    if (status != 0) {
        source_refuse(source, status, "%s", detail);
        source_close(source);
        return status;
    }
    snprintf(source->architecture, sizeof(source->architecture), "%s",
             source->hf->config.family->architecture);
    *target = source;
    return 0;
}

static bool is_folder(const char *path)
{
    struct stat status = {0};

    return stat(path, &status) == 0 && S_ISDIR(status.st_mode);
}

int source_open(struct source **target, const char *path, char *error, size_t error_bytes)
{
    struct gguf *gguf;
    int status;

    *target = NULL;
    if (is_folder(path))
        return open_folder(target, path, false, error, error_bytes);
    status = gguf_open(&gguf, path, error, error_bytes);
    return status != 0 ? status : source_open_gguf(target, gguf, path, error, error_bytes);
}

int source_open_dummy(struct source **target, const char *path, char *error, size_t error_bytes)
{
    *target = NULL;
    if (is_folder(path))
        return open_folder(target, path, true, error, error_bytes);
    snprintf(error, error_bytes,
             "cannot load %s: dummy weights take their shape from a folder's config.json", path);
    return -ENOTSUP;
}

void source_close(struct source *source)
{
    if (source == NULL)
        return;
    gguf_close(source->gguf);
    hf_folder_close(source->hf);
    free(source->used);
    free(source->path);
    free(source);
}

void source_prefetch(const struct source *source)
{
    if (source->gguf != NULL)
        gguf_prefetch(source->gguf);
    else if (source->hf->safetensors != NULL)
        safetensors_prefetch(source->hf->safetensors);
}

static void sum_gguf(const struct gguf *gguf, struct source_summary *summary)
{
    summary->version = (int32_t)gguf->part[0].version;
    summary->part_count = gguf->part_count;
    summary->file_bytes = gguf->bytes;
    summary->tensor_count = gguf->tensor_count;
    for (int64_t i = 0; i < gguf->tensor_count; i++) {
        const struct gguf_tensor *tensor = gguf->tensor[i];
        struct format_sum *sum = &summary->format[tensor->format];
        int64_t count = tensor->dim[0] * tensor->dim[1] * tensor->dim[2] * tensor->dim[3];

        summary->parameter_count += count;
        sum->parameter_count += count;
        sum->bytes += (int64_t)tensor->bytes;
        sum->tensor_count++;
        sum->matrix_count += tensor->dim_count > 1;
    }
}

static bool has_file(const char *folder, const char *name)
{
    char path[4096];

    return (size_t)snprintf(path, sizeof(path), "%s/%s", folder, name) < sizeof(path) &&
           access(path, R_OK) == 0;
}

void source_summary(const struct source *source, struct source_summary *summary)
{
    struct gguf_string name = {"", 0};

    memset(summary, 0, sizeof(*summary));
    if (source->gguf != NULL) {
        sum_gguf(source->gguf, summary);
        name = gguf_text(gguf_find(source->gguf, "general.name"));
        gguf_printable(gguf_text(gguf_find(source->gguf, "tokenizer.ggml.model")),
                       summary->tokenizer, sizeof(summary->tokenizer));
    } else {
        hf_folder_summary(source->hf, summary);
        if (has_file(source->path, "tokenizer.json"))
            snprintf(summary->tokenizer, sizeof(summary->tokenizer), "tokenizer.json");
        if (!source_ties_head(source) && !source_has_tensor(source, ROLE_HEAD, LAYER_NONE))
            snprintf(summary->note, sizeof(summary->note),
                     "there is no lm_head.weight, though the head is not said to be tied: the "
                     "embedding is the head");
    }
    if (name.count == 0)
        name = file_name(source->path);
    gguf_printable(name, summary->name, sizeof(summary->name));
    snprintf(summary->architecture, sizeof(summary->architecture), "%s", source->architecture);
}

/* ---- settings ---- */

static const struct gguf_value *find(const struct source *source, const char *key)
{
    const struct hf_setting *setting;
    char whole[KEY_BYTES];

    if (source->hf != NULL) {
        setting = hf_config_find(&source->hf->config, key);
        return setting == NULL ? NULL : &setting->value;
    }
    snprintf(whole, sizeof(whole), "%s.%s", source->architecture, key);
    return gguf_find(source->gguf, whole);
}

/* As the file spells the key. */
static const char *spell(const struct source *source, const char *key, char *text)
{
    const struct hf_setting *setting;
    const char *name = NULL;

    if (source->hf == NULL) {
        snprintf(text, KEY_BYTES, "key %s.%s", source->architecture, key);
        return text;
    }
    setting = hf_config_find(&source->hf->config, key);
    name = setting == NULL ? hf_config_name(key) : setting->name;
    snprintf(text, KEY_BYTES, "config.json: %s", name == NULL ? key : name);
    return text;
}

bool source_has(const struct source *source, const char *key)
{
    return find(source, key) != NULL;
}

/* The one number of a value; false: it was refused. */
static bool uniform(struct source *source, const struct gguf_value *value, const char *key,
                    double *number)
{
    double other = NAN;
    char text[KEY_BYTES];

    if (!gguf_real(value, 0, number)) {
        source_refuse(source, -EINVAL, "%s is no number", spell(source, key, text));
        return false;
    }
    for (int64_t i = 1; i < value->count; i++) {
        if (gguf_real(value, i, &other) && other == *number)
            continue;
        source_refuse(source, -ENOTSUP,
                      "%s differs between layers (%g and %g), which is not supported",
                      spell(source, key, text), *number, other);
        return false;
    }
    return true;
}

double source_real(struct source *source, const char *key, double least, double most)
{
    const struct gguf_value *value = find(source, key);
    double number;
    char text[KEY_BYTES];

    if (value == NULL) {
        source_refuse(source, -EINVAL, "%s is missing", spell(source, key, text));
        return least;
    }
    if (!uniform(source, value, key, &number))
        return least;
    if (number >= least && number <= most)
        return number;
    source_refuse(source, -EINVAL, "%s is %.10g, not from %.10g to %.10g", spell(source, key, text),
                  number, least, most);
    return least;
}

double source_real_or(struct source *source, const char *key, double least, double most,
                      double fallback)
{
    return source_has(source, key) ? source_real(source, key, least, most) : fallback;
}

int64_t source_int(struct source *source, const char *key, int64_t least, int64_t most)
{
    const struct gguf_value *value = find(source, key);
    int64_t number;
    char text[KEY_BYTES];

    assert(least >= -(1LL << 52) && most <= 1LL << 52); /* so that a double holds it */
    if (value != NULL && !gguf_int(value, 0, &number)) {
        source_refuse(source, -EINVAL, "%s is no integer", spell(source, key, text));
        return least;
    }
    return (int64_t)source_real(source, key, (double)least, (double)most);
}

int64_t source_int_or(struct source *source, const char *key, int64_t least, int64_t most,
                      int64_t fallback)
{
    return source_has(source, key) ? source_int(source, key, least, most) : fallback;
}

bool source_is(struct source *source, const char *key, const char *text, const char *fallback)
{
    const struct gguf_value *value = find(source, key);
    struct gguf_string string = gguf_text(value);
    char spelled[KEY_BYTES];

    if (value == NULL)
        return strcmp(text, fallback) == 0;
    if (value->array || value->type != GGUF_STRING)
        source_refuse(source, -EINVAL, "%s is no string", spell(source, key, spelled));
    return string.count == strlen(text) && memcmp(string.byte, text, string.count) == 0;
}

bool source_truth_at(struct source *source, const char *key, int64_t index, int64_t count,
                     bool *truth)
{
    const struct gguf_value *value = find(source, key);
    char text[KEY_BYTES];

    *truth = false;
    if (value == NULL || !value->array)
        return false;
    if (value->count < count)
        source_refuse(source, -EINVAL, "%s has %" PRId64 " elements for %" PRId64 " layers",
                      spell(source, key, text), value->count, count);
    else if (!gguf_truth(value, index, truth))
        source_refuse(source, -EINVAL, "%s is no list of bools", spell(source, key, text));
    return true;
}

/* ---- tensors ---- */

void source_tensor_name(enum tensor_role role, int32_t layer, const char *ending, char *name,
                        size_t max)
{
    static const char *const names[ROLE_COUNT] = {
#define ROLE(constant, text) [constant] = (text),
        TENSOR_ROLES(ROLE)
#undef ROLE
    };

    if (layer == LAYER_NONE)
        snprintf(name, max, "%s.%s", names[role], ending);
    else
        snprintf(name, max, "blk.%" PRId32 ".%s.%s", layer, names[role], ending);
}

static bool take_tensor(struct source *source, enum tensor_role role, int32_t layer,
                        const char *ending, struct tensor *tensor)
{
    const struct gguf *gguf = source->gguf;
    const struct gguf_tensor *found;
    const char *unsupported;
    bool there;

    memset(tensor, 0, sizeof(*tensor));
    if (source->hf != NULL) {
        there = hf_folder_tensor(source->hf, role, layer, ending, tensor, &unsupported);
        if (there && unsupported != NULL)
            source_refuse(source, -ENOTSUP, "tensor %s is of %s; supported are F32, F16 and BF16",
                          tensor->name, unsupported);
        return there;
    }
    source_tensor_name(role, layer, ending, tensor->name, sizeof(tensor->name));
    found = gguf_tensor(gguf, tensor->name);
    if (found == NULL)
        return false;
    for (int64_t i = 0; i < gguf->tensor_count; i++)
        if (gguf->tensor[i] == found)
            source->used[i] = true;
    tensor->format = found->format;
    tensor->in = found->dim[0];
    tensor->out = found->dim[1] * found->dim[2] * found->dim[3];
    tensor->data = found->data;
    return true;
}

bool source_tensor(struct source *source, enum tensor_role role, int32_t layer,
                   struct tensor *tensor)
{
    return take_tensor(source, role, layer, "weight", tensor);
}

bool source_bias(struct source *source, enum tensor_role role, int32_t layer, struct tensor *tensor)
{
    return take_tensor(source, role, layer, "bias", tensor);
}

bool source_has_tensor(const struct source *source, enum tensor_role role, int32_t layer)
{
    char name[SOURCE_NAME_BYTES];

    if (source->hf != NULL)
        return hf_folder_has(source->hf, role, layer);
    source_tensor_name(role, layer, "weight", name, sizeof(name));
    return gguf_tensor(source->gguf, name) != NULL;
}

static bool ends_with(struct gguf_string string, const char *ending)
{
    size_t count = strlen(ending);

    return string.count >= count && memcmp(string.byte + string.count - count, ending, count) == 0;
}

void source_check_used(struct source *source)
{
    static const char *const ignorable[] = {".scale", ".input_scale", "rope_freqs.weight",
                                            "attn_rot_embd.weight"};
    const struct gguf *gguf = source->gguf;
    char name[GGUF_NAME_MAX + 1], text[SOURCE_NAME_BYTES];
    const char *unused = source->hf == NULL ? NULL : hf_folder_unused(source->hf);

    if (unused != NULL)
        source_refuse(source, -ENOTSUP, "tensor %s has no place in architecture %s",
                      json_tree_printable(unused, text, sizeof(text)), source->architecture);
    if (gguf == NULL)
        return;
    for (int64_t i = 0; i < gguf->tensor_count; i++) {
        bool known = source->used[i];

        for (size_t k = 0; !known && k < sizeof(ignorable) / sizeof(*ignorable); k++)
            known = ends_with(gguf->tensor[i]->name, ignorable[k]);
        if (!known)
            source_refuse(source, -ENOTSUP, "tensor %s has no place in architecture %s",
                          gguf_printable(gguf->tensor[i]->name, name, sizeof(name)),
                          source->architecture);
    }
}
