/* A sequence's states, and the only functions that change them.
 *
 * FREE, then WAITING for a slot (or SIBLING, for the leader of its group), RUNNING, DONE, and FREE
 * again once it is reaped. A sequence that is preempted (LEAVING) or has ended (ENDING) keeps its
 * slot and blocks while a plan in flight may name them; `settle` gives them back.
 * docs/scheduler.md has the diagram and the table of states and events.
 */
#ifndef SCHEDULER_SEQ_H
#define SCHEDULER_SEQ_H

#include "kvcache/kvcache.h"
#include "scheduler/scheduler.h"

#include <stdbool.h>
#include <stdint.h>

enum { SEQ_NONE = -1 };

enum seq_state {
    SEQ_FREE,
    SEQ_SIBLING, /* waits for its group's leader to have the prompt planned */
    SEQ_WAITING, /* for a slot and blocks; new or preempted */
    SEQ_RUNNING,
    SEQ_LEAVING, /* preempted, still named by a plan */
    SEQ_ENDING,  /* ended, still named by a plan */
    SEQ_DONE,    /* ended, waits to be reaped */
    SEQ_STATE_COUNT
};

enum seq_event {
    SEQ_ADD,         /* with the prompt to compute */
    SEQ_ADD_SIBLING, /* with a prompt that the leader computes */
    SEQ_ADMIT,       /* gets a slot and the blocks of all its tokens */
    SEQ_FORK,        /* gets a slot and shares the leader's blocks */
    SEQ_DETACH,      /* will compute the prompt itself */
    SEQ_PREEMPT,
    SEQ_END,
    SEQ_SETTLE, /* no plan names it any more */
    SEQ_REAP,
    SEQ_EVENT_COUNT
};

struct seq {
    enum seq_state state;
    int32_t prev, next; /* in the list of its state */

    /* What was asked. */
    int32_t *token; /* [context_max] prompt and committed output; only ever appended to */
    int32_t prompt_count;
    int32_t token_count;
    int32_t output_max;
    int32_t priority;
    int64_t arrival; /* unique; siblings have neighbouring ones */
    int64_t root;
    bool score_prompt;
    bool host_dependent;

    /* Its group: the siblings of one prompt that are not reaped yet, by arrival. */
    int32_t group;
    int32_t member_prev, member_next;

    /* While it holds a slot. */
    int32_t slot; /* SEQ_NONE without one */
    struct kv_table table;
    int32_t reserved_count; /* blocks that the rest of its prefill will take */
    int32_t prefill_count;  /* tokens known when it got the slot: before them it prefills */
    int32_t planned_count;  /* tokens whose K and V are written by the plans made so far */
    int32_t written_count;  /* by those committed */
    int32_t draw_count;     /* draws planned and not committed */
    int64_t named_step;     /* the last plan that names it */

    int32_t score_next;    /* first prompt token without a committed score */
    int32_t score_planned; /* first one without a planned one */

    /* Held back while `hold_seq` (of that arrival) computes the blocks that both begin with. */
    int32_t hold_seq;
    int64_t hold_arrival;
    int32_t hold_block_count;

    enum seq_end_reason reason;
    int32_t cancel_code;
    int32_t cached_count; /* -1 before the first admission */
};

struct group {
    int32_t member_count;
    int32_t member_first, member_last;
    int32_t leader;     /* who computes the prompt that SEQ_SIBLING members wait for */
    int64_t named_step; /* the last plan that copies a block which members share */
    int32_t next_free;
};

struct seq_list {
    int32_t first, last, count;
};

struct seq_pool {
    struct seq *seq;     /* [seq_max] */
    struct group *group; /* [seq_max] */
    int32_t *token;      /* [seq_max, context_max] */
    int32_t seq_max;
    int32_t context_max;
    int64_t arrival_next;
    bool order_reversed;
    int32_t sibling_count; /* sequences in SEQ_SIBLING */
    int32_t group_free;
    struct seq_list free, waiting, running, leaving, done; /* leaving: LEAVING and ENDING */
};

/* The state after `event` in `state`, or SEQ_STATE_COUNT where that cannot happen. */
enum seq_state seq_next_state(enum seq_state state, enum seq_event event);

bool seq_pool_create(struct seq_pool *pool, int32_t seq_max, int32_t context_max,
                     bool order_reversed); /* false: out of memory */
void seq_pool_destroy(struct seq_pool *pool);

/* A group and its sequences: the first one waits, the others are its siblings. The pool must
 * have that many free ones. */
void seq_add_group(struct seq_pool *pool, const struct seq_spec *spec, int64_t root,
                   int32_t *seq /* [sibling_count] */);
void seq_admit(struct seq_pool *pool, int32_t seq, int32_t slot);
void seq_fork(struct seq_pool *pool, int32_t sibling, int32_t slot);
void seq_detach(struct seq_pool *pool, int32_t sibling);
void seq_preempt(struct seq_pool *pool, int32_t seq);
void seq_finish(struct seq_pool *pool, int32_t seq, enum seq_end_reason reason,
                int32_t cancel_code);
void seq_settle(struct seq_pool *pool, int32_t seq);
void seq_reap(struct seq_pool *pool, int32_t seq);

/* Questions. */
int32_t seq_output_count(const struct seq *q);
bool seq_holds_slot(const struct seq *q);
bool seq_alive(const struct seq *q); /* its draws in flight still count */
/* Tokens that can be computed: known ones and draws in flight; not the last one of all, whose
 * K and V nobody reads. */
int32_t seq_target(const struct seq *q);
/* First member of the group that waits for the leader, or SEQ_NONE. */
int32_t seq_sibling_first(const struct seq_pool *pool, const struct group *group);

#endif
