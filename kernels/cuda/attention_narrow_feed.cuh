/* The two warps that feed a narrow item's others, ahead of them.
 *
 * One brings the keys, the other items, their queries as f16, and the values. Both go through the
 * block's items, and each knows which stages of the ring are its own. What this step does not
 * write to is asked for before the kernel before this one has ended: the list, block tables, and
 * the pages of the block's first item that hold earlier steps' positions alone.
 */
#ifndef KERNELS_CUDA_ATTENTION_NARROW_FEED_CUH
#define KERNELS_CUDA_ATTENTION_NARROW_FEED_CUH

#include "kernels/cuda/attention_ring.cuh"

enum page_plane { PLANE_KEY, PLANE_VALUE };

/* Where a feeding warp is: one of its tiles, and the stage that it goes to. */
template <int C, page_plane PLANE> struct narrow_place {
    struct narrow_span span;
    int32_t tile; /* of the span */
    ring_place<narrow_shape<C>::STAGES> stage;

    /* The other plane's stages. */
    __device__ inline void pass(int32_t count)
    {
        for (; count > 0; count--)
            stage.step();
    }
    __device__ inline void start(const struct attention_tile &all)
    {
        span = span_at(all, all.begin / KV_TILE);
        tile = 0;
        if (PLANE == PLANE_VALUE)
            pass(span.count);
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
        int32_t other = span.count;
        span = span_at(all, span.first + span.count);
        tile = 0;
        if (PLANE == PLANE_VALUE)
            other = is_there(all) ? span.count : 0;
        pass(other);
    }
};

/* What part of a tile's pages to bring: before the kernel before this one has ended, those that
 * this step does not write to. */
enum narrow_part { PART_EARLY, PART_LATE, PART_WHOLE };

template <int C, page_plane PLANE, narrow_part PART>
__device__ static inline void feed_tile(narrow_shared<C> &shared, const CUtensorMap &map,
                                        const struct attention_tile &tile,
                                        struct page_window &window, struct page_shifts shifts,
                                        const narrow_place<C, PLANE> &place)
{
    int32_t number = place.span.first + place.tile;
    struct page_boxes boxes = boxes_of(tile, number, shifts.box);
    uint32_t barrier = shared_address(&shared.full[place.stage.index]);
    uint32_t bytes = (uint32_t)((boxes.end - boxes.first) << shifts.box) * C * 2;
    if (PART != PART_LATE && threadIdx.x % WARP == 0)
        barrier_expect(barrier, bytes);
    __syncwarp();
    load_boxes<C>(shared_address(shared.stage[place.stage.index]), barrier, map, window, shifts,
                  tile.kv_head, number, PART == PART_LATE ? boxes.split : boxes.first,
                  PART == PART_EARLY ? boxes.split : boxes.end);
}

/* Two bf16 to f16 as pack_query does it: what overflows, and what is no number, saturates. */
__device__ static inline uint32_t query_pair(uint32_t pair)
{
    const __half most = __ushort_as_half(0x7bff);
    float2 value = unpack_bf16(pair);
    uint32_t bits = pack_half(value.x, value.y);
    __half2 packed = *(__half2 *)&bits;
    packed = __hmin2(__hmax2(packed, __half2half2(__hneg(most))), __half2half2(most));
    return *(uint32_t *)&packed;
}

/* The queries of the rows that there are, as f16. */
template <int C>
__device__ static inline void bring_query(narrow_shared<C> &shared,
                                          const struct attention_call &call,
                                          const struct attention_tile &tile, int32_t job)
{
    constexpr int32_t AHEAD = 8; /* pairs on their way */
    int32_t lane = threadIdx.x % WARP, pair_count = tile.count * (C / 2);
#pragma unroll 1
    for (int32_t first = lane; first < pair_count; first += AHEAD * WARP) {
        uint32_t pair[AHEAD];
#pragma unroll
        for (int32_t j = 0; j < AHEAD; j++) {
            int32_t i = min(first + j * WARP, pair_count - 1), row = tile.first + i / (C / 2);
            int32_t token = token_of(call, tile.item, row);
            int64_t column = (int64_t)(tile.kv_head * call.group + row - token * call.group) * C +
                             i % (C / 2) * 2;
            pair[j] = *(const uint32_t *)(call.query +
                                          (tile.item.token_first + token) * call.stride + column);
        }
#pragma unroll
        for (int32_t j = 0; j < AHEAD; j++) {
            int32_t i = first + j * WARP;
            if (i < pair_count)
                *(uint32_t *)&shared.query[job][i / (C / 2)][i % (C / 2) * 4] = query_pair(pair[j]);
        }
    }
}

/* An item and its queries. */
template <int C>
__device__ static inline void bring_job(narrow_shared<C> &shared, const struct attention_call &call,
                                        const struct attention_tile &tile,
                                        ring_place<NARROW_JOBS> &job)
{
    barrier_wait(shared_address(&shared.job_empty[job.index]), job.parity ^ 1);
    bring_query<C>(shared, call, tile, job.index);
    if (threadIdx.x % WARP == 0)
        shared.job[job.index] = tile;
    __syncwarp();
    if (threadIdx.x % WARP == 0)
        barrier_arrive(shared_address(&shared.job_full[job.index]));
    job.step();
}

/* One warp brings the keys; the other brings items and the values. */
template <int C, page_plane PLANE>
__device__ static inline void narrow_feed(narrow_shared<C> &shared, const CUtensorMap &map,
                                          const struct attention_call &call)
{
    constexpr bool BRINGS = PLANE == PLANE_VALUE;
    struct page_shifts shifts = shifts_of(call.layer);
    int32_t heads = call.args.kv_head_count, index = blockIdx.x;
    auto job = ring_place<NARROW_JOBS>::first();
    narrow_place<C, PLANE> place = {{}, 0, ring_place<narrow_shape<C>::STAGES>::first()};
    if (call.work.fresh)
        kernel_wait();
    bulk_see();
    struct attention_item item = call.work.narrow[index / heads];
    int32_t count = call.work.plan->narrow_count * heads;
    struct attention_tile tile = tile_of(call, item, index % heads, NARROW_ROWS);
    if (index < count) {
        struct page_window window = window_of(call, tile, shifts.page);
        place.start(tile);
        auto early = place;
#pragma unroll 1
        for (; early.is_there(tile) && early.stage.parity == 0; early.step(tile))
            feed_tile<C, PLANE, PART_EARLY>(shared, map, tile, window, shifts, early);
        kernel_wait();
        bulk_see();
        if (BRINGS)
            bring_job<C>(shared, call, tile, job);
#pragma unroll 1
        for (; place.is_there(tile) && place.stage.parity == 0; place.step(tile))
            feed_tile<C, PLANE, PART_LATE>(shared, map, tile, window, shifts, place);
#pragma unroll 1
        for (;;) {
            index += gridDim.x;
            item = call.work.narrow[min(index, count - 1) / heads];
#pragma unroll 1
            for (; place.is_there(tile); place.step(tile)) {
                barrier_wait(shared_address(&shared.empty[place.stage.index]),
                             place.stage.parity ^ 1);
                feed_tile<C, PLANE, PART_WHOLE>(shared, map, tile, window, shifts, place);
            }
            if (index >= count)
                break;
            tile = tile_of(call, item, index % heads, NARROW_ROWS);
            window = window_of(call, tile, shifts.page);
            place.start(tile);
            if (BRINGS)
                bring_job<C>(shared, call, tile, job);
        }
    }
    if (BRINGS) {
        tile.count = 0; /* there are no more */
        bring_job<C>(shared, call, tile, job);
    }
}

#endif
