/* Which way to make a product is the fastest on this GPU: measured, and kept as lines of a table
 * (kernels/tuned.h) that `choose` of matmul.cu asks before it estimates.
 *
 * Launches of a graph go through weights that are alike, as a step does with those of its layers,
 * so that the GPU's cache holds of them what it would then. Activations are random: on zeros the
 * tensor cores take less power, and clocks are higher.
 */
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/matmul.cuh"

#include <assert.h>
#include <errno.h>

enum {
    THREADS = 256,
    LAUNCHES_LEAST = 8, /* of a graph */
    LAUNCHES_MOST = 64,
    RUNS = 3,            /* of a graph; the fastest counts */
    ROUNDS = 4,          /* of all that are near the fastest */
    SETTLE_TOKENS = 256, /* from here on a card may come to its power limit, */
    SETTLE_MS = 100,     /* and have other clocks after so long */
};

/* Of about the size of normed activations. */
__global__ void random_kernel(bf16 *target, int64_t count)
{
    int64_t stride = (int64_t)gridDim.x * THREADS;
    for (int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x; i < count; i += stride) {
        uint64_t z = (uint64_t)(i + 1) * 0x9e3779b97f4a7c15u;
        z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
        z ^= z >> 27;
        from_float(&target[i], (float)(z & 0xffff) / 16384.0f - 2.0f);
    }
}

/* What is measured: one product, of weights in turn. */
struct tuning {
    struct matmul call;
    const struct weight *const *weight; /* [weight_count] */
    int32_t weight_count;
    cudaEvent_t before, after;
};

/* A graph that makes the product again and again in one way; NULL where it does not come about. */
static cudaGraphExec_t record(struct device *device, const struct tuning &tuning,
                              const struct tuned_way &way, int32_t launch_count)
{
    cudaGraph_t graph = NULL;
    cudaGraphExec_t exec = NULL;
    struct matmul call = tuning.call;
    if (!cuda_check(device, cudaStreamBeginCapture(device->stream, cudaStreamCaptureModeRelaxed),
                    __func__))
        return NULL;
    for (int32_t i = 0; i < launch_count; i++) {
        call.weight = tuning.weight[i % tuning.weight_count]->part[0].data;
        cuda_matmul_by(device, call, way);
    }
    if (cuda_check(device, cudaStreamEndCapture(device->stream, &graph), __func__))
        (void)cuda_check(device, cudaGraphInstantiate(&exec, graph, 0), __func__);
    if (graph != NULL)
        (void)cudaGraphDestroy(graph);
    return exec;
}

/* Milliseconds of one launch of a graph; 0: the device is broken. */
static float run(struct device *device, const struct tuning &tuning, cudaGraphExec_t exec)
{
    float ms = 0.0f;
    bool good =
        cuda_check(device, cudaEventRecord(tuning.before, device->stream), __func__) &&
        cuda_check(device, cudaGraphLaunch(exec, device->stream), __func__) &&
        cuda_check(device, cudaEventRecord(tuning.after, device->stream), __func__) &&
        cuda_check(device, cudaEventSynchronize(tuning.after), __func__) &&
        cuda_check(device, cudaEventElapsedTime(&ms, tuning.before, tuning.after), __func__);
    return good ? ms : 0.0f;
}

/* Microseconds of one product; 0: the device is broken. Large products first run until the card has
 * the clocks that it can keep: at its power limit another way may be the fastest. */
static double measure(struct device *device, const struct tuning &tuning,
                      const struct tuned_way &way)
{
    int32_t count = tuning.weight_count;
    count = count < LAUNCHES_LEAST ? (int32_t)LAUNCHES_LEAST : count;
    count = count > LAUNCHES_MOST ? (int32_t)LAUNCHES_MOST : count;
    cudaGraphExec_t exec = record(device, tuning, way, count);
    float settle = tuning.call.T < SETTLE_TOKENS ? 0.0f : (float)SETTLE_MS, passed = 0.0f, ms;
    double least = 0.0;
    if (exec == NULL)
        return 0.0;
    do { /* once at least, to warm up */
        ms = run(device, tuning, exec);
        passed += ms;
    } while (ms > 0.0f && passed < settle);
    for (int32_t i = 0; i < RUNS && ms > 0.0f; i++) {
        ms = run(device, tuning, exec);
        double us = (double)ms * 1000.0 / count;
        least = i == 0 || us < least ? us : least;
    }
    (void)cudaGraphExecDestroy(exec);
    return ms > 0.0f && device->fault == cudaSuccess ? least : 0.0;
}

/* Measures those that may be the fastest, again and again: a way's least time counts, and all that
 * are near have been measured as often. Returns how long the fastest takes; 0: the device is
 * broken. */
static double measure_all(struct device *device, const struct tuning &tuning,
                          const struct tuned_way (&way)[MATMUL_WAYS_MAX],
                          double (&us)[MATMUL_WAYS_MAX], int32_t count)
{
    const double near = 1.06; /* from one run to the next a time is 5 % off now and then */
    double least = 0.0;
    for (int32_t round = 0; round < ROUNDS; round++) {
        double before = least;
        for (int32_t i = 0; i < count; i++) {
            if (round > 0 && us[i] > near * before)
                continue;
            double now = measure(device, tuning, way[i]);
            if (now <= 0.0)
                return 0.0;
            us[i] = round == 0 || now < us[i] ? now : us[i];
            least = least == 0.0 || us[i] < least ? us[i] : least;
        }
    }
    return least;
}

/* What the estimate says, unless another is faster by more than what they differ by themselves. */
static int find_fastest(struct device *device, const struct tuning &tuning, struct tuned_way *best)
{
    const double same = 1.01;
    struct tuned_way way[MATMUL_WAYS_MAX];
    double us[MATMUL_WAYS_MAX];
    int32_t count = cuda_matmul_ways(device, tuning.call, way);
    double least = measure_all(device, tuning, way, us, count);
    if (least <= 0.0)
        return -EIO;
    *best = way[0];
    if (us[0] <= same * least)
        return 0;
    for (int32_t i = 0; i < count; i++)
        if (us[i] == least)
            *best = way[i];
    return 0;
}

/* Room for activations, for as long as it is measured. */
static int open_tuning(struct device *device, struct tuning *tuning)
{
    struct matmul *call = &tuning->call;
    int64_t width = call->gated ? call->count / 2 : call->count;
    size_t out_bytes = (size_t)call->T * (size_t)width * (call->f32 ? sizeof(float) : sizeof(bf16));
    bf16 *x = NULL;
    bool room =
        cudaMalloc((void **)&x, (size_t)call->T * (size_t)call->in * sizeof(bf16)) == cudaSuccess &&
        cudaMalloc(&call->out, out_bytes) == cudaSuccess;
    call->x = x;
    call->x_stride = call->in;
    call->out_stride = width;
    if (!room) {
        (void)cudaGetLastError(); /* a refusal, not a fault */
        return -ENOMEM;
    }
    random_kernel<<<device->core_count, THREADS, 0, device->stream>>>(x,
                                                                      (int64_t)call->T * call->in);
    launch_check(device, __func__);
    bool made = cuda_check(device, cudaEventCreate(&tuning->before), __func__) &&
                cuda_check(device, cudaEventCreate(&tuning->after), __func__);
    return made ? 0 : -EIO;
}

static void close_tuning(const struct tuning &tuning)
{
    (void)cudaFree((void *)tuning.call.x);
    (void)cudaFree(tuning.call.out);
    if (tuning.before != NULL)
        (void)cudaEventDestroy(tuning.before);
    if (tuning.after != NULL)
        (void)cudaEventDestroy(tuning.after);
}

/* The product that these weights are for. */
static struct matmul call_of(const struct weight *weight, bool logits, int32_t T)
{
    struct matmul call = {};
    call.weight = weight->part[0].data;
    call.bias = weight->bias;
    call.count = weight->out;
    call.in = weight->in;
    call.T = T;
    call.f32 = logits;
    call.gated = weight->interleaved;
    call.act = ACT_SILU;
    return call;
}

int cuda_tune(struct device *device, const struct weight *const *weight, int32_t count, bool logits,
              int32_t T, struct tuned_line *line)
{
    struct tuning tuning = {call_of(weight[0], logits, T), weight, count, NULL, NULL};
    bool many =
        device->hopper && weight[0]->part_count == 1 && weight[0]->part[0].format == FORMAT_BF16 &&
        !(weight[0]->gated && !weight[0]->interleaved) && !(logits && T > MATMUL_F32_TOKENS);
    assert(count > 0 && T > 0);
    if (!many)
        return -ENOTSUP;
    int status = open_tuning(device, &tuning);
    if (status == 0 && !cuda_matmul_fits(tuning.call))
        status = -ENOTSUP;
    if (status == 0)
        status = find_fastest(device, tuning, &line->way);
    close_tuning(tuning);
    if (status != 0)
        return status;
    line->product = cuda_matmul_product(tuning.call);
    line->token_count = T;
    return tuned_add(&device->tuned, line) ? 0 : -ENOMEM;
}

int cuda_tuned(struct device *device, const struct tuned_line *line)
{
    if (!device->hopper || !cuda_matmul_has(*line))
        return -ENOTSUP;
    return tuned_add(&device->tuned, line) ? 0 : -ENOMEM;
}
