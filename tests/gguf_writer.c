/* GGUF files in memory and on disk, whole or broken, for tests. */
#include "tests/gguf_writer.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- bytes ---- */

static void put(struct gguf_bytes *bytes, const void *data, size_t count)
{
    if (bytes->count + count > bytes->room) {
        bytes->room = 2 * (bytes->count + count) + 64;
        bytes->data = realloc(bytes->data, bytes->room);
        if (bytes->data == NULL)
            abort();
    }
    if (count > 0)
        memcpy(bytes->data + bytes->count, data, count);
    bytes->count += count;
}

static void put_u32(struct gguf_bytes *bytes, uint32_t value)
{
    put(bytes, &value, sizeof(value));
}

static void put_u64(struct gguf_bytes *bytes, uint64_t value)
{
    put(bytes, &value, sizeof(value));
}

static void put_text(struct gguf_bytes *bytes, const char *text)
{
    put_u64(bytes, strlen(text));
    put(bytes, text, strlen(text));
}

static void pad(struct gguf_bytes *bytes, size_t alignment)
{
    static const unsigned char zero[64];

    while (bytes->count % alignment != 0)
        put(bytes, zero, 1);
}

static uint32_t alignment_of(const struct gguf_writer *writer)
{
    return writer->alignment == 0 ? 32 : writer->alignment;
}

void gguf_writer_free(struct gguf_writer *writer)
{
    free(writer->values.data);
    free(writer->tensors.data);
    free(writer->body.data);
    memset(writer, 0, sizeof(*writer));
}

/* ---- keys ---- */

void gguf_write_raw(struct gguf_writer *writer, const void *data, size_t count)
{
    put(&writer->values, data, count);
}

static bool skipped(const struct gguf_writer *writer, const char *name)
{
    return writer->skip != NULL && strcmp(writer->skip, name) == 0;
}

/* False: the key is left out. */
static bool put_key(struct gguf_writer *writer, const char *key, enum gguf_type type)
{
    if (skipped(writer, key))
        return false;
    writer->value_count++;
    put_text(&writer->values, key);
    put_u32(&writer->values, type);
    return true;
}

void gguf_write_int(struct gguf_writer *writer, const char *key, enum gguf_type type, int64_t value)
{
    static const unsigned char bytes[GGUF_TYPE_COUNT] = {
        [GGUF_U8] = 1,  [GGUF_I8] = 1,  [GGUF_BOOL] = 1, [GGUF_U16] = 2, [GGUF_I16] = 2,
        [GGUF_U32] = 4, [GGUF_I32] = 4, [GGUF_U64] = 8,  [GGUF_I64] = 8,
    };

    if (put_key(writer, key, type))
        put(&writer->values, &value, bytes[type]); /* little-endian */
}

void gguf_write_u32(struct gguf_writer *writer, const char *key, uint32_t value)
{
    gguf_write_int(writer, key, GGUF_U32, value);
}

void gguf_write_f32(struct gguf_writer *writer, const char *key, float value)
{
    if (put_key(writer, key, GGUF_F32))
        put(&writer->values, &value, sizeof(value));
}

void gguf_write_text(struct gguf_writer *writer, const char *key, const char *text)
{
    if (put_key(writer, key, GGUF_STRING))
        put_text(&writer->values, text);
}

void gguf_write_list(struct gguf_writer *writer, const char *key, enum gguf_type type,
                     const void *data, size_t element_bytes, int64_t count)
{
    if (!put_key(writer, key, GGUF_ARRAY))
        return;
    put_u32(&writer->values, type);
    put_u64(&writer->values, (uint64_t)count);
    put(&writer->values, data, element_bytes * (size_t)count);
}

void gguf_write_texts(struct gguf_writer *writer, const char *key, const char *const *text,
                      int64_t count)
{
    if (skipped(writer, key))
        return;
    gguf_write_list(writer, key, GGUF_STRING, NULL, 0, count);
    for (int64_t i = 0; i < count; i++)
        put_text(&writer->values, text[i]);
}

/* ---- tensors ---- */

void gguf_write_tensor(struct gguf_writer *writer, const char *name, uint32_t id, int32_t dim_count,
                       const int64_t *dim, const void *data, size_t bytes)
{
    if (skipped(writer, name))
        return;
    writer->tensor_count++;
    put_text(&writer->tensors, name);
    put_u32(&writer->tensors, (uint32_t)dim_count);
    for (int32_t i = 0; i < dim_count; i++)
        put_u64(&writer->tensors, (uint64_t)dim[i]);
    put_u32(&writer->tensors, id);
    put_u64(&writer->tensors, writer->body.count + (uint64_t)writer->offset_lie);
    writer->offset_lie = 0;
    put(&writer->body, data, bytes);
    pad(&writer->body, alignment_of(writer));
}

static uint64_t next(uint64_t *seed)
{
    uint64_t x = *seed += 0x9e3779b97f4a7c15u;

    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

/* From -1 to 1. */
static double uniform(uint64_t *seed)
{
    return (double)(int64_t)next(seed) / 9223372036854775808.0;
}

/* The f16 whose value is the greatest power of two up to `size`, times 1 to 2. */
static uint16_t half_near(double size, uint64_t *seed)
{
    int exponent = (int)floor(log2(size)) + 15;

    return (uint16_t)((exponent < 1 ? 1 : exponent) << 10 | (int)(next(seed) & 1023));
}

static void random_float(unsigned char *block, enum format format, double centre, double size,
                         uint64_t *seed)
{
    float value = (float)(centre + size * uniform(seed));
    uint32_t bits;
    uint16_t half;

    memcpy(&bits, &value, sizeof(bits));
    if (format == FORMAT_F32) {
        memcpy(block, &bits, sizeof(bits));
        return;
    }
    half = (uint16_t)(bits >> 16);
    if (format == FORMAT_F16)
        half = (uint16_t)(half_near(fabs((double)value) + 1e-4, seed) | (value < 0) << 15);
    memcpy(block, &half, sizeof(half));
}

/* A block of random bits, but for its scales. */
static void random_block(unsigned char *block, enum format format, double size, uint64_t *seed)
{
    static const struct {
        double levels; /* a value is about this many scales */
        int scale_at, minimum_at;
    } kind[FORMAT_COUNT] = {
        [FORMAT_Q4_0] = {4, 0, -1},         [FORMAT_Q5_0] = {8, 0, -1},
        [FORMAT_Q8_0] = {64, 0, -1},        [FORMAT_Q4_K] = {32 * 16, 0, 2},
        [FORMAT_Q6_K] = {64 * 16, 208, -1},
    };
    int32_t bytes = format_info(format)->block_bytes;
    uint16_t half;

    if (kind[format].levels == 0)
        abort();
    for (int32_t i = 0; i < bytes; i++)
        block[i] = (unsigned char)next(seed);
    half = half_near(size / kind[format].levels, seed);
    memcpy(block + kind[format].scale_at, &half, sizeof(half));
    if (kind[format].minimum_at < 0)
        return;
    half = half_near(8 * size / kind[format].levels, seed);
    memcpy(block + kind[format].minimum_at, &half, sizeof(half));
}

void gguf_write_random(struct gguf_writer *writer, const char *name, enum format format,
                       int32_t out, int32_t in, uint64_t *seed)
{
    const struct format_info *info = format_info(format);
    int64_t dim[2] = {in, out}, blocks = (int64_t)out * in / info->block_values;
    size_t bytes = (size_t)(blocks * info->block_bytes);
    unsigned char *data = malloc(bytes);
    double size = out > 1 ? sqrt(3.0 / in) : 0.3;

    if (data == NULL)
        abort();
    for (int64_t i = 0; i < blocks; i++) {
        unsigned char *block = data + i * info->block_bytes;

        if (info->block_values == 1)
            random_float(block, format, out > 1 ? 0.0 : 1.0, size, seed);
        else
            random_block(block, format, size, seed);
    }
    gguf_write_tensor(writer, name, (uint32_t)info->gguf_id, out > 1 ? 2 : 1, dim, data, bytes);
    free(data);
}

/* ---- files ---- */

unsigned char *gguf_writer_finish(const struct gguf_writer *writer, size_t *bytes)
{
    struct gguf_bytes file = {0};

    put(&file, "GGUF", 4);
    put_u32(&file, writer->version == 0 ? 3 : writer->version);
    put_u64(&file, (uint64_t)(writer->tensor_count + writer->tensor_lie));
    put_u64(&file, (uint64_t)(writer->value_count + writer->value_lie));
    put(&file, writer->values.data, writer->values.count);
    put(&file, writer->tensors.data, writer->tensors.count);
    pad(&file, alignment_of(writer));
    put(&file, writer->body.data, writer->body.count);
    *bytes = file.count;
    return file.data;
}

bool gguf_writer_save(const struct gguf_writer *writer, const char *path)
{
    size_t bytes;
    unsigned char *data = gguf_writer_finish(writer, &bytes);
    FILE *file = fopen(path, "wb");
    bool good = file != NULL && fwrite(data, 1, bytes, file) == bytes;

    if (file != NULL && fclose(file) != 0)
        good = false;
    free(data);
    return good;
}
