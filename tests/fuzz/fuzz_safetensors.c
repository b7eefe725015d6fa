/* Any bytes as a safetensors file, as a config.json, and as the two that may lie beside it: the
 * readers must refuse or accept without touching memory that is not theirs. */
#include "model/load/hf_config.h"
#include "model/load/safetensors.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t bytes, size_t max, unsigned seed);
size_t LLVMFuzzerMutate(uint8_t *data, size_t bytes, size_t max);

static char error[512];

static void check_line(int status)
{
    assert(status < 0 && error[0] != '\0' && strchr(error, '\n') == NULL);
}

/* The first and last byte of everything that the reader vouched for. */
static unsigned walk(const struct safetensors *safetensors)
{
    unsigned sum = 0;

    for (int64_t i = 0; i < safetensors->tensor_count; i++) {
        const struct safetensors_tensor *tensor = &safetensors->tensor[i];

        assert(safetensors_find(safetensors, tensor->name) == tensor);
        if (tensor->bytes > 0)
            sum += tensor->data[0] + tensor->data[tensor->bytes - 1];
    }
    return sum;
}

static void try_safetensors(const uint8_t *data, size_t bytes)
{
    struct safetensors *safetensors;
    int status;

    error[0] = '\0';
    status = safetensors_open_memory(&safetensors, data, bytes, error, sizeof(error));
    if (status != 0) {
        check_line(status);
        assert(safetensors == NULL);
        return;
    }
    assert(walk(safetensors) != 1u << 31);
    safetensors_close(safetensors);
}

static void try_config(const char *json, size_t bytes)
{
    struct hf_config *config = calloc(1, sizeof(*config));
    double number;
    int status;

    if (config == NULL)
        return;
    error[0] = '\0';
    status = hf_config_read(config, json, bytes, error, sizeof(error));
    if (status != 0)
        check_line(status);
    for (int32_t i = 0; i < config->setting_count; i++) {
        const struct gguf_value *value = &config->setting[i].value;

        assert(hf_config_find(config, config->setting[i].key) != NULL);
        for (int64_t k = 0; k < value->count; k++)
            gguf_real(value, k, &number);
        assert(gguf_text(value).count <= HF_TEXT_BYTES);
    }
    error[0] = '\0';
    status = hf_config_read_generation(config, json, bytes, error, sizeof(error));
    if (status != 0)
        check_line(status);
    error[0] = '\0';
    status = hf_config_read_tokenizer(config, json, bytes, error, sizeof(error));
    if (status != 0)
        check_line(status);
    assert(config->end_count >= 0 && config->end_count <= MODEL_END_MAX);
    assert(strlen(config->bos_name) < HF_TOKEN_BYTES);
    free(config);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    try_safetensors(data, bytes);
    if (bytes > 0)
        try_config((const char *)data, bytes);
    return 0;
}

static const char header[] =
    "{\"__metadata__\":{\"format\":\"pt\"},\"a\":{\"dtype\":\"BF16\",\"shape\":[2,3],"
    "\"data_offsets\":[0,12]},\"b\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[12,16]}}";

static const char *const configs[] = {
    "{\"architectures\":[\"LlamaForCausalLM\"],\"hidden_size\":64,\"num_hidden_layers\":2,"
    "\"num_attention_heads\":4,\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8,"
    "\"low_freq_factor\":1,\"high_freq_factor\":4,\"original_max_position_embeddings\":256},"
    "\"eos_token_id\":[1,2],\"tie_word_embeddings\":true}",
    "{\"architectures\":[\"Gemma3ForConditionalGeneration\"],\"text_config\":{\"hidden_size\":64,"
    "\"num_hidden_layers\":6,\"layer_types\":[\"sliding_attention\",\"full_attention\"],"
    "\"rope_parameters\":{\"full_attention\":{\"rope_theta\":1e6},\"sliding_attention\":{}}}}",
    "{\"model_type\":\"qwen2\",\"num_hidden_layers\":2,\"use_sliding_window\":true,"
    "\"sliding_window\":8,\"rope_scaling\":{\"type\":\"yarn\",\"factor\":4,\"mscale\":1,"
    "\"mscale_all_dim\":0.5},\"quantization_config\":null}",
    "{\"eos_token_id\":[1,2],\"temperature\":0.6,\"top_k\":20,\"bos_token\":{\"content\":\"<s>\"}}",
};

/* Begins anew from something that is accepted, now and then. */
static size_t write_valid(uint8_t *data, size_t max, unsigned seed)
{
    const char *config = configs[seed % (sizeof(configs) / sizeof(*configs))];
    uint64_t size = sizeof(header) - 1;

    if (max < 2048)
        return 0;
    if (seed & 64) {
        memcpy(data, config, strlen(config));
        return strlen(config);
    }
    memcpy(data, &size, sizeof(size));
    memcpy(data + 8, header, (size_t)size);
    memset(data + 8 + size, 0, 16);
    return (size_t)size + 24;
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t bytes, size_t max, unsigned seed)
{
    if (seed % 256 == 0)
        bytes = write_valid(data, max, seed >> 8);
    return LLVMFuzzerMutate(data, bytes, max);
}
