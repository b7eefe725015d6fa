/* Products on the tensor cores of any GPU from sm_80 on: what those of bf16 weights and of packed
 * ones (matmul_sm80.cu, matmul_packed_sm80.cu) share. Hopper has kernels of its own (matmul.cu).
 *
 * A block makes ROWS outputs of COLUMNS tokens, a warp WARP_ROWS of WARP_COLUMNS: outputs are the
 * rows of mma.sync, tokens its columns. A value is one chain of products over `in`, ascending,
 * sixteen terms each, by one warp, so which tile it is in changes no bits. Operands lie in stages
 * of DEPTH columns, first the weights' rows, then the tokens', chunks of 16 bytes of a row
 * exchanged by its number's low bits, so that eight rows of one chunk are in different banks.
 */
#ifndef KERNELS_CUDA_MATMUL_SM80_CUH
#define KERNELS_CUDA_MATMUL_SM80_CUH

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/matmul.cuh"
#include "kernels/cuda/mma.cuh"

enum {
    BLOCK_WARPS_MIN = 4, /* all of them copy, also where fewer multiply */
    COLUMN_BAND = 8,     /* tiles of tokens that take turns on a tile of outputs */
    OUT_PAD = 16,        /* bytes behind a token's outputs in shared memory */
    SM80_FEW_TOKENS = 32,
};

template <int ROWS, int COLUMNS, int WARP_ROWS, int WARP_COLUMNS> struct sm80_tile {
    static constexpr int32_t ROW_COUNT = ROWS, COLUMN_COUNT = COLUMNS;
    static constexpr int32_t WARPS_DOWN = ROWS / WARP_ROWS;
    static constexpr int32_t WARPS = WARPS_DOWN * (COLUMNS / WARP_COLUMNS);
    static constexpr int32_t THREADS = (WARPS > BLOCK_WARPS_MIN ? WARPS : BLOCK_WARPS_MIN) * WARP;
    static constexpr int32_t M = WARP_ROWS / 16, N = WARP_COLUMNS / 8; /* products of a warp */
    static constexpr int32_t OUT_BYTES = COLUMNS * (ROWS * (int32_t)sizeof(float) + OUT_PAD);
    static_assert(M * 16 == WARP_ROWS && (N == 1 || N % 2 == 0), "whole products, in twos");
};

/* Where a block's tile is. */
struct sm80_place {
    int32_t row, column; /* its first */
};

/* Blocks that run at once share what they read: a band of COLUMN_BAND tiles of tokens goes through
 * all outputs, tokens first. */
template <typename Tile>
__device__ static inline struct sm80_place sm80_place_of(const struct matmul &call)
{
    int32_t rows = (call.count + Tile::ROW_COUNT - 1) / Tile::ROW_COUNT;
    int32_t columns = (call.T + Tile::COLUMN_COUNT - 1) / Tile::COLUMN_COUNT;
    int32_t band = blockIdx.x / (COLUMN_BAND * rows), first = band * COLUMN_BAND;
    int32_t width = min(columns - first, (int32_t)COLUMN_BAND);
    int32_t rest = blockIdx.x - first * rows;
    return {rest / width * Tile::ROW_COUNT, (first + rest % width) * Tile::COLUMN_COUNT};
}

template <typename Tile> static inline dim3 sm80_grid(const struct matmul &call)
{
    return dim3(ceil_div(call.count, Tile::ROW_COUNT) * ceil_div(call.T, Tile::COLUMN_COUNT));
}

/* Of chunk `chunk` of a stage's row. */
__device__ static inline uint32_t chunk_at(int32_t row, int32_t chunk)
{
    return (uint32_t)(row * ROW_BYTES + (chunk ^ (row & 7)) * 16);
}

/* Starts the copies of rows first .. first + COUNT - 1 of [count, in] to `target`, DEPTH columns
 * from `column` on; zeros where there are none. */
template <int COUNT, int THREADS>
__device__ static inline void copy_rows(uint32_t target, const bf16 *data, int64_t stride,
                                        int32_t first, int32_t count, int32_t column, int32_t in)
{
    constexpr int32_t CHUNKS = DEPTH / CHUNK;
    static_assert(THREADS % CHUNKS == 0, "a thread has one chunk of its rows");
    int32_t chunk = threadIdx.x % CHUNKS, at = column + chunk * CHUNK;
#pragma unroll
    for (int32_t r = threadIdx.x / CHUNKS; r < COUNT; r += THREADS / CHUNKS) {
        bool there = first + r < count && at < in;
        const bf16 *source = there ? data + (first + r) * stride + at : data;
        copy_async(target + chunk_at(r, chunk), source, there ? 16 : 0);
    }
}

/* The tokens' operands of a whole product or of two: b[n][0..1] of this one, and where N is 1
 * b[0][2..3] of the next. */
template <typename Tile>
__device__ static inline void load_columns(uint32_t (&b)[(Tile::N + 1) / 2][4], uint32_t columns,
                                           int32_t first, int32_t k)
{
    int32_t lane = threadIdx.x % WARP;
#pragma unroll
    for (int32_t n = 0; n < (Tile::N + 1) / 2; n++) {
        int32_t r = Tile::N == 1 ? lane % 8 : n * 16 + lane / 16 * 8 + lane % 8;
        int32_t chunk = Tile::N == 1 ? lane / 8 : lane / 8 % 2;
        load_matrices(b[n], columns + chunk_at(first + r, 2 * k + chunk));
    }
}

/* Where this warp's part is in the tile. */
template <typename Tile> __device__ static inline struct sm80_place warp_place(void)
{
    int32_t warp = threadIdx.x / WARP;
    return {warp % Tile::WARPS_DOWN * Tile::M * 16, warp / Tile::WARPS_DOWN * Tile::N * 8};
}

/* Sums of a warp: [m][n] is sixteen outputs of eight tokens. */
template <typename Tile> struct sm80_sums {
    float of[Tile::M][Tile::N][4];
};

/* One stage's products. Warps without a part of the tile have none. */
template <typename Tile>
__device__ static inline void multiply_stage(sm80_sums<Tile> &sum, uint32_t rows, uint32_t columns)
{
    int32_t lane = threadIdx.x % WARP;
    struct sm80_place own = warp_place<Tile>();
    if (threadIdx.x >= Tile::WARPS * WARP)
        return;
    uint32_t b[(Tile::N + 1) / 2][4];
#pragma unroll
    for (int32_t k = 0; k < DEPTH / 16; k++) {
        uint32_t a[Tile::M][4];
        if (Tile::N > 1 || k % 2 == 0)
            load_columns<Tile>(b, columns, own.column, k);
#pragma unroll
        for (int32_t m = 0; m < Tile::M; m++)
            load_matrices(a[m], rows + chunk_at(own.row + m * 16 + lane % 16, 2 * k + lane / 16));
#pragma unroll
        for (int32_t m = 0; m < Tile::M; m++) {
#pragma unroll
            for (int32_t n = 0; n < Tile::N; n++) {
                int32_t i = Tile::N == 1 ? k % 2 * 2 : n % 2 * 2;
                mma_bf16(sum.of[m][n], a[m], b[n / 2][i], b[n / 2][i + 1]);
            }
        }
    }
}

template <typename Tile> __device__ static inline void clear(sm80_sums<Tile> &sum)
{
#pragma unroll
    for (int32_t m = 0; m < Tile::M; m++)
#pragma unroll
        for (int32_t n = 0; n < Tile::N; n++)
#pragma unroll
            for (int32_t i = 0; i < 4; i++)
                sum.of[m][n][i] = 0.0f;
}

/* ---- what comes out ---- */

/* Puts finished values into shared memory, a token's outputs beside each other; where gated, eight
 * rows of gate and the eight of up make eight outputs. */
template <typename Tile, typename Out, bool GATED>
__device__ static inline void put_sums(uint8_t *memory, const sm80_sums<Tile> &sum,
                                       const struct matmul &call, struct sm80_place place)
{
    constexpr int32_t OUTPUTS = Tile::ROW_COUNT / (GATED ? 2 : 1);
    constexpr int32_t STRIDE = OUTPUTS * (int32_t)sizeof(Out) + OUT_PAD;
    int32_t g = threadIdx.x % WARP / 4, t = threadIdx.x % 4;
    auto [row, column] = warp_place<Tile>();
    if (threadIdx.x >= Tile::WARPS * WARP)
        return;
#pragma unroll
    for (int32_t m = 0; m < Tile::M; m++) {
        int32_t top = row + m * 16 + g, output = place.row + top;
        float bias = call.bias != NULL && output < call.count ? call.bias[output] : 0.0f;
        float lower = call.bias != NULL && output + 8 < call.count ? call.bias[output + 8] : 0.0f;
#pragma unroll
        for (int32_t n = 0; n < Tile::N; n++)
#pragma unroll
            for (int32_t j = 0; j < 2; j++) {
                const float(&own)[4] = sum.of[m][n];
                uint8_t *out = memory + (column + n * 8 + t * 2 + j) * STRIDE;
                if (GATED) {
                    float value = activate(call.act, own[j] + bias) * (own[2 + j] + lower);
                    from_float((Out *)out + (row + m * 16) / 2 + g, value);
                } else {
                    from_float((Out *)out + top, finished(own[j], bias, call.softcap));
                    from_float((Out *)out + top + 8, finished(own[2 + j], lower, call.softcap));
                }
            }
    }
}

/* And from there to memory, 16 bytes a thread. */
template <typename Tile, typename Out, bool GATED>
__device__ static inline void store_sums(const uint8_t *memory, const struct matmul &call,
                                         struct sm80_place place)
{
    constexpr int32_t OUTPUTS = Tile::ROW_COUNT / (GATED ? 2 : 1);
    constexpr int32_t STRIDE = OUTPUTS * (int32_t)sizeof(Out) + OUT_PAD;
    constexpr int32_t VALUES = 16 / (int32_t)sizeof(Out), CHUNKS = OUTPUTS / VALUES;
    int32_t first = place.row / (GATED ? 2 : 1), count = call.count / (GATED ? 2 : 1);
    int32_t tokens = min(call.T - place.column, Tile::COLUMN_COUNT);
    for (int32_t i = threadIdx.x; i < tokens * CHUNKS; i += Tile::THREADS) {
        int32_t token = i / CHUNKS, chunk = i % CHUNKS, output = first + chunk * VALUES;
        if (output >= count)
            continue;
        Out *out = (Out *)call.out + (place.column + token) * call.out_stride + output;
        *(uint4 *)out = *(const uint4 *)(memory + token * STRIDE + chunk * 16);
    }
}

template <typename Tile, typename Out, bool GATED>
__device__ static inline void finish_as(uint8_t *memory, const sm80_sums<Tile> &sum,
                                        const struct matmul &call, struct sm80_place place)
{
    put_sums<Tile, Out, GATED>(memory, sum, call, place);
    __syncthreads();
    store_sums<Tile, Out, GATED>(memory, call, place);
}

/* A block's sums, whose products are all done. `memory` is the block's, OUT_BYTES or more. */
template <typename Tile>
__device__ static inline void finish(uint8_t *memory, const sm80_sums<Tile> &sum,
                                     const struct matmul &call, struct sm80_place place)
{
    copy_wait<0>();
    __syncthreads();
    if (call.f32)
        finish_as<Tile, float, false>(memory, sum, call, place);
    else if (call.gated)
        finish_as<Tile, bf16, true>(memory, sum, call, place);
    else
        finish_as<Tile, bf16, false>(memory, sum, call, place);
}

/* Calls `launch` with the tile for up to SM80_FEW_TOKENS: as many outputs as leave two blocks for
 * every multiprocessor. */
template <typename Launch>
static void sm80_few(const struct device *device, const struct matmul &call, Launch launch)
{
    int32_t rows = 64;
    while (rows > 16 && ceil_div(call.count, rows) < 2 * device->core_count)
        rows /= 2;
    if (call.T <= 8 && rows == 16)
        launch(sm80_tile<16, 8, 16, 8>{});
    else if (call.T <= 8 && rows == 32)
        launch(sm80_tile<32, 8, 16, 8>{});
    else if (call.T <= 8)
        launch(sm80_tile<64, 8, 16, 8>{});
    else if (rows == 16)
        launch(sm80_tile<16, 32, 16, 8>{});
    else if (rows == 32)
        launch(sm80_tile<32, 32, 16, 16>{});
    else
        launch(sm80_tile<64, 32, 16, 32>{});
}

#endif
