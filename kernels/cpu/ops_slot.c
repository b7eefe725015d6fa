/* What a slot keeps of its sequence for the sampler.
 *
 * Counts of tokens are an array over the vocabulary, so that a penalty costs one look-up; it is
 * memory that is never touched unless a sequence with penalties runs in the slot, and it is
 * cleared by the list of what was seen: a start costs the tokens of its history, not V. */
#include "kernels/cpu/device.h"
#include "kernels/sampling_math.h"

#include <assert.h>
#include <errno.h>

int cpu_slot_open(struct device *device)
{
    const struct device_options *options = &device->options;
    size_t slots = (size_t)options->slot_max;
    size_t seen_max = (size_t)options->context_max + 1, V = (size_t)options->vocab_count;

    device->slot = cpu_alloc_lazy(device, slots * sizeof(*device->slot));
    int32_t *seen = cpu_alloc_lazy(device, slots * seen_max * sizeof(*seen));
    int32_t *count = cpu_alloc_lazy(device, slots * V * sizeof(*count));
    if (device->slot == NULL || seen == NULL || count == NULL)
        return -ENOMEM;
    for (size_t i = 0; i < slots; i++) {
        device->slot[i].seen = seen + i * seen_max;
        device->slot[i].count = count + i * V;
    }
    return 0;
}

void cpu_slot_count(struct cpu_slot *slot, int32_t token, int32_t times_put_out)
{
    if (slot->count[token] == 0) {
        slot->seen[slot->seen_count++] = token;
        slot->count[token] = CPU_TOKEN_SEEN;
    }
    slot->count[token] += times_put_out;
}

void cpu_slot_start(struct device *device, const struct step_start *start, const int32_t *history)
{
    assert(start->slot >= 0 && start->slot < device->options.slot_max);
    assert(start->token_count <= device->options.context_max);
    struct cpu_slot *slot = &device->slot[start->slot];

    for (int32_t i = 0; i < slot->seen_count; i++)
        slot->count[slot->seen[i]] = 0;
    slot->seen_count = 0;
    slot->sampling = start->sampling;
    slot->penalises = sampling_penalises(&start->sampling);
    if (!slot->penalises)
        return;
    for (int32_t i = 0; i < start->token_count; i++) {
        int32_t token = history[start->token_first + i];
        assert(token >= 0 && token < device->options.vocab_count);
        cpu_slot_count(slot, token, i >= start->prompt_count);
    }
}
