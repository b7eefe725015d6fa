/* A device whose K and V are 64-bit values.
 *
 * The value at a position is a hash of the value before it, as read through the slot's block
 * table, and of the token: as real K and V depend on all that came before. A wrong block anywhere
 * in a sequence's past therefore gives wrong values from there on. The device knows only what a
 * plan tells it: block tables by slot, kept from table changes, and each slot's last draw.
 */
#ifndef TESTS_SIM_SHADOW_H
#define TESTS_SIM_SHADOW_H

#include "scheduler/scheduler.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

struct shadow {
    int32_t block_count, block_tokens, group_count, slot_max, block_max;
    uint64_t *value;     /* [block_count, block_tokens] */
    int32_t *table;      /* [slot_max, group_count, block_max] */
    int32_t *slot_seq;   /* [slot_max] by the last start */
    int32_t *slot_count; /* [slot_max] tokens it was told or drew */
    int32_t *last_draw;  /* [slot_max] */
};

static inline uint64_t shadow_mix(uint64_t a, uint64_t b)
{
    uint64_t x = (a ^ (b + 0x9e3779b97f4a7c15u)) * 0xbf58476d1ce4e5b9u;

    x ^= x >> 29;
    x *= 0x94d049bb133111ebu;
    return x ^ (x >> 32);
}

/* What a position holds: of one group, after `before`. */
static inline uint64_t shadow_next(uint64_t before, int32_t token)
{
    return shadow_mix(before, (uint64_t)(uint32_t)token);
}

static inline void shadow_init(struct shadow *d, const struct scheduler_config *config)
{
    memset(d, 0, sizeof(*d));
    d->block_count = config->kv.block_count;
    d->block_tokens = config->kv.block_tokens;
    d->group_count = config->kv.group_count;
    d->slot_max = config->slot_max;
    d->block_max = (config->context_max - 1) / d->block_tokens + 1;
    d->value = calloc((size_t)d->block_count * (size_t)d->block_tokens, sizeof(*d->value));
    d->table =
        calloc((size_t)(d->slot_max * d->group_count) * (size_t)d->block_max, sizeof(*d->table));
    d->slot_seq = calloc((size_t)d->slot_max, sizeof(*d->slot_seq));
    d->slot_count = calloc((size_t)d->slot_max, sizeof(*d->slot_count));
    d->last_draw = calloc((size_t)d->slot_max, sizeof(*d->last_draw));
    if (d->value == NULL || d->table == NULL || d->slot_seq == NULL || d->slot_count == NULL ||
        d->last_draw == NULL)
        exit(2);
    memset(d->table, 0xff,
           (size_t)(d->slot_max * d->group_count) * (size_t)d->block_max * sizeof(*d->table));
    memset(d->slot_seq, 0xff, (size_t)d->slot_max * sizeof(*d->slot_seq));
}

static inline void shadow_release(struct shadow *d)
{
    free(d->value);
    free(d->table);
    free(d->slot_seq);
    free(d->slot_count);
    free(d->last_draw);
    memset(d, 0, sizeof(*d));
}

static inline int32_t *shadow_list(const struct shadow *d, int32_t slot, int32_t group)
{
    return d->table + ((int64_t)slot * d->group_count + group) * d->block_max;
}

static inline uint64_t *shadow_at(const struct shadow *d, const int32_t *list, int32_t position)
{
    int64_t block = list[position / d->block_tokens];

    return d->value + block * d->block_tokens + position % d->block_tokens;
}

#endif
