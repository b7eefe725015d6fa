/* Hugging Face folders: what a broken or hostile file is refused for, and what settings become. */
#include "model/arch.h"
#include "model/load/hf_config.h"
#include "model/load/safetensors.h"
#include "model/rope.h"
#include "tests/golden/driver.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <sys/stat.h>
#include <unistd.h>

static char folder[64];
static char message[1024];

/* ---- safetensors ---- */

enum { FILE_MAX = 4096 };

struct file {
    unsigned char byte[FILE_MAX];
    size_t count;
};

/* A file of `header` and `data` bytes of data; `lie` is added to the header's size. */
static struct file make_file(const char *header, size_t data, int64_t lie)
{
    struct file file = {.count = 8 + strlen(header) + data};
    uint64_t size = (uint64_t)((int64_t)strlen(header) + lie);

    memcpy(file.byte, &size, 8);
    memcpy(file.byte + 8, header, strlen(header));
    return file;
}

static int open_memory(const struct file *file, struct safetensors **safetensors)
{
    /* Of exactly its size, so that a sanitizer sees what is read beyond it. */
    unsigned char *copy = malloc(file->count > 0 ? file->count : 1);
    int status;

    memcpy(copy, file->byte, file->count);
    message[0] = '\0';
    status = safetensors_open_memory(safetensors, copy, file->count, message, sizeof(message));
    if (status == 0)
        EXPECT((*safetensors)->bytes == (int64_t)file->count);
    safetensors_close(*safetensors);
    free(copy);
    return status;
}

static void expect_refused(const struct file *file, const char *reason)
{
    struct safetensors *safetensors;

    EXPECT_INT(open_memory(file, &safetensors), ==, -EINVAL);
    EXPECT(safetensors == NULL);
    if (strstr(message, reason) == NULL || strchr(message, '\n') != NULL)
        EXPECT_STRING(message, reason);
}

static void headers_that_lie_are_refused(void)
{
    static const struct {
        const char *header, *reason;
    } cases[] = {
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,4]}}",
         "do not fit its shape"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[4,12]}}",
         "not within the file"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,0]}}", "not within the file"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[-4,0]}}",
         "not within the file"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0]}}", "no pair of integers"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4.5]}}", "no pair"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[-1],\"data_offsets\":[0,4]}}", "no count"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,0]}}",
         "values are too many"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1,1,1,1,1,1,1,1,1],\"data_offsets\":[0,4]}}",
         "more than eight dimensions"},
        {"{\"a\":{\"dtype\":\"F4\",\"shape\":[1],\"data_offsets\":[0,4]}}", "its dtype is unknown"},
        {"{\"a\":{\"shape\":[1],\"data_offsets\":[0,4]}}", "its dtype is missing"},
        {"{\"a\":{\"dtype\":\"F32\",\"data_offsets\":[0,4]}}", "its shape is missing"},
        {"{\"a\":7}", "its entry is no object"},
        {"[]", "no JSON object"},
        {"{\"a\":", "no JSON from byte"},
        {"{} x", "more than one JSON value"},
        {"{\"a\\u0000b\":{}}", "holds a NUL"},
        {"{\"a\":{},\"a\":{}}", "\"a\" is there twice"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]},"
         "\"b\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[3,7]}}",
         "overlap another tensor's"},
        {"[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[", "nested too deeply"},
    };
    struct file file;

    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        file = make_file(cases[i].header, 8, 0);
        expect_refused(&file, cases[i].reason);
    }
    file = make_file("{}", 0, 1);
    expect_refused(&file, "no safetensors, or cut short");
    file = make_file("{}", 0, INT64_MAX / 2);
    expect_refused(&file, "no safetensors, or cut short");
    file.count = 7;
    expect_refused(&file, "no safetensors, or cut short");
}

static void scalars_empty_tensors_and_metadata_are_legal(void)
{
    struct file file =
        make_file("{\"__metadata__\":{\"format\":\"pt\"},"
                  "\"scalar\":{\"dtype\":\"I64\",\"shape\":[],\"data_offsets\":[0,8]},"
                  "\"empty\":{\"dtype\":\"BF16\",\"shape\":[0,9],"
                  "\"data_offsets\":[4,4]}}   ",
                  8, 0);
    struct safetensors *safetensors;
    const struct safetensors_tensor *tensor;

    EXPECT_INT(
        safetensors_open_memory(&safetensors, file.byte, file.count, message, sizeof(message)), ==,
        0);
    EXPECT_INT(safetensors->tensor_count, ==, 2);
    tensor = safetensors_find(safetensors, "scalar");
    EXPECT(tensor != NULL && tensor->value_count == 1 && tensor->type == SAFETENSORS_I64);
    tensor = safetensors_find(safetensors, "empty");
    EXPECT(tensor != NULL && tensor->value_count == 0 && tensor->bytes == 0);
    EXPECT(safetensors_find(safetensors, "__metadata__") == NULL);
    safetensors_close(safetensors);
}

/* ---- folders ---- */

static void save(const char *name, const void *data, size_t count)
{
    char path[160];
    FILE *file;

    snprintf(path, sizeof(path), "%s/%s", folder, name);
    file = fopen(path, "wb");
    if (file == NULL || fwrite(data, 1, count, file) != count || fclose(file) != 0)
        abort();
}

static void save_text(const char *name, const char *text)
{
    save(name, text, strlen(text));
}

static void erase(const char *name)
{
    char path[160];

    snprintf(path, sizeof(path), "%s/%s", folder, name);
    unlink(path);
}

static void save_tensor(const char *file_name, const char *tensor)
{
    char header[256];
    struct file file;

    snprintf(header, sizeof(header),
             "{\"%s\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", tensor);
    file = make_file(header, 8, 0);
    save(file_name, file.byte, file.count);
}

static void expect_index(const char *map, int status, const char *reason)
{
    struct safetensors *safetensors;
    char text[512];

    snprintf(text, sizeof(text), "{\"metadata\":{\"total_size\":1},\"weight_map\":%s}", map);
    save_text("model.safetensors.index.json", text);
    message[0] = '\0';
    EXPECT_INT(safetensors_open(&safetensors, folder, message, sizeof(message)), ==, status);
    if (strstr(message, reason) == NULL)
        EXPECT_STRING(message, reason);
    if (status == 0) {
        EXPECT_INT(safetensors->file_count, ==, 2);
        EXPECT_INT(safetensors_find(safetensors, "b")->file, ==, 1);
    }
    safetensors_close(safetensors);
}

static void an_index_must_agree_with_its_files(void)
{
    save_tensor("one.safetensors", "a");
    save_tensor("two.safetensors", "b");
    expect_index("{\"a\":\"one.safetensors\",\"b\":\"two.safetensors\"}", 0, "");
    expect_index("{\"a\":\"one.safetensors\",\"b\":\"one.safetensors\"}", -EINVAL,
                 "tensor b: the index names it, but no file has it");
    expect_index("{\"a\":\"two.safetensors\",\"b\":\"one.safetensors\"}", -EINVAL,
                 "tensor a: it is in another file");
    expect_index("{\"a\":\"one.safetensors\",\"c\":\"two.safetensors\"}", -EINVAL,
                 "tensor c: the index names it");
    expect_index("{\"a\":\"../one.safetensors\"}", -EINVAL, "tensor a: its file is no plain name");
    expect_index("{\"a\":\"/etc/passwd\"}", -EINVAL, "no plain name");
    expect_index("{\"a\":\".safetensors\"}", -EINVAL, "no plain name");
    expect_index("{\"a\":3}", -EINVAL, "no plain name");
    expect_index("{}", -EINVAL, "names 0 files");
    expect_index("[]", -EINVAL, "weight_map is missing");
    expect_index("{\"a\":\"three.safetensors\"}", -ENOENT, "three.safetensors: No such file");
    save_tensor("two.safetensors", "a");
    expect_index("{\"a\":\"one.safetensors\",\"b\":\"two.safetensors\"}", -EINVAL,
                 "tensor a: it is in two files");
    erase("one.safetensors");
    erase("two.safetensors");
    erase("model.safetensors.index.json");
}

static void other_kinds_of_weights_are_refused_with_a_hint(void)
{
    struct safetensors *safetensors;

    EXPECT_INT(safetensors_open(&safetensors, folder, message, sizeof(message)), ==, -ENOENT);
    save_text("pytorch_model.bin", "x");
    EXPECT_INT(safetensors_open(&safetensors, folder, message, sizeof(message)), ==, -ENOTSUP);
    EXPECT(strstr(message, "convert it to model.safetensors") != NULL);
    erase("pytorch_model.bin");
}

/* ---- config.json ---- */

#define SIZES                                                                                      \
    "\"hidden_size\":64,\"num_hidden_layers\":4,\"num_attention_heads\":4,"                        \
    "\"num_key_value_heads\":2,\"intermediate_size\":96,\"max_position_embeddings\":2048,"         \
    "\"rms_norm_eps\":1e-5,\"vocab_size\":320"

/* A config of a class with `more` members; the message of its refusal, or of its shape's, "" where
 * it is taken. */
static const char *read_config(const char *class_name, const char *more, struct shape *shape)
{
    char text[2048];
    struct source *source;

    snprintf(text, sizeof(text), "{\"architectures\":[\"%s\"]," SIZES "%s%s}", class_name,
             more[0] == '\0' ? "" : ",", more);
    save_text("config.json", text);
    memset(shape, 0, sizeof(*shape));
    message[0] = '\0';
    if (source_open_dummy(&source, folder, message, sizeof(message)) != 0)
        return message;
    arch_find(source_architecture(source))->read_shape(shape, source);
    source_close(source);
    return message;
}

static void expect_config(const char *class_name, const char *more, const char *reason)
{
    static struct shape shape;

    read_config(class_name, more, &shape);
    if (strstr(message, reason) == NULL || strchr(message, '\n') != NULL)
        EXPECT_STRING(message, reason);
}

static void configs_that_are_not_supported_are_refused_by_name(void)
{
    expect_config("FalconForCausalLM", "",
                  "config.json: architecture FalconForCausalLM is not supported; supported: Llama");
    expect_config("LlamaForCausalLM", "\"quantization_config\":{\"quant_method\":\"gptq\"}",
                  "quant_method gptq is not supported");
    expect_config("LlamaForCausalLM", "\"hidden_act\":\"gelu\"", "hidden_act is gelu");
    expect_config("LlamaForCausalLM", "\"rope_scaling\":{\"type\":\"dynamic\",\"factor\":2}",
                  "rope scaling dynamic is not supported");
    expect_config("LlamaForCausalLM", "\"rope_scaling\":{\"rope_type\":\"linear\"}",
                  "factor is missing");
    expect_config("LlamaForCausalLM", "\"rope_scaling\":3", "is no object");
    expect_config("LlamaForCausalLM", "\"rope_theta\":\"x\"", "rope_theta is no number");
    expect_config("LlamaForCausalLM", "\"rope_theta\":0", "config.json: rope_theta is 0, not from");
    expect_config("LlamaForCausalLM", "\"head_dim\":63", "not even");
    expect_config("LlamaForCausalLM", "\"tie_word_embeddings\":1", "neither true nor false");
    expect_config("LlamaForCausalLM", "\"eos_token_id\":[1,-2]", "eos_token_id is neither");
    expect_config("MistralForCausalLM", "\"sliding_window\":0.5", "sliding_window is 0.5");
    expect_config("Qwen2ForCausalLM", "\"layer_types\":[\"full_attention\"]",
                  "no list of 4 layers");
    expect_config("Qwen2ForCausalLM",
                  "\"layer_types\":[\"full_attention\",\"full_attention\",\"full_attention\","
                  "\"linear_attention\"]",
                  "layer_types: linear_attention is not supported");
    expect_config("Qwen2ForCausalLM",
                  "\"sliding_window\":8,\"layer_types\":[\"full_attention\",\"full_attention\","
                  "\"full_attention\",\"sliding_attention\"]",
                  "not in use");
    expect_config("LlamaForCausalLM", "\"vocab_size\":3", "\"vocab_size\" is there twice");
    expect_config("Gemma3ForConditionalGeneration", "", "text_config is missing");
}

/* One slot of one token: enough to open the folder. */
static struct model_options small_options(void)
{
    return (struct model_options){.path = folder,
                                  .device = MODEL_DEVICE_CPU,
                                  .slot_max = 1,
                                  .token_max = 1,
                                  .sample_max = 1,
                                  .block_tokens = 16,
                                  .block_count = 1};
}

static void a_missing_setting_is_named_as_the_file_would(void)
{
    struct model_options options = small_options();
    struct model *model;

    options.dummy_weights = true;
    save_text("config.json", "{\"architectures\":[\"LlamaForCausalLM\"],\"vocab_size\":320}");
    EXPECT_INT(model_open(&model, &options, message, sizeof(message)), ==, -EINVAL);
    EXPECT(strstr(message, "config.json: num_hidden_layers is missing") != NULL);
    save_text("config.json", "{}");
    EXPECT_INT(model_open(&model, &options, message, sizeof(message)), ==, -EINVAL);
    EXPECT(strstr(message, "architectures is missing") != NULL);
    erase("config.json");
    EXPECT_INT(model_open(&model, &options, message, sizeof(message)), ==, -ENOENT);
    EXPECT(strstr(message, "config.json: No such file") != NULL);
}

static void windows_are_those_of_the_class(void)
{
    static struct shape shape;

    EXPECT_STRING(read_config("LlamaForCausalLM", "\"sliding_window\":9", &shape), "");
    EXPECT_INT(shape.layer[0].window, ==, 0);
    EXPECT_STRING(read_config("MistralForCausalLM", "\"sliding_window\":9", &shape), "");
    EXPECT_INT(shape.layer[0].window + shape.layer[3].window, ==, 18);
    EXPECT_STRING(read_config("MistralForCausalLM", "\"sliding_window\":null", &shape), "");
    EXPECT_INT(shape.layer[0].window, ==, 0);
    EXPECT_STRING(read_config("MistralForCausalLM", "", &shape), "");
    EXPECT_INT(shape.layer[0].window, ==, 4096);
    EXPECT_STRING(read_config("Qwen2ForCausalLM", "\"sliding_window\":9", &shape), "");
    EXPECT_INT(shape.layer[3].window, ==, 0);
    EXPECT_STRING(read_config("Qwen3ForCausalLM",
                              "\"sliding_window\":9,\"use_sliding_window\":true,"
                              "\"max_window_layers\":2",
                              &shape),
                  "");
    EXPECT(shape.layer[1].window == 0 && shape.layer[2].window == 9);
    EXPECT_INT(shape.head_width, ==, 128); /* the class's */
    EXPECT(shape.head_norms && !shape.post_norms && !shape.qkv_bias);
    EXPECT_STRING(read_config("Gemma3ForCausalLM",
                              "\"sliding_window\":9,\"sliding_window_pattern\":2,\"head_dim\":64",
                              &shape),
                  "");
    EXPECT(shape.layer[0].window == 9 && shape.layer[1].window == 0);
    EXPECT(shape.rope[shape.layer[0].rope].base == 1e4 &&
           shape.rope[shape.layer[1].rope].base == 1e6);
    EXPECT(shape.tied && shape.score_scale == 0.0625f); /* query_pre_attn_scalar 256 */
}

static void both_forms_of_rope_settings_are_read(void)
{
    static struct shape old, now;
    static const char scaling[] = "\"factor\":8,\"low_freq_factor\":1,\"high_freq_factor\":4,"
                                  "\"original_max_position_embeddings\":256";
    char text[512];

    snprintf(text, sizeof(text),
             "\"rope_theta\":500000,\"rope_scaling\":{\"rope_type\":\"llama3\",%s}", scaling);
    EXPECT_STRING(read_config("LlamaForCausalLM", text, &old), "");
    snprintf(text, sizeof(text),
             "\"rope_parameters\":{\"rope_theta\":500000,\"rope_type\":\"llama3\",%s}", scaling);
    EXPECT_STRING(read_config("LlamaForCausalLM", text, &now), "");
    EXPECT(memcmp(&old, &now, sizeof(old)) == 0);
    EXPECT(old.rope[0].scaling == ROPE_LLAMA3 && old.rope[0].base == 500000 &&
           old.rope[0].original == 256);
    EXPECT_STRING(read_config("Gemma3ForCausalLM",
                              "\"rope_scaling\":{\"rope_type\":\"linear\",\"factor\":8.0},"
                              "\"rope_local_base_freq\":5000",
                              &old),
                  "");
    EXPECT(old.rope[0].factor == 8 && old.rope[1].factor == 1 && old.rope[1].base == 5000);
}

static void a_wrapper_is_its_language_model(void)
{
    static struct shape shape;
    static const char text[] =
        "\"text_config\":{\"hidden_size\":2560,\"intermediate_size\":10240,"
        "\"num_hidden_layers\":34,\"rope_scaling\":{\"factor\":8.0,\"rope_type\":\"linear\"},"
        "\"sliding_window\":1024},\"torch_dtype\":\"bfloat16\"";

    EXPECT_STRING(read_config("Gemma3ForConditionalGeneration", text, &shape), "");
    EXPECT_INT(shape.head_count, ==, 8);
    EXPECT_INT(shape.kv_head_count, ==, 4);
    EXPECT_INT(shape.head_width, ==, 256);
    EXPECT_INT(shape.vocab_count, ==, 262208);
    EXPECT_INT(shape.context_model, ==, 131072);
    EXPECT(shape.layer[0].window == 1024 && shape.layer[5].window == 0);
    EXPECT(shape.embed_scale == 50.5f); /* the root of 2560, 50.596, in bf16 */
}

/* Numbers of an independent program. */
static void scaled_frequencies_are_the_formulas(void)
{
    static const int pair[] = {0, 8, 12, 16, 20, 31};
    static const double yarn[] = {1,
                                  0.10000000000000001,
                                  0.024325212770525993,
                                  0.0053846153846153844,
                                  0.00097300851082103969,
                                  3.3338035804083099e-05};
    static const double whole[] = {1,
                                   0.050813274815461475,
                                   0.0067949594897322189,
                                   0.00045648391922324086,
                                   1.818833668168956e-05,
                                   3.0235114281192144e-07};
    static const int llama_pair[] = {0, 28, 30, 32, 36, 63};
    static const double llama[] = {1,
                                   0.0032114459947525909,
                                   0.0013718935677611381,
                                   0.00052484616099295468,
                                   7.7846552739324498e-05,
                                   3.0689259889145111e-07};
    static struct shape one, other, third;

    EXPECT_STRING(read_config("LlamaForCausalLM",
                              "\"head_dim\":64,\"rope_scaling\":{\"type\":\"yarn\",\"factor\":4,"
                              "\"original_max_position_embeddings\":2048}",
                              &one),
                  "");
    EXPECT_STRING(read_config("LlamaForCausalLM",
                              "\"head_dim\":64,\"rope_parameters\":{\"rope_type\":\"yarn\","
                              "\"rope_theta\":150000,\"factor\":32,\"truncate\":false,"
                              "\"original_max_position_embeddings\":4096}",
                              &other),
                  "");
    EXPECT_STRING(read_config("LlamaForCausalLM",
                              "\"head_dim\":128,\"rope_theta\":500000,\"rope_scaling\":{"
                              "\"rope_type\":\"llama3\",\"factor\":8,\"low_freq_factor\":1,"
                              "\"high_freq_factor\":4,"
                              "\"original_max_position_embeddings\":8192}",
                              &third),
                  "");
    for (int i = 0; i < 6; i++) {
        EXPECT(fabs(rope_frequency(&one.rope[0], pair[i]) / yarn[i] - 1) < 1e-12);
        EXPECT(fabs(rope_frequency(&other.rope[0], pair[i]) / whole[i] - 1) < 1e-12);
        EXPECT(fabs(rope_frequency(&third.rope[0], llama_pair[i]) / llama[i] - 1) < 1e-12);
    }
    EXPECT(fabs(one.rope[0].magnitude - 1.1386294361119891) < 1e-12); /* 0.1 ln 4 + 1 */
}

/* ---- whole models ---- */

static void generation_settings_are_shown(void)
{
    static struct shape shape;
    struct driver driver;
    const struct model_info *info;

    read_config("Qwen2ForCausalLM", "\"eos_token_id\":2,\"bos_token_id\":1", &shape);
    save_text("generation_config.json", "{\"eos_token_id\":[2,7,100000],\"temperature\":0.6,"
                                        "\"top_k\":20,\"do_sample\":true}");
    driver_is_dummy = driver_skips_tokenizer = true;
    EXPECT(driver_open(&driver, folder, 32));
    if (driver.model == NULL)
        return;
    info = model_info(driver.model);
    EXPECT_INT(info->end_count, ==, 2); /* the third is no token of the model's */
    EXPECT(info->end_token[0] == 2 && info->end_token[1] == 7);
    EXPECT(info->defaults.has_temperature && info->defaults.temperature == 0.6f);
    EXPECT(info->defaults.has_top_k && info->defaults.top_k == 20);
    EXPECT(!info->defaults.has_top_p && !info->defaults.has_min_p);
    EXPECT_STRING(info->format, "BF16");
    EXPECT_STRING(info->note, "");
    EXPECT(info->parameter_count ==
           2 * 320 * 64 + 64 + 4 * (2 * 64 + 64 * 128 + 64 * 64 + 3 * 64 * 96));
    EXPECT(model_tokenizer(driver.model) == NULL);
    model_close(driver.model);
    save_text("generation_config.json", "{\"temperature\":-1}");
    EXPECT(!driver_open(&driver, folder, 32));
    erase("generation_config.json");
}

static void another_folders_generation_settings_take_their_place(void)
{
    static struct shape shape;
    struct model_generation generation = {0};
    struct model_options options = small_options();
    struct model *model;

    options.context_max = 16;
    options.dummy_weights = true;
    options.skip_tokenizer = true;
    options.generation = &generation;
    erase("generation_config.json");
    EXPECT_INT(model_read_generation(&generation, folder, message, sizeof(message)), ==, -ENOENT);
    EXPECT(strstr(message, "generation_config.json: No such file") != NULL);
    save_text("generation_config.json", "{\"top_k\":2147483648}");
    EXPECT_INT(model_read_generation(&generation, folder, message, sizeof(message)), ==, -EINVAL);
    save_text("generation_config.json", "{\"eos_token_id\":[9,5000],\"top_p\":0.5,"
                                        "\"max_new_tokens\":77,\"do_sample\":true}");
    EXPECT_INT(model_read_generation(&generation, folder, message, sizeof(message)), ==, 0);
    EXPECT(generation.defaults.has_top_p && generation.defaults.top_p == 0.5f);
    EXPECT(generation.defaults.has_max_new_tokens && !generation.defaults.has_temperature);
    EXPECT_INT(generation.defaults.max_new_tokens, ==, 77);
    read_config("Qwen2ForCausalLM", "\"eos_token_id\":2", &shape);
    save_text("generation_config.json", "{\"temperature\":0.6}");
    EXPECT_INT(model_open(&model, &options, message, sizeof(message)), ==, 0);
    EXPECT(!model_info(model)->defaults.has_temperature && model_info(model)->defaults.has_top_p);
    EXPECT_INT(model_info(model)->end_count, ==, 2); /* 5000 is no token of the model's */
    EXPECT(model_info(model)->end_token[0] == 2 && model_info(model)->end_token[1] == 9);
    model_close(model);
    erase("generation_config.json");
}

static void what_a_step_reads_is_known(void)
{
    static struct shape shape;
    struct model_options options = small_options();
    struct model *model;
    const struct model_info *info;

    options.block_count = 16;
    options.context_max = 256;
    options.dummy_weights = true;
    options.skip_tokenizer = true;
    options.read_rate = true;
    read_config("Qwen2ForCausalLM",
                "\"sliding_window\":9,\"use_sliding_window\":true,\"max_window_layers\":3,"
                "\"tie_word_embeddings\":true",
                &shape);
    EXPECT_INT(model_open(&model, &options, message, sizeof(message)), ==, 0);
    info = model_info(model);
    EXPECT_INT(info->step_bytes, ==, info->weight_bytes);
    EXPECT(info->read_rate == 0 || info->read_rate > 1e8); /* 0: memory is short here */
    /* Four layers, the last one with a window of 9; the pool's bytes are those of 256 tokens. */
    EXPECT_INT(model_kv_bytes(model, 4) * 64, ==, info->kv_bytes);
    EXPECT_INT(model_kv_bytes(model, 256) * 4 * 256, ==, info->kv_bytes * (3 * 256 + 9));
    model_close(model);
    read_config("Qwen2ForCausalLM", "\"tie_word_embeddings\":false", &shape);
    options.read_rate = false;
    EXPECT_INT(model_open(&model, &options, message, sizeof(message)), ==, 0);
    info = model_info(model);
    EXPECT(info->read_rate == 0);
    EXPECT(info->step_bytes > 0 && info->step_bytes < info->weight_bytes);
    EXPECT_INT(model_kv_bytes(model, 256), ==, info->kv_bytes);
    model_close(model);
}

static void an_override_holds_defaults_alone(void)
{
    static const char *const wrong[] = {
        "",
        "[]",
        "{",
        "{\"eos_token_id\":2}",
        "{\"temperature\":\"1\"}",
        "{\"temperature\":1e999}",
        "{\"temperature\":-0.1}",
        "{\"top_k\":-2}",
        "{\"top_k\":1,\"top_k\":2}",
        "{\"repetition_penalty\":0}",
        "{\"max_new_tokens\":0}",
        "{\"min_p\":1.01}",
    };
    struct model_defaults defaults = {0};

    for (size_t i = 0; i < sizeof(wrong) / sizeof(*wrong); i++) {
        message[0] = '\0';
        EXPECT_INT(model_read_defaults(&defaults, wrong[i], message, sizeof(message)), ==, -EINVAL);
        EXPECT(message[0] != '\0');
    }
    EXPECT(!defaults.has_top_k); /* nothing was changed */
    EXPECT_INT(model_read_defaults(&defaults, "{}", message, sizeof(message)), ==, 0);
    EXPECT_INT(
        model_read_defaults(&defaults, "{\"top_k\":-1,\"min_p\":null}", message, sizeof(message)),
        ==, 0);
    EXPECT(defaults.has_top_k && defaults.top_k == -1 && !defaults.has_min_p);
}

static void run_dummy(const char *dtype, float *logprob)
{
    static const int32_t token[] = {5, 6, 7, 8, 9};
    static struct shape shape;
    struct driver driver;
    struct sequence sequence = sequence_create(token, 5, 4);
    char more[64];

    snprintf(more, sizeof(more), "\"torch_dtype\":\"%s\"", dtype);
    read_config("Qwen2ForCausalLM", more, &shape);
    driver_is_dummy = driver_skips_tokenizer = true;
    EXPECT(driver_open(&driver, folder, 32));
    EXPECT_INT(driver_run(&driver, &sequence, 1, 32, 32, 1), ==, 0);
    for (int i = 0; i < 4; i++) {
        EXPECT(isfinite(sequence.logprob[i]) && sequence.logprob[i] < -0.1f);
        logprob[i] = sequence.logprob[i];
    }
    sequence_free(&sequence);
    model_close(driver.model);
}

static void dummy_weights_are_the_same_each_time(void)
{
    float one[4], other[4], f16[4], f32[4];

    run_dummy("bfloat16", one);
    run_dummy("bfloat16", other);
    run_dummy("float16", f16);
    run_dummy("float32", f32);
    EXPECT(memcmp(one, other, sizeof(one)) == 0);
    EXPECT(memcmp(one, f16, sizeof(one)) != 0 && memcmp(f16, f32, sizeof(f16)) != 0);
}

static void without_their_files_weights_are_missed(void)
{
    static struct shape shape;
    struct model_options options = small_options();
    struct model *model;

    read_config("LlamaForCausalLM", "", &shape);
    EXPECT_INT(model_open(&model, &options, message, sizeof(message)), ==, -ENOENT);
    EXPECT(strstr(message, "neither model.safetensors nor") != NULL);
    save_tensor("model.safetensors", "model.embed_tokens.weight");
    EXPECT_INT(model_open(&model, &options, message, sizeof(message)), ==, -EINVAL);
    options.dummy_weights = true;
    EXPECT_INT(model_open(&model, &options, message, sizeof(message)), ==, -ENOENT);
    EXPECT(strstr(message, "tokenizer.json: No such file") != NULL);
    options.dummy_weights = false;
    save_tensor("model.safetensors", "stranger");
    EXPECT_INT(model_open(&model, &options, message, sizeof(message)), ==, -EINVAL);
    EXPECT(strstr(message, "tensor model.embed_tokens.weight is missing") != NULL);
    erase("model.safetensors");
}

int main(void)
{
    snprintf(folder, sizeof(folder), "/tmp/quire-hf-XXXXXX");
    if (mkdtemp(folder) == NULL)
        return 1;
    TEST(headers_that_lie_are_refused);
    TEST(scalars_empty_tensors_and_metadata_are_legal);
    TEST(an_index_must_agree_with_its_files);
    TEST(other_kinds_of_weights_are_refused_with_a_hint);
    TEST(configs_that_are_not_supported_are_refused_by_name);
    TEST(a_missing_setting_is_named_as_the_file_would);
    TEST(windows_are_those_of_the_class);
    TEST(both_forms_of_rope_settings_are_read);
    TEST(a_wrapper_is_its_language_model);
    TEST(scaled_frequencies_are_the_formulas);
    TEST(generation_settings_are_shown);
    TEST(another_folders_generation_settings_take_their_place);
    TEST(what_a_step_reads_is_known);
    TEST(an_override_holds_defaults_alone);
    TEST(dummy_weights_are_the_same_each_time);
    TEST(without_their_files_weights_are_missed);
    erase("config.json");
    rmdir(folder);
    return test_report();
}
