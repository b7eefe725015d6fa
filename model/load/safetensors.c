/* Headers to tensors, and an index to files. */
#include "model/load/safetensors.h"

#include "model/load/json_tree.h"
#include "model/load/mapping.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { PATH_BYTES = 4096, NAME_BYTES = 128, SIZE_BYTES = 8 };

struct safetensors_file {
    char *name;               /* within its folder; NULL in memory */
    const unsigned char *map; /* NULL: the memory is the caller's */
    size_t bytes;
    cJSON *header; /* owns the tensors' names */
};

static const char *const type_names[] = {
#define TYPE(constant, name, bytes) [constant] = (name),
    SAFETENSORS_TYPES(TYPE)
#undef TYPE
};

static const int64_t type_bytes[] = {
#define TYPE(constant, name, bytes) [constant] = (bytes),
    SAFETENSORS_TYPES(TYPE)
#undef TYPE
};

const char *safetensors_type_name(enum safetensors_type type)
{
    return type_names[type];
}

static int compare_names(const void *left, const void *right)
{
    return strcmp(((const struct safetensors_tensor *)left)->name,
                  ((const struct safetensors_tensor *)right)->name);
}

static int compare_places(const void *left, const void *right)
{
    const unsigned char *one = ((const struct safetensors_tensor *)left)->data;
    const unsigned char *other = ((const struct safetensors_tensor *)right)->data;

    return (one > other) - (one < other);
}

const struct safetensors_tensor *safetensors_find(const struct safetensors *safetensors,
                                                  const char *name)
{
    struct safetensors_tensor key = {.name = name};

    return bsearch(&key, safetensors->tensor, (size_t)safetensors->tensor_count, sizeof(key),
                   compare_names);
}

/* ---- one header ---- */

/* What is wrong with a tensor; NULL: nothing. */
static const char *read_type(struct safetensors_tensor *tensor, const cJSON *entry)
{
    const char *name = cJSON_GetStringValue(json_tree_member(entry, "dtype"));

    if (name == NULL)
        return "its dtype is missing or no string";
    for (int i = 0; i < SAFETENSORS_TYPE_COUNT; i++) {
        if (strcmp(name, type_names[i]) != 0)
            continue;
        tensor->type = (enum safetensors_type)i;
        return NULL;
    }
    return "its dtype is unknown";
}

static const char *read_shape(struct safetensors_tensor *tensor, const cJSON *entry)
{
    const cJSON *shape = json_tree_member(entry, "shape");
    int64_t count = 1, most = INT64_MAX / type_bytes[tensor->type];

    if (!cJSON_IsArray(shape))
        return "its shape is missing or no list";
    for (const cJSON *dim = shape->child; dim != NULL; dim = dim->next) {
        int64_t *target = &tensor->dim[tensor->dim_count];

        if (tensor->dim_count == SAFETENSORS_DIM_MAX)
            return "it has more than eight dimensions";
        if (!json_tree_int(dim, target) || *target < 0)
            return "a dimension is no count";
        if (*target > 0 && count > most / *target)
            return "its values are too many";
        count *= *target;
        tensor->dim_count++;
    }
    tensor->value_count = count;
    tensor->bytes = (size_t)(count * type_bytes[tensor->type]);
    return NULL;
}

static const char *read_place(struct safetensors_tensor *tensor, const cJSON *entry,
                              const unsigned char *data, size_t bytes)
{
    const cJSON *offsets = json_tree_member(entry, "data_offsets");
    int64_t begin, end;

    if (!cJSON_IsArray(offsets) || cJSON_GetArraySize(offsets) != 2 ||
        !json_tree_int(offsets->child, &begin) || !json_tree_int(offsets->child->next, &end))
        return "its data_offsets are missing or no pair of integers";
    if (begin < 0 || begin > end || (uint64_t)end > bytes)
        return "its data_offsets are not within the file";
    if ((uint64_t)(end - begin) != tensor->bytes)
        return "its data_offsets do not fit its shape";
    tensor->data = data + begin;
    return NULL;
}

static int refuse_tensor(const char *name, const char *why, char *error, size_t error_bytes)
{
    char text[NAME_BYTES];

    snprintf(error, error_bytes, "tensor %s: %s", json_tree_printable(name, text, sizeof(text)),
             why);
    return -EINVAL;
}

/* The header of a mapped file, without its tensors. */
static int read_header(struct safetensors_file *file, const unsigned char *bytes, size_t *data,
                       char *error, size_t error_bytes)
{
    uint64_t size = 0;
    char detail[256];

    if (file->bytes >= SIZE_BYTES)
        memcpy(&size, bytes, sizeof(size));
    if (file->bytes < SIZE_BYTES || size > SAFETENSORS_HEADER_MAX ||
        size > file->bytes - SIZE_BYTES) {
        snprintf(error, error_bytes,
                 "a header of %" PRIu64 " bytes in a file of %zu: no safetensors, or cut short",
                 size, file->bytes);
        return -EINVAL;
    }
    *data = SIZE_BYTES + (size_t)size;
    file->header =
        json_tree_parse((const char *)bytes + SIZE_BYTES, (size_t)size, detail, sizeof(detail));
    if (file->header == NULL || !cJSON_IsObject(file->header)) {
        snprintf(error, error_bytes, "its header: %s",
                 file->header == NULL ? detail : "no JSON object");
        return -EINVAL;
    }
    return 0;
}

static bool is_tensor(const cJSON *entry)
{
    return strcmp(entry->string, "__metadata__") != 0;
}

/* Room for the tensors of one more header. */
static bool grow(struct safetensors *safetensors, const cJSON *header)
{
    size_t count = (size_t)safetensors->tensor_count + 1;
    struct safetensors_tensor *more;

    for (const cJSON *entry = header->child; entry != NULL; entry = entry->next)
        count += is_tensor(entry);
    more = realloc(safetensors->tensor, count * sizeof(*more));
    if (more == NULL)
        return false;
    safetensors->tensor = more;
    return true;
}

/* Tensors `first` on lie beside each other, empty ones aside. */
static int check_overlap(struct safetensors *safetensors, int64_t first, char *error,
                         size_t error_bytes)
{
    struct safetensors_tensor *tensor = safetensors->tensor + first;
    int64_t count = safetensors->tensor_count - first;
    const unsigned char *end = NULL;

    qsort(tensor, (size_t)count, sizeof(*tensor), compare_places);
    for (int64_t i = 0; i < count; i++) {
        if (tensor[i].bytes == 0)
            continue;
        if (end != NULL && tensor[i].data < end)
            return refuse_tensor(tensor[i].name, "its data overlap another tensor's", error,
                                 error_bytes);
        end = tensor[i].data + tensor[i].bytes;
    }
    return 0;
}

static int read_file(struct safetensors *safetensors, int32_t index, const unsigned char *bytes,
                     char *error, size_t error_bytes)
{
    struct safetensors_file *file = &safetensors->file[index];
    int64_t first = safetensors->tensor_count;
    size_t data = 0;
    int status = read_header(file, bytes, &data, error, error_bytes);

    if (status != 0)
        return status;
    if (!grow(safetensors, file->header)) {
        snprintf(error, error_bytes, "no memory");
        return -ENOMEM;
    }
    for (const cJSON *entry = file->header->child; entry != NULL; entry = entry->next) {
        struct safetensors_tensor tensor = {.name = entry->string, .file = index};
        const char *why;

        if (!is_tensor(entry))
            continue;
        why = cJSON_IsObject(entry) ? read_type(&tensor, entry) : "its entry is no object";
        if (why == NULL)
            why = read_shape(&tensor, entry);
        if (why == NULL)
            why = read_place(&tensor, entry, bytes + data, file->bytes - data);
        if (why != NULL)
            return refuse_tensor(entry->string, why, error, error_bytes);
        safetensors->tensor[safetensors->tensor_count++] = tensor;
    }
    safetensors->bytes += (int64_t)file->bytes;
    return check_overlap(safetensors, first, error, error_bytes);
}

/* ---- files ---- */

static int join(const char *folder, const char *name, char *path, char *error, size_t error_bytes)
{
    if (snprintf(path, PATH_BYTES, "%s/%s", folder, name) < PATH_BYTES)
        return 0;
    snprintf(error, error_bytes, "its path is too long");
    return -ENAMETOOLONG;
}

static int open_file(struct safetensors *safetensors, const char *folder, const char *name,
                     char *error, size_t error_bytes)
{
    struct safetensors_file *file = &safetensors->file[safetensors->file_count];
    char path[PATH_BYTES], detail[512];
    int status = join(folder, name, path, detail, sizeof(detail));

    if (status == 0)
        status = mapping_open(path, &file->map, &file->bytes, detail, sizeof(detail));
    if (status == 0) {
        file->name = strdup(name);
        safetensors->file_count++;
        status =
            read_file(safetensors, safetensors->file_count - 1, file->map, detail, sizeof(detail));
    }
    if (status != 0)
        snprintf(error, error_bytes, "%.80s: %s", name, detail);
    return status;
}

/* By name; a name in two files is refused. */
static int sort(struct safetensors *safetensors, char *error, size_t error_bytes)
{
    struct safetensors_tensor *tensor = safetensors->tensor;

    qsort(tensor, (size_t)safetensors->tensor_count, sizeof(*tensor), compare_names);
    for (int64_t i = 1; i < safetensors->tensor_count; i++)
        if (strcmp(tensor[i - 1].name, tensor[i].name) == 0)
            return refuse_tensor(tensor[i].name, "it is in two files", error, error_bytes);
    return 0;
}

/* ---- the index ---- */

/* A plain name: no way out of the folder, nothing hidden. */
static bool is_plain(const char *name)
{
    static const char ending[] = ".safetensors";
    size_t count = name == NULL ? 0 : strlen(name);

    return count > sizeof(ending) - 1 && count < NAME_BYTES && name[0] != '.' &&
           strchr(name, '/') == NULL && strchr(name, '\\') == NULL &&
           strcmp(name + count - (sizeof(ending) - 1), ending) == 0;
}

static int compare_texts(const void *left, const void *right)
{
    return strcmp(*(const char *const *)left, *(const char *const *)right);
}

/* The distinct files of a map, sorted; -EINVAL for a name that is not plain. */
static int list_files(const cJSON *map, const char ***list, size_t *count, char *error,
                      size_t error_bytes)
{
    const char **name = calloc((size_t)cJSON_GetArraySize(map) + 1, sizeof(*name));
    char text[NAME_BYTES];
    size_t all = 0, kept = 0;

    *list = name;
    for (const cJSON *entry = map->child; name != NULL && entry != NULL; entry = entry->next) {
        const char *file = cJSON_GetStringValue(entry);

        if (!is_plain(file)) {
            snprintf(error, error_bytes, "tensor %s: its file is no plain name of a safetensors",
                     json_tree_printable(entry->string, text, sizeof(text)));
            return -EINVAL;
        }
        name[all++] = file;
    }
    if (name == NULL) {
        snprintf(error, error_bytes, "no memory");
        return -ENOMEM;
    }
    qsort(name, all, sizeof(*name), compare_texts);
    for (size_t i = 0; i < all; i++)
        if (i == 0 || strcmp(name[i], name[kept - 1]) != 0)
            name[kept++] = name[i];
    *count = kept;
    if (kept > 0 && kept <= SAFETENSORS_FILE_MAX)
        return 0;
    snprintf(error, error_bytes, "weight_map names %zu files, not from 1 to %d", kept,
             SAFETENSORS_FILE_MAX);
    return -EINVAL;
}

/* Each tensor lies in the file that the map says; `named` gets which ones the map names. */
static int check_map(const struct safetensors *safetensors, const cJSON *map, bool *named,
                     char *error, size_t error_bytes)
{
    for (const cJSON *entry = map->child; entry != NULL; entry = entry->next) {
        const struct safetensors_tensor *tensor = safetensors_find(safetensors, entry->string);

        if (tensor == NULL)
            return refuse_tensor(entry->string, "the index names it, but no file has it", error,
                                 error_bytes);
        if (strcmp(safetensors->file[tensor->file].name, entry->valuestring) != 0)
            return refuse_tensor(entry->string, "it is in another file than the index says", error,
                                 error_bytes);
        named[tensor - safetensors->tensor] = true;
    }
    for (int64_t i = 0; i < safetensors->tensor_count; i++)
        if (!named[i])
            return refuse_tensor(safetensors->tensor[i].name, "the index does not name it", error,
                                 error_bytes);
    return 0;
}

static int compare_with_map(const struct safetensors *safetensors, const cJSON *map, char *error,
                            size_t error_bytes)
{
    bool *named = calloc((size_t)safetensors->tensor_count + 1, sizeof(*named));
    int status = -ENOMEM;

    if (named == NULL)
        snprintf(error, error_bytes, "no memory");
    else
        status = check_map(safetensors, map, named, error, error_bytes);
    free(named);
    return status;
}

static int open_indexed(struct safetensors *safetensors, const char *folder, const cJSON *index,
                        char *error, size_t error_bytes)
{
    const cJSON *map = json_tree_member(index, "weight_map");
    const char **name = NULL;
    size_t count = 0;
    int status = -EINVAL;

    if (cJSON_IsObject(map))
        status = list_files(map, &name, &count, error, error_bytes);
    else
        snprintf(error, error_bytes, "weight_map is missing or no object");
    if (status == 0) {
        safetensors->file = calloc(count, sizeof(*safetensors->file));
        status = safetensors->file == NULL ? -ENOMEM : 0;
        if (status != 0)
            snprintf(error, error_bytes, "no memory");
    }
    for (size_t i = 0; status == 0 && i < count; i++)
        status = open_file(safetensors, folder, name[i], error, error_bytes);
    if (status == 0)
        status = sort(safetensors, error, error_bytes);
    if (status == 0)
        status = compare_with_map(safetensors, map, error, error_bytes);
    free(name);
    return status;
}

static int open_index(struct safetensors *safetensors, const char *folder, const char *path,
                      char *error, size_t error_bytes)
{
    const unsigned char *map = NULL;
    char detail[640];
    size_t bytes = 0;
    cJSON *index = NULL;
    int status = mapping_open(path, &map, &bytes, detail, sizeof(detail));

    if (status == 0 && bytes > SAFETENSORS_HEADER_MAX) {
        snprintf(detail, sizeof(detail), "%zu bytes are too many", bytes);
        status = -EINVAL;
    }
    if (status == 0) {
        index = json_tree_parse((const char *)map, bytes, detail, sizeof(detail));
        status = index == NULL ? -EINVAL : 0;
    }
    if (status == 0)
        status = open_indexed(safetensors, folder, index, detail, sizeof(detail));
    if (status != 0)
        snprintf(error, error_bytes, "model.safetensors.index.json: %s", detail);
    cJSON_Delete(index);
    mapping_close(map, bytes);
    return status;
}

/* ---- opening ---- */

static bool is_there(const char *folder, const char *name)
{
    char path[PATH_BYTES], error[64];

    return join(folder, name, path, error, sizeof(error)) == 0 && access(path, F_OK) == 0;
}

static int refuse_folder(const char *folder, char *error, size_t error_bytes)
{
    if (is_there(folder, "pytorch_model.bin") || is_there(folder, "pytorch_model.bin.index.json")) {
        snprintf(error, error_bytes,
                 "pytorch_model.bin is a pickle, which can run code and is never read: convert it "
                 "to model.safetensors");
        return -ENOTSUP;
    }
    if (is_there(folder, "consolidated.safetensors")) {
        snprintf(error, error_bytes,
                 "consolidated.safetensors has another layout: the model's "
                 "model.safetensors is needed");
        return -ENOTSUP;
    }
    snprintf(error, error_bytes,
             "it has neither model.safetensors nor model.safetensors.index.json");
    return -ENOENT;
}

static int open_single(struct safetensors *safetensors, const char *folder, char *error,
                       size_t error_bytes)
{
    int status;

    safetensors->file = calloc(1, sizeof(*safetensors->file));
    if (safetensors->file == NULL) {
        snprintf(error, error_bytes, "no memory");
        return -ENOMEM;
    }
    status = open_file(safetensors, folder, "model.safetensors", error, error_bytes);
    return status == 0 ? sort(safetensors, error, error_bytes) : status;
}

int safetensors_open(struct safetensors **target, const char *folder, char *error,
                     size_t error_bytes)
{
    struct safetensors *safetensors = calloc(1, sizeof(*safetensors));
    char path[PATH_BYTES];
    int status;

    *target = NULL;
    if (safetensors == NULL) {
        snprintf(error, error_bytes, "no memory");
        return -ENOMEM;
    }
    status = join(folder, "model.safetensors.index.json", path, error, error_bytes);
    if (status == 0 && is_there(folder, "model.safetensors"))
        status = open_single(safetensors, folder, error, error_bytes);
    else if (status == 0 && access(path, F_OK) == 0)
        status = open_index(safetensors, folder, path, error, error_bytes);
    else if (status == 0)
        status = refuse_folder(folder, error, error_bytes);
    if (status != 0) {
        safetensors_close(safetensors);
        return status;
    }
    *target = safetensors;
    return 0;
}

int safetensors_open_memory(struct safetensors **target, const void *data, size_t bytes,
                            char *error, size_t error_bytes)
{
    struct safetensors *safetensors = calloc(1, sizeof(*safetensors));
    int status = -ENOMEM;

    *target = NULL;
    snprintf(error, error_bytes, "no memory");
    if (safetensors != NULL)
        safetensors->file = calloc(1, sizeof(*safetensors->file));
    if (safetensors != NULL && safetensors->file != NULL) {
        safetensors->file_count = 1;
        safetensors->file[0].bytes = bytes;
        status = read_file(safetensors, 0, data, error, error_bytes);
    }
    if (status == 0)
        status = sort(safetensors, error, error_bytes);
    if (status != 0)
        safetensors_close(safetensors);
    else
        *target = safetensors;
    return status;
}

void safetensors_close(struct safetensors *safetensors)
{
    if (safetensors == NULL)
        return;
    for (int32_t i = 0; i < safetensors->file_count; i++) {
        mapping_close(safetensors->file[i].map, safetensors->file[i].bytes);
        cJSON_Delete(safetensors->file[i].header);
        free(safetensors->file[i].name);
    }
    free(safetensors->file);
    free(safetensors->tensor);
    free(safetensors);
}

void safetensors_prefetch(const struct safetensors *safetensors)
{
    for (int32_t i = 0; i < safetensors->file_count; i++)
        mapping_prefetch(safetensors->file[i].map, safetensors->file[i].bytes);
}
