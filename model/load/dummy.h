/* Random weights, to run a model's shape without its files. Pure; any thread. */
#ifndef MODEL_LOAD_DUMMY_H
#define MODEL_LOAD_DUMMY_H

#include "model/load/source.h"

/* The same for the same tensor, another for each other one. */
uint64_t dummy_seed(enum tensor_role role, int32_t layer);
/* `count` values of F32, F16 or BF16: either sign, evenly spread between 1/128 and 1/64 and between
 * 1/64 and 1/32, which is about as large as what training begins with. */
void dummy_fill(enum format format, uint64_t seed, size_t count, void *target);

#endif
