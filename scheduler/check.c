/* The invariants of docs/scheduler.md, checked one by one. Costs a walk over all sequences and
 * blocks: for tests and simulation. */
#include "scheduler/state.h"

#include <assert.h>
#include <string.h>

static int32_t check_list(const struct scheduler *s, const struct seq_list *list,
                          enum seq_state state, enum seq_state other)
{
    int32_t count = 0, prev = SEQ_NONE;

    for (int32_t i = list->first; i != SEQ_NONE; i = s->pool.seq[i].next) {
        assert(s->pool.seq[i].state == state || s->pool.seq[i].state == other);
        assert(s->pool.seq[i].prev == prev);
        prev = i;
        count++;
        assert(count <= s->pool.seq_max);
    }
    assert(list->last == prev);
    assert(list->count == count);
    return count;
}

/* (1): every sequence is in the list of its state, and in no other. */
static void check_lists(const struct scheduler *s)
{
    const struct seq_pool *pool = &s->pool;
    int32_t sibling_count = 0;
    int32_t listed = check_list(s, &pool->free, SEQ_FREE, SEQ_FREE) +
                     check_list(s, &pool->waiting, SEQ_WAITING, SEQ_WAITING) +
                     check_list(s, &pool->running, SEQ_RUNNING, SEQ_RUNNING) +
                     check_list(s, &pool->leaving, SEQ_LEAVING, SEQ_ENDING) +
                     check_list(s, &pool->done, SEQ_DONE, SEQ_DONE);

    for (int32_t i = 0; i < pool->seq_max; i++)
        sibling_count += pool->seq[i].state == SEQ_SIBLING;
    assert(sibling_count == pool->sibling_count);
    assert(listed + sibling_count == pool->seq_max);
    for (int32_t i = pool->running.first; i != SEQ_NONE && i != pool->running.last;
         i = pool->seq[i].next)
        assert(order_before(pool, i, pool->seq[i].next));
    for (int32_t i = pool->waiting.first; i != SEQ_NONE && i != pool->waiting.last;
         i = pool->seq[i].next)
        assert(order_before(pool, i, pool->seq[i].next));
}

/* (2): slots are free or held by exactly one sequence. */
static void check_slots(const struct scheduler *s)
{
    int32_t held = 0;

    for (int32_t i = 0; i < s->pool.seq_max; i++) {
        const struct seq *q = &s->pool.seq[i];
        assert(seq_holds_slot(q) == (q->slot != SEQ_NONE));
        held += q->slot != SEQ_NONE;
        if (q->slot != SEQ_NONE)
            assert(q->table.block[0] ==
                   s->slot_block + (int64_t)q->slot * s->block_max * s->config.kv.group_count);
    }
    assert(held + s->slot_free_count == s->config.slot_max);
    assert(held == s->pool.running.count + s->pool.leaving.count);
}

/* kvcache.md (10): what is neither published nor forked no other table has. */
static void check_own(const struct scheduler *s, const struct kv_table *table)
{
    int32_t shared =
        table->published_count > table->forked_count ? table->published_count : table->forked_count;

    for (int32_t g = 0; g < s->config.kv.group_count; g++) {
        for (int32_t b = shared; b < table->block_count; b++)
            assert(table->block[g][b] < 0 || s->holder_count[table->block[g][b]] == 1);
    }
}

/* (3): the tables of sequences that hold a slot are all that pins a block. */
static void check_blocks(const struct scheduler *s)
{
    memset(s->holder_count, 0, sizeof(*s->holder_count) * (size_t)s->config.kv.block_count);
    for (int32_t i = 0; i < s->pool.seq_max; i++) {
        const struct seq *q = &s->pool.seq[i];
        if (q->slot == SEQ_NONE)
            continue;
        assert(q->table.retired == (q->state != SEQ_RUNNING));
        for (int32_t g = 0; g < s->config.kv.group_count; g++) {
            for (int32_t b = 0; b < q->table.block_count; b++)
                s->holder_count[q->table.block[g][b]]++;
        }
    }
    for (int32_t b = 0; b < s->config.kv.block_count; b++)
        assert(s->holder_count[b] == kvcache_holders(s->kv, b));
    for (int32_t i = 0; i < s->pool.seq_max; i++) {
        if (s->pool.seq[i].slot != SEQ_NONE)
            check_own(s, &s->pool.seq[i].table);
    }
}

/* (17): what running sequences will take of the cache's blocks without asking. */
static void check_reserved(const struct scheduler *s)
{
    int32_t block_tokens = s->config.kv.block_tokens;
    int32_t sum = 0;

    for (int32_t i = 0; i < s->pool.seq_max; i++) {
        const struct seq *q = &s->pool.seq[i];
        if (q->state == SEQ_FREE)
            continue;
        int32_t want = (q->prefill_count + block_tokens - 1) / block_tokens;
        int32_t left = q->state == SEQ_RUNNING ? want - q->table.block_count : 0;
        assert(q->reserved_count == (left > 0 ? left * s->config.kv.group_count : 0));
        sum += q->reserved_count;
    }
    assert(sum == s->reserved_count);
    assert(sum <= kvcache_available(s->kv));
}

/* (4), (5), (7): counts of one sequence. */
static void check_seq(const struct scheduler *s, const struct seq *q)
{
    assert(q->token_count >= q->prompt_count);
    assert(seq_output_count(q) <= q->output_max);
    assert(q->named_step <= s->step_planned);
    assert(q->written_count <= q->planned_count);
    assert(q->score_next <= q->score_planned);
    if (q->state == SEQ_RUNNING) {
        assert(q->planned_count <= q->table.block_count * s->config.kv.block_tokens);
        assert(q->table.published_count * s->config.kv.block_tokens <= q->written_count);
        assert(q->planned_count <= seq_target(q));
        assert(seq_output_count(q) < q->output_max || q->output_max == 0);
        assert(q->draw_count <= s->step_planned - s->step_committed);
        if (q->named_step <= s->step_committed)
            assert(q->written_count == q->planned_count && q->draw_count == 0);
    }
    if (q->state == SEQ_LEAVING || q->state == SEQ_ENDING)
        assert(scheduler_named(s, q));
    if (q->state == SEQ_WAITING || q->state == SEQ_SIBLING)
        assert(q->planned_count == 0 && q->draw_count == 0);
}

/* (8): a sibling waits only while its group has a leader that computes the prompt. */
static void check_sibling(const struct scheduler *s, const struct seq *q)
{
    int32_t leader = s->pool.group[q->group].leader;

    assert(leader != SEQ_NONE);
    const struct seq *l = &s->pool.seq[leader];
    assert(l->group == q->group);
    assert(l->state == SEQ_WAITING || l->state == SEQ_RUNNING || l->state == SEQ_LEAVING);
}

void scheduler_check(const struct scheduler *s)
{
    assert(s->step_planned - s->step_committed >= 0);
    assert(s->step_planned - s->step_committed <= s->config.plan_depth);
    check_lists(s);
    check_slots(s);
    check_blocks(s);
    check_reserved(s);
    for (int32_t i = 0; i < s->pool.seq_max; i++) {
        if (s->pool.seq[i].state == SEQ_FREE)
            continue;
        check_seq(s, &s->pool.seq[i]);
        if (s->pool.seq[i].state == SEQ_SIBLING)
            check_sibling(s, &s->pool.seq[i]);
    }
    kvcache_check(s->kv);
}
