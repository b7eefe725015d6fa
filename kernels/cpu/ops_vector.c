/* Chooses among the compiled forms of the vector loops. */
#include "kernels/cpu/ops_vector.h"

#include <assert.h>

const struct cpu_vector *cpu_vector(enum cpu_isa isa)
{
    assert(cpu_isa_available(isa));
    if (isa >= CPU_ISA_AVX512)
        return &cpu_vector_avx512;
    return isa == CPU_ISA_AVX2 ? &cpu_vector_avx2 : &cpu_vector_plain;
}
