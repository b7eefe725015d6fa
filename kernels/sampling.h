/* Sampling parameters: one line each.
 *
 * From this table come the parser's names, types, ranges and defaults, the docs, and the
 * per-slot state on a device. A parameter's effect is in kernels/sampling_math.h, which both
 * backends compile. Order of effects: bias, min_tokens mask, penalties, (greedy: argmax),
 * temperature, min_p, top_k, top_p, draw. Log-probabilities are those of the raw logits.
 */
#ifndef KERNELS_SAMPLING_H
#define KERNELS_SAMPLING_H

#include <stdint.h>

/* PARAMETER(type, field, default, least, greatest, what it does); `field` is also the JSON name.
 * top_k: 0 and -1 are off. temperature 0, or top_p 0: greedy, ties to the lowest id. */
#define SAMPLING_PARAMETERS(PARAMETER)                                                             \
    PARAMETER(float, temperature, 1.0, 0.0, 2.0, "randomness; 0 is greedy")                        \
    PARAMETER(float, top_p, 1.0, 0.0, 1.0, "keep the likeliest tokens up to this mass")            \
    PARAMETER(int32, top_k, 0, -1, 2147483647, "keep this many tokens; 0 and -1 are off")          \
    PARAMETER(float, min_p, 0.0, 0.0, 1.0, "drop tokens below this share of the likeliest")        \
    PARAMETER(float, presence_penalty, 0.0, -2.0, 2.0, "subtracted once from tokens put out")      \
    PARAMETER(float, frequency_penalty, 0.0, -2.0, 2.0, "subtracted per occurrence put out")       \
    PARAMETER(float, repetition_penalty, 1.0, 1e-6, 1e6, "divides logits of tokens seen")          \
    PARAMETER(int32, min_tokens, 0, 0, 2147483647, "no end of sequence before this many tokens")

enum {
    SAMPLING_BIAS_MAX = 1024, /* entries of logit_bias */
    SAMPLING_STOP_MAX = 128,  /* token ids that end a sequence, the model's and the user's */
    SAMPLING_TOP_MAX = 32,    /* likeliest tokens reported with a sample */
};

/* What one sequence asks of the sampler; plain data, copied into a slot when it starts. */
struct sampling {
    float temperature;
    float top_p;
    int32_t top_k;
    float min_p;
    float presence_penalty;
    float frequency_penalty;
    float repetition_penalty;
    int32_t min_tokens;

    uint64_t seed;      /* draws are keyed by (seed, index of the output token) alone */
    int32_t top_count;  /* likeliest tokens wanted with each sample; -1: no log-probability */
    int32_t bias_count; /* at most SAMPLING_BIAS_MAX */
    int32_t stop_count; /* at most SAMPLING_STOP_MAX; masked until min_tokens are out */
    int32_t bias_token[SAMPLING_BIAS_MAX];
    float bias_value[SAMPLING_BIAS_MAX]; /* -100 to 100, added to the logit */
    int32_t stop_token[SAMPLING_STOP_MAX];
};

#endif
