/* Sampling over one chunk of logits. Included once by each of ops_plain.c, ops_avx2.c and
 * ops_avx512.c. Logits are finite or -inf after chunk_max. */
#include "kernels/cpu/ops_simd.h"
#include "kernels/cpu/ops_vector.h"
#include "kernels/sampling_math.h"

static float chunk_max(float *x, int32_t count)
{
    vfloat least = v_set(-INFINITY), most = v_set(FLT_MAX), largest = least;
    int32_t i = 0;

    for (; i + LANES <= count; i += LANES) {
        vfloat a = v_min(v_max(v_load(x + i), least), most); /* NaN becomes -inf */
        v_store(x + i, a);
        largest = v_max(largest, a);
    }
    float max = v_largest(largest);
    for (; i < count; i++) {
        x[i] = sampling_finite(x[i]);
        max = x[i] > max ? x[i] : max;
    }
    return max;
}

static float chunk_mass(const float *x, int32_t count, float max, float factor)
{
    vfloat m = v_set(max), f = v_set(factor), sum[2] = {v_set(0.0f), v_set(0.0f)};
    int32_t i = 0;

    for (; i + 2 * LANES <= count; i += 2 * LANES) {
        sum[0] = sum[0] + v_exp((v_load(x + i) - m) * f);
        sum[1] = sum[1] + v_exp((v_load(x + i + LANES) - m) * f);
    }
    for (int32_t j = 0; i < count; i += LANES, j++) {
        vfloat a = i + LANES <= count ? v_load(x + i) : v_load_part(x + i, count - i, -INFINITY);
        sum[j] = sum[j] + v_exp((a - m) * f);
    }
    return v_sum(sum[0] + sum[1]);
}

static void chunk_weights(float *weight, const float *x, int32_t count, float max, float factor)
{
    vfloat m = v_set(max), f = v_set(factor);
    int32_t i = 0;

    for (; i + LANES <= count; i += LANES)
        v_store(weight + i, v_exp((v_load(x + i) - m) * f));
    if (i < count) {
        vfloat a = v_load_part(x + i, count - i, -INFINITY);
        v_store_part(weight + i, v_exp((a - m) * f), count - i);
    }
}

static int32_t chunk_collect(const float *x, int32_t count, float floor, int32_t first,
                             float *value, int32_t *token)
{
    vfloat least = v_set(floor);
    int32_t found = 0;

    for (int32_t i = 0; i < count; i += LANES) {
        bool whole = i + LANES <= count;
        vfloat a = whole ? v_load(x + i) : v_load_part(x + i, count - i, -INFINITY);
        uint32_t mask = v_mask_ge(a, least);
        if (!whole)
            mask &= (1u << (count - i)) - 1u;
        for (; mask != 0; mask &= mask - 1u) {
            int32_t at = i + __builtin_ctz(mask);
            value[found] = x[at];
            token[found++] = first + at;
        }
    }
    return found;
}

static int32_t chunk_above(const float *x, int32_t count, float value)
{
    vfloat bound = v_set(value);
    int32_t above = 0, i = 0;

    for (; i + LANES <= count; i += LANES)
        above += __builtin_popcount(v_mask_gt(v_load(x + i), bound));
    for (; i < count; i++)
        above += x[i] > value;
    return above;
}
