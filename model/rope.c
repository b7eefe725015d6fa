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

static void fill_frequency(double frequency, int32_t context, float *column, int64_t stride)
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

            entry[0] = (float)(cosine_first * cosine[b] - sine_first * sine[b]);
            entry[1] = (float)(sine_first * cosine[b] + cosine_first * sine[b]);
        }
    }
}

void rope_table_fill(const struct rope_shape *rope, int32_t context, float *table)
{
    for (int32_t i = 0; i < rope->rotary / 2; i++) {
        double frequency = pow(rope->base, -2.0 * i / rope->rotary) / rope->factor;

        fill_frequency(frequency, context, table + 2 * (int64_t)i, rope->rotary);
    }
}
