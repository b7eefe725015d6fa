/* Writes GGUF files for tests: whole ones, tiny random Gemma 3 models, and broken ones.
 *
 *     struct gguf_writer writer = {0};
 *     gguf_write_gemma(&writer, &(struct tiny_gemma){.seed = 1});
 *     gguf_writer_save(&writer, path);
 *     gguf_writer_free(&writer);
 *
 * Nothing is checked, so that broken files can be written too: the counts in the header are those
 * written plus the `*_lie` fields, and every call takes what it is given. Out of memory aborts.
 */
#ifndef TESTS_GGUF_WRITER_H
#define TESTS_GGUF_WRITER_H

#include "kernels/formats.h"
#include "model/load/gguf.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct gguf_bytes {
    unsigned char *data;
    size_t count;
    size_t room;
};

struct gguf_writer {
    uint32_t version;   /* 0: 3 */
    uint32_t alignment; /* 0: 32; the key is not written for you */
    int64_t value_lie;  /* added to the count of keys */
    int64_t tensor_lie;
    int64_t offset_lie; /* added to the next tensor's offset */
    const char *skip;   /* a key or tensor of this name is left out; NULL: none */
    int64_t value_count;
    int64_t tensor_count;
    struct gguf_bytes values, tensors, body;
};

void gguf_writer_free(struct gguf_writer *writer); /* leaves an empty one */

/* Raw bytes behind the keys written so far: for broken files. */
void gguf_write_raw(struct gguf_writer *writer, const void *data, size_t count);

/* Scalars. An integer may have any integer type, or be a GGUF_BOOL. */
void gguf_write_int(struct gguf_writer *writer, const char *key, enum gguf_type type,
                    int64_t value);
void gguf_write_u32(struct gguf_writer *writer, const char *key, uint32_t value);
void gguf_write_f32(struct gguf_writer *writer, const char *key, float value);
void gguf_write_text(struct gguf_writer *writer, const char *key, const char *text);
/* Lists; `data` has element_bytes bytes an element. */
void gguf_write_list(struct gguf_writer *writer, const char *key, enum gguf_type type,
                     const void *data, size_t element_bytes, int64_t count);
void gguf_write_texts(struct gguf_writer *writer, const char *key, const char *const *text,
                      int64_t count);

/* A tensor and its bytes; `id` is GGUF's type id, dim[0] the row length. */
void gguf_write_tensor(struct gguf_writer *writer, const char *name, uint32_t id, int32_t dim_count,
                       const int64_t *dim, const void *data, size_t bytes);
/* A tensor [out, in] of random values: of about 1 / sqrt(in) for matrices (out > 1), near 1 for
 * vectors. Formats: F32, F16, BF16, Q4_0, Q5_0, Q8_0, Q4_K, Q6_K. */
void gguf_write_random(struct gguf_writer *writer, const char *name, enum format format,
                       int32_t out, int32_t in, uint64_t *seed);

/* The file in memory; the caller frees it. */
unsigned char *gguf_writer_finish(const struct gguf_writer *writer, size_t *bytes);
bool gguf_writer_save(const struct gguf_writer *writer, const char *path);

/* A small SPM vocabulary of `count` tokens (from 320 to 900): 0 <pad>, 1 <eos>, 2 <bos>, 3 <unk>,
 * 4 <start_of_turn>, 5 <end_of_turn>, 6 to 261 the bytes, then "▁", printable ASCII, pairs. */
void gguf_write_vocabulary(struct gguf_writer *writer, int32_t count);

/* A random Gemma 3. A zero takes the default beside it. */
struct tiny_gemma {
    uint64_t seed;
    int32_t layer_count;   /* 7 */
    int32_t width;         /* 64 */
    int32_t head_count;    /* 4 */
    int32_t kv_head_count; /* 2 */
    int32_t head_width;    /* 64 */
    int32_t ffn_width;     /* 256 */
    int32_t vocab_count;   /* 400 */
    int32_t context_count; /* 512 */
    int32_t window;        /* 24; -1: no such key */
    int32_t period;        /* 0: no such key (6) */
    bool plain;            /* all F32; else as in the real file: Q5_0, Q8_0, Q4_K, Q6_K */
    bool own_head;
    bool fused; /* attn_qkv, and gate and up in ffn_up */
    bool no_vocabulary;
    float rope_factor; /* linear, of global layers; 0: no such key */
    float softcap;     /* of the logits; 0: no such key */
};
void gguf_write_gemma(struct gguf_writer *writer, const struct tiny_gemma *tiny);

#endif
