/* The matmul of weights that lie as in their file: of all formats but bf16, whose kernel is in
 * matmul.cu. Weights are the rows.
 *
 * A warpgroup takes the place of the producer: it copies runs of a row's blocks into shared memory
 * as they are (units of 64 values, or the 256 of a block), dequantises them there by the formula
 * of their format, rounds to bf16, and puts them into the stage in the order that the tensor cores
 * read. What multiplies and the order of sums are those of matmul_body.cuh, so that a token's bits
 * do not depend on T here either. Rounding a weight to bf16 costs 2^-9 of it at most, as rounding
 * the activation that it meets does; a quantised one is 2^-5 of it or more off the trained one.
 */
#include "kernels/cuda/dequantise.cuh"
#include "kernels/cuda/matmul_body.cuh"

enum {
    RUN = 32,          /* values that a thread dequantises at once */
    BLOCK_VALUES = 64, /* of a unit, where blocks are not longer */
};

/* How the weight lies in memory and in the ring of units. */
struct packed_weight {
    const uint8_t *data; /* [count] rows of row_bytes */
    int64_t row_bytes;
    enum format format;
    int32_t unit_values, unit_bytes;
    int32_t raw_stride; /* bytes between the rows of a unit: an odd number of words */
};

template <int GROUPS> struct packed_ring {
    static constexpr int32_t UNITS = GROUPS == 1 ? 4 : 2;
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

__device__ static inline void producers_sync(void)
{
    asm volatile("bar.sync 1, %0;" ::"n"((int32_t)WARPGROUP) : "memory");
}

__device__ static inline void copy_word(uint32_t target, const uint8_t *source)
{
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(target), "l"(source) : "memory");
}

__device__ static inline const uint8_t *unit_start(const struct packed_weight &weight, int32_t row,
                                                   int32_t unit)
{
    return weight.data + row * weight.row_bytes + (int64_t)unit * weight.unit_bytes;
}

/* Asks for a unit of the tile's rows: whole words, so that up to three bytes before and behind
 * come too. A group of copies, also where there is nothing to ask for. */
template <int N>
__device__ static void ask(const struct packed_weight &weight, const struct matmul &call,
                           const struct matmul_tiles &tiles, struct unit_cursor at, uint32_t raw)
{
    int32_t thread = threadIdx.x % WARPGROUP, lane = thread % WARP;
    if (at.tile < tiles.row_tiles * tiles.column_tiles) {
        struct tile_place place = place_of<1, N>(at.tile, tiles, 0);
        int64_t left = weight.row_bytes - (int64_t)at.unit * weight.unit_bytes;
        int32_t bytes = left < weight.unit_bytes ? (int32_t)left : weight.unit_bytes;
        for (int32_t r = thread / WARP; r < tiles.tile_rows; r += WARPGROUP / WARP) {
            if (place.row + r >= call.count)
                break;
            const uint8_t *start = unit_start(weight, place.row + r, at.unit);
            int32_t before = (int32_t)((uintptr_t)start & 3);
            int32_t words = (before + bytes + 3) / 4;
            for (int32_t w = lane; w < words; w += WARP)
                copy_word(raw + r * weight.raw_stride + w * 4, start - before + w * 4);
        }
    }
    asm volatile("cp.async.commit_group;" ::: "memory");
}

/* Run `run` of a unit. */
template <enum format F> __device__ static inline void unpack(float (&value)[RUN],
                                                              const uint8_t *unit, int32_t run)
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

/* Dequantises the columns of one stage, and says so. */
__device__ static inline void fill_rows(const struct packed_weight &weight,
                                        const struct matmul &call,
                                        const struct matmul_tiles &tiles, struct tile_place place,
                                        int32_t unit, int32_t column, const uint8_t *raw,
                                        uint32_t rows)
{
    int32_t first_run = (column - unit * weight.unit_values) / RUN;
    for (int32_t i = threadIdx.x % WARPGROUP; i < tiles.tile_rows * 2; i += WARPGROUP) {
        int32_t r = i % tiles.tile_rows, half = i / tiles.tile_rows;
        float value[RUN];
        if (place.row + r < call.count && column + half * RUN < call.in) {
            const uint8_t *start = unit_start(weight, place.row + r, unit);
            unpack_any(value, weight.format,
                       raw + r * weight.raw_stride + ((uintptr_t)start & 3), first_run + half);
        } else {
#pragma unroll
            for (int32_t j = 0; j < RUN; j++)
                value[j] = 0.0f;
        }
        put_run(rows, r, half, value);
    }
}

template <int GROUPS, int N>
__device__ static void produce_packed(const CUtensorMap *columns, const struct packed_weight &weight,
                                      const struct matmul &call, const struct matmul_tiles &tiles,
                                      uint32_t stages, uint32_t full, uint32_t empty,
                                      const uint8_t *raw)
{
    constexpr int32_t UNITS = packed_ring<GROUPS>::UNITS;
    const int32_t bytes = matmul_stage<GROUPS, N>::bytes(tiles.tile_rows);
    const int32_t unit_count = (call.in + weight.unit_values - 1) / weight.unit_values;
    const int32_t raw_bytes = tiles.tile_rows * weight.raw_stride;
    bool leader = threadIdx.x % WARPGROUP == 0;
    struct unit_cursor at = {(int32_t)blockIdx.x, 0}, asked = at;
    struct ring ring = {0, 0};

    for (int32_t i = 0; i < UNITS - 1; i++, asked.next(unit_count))
        ask<N>(weight, call, tiles, asked, shared_address(raw) + i * raw_bytes);
    kernel_wait();
    bulk_see();
    for (int32_t i = 0; at.tile < tiles.row_tiles * tiles.column_tiles;
         i++, at.next(unit_count), asked.next(unit_count)) {
        struct tile_place place = place_of<1, N>(at.tile, tiles, 0);
        asm volatile("cp.async.wait_group %0;" ::"n"(UNITS - 2) : "memory");
        producers_sync(); /* this unit is here, and nobody reads the one before it any more */
        ask<N>(weight, call, tiles, asked,
               shared_address(raw) + (i + UNITS - 1) % UNITS * raw_bytes);
        int32_t column = at.unit * weight.unit_values;
        int32_t end = min(column + weight.unit_values, call.in);
        for (; column < end; column += DEPTH) {
            uint32_t stage = stages + ring.stage * bytes, barrier = full + ring.stage * 8;
            barrier_wait(empty + ring.stage * 8, ring.parity ^ 1);
            if (leader) {
                barrier_expect(barrier, N * ROW_BYTES);
                bulk_load(stage, columns, column, place.column, barrier);
            }
            fill_rows(weight, call, tiles, place, at.unit, column, raw + i % UNITS * raw_bytes,
                      stage + N * ROW_BYTES);
            wgmma_show();
            barrier_arrive(barrier, 0);
            ring.next(tiles.stage_count);
        }
    }
}

template <int GROUPS, int N, bool F32>
__global__ void __launch_bounds__((GROUPS + 1) * WARPGROUP, 1)
    matmul_packed_kernel(const __grid_constant__ CUtensorMap columns, struct packed_weight weight,
                         struct matmul call, struct matmul_tiles tiles)
{
    extern __shared__ uint8_t dynamic[];
    __shared__ alignas(8) uint64_t barrier[2 * STAGES_MAX];
    uint32_t first = shared_address(dynamic);
    uint32_t stages = (first + SHARED_ALIGN - 1) / SHARED_ALIGN * SHARED_ALIGN;
    uint32_t full = shared_address(barrier), empty = full + STAGES_MAX * 8;
    int32_t behind = GROUPS * GROUP_ROWS * ROW_BYTES;
    const uint8_t *raw = dynamic + (stages - first) + behind +
                         tiles.stage_count * matmul_stage<GROUPS, N>::bytes(tiles.tile_rows);

    if (threadIdx.x == 0) {
        for (int32_t i = 0; i < tiles.stage_count; i++) {
            barrier_make(full + i * 8, 1 + WARPGROUP);
            barrier_make(empty + i * 8, GROUPS * WARPGROUP / WARP);
        }
        barrier_show();
    }
    __syncthreads();
    kernel_yield();

    if (threadIdx.x >= GROUPS * WARPGROUP) {
        produce_packed<GROUPS, N>(&columns, weight, call, tiles, stages, full, empty, raw);
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
        multiply<GROUPS, N, 1>(sum, ring, tiles, (call.in + DEPTH - 1) / DEPTH, stages, full,
                               empty);
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
    int32_t stage_bytes = matmul_stage<GROUPS, N>::bytes(tile_rows);
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
    (void)cuda_check(
        device, cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared),
        __func__);
    struct launch_shape shape = {dim3(blocks < most ? blocks : most),
                                 dim3((GROUPS + 1) * WARPGROUP), (size_t)shared};
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
    else if (call.T <= 128 && ceil_div(call.count, 2 * GROUP_ROWS) < device->core_count)
        packed_launch<1, 128, F32>(device, weight, call, rows);
    else if (call.T <= 128)
        packed_launch<2, 128, F32>(device, weight, call, 2 * GROUP_ROWS);
    else
        packed_launch<2, 256, F32>(device, weight, call, 2 * GROUP_ROWS);
}

bool cuda_matmul_packed_fits(const struct device *device, const struct matmul &call,
                             enum format format)
{
    return device->hopper && device->encode != NULL && call.in % RUN == 0 &&
           call.in % format_info(format)->block_values == 0 && call.count % CHUNK == 0 &&
           in_chunks(call.x, call.x_stride, call.in) && call.out_stride % CHUNK == 0 &&
           (uintptr_t)call.out % 16 == 0;
}

void cuda_matmul_packed(struct device *device, const struct matmul &call, enum format format,
                        const void *data)
{
    const struct format_info *info = format_info(format);
    struct packed_weight weight = {};
    weight.data = (const uint8_t *)data;
    weight.row_bytes = (int64_t)format_row_bytes(format, call.in);
    weight.format = format;
    weight.unit_values = info->block_values > BLOCK_VALUES ? info->block_values : BLOCK_VALUES;
    weight.unit_bytes = (int32_t)format_row_bytes(format, weight.unit_values);
    weight.raw_stride = ((weight.unit_bytes + 6) / 4 | 1) * 4;
    if (call.f32)
        packed<true>(device, weight, call);
    else
        packed<false>(device, weight, call);
}
