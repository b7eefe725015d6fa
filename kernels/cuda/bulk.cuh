/* Bulk copies from global to shared memory, and the barriers that count their bytes.
 *
 * A barrier has phases; it enters the next one when as many arrivals as it was made for and all
 * expected bytes have come. Who waits gives the parity of the phase that is to end: 0 for the
 * first, then 1, 0, ... . Blocks of a cluster may copy into, and arrive at, each other's.
 */
#ifndef KERNELS_CUDA_BULK_CUH
#define KERNELS_CUDA_BULK_CUH

#include "kernels/cuda/device.cuh"

#include <cuda.h>

/* What a tensor map lets the cache ask the memory for at once. With 256 bytes an H200 reads weights
 * at 4.2 TB/s, with 128 at 4.5, which is near what plain loads get. */
static const CUtensorMapL2promotion bulk_promotion = CU_TENSOR_MAP_L2_PROMOTION_L2_128B;

__device__ static inline uint32_t shared_address(const void *pointer)
{
    return (uint32_t)__cvta_generic_to_shared(pointer);
}

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900

__device__ static inline void barrier_make(uint32_t barrier, uint32_t arrivals)
{
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals)
                 : "memory");
}

/* After the last barrier_make, before others see them. */
__device__ static inline void barrier_show(void)
{
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

/* Arrives, and `bytes` more are to come. */
__device__ static inline void barrier_expect(uint32_t barrier, uint32_t bytes)
{
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
                 : "memory");
}

/* Arrives at this block's own. */
__device__ static inline void barrier_arrive(uint32_t barrier)
{
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

/* Arrives at this barrier of block `rank` of the cluster. */
__device__ static inline void barrier_arrive_at(uint32_t barrier, uint32_t rank)
{
    asm volatile("{.reg .b32 there; mapa.shared::cluster.u32 there, %0, %1; "
                 "mbarrier.arrive.shared::cluster.b64 _, [there];}" ::"r"(barrier),
                 "r"(rank)
                 : "memory");
}

__device__ static inline void barrier_wait(uint32_t barrier, uint32_t parity)
{
    asm volatile("{.reg .pred p; wait: "
                 "mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1; "
                 "@!p bra wait;}" ::"r"(barrier),
                 "r"(parity)
                 : "memory");
}

/* The map itself, before its first use. */
__device__ static inline void bulk_prefetch(const CUtensorMap *map)
{
    asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

/* The box at (column, row) of `map` to `target`. What lies outside is zeros, and counts. */
__device__ static inline void bulk_load(uint32_t target, const CUtensorMap *map, int32_t column,
                                        int32_t row, uint32_t barrier)
{
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%2, %3}], [%4];" ::"r"(target),
                 "l"(map), "r"(column), "r"(row), "r"(barrier)
                 : "memory");
}

/* The same of five dimensions. */
__device__ static inline void bulk_load(uint32_t target, const CUtensorMap *map,
                                        const int32_t (&at)[5], uint32_t barrier)
{
    asm volatile("cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%2, %3, %4, %5, %6}], [%7];" ::"r"(target),
                 "l"(map), "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3]), "r"(at[4]), "r"(barrier)
                 : "memory");
}

/* The same for what is read once: it need not stay in the GPU's cache. */
__device__ static inline void bulk_load_once(uint32_t target, const CUtensorMap *map,
                                             int32_t column, int32_t row, uint32_t barrier)
{
    asm volatile("{.reg .b64 once; createpolicy.fractional.L2::evict_first.b64 once, 1.0; "
                 "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
                 ".L2::cache_hint [%0], [%1, {%2, %3}], [%4], once;}" ::"r"(target),
                 "l"(map), "r"(column), "r"(row), "r"(barrier)
                 : "memory");
}

/* To the same place in all blocks of the cluster whose bit is set; each one's barrier counts. */
__device__ static inline void bulk_load_all(uint32_t target, const CUtensorMap *map, int32_t column,
                                            int32_t row, uint32_t barrier, uint16_t blocks)
{
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
                 ".multicast::cluster [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(target),
                 "l"(map), "r"(column), "r"(row), "r"(barrier), "h"(blocks)
                 : "memory");
}

/* `bytes` as they lie; both ends and their number are multiples of 16. */
__device__ static inline void bulk_copy(uint32_t target, const void *source, uint32_t bytes,
                                        uint32_t barrier)
{
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes "
                 "[%0], [%1], %2, [%3];" ::"r"(target),
                 "l"(source), "r"(bytes), "r"(barrier)
                 : "memory");
}

/* A box in shared memory to (column, row) of `map`; what lies outside is left out. Stores of a
 * thread run in groups, until they are waited for. */
__device__ static inline void bulk_store(const CUtensorMap *map, int32_t column, int32_t row,
                                         uint32_t source)
{
    asm volatile(
        "cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%1, %2}], [%3];" ::"l"(map),
        "r"(column), "r"(row), "r"(source)
        : "memory");
}

/* Ends a group of this thread's stores. */
__device__ static inline void bulk_commit(void)
{
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}

/* Until all but the last COUNT groups have read their sources. */
template <int COUNT> __device__ static inline void bulk_read_but(void)
{
    asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(COUNT) : "memory");
}

/* Until all of this thread's stores are there. */
__device__ static inline void bulk_stored(void)
{
    asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
}

/* After a wait: bulk copies see what ordinary stores of earlier kernels wrote to memory. */
__device__ static inline void bulk_see(void)
{
    asm volatile("fence.proxy.async.global;" ::: "memory");
}

__device__ static inline uint32_t cluster_rank(void)
{
    uint32_t rank;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}

__device__ static inline void cluster_sync(void)
{
    asm volatile("barrier.cluster.arrive.release.aligned;\n"
                 "barrier.cluster.wait.acquire.aligned;" ::
                     : "memory");
}

#else /* earlier GPUs: never launched */

__device__ static inline void barrier_make(uint32_t, uint32_t)
{
}

__device__ static inline void barrier_show(void)
{
}

__device__ static inline void barrier_expect(uint32_t, uint32_t)
{
}

__device__ static inline void barrier_arrive(uint32_t)
{
}

__device__ static inline void barrier_arrive_at(uint32_t, uint32_t)
{
}

__device__ static inline void barrier_wait(uint32_t, uint32_t)
{
}

__device__ static inline void bulk_prefetch(const CUtensorMap *)
{
}

__device__ static inline void bulk_load(uint32_t, const CUtensorMap *, int32_t, int32_t, uint32_t)
{
}

__device__ static inline void bulk_load(uint32_t, const CUtensorMap *, const int32_t (&)[5],
                                        uint32_t)
{
}

__device__ static inline void bulk_load_once(uint32_t, const CUtensorMap *, int32_t, int32_t,
                                             uint32_t)
{
}

__device__ static inline void bulk_load_all(uint32_t, const CUtensorMap *, int32_t, int32_t,
                                            uint32_t, uint16_t)
{
}

__device__ static inline void bulk_copy(uint32_t, const void *, uint32_t, uint32_t)
{
}

__device__ static inline void bulk_store(const CUtensorMap *, int32_t, int32_t, uint32_t)
{
}

__device__ static inline void bulk_commit(void)
{
}

template <int COUNT> __device__ static inline void bulk_read_but(void)
{
}

__device__ static inline void bulk_stored(void)
{
}

__device__ static inline void bulk_see(void)
{
}

__device__ static inline uint32_t cluster_rank(void)
{
    return 0;
}

__device__ static inline void cluster_sync(void)
{
}

#endif

#endif
