/* The work list of attention: what a step's rows need, cut into items of about equal size.
 *
 * One block, a thread a row. A narrow tile is one item where the step has enough of them, else it
 * is cut along the context: what the blocks' share is decides how many partials its first item
 * goes through, in their order; the others have one each. Items stand in the list by their size,
 * the largest first, so that what is left at the end is small; where blocks take several, those of
 * a few rows are cut into single partials for that. Made once a step for each kind of layer, on
 * the device: a captured step makes its own list for what it is launched with.
 */
#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/launch.cuh"

#include <assert.h>

enum {
    THREADS = 256,
    SLOTS_MAX = 1024,
    SIZES = 32, /* classes of items, the largest first */
    PIECES = 3,
    FINE_ROUNDS = 4,  /* items a block from which on some are cut for the end */
    FINE_PARTIALS = 6 /* of a tile that is cut for that, at most */
};

/* What one row of the step needs, and then where it begins. */
struct row_need {
    int32_t wide;  /* items */
    int32_t slots; /* were all that may be cut */
};

/* What a narrow tile goes through: partials, and tiles of keys. */
struct tile_range {
    int32_t partial, partial_end;
    int32_t first, end;
};

/* How narrow tiles are cut: those of more than `most` tiles of keys, into a first item of
 * `partials` and others of one. */
struct tile_cut {
    int32_t partials, most;
    int32_t partial_tiles; /* of keys in a partial */
    int32_t size_partials; /* what sizes are counted in */
    int32_t fine_rows;     /* rows, the first ones, whose tiles are cut into items of one partial */
};

/* Equal items of a tile. */
struct tile_piece {
    int32_t partial, partial_count;
    int32_t items;
    int32_t size; /* class */
};

__device__ static bool is_wide(struct step_row row, struct attention_key key)
{
    return row.token_count * key.group > NARROW_ROWS * NARROW_TILES_MAX;
}

__device__ static struct tile_range range_of(struct step_row row, int32_t tile,
                                             struct attention_key key,
                                             const struct attention_work &work)
{
    int32_t rows = row.token_count * key.group;
    int32_t low = row.position + tile * NARROW_ROWS / key.group;
    int32_t high = row.position + (min((tile + 1) * NARROW_ROWS, rows) - 1) / key.group;
    int32_t first = key.window > 0 ? max(low - key.window + 1, 0) : 0;
    return {first / work.partial_tokens, high / work.partial_tokens + 1, first / KV_TILE,
            high / KV_TILE + 1};
}

__device__ static int32_t tiles_of(const struct tile_range &range, int32_t partial, int32_t count,
                                   const struct tile_cut &cut)
{
    return min(range.end, (partial + count) * cut.partial_tiles) -
           max(range.first, partial * cut.partial_tiles);
}

/* Items of a tile that has as many slots as it needs. */
__device__ static int32_t items_of(const struct tile_range &range, const struct tile_cut &cut)
{
    int32_t others = range.partial_end - range.partial - cut.partials;
    return range.end - range.first > cut.most ? 1 + others : 1;
}

__device__ static int32_t slots_of(const struct tile_range &range, const struct tile_cut &cut)
{
    int32_t items = items_of(range, cut);
    return items > 1 ? items : 0;
}

/* A tile whose items find no slots is one item: slower, the same bits. */
__device__ static bool is_cut(const struct tile_range &range, const struct tile_cut &cut,
                              int32_t slot, int32_t slot_max)
{
    int32_t slots = slots_of(range, cut);
    return slots > 0 && slot + slots <= slot_max;
}

__device__ static int32_t size_of(int32_t tiles, const struct tile_cut &cut)
{
    return SIZES - 1 - min(tiles * 3 / cut.size_partials, SIZES - 1);
}

__device__ static struct tile_piece whole_of(const struct tile_range &range,
                                             const struct tile_cut &cut)
{
    return {PARTIAL_ALL, range.partial_end - range.partial, 1,
            size_of(range.end - range.first, cut)};
}

/* The first item of a tile that is cut, those that are one partial, the last one. */
__device__ static struct tile_piece piece_of(const struct tile_range &range,
                                             const struct tile_cut &cut, int32_t i)
{
    int32_t next = range.partial + cut.partials, last = range.partial_end - 1;
    struct tile_piece piece = {range.partial, cut.partials, 1, 0};
    if (i == 1)
        piece = {next, 1, last - next, 0};
    else if (i == 2)
        piece = {last, 1, 1, 0};
    piece.size = size_of(tiles_of(range, piece.partial, piece.partial_count, cut), cut);
    return piece;
}

/* What the block's threads share. */
struct plan_shared {
    row_need warp[THREADS / WARP];
    row_need place[THREADS];
    struct step_row row[THREADS];
    int32_t tiles;       /* of keys, that narrow items go through */
    int32_t items;       /* narrow tiles */
    int32_t size[SIZES]; /* items, and then where the next one goes */
    int32_t narrow_count;
    int32_t merge_count, merge_rows;
};

/* Exclusive sums over the block; `total` grows by the block's. */
__device__ static row_need scan(plan_shared &shared, row_need need, row_need &total)
{
    int32_t lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    row_need sum = need;
    for (int32_t step = 1; step < WARP; step *= 2) {
        row_need other = {__shfl_up_sync(0xffffffffu, sum.wide, step),
                          __shfl_up_sync(0xffffffffu, sum.slots, step)};
        if (lane >= step)
            sum = {sum.wide + other.wide, sum.slots + other.slots};
    }
    if (lane == WARP - 1)
        shared.warp[warp] = sum;
    __syncthreads();
    row_need before = total;
    for (int32_t w = 0; w < THREADS / WARP; w++) {
        row_need other = shared.warp[w];
        if (w < warp)
            before = {before.wide + other.wide, before.slots + other.slots};
        total = {total.wide + other.wide, total.slots + other.slots};
    }
    __syncthreads();
    return {before.wide + sum.wide - need.wide, before.slots + sum.slots - need.slots};
}

/* Adds up over the block what its threads have. */
__device__ static void add_up(int32_t &sum, int32_t value)
{
    value = __reduce_add_sync(0xffffffffu, value);
    if (threadIdx.x % WARP == 0)
        atomicAdd(&sum, value);
}

/* Rows whose tiles are about one a block, where blocks take several: when the last items are taken
 * most blocks have just begun one, and without small ones they end an item's time apart. Half of
 * the slots stay for tiles that are long. */
__device__ static int32_t fine_rows_of(int32_t items, const struct attention_work &work,
                                       struct attention_key key)
{
    if (!key.taken || items < FINE_ROUNDS * work.blocks)
        return 0;
    return min(work.blocks / work.heads, work.slot_max / (2 * NARROW_TILES_MAX * FINE_PARTIALS));
}

/* Cuts so that an item is half of a block's share, or a partial where that is less. */
__device__ static struct tile_cut make_cut(plan_shared &shared, const struct attention_work &work,
                                           struct attention_key key, struct step_view step)
{
    int32_t tiles = 0, items = 0, row_count = step.counts->row_count;
    for (int32_t i = threadIdx.x; i < row_count; i += THREADS) {
        struct step_row row = step.row[i];
        if (is_wide(row, key))
            continue;
        for (int32_t tile = 0; tile * NARROW_ROWS < row.token_count * key.group; tile++, items++) {
            struct tile_range range = range_of(row, tile, key, work);
            tiles += range.end - range.first;
        }
    }
    add_up(shared.tiles, tiles);
    add_up(shared.items, items);
    __syncthreads();
    struct tile_cut cut;
    int64_t share = (int64_t)shared.tiles * work.heads / work.blocks;
    cut.partial_tiles = work.partial_tokens / KV_TILE;
    cut.partials = max((int32_t)((share + cut.partial_tiles / 2) / (2 * cut.partial_tiles)), 1);
    cut.most = cut.partials * cut.partial_tiles * 5 / 4 + 1;
    cut.size_partials = cut.partials;
    cut.fine_rows = fine_rows_of(shared.items * work.heads, work, key);
    return cut;
}

/* What holds for the tiles of this row of the step. */
__device__ static struct tile_cut cut_of_row(const struct tile_cut &cut, int32_t index,
                                             struct step_row row, struct attention_key key,
                                             const struct attention_work &work)
{
    struct tile_cut own = cut;
    int32_t last_tile = (row.token_count * key.group - 1) / NARROW_ROWS;
    int32_t partials =
        range_of(row, last_tile, key, work).partial_end - range_of(row, 0, key, work).partial;
    if (index < cut.fine_rows && partials <= FINE_PARTIALS) {
        own.partials = 1;
        own.most = cut.partial_tiles * 5 / 4 + 1;
    }
    return own;
}

/* Wide items and slots of the rows from `base` on, a thread a row; whether this thread has one. */
__device__ static bool place_rows(plan_shared &shared, const struct attention_work &work,
                                  struct attention_key key, struct step_view step,
                                  const struct tile_cut &cut, int32_t base, row_need &total)
{
    int32_t thread = threadIdx.x;
    bool there = base + thread < step.counts->row_count;
    row_need need = {};
    if (there) {
        struct step_row row = step.row[base + thread];
        int32_t rows = row.token_count * key.group;
        shared.row[thread] = row;
        if (is_wide(row, key))
            need.wide = (rows + key.wide_rows - 1) / key.wide_rows;
        else
            for (int32_t tile = 0; tile * NARROW_ROWS < rows; tile++)
                need.slots += slots_of(range_of(row, tile, key, work),
                                       cut_of_row(cut, base + thread, row, key, work));
    }
    shared.place[thread] = scan(shared, need, total);
    return there;
}

/* Counts a row's narrow items by their size. */
__device__ static void count_narrow(plan_shared &shared, const struct attention_work &work,
                                    struct attention_key key, const struct tile_cut &cut)
{
    struct step_row row = shared.row[threadIdx.x];
    int32_t slot = shared.place[threadIdx.x].slots;
    for (int32_t tile = 0; tile * NARROW_ROWS < row.token_count * key.group; tile++) {
        struct tile_range range = range_of(row, tile, key, work);
        bool split = is_cut(range, cut, slot, work.slot_max);
        for (int32_t i = 0; i < (split ? PIECES : 1); i++) {
            struct tile_piece piece = split ? piece_of(range, cut, i) : whole_of(range, cut);
            atomicAdd(&shared.size[piece.size], piece.items);
        }
        slot += slots_of(range, cut);
    }
}

/* From counts to places. One warp, a class a thread. */
__device__ static void place_sizes(plan_shared &shared)
{
    static_assert(SIZES == WARP, "a class a thread");
    int32_t lane = threadIdx.x, count = shared.size[lane], sum = count;
    for (int32_t step = 1; step < WARP; step *= 2) {
        int32_t other = __shfl_up_sync(0xffffffffu, sum, step);
        sum += lane >= step ? other : 0;
    }
    shared.size[lane] = sum - count;
    if (lane == WARP - 1)
        shared.narrow_count = sum;
}

__device__ static struct attention_item item_of(struct step_row row, int32_t tile)
{
    return {row.slot,
            row.position,
            row.token_first,
            row.token_count,
            tile * NARROW_ROWS,
            PARTIAL_ALL,
            0,
            0};
}

/* The tiles of a row that are one item, by its thread. */
__device__ static void write_whole(plan_shared &shared, const struct attention_work &work,
                                   struct attention_key key, const struct tile_cut &cut)
{
    struct step_row row = shared.row[threadIdx.x];
    int32_t slot = shared.place[threadIdx.x].slots;
    for (int32_t tile = 0; tile * NARROW_ROWS < row.token_count * key.group; tile++) {
        struct tile_range range = range_of(row, tile, key, work);
        if (!is_cut(range, cut, slot, work.slot_max)) {
            int32_t place = atomicAdd(&shared.size[whole_of(range, cut).size], 1);
            work.narrow[place] = item_of(row, tile);
        }
        slot += slots_of(range, cut);
    }
}

/* Those that are several, by the lanes of a warp, and their merges. */
__device__ static void write_cut(plan_shared &shared, const struct attention_work &work,
                                 struct attention_key key, const struct tile_cut &cut, int32_t i)
{
    int32_t lane = threadIdx.x % WARP, slot = shared.place[i].slots;
    struct step_row row = shared.row[i];
    for (int32_t tile = 0; tile * NARROW_ROWS < row.token_count * key.group; tile++) {
        struct tile_range range = range_of(row, tile, key, work);
        struct attention_item item = item_of(row, tile);
        int32_t slots = slots_of(range, cut), rows = row.token_count * key.group - item.first;
        if (!is_cut(range, cut, slot, work.slot_max)) {
            slot += slots;
            continue;
        }
        item.slot = slot;
        item.partial_count = slots;
        if (lane == 0) {
            work.merge[atomicAdd(&shared.merge_count, 1)] = item;
            atomicMax(&shared.merge_rows, min(rows, (int32_t)NARROW_ROWS));
        }
        for (int32_t k = 0; k < PIECES; k++) {
            struct tile_piece piece = piece_of(range, cut, k);
            int32_t place = lane == 0 ? atomicAdd(&shared.size[piece.size], piece.items) : 0;
            place = __shfl_sync(0xffffffffu, place, 0);
            item.partial_count = piece.partial_count;
            for (int32_t n = lane; n < piece.items; n += WARP) {
                item.partial = piece.partial + n;
                item.slot = slot + n;
                work.narrow[place + n] = item;
            }
            slot += piece.items;
        }
    }
}

/* The last tile sees most and goes first. */
__device__ static void write_wide(const struct attention_work &work, struct step_row row,
                                  row_need before, struct attention_key key)
{
    int32_t count = (row.token_count * key.group + key.wide_rows - 1) / key.wide_rows;
    for (int32_t i = threadIdx.x % WARP; i < count; i += WARP) {
        struct attention_item item = item_of(row, 0);
        item.first = (count - 1 - i) * key.wide_rows;
        work.wide[before.wide + i] = item;
    }
}

__device__ static void write_rows(plan_shared &shared, const struct attention_work &work,
                                  struct attention_key key, const struct tile_cut &cut,
                                  int32_t base, int32_t count)
{
    int32_t thread = threadIdx.x;
    if (thread < count && !is_wide(shared.row[thread], key))
        write_whole(shared, work, key,
                    cut_of_row(cut, base + thread, shared.row[thread], key, work));
    for (int32_t i = thread / WARP; i < count; i += THREADS / WARP)
        if (is_wide(shared.row[i], key))
            write_wide(work, shared.row[i], shared.place[i], key);
        else
            write_cut(shared, work, key, cut_of_row(cut, base + i, shared.row[i], key, work), i);
}

/* Rows are read before the kernel before this one has ended (launch.cuh). */
__global__ void plan_kernel(struct attention_work work, struct attention_key key,
                            struct step_view step)
{
    __shared__ plan_shared shared;
    int32_t row_count = step.counts->row_count;
    row_need counted = {}, total = {};

    kernel_yield();
    if (threadIdx.x < SIZES)
        shared.size[threadIdx.x] = 0;
    if (threadIdx.x == 0)
        shared.tiles = shared.items = shared.merge_count = shared.merge_rows = 0;
    __syncthreads();
    struct tile_cut cut = make_cut(shared, work, key, step);
    for (int32_t base = 0; base < row_count; base += THREADS)
        if (place_rows(shared, work, key, step, cut, base, counted) &&
            !is_wide(shared.row[threadIdx.x], key))
            count_narrow(shared, work, key,
                         cut_of_row(cut, base + threadIdx.x, shared.row[threadIdx.x], key, work));
    __syncthreads();
    if (threadIdx.x < WARP)
        place_sizes(shared);
    kernel_wait(); /* others read the list until now */
    __syncthreads();
    for (int32_t base = 0; base < row_count; base += THREADS) {
        (void)place_rows(shared, work, key, step, cut, base, total);
        __syncthreads();
        write_rows(shared, work, key, cut, base, min(row_count - base, (int32_t)THREADS));
        __syncthreads();
    }
    if (threadIdx.x == 0)
        *work.plan = {total.wide, shared.narrow_count, shared.merge_count, shared.merge_rows};
}

/* No slot holds anything between launches (attention_merge.cuh). */
static bool empty_slots(struct device *device, size_t bytes)
{
    return cuda_check(
        device, cudaMemsetAsync(device->attention.partial, SLOT_EMPTY_BYTE, bytes, device->stream),
        __func__);
}

/* How much there is of each thing. */
struct attention_sizes {
    size_t wide, narrow, merge; /* items of a list */
    size_t slots, slot_bytes;   /* partial results */
};

static struct attention_sizes sizes_of(const struct device *device, const struct kv_shape *shape)
{
    const struct device_options *options = &device->options;
    struct attention_sizes sizes = {};
    size_t tiles = (size_t)options->slot_max * NARROW_TILES_MAX;
    size_t partials = (size_t)ceil_div(options->context_max, PARTIAL_TOKENS);
    /* tiles of at least NARROW_ROWS of a token's GROUP_MAX rows or fewer */
    sizes.wide = (size_t)options->token_max * (GROUP_MAX / NARROW_ROWS) + (size_t)options->slot_max;
    sizes.narrow = tiles * (partials + 1);
    sizes.merge = tiles;
    sizes.slots = tiles * partials < SLOTS_MAX ? tiles * partials : (size_t)SLOTS_MAX;
    sizes.slot_bytes = (size_t)shape->kv_head_count * NARROW_ROWS *
                       ((size_t)shape->head_width + 2) * sizeof(float);
    return sizes;
}

size_t cuda_attention_bytes(const struct device *device, const struct kv_shape *shape)
{
    struct attention_sizes sizes = sizes_of(device, shape);
    size_t items = sizes.wide + sizes.narrow + sizes.merge;
    return sizes.slots * sizes.slot_bytes + 2 * TICKET_KINDS * sizeof(int32_t) +
           ATTENTION_KINDS *
               (items * sizeof(struct attention_item) + sizeof(struct attention_plan));
}

bool cuda_attention_open(struct device *device, const struct kv_shape *shape)
{
    struct attention_state *state = &device->attention;
    struct attention_sizes sizes = sizes_of(device, shape);
    state->partial_tokens = PARTIAL_TOKENS;
    state->captured = {0, INT32_MAX};
    state->slot_max = (int32_t)sizes.slots;
    state->partial = (float *)cuda_alloc(device, sizes.slots * sizes.slot_bytes);
    state->ticket = (int32_t *)cuda_alloc(device, 2 * TICKET_KINDS * sizeof(int32_t));
    bool good = state->partial != NULL && state->ticket != NULL;
    good = good && empty_slots(device, sizes.slots * sizes.slot_bytes);
    for (int32_t i = 0; i < ATTENTION_KINDS; i++) {
        struct attention_list *list = &state->list[i];
        list->plan = (struct attention_plan *)cuda_alloc(device, sizeof(struct attention_plan));
        list->wide =
            (struct attention_item *)cuda_alloc(device, sizes.wide * sizeof(struct attention_item));
        list->narrow = (struct attention_item *)cuda_alloc(
            device, sizes.narrow * sizeof(struct attention_item));
        list->merge = (struct attention_item *)cuda_alloc(
            device, sizes.merge * sizeof(struct attention_item));
        good = good && list->plan != NULL && list->wide != NULL && list->narrow != NULL &&
               list->merge != NULL;
    }
    return good;
}

/* The list made for this key in this step or capture, or the one to make it in. */
static struct attention_list *find_list(struct attention_state *state, struct attention_key key,
                                        bool *made)
{
    for (int32_t i = 0; i < state->list_count; i++) {
        struct attention_list *list = &state->list[i];
        if (list->group == key.group && list->window == key.window &&
            list->wide_rows == key.wide_rows) {
            *made = true;
            return list;
        }
    }
    *made = false;
    if (state->list_count < ATTENTION_KINDS)
        state->list_count++;
    return &state->list[state->list_count - 1];
}

struct attention_work cuda_attention_work(struct device *device, struct attention_key key)
{
    struct attention_state *state = &device->attention;
    struct attention_work work = {};
    bool made = false;
    struct attention_list *list = find_list(state, key, &made);
    work.plan = list->plan;
    work.wide = list->wide;
    work.narrow = list->narrow;
    work.merge = list->merge;
    work.partial = state->partial;
    work.ticket = state->ticket;
    work.slot_max = state->slot_max;
    work.partial_tokens = state->partial_tokens;
    work.heads = device->kv_shape.kv_head_count;
    work.blocks = narrow_blocks(device->kv_shape.head_width) * device->core_count;
    work.fresh = !made;
    if (made)
        return work;
    list->group = key.group;
    list->window = key.window;
    list->wide_rows = key.wide_rows;
    launch(device, __func__, plan_kernel, {dim3(1), dim3(THREADS), 0}, work, key, device->step);
    return work;
}

struct attention_kinds cuda_attention_kinds(struct device *device, int32_t group)
{
    struct attention_state *state = &device->attention;
    int32_t narrow_most = NARROW_ROWS * NARROW_TILES_MAX / group; /* tokens */
    struct attention_kinds kinds = {};
    kinds.wide = state->rows.most > narrow_most;
    kinds.narrow = state->rows.least <= narrow_most;
    if (!kinds.wide && state->captured.most > narrow_most)
        state->captured.most = narrow_most;
    if (!kinds.narrow && state->captured.least <= narrow_most)
        state->captured.least = narrow_most + 1;
    return kinds;
}
