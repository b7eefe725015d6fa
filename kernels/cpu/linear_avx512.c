/* The kernels of `linear` for AVX-512 without VNNI: products of pairs of 16-bit integers. */
#include "kernels/cpu/linear_vectors_512.h"

INLINE vint v_add_pairs(vint sum, vint a, vint b)
{
    return _mm512_add_epi32(sum, _mm512_madd_epi16(a, b));
}

#include "kernels/cpu/linear_pairs.h"

/* In the order of the pairs: 0 and 2, 1 and 3 of every four. */
INLINE void put_activations(const float *x, float inverse, uint8_t *target, int32_t sum[2])
{
    for (int32_t i = 0; i < 2; i++) {
        vint q = v_round(x + 16 * i, inverse);
        __m256i words = _mm512_cvtepi32_epi16(q);

        sum[i] = _mm512_reduce_add_epi32(q);
        words = _mm256_shufflehi_epi16(_mm256_shufflelo_epi16(words, 0xd8), 0xd8);
        _mm256_storeu_si256((__m256i *)(void *)(target + 32 * i), words);
    }
}

#include "kernels/cpu/linear_simd.h"

const struct linear_kernels linear_avx512 = {
    .unit_rows = UNIT_ROWS,
    .direct_tokens = TILE_TOKENS,
    .quantise = quantise,
    .decode = decode,
    .tile = tile,
    .tile_float = tile_float,
};
