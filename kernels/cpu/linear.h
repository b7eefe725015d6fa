/* out = x . weight^T + bias on the CPU, for every weight format.
 *
 * Weights are packed once: output rows lie interleaved, 16 and 16, so that a vector holds one value
 * of each, and no sum runs across lanes. The packing is the same for every instruction set and
 * takes no more bytes than the file for the formats that matter (linear_layout.h describes it).
 *
 * Quantised formats multiply exact integers. Activations become 16-bit integers with one f32 scale
 * for each 32 values of a token; the products of a block are summed as integers, exactly; then one
 * f32 multiply-add of that sum with (weight scale * activation scale) for each block, in ascending
 * K. F32, F16 and BF16 weights multiply f32 activations, one fused multiply-add for each value, in
 * ascending K. So what a token gets depends on that token and the weight alone: not on T, on its
 * neighbours, on the threads or on the instruction set.
 *
 * An activation that is not finite makes its token's outputs NaN in quantised formats.
 */
#ifndef KERNELS_CPU_LINEAR_H
#define KERNELS_CPU_LINEAR_H

#include "kernels/backend.h"
#include "kernels/cpu/cpu_isa.h"
#include "kernels/cpu/pool.h"

#include <stddef.h>
#include <stdint.h>

enum {
    LINEAR_ROWS = 64,  /* output rows in a group */
    LINEAR_ALIGN = 64, /* of packed weights and scratch memory */
};

/* ---- packing: once, any thread ---- */

/* Bytes of a packed tensor, a multiple of LINEAR_ALIGN. `in` must be a multiple of the format's
 * block; any `out` will do. */
size_t linear_packed_bytes(enum format format, int32_t out, int32_t in);

/* Groups of LINEAR_ROWS rows, the last one padded with zero rows. */
int32_t linear_group_count(int32_t out);

/* Packs the groups [group_first, group_first + group_count) of `source` into `target`, the packed
 * tensor (LINEAR_ALIGN). Different groups may be packed by different threads. */
void linear_pack_groups(const struct weight_source *source, void *target, int32_t group_first,
                        int32_t group_count);

/* Packs all of it with the pool's threads. */
void linear_pack(struct pool *pool, const struct weight_source *source, void *target);

/* Row `row` of a packed tensor as f32, bit for bit what format_dequantise gives. [in] */
void linear_row(const struct weight_part *part, int32_t in, int32_t row, float *target);

/* ---- running ---- */

/* Bytes of scratch memory (LINEAR_ALIGN) that linear_run needs for `in` up to in_max and T up to
 * token_max. */
size_t linear_scratch_bytes(const struct pool *pool, int32_t in_max, int32_t token_max);

struct linear_call {
    const struct weight *weight; /* parts are joined along `out`; formats may differ */
    const float *x;              /* [T, in], rows of x_stride */
    int64_t x_stride;
    float *out; /* [T, weight->out], rows of out_stride; not x */
    int64_t out_stride;
    int32_t T;
    void *scratch; /* linear_scratch_bytes */
};

/* Does the call with the pool's threads. `isa` must be available. */
void linear_run(struct pool *pool, enum cpu_isa isa, const struct linear_call *call);

#endif
