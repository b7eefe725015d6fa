/* A CUDA device: what its files share, private to this backend.
 *
 * Everything is queued on one stream, so ops run in the order of their calls and one copy of the
 * step's data on the device serves two steps in flight: the copy of step n + 1 waits in the
 * stream for the kernels of step n. Only the pinned memory on the host is there once a step.
 * Fixed addresses are also what lets a captured graph be launched for any later step.
 *
 * A failed call is kept in `fault` and comes out of `sync` (backend.h). All functions belong to
 * the device's thread. Activations are bf16 and the residual stream f32 (activation.cuh); keys and
 * values are f16.
 */
#ifndef KERNELS_CUDA_DEVICE_CUH
#define KERNELS_CUDA_DEVICE_CUH

extern "C" {
#include "kernels/backend.h"
}

#include <cuda_fp16.h>
#include <cuda_runtime.h>

enum {
    WARP = 32,
    SHARED_BYTES_LEAST = 99 * 1024, /* a block may have them on any GPU from sm_80 on */
    SAMPLE_ROWS = 256,              /* samples of one launch */
    ATTENTION_KINDS = KV_GROUP_MAX, /* of layers with a work list of their own */
};

/* What a step is made of on the device, each part at a fixed offset of one allocation. */
enum step_part {
    PART_COUNTS,
    PART_START,
    PART_HISTORY,
    PART_CHANGE,
    PART_MOVE,
    PART_ROW,
    PART_TOKEN,
    PART_SAMPLE,
    PART_COUNT,
};

/* Sizes that change from step to step: kernels read them from the device. */
struct step_counts {
    int32_t token_count;
    int32_t sample_count;
    int32_t row_count;
};

/* What one sample gave; the host scatters it into struct step_result. */
struct drawn {
    int32_t token;
    float logprob;
    int32_t rank;
    int32_t top_token[SAMPLING_TOP_MAX];
    float top_logprob[SAMPLING_TOP_MAX];
};

/* The step as kernels see it. */
struct step_view {
    const struct step_counts *counts;
    const struct step_start *start; /* [slot_max] */
    const int32_t *history;         /* [history_max] */
    const struct step_move *move;
    const struct step_row *row;       /* [slot_max] */
    const struct step_sample *sample; /* [sample_max] */
    int32_t *token;                   /* [token_max]; ids on the device are filled in */
    int32_t *slot;                    /* [token_max] whose token it is */
    int32_t *position;                /* [token_max] */
};

/* State by slot. */
struct slot_view {
    struct sampling *sampling; /* [slot_max] */
    int32_t *seen;             /* [slot_max, V] 2 * times put out, + 1 when in the prompt; kept
                                  where the slot's sequence penalises, else left as it was */
    int32_t *last;             /* [slot_max] last draw */
};

/* What sampling works in (sample.cuh); a run is a part of V. */
struct sample_view {
    struct run_sum *sum; /* [SAMPLE_ROWS, 2, runs] */
    uint64_t *kept;      /* [SAMPLE_ROWS, runs] */
    uint32_t *arrived;   /* [SAMPLE_ROWS] blocks that are done; 0 between launches */
};

/* The cache: [block, layer of the group, k or v, position, K, C]. */
struct kv_view {
    __half *pool;
    int32_t *table;       /* [slot_max, group_count, table_width] */
    int64_t block_stride; /* elements */
    int64_t half_stride;  /* elements of one layer's k (or v) in a block */
    int32_t group_count;
    int32_t table_width;
    int32_t block_tokens;
};

/* A step between step_begin and sync. */
struct flight {
    uint8_t *staging;    /* pinned; laid out as the device's copy */
    struct drawn *drawn; /* pinned, [sample_max] */
    cudaEvent_t done;
    struct step_result *result;
    int32_t sample_count;
    bool ended;
};

/* Attention's work lists and what its partial results go through (attention.cuh). A list is made
 * once a step for each kind of layer, or once in a capture. */
struct attention_list {
    struct attention_plan *plan;
    struct attention_item *wide, *narrow, *merge;
    int32_t group, window, wide_rows; /* what it is made for */
};

/* Tokens that a row of a step has at least and at most. */
struct row_range {
    int32_t least, most;
};

struct attention_state {
    struct row_range rows;     /* of the step begun last */
    struct row_range captured; /* what was recorded since the capture began is good for these */
    struct attention_list list[ATTENTION_KINDS];
    int32_t list_count; /* made since the step began, or the capture */
    float *partial;
    int32_t *ticket;
    int32_t slot_max;
    int32_t partial_tokens;
};

/* A tensor as it is to lie on the device: part[0], or stripes of `stripe` bytes of two parts in
 * turn where that is not 0. */
struct weight_bytes {
    const uint8_t *part[2];
    size_t bytes;
    size_t stripe;
};

struct captured {
    int64_t key;
    struct row_range rows; /* that it is good for */
    cudaGraphExec_t exec;
};

struct device {
    struct device_options options;
    cudaError_t fault; /* the first; cudaSuccess when there is none */
    char fault_text[160];
    cudaStream_t stream;
    char description[160];
    int32_t core_count;   /* multiprocessors */
    int32_t shared_bytes; /* that a block may have */
    bool overlaps;        /* kernels may begin while the one before them ends (launch.cuh) */
    bool hopper;          /* kernels of sm_90a may run: wgmma, bulk copies by tensor maps */
    void *encode;         /* the driver's maker of tensor maps (matmul.cu), or NULL */

    void **memory; /* [memory_count] for close */
    int32_t memory_count, memory_max;
    size_t memory_bytes; /* of them all */

    struct step_view step;
    uint8_t *step_data;
    size_t part_offset[PART_COUNT + 1];
    struct drawn *drawn; /* [sample_max] */
    struct flight flight[STEP_DEPTH];
    int64_t begun, synced; /* steps */

    struct slot_view slots;
    struct sample_view sample;

    struct kv_view kv;
    struct kv_shape kv_shape;
    int32_t *layer_group; /* [layer_count] on the host */
    int32_t *layer_index; /* [layer_count] place of the layer in its group */

    struct attention_state attention;
    struct weight_loader *loader; /* while weights come in, else NULL */

    struct tuned_table tuned; /* of products (tune.cu) */

    struct captured *graph; /* [graph_count] */
    int32_t graph_count, graph_max;
};

/* Keeps the first failure, and the function that met it: a kernel's own is met later. True when
 * `error` is none. */
bool cuda_check(struct device *device, cudaError_t error, const char *where);

static inline void launch_check(struct device *device, const char *where)
{
    (void)cuda_check(device, cudaGetLastError(), where);
}

static inline int32_t ceil_div(int32_t value, int32_t by)
{
    return (value + by - 1) / by;
}

/* Memory for the life of the device, zeroed; NULL when there is none, which is no fault. */
void *cuda_alloc(struct device *device, size_t bytes);

/* step.cu */
bool cuda_step_open(struct device *device); /* false: no memory */
void cuda_step_close(struct device *device);
void cuda_step_begin(struct device *device, const struct step *step);
void cuda_step_end(struct device *device, struct step_result *result);
int cuda_sync(struct device *device);

/* read_rate.cu */
double cuda_read_rate(struct device *device);

/* tune.cu */
int cuda_tune(struct device *device, const struct weight *const *weight, int32_t count, bool logits,
              int32_t T, struct tuned_line *line);
int cuda_tuned(struct device *device, const struct tuned_line *line);

/* kv.cu */
size_t cuda_kv_block_bytes(struct device *device, const struct kv_shape *shape);
size_t cuda_kv_fixed_bytes(struct device *device, const struct kv_shape *shape);
int cuda_kv_open(struct device *device, const struct kv_shape *shape);
void cuda_kv_close(struct device *device);
void cuda_kv_copy(struct device *device, int32_t move_count);

/* load.cu: false when there is no pinned memory or no thread for it. */
bool cuda_load(struct device *device, void *target, const struct weight_bytes *source);
void cuda_load_end(struct device *device);

/* graph.cu */
void cuda_graph_close(struct device *device);
bool cuda_graph_begin(struct device *device, int64_t key);
bool cuda_graph_end(struct device *device, int64_t key);
bool cuda_graph_launch(struct device *device, int64_t key);
size_t cuda_graph_bytes(struct device *device, int32_t layer_count);

/* sample.cu */
bool cuda_sample_open(struct device *device); /* false: no memory */
/* Slots take the parameters of new sequences, and count the tokens of those that penalise. */
void cuda_sample_start(struct device *device, int32_t start_count);

/* The ops, as backend.h says; each in its own file. */
void cuda_embed(struct device *device, struct activation out, const struct weight *table,
                float scale, int32_t T);
void cuda_norm(struct device *device, struct activation out, struct activation x,
               const float *weight, float eps, int32_t count, int32_t D);
void cuda_add_norm(struct device *device, struct activation out, struct activation x,
                   struct activation branch, const float *branch_weight, const float *weight,
                   float eps, int32_t T, int32_t D);
void cuda_linear(struct device *device, struct activation out, struct activation x,
                 const struct weight *weight, int32_t T);
void cuda_gated_linear(struct device *device, struct activation out, struct activation gate_up,
                       struct activation x, const struct weight *weight, enum act_kind act,
                       int32_t T);
void cuda_act_mul(struct device *device, struct activation out, struct activation gate_up,
                  enum act_kind act, int32_t T, int32_t F);
void cuda_rope_store(struct device *device, struct activation qkv,
                     const struct rope_store_args *args, int32_t T);
void cuda_attention(struct device *device, struct activation out, struct activation qkv,
                    const struct attention_args *args, int32_t T);
void cuda_gather(struct device *device, struct activation out, struct activation x, int32_t S,
                 int32_t D);
void cuda_logits(struct device *device, float *logits, struct activation x,
                 const struct weight *head, float softcap, int32_t count);
void cuda_sample(struct device *device, float *logits, int32_t first, int32_t count);

#endif
