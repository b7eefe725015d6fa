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
#include "kernels/cuda/matmul_body.cuh"
#include "kernels/cuda/unpack.cuh"

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

/* Dequantises the columns of one stage. Rows are a power of two. */
__device__ static inline void fill_rows(const struct packed_weight &weight,
                                        const struct matmul &call, const struct matmul_tiles &tiles,
                                        struct tile_place place, int32_t unit, int32_t column,
                                        const uint8_t *raw, uint32_t rows)
{
    int32_t first_run = (column - unit * weight.unit_values) / RUN;
    for (int32_t i = threadIdx.x % WARPGROUP; i < tiles.tile_rows * 2; i += WARPGROUP) {
        int32_t r = i & (tiles.tile_rows - 1), half = i >= tiles.tile_rows;
        fill_half(rows, r, half, weight, call, place.row + r, unit, column, first_run,
                  raw + r * weight.raw_stride);
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
    tiles.row_last = tile_last(call.count, tile_rows);
    tiles.column_last = tile_last(call.T, N);
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

void cuda_matmul_packed(struct device *device, const struct matmul &call, enum format format)
{
    struct packed_weight weight = packed_weight_of(call, format);
    if (call.f32)
        packed<true>(device, weight, call);
    else
        packed<false>(device, weight, call);
}
