/* Attention on tensor cores: what an item needs, how keys and values come in, one tile's step.
 * attention.cuh tells what all this must keep. */
#ifndef KERNELS_CUDA_ATTENTION_BODY_CUH
#define KERNELS_CUDA_ATTENTION_BODY_CUH

#include "kernels/cuda/attention.cuh"

#include <math_constants.h>

/* A launch, as kernels see it. */
struct attention_call {
    bf16 *out; /* [T, H C] */
    const bf16 *query;
    int64_t out_stride;
    int64_t stride;
    struct attention_args args;
    struct kv_layer layer;
    struct step_view step;
    struct attention_work work;
    int32_t group; /* G */
    float scale;   /* of what is in the exponent of 2: scale log2(e), or log2(e) with a soft cap */
};

/* One tile of query rows on one kv head, and the positions that it goes through. */
struct attention_tile {
    struct attention_item item;
    int32_t first, count; /* query rows */
    int32_t kv_head;
    int32_t low, high;  /* first and last position that a row sees */
    int32_t begin, end; /* of these, those to go through */
};

/* Which of its part's tokens a query row is; most parts have one. */
__device__ static inline int32_t token_of(const struct attention_call &call,
                                          const struct attention_item &item, int32_t row)
{
    return item.token_count == 1 ? 0 : row / call.group;
}

__device__ static inline struct attention_tile tile_of(const struct attention_call &call,
                                                       struct attention_item item, int32_t kv_head,
                                                       int32_t rows)
{
    struct attention_tile tile;
    tile.item = item;
    tile.first = item.first;
    tile.count = min(rows, tile.item.token_count * call.group - item.first);
    tile.kv_head = kv_head;
    int32_t start = tile.item.position + token_of(call, item, tile.first);
    tile.low = call.args.window > 0 ? max(start - call.args.window + 1, 0) : 0;
    tile.high = tile.item.position + token_of(call, item, tile.first + tile.count - 1);
    tile.begin = tile.low;
    tile.end = tile.high + 1;
    if (item.partial >= 0) {
        int32_t end = item.partial + item.partial_count;
        tile.begin = max(tile.begin, item.partial * call.work.partial_tokens);
        tile.end = min(tile.end, end * call.work.partial_tokens);
    }
    return tile;
}

/* One query row: where it lies and what it sees. Rows past the tile's count see nothing. */
struct query_row {
    const bf16 *query; /* NULL: past the count */
    bf16 *out;
    int32_t head;
    int32_t low, high;
};

__device__ static inline struct query_row row_of(const struct attention_call &call,
                                                 const struct attention_tile &tile, int32_t r)
{
    struct query_row row = {NULL, NULL, 0, 0, -1};
    if (r >= tile.count)
        return row;
    int32_t token = token_of(call, tile.item, tile.first + r);
    row.head = tile.kv_head * call.group + tile.first + r - token * call.group;
    int64_t column = (int64_t)row.head * call.args.head_width;
    row.query = call.query + (tile.item.token_first + token) * call.stride + column;
    row.out = call.out + (tile.item.token_first + token) * call.out_stride + column;
    row.high = tile.item.position + token;
    row.low = call.args.window > 0 ? max(row.high - call.args.window + 1, 0) : 0;
    return row;
}

/* The A operand of step k (16 columns) for rows g and g + 8, see load_query. */
__device__ static inline void query_step(uint32_t (&a)[4], const struct query_row (&row)[2],
                                         int32_t k)
{
    int32_t column = k * 16 + threadIdx.x % 4 * 2;
    for (int32_t i = 0; i < 2; i++) {
        const bf16 *query = row[i].query;
        a[i] = query == NULL ? 0 : pack_query(*(const uint32_t *)(query + column));
        a[i + 2] = query == NULL ? 0 : pack_query(*(const uint32_t *)(query + column + 8));
    }
}

/* Element offset of a position's key in this head, -1 where no row of the tile sees it. */
__device__ static inline int64_t key_offset(const struct attention_call &call,
                                            const struct attention_tile &tile, int32_t position)
{
    if (position < tile.begin || position >= tile.end)
        return -1;
    return kv_offset(call.layer, tile.item.sequence, position) +
           (int64_t)tile.kv_head * call.args.head_width;
}

/* Starts the copy of a tile's keys and values; `offset` is shared, [KV_TILE]. */
template <int C, int THREADS>
__device__ static inline void load_tile(uint32_t stage, const int64_t *offset,
                                        const struct kv_layer &layer)
{
    using layout = tile_layout<C>;
#pragma unroll
    for (int32_t i = threadIdx.x % THREADS; i < KV_TILE * layout::CHUNKS; i += THREADS) {
        int32_t r = i / layout::CHUNKS, chunk = i % layout::CHUNKS;
        int64_t at = offset[r];
        int32_t bytes = at < 0 ? 0 : 16;
        const __half *key = layer.key + (at < 0 ? 0 : at + chunk * 8);
        copy_async(stage + layout::at(r, chunk), key, bytes);
        copy_async(stage + layout::BYTES + layout::at(r, chunk), key + layer.value_offset, bytes);
    }
}

/* A score of a row: soft cap and mask. */
__device__ static inline float capped(float score, const struct attention_args &args)
{
    if (args.softcap > 0.0f)
        score = __fmul_rn(args.softcap, tanhf(__fmul_rn(score, args.scale) / args.softcap));
    return score;
}

/* A row's running softmax within a partial. Weights are relative to the maximum of the first tile
 * that the row saw something of, and to a later tile's from where that is more than RAISE above it:
 * so values seldom have to shrink, and weights are at most 2^RAISE, far below the end of f16 (for
 * scores below 2^27 in units of the exponent: there RAISE is no longer above a rounding). What is
 * called a maximum here, in a total and in a slot is that base, -infinity where nothing is seen. */
struct running {
    float maximum; /* in units of the exponent of 2 */
    float factor;  /* of what is before the tile */
    float base;    /* `maximum`, or UNSEEN where there is none yet */
};

/* Relative to UNSEEN whatever is seen has an infinite weight, and what is not seen none. */
static constexpr float RAISE = 8.0f, UNSEEN = -0x1p100f;

/* True: the tile has a score so far above, and the row is raised. */
__device__ static inline bool advance(struct running &state, float tile_maximum, float scale)
{
    float before = state.maximum, own = __fmul_rn(tile_maximum, scale);
    bool raised = own > __fadd_rn(before, RAISE);
    if (raised)
        state.maximum = own;
    state.base = state.maximum == -CUDART_INF_F ? UNSEEN : state.maximum;
    state.factor = exp2_fast(before - state.base);
    return raised;
}

/* ---- of narrow items: a warp has 16 positions of a tile, a thread rows g and g + 8 ---- */

/* Positions that a row sees. */
struct row_view {
    int32_t low, high;
};

/* Cap, mask, maximum of the warp's positions for row g + 8 i. */
template <bool CAPPED>
__device__ static inline float narrow_mask(float (&score)[2][4], const struct attention_args &args,
                                           struct row_view row, int32_t i, int32_t position)
{
    float maximum = -CUDART_INF_F;
#pragma unroll
    for (int32_t j = 0; j < 4; j++) {
        float &own = score[j / 2][2 * i + j % 2];
        int32_t at = position + j / 2 * 8 + j % 2;
        if (CAPPED)
            own = capped(own, args);
        own = at >= row.low && at <= row.high ? own : -CUDART_INF_F;
        maximum = fmaxf(maximum, own);
    }
    return quad_max(maximum);
}

/* The weights of row g + 8 i in one tile, whose maximum over all warps is `most`; the row's state
 * goes on. */
__device__ static inline void narrow_weigh(struct running &row, float &row_sum,
                                           uint32_t (&packed)[4], const float (&score)[2][4],
                                           float most, float scale, int32_t i)
{
    float weight[4];
    advance(row, most, scale);
#pragma unroll
    for (int32_t j = 0; j < 4; j++)
        weight[j] = weight_of(score[j / 2][2 * i + j % 2], scale, row.base);
    float sum = __fadd_rn(__fadd_rn(__fadd_rn(weight[0], weight[1]), weight[2]), weight[3]);
    row_sum = __fmaf_rn(row_sum, row.factor, sum);
    packed[i] = pack_half(weight[0], weight[1]);
    packed[i + 2] = pack_half(weight[2], weight[3]);
}

/* ---- of all items ---- */

/* What a row has when all its partials are folded. */
struct row_total {
    float maximum, sum;
};

/* A sink takes part in the sum and has no value: the factor that values get. */
__device__ static inline float with_sink(struct row_total &total, const float *sink)
{
    float factor = 1.0f;
    if (sink != NULL) {
        float other = __fmul_rn(*sink, CUDART_L2E_F);
        float both = fmaxf(total.maximum, other);
        factor = exp2_fast(total.maximum - both);
        total.sum = __fmaf_rn(total.sum, factor, exp2_fast(other - both));
    }
    return factor;
}

/* + 0: no output is -0. */
__device__ static inline float quotient(float value, float factor, float sum)
{
    return __fadd_rn(__fdiv_rn(__fmul_rn(value, factor), sum), 0.0f);
}

/* attention_narrow.cu: the narrow items of the work list. */
void cuda_attention_narrow(struct device *device, const struct attention_call &call);
/* attention_narrow_sm80.cu: the same on other GPUs; or the wide ones, in tiles of NARROW_ROWS. */
void cuda_attention_narrow_sm80(struct device *device, const struct attention_call &call,
                                bool wide);
/* attention_prompt.cu: the wide items of the work list, of so many rows, where it fits: 64 for each
 * warpgroup, of which a multiprocessor's registers hold three at width 64, two at others. */
enum { PROMPT_GROUP_ROWS = 64 };
__host__ __device__ constexpr int32_t prompt_item_rows(int32_t head_width)
{
    return PROMPT_GROUP_ROWS * (head_width <= 64 ? 3 : 2);
}
bool cuda_attention_prompt_fits(const struct device *device, int32_t head_width);
void cuda_attention_prompt(struct device *device, const struct attention_call &call);

#endif
