/* What scheduler.c, plan.c, admit.c and check.c share. Nothing else includes it. */
#ifndef SCHEDULER_STATE_H
#define SCHEDULER_STATE_H

#include "scheduler/order.h"
#include "scheduler/scheduler.h"
#include "scheduler/seq.h"

#include <stdbool.h>
#include <stdint.h>

/* A plan and the memory that it points to. */
struct plan_buffer {
    struct plan plan;
    struct plan_start *start;    /* [slot_max] */
    struct table_change *change; /* [slot_max, block_max, group_count] */
    struct kv_moves moves;       /* [slot_max, group_count] */
    struct plan_row *row;        /* [slot_max] */
    struct plan_sample *sample;  /* [sample_max] */
    int64_t prompt_tokens;       /* of the rows, those that prefill */
};

/* The plan that is being made. */
struct making {
    struct plan_buffer *buffer;
    int32_t token_left;
    int32_t sample_left;
    bool blocks_short;      /* a row sat out or a sequence was preempted: nothing is admitted */
    int32_t long_row;       /* row of the prompt that left tokens to others, or -1 */
    bool needy_preempted;   /* a row that lacked blocks was the youngest: it gave up its own */
    int32_t producer_count; /* sequences that compute blocks which others may wait for */
    int32_t prompt_first; /* running sequence, in order, that is not at its prompt's end; or none */
    int64_t prompt_left;  /* tokens of all such */
};

struct scheduler {
    struct scheduler_config config;
    struct kvcache *kv;
    struct seq_pool pool;
    int32_t block_max;   /* entries of a slot's table */
    int32_t *slot_block; /* [slot_max, group_count, block_max] */
    int32_t *slot_free;  /* [slot_free_count] stack */
    int32_t slot_free_count;
    int32_t reserved_count; /* blocks that the running sequences have reserved */
    int32_t *producer;      /* [slot_max] */
    int32_t *holder_count;  /* [block_count] of scheduler_check */
    struct plan_buffer buffer[PLAN_DEPTH];
    struct making making;
    int64_t step_planned; /* the newest plan; steps are counted from 1 */
    int64_t step_committed;
    int64_t preempt_count;
    int64_t prompt_tokens;
};

/* A plan in flight names this sequence, or a block that it shares with siblings. */
bool scheduler_named(const struct scheduler *s, const struct seq *q);
/* The slot's own table memory, empty. */
struct kv_table scheduler_table(struct scheduler *s, int32_t slot);
/* Blocks that may be promised or taken: those that the cache has, without the reserved ones. */
int32_t scheduler_available(const struct scheduler *s);
/* From here on `count` of the blocks that the cache has are for this sequence alone. */
void scheduler_reserve(struct scheduler *s, struct seq *q, int32_t count);
/* Takes the sequence out of the running ones; its slot and blocks follow when no plan names
 * them. */
void scheduler_preempt(struct scheduler *s, int32_t seq);
/* Gives back what a LEAVING or ENDING sequence holds, unless a plan still names it
 * (scheduler.md (5)). */
void scheduler_settle(struct scheduler *s, int32_t seq);

/* plan.c: parts of the plan in the making. */
/* Prompt tokens of `q` that fit into the plan when it has `planned_count` behind it. */
int32_t plan_chunk(const struct scheduler *s, const struct seq *q, int32_t planned_count);
void plan_add_start(struct scheduler *s, int32_t seq);
/* The whole table of a sequence that is new in its slot. */
void plan_add_changes(struct scheduler *s, int32_t seq);
/* A row that computes token_count prompt tokens of a running sequence. */
void plan_add_prompt_row(struct scheduler *s, int32_t seq, int32_t token_count);

/* admit.c */
void plan_admit(struct scheduler *s);

#endif
