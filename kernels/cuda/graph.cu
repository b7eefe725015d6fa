/* Captured steps, by key. What is recorded reads the step's data and the slots' state at fixed
 * addresses, so a graph may be launched for any later step of its padded size.
 *
 * Capture is relaxed: only this thread uses the stream, and another device's thread may allocate
 * while this one records. A capture that fails is a refusal, not a fault: nothing has run, and
 * the same ops can be called again without one.
 */
#include "kernels/cuda/device.cuh"

#include <assert.h>
#include <stdlib.h>

/* The runtime keeps about 1.4 KB a kernel on the device (0.3 MiB for 28 layers were measured); what
 * is counted leaves room for products of several parts, which are a kernel each. */
enum { LAYER_KERNELS = 8, STEP_KERNELS = 8, KERNEL_BYTES = 2048 };

size_t cuda_graph_bytes(struct device *device, int32_t layer_count)
{
    (void)device;
    return ((size_t)layer_count * LAYER_KERNELS + STEP_KERNELS) * KERNEL_BYTES;
}

/* The graph of `key` that is good for rows of `rows`. */
static struct captured *graph_find(struct device *device, int64_t key, struct row_range rows)
{
    for (int32_t i = 0; i < device->graph_count; i++) {
        struct captured *entry = &device->graph[i];
        if (entry->key == key && entry->rows.least <= rows.least && entry->rows.most >= rows.most)
            return entry;
    }
    return NULL;
}

/* The entry to keep a new graph in; NULL when there is no memory. */
static struct captured *graph_entry(struct device *device, int64_t key, struct row_range rows)
{
    struct captured *entry = graph_find(device, key, rows);
    if (entry != NULL)
        return entry;
    if (device->graph_count == device->graph_max) {
        int32_t max = device->graph_max == 0 ? 64 : 2 * device->graph_max;
        void *grown = realloc(device->graph, (size_t)max * sizeof(struct captured));
        if (grown == NULL)
            return NULL;
        device->graph = (struct captured *)grown;
        device->graph_max = max;
    }
    entry = &device->graph[device->graph_count++];
    entry->key = key;
    entry->rows = rows;
    entry->exec = NULL;
    return entry;
}

/* True when it succeeded; a refusal leaves no error behind for the next launch to find. */
static bool done(cudaError_t error)
{
    if (error != cudaSuccess)
        (void)cudaGetLastError();
    return error == cudaSuccess;
}

void cuda_graph_close(struct device *device)
{
    for (int32_t i = 0; i < device->graph_count; i++)
        if (device->graph[i].exec != NULL)
            (void)cudaGraphExecDestroy(device->graph[i].exec);
    free(device->graph);
}

bool cuda_graph_begin(struct device *device, int64_t key)
{
    (void)key;
    device->attention.list_count = 0;
    device->attention.captured = {0, INT32_MAX};
    return done(cudaStreamBeginCapture(device->stream, cudaStreamCaptureModeRelaxed));
}

bool cuda_graph_end(struct device *device, int64_t key)
{
    cudaGraph_t graph = NULL;
    cudaGraphExec_t exec = NULL;
    struct captured *entry = graph_entry(device, key, device->attention.captured);
    device->attention.list_count = 0; /* what was recorded has not run */
    bool good = done(cudaStreamEndCapture(device->stream, &graph)) && entry != NULL;
    good = good && done(cudaGraphInstantiate(&exec, graph, 0)) &&
           done(cudaGraphUpload(exec, device->stream)); /* its memory is taken here */
    if (graph != NULL)
        (void)cudaGraphDestroy(graph);
    if (!good && exec != NULL)
        (void)cudaGraphExecDestroy(exec);
    if (!good)
        return false;
    if (entry->exec != NULL)
        (void)cudaGraphExecDestroy(entry->exec);
    entry->exec = exec;
    return true;
}

bool cuda_graph_launch(struct device *device, int64_t key)
{
    struct captured *entry = graph_find(device, key, device->attention.rows);
    if (entry == NULL || entry->exec == NULL)
        return false;
    return cuda_check(device, cudaGraphLaunch(entry->exec, device->stream), __func__);
}
