/* Which instructions the CPU backend uses: asked of the processor once, at run time.
 *
 * Every instruction set computes the same integers and the same f32 operations in the same order
 * in `linear`, so that its results are equal bit for bit whichever is chosen. Pure; any thread.
 */
#ifndef KERNELS_CPU_CPU_ISA_H
#define KERNELS_CPU_CPU_ISA_H

#include <stdbool.h>

/* In ascending order: a machine that has one has all before it. */
enum cpu_isa {
    CPU_ISA_PLAIN,      /* C for the build's baseline */
    CPU_ISA_AVX2,       /* with FMA and F16C */
    CPU_ISA_AVX512,     /* F, BW, VL, DQ */
    CPU_ISA_AVX512BF16, /* and VNNI and BF16 */
    CPU_ISA_COUNT
};

/* The best that this machine and its operating system have. */
enum cpu_isa cpu_isa_best(void);

/* True if this machine can run `isa`. */
bool cpu_isa_available(enum cpu_isa isa);

/* "plain", "avx2", "avx512", "avx512bf16". */
const char *cpu_isa_name(enum cpu_isa isa);

#endif
