/* Steps: from plain data to the device and back, two in flight.
 *
 * step_begin copies the step into pinned memory of its own, from which one kernel takes it over:
 * a copy a part would cost the device more than the step's data do. step_end queues the copy of
 * the samples into pinned memory and an event; sync waits for the oldest step's event. A step's
 * pinned memory is used again only after its sync, so nothing that is still read is overwritten.
 */
#include "kernels/cuda/kv.cuh"
#include "kernels/cuda/launch.cuh"

#include <assert.h>
#include <errno.h>
#include <string.h>

enum {
    THREADS = 128,
    PART_ALIGN = 256,
    COPY_BLOCKS = 8,
    CHANGE_BLOCKS_MAX = 64,
    KERNEL_COPY_MAX = 1 << 16, /* bytes of history; more come by a copy of its own */
};

/* What is taken over, all of it in pinned memory. */
struct begin_work {
    const uint8_t *staged;
    uint8_t *target;                /* laid out as `staged` */
    size_t part_offset[PART_COUNT]; /* in both */
    int32_t part_words[PART_COUNT]; /* of four bytes, to be copied as they are */
    int32_t change_count, change_blocks;
    int32_t row_count;
};

__device__ static void copy_parts(const struct begin_work &work)
{
    int32_t thread = blockIdx.x * THREADS + threadIdx.x;
    for (int32_t part = 0; part < PART_COUNT; part++) {
        const uint32_t *source = (const uint32_t *)(work.staged + work.part_offset[part]);
        uint32_t *target = (uint32_t *)(work.target + work.part_offset[part]);
        for (int32_t i = thread; i < work.part_words[part]; i += COPY_BLOCKS * THREADS)
            target[i] = source[i];
    }
}

/* A block is one row: its tokens, also those known here alone, whose they are, where they stand. */
__device__ static void take_row(const struct begin_work &work, const struct step_view &step,
                                const struct slot_view &slots, int32_t index)
{
    const uint8_t *rows = work.staged + work.part_offset[PART_ROW];
    const uint8_t *tokens = work.staged + work.part_offset[PART_TOKEN];
    struct step_row row = ((const struct step_row *)rows)[index];
    for (int32_t i = threadIdx.x; i < row.token_count; i += THREADS) {
        int32_t t = row.token_first + i;
        step.slot[t] = row.slot;
        step.position[t] = row.position + i;
        step.token[t] = row.token_on_device ? slots.last[row.slot] : ((const int32_t *)tokens)[t];
    }
}

__global__ void __launch_bounds__(THREADS)
    begin_kernel(const __grid_constant__ struct begin_work work, struct step_view step,
                 struct slot_view slots, struct kv_view kv)
{
    int32_t block = blockIdx.x;
    kernel_yield();
    kernel_wait();
    if (block < COPY_BLOCKS) {
        copy_parts(work);
    } else if (block < COPY_BLOCKS + work.change_blocks) {
        const uint8_t *changes = work.staged + work.part_offset[PART_CHANGE];
        int32_t first = (block - COPY_BLOCKS) * THREADS + threadIdx.x;
        for (int32_t i = first; i < work.change_count; i += work.change_blocks * THREADS) {
            struct step_change change = ((const struct step_change *)changes)[i];
            int64_t table = (int64_t)change.slot * kv.group_count + change.group;
            kv.table[table * kv.table_width + change.index] = change.block;
        }
    } else {
        take_row(work, step, slots, block - COPY_BLOCKS - work.change_blocks);
    }
}

/* ---- life ---- */

static void layout(struct device *device)
{
    const struct device_options *options = &device->options;
    const size_t bytes[PART_COUNT] = {
        sizeof(struct step_counts),
        (size_t)options->slot_max * sizeof(struct step_start),
        (size_t)options->history_max * sizeof(int32_t),
        (size_t)options->change_max * sizeof(struct step_change),
        (size_t)options->move_max * sizeof(struct step_move),
        (size_t)options->slot_max * sizeof(struct step_row),
        (size_t)options->token_max * sizeof(int32_t),
        (size_t)options->sample_max * sizeof(struct step_sample),
    };
    device->part_offset[0] = 0;
    for (int32_t i = 0; i < PART_COUNT; i++)
        device->part_offset[i + 1] =
            device->part_offset[i] + (bytes[i] + PART_ALIGN - 1) / PART_ALIGN * PART_ALIGN;
}

static void view(struct device *device)
{
    uint8_t *data = device->step_data;
    const size_t *offset = device->part_offset;
    device->step.counts = (const struct step_counts *)(data + offset[PART_COUNTS]);
    device->step.start = (const struct step_start *)(data + offset[PART_START]);
    device->step.history = (const int32_t *)(data + offset[PART_HISTORY]);
    device->step.move = (const struct step_move *)(data + offset[PART_MOVE]);
    device->step.row = (const struct step_row *)(data + offset[PART_ROW]);
    device->step.token = (int32_t *)(data + offset[PART_TOKEN]);
    device->step.sample = (const struct step_sample *)(data + offset[PART_SAMPLE]);
}

static bool flight_open(struct device *device, struct flight *flight)
{
    size_t drawn = (size_t)device->options.sample_max * sizeof(struct drawn);
    return cudaMallocHost((void **)&flight->staging, device->part_offset[PART_COUNT]) ==
               cudaSuccess &&
           cudaMallocHost((void **)&flight->drawn, drawn) == cudaSuccess &&
           cudaEventCreateWithFlags(&flight->done,
                                    cudaEventDisableTiming | cudaEventBlockingSync) == cudaSuccess;
}

bool cuda_step_open(struct device *device)
{
    const struct device_options *options = &device->options;
    size_t slots = (size_t)options->slot_max, V = (size_t)options->vocab_count;
    size_t tokens = (size_t)options->token_max * sizeof(int32_t);
    layout(device);
    device->step_data = (uint8_t *)cuda_alloc(device, device->part_offset[PART_COUNT]);
    view(device);
    device->step.slot = (int32_t *)cuda_alloc(device, tokens);
    device->step.position = (int32_t *)cuda_alloc(device, tokens);
    device->drawn =
        (struct drawn *)cuda_alloc(device, (size_t)options->sample_max * sizeof(struct drawn));
    device->slots.sampling = (struct sampling *)cuda_alloc(device, slots * sizeof(struct sampling));
    device->slots.seen = (int32_t *)cuda_alloc(device, slots * V * sizeof(int32_t));
    device->slots.last = (int32_t *)cuda_alloc(device, slots * sizeof(int32_t));
    bool has_sample = cuda_sample_open(device);
    for (int32_t i = 0; i < STEP_DEPTH; i++)
        if (!flight_open(device, &device->flight[i]))
            return false;
    return device->step_data != NULL && device->step.slot != NULL &&
           device->step.position != NULL && device->drawn != NULL &&
           device->slots.sampling != NULL && device->slots.seen != NULL &&
           device->slots.last != NULL && has_sample;
}

void cuda_step_close(struct device *device)
{
    for (int32_t i = 0; i < STEP_DEPTH; i++) {
        struct flight *flight = &device->flight[i];
        (void)cudaFreeHost(flight->staging);
        (void)cudaFreeHost(flight->drawn);
        if (flight->done != NULL)
            (void)cudaEventDestroy(flight->done);
    }
}

/* ---- steps ---- */

/* Into the step's pinned memory alone: the device takes it over in its own way. */
static void stage_only(struct device *device, const struct flight *flight, enum step_part part,
                       const void *source, size_t bytes)
{
    size_t offset = device->part_offset[part];
    assert(bytes <= device->part_offset[part + 1] - offset);
    if (bytes > 0)
        memcpy(flight->staging + offset, source, bytes);
}

/* Into the step's pinned memory, and on to the same place on the device. */
static void stage(struct device *device, const struct flight *flight, struct begin_work *work,
                  enum step_part part, const void *source, size_t bytes)
{
    size_t offset = device->part_offset[part];
    assert(bytes % sizeof(uint32_t) == 0);
    stage_only(device, flight, part, source, bytes);
    if (bytes <= KERNEL_COPY_MAX) {
        work->part_words[part] = (int32_t)(bytes / sizeof(uint32_t));
        return;
    }
    (void)cuda_check(device,
                     cudaMemcpyAsync(device->step_data + offset, flight->staging + offset, bytes,
                                     cudaMemcpyHostToDevice, device->stream),
                     __func__);
}

static struct row_range rows_of(const struct step *step)
{
    struct row_range rows = {INT32_MAX, 0};
    for (int32_t r = 0; r < step->row_count; r++) {
        int32_t count = step->row[r].token_count;
        rows.least = count < rows.least ? count : rows.least;
        rows.most = count > rows.most ? count : rows.most;
    }
    return rows;
}

static void begin(struct device *device, struct begin_work *work, const struct flight *flight)
{
    int32_t blocks = ceil_div(work->change_count, THREADS);
    work->change_blocks = blocks < CHANGE_BLOCKS_MAX ? blocks : (int32_t)CHANGE_BLOCKS_MAX;
    work->staged = flight->staging;
    work->target = device->step_data;
    for (int32_t i = 0; i < PART_COUNT; i++)
        work->part_offset[i] = device->part_offset[i];
    struct launch_shape shape = {dim3(COPY_BLOCKS + work->change_blocks + work->row_count),
                                 dim3(THREADS), 0};
    launch(device, __func__, begin_kernel, shape, *work, device->step, device->slots, device->kv);
}

void cuda_step_begin(struct device *device, const struct step *step)
{
    struct flight *flight = &device->flight[device->begun % STEP_DEPTH];
    struct step_counts counts = {step->token_count, step->sample_count, step->row_count};
    assert(device->begun - device->synced < STEP_DEPTH);
    assert(step->token_count <= device->options.token_max);
    assert(step->sample_count <= device->options.sample_max);
    for (int32_t i = 0; i < step->start_count; i++)
        assert(step->start[i].token_first + step->start[i].token_count <= step->history_count);
    for (int32_t i = 0; i < step->move_count; i++)
        assert(step->move[i].kind == STEP_COPY); /* kv_shape has no host tier yet */
    device->begun++;
    device->attention.list_count = 0;
    device->attention.rows = rows_of(step);
    flight->ended = false;
    flight->sample_count = step->sample_count;

    struct begin_work work = {};
    work.change_count = step->change_count;
    work.row_count = step->row_count;
    stage(device, flight, &work, PART_COUNTS, &counts, sizeof(counts));
    stage(device, flight, &work, PART_START, step->start,
          (size_t)step->start_count * sizeof(step->start[0]));
    stage(device, flight, &work, PART_HISTORY, step->history,
          (size_t)step->history_count * sizeof(step->history[0]));
    stage(device, flight, &work, PART_MOVE, step->move,
          (size_t)step->move_count * sizeof(step->move[0]));
    stage(device, flight, &work, PART_ROW, step->row,
          (size_t)step->row_count * sizeof(step->row[0]));
    stage(device, flight, &work, PART_SAMPLE, step->sample,
          (size_t)step->sample_count * sizeof(step->sample[0]));
    stage_only(device, flight, PART_CHANGE, step->change,
               (size_t)step->change_count * sizeof(step->change[0]));
    stage_only(device, flight, PART_TOKEN, step->token,
               (size_t)step->token_count * sizeof(step->token[0]));
    begin(device, &work, flight);
    cuda_sample_start(device, step->start_count);
    cuda_kv_copy(device, step->move_count);
}

void cuda_step_end(struct device *device, struct step_result *result)
{
    struct flight *flight = &device->flight[(device->begun - 1) % STEP_DEPTH];
    assert(device->begun > device->synced);
    assert(!flight->ended);
    flight->ended = true;
    flight->result = result;
    if (flight->sample_count > 0)
        (void)cuda_check(device,
                         cudaMemcpyAsync(flight->drawn, device->drawn,
                                         (size_t)flight->sample_count * sizeof(struct drawn),
                                         cudaMemcpyDeviceToHost, device->stream),
                         __func__);
    (void)cuda_check(device, cudaEventRecord(flight->done, device->stream), __func__);
}

static void scatter(struct step_result *result, const struct drawn *drawn, int32_t sample_count)
{
    for (int32_t s = 0; s < sample_count; s++) {
        int64_t top = (int64_t)s * SAMPLING_TOP_MAX;
        result->token[s] = drawn[s].token;
        result->logprob[s] = drawn[s].logprob;
        result->rank[s] = drawn[s].rank;
        memcpy(result->top_token + top, drawn[s].top_token, sizeof(drawn[s].top_token));
        memcpy(result->top_logprob + top, drawn[s].top_logprob, sizeof(drawn[s].top_logprob));
    }
}

int cuda_sync(struct device *device)
{
    struct flight *flight = &device->flight[device->synced % STEP_DEPTH];
    assert(device->begun > device->synced);
    assert(flight->ended);
    device->synced++;
    (void)cuda_check(device, cudaEventSynchronize(flight->done), __func__);
    if (device->fault != cudaSuccess)
        return -EIO;
    scatter(flight->result, flight->drawn, flight->sample_count);
    return 0;
}
