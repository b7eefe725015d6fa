/* Sampling: first the chunks of all samples (threads share them, so that one sample is fast too),
 * then each sample on one thread.
 *
 * A chunk's maximum and masses are functions of its logits alone and are put together in
 * ascending order, so neither threads nor other samples matter. Effects that change few logits
 * (bias, mask, penalties) are applied in place, the chunks that they touch are summed again, and
 * they are undone after the draw, since log-probabilities, ranks and top lists are those of the
 * raw logits. */
#include "kernels/cpu/device.h"
#include "kernels/sampling_math.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

struct sample_call {
    struct device *device;
    float *logits;
    int32_t first, count;
    int32_t run_count; /* tasks of one sample's chunks */
};

int cpu_sample_open(struct device *device)
{
    size_t V = (size_t)device->options.vocab_count;
    size_t chunks = (V + SAMPLE_CHUNK - 1) / SAMPLE_CHUNK;
    size_t undo = SAMPLING_BIAS_MAX + SAMPLING_STOP_MAX + (size_t)device->options.context_max + 2;
    int32_t threads = pool_thread_count(device->pool);

    device->chunk_count = (int32_t)chunks;
    device->chunk =
        cpu_alloc(device, (size_t)device->options.sample_max * chunks * sizeof(*device->chunk));
    device->pick = cpu_alloc(device, (size_t)threads * sizeof(*device->pick));
    if (device->chunk == NULL || device->pick == NULL)
        return -ENOMEM;
    for (int32_t i = 0; i < threads; i++) {
        struct cpu_pick *pick = &device->pick[i];
        pick->sum = cpu_alloc(device, chunks * sizeof(*pick->sum));
        pick->touched = cpu_alloc(device, chunks * sizeof(*pick->touched));
        pick->undo_token = cpu_alloc(device, undo * sizeof(*pick->undo_token));
        pick->undo_value = cpu_alloc(device, undo * sizeof(*pick->undo_value));
        pick->value = cpu_alloc_lazy(device, V * sizeof(*pick->value));
        pick->token = cpu_alloc_lazy(device, V * sizeof(*pick->token));
        pick->weight = cpu_alloc_lazy(device, (V + SAMPLE_CHUNK) * sizeof(*pick->weight));
        pick->order = cpu_alloc_lazy(device, V * sizeof(*pick->order));
        if (pick->sum == NULL || pick->touched == NULL || pick->undo_token == NULL ||
            pick->undo_value == NULL || pick->value == NULL || pick->token == NULL ||
            pick->weight == NULL || pick->order == NULL)
            return -ENOMEM;
    }
    return 0;
}

/* ---- chunks ---- */

static void sum_chunk(const struct device *device, struct chunk_sum *sum, float *x, int32_t count,
                      const struct sampling *tempered, bool raw)
{
    const struct cpu_vector *vector = device->vector;

    sum->max = vector->chunk_max(x, count);
    sum->raw = sum->tempered = 0.0f;
    if (!(sum->max > -INFINITY))
        return;
    if (raw)
        sum->raw = vector->chunk_mass(x, count, sum->max, 1.0f);
    if (tempered == NULL)
        return;
    if (raw && tempered->temperature == 1.0f)
        sum->tempered = sum->raw;
    else
        sum->tempered = vector->chunk_mass(x, count, sum->max, 1.0f / tempered->temperature);
}

/* The parameters of a draw that needs the mass at its temperature, else NULL. */
static const struct sampling *tempered(const struct device *device,
                                       const struct step_sample *sample)
{
    if (sample->kind != STEP_DRAW)
        return NULL;
    const struct sampling *sampling = &device->slot[sample->slot].sampling;
    return cpu_pick_needs_mass(device, sampling) ? sampling : NULL;
}

static void sum_task(void *context, int32_t task, int32_t worker)
{
    const struct sample_call *call = context;
    struct device *device = call->device;
    int32_t V = device->options.vocab_count, s = task / call->run_count;
    const struct step_sample *sample = &device->step.sample[call->first + s];
    int32_t chunk = task % call->run_count * CPU_SAMPLE_RUN;
    int32_t end =
        chunk + CPU_SAMPLE_RUN < device->chunk_count ? chunk + CPU_SAMPLE_RUN : device->chunk_count;

    (void)worker;
    for (; chunk < end; chunk++) {
        int32_t first = chunk * SAMPLE_CHUNK;
        sum_chunk(device, &device->chunk[(int64_t)s * device->chunk_count + chunk],
                  call->logits + (int64_t)s * V + first,
                  V - first < SAMPLE_CHUNK ? V - first : SAMPLE_CHUNK, tempered(device, sample),
                  sample->top_count >= 0);
    }
}

/* ---- effects that change few logits ---- */

/* Ids outside the vocabulary have no effect. */
static bool touch(const struct device *device, struct cpu_pick *pick, const float *logits,
                  int32_t token)
{
    if (token < 0 || token >= device->options.vocab_count)
        return false;
    pick->undo_token[pick->undo_count] = token;
    pick->undo_value[pick->undo_count++] = logits[token];
    pick->touched[token / SAMPLE_CHUNK] = true;
    return true;
}

static void change_logits(const struct device *device, struct cpu_pick *pick, float *logits,
                          const struct cpu_slot *slot, int32_t output_index)
{
    const struct sampling *sampling = &slot->sampling;

    for (int32_t i = 0; i < sampling->bias_count; i++) {
        int32_t token = sampling->bias_token[i];
        if (touch(device, pick, logits, token))
            logits[token] += sampling->bias_value[i];
    }
    for (int32_t i = 0; i < sampling->stop_count && output_index < sampling->min_tokens; i++) {
        int32_t token = sampling->stop_token[i];
        if (touch(device, pick, logits, token))
            logits[token] = -INFINITY;
    }
    for (int32_t i = 0; i < slot->seen_count; i++) {
        int32_t token = slot->seen[i];
        touch(device, pick, logits, token);
        logits[token] =
            sampling_penalise(sampling, logits[token], slot->count[token] - CPU_TOKEN_SEEN);
    }
}

static void undo(struct cpu_pick *pick, float *logits)
{
    while (pick->undo_count > 0) {
        pick->undo_count--;
        logits[pick->undo_token[pick->undo_count]] = pick->undo_value[pick->undo_count];
    }
}

static void sum_touched(const struct device *device, struct cpu_pick *pick, float *logits,
                        const struct chunk_sum *raw, const struct sampling *sampling)
{
    int32_t V = device->options.vocab_count;

    for (int32_t i = 0; i < device->chunk_count; i++) {
        int32_t first = i * SAMPLE_CHUNK;
        pick->sum[i] = raw[i];
        if (pick->touched[i])
            sum_chunk(device, &pick->sum[i], logits + first,
                      V - first < SAMPLE_CHUNK ? V - first : SAMPLE_CHUNK, sampling, false);
        pick->touched[i] = false;
    }
}

/* ---- one sample ---- */

static int32_t draw(struct device *device, struct cpu_pick *pick, float *logits,
                    const struct chunk_sum *raw, const struct step_sample *sample)
{
    struct cpu_slot *slot = &device->slot[sample->slot];
    const struct chunk_sum *sum = raw;

    change_logits(device, pick, logits, slot, sample->output_index);
    if (pick->undo_count > 0) {
        sum_touched(device, pick, logits, raw, tempered(device, sample));
        sum = pick->sum;
    }
    int32_t token =
        cpu_pick_token(device, pick, logits, sum, &slot->sampling, sample->output_index);
    undo(pick, logits);
    slot->last_draw = token;
    if (slot->penalises)
        cpu_slot_count(slot, token, 1);
    return token;
}

static int32_t rank(const struct device *device, const float *logits, const struct chunk_sum *sum,
                    int32_t token)
{
    int32_t V = device->options.vocab_count, above = 0;

    for (int32_t i = 0; i < device->chunk_count; i++) {
        int32_t first = i * SAMPLE_CHUNK;
        if (sum[i].max > logits[token])
            above += device->vector->chunk_above(
                logits + first, V - first < SAMPLE_CHUNK ? V - first : SAMPLE_CHUNK, logits[token]);
    }
    return above;
}

static float logprob(float logit, float max, double log_mass)
{
    return max > -INFINITY ? (float)((double)logit - (double)max - log_mass) : -INFINITY;
}

static void report(struct device *device, struct cpu_pick *pick, const float *logits,
                   const struct chunk_sum *sum, int32_t index)
{
    const struct step_sample *sample = &device->step.sample[index];
    struct step_result *result = &device->result;
    int32_t *top_token = result->top_token + (int64_t)index * SAMPLING_TOP_MAX;
    float *top_logprob = result->top_logprob + (int64_t)index * SAMPLING_TOP_MAX;
    int32_t top = 0;

    result->logprob[index] = 0.0f;
    result->rank[index] = 0;
    if (sample->top_count >= 0) {
        int32_t token = result->token[index];
        float max = cpu_pick_max(device, sum);
        double log_mass = log(cpu_pick_mass(device, sum, max, 1.0f, false));
        result->logprob[index] = logprob(logits[token], max, log_mass);
        result->rank[index] = rank(device, logits, sum, token);
        if (sample->top_count > 0)
            top =
                cpu_pick_top(device, pick, logits, sum, sample->top_count, top_token, top_logprob);
        for (int32_t i = 0; i < top; i++)
            top_logprob[i] = logprob(top_logprob[i], max, log_mass);
    }
    for (int32_t i = top; i < SAMPLING_TOP_MAX; i++) {
        top_token[i] = -1;
        top_logprob[i] = 0.0f;
    }
}

static void sample_task(void *context, int32_t task, int32_t worker)
{
    const struct sample_call *call = context;
    struct device *device = call->device;
    struct cpu_pick *pick = &device->pick[worker];
    int32_t index = call->first + task;
    const struct step_sample *sample = &device->step.sample[index];
    const struct chunk_sum *sum = device->chunk + (int64_t)task * device->chunk_count;
    float *logits = call->logits + (int64_t)task * device->options.vocab_count;

    assert(sample->top_count <= SAMPLING_TOP_MAX);
    if (sample->kind == STEP_DRAW) {
        device->result.token[index] = draw(device, pick, logits, sum, sample);
    } else {
        assert(sample->token >= 0 && sample->token < device->options.vocab_count);
        device->result.token[index] = sample->token;
    }
    report(device, pick, logits, sum, index);
}

void cpu_sample(struct device *device, float *logits, int32_t first, int32_t count)
{
    struct sample_call call = {.device = device, .logits = logits, .first = first};
    int32_t left = device->step.sample_count - first;

    call.count = count < left ? count : left;
    call.run_count = (device->chunk_count - 1) / CPU_SAMPLE_RUN + 1;
    if (call.count <= 0)
        return;
    pool_run(device->pool, sum_task, &call, call.count * call.run_count);
    pool_run(device->pool, sample_task, &call, call.count);
}
