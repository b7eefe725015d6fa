/* The two warps that feed a narrow item's others, ahead of them.
 *
 * One takes the block's items and brings their keys and values, the other brings the items
 * themselves and their queries. What this step does not write to is asked for before the kernel
 * before this one has ended: the list, block tables, and the pages of the block's first item that
 * hold earlier steps' positions alone.
 */
#ifndef KERNELS_CUDA_ATTENTION_NARROW_FEED_CUH
#define KERNELS_CUDA_ATTENTION_NARROW_FEED_CUH

#include "kernels/cuda/attention_ring.cuh"

/* ---- the block's items ---- */

/* Blocks take items from the list in its order, the largest first. Each begins with the one of its
 * own number; what comes next is taken while the one before is brought, so that a block that is
 * slow, or had a large one, takes fewer. It is known in three steps, each of which waits for what
 * the one before asked the memory for: the feeding warp makes one after each tile. */
struct narrow_next {
    int32_t turn;  /* how many the block has had */
    int32_t count; /* of all blocks' items and heads */
    int32_t index; /* of them; in thread 0, until it is known to all */
    enum { ASKED, TAKEN, THERE } known;
    struct attention_item item;
    struct attention_tile tile;
    struct page_window window;

    __device__ inline bool is_there(void) const
    {
        return index < count;
    }
};

__device__ static inline void prefetch(const void *address)
{
    asm volatile("prefetch.global.L1 [%0];" ::"l"(address) : "memory");
}

__device__ static inline struct attention_tile
item_tile(const struct attention_call &call, const struct attention_item &item, int32_t index)
{
    return tile_of(call, item, index % call.args.kv_head_count, NARROW_ROWS);
}

__device__ static inline struct attention_item item_at(const struct attention_call &call,
                                                       int32_t index)
{
    return call.work.narrow[index / call.args.kv_head_count];
}

/* Where there are no more than blocks, nobody has a second one. */
__device__ static inline void ask_next(const struct attention_call &call, struct narrow_next &next)
{
    next.known = narrow_next::ASKED;
    next.index = (int32_t)gridDim.x;
    if (next.count > (int32_t)gridDim.x && threadIdx.x % WARP == 0)
        next.index += atomicAdd(&call.work.ticket[TICKET_NARROW], 1);
}

/* One step further. */
template <int C>
__device__ static inline void know_next(narrow_shared<C> &shared, const struct attention_call &call,
                                        int32_t page_shift, struct narrow_next &next)
{
    if (next.known == narrow_next::ASKED) {
        next.index = __shfl_sync(0xffffffffu, next.index, 0);
        int32_t place = next.turn++ % NARROW_TURNS;
        if (threadIdx.x % WARP == 0) {
            shared.turn[place] = next.index;
            barrier_arrive(shared_address(&shared.turn_full[place]));
        }
        if (next.is_there())
            next.item = item_at(call, next.index);
        next.known = narrow_next::TAKEN;
    } else if (next.known == narrow_next::TAKEN) {
        if (next.is_there()) {
            next.tile = item_tile(call, next.item, next.index);
            next.window = window_of(call, next.tile, page_shift);
        }
        next.known = narrow_next::THERE;
    }
}

/* ---- keys and values ---- */

enum page_plane { PLANE_KEY, PLANE_VALUE };

/* Where the feeding warp is: a tile of keys or of values, and the stage that it goes to. */
template <int C> struct narrow_place {
    struct narrow_span span;
    int32_t tile; /* of the span */
    page_plane plane;
    ring_place<narrow_shape<C>::STAGES> stage;

    __device__ inline void start(const struct attention_tile &all)
    {
        span = span_at(all, all.begin / KV_TILE);
        tile = 0;
        plane = PLANE_KEY;
    }
    __device__ inline bool is_there(const struct attention_tile &all) const
    {
        return span.first * KV_TILE < all.end;
    }
    __device__ inline void step(const struct attention_tile &all)
    {
        stage.step();
        if (++tile < span.count)
            return;
        tile = 0;
        if (plane == PLANE_VALUE)
            span = span_at(all, span.first + span.count);
        plane = plane == PLANE_KEY ? PLANE_VALUE : PLANE_KEY;
    }
};

/* What part of a tile's pages to bring: before the kernel before this one has ended, those that
 * this step does not write to. */
enum narrow_part { PART_EARLY, PART_LATE, PART_WHOLE };

/* What the feeding warp needs. */
template <int C> struct narrow_feeder {
    narrow_shared<C> &shared;
    const CUtensorMap *key, *value;
    struct page_shifts shifts;
};

template <int C, narrow_part PART>
__device__ static inline void feed_tile(const narrow_feeder<C> &feeder,
                                        const struct attention_tile &tile,
                                        struct page_window &window, const narrow_place<C> &place)
{
    narrow_shared<C> &shared = feeder.shared;
    struct page_shifts shifts = feeder.shifts;
    int32_t number = place.span.first + place.tile;
    struct page_boxes boxes = boxes_of(tile, number, shifts.box);
    uint32_t barrier = shared_address(&shared.full[place.stage.index]);
    uint32_t bytes = (uint32_t)((boxes.end - boxes.first) << shifts.box) * C * 2;
    if (PART != PART_LATE && threadIdx.x % WARP == 0)
        barrier_expect(barrier, bytes);
    __syncwarp();
    load_boxes<C>(shared_address(shared.stage[place.stage.index]), barrier,
                  place.plane == PLANE_KEY ? *feeder.key : *feeder.value, window, shifts,
                  tile.kv_head, number, PART == PART_LATE ? boxes.split : boxes.first,
                  PART == PART_EARLY ? boxes.split : boxes.end);
}

/* Brings the tiles of an item that have a stage that nothing was in yet. */
template <int C, narrow_part PART>
__device__ static inline void feed_first(const narrow_feeder<C> &feeder,
                                         const struct attention_tile &tile,
                                         struct page_window &window, narrow_place<C> &place)
{
#pragma unroll 1
    for (; place.is_there(tile) && place.stage.parity == 0; place.step(tile))
        feed_tile<C, PART>(feeder, tile, window, place);
}

/* Brings all others, and learns what comes next. */
template <int C>
__device__ static inline void
feed_rest(const narrow_feeder<C> &feeder, const struct attention_call &call,
          const struct attention_tile &tile, struct page_window &window, narrow_place<C> &place,
          struct narrow_next &next)
{
#pragma unroll 1
    for (; place.is_there(tile); place.step(tile)) {
        barrier_wait(shared_address(&feeder.shared.empty[place.stage.index]),
                     place.stage.parity ^ 1);
        feed_tile<C, PART_WHOLE>(feeder, tile, window, place);
        know_next<C>(feeder.shared, call, feeder.shifts.page, next);
    }
    while (next.known != narrow_next::THERE)
        know_next<C>(feeder.shared, call, feeder.shifts.page, next);
}

template <int C>
__device__ static inline void narrow_feed(narrow_shared<C> &shared, const CUtensorMap &key,
                                          const CUtensorMap &value,
                                          const struct attention_call &call)
{
    const narrow_feeder<C> feeder = {shared, &key, &value, shifts_of(call.layer)};
    if (call.work.fresh)
        narrow_wait(call);
    bulk_see();
    struct narrow_next next = {};
    next.count = call.work.plan->narrow_count * call.args.kv_head_count;
    if ((int32_t)blockIdx.x >= next.count)
        return;
    struct attention_tile tile = item_tile(call, item_at(call, blockIdx.x), blockIdx.x);
    struct page_window window = window_of(call, tile, feeder.shifts.page);
    narrow_place<C> place = {{}, 0, PLANE_KEY, ring_place<narrow_shape<C>::STAGES>::first()};
    place.start(tile);
    auto early = place;
    feed_first<C, PART_EARLY>(feeder, tile, window, early);
    narrow_wait(call);
    bulk_see();
    ask_next(call, next);
    feed_first<C, PART_LATE>(feeder, tile, window, place);
#pragma unroll 1
    for (;;) {
        feed_rest<C>(feeder, call, tile, window, place, next);
        if (!next.is_there())
            break;
        tile = next.tile;
        window = next.window;
        place.start(tile);
        ask_next(call, next);
    }
    if (next.count > (int32_t)gridDim.x && threadIdx.x % WARP == 0)
        end_tickets(call.work, TICKET_NARROW);
}

/* ---- items ---- */

template <int BYTES> __device__ static inline void copy_some(uint32_t target, const void *source)
{
    if (BYTES == 16)
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(target), "l"(source)
                     : "memory");
    else
        asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(target), "l"(source)
                     : "memory");
}

/* Starts the copies of the queries, as they are, BYTES at a time. */
template <int C, int BYTES>
__device__ static inline void copy_query(narrow_shared<C> &shared,
                                         const struct attention_call &call,
                                         const struct attention_tile &tile, int32_t job)
{
    constexpr int32_t ROW = C * 2 / BYTES;
    const struct attention_item &item = tile.item;
#pragma unroll 2
    for (int32_t i = threadIdx.x % WARP; i < tile.count * ROW; i += WARP) {
        int32_t r = i / ROW, row = tile.first + r, token = token_of(call, item, row);
        int32_t head = tile.kv_head * call.group + row - token * call.group;
        const bf16 *source = call.query + (item.token_first + token) * call.stride + head * C;
        copy_some<BYTES>(shared_address(shared.query[job][r]) + (uint32_t)(i % ROW * BYTES),
                         (const uint8_t *)source + i % ROW * BYTES);
    }
}

/* An item and its queries; each thread arrives with what it copied, the first with the item too. */
template <int C>
__device__ static inline void bring_job(narrow_shared<C> &shared, const struct attention_call &call,
                                        const struct attention_tile &tile,
                                        ring_place<NARROW_JOBS> &job)
{
    uint32_t full = shared_address(&shared.job_full[job.index]);
    barrier_wait(shared_address(&shared.job_empty[job.index]), job.parity ^ 1);
    if (((uint64_t)call.query | (uint64_t)call.stride * sizeof(bf16)) % 16 == 0)
        copy_query<C, 16>(shared, call, tile, job.index);
    else
        copy_query<C, 4>(shared, call, tile, job.index);
    asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(full) : "memory");
    if (threadIdx.x % WARP == 0) {
        shared.job[job.index] = tile;
        barrier_arrive(full);
    }
    job.step();
}

/* An item without rows has what is to be merged: how many tiles, and rows of one. */
template <int C>
__device__ static inline void bring_end(narrow_shared<C> &shared, const struct attention_call &call,
                                        const struct attention_plan &plan,
                                        struct attention_tile &tile, ring_place<NARROW_JOBS> &job)
{
    int32_t merge = blockIdx.x / call.args.kv_head_count; /* the block's first */
    if (merge < plan.merge_count)
        prefetch(call.work.merge + merge);
    tile.count = 0;
    tile.low = plan.merge_count;
    tile.high = plan.merge_rows;
    bring_job<C>(shared, call, tile, job);
}

/* What the feeding warp has taken; it is never so far ahead that a place is not read yet: each item
 * has two stages of the ring at least. */
template <int C>
__device__ static inline int32_t turn_at(const narrow_shared<C> &shared,
                                         ring_place<NARROW_TURNS> &turn)
{
    barrier_wait(shared_address(&shared.turn_full[turn.index]), turn.parity);
    int32_t index = shared.turn[turn.index];
    turn.step();
    return index;
}

template <int C>
__device__ static inline void narrow_bring(narrow_shared<C> &shared,
                                           const struct attention_call &call)
{
    auto job = ring_place<NARROW_JOBS>::first();
    auto turn = ring_place<NARROW_TURNS>::first();
    if (call.work.fresh)
        narrow_wait(call);
    const struct attention_plan plan = *call.work.plan;
    const int32_t count = plan.narrow_count * call.args.kv_head_count;
    int32_t index = blockIdx.x;
    struct attention_tile tile = {};
    if (index < count)
        tile = item_tile(call, item_at(call, index), index);
    narrow_wait(call);
#pragma unroll 1
    while (index < count) {
        bring_job<C>(shared, call, tile, job);
        index = turn_at<C>(shared, turn);
        if (index < count)
            tile = item_tile(call, item_at(call, index), index);
    }
    bring_end<C>(shared, call, plan, tile, job);
}

#endif
