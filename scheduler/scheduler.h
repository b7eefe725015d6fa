/* What to compute next: plan and commit.
 *
 * One step holds decode rows and prefill chunks together under one token budget; there is no
 * prefill phase and no decode phase. Up to PLAN_DEPTH plans may be between plan and commit;
 * they are committed in the order in which they were made. Numbered invariants, which comments
 * cite as "scheduler.md (3)", are in docs/scheduler.md.
 *
 * Pure: no clock (time is passed in), random number, lock, log or I/O, and no allocation after
 * scheduler_create. One thread (the engine's).
 */
#ifndef SCHEDULER_SCHEDULER_H
#define SCHEDULER_SCHEDULER_H

#include "kvcache/kvcache.h"

#include <stdbool.h>
#include <stdint.h>

enum { PLAN_DEPTH = 2 };

struct scheduler; /* opaque */

struct scheduler_config {
    int32_t slot_max;           /* sequences that run at once (--max-num-seqs) */
    int32_t waiting_max;        /* sequences that wait; beyond: -EAGAIN (preempted ones come back
                                   whatever this says: the pool holds slot_max + waiting_max) */
    int32_t step_token_max;     /* T of a step (--max-num-batched-tokens) */
    int32_t step_token_low;     /* to which prompts fill a step while sequences decode and few
                                   prompt tokens wait; 0: step_token_max */
    int32_t sample_max;         /* S of a step */
    int32_t context_max;        /* tokens of the longest sequence, prompt and output */
    int32_t chunk_token_max;    /* prompt tokens of one sequence in one step; 0: no limit */
    int32_t plan_depth;         /* 1 or PLAN_DEPTH */
    int32_t window_first_group; /* reserved for window groups: must be 0 */
    struct kvcache_config kv;
    bool order_reversed; /* simulation: reverses the order among equals */
};

/* Sequences to add: one prompt, sibling_count answers. */
struct seq_spec {
    const int32_t *token; /* [token_count] prompt, copied */
    int32_t token_count;  /* from 1 */
    int32_t output_max;   /* tokens to put out at most; 0 only with score_prompt: score, then end */
    int32_t sibling_count; /* n, from 1 */
    int32_t priority;      /* lower runs earlier */
    uint64_t salt;         /* sequences of different salts share no blocks */
    bool private_root;     /* shares blocks with its siblings only */
    bool score_prompt;     /* wants a STEP_SCORE sample for prompt tokens 1 on; no prefix match */
    bool host_dependent;   /* the next step needs a decision of the host: never planned ahead */
};

enum plan_sample_kind { PLAN_DRAW, PLAN_SCORE };

/* A slot is taken: by a new sequence, a sibling, or one that comes back after preemption. */
struct plan_start {
    int32_t seq;
    int32_t slot;
    int32_t prompt_count; /* of the tokens, those of the prompt */
    int32_t token_count;  /* prompt and committed output */
    const int32_t *token; /* [token_count] */
};

struct table_change {
    int32_t slot;
    int32_t group;
    int32_t index;
    int32_t block;
};

struct plan_row {
    int32_t seq;
    int32_t slot;
    int32_t position; /* of its first token */
    int32_t token_count;
    const int32_t *token; /* [token_count]; NULL: one token, the slot's last draw */
};

struct plan_sample {
    int32_t seq;
    int32_t slot;
    int32_t row;   /* which row */
    int32_t index; /* which of the row's tokens */
    enum plan_sample_kind kind;
    int32_t output_index; /* PLAN_DRAW: index of the output token, from 0 */
    int32_t token;        /* PLAN_SCORE: the prompt token that follows */
    int32_t token_index;  /* PLAN_SCORE: its index in the prompt, from 1 */
};

/* Everything here is good and unchanged until this plan's commit: arrays are the plan's own, and
 * tokens point into histories that are only ever appended to, of handles that are not given away
 * before. At most: slot_max starts, rows and, times the groups, moves; sample_max samples;
 * slot_max * blocks of context_max, times the groups, changes. */
struct plan {
    int64_t step;
    int32_t token_count; /* of all rows */
    int32_t start_count, change_count, move_count, row_count, sample_count;
    const struct plan_start *start;
    const struct table_change *change;
    const struct kv_move *move;
    const struct plan_row *row;
    const struct plan_sample *sample;
};

/* What the device and the roof say of one sample: a run of tokens, stop true when the last of
 * them ends the sequence (end token, stop id). PLAN_SCORE samples take token_count 0. */
struct sample_result {
    const int32_t *token; /* [token_count] */
    int32_t token_count;
    bool stop;
};

enum seq_end_reason { SEQ_END_STOP, SEQ_END_LENGTH, SEQ_END_CANCEL };

struct seq_end {
    int32_t seq;
    enum seq_end_reason reason;
    int32_t cancel_code;  /* what scheduler_cancel was given */
    int32_t output_count; /* tokens put out */
    int32_t cached_count; /* prompt tokens found in the cache at the first admission; siblings
                             that shared a computation have the same count */
};

struct scheduler_stats {
    int32_t running_count; /* sequences with a slot */
    int32_t waiting_count; /* sequences without one, siblings counted */
    int64_t preempt_count;
    int64_t step_count;       /* committed */
    int64_t prompt_tokens;    /* computed, recomputation included */
    int64_t used_kv_tokens;   /* KV slots of pinned blocks that hold a token */
    int64_t pinned_kv_tokens; /* KV slots of pinned blocks; waste is 1 - used / pinned */
    struct kvcache_stats kv;
};

/* NULL: out of memory. A configuration that cannot be (a count below 1, say) is asserted. */
struct scheduler *scheduler_create(const struct scheduler_config *config);
void scheduler_destroy(struct scheduler *s);
int32_t scheduler_seq_max(const struct scheduler *s); /* handles are below this */

/* All or nothing: 0 and sibling_count handles in `seq`; -EAGAIN: the waiting list is full;
 * -E2BIG: could never run (prompt and output beyond context_max or the whole pool, or more
 * siblings than waiting_max). Siblings beyond the free slots or the samples of a step run
 * later, from the cached prompt. */
int32_t scheduler_add(struct scheduler *s, const struct seq_spec *spec, int32_t *seq);

/* Ends a sequence; its blocks are free once no plan names them. Idempotent; a handle stays good
 * until scheduler_reap gave it back. */
void scheduler_cancel(struct scheduler *s, int32_t seq, int32_t cancel_code);

/* The next step, or NULL when nothing can be planned now: plan_depth plans are in flight, or
 * what is left to do waits for the commit of one that is, or scheduler_idle. No rule depends on
 * the time yet. */
const struct plan *scheduler_plan(struct scheduler *s, int64_t now_us);

/* How many of token_count tokens of this sample are output of a sequence that still runs; asked
 * once for every PLAN_DRAW sample, in order, before the plan's commit. 0: drop them. */
int32_t scheduler_wants(const struct scheduler *s, const struct plan_sample *sample,
                        int32_t token_count);

/* The oldest plan was computed. `result` [plan->sample_count]; at least one token for each
 * PLAN_DRAW sample that scheduler_wants. */
void scheduler_commit(struct scheduler *s, const struct plan *plan,
                      const struct sample_result *result);

/* Hands back one ended sequence that no plan names any more: 1 and *end, or 0. */
int32_t scheduler_reap(struct scheduler *s, struct seq_end *end);

struct scheduler_stats scheduler_stats(const struct scheduler *s);
bool scheduler_idle(const struct scheduler *s);  /* nothing runs, waits or is in flight */
bool scheduler_reset_cache(struct scheduler *s); /* kvcache_reset */
void scheduler_check(const struct scheduler *s); /* aborts unless every invariant holds */

#endif
