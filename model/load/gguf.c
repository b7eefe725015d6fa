/* GGUF files on disk: the parts of a split model, lookup by name, reading of values. */
#include "model/load/gguf.h"

#include "model/load/mapping.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PATH_BYTES = 4096 };

static int compare_to(struct gguf_string string, const char *text)
{
    size_t count = strlen(text);
    size_t common = string.count < count ? string.count : count;
    int order = common > 0 ? memcmp(text, string.byte, common) : 0;

    if (order != 0)
        return order;
    return (count > string.count) - (count < string.count);
}

static int find_value(const void *key, const void *value)
{
    return compare_to(((const struct gguf_value *)value)->key, key);
}

static int find_tensor(const void *name, const void *tensor)
{
    return compare_to((*(struct gguf_tensor *const *)tensor)->name, name);
}

const struct gguf_value *gguf_find(const struct gguf *gguf, const char *key)
{
    const struct gguf_part *part = &gguf->part[0];

    return bsearch(key, part->value, (size_t)part->value_count, sizeof(*part->value), find_value);
}

const struct gguf_tensor *gguf_tensor(const struct gguf *gguf, const char *name)
{
    struct gguf_tensor *const *tensor = bsearch(name, gguf->tensor, (size_t)gguf->tensor_count,
                                                sizeof(struct gguf_tensor *), find_tensor);

    return tensor == NULL ? NULL : *tensor;
}

/* Reads element `index` of `bytes` bytes, little-endian, sign-extended where asked. */
static int64_t integer_at(const struct gguf_value *value, int64_t index, size_t bytes, bool sign)
{
    uint64_t number = 0;

    memcpy(&number, value->data + (size_t)index * bytes, bytes);
    if (sign && bytes < sizeof(number) && (number >> (8 * bytes - 1)) != 0)
        number |= UINT64_MAX << (8 * bytes);
    return (int64_t)number;
}

bool gguf_int(const struct gguf_value *value, int64_t index, int64_t *out)
{
    static const signed char width[GGUF_TYPE_COUNT] = {
        [GGUF_U8] = 1,  [GGUF_U16] = 2,  [GGUF_U32] = 4,  [GGUF_U64] = 8,
        [GGUF_I8] = -1, [GGUF_I16] = -2, [GGUF_I32] = -4, [GGUF_I64] = -8,
    };
    int bytes = width[value->type];

    if (bytes == 0 || index < 0 || index >= value->count)
        return false;
    *out = integer_at(value, index, (size_t)abs(bytes), bytes < 0);
    return value->type != GGUF_U64 || *out >= 0;
}

bool gguf_truth(const struct gguf_value *value, int64_t index, bool *out)
{
    int64_t number;

    if (value->type == GGUF_BOOL && index >= 0 && index < value->count) {
        *out = value->data[index] != 0;
        return true;
    }
    if (!gguf_int(value, index, &number))
        return false;
    *out = number != 0;
    return true;
}

bool gguf_real(const struct gguf_value *value, int64_t index, double *out)
{
    int64_t number;
    float single;

    if (index < 0 || index >= value->count)
        return false;
    if (value->type == GGUF_F32) {
        memcpy(&single, value->data + (size_t)index * sizeof(single), sizeof(single));
        *out = (double)single;
        return true;
    }
    if (value->type == GGUF_F64) {
        memcpy(out, value->data + (size_t)index * sizeof(*out), sizeof(*out));
        return true;
    }
    if (!gguf_int(value, index, &number))
        return false;
    *out = (double)number;
    return true;
}

struct gguf_string gguf_next(const unsigned char **cursor)
{
    uint64_t count;
    struct gguf_string string;

    memcpy(&count, *cursor, sizeof(count));
    string.byte = (const char *)*cursor + sizeof(count);
    string.count = (size_t)count;
    *cursor += sizeof(count) + string.count;
    return string;
}

struct gguf_string gguf_text(const struct gguf_value *value)
{
    const unsigned char *cursor;

    if (value == NULL || value->array || value->type != GGUF_STRING)
        return (struct gguf_string){"", 0};
    cursor = value->data;
    return gguf_next(&cursor);
}

static int compare_names(const void *left, const void *right)
{
    struct gguf_string one = (*(struct gguf_tensor *const *)left)->name;
    struct gguf_string other = (*(struct gguf_tensor *const *)right)->name;
    size_t common = one.count < other.count ? one.count : other.count;
    int order = memcmp(one.byte, other.byte, common);

    if (order != 0)
        return order;
    return (one.count > other.count) - (one.count < other.count);
}

/* The tensors of all parts, by name; a name in two parts is refused. */
static int index_tensors(struct gguf *gguf, char *error, size_t error_bytes)
{
    char name[GGUF_NAME_MAX + 1];
    int64_t at = 0;

    for (int32_t i = 0; i < gguf->part_count; i++)
        gguf->tensor_count += gguf->part[i].tensor_count;
    gguf->tensor = calloc((size_t)gguf->tensor_count + 1, sizeof(struct gguf_tensor *));
    if (gguf->tensor == NULL) {
        snprintf(error, error_bytes, "no memory for %" PRId64 " tensors", gguf->tensor_count);
        return -ENOMEM;
    }
    for (int32_t i = 0; i < gguf->part_count; i++)
        for (int64_t k = 0; k < gguf->part[i].tensor_count; k++)
            gguf->tensor[at++] = &gguf->part[i].tensor[k];
    qsort(gguf->tensor, (size_t)gguf->tensor_count, sizeof(struct gguf_tensor *), compare_names);
    for (int64_t i = 1; i < gguf->tensor_count; i++) {
        if (compare_names(&gguf->tensor[i - 1], &gguf->tensor[i]) != 0)
            continue;
        snprintf(error, error_bytes, "tensor %s is there twice",
                 gguf_printable(gguf->tensor[i]->name, name, sizeof(name)));
        return -EINVAL;
    }
    return 0;
}

static int open_part(struct gguf_part *part, const char *path, char *error, size_t error_bytes)
{
    const unsigned char *map = NULL;
    size_t bytes = 0;
    int status = mapping_open(path, &map, &bytes, error, error_bytes);

    if (status != 0)
        return status;
    status = gguf_parse(part, map, bytes, error, error_bytes);
    if (status != 0)
        mapping_close(map, bytes);
    else
        part->map = map;
    return status;
}

/* -1: the key is not there or is no integer from 0 on. */
static int64_t part_int(const struct gguf_part *part, const char *key)
{
    const struct gguf_value *value =
        bsearch(key, part->value, (size_t)part->value_count, sizeof(*part->value), find_value);
    int64_t number;

    return value == NULL || value->array || !gguf_int(value, 0, &number) ? -1 : number;
}

/* Path of part `index` of `count` from the first one's; false: `path` is not named that way. */
static bool part_path(const char *path, int32_t index, int32_t count, char *target, size_t max)
{
    char ending[64];
    size_t bytes = strlen(path), ending_bytes;

    ending_bytes = (size_t)snprintf(ending, sizeof(ending), "-%05d-of-%05d.gguf", 1, count);
    if (bytes < ending_bytes || strcmp(path + bytes - ending_bytes, ending) != 0)
        return false;
    return (size_t)snprintf(target, max, "%.*s-%05d-of-%05d.gguf", (int)(bytes - ending_bytes),
                            path, index + 1, count) < max;
}

static int check_part(const struct gguf_part *part, int32_t index, int64_t count, char *error,
                      size_t error_bytes)
{
    if (part_int(part, "split.no") == index && part_int(part, "split.count") == count)
        return 0;
    snprintf(error, error_bytes,
             "split.no is %" PRId64 " and split.count %" PRId64 ", not %" PRId32 " and %" PRId64,
             part_int(part, "split.no"), part_int(part, "split.count"), index, count);
    return -EINVAL;
}

/* The other parts of a split model, where the first says that there are some. */
static int open_rest(struct gguf *gguf, const char *path, char *error, size_t error_bytes)
{
    int64_t count = part_int(&gguf->part[0], "split.count");
    int64_t tensors = part_int(&gguf->part[0], "split.tensors.count"), found;
    char name[PATH_BYTES], detail[256];
    struct gguf_part *part;
    int status = 0;

    if (count == -1 || count == 1)
        return 0;
    if (count < 1 || count > GGUF_PART_MAX) {
        snprintf(error, error_bytes, "split.count is %" PRId64 ", not from 1 to %d", count,
                 GGUF_PART_MAX);
        return -EINVAL;
    }
    if (part_int(&gguf->part[0], "split.no") != 0) {
        snprintf(error, error_bytes,
                 "split.no is %" PRId64 ": it is not the first of %" PRId64 " parts, open that one",
                 part_int(&gguf->part[0], "split.no"), count);
        return -EINVAL;
    }
    part = realloc(gguf->part, (size_t)count * sizeof(*part));
    if (part == NULL) {
        snprintf(error, error_bytes, "no memory for %" PRId64 " parts", count);
        return -ENOMEM;
    }
    gguf->part = part;
    found = part[0].tensor_count;
    for (int32_t i = 1; i < count; i++) {
        if (!part_path(path, i, (int32_t)count, name, sizeof(name))) {
            snprintf(error, error_bytes,
                     "it is the first of %" PRId64 " parts, but its name does "
                     "not end in -00001-of-%05" PRId64 ".gguf",
                     count, count);
            return -EINVAL;
        }
        status = open_part(&part[i], name, detail, sizeof(detail));
        if (status == 0) {
            gguf->part_count++;
            found += part[i].tensor_count;
            status = check_part(&part[i], i, count, detail, sizeof(detail));
        }
        if (status != 0) {
            snprintf(error, error_bytes, "part %s: %s", name, detail);
            return status;
        }
    }
    if (tensors != -1 && tensors != found) {
        snprintf(error, error_bytes,
                 "split.tensors.count is %" PRId64 ", but the parts hold %" PRId64, tensors, found);
        return -EINVAL;
    }
    return 0;
}

static struct gguf *create(void)
{
    struct gguf *gguf = calloc(1, sizeof(*gguf));

    if (gguf == NULL)
        return NULL;
    gguf->part = calloc(1, sizeof(*gguf->part));
    if (gguf->part != NULL)
        return gguf;
    free(gguf);
    return NULL;
}

/* Common end: counts and indexes, or frees everything. */
static int finish(struct gguf **target, struct gguf *gguf, int status, char *error,
                  size_t error_bytes)
{
    if (status == 0)
        status = index_tensors(gguf, error, error_bytes);
    if (status != 0) {
        gguf_close(gguf);
        return status;
    }
    for (int32_t i = 0; i < gguf->part_count; i++)
        gguf->bytes += (int64_t)gguf->part[i].bytes;
    *target = gguf;
    return 0;
}

int gguf_open(struct gguf **target, const char *path, char *error, size_t error_bytes)
{
    struct gguf *gguf = create();
    char detail[PATH_BYTES + 512] = "no memory";
    int status = -ENOMEM;

    *target = NULL;
    if (gguf != NULL)
        status = open_part(&gguf->part[0], path, detail, sizeof(detail));
    if (status == 0) {
        gguf->part_count = 1;
        status = open_rest(gguf, path, detail, sizeof(detail));
    }
    status = finish(target, gguf, status, detail, sizeof(detail));
    if (status != 0)
        snprintf(error, error_bytes, "cannot load %s: %s", path, detail);
    return status;
}

int gguf_open_memory(struct gguf **target, const void *data, size_t bytes, char *error,
                     size_t error_bytes)
{
    struct gguf *gguf = create();
    int status = -ENOMEM;

    *target = NULL;
    snprintf(error, error_bytes, "no memory");
    if (gguf != NULL)
        status = gguf_parse(&gguf->part[0], data, bytes, error, error_bytes);
    if (status == 0)
        gguf->part_count = 1;
    return finish(target, gguf, status, error, error_bytes);
}

void gguf_close(struct gguf *gguf)
{
    if (gguf == NULL)
        return;
    for (int32_t i = 0; i < gguf->part_count; i++) {
        mapping_close(gguf->part[i].map, gguf->part[i].bytes);
        gguf_part_free(&gguf->part[i]);
    }
    free(gguf->part);
    free(gguf->tensor);
    free(gguf);
}

void gguf_prefetch(const struct gguf *gguf)
{
    for (int32_t i = 0; i < gguf->part_count; i++)
        mapping_prefetch(gguf->part[i].map, gguf->part[i].bytes);
}
