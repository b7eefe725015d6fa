/* A value is a fixed exponent with random bits around it, so that making one takes no arithmetic on
 * it; memory is what bounds this. */
#include "model/load/dummy.h"

#include <assert.h>
#include <string.h>

/* splitmix64: the state is a counter, so that iterations do not wait for each other. */
static uint64_t mix(uint64_t state)
{
    state = (state ^ (state >> 30)) * 0xbf58476d1ce4e5b9u;
    state = (state ^ (state >> 27)) * 0x94d049bb133111ebu;
    return state ^ (state >> 31);
}

uint64_t dummy_seed(enum tensor_role role, int32_t layer)
{
    return mix((uint64_t)(layer + 2) * ROLE_COUNT + (uint64_t)role);
}

void dummy_fill(enum format format, uint64_t seed, size_t count, void *target)
{
    /* Random are the sign, the fraction and the exponent's last bit. */
    uint64_t free_bits = format == FORMAT_BF16 ? 0x80ff80ff80ff80ffu : 0x87ff87ff87ff87ffu;
    uint64_t fixed = format == FORMAT_BF16 ? 0x3c003c003c003c00u : 0x2000200020002000u;
    size_t bytes = count * (size_t)format_info(format)->block_bytes, whole, left;
    unsigned char *byte = target;
    uint64_t last;

    assert(format == FORMAT_F32 || format == FORMAT_F16 || format == FORMAT_BF16);
    if (format == FORMAT_F32) {
        free_bits = 0x80ffffff80ffffffu;
        fixed = 0x3c0000003c000000u;
    }
    whole = bytes / sizeof(last);
    left = bytes % sizeof(last);
    for (size_t i = 0; i < whole; i++) {
        uint64_t value = (mix(seed + i * 0x9e3779b97f4a7c15u) & free_bits) | fixed;

        memcpy(byte + i * sizeof(value), &value, sizeof(value));
    }
    last = (mix(seed + whole * 0x9e3779b97f4a7c15u) & free_bits) | fixed;
    memcpy(byte + whole * sizeof(last), &last, left);
}
