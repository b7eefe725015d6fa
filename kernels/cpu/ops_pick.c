/* Choosing among the logits of one sample, exactly and without sorting them.
 *
 * Chunk maxima bound what can be among the likeliest: the k-th largest of them is a floor that at
 * least k logits reach, so what reaches it holds the k likeliest. For a mass, tokens that are less
 * likely than (1 - top_p) / V of all together have less than 1 - top_p of it. What reaches the
 * floor is collected by ascending id, cut by quickselect, and drawn from by ascending id. */
#include "kernels/cpu/device.h"
#include "kernels/sampling_math.h"

#include <assert.h>
#include <stdlib.h>

/* The candidates of a draw: those of pick->value, token, weight that are at or before `cut`. */
struct kept {
    int32_t count;
    struct cpu_candidate cut;
};

static int32_t chunk_length(const struct device *device, int32_t chunk)
{
    int32_t V = device->options.vocab_count, first = chunk * SAMPLE_CHUNK;
    return V - first < SAMPLE_CHUNK ? V - first : SAMPLE_CHUNK;
}

float cpu_pick_max(const struct device *device, const struct chunk_sum *sum)
{
    float max = -INFINITY;

    for (int32_t i = 0; i < device->chunk_count; i++)
        max = sum[i].max > max ? sum[i].max : max;
    return max;
}

double cpu_pick_mass(const struct device *device, const struct chunk_sum *sum, float max,
                     float factor, bool tempered)
{
    double mass = 0.0;

    for (int32_t i = 0; i < device->chunk_count; i++) {
        float part = tempered ? sum[i].tempered : sum[i].raw;
        if (sum[i].max > -INFINITY)
            mass += (double)part * exp((double)(sum[i].max - max) * (double)factor);
    }
    return mass;
}

static bool before(const struct cpu_candidate *a, const struct cpu_candidate *b)
{
    return sampling_before(a->value, a->token, b->value, b->token);
}

static void swap(struct cpu_candidate *a, struct cpu_candidate *b)
{
    struct cpu_candidate other = *a;
    *a = *b;
    *b = other;
}

/* Puts what comes before the middle one of three ahead of it in [first, end), which has three at
 * least; where it then is. */
static int32_t partition(struct cpu_candidate *list, int32_t first, int32_t end)
{
    int32_t middle = first + (end - first) / 2, target = first;

    if (before(&list[middle], &list[first]))
        swap(&list[middle], &list[first]);
    if (before(&list[end - 1], &list[first]))
        swap(&list[end - 1], &list[first]);
    if (before(&list[middle], &list[end - 1]))
        swap(&list[middle], &list[end - 1]);
    for (int32_t i = first; i < end - 1; i++) {
        if (before(&list[i], &list[end - 1]))
            swap(&list[i], &list[target++]);
    }
    swap(&list[target], &list[end - 1]);
    return target;
}

/* Moves the `count` likeliest of a list to its front (in any order), the least likely of them
 * last. */
static void select_count(struct cpu_candidate *list, int32_t list_count, int32_t count)
{
    int32_t first = 0, end = list_count, wanted = count - 1;

    while (end - first >= 3) {
        int32_t at = partition(list, first, end);
        if (at == wanted)
            return;
        if (at > wanted)
            end = at;
        else
            first = at + 1;
    }
    if (end - first == 2 && before(&list[first + 1], &list[first]))
        swap(&list[first], &list[first + 1]);
}

/* The last token, likeliest first, that has less than `mass` before it. */
static struct cpu_candidate select_mass(struct cpu_candidate *list, int32_t list_count, double mass)
{
    int32_t first = 0, end = list_count;
    double ahead = 0.0; /* the mass before those of [first, end), below `mass` */

    while (end - first >= 3) {
        int32_t at = partition(list, first, end);
        double left = ahead;
        for (int32_t i = first; i < at; i++)
            left += (double)list[i].weight;
        if (at > first && left >= mass) {
            end = at;
            continue;
        }
        ahead = left + (double)list[at].weight;
        if (ahead >= mass || at + 1 == end)
            return list[at];
        first = at + 1;
    }
    if (end - first == 1)
        return list[first];
    if (before(&list[first + 1], &list[first]))
        swap(&list[first], &list[first + 1]);
    return ahead + (double)list[first].weight < mass ? list[first + 1] : list[first];
}

/* The count-th largest chunk maximum: a floor that at least `count` logits reach. */
static float floor_of_count(const struct device *device, struct cpu_pick *pick,
                            const struct chunk_sum *sum, int32_t count)
{
    if (count > device->chunk_count)
        return -FLT_MAX;
    for (int32_t i = 0; i < device->chunk_count; i++)
        pick->order[i] = (struct cpu_candidate){.value = sum[i].max, .token = i};
    select_count(pick->order, device->chunk_count, count);
    return fmaxf(pick->order[count - 1].value, -FLT_MAX);
}

/* Candidates that reach `floor`, by ascending id; how many. */
static int32_t collect(const struct device *device, struct cpu_pick *pick, const float *logits,
                       const struct chunk_sum *sum, float floor)
{
    int32_t count = 0;

    for (int32_t i = 0; i < device->chunk_count; i++) {
        int32_t first = i * SAMPLE_CHUNK;
        if (sum[i].max >= floor)
            count += device->vector->chunk_collect(logits + first, chunk_length(device, i), floor,
                                                   first, pick->value + count, pick->token + count);
    }
    return count;
}

static double weigh(const struct device *device, struct cpu_pick *pick, int32_t count, float max,
                    float factor)
{
    double mass = 0.0;

    device->vector->chunk_weights(pick->weight, pick->value, count, max, factor);
    for (int32_t i = 0; i < count; i++)
        mass += (double)pick->weight[i];
    return mass;
}

static void list_candidates(struct cpu_pick *pick, int32_t count)
{
    for (int32_t i = 0; i < count; i++)
        pick->order[i] = (struct cpu_candidate){pick->value[i], pick->token[i], pick->weight[i]};
}

/* The likely ones first, so that a list that holds enough of the mass is short; then what must
 * hold it but for rounding; then all. */
static int32_t collect_mass(const struct device *device, struct cpu_pick *pick, const float *logits,
                            const struct chunk_sum *sum, const struct sampling *sampling,
                            double total)
{
    float max = cpu_pick_max(device, sum), temperature = sampling->temperature;
    double rest = (1.0 - (double)sampling->top_p) * total / device->options.vocab_count;
    const float floor[] = {max - 8.0f * temperature, max + temperature * ((float)log(rest) - 0.01f),
                           -FLT_MAX};
    int32_t count = 0;

    for (int32_t i = 0; i < 3; i++) {
        count = collect(device, pick, logits, sum, fmaxf(floor[i], -FLT_MAX));
        double mass = weigh(device, pick, count, max, 1.0f / temperature);
        if (mass >= (double)sampling->top_p * total)
            break;
    }
    return count;
}

/* Candidates of a draw with top_k, min_p or top_p, and how many of them, by rank, are kept. */
static struct kept keep(const struct device *device, struct cpu_pick *pick, const float *logits,
                        const struct chunk_sum *sum, const struct sampling *sampling)
{
    int32_t limit = sampling_keep_count(sampling, device->options.vocab_count);
    float max = cpu_pick_max(device, sum), factor = 1.0f / sampling->temperature;
    struct kept kept = {0, {.value = -INFINITY, .token = INT32_MAX}};
    int32_t listed;
    double total;

    if (cpu_pick_needs_mass(device, sampling)) {
        total = cpu_pick_mass(device, sum, max, factor, true);
        kept.count = collect_mass(device, pick, logits, sum, sampling, total);
        listed = kept.count;
        list_candidates(pick, listed);
    } else {
        float floor = floor_of_count(device, pick, sum, limit);
        floor = fmaxf(floor, sampling_floor(sampling, max));
        kept.count = collect(device, pick, logits, sum, floor);
        total = weigh(device, pick, kept.count, max, factor);
        listed = kept.count < limit ? kept.count : limit;
        list_candidates(pick, kept.count);
        if (listed < kept.count) {
            select_count(pick->order, kept.count, listed);
            kept.cut = pick->order[listed - 1];
            total = 0.0;
            for (int32_t i = 0; i < listed; i++)
                total += (double)pick->order[i].weight;
        }
    }
    if (sampling->top_p < 1.0f)
        kept.cut = select_mass(pick->order, listed, (double)sampling->top_p * total);
    return kept;
}

static bool is_kept(const struct kept *kept, const struct cpu_pick *pick, int32_t i)
{
    return !sampling_before(kept->cut.value, kept->cut.token, pick->value[i], pick->token[i]);
}

static int32_t draw_kept(const struct cpu_pick *pick, const struct kept *kept, double u)
{
    double total = 0.0, sum = 0.0;
    int32_t final = pick->token[0];

    for (int32_t i = 0; i < kept->count; i++)
        total += is_kept(kept, pick, i) ? (double)pick->weight[i] : 0.0;
    for (int32_t i = 0; i < kept->count; i++) {
        if (!is_kept(kept, pick, i) || !(pick->weight[i] > 0.0f))
            continue;
        final = pick->token[i];
        sum += (double)pick->weight[i];
        if (sum > u * total)
            break;
    }
    return final;
}

/* Nothing is cut off: the chunk by the chunks' masses, then within it. */
static int32_t draw_whole(const struct device *device, struct cpu_pick *pick, const float *logits,
                          const struct chunk_sum *sum, float factor, double u)
{
    float max = cpu_pick_max(device, sum);
    double goal = u * cpu_pick_mass(device, sum, max, factor, true);
    double passed = 0.0, reached = 0.0, share = 0.0;
    int32_t chunk = -1;

    for (int32_t i = 0; i < device->chunk_count && !(passed + reached > goal); i++) {
        double part = exp((double)(sum[i].max - max) * (double)factor);
        double mass = part * (double)sum[i].tempered;
        if (!(mass > 0.0))
            continue;
        passed += reached;
        reached = mass;
        share = part;
        chunk = i;
    }
    int32_t first = chunk * SAMPLE_CHUNK, count = chunk_length(device, chunk), final = 0;
    device->vector->chunk_weights(pick->weight, logits + first, count, sum[chunk].max, factor);
    for (int32_t i = 0; i < count && !(passed > goal); i++) {
        if (!(pick->weight[i] > 0.0f))
            continue;
        final = i;
        passed += (double)pick->weight[i] * share;
    }
    return first + final;
}

static int32_t pick_largest(const struct device *device, const float *logits,
                            const struct chunk_sum *sum, float max)
{
    int32_t chunk = 0;

    while (sum[chunk].max != max)
        chunk++;
    int32_t token = chunk * SAMPLE_CHUNK;
    while (logits[token] != max)
        token++;
    assert(token < device->options.vocab_count);
    return token;
}

bool cpu_pick_needs_mass(const struct device *device, const struct sampling *sampling)
{
    int32_t V = device->options.vocab_count;

    return !sampling_greedy(sampling) && !(sampling->min_p > 0.0f) &&
           sampling_keep_count(sampling, V) == V;
}

int32_t cpu_pick_token(const struct device *device, struct cpu_pick *pick, const float *logits,
                       const struct chunk_sum *sum, const struct sampling *sampling,
                       int32_t output_index)
{
    float max = cpu_pick_max(device, sum);

    if (!(max > -INFINITY))
        return 0;
    if (sampling_greedy(sampling))
        return pick_largest(device, logits, sum, max);
    double u = sampling_uniform(sampling->seed, output_index);
    if (cpu_pick_needs_mass(device, sampling) && !(sampling->top_p < 1.0f))
        return draw_whole(device, pick, logits, sum, 1.0f / sampling->temperature, u);
    struct kept kept = keep(device, pick, logits, sum, sampling);
    return draw_kept(pick, &kept, u);
}

static int likeliest_first(const void *left, const void *right)
{
    const struct cpu_candidate *a = left, *b = right;
    return before(a, b) ? -1 : before(b, a);
}

int32_t cpu_pick_top(const struct device *device, struct cpu_pick *pick, const float *logits,
                     const struct chunk_sum *sum, int32_t count, int32_t *token, float *value)
{
    float floor = floor_of_count(device, pick, sum, count);
    int32_t found = collect(device, pick, logits, sum, floor);

    list_candidates(pick, found);
    if (found > count) {
        select_count(pick->order, found, count);
        found = count;
    }
    qsort(pick->order, (size_t)found, sizeof(*pick->order), likeliest_first);
    for (int32_t i = 0; i < found; i++) {
        token[i] = pick->order[i].token;
        value[i] = pick->order[i].value;
    }
    return found;
}
