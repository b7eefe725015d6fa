/* Tokens to logits to tokens: a model opened on its devices.
 *
 * A batch is all that a step needs, as plain data (`struct step`); nothing else reaches a rank.
 * model_batch, model_start and model_wait belong to one thread (the engine's); the rest may be
 * called from any thread once model_open is done.
 */
#ifndef MODEL_MODEL_H
#define MODEL_MODEL_H

#include "kernels/backend.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct model;     /* opaque */
struct tokenizer; /* model/text/tokenizer.h */

enum { MODEL_END_MAX = 16 };
enum { STEP_TOKENS_LEAST = 512 }; /* fewer do not fill the arithmetic units of a GPU */

enum model_device { MODEL_DEVICE_AUTO, MODEL_DEVICE_CPU, MODEL_DEVICE_CUDA };

struct model_options {
    const char *path; /* a .gguf file (first of a split file), or a Hugging Face folder */
    enum model_device device;
    enum kv_dtype kv_dtype;
    bool portable;          /* GPU: only kernels that every GPU of the build can run */
    bool dummy_weights;     /* of a folder: random ones in config.json's shape; none are read */
    bool skip_tokenizer;    /* the model has none, whatever its files hold */
    const char *tune_table; /* file of quire tune that goes before the built-in one, or NULL */
    bool read_rate;         /* measure what the device's memory gives, before it is filled */
    int32_t thread_count;   /* CPU backend; 0: one a core */
    int32_t context_max;    /* tokens; 0: the model's own, or what fits */
    int32_t slot_max;
    int32_t token_max;
    int32_t sample_max;
    /* Lowers the two above so that a step of prompts takes at most about that many multiplications,
     * but not below slot_max or STEP_TOKENS_LEAST; 0: no limit. */
    int64_t step_work;
    int32_t block_tokens;
    int32_t block_count; /* 0: computed from the memory below */
    double memory_share; /* of the device's memory (CPU: of the free memory) that may be taken */
    int64_t kv_bytes;    /* 0: computed from memory_share; else exactly this */
    int64_t kv_most;     /* with memory_share: no more than this; 0: no limit */
    /* In place of the model's own defaults, and its ends are added; NULL: none. */
    const struct model_generation *generation;
    /* Called from the opening thread while it loads: share 0 to 1, and what is done. */
    void (*progress)(void *context, double share, const char *what);
    void *progress_context;
};

/* What a model's makers would sample with, as far as they say. */
struct model_defaults {
    bool has_temperature, has_top_p, has_top_k, has_min_p, has_repetition_penalty;
    bool has_max_new_tokens;
    float temperature;
    float top_p;
    float min_p;
    float repetition_penalty;
    int32_t top_k;
    int32_t max_new_tokens;
};

/* A generation_config.json. */
struct model_generation {
    struct model_defaults defaults;
    int32_t end_count;
    int32_t end_token[MODEL_END_MAX];
};

struct model_info {
    char name[128]; /* general.name, or the file's or folder's */
    char architecture[64];
    char format[64]; /* what most of its weights are: "Q5_0" */
    char device[128];
    int64_t parameter_count;
    int64_t file_bytes;
    int64_t weight_bytes; /* as packed on the device */
    int64_t step_bytes;   /* of them, what every step reads: all but an embedding that is no head */
    double read_rate;     /* bytes a second, of the device's memory; 0: not measured */
    int64_t kv_bytes;     /* of all blocks */
    int64_t workspace_bytes;
    int64_t graph_bytes; /* of as many recorded steps as there may be; 0 on a CPU */
    int32_t step_tokens; /* of the largest step */
    int32_t layer_count;
    int32_t vocab_count;
    int32_t context_max;   /* in force */
    int32_t context_model; /* what the file says */
    int32_t block_count;
    int32_t block_tokens;
    int32_t end_count; /* tokens that end a sequence */
    int32_t end_token[MODEL_END_MAX];
    struct model_defaults defaults;
    char tune_table[512];   /* which are followed, for the log; "": the device has one way only */
    char tune_warning[512]; /* what is wrong with them; "": nothing */
    char note[128];         /* what whoever serves it should know, in a line; "": nothing */
};

/* How a step's launches reached its device: one by one, as a graph that was recorded before, or as
 * one that had to be recorded first. */
enum step_launch { STEP_DIRECT, STEP_REPLAYED, STEP_RECORDED };

/* One step's data, and after model_wait its results. */
struct batch {
    struct step step;
    struct step_result result;
    enum step_launch launch;
    int64_t launch_us; /* time that the rank's thread took to queue it */
};

/* Reads a folder's generation_config.json: 0, -EINVAL, -ENOMEM or open's errno, and one line. */
int model_read_generation(struct model_generation *generation, const char *folder, char *error,
                          size_t error_bytes);
/* Reads defaults from an object of them alone: a member that is none is refused. 0, -EINVAL or
 * -ENOMEM, and one line. */
int model_read_defaults(struct model_defaults *defaults, const char *json, char *error,
                        size_t error_bytes);

/* 0, or a negative errno and one line in `error`: -ENOENT, -EINVAL (broken or hostile file),
 * -ENOTSUP (a format, architecture or option that is not supported), -ENOMEM, -ENODEV. */
int model_open(struct model **model, const struct model_options *options, char *error,
               size_t error_bytes);
void model_close(struct model *model); /* NULL is fine */

const struct model_info *model_info(const struct model *model);
/* NULL for a model without a vocabulary. Good until model_close; its functions are
 * thread-safe. */
const struct tokenizer *model_tokenizer(const struct model *model);

/* Bytes of keys and values, as the device keeps them, that the next token of a sequence of
 * `context` tokens reads: fewer where layers have windows. */
int64_t model_kv_bytes(const struct model *model, int32_t context);

/* An empty batch to fill, of two that take turns; every array has room for the options' limits.
 * Must not be called with two batches started. */
struct batch *model_batch(struct model *model);
void model_start(struct model *model, struct batch *batch);
/* Waits for the oldest started batch, which must be `batch`: 0, or -EIO: a device is lost. */
int model_wait(struct model *model, struct batch *batch);
/* After -EIO: what broke the device, in a line. */
const char *model_fault(const struct model *model);
/* Steps whose launches had to be recorded first, which takes a device some milliseconds: the first
 * ones of their sizes. Any thread. */
int64_t model_graph_count(const struct model *model);

/* Measures which way the device makes each of the model's products the fastest, while no step
 * runs; `line` gets each line of the table as it is known, from another thread, the device's line
 * first. 0, -ENOTSUP (there is one way only), -ENOMEM or -EIO. */
int model_tune(struct model *model, void (*line)(void *context, const char *text), void *context);

#endif
