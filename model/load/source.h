/* What a checkpoint says, whatever its file format: settings by key, tensors by role, vocabulary.
 *
 * An architecture reads its shape from the settings and names tensors by role; only this file and
 * those beside it know how a format spells them. Keys are GGUF's, without the architecture in
 * front ("attention.head_count"). The first refusal sticks: later calls change nothing and give
 * values that are within their ranges, so that callers check once, at the end. One thread.
 */
#ifndef MODEL_LOAD_SOURCE_H
#define MODEL_LOAD_SOURCE_H

#include "kernels/formats.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct gguf;
struct hf_folder;
struct model_defaults;
struct source;
struct tokenizer;

/* ROLE(constant, name in a GGUF, behind "blk.N." where it belongs to a layer) */
#define TENSOR_ROLES(ROLE)                                                                         \
    ROLE(ROLE_EMBED, "token_embd")                                                                 \
    ROLE(ROLE_OUTPUT_NORM, "output_norm")                                                          \
    ROLE(ROLE_HEAD, "output")                                                                      \
    ROLE(ROLE_ATTN_NORM, "attn_norm")                                                              \
    ROLE(ROLE_Q, "attn_q")                                                                         \
    ROLE(ROLE_K, "attn_k")                                                                         \
    ROLE(ROLE_V, "attn_v")                                                                         \
    ROLE(ROLE_QKV, "attn_qkv")                                                                     \
    ROLE(ROLE_Q_NORM, "attn_q_norm")                                                               \
    ROLE(ROLE_K_NORM, "attn_k_norm")                                                               \
    ROLE(ROLE_ATTN_OUTPUT, "attn_output")                                                          \
    ROLE(ROLE_ATTN_POST_NORM, "post_attention_norm")                                               \
    ROLE(ROLE_FFN_NORM, "ffn_norm")                                                                \
    ROLE(ROLE_FFN_GATE, "ffn_gate")                                                                \
    ROLE(ROLE_FFN_UP, "ffn_up")                                                                    \
    ROLE(ROLE_FFN_DOWN, "ffn_down")                                                                \
    ROLE(ROLE_FFN_POST_NORM, "post_ffw_norm")                                                      \
    ROLE(ROLE_ROPE_FREQS, "rope_freqs")

enum tensor_role {
#define ROLE(constant, name) constant,
    TENSOR_ROLES(ROLE)
#undef ROLE
        ROLE_COUNT
};

enum { LAYER_NONE = -1, SOURCE_NAME_BYTES = 128 };

/* A tensor where it lies in the file, [out, in]; a vector has out 1. */
struct tensor {
    char name[SOURCE_NAME_BYTES];
    enum format format;
    int64_t out;
    int64_t in;
    const void *data;
};

/* What the whole file holds, for people. */
struct source_summary {
    char name[SOURCE_NAME_BYTES]; /* the model's own, or the file's */
    char architecture[64];
    char tokenizer[64]; /* kind, "" for none */
    int32_t version;    /* of a GGUF; 0: a folder of safetensors */
    int32_t part_count; /* files */
    int64_t file_bytes;
    int64_t tensor_count;
    int64_t parameter_count;
    char note[SOURCE_NAME_BYTES]; /* what should be known of it, "": nothing */
    struct format_sum {
        int64_t tensor_count;
        int64_t matrix_count; /* of them, those with more than one dimension */
        int64_t parameter_count;
        int64_t bytes;
    } format[FORMAT_COUNT];
};

/* Opens a GGUF or a folder. `error` is kept and gets the first refusal's line. 0 or a negative
 * errno. */
int source_open(struct source **source, const char *path, char *error, size_t error_bytes);
/* The same of a folder's settings alone. */
int source_open_dummy(struct source **source, const char *path, char *error, size_t error_bytes);
/* The same over a GGUF that is already open, which it takes over, also when it fails. */
int source_open_gguf(struct source **source, struct gguf *gguf, const char *path, char *error,
                     size_t error_bytes);
void source_close(struct source *source); /* NULL is fine */
void source_prefetch(const struct source *source);
void source_summary(const struct source *source, struct source_summary *summary);
const char *source_architecture(const struct source *source);

/* What formats differ in. */
/* Whether rows of q and k lie in pairs of neighbours, as converters to GGUF leave those of the
 * llama family. */
bool source_interleaves(const struct source *source);
/* Whether the settings say which maps have biases; else the tensors that are there do. */
bool source_states_biases(const struct source *source);
/* What is added to a norm's weights: some files hold them less 1. */
float source_norm_offset(const struct source *source, enum tensor_role role);
/* A factor of activations as those who trained the model rounded it: to the weights' type. */
float source_round(const struct source *source, float factor);
/* Whether the head is the embedding although the file may hold another. */
bool source_ties_head(const struct source *source);
/* Tokens that end a sequence by the model's settings; how many, at most `max`. */
int32_t source_ends(const struct source *source, int32_t *token, int32_t max);
/* Left as it is where the files say nothing. */
void source_defaults(const struct source *source, struct model_defaults *defaults);

/* No weights are read: there are no tensors, but for roles that the architecture has. */
bool source_is_dummy(const struct source *source);
/* The tensor [out, in] that would be there, without data. */
struct tensor source_dummy(const struct source *source, enum tensor_role role, int32_t layer,
                           int64_t out, int64_t in);
/* Adds it to the summary. */
void source_count_dummy(struct source *source, const struct tensor *tensor);

/* Refuses: "cannot load PATH: " and the rest. The first one wins. */
void source_refuse(struct source *source, int status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
int source_status(const struct source *source); /* 0, or the first refusal's errno */

/* Settings. Without a fallback the key must be there. A list gives its one value where all its
 * elements are equal; a list that differs from layer to layer is refused. */
bool source_has(const struct source *source, const char *key);
int64_t source_int(struct source *source, const char *key, int64_t least, int64_t most);
int64_t source_int_or(struct source *source, const char *key, int64_t least, int64_t most,
                      int64_t fallback);
double source_real(struct source *source, const char *key, double least, double most);
double source_real_or(struct source *source, const char *key, double least, double most,
                      double fallback);
/* Whether the setting is the text; a setting that is not there is the fallback. */
bool source_is(struct source *source, const char *key, const char *text, const char *fallback);
/* Element `index` of a list of bools, which must have `count`; false: it is no list. */
bool source_truth_at(struct source *source, const char *key, int64_t index, int64_t count,
                     bool *truth);

/* Tensors: false, and no refusal, where there is none. Found ones count as used. */
bool source_tensor(struct source *source, enum tensor_role role, int32_t layer,
                   struct tensor *tensor);
bool source_bias(struct source *source, enum tensor_role role, int32_t layer,
                 struct tensor *tensor);
bool source_has_tensor(const struct source *source, enum tensor_role role, int32_t layer);
/* How the file would spell it, for messages. */
void source_tensor_name(enum tensor_role role, int32_t layer, const char *ending, char *name,
                        size_t max);
/* Refuses when a tensor was never asked for, but for those known to be ignorable. */
void source_check_used(struct source *source);

/* The vocabulary's tokenizer; NULL for a model without one, or after a refusal. */
struct tokenizer *source_tokenizer(struct source *source);
/* Tokens that the vocabulary lists; 0: the file has none. */
int64_t source_token_count(const struct source *source);

#endif
