/* The work list of attention: what a step's rows need, cut into items of about equal size.
 *
 * One block, a thread a row: counts, a scan, then a warp a row writes the items. Made once a step
 * for each kind of layer, on the device: a captured step makes its own list for what it is
 * launched with.
 */
#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/launch.cuh"

#include <assert.h>

enum { THREADS = 256, SLOTS_MAX = 1024 };

/* What one row of the step needs. */
struct row_need {
    int32_t wide, narrow, merge; /* items */
    int32_t slots;               /* of partial results, were all of it split */
};

/* Partials that a narrow tile goes through. */
__device__ static int2 tile_partials(struct step_row row, int32_t tile, int32_t rows,
                                     struct attention_key key, int32_t partial_tokens)
{
    int32_t low = row.position + tile * NARROW_ROWS / key.group;
    int32_t high = row.position + (min((tile + 1) * NARROW_ROWS, rows) - 1) / key.group;
    int32_t first = key.window > 0 ? max(low - key.window + 1, 0) : 0;
    return {first / partial_tokens, high / partial_tokens + 1};
}

__device__ static row_need need_of(struct step_row row, struct attention_key key,
                                   int32_t partial_tokens)
{
    struct row_need need = {};
    int32_t rows = row.token_count * key.group;
    if (rows > NARROW_ROWS * NARROW_TILES_MAX) {
        need.wide = (rows + key.wide_rows - 1) / key.wide_rows;
        return need;
    }
    for (int32_t tile = 0; tile * NARROW_ROWS < rows; tile++) {
        int2 partials = tile_partials(row, tile, rows, key, partial_tokens);
        need.slots += partials.y - partials.x;
    }
    return need;
}

__device__ static bool is_split(int32_t slot, int2 partials, int32_t slot_max)
{
    int32_t count = partials.y - partials.x;
    return count > 1 && slot + count <= slot_max;
}

/* Narrow items and merges of a row whose slots begin at `slot`. */
__device__ static void count_narrow(row_need &need, struct step_row row, struct attention_key key,
                                    struct attention_work work, int32_t slot)
{
    int32_t rows = row.token_count * key.group;
    if (rows > NARROW_ROWS * NARROW_TILES_MAX)
        return;
    for (int32_t tile = 0; tile * NARROW_ROWS < rows; tile++) {
        int2 partials = tile_partials(row, tile, rows, key, work.partial_tokens);
        bool split = is_split(slot, partials, work.slot_max);
        need.narrow += split ? partials.y - partials.x : 1;
        need.merge += split ? 1 : 0;
        slot += partials.y - partials.x;
    }
}

__device__ static row_need plus(row_need a, row_need b)
{
    return {a.wide + b.wide, a.narrow + b.narrow, a.merge + b.merge, a.slots + b.slots};
}

/* Exclusive sums over the block; `total` grows by the block's. */
__device__ static row_need scan(row_need need, row_need (&buffer)[THREADS / WARP], row_need &total)
{
    int32_t lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    row_need sum = need;
    for (int32_t step = 1; step < WARP; step *= 2) {
        row_need other = {__shfl_up_sync(0xffffffffu, sum.wide, step),
                          __shfl_up_sync(0xffffffffu, sum.narrow, step),
                          __shfl_up_sync(0xffffffffu, sum.merge, step),
                          __shfl_up_sync(0xffffffffu, sum.slots, step)};
        if (lane >= step)
            sum = plus(sum, other);
    }
    if (lane == WARP - 1)
        buffer[warp] = sum;
    __syncthreads();
    row_need before = total;
    for (int32_t w = 0; w < THREADS / WARP; w++) {
        if (w < warp)
            before = plus(before, buffer[w]);
        total = plus(total, buffer[w]);
    }
    __syncthreads();
    return {before.wide + sum.wide - need.wide, before.narrow + sum.narrow - need.narrow,
            before.merge + sum.merge - need.merge, before.slots + sum.slots - need.slots};
}

/* A row's items, by the lanes of a warp. A tile whose partials find no slots is one item: slower,
 * the same bits. */
__device__ static void write_narrow(struct attention_work work, struct step_row row,
                                    row_need before, struct attention_key key)
{
    int32_t lane = threadIdx.x % WARP, rows = row.token_count * key.group;
    for (int32_t tile = 0; tile * NARROW_ROWS < rows; tile++) {
        int2 partials = tile_partials(row, tile, rows, key, work.partial_tokens);
        bool split = is_split(before.slots, partials, work.slot_max);
        int32_t count = split ? partials.y - partials.x : 1;
        struct attention_item item = {row.slot,
                                      row.position,
                                      row.token_first,
                                      row.token_count,
                                      tile * NARROW_ROWS,
                                      split ? partials.x : PARTIAL_ALL,
                                      before.slots - partials.x,
                                      count};
        if (split && lane == 0)
            work.merge[before.merge++] = item;
        item.partial += split ? lane : 0;
        for (int32_t i = lane; i < count; i += WARP, item.partial += WARP)
            work.narrow[before.narrow + i] = item;
        before.narrow += count;
        before.slots += partials.y - partials.x;
    }
}

/* The last tile sees most and goes first. */
__device__ static void write_wide(struct attention_work work, struct step_row row, row_need before,
                                  struct attention_key key)
{
    int32_t count = (row.token_count * key.group + key.wide_rows - 1) / key.wide_rows;
    for (int32_t i = threadIdx.x % WARP; i < count; i += WARP)
        work.wide[before.wide + i] = {row.slot,
                                      row.position,
                                      row.token_first,
                                      row.token_count,
                                      (count - 1 - i) * key.wide_rows,
                                      PARTIAL_ALL,
                                      0,
                                      0};
}

/* Rows are read before the kernel before this one has ended (launch.cuh). */
__global__ void plan_kernel(struct attention_work work, struct attention_key key,
                            struct step_view step)
{
    __shared__ row_need buffer[THREADS / WARP];
    __shared__ row_need place[THREADS];
    __shared__ struct step_row row[THREADS];
    row_need all = {}, total = {}; /* slots are known first, items follow from them */
    int32_t row_count = step.counts->row_count, thread = threadIdx.x;

    kernel_yield();
    for (int32_t base = 0; base < row_count; base += THREADS) {
        int32_t count = min(row_count - base, (int32_t)THREADS);
        row_need need = {};
        if (thread < count) {
            row[thread] = step.row[base + thread];
            need = need_of(row[thread], key, work.partial_tokens);
        }
        int32_t slots = scan(need, buffer, all).slots;
        if (thread < count)
            count_narrow(need, row[thread], key, work, slots);
        place[thread] = scan(need, buffer, total);
        place[thread].slots = slots;
        if (base == 0)
            kernel_wait(); /* others read the list until now */
        __syncthreads();
        for (int32_t i = thread / WARP; i < count; i += THREADS / WARP)
            if (row[i].token_count * key.group <= NARROW_ROWS * NARROW_TILES_MAX)
                write_narrow(work, row[i], place[i], key);
            else
                write_wide(work, row[i], place[i], key);
        __syncthreads();
    }
    if (row_count == 0)
        kernel_wait();
    if (thread == 0)
        *work.plan = {total.wide, total.narrow, total.merge};
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
    size_t read = (size_t)device->core_count * NARROW_BLOCKS_MAX; /* there or not */
    sizes.wide = (size_t)options->token_max + (size_t)options->slot_max;
    sizes.narrow = tiles * (partials + 1) > read ? tiles * (partials + 1) : read;
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
    return sizes.slots * sizes.slot_bytes + 3 * sizeof(int32_t) +
           ATTENTION_KINDS *
               (items * sizeof(struct attention_item) + sizeof(struct attention_plan));
}

bool cuda_attention_open(struct device *device, const struct kv_shape *shape)
{
    struct attention_state *state = &device->attention;
    struct attention_sizes sizes = sizes_of(device, shape);
    state->partial_tokens = PARTIAL_TOKENS;
    state->captured = {0, INT32_MAX, INT32_MAX};
    state->slot_max = (int32_t)sizes.slots;
    state->partial = (float *)cuda_alloc(device, sizes.slots * sizes.slot_bytes);
    state->ticket = (int32_t *)cuda_alloc(device, 3 * sizeof(int32_t));
    bool good = state->partial != NULL && state->ticket != NULL;
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
    kinds.merge = kinds.narrow && state->rows.context > state->partial_tokens;
    if (!kinds.wide && state->captured.most > narrow_most)
        state->captured.most = narrow_most;
    if (!kinds.narrow && state->captured.least <= narrow_most)
        state->captured.least = narrow_most + 1;
    if (kinds.narrow && !kinds.merge && state->captured.context > state->partial_tokens)
        state->captured.context = state->partial_tokens;
    return kinds;
}
