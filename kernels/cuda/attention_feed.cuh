/* What a wide item on Hopper goes through: rings in shared memory, and the warps that fill them.
 *
 * One warp takes items off the list and copies their keys, one copies their values; both run ahead
 * into the next item. A tile comes in boxes, one a page and 64 columns, that a tensor map over the
 * layer's part of the cache describes; they lie in shared memory as wgmma reads them.
 */
#ifndef KERNELS_CUDA_ATTENTION_FEED_CUH
#define KERNELS_CUDA_ATTENTION_FEED_CUH

#include "kernels/cuda/attention_body.cuh"
#include "kernels/cuda/bulk.cuh"

enum {
    PROMPT_GROUP = 128, /* threads of a warpgroup */
    PROMPT_AHEAD = 2,   /* items that are known before they are worked on */
};

/* A block: warpgroups that multiply, and one whose warps copy. */
template <int C> struct prompt_shape {
    static constexpr int32_t GROUPS = prompt_item_rows(C) / PROMPT_GROUP_ROWS;
    static constexpr int32_t WORKERS = GROUPS * PROMPT_GROUP;
    static constexpr int32_t THREADS = WORKERS + PROMPT_GROUP;
    static constexpr int32_t COPY_REGISTERS = GROUPS == 3 ? 32 : 56;
    static constexpr int32_t WORK_REGISTERS = GROUPS == 3 ? 160 : 224;
    static_assert(COPY_REGISTERS + GROUPS * WORK_REGISTERS <= 512, "the multiprocessor has them");
};

/* How pages come in: boxes of 64 columns and a page's positions (64 of a larger page's), or one
 * position, of [block, key or value, position, kv head, column]. */
struct prompt_maps {
    CUtensorMap page, row;
};

/* Where a step of a ring is: stage, and the parity of its use. */
template <int COUNT> struct prompt_ring {
    int32_t stage, parity;
    __device__ inline void next(void)
    {
        if (++stage == COUNT) {
            stage = 0;
            parity ^= 1;
        }
    }
};

struct prompt_work {
    struct attention_item item;
    int32_t kv_head; /* -1: no more items */
};

template <int C> struct prompt_shared {
    static constexpr int32_t STAGES = C <= 64 ? 8 : C <= 128 ? 4 : 2;
    alignas(1024) uint8_t key[STAGES][tile_layout<C>::BYTES];
    uint8_t value[STAGES][tile_layout<C>::BYTES];
    float4 total[C / 8][prompt_shape<C>::WORKERS]; /* of the partials before; a place a thread */
    struct prompt_work work[PROMPT_AHEAD];
    uint64_t key_full[STAGES], key_empty[STAGES], value_full[STAGES], value_empty[STAGES];
    uint64_t work_full[PROMPT_AHEAD], work_empty[PROMPT_AHEAD];
};

template <int C> using stage_ring = prompt_ring<prompt_shared<C>::STAGES>;
using work_ring = prompt_ring<PROMPT_AHEAD>;

/* One thread, before all others wait for it. */
template <int C> __device__ static inline void prompt_open(prompt_shared<C> &shared)
{
    for (int32_t i = 0; i < prompt_shared<C>::STAGES; i++) {
        barrier_make(shared_address(&shared.key_full[i]), 1);
        barrier_make(shared_address(&shared.value_full[i]), 1);
        barrier_make(shared_address(&shared.key_empty[i]), prompt_shape<C>::WORKERS / WARP);
        barrier_make(shared_address(&shared.value_empty[i]), prompt_shape<C>::WORKERS / WARP);
    }
    for (int32_t i = 0; i < PROMPT_AHEAD; i++) {
        barrier_make(shared_address(&shared.work_full[i]), 1);
        barrier_make(shared_address(&shared.work_empty[i]), prompt_shape<C>::WORKERS / WARP + 1);
    }
    barrier_show();
}

/* ---- the copying warps: one has the keys, one the values ---- */

/* How a sequence lies in boxes. */
struct boxes {
    int32_t rows, count; /* of a box; boxes of 64 columns that are a tile */
    int32_t shift;       /* log2 of a block's positions */
    const int32_t *table;
};

/* The block of a box; what lies outside the pool comes as zeros. */
__device__ static inline int32_t box_block(const struct attention_tile &tile,
                                           const struct boxes &boxes, int32_t box)
{
    int32_t position = box * boxes.rows;
    bool seen = position < tile.end && position + boxes.rows > tile.begin;
    return seen ? boxes.table[position >> boxes.shift] : -1;
}

/* Values that no row sees must be zeros: they are multiplied by a weight of 0. Of a box that is
 * seen in part, each position is a box of its own. */
template <int C>
__device__ static inline void copy_cut(const CUtensorMap *map, const struct attention_tile &tile,
                                       const struct boxes &boxes, int32_t position, int32_t block,
                                       uint32_t target, uint32_t barrier)
{
    int32_t mask = (1 << boxes.shift) - 1;
    __syncwarp(); /* what the barrier expects is told */
    for (int32_t i = threadIdx.x % WARP; i < boxes.rows * (C / 64); i += WARP) {
        int32_t piece = i % (C / 64), row = i / (C / 64), own = position + row;
        bool seen = own >= tile.begin && own < tile.end;
        bulk_load(target + piece * tile_layout<C>::PIECE_BYTES + row * 128, map,
                  {piece * 64, tile.kv_head, own & mask, 1, seen ? block : -1}, barrier);
    }
}

/* An item's keys, or values. Ids of blocks come 32 at a time, a lane each, and one time ahead. */
template <int C, bool VALUES>
__device__ static inline void copy_item(prompt_shared<C> &shared, const struct prompt_maps &maps,
                                        const struct attention_tile &tile,
                                        const struct boxes &boxes, stage_ring<C> &ring)
{
    int32_t lane = threadIdx.x % WARP, mask = (1 << boxes.shift) - 1;
    int32_t box = tile.begin / KV_TILE * boxes.count, end = (tile.end - 1) / KV_TILE + 1;
    int32_t ids = box_block(tile, boxes, box + lane), used = 0;
    int32_t coming = box_block(tile, boxes, box + WARP + lane);
    for (end *= boxes.count; box < end; ring.next()) {
        int32_t stage = ring.stage;
        uint32_t barrier =
            shared_address(VALUES ? &shared.value_full[stage] : &shared.key_full[stage]);
        uint32_t target = shared_address(VALUES ? shared.value[stage] : shared.key[stage]);
        barrier_wait(shared_address(VALUES ? &shared.value_empty[stage] : &shared.key_empty[stage]),
                     ring.parity ^ 1);
        if (lane == 0)
            barrier_expect(barrier, tile_layout<C>::BYTES);
        for (int32_t slot = 0; slot < boxes.count; slot++, box++, used++) {
            int32_t position = box * boxes.rows, past = position + boxes.rows;
            if (used == WARP) {
                used = 0;
                ids = coming;
                coming = box_block(tile, boxes, box + WARP + lane);
            }
            int32_t block = __shfl_sync(0xffffffffu, ids, used);
            if (VALUES && block >= 0 && (position < tile.begin || past > tile.end))
                copy_cut<C>(&maps.row, tile, boxes, position, block, target, barrier);
            else if (lane == 0)
#pragma unroll
                for (int32_t piece = 0; piece < C / 64; piece++)
                    bulk_load(target + piece * tile_layout<C>::PIECE_BYTES, &maps.page,
                              {piece * 64, tile.kv_head, position & mask, VALUES ? 1 : 0, block},
                              barrier);
            target += boxes.rows * 128;
        }
    }
}

__device__ static inline struct boxes boxes_of(const struct attention_call &call, int32_t sequence)
{
    int32_t tokens = call.layer.block_tokens;
    struct boxes boxes;
    boxes.rows = min(tokens, (int32_t)KV_TILE);
    boxes.count = KV_TILE / boxes.rows;
    boxes.shift = __ffs(tokens) - 1;
    boxes.table = call.layer.table + sequence * call.layer.table_stride;
    return boxes;
}

/* Item `index` of the list: the longest of all heads first. */
__device__ static inline struct prompt_work work_at(const struct attention_call &call,
                                                    int32_t index)
{
    int32_t heads = call.args.kv_head_count;
    struct prompt_work work = {{}, -1};
    if (index >= call.work.plan->wide_count * heads)
        return work;
    work.item = call.work.wide[index / heads];
    work.kv_head = index % heads;
    return work;
}

/* The item at this place, once it is known. */
template <int C>
__device__ static inline struct prompt_work work_wait(prompt_shared<C> &shared,
                                                      const work_ring &place)
{
    barrier_wait(shared_address(&shared.work_full[place.stage]), place.parity);
    return shared.work[place.stage];
}

/* This warp has read what the barrier stands for. */
__device__ static inline void prompt_release(uint64_t &barrier)
{
    if (threadIdx.x % WARP == 0)
        barrier_arrive(shared_address(&barrier));
}

/* Takes items until there are none, and copies their keys. The number of the next one is asked for
 * one item early. */
template <int C>
__device__ static inline void prompt_copy_keys(prompt_shared<C> &shared,
                                               const struct attention_call &call,
                                               const struct prompt_maps &maps)
{
    int32_t lane = threadIdx.x % WARP, index = blockIdx.x;
    stage_ring<C> ring = {0, 0};
    work_ring place = {0, 0};
    bulk_see();
    for (;; place.next()) {
        int32_t ticket = 0;
        struct prompt_work work = work_at(call, index);
        barrier_wait(shared_address(&shared.work_empty[place.stage]), place.parity ^ 1);
        if (lane == 0) {
            shared.work[place.stage] = work;
            barrier_arrive(shared_address(&shared.work_full[place.stage]));
        }
        if (work.kv_head < 0)
            return;
        if (lane == 0)
            ticket = atomicAdd(&call.work.ticket[TICKET_WIDE], 1);
        copy_item<C, false>(shared, maps,
                            tile_of(call, work.item, work.kv_head, prompt_item_rows(C)),
                            boxes_of(call, work.item.sequence), ring);
        index = (int32_t)gridDim.x + __shfl_sync(0xffffffffu, ticket, 0);
    }
}

/* Copies the values of the same items. */
template <int C>
__device__ static inline void prompt_copy_values(prompt_shared<C> &shared,
                                                 const struct attention_call &call,
                                                 const struct prompt_maps &maps)
{
    stage_ring<C> ring = {0, 0};
    work_ring place = {0, 0};
    bulk_see();
    for (;; place.next()) {
        struct prompt_work work = work_wait<C>(shared, place);
        if (work.kv_head < 0)
            return;
        prompt_release(shared.work_empty[place.stage]);
        copy_item<C, true>(shared, maps,
                           tile_of(call, work.item, work.kv_head, prompt_item_rows(C)),
                           boxes_of(call, work.item.sequence), ring);
    }
}

#endif
