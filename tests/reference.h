/* Every op in plain double loops: the truth that all backends are compared with.
 *
 * One token, one head or one sample at a time; no batching, no cache layout, no threads. Weights
 * and inputs are f32 as the device holds them. Pure.
 */
#ifndef TESTS_REFERENCE_H
#define TESTS_REFERENCE_H

#include "kernels/backend.h"

#include <stdbool.h>
#include <stdint.h>

/* How a backend rounds what it stores in its KV cache. */
enum reference_rounding { REFERENCE_EXACT, REFERENCE_F16, REFERENCE_BF16 };
double reference_round(double value, enum reference_rounding rounding);

/* out = x / sqrt(mean(x^2) + eps) * weight. [D] */
void reference_norm(double *out, const double *x, const float *weight, double eps, int32_t D);

/* As device_ops.add_norm, one token; x is changed. branch_weight may be NULL. */
void reference_add_norm(double *out, double *x, const double *branch, const float *branch_weight,
                        const float *weight, double eps, int32_t D);

/* out[i] = row i . x + bias[i]; weight [out_count, in], bias may be NULL. */
void reference_linear(double *out, const double *x, const float *weight, const float *bias,
                      int32_t out_count, int32_t in);

/* out = act(gate) * up of [gate | up]. [2F] to [F] */
void reference_act_mul(double *out, const double *gate_up, enum act_kind act, int32_t F);

/* softcap * tanh(x / softcap), or x where softcap is 0. */
double reference_softcap(double x, double softcap);

/* Norms (weight may be NULL) and rotates one head at a position, as rope_store does. [C] */
void reference_rope(double *head, const float *norm, double eps, const struct rope_store_args *args,
                    const float *rope_table, int32_t position);

/* One query head at `position` over k and v of its sequence, [position + 1, C] each, rows of
 * `stride`. `sink` may be NULL. */
void reference_attention(double *out, const double *q, const double *k, const double *v,
                         int64_t stride, int32_t position, const struct attention_args *args,
                         const float *sink);

/* A sequence as the sampler knows it. */
struct reference_history {
    const int32_t *token; /* [token_count] */
    int32_t token_count;
    int32_t prompt_count;
};

/* The kept set after all effects of kernels/sampling_math.h: probability[id], 0 where dropped.
 * Greedy: 1 at the one token. [V] */
void reference_distribution(double *probability, const float *logits, int32_t V,
                            const struct sampling *sampling,
                            const struct reference_history *history, int32_t output_index);

/* The token that u draws from a kept set. */
int32_t reference_draw(const double *probability, int32_t V, double u);

/* True if `token` is what u draws, or would be with u moved by `tolerance` at most. */
bool reference_draw_fits(const double *probability, int32_t V, double u, int32_t token,
                         double tolerance);

/* log softmax of the raw logits at `token`, and how many are likelier. */
double reference_logprob(const float *logits, int32_t V, int32_t token);
int32_t reference_rank(const float *logits, int32_t V, int32_t token);

/* The likeliest tokens, likeliest first, ties to the lowest id; -1 where no more has a
 * probability. [count] */
void reference_top(int32_t *token, const float *logits, int32_t V, int32_t count);

#endif
