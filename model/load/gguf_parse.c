/* The bytes of one GGUF file to keys and tensors. May be called from any thread.
 *
 * The rules, each with a case in tests/unit/test_model_gguf.c:
 *  (1) magic "GGUF", version 2 or 3 in this machine's byte order;
 *  (2) counts are at most GGUF_COUNT_MAX and fit the file at the least size of an entry;
 *  (3) strings and arrays end inside the file; bools are 0 or 1; no arrays of arrays;
 *  (4) keys are not empty and unique;
 *  (5) alignment is a power of two from 8 to 2^20;
 *  (6) tensor names have 1 to 63 bytes and are unique; 1 to 4 dimensions, each from 1, whose
 *      product does not overflow; rows are whole blocks of a known type;
 *  (7) every offset is the running sum of the padded sizes, and the data ends inside the file.
 */
#include "model/load/gguf.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    ALIGNMENT_MIN = 8,
    ALIGNMENT_MAX = 1 << 20,
    ALIGNMENT_DEFAULT = 32,
    VALUE_BYTES_MIN = 8 + 1 + 4 + 1,          /* key length, key, type, value */
    TENSOR_BYTES_MIN = 8 + 1 + 4 + 8 + 4 + 8, /* name, dimensions, type, offset */
};

struct reader {
    const unsigned char *data;
    size_t bytes;
    size_t at;
    int status; /* of the first failure */
    char *error;
    size_t error_bytes;
};

static bool refuse(struct reader *reader, int status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* Always false, so that callers can return it. */
static bool refuse(struct reader *reader, int status, const char *format, ...)
{
    va_list list;

    reader->status = status;
    va_start(list, format);
    vsnprintf(reader->error, reader->error_bytes, format, list);
    va_end(list);
    return false;
}

const char *gguf_printable(struct gguf_string string, char *text, size_t max)
{
    size_t count = string.count < max - 1 ? string.count : max - 1;

    for (size_t i = 0; i < count; i++)
        text[i] = string.byte[i] >= ' ' && string.byte[i] <= '~' ? string.byte[i] : '?';
    text[count] = '\0';
    return text;
}

static size_t left(const struct reader *reader)
{
    return reader->bytes - reader->at;
}

static bool take(struct reader *reader, void *target, size_t bytes, const char *what)
{
    if (left(reader) < bytes) {
        memset(target, 0, bytes);
        return refuse(reader, -EINVAL, "the file ends at byte %zu, inside %s", reader->bytes, what);
    }
    memcpy(target, reader->data + reader->at, bytes);
    reader->at += bytes;
    return true;
}

static bool take_string(struct reader *reader, struct gguf_string *string, const char *what)
{
    uint64_t count;

    if (!take(reader, &count, sizeof(count), what))
        return false;
    if (count > left(reader))
        return refuse(reader, -EINVAL,
                      "%s at byte %zu has %" PRIu64 " bytes, but the file has %zu more", what,
                      reader->at, count, left(reader));
    string->byte = (const char *)reader->data + reader->at;
    string->count = (size_t)count;
    reader->at += (size_t)count;
    return true;
}

static size_t type_bytes(enum gguf_type type)
{
    static const unsigned char bytes[GGUF_TYPE_COUNT] = {
        [GGUF_U8] = 1,  [GGUF_I8] = 1,  [GGUF_U16] = 2, [GGUF_I16] = 2,
        [GGUF_U32] = 4, [GGUF_I32] = 4, [GGUF_F32] = 4, [GGUF_BOOL] = 1,
        [GGUF_U64] = 8, [GGUF_I64] = 8, [GGUF_F64] = 8, [GGUF_STRING] = 8 /* of its length */,
    };
    return bytes[type];
}

static bool pass_elements(struct reader *reader, const struct gguf_value *value, const char *key)
{
    size_t size = type_bytes(value->type);
    struct gguf_string ignored;

    if ((uint64_t)value->count > left(reader) / size)
        return refuse(reader, -EINVAL,
                      "key %s has %" PRId64 " elements of at least %zu bytes, but the file has %zu "
                      "more bytes",
                      key, value->count, size, left(reader));
    if (value->type == GGUF_STRING) {
        for (int64_t i = 0; i < value->count; i++)
            if (!take_string(reader, &ignored, key))
                return false;
        return true;
    }
    for (int64_t i = 0; value->type == GGUF_BOOL && i < value->count; i++)
        if (value->data[i] > 1)
            return refuse(reader, -EINVAL, "key %s holds %d where a bool is 0 or 1", key,
                          value->data[i]);
    reader->at += size * (size_t)value->count;
    return true;
}

static bool take_type(struct reader *reader, enum gguf_type *type, const char *key)
{
    uint32_t id;

    if (!take(reader, &id, sizeof(id), key))
        return false;
    if (id >= GGUF_TYPE_COUNT)
        return refuse(reader, -EINVAL, "key %s has value type %" PRIu32 ", which is unknown", key,
                      id);
    *type = (enum gguf_type)id;
    return true;
}

static bool take_value(struct reader *reader, struct gguf_value *value)
{
    char key[64];

    if (!take_string(reader, &value->key, "a key"))
        return false;
    if (value->key.count == 0)
        return refuse(reader, -EINVAL, "the key before byte %zu is empty", reader->at);
    gguf_printable(value->key, key, sizeof(key));
    if (!take_type(reader, &value->type, key))
        return false;
    value->array = value->type == GGUF_ARRAY;
    value->count = 1;
    if (value->array) {
        uint64_t count;

        if (!take_type(reader, &value->type, key) || !take(reader, &count, sizeof(count), key))
            return false;
        if (value->type == GGUF_ARRAY)
            return refuse(reader, -EINVAL, "key %s is an array of arrays, which is not supported",
                          key);
        if (count > INT64_MAX)
            return refuse(reader, -EINVAL, "key %s has %" PRIu64 " elements", key, count);
        value->count = (int64_t)count;
    }
    value->data = reader->data + reader->at;
    return pass_elements(reader, value, key);
}

static int compare_strings(struct gguf_string left_one, struct gguf_string right_one)
{
    size_t count = left_one.count < right_one.count ? left_one.count : right_one.count;
    int order = count > 0 ? memcmp(left_one.byte, right_one.byte, count) : 0;

    if (order != 0)
        return order;
    return (left_one.count > right_one.count) - (left_one.count < right_one.count);
}

static int compare_values(const void *left_one, const void *right_one)
{
    return compare_strings(((const struct gguf_value *)left_one)->key,
                           ((const struct gguf_value *)right_one)->key);
}

static bool take_values(struct reader *reader, struct gguf_part *part)
{
    char key[64];

    part->value = calloc((size_t)part->value_count + 1, sizeof(*part->value));
    if (part->value == NULL)
        return refuse(reader, -ENOMEM, "no memory for %" PRId64 " keys", part->value_count);
    for (int64_t i = 0; i < part->value_count; i++)
        if (!take_value(reader, &part->value[i]))
            return false;
    qsort(part->value, (size_t)part->value_count, sizeof(*part->value), compare_values);
    for (int64_t i = 1; i < part->value_count; i++)
        if (compare_values(&part->value[i - 1], &part->value[i]) == 0)
            return refuse(reader, -EINVAL, "key %s is there twice",
                          gguf_printable(part->value[i].key, key, sizeof(key)));
    return true;
}

static bool take_format(struct reader *reader, struct gguf_tensor *tensor, const char *name)
{
    uint32_t id;
    int32_t format;

    if (!take(reader, &id, sizeof(id), name))
        return false;
    format = format_by_gguf_id(id);
    if (format >= 0) {
        tensor->format = (enum format)format;
        return true;
    }
    if (format_gguf_name(id) != NULL)
        return refuse(reader, -ENOTSUP, "tensor %s has type %s, which is not supported", name,
                      format_gguf_name(id));
    return refuse(reader, -EINVAL, "tensor %s has type %" PRIu32 ", which is unknown", name, id);
}

static bool take_dims(struct reader *reader, struct gguf_tensor *tensor, const char *name)
{
    uint32_t dim_count;
    int64_t product = 1;

    if (!take(reader, &dim_count, sizeof(dim_count), name))
        return false;
    if (dim_count < 1 || dim_count > GGUF_DIM_MAX)
        return refuse(reader, -EINVAL, "tensor %s has %" PRIu32 " dimensions, not 1 to %d", name,
                      dim_count, GGUF_DIM_MAX);
    tensor->dim_count = (int32_t)dim_count;
    for (int32_t i = 0; i < GGUF_DIM_MAX; i++) {
        tensor->dim[i] = 1;
        if (i < tensor->dim_count && !take(reader, &tensor->dim[i], sizeof(tensor->dim[i]), name))
            return false;
        if (tensor->dim[i] < 1)
            return refuse(reader, -EINVAL,
                          "tensor %s has dimension %d of %" PRId64 ", which is below 1", name, i,
                          tensor->dim[i]);
        if (__builtin_mul_overflow(product, tensor->dim[i], &product))
            return refuse(reader, -EINVAL, "tensor %s has more values than can be counted", name);
    }
    return true;
}

/* Bytes of the data, from dimensions that are known to have a product. */
static bool count_bytes(struct reader *reader, struct gguf_tensor *tensor, const char *name)
{
    const struct format_info *info = format_info(tensor->format);
    size_t rows = (size_t)(tensor->dim[1] * tensor->dim[2] * tensor->dim[3]);
    size_t blocks;

    if (tensor->dim[0] % info->block_values != 0)
        return refuse(reader, -EINVAL,
                      "tensor %s has rows of %" PRId64 " values, but %s has blocks of %" PRId32,
                      name, tensor->dim[0], info->name, info->block_values);
    blocks = (size_t)(tensor->dim[0] / info->block_values) * rows;
    if (__builtin_mul_overflow(blocks, (size_t)info->block_bytes, &tensor->bytes))
        return refuse(reader, -EINVAL, "tensor %s has more bytes than can be counted", name);
    return true;
}

/* `offset` is where this tensor must start and moves on to the next one's. */
static bool take_tensor(struct reader *reader, struct gguf_tensor *tensor, uint64_t *offset,
                        uint64_t alignment)
{
    char name[GGUF_NAME_MAX + 1];
    uint64_t stated;

    if (!take_string(reader, &tensor->name, "a tensor's name"))
        return false;
    gguf_printable(tensor->name, name, sizeof(name));
    if (tensor->name.count < 1 || tensor->name.count > GGUF_NAME_MAX)
        return refuse(reader, -EINVAL, "the tensor name \"%s\" has %zu bytes, not 1 to %d", name,
                      tensor->name.count, GGUF_NAME_MAX);
    if (!take_dims(reader, tensor, name) || !take_format(reader, tensor, name) ||
        !count_bytes(reader, tensor, name) || !take(reader, &stated, sizeof(stated), name))
        return false;
    if (stated != *offset)
        return refuse(reader, -EINVAL,
                      "tensor %s starts at offset %" PRIu64 ", not at %" PRIu64
                      " where the one before it ends",
                      name, stated, *offset);
    if (tensor->bytes > reader->bytes)
        return refuse(reader, -EINVAL, "tensor %s has %zu bytes, but the file has %zu", name,
                      tensor->bytes, reader->bytes);
    *offset += (tensor->bytes + alignment - 1) & ~(alignment - 1);
    return true;
}

static int compare_tensors(const void *left_one, const void *right_one)
{
    return compare_strings((*(struct gguf_tensor *const *)left_one)->name,
                           (*(struct gguf_tensor *const *)right_one)->name);
}

/* Keeps (6), unique names; the order of the file stays as it is. */
static bool check_names(struct reader *reader, const struct gguf_part *part)
{
    struct gguf_tensor **order =
        calloc((size_t)part->tensor_count + 1, sizeof(struct gguf_tensor *));
    char name[GGUF_NAME_MAX + 1];
    bool unique = true;

    if (order == NULL)
        return refuse(reader, -ENOMEM, "no memory for %" PRId64 " tensors", part->tensor_count);
    for (int64_t i = 0; i < part->tensor_count; i++)
        order[i] = &part->tensor[i];
    qsort(order, (size_t)part->tensor_count, sizeof(struct gguf_tensor *), compare_tensors);
    for (int64_t i = 1; unique && i < part->tensor_count; i++)
        if (compare_tensors(&order[i - 1], &order[i]) == 0)
            unique = refuse(reader, -EINVAL, "tensor %s is there twice",
                            gguf_printable(order[i]->name, name, sizeof(name)));
    free(order);
    return unique;
}

static bool find_alignment(struct reader *reader, const struct gguf_part *part, uint64_t *alignment)
{
    struct gguf_value wanted = {.key = {"general.alignment", strlen("general.alignment")}};
    const struct gguf_value *value =
        bsearch(&wanted, part->value, (size_t)part->value_count, sizeof(wanted), compare_values);
    int64_t number;

    *alignment = ALIGNMENT_DEFAULT;
    if (value == NULL)
        return true;
    if (value->array || !gguf_int(value, 0, &number))
        return refuse(reader, -EINVAL, "key general.alignment is not an integer");
    if (number < ALIGNMENT_MIN || number > ALIGNMENT_MAX || (number & (number - 1)) != 0)
        return refuse(reader, -EINVAL,
                      "general.alignment is %" PRId64 ", not a power of two from %d to %d", number,
                      ALIGNMENT_MIN, ALIGNMENT_MAX);
    *alignment = (uint64_t)number;
    return true;
}

static bool take_tensors(struct reader *reader, struct gguf_part *part)
{
    uint64_t alignment, offset = 0;
    size_t start;
    char name[GGUF_NAME_MAX + 1];

    if (!find_alignment(reader, part, &alignment))
        return false;
    part->tensor = calloc((size_t)part->tensor_count + 1, sizeof(*part->tensor));
    if (part->tensor == NULL)
        return refuse(reader, -ENOMEM, "no memory for %" PRId64 " tensors", part->tensor_count);
    for (int64_t i = 0; i < part->tensor_count; i++)
        if (!take_tensor(reader, &part->tensor[i], &offset, alignment))
            return false;
    start = (reader->at + alignment - 1) & ~(size_t)(alignment - 1);
    for (int64_t i = 0; i < part->tensor_count; i++) {
        struct gguf_tensor *tensor = &part->tensor[i];

        if (start > reader->bytes || tensor->bytes > reader->bytes - start)
            return refuse(reader, -EINVAL,
                          "tensor %s ends at byte %zu, but the file has %zu: it is cut short",
                          gguf_printable(tensor->name, name, sizeof(name)), start + tensor->bytes,
                          reader->bytes);
        tensor->data = reader->data + start;
        start += (tensor->bytes + alignment - 1) & ~(size_t)(alignment - 1);
    }
    return check_names(reader, part);
}

static bool take_count(struct reader *reader, int64_t *count, size_t bytes_min, const char *what)
{
    if (!take(reader, count, sizeof(*count), what))
        return false;
    if (*count < 0 || *count > GGUF_COUNT_MAX || (size_t)*count > left(reader) / bytes_min)
        return refuse(reader, -EINVAL,
                      "%s is %" PRId64 ", which is not from 0 to %d or more than "
                      "%zu bytes can hold",
                      what, *count, GGUF_COUNT_MAX, left(reader));
    return true;
}

static bool take_head(struct reader *reader, struct gguf_part *part)
{
    static const char pointer[] = "version https://git-lfs";
    char magic[4];

    if (!take(reader, magic, sizeof(magic), "the magic number"))
        return false;
    if (reader->bytes >= sizeof(pointer) && memcmp(reader->data, pointer, strlen(pointer)) == 0)
        return refuse(reader, -EINVAL, "it is a Git LFS pointer, not the file: fetch it first");
    if (memcmp(magic, "GGUF", sizeof(magic)) != 0)
        return refuse(reader, -EINVAL, "it is not a GGUF file: it starts with %02x %02x %02x %02x",
                      (unsigned char)magic[0], (unsigned char)magic[1], (unsigned char)magic[2],
                      (unsigned char)magic[3]);
    if (!take(reader, &part->version, sizeof(part->version), "the version"))
        return false;
    if ((part->version & 0xffff) == 0 && part->version != 0)
        return refuse(reader, -EINVAL,
                      "it has the other byte order (big-endian), which is not "
                      "supported");
    if (part->version != 2 && part->version != 3)
        return refuse(reader, -ENOTSUP, "it has GGUF version %" PRIu32 ", not 2 or 3",
                      part->version);
    return take_count(reader, &part->tensor_count, TENSOR_BYTES_MIN, "the count of tensors") &&
           take_count(reader, &part->value_count, VALUE_BYTES_MIN, "the count of keys");
}

int gguf_parse(struct gguf_part *part, const unsigned char *data, size_t bytes, char *error,
               size_t error_bytes)
{
    struct reader reader = {
        .data = data, .bytes = bytes, .error = error, .error_bytes = error_bytes};

    memset(part, 0, sizeof(*part));
    part->bytes = bytes;
    if (take_head(&reader, part) && take_values(&reader, part) && take_tensors(&reader, part))
        return 0;
    gguf_part_free(part);
    return reader.status;
}

void gguf_part_free(struct gguf_part *part)
{
    free(part->value);
    free(part->tensor);
    memset(part, 0, sizeof(*part));
}
