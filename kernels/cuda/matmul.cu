/* The matmul of bf16 on Hopper, for one token and for thousands.
 *
 * out = rows . columns^T, both operands with `in` side by side. Where there are few tokens the
 * weights are the rows and the tokens the columns, so that no tensor core works on padding; else
 * the tokens are the rows. Either way a value is one sum over `in` in ascending order, sixteen
 * terms at a time, by one warpgroup: its bits do not depend on T, on the tile, or on which operand
 * is which. Splitting `in` would give that up.
 *
 * A block is one producer warp that copies tiles of 64 columns of `in` into a ring of stages, and
 * one or two warpgroups that multiply them. Weights that are rows are read while the kernel before
 * this one still runs. Blocks of a cluster have neighbouring rows and the same columns, which one
 * copy brings to all. A tile may have fewer than 64 rows: the products of the rows behind it, which
 * are some other stage's bytes, are dropped. So a small matrix, too, is read by all
 * multiprocessors.
 */
#include "kernels/cuda/matmul_body.cuh"

enum { FEW_TOKENS = 256 };

/* ---- producer ---- */

template <int GROUPS, int N, int CLUSTER, bool WEIGHT_ROWS>
__device__ static void produce(const CUtensorMap *rows, const CUtensorMap *columns,
                               const struct matmul &call, const struct matmul_tiles &tiles,
                               uint32_t stages, uint32_t full, uint32_t empty)
{
    constexpr int32_t SHARE = N / CLUSTER;
    const int32_t bytes = matmul_stage<GROUPS, N>::bytes(tiles.tile_rows);
    const int32_t steps = (call.in + DEPTH - 1) / DEPTH;
    const int32_t tile_count = tiles.row_tiles / CLUSTER * tiles.column_tiles;
    uint32_t rank = CLUSTER > 1 ? cluster_rank() : 0;
    struct ring ring = {0, 0};
    int32_t ahead = 0; /* stages of the first tile whose weights were asked for before the wait */

    if (WEIGHT_ROWS && (int32_t)blockIdx.x / CLUSTER < tile_count) {
        struct tile_place place = place_of<CLUSTER, N>(blockIdx.x / CLUSTER, tiles, rank);
        ahead = min(steps, tiles.stage_count);
        for (int32_t i = 0; i < ahead; i++) {
            barrier_expect(full + i * 8, bytes);
            bulk_load_once(stages + i * bytes + N * ROW_BYTES, rows, i * DEPTH, place.row,
                           full + i * 8);
        }
    }
    kernel_wait();
    bulk_see();
    for (int32_t tile = blockIdx.x / CLUSTER; tile < tile_count; tile += gridDim.x / CLUSTER) {
        struct tile_place place = place_of<CLUSTER, N>(tile, tiles, rank);
        for (int32_t i = 0; i < steps; i++, ahead--) {
            uint32_t stage = stages + ring.stage * bytes, barrier = full + ring.stage * 8;
            uint32_t target = stage + rank * SHARE * ROW_BYTES;
            int32_t column = place.column + (int32_t)rank * SHARE;
            if (ahead <= 0) {
                barrier_wait(empty + ring.stage * 8, ring.parity ^ 1);
                barrier_expect(barrier, bytes);
                if (WEIGHT_ROWS)
                    bulk_load_once(stage + N * ROW_BYTES, rows, i * DEPTH, place.row, barrier);
                else
                    bulk_load(stage + N * ROW_BYTES, rows, i * DEPTH, place.row, barrier);
            }
            if (CLUSTER > 1)
                bulk_load_all(target, columns, i * DEPTH, column, barrier,
                              (uint16_t)((1 << CLUSTER) - 1));
            else
                bulk_load(target, columns, i * DEPTH, column, barrier);
            ring.next(tiles.stage_count);
        }
    }
}

template <int GROUPS, int N, int CLUSTER, bool WEIGHT_ROWS, bool F32>
__global__ void __launch_bounds__((GROUPS + 1) * WARPGROUP, 1)
    matmul_kernel(const __grid_constant__ CUtensorMap rows,
                  const __grid_constant__ CUtensorMap columns, struct matmul call,
                  struct matmul_tiles tiles)
{
    extern __shared__ uint8_t dynamic[];
    __shared__ alignas(8) uint64_t barrier[2 * STAGES_MAX];
    uint32_t stages = (shared_address(dynamic) + SHARED_ALIGN - 1) / SHARED_ALIGN * SHARED_ALIGN;
    uint32_t full = shared_address(barrier), empty = full + STAGES_MAX * 8;

    if (threadIdx.x == GROUPS * WARPGROUP) {
        bulk_prefetch(&rows);
        bulk_prefetch(&columns);
    }
    if (threadIdx.x == 0) {
        for (int32_t i = 0; i < tiles.stage_count; i++) {
            barrier_make(full + i * 8, 1);
            barrier_make(empty + i * 8, GROUPS * WARPGROUP / WARP * CLUSTER);
        }
        barrier_show();
    }
    if (CLUSTER > 1)
        cluster_sync();
    else
        __syncthreads();
    kernel_yield();

    if (threadIdx.x >= GROUPS * WARPGROUP) {
        if (threadIdx.x == GROUPS * WARPGROUP)
            produce<GROUPS, N, CLUSTER, WEIGHT_ROWS>(&rows, &columns, call, tiles, stages, full,
                                                     empty);
    } else {
        const int32_t steps = (call.in + DEPTH - 1) / DEPTH;
        const int32_t tile_count = tiles.row_tiles / CLUSTER * tiles.column_tiles;
        uint32_t rank = CLUSTER > 1 ? cluster_rank() : 0;
        struct ring ring = {0, 0};
        kernel_wait();
        for (int32_t tile = blockIdx.x / CLUSTER; tile < tile_count; tile += gridDim.x / CLUSTER) {
            float sum[N / 8][4];
            struct tile_place place = place_of<CLUSTER, N>(tile, tiles, rank);
#pragma unroll
            for (int32_t n = 0; n < N / 8; n++)
#pragma unroll
                for (int32_t i = 0; i < 4; i++)
                    sum[n][i] = 0.0f;
            multiply<GROUPS, N, CLUSTER>(sum, ring, tiles, steps, stages, full, empty);
            if (WEIGHT_ROWS && !F32 && call.gated)
                store_gated_turned<N>(sum, call, tiles.tile_rows, place);
            else if (WEIGHT_ROWS)
                store_turned<N, F32>(sum, call, tiles.tile_rows, place);
            else if (call.gated)
                store_gated<N>(sum, call, place);
            else
                store<N>(sum, call, place);
        }
    }
    if (CLUSTER > 1)
        cluster_sync(); /* others still copy into this block, and arrive at its barriers */
}

/* ---- launches ---- */

struct matmul_variant {
    int32_t groups, columns, cluster;
    bool weight_rows;
    double step_us; /* one stage of one block, measured on an H100; see estimate */
    void (*launch[2])(struct device *device, const struct matmul &call, /* bf16 and f32 out */
                      const struct matmul_tiles &tiles);
};

template <int GROUPS, int N, int CLUSTER, bool WEIGHT_ROWS, bool F32>
static void matmul_launch(struct device *device, const struct matmul &call,
                          const struct matmul_tiles &tiles)
{
    auto kernel = matmul_kernel<GROUPS, N, CLUSTER, WEIGHT_ROWS, F32>;
    CUtensorMap rows, columns;
    int32_t stage_bytes = matmul_stage<GROUPS, N>::bytes(tiles.tile_rows);
    int32_t behind = GROUPS * GROUP_ROWS * ROW_BYTES; /* read past the last stage's rows */
    int32_t shared = tiles.stage_count * stage_bytes + behind + SHARED_ALIGN;
    int32_t clusters = tiles.row_tiles / CLUSTER * tiles.column_tiles;
    int32_t most = device->core_count / CLUSTER * (shared <= SHARED_MAX / 2 ? 2 : 1);

    bool mapped =
        WEIGHT_ROWS
            ? map_rows(device, &rows, call.weight, call.in, call.in, call.count, tiles.tile_rows) &&
                  map_rows(device, &columns, call.x, call.x_stride, call.in, call.T, N / CLUSTER)
            : map_rows(device, &rows, call.x, call.x_stride, call.in, call.T, tiles.tile_rows) &&
                  map_rows(device, &columns, call.weight, call.in, call.in, call.count,
                           N / CLUSTER);
    if (!mapped)
        return;
    struct launch_shape shape = {dim3(CLUSTER * (clusters < most ? clusters : most)),
                                 dim3((GROUPS + 1) * WARPGROUP), (size_t)shared, CLUSTER};
    launch(device, __func__, kernel, shape, rows, columns, call, tiles);
}

#define FEW(groups, columns, cluster, step_us)                                                     \
    {                                                                                              \
        groups, columns, cluster, true, step_us,                                                   \
        {                                                                                          \
            matmul_launch<groups, columns, cluster, true, false>,                                  \
                matmul_launch<groups, columns, cluster, true, true>                                \
        }                                                                                          \
    }
#define MANY(groups, columns, cluster, step_us)                                                    \
    {                                                                                              \
        groups, columns, cluster, false, step_us,                                                  \
        {                                                                                          \
            matmul_launch<groups, columns, cluster, false, false>, NULL                            \
        }                                                                                          \
    }
static const struct matmul_variant variants[] = {
    FEW(1, 8, 1, 0.095),  FEW(1, 16, 1, 0.105), FEW(1, 32, 1, 0.11),   FEW(1, 64, 1, 0.125),
    FEW(1, 64, 2, 0.14),  FEW(1, 128, 2, 0.17), FEW(2, 128, 2, 0.34),  FEW(1, 256, 2, 0.43),
    FEW(2, 256, 2, 0.75), MANY(2, 64, 2, 0.26), MANY(2, 128, 2, 0.38), MANY(2, 256, 2, 0.74),
};
enum { VARIANTS = sizeof(variants) / sizeof(*variants) };

/* ---- which variant ---- */

struct matmul_choice {
    const struct matmul_variant *variant;
    struct matmul_tiles tiles;
    double us; /* estimated */
};

/* How long it may take: the longer of what the blocks' stages take and of what the memory takes,
 * which idles while the last of several rounds of blocks is not full. Only the order of the
 * estimates counts, and none of it changes a bit of the result. */
static double estimate(const struct device *device, const struct matmul_variant *variant,
                       const struct matmul_tiles &tiles, const struct matmul &call)
{
    const double memory_bytes_us = 3.0e6, launch_us = 2.0, store_us = 0.5;
    double cores = device->core_count / variant->cluster * variant->cluster;
    double blocks = (double)tiles.row_tiles * tiles.column_tiles;
    double rounds = ceil(blocks / cores);
    double steps = ceil(call.in / (double)DEPTH);
    /* tiles of fewer rows take as long, nearly, and read by more multiprocessors at once */
    double step_us = variant->step_us * (0.9 + 0.1 * tiles.tile_rows / (variant->groups * 64.0));
    double work = rounds * (steps * step_us + store_us);
    double memory =
        ((double)call.count + call.T) * call.in * (double)sizeof(bf16) / memory_bytes_us;
    if (rounds > 1.0)
        memory *= sqrt(rounds * cores / blocks);
    return launch_us + (work > memory ? work + 0.1 * memory : memory + 0.1 * work);
}

static struct matmul_tiles tiles_of(const struct matmul_variant *variant, int32_t tile_rows,
                                    const struct matmul &call)
{
    struct matmul_tiles tiles = {};
    int32_t rows = variant->weight_rows ? call.count : call.T;
    int32_t columns = variant->weight_rows ? call.T : call.count;
    int32_t stage = (variant->columns + tile_rows) * ROW_BYTES;
    int32_t behind = variant->groups * GROUP_ROWS * ROW_BYTES + SHARED_ALIGN;
    tiles.tile_rows = tile_rows;
    tiles.row_tiles = padded_to(ceil_div(rows, tile_rows), variant->cluster);
    tiles.column_tiles = ceil_div(columns, variant->columns);
    tiles.stage_count = (SHARED_MAX - behind) / stage;
    if (tiles.stage_count > STAGES_MAX)
        tiles.stage_count = STAGES_MAX;
    return tiles;
}

static struct matmul_choice choose(const struct device *device, const struct matmul &call)
{
    struct matmul_choice best = {};
    for (int32_t v = 0; v < VARIANTS; v++) {
        const struct matmul_variant *variant = &variants[v];
        int32_t most = variant->groups * GROUP_ROWS;
        int32_t least = variant->groups > 1 ? most : 16;
        if (variant->weight_rows && call.T > variant->columns)
            continue;
        if (variant->launch[call.f32] == NULL)
            continue;
        for (int32_t rows = most; rows >= least; rows /= 2) {
            struct matmul_choice choice = {variant, tiles_of(variant, rows, call), 0.0};
            choice.us = estimate(device, variant, choice.tiles, call);
            if (best.variant == NULL || choice.us < best.us)
                best = choice;
        }
    }
    return best;
}

bool cuda_matmul_fits(const struct device *device, const struct matmul &call)
{
    return device->hopper && device->encode != NULL && call.in % CHUNK == 0 &&
           call.count % CHUNK == 0 && (uintptr_t)call.weight % 16 == 0 &&
           in_chunks(call.x, call.x_stride, call.in) && call.out_stride % CHUNK == 0 &&
           (uintptr_t)call.out % 16 == 0;
}

void cuda_matmul(struct device *device, const struct matmul &call)
{
    for (int32_t first = 0; first < call.T;) {
        struct matmul part = call;
        part.T = call.T - first;
        if (call.f32 && part.T > FEW_TOKENS)
            part.T = FEW_TOKENS;
        part.x = call.x + first * call.x_stride;
        part.out = (uint8_t *)call.out +
                   first * call.out_stride * (int64_t)(call.f32 ? sizeof(float) : sizeof(bf16));
        struct matmul_choice choice = choose(device, part);
        choice.variant->launch[call.f32](device, part, choice.tiles);
        first += part.T;
    }
}
