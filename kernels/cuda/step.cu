/* Steps: from plain data to the device and back, two in flight.
 *
 * step_begin copies the step into pinned memory of its own and queues the copies to the device;
 * step_end queues the copy of the samples into pinned memory and an event; sync waits for the
 * oldest step's event. A step's pinned memory is used again only after its sync, so nothing that
 * a queued copy still reads is overwritten.
 */
#include "kernels/cuda/device.cuh"

#include <assert.h>
#include <errno.h>
#include <string.h>

enum { THREADS = 128, PART_ALIGN = 256 };

/* A block is one row: whose tokens they are, where they stand, and ids known here alone. */
__global__ void row_kernel(struct step_view step, struct slot_view slots)
{
    struct step_row row = step.row[blockIdx.x];
    for (int32_t i = threadIdx.x; i < row.token_count; i += THREADS) {
        step.slot[row.token_first + i] = row.slot;
        step.position[row.token_first + i] = row.position + i;
    }
    if (row.token_on_device && threadIdx.x == 0)
        step.token[row.token_first] = slots.last[row.slot];
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
    device->step.change = (const struct step_change *)(data + offset[PART_CHANGE]);
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
    device->work = (float *)cuda_alloc(device, SAMPLE_ROWS * V * sizeof(float));
    for (int32_t i = 0; i < STEP_DEPTH; i++)
        if (!flight_open(device, &device->flight[i]))
            return false;
    return device->step_data != NULL && device->step.slot != NULL &&
           device->step.position != NULL && device->drawn != NULL &&
           device->slots.sampling != NULL && device->slots.seen != NULL &&
           device->slots.last != NULL && device->work != NULL;
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

/* Through pinned memory to the part's place on the device. */
static void stage(struct device *device, const struct flight *flight, enum step_part part,
                  const void *source, size_t bytes)
{
    size_t offset = device->part_offset[part];
    assert(bytes <= device->part_offset[part + 1] - offset);
    if (bytes == 0)
        return;
    memcpy(flight->staging + offset, source, bytes);
    (void)cuda_check(device,
                     cudaMemcpyAsync(device->step_data + offset, flight->staging + offset, bytes,
                                     cudaMemcpyHostToDevice, device->stream),
                     __func__);
}

static struct row_range rows_of(const struct step *step)
{
    struct row_range rows = {INT32_MAX, 0, 0};
    for (int32_t r = 0; r < step->row_count; r++) {
        int32_t count = step->row[r].token_count;
        rows.least = count < rows.least ? count : rows.least;
        rows.most = count > rows.most ? count : rows.most;
        if (rows.context < step->row[r].position + count)
            rows.context = step->row[r].position + count;
    }
    return rows;
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

    stage(device, flight, PART_COUNTS, &counts, sizeof(counts));
    stage(device, flight, PART_START, step->start,
          (size_t)step->start_count * sizeof(step->start[0]));
    stage(device, flight, PART_HISTORY, step->history,
          (size_t)step->history_count * sizeof(step->history[0]));
    stage(device, flight, PART_CHANGE, step->change,
          (size_t)step->change_count * sizeof(step->change[0]));
    stage(device, flight, PART_MOVE, step->move, (size_t)step->move_count * sizeof(step->move[0]));
    stage(device, flight, PART_ROW, step->row, (size_t)step->row_count * sizeof(step->row[0]));
    stage(device, flight, PART_TOKEN, step->token,
          (size_t)step->token_count * sizeof(step->token[0]));
    stage(device, flight, PART_SAMPLE, step->sample,
          (size_t)step->sample_count * sizeof(step->sample[0]));

    cuda_sample_start(device, step->start_count);
    cuda_kv_change(device, step->change_count);
    cuda_kv_copy(device, step->move_count);
    if (step->row_count > 0) {
        row_kernel<<<step->row_count, THREADS, 0, device->stream>>>(device->step, device->slots);
        launch_check(device, __func__);
    }
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
