/* The CPU device, as the files of its backend see it. All of it belongs to the rank's thread; the
 * pool's threads touch it only inside a pool_run. */
#ifndef KERNELS_CPU_DEVICE_H
#define KERNELS_CPU_DEVICE_H

#include "kernels/backend.h"
#include "kernels/cpu/cpu_isa.h"
#include "kernels/cpu/ops_vector.h"
#include "kernels/cpu/pool.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    CPU_ROWS_LEAST = 4,   /* fewer take as long: multiply-adds would wait for their own results */
    CPU_ROWS_MAX = 64,    /* query rows (token, head) of one attention task */
    CPU_KEY_LANES = 16,   /* keys of so many positions lie transposed together */
    CPU_SAMPLE_RUN = 16,  /* chunks of one sampling task */
    CPU_PICK_BINS = 1024, /* of candidates by their values */
    CPU_TOKEN_SEEN = 1 << 30, /* in cpu_slot.count: the sequence has the token */
};

/* What a slot's sequence asks of the sampler, and what penalties must know of it. */
struct cpu_slot {
    struct sampling sampling;
    int32_t last_draw;
    bool penalises;
    int32_t seen_count;
    int32_t *seen;  /* [context_max + 1] distinct tokens of the sequence */
    int32_t *count; /* [V] CPU_TOKEN_SEEN + times put out; 0 where never seen */
};

/* The cache: [block][layer of its group][K, then V]; K [K head][run of lanes][C][lanes], V
 * [K head][block_tokens][C], halves, or floats of two halves each. */
struct cpu_kv {
    int32_t layer_count, block_count, block_tokens, kv_head_count, head_width, group_count;
    int32_t halves;       /* of an element: 1, or 2 where it is an f32 */
    int32_t lanes;        /* positions in a run: ATTEND_RUN, or block_tokens where fewer */
    int32_t table_length; /* blocks of the longest sequence */
    int32_t *layer_group; /* [layer_count] */
    int32_t *layer_index; /* [layer_count] among the layers of its group */
    int64_t layer_stride; /* in halves */
    int64_t block_stride;
    uint16_t *data;
    int32_t *table; /* [group_count, slot_max, table_length] */
};

/* The step in progress: on a CPU ops run at once, so there is one. */
struct cpu_step {
    int32_t row_count, token_count, sample_count;
    struct step_row *row;       /* [slot_max] */
    int32_t *token;             /* [token_max] */
    int32_t *token_row;         /* [token_max] which row */
    struct step_sample *sample; /* [sample_max] */
    int32_t pending;            /* steps begun and not waited for */
};

/* A worker's memory for attention; rows are (token, head of the group) pairs. */
struct cpu_attend {
    float *q;                /* [CPU_ROWS_MAX, C] */
    float *out;              /* [CPU_ROWS_MAX, padded C] */
    float *score;            /* [CPU_ROWS_MAX, ATTEND_TILE] */
    float *key;              /* [C, ATTEND_TILE] */
    float *value;            /* [ATTEND_TILE, padded C] */
    struct attend_tile tile; /* or where they lie in the cache */
    float max[CPU_ROWS_MAX], sum[CPU_ROWS_MAX], factor[CPU_ROWS_MAX];
};

/* A worker's memory for sampling. */
struct cpu_pick {
    struct chunk_sum *sum; /* [chunks of V] of the changed logits */
    bool *touched;         /* [chunks of V] */
    int32_t undo_count;
    int32_t *undo_token; /* [undo_max] */
    float *undo_value;
    float *value; /* [V] candidates by ascending id */
    int32_t *token;
    float *weight;
    struct cpu_candidate *order; /* [V] candidates in any order */
    int32_t bin_count[CPU_PICK_BINS];
    double bin_mass[CPU_PICK_BINS];
};

struct cpu_candidate {
    float value;
    int32_t token;
    float weight;
};

struct cpu_allocation {
    void *data;
    size_t bytes;
    bool mapped;
};

struct device {
    struct device_options options;
    enum cpu_isa isa;
    const struct cpu_vector *vector;
    struct pool *pool;
    char description[128];

    struct cpu_allocation *allocation; /* [allocation_max], of `cpu_alloc` */
    int32_t allocation_count, allocation_max;

    struct cpu_kv kv;
    struct cpu_slot *slot; /* [slot_max] */
    struct cpu_step step;
    struct step_result result; /* of the step in progress */

    int32_t linear_in_max; /* of the packed weights: sizes the scratch memory */
    size_t linear_scratch_bytes;
    void *linear_scratch;
    struct cpu_attend *attend; /* [threads] */
    int32_t *attend_first;     /* [slot_max + 1] first attention task of each row */
    uint16_t *attend_zero;     /* [ATTEND_RUN, padded C] */
    struct cpu_pick *pick;     /* [threads] */
    int32_t chunk_count;       /* of V */
    struct chunk_sum *chunk;   /* [sample_max, chunk_count] of the raw logits */
};

/* Zeroed and aligned to 64 bytes, freed by close; NULL when there is none. `lazy` memory is large
 * and mostly never touched: it takes no huge pages and is not held against what is free. */
void *cpu_alloc(struct device *device, size_t bytes);
void *cpu_alloc_lazy(struct device *device, size_t bytes);
void cpu_free(struct device *device, void *data);

/* memory.c: bytes that may still be taken. */
size_t cpu_memory_free(struct device *device);
double cpu_read_rate(struct device *device);

/* For tests and benches: use `isa`, which must be available. */
void cpu_set_isa(struct device *device, enum cpu_isa isa);

/* ops_kv.c */
size_t cpu_kv_block_bytes(struct device *device, const struct kv_shape *shape);
int cpu_kv_open(struct device *device, const struct kv_shape *shape);
void cpu_kv_change(struct device *device, const struct step_change *change);
void cpu_kv_move(struct device *device, const struct step_move *move);
const int32_t *cpu_kv_table(const struct device *device, int32_t layer, int32_t slot);
/* Where the keys of a run of lanes, and the value of a position, lie in a block. */
uint16_t *cpu_kv_key(const struct device *device, int32_t layer, int32_t head, int32_t block,
                     int32_t offset);
uint16_t *cpu_kv_value(const struct device *device, int32_t layer, int32_t head, int32_t block,
                       int32_t offset);

/* ops_step.c */
int cpu_step_open(struct device *device);
void cpu_step_begin(struct device *device, const struct step *step);
void cpu_step_end(struct device *device, struct step_result *result);
int cpu_sync(struct device *device);

/* ops_slot.c */
int cpu_slot_open(struct device *device);
void cpu_slot_start(struct device *device, const struct step_start *start, const int32_t *history);
void cpu_slot_count(struct cpu_slot *slot, int32_t token, int32_t times_put_out);

/* ops_rows.c */
void cpu_embed(struct device *device, struct activation out, const struct weight *table,
               float scale, int32_t T);
void cpu_norm(struct device *device, struct activation out, struct activation x,
              const float *weight, float eps, int32_t count, int32_t D);
void cpu_add_norm(struct device *device, struct activation out, struct activation x,
                  struct activation branch, const float *branch_weight, const float *weight,
                  float eps, int32_t T, int32_t D);
void cpu_act_mul(struct device *device, struct activation out, struct activation gate_up,
                 enum act_kind act, int32_t T, int32_t F);
void cpu_gather(struct device *device, struct activation out, struct activation x, int32_t S,
                int32_t D);

/* ops_rope.c */
void cpu_rope_store(struct device *device, struct activation qkv,
                    const struct rope_store_args *args, int32_t T);

/* ops_attention.c */
int cpu_attention_open(struct device *device);
void cpu_attention(struct device *device, struct activation out, struct activation qkv,
                   const struct attention_args *args, int32_t T);

/* ops_weight.c */
size_t cpu_weight_bytes(struct device *device, enum format format, int32_t out, int32_t in);
int cpu_weight_pack(struct device *device, struct weight *weight,
                    const struct weight_source *source, int32_t part_count, const float *bias,
                    bool gated);
void cpu_linear(struct device *device, struct activation out, struct activation x,
                const struct weight *weight, int32_t T);
void cpu_gated_linear(struct device *device, struct activation out, struct activation gate_up,
                      struct activation x, const struct weight *weight, enum act_kind act,
                      int32_t T);
void cpu_logits(struct device *device, float *logits, struct activation x,
                const struct weight *head, float softcap, int32_t count);

/* ops_sample.c */
int cpu_sample_open(struct device *device);
void cpu_sample(struct device *device, float *logits, int32_t first, int32_t count);

/* ops_pick.c: one draw. Token from changed logits whose chunk sums are `sum`. */
int32_t cpu_pick_token(const struct device *device, struct cpu_pick *pick, const float *logits,
                       const struct chunk_sum *sum, const struct sampling *sampling,
                       int32_t output_index);
/* The likeliest tokens of raw logits: token and logit, likeliest first; how many. */
int32_t cpu_pick_top(const struct device *device, struct cpu_pick *pick, const float *logits,
                     const struct chunk_sum *sum, int32_t count, int32_t *token, float *value);
/* Sum over all chunks of their masses, as exp((x - max) / temperature) of the row's max. */
double cpu_pick_mass(const struct device *device, const struct chunk_sum *sum, float max,
                     float factor, bool tempered);
float cpu_pick_max(const struct device *device, const struct chunk_sum *sum);
/* True if a draw needs the tempered mass of the whole vocabulary. */
bool cpu_pick_needs_mass(const struct device *device, const struct sampling *sampling);

#endif
