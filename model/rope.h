/* Tables of cosines and sines for rotary positions. Pure; any thread. */
#ifndef MODEL_ROPE_H
#define MODEL_ROPE_H

#include "model/arch.h"

#include <stddef.h>

/* Radians a position of pair i. With f = base^(-2 i / rotary) and w = 2 pi / f its wavelength:
 * LINEAR f / factor;
 * LLAMA3 f where w < original / high, f / factor where w > original / low, in between the mix
 * (1 - t) f / factor + t f with t = (original / w - low) / (high - low);
 * YARN r f / factor + (1 - r) f with r = (i - first) / (final - first) within 0 to 1, where first
 * and final are the pairs that turn `fast` and `slow` times in `original` positions. */
double rope_frequency(const struct rope_shape *rope, int32_t i);
/* Bytes of a table for positions 0 to context - 1. */
size_t rope_table_bytes(const struct rope_shape *rope, int32_t context);
/* table[position][i] = magnitude * cos and sin of position * rope_frequency(i), computed in f64.
 * [context, rotary / 2, 2] */
void rope_table_fill(const struct rope_shape *rope, int32_t context, float *table);

#endif
