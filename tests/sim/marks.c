/* Which rare situations were reached; looks into the pillar, which the checks do not. */
#include "tests/sim/world.h"

#include "kvcache/state.h"
#include "scheduler/state.h"

#include <stdio.h>
#include <string.h>

#define MARK_NAME(name) #name,
static const char *const mark_name[MARK_COUNT] = {MARKS(MARK_NAME)};
static int64_t mark_count[MARK_COUNT];

void mark(enum mark which, bool reached)
{
    mark_count[which] += reached;
}

void mark_cancel(int32_t seq)
{
    const struct seq *q = &s->pool.seq[seq];
    const struct group *group = &s->pool.group[q->group];
    bool named = q->named_step > s->step_committed;
    bool leader = group->leader == seq && seq_sibling_first(&s->pool, group) != SEQ_NONE;

    mark(MARK_cancelled_waiting, q->state == SEQ_WAITING && q->cached_count < 0);
    mark(MARK_cancelled_after_preemption, q->state == SEQ_WAITING && q->cached_count >= 0);
    mark(MARK_cancelled_sibling, q->state == SEQ_SIBLING);
    mark(MARK_cancelled_leader_waiting, leader && q->state == SEQ_WAITING);
    mark(MARK_cancelled_leader_running, leader && q->state == SEQ_RUNNING);
    mark(MARK_cancelled_leader_leaving, leader && q->state == SEQ_LEAVING);
    mark(MARK_cancelled_running_in_flight, q->state == SEQ_RUNNING && named);
    mark(MARK_cancelled_running_at_rest, q->state == SEQ_RUNNING && !scheduler_named(s, q));
    mark(MARK_cancelled_leaving, q->state == SEQ_LEAVING);
    mark(MARK_cancelled_twice, q->state == SEQ_ENDING || q->state == SEQ_DONE);
    mark(MARK_cancelled_while_only_a_copy_names_it,
         q->state == SEQ_RUNNING && !named && scheduler_named(s, q));
}

/* A sequence that gave up its blocks in the plan just made. */
static void mark_preempted(const struct seq *q)
{
    mark(MARK_preempted, true);
    mark(MARK_preempted_at_once, q->state == SEQ_WAITING);
    mark(MARK_preempted_with_last_token_in_flight,
         q->draw_count > 0 && seq_output_count(q) + q->draw_count == q->output_max);
    mark(MARK_preempted_while_prefilling,
         q->state == SEQ_LEAVING && q->planned_count < q->prefill_count);
    mark(MARK_preempted_itself, s->making.needy_preempted);
}

/* A sibling published this block, under an equal parent of another identity. */
static void mark_parents(const struct seq *q)
{
    int32_t published = q->table.published_count;

    if (published < 2)
        return;
    const struct block *block = &s->kv->block[q->table.block[0][published - 1]];
    const struct block *before = &s->kv->block[q->table.block[0][published - 2]];
    mark(MARK_block_known_under_another_parent, block->identity == q->table.parent &&
                                                    before->identity != IDENTITY_NONE &&
                                                    block->parent != before->identity);
}

static void mark_state(enum seq_state before, const struct seq *q)
{
    if (before == SEQ_SIBLING) {
        mark(MARK_sibling_forked, q->state == SEQ_RUNNING);
        mark(MARK_sibling_without_slot, q->state == SEQ_WAITING && s->slot_free_count == 0);
        mark(MARK_sibling_without_sample, q->state == SEQ_WAITING && s->making.sample_left == 0);
    }
    if (q->state == SEQ_WAITING && q->hold_seq != SEQ_NONE) {
        mark(MARK_held_back, true);
        mark(MARK_held_back_and_producer_left, s->pool.seq[q->hold_seq].state == SEQ_LEAVING);
    }
    if (q->state == SEQ_RUNNING) {
        mark_parents(q);
        int32_t published = q->table.published_count;
        mark(MARK_host_dependent_sat_out, q->host_dependent && q->draw_count > 0);
        mark(MARK_twin_published_first,
             published > 0 &&
                 s->kv->block[q->table.block[0][published - 1]].identity != q->table.parent);
    }
}

static void mark_groups(const enum seq_state *before)
{
    for (int32_t i = 0; i < s->pool.seq_max; i++) {
        if (before[i] != SEQ_RUNNING || s->pool.seq[i].state == SEQ_RUNNING)
            continue;
        for (int32_t k = 0; k < s->pool.seq_max; k++) {
            if (k == i || before[k] != SEQ_RUNNING || s->pool.seq[k].group != s->pool.seq[i].group)
                continue;
            mark(MARK_group_split, s->pool.seq[k].state == SEQ_RUNNING);
            mark(MARK_group_preempted_whole, s->pool.seq[k].state != SEQ_RUNNING);
        }
    }
}

void mark_plan(const struct plan *plan, const enum seq_state *before)
{
    bool preempted = false;

    for (int32_t i = 0; i < s->pool.seq_max; i++) {
        const struct seq *q = &s->pool.seq[i];
        mark_state(before[i], q);
        if (before[i] != SEQ_RUNNING || q->state == SEQ_RUNNING)
            continue;
        preempted = true;
        mark_preempted(q);
        mark_groups(before);
    }
    mark(MARK_sat_out_for_pending_blocks, s->making.blocks_short && !preempted);
    mark(MARK_nothing_to_plan_but_in_flight, plan == NULL && flight_count > 0);
    mark(MARK_samples_used_up, s->making.sample_left == 0);
    mark(MARK_tokens_used_up, s->making.token_left == 0);
    mark(MARK_long_prompt_left_tokens,
         s->making.long_row >= 0 && plan != NULL && s->making.long_row < plan->row_count - 1);
}

void mark_starts(const struct plan *plan)
{
    for (int32_t i = 0; i < plan->start_count; i++) {
        const struct seq *q = &s->pool.seq[plan->start[i].seq];
        const struct life *life = &lives[plan->start[i].seq];
        bool again = q->token_count > q->prompt_count;
        int32_t found = 0;
        for (int32_t r = 0; r < plan->row_count; r++) {
            if (plan->row[r].seq == plan->start[i].seq)
                found = plan->row[r].position;
        }
        mark(MARK_prefix_found, found > 0 && !again);
        mark(MARK_prefix_found_after_preemption, found > 0 && again);
        for (int32_t k = 0; k < past_count; k++)
            mark(MARK_output_found_by_next_turn,
                 found > past[k].prompt_count && found <= past[k].token_count &&
                     memcmp(past[k].token, life->token, sizeof(int32_t) * (size_t)found) == 0);
        mark(MARK_scores_resumed, q->score_next > 1 && q->score_next < q->prompt_count);
    }
    mark(MARK_copied_on_write, plan->move_count > 0);
}

void print_marks(void)
{
    for (int32_t i = 0; i < MARK_COUNT; i++)
        printf("%10lld %s\n", (long long)mark_count[i], mark_name[i]);
}

int32_t marks_missed(void)
{
    int32_t missed = 0;

    for (int32_t i = 0; i < MARK_COUNT; i++) {
        if (mark_count[i] > 0)
            continue;
        printf("never reached: %s\n", mark_name[i]);
        missed++;
    }
    return missed;
}
