/* Weights on their way to the GPU.
 *
 * A copy from pageable memory goes through the driver's own small pinned buffer at a fraction of
 * the link's rate. Here several threads copy pieces of a tensor into one of two pinned slots,
 * laid out as the kernels want them, while the slot before is on its way. The source is read
 * before the call returns; the copies may still run then, in the order of the stream. Slots and
 * threads are there from the first weight to the opening of the cache.
 */
#include "kernels/cuda/device.cuh"

extern "C" {
#include "kernels/cpu/pool.h"
}

#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sysinfo.h>

enum { SLOTS = 2, THREADS_MAX = 8, SLOT_BYTES = 32 << 20, PIECE_BYTES = 1 << 20 };

struct weight_loader {
    struct pool *pool;
    uint8_t *slot[SLOTS]; /* pinned */
    cudaEvent_t free[SLOTS];
    int64_t used; /* slots so far */
};

/* Bytes first .. of the tensor, into a slot. */
struct filling {
    const struct weight_bytes *source;
    uint8_t *target;
    size_t first, bytes;
};

/* Byte `at` of the tensor, and how many lie behind each other from there on. */
static const uint8_t *find(const struct weight_bytes *source, size_t at, size_t *run)
{
    if (source->stripe == 0) {
        *run = source->bytes - at;
        return source->part[0] + at;
    }
    size_t stripe = at / source->stripe, within = at % source->stripe;
    *run = source->stripe - within;
    return source->part[stripe % 2] + stripe / 2 * source->stripe + within;
}

static void fill_piece(void *context, int32_t task, int32_t)
{
    const struct filling *filling = (const struct filling *)context;
    size_t at = (size_t)task * PIECE_BYTES, end = at + PIECE_BYTES;
    if (end > filling->bytes)
        end = filling->bytes;
    while (at < end) {
        size_t run = 0;
        const uint8_t *source = find(filling->source, filling->first + at, &run);
        if (run > end - at)
            run = end - at;
        memcpy(filling->target + at, source, run);
        at += run;
    }
}

static struct weight_loader *loader_open(struct device *device)
{
    struct weight_loader *loader = (struct weight_loader *)calloc(1, sizeof(*loader));
    int cores = get_nprocs();
    device->loader = loader;
    if (loader == NULL)
        return NULL;
    loader->pool = pool_create(cores < THREADS_MAX ? cores : (int32_t)THREADS_MAX);
    bool good = loader->pool != NULL;
    for (int32_t i = 0; good && i < SLOTS; i++)
        good = cudaMallocHost((void **)&loader->slot[i], SLOT_BYTES) == cudaSuccess &&
               cudaEventCreateWithFlags(&loader->free[i], cudaEventDisableTiming) == cudaSuccess;
    if (good)
        return loader;
    (void)cudaGetLastError(); /* a refusal, not a fault */
    cuda_load_end(device);
    return NULL;
}

bool cuda_load(struct device *device, void *target, const struct weight_bytes *source)
{
    struct weight_loader *loader = device->loader;
    if (loader == NULL)
        loader = loader_open(device);
    if (loader == NULL)
        return false;
    for (size_t first = 0; first < source->bytes; first += SLOT_BYTES) {
        int32_t slot = (int32_t)(loader->used++ % SLOTS);
        size_t left = source->bytes - first;
        struct filling filling = {source, loader->slot[slot], first,
                                  left < SLOT_BYTES ? left : (size_t)SLOT_BYTES};
        int32_t pieces = (int32_t)((filling.bytes + PIECE_BYTES - 1) / PIECE_BYTES);
        (void)cuda_check(device, cudaEventSynchronize(loader->free[slot]), __func__);
        pool_run(loader->pool, fill_piece, &filling, pieces);
        (void)cuda_check(device,
                         cudaMemcpyAsync((uint8_t *)target + first, loader->slot[slot],
                                         filling.bytes, cudaMemcpyHostToDevice, device->stream),
                         __func__);
        (void)cuda_check(device, cudaEventRecord(loader->free[slot], device->stream), __func__);
    }
    return true;
}

void cuda_load_end(struct device *device)
{
    struct weight_loader *loader = device->loader;
    if (loader == NULL)
        return;
    (void)cuda_check(device, cudaStreamSynchronize(device->stream), __func__);
    for (int32_t i = 0; i < SLOTS; i++) {
        (void)cudaFreeHost(loader->slot[i]);
        if (loader->free[i] != NULL)
            (void)cudaEventDestroy(loader->free[i]);
    }
    pool_destroy(loader->pool);
    free(loader);
    device->loader = NULL;
}
