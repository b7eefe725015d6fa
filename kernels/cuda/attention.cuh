/* Attention on tensor cores: its work list, and the arithmetic that all its bodies share.
 *
 * The unit of work is a tile of query rows: the tokens of one sequence's part of the step times
 * the G query heads that share a kv head, row = token * G + head. Small parts are cut into tiles
 * of 16 rows and along the context, large ones into tiles of 64 or 128 rows. What a row gives does
 * not depend on that, because every body does the same arithmetic for it:
 * - keys and values go by in tiles of KV_TILE positions counted from position 0, ascending;
 * - a score is one chain of mma.sync m16n8k16 over C, f16 in and f32 out, P is rounded to f16,
 *   an output is one chain over positions;
 * - the running softmax starts anew at each multiple of `partial` positions, its weights are
 *   relative to what `advance` says, and what the partials give (that, sum, values) is folded in
 *   their order by partial_fold;
 * - the sum of a row's weights is kept in sixteen parts: (position / 16 % 4, position / 2 % 4).
 * A row that sees nothing of a tile or of a partial keeps its bits: it is multiplied by 1 (zeros by
 * whatever it is), and 0 is added.
 */
#ifndef KERNELS_CUDA_ATTENTION_CUH
#define KERNELS_CUDA_ATTENTION_CUH

#include "kernels/cuda/activation.cuh"
#include "kernels/cuda/kv.cuh"
#include "kernels/cuda/mma.cuh"

enum {
    KV_TILE = 64,
    PARTIAL_TOKENS = 512,
    NARROW_ROWS = 16,     /* rows of a tile that is also cut along the context */
    NARROW_TILES_MAX = 2, /* a part with more rows than these hold is cut into wide tiles */
    GROUP_MAX = 64,       /* G */
};

static_assert(PARTIAL_TOKENS % KV_TILE == 0, "a tile belongs to one partial");

/* Head widths that have kernels on tensor cores. */
#define TENSOR_WIDTHS(WIDTH) WIDTH(64) WIDTH(80) WIDTH(96) WIDTH(128) WIDTH(192) WIDTH(256)

enum { PARTIAL_ALL = -1 }; /* an item goes through all partials of its tile */

/* Blocks of narrow items on a multiprocessor. */
__host__ __device__ static constexpr int32_t narrow_blocks(int32_t head_width)
{
    return head_width <= 128 ? 2 : 1;
}

/* Between launches each byte of each slot has this value (attention_merge.cuh). */
enum { SLOT_EMPTY_BYTE = 0xff };

/* Whole in itself: what an item needs is one load away. */
struct alignas(16) attention_item {
    int32_t sequence;    /* slot of the sequence */
    int32_t position;    /* of the row of the step */
    int32_t token_first; /* likewise */
    int32_t token_count;
    int32_t first;         /* the tile's first query row, of the row's token_count * G */
    int32_t partial;       /* the first one it goes through, or PARTIAL_ALL */
    int32_t partial_count; /* how many; of a merge, the slots that it folds */
    int32_t slot;          /* where its result goes, unless it has all; of a merge, the first */
};

/* On the device. */
struct alignas(16) attention_plan {
    int32_t wide_count;
    int32_t narrow_count;
    int32_t merge_count; /* tiles that are several items */
    int32_t merge_rows;  /* that one of them has at most */
};

/* What a plan is made for; layers that are alike share it. */
struct attention_key {
    int32_t group; /* G */
    int32_t window;
    int32_t wide_rows; /* of a wide tile */
    bool taken;        /* narrow items, by whom is free; else each block has its own */
};

/* What blocks take off the list, by turns: two counts each. */
enum ticket_kind { TICKET_WIDE, TICKET_NARROW, TICKET_KINDS };

/* As kernels see it. */
struct attention_work {
    struct attention_plan *plan;
    struct attention_item *wide;   /* see cuda_attention_bytes */
    struct attention_item *narrow; /* likewise, the largest first */
    struct attention_item *merge;  /* [rows, NARROW_TILES_MAX] */
    float *partial;                /* [slot_max, K, NARROW_ROWS (C + 2)] see narrow_put */
    int32_t *ticket;               /* [TICKET_KINDS] items that were taken, and as many of
                                    * blocks that are done with them; 0 between launches */
    int32_t slot_max;              /* of `partial`, / K */
    int32_t partial_tokens;
    int32_t heads, blocks; /* K, and how many blocks share the narrow items */
    bool fresh;            /* the list is made by the kernel just before this one */
    bool beside;           /* narrow items: the kernel before has the wide ones of this op, and
                            * began when all that was before it was whole */
};

/* Which items the step's list has. */
struct attention_kinds {
    bool wide, narrow;
};

/* One thread of each block that takes, when there was no more for it: the last one leaves the
 * counts as the next launch is to find them. */
__device__ static inline void end_tickets(const struct attention_work &work, enum ticket_kind kind)
{
    if (atomicAdd(&work.ticket[TICKET_KINDS + kind], 1) == (int32_t)gridDim.x - 1) {
        work.ticket[kind] = 0;
        work.ticket[TICKET_KINDS + kind] = 0;
    }
}

__device__ static inline float exp2_fast(float value)
{
    float result;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(value));
    return result;
}

/* Two floats to f16, `low` in the lower half. */
__device__ static inline uint32_t pack_half(float low, float high)
{
    uint32_t result;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(high), "f"(low));
    return result;
}

/* Queries saturate as keys do, so that no infinity meets a zero. */
__device__ static inline uint32_t pack_query(uint32_t pair)
{
    float2 value = unpack_bf16(pair);
    return pack_half(fminf(fmaxf(value.x, -65504.0f), 65504.0f),
                     fminf(fmaxf(value.y, -65504.0f), 65504.0f));
}

__device__ static inline float quad_max(float value)
{
    value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, 1));
    return fmaxf(value, __shfl_xor_sync(0xffffffffu, value, 2));
}

__device__ static inline float quad_sum(float value)
{
    value = __fadd_rn(value, __shfl_xor_sync(0xffffffffu, value, 1));
    return __fadd_rn(value, __shfl_xor_sync(0xffffffffu, value, 2));
}

/* Where chunk `chunk` (16 bytes) of row `row` lies in a tile of C columns: free of bank conflicts
 * when eight rows of one chunk are read. Swizzled, it is what wgmma reads: pieces of 64 columns,
 * [C / 64][KV_TILE][64], chunks of a row exchanged by its number's low bits. */
template <int C> struct tile_layout {
    static constexpr bool SWIZZLED = C % 64 == 0;
    static constexpr int32_t CHUNKS = C / 8;
    static constexpr int32_t ROW_BYTES = SWIZZLED ? 128 : C * 2 + 16;
    static constexpr int32_t PIECE_BYTES = KV_TILE * 128;
    static constexpr int32_t BYTES = SWIZZLED ? C / 64 * PIECE_BYTES : KV_TILE * ROW_BYTES;
    static_assert(C % 16 == 0, "whole steps of the matrix unit, and an odd number of chunks");
    __device__ static inline uint32_t at(int32_t row, int32_t chunk)
    {
        if (SWIZZLED)
            return (uint32_t)(chunk / 8 * PIECE_BYTES + row * ROW_BYTES +
                              (((chunk ^ row) & 7) << 4));
        return (uint32_t)(row * ROW_BYTES + (chunk << 4));
    }
};

/* exp2 of what a score has above a row's base, which is in units of the exponent, and finite. */
__device__ static inline float weight_of(float score, float scale, float base)
{
    return exp2_fast(__fmaf_rn(score, scale, -base));
}

/* A maximum that can be subtracted. */
__device__ static inline float finite(float maximum)
{
    return maximum == -INFINITY ? 0.0f : maximum;
}

/* Factors that fold a partial (its maximum) into what lies before it; `maximum` becomes that of
 * both. Folding into nothing gives the partial's own bits. */
__device__ static inline float2 partial_factors(float &maximum, float partial_maximum)
{
    float both = fmaxf(maximum, partial_maximum), base = finite(both);
    float2 factor = {exp2_fast(maximum - base), exp2_fast(partial_maximum - base)};
    maximum = both;
    return factor;
}

__device__ static inline float partial_fold(float before, float partial, float2 factor)
{
    return __fmaf_rn(partial, factor.y, __fmul_rn(before, factor.x));
}

/* attention_plan.cu: the work list of this step for layers of this kind, made on the device. */
bool cuda_attention_open(struct device *device, const struct kv_shape *shape);
/* What that takes of the device's memory. */
size_t cuda_attention_bytes(const struct device *device, const struct kv_shape *shape);
struct attention_work cuda_attention_work(struct device *device, struct attention_key key);

/* What the rows of the step begun last need, known on the host; a capture keeps in mind for which
 * steps what it leaves out is not needed. */
struct attention_kinds cuda_attention_kinds(struct device *device, int32_t group);

#endif
