/* The matmul of bf16 on Hopper, for one token and for thousands.
 *
 * out = rows . columns^T, both operands with `in` side by side. Where there are few tokens the
 * weights are the rows and the tokens the columns, so that no tensor core works on padding; else
 * the tokens are the rows. Either way a value is one sum over `in` in ascending order, sixteen
 * terms at a time, by one warpgroup: its bits do not depend on T, on the tile, or on which operand
 * is which. Splitting `in` would give that up.
 *
 * A block is one producer warp that copies tiles of 64 columns of `in`, panels, into a ring of
 * stages, and one or two warpgroups that multiply them. Weights that are rows are read while the
 * kernel before this one still runs. Blocks of a cluster have neighbouring rows and the same
 * columns, which one copy brings to all. A tile may have fewer than 64 rows: the products of the
 * rows behind it, which are some other panel's bytes, are dropped. So a small matrix, too, is read
 * by all multiprocessors.
 */
#include "kernels/cuda/matmul_outlet.cuh"

enum {
    FEW_TOKENS = 640,
    FEW_TILES = 4, /* of columns, at most, where tokens are the columns */
};

/* ---- producer ---- */

/* The rows' part of a stage. */
template <int N, int PANELS>
__device__ static inline void load_rows(const CUtensorMap *rows, uint32_t stage, int32_t bytes,
                                        int32_t step, int32_t row, uint32_t barrier, bool once)
{
#pragma unroll
    for (int32_t p = 0; p < PANELS; p++) {
        uint32_t target = stage + p * bytes + N * ROW_BYTES;
        if (once)
            bulk_load_once(target, rows, (step + p) * DEPTH, row, barrier);
        else
            bulk_load(target, rows, (step + p) * DEPTH, row, barrier);
    }
}

/* That of the columns: a cluster's blocks have the same, and each brings its share to all. */
template <int CLUSTER, int PANELS>
__device__ static inline void load_columns(const CUtensorMap *columns, uint32_t stage,
                                           int32_t bytes, int32_t step, int32_t column,
                                           int32_t share, uint32_t rank, uint32_t barrier)
{
#pragma unroll
    for (int32_t p = 0; p < PANELS; p++) {
        uint32_t target = stage + p * bytes + rank * share * ROW_BYTES;
        int32_t first = column + (int32_t)rank * share;
        if (CLUSTER > 1)
            bulk_load_all(target, columns, (step + p) * DEPTH, first, barrier,
                          (uint16_t)((1 << CLUSTER) - 1));
        else
            bulk_load(target, columns, (step + p) * DEPTH, first, barrier);
    }
}

/* Panels behind the last one are asked for too: they come as zeros, and are not multiplied. */
template <int N, int CLUSTER, int PANELS, bool WEIGHT_ROWS>
__device__ static void produce(const CUtensorMap *rows, const CUtensorMap *columns,
                               const struct matmul &call, const struct matmul_tiles &tiles,
                               uint32_t stages, uint32_t full, uint32_t empty)
{
    const int32_t bytes = panel_bytes<N>(tiles.tile_rows);
    const int32_t expected = PANELS * (tiles.row_box + tiles.column_box * CLUSTER) * ROW_BYTES;
    const int32_t steps = (call.in + DEPTH - 1) / DEPTH;
    const int32_t tile_count = tiles.row_tiles / CLUSTER * tiles.column_tiles;
    uint32_t rank = CLUSTER > 1 ? cluster_rank() : 0;
    struct ring ring = {0, 0};
    const bool once = WEIGHT_ROWS && tiles.column_tiles == 1;
    int32_t ahead = 0; /* stages of the first tile whose weights were asked for before the wait */

    int32_t tile = blockIdx.x / CLUSTER;
    struct tile_place place = place_of<CLUSTER, N>(tile, tiles, rank);

    if (WEIGHT_ROWS) {
        ahead = min((steps + PANELS - 1) / PANELS, tiles.stage_count);
        for (int32_t i = 0; i < ahead; i++) {
            barrier_expect(full + i * 8, expected);
            load_rows<N, PANELS>(rows, stages + i * PANELS * bytes, bytes, i * PANELS, place.row,
                                 full + i * 8, once);
        }
    }
    kernel_wait();
    bulk_see();
    for (;;) {
        for (int32_t i = 0; i < steps; i += PANELS, ahead--) {
            uint32_t stage = stages + ring.stage * PANELS * bytes, barrier = full + ring.stage * 8;
            if (ahead <= 0) {
                barrier_wait(empty + ring.stage * 8, ring.parity ^ 1);
                barrier_expect(barrier, expected);
                load_rows<N, PANELS>(rows, stage, bytes, i, place.row, barrier, once);
            }
            load_columns<CLUSTER, PANELS>(columns, stage, bytes, i, place.column, tiles.column_box,
                                          rank, barrier);
            ring.next(tiles.stage_count);
        }
        tile += gridDim.x / CLUSTER;
        if (tile >= tile_count)
            return;
        place = place_of<CLUSTER, N>(tile, tiles, rank);
    }
}

/* The stages' barriers, and what all threads do before their parts. */
template <int GROUPS, int CLUSTER>
__device__ static inline void begin(const CUtensorMap *rows, const CUtensorMap *columns,
                                    int32_t stage_count, uint32_t full, uint32_t empty)
{
    if (threadIdx.x == GROUPS * WARPGROUP) {
        bulk_prefetch(rows);
        bulk_prefetch(columns);
    }
    if (threadIdx.x == 0) {
        for (int32_t i = 0; i < stage_count; i++) {
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
}

template <int N> __device__ static inline void clear(float (&sum)[N / 8][4])
{
#pragma unroll
    for (int32_t n = 0; n < N / 8; n++)
#pragma unroll
        for (int32_t i = 0; i < 4; i++)
            sum[n][i] = 0.0f;
}

/* Few tokens: weights are the rows. */
template <int GROUPS, int N, int CLUSTER, int PANELS, bool F32>
__global__ void __launch_bounds__((GROUPS + 1) * WARPGROUP, 1)
    few_kernel(const __grid_constant__ CUtensorMap rows,
               const __grid_constant__ CUtensorMap columns, struct matmul call,
               struct matmul_tiles tiles)
{
    extern __shared__ uint8_t dynamic[];
    __shared__ alignas(8) uint64_t barrier[2 * STAGES_MAX];
    uint32_t stages = (shared_address(dynamic) + SHARED_ALIGN - 1) / SHARED_ALIGN * SHARED_ALIGN;
    uint32_t full = shared_address(barrier), empty = full + STAGES_MAX * 8;
    begin<GROUPS, CLUSTER>(&rows, &columns, tiles.stage_count, full, empty);

    if (group_index() >= GROUPS) {
        if (threadIdx.x == GROUPS * WARPGROUP)
            produce<N, CLUSTER, PANELS, true>(&rows, &columns, call, tiles, stages, full, empty);
    } else {
        const int32_t steps = (call.in + DEPTH - 1) / DEPTH;
        const int32_t tile_count = tiles.row_tiles / CLUSTER * tiles.column_tiles;
        uint32_t rank = CLUSTER > 1 ? cluster_rank() : 0;
        struct ring ring = {0, 0};
        kernel_wait();
        for (int32_t tile = blockIdx.x / CLUSTER; tile < tile_count; tile += gridDim.x / CLUSTER) {
            float sum[N / 8][4];
            struct tile_place place = place_of<CLUSTER, N>(tile, tiles, rank);
            clear<N>(sum);
            multiply<N, CLUSTER, PANELS>(sum, ring, tiles, steps, stages, full, empty);
            if (!F32 && call.gated)
                store_gated_turned<N>(sum, call, tiles.tile_rows, place);
            else
                store_turned<N, F32>(sum, call, tiles.tile_rows, place);
        }
    }
    if (CLUSTER > 1)
        cluster_sync(); /* others still copy into this block, and arrive at its barriers */
}

/* Many tokens: they are the rows, two warpgroups' full. */
template <int N, int CLUSTER>
__global__ void __launch_bounds__(3 * WARPGROUP, 1)
    many_kernel(const __grid_constant__ CUtensorMap rows,
                const __grid_constant__ CUtensorMap columns,
                const __grid_constant__ CUtensorMap out, struct matmul call,
                struct matmul_tiles tiles)
{
    extern __shared__ uint8_t dynamic[];
    __shared__ alignas(8) uint64_t barrier[2 * STAGES_MAX];
    uint32_t outlets = (shared_address(dynamic) + SHARED_ALIGN - 1) / SHARED_ALIGN * SHARED_ALIGN;
    uint32_t stages = outlets + 2 * OUTLET_BYTES;
    uint32_t full = shared_address(barrier), empty = full + STAGES_MAX * 8;
    begin<2, CLUSTER>(&rows, &columns, tiles.stage_count, full, empty);

    if (group_index() >= 2) {
        registers_give<40>();
        if (threadIdx.x == 2 * WARPGROUP)
            produce<N, CLUSTER, 1, false>(&rows, &columns, call, tiles, stages, full, empty);
    } else {
        const int32_t steps = (call.in + DEPTH - 1) / DEPTH;
        const int32_t tile_count = tiles.row_tiles / CLUSTER * tiles.column_tiles;
        uint32_t rank = CLUSTER > 1 ? cluster_rank() : 0;
        struct outlet outlet = {&out, outlets + threadIdx.x / WARPGROUP * OUTLET_BYTES, 0};
        struct ring ring = {0, 0};
        registers_take<232>();
        kernel_wait();
        for (int32_t tile = blockIdx.x / CLUSTER; tile < tile_count; tile += gridDim.x / CLUSTER) {
            float sum[N / 8][4];
            struct tile_place place = place_of<CLUSTER, N>(tile, tiles, rank);
            clear<N>(sum);
            multiply<N, CLUSTER, 1>(sum, ring, tiles, steps, stages, full, empty);
            if (call.gated)
                send<N, true>(sum, call, place, outlet);
            else
                send<N, false>(sum, call, place, outlet);
        }
        if (threadIdx.x % WARPGROUP == 0)
            bulk_stored();
    }
    if (CLUSTER > 1)
        cluster_sync(); /* others still copy into this block, and arrive at its barriers */
}

/* ---- launches ---- */

/* Of shared memory, besides the stages. */
static int32_t behind_bytes(int32_t groups, bool weight_rows)
{
    return SHARED_ALIGN + groups * (weight_rows ? GROUP_ROWS * ROW_BYTES /* past the last rows */
                                                : OUTLET_BYTES);
}

struct matmul_variant {
    int32_t groups, columns, cluster, panels;
    bool weight_rows;
    double step_us; /* one stage of one block, fitted to measurements on an H200; see estimate */
    void (*launch[2])(struct device *device, const struct matmul &call, /* bf16 and f32 out */
                      const struct matmul_tiles &tiles);
};

/* As many as run at once, or as there is work for. */
static int32_t block_count(const struct device *device, const struct matmul_tiles &tiles,
                           int32_t cluster, int32_t shared_bytes)
{
    int32_t clusters = tiles.row_tiles / cluster * tiles.column_tiles;
    int32_t most = device->core_count / cluster * (shared_bytes <= SHARED_MAX / 2 ? 2 : 1);
    return cluster * (clusters < most ? clusters : most);
}

template <int GROUPS, int N, int CLUSTER, int PANELS, bool F32>
static void few_launch(struct device *device, const struct matmul &call,
                       const struct matmul_tiles &tiles)
{
    CUtensorMap rows, columns;
    int32_t shared =
        tiles.stage_count * PANELS * panel_bytes<N>(tiles.tile_rows) + behind_bytes(GROUPS, true);
    if (!map_rows(device, &rows, call.weight, call.in, call.in, call.count, tiles.row_box) ||
        !map_rows(device, &columns, call.x, call.x_stride, call.in, call.T, tiles.column_box))
        return;
    struct launch_shape shape = {dim3(block_count(device, tiles, CLUSTER, shared)),
                                 dim3((GROUPS + 1) * WARPGROUP), (size_t)shared, CLUSTER};
    launch(device, __func__, few_kernel<GROUPS, N, CLUSTER, PANELS, F32>, shape, rows, columns,
           call, tiles);
}

template <int N, int CLUSTER>
static void many_launch(struct device *device, const struct matmul &call,
                        const struct matmul_tiles &tiles)
{
    CUtensorMap rows, columns, out;
    int32_t shared = tiles.stage_count * panel_bytes<N>(tiles.tile_rows) + behind_bytes(2, false);
    int32_t width = call.gated ? call.count / 2 : call.count;
    if (!map_rows(device, &rows, call.x, call.x_stride, call.in, call.T, tiles.row_box) ||
        !map_rows(device, &columns, call.weight, call.in, call.in, call.count, tiles.column_box) ||
        !map_box(device, &out, call.out, call.out_stride, width, call.T,
                 outlet_columns(N, call.gated), GROUP_ROWS))
        return;
    struct launch_shape shape = {dim3(block_count(device, tiles, CLUSTER, shared)),
                                 dim3(3 * WARPGROUP), (size_t)shared, CLUSTER};
    launch(device, __func__, many_kernel<N, CLUSTER>, shape, rows, columns, out, call, tiles);
}

#define VARIANT(groups, columns, cluster, panels, weight_rows, step_us, ...)                       \
    {                                                                                              \
        groups, columns, cluster, panels, weight_rows, step_us,                                    \
        {                                                                                          \
            __VA_ARGS__                                                                            \
        }                                                                                          \
    }
#define FEW(groups, columns, cluster, panels, step_us)                                             \
    VARIANT(groups, columns, cluster, panels, true, step_us,                                       \
            few_launch<groups, columns, cluster, panels, false>,                                   \
            few_launch<groups, columns, cluster, panels, true>)
#define FEW_BF16(groups, columns, cluster, panels, step_us)                                        \
    VARIANT(groups, columns, cluster, panels, true, step_us,                                       \
            few_launch<groups, columns, cluster, panels, false>, NULL)
#define MANY(columns, cluster, step_us)                                                            \
    VARIANT(2, columns, cluster, 1, false, step_us, many_launch<columns, cluster>, NULL)
/* The narrower the product, the more panels stand between two looks at the barriers. Columns that
 * are no power of two are for numbers of tokens that would leave much of a wider tile empty. */
static const struct matmul_variant variants[] = {
    FEW(1, 8, 1, 4, 0.077),
    FEW(1, 16, 1, 4, 0.0889),
    FEW(1, 32, 1, 4, 0.0727),
    FEW(1, 64, 1, 2, 0.0711),
    FEW_BF16(1, 96, 1, 1, 0.083),
    FEW(1, 128, 1, 1, 0.0847),
    FEW_BF16(1, 160, 2, 1, 0.207),
    FEW_BF16(2, 96, 2, 1, 0.263),
    FEW(2, 128, 1, 1, 0.288),
    FEW_BF16(2, 128, 2, 1, 0.316),
    FEW_BF16(2, 160, 2, 1, 0.396),
    FEW_BF16(2, 192, 2, 1, 0.486),
    FEW_BF16(2, 224, 2, 1, 0.615),
    FEW(2, 256, 2, 1, 0.675),
    MANY(64, 2, 0.122),
    MANY(128, 1, 0.243),
    MANY(128, 2, 0.31),
    MANY(192, 1, 0.414),
    MANY(192, 2, 0.49),
    MANY(256, 1, 0.596),
    MANY(256, 2, 0.664),
};
enum { VARIANTS = sizeof(variants) / sizeof(*variants) };

/* ---- which variant ---- */

struct matmul_choice {
    const struct matmul_variant *variant;
    struct matmul_tiles tiles;
    double us; /* estimated */
};

/* How long it may take, of an H200's figures: what the last multiprocessor to end needs for its
 * products and for what it reads, and what all of them together read from the cache and from
 * memory. Of these the longest decides, but they overlap the less the nearer they are to each
 * other. Only the order of the estimates counts, and none of it changes a bit of the result. */
static double estimate(const struct device *device, const struct matmul_variant *variant,
                       const struct matmul_tiles &tiles, const struct matmul &call)
{
    const double launch_us = 1.7, cluster_us = 0.45, column_us = 0.0023, tile_column_us = 0.0029;
    const double core_bytes_us = 0.197e6, cache_bytes_us = 13.1e6, memory_bytes_us = 4.56e6;
    double cores = device->core_count / variant->cluster * variant->cluster;
    double blocks = (double)tiles.row_tiles * tiles.column_tiles;
    double rounds = ceil(blocks / cores), steps = ceil(call.in / (double)DEPTH);
    double columns = variant->columns;

    double work = rounds * steps * variant->step_us;
    double core = rounds * steps * ROW_BYTES * (columns + tiles.tile_rows) / core_bytes_us;
    double cache = blocks * steps * ROW_BYTES * (columns / variant->cluster + tiles.tile_rows) /
                   cache_bytes_us;
    double memory =
        ((double)call.count + call.T) * call.in * (double)sizeof(bf16) / memory_bytes_us;
    if (rounds > 1.0) /* the last one is not full */
        memory *= pow(rounds * cores / blocks, 0.31);
    return launch_us + (variant->cluster > 1 ? cluster_us : 0.0) + columns * column_us +
           cbrt(work * work * work + core * core * core + cache * cache * cache +
                memory * memory * memory) +
           rounds * variant->groups * columns * tile_column_us;
}

static struct matmul_tiles tiles_of(const struct matmul_variant *variant, int32_t tile_rows,
                                    const struct matmul &call)
{
    struct matmul_tiles tiles = {};
    int32_t rows = variant->weight_rows ? call.count : call.T;
    int32_t columns = variant->weight_rows ? call.T : call.count;
    int32_t stage = (variant->columns + tile_rows) * ROW_BYTES * variant->panels;
    int32_t stages = ceil_div(ceil_div(call.in, DEPTH), variant->panels); /* of a tile */
    int32_t behind = behind_bytes(variant->groups, variant->weight_rows);
    tiles.tile_rows = tile_rows;
    tiles.row_tiles = padded_to(ceil_div(rows, tile_rows), variant->cluster);
    tiles.column_tiles = ceil_div(columns, variant->columns);
    tiles.row_last = tile_last(rows, tile_rows);
    tiles.column_last = tile_last(columns, variant->columns);
    /* Where there are fewer than a tile's, only those, in whole eights. */
    tiles.row_box = min(padded_to(rows, CHUNK), tile_rows);
    tiles.column_box =
        min(padded_to(columns, CHUNK * variant->cluster), variant->columns) / variant->cluster;
    tiles.stage_count = (SHARED_MAX - behind) / stage;
    if (tiles.stage_count > STAGES_MAX)
        tiles.stage_count = STAGES_MAX;
    if (tiles.stage_count > stages)
        tiles.stage_count = stages;
    return tiles;
}

enum { ROW_STEP = 16 }; /* of a tile's rows */

static int32_t rows_least(const struct matmul_variant *variant)
{
    return variant->groups > 1 ? variant->groups * GROUP_ROWS : (int32_t)ROW_STEP;
}

static bool is_for(const struct matmul_variant *variant, const struct matmul &call)
{
    if (variant->launch[call.f32] == NULL)
        return false;
    return !variant->weight_rows ||
           (call.T <= FEW_TOKENS && call.T <= FEW_TILES * variant->columns);
}

struct tuned_product cuda_matmul_product(const struct matmul &call)
{
    return {call.f32 ? TUNED_F32 : call.gated ? TUNED_GATED : TUNED_BF16, call.count, call.in};
}

/* A way as a choice; without a variant where this build, or this product, has none such. */
static struct matmul_choice choice_of(const struct tuned_way &way, const struct matmul &call)
{
    for (int32_t v = 0; v < VARIANTS; v++) {
        const struct matmul_variant *variant = &variants[v];
        if (variant->weight_rows == way.few && variant->groups == way.groups &&
            variant->columns == way.columns && variant->cluster == way.cluster &&
            variant->panels == way.panels && is_for(variant, call) &&
            way.tile_rows % ROW_STEP == 0 && way.tile_rows >= rows_least(variant) &&
            way.tile_rows <= variant->groups * GROUP_ROWS)
            return {variant, tiles_of(variant, way.tile_rows, call), 0.0};
    }
    return {};
}

bool cuda_matmul_has(const struct tuned_line &line)
{
    struct matmul call = {};
    call.count = line.product.out;
    call.in = line.product.in;
    call.T = line.token_count;
    call.f32 = line.product.kind == TUNED_F32;
    call.gated = line.product.kind == TUNED_GATED;
    return choice_of(line.way, call).variant != NULL;
}

static struct tuned_way way_of(const struct matmul_choice &choice)
{
    const struct matmul_variant *variant = choice.variant;
    return {variant->weight_rows, variant->groups, variant->columns,
            variant->cluster,     variant->panels, choice.tiles.tile_rows};
}

/* What the table says, if it has the product and a way that there is. */
static struct matmul_choice tuned_choice(const struct device *device, const struct matmul &call)
{
    const struct tuned_product product = cuda_matmul_product(call);
    const struct tuned_line *line = tuned_find(&device->tuned, &product, call.T);
    return line == NULL ? matmul_choice{} : choice_of(line->way, call);
}

/* All that there is for this product, with estimates. */
static int32_t list_choices(const struct device *device, const struct matmul &call,
                            struct matmul_choice (&list)[MATMUL_WAYS_MAX])
{
    int32_t count = 0;
    for (int32_t v = 0; v < VARIANTS; v++) {
        const struct matmul_variant *variant = &variants[v];
        if (!is_for(variant, call))
            continue;
        for (int32_t rows = variant->groups * GROUP_ROWS; rows >= rows_least(variant);
             rows -= ROW_STEP) {
            struct matmul_choice choice = {variant, tiles_of(variant, rows, call), 0.0};
            if (rows < 32 && choice.tiles.column_tiles > 1)
                continue; /* many small blocks that read the same: slower than its estimate */
            choice.us = estimate(device, variant, choice.tiles, call);
            assert(count < MATMUL_WAYS_MAX);
            list[count++] = choice;
        }
    }
    return count;
}

/* Which of them is the fastest by estimate. */
static int32_t least_of(const struct matmul_choice (&list)[MATMUL_WAYS_MAX], int32_t count)
{
    int32_t least = 0;
    assert(count > 0);
    for (int32_t i = 1; i < count; i++)
        if (list[i].us < list[least].us)
            least = i;
    return least;
}

static struct matmul_choice choose(const struct device *device, const struct matmul &call)
{
    struct matmul_choice list[MATMUL_WAYS_MAX], best = tuned_choice(device, call);
    if (best.variant != NULL)
        return best;
    return list[least_of(list, list_choices(device, call, list))];
}

int32_t cuda_matmul_ways(const struct device *device, const struct matmul &call,
                         struct tuned_way (&way)[MATMUL_WAYS_MAX])
{
    const double slack = 2.0; /* estimates are seldom a tenth off */
    struct matmul_choice list[MATMUL_WAYS_MAX];
    int32_t count = list_choices(device, call, list), least = least_of(list, count), kept = 1;
    way[0] = way_of(list[least]);
    for (int32_t i = 0; i < count; i++)
        if (i != least && list[i].us <= slack * list[least].us)
            way[kept++] = way_of(list[i]);
    return kept;
}

void cuda_matmul_by(struct device *device, const struct matmul &call, const struct tuned_way &way)
{
    struct matmul_choice choice = choice_of(way, call);
    assert(choice.variant != NULL);
    choice.variant->launch[call.f32](device, call, choice.tiles);
}

void cuda_matmul(struct device *device, const struct matmul &call)
{
    for (int32_t first = 0; first < call.T;) {
        struct matmul part = call;
        part.T = call.T - first;
        if (call.f32 && part.T > MATMUL_F32_TOKENS)
            part.T = MATMUL_F32_TOKENS;
        part.x = call.x + first * call.x_stride;
        part.out = (uint8_t *)call.out +
                   first * call.out_stride * (int64_t)(call.f32 ? sizeof(float) : sizeof(bf16));
        struct matmul_choice choice = choose(device, part);
        choice.variant->launch[call.f32](device, part, choice.tiles);
        first += part.T;
    }
}
