/* The matmul of weights that lie as in their file: of all formats but bf16, whose kernel is in
 * matmul.cu. Weights are the rows.
 *
 * Warpgroups take the place of the producer: they have runs of a row's blocks copied into shared
 * memory as they are (units of 256 values, fewer of wide ones), dequantise them from there by the
 * formula of their format, round to bf16, and put them into the stage in the order that the tensor
 * cores read; each has every second or third stage. What multiplies and the order of sums are those
 * of matmul_body.cuh, so that a token's bits do not depend on T here either. Rounding a weight to
 * bf16 costs 2^-9 of it at most, as rounding the activation that it meets does; a quantised one is
 * 2^-5 of it or more off the trained one.
 */
#include "kernels/cuda/dequantise.cuh"
#include "kernels/cuda/matmul_body.cuh"

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

/* With one warpgroup that multiplies, or two. */
template <int GROUPS> struct packed_ring {
    static constexpr int32_t UNITS = GROUPS == 1 ? 4 : 2;
    static constexpr int32_t PRODUCERS = GROUPS == 1 ? 3 : 2; /* warpgroups */
    static constexpr int32_t THREADS = (GROUPS + PRODUCERS) * WARPGROUP;
};

/* Which unit comes next: all of a tile's, then the next tile's. */
struct unit_cursor {
    int32_t tile, unit;
    __device__ void next(int32_t unit_count)
    {
        if (++unit == unit_count) {
            unit = 0;
            tile += gridDim.x;
        }
    }
};

template <int GROUPS> __device__ static inline void producers_sync(void)
{
    constexpr int32_t THREADS = packed_ring<GROUPS>::PRODUCERS * WARPGROUP;
    asm volatile("bar.sync 1, %0;" ::"n"(THREADS) : "memory");
}

__device__ static inline const uint8_t *unit_start(const struct packed_weight &weight, int32_t row,
                                                   int32_t unit)
{
    return weight.data + row * weight.row_bytes + (int64_t)unit * weight.unit_bytes;
}

/* Asks for a unit of the tile's rows, a thread a row: whole sixteens of bytes, so that some before
 * and behind come too. */
template <int N>
__device__ static void ask(const struct packed_weight &weight, const struct matmul &call,
                           const struct matmul_tiles &tiles, struct unit_cursor at, int32_t thread,
                           uint32_t raw, uint32_t barrier)
{
    if (thread >= tiles.tile_rows || at.tile >= tiles.row_tiles * tiles.column_tiles)
        return;
    int32_t row = place_of<1, N>(at.tile, tiles, 0).row + thread;
    if (row >= call.count) {
        barrier_arrive(barrier);
        return;
    }
    const uint8_t *start = unit_start(weight, row, at.unit);
    int64_t left = weight.row_bytes - (int64_t)at.unit * weight.unit_bytes;
    int32_t before = (int32_t)((uintptr_t)start % BULK_ALIGN);
    int32_t bytes = before + (left < weight.unit_bytes ? (int32_t)left : weight.unit_bytes);
    bytes = (bytes + BULK_ALIGN - 1) / BULK_ALIGN * BULK_ALIGN;
    barrier_expect(barrier, bytes);
    bulk_copy(raw + thread * weight.raw_stride, start - before, bytes, barrier);
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

/* Dequantises the columns of one stage. Rows are a power of two. */
__device__ static inline void fill_rows(const struct packed_weight &weight,
                                        const struct matmul &call, const struct matmul_tiles &tiles,
                                        struct tile_place place, int32_t unit, int32_t column,
                                        const uint8_t *raw, uint32_t rows)
{
    int32_t first_run = (column - unit * weight.unit_values) / RUN;
    for (int32_t i = threadIdx.x % WARPGROUP; i < tiles.tile_rows * 2; i += WARPGROUP) {
        int32_t r = i & (tiles.tile_rows - 1), half = i >= tiles.tile_rows;
        float value[RUN];
        if (place.row + r < call.count && column + half * RUN < call.in) {
            const uint8_t *start = unit_start(weight, place.row + r, unit);
            unpack_any(value, weight.format,
                       raw + r * weight.raw_stride + (uintptr_t)start % BULK_ALIGN,
                       first_run + half);
        } else {
#pragma unroll
            for (int32_t j = 0; j < RUN; j++)
                value[j] = 0.0f;
        }
        put_run(rows, r, half, value);
    }
}

struct packed_barriers {
    uint32_t full, empty; /* of stages */
    uint32_t raw;         /* of units */
};

template <int GROUPS, int N>
__device__ static void produce_packed(const CUtensorMap *columns,
                                      const struct packed_weight &weight, const struct matmul &call,
                                      const struct matmul_tiles &tiles, uint32_t stages,
                                      struct packed_barriers barriers, const uint8_t *raw)
{
    constexpr int32_t UNITS = packed_ring<GROUPS>::UNITS;
    constexpr int32_t PRODUCERS = packed_ring<GROUPS>::PRODUCERS;
    const int32_t bytes = panel_bytes<N>(tiles.tile_rows);
    const int32_t unit_count = (call.in + weight.unit_values - 1) / weight.unit_values;
    const int32_t raw_bytes = tiles.tile_rows * weight.raw_stride;
    int32_t thread = threadIdx.x - GROUPS * WARPGROUP, own = thread / WARPGROUP, turn = 0;
    struct unit_cursor at = {(int32_t)blockIdx.x, 0}, asked = at;
    struct ring ring = {0, 0}, taken = {0, 0}, wanted = {0, 0};

    for (int32_t i = 0; i < UNITS - 1; i++, asked.next(unit_count), wanted.next(UNITS))
        ask<N>(weight, call, tiles, asked, thread, shared_address(raw) + wanted.stage * raw_bytes,
               barriers.raw + wanted.stage * 8);
    kernel_wait();
    bulk_see();
    for (; at.tile < tiles.row_tiles * tiles.column_tiles; at.next(unit_count), taken.next(UNITS)) {
        struct tile_place place = place_of<1, N>(at.tile, tiles, 0);
        producers_sync<GROUPS>(); /* nobody reads the unit before this one any more */
        ask<N>(weight, call, tiles, asked, thread, shared_address(raw) + wanted.stage * raw_bytes,
               barriers.raw + wanted.stage * 8);
        asked.next(unit_count);
        wanted.next(UNITS);
        barrier_wait(barriers.raw + taken.stage * 8, taken.parity);
        int32_t column = at.unit * weight.unit_values;
        int32_t end = min(column + weight.unit_values, call.in);
        for (; column < end; column += DEPTH, ring.next(tiles.stage_count)) {
            uint32_t stage = stages + ring.stage * bytes, full = barriers.full + ring.stage * 8;
            bool mine = turn == own;
            turn = turn + 1 == PRODUCERS ? 0 : turn + 1;
            if (!mine)
                continue;
            barrier_wait(barriers.empty + ring.stage * 8, ring.parity ^ 1);
            if (thread % WARPGROUP == 0) {
                barrier_expect(full, N * ROW_BYTES);
                bulk_load(stage, columns, column, place.column, full);
            }
            fill_rows(weight, call, tiles, place, at.unit, column, raw + taken.stage * raw_bytes,
                      stage + N * ROW_BYTES);
            wgmma_show();
            __syncwarp();
            if (thread % WARP == 0)
                barrier_arrive(full);
        }
    }
}

template <int GROUPS, int N, bool F32>
__global__ void __launch_bounds__(packed_ring<GROUPS>::THREADS, 1)
    matmul_packed_kernel(const __grid_constant__ CUtensorMap columns, struct packed_weight weight,
                         struct matmul call, struct matmul_tiles tiles)
{
    extern __shared__ uint8_t dynamic[];
    constexpr int32_t UNITS = packed_ring<GROUPS>::UNITS;
    __shared__ alignas(8) uint64_t barrier[2 * STAGES_MAX + UNITS];
    uint32_t first = shared_address(dynamic);
    uint32_t stages = (first + SHARED_ALIGN - 1) / SHARED_ALIGN * SHARED_ALIGN;
    struct packed_barriers barriers;
    barriers.full = shared_address(barrier);
    barriers.empty = barriers.full + STAGES_MAX * 8;
    barriers.raw = barriers.empty + STAGES_MAX * 8;
    int32_t behind = GROUPS * GROUP_ROWS * ROW_BYTES;
    const uint8_t *raw =
        dynamic + (stages - first) + behind + tiles.stage_count * panel_bytes<N>(tiles.tile_rows);

    if (threadIdx.x == 0) {
        for (int32_t i = 0; i < tiles.stage_count; i++) {
            barrier_make(barriers.full + i * 8, 1 + WARPGROUP / WARP);
            barrier_make(barriers.empty + i * 8, GROUPS * WARPGROUP / WARP);
        }
        for (int32_t i = 0; i < UNITS; i++)
            barrier_make(barriers.raw + i * 8, tiles.tile_rows);
        barrier_show();
    }
    __syncthreads();
    kernel_yield();

    if (threadIdx.x >= GROUPS * WARPGROUP) {
        produce_packed<GROUPS, N>(&columns, weight, call, tiles, stages, barriers, raw);
        return;
    }
    struct ring ring = {0, 0};
    kernel_wait();
    for (int32_t tile = blockIdx.x; tile < tiles.row_tiles * tiles.column_tiles;
         tile += gridDim.x) {
        float sum[N / 8][4];
#pragma unroll
        for (int32_t n = 0; n < N / 8; n++)
#pragma unroll
            for (int32_t i = 0; i < 4; i++)
                sum[n][i] = 0.0f;
        multiply<N, 1, 1>(sum, ring, tiles, (call.in + DEPTH - 1) / DEPTH, stages, barriers.full,
                          barriers.empty);
        store_turned<N, F32>(sum, call, tiles.tile_rows, place_of<1, N>(tile, tiles, 0));
    }
}

/* ---- launches ---- */

template <int GROUPS, int N, bool F32>
static void packed_launch(struct device *device, const struct packed_weight &weight,
                          const struct matmul &call, int32_t tile_rows)
{
    auto kernel = matmul_packed_kernel<GROUPS, N, F32>;
    struct matmul_tiles tiles = {};
    CUtensorMap columns;
    int32_t stage_bytes = panel_bytes<N>(tile_rows);
    int32_t raw_bytes = packed_ring<GROUPS>::UNITS * tile_rows * weight.raw_stride;
    int32_t fixed = GROUPS * GROUP_ROWS * ROW_BYTES + SHARED_ALIGN + raw_bytes;
    tiles.tile_rows = tile_rows;
    tiles.row_tiles = ceil_div(call.count, tile_rows);
    tiles.column_tiles = ceil_div(call.T, N);
    tiles.stage_count = (SHARED_MAX - fixed) / stage_bytes;
    if (tiles.stage_count > 8)
        tiles.stage_count = 8;
    assert(tiles.stage_count >= 2);
    int32_t shared = fixed + tiles.stage_count * stage_bytes;
    int32_t blocks = tiles.row_tiles * tiles.column_tiles;
    int32_t most = device->core_count;

    if (!map_rows(device, &columns, call.x, call.x_stride, call.in, call.T, N))
        return;
    struct launch_shape shape = {dim3(blocks < most ? blocks : most),
                                 dim3(packed_ring<GROUPS>::THREADS), (size_t)shared};
    launch(device, __func__, kernel, shape, columns, weight, call, tiles);
}

template <bool F32>
static void packed(struct device *device, const struct packed_weight &weight,
                   const struct matmul &call)
{
    int32_t rows = GROUP_ROWS; /* as many as leave a block for every multiprocessor */
    while (rows > 16 && ceil_div(call.count, rows) < device->core_count)
        rows /= 2;
    if (call.T <= 8)
        packed_launch<1, 8, F32>(device, weight, call, rows);
    else if (call.T <= 32)
        packed_launch<1, 32, F32>(device, weight, call, rows);
    else if (ceil_div(call.count, 2 * GROUP_ROWS) * ceil_div(call.T, 128) < device->core_count)
        packed_launch<1, 128, F32>(device, weight, call, rows);
    else
        packed_launch<2, 128, F32>(device, weight, call, 2 * GROUP_ROWS);
}

bool cuda_matmul_packed_fits(const struct device *device, const struct matmul &call,
                             enum format format)
{
    return device->hopper && device->encode != NULL && call.in % RUN == 0 &&
           call.in % format_info(format)->block_values == 0 && call.count % CHUNK == 0 &&
           in_chunks(call.x, call.x_stride, call.in) && call.out_stride % CHUNK == 0 &&
           (uintptr_t)call.out % 16 == 0;
}

void cuda_matmul_packed(struct device *device, const struct matmul &call, enum format format)
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
    if (call.f32)
        packed<true>(device, weight, call);
    else
        packed<false>(device, weight, call);
}
