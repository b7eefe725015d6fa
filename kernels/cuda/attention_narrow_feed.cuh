/* The two warps that feed a narrow item's others, ahead of them.
 *
 * One brings keys and values, the other items and their queries. Both go through the
 * block's items, and look ahead: a lane each for the items that come next, and for the pages of
 * the next one. What this step does not write to is asked for before the kernel before this one
 * has ended: the list, block tables, and the pages of the block's first item that hold earlier
 * steps' positions alone.
 */
#ifndef KERNELS_CUDA_ATTENTION_NARROW_FEED_CUH
#define KERNELS_CUDA_ATTENTION_NARROW_FEED_CUH

#include "kernels/cuda/attention_ring.cuh"

/* ---- the block's items ---- */

/* Number `turn` of the block's. Every other time the blocks go backwards: items come by their
 * size, and who had a large one has a small one next. */
__device__ static inline int32_t turn_index(int32_t turn)
{
    int32_t grid = gridDim.x, block = blockIdx.x;
    return turn * grid + (turn % 2 == 0 ? block : grid - 1 - block);
}

/* Those that come next, one a thread of the warp. */
struct narrow_turns {
    int32_t turn;  /* that the warp is at */
    int32_t first; /* thread 0's */
    struct attention_item item;
    int32_t count; /* of all blocks' items */

    __device__ inline bool is_there(void) const
    {
        return turn_index(turn) < count;
    }
};

__device__ static inline void prefetch(const void *address)
{
    asm volatile("prefetch.global.L1 [%0];" ::"l"(address) : "memory");
}

/* Looks up the items from the present one on. */
__device__ static inline void look_ahead(const struct attention_call &call,
                                         struct narrow_turns &turns)
{
    int32_t own = turn_index(turns.turn + threadIdx.x % WARP) / call.args.kv_head_count;
    turns.first = turns.turn;
    turns.item = call.work.narrow[min(own, call.work.narrow_max - 1)];
}

__device__ static inline struct narrow_turns first_turn(const struct attention_call &call,
                                                        const struct attention_plan &plan)
{
    struct narrow_turns turns = {};
    look_ahead(call, turns);
    turns.count = plan.narrow_count * call.args.kv_head_count;
    return turns;
}

__device__ static inline void next_turn(const struct attention_call &call,
                                        struct narrow_turns &turns)
{
    turns.turn++;
    if (turns.turn == turns.first + WARP && turns.is_there())
        look_ahead(call, turns);
}

/* The present one, for all threads of the warp. */
__device__ static inline struct attention_tile tile_at(const struct attention_call &call,
                                                       const struct narrow_turns &turns)
{
    int32_t lane = turns.turn - turns.first;
    struct attention_item item;
    item.sequence = __shfl_sync(0xffffffffu, turns.item.sequence, lane);
    item.position = __shfl_sync(0xffffffffu, turns.item.position, lane);
    item.token_first = __shfl_sync(0xffffffffu, turns.item.token_first, lane);
    item.token_count = __shfl_sync(0xffffffffu, turns.item.token_count, lane);
    item.first = __shfl_sync(0xffffffffu, turns.item.first, lane);
    item.partial = __shfl_sync(0xffffffffu, turns.item.partial, lane);
    item.partial_count = __shfl_sync(0xffffffffu, turns.item.partial_count, lane);
    item.slot = __shfl_sync(0xffffffffu, turns.item.slot, lane);
    return tile_of(call, item, turn_index(turns.turn) % call.args.kv_head_count, NARROW_ROWS);
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

/* Brings all others. */
template <int C>
__device__ static inline void feed_rest(const narrow_feeder<C> &feeder,
                                        const struct attention_tile &tile,
                                        struct page_window &window, narrow_place<C> &place)
{
#pragma unroll 1
    for (; place.is_there(tile); place.step(tile)) {
        barrier_wait(shared_address(&feeder.shared.empty[place.stage.index]),
                     place.stage.parity ^ 1);
        feed_tile<C, PART_WHOLE>(feeder, tile, window, place);
    }
}

template <int C>
__device__ static inline void narrow_feed(narrow_shared<C> &shared, const CUtensorMap &key,
                                          const CUtensorMap &value,
                                          const struct attention_call &call)
{
    const narrow_feeder<C> feeder = {shared, &key, &value, shifts_of(call.layer)};
    int32_t page = feeder.shifts.page;
    if (call.work.fresh)
        kernel_wait();
    bulk_see();
    const struct attention_plan plan = *call.work.plan;
    struct narrow_turns turns = first_turn(call, plan);
    if (!turns.is_there())
        return;
    struct attention_tile tile = tile_at(call, turns);
    struct page_window window = window_of(call, tile, page);
    narrow_place<C> place = {{}, 0, PLANE_KEY, ring_place<narrow_shape<C>::STAGES>::first()};
    place.start(tile);
    auto early = place;
    feed_first<C, PART_EARLY>(feeder, tile, window, early);
    kernel_wait();
    bulk_see();
    feed_first<C, PART_LATE>(feeder, tile, window, place);
#pragma unroll 1
    for (;;) {
        struct attention_tile next = tile;
        struct page_window next_window = window;
        next_turn(call, turns);
        bool more = turns.is_there();
        if (more) { /* asked for while the present one goes on */
            next = tile_at(call, turns);
            next_window = window_of(call, next, page);
        }
        feed_rest<C>(feeder, tile, window, place);
        if (!more)
            break;
        tile = next;
        window = next_window;
        place.start(tile);
    }
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

template <int C>
__device__ static inline void narrow_bring(narrow_shared<C> &shared,
                                           const struct attention_call &call)
{
    auto job = ring_place<NARROW_JOBS>::first();
    if (call.work.fresh)
        kernel_wait();
    const struct attention_plan plan = *call.work.plan;
    struct narrow_turns turns = first_turn(call, plan);
    struct attention_tile tile = tile_at(call, turns);
    kernel_wait();
#pragma unroll 1
    while (turns.is_there()) {
        bring_job<C>(shared, call, tile, job);
        next_turn(call, turns);
        tile = tile_at(call, turns);
    }
    bring_end<C>(shared, call, plan, tile, job);
}

#endif
