/* What a model architecture gives, and what it is given: `read_shape`, `load`, `forward`.
 *
 * An architecture is one file in model/arch/ and a line in model/arch.c. It is written in ops, once
 * for every backend, and sees no file format: settings by key, tensors by role. How layers differ
 * between architectures is data in `struct shape`; model/sublayer.h has the parts they share.
 * Everything here runs on the rank's thread, but for read_shape, which runs anywhere.
 */
#ifndef MODEL_ARCH_H
#define MODEL_ARCH_H

#include "kernels/backend.h"
#include "model/load/source.h"
#include "model/load/weights.h"

#include <stdbool.h>
#include <stdint.h>

enum {
    LAYER_MAX = 1024,
    ROPE_MAX = 2,        /* kinds of rotation in one model */
    ROPE_PAIR_MAX = 256, /* of dims that rotate together */
};

enum rope_scaling { ROPE_LINEAR, ROPE_LLAMA3, ROPE_YARN };

/* A kind of rotation; its table is made once for all layers that use it (rope.h has the
 * formulas). */
struct rope_shape {
    double base;
    int32_t rotary; /* dims of a head that rotate */
    enum rope_pairing pairing;
    enum rope_scaling scaling;
    double factor;         /* how much longer the context is; LINEAR 1: not scaled */
    double original;       /* LLAMA3, YARN: the context before */
    double low, high;      /* LLAMA3: wavelengths in that context */
    double fast, slow;     /* YARN: turns in that context */
    bool truncate;         /* YARN: bounds are whole pairs */
    double magnitude;      /* YARN: of cosines and sines; else 1 */
    int32_t divisor_count; /* a GGUF's own divisors of the frequencies, in place of LLAMA3 */
    float divisor[ROPE_PAIR_MAX];
};

/* The model as numbers. Heads and widths are those of the rank, once a model is split. */
struct shape {
    int32_t layer_count;
    int32_t vocab_count;   /* V */
    int32_t width;         /* D */
    int32_t head_count;    /* H */
    int32_t kv_head_count; /* K */
    int32_t head_width;    /* C */
    int32_t ffn_width;     /* F */
    int32_t context_model; /* positions that it was made for */
    float norm_eps;
    float embed_scale;   /* of an embedding's row */
    float score_scale;   /* of q.k */
    float score_softcap; /* 0: none */
    float logit_softcap; /* 0: none */
    enum act_kind act;
    bool qkv_bias;    /* what must have biases; the rest may, where a file only shows it */
    bool output_bias; /* of the attention */
    bool ffn_bias;
    bool head_norms; /* of q and k */
    bool post_norms; /* of both branches' outputs */
    bool tied;       /* the head is the embedding, whatever else is there */
    int32_t rope_count;
    struct rope_shape rope[ROPE_MAX];
    struct layer_shape {
        int32_t window; /* 0: sees everything before it */
        int32_t rope;   /* which of rope[] */
    } layer[LAYER_MAX];
};

/* On the device. A norm that an architecture does not have is NULL. */
struct layer_weights {
    const float *attn_norm;      /* [D] */
    const float *q_norm;         /* [C] */
    const float *k_norm;         /* [C] */
    const float *attn_post_norm; /* [D], of the attention's output */
    const float *ffn_norm;       /* [D] */
    const float *ffn_post_norm;  /* [D], of the MLP's output */
    struct weight qkv;           /* [(H + 2K) C, D] */
    struct weight attn_output;   /* [D, H C] */
    struct weight gate_up;       /* [2F, D] */
    struct weight down;          /* [D, F] */
};

struct weights {
    struct weight embed;         /* [V, D] */
    struct weight own_head;      /* [V, D], where the head is not the embedding */
    const struct weight *head;   /* one of the two */
    const float *output_norm;    /* [D] */
    const float *rope[ROPE_MAX]; /* [context_max, rotary / 2, 2] */
    struct layer_weights *layer; /* [layer_count] */
};

/* One forward of a step. Rows are tokens, until the last layer keeps only those that samples ask
 * for; buffers hold `rows` rows of the width beside them, in the backend's own type. */
struct pass {
    const struct device_ops *ops;
    struct device *device;
    const struct shape *shape;
    const struct weights *weights;
    int32_t sample_count;
    int32_t rows;
    bool picked;                     /* rows are samples */
    struct activation x;             /* [D] the residual stream */
    struct activation normed;        /* [D] */
    struct activation branch;        /* [D] */
    struct activation qkv;           /* [(H + 2K) C] */
    struct activation heads;         /* [H C] */
    struct activation gate_up;       /* [2F] */
    struct activation act;           /* [F] */
    struct activation picked_x;      /* [sample_max, D] */
    struct activation picked_heads;  /* [sample_max, H C] */
    struct activation picked_normed; /* [sample_max, D] */
    float *logits;                   /* [logit_rows, V] */
    int32_t logit_rows;
};

struct arch {
    const char *name; /* general.architecture of a GGUF, hf_family.architecture of a folder */
    /* Fills a zeroed shape; refusals stick in the source. */
    void (*read_shape)(struct shape *shape, struct source *source);
    /* Asks the loader for every tensor; weights->layer has its entries, zeroed. */
    void (*load)(struct weights *weights, const struct shape *shape, struct loader *loader);
    void (*forward)(struct pass *pass);
};

/* NULL: there is none of that name. */
const struct arch *arch_find(const char *name);
/* The names, comma-separated, for refusals. */
void arch_names(char *names, size_t max);

extern const struct arch arch_llama;
extern const struct arch arch_mistral;
extern const struct arch arch_qwen2;
extern const struct arch arch_qwen3;
extern const struct arch arch_gemma3;

#endif
