/* What sampling parameters do: the formulas that both backends compile.
 *
 * Order of effects on one sample's logits (raw: as the model gave them):
 *   1. sampling_finite: NaN is -inf (never drawn), +inf is the largest float;
 *   2. + bias; 3. stop ids to -inf while output_index < min_tokens; 4. sampling_penalise;
 *   5. greedy: the largest, ties to the lowest id. Else weights exp((x - max) / temperature);
 *   6. min_p: x >= sampling_floor; 7. top_k: the k largest, ties to the lowest id;
 *   8. top_p: in descending order (ties by id) a token is kept while the mass before it is below
 *      top_p times the mass left by 6 and 7; so at least one is;
 *   9. draw: the first id, ascending, at which the running mass of the kept exceeds u times all of
 *      it, u = sampling_uniform(seed, output_index).
 * Where nothing is above -inf the token is 0. Log-probabilities, ranks and top lists are those of
 * the raw logits after step 1.
 *
 * Pure; host and device.
 */
#ifndef KERNELS_SAMPLING_MATH_H
#define KERNELS_SAMPLING_MATH_H

#include "kernels/sampling.h"

#include <float.h>
#include <math.h>
#include <stdbool.h>
#include <stdint.h>

#ifdef __CUDACC__
#define SAMPLING_MATH static inline __host__ __device__
#else
#define SAMPLING_MATH static inline
#endif

/* Temperatures below this are greedy: their reciprocal would leave the range of a float. */
#define SAMPLING_TEMPERATURE_LEAST 1e-5f

struct sampling_words {
    uint32_t word[4];
};

/* Philox4x32-10: 128 random bits that are a function of key and counter alone. */
SAMPLING_MATH struct sampling_words sampling_philox(uint64_t key, const uint32_t counter[4])
{
    uint32_t c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3];
    uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);

    for (int round = 0; round < 10; round++) {
        uint64_t low = (uint64_t)0xD2511F53u * c0;
        uint64_t high = (uint64_t)0xCD9E8D57u * c2;
        c0 = (uint32_t)(high >> 32) ^ c1 ^ k0;
        c1 = (uint32_t)high;
        c2 = (uint32_t)(low >> 32) ^ c3 ^ k1;
        c3 = (uint32_t)low;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    struct sampling_words words = {{c0, c1, c2, c3}};
    return words;
}

/* The draw of one output token: 52 bits, in (0, 1), never 0 or 1. */
SAMPLING_MATH double sampling_uniform(uint64_t seed, int32_t output_index)
{
    const uint32_t counter[4] = {(uint32_t)output_index, 0, 0, 0};
    struct sampling_words words = sampling_philox(seed, counter);
    uint64_t bits = ((uint64_t)words.word[1] << 32 | words.word[0]) >> 12;

    return ((double)bits + 0.5) * (1.0 / 4503599627370496.0);
}

/* True if the likeliest token is taken, whatever the seed. */
SAMPLING_MATH bool sampling_greedy(const struct sampling *sampling)
{
    return sampling->temperature < SAMPLING_TEMPERATURE_LEAST || sampling->top_p <= 0.0f ||
           sampling->top_k == 1;
}

/* True if the slot must know which tokens its sequence has. */
SAMPLING_MATH bool sampling_penalises(const struct sampling *sampling)
{
    return sampling->presence_penalty != 0.0f || sampling->frequency_penalty != 0.0f ||
           sampling->repetition_penalty != 1.0f;
}

/* What a logit counts as. */
SAMPLING_MATH float sampling_finite(float logit)
{
    if (!(logit >= -FLT_MAX)) /* NaN too */
        return -INFINITY;
    return logit > FLT_MAX ? FLT_MAX : logit;
}

/* The logit of a token that the sequence has: output_count times put out, and perhaps in the
 * prompt. Tokens that it does not have are left alone. */
SAMPLING_MATH float sampling_penalise(const struct sampling *sampling, float logit,
                                      int32_t output_count)
{
    float x = logit;

    if (sampling->repetition_penalty != 1.0f)
        x = x > 0.0f ? x / sampling->repetition_penalty : x * sampling->repetition_penalty;
    if (output_count > 0) {
        float repeated = sampling->frequency_penalty * (float)output_count;
        x = x - repeated;
        x = x - sampling->presence_penalty;
    }
    return x > FLT_MAX ? FLT_MAX : x;
}

/* Least logit that min_p keeps. */
SAMPLING_MATH float sampling_floor(const struct sampling *sampling, float max)
{
    if (!(sampling->min_p > 0.0f))
        return -INFINITY;
    return max + sampling->temperature * logf(sampling->min_p);
}

/* How many tokens top_k keeps, of V. */
SAMPLING_MATH int32_t sampling_keep_count(const struct sampling *sampling, int32_t V)
{
    return sampling->top_k > 0 && sampling->top_k < V ? sampling->top_k : V;
}

/* A before B in "likeliest first": larger, or equal with the lower id. */
SAMPLING_MATH bool sampling_before(float a, int32_t a_token, float b, int32_t b_token)
{
    return a > b || (a == b && a_token < b_token);
}

#endif
