/* Any bytes as a GGUF file: the reader, the settings of an architecture, and the vocabulary must
 * refuse or accept without touching memory that is not theirs. What is accepted is walked. */
#include "model/arch.h"
#include "model/load/gguf.h"
#include "model/text/tokenizer.h"
#include "tests/gguf_writer.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t bytes, size_t max, unsigned seed);
size_t LLVMFuzzerMutate(uint8_t *data, size_t bytes, size_t max);

/* Reads the first and last byte of everything that the reader vouched for. */
static unsigned walk(const struct gguf *gguf)
{
    const struct gguf_part *part = &gguf->part[0];
    unsigned sum = 0;

    for (int64_t i = 0; i < gguf->tensor_count; i++) {
        sum += gguf->tensor[i]->data[0];
        sum += gguf->tensor[i]->data[gguf->tensor[i]->bytes - 1];
    }
    for (int64_t i = 0; i < part->value_count; i++) {
        const struct gguf_value *value = &part->value[i];
        const unsigned char *cursor = value->data;
        int64_t number;
        double real;
        bool truth;

        for (int64_t k = 0; value->type == GGUF_STRING && k < value->count; k++) {
            struct gguf_string string = gguf_next(&cursor);

            sum += string.count > 0 ? (unsigned char)string.byte[string.count - 1] : 0;
        }
        sum += gguf_int(value, value->count - 1, &number);
        sum += gguf_truth(value, value->count - 1, &truth);
        sum += gguf_real(value, value->count - 1, &real);
    }
    return sum;
}

static void use(struct gguf *gguf, char *error, size_t error_bytes)
{
    struct source *source;
    struct source_summary summary;
    const struct arch *arch;
    struct shape *shape;

    if (source_open_gguf(&source, gguf, "fuzz.gguf", error, error_bytes) != 0)
        return;
    source_summary(source, &summary);
    arch = arch_find(source_architecture(source));
    shape = calloc(1, sizeof(*shape));
    if (arch != NULL && shape != NULL)
        arch->read_shape(shape, source);
    if (source_status(source) == 0)
        tokenizer_free(source_tokenizer(source));
    assert(source_status(source) == 0 || error[0] != '\0');
    free(shape);
    source_close(source);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    char error[512] = "";
    struct gguf *gguf;

    if (gguf_open_memory(&gguf, data, bytes, error, sizeof(error)) != 0) {
        assert(gguf == NULL && error[0] != '\0' && strchr(error, '\n') == NULL);
        return 0;
    }
    assert(walk(gguf) != 1u << 31);
    use(gguf, error, sizeof(error));
    return 0;
}

/* A tiny Gemma of one layer, so that mutations start from something that is accepted. */
static size_t write_gemma(uint8_t *data, size_t max, unsigned seed)
{
    struct tiny_gemma tiny = {.seed = seed,
                              .layer_count = 1,
                              .width = 32,
                              .head_count = 1,
                              .kv_head_count = 1,
                              .head_width = 32,
                              .ffn_width = 32,
                              .vocab_count = 320,
                              .plain = true,
                              .fused = (seed & 1) != 0,
                              .no_vocabulary = (seed & 2) != 0,
                              .period = (int32_t)(seed >> 2) & 3};
    struct gguf_writer writer = {.version = 2 + (seed >> 4 & 1)};
    unsigned char *file;
    size_t bytes;

    gguf_write_gemma(&writer, &tiny);
    file = gguf_writer_finish(&writer, &bytes);
    gguf_writer_free(&writer);
    if (bytes <= max)
        memcpy(data, file, bytes);
    free(file);
    return bytes <= max ? bytes : 0;
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t bytes, size_t max, unsigned seed)
{
    if (seed % 256 == 0)
        bytes = write_gemma(data, max, seed >> 8);
    return LLVMFuzzerMutate(data, bytes, max);
}
