/* A step's host data on its way in and out. Ops of the CPU backend run when they are called, so
 * the step in progress is the only one; what is in flight is only that results were not asked
 * for yet. */
#include "kernels/cpu/device.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

int cpu_step_open(struct device *device)
{
    const struct device_options *options = &device->options;
    struct cpu_step *step = &device->step;
    struct step_result *result = &device->result;
    size_t tokens = (size_t)options->token_max, samples = (size_t)options->sample_max;

    step->row = cpu_alloc(device, (size_t)options->slot_max * sizeof(*step->row));
    step->token = cpu_alloc(device, tokens * sizeof(*step->token));
    step->token_row = cpu_alloc(device, tokens * sizeof(*step->token_row));
    step->sample = cpu_alloc(device, samples * sizeof(*step->sample));
    result->token = cpu_alloc(device, samples * sizeof(*result->token));
    result->logprob = cpu_alloc(device, samples * sizeof(*result->logprob));
    result->rank = cpu_alloc(device, samples * sizeof(*result->rank));
    result->top_token = cpu_alloc(device, samples * SAMPLING_TOP_MAX * sizeof(*result->top_token));
    result->top_logprob =
        cpu_alloc(device, samples * SAMPLING_TOP_MAX * sizeof(*result->top_logprob));
    if (step->row == NULL || step->token == NULL || step->token_row == NULL ||
        step->sample == NULL || result->token == NULL || result->logprob == NULL ||
        result->rank == NULL || result->top_token == NULL || result->top_logprob == NULL)
        return -ENOMEM;
    return 0;
}

static void take_row(struct device *device, const struct step *step, int32_t index)
{
    const struct step_row *row = &step->row[index];
    struct cpu_step *own = &device->step;

    assert(row->slot >= 0 && row->slot < device->options.slot_max);
    assert(row->token_first >= 0 && row->token_count >= 0);
    assert(row->token_first + row->token_count <= step->token_count);
    assert(row->position + row->token_count <= device->options.context_max);
    assert(!row->token_on_device || row->token_count == 1);
    own->row[index] = *row;
    for (int32_t i = 0; i < row->token_count; i++) {
        int32_t t = row->token_first + i;
        own->token[t] = row->token_on_device ? device->slot[row->slot].last_draw : step->token[t];
        assert(own->token[t] >= 0 && own->token[t] < device->options.vocab_count);
        own->token_row[t] = index;
    }
}

void cpu_step_begin(struct device *device, const struct step *step)
{
    struct cpu_step *own = &device->step;

    assert(own->pending < STEP_DEPTH);
    assert(step->row_count <= device->options.slot_max);
    assert(step->token_count <= device->options.token_max);
    assert(step->sample_count <= device->options.sample_max);
    own->pending++;
    for (int32_t i = 0; i < step->start_count; i++)
        cpu_slot_start(device, &step->start[i], step->history);
    for (int32_t i = 0; i < step->move_count; i++)
        cpu_kv_move(device, &step->move[i]);
    for (int32_t i = 0; i < step->change_count; i++)
        cpu_kv_change(device, &step->change[i]);
    own->row_count = step->row_count;
    own->token_count = step->token_count;
    own->sample_count = step->sample_count;
    for (int32_t i = 0; i < step->row_count; i++)
        take_row(device, step, i);
    if (step->sample_count > 0)
        memcpy(own->sample, step->sample, (size_t)step->sample_count * sizeof(*own->sample));
}

void cpu_step_end(struct device *device, struct step_result *result)
{
    const struct step_result *own = &device->result;
    size_t count = (size_t)device->step.sample_count;

    if (count == 0)
        return;
    memcpy(result->token, own->token, count * sizeof(*own->token));
    memcpy(result->logprob, own->logprob, count * sizeof(*own->logprob));
    memcpy(result->rank, own->rank, count * sizeof(*own->rank));
    memcpy(result->top_token, own->top_token, count * SAMPLING_TOP_MAX * sizeof(*own->top_token));
    memcpy(result->top_logprob, own->top_logprob,
           count * SAMPLING_TOP_MAX * sizeof(*own->top_logprob));
}

int cpu_sync(struct device *device)
{
    assert(device->step.pending > 0);
    device->step.pending--;
    return 0;
}
