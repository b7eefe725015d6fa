/* Keys and their aliases, class defaults, layer types. Rope settings are read in hf_rope.c. */
#include "model/load/hf_config.h"

#include "model/load/hf_reader.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

enum { PATTERN_DEFAULT = 6, MAX_WINDOW_LAYERS = 28, WINDOW_DEFAULT = 4096 };

static const struct hf_family families[] = {
    {"LlamaForCausalLM", "llama", "llama", "silu", HF_WINDOW_NONE, false, false, false, false},
    {"MistralForCausalLM", "mistral", "mistral", "silu", HF_WINDOW_ALL, false, false, false, false},
    {"Qwen2ForCausalLM", "qwen2", "qwen2", "silu", HF_WINDOW_BEHIND, false, false, true, false},
    {"Qwen3ForCausalLM", "qwen3", "qwen3", "silu", HF_WINDOW_BEHIND, false, false, false, false},
    {"Gemma3ForCausalLM", "gemma3_text", "gemma3", "gelu_pytorch_tanh", HF_WINDOW_PERIOD, true,
     true, false, false},
    {"Gemma3ForConditionalGeneration", "gemma3", "gemma3", "gelu_pytorch_tanh", HF_WINDOW_PERIOD,
     true, true, false, true},
};

enum { FAMILY_COUNT = sizeof(families) / sizeof(*families), ALIAS_MAX = 5 };

/* Numbers that are a setting as they are: the first name that is there. */
static const struct {
    const char *key;
    const char *name[ALIAS_MAX];
} numbers[] = {
    {"block_count", {"num_hidden_layers", "n_layer"}},
    {"embedding_length", {"hidden_size", "n_embd", "n_embed"}},
    {"feed_forward_length", {"intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size"}},
    {"context_length", {"max_position_embeddings", "n_positions", "n_ctx", "seq_length"}},
    {"vocab_size", {"vocab_size"}},
    {"attention.head_count", {"num_attention_heads", "n_head"}},
    {"attention.head_count_kv", {"num_key_value_heads", "num_kv_heads"}},
    {"attention.key_length", {"head_dim"}},
    {"attention.layer_norm_rms_epsilon",
     {"rms_norm_eps", "layer_norm_epsilon", "layer_norm_eps", "norm_epsilon", "norm_eps"}},
    {"attn_logit_softcapping", {"attn_logit_softcapping"}},
    {"final_logit_softcapping", {"final_logit_softcapping"}},
};

enum { NUMBER_COUNT = sizeof(numbers) / sizeof(*numbers) };

/* What files of a class leave out. */
static const struct {
    const char *architecture;
    const char *key;
    double value;
} class_defaults[] = {
    {"qwen3", "attention.key_length", 128},
    {"gemma3", "attention.key_length", 256},
    {"gemma3", "attention.head_count", 8},
    {"gemma3", "attention.head_count_kv", 4},
    {"gemma3", "attention.layer_norm_rms_epsilon", 1e-6},
    {"gemma3", "context_length", 131072},
    {"gemma3", "vocab_size", 262208},
};

/* ---- the reader ---- */

void hf_refuse(struct hf_reader *reader, int status, const char *format, ...)
{
    va_list list;

    if (reader->status != 0)
        return;
    reader->status = status;
    va_start(list, format);
    vsnprintf(reader->error, reader->error_bytes, format, list);
    va_end(list);
}

const cJSON *hf_find(const struct hf_reader *reader, const char *name)
{
    return json_tree_member(reader->text, name);
}

bool hf_number(struct hf_reader *reader, const cJSON *object, const char *name, double *number)
{
    const cJSON *value = json_tree_member(object, name);

    if (value == NULL)
        return false;
    if (!cJSON_IsNumber(value) || !isfinite(value->valuedouble)) {
        hf_refuse(reader, -EINVAL, "%s is no number", name);
        return false;
    }
    *number = value->valuedouble;
    return true;
}

bool hf_truth(struct hf_reader *reader, const cJSON *object, const char *name, bool fallback)
{
    const cJSON *value = json_tree_member(object, name);

    if (value != NULL && !cJSON_IsBool(value))
        hf_refuse(reader, -EINVAL, "%s is neither true nor false", name);
    return value == NULL ? fallback : cJSON_IsTrue(value) != 0;
}

const char *hf_text(struct hf_reader *reader, const cJSON *object, const char *name,
                    const char *fallback)
{
    const cJSON *value = json_tree_member(object, name);

    if (value == NULL)
        return fallback;
    if (cJSON_IsString(value))
        return value->valuestring;
    hf_refuse(reader, -EINVAL, "%s is no string", name);
    return fallback;
}

static struct hf_setting *put(struct hf_reader *reader, const char *key, const char *name)
{
    struct hf_config *config = reader->config;
    struct hf_setting *setting = &config->setting[config->setting_count];

    if (config->setting_count == HF_SETTING_MAX) {
        hf_refuse(reader, -EINVAL, "too many settings");
        return NULL;
    }
    config->setting_count++;
    setting->key = key;
    snprintf(setting->name, sizeof(setting->name), "%s", name);
    setting->value = (struct gguf_value){.key = {key, strlen(key)}, .count = 1};
    setting->value.data = setting->store;
    return setting;
}

void hf_put_number(struct hf_reader *reader, const char *key, const char *name, double number)
{
    bool whole = fabs(number) < 9e15 && number == floor(number);
    int64_t integer = whole ? (int64_t)number : 0;
    struct hf_setting *setting = put(reader, key, name);

    if (setting == NULL)
        return;
    setting->value.type = whole ? GGUF_I64 : GGUF_F64;
    memcpy(setting->store, whole ? (const void *)&integer : &number, sizeof(number));
}

void hf_put_text(struct hf_reader *reader, const char *key, const char *name, const char *text)
{
    struct hf_setting *setting = put(reader, key, name);
    uint64_t count = strlen(text);

    if (setting == NULL)
        return;
    if (count > HF_TEXT_BYTES) {
        hf_refuse(reader, -EINVAL, "%s is too long", name);
        return;
    }
    setting->value.type = GGUF_STRING;
    memcpy(setting->store, &count, sizeof(count));
    memcpy(setting->store + sizeof(count), text, (size_t)count);
}

const struct hf_setting *hf_config_find(const struct hf_config *config, const char *key)
{
    for (int32_t i = 0; i < config->setting_count; i++)
        if (strcmp(config->setting[i].key, key) == 0)
            return &config->setting[i];
    return NULL;
}

const char *hf_config_name(const char *key)
{
    for (int i = 0; i < NUMBER_COUNT; i++)
        if (strcmp(numbers[i].key, key) == 0)
            return numbers[i].name[0];
    return NULL;
}

/* ---- the class ---- */

static void refuse_class(struct hf_reader *reader, const char *name)
{
    char names[256] = "", text[64];
    size_t used = 0;

    for (int i = 0; i < FAMILY_COUNT; i++)
        used += (size_t)snprintf(names + used, sizeof(names) - used, "%s%s", i > 0 ? ", " : "",
                                 families[i].class_name);
    hf_refuse(reader, -ENOTSUP, "architecture %s is not supported; supported: %s",
              json_tree_printable(name, text, sizeof(text)), names);
}

static void find_family(struct hf_reader *reader)
{
    const cJSON *list = json_tree_member(reader->root, "architectures");
    const char *name = cJSON_IsArray(list) ? cJSON_GetStringValue(list->child) : NULL;
    const char *type = hf_text(reader, reader->root, "model_type", "");

    for (int i = 0; i < FAMILY_COUNT && reader->config->family == NULL; i++)
        if (name != NULL ? strcmp(name, families[i].class_name) == 0
                         : strcmp(type, families[i].model_type) == 0)
            reader->config->family = &families[i];
    if (reader->config->family != NULL)
        return;
    if (name == NULL && type[0] == '\0')
        hf_refuse(reader, -EINVAL, "architectures is missing or no list of strings");
    else
        refuse_class(reader, name != NULL ? name : type);
}

static void check_quantisation(struct hf_reader *reader)
{
    const cJSON *object = json_tree_member(reader->root, "quantization_config");
    char text[64];

    if (object == NULL)
        object = json_tree_member(reader->text, "quantization_config");
    if (object == NULL)
        return;
    hf_refuse(
        reader, -ENOTSUP, "quantization_config: quant_method %s is not supported",
        json_tree_printable(hf_text(reader, object, "quant_method", "(none)"), text, sizeof(text)));
}

static void check_class(struct hf_reader *reader)
{
    static const char *const names[] = {"hidden_activation", "hidden_act", "activation_function",
                                        "activation"};
    const struct hf_family *family = reader->config->family;
    char text[64];

    check_quantisation(reader);
    for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++) {
        const char *found = hf_text(reader, reader->text, names[i], NULL);

        if (found == NULL)
            continue;
        if (strcmp(found, family->activation) != 0)
            hf_refuse(reader, -ENOTSUP, "%s is %s; of %s only %s is supported", names[i],
                      json_tree_printable(found, text, sizeof(text)), family->class_name,
                      family->activation);
        break;
    }
    if (hf_truth(reader, reader->text, "use_bidirectional_attention", false))
        hf_refuse(reader, -ENOTSUP, "use_bidirectional_attention is not supported");
}

/* ---- settings ---- */

static void read_numbers(struct hf_reader *reader)
{
    for (int i = 0; i < NUMBER_COUNT; i++) {
        bool found = false;
        double number;

        for (int k = 0; k < ALIAS_MAX && numbers[i].name[k] != NULL && !found; k++) {
            found = hf_number(reader, reader->text, numbers[i].name[k], &number);
            if (found)
                hf_put_number(reader, numbers[i].key, numbers[i].name[k], number);
        }
    }
    for (size_t i = 0; i < sizeof(class_defaults) / sizeof(*class_defaults); i++)
        if (strcmp(class_defaults[i].architecture, reader->config->family->architecture) == 0 &&
            hf_config_find(reader->config, class_defaults[i].key) == NULL)
            hf_put_number(reader, class_defaults[i].key, hf_config_name(class_defaults[i].key),
                          class_defaults[i].value);
}

static void read_biases(struct hf_reader *reader)
{
    bool attention = hf_truth(reader, reader->text, "attention_bias", false);

    hf_put_number(reader, "attention.qkv_bias", "attention_bias",
                  reader->config->family->q_bias || attention);
    hf_put_number(reader, "attention.output_bias", "attention_bias",
                  !reader->config->family->q_bias && attention);
    hf_put_number(reader, "ffn_bias", "mlp_bias",
                  hf_truth(reader, reader->text, "mlp_bias", false));
}

static void read_scale(struct hf_reader *reader)
{
    double scalar = 256;

    if (strcmp(reader->config->family->architecture, "gemma3") != 0)
        return;
    hf_number(reader, reader->text, "query_pre_attn_scalar", &scalar);
    if (scalar > 0)
        hf_put_number(reader, "attention.scale", "query_pre_attn_scalar", 1 / sqrt(scalar));
    else
        hf_refuse(reader, -EINVAL, "query_pre_attn_scalar is %g, not above 0", scalar);
}

static void read_head(struct hf_reader *reader)
{
    bool outer =
        hf_truth(reader, reader->root, "tie_word_embeddings", reader->config->family->tied);

    reader->config->tied = hf_truth(reader, reader->text, "tie_word_embeddings", outer);
}

static void read_format(struct hf_reader *reader)
{
    const char *name = hf_text(reader, reader->text, "dtype", NULL);

    if (name == NULL)
        name = hf_text(reader, reader->text, "torch_dtype", NULL);
    if (name == NULL)
        name = hf_text(reader, reader->root, "torch_dtype", "bfloat16");
    reader->config->format = strcmp(name, "float32") == 0   ? FORMAT_F32
                             : strcmp(name, "float16") == 0 ? FORMAT_F16
                                                            : FORMAT_BF16;
}

/* ---- windows ---- */

/* The window, 0: none. */
static double read_window(struct hf_reader *reader)
{
    enum hf_windows windows = reader->config->family->windows;
    bool stated = cJSON_GetObjectItemCaseSensitive(reader->text, "sliding_window") != NULL;
    double window = 0;

    if (!stated && (windows == HF_WINDOW_ALL || windows == HF_WINDOW_PERIOD))
        return WINDOW_DEFAULT;
    if (windows == HF_WINDOW_NONE || (windows == HF_WINDOW_BEHIND &&
                                      !hf_truth(reader, reader->text, "use_sliding_window", false)))
        return 0;
    if (hf_number(reader, reader->text, "sliding_window", &window) &&
        (window < 1 || window != floor(window)))
        hf_refuse(reader, -EINVAL, "sliding_window is %g, no count of tokens", window);
    return window;
}

static bool layer_is_local(struct hf_reader *reader, const cJSON *type, double window)
{
    const char *name = cJSON_GetStringValue(type);
    char text[64];

    if (name != NULL && strcmp(name, "full_attention") == 0)
        return false;
    if (name == NULL || strcmp(name, "sliding_attention") != 0)
        hf_refuse(reader, -ENOTSUP, "layer_types: %s is not supported",
                  name == NULL ? "what is no string"
                               : json_tree_printable(name, text, sizeof(text)));
    else if (window == 0)
        hf_refuse(reader, -EINVAL,
                  "layer_types has sliding_attention, but sliding_window is none or not in use");
    return true;
}

/* layer_types, where the file has it. */
static bool read_layer_types(struct hf_reader *reader, int64_t count, double window)
{
    const cJSON *types = json_tree_member(reader->text, "layer_types");
    int64_t at = 0;

    if (types == NULL)
        return false;
    if (!cJSON_IsArray(types) || cJSON_GetArraySize(types) != count) {
        hf_refuse(reader, -EINVAL, "layer_types is no list of %" PRId64 " layers", count);
        return true;
    }
    for (const cJSON *type = types->child; type != NULL; type = type->next)
        reader->config->local[at++] = layer_is_local(reader, type, window);
    return true;
}

static void read_layers(struct hf_reader *reader)
{
    enum hf_windows windows = reader->config->family->windows;
    const struct hf_setting *layers = hf_config_find(reader->config, "block_count");
    double window = read_window(reader), period = PATTERN_DEFAULT, behind = MAX_WINDOW_LAYERS;
    struct hf_setting *setting;
    int64_t count;

    /* A count out of range is refused by whoever reads it. */
    if (layers == NULL || !gguf_int(&layers->value, 0, &count) || count < 1 || count > HF_LAYER_MAX)
        return;
    hf_number(reader, reader->text, "sliding_window_pattern", &period);
    hf_number(reader, reader->text, "max_window_layers", &behind);
    if (!read_layer_types(reader, count, window)) {
        for (int64_t i = 0; window > 0 && i < count; i++)
            reader->config->local[i] =
                windows == HF_WINDOW_ALL || (windows == HF_WINDOW_BEHIND && (double)i >= behind) ||
                (windows == HF_WINDOW_PERIOD && fmod((double)i + 1, fmax(period, 1)) != 0);
    }
    if (window == 0)
        return;
    hf_put_number(reader, "attention.sliding_window", "sliding_window", window);
    setting = put(reader, "attention.sliding_window_pattern", "layer_types");
    if (setting == NULL)
        return;
    setting->value.type = GGUF_BOOL;
    setting->value.array = true;
    setting->value.count = count;
    setting->value.data = reader->config->local;
}

/* ---- ends and defaults ---- */

static void add_end(struct hf_reader *reader, const cJSON *value)
{
    struct hf_config *config = reader->config;
    int64_t token;

    if (!json_tree_int(value, &token) || token < 0 || token > INT32_MAX) {
        hf_refuse(reader, -EINVAL, "eos_token_id is neither a token nor a list of them");
        return;
    }
    for (int32_t i = 0; i < config->end_count; i++)
        if (config->end_token[i] == token)
            return;
    if (config->end_count == MODEL_END_MAX)
        hf_refuse(reader, -ENOTSUP, "eos_token_id: more than %d tokens", MODEL_END_MAX);
    else
        config->end_token[config->end_count++] = (int32_t)token;
}

static void read_ends(struct hf_reader *reader, const cJSON *object)
{
    const cJSON *ends = json_tree_member(object, "eos_token_id");

    if (ends == NULL)
        return;
    if (!cJSON_IsArray(ends))
        add_end(reader, ends);
    else
        for (const cJSON *end = ends->child; end != NULL; end = end->next)
            add_end(reader, end);
}

static void read_begin(struct hf_reader *reader)
{
    const cJSON *begin = json_tree_member(reader->text, "bos_token_id");
    int64_t token = -1;

    if (begin == NULL)
        begin = json_tree_member(reader->root, "bos_token_id");
    if (begin != NULL && (!json_tree_int(begin, &token) || token < 0 || token > INT32_MAX))
        hf_refuse(reader, -EINVAL, "bos_token_id is no token");
    reader->config->bos_token = (int32_t)token;
}

/* A number of the root that is there and in its range. */
static bool read_default(struct hf_reader *reader, const char *name, double least, double most,
                         double *number)
{
    if (!hf_number(reader, reader->root, name, number))
        return false;
    if (*number >= least && *number <= most)
        return true;
    hf_refuse(reader, -EINVAL, "%s is %g, not from %g to %g", name, *number, least, most);
    return false;
}

static void read_default_real(struct hf_reader *reader, const char *name, double least, double most,
                              bool *given, float *value)
{
    double number;

    if (!read_default(reader, name, least, most, &number))
        return;
    *given = true;
    *value = (float)number;
}

static void read_default_int(struct hf_reader *reader, const char *name, int32_t least, bool *given,
                             int32_t *value)
{
    double number;

    if (!read_default(reader, name, least, INT32_MAX, &number))
        return;
    if (number != floor(number)) {
        hf_refuse(reader, -EINVAL, "%s is %g, no whole number", name, number);
        return;
    }
    *given = true;
    *value = (int32_t)number;
}

/* The members that are defaults: those that vLLM takes. */
static void read_defaults(struct hf_reader *reader)
{
    struct model_defaults *defaults = &reader->config->defaults;

    read_default_real(reader, "temperature", 0, 100, &defaults->has_temperature,
                      &defaults->temperature);
    read_default_real(reader, "top_p", 0, 1, &defaults->has_top_p, &defaults->top_p);
    read_default_real(reader, "min_p", 0, 1, &defaults->has_min_p, &defaults->min_p);
    read_default_real(reader, "repetition_penalty", 1e-6, 1e6, &defaults->has_repetition_penalty,
                      &defaults->repetition_penalty);
    read_default_int(reader, "top_k", -1, &defaults->has_top_k, &defaults->top_k);
    read_default_int(reader, "max_new_tokens", 1, &defaults->has_max_new_tokens,
                     &defaults->max_new_tokens);
}

static void check_defaults(struct hf_reader *reader, const cJSON *root)
{
    static const char *const known[] = {"temperature", "top_p",          "top_k",
                                        "min_p",       "max_new_tokens", "repetition_penalty"};
    char name[64];

    for (const cJSON *member = root->child; member != NULL; member = member->next) {
        size_t i = 0;
        while (i < sizeof(known) / sizeof(*known) && strcmp(member->string, known[i]) != 0)
            i++;
        if (i == sizeof(known) / sizeof(*known))
            hf_refuse(reader, -EINVAL,
                      "%s is no default that applies; those are temperature, top_p, top_k, min_p, "
                      "repetition_penalty, max_new_tokens",
                      json_tree_printable(member->string, name, sizeof(name)));
    }
}

/* ---- whole files ---- */

static cJSON *open_json(struct hf_reader *reader, const char *json, size_t bytes)
{
    char detail[256];
    cJSON *root = json_tree_parse(json, bytes, detail, sizeof(detail));

    if (root == NULL)
        hf_refuse(reader, -EINVAL, "%s", detail);
    else if (!cJSON_IsObject(root))
        hf_refuse(reader, -EINVAL, "no JSON object");
    reader->root = reader->text = root;
    return root;
}

static void read_config(struct hf_reader *reader)
{
    find_family(reader);
    if (reader->status != 0)
        return;
    if (reader->config->family->wrapped)
        reader->text = json_tree_member(reader->root, "text_config");
    if (!cJSON_IsObject(reader->text)) {
        hf_refuse(reader, -EINVAL, "text_config is missing or no object");
        return;
    }
    check_class(reader);
    read_numbers(reader);
    read_biases(reader);
    read_scale(reader);
    read_head(reader);
    read_format(reader);
    read_layers(reader);
    hf_read_ropes(reader);
    read_ends(reader, reader->root);
    if (reader->text != reader->root)
        read_ends(reader, reader->text);
    read_begin(reader);
}

int hf_config_read(struct hf_config *config, const char *json, size_t bytes, char *error,
                   size_t error_bytes)
{
    struct hf_reader reader = {.config = config, .error = error, .error_bytes = error_bytes};
    cJSON *root = open_json(&reader, json, bytes);

    if (reader.status == 0)
        read_config(&reader);
    cJSON_Delete(root);
    return reader.status;
}

int hf_config_read_generation(struct hf_config *config, const char *json, size_t bytes, char *error,
                              size_t error_bytes)
{
    struct hf_reader reader = {.config = config, .error = error, .error_bytes = error_bytes};
    cJSON *root = open_json(&reader, json, bytes);

    if (reader.status == 0) {
        read_ends(&reader, root);
        read_defaults(&reader);
    }
    cJSON_Delete(root);
    return reader.status;
}

int hf_config_read_defaults(struct hf_config *config, const char *json, size_t bytes, char *error,
                            size_t error_bytes)
{
    struct hf_reader reader = {.config = config, .error = error, .error_bytes = error_bytes};
    cJSON *root = open_json(&reader, json, bytes);

    if (reader.status == 0 && root != NULL) {
        check_defaults(&reader, root);
        read_defaults(&reader);
    }
    cJSON_Delete(root);
    return reader.status;
}

/* A token's name: text, or an object with it. */
static void read_name(struct hf_reader *reader, const char *member, char *name)
{
    const cJSON *value = json_tree_member(reader->root, member);

    if (cJSON_IsObject(value))
        value = json_tree_member(value, "content");
    if (value != NULL && (!cJSON_IsString(value) || strlen(value->valuestring) >= HF_TOKEN_BYTES))
        hf_refuse(reader, -EINVAL, "%s is no name of a token", member);
    else if (value != NULL)
        snprintf(name, HF_TOKEN_BYTES, "%s", value->valuestring);
}

int hf_config_read_tokenizer(struct hf_config *config, const char *json, size_t bytes, char *error,
                             size_t error_bytes)
{
    struct hf_reader reader = {.config = config, .error = error, .error_bytes = error_bytes};
    cJSON *root = open_json(&reader, json, bytes);

    if (reader.status == 0) {
        read_name(&reader, "bos_token", config->bos_name);
        read_name(&reader, "eos_token", config->eos_name);
    }
    cJSON_Delete(root);
    return reader.status;
}
