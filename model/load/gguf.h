/* GGUF files: metadata and tensors of a file, or of all parts of a split one.
 *
 * The reader trusts nothing: every count, length, type, dimension, product and offset is checked
 * against the file before it is used, and memory taken is bounded by the file's own size. What
 * is wrong comes out as -EINVAL and one line that names the place, the value and the reason.
 * Strings and arrays are borrowed from the mapping and lie there unaligned: read them with the
 * functions below. An opened file is never changed and may be read from any thread.
 *
 * Layout: docs of the format; the rules kept here are listed at gguf_parse.c.
 */
#ifndef MODEL_LOAD_GGUF_H
#define MODEL_LOAD_GGUF_H

#include "kernels/formats.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    GGUF_DIM_MAX = 4,
    GGUF_NAME_MAX = 63,       /* bytes of a tensor's name */
    GGUF_PART_MAX = 1000,     /* files of a split model */
    GGUF_COUNT_MAX = 1 << 20, /* keys, and tensors, of one file */
};

enum gguf_type {
    GGUF_U8,
    GGUF_I8,
    GGUF_U16,
    GGUF_I16,
    GGUF_U32,
    GGUF_I32,
    GGUF_F32,
    GGUF_BOOL,
    GGUF_STRING,
    GGUF_ARRAY,
    GGUF_U64,
    GGUF_I64,
    GGUF_F64,
    GGUF_TYPE_COUNT
};

/* Bytes in the file, not NUL-terminated. */
struct gguf_string {
    const char *byte;
    size_t count;
};

/* A key and its value; a scalar is an array of one. */
struct gguf_value {
    struct gguf_string key;
    enum gguf_type type; /* of the elements; never GGUF_ARRAY */
    bool array;
    int64_t count;
    const unsigned char *data; /* first element */
};

/* dim[0] is the row length, contiguous; dimensions that are not there are 1. */
struct gguf_tensor {
    struct gguf_string name;
    enum format format;
    int32_t dim_count;
    int64_t dim[GGUF_DIM_MAX];
    size_t bytes;
    const unsigned char *data;
};

/* One file, parsed. */
struct gguf_part {
    const unsigned char *map; /* NULL: the memory is the caller's */
    size_t bytes;
    uint32_t version;
    int64_t value_count;
    struct gguf_value *value; /* by key */
    int64_t tensor_count;
    struct gguf_tensor *tensor; /* in the order of the file */
};

struct gguf {
    int32_t part_count;
    struct gguf_part *part;
    int64_t tensor_count;
    struct gguf_tensor **tensor; /* of all parts, by name */
    int64_t bytes;               /* of all files */
};

/* Opens `path`; where it is the first of a split model ("-00001-of-0000N.gguf"), all N.
 * 0, -EINVAL, -ENOTSUP (a tensor's type or file version), -ENOMEM, or open's errno. */
int gguf_open(struct gguf **gguf, const char *path, char *error, size_t error_bytes);
/* The same of one file in memory, which is borrowed until gguf_close. */
int gguf_open_memory(struct gguf **gguf, const void *data, size_t bytes, char *error,
                     size_t error_bytes);
void gguf_close(struct gguf *gguf); /* NULL is fine */
/* Asks the kernel to read the files ahead, in their order. */
void gguf_prefetch(const struct gguf *gguf);

/* Of the first part; NULL when there is no such key. */
const struct gguf_value *gguf_find(const struct gguf *gguf, const char *key);
/* NULL when there is no such tensor. */
const struct gguf_tensor *gguf_tensor(const struct gguf *gguf, const char *name);

/* Element `index` as an integer (any integer type), a truth (bool or integer) or a number (any
 * float or integer type); false when the type is another or the value does not fit. */
bool gguf_int(const struct gguf_value *value, int64_t index, int64_t *out);
bool gguf_truth(const struct gguf_value *value, int64_t index, bool *out);
bool gguf_real(const struct gguf_value *value, int64_t index, double *out);
/* A scalar string, or an empty one where the value is NULL or of another type. */
struct gguf_string gguf_text(const struct gguf_value *value);
/* The string at *cursor (start with value->data), which moves on to the next. */
struct gguf_string gguf_next(const unsigned char **cursor);
/* A copy fit for a message: printable ASCII, cut to `max` with its NUL. */
const char *gguf_printable(struct gguf_string string, char *text, size_t max);

/* Parses one file; on failure `part` is empty again. Fills all but `map`. */
int gguf_parse(struct gguf_part *part, const unsigned char *data, size_t bytes, char *error,
               size_t error_bytes);
void gguf_part_free(struct gguf_part *part); /* all but the mapping */

#endif
