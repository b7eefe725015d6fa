/* The vector loops of the CPU backend, compiled for AVX512. */
#include "kernels/cpu/ops_body_attend.h"
#include "kernels/cpu/ops_body_chunk.h"
#include "kernels/cpu/ops_body_rows.h"

#include "kernels/cpu/ops_body_table.h"
