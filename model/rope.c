/* Position p is split as p = SPAN * a + b: the sines of SPAN * a and of b come from the library,
 * those of their sum from the addition theorem. In f64 that errs by about 1e-16, and is some
 * twenty times faster than a call for each entry. */
#include "model/rope.h"

#include <math.h>

enum { SPAN = 64 };

size_t rope_table_bytes(const struct rope_shape *rope, int32_t context)
{
    return (size_t)context * (size_t)rope->rotary * sizeof(float);
}

static double llama3(const struct rope_shape *rope, double f)
{
    double turns = rope->original * f / (2 * M_PI);
    double t;

    if (turns > rope->high)
        return f;
    if (turns < rope->low)
        return f / rope->factor;
    t = (turns - rope->low) / (rope->high - rope->low);
    return (1 - t) * f / rope->factor + t * f;
}

/* The pair that turns `turns` times in the original context. */
static double yarn_pair(const struct rope_shape *rope, double turns)
{
    return rope->rotary * log(rope->original / (2 * M_PI * turns)) / (2 * log(rope->base));
}

static double yarn(const struct rope_shape *rope, int32_t i, double f)
{
    double first = yarn_pair(rope, rope->fast), final = yarn_pair(rope, rope->slow);
    double share;

    if (rope->truncate) {
        first = floor(first);
        final = ceil(final);
    }
    first = fmax(first, 0);
    final = fmin(final, rope->rotary - 1);
    if (final == first)
        final += 0.001;
    share = fmin(fmax((i - first) / (final - first), 0), 1);
    return f / rope->factor * share + f * (1 - share);
}

double rope_frequency(const struct rope_shape *rope, int32_t i)
{
    double f = pow(rope->base, -2.0 * i / rope->rotary);

    if (i < rope->divisor_count)
        f /= (double)rope->divisor[i];
    switch (rope->scaling) {
    case ROPE_LINEAR:
        break;
    case ROPE_LLAMA3:
        return llama3(rope, f);
    case ROPE_YARN:
        return yarn(rope, i, f);
    }
    return f / rope->factor;
}

static void fill_frequency(double frequency, double magnitude, int32_t context, float *column,
                           int64_t stride)
{
    double cosine[SPAN], sine[SPAN];

    for (int32_t b = 0; b < SPAN; b++) {
        cosine[b] = cos(b * frequency);
        sine[b] = sin(b * frequency);
    }
    for (int32_t first = 0; first < context; first += SPAN) {
        double cosine_first = cos(first * frequency), sine_first = sin(first * frequency);

        for (int32_t b = 0; b < SPAN && first + b < context; b++) {
            float *entry = column + (first + b) * stride;

            entry[0] = (float)(magnitude * (cosine_first * cosine[b] - sine_first * sine[b]));
            entry[1] = (float)(magnitude * (sine_first * cosine[b] + cosine_first * sine[b]));
        }
    }
}

void rope_table_fill(const struct rope_shape *rope, int32_t context, float *table)
{
    double magnitude = rope->scaling == ROPE_YARN ? rope->magnitude : 1.0;

    for (int32_t i = 0; i < rope->rotary / 2; i++)
        fill_frequency(rope_frequency(rope, i), magnitude, context, table + 2 * (int64_t)i,
                       rope->rotary);
}
