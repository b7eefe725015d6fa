/* Making a plan: decode rows first, then prompts that are under way, then new sequences.
 *
 * A decoding sequence gets its token before any prompt takes the budget. It alone can
 * lack blocks, since those of a prompt were reserved when it was admitted; where there are none,
 * the youngest of the lowest priority gives up its own. All of it costs a walk over the rows.
 */
#include "scheduler/state.h"

#include <assert.h>
#include <stddef.h>

/* ---- parts of a plan ---- */

void plan_add_start(struct scheduler *s, int32_t seq)
{
    struct plan_buffer *buffer = s->making.buffer;
    struct seq *q = &s->pool.seq[seq];

    assert(buffer->plan.start_count < s->config.slot_max);
    buffer->start[buffer->plan.start_count++] = (struct plan_start){
        .seq = seq,
        .slot = q->slot,
        .prompt_count = q->prompt_count,
        .token_count = q->token_count,
        .token = q->token,
    };
    q->named_step = buffer->plan.step;
}

static void add_change(struct scheduler *s, const struct seq *q, int32_t group, int32_t index)
{
    struct plan_buffer *buffer = s->making.buffer;

    buffer->change[buffer->plan.change_count++] = (struct table_change){
        .slot = q->slot, .group = group, .index = index, .block = q->table.block[group][index]};
}

void plan_add_changes(struct scheduler *s, int32_t seq)
{
    const struct seq *q = &s->pool.seq[seq];

    for (int32_t i = 0; i < q->table.block_count; i++) {
        for (int32_t g = 0; g < s->config.kv.group_count; g++)
            add_change(s, q, g, i);
    }
}

/* ---- blocks ---- */

/* Grows the table for token_count tokens more and tells the device which entries are new. */
static void grow(struct scheduler *s, int32_t seq, int32_t token_count)
{
    struct plan_buffer *buffer = s->making.buffer;
    struct seq *q = &s->pool.seq[seq];
    int32_t first = q->planned_count / s->config.kv.block_tokens;
    int32_t block_count = q->table.block_count;
    int32_t move_count = buffer->moves.count;
    int32_t before[KVCACHE_GROUP_MAX] = {0};

    for (int32_t g = 0; g < s->config.kv.group_count; g++)
        before[g] = first < block_count ? q->table.block[g][first] : -1;
    bool grown = kvcache_grow(s->kv, &q->table, q->planned_count, q->planned_count + token_count,
                              &buffer->moves);
    assert(grown);
    /* Only the first block that is written can have been there before, and shared. */
    for (int32_t i = first; i < q->table.block_count; i++) {
        for (int32_t g = 0; g < s->config.kv.group_count; g++) {
            if (i >= block_count || q->table.block[g][i] != before[g])
                add_change(s, q, g, i);
        }
    }
    /* Siblings hold the sources of copies: none may let go before the commit
     * (scheduler.md (14)). */
    if (buffer->moves.count > move_count)
        s->pool.group[q->group].named_step = buffer->plan.step;
}

/* The same for a prompt, from what it has reserved. */
static void grow_reserved(struct scheduler *s, int32_t seq, int32_t token_count)
{
    struct seq *q = &s->pool.seq[seq];
    int32_t move_count = s->making.buffer->moves.count;
    int32_t block_count = q->table.block_count;

    grow(s, seq, token_count);
    int32_t taken = (q->table.block_count - block_count) * s->config.kv.group_count;
    assert(s->making.buffer->moves.count == move_count); /* only whole blocks are matched */
    scheduler_reserve(s, q, q->reserved_count - taken);
}

/* ---- samples and rows ---- */

static void add_sample(struct scheduler *s, struct plan_sample sample)
{
    struct plan *plan = &s->making.buffer->plan;

    assert(s->making.sample_left > 0);
    assert(plan->sample_count < s->config.sample_max);
    s->making.sample_left--;
    s->making.buffer->sample[plan->sample_count++] = sample;
}

static void add_draw(struct scheduler *s, int32_t seq, int32_t row)
{
    struct seq *q = &s->pool.seq[seq];

    add_sample(s, (struct plan_sample){
                      .seq = seq,
                      .slot = q->slot,
                      .row = row,
                      .index = s->making.buffer->row[row].token_count - 1,
                      .kind = PLAN_DRAW,
                      .output_index = seq_output_count(q) + q->draw_count,
                  });
    q->draw_count++;
}

/* Token p of a prompt is scored by the logits of token p - 1. */
static void add_scores(struct scheduler *s, int32_t seq, int32_t row)
{
    struct seq *q = &s->pool.seq[seq];
    const struct plan_row *r = &s->making.buffer->row[row];

    while (q->score_planned < q->prompt_count && q->score_planned <= r->position + r->token_count) {
        int32_t index = q->score_planned - 1 - r->position;
        assert(index >= 0);
        add_sample(s, (struct plan_sample){
                          .seq = seq,
                          .slot = q->slot,
                          .row = row,
                          .index = index,
                          .kind = PLAN_SCORE,
                          .token = q->token[q->score_planned],
                          .token_index = q->score_planned,
                      });
        q->score_planned++;
    }
}

/* The leader's prompt is planned to its end: its siblings share the blocks from here, and the
 * logits of its last token are drawn from once for each. One without a slot or a sample goes its
 * own way; it will find the prompt in the cache. */
static void fork_siblings(struct scheduler *s, int32_t leader, int32_t row)
{
    struct seq *from = &s->pool.seq[leader];
    struct group *group = &s->pool.group[from->group];

    if (group->leader != leader)
        return;
    group->leader = SEQ_NONE;
    for (int32_t i = group->member_first; i != SEQ_NONE; i = s->pool.seq[i].member_next) {
        struct seq *q = &s->pool.seq[i];
        if (q->state != SEQ_SIBLING)
            continue;
        q->score_next = q->prompt_count;
        q->score_planned = q->prompt_count;
        q->cached_count = from->cached_count;
        if (s->slot_free_count == 0 || s->making.sample_left == 0) {
            seq_detach(&s->pool, i);
            continue;
        }
        seq_fork(&s->pool, i, s->slot_free[--s->slot_free_count]);
        q->table = scheduler_table(s, q->slot);
        kvcache_fork(s->kv, &from->table, &q->table);
        q->prefill_count = from->planned_count;
        q->planned_count = from->planned_count;
        q->written_count = from->written_count;
        plan_add_start(s, i);
        plan_add_changes(s, i);
        add_draw(s, i, row);
    }
}

static void add_row(struct scheduler *s, int32_t seq, int32_t token_count)
{
    struct plan_buffer *buffer = s->making.buffer;
    struct plan *plan = &buffer->plan;
    struct seq *q = &s->pool.seq[seq];
    int32_t row = plan->row_count++;

    assert(q->state == SEQ_RUNNING);
    assert(token_count >= 1 && token_count <= s->making.token_left);
    assert(q->planned_count + token_count <= seq_target(q));
    buffer->row[row] = (struct plan_row){
        .seq = seq,
        .slot = q->slot,
        .position = q->planned_count,
        .token_count = token_count,
        .token = q->planned_count < q->token_count ? q->token + q->planned_count : NULL,
    };
    if (q->planned_count < q->prefill_count)
        buffer->prompt_tokens += token_count;
    q->planned_count += token_count;
    q->named_step = plan->step;
    plan->token_count += token_count;
    s->making.token_left -= token_count;
    add_scores(s, seq, row);
    if (q->planned_count == q->token_count + q->draw_count && q->output_max > 0) {
        add_draw(s, seq, row);
        fork_siblings(s, seq, row);
    }
}

/* ---- decode ---- */

/* scheduler.md (15) */
static bool waits_for_host(const struct scheduler *s, const struct seq *q)
{
    return q->host_dependent && q->named_step > s->step_committed;
}

/* All running siblings of `victim` go with it, so that a group does not linger in halves, unless
 * `needy` is one of them. None of them has a row yet: they come after `needy` in order. */
static void preempt_for(struct scheduler *s, int32_t victim, int32_t needy)
{
    int32_t group = s->pool.seq[victim].group;

    if (s->pool.seq[needy].group == group) {
        scheduler_preempt(s, victim);
        return;
    }
    for (int32_t i = s->pool.group[group].member_last; i != SEQ_NONE;) {
        const struct seq *q = &s->pool.seq[i];
        int32_t before = q->member_prev;
        if (q->state == SEQ_RUNNING)
            scheduler_preempt(s, i);
        i = before;
    }
}

/* Blocks for one more token of `seq`: true, or false and it sits out this step. Takes victims
 * only while those already leaving do not free enough (scheduler.md (9)). */
static bool make_room(struct scheduler *s, int32_t seq)
{
    const struct seq *q = &s->pool.seq[seq];
    int32_t written = q->planned_count;

    while (kvcache_grow_need(s->kv, &q->table, written, written + 1) > scheduler_available(s)) {
        s->making.blocks_short = true;
        if (kvcache_grow_need_settled(s->kv, &q->table, written, written + 1) <=
            scheduler_available(s) + kvcache_pending(s->kv))
            return false;
        int32_t victim = order_victim(&s->pool);
        preempt_for(s, victim, seq);
        s->making.needy_preempted = victim == seq;
        if (victim == seq)
            return false;
    }
    return true;
}

/* A block for one more token of `seq`; false: it sits out this step. */
static bool find_place(struct scheduler *s, int32_t seq)
{
    const struct seq *q = &s->pool.seq[seq];

    if (kvcache_has_place(s->kv, &q->table, q->planned_count))
        return true;
    if (!make_room(s, seq))
        return false;
    grow(s, seq, 1);
    return true;
}

/* A prompt under way, found by the walk over all: so nobody walks again to find the first one, and
 * what is left of them. Who is met here keeps his blocks: victims are those still to come. */
static void note_prompt(struct scheduler *s, int32_t seq)
{
    const struct seq *q = &s->pool.seq[seq];

    if (s->making.prompt_first == SEQ_NONE)
        s->making.prompt_first = seq;
    s->making.prompt_left += q->prefill_count - q->planned_count;
}

static void plan_decode(struct scheduler *s)
{
    for (int32_t i = s->pool.running.first; i != SEQ_NONE; i = s->pool.seq[i].next) {
        const struct seq *q = &s->pool.seq[i];
        if (q->planned_count < q->prefill_count) {
            note_prompt(s, i);
            continue;
        }
        if (s->making.token_left == 0 || s->making.sample_left == 0 ||
            q->planned_count == seq_target(q) || waits_for_host(s, q))
            continue;
        if (find_place(s, i))
            add_row(s, i, 1);
        if (q->state != SEQ_RUNNING) /* it was the last one, and gave up its own blocks */
            return;
    }
}

/* ---- prefill ---- */

/* How far a row from `first` may go with the samples that are left. */
static int32_t sample_limit(const struct scheduler *s, const struct seq *q, int32_t first,
                            int32_t final)
{
    int32_t score_first = q->score_planned - 1 > first ? q->score_planned - 1 : first;
    int32_t score_final = final < q->prompt_count - 1 ? final : q->prompt_count - 1;
    int32_t score_count = score_final > score_first ? score_final - score_first : 0;

    if (q->score_planned >= q->prompt_count)
        score_count = 0;
    if (score_count > s->making.sample_left)
        return score_first + s->making.sample_left;
    if (final == q->token_count && q->output_max > 0 && score_count == s->making.sample_left)
        return final - 1;
    return final;
}

int32_t plan_chunk(const struct scheduler *s, const struct seq *q, int32_t planned_count)
{
    int32_t count = seq_target(q) - planned_count;

    if (s->config.chunk_token_max > 0 && count > s->config.chunk_token_max)
        count = s->config.chunk_token_max;
    if (count > s->making.token_left) {
        count = s->making.token_left;
        /* The first prompt that would eat the whole budget leaves a quarter to those behind. */
        if (s->making.long_row < 0 && !q->score_prompt)
            count -= s->making.token_left / 4;
    }
    return sample_limit(s, q, planned_count, planned_count + count) - planned_count;
}

void plan_add_prompt_row(struct scheduler *s, int32_t seq, int32_t token_count)
{
    const struct seq *q = &s->pool.seq[seq];
    int32_t token_left = s->making.token_left;

    grow_reserved(s, seq, token_count);
    add_row(s, seq, token_count);
    if (s->making.long_row < 0 && !q->score_prompt &&
        seq_target(q) - q->planned_count > token_left - token_count)
        s->making.long_row = s->making.buffer->plan.row_count - 1;
}

/* What the others did not take of the quarter goes back to the prompt that left it. */
static void extend_long_row(struct scheduler *s)
{
    struct plan_buffer *buffer = s->making.buffer;
    int32_t token_count = s->making.token_left;

    if (s->making.long_row < 0 || token_count == 0)
        return;
    struct plan_row *row = &buffer->row[s->making.long_row];
    struct seq *q = &s->pool.seq[row->seq];
    if (s->config.chunk_token_max > 0 && token_count > s->config.chunk_token_max - row->token_count)
        token_count = s->config.chunk_token_max - row->token_count;
    grow_reserved(s, row->seq, token_count);
    row->token_count += token_count;
    q->planned_count += token_count;
    buffer->plan.token_count += token_count;
    buffer->prompt_tokens += token_count;
    s->making.token_left -= token_count;
    assert(q->planned_count < seq_target(q)); /* or it would need a draw */
}

/* Prompt tokens that could be planned: of prompts under way, and of as many waiting ones as there
 * are slots. The walk ends where there are `enough`. */
static int64_t prompt_backlog(const struct scheduler *s, int64_t enough)
{
    int64_t count = s->making.prompt_left;
    int32_t slot_left = s->slot_free_count;

    for (int32_t i = s->pool.waiting.first; i != SEQ_NONE && count < enough && slot_left > 0;
         i = s->pool.seq[i].next, slot_left--)
        count += s->pool.seq[i].token_count;
    return count;
}

/* Beside sequences that decode, prompts take their time: they fill the step to step_token_low, and
 * further only by a share of what waits. A burst is so spread over the steps of those who answer:
 * most steps then hold some prompt tokens, which a GPU computes while it reads the weights for
 * the others anyway, and nobody waits long for his next token (scheduler.md, How a plan is made).
 */
static void limit_prompts(struct scheduler *s)
{
    enum { SPREAD = 16, LEAST = 4 };
    int32_t low = s->config.step_token_low, decode_count = s->making.buffer->plan.token_count;

    if (low == 0 || decode_count == 0)
        return;
    int32_t least = low - decode_count > low / LEAST ? low - decode_count : low / LEAST;
    int64_t share = prompt_backlog(s, (int64_t)SPREAD * s->making.token_left) / SPREAD;
    int64_t limit = share > least ? share : least > 1 ? least : 1;
    if (limit < s->making.token_left)
        s->making.token_left = (int32_t)limit;
}

static void plan_prefill(struct scheduler *s)
{
    for (int32_t i = s->making.prompt_first; i != SEQ_NONE; i = s->pool.seq[i].next) {
        const struct seq *q = &s->pool.seq[i];
        if (s->making.token_left == 0)
            return;
        if (q->planned_count >= q->prefill_count || waits_for_host(s, q))
            continue;
        int32_t count = plan_chunk(s, q, q->planned_count);
        if (count > 0)
            plan_add_prompt_row(s, i, count);
    }
}

/* ---- the whole ---- */

static void begin(struct scheduler *s)
{
    struct plan_buffer *buffer = &s->buffer[(s->step_planned + 1) % PLAN_DEPTH];

    buffer->moves.count = 0;
    buffer->prompt_tokens = 0;
    buffer->plan = (struct plan){
        .step = s->step_planned + 1,
        .start = buffer->start,
        .change = buffer->change,
        .move = buffer->moves.move,
        .row = buffer->row,
        .sample = buffer->sample,
    };
    s->making = (struct making){
        .buffer = buffer,
        .token_left = s->config.step_token_max,
        .sample_left = s->config.sample_max,
        .long_row = -1,
        .prompt_first = SEQ_NONE,
    };
}

const struct plan *scheduler_plan(struct scheduler *s, int64_t now_us)
{
    (void)now_us; /* no rule depends on time yet */
    if (s->step_planned - s->step_committed >= s->config.plan_depth)
        return NULL;
    begin(s);
    plan_decode(s);
    limit_prompts(s);
    plan_prefill(s);
    plan_admit(s);
    extend_long_row(s);

    struct plan *plan = &s->making.buffer->plan;
    plan->move_count = s->making.buffer->moves.count;
    if (plan->row_count == 0) {
        assert(plan->start_count == 0);
        assert(plan->change_count == 0);
        assert(plan->move_count == 0);
        /* Otherwise nothing would ever happen again (scheduler.md (10)). */
        assert(s->step_planned > s->step_committed || scheduler_idle(s));
        return NULL;
    }
    s->step_planned++;
    return plan;
}
