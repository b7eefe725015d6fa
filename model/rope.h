/* Tables of cosines and sines for rotary positions. Pure; any thread. */
#ifndef MODEL_ROPE_H
#define MODEL_ROPE_H

#include "model/arch.h"

#include <stddef.h>

/* Bytes of a table for positions 0 to context - 1. */
size_t rope_table_bytes(const struct rope_shape *rope, int32_t context);
/* table[position][i] = cos and sin of position / factor * base^(-2 i / rotary), computed in f64.
 * [context, rotary / 2, 2] */
void rope_table_fill(const struct rope_shape *rope, int32_t context, float *table);

#endif
