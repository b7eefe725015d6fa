/* A scheduler under test and the plans in flight. Every draw gives the token 1000 + output index;
 * a prompt is first, first + 1, ..., so that equal `first` means an equal prefix. */
#ifndef TESTS_UNIT_SCHEDULER_WORLD_H
#define TESTS_UNIT_SCHEDULER_WORLD_H

#include "scheduler/scheduler.h"

#include "tests/test.h"

#include <assert.h>
#include <errno.h>

struct world {
    struct scheduler *s;
    const struct plan *flight[PLAN_DEPTH];
    int32_t flight_count;
    struct seq_end end[64];
    int32_t end_count;
};

static int32_t prompt_memory[4096];

/* Roomy; tests change what they are about. */
static inline struct scheduler_config roomy(void)
{
    return (struct scheduler_config){
        .slot_max = 16,
        .waiting_max = 64,
        .step_token_max = 64,
        .sample_max = 32,
        .context_max = 256,
        .plan_depth = 1,
        .kv = {.block_count = 256, .block_tokens = 4, .group_count = 1, .matching = true},
    };
}

static inline struct world world_of(struct scheduler_config config)
{
    return (struct world){.s = scheduler_create(&config)};
}

static inline void world_end(struct world *w)
{
    scheduler_check(w->s);
    scheduler_destroy(w->s);
}

/* A prompt of `count` tokens: first, first + 1, ... */
static inline const int32_t *prompt(int32_t first, int32_t count)
{
    for (int32_t i = 0; i < count; i++)
        prompt_memory[i] = first + i;
    return prompt_memory;
}

static inline int32_t add_spec(struct world *w, struct seq_spec spec)
{
    int32_t seq[32] = {0};

    if (spec.sibling_count == 0)
        spec.sibling_count = 1;
    int32_t refusal = scheduler_add(w->s, &spec, seq);
    scheduler_check(w->s);
    return refusal < 0 ? refusal : seq[0];
}

/* Prompt tokens first ..., so that equal `first` means an equal prefix. */
static inline int32_t add(struct world *w, int32_t first, int32_t token_count, int32_t output_max)
{
    return add_spec(w, (struct seq_spec){.token = prompt(first, token_count),
                                         .token_count = token_count,
                                         .output_max = output_max});
}

static inline const struct plan *plan(struct world *w)
{
    const struct plan *made = scheduler_plan(w->s, 0);

    scheduler_check(w->s);
    if (made != NULL)
        w->flight[w->flight_count++] = made;
    return made;
}

/* Commits the oldest plan; the draws of `stopped` end it. */
static inline void commit_stop(struct world *w, int32_t stopped)
{
    const struct plan *oldest = w->flight[0];
    struct sample_result result[64] = {{0}};
    int32_t token[64];

    assert(w->flight_count > 0 && oldest != NULL);
    for (int32_t i = 0; i < oldest->sample_count; i++) {
        const struct plan_sample *sample = &oldest->sample[i];
        token[i] = 1000 + sample->output_index;
        if (scheduler_wants(w->s, sample, 1) == 1)
            result[i] = (struct sample_result){
                .token = &token[i], .token_count = 1, .stop = sample->seq == stopped};
    }
    scheduler_commit(w->s, oldest, result);
    scheduler_check(w->s);
    w->flight[0] = w->flight[1];
    w->flight_count--;
    while (scheduler_reap(w->s, &w->end[w->end_count]) == 1)
        w->end_count++;
}

static inline void commit(struct world *w)
{
    commit_stop(w, -1);
}

/* Runs until idle; returns the steps that it took. */
static inline int32_t run_out(struct world *w)
{
    int32_t step_count = 0;

    while (!scheduler_idle(w->s) && step_count < 2000) {
        plan(w);
        EXPECT(w->flight_count > 0);
        if (w->flight_count == 0)
            break;
        commit(w);
        step_count++;
    }
    EXPECT(scheduler_idle(w->s));
    return step_count;
}

static inline const struct plan_row *row_of(const struct plan *made, int32_t seq)
{
    for (int32_t i = 0; made != NULL && i < made->row_count; i++) {
        if (made->row[i].seq == seq)
            return &made->row[i];
    }
    return NULL;
}

static inline int32_t row_tokens(const struct plan *made, int32_t seq)
{
    const struct plan_row *row = row_of(made, seq);

    return row == NULL ? 0 : row->token_count;
}

static inline const struct plan_start *start_of(const struct plan *made, int32_t seq)
{
    for (int32_t i = 0; made != NULL && i < made->start_count; i++) {
        if (made->start[i].seq == seq)
            return &made->start[i];
    }
    return NULL;
}

static inline const struct seq_end *end_of(const struct world *w, int32_t seq)
{
    for (int32_t i = 0; i < w->end_count; i++) {
        if (w->end[i].seq == seq)
            return &w->end[i];
    }
    return NULL;
}

#endif
