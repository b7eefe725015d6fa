/* Norms, sums, activations, rotation: one token or one head at a time. Included once by each of
 * ops_plain.c, ops_avx2.c and ops_avx512.c. */
#include "kernels/cpu/ops_simd.h"
#include "kernels/cpu/ops_vector.h"

/* Four sums of every fourth vector, then those two by two: a fixed order for every D. */
static float square_mean(const float *x, int32_t D)
{
    vfloat sum[4] = {v_set(0.0f), v_set(0.0f), v_set(0.0f), v_set(0.0f)};
    int32_t i = 0;

    for (; i + 4 * LANES <= D; i += 4 * LANES) {
        for (int32_t j = 0; j < 4; j++) {
            vfloat a = v_load(x + i + j * LANES);
            sum[j] = v_fma(a, a, sum[j]);
        }
    }
    for (int32_t j = 0; i < D; i += LANES, j++) {
        vfloat a = i + LANES <= D ? v_load(x + i) : v_load_part(x + i, D - i, 0.0f);
        sum[j] = v_fma(a, a, sum[j]);
    }
    return v_sum((sum[0] + sum[1]) + (sum[2] + sum[3])) / (float)D;
}

static void norm(float *out, const float *x, const float *weight, float eps, int32_t D)
{
    float factor = 1.0f / sqrtf(square_mean(x, D) + eps);
    vfloat f = v_set(factor);
    int32_t i = 0;

    for (; i + LANES <= D; i += LANES)
        v_store(out + i, v_load(x + i) * f * v_load(weight + i));
    for (; i < D; i++)
        out[i] = x[i] * factor * weight[i];
}

static void add(float *x, const float *branch, int32_t D)
{
    int32_t i = 0;

    for (; i + LANES <= D; i += LANES)
        v_store(x + i, v_load(x + i) + v_load(branch + i));
    for (; i < D; i++)
        x[i] += branch[i];
}

static void add_normed(float *x, const float *branch, const float *weight, float eps, int32_t D)
{
    float factor = 1.0f / sqrtf(square_mean(branch, D) + eps);
    vfloat f = v_set(factor);
    int32_t i = 0;

    for (; i + LANES <= D; i += LANES)
        v_store(x + i, v_load(x + i) + v_load(branch + i) * f * v_load(weight + i));
    for (; i < D; i++)
        x[i] += branch[i] * factor * weight[i];
}

static void scale(float *x, float factor, int32_t D)
{
    vfloat f = v_set(factor);
    int32_t i = 0;

    for (; i + LANES <= D; i += LANES)
        v_store(x + i, v_load(x + i) * f);
    for (; i < D; i++)
        x[i] *= factor;
}

static void softcap(float *x, float cap, int64_t count)
{
    vfloat c = v_set(cap), inverse = v_set(1.0f / cap);
    int64_t i = 0;

    for (; i + LANES <= count; i += LANES)
        v_store(x + i, c * v_tanh(v_load(x + i) * inverse));
    if (i < count) {
        vfloat a = v_load_part(x + i, (int32_t)(count - i), 0.0f);
        v_store_part(x + i, c * v_tanh(a * inverse), (int32_t)(count - i));
    }
}

/* gelu_tanh(x) = x / (1 + exp(-2 u)) with u = 0.797885 (x + 0.044715 x^3): as silu, of 2 u. */
static inline vfloat gate(vfloat x, enum act_kind act)
{
    vfloat one = v_set(1.0f), z = x;

    if (act == ACT_GELU_TANH) {
        vfloat inner = v_fma(x * x, v_set(0.044715f), one);
        z = x * inner * v_set(1.5957691216f);
    }
    return x / (one + v_exp(v_set(0.0f) - z));
}

static inline void act_mul_of(float *out, const float *x, const float *up, enum act_kind act,
                              int32_t F)
{
    int32_t i = 0;

    for (; i + LANES <= F; i += LANES)
        v_store(out + i, gate(v_load(x + i), act) * v_load(up + i));
    if (i < F) {
        vfloat a = gate(v_load_part(x + i, F - i, 0.0f), act);
        v_store_part(out + i, a * v_load_part(up + i, F - i, 0.0f), F - i);
    }
}

static void act_mul(float *out, const float *x, const float *up, enum act_kind act, int32_t F)
{
    if (act == ACT_SILU)
        act_mul_of(out, x, up, ACT_SILU, F);
    else
        act_mul_of(out, x, up, ACT_GELU_TANH, F);
}

static void rotate(float *head, const float *angle, int32_t pair_count, enum rope_pairing pairing)
{
    int32_t apart = pairing == ROPE_HALVES ? pair_count : 1;
    int32_t step = pairing == ROPE_HALVES ? 1 : 2;

    for (int32_t i = 0; i < pair_count; i++) {
        float *pair = head + (int64_t)i * step;
        float a = pair[0], b = pair[apart];
        float cosine = angle[2 * i], sine = angle[2 * i + 1];
        pair[0] = a * cosine - b * sine;
        pair[apart] = b * cosine + a * sine;
    }
}

/* Finite values beyond the largest half become it; NaN stays NaN. */
static void to_f16(uint16_t *out, const float *x, int32_t count)
{
    vfloat most = v_set(65504.0f), least = v_set(-65504.0f);
    int32_t i = 0;

    for (; i + LANES <= count; i += LANES)
        v_store_f16(out + i, v_max(least, v_min(most, v_load(x + i))));
    if (i < count) {
        uint16_t lane[LANES];
        v_store_f16(lane, v_max(least, v_min(most, v_load_part(x + i, count - i, 0.0f))));
        memcpy(out + i, lane, (size_t)(count - i) * sizeof(*out));
    }
}
