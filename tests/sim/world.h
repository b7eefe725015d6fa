/* The world of sim_scheduler: what is true, what is in flight, what is random.
 *
 * world.c: random configurations and lives, and the truth about tokens. device.c: the shadow
 * device runs plans. marks.c: which rare situations were reached. sim_scheduler.c: turns.
 */
#ifndef TESTS_SIM_WORLD_H
#define TESTS_SIM_WORLD_H

#include "scheduler/scheduler.h"
#include "scheduler/seq.h"

#include <setjmp.h>
#include <stdbool.h>
#include <stdint.h>

enum { CONTEXT_LIMIT = 192, LIVE_LIMIT = 64, SIBLING_LIMIT = 6, SLOT_LIMIT = 16 };
enum { JOB_LIMIT = 160, PAST_LIMIT = 8 };

/* Rare situations that a long run must reach. */
#define MARKS(X)                                                                                   \
    X(preempted)                                                                                   \
    X(preempted_with_last_token_in_flight)                                                         \
    X(preempted_and_stopped_by_its_token_in_flight)                                                \
    X(preempted_while_prefilling)                                                                  \
    X(preempted_at_once)                                                                           \
    X(preempted_itself)                                                                            \
    X(group_preempted_whole)                                                                       \
    X(group_split)                                                                                 \
    X(sat_out_for_pending_blocks)                                                                  \
    X(cancelled_waiting)                                                                           \
    X(cancelled_after_preemption)                                                                  \
    X(cancelled_sibling)                                                                           \
    X(cancelled_leader_waiting)                                                                    \
    X(cancelled_leader_running)                                                                    \
    X(cancelled_leader_leaving)                                                                    \
    X(cancelled_running_in_flight)                                                                 \
    X(cancelled_running_at_rest)                                                                   \
    X(cancelled_leaving)                                                                           \
    X(cancelled_twice)                                                                             \
    X(cancelled_while_only_a_copy_names_it)                                                        \
    X(stopped_with_the_next_step_planned)                                                          \
    X(ended_by_length)                                                                             \
    X(copied_on_write)                                                                             \
    X(sibling_forked)                                                                              \
    X(sibling_without_slot)                                                                        \
    X(sibling_without_sample)                                                                      \
    X(held_back)                                                                                   \
    X(held_back_and_producer_left)                                                                 \
    X(twin_published_first)                                                                        \
    X(block_known_under_another_parent)                                                            \
    X(evicted)                                                                                     \
    X(root_forgotten)                                                                              \
    X(prefix_found)                                                                                \
    X(prefix_found_after_preemption)                                                               \
    X(output_found_by_next_turn)                                                                   \
    X(scores_over_several_steps)                                                                   \
    X(scores_resumed)                                                                              \
    X(scored_only)                                                                                 \
    X(add_refused_for_now)                                                                         \
    X(add_refused_for_ever)                                                                        \
    X(samples_used_up)                                                                             \
    X(tokens_used_up)                                                                              \
    X(long_prompt_left_tokens)                                                                     \
    X(host_dependent_sat_out)                                                                      \
    X(nothing_to_plan_but_in_flight)                                                               \
    X(cache_reset)                                                                                 \
    X(cache_reset_refused)                                                                         \
    X(drained_and_refilled)

#define MARK_ENUM(name) MARK_##name,
enum mark { MARKS(MARK_ENUM) MARK_COUNT };

/* What is true of one handle. */
struct life {
    bool used;  /* added and not reaped */
    bool ended; /* stopped, at its length, or cancelled */
    bool cancelled;
    int32_t cancel_code;
    int32_t prompt_count;
    int32_t output_max;
    int32_t output_count; /* accepted */
    int32_t stop_index;   /* of the output token that ends it; -1: none */
    int32_t truth_count;  /* tokens and values below that are worked out */
    int32_t token[CONTEXT_LIMIT + 1];
    uint64_t value[KVCACHE_GROUP_MAX][CONTEXT_LIMIT + 1];
    uint64_t seed;
    int64_t job; /* the add that it came with */
    bool score_prompt;
    int32_t scored_count; /* by this handle */
    int32_t row_step_last;
};

/* A plan between its making and its commit. */
struct flight {
    const struct plan *plan;
    bool done;
    uint64_t digest; /* of the plan when it was made */
    struct plan copy;
    int32_t block[SLOT_LIMIT][KVCACHE_GROUP_MAX][CONTEXT_LIMIT]; /* of each row, when it ran */
    int32_t draw[LIVE_LIMIT];
    uint64_t source_value[SLOT_LIMIT * KVCACHE_GROUP_MAX][32];
    int32_t source_count[SLOT_LIMIT * KVCACHE_GROUP_MAX];
};

/* How lively a seed is, in percent unless it says so. */
struct swarm {
    int32_t job_count;
    int32_t add, plan, commit, early; /* a turn's chances; early: a plan runs when made */
    int32_t cancel, sibling, score, score_only, salt, private_root, host, priority, reset;
    int32_t salt_count;
    int32_t reuse;     /* prompts that begin like an earlier history */
    int32_t identical; /* of those, whole copies */
    int32_t stop_in;   /* one in so many tokens ends its sequence; 0: none */
    int32_t alphabet;
    int32_t burst; /* jobs added at once */
    int32_t big;   /* jobs that may not fit */
    bool long_prompts, short_outputs;
};

extern struct scheduler_config config;
extern struct swarm swarm;
extern struct scheduler *s;
extern struct life lives[LIVE_LIMIT];
extern struct flight flights[PLAN_DEPTH];
extern int32_t flight_first, flight_count;
extern sigjmp_buf seed_failed;
/* Histories that later prompts begin with. */
extern struct past {
    int32_t token[CONTEXT_LIMIT];
    int32_t token_count;
    int32_t prompt_count;
} past[PAST_LIMIT];
extern int32_t past_count;

/* Ends the seed as failed. */
_Noreturn void fail(const char *file, int line, const char *condition);
#define CHECK(condition)                                                                           \
    do {                                                                                           \
        if (!(condition))                                                                          \
            fail(__FILE__, __LINE__, #condition);                                                  \
    } while (0)

/* world.c */
uint64_t mix(uint64_t a, uint64_t b);
void random_start(uint64_t seed);
uint64_t random_next(void);
int32_t between(int32_t low, int32_t high); /* both included */
bool chance(int32_t percent);
void choose_config(void);
void choose_swarm(void);
/* Tokens that one sequence may have at most, so that it can run alone. */
int32_t room(void);
/* What a position holds: of one group, after `before`. */
uint64_t value_next(uint64_t before, int32_t token);
/* The value before position 0. */
uint64_t root_value(const struct life *life, int32_t group);
/* Works out the true tokens and values below `count`. */
void extend_truth(struct life *life, int32_t count);

/* device.c */
void device_init(void);
void device_release(void);
/* Runs a plan that did not run yet, and checks all that it reads and writes. */
void run_step(struct flight *flight);
/* Everything that the plan read or wrote is still there. */
void check_step(const struct flight *flight);
uint64_t plan_digest(const struct plan *plan);

/* marks.c */
void mark(enum mark which, bool reached);
void mark_cancel(int32_t seq);
/* What a call to scheduler_plan did; `before`: states until then. */
void mark_plan(const struct plan *plan, const enum seq_state *before);
void mark_starts(const struct plan *plan);
void print_marks(void);
int32_t marks_missed(void); /* prints them */

#endif
