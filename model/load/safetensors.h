/* The safetensors of a model folder: one file, or those that an index names.
 *
 * The reader trusts nothing: header size, JSON, names, types, shapes, products and offsets are
 * checked against the file before they are used; no two tensors overlap or share a name; an index
 * may only name plain files of its folder, and must agree with them tensor by tensor. What is
 * wrong comes out as -EINVAL and one line. Data are borrowed from the mapping and may lie there
 * unaligned. An opened folder is never changed and may be read from any thread.
 */
#ifndef MODEL_LOAD_SAFETENSORS_H
#define MODEL_LOAD_SAFETENSORS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* TYPE(constant, name in a header, bytes of a value) */
#define SAFETENSORS_TYPES(TYPE)                                                                    \
    TYPE(SAFETENSORS_BOOL, "BOOL", 1)                                                              \
    TYPE(SAFETENSORS_U8, "U8", 1)                                                                  \
    TYPE(SAFETENSORS_I8, "I8", 1)                                                                  \
    TYPE(SAFETENSORS_F8_E4M3, "F8_E4M3", 1)                                                        \
    TYPE(SAFETENSORS_F8_E5M2, "F8_E5M2", 1)                                                        \
    TYPE(SAFETENSORS_F8_E8M0, "F8_E8M0", 1)                                                        \
    TYPE(SAFETENSORS_I16, "I16", 2)                                                                \
    TYPE(SAFETENSORS_U16, "U16", 2)                                                                \
    TYPE(SAFETENSORS_F16, "F16", 2)                                                                \
    TYPE(SAFETENSORS_BF16, "BF16", 2)                                                              \
    TYPE(SAFETENSORS_I32, "I32", 4)                                                                \
    TYPE(SAFETENSORS_U32, "U32", 4)                                                                \
    TYPE(SAFETENSORS_F32, "F32", 4)                                                                \
    TYPE(SAFETENSORS_I64, "I64", 8)                                                                \
    TYPE(SAFETENSORS_U64, "U64", 8)                                                                \
    TYPE(SAFETENSORS_F64, "F64", 8)

enum safetensors_type {
#define TYPE(constant, name, bytes) constant,
    SAFETENSORS_TYPES(TYPE)
#undef TYPE
        SAFETENSORS_TYPE_COUNT
};

enum {
    SAFETENSORS_DIM_MAX = 8,
    SAFETENSORS_FILE_MAX = 1000,
    SAFETENSORS_HEADER_MAX = 100 * 1000 * 1000, /* bytes, as in the format's own library */
};

/* A scalar has no dimension and one value; a tensor may be empty. */
struct safetensors_tensor {
    const char *name;
    enum safetensors_type type;
    int32_t dim_count;
    int64_t dim[SAFETENSORS_DIM_MAX]; /* the last one is contiguous */
    int64_t value_count;
    size_t bytes;
    const unsigned char *data;
    int32_t file;
};

struct safetensors {
    int32_t file_count;
    struct safetensors_file *file;
    int64_t tensor_count;
    struct safetensors_tensor *tensor; /* by name */
    int64_t bytes;                     /* of all files */
};

/* Opens model.safetensors of the folder, or else what model.safetensors.index.json names. 0,
 * -EINVAL, -ENOTSUP (another kind of weights), -ENOENT, -ENOMEM, or open's errno. */
int safetensors_open(struct safetensors **safetensors, const char *folder, char *error,
                     size_t error_bytes);
/* The same of one file in memory, which is borrowed until safetensors_close. */
int safetensors_open_memory(struct safetensors **safetensors, const void *data, size_t bytes,
                            char *error, size_t error_bytes);
void safetensors_close(struct safetensors *safetensors); /* NULL is fine */
/* Asks the kernel to read the files ahead, in their order. */
void safetensors_prefetch(const struct safetensors *safetensors);

/* NULL when there is no such tensor. */
const struct safetensors_tensor *safetensors_find(const struct safetensors *safetensors,
                                                  const char *name);
/* As a header spells it. */
const char *safetensors_type_name(enum safetensors_type type);

#endif
