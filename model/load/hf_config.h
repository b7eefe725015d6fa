/* config.json and generation_config.json of a Hugging Face folder as settings.
 *
 * Settings get the keys that architectures ask for (GGUF's); what the file leaves out gets the
 * default of its class. Both forms of rope settings are read, that of transformers 4 (rope_theta,
 * rope_scaling) and that of 5 (rope_parameters). Nothing in the files is trusted; what a family
 * cannot do is refused by name. One thread.
 */
#ifndef MODEL_LOAD_HF_CONFIG_H
#define MODEL_LOAD_HF_CONFIG_H

#include "model/load/gguf.h"
#include "model/model.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    HF_SETTING_MAX = 40,
    HF_NAME_BYTES = 80,
    HF_TEXT_BYTES = 32,
    HF_TOKEN_BYTES = 128,
    HF_LAYER_MAX = 1024,
    HF_CONFIG_BYTES_MAX = 16 << 20,
};

/* Which layers have the window, where layer_types does not say so. */
enum hf_windows { HF_WINDOW_NONE, HF_WINDOW_ALL, HF_WINDOW_BEHIND, HF_WINDOW_PERIOD };

/* A class of models. */
struct hf_family {
    const char *class_name;   /* in architectures */
    const char *model_type;   /* where there are none */
    const char *architecture; /* of model/arch.c */
    const char *activation;
    enum hf_windows windows;
    bool tied;     /* the head, where the file does not say */
    bool sandwich; /* norms before and after each branch; 1 is added to norm weights */
    bool q_bias;   /* q, k and v always have biases */
    bool wrapped;  /* the language model's settings are in text_config */
};

struct hf_setting {
    const char *key;
    char name[HF_NAME_BYTES]; /* in the file, for messages */
    struct gguf_value value;  /* its data are `store` or hf_config.local */
    unsigned char store[sizeof(uint64_t) + HF_TEXT_BYTES];
};

/* Points into itself: stays where it was read. */
struct hf_config {
    const struct hf_family *family;
    int32_t setting_count;
    struct hf_setting setting[HF_SETTING_MAX];
    unsigned char local[HF_LAYER_MAX]; /* layers with the window */
    bool tied;
    enum format format; /* of the weights, says the file; the tensors decide */
    int32_t end_count;
    int32_t end_token[MODEL_END_MAX];
    struct model_defaults defaults;
    int32_t bos_token;             /* -1: none is named */
    char bos_name[HF_TOKEN_BYTES]; /* as tokenizer_config.json calls them; "": it does not */
    char eos_name[HF_TOKEN_BYTES];
};

/* Reads config.json into a zeroed config. 0, -EINVAL or -ENOTSUP and one line. */
int hf_config_read(struct hf_config *config, const char *json, size_t bytes, char *error,
                   size_t error_bytes);
/* Adds generation_config.json. */
int hf_config_read_generation(struct hf_config *config, const char *json, size_t bytes, char *error,
                              size_t error_bytes);
/* Adds an object of defaults alone; a member that is none is refused. */
int hf_config_read_defaults(struct hf_config *config, const char *json, size_t bytes, char *error,
                            size_t error_bytes);
/* Adds what tokenizer_config.json calls the special tokens. */
int hf_config_read_tokenizer(struct hf_config *config, const char *json, size_t bytes, char *error,
                             size_t error_bytes);
/* NULL: it is not set. */
const struct hf_setting *hf_config_find(const struct hf_config *config, const char *key);
/* How config.json spells a key that is not set; NULL: it has no such. */
const char *hf_config_name(const char *key);

#endif
