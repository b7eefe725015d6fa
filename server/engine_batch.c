/* The one place where the deciding pillar meets the computing one. */
#include "server/engine_batch.h"

#include <assert.h>
#include <string.h>

static void fill_starts(struct step *step, const struct plan *plan, const struct engine_seq *seq)
{
    for (int32_t i = 0; i < plan->start_count; i++) {
        const struct plan_start *from = &plan->start[i];
        const struct engine_seq *owner = &seq[from->seq];
        struct step_start *to = &step->start[i];
        assert(step->history_count + from->token_count <= step->history_max);
        *to = (struct step_start){
            .slot = from->slot,
            .prompt_count = from->prompt_count,
            .token_first = step->history_count,
            .token_count = from->token_count,
            .sampling = owner->job->sampling,
        };
        to->sampling.seed += (uint64_t)owner->sibling;
        memcpy(step->history + step->history_count, from->token,
               (size_t)from->token_count * sizeof(int32_t));
        step->history_count += from->token_count;
    }
    step->start_count = plan->start_count;
}

static void fill_tables(struct step *step, const struct plan *plan)
{
    assert(plan->change_count <= step->change_max);
    assert(plan->move_count <= step->move_max);
    for (int32_t i = 0; i < plan->change_count; i++) {
        const struct table_change *from = &plan->change[i];
        step->change[i] = (struct step_change){from->slot, from->group, from->index, from->block};
    }
    step->change_count = plan->change_count;
    for (int32_t i = 0; i < plan->move_count; i++) {
        const struct kv_move *from = &plan->move[i];
        step->move[i] =
            (struct step_move){(enum step_move_kind)from->kind, from->source, from->target};
    }
    step->move_count = plan->move_count;
}

static void fill_rows(struct step *step, const struct plan *plan)
{
    for (int32_t i = 0; i < plan->row_count; i++) {
        const struct plan_row *from = &plan->row[i];
        assert(from->token != NULL || from->token_count == 1);
        step->row[i] = (struct step_row){
            .slot = from->slot,
            .position = from->position,
            .token_first = step->token_count,
            .token_count = from->token_count,
            .token_on_device = from->token == NULL,
        };
        int32_t *token = step->token + step->token_count;
        if (from->token != NULL)
            memcpy(token, from->token, (size_t)from->token_count * sizeof(int32_t));
        else
            *token = 0;
        step->token_count += from->token_count;
    }
    step->row_count = plan->row_count;
    assert(step->token_count == plan->token_count);
}

static void fill_samples(struct step *step, const struct plan *plan, const struct engine_seq *seq)
{
    for (int32_t i = 0; i < plan->sample_count; i++) {
        const struct plan_sample *from = &plan->sample[i];
        step->sample[i] = (struct step_sample){
            .kind = from->kind == PLAN_DRAW ? STEP_DRAW : STEP_SCORE,
            .slot = from->slot,
            .index = step->row[from->row].token_first + from->index,
            .output_index = from->output_index,
            .token = from->token,
            .top_count = seq[from->seq].job->sampling.top_count,
        };
    }
    step->sample_count = plan->sample_count;
}

void engine_fill(struct batch *batch, const struct plan *plan, const struct engine_seq *seq)
{
    struct step *step = &batch->step;

    assert(step->token_count == 0 && step->history_count == 0);
    fill_starts(step, plan, seq);
    fill_tables(step, plan);
    fill_rows(step, plan);
    fill_samples(step, plan, seq);
}
