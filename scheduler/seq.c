/* A sequence's states. Every change of `state` goes through `step`, which knows the table that
 * docs/scheduler.md prints; the functions around it keep the lists and groups that belong to a
 * state. Blocks and slots are the scheduler's: it takes them before and gives them back after. */
#include "scheduler/seq.h"

#include "scheduler/order.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

enum seq_state seq_next_state(enum seq_state state, enum seq_event event)
{
    /* 0 is SEQ_FREE, which only SEQ_REAP leads to: elsewhere it means that it cannot happen. */
    static const enum seq_state table[SEQ_STATE_COUNT][SEQ_EVENT_COUNT] = {
        [SEQ_FREE] = {[SEQ_ADD] = SEQ_WAITING, [SEQ_ADD_SIBLING] = SEQ_SIBLING},
        [SEQ_SIBLING] =
            {[SEQ_FORK] = SEQ_RUNNING, [SEQ_DETACH] = SEQ_WAITING, [SEQ_END] = SEQ_DONE},
        [SEQ_WAITING] = {[SEQ_ADMIT] = SEQ_RUNNING, [SEQ_END] = SEQ_DONE},
        [SEQ_RUNNING] = {[SEQ_PREEMPT] = SEQ_LEAVING, [SEQ_END] = SEQ_ENDING},
        [SEQ_LEAVING] = {[SEQ_SETTLE] = SEQ_WAITING, [SEQ_END] = SEQ_ENDING},
        [SEQ_ENDING] = {[SEQ_SETTLE] = SEQ_DONE},
    };
    if (event == SEQ_REAP)
        return state == SEQ_DONE ? SEQ_FREE : SEQ_STATE_COUNT;
    return table[state][event] == SEQ_FREE ? SEQ_STATE_COUNT : table[state][event];
}

static void step(struct seq *q, enum seq_event event)
{
    enum seq_state next = seq_next_state(q->state, event);

    assert(next != SEQ_STATE_COUNT);
    q->state = next;
}

bool seq_pool_create(struct seq_pool *pool, int32_t seq_max, int32_t context_max,
                     bool order_reversed)
{
    memset(pool, 0, sizeof(*pool));
    pool->seq_max = seq_max;
    pool->context_max = context_max;
    pool->order_reversed = order_reversed;
    /* Pages of histories are touched when first used; handles are reused last in, first out, so
     * memory follows the most sequences at once, not the limit. */
    pool->seq = calloc((size_t)seq_max, sizeof(*pool->seq));
    pool->group = calloc((size_t)seq_max, sizeof(*pool->group));
    pool->token = calloc((size_t)seq_max * (size_t)context_max, sizeof(*pool->token));
    if (pool->seq == NULL || pool->group == NULL || pool->token == NULL)
        return false;
    list_init(&pool->free);
    list_init(&pool->waiting);
    list_init(&pool->running);
    list_init(&pool->leaving);
    list_init(&pool->done);
    for (int32_t i = 0; i < seq_max; i++) {
        pool->seq[i].token = pool->token + (int64_t)i * context_max;
        pool->seq[i].slot = SEQ_NONE;
        pool->seq[i].group = SEQ_NONE;
        list_append(pool, &pool->free, i);
        pool->group[i].next_free = i + 1 < seq_max ? i + 1 : SEQ_NONE;
    }
    return true;
}

void seq_pool_destroy(struct seq_pool *pool)
{
    free(pool->seq);
    free(pool->group);
    free(pool->token);
    memset(pool, 0, sizeof(*pool));
}

/* ---- groups ---- */

static int32_t group_take(struct seq_pool *pool)
{
    int32_t index = pool->group_free;

    assert(index != SEQ_NONE);
    pool->group_free = pool->group[index].next_free;
    pool->group[index] =
        (struct group){.member_first = SEQ_NONE, .member_last = SEQ_NONE, .leader = SEQ_NONE};
    return index;
}

static void group_join(struct seq_pool *pool, int32_t index, int32_t seq)
{
    struct group *group = &pool->group[index];
    struct seq *q = &pool->seq[seq];

    q->group = index;
    q->member_prev = group->member_last;
    q->member_next = SEQ_NONE;
    if (group->member_last == SEQ_NONE)
        group->member_first = seq;
    else
        pool->seq[group->member_last].member_next = seq;
    group->member_last = seq;
    group->member_count++;
}

static void group_leave(struct seq_pool *pool, int32_t seq)
{
    struct seq *q = &pool->seq[seq];
    struct group *group = &pool->group[q->group];

    if (q->member_prev == SEQ_NONE)
        group->member_first = q->member_next;
    else
        pool->seq[q->member_prev].member_next = q->member_next;
    if (q->member_next == SEQ_NONE)
        group->member_last = q->member_prev;
    else
        pool->seq[q->member_next].member_prev = q->member_prev;
    group->member_count--;
    if (group->member_count == 0) {
        group->next_free = pool->group_free;
        pool->group_free = q->group;
    }
    q->group = SEQ_NONE;
}

int32_t seq_sibling_first(const struct seq_pool *pool, const struct group *group)
{
    int32_t seq = group->member_first;

    while (seq != SEQ_NONE && pool->seq[seq].state != SEQ_SIBLING)
        seq = pool->seq[seq].member_next;
    return seq;
}

/* ---- states ---- */

static void init(struct seq *q, const struct seq_spec *spec, int64_t root, int64_t arrival)
{
    int32_t *token = q->token;

    *q = (struct seq){
        .state = q->state,
        .prev = SEQ_NONE,
        .next = SEQ_NONE,
        .token = token,
        .prompt_count = spec->token_count,
        .token_count = spec->token_count,
        .output_max = spec->output_max,
        .priority = spec->priority,
        .arrival = arrival,
        .root = root,
        .score_prompt = spec->score_prompt,
        .host_dependent = spec->host_dependent,
        .slot = SEQ_NONE,
        .score_next = spec->score_prompt ? 1 : spec->token_count,
        .score_planned = spec->score_prompt ? 1 : spec->token_count,
        .hold_seq = SEQ_NONE,
        .cached_count = -1,
    };
    memcpy(token, spec->token, sizeof(*token) * (size_t)spec->token_count);
}

void seq_add_group(struct seq_pool *pool, const struct seq_spec *spec, int64_t root, int32_t *seq)
{
    int32_t group = group_take(pool);

    for (int32_t i = 0; i < spec->sibling_count; i++) {
        seq[i] = pool->free.last;
        assert(seq[i] != SEQ_NONE);
        list_remove(pool, &pool->free, seq[i]);
        init(&pool->seq[seq[i]], spec, root, pool->arrival_next++);
        group_join(pool, group, seq[i]);
        if (i > 0) {
            step(&pool->seq[seq[i]], SEQ_ADD_SIBLING);
            pool->sibling_count++;
        }
    }
    step(&pool->seq[seq[0]], SEQ_ADD);
    order_insert(pool, &pool->waiting, seq[0]);
    pool->group[group].leader = seq[0];
}

void seq_admit(struct seq_pool *pool, int32_t seq, int32_t slot)
{
    struct seq *q = &pool->seq[seq];

    step(q, SEQ_ADMIT);
    list_remove(pool, &pool->waiting, seq);
    order_insert(pool, &pool->running, seq);
    assert(q->slot == SEQ_NONE);
    q->slot = slot;
    q->hold_seq = SEQ_NONE;
}

void seq_fork(struct seq_pool *pool, int32_t sibling, int32_t slot)
{
    struct seq *q = &pool->seq[sibling];

    step(q, SEQ_FORK);
    pool->sibling_count--;
    order_insert(pool, &pool->running, sibling);
    q->slot = slot;
}

void seq_detach(struct seq_pool *pool, int32_t sibling)
{
    step(&pool->seq[sibling], SEQ_DETACH);
    pool->sibling_count--;
    order_insert(pool, &pool->waiting, sibling);
}

void seq_preempt(struct seq_pool *pool, int32_t seq)
{
    step(&pool->seq[seq], SEQ_PREEMPT);
    list_remove(pool, &pool->running, seq);
    list_append(pool, &pool->leaving, seq);
}

void seq_finish(struct seq_pool *pool, int32_t seq, enum seq_end_reason reason, int32_t cancel_code)
{
    struct seq *q = &pool->seq[seq];
    enum seq_state before = q->state;

    step(q, SEQ_END);
    q->reason = reason;
    q->cancel_code = cancel_code;
    if (before == SEQ_WAITING)
        list_remove(pool, &pool->waiting, seq);
    if (before == SEQ_RUNNING)
        list_remove(pool, &pool->running, seq);
    if (before == SEQ_SIBLING)
        pool->sibling_count--;
    if (before == SEQ_RUNNING)
        list_append(pool, &pool->leaving, seq);
    if (q->state == SEQ_DONE)
        list_append(pool, &pool->done, seq);
}

void seq_settle(struct seq_pool *pool, int32_t seq)
{
    struct seq *q = &pool->seq[seq];

    step(q, SEQ_SETTLE);
    assert(q->draw_count == 0 || q->state == SEQ_DONE);
    list_remove(pool, &pool->leaving, seq);
    q->slot = SEQ_NONE;
    if (q->state == SEQ_DONE) {
        list_append(pool, &pool->done, seq);
        return;
    }
    q->planned_count = 0;
    q->written_count = 0;
    q->score_planned = q->score_next;
    order_insert(pool, &pool->waiting, seq);
}

void seq_reap(struct seq_pool *pool, int32_t seq)
{
    step(&pool->seq[seq], SEQ_REAP);
    list_remove(pool, &pool->done, seq);
    group_leave(pool, seq);
    list_append(pool, &pool->free, seq);
}

/* ---- questions ---- */

int32_t seq_output_count(const struct seq *q)
{
    return q->token_count - q->prompt_count;
}

bool seq_holds_slot(const struct seq *q)
{
    return q->state == SEQ_RUNNING || q->state == SEQ_LEAVING || q->state == SEQ_ENDING;
}

bool seq_alive(const struct seq *q)
{
    return q->state == SEQ_RUNNING || q->state == SEQ_LEAVING;
}

int32_t seq_target(const struct seq *q)
{
    if (q->output_max == 0)
        return q->prompt_count > 1 ? q->prompt_count - 1 : 1;
    int32_t count = q->token_count + q->draw_count;
    int32_t count_max = q->prompt_count + q->output_max - 1;
    return count < count_max ? count : count_max;
}
