/* Choosing among the logits of one sample, exactly and without sorting them.
 *
 * Chunk maxima bound what can be among the likeliest: the k-th largest of them is a floor that at
 * least k logits reach, so what reaches it holds the k likeliest. For a mass, tokens that are less
 * likely than (1 - top_p) / V of all together have less than 1 - top_p of it. What reaches the
 * floor is collected by ascending id, cut by a histogram and quickselect in the bin of the cut, and
 * drawn from by ascending id. */
#include "kernels/cpu/device.h"
#include "kernels/sampling_math.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

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
    for (int32_t i = 0; i < device->chunk_count; i++)
        pick->order[i] = (struct cpu_candidate){.value = sum[i].max, .token = i};
    select_count(pick->order, device->chunk_count, count);
    return pick->order[count - 1].value;
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

/* Bins of equal width from the largest value down to the least. */
struct bins {
    float most, factor;
};

static struct bins bins_of(const struct cpu_pick *pick, int32_t count)
{
    float most = pick->value[0], least = most;

    for (int32_t i = 1; i < count; i++) {
        most = pick->value[i] > most ? pick->value[i] : most;
        least = pick->value[i] < least ? pick->value[i] : least;
    }
    double width = ((double)most - (double)least) / (CPU_PICK_BINS - 1);
    return (struct bins){most, width > (double)FLT_MIN ? (float)(1.0 / width) : 0.0f};
}

static int32_t bin_of(struct bins bins, float value)
{
    float place = (bins.most - value) * bins.factor;

    return place < (float)(CPU_PICK_BINS - 1) ? (int32_t)place : CPU_PICK_BINS - 1;
}

/* Copies the candidates of one bin (all where bins is NULL) to pick->order; how many. */
static int32_t list(struct cpu_pick *pick, int32_t count, const struct bins *bins, int32_t bin)
{
    int32_t listed = 0;

    for (int32_t i = 0; i < count; i++) {
        if (bins == NULL || bin_of(*bins, pick->value[i]) == bin)
            pick->order[listed++] =
                (struct cpu_candidate){pick->value[i], pick->token[i], pick->weight[i]};
    }
    return listed;
}

/* The last of the `wanted` likeliest of more candidates. */
static struct cpu_candidate cut_count(struct cpu_pick *pick, int32_t count, int32_t wanted)
{
    struct bins bins = bins_of(pick, count);
    int32_t bin = 0;

    memset(pick->bin_count, 0, sizeof(pick->bin_count));
    for (int32_t i = 0; i < count; i++)
        pick->bin_count[bin_of(bins, pick->value[i])]++;
    for (; pick->bin_count[bin] < wanted; bin++)
        wanted -= pick->bin_count[bin];
    int32_t listed = list(pick, count, &bins, bin);
    select_count(pick->order, listed, wanted);
    return pick->order[wanted - 1];
}

/* The last candidate, likeliest first, that has less than `mass` before it. */
static struct cpu_candidate cut_mass(struct cpu_pick *pick, int32_t count, double mass)
{
    struct bins bins = bins_of(pick, count);
    int32_t final = 0, bin = 0;

    memset(pick->bin_mass, 0, sizeof(pick->bin_mass));
    for (int32_t i = 0; i < count; i++)
        pick->bin_mass[bin_of(bins, pick->value[i])] += (double)pick->weight[i];
    for (int32_t i = 0; i < CPU_PICK_BINS; i++)
        final = pick->bin_mass[i] > 0.0 ? i : final;
    for (; bin < final && pick->bin_mass[bin] < mass; bin++)
        mass -= pick->bin_mass[bin];
    int32_t listed = list(pick, count, &bins, bin);
    return select_mass(pick->order, listed, mass);
}

/* Leaves the candidates up to `cut`, in their order; how many. */
static int32_t drop_behind(struct cpu_pick *pick, int32_t count, struct cpu_candidate cut)
{
    int32_t kept = 0;

    for (int32_t i = 0; i < count; i++) {
        if (sampling_before(cut.value, cut.token, pick->value[i], pick->token[i]))
            continue;
        pick->value[kept] = pick->value[i];
        pick->weight[kept] = pick->weight[i];
        pick->token[kept++] = pick->token[i];
    }
    return kept;
}

/* Candidates of which `wanted` or more reach `floor_least`, or all that do: lower and lower floors
 * where the chunks are fewer than what is wanted. */
static int32_t collect_count(const struct device *device, struct cpu_pick *pick,
                             const float *logits, const struct chunk_sum *sum, int32_t wanted,
                             float floor_least)
{
    float max = cpu_pick_max(device, sum), least = fmaxf(floor_least, -FLT_MAX);

    if (wanted <= device->chunk_count)
        return collect(device, pick, logits, sum,
                       fmaxf(least, floor_of_count(device, pick, sum, wanted)));
    for (float drop = 4.0f; drop <= 32.0f && max - drop > least; drop += 4.0f) {
        int32_t count = collect(device, pick, logits, sum, max - drop);
        if (count >= wanted)
            return count;
    }
    return collect(device, pick, logits, sum, least);
}

/* The likely ones first, so that a list that holds enough of the mass is short; then what must
 * hold it but for rounding; then all. */
static int32_t collect_mass(const struct device *device, struct cpu_pick *pick, const float *logits,
                            const struct chunk_sum *sum, const struct sampling *sampling,
                            double total)
{
    float max = cpu_pick_max(device, sum), temperature = sampling->temperature;
    double rest = (1.0 - (double)sampling->top_p) * total / device->options.vocab_count;
    float enough = max + temperature * ((float)log(rest) - 0.01f);
    const float floor[] = {max - 7.0f * temperature, max - 10.0f * temperature,
                           max - 12.0f * temperature, enough, -FLT_MAX};
    int32_t count = 0;

    for (int32_t i = 0; i < 5; i++) {
        if (i < 3 && floor[i] <= enough)
            continue;
        count = collect(device, pick, logits, sum, fmaxf(floor[i], -FLT_MAX));
        double mass = weigh(device, pick, count, max, 1.0f / temperature);
        if (mass >= (double)sampling->top_p * total)
            break;
    }
    return count;
}

/* Candidates that top_k, min_p and top_p keep, with their weights, by ascending id. */
static int32_t keep(const struct device *device, struct cpu_pick *pick, const float *logits,
                    const struct chunk_sum *sum, const struct sampling *sampling)
{
    int32_t limit = sampling_keep_count(sampling, device->options.vocab_count), count;
    float max = cpu_pick_max(device, sum), factor = 1.0f / sampling->temperature;
    double total;

    if (cpu_pick_needs_mass(device, sampling)) {
        total = cpu_pick_mass(device, sum, max, factor, true);
        count = collect_mass(device, pick, logits, sum, sampling, total);
    } else {
        count = collect_count(device, pick, logits, sum, limit, sampling_floor(sampling, max));
        if (count > limit)
            count = drop_behind(pick, count, cut_count(pick, count, limit));
        total = weigh(device, pick, count, max, factor);
    }
    if (sampling->top_p < 1.0f)
        count = drop_behind(pick, count, cut_mass(pick, count, (double)sampling->top_p * total));
    return count;
}

static int32_t draw_kept(const struct cpu_pick *pick, int32_t count, double u)
{
    double total = 0.0, sum = 0.0;
    int32_t final = pick->token[0];

    for (int32_t i = 0; i < count; i++)
        total += (double)pick->weight[i];
    for (int32_t i = 0; i < count && !(sum > u * total); i++) {
        if (!(pick->weight[i] > 0.0f))
            continue;
        final = pick->token[i];
        sum += (double)pick->weight[i];
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
    return draw_kept(pick, keep(device, pick, logits, sum, sampling), u);
}

static int likeliest_first(const void *left, const void *right)
{
    const struct cpu_candidate *a = left, *b = right;
    return before(a, b) ? -1 : before(b, a);
}

int32_t cpu_pick_top(const struct device *device, struct cpu_pick *pick, const float *logits,
                     const struct chunk_sum *sum, int32_t count, int32_t *token, float *value)
{
    int32_t found = collect_count(device, pick, logits, sum, count, -INFINITY);

    if (found > count)
        found = drop_behind(pick, found, cut_count(pick, found, count));
    list(pick, found, NULL, 0);
    qsort(pick->order, (size_t)found, sizeof(*pick->order), likeliest_first);
    for (int32_t i = 0; i < found; i++) {
        token[i] = pick->order[i].token;
        value[i] = pick->order[i].value;
    }
    return found;
}
