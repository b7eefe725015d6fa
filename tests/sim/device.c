/* A device whose K and V are 64-bit values.
 *
 * The value at a position is a hash of the value before it, as read through the slot's block
 * table, and of the token: as real K and V depend on all that came before. A wrong block anywhere
 * in a sequence's past therefore gives wrong values from there on. The device knows only what a
 * plan tells it: block tables by slot, kept from table changes, and each slot's last draw.
 */
#include "tests/sim/world.h"

#include <stdlib.h>
#include <string.h>

static struct {
    int32_t block_tokens, block_max;
    uint64_t *value;     /* [block_count, block_tokens] */
    int32_t *table;      /* [slot_max, group_count, block_max] */
    int32_t *slot_seq;   /* [slot_max] by the last start */
    int32_t *slot_count; /* [slot_max] tokens it was told or drew */
    int32_t *last_draw;  /* [slot_max] */
} device;

void device_init(void)
{
    size_t slot_max = (size_t)config.slot_max;

    device.block_tokens = config.kv.block_tokens;
    device.block_max = (config.context_max - 1) / device.block_tokens + 1;
    size_t table_count = slot_max * (size_t)config.kv.group_count * (size_t)device.block_max;
    device.value =
        calloc((size_t)config.kv.block_count * (size_t)device.block_tokens, sizeof(*device.value));
    device.table = malloc(table_count * sizeof(*device.table));
    device.slot_seq = malloc(slot_max * sizeof(*device.slot_seq));
    device.slot_count = calloc(slot_max, sizeof(*device.slot_count));
    device.last_draw = calloc(slot_max, sizeof(*device.last_draw));
    if (device.value == NULL || device.table == NULL || device.slot_seq == NULL ||
        device.slot_count == NULL || device.last_draw == NULL)
        exit(2);
    memset(device.table, 0xff, table_count * sizeof(*device.table));
    memset(device.slot_seq, 0xff, slot_max * sizeof(*device.slot_seq));
}

void device_release(void)
{
    free(device.value);
    free(device.table);
    free(device.slot_seq);
    free(device.slot_count);
    free(device.last_draw);
    memset(&device, 0, sizeof(device));
}

static int32_t *list_of(int32_t slot, int32_t group)
{
    return device.table + ((int64_t)slot * config.kv.group_count + group) * device.block_max;
}

static uint64_t *value_at(const int32_t *list, int32_t position)
{
    int64_t block = list[position / device.block_tokens];

    CHECK(block >= 0);
    return device.value + block * device.block_tokens + position % device.block_tokens;
}

uint64_t plan_digest(const struct plan *plan)
{
    uint64_t h = mix((uint64_t)plan->step, (uint64_t)plan->token_count);

    for (int32_t i = 0; i < plan->start_count; i++) {
        const struct plan_start *start = &plan->start[i];
        h = mix(h, (uint64_t)(start->seq * 64 + start->slot));
        for (int32_t k = 0; k < start->token_count; k++)
            h = mix(h, (uint64_t)start->token[k]);
    }
    for (int32_t i = 0; i < plan->change_count; i++) {
        const struct table_change *c = &plan->change[i];
        h = mix(h, (uint64_t)((c->slot * 2 + c->group) * 256 + c->index));
        h = mix(h, (uint64_t)c->block);
    }
    for (int32_t i = 0; i < plan->move_count; i++)
        h = mix(h, (uint64_t)(plan->move[i].source * 4096 + plan->move[i].target));
    for (int32_t i = 0; i < plan->row_count; i++) {
        const struct plan_row *row = &plan->row[i];
        h = mix(h, (uint64_t)(row->slot * 512 + row->position) * 64 + (uint64_t)row->seq);
        for (int32_t k = 0; row->token != NULL && k < row->token_count; k++)
            h = mix(h, (uint64_t)row->token[k]);
    }
    for (int32_t i = 0; i < plan->sample_count; i++) {
        const struct plan_sample *sample = &plan->sample[i];
        h = mix(h, (uint64_t)(sample->seq * 64 + sample->slot));
        h = mix(h, (uint64_t)(sample->row * 4096 + sample->index * 8 + sample->kind));
        h = mix(h, (uint64_t)(sample->output_index + sample->token_index * 1024));
    }
    return h;
}

static void run_starts(const struct plan *plan)
{
    for (int32_t i = 0; i < plan->start_count; i++) {
        const struct plan_start *start = &plan->start[i];
        struct life *life = &lives[start->seq];
        CHECK(start->slot >= 0 && start->slot < config.slot_max);
        CHECK(start->prompt_count == life->prompt_count);
        CHECK(start->token_count >= start->prompt_count);
        CHECK(life->truth_count >= start->token_count);
        CHECK(memcmp(start->token, life->token,
                     sizeof(*start->token) * (size_t)start->token_count) == 0);
        device.slot_seq[start->slot] = start->seq;
        device.slot_count[start->slot] = start->token_count;
    }
    for (int32_t i = 0; i < plan->change_count; i++) {
        const struct table_change *change = &plan->change[i];
        CHECK(change->index >= 0 && change->index < device.block_max);
        CHECK(change->block >= 0 && change->block < config.kv.block_count);
        list_of(change->slot, change->group)[change->index] = -1;
    }
    for (int32_t i = 0; i < plan->change_count; i++) {
        const struct table_change *change = &plan->change[i];
        int32_t *entry = list_of(change->slot, change->group) + change->index;
        CHECK(*entry == -1); /* a device applies them in any order */
        *entry = change->block;
    }
}

static void run_moves(const struct plan *plan)
{
    size_t bytes = sizeof(*device.value) * (size_t)device.block_tokens;

    for (int32_t i = 0; i < plan->move_count; i++) {
        const struct kv_move *move = &plan->move[i];
        CHECK(move->kind == KV_COPY);
        for (int32_t k = 0; k < plan->move_count; k++)
            CHECK(plan->move[k].source != move->target &&
                  (k == i || plan->move[k].target != move->target));
        memcpy(device.value + (int64_t)move->target * device.block_tokens,
               device.value + (int64_t)move->source * device.block_tokens, bytes);
    }
}

/* Everything that the row reads or wrote is what it should be. */
static void check_row_values(const struct flight *flight, int32_t index)
{
    const struct plan_row *row = &flight->plan->row[index];
    const struct life *life = &lives[row->seq];

    for (int32_t g = 0; g < config.kv.group_count; g++) {
        for (int32_t p = 0; p < row->position + row->token_count; p++)
            CHECK(*value_at(flight->block[index][g], p) == life->value[g][p]);
    }
}

static void run_row(struct flight *flight, int32_t index)
{
    const struct plan_row *row = &flight->plan->row[index];
    struct life *life = &lives[row->seq];

    CHECK(device.slot_seq[row->slot] == row->seq);
    extend_truth(life, row->position + row->token_count);
    for (int32_t g = 0; g < config.kv.group_count; g++) {
        const int32_t *list = list_of(row->slot, g);
        for (int32_t i = 0; i < row->token_count; i++) {
            int32_t p = row->position + i;
            int32_t token = row->token != NULL ? row->token[i] : device.last_draw[row->slot];
            uint64_t before = p == 0 ? root_value(life, g) : *value_at(list, p - 1);
            CHECK(token == life->token[p]);
            *value_at(list, p) = value_next(before, token);
        }
        memcpy(flight->block[index][g], list, sizeof(*list) * (size_t)device.block_max);
    }
}

/* Remembers what copies read, up to where the copy's owner goes on. */
static void note_sources(struct flight *flight)
{
    const struct plan *plan = flight->plan;

    for (int32_t m = 0; m < plan->move_count; m++) {
        int32_t used = 0;
        for (int32_t r = 0; r < plan->row_count; r++) {
            int32_t i = plan->row[r].position / device.block_tokens;
            for (int32_t g = 0; g < config.kv.group_count; g++) {
                if (list_of(plan->row[r].slot, g)[i] == plan->move[m].target)
                    used = plan->row[r].position % device.block_tokens;
            }
        }
        CHECK(used > 0);
        flight->source_count[m] = used;
        memcpy(flight->source_value[m],
               device.value + (int64_t)plan->move[m].source * device.block_tokens,
               sizeof(*device.value) * (size_t)used);
    }
}

static void check_sources(const struct flight *flight)
{
    for (int32_t m = 0; m < flight->plan->move_count; m++)
        CHECK(memcmp(flight->source_value[m],
                     device.value + (int64_t)flight->plan->move[m].source * device.block_tokens,
                     sizeof(*device.value) * (size_t)flight->source_count[m]) == 0);
}

static void run_sample(struct flight *flight, int32_t index)
{
    const struct plan_sample *sample = &flight->plan->sample[index];
    const struct plan_row *row = &flight->plan->row[sample->row];
    struct life *life = &lives[sample->seq];
    int32_t position = row->position + sample->index;

    CHECK(sample->row >= 0 && sample->row < flight->plan->row_count);
    CHECK(sample->index >= 0 && sample->index < row->token_count);
    CHECK(device.slot_seq[sample->slot] == sample->seq);
    CHECK(lives[row->seq].job == life->job);
    if (sample->kind == PLAN_SCORE) {
        CHECK(sample->token_index == position + 1 && sample->seq == row->seq);
        CHECK(life->score_prompt && sample->token_index < life->prompt_count);
        CHECK(sample->token == life->token[sample->token_index]);
        return;
    }
    CHECK(position + 1 == life->prompt_count + sample->output_index);
    CHECK(row->seq == sample->seq || sample->output_index == 0);
    CHECK(device.slot_count[sample->slot] == position + 1);
    extend_truth(life, position + 2);
    CHECK(*value_at(list_of(row->slot, 0), position) == life->value[0][position]);
    flight->draw[index] = life->token[position + 1];
    device.last_draw[sample->slot] = flight->draw[index];
    device.slot_count[sample->slot]++;
}

void check_step(const struct flight *flight)
{
    for (int32_t i = 0; i < flight->plan->row_count; i++)
        check_row_values(flight, i);
    check_sources(flight);
}

void run_step(struct flight *flight)
{
    const struct plan *plan = flight->plan;

    if (flight->done)
        return;
    flight->done = true;
    CHECK(plan_digest(plan) == flight->digest);
    run_starts(plan);
    note_sources(flight);
    run_moves(plan);
    for (int32_t i = 0; i < plan->row_count; i++)
        run_row(flight, i);
    check_step(flight);
    for (int32_t i = 0; i < plan->sample_count; i++)
        run_sample(flight, i);
}
