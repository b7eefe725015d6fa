/* Attention over one tile of positions. Included once by each of ops_plain.c, ops_avx2.c and
 * ops_avx512.c.
 *
 * A score is one chain of multiply-adds over the head's width, an output one chain over the
 * positions; rows are worked on together only to reuse what is loaded, so that a row's bits do
 * not depend on how many there are. */
#include "kernels/cpu/ops_simd.h"
#include "kernels/cpu/ops_vector.h"

static void load_key(float *target, const uint16_t *key, int32_t lanes, int32_t C)
{
    if (lanes % LANES == 0) {
        for (int32_t c = 0; c < C; c++) {
            for (int32_t i = 0; i < lanes; i += LANES)
                v_store(target + c * ATTEND_TILE + i, v_load_f16(key + c * lanes + i));
        }
        return;
    }
    for (int32_t c = 0; c < C; c++) { /* blocks of few tokens */
        uint16_t half[LANES] = {0};
        memcpy(half, key + c * lanes, (size_t)lanes * sizeof(*key));
        v_store_part(target + c * ATTEND_TILE, v_load_f16(half), lanes);
    }
}

static void load_value(float *target, const uint16_t *value, int32_t count)
{
    int32_t i = 0;

    for (; i + LANES <= count; i += LANES)
        v_store(target + i, v_load_f16(value + i));
    if (i < count) {
        uint16_t half[LANES] = {0};
        memcpy(half, value + i, (size_t)(count - i) * sizeof(*value));
        v_store_part(target + i, v_load_f16(half), count - i);
    }
}

/* `rows` is a constant wherever this is inlined, so that the sums stay in registers. */
static inline __attribute__((always_inline)) void score_rows(float *score, const float *q,
                                                             const float *key, int rows, int32_t C)
{
    for (int32_t p = 0; p < ATTEND_TILE; p += 2 * LANES) {
        vfloat sum[SIMD_ROWS][2];
        for (int r = 0; r < rows; r++)
            sum[r][0] = sum[r][1] = v_set(0.0f);
        for (int32_t c = 0; c < C; c++) {
            vfloat k0 = v_load(key + c * ATTEND_TILE + p);
            vfloat k1 = v_load(key + c * ATTEND_TILE + p + LANES);
            for (int r = 0; r < rows; r++) {
                vfloat a = v_set(q[(int64_t)r * C + c]);
                sum[r][0] = v_fma(a, k0, sum[r][0]);
                sum[r][1] = v_fma(a, k1, sum[r][1]);
            }
        }
        for (int r = 0; r < rows; r++) {
            v_store(score + r * ATTEND_TILE + p, sum[r][0]);
            v_store(score + r * ATTEND_TILE + p + LANES, sum[r][1]);
        }
    }
}

static void scores(float *score, const float *q, const float *key, int32_t rows, int32_t C)
{
    int32_t r = 0;

    for (; r + SIMD_ROWS <= rows; r += SIMD_ROWS)
        score_rows(score + r * ATTEND_TILE, q + (int64_t)r * C, key, SIMD_ROWS, C);
    for (; r + 4 <= rows; r += 4)
        score_rows(score + r * ATTEND_TILE, q + (int64_t)r * C, key, 4, C);
    for (; r + 2 <= rows; r += 2)
        score_rows(score + r * ATTEND_TILE, q + (int64_t)r * C, key, 2, C);
    if (r < rows)
        score_rows(score + r * ATTEND_TILE, q + (int64_t)r * C, key, 1, C);
}

static float soften(float *score, float *max, float *sum)
{
    vfloat largest = v_load(score), total = v_set(0.0f);

    for (int32_t p = LANES; p < ATTEND_TILE; p += LANES)
        largest = v_max(largest, v_load(score + p));
    float before = *max, now = v_largest(largest);
    now = before > now ? before : now;

    vfloat m = v_set(now);
    for (int32_t p = 0; p < ATTEND_TILE; p += LANES) {
        vfloat weight = v_exp(v_load(score + p) - m);
        v_store(score + p, weight);
        total = total + weight;
    }
    float factor = before == now ? 1.0f : expf(before - now);
    *sum = *sum * factor + v_sum(total);
    *max = now;
    return factor;
}

static inline __attribute__((always_inline)) void value_rows(float *out, const float *factor,
                                                             const float *weight,
                                                             const float *value, int rows,
                                                             int32_t C)
{
    for (int32_t c = 0; c < C; c += 2 * LANES) {
        vfloat sum[SIMD_ROWS][2];
        for (int r = 0; r < rows; r++) {
            sum[r][0] = v_load(out + (int64_t)r * C + c) * v_set(factor[r]);
            sum[r][1] = v_load(out + (int64_t)r * C + c + LANES) * v_set(factor[r]);
        }
        for (int32_t p = 0; p < ATTEND_TILE; p++) {
            vfloat v0 = v_load(value + (int64_t)p * C + c);
            vfloat v1 = v_load(value + (int64_t)p * C + c + LANES);
            for (int r = 0; r < rows; r++) {
                vfloat a = v_set(weight[r * ATTEND_TILE + p]);
                sum[r][0] = v_fma(a, v0, sum[r][0]);
                sum[r][1] = v_fma(a, v1, sum[r][1]);
            }
        }
        for (int r = 0; r < rows; r++) {
            v_store(out + (int64_t)r * C + c, sum[r][0]);
            v_store(out + (int64_t)r * C + c + LANES, sum[r][1]);
        }
    }
}

static void values(float *out, const float *factor, const float *weight, const float *value,
                   int32_t rows, int32_t C)
{
    int32_t r = 0;

    for (; r + SIMD_ROWS <= rows; r += SIMD_ROWS)
        value_rows(out + (int64_t)r * C, factor + r, weight + r * ATTEND_TILE, value, SIMD_ROWS, C);
    for (; r + 4 <= rows; r += 4)
        value_rows(out + (int64_t)r * C, factor + r, weight + r * ATTEND_TILE, value, 4, C);
    for (; r + 2 <= rows; r += 2)
        value_rows(out + (int64_t)r * C, factor + r, weight + r * ATTEND_TILE, value, 2, C);
    if (r < rows)
        value_rows(out + (int64_t)r * C, factor + r, weight + r * ATTEND_TILE, value, 1, C);
}

/* ---- the same, with halves converted where they are used ----
 *
 * The first rows of a call also ask for the next tile, line by line: the processor does not
 * foresee the jumps between blocks. */

static inline __attribute__((always_inline)) void score_rows_direct(float *score, const float *q,
                                                                    const struct attend_tile *tile,
                                                                    int rows, int32_t C, bool ask)
{
    for (int32_t p = 0; p < ATTEND_TILE; p += 2 * LANES) {
        int32_t run = p / ATTEND_RUN, run1 = (p + LANES) / ATTEND_RUN;
        const uint16_t *first = tile->key[run] + p % ATTEND_RUN;
        const uint16_t *second = tile->key[run1] + (p + LANES) % ATTEND_RUN;
        vfloat sum[SIMD_ROWS][2];
        for (int r = 0; r < rows; r++)
            sum[r][0] = sum[r][1] = v_set(0.0f);
        for (int32_t c = 0; c < C; c++) {
            if (ask)
                __builtin_prefetch((c % 2 == 0 ? tile->next_key[run] : tile->next_key[run1]) +
                                   c * ATTEND_RUN);
            vfloat k0 = v_load_f16(first + c * ATTEND_RUN);
            vfloat k1 = v_load_f16(second + c * ATTEND_RUN);
            for (int r = 0; r < rows; r++) {
                vfloat a = v_set(q[(int64_t)r * C + c]);
                sum[r][0] = v_fma(a, k0, sum[r][0]);
                sum[r][1] = v_fma(a, k1, sum[r][1]);
            }
        }
        for (int r = 0; r < rows; r++) {
            v_store(score + r * ATTEND_TILE + p, sum[r][0]);
            v_store(score + r * ATTEND_TILE + p + LANES, sum[r][1]);
        }
    }
}

static void scores_direct(float *score, const float *q, const struct attend_tile *tile,
                          int32_t rows, int32_t C)
{
    int32_t r = rows >= SIMD_ROWS ? SIMD_ROWS : rows >= 4 ? 4 : rows >= 2 ? 2 : 1;

    if (r == SIMD_ROWS)
        score_rows_direct(score, q, tile, SIMD_ROWS, C, true);
    else if (r == 4)
        score_rows_direct(score, q, tile, 4, C, true);
    else if (r == 2)
        score_rows_direct(score, q, tile, 2, C, true);
    else
        score_rows_direct(score, q, tile, 1, C, true);
    for (; r + 4 <= rows; r += 4)
        score_rows_direct(score + r * ATTEND_TILE, q + (int64_t)r * C, tile, 4, C, false);
    for (; r < rows; r++)
        score_rows_direct(score + r * ATTEND_TILE, q + (int64_t)r * C, tile, 1, C, false);
}

static inline __attribute__((always_inline)) void value_rows_direct(float *out, const float *factor,
                                                                    const float *weight,
                                                                    const struct attend_tile *tile,
                                                                    int rows, int32_t C, bool ask)
{
    for (int32_t c = 0; c < C; c += 2 * LANES) {
        vfloat sum[SIMD_ROWS][2];
        for (int r = 0; r < rows; r++) {
            sum[r][0] = v_load(out + (int64_t)r * C + c) * v_set(factor[r]);
            sum[r][1] = v_load(out + (int64_t)r * C + c + LANES) * v_set(factor[r]);
        }
        for (int32_t p = 0; p < ATTEND_TILE; p++) {
            if (ask)
                __builtin_prefetch(tile->next_value[p] + c);
            vfloat v0 = v_load_f16(tile->value[p] + c);
            vfloat v1 = v_load_f16(tile->value[p] + c + LANES);
            for (int r = 0; r < rows; r++) {
                vfloat a = v_set(weight[r * ATTEND_TILE + p]);
                sum[r][0] = v_fma(a, v0, sum[r][0]);
                sum[r][1] = v_fma(a, v1, sum[r][1]);
            }
        }
        for (int r = 0; r < rows; r++) {
            v_store(out + (int64_t)r * C + c, sum[r][0]);
            v_store(out + (int64_t)r * C + c + LANES, sum[r][1]);
        }
    }
}

static void values_direct(float *out, const float *factor, const float *weight,
                          const struct attend_tile *tile, int32_t rows, int32_t C)
{
    int32_t r = rows >= SIMD_ROWS ? SIMD_ROWS : rows >= 4 ? 4 : rows >= 2 ? 2 : 1;

    if (r == SIMD_ROWS)
        value_rows_direct(out, factor, weight, tile, SIMD_ROWS, C, true);
    else if (r == 4)
        value_rows_direct(out, factor, weight, tile, 4, C, true);
    else if (r == 2)
        value_rows_direct(out, factor, weight, tile, 2, C, true);
    else
        value_rows_direct(out, factor, weight, tile, 1, C, true);
    for (; r + 4 <= rows; r += 4)
        value_rows_direct(out + (int64_t)r * C, factor + r, weight + r * ATTEND_TILE, tile, 4, C,
                          false);
    for (; r < rows; r++)
        value_rows_direct(out + (int64_t)r * C, factor + r, weight + r * ATTEND_TILE, tile, 1, C,
                          false);
}
