/* What the warps of a narrow item share: rings of tiles and of items in shared memory. */
#ifndef KERNELS_CUDA_ATTENTION_RING_CUH
#define KERNELS_CUDA_ATTENTION_RING_CUH

#include "kernels/cuda/attention_pages.cuh"
#include "kernels/cuda/launch.cuh"

enum {
    NARROW_WARPS = 4,
    NARROW_THREADS = NARROW_WARPS * WARP, /* that compute */
    NARROW_BLOCK = NARROW_THREADS + 2 * WARP,
    NARROW_JOBS = 3,  /* items whose queries are there or on their way */
    NARROW_TURNS = 8, /* that are taken, and not yet on their way */
    SPAN_TILES = 2,
    CORE_SHARED_BYTES = 228 * 1024, /* of a multiprocessor, and what a block has besides its own */
    BLOCK_SHARED_BYTES = 1024,
};

static_assert(PARTIAL_TOKENS % (SPAN_TILES * KV_TILE) == 0, "a span belongs to one partial");

template <int C> struct narrow_shape {
    static constexpr int32_t BLOCKS = narrow_blocks(C);
    static constexpr int32_t BYTES = CORE_SHARED_BYTES / BLOCKS - BLOCK_SHARED_BYTES;
    static constexpr int32_t COLUMNS = (C / 8 + NARROW_WARPS - 1) / NARROW_WARPS; /* of a warp */
    static constexpr int32_t QUERY_BYTES = C * 2 + 16; /* of a row: free of bank conflicts */
    static constexpr int32_t OTHER_BYTES = NARROW_JOBS * NARROW_ROWS * QUERY_BYTES +
                                           COLUMNS * NARROW_THREADS * 16 + SPAN_TILES * 2560 + 1024;
    static constexpr int32_t STAGES_FIT = (BYTES - OTHER_BYTES) / page_tile<C>::BYTES;
    static constexpr int32_t STAGES = STAGES_FIT > 8 ? 8 : STAGES_FIT;
    static_assert(STAGES >= SPAN_TILES, "a span's scores take their tiles at once");
};

template <int C> struct narrow_shared {
    alignas(1024) uint8_t stage[narrow_shape<C>::STAGES][page_tile<C>::BYTES];
    uint4 weight[SPAN_TILES][KV_TILE / 16][WARP]; /* A operands of P */
    float4 maximum[SPAN_TILES][NARROW_ROWS];      /* of each warp */
    float factor[SPAN_TILES][NARROW_ROWS];        /* of what is before the tile */
    float4 sum[NARROW_ROWS];
    float4 total[narrow_shape<C>::COLUMNS][NARROW_THREADS]; /* of the partials before */
    alignas(16) uint8_t query[NARROW_JOBS][NARROW_ROWS][narrow_shape<C>::QUERY_BYTES];
    uint4 zero;
    struct attention_tile job[NARROW_JOBS]; /* one without rows: there are no more, see bring_end */
    uint64_t full[narrow_shape<C>::STAGES], empty[narrow_shape<C>::STAGES];
    uint64_t job_full[NARROW_JOBS], job_empty[NARROW_JOBS];
    uint64_t turn_full[NARROW_TURNS];
    int32_t turn[NARROW_TURNS]; /* numbers of items: what the feeding warp tells the other */
};

/* The warps that compute wait for each other; barrier 0 is the whole block's. */
__device__ static inline void narrow_sync(void)
{
    asm volatile("bar.sync 1, %0;" ::"n"((int)NARROW_THREADS) : "memory");
}

/* Until what was written before this op is there. Beside wide items' kernel it is: that one waited
 * and only then let this one begin, and the two have nothing to do with each other. */
__device__ static inline void narrow_wait(const struct attention_call &call)
{
    if (call.work.beside)
        __threadfence(); /* nothing older is read than what is there now */
    else
        kernel_wait();
}

/* A place in a ring of COUNT, and the parity of the phase that is to end there. */
template <int COUNT> struct ring_place {
    int32_t index;
    uint32_t parity;
    __device__ static inline ring_place first(void)
    {
        return {0, 0};
    }
    __device__ inline void step(void)
    {
        if (++index == COUNT) {
            index = 0;
            parity ^= 1;
        }
    }
};

/* The tiles of a span that an item goes through. */
struct narrow_span {
    int32_t first, count;
};

__device__ static inline struct narrow_span span_at(const struct attention_tile &tile,
                                                    int32_t first)
{
    int32_t end = min((first / SPAN_TILES + 1) * SPAN_TILES, (tile.end - 1) / KV_TILE + 1);
    return {first, end - first};
}

template <int C> __device__ static inline void narrow_open(narrow_shared<C> &shared)
{
    if (threadIdx.x == 0) {
        for (int32_t i = 0; i < narrow_shape<C>::STAGES; i++) {
            barrier_make(shared_address(&shared.full[i]), 1);
            barrier_make(shared_address(&shared.empty[i]), NARROW_WARPS);
        }
        for (int32_t i = 0; i < NARROW_JOBS; i++) {
            barrier_make(shared_address(&shared.job_full[i]), WARP + 1);
            barrier_make(shared_address(&shared.job_empty[i]), NARROW_THREADS);
        }
        for (int32_t i = 0; i < NARROW_TURNS; i++)
            barrier_make(shared_address(&shared.turn_full[i]), 1);
        barrier_show();
        shared.zero = {0, 0, 0, 0};
    }
    for (int32_t i = threadIdx.x; i < SPAN_TILES * NARROW_ROWS; i += NARROW_BLOCK)
        shared.factor[i / NARROW_ROWS][i % NARROW_ROWS] = 1.0f; /* of rows that no item has */
    for (int32_t i = threadIdx.x; i < NARROW_ROWS; i += NARROW_BLOCK)
        shared.sum[i] = {1.0f, 0.0f, 0.0f, 0.0f};
    __syncthreads();
}

#endif
