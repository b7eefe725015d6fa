/* What is compiled for each instruction set: loops over one token, head, tile or chunk.
 *
 * Threads, rows, blocks and slots are the business of the callers (ops_*.c). Results do not
 * depend on how a caller batches: each is a function of its own inputs in a fixed order.
 */
#ifndef KERNELS_CPU_OPS_VECTOR_H
#define KERNELS_CPU_OPS_VECTOR_H

#include "kernels/backend.h"
#include "kernels/cpu/cpu_isa.h"

#include <stdint.h>

enum {
    ATTEND_TILE = 32,    /* positions, counted from 0: the unit of the running softmax */
    ATTEND_RUN = 16,     /* positions whose keys lie transposed together */
    ATTEND_ALIGN = 32,   /* columns of v and of accumulators are padded to a multiple */
    SAMPLE_CHUNK = 1024, /* logits of which one maximum and one sum are kept */
};

/* Logits of a chunk: the largest, and sum of exp((x - max) / temperature). */
struct chunk_sum {
    float max;
    float raw;      /* at temperature 1, where asked for */
    float tempered; /* at the sample's, where asked for */
};

/* Where a tile lies in the cache: runs of keys, [C, ATTEND_RUN] each, and rows of values, [C]
 * each; and the tile that will be asked for next. */
struct attend_tile {
    const uint16_t *key[ATTEND_TILE / ATTEND_RUN], *next_key[ATTEND_TILE / ATTEND_RUN];
    const uint16_t *value[ATTEND_TILE], *next_value[ATTEND_TILE];
};

struct cpu_vector {
    /* out = x / sqrt(mean(x^2) + eps) * weight; out may be x. */
    void (*norm)(float *out, const float *x, const float *weight, float eps, int32_t D);
    /* x += branch */
    void (*add)(float *x, const float *branch, int32_t D);
    /* x += branch / sqrt(mean(branch^2) + eps) * weight */
    void (*add_normed)(float *x, const float *branch, const float *weight, float eps, int32_t D);
    void (*scale)(float *x, float factor, int32_t D);
    void (*softcap)(float *x, float cap, int64_t count);
    /* out = act(gate) * up; silu within 4 ulp, gelu within 6 (of the formula, x of moderate size)
     */
    void (*act_mul)(float *out, const float *gate, const float *up, enum act_kind act, int32_t F);
    /* Rotates the pairs of a head; angle [pair_count, 2] cos and sin. */
    void (*rotate)(float *head, const float *angle, int32_t pair_count, enum rope_pairing pairing);
    /* Rounds to nearest even, saturating. */
    void (*to_f16)(uint16_t *out, const float *x, int32_t count);

    /* Attention over a tile. Keys lie transposed: key [C, stride] halves of `lanes` positions
     * become target [C, ATTEND_TILE] floats. */
    void (*load_key)(float *target, const uint16_t *key, int32_t lanes, int32_t C);
    /* `count` halves to floats. */
    void (*load_value)(float *target, const uint16_t *value, int32_t count);
    /* The same bits as scores and values below, straight from the cache, without a tile of floats
     * between: faster for up to direct_max rows. C must be a multiple of ATTEND_ALIGN. */
    int32_t direct_max;
    void (*scores_direct)(float *score, const float *q, const struct attend_tile *tile,
                          int32_t rows, int32_t C);
    void (*values_direct)(float *out, const float *factor, const float *weight,
                          const struct attend_tile *tile, int32_t rows, int32_t C);
    /* score[r, p] = sum over c, ascending, of q[r, c] * key[c, p]. [rows, ATTEND_TILE] */
    void (*scores)(float *score, const float *q, const float *key, int32_t rows, int32_t C);
    /* One row of the running softmax: scores become weights, max and sum go on; gives the factor
     * for what was accumulated before. */
    float (*soften)(float *score, float *max, float *sum);
    /* out[r, c] = out[r, c] * factor[r] + sum over p, ascending, of weight[r, p] * value[p, c]. */
    void (*values)(float *out, const float *factor, const float *weight, const float *value,
                   int32_t rows, int32_t C);

    /* Sampling over one chunk of `count` logits. */
    /* Makes them finite (sampling_finite); the largest. */
    float (*chunk_max)(float *x, int32_t count);
    /* Sum of exp((x - max) * factor). */
    float (*chunk_mass)(const float *x, int32_t count, float max, float factor);
    /* weight = exp((x - max) * factor) */
    void (*chunk_weights)(float *weight, const float *x, int32_t count, float max, float factor);
    /* Appends ids first + i and logits of those >= floor; how many. */
    int32_t (*chunk_collect)(const float *x, int32_t count, float floor, int32_t first,
                             float *value, int32_t *token);
    /* How many are > value. */
    int32_t (*chunk_above)(const float *x, int32_t count, float value);
};

/* The table for an instruction set that this machine has. */
const struct cpu_vector *cpu_vector(enum cpu_isa isa);

extern const struct cpu_vector cpu_vector_plain;
extern const struct cpu_vector cpu_vector_avx2;
extern const struct cpu_vector cpu_vector_avx512;

#endif
