/* Packed weights on their way into a product: units of a row's blocks lie in shared memory as they
 * lie in their file, and are put from there into a stage, dequantised and rounded to bf16. */
#ifndef KERNELS_CUDA_UNPACK_CUH
#define KERNELS_CUDA_UNPACK_CUH

#include "kernels/cuda/dequantise.cuh"
#include "kernels/cuda/matmul.cuh"

enum {
    RUN = 32,             /* values that a thread dequantises at once */
    UNIT_BYTES_MAX = 280, /* of a row: 256 values of eight bits and their scales */
    BULK_ALIGN = 16,
};

/* How the weight lies in memory and in the ring of units. */
struct packed_weight {
    const uint8_t *data; /* [count] rows of row_bytes */
    int64_t row_bytes;
    enum format format;
    int32_t unit_values, unit_bytes;
    int32_t raw_stride; /* bytes between the rows of a unit: an odd number of BULK_ALIGN */
};

/* The weight of this call, in units of 256 values, fewer of wide ones. */
static inline struct packed_weight packed_weight_of(const struct matmul &call, enum format format)
{
    struct packed_weight weight = {};
    weight.data = (const uint8_t *)call.weight;
    weight.row_bytes = (int64_t)format_row_bytes(format, call.in);
    weight.format = format;
    weight.unit_values = 256;
    while (format_row_bytes(format, weight.unit_values) > UNIT_BYTES_MAX)
        weight.unit_values /= 2;
    weight.unit_bytes = (int32_t)format_row_bytes(format, weight.unit_values);
    weight.raw_stride = ((weight.unit_bytes + 2 * (BULK_ALIGN - 1)) / BULK_ALIGN | 1) * BULK_ALIGN;
    return weight;
}

__device__ static inline const uint8_t *unit_start(const struct packed_weight &weight, int32_t row,
                                                   int32_t unit)
{
    return weight.data + row * weight.row_bytes + (int64_t)unit * weight.unit_bytes;
}

/* Four bytes at an even address. */
__device__ static inline uint32_t word_at(const uint8_t *at)
{
    const uint16_t *half = (const uint16_t *)at;
    return half[0] | (uint32_t)half[1] << 16;
}

/* Byte `i` of a word, 0 .. 255, as a float: an exact sum, where a conversion would be slow. */
__device__ static inline float byte_value(uint32_t word, int32_t i)
{
    return __uint_as_float(__byte_perm(word, 0x4b000000, 0x7440 | i)) - 8388608.0f;
}

/* Run `run` of a unit. The formats that models are most often in have a way of their own, with the
 * products and sums of `dequantise`. */
template <enum format F>
__device__ static inline void unpack(float (&value)[RUN], const uint8_t *unit, int32_t run)
{
    constexpr int32_t VALUES = format_size<F>::VALUES;
    constexpr int32_t BYTES = format_size<F>::BYTES;
    if (VALUES >= RUN) {
        const uint8_t *block = unit + run * RUN / VALUES * BYTES;
        int32_t first = run * RUN % VALUES;
#pragma unroll
        for (int32_t i = 0; i < RUN; i++)
            value[i] = dequantise<F>(block, first + i);
    } else {
#pragma unroll
        for (int32_t i = 0; i < RUN; i++)
            value[i] = dequantise<F>(unit + (run * RUN + i) * BYTES, 0);
    }
}

template <>
__device__ inline void unpack<FORMAT_Q4_0>(float (&value)[RUN], const uint8_t *unit, int32_t run)
{
    const uint8_t *block = unit + run * format_size<FORMAT_Q4_0>::BYTES;
    float scale = read_f16(block);
#pragma unroll
    for (int32_t w = 0; w < 4; w++) {
        uint32_t pairs = word_at(block + 2 + 4 * w);
        uint32_t low = pairs & 0x0f0f0f0f, high = pairs >> 4 & 0x0f0f0f0f;
#pragma unroll
        for (int32_t i = 0; i < 4; i++) {
            value[4 * w + i] = __fmul_rn(scale, byte_value(low, i) - 8.0f);
            value[4 * w + i + 16] = __fmul_rn(scale, byte_value(high, i) - 8.0f);
        }
    }
}

template <>
__device__ inline void unpack<FORMAT_Q8_0>(float (&value)[RUN], const uint8_t *unit, int32_t run)
{
    const uint8_t *block = unit + run * format_size<FORMAT_Q8_0>::BYTES;
    float scale = read_f16(block);
#pragma unroll
    for (int32_t w = 0; w < 8; w++) {
        uint32_t word = word_at(block + 2 + 4 * w) ^ 0x80808080u;
#pragma unroll
        for (int32_t i = 0; i < 4; i++)
            value[4 * w + i] = __fmul_rn(scale, byte_value(word, i) - 128.0f);
    }
}

/* Of Q4_K and Q5_K: q of 32 values, their scale and minimum. */
__device__ static inline void unpack_k(float (&value)[RUN], const uint8_t *block, int32_t run,
                                       const uint32_t (&q)[8])
{
    float scale = __fmul_rn(read_f16(block), (float)k_scale(block + 4, run));
    float minimum = __fmul_rn(read_f16(block + 2), (float)k_minimum(block + 4, run));
#pragma unroll
    for (int32_t w = 0; w < 8; w++)
#pragma unroll
        for (int32_t i = 0; i < 4; i++)
            value[4 * w + i] = __fsub_rn(__fmul_rn(scale, byte_value(q[w], i)), minimum);
}

template <>
__device__ inline void unpack<FORMAT_Q4_K>(float (&value)[RUN], const uint8_t *unit, int32_t run)
{
    const uint8_t *pairs = unit + 16 + 32 * (run / 2);
    uint32_t q[8];
#pragma unroll
    for (int32_t w = 0; w < 8; w++)
        q[w] = word_at(pairs + 4 * w) >> (run % 2 * 4) & 0x0f0f0f0f;
    unpack_k(value, unit, run, q);
}

template <>
__device__ inline void unpack<FORMAT_Q5_K>(float (&value)[RUN], const uint8_t *unit, int32_t run)
{
    const uint8_t *pairs = unit + 48 + 32 * (run / 2);
    uint32_t q[8];
#pragma unroll
    for (int32_t w = 0; w < 8; w++)
        q[w] = (word_at(pairs + 4 * w) >> (run % 2 * 4) & 0x0f0f0f0f) |
               (word_at(unit + 16 + 4 * w) >> run & 0x01010101) << 4;
    unpack_k(value, unit, run, q);
}

template <>
__device__ inline void unpack<FORMAT_Q6_K>(float (&value)[RUN], const uint8_t *unit, int32_t run)
{
    int32_t half = run / 4, quarter = run % 4;
    const uint8_t *low = unit + 64 * half + 32 * (quarter % 2), *high = unit + 128 + 32 * half;
    float scale = read_f16(unit + 208);
#pragma unroll
    for (int32_t w = 0; w < 8; w++) {
        float own = __fmul_rn(scale, (float)(int8_t)unit[192 + 2 * run + w / 4]);
        uint32_t q = (word_at(low + 4 * w) >> (quarter / 2 * 4) & 0x0f0f0f0f) |
                     (word_at(high + 4 * w) >> (2 * quarter) & 0x03030303) << 4;
#pragma unroll
        for (int32_t i = 0; i < 4; i++)
            value[4 * w + i] = __fmul_rn(own, byte_value(q, i) - 32.0f);
    }
}

template <>
__device__ inline void unpack<FORMAT_F16>(float (&value)[RUN], const uint8_t *unit, int32_t run)
{
#pragma unroll
    for (int32_t i = 0; i < RUN / 2; i++) {
        float2 two = __half22float2(((const __half2 *)unit)[run * (RUN / 2) + i]);
        value[2 * i] = two.x;
        value[2 * i + 1] = two.y;
    }
}

__device__ static inline void unpack_any(float (&value)[RUN], enum format format,
                                         const uint8_t *unit, int32_t run)
{
    switch (format) {
#define FORMAT(constant, name, id, values, bytes)                                                  \
    case constant:                                                                                 \
        unpack<constant>(value, unit, run);                                                        \
        break;
        FORMATS(FORMAT)
#undef FORMAT
    case FORMAT_COUNT:
        break;
    }
}

/* Half a row of the stage, four chunks of 16 bytes in their swizzled places. */
__device__ static inline void put_run(uint32_t rows, int32_t r, int32_t half,
                                      const float (&value)[RUN])
{
#pragma unroll
    for (int32_t c = 0; c < RUN / CHUNK; c++) {
        uint32_t address = rows + r * ROW_BYTES + ((half * 4 + c) ^ (r & 7)) * 16;
        asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(address),
                     "r"(pack_bf16(value[c * 8], value[c * 8 + 1])),
                     "r"(pack_bf16(value[c * 8 + 2], value[c * 8 + 3])),
                     "r"(pack_bf16(value[c * 8 + 4], value[c * 8 + 5])),
                     "r"(pack_bf16(value[c * 8 + 6], value[c * 8 + 7]))
                     : "memory");
    }
}

/* Half `half` of row r of a stage, from the unit of the weight's row `row` that lies at `raw`: run
 * first_run + half. Zeros where the weight ends before `column` or `row`. */
__device__ static inline void fill_half(uint32_t rows, int32_t r, int32_t half,
                                        const struct packed_weight &weight,
                                        const struct matmul &call, int32_t row, int32_t unit,
                                        int32_t column, int32_t first_run, const uint8_t *raw)
{
    float value[RUN];
    if (row < call.count && column + half * RUN < call.in) {
        const uint8_t *start = unit_start(weight, row, unit);
        unpack_any(value, weight.format, raw + (uintptr_t)start % BULK_ALIGN, first_run + half);
    } else {
#pragma unroll
        for (int32_t j = 0; j < RUN; j++)
            value[j] = 0.0f;
    }
    put_run(rows, r, half, value);
}

#endif
