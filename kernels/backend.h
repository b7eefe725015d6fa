/* Operations on devices: the table that a backend fills and that an architecture is written in.
 *
 * Shapes use one set of letters: T tokens in the step, R rows, S samples, D width, V vocabulary,
 * H query heads, K key/value heads, C head width, F feed-forward width.
 *
 * Rules of the table
 * - One thread (the rank's) calls all functions of one device. Ops are queued and may return
 *   before they have run; ops of one device run in the order of their calls.
 * - A fault sticks to the device and comes out of `sync`, once for every step from then on.
 * - A device owns its step state: token ids, positions, block tables by slot, sampling state by
 *   slot. `step_begin` sets it from plain data; `embed`, `rope_store`, `attention`, `gather` and
 *   `sample` read it. Up to STEP_DEPTH steps may be between step_begin and sync.
 * - Determinism: what an op gives for one token or one sample depends on that token's own inputs
 *   alone: never on T, on the neighbours, or on how a prompt was cut into steps.
 * - Ops do no host work that depends on values on the device, so that a step can be captured.
 * - T and S of an op may be larger than the step's token_count and sample_count: a graph is
 *   captured for a padded size. Rows past the step's own are zero or left alone; none of them
 *   reaches the cache, a slot's state or a result.
 */
#ifndef KERNELS_BACKEND_H
#define KERNELS_BACKEND_H

#include "kernels/formats.h"
#include "kernels/sampling.h"
#include "kernels/tuned.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    STEP_DEPTH = 2,      /* steps in flight */
    WEIGHT_PART_MAX = 4, /* tensors packed into one weight, joined along their outputs */
    KV_GROUP_MAX = 2,    /* kinds of layers with block tables of their own */
};

struct device; /* a backend's own */

/* How keys and values are kept. AUTO is the backend's own choice, of 16 bits. */
enum kv_dtype { KV_AUTO, KV_F16, KV_F32 };

struct device_options {
    int32_t index;        /* which GPU; 0 on a CPU */
    int32_t thread_count; /* CPU: threads that compute, the rank's own included; 0: one a core */
    int32_t slot_max;     /* sequences with state on the device */
    int32_t token_max;    /* T of the largest step */
    int32_t sample_max;   /* S of the largest step */
    int32_t vocab_count;  /* V */
    int32_t context_max;  /* longest sequence, in tokens: bounds the block tables */
    int32_t history_max;  /* as in struct step, so that step_begin allocates nothing */
    int32_t change_max;
    int32_t move_max;
    enum kv_dtype kv_dtype; /* -ENOTSUP from kv_open where the backend has none of it */
    bool portable;          /* GPU: only kernels that every GPU of the build can run */
};

/* ---- what a step is: plain data, filled by the engine, good until that step's sync ---- */

/* A sequence takes a slot: parameters, and the tokens it already has (penalties count them). */
struct step_start {
    int32_t slot;
    int32_t prompt_count; /* of `token`, those that were the prompt; the rest was put out */
    int32_t token_first;  /* index into history[] */
    int32_t token_count;  /* prompt and output so far */
    struct sampling sampling;
};

/* Entry `index` of a slot's block table in `group` becomes `block`: an entry at most once a step.
 */
struct step_change {
    int32_t slot;
    int32_t group;
    int32_t index;
    int32_t block;
};

/* A copy of a whole block, all layers of its group. KV_COPY runs before the step's own writes.
 * KV_OUT and KV_IN run beside the step, to and from the host tier. */
enum step_move_kind { STEP_COPY, STEP_OUT, STEP_IN };
struct step_move {
    enum step_move_kind kind;
    int32_t source;
    int32_t target;
};

/* One sequence's part of a step: token_count tokens from `position` on. What is before it is in
 * the cache when the step begins, or is copied there by its moves. */
struct step_row {
    int32_t slot;
    int32_t position;
    int32_t token_first; /* row's first token among the step's T */
    int32_t token_count;
    bool token_on_device; /* token_count is 1 and the id is the slot's last draw */
};

enum step_sample_kind {
    STEP_DRAW,  /* draw a token for `slot`, count it in the slot's state, keep it as last draw */
    STEP_SCORE, /* log-probability of `token` (a prompt's next token) at this position */
};
struct step_sample {
    enum step_sample_kind kind;
    int32_t slot;
    int32_t index;        /* which of the step's T tokens has the hidden state */
    int32_t output_index; /* STEP_DRAW: index of this output token in its sequence, from 0 */
    int32_t token;        /* STEP_SCORE */
    int32_t top_count;    /* likeliest tokens wanted, -1: no log-probability either */
};

struct step {
    int32_t start_count, change_count, move_count, row_count, token_count, sample_count;
    struct step_start *start; /* [slot_max] */
    int32_t *history;         /* [history_max] tokens of the starts */
    int32_t history_max;      /* slot_max * context_max would do; see model.c */
    int32_t history_count;
    struct step_change *change; /* [change_max] */
    int32_t change_max;
    struct step_move *move; /* [move_max] */
    int32_t move_max;
    struct step_row *row;       /* [slot_max] */
    int32_t *token;             /* [token_max] ids; 0 where on the device */
    struct step_sample *sample; /* [sample_max] */
};

/* What a step gave, for each sample. */
struct step_result {
    int32_t *token;     /* [sample_max] drawn token, or the scored one */
    float *logprob;     /* [sample_max] of `token`, from the raw logits; 0 where not asked for */
    int32_t *rank;      /* [sample_max] how many tokens are likelier than `token`; 0 is best */
    int32_t *top_token; /* [sample_max, SAMPLING_TOP_MAX] likeliest first, ties to the lowest id;
                           -1 from top_count on, and where no more has a probability */
    float *top_logprob; /* [sample_max, SAMPLING_TOP_MAX] */
};

/* ---- what ops work on ---- */

/* Activations [T, width]: rows of `stride` elements of the backend's own type. The residual
 * stream, to which every branch is added, has a type of its own: it may be wider. */
struct activation {
    void *data;
    int64_t stride;
    bool residual;
};

/* A tensor of a checkpoint, as it lies in the file; borrowed while it is packed. */
struct weight_source {
    enum format format;
    int32_t out;
    int32_t in;
    const void *data; /* [out] rows of format_row_bytes(format, in) */
};

/* A linear map packed for a backend's kernels; parts are joined along `out`. */
struct weight {
    int32_t part_count;
    int32_t out; /* sum of the parts */
    int32_t in;
    struct weight_part {
        enum format format;
        int32_t out;
        void *data;
    } part[WEIGHT_PART_MAX];
    float *bias;      /* [out] on the device, or NULL */
    bool gated;       /* gate and up of a feed-forward: for gated_linear alone */
    bool interleaved; /* how a backend laid them out */
};

/* Bytes of KV are the backend's secret; so is their layout. */
struct kv_shape {
    int32_t layer_count;
    int32_t block_count;  /* block ids are below this; a backend may add a trash block */
    int32_t block_tokens; /* power of two */
    int32_t kv_head_count;
    int32_t head_width;
    int32_t group_count;
    const int32_t *layer_group; /* [layer_count] */
};

enum rope_pairing { ROPE_HALVES, ROPE_INTERLEAVED };
enum act_kind { ACT_SILU, ACT_GELU_TANH };

struct rope_store_args {
    int32_t layer;
    int32_t head_count;    /* H */
    int32_t kv_head_count; /* K */
    int32_t head_width;    /* C */
    const float *q_norm;   /* [C] on the device, or NULL: no norm */
    const float *k_norm;
    float norm_eps;
    const float *rope; /* [context_max, rotary / 2, 2] cos and sin, f32, on the device */
    int32_t rotary;    /* rotated dims of a head, even, at most C */
    enum rope_pairing pairing;
};

struct attention_args {
    int32_t layer;
    int32_t head_count;
    int32_t kv_head_count;
    int32_t head_width;
    float scale;        /* of q.k */
    float softcap;      /* 0: none */
    int32_t window;     /* 0: none; else position p is seen from q iff p > q - window */
    const float *sinks; /* [H] on the device, or NULL */
};

struct device_ops {
    const char *name;        /* "cpu", "cuda" */
    size_t activation_bytes; /* of one element of an activation */
    size_t residual_bytes;   /* of one element of the residual stream */
    int32_t logit_rows;      /* samples whose logits are best made at once */

    /* Life. `open` gives 0, or a negative errno and one line in `error`. */
    int (*open)(struct device **device, const struct device_options *options, char *error,
                size_t error_bytes);
    void (*close)(struct device *device);
    /* Free bytes now; what `alloc`, `weight_pack` and `kv_open` may still take. */
    size_t (*memory_free)(struct device *device);
    /* All bytes of a device of its own memory, whoever has them; NULL where the memory is the
     * host's, shared with everything else. */
    size_t (*memory_total)(struct device *device);
    /* Bytes that this device has taken for itself so far, by `open` and all since; NULL where
     * memory_total is. */
    size_t (*memory_taken)(struct device *device);
    const char *(*describe)(struct device *device); /* for the start-up log */
    /* Bytes a second that the device reads from its memory, measured now, before weights and KV
     * have taken it; 0: there is not the memory to measure with, or the device is broken. */
    double (*read_rate)(struct device *device);

    /* Memory. `alloc` is zeroed; NULL when there is none. Freed by `close`. */
    void *(*alloc)(struct device *device, size_t bytes);
    void (*upload)(struct device *device, void *target, const void *source, size_t bytes);
    void (*download)(struct device *device, void *target, const void *source, size_t bytes);
    /* f32 on the host to and from activations, [rows, width]; for tests and tools. Both wait. */
    void (*put)(struct device *device, struct activation target, const float *source, int32_t rows,
                int32_t width);
    void (*get)(struct device *device, float *target, struct activation source, int32_t rows,
                int32_t width);

    /* Weights. `bias` is f32 [out] on the host, or NULL. A `gated` one is [gate | up], the same
     * number of outputs each. 0, -ENOMEM or -ENOTSUP. */
    size_t (*weight_bytes)(struct device *device, enum format format, int32_t out, int32_t in);
    int (*weight_pack)(struct device *device, struct weight *weight,
                       const struct weight_source *source, int32_t part_count, const float *bias,
                       bool gated);

    /* Which way to make products is the fastest, as lines of a table (kernels/tuned.h); no way
     * changes a bit. `tune` measures it for weights of one shape, of layers in turn, by T tokens,
     * follows it from then on, and gives the line: 0; -ENOTSUP: there is one way only; -ENOMEM;
     * -EIO. `tuned` takes over a line: 0, -ENOMEM, or -ENOTSUP: there is no such way here. NULL in
     * a backend that has but one way. */
    int (*tune)(struct device *device, const struct weight *const *weight, int32_t count,
                bool logits, int32_t T, struct tuned_line *line);
    int (*tuned)(struct device *device, const struct tuned_line *line);

    /* KV. */
    size_t (*kv_block_bytes)(struct device *device, const struct kv_shape *shape);
    /* What kv_open takes besides the blocks: block tables, and what attention works in. NULL where
     * memory_total is. */
    size_t (*kv_fixed_bytes)(struct device *device, const struct kv_shape *shape);
    int (*kv_open)(struct device *device, const struct kv_shape *shape);

    /* Ops have run when they return: no step goes on while the host does something else, and what
     * one gave need not wait for the next one to be queued. */
    bool immediate;
    /* Steps. `step_begin` takes over copies: starts, changes, moves, rows, tokens. `step_end`
     * queues the read-back of the samples. `sync` waits for the oldest step that was begun and
     * not yet waited for, and fills the result given to its step_end: 0, or -EIO. */
    void (*step_begin)(struct device *device, const struct step *step);
    void (*step_end)(struct device *device, struct step_result *result);
    int (*sync)(struct device *device);
    /* What broke the device, in a line, for the log; NULL when nothing did. The function is NULL
     * in a backend that cannot fault. */
    const char *(*fault)(struct device *device);
    /* Capture: ops between begin and end are recorded, not run, under `key`; launch runs them
     * again with what the step state then holds. What is recorded before the first step is good
     * for steps of decode. NULL where a backend has no graphs. */
    bool (*graph_begin)(struct device *device, int64_t key);
    bool (*graph_end)(struct device *device, int64_t key);
    bool (*graph_launch)(struct device *device, int64_t key); /* false: not captured yet */
    /* What a captured step of a model of `layer_count` layers takes of the device's memory at most.
     * NULL where graph_begin is. */
    size_t (*graph_bytes)(struct device *device, int32_t layer_count);

    /* out[t] = row token[t] of `table`, times scale. `out` is residual. [T, D] */
    void (*embed)(struct device *device, struct activation out, const struct weight *table,
                  float scale, int32_t T);
    /* out = x / sqrt(mean(x^2) + eps) * weight, in f32. `x` is residual. [count, D] */
    void (*norm)(struct device *device, struct activation out, struct activation x,
                 const float *weight, float eps, int32_t count, int32_t D);
    /* x += branch, or x += norm(branch) * branch_weight when that is not NULL;
     * then out = norm(x) * weight. `x` is residual. [T, D] */
    void (*add_norm)(struct device *device, struct activation out, struct activation x,
                     struct activation branch, const float *branch_weight, const float *weight,
                     float eps, int32_t T, int32_t D);
    /* out = x . weight^T + bias. [T, in] to [T, out] */
    void (*linear)(struct device *device, struct activation out, struct activation x,
                   const struct weight *weight, int32_t T);
    /* out = act(gate) * up of x . weight^T + bias, a gated weight of 2F outputs. [T, in] to [T, F];
     * `gate_up` [T, 2F] may be written on the way. */
    void (*gated_linear)(struct device *device, struct activation out, struct activation gate_up,
                         struct activation x, const struct weight *weight, enum act_kind act,
                         int32_t T);
    /* out = act(gate) * up of [gate | up]. [T, 2F] to [T, F] */
    void (*act_mul)(struct device *device, struct activation out, struct activation gate_up,
                    enum act_kind act, int32_t T, int32_t F);
    /* Of qkv [T, (H + 2K) C]: norms (if any) and rotates q in place and k, and stores k and v of
     * every token at its position in the cache. */
    void (*rope_store)(struct device *device, struct activation qkv,
                       const struct rope_store_args *args, int32_t T);
    /* out [T, H C] = attention of q (the first H C columns of qkv) over the cached k and v of its
     * sequence up to its own position. */
    void (*attention)(struct device *device, struct activation out, struct activation qkv,
                      const struct attention_args *args, int32_t T);
    /* out[s] = x[index of sample s]; both are residual, or neither. [S, D] */
    void (*gather)(struct device *device, struct activation out, struct activation x, int32_t S,
                   int32_t D);
    /* logits[s] = x[s] . head^T in f32, then softcap * tanh(logits / softcap) if softcap > 0. */
    void (*logits)(struct device *device, float *logits /* [count, V] on the device */,
                   struct activation x, const struct weight *head, float softcap, int32_t count);
    /* Samples first .. first + count - 1 of the step from their logits, which may be changed. */
    void (*sample)(struct device *device, float *logits /* [count, V] */, int32_t first,
                   int32_t count);
};

/* The backends of this build. `backend_cuda` is NULL where the build has none; it is there, and
 * its `open` says -ENODEV, on a machine without a driver. */
const struct device_ops *backend_cpu(void);
const struct device_ops *backend_cuda(void);

#endif
