/* Gemma 3 in plain double loops, from the file alone: what a forward must give. It shares no code
 * with the engine but the GGUF reader and the dequantisation, which have tests of their own. */
#ifndef TESTS_GOLDEN_GEMMA_REFERENCE_H
#define TESTS_GOLDEN_GEMMA_REFERENCE_H

#include "kernels/formats.h"
#include "model/load/gguf.h"

#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct reference {
    struct gguf *gguf;
    int64_t layers, width, heads, kv_heads, head_width, ffn, vocab, window, period;
    double factor, softcap;
};

static inline double reference_number(const struct reference *reference, const char *key,
                                      double fallback)
{
    char whole[128];
    const struct gguf_value *value;
    double number;

    snprintf(whole, sizeof(whole), "gemma3.%s", key);
    value = gguf_find(reference->gguf, whole);
    if (value == NULL)
        return fallback;
    if (!gguf_real(value, 0, &number))
        abort();
    return number;
}

static inline void reference_open(struct reference *reference, const char *path)
{
    char error[512];

    if (gguf_open(&reference->gguf, path, error, sizeof(error)) != 0)
        abort();
    reference->layers = (int64_t)reference_number(reference, "block_count", 0);
    reference->width = (int64_t)reference_number(reference, "embedding_length", 0);
    reference->heads = (int64_t)reference_number(reference, "attention.head_count", 0);
    reference->kv_heads = (int64_t)reference_number(reference, "attention.head_count_kv", 0);
    reference->head_width = (int64_t)reference_number(reference, "attention.key_length", 0);
    reference->ffn = (int64_t)reference_number(reference, "feed_forward_length", 0);
    reference->window = (int64_t)reference_number(reference, "attention.sliding_window", 0);
    reference->period = (int64_t)reference_number(reference, "attention.sliding_window_pattern", 6);
    reference->factor = reference_number(reference, "rope.scaling.factor", 1);
    reference->softcap = reference_number(reference, "final_logit_softcapping", 0);
    reference->vocab = gguf_tensor(reference->gguf, "token_embd.weight")->dim[1];
}

/* A tensor as doubles; layer -1: a global one. NULL when it is not there. */
static inline double *reference_tensor(const struct reference *reference, int64_t layer,
                                       const char *name)
{
    const struct gguf_tensor *tensor;
    char whole[128];
    int64_t count;
    float *single;
    double *values;

    if (layer < 0)
        snprintf(whole, sizeof(whole), "%s.weight", name);
    else
        snprintf(whole, sizeof(whole), "blk.%d.%s.weight", (int)layer, name);
    tensor = gguf_tensor(reference->gguf, whole);
    if (tensor == NULL)
        return NULL;
    count = tensor->dim[0] * tensor->dim[1];
    single = calloc((size_t)count, sizeof(*single));
    values = calloc((size_t)count, sizeof(*values));
    if (single == NULL || values == NULL)
        abort();
    format_dequantise(tensor->format, tensor->data,
                      count / format_info(tensor->format)->block_values, single);
    for (int64_t i = 0; i < count; i++)
        values[i] = (double)single[i];
    free(single);
    return values;
}

static inline double *reference_new(int64_t count)
{
    double *values = calloc((size_t)count, sizeof(*values));

    if (values == NULL)
        abort();
    return values;
}

/* out[T, out_width] = x[T, in] . weight^T */
static inline void reference_linear(double *out, int64_t stride, const double *x,
                                    const double *weight, int64_t T, int64_t width, int64_t in)
{
    for (int64_t t = 0; t < T; t++)
        for (int64_t o = 0; o < width; o++) {
            double sum = 0;

            for (int64_t i = 0; i < in; i++)
                sum += x[t * in + i] * weight[o * in + i];
            out[t * stride + o] = sum;
        }
}

static inline void reference_norm(double *out, const double *x, const double *weight, int64_t count)
{
    double sum = 0, scale;

    for (int64_t i = 0; i < count; i++)
        sum += x[i] * x[i];
    scale = 1.0 / sqrt(sum / (double)count + 1e-6);
    for (int64_t i = 0; i < count; i++)
        out[i] = x[i] * scale * weight[i];
}

static inline void reference_rope(double *head, int64_t width, int64_t position, double base,
                                  double factor)
{
    for (int64_t i = 0; i < width / 2; i++) {
        double angle = (double)position / factor * pow(base, -2.0 * (double)i / (double)width);
        double a = head[i], b = head[i + width / 2];

        head[i] = a * cos(angle) - b * sin(angle);
        head[i + width / 2] = b * cos(angle) + a * sin(angle);
    }
}

/* One query head over the keys and values up to position t. */
static inline void reference_attend(double *out, const double *q, const double *k, const double *v,
                                    int64_t stride, int64_t C, int64_t t, int64_t window)
{
    double *score = reference_new(t + 1), most = -INFINITY, sum = 0;
    int64_t first = window > 0 && t >= window ? t - window + 1 : 0;

    for (int64_t p = first; p <= t; p++) {
        for (int64_t i = 0; i < C; i++)
            score[p] += q[i] * k[p * stride + i];
        score[p] /= sqrt((double)C);
        most = fmax(most, score[p]);
    }
    for (int64_t p = first; p <= t; p++)
        sum += score[p] = exp(score[p] - most);
    for (int64_t p = first; p <= t; p++)
        for (int64_t i = 0; i < C; i++)
            out[i] += score[p] / sum * v[p * stride + i];
    free(score);
}

/* Rows [first, first + width) of a fused tensor where there is one, else the tensor itself. */
static inline void reference_part(const struct reference *reference, int64_t layer,
                                  const char *name, const char *fused, int64_t first, double *out,
                                  const double *x, int64_t T, int64_t width)
{
    double *whole = reference_tensor(reference, layer, fused);
    double *own = reference_tensor(reference, layer, name);
    const double *weight = own != NULL && (whole == NULL || strcmp(name, fused) != 0)
                               ? own
                               : whole + first * reference->width;

    reference_linear(out, width, x, weight, T, width, reference->width);
    free(whole);
    free(own);
}

/* heads[T, H C] of layer `layer` from normed[T, D]. */
static inline void reference_attention(const struct reference *reference, int64_t layer,
                                       double *heads, const double *normed, int64_t T)
{
    int64_t C = reference->head_width, H = reference->heads, K = reference->kv_heads;
    bool local = reference->window > 0 && layer % reference->period < reference->period - 1;
    double base = local ? 10000.0 : 1000000.0, factor = local ? 1.0 : reference->factor;
    double *q = reference_new(T * H * C), *k = reference_new(T * K * C);
    double *v = reference_new(T * K * C);
    double *q_norm = reference_tensor(reference, layer, "attn_q_norm");
    double *k_norm = reference_tensor(reference, layer, "attn_k_norm");

    reference_part(reference, layer, "attn_q", "attn_qkv", 0, q, normed, T, H * C);
    reference_part(reference, layer, "attn_k", "attn_qkv", H * C, k, normed, T, K * C);
    reference_part(reference, layer, "attn_v", "attn_qkv", (H + K) * C, v, normed, T, K * C);
    for (int64_t t = 0; t < T; t++) {
        for (int64_t h = 0; h < H; h++) {
            reference_norm(q + (t * H + h) * C, q + (t * H + h) * C, q_norm, C);
            reference_rope(q + (t * H + h) * C, C, t, base, factor);
        }
        for (int64_t h = 0; h < K; h++) {
            reference_norm(k + (t * K + h) * C, k + (t * K + h) * C, k_norm, C);
            reference_rope(k + (t * K + h) * C, C, t, base, factor);
        }
    }
    memset(heads, 0, (size_t)(T * H * C) * sizeof(*heads));
    for (int64_t t = 0; t < T; t++)
        for (int64_t h = 0; h < H; h++)
            reference_attend(heads + (t * H + h) * C, q + (t * H + h) * C, k + h * K / H * C,
                             v + h * K / H * C, K * C, C, t, local ? reference->window : 0);
    free(q);
    free(k);
    free(v);
    free(q_norm);
    free(k_norm);
}

static inline void reference_mlp(const struct reference *reference, int64_t layer, double *out,
                                 const double *normed, int64_t T)
{
    int64_t F = reference->ffn;
    double *gate = reference_new(T * F), *up = reference_new(T * F);
    double *down = reference_tensor(reference, layer, "ffn_down");
    double *own = reference_tensor(reference, layer, "ffn_gate");
    bool fused = own == NULL;

    free(own);
    reference_part(reference, layer, fused ? "ffn_up" : "ffn_gate", fused ? "ffn_up" : "ffn_gate",
                   0, gate, normed, T, F);
    reference_part(reference, layer, "ffn_up", "ffn_up", fused ? F : 0, up, normed, T, F);
    for (int64_t i = 0; i < T * F; i++) {
        double x = gate[i];

        gate[i] = 0.5 * x * (1 + tanh(0.79788456080286535588 * x * (1 + 0.044715 * x * x))) * up[i];
    }
    reference_linear(out, reference->width, gate, down, T, reference->width, F);
    free(gate);
    free(up);
    free(down);
}

/* x[t] += norm(branch[t]); normed[t] = norm(x[t]). */
static inline void reference_add(double *x, double *branch, double *normed, double *post,
                                 double *next, int64_t T, int64_t D)
{
    for (int64_t t = 0; t < T; t++) {
        reference_norm(branch + t * D, branch + t * D, post, D);
        for (int64_t i = 0; i < D; i++)
            x[t * D + i] += branch[t * D + i];
        reference_norm(normed + t * D, x + t * D, next, D);
    }
    free(post);
    free(next);
}

/* Log-probabilities after every token, [T, V]; the caller frees them. */
static inline double *reference_forward(const struct reference *reference, const int32_t *token,
                                        int64_t T)
{
    int64_t D = reference->width, V = reference->vocab,
            HC = reference->heads * reference->head_width;
    double *embed = reference_tensor(reference, -1, "token_embd");
    double *head = reference_tensor(reference, -1, "output");
    double *x = reference_new(T * D), *normed = reference_new(T * D),
           *branch = reference_new(T * D);
    double *heads = reference_new(T * HC), *logits = reference_new(T * V);
    double *first = reference_tensor(reference, 0, "attn_norm");

    for (int64_t t = 0; t < T; t++) {
        for (int64_t i = 0; i < D; i++)
            x[t * D + i] = embed[token[t] * D + i] * sqrt((double)D);
        reference_norm(normed + t * D, x + t * D, first, D);
    }
    free(first);
    for (int64_t layer = 0; layer < reference->layers; layer++) {
        double *output = reference_tensor(reference, layer, "attn_output");
        bool last = layer + 1 == reference->layers;

        reference_attention(reference, layer, heads, normed, T);
        reference_linear(branch, D, heads, output, T, D, HC);
        free(output);
        reference_add(x, branch, normed, reference_tensor(reference, layer, "post_attention_norm"),
                      reference_tensor(reference, layer, "ffn_norm"), T, D);
        reference_mlp(reference, layer, branch, normed, T);
        reference_add(x, branch, normed, reference_tensor(reference, layer, "post_ffw_norm"),
                      last ? reference_tensor(reference, -1, "output_norm")
                           : reference_tensor(reference, layer + 1, "attn_norm"),
                      T, D);
    }
    reference_linear(logits, V, normed, head == NULL ? embed : head, T, V, D);
    for (int64_t t = 0; t < T; t++) {
        double *row = logits + t * V, most = -INFINITY, sum = 0;

        for (int64_t i = 0; i < V; i++) {
            if (reference->softcap > 0)
                row[i] = reference->softcap * tanh(row[i] / reference->softcap);
            most = fmax(most, row[i]);
        }
        for (int64_t i = 0; i < V; i++)
            sum += exp(row[i] - most);
        for (int64_t i = 0; i < V; i++)
            row[i] -= most + log(sum);
    }
    free(embed);
    free(head);
    free(x);
    free(normed);
    free(branch);
    free(heads);
    return logits;
}

#endif
