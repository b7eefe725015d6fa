/* Value i of a quantised block, by the formula of its format (docs/kernels.md has the table).
 *
 * Products and sums are rounded one by one (__fmul_rn, __fsub_rn), in the order of the table and
 * never contracted, so that a value has the bits of format_dequantise on the host. Blocks lie as
 * in the file: at even addresses, except MXFP4's, which are read by bytes.
 */
#ifndef KERNELS_CUDA_DEQUANTISE_CUH
#define KERNELS_CUDA_DEQUANTISE_CUH

#include "kernels/cuda/device.cuh"

template <enum format F> struct format_size;
#define FORMAT(constant, name, id, values, bytes)                                                  \
    template <> struct format_size<constant> {                                                     \
        static constexpr int32_t VALUES = values;                                                  \
        static constexpr int32_t BYTES = bytes;                                                    \
    };
FORMATS(FORMAT)
#undef FORMAT

__device__ static const int8_t IQ4_VALUE[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                                1,    13,   25,  38,  53,  69,  89,  113};
/* Twice the value of an fp4: the scale is halved instead. */
__device__ static const int8_t FP4_TWICE[16] = {0, 1,  2,  3,  4,  6,  8,  12,
                                                0, -1, -2, -3, -4, -6, -8, -12};

__device__ static inline float read_f16(const uint8_t *at)
{
    return __half2float(__ushort_as_half(*(const uint16_t *)at));
}

/* Nibble i of 16 bytes that hold values 0..15 low and 16..31 high. */
__device__ static inline int32_t nibble_of_32(const uint8_t *quant, int32_t i)
{
    return i < 16 ? quant[i] & 15 : quant[i - 16] >> 4;
}

__device__ static inline int32_t bit_of(const uint8_t *bits, int32_t i)
{
    return bits[i / 8] >> (i % 8) & 1;
}

/* Six-bit scale and minimum of sub-block j of Q4_K and Q5_K. */
__device__ static inline int32_t k_scale(const uint8_t *s, int32_t j)
{
    return j < 4 ? s[j] & 63 : (s[j + 4] & 15) | (s[j - 4] >> 6) << 4;
}

__device__ static inline int32_t k_minimum(const uint8_t *s, int32_t j)
{
    return j < 4 ? s[j + 4] & 63 : s[j + 4] >> 4 | (s[j] >> 6) << 4;
}

__device__ static inline float k_value(const uint8_t *block, int32_t j, int32_t q)
{
    float scale = __fmul_rn(read_f16(block), (float)k_scale(block + 4, j));
    float minimum = __fmul_rn(read_f16(block + 2), (float)k_minimum(block + 4, j));
    return __fsub_rn(__fmul_rn(scale, (float)q), minimum);
}

template <enum format F> __device__ inline float dequantise(const uint8_t *block, int32_t i);

template <> __device__ inline float dequantise<FORMAT_F32>(const uint8_t *block, int32_t)
{
    return *(const float *)block;
}

template <> __device__ inline float dequantise<FORMAT_F16>(const uint8_t *block, int32_t)
{
    return read_f16(block);
}

template <> __device__ inline float dequantise<FORMAT_BF16>(const uint8_t *block, int32_t)
{
    return __uint_as_float((uint32_t)(*(const uint16_t *)block) << 16);
}

template <> __device__ inline float dequantise<FORMAT_Q4_0>(const uint8_t *block, int32_t i)
{
    return __fmul_rn(read_f16(block), (float)(nibble_of_32(block + 2, i) - 8));
}

template <> __device__ inline float dequantise<FORMAT_Q4_1>(const uint8_t *block, int32_t i)
{
    float product = __fmul_rn(read_f16(block), (float)nibble_of_32(block + 4, i));
    return __fadd_rn(product, read_f16(block + 2));
}

template <> __device__ inline float dequantise<FORMAT_Q5_0>(const uint8_t *block, int32_t i)
{
    int32_t q = nibble_of_32(block + 6, i) | bit_of(block + 2, i) << 4;
    return __fmul_rn(read_f16(block), (float)(q - 16));
}

template <> __device__ inline float dequantise<FORMAT_Q5_1>(const uint8_t *block, int32_t i)
{
    int32_t q = nibble_of_32(block + 8, i) | bit_of(block + 4, i) << 4;
    return __fadd_rn(__fmul_rn(read_f16(block), (float)q), read_f16(block + 2));
}

template <> __device__ inline float dequantise<FORMAT_Q8_0>(const uint8_t *block, int32_t i)
{
    return __fmul_rn(read_f16(block), (float)(int8_t)block[2 + i]);
}

template <> __device__ inline float dequantise<FORMAT_Q2_K>(const uint8_t *block, int32_t i)
{
    int32_t half = i / 128, quarter = i % 128 / 32;
    int32_t q = block[16 + 32 * half + i % 32] >> (2 * quarter) & 3;
    uint8_t s = block[i / 16];
    float scale = __fmul_rn(read_f16(block + 80), (float)(s & 15));
    float minimum = __fmul_rn(read_f16(block + 82), (float)(s >> 4));
    return __fsub_rn(__fmul_rn(scale, (float)q), minimum);
}

template <> __device__ inline float dequantise<FORMAT_Q3_K>(const uint8_t *block, int32_t i)
{
    int32_t half = i / 128, quarter = i % 128 / 32, j = i / 16;
    int32_t q = block[32 + 32 * half + i % 32] >> (2 * quarter) & 3;
    q -= (block[i % 32] >> (i / 32) & 1) ? 0 : 4;
    const uint8_t *s = block + 96;
    int32_t low = j < 8 ? s[j % 8] & 15 : s[j % 8] >> 4;
    int32_t high = s[8 + j % 4] >> (2 * (j / 4)) & 3;
    float scale = __fmul_rn(read_f16(block + 108), (float)((low | high << 4) - 32));
    return __fmul_rn(scale, (float)q);
}

template <> __device__ inline float dequantise<FORMAT_Q4_K>(const uint8_t *block, int32_t i)
{
    uint8_t pair = block[16 + 32 * (i / 64) + i % 32];
    return k_value(block, i / 32, i % 64 < 32 ? pair & 15 : pair >> 4);
}

template <> __device__ inline float dequantise<FORMAT_Q5_K>(const uint8_t *block, int32_t i)
{
    uint8_t pair = block[48 + 32 * (i / 64) + i % 32];
    int32_t q = i % 64 < 32 ? pair & 15 : pair >> 4;
    return k_value(block, i / 32, q | (block[16 + i % 32] >> (i / 32) & 1) << 4);
}

template <> __device__ inline float dequantise<FORMAT_Q6_K>(const uint8_t *block, int32_t i)
{
    int32_t half = i / 128, quarter = i % 128 / 32, l = i % 32;
    uint8_t pair = block[64 * half + l + 32 * (quarter % 2)];
    int32_t q = quarter < 2 ? pair & 15 : pair >> 4;
    q |= (block[128 + 32 * half + l] >> (2 * quarter) & 3) << 4;
    float scale = __fmul_rn(read_f16(block + 208), (float)(int8_t)block[192 + i / 16]);
    return __fmul_rn(scale, (float)(q - 32));
}

template <> __device__ inline float dequantise<FORMAT_IQ4_NL>(const uint8_t *block, int32_t i)
{
    return __fmul_rn(read_f16(block), (float)IQ4_VALUE[nibble_of_32(block + 2, i)]);
}

template <> __device__ inline float dequantise<FORMAT_IQ4_XS>(const uint8_t *block, int32_t i)
{
    int32_t j = i / 32;
    int32_t high = *(const uint16_t *)(block + 2) >> (2 * j) & 3;
    int32_t low = block[4 + j / 2] >> (4 * (j % 2)) & 15;
    float scale = __fmul_rn(read_f16(block), (float)((low | high << 4) - 32));
    return __fmul_rn(scale, (float)IQ4_VALUE[nibble_of_32(block + 8 + 16 * j, i % 32)]);
}

template <> __device__ inline float dequantise<FORMAT_MXFP4>(const uint8_t *block, int32_t i)
{
    uint32_t e = block[0];
    float half_scale = __uint_as_float(e < 2 ? 0x00200000u << e : (e - 1) << 23);
    return __fmul_rn(half_scale, (float)FP4_TWICE[nibble_of_32(block + 1, i)]);
}

#endif
