/* Sequences in, results in, ends out. plan.c and admit.c make the plans; docs/scheduler.md has
 * the rules.
 *
 * The idea: `planned_count` of a sequence runs ahead at plan time and `written_count` follows at
 * commit, so that the next step can be planned while this one is computed. Between the two, a
 * plan names slots, blocks and handles; all that it names stays as it is until its commit.
 * Who may call: one thread.
 */
#include "scheduler/state.h"

#include <assert.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>

/* ---- creation ---- */

static bool buffer_create(struct plan_buffer *buffer, const struct scheduler *s)
{
    size_t slot_max = (size_t)s->config.slot_max;
    size_t group_count = (size_t)s->config.kv.group_count;

    buffer->start = calloc(slot_max, sizeof(*buffer->start));
    buffer->change = calloc(slot_max * (size_t)s->block_max * group_count, sizeof(*buffer->change));
    buffer->moves.max = s->config.slot_max * s->config.kv.group_count;
    buffer->moves.move = calloc(slot_max * group_count, sizeof(*buffer->moves.move));
    buffer->row = calloc(slot_max, sizeof(*buffer->row));
    buffer->sample = calloc((size_t)s->config.sample_max, sizeof(*buffer->sample));
    return buffer->start != NULL && buffer->change != NULL && buffer->moves.move != NULL &&
           buffer->row != NULL && buffer->sample != NULL;
}

static bool config_possible(const struct scheduler_config *config)
{
    return config->slot_max >= 1 && config->waiting_max >= 1 && config->step_token_max >= 1 &&
           config->step_token_low >= 0 && config->step_token_low <= config->step_token_max &&
           config->sample_max >= 1 && config->context_max >= 1 && config->chunk_token_max >= 0 &&
           config->plan_depth >= 1 && config->plan_depth <= PLAN_DEPTH &&
           config->window_first_group == 0;
}

struct scheduler *scheduler_create(const struct scheduler_config *config)
{
    assert(config_possible(config));

    struct scheduler *s = calloc(1, sizeof(*s));
    if (s == NULL)
        return NULL;
    s->config = *config;
    s->block_max = (config->context_max - 1) / config->kv.block_tokens + 1;
    size_t slot_max = (size_t)config->slot_max;
    size_t group_count = (size_t)config->kv.group_count;
    s->kv = kvcache_create(&config->kv);
    s->slot_block = calloc(slot_max * (size_t)s->block_max * group_count, sizeof(*s->slot_block));
    s->slot_free = calloc(slot_max, sizeof(*s->slot_free));
    s->producer = calloc(slot_max, sizeof(*s->producer));
    s->holder_count = calloc((size_t)config->kv.block_count, sizeof(*s->holder_count));
    bool pool = seq_pool_create(&s->pool, config->slot_max + config->waiting_max,
                                config->context_max, config->order_reversed);
    bool buffers = buffer_create(&s->buffer[0], s) && buffer_create(&s->buffer[1], s);
    if (s->kv == NULL || s->slot_block == NULL || s->slot_free == NULL || s->producer == NULL ||
        s->holder_count == NULL || !pool || !buffers) {
        scheduler_destroy(s);
        return NULL;
    }
    for (int32_t slot = config->slot_max - 1; slot >= 0; slot--)
        s->slot_free[s->slot_free_count++] = slot;
    return s;
}

void scheduler_destroy(struct scheduler *s)
{
    if (s == NULL)
        return;
    for (int32_t i = 0; i < PLAN_DEPTH; i++) {
        free(s->buffer[i].start);
        free(s->buffer[i].change);
        free(s->buffer[i].moves.move);
        free(s->buffer[i].row);
        free(s->buffer[i].sample);
    }
    seq_pool_destroy(&s->pool);
    kvcache_destroy(s->kv);
    free(s->slot_block);
    free(s->slot_free);
    free(s->producer);
    free(s->holder_count);
    free(s);
}

int32_t scheduler_seq_max(const struct scheduler *s)
{
    return s->pool.seq_max;
}

/* ---- slots and blocks ---- */

bool scheduler_named(const struct scheduler *s, const struct seq *q)
{
    return q->named_step > s->step_committed ||
           s->pool.group[q->group].named_step > s->step_committed;
}

struct kv_table scheduler_table(struct scheduler *s, int32_t slot)
{
    struct kv_table table = {.block_max = s->block_max};

    for (int32_t g = 0; g < s->config.kv.group_count; g++) {
        int64_t list = (int64_t)slot * s->config.kv.group_count + g;
        table.block[g] = s->slot_block + list * s->block_max;
    }
    return table;
}

int32_t scheduler_available(const struct scheduler *s)
{
    return kvcache_available(s->kv) - s->reserved_count;
}

void scheduler_reserve(struct scheduler *s, struct seq *q, int32_t count)
{
    assert(count >= 0);
    s->reserved_count += count - q->reserved_count;
    q->reserved_count = count;
    assert(s->reserved_count >= 0);
    assert(scheduler_available(s) >= 0);
}

/* Its blocks stay until no plan names them; what it had reserved is free at once. */
static void retire(struct scheduler *s, struct seq *q)
{
    kvcache_retire(s->kv, &q->table);
    scheduler_reserve(s, q, 0);
}

void scheduler_settle(struct scheduler *s, int32_t seq)
{
    struct seq *q = &s->pool.seq[seq];

    if (scheduler_named(s, q))
        return;
    kvcache_release(s->kv, &q->table);
    s->slot_free[s->slot_free_count++] = q->slot;
    seq_settle(&s->pool, seq);
}

void scheduler_preempt(struct scheduler *s, int32_t seq)
{
    seq_preempt(&s->pool, seq);
    retire(s, &s->pool.seq[seq]);
    s->preempt_count++;
    scheduler_settle(s, seq);
}

/* ---- add and cancel ---- */

static bool can_ever_run(const struct scheduler *s, const struct seq_spec *spec)
{
    int64_t token_max = (int64_t)spec->token_count + spec->output_max;
    /* The last token's K and V are never needed; a lone prompt token's are. */
    int64_t kv_token_max = token_max > 1 ? token_max - 1 : 1;
    int64_t block_tokens = s->config.kv.block_tokens;
    int64_t block_count = (kv_token_max + block_tokens - 1) / block_tokens;

    return token_max <= s->config.context_max && spec->sibling_count <= s->config.waiting_max &&
           block_count * s->config.kv.group_count <= s->config.kv.block_count;
}

int32_t scheduler_add(struct scheduler *s, const struct seq_spec *spec, int32_t *seq)
{
    assert(spec->token_count >= 1);
    assert(spec->sibling_count >= 1);
    assert(spec->output_max >= (spec->score_prompt ? 0 : 1));
    if (!can_ever_run(s, spec))
        return -E2BIG;
    int32_t waiting_count = s->pool.waiting.count + s->pool.sibling_count;
    if (waiting_count + spec->sibling_count > s->config.waiting_max ||
        spec->sibling_count > s->pool.free.count)
        return -EAGAIN;

    int64_t root =
        spec->private_root ? kvcache_root_unique(s->kv) : kvcache_root(s->kv, spec->salt, 0);
    seq_add_group(&s->pool, spec, root, seq);
    return 0;
}

/* The prompt that others wait for goes to the first of them, which starts from what is published
 * by then. */
static void hand_on(struct scheduler *s, int32_t seq)
{
    const struct seq *q = &s->pool.seq[seq];
    struct group *group = &s->pool.group[q->group];

    if (group->leader != seq)
        return;
    int32_t heir = seq_sibling_first(&s->pool, group);
    group->leader = heir;
    if (heir == SEQ_NONE)
        return;
    s->pool.seq[heir].score_next = q->score_next;
    s->pool.seq[heir].score_planned = q->score_next;
    seq_detach(&s->pool, heir);
}

static void end(struct scheduler *s, int32_t seq, enum seq_end_reason reason, int32_t cancel_code)
{
    struct seq *q = &s->pool.seq[seq];

    if (q->state == SEQ_RUNNING)
        retire(s, q);
    seq_finish(&s->pool, seq, reason, cancel_code);
}

void scheduler_cancel(struct scheduler *s, int32_t seq, int32_t cancel_code)
{
    assert(seq >= 0 && seq < s->pool.seq_max);
    const struct seq *q = &s->pool.seq[seq];

    assert(q->state != SEQ_FREE);
    if (q->state == SEQ_ENDING || q->state == SEQ_DONE)
        return;
    hand_on(s, seq);
    end(s, seq, SEQ_END_CANCEL, cancel_code);
    if (q->state == SEQ_ENDING)
        scheduler_settle(s, seq);
}

/* ---- commit ---- */

int32_t scheduler_wants(const struct scheduler *s, const struct plan_sample *sample,
                        int32_t token_count)
{
    const struct seq *q = &s->pool.seq[sample->seq];

    if (sample->kind != PLAN_DRAW || !seq_alive(q))
        return 0;
    int32_t left = q->output_max - seq_output_count(q);
    return token_count < left ? token_count : left;
}

static void commit_draw(struct scheduler *s, const struct plan_sample *sample,
                        const struct sample_result *result)
{
    struct seq *q = &s->pool.seq[sample->seq];
    int32_t wanted = scheduler_wants(s, sample, result->token_count);

    assert(q->draw_count > 0);
    q->draw_count--;
    if (!seq_alive(q))
        return;
    assert(result->token_count >= 1);
    assert(sample->output_index == seq_output_count(q));
    for (int32_t i = 0; i < wanted; i++)
        q->token[q->token_count++] = result->token[i];
    if (result->stop && wanted == result->token_count)
        end(s, sample->seq, SEQ_END_STOP, 0);
    else if (seq_output_count(q) == q->output_max)
        end(s, sample->seq, SEQ_END_LENGTH, 0);
}

/* A prompt that was only to be scored is done, and so are its siblings. */
static void end_scored(struct scheduler *s, int32_t seq)
{
    const struct group *group = &s->pool.group[s->pool.seq[seq].group];

    for (int32_t i = group->member_first; i != SEQ_NONE; i = s->pool.seq[i].member_next) {
        if (s->pool.seq[i].state == SEQ_SIBLING)
            end(s, i, SEQ_END_LENGTH, 0);
    }
    end(s, seq, SEQ_END_LENGTH, 0);
}

static void commit_row(struct scheduler *s, const struct plan_row *row)
{
    struct seq *q = &s->pool.seq[row->seq];

    assert(q->slot == row->slot);
    q->written_count = row->position + row->token_count;
    if (q->output_max == 0 && q->written_count == seq_target(q) && seq_alive(q))
        end_scored(s, row->seq);
}

static void commit_sample(struct scheduler *s, const struct plan *plan,
                          const struct plan_sample *sample, const struct sample_result *result)
{
    struct seq *q = &s->pool.seq[sample->seq];
    const struct plan_row *row = &plan->row[sample->row];

    assert(q->slot == sample->slot);
    if (sample->kind == PLAN_SCORE) {
        assert(sample->token_index == q->score_next);
        q->score_next++;
        return;
    }
    if (row->seq != sample->seq) /* a sibling's first draw: the leader's row wrote its prompt */
        q->written_count = row->position + row->token_count;
    commit_draw(s, sample, result);
}

/* Only what a committed step wrote and a committed draw confirmed (scheduler.md (6)). */
static void publish(struct scheduler *s, int32_t seq)
{
    struct seq *q = &s->pool.seq[seq];
    int32_t count = q->written_count < q->token_count ? q->written_count : q->token_count;

    kvcache_publish(s->kv, &q->table, q->token, count);
}

void scheduler_commit(struct scheduler *s, const struct plan *plan,
                      const struct sample_result *result)
{
    const struct plan_buffer *buffer = &s->buffer[plan->step % PLAN_DEPTH];

    assert(plan == &buffer->plan);
    assert(plan->step == s->step_committed + 1);
    assert(plan->step <= s->step_planned);
    for (int32_t i = 0; i < plan->row_count; i++)
        commit_row(s, &plan->row[i]);
    for (int32_t i = 0; i < plan->sample_count; i++)
        commit_sample(s, plan, &plan->sample[i], &result[i]);
    for (int32_t i = 0; i < plan->row_count; i++)
        publish(s, plan->row[i].seq);
    for (int32_t i = 0; i < plan->start_count; i++)
        publish(s, plan->start[i].seq);
    s->step_committed = plan->step;
    s->prompt_tokens += buffer->prompt_tokens;

    int32_t next = SEQ_NONE;
    for (int32_t seq = s->pool.leaving.first; seq != SEQ_NONE; seq = next) {
        next = s->pool.seq[seq].next;
        scheduler_settle(s, seq);
    }
}

int32_t scheduler_reap(struct scheduler *s, struct seq_end *seq_end)
{
    int32_t seq = s->pool.done.first;

    if (seq == SEQ_NONE)
        return 0;
    const struct seq *q = &s->pool.seq[seq];
    *seq_end = (struct seq_end){
        .seq = seq,
        .reason = q->reason,
        .cancel_code = q->cancel_code,
        .output_count = seq_output_count(q),
        .cached_count = q->cached_count > 0 ? q->cached_count : 0,
    };
    seq_reap(&s->pool, seq);
    return 1;
}

/* ---- questions ---- */

/* Token places that hold nothing yet, in the blocks of one sequence; a block that several hold
 * counts in parts, so that the sum is right. */
static double unused_kv_tokens(const struct scheduler *s, const struct seq *q)
{
    int32_t block_tokens = s->config.kv.block_tokens;
    double unused = 0;

    for (int32_t i = q->planned_count / block_tokens; i < q->table.block_count; i++) {
        int32_t used = q->planned_count - i * block_tokens;
        for (int32_t g = 0; g < s->config.kv.group_count; g++) {
            if (q->table.block[g][i] < 0)
                continue;
            unused += (double)(block_tokens - (used > 0 ? used : 0)) /
                      kvcache_holders(s->kv, q->table.block[g][i]);
        }
    }
    return unused;
}

struct scheduler_stats scheduler_stats(const struct scheduler *s)
{
    struct scheduler_stats stats = {
        .running_count = s->pool.running.count + s->pool.leaving.count,
        .waiting_count = s->pool.waiting.count + s->pool.sibling_count,
        .preempt_count = s->preempt_count,
        .step_count = s->step_committed,
        .prompt_tokens = s->prompt_tokens,
        .kv = kvcache_stats(s->kv),
    };
    double unused = 0;

    for (int32_t i = s->pool.running.first; i != SEQ_NONE; i = s->pool.seq[i].next)
        unused += unused_kv_tokens(s, &s->pool.seq[i]);
    for (int32_t i = s->pool.leaving.first; i != SEQ_NONE; i = s->pool.seq[i].next)
        unused += unused_kv_tokens(s, &s->pool.seq[i]);
    stats.pinned_kv_tokens = (int64_t)stats.kv.pinned_count * s->config.kv.block_tokens;
    stats.used_kv_tokens = stats.pinned_kv_tokens - llround(unused);
    return stats;
}

bool scheduler_idle(const struct scheduler *s)
{
    return s->pool.running.count == 0 && s->pool.waiting.count == 0 && s->pool.sibling_count == 0 &&
           s->pool.leaving.count == 0 && s->step_planned == s->step_committed;
}

bool scheduler_reset_cache(struct scheduler *s)
{
    return kvcache_reset(s->kv);
}
