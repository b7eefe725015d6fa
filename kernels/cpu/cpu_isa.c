/* The choice of instruction set: what the processor says and the operating system saves. */
#include "kernels/cpu/cpu_isa.h"

#include <assert.h>
#include <cpuid.h>

/* Half-precision conversions; clang's builtin does not know the name. */
static bool has_f16c(void)
{
    unsigned a, b, c, d;

    return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
}

/* The builtin asks the operating system too: it must save the registers (XCR0). */
static bool has_avx2(void)
{
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
}

static bool has_avx512(void)
{
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}

static bool has_avx512bf16(void)
{
    return has_avx512() && __builtin_cpu_supports("avx512vnni") &&
           __builtin_cpu_supports("avx512bf16");
}

bool cpu_isa_available(enum cpu_isa isa)
{
    assert((unsigned)isa < CPU_ISA_COUNT);
    switch (isa) {
    case CPU_ISA_AVX2:
        return has_avx2();
    case CPU_ISA_AVX512:
        return has_avx512();
    case CPU_ISA_AVX512BF16:
        return has_avx512bf16();
    default:
        return true;
    }
}

enum cpu_isa cpu_isa_best(void)
{
    enum cpu_isa isa = CPU_ISA_COUNT - 1;

    while (!cpu_isa_available(isa))
        isa--;
    return isa;
}

const char *cpu_isa_name(enum cpu_isa isa)
{
    static const char *const name[CPU_ISA_COUNT] = {
        [CPU_ISA_PLAIN] = "plain",
        [CPU_ISA_AVX2] = "avx2",
        [CPU_ISA_AVX512] = "avx512",
        [CPU_ISA_AVX512BF16] = "avx512bf16",
    };

    assert((unsigned)isa < CPU_ISA_COUNT);
    return name[isa];
}
