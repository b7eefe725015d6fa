/* Every op in plain double loops; see reference.h. Written for reading, not for speed. */
#include "tests/reference.h"

#include "kernels/sampling_math.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Rounds to `bits` of significand (the implied one counted), to even, no smaller step than
 * 2^step_least. */
static double round_significand(double value, int bits, int step_least)
{
    int exponent;

    if (value == 0.0 || !isfinite(value))
        return value;
    frexp(value, &exponent);
    int step = exponent - bits;
    if (step < step_least)
        step = step_least;
    return ldexp(nearbyint(ldexp(value, -step)), step);
}

double reference_round(double value, enum reference_rounding rounding)
{
    if (rounding == REFERENCE_F16) {
        double rounded = round_significand(value, 11, -24);
        return fmax(-65504.0, fmin(65504.0, rounded));
    }
    if (rounding == REFERENCE_BF16)
        return round_significand(value, 8, -133);
    return value;
}

void reference_norm(double *out, const double *x, const float *weight, double eps, int32_t D)
{
    double sum = 0.0;

    for (int32_t i = 0; i < D; i++)
        sum += x[i] * x[i];
    double factor = 1.0 / sqrt(sum / D + eps);
    for (int32_t i = 0; i < D; i++)
        out[i] = x[i] * factor * (double)weight[i];
}

void reference_add_norm(double *out, double *x, const double *branch, const float *branch_weight,
                        const float *weight, double eps, int32_t D)
{
    if (branch_weight != NULL) {
        reference_norm(out, branch, branch_weight, eps, D);
        for (int32_t i = 0; i < D; i++)
            x[i] += out[i];
    } else {
        for (int32_t i = 0; i < D; i++)
            x[i] += branch[i];
    }
    reference_norm(out, x, weight, eps, D);
}

void reference_linear(double *out, const double *x, const float *weight, const float *bias,
                      int32_t out_count, int32_t in)
{
    for (int32_t o = 0; o < out_count; o++) {
        double sum = bias != NULL ? (double)bias[o] : 0.0;
        for (int32_t i = 0; i < in; i++)
            sum += (double)weight[(int64_t)o * in + i] * x[i];
        out[o] = sum;
    }
}

static double act(enum act_kind kind, double x)
{
    if (kind == ACT_SILU)
        return x / (1.0 + exp(-x));
    return 0.5 * x * (1.0 + tanh(sqrt(2.0 / M_PI) * (x + 0.044715 * x * x * x)));
}

void reference_act_mul(double *out, const double *gate_up, enum act_kind kind, int32_t F)
{
    for (int32_t i = 0; i < F; i++)
        out[i] = act(kind, gate_up[i]) * gate_up[F + i];
}

double reference_softcap(double x, double softcap)
{
    return softcap > 0.0 ? softcap * tanh(x / softcap) : x;
}

void reference_rope(double *head, const float *norm, double eps, const struct rope_store_args *args,
                    const float *rope_table, int32_t position)
{
    int32_t pair_count = args->rotary / 2;
    const float *angle = rope_table + (int64_t)position * pair_count * 2;

    if (norm != NULL)
        reference_norm(head, head, norm, eps, args->head_width);
    for (int32_t i = 0; i < pair_count; i++) {
        int32_t first = args->pairing == ROPE_HALVES ? i : 2 * i;
        int32_t second = args->pairing == ROPE_HALVES ? i + pair_count : 2 * i + 1;
        double a = head[first], b = head[second];
        double cosine = (double)angle[2 * i], sine = (double)angle[2 * i + 1];
        head[first] = a * cosine - b * sine;
        head[second] = b * cosine + a * sine;
    }
}

void reference_attention(double *out, const double *q, const double *k, const double *v,
                         int64_t stride, int32_t position, const struct attention_args *args,
                         const float *sink)
{
    int32_t C = args->head_width;
    int32_t first = args->window > 0 && position >= args->window ? position - args->window + 1 : 0;
    double *score = malloc((size_t)(position + 1) * sizeof(*score));
    double max = sink != NULL ? (double)*sink : -INFINITY;

    assert(score != NULL);
    for (int32_t p = first; p <= position; p++) {
        double sum = 0.0;
        for (int32_t c = 0; c < C; c++)
            sum += q[c] * k[p * stride + c];
        score[p] = reference_softcap(sum * (double)args->scale, (double)args->softcap);
        max = fmax(max, score[p]);
    }
    double total = sink != NULL ? exp((double)*sink - max) : 0.0;
    memset(out, 0, (size_t)C * sizeof(*out));
    for (int32_t p = first; p <= position; p++) {
        double share = exp(score[p] - max);
        total += share;
        for (int32_t c = 0; c < C; c++)
            out[c] += share * v[p * stride + c];
    }
    for (int32_t c = 0; c < C; c++)
        out[c] /= total;
    free(score);
}

/* ---- sampling ---- */

static void count_history(int32_t *output_count, bool *seen, int32_t V,
                          const struct reference_history *history)
{
    memset(output_count, 0, (size_t)V * sizeof(*output_count));
    memset(seen, 0, (size_t)V * sizeof(*seen));
    for (int32_t i = 0; i < history->token_count; i++) {
        seen[history->token[i]] = true;
        if (i >= history->prompt_count)
            output_count[history->token[i]]++;
    }
}

static void apply_effects(double *x, int32_t V, const struct sampling *sampling,
                          const struct reference_history *history, int32_t output_index)
{
    int32_t *output_count = malloc((size_t)V * sizeof(*output_count));
    bool *seen = malloc((size_t)V * sizeof(*seen));

    assert(output_count != NULL && seen != NULL);
    count_history(output_count, seen, V, history);
    for (int32_t i = 0; i < sampling->bias_count; i++)
        x[sampling->bias_token[i]] += (double)sampling->bias_value[i];
    if (output_index < sampling->min_tokens) {
        for (int32_t i = 0; i < sampling->stop_count; i++)
            x[sampling->stop_token[i]] = -INFINITY;
    }
    for (int32_t i = 0; i < V; i++) {
        double repetition = (double)sampling->repetition_penalty;
        if (!seen[i])
            continue;
        x[i] = x[i] > 0 ? x[i] / repetition : x[i] * repetition;
        x[i] -= (double)sampling->frequency_penalty * output_count[i];
        x[i] -= output_count[i] > 0 ? (double)sampling->presence_penalty : 0.0;
        x[i] = fmin(x[i], (double)FLT_MAX);
    }
    free(output_count);
    free(seen);
}

struct ranked {
    double value;
    int32_t token;
};

static int likeliest_first(const void *left, const void *right)
{
    const struct ranked *a = left, *b = right;

    if (a->value != b->value)
        return a->value > b->value ? -1 : 1;
    return a->token < b->token ? -1 : a->token > b->token;
}

static struct ranked *rank_all(const double *x, int32_t V)
{
    struct ranked *ranked = malloc((size_t)V * sizeof(*ranked));

    assert(V > 0 && ranked != NULL);
    for (int32_t i = 0; i < V; i++)
        ranked[i] = (struct ranked){x[i], i};
    qsort(ranked, (size_t)V, sizeof(*ranked), likeliest_first);
    return ranked;
}

/* How many of the ranked tokens, whose weights these are, min_p, top_k and top_p keep. */
static int32_t keep(const double *weight, int32_t V, const struct sampling *sampling)
{
    int32_t count = 0;
    double total = 0.0, before = 0.0;
    int32_t limit = sampling_keep_count(sampling, V);

    while (count < limit && weight[count] > 0.0 && weight[count] >= (double)sampling->min_p)
        total += weight[count++];
    for (int32_t i = 0; i < count; i++) {
        if (i > 0 && before >= (double)sampling->top_p * total)
            return i;
        before += weight[i];
    }
    return count;
}

void reference_distribution(double *probability, const float *logits, int32_t V,
                            const struct sampling *sampling,
                            const struct reference_history *history, int32_t output_index)
{
    double *x = malloc((size_t)V * sizeof(*x));
    double *weight = calloc((size_t)V, sizeof(*weight));
    double total = 0.0;

    assert(V > 0 && x != NULL && weight != NULL);
    for (int32_t i = 0; i < V; i++)
        x[i] = (double)sampling_finite(logits[i]);
    apply_effects(x, V, sampling, history, output_index);
    struct ranked *ranked = rank_all(x, V);
    for (int32_t i = 0; i < V; i++) {
        double distance = ranked[i].value - ranked[0].value;
        weight[i] = exp(distance / (double)sampling->temperature);
        probability[i] = 0.0;
    }
    if (!(ranked[0].value > -INFINITY) || sampling_greedy(sampling)) {
        probability[ranked[0].value > -INFINITY ? ranked[0].token : 0] = 1.0;
    } else {
        int32_t count = keep(weight, V, sampling);
        for (int32_t i = 0; i < count; i++)
            total += weight[i];
        for (int32_t i = 0; i < count; i++)
            probability[ranked[i].token] = weight[i] / total;
    }
    free(ranked);
    free(weight);
    free(x);
}

int32_t reference_draw(const double *probability, int32_t V, double u)
{
    double sum = 0.0;
    int32_t final = 0;

    for (int32_t i = 0; i < V; i++) {
        if (!(probability[i] > 0.0))
            continue;
        final = i;
        sum += probability[i];
        if (sum > u)
            return i;
    }
    return final;
}

bool reference_draw_fits(const double *probability, int32_t V, double u, int32_t token,
                         double tolerance)
{
    double below = 0.0;

    if (token < 0 || token >= V || !(probability[token] > 0.0))
        return false;
    for (int32_t i = 0; i < token; i++)
        below += probability[i];
    return u >= below - tolerance && u <= below + probability[token] + tolerance;
}

double reference_logprob(const float *logits, int32_t V, int32_t token)
{
    double max = -INFINITY, sum = 0.0;

    for (int32_t i = 0; i < V; i++)
        max = fmax(max, (double)sampling_finite(logits[i]));
    if (!(max > -INFINITY))
        return -INFINITY;
    for (int32_t i = 0; i < V; i++)
        sum += exp((double)sampling_finite(logits[i]) - max);
    return (double)sampling_finite(logits[token]) - max - log(sum);
}

int32_t reference_rank(const float *logits, int32_t V, int32_t token)
{
    int32_t rank = 0;

    for (int32_t i = 0; i < V; i++)
        rank += sampling_finite(logits[i]) > sampling_finite(logits[token]);
    return rank;
}

void reference_top(int32_t *token, const float *logits, int32_t V, int32_t count)
{
    double *x = malloc((size_t)V * sizeof(*x));

    assert(V > 0 && x != NULL);
    for (int32_t i = 0; i < V; i++)
        x[i] = (double)sampling_finite(logits[i]);
    struct ranked *ranked = rank_all(x, V);
    for (int32_t i = 0; i < count; i++)
        token[i] = i < V && ranked[i].value > -INFINITY ? ranked[i].token : -1;
    free(ranked);
    free(x);
}
