/* All states times all events, and all short lives of a tiny scheduler. */
#include "scheduler/scheduler.h"
#include "scheduler/seq.h"

#include "tests/test.h"

/* Rows: states in their order; columns: ADD, ADD_SIBLING, ADMIT, FORK, DETACH, PREEMPT, END,
 * SETTLE, REAP. A dot: cannot happen. F free, S sibling, W waiting, R running, L leaving,
 * E ending, D done. docs/scheduler.md prints the same table. */
static const char *const expected[SEQ_STATE_COUNT] = {
    "WS.......", /* FREE */
    "...RW.D..", /* SIBLING */
    "..R...D..", /* WAITING */
    ".....LE..", /* RUNNING */
    "......EW.", /* LEAVING */
    ".......D.", /* ENDING */
    "........F", /* DONE */
};
static const char letter[] = "FSWRLED.";

static void every_event_in_every_state_does_what_the_table_says(void)
{
    for (int32_t state = 0; state < SEQ_STATE_COUNT; state++) {
        for (int32_t event = 0; event < SEQ_EVENT_COUNT; event++) {
            enum seq_state next = seq_next_state((enum seq_state)state, (enum seq_event)event);
            EXPECT_INT(letter[next], ==, expected[state][event]);
        }
    }
}

static void every_state_is_reached_and_left(void)
{
    for (int32_t state = 0; state < SEQ_STATE_COUNT; state++) {
        int32_t in = 0, out = 0;
        for (int32_t other = 0; other < SEQ_STATE_COUNT; other++) {
            for (int32_t event = 0; event < SEQ_EVENT_COUNT; event++) {
                in += seq_next_state((enum seq_state)other, (enum seq_event)event) ==
                      (enum seq_state)state;
                out += other == state && seq_next_state((enum seq_state)other,
                                                        (enum seq_event)event) != SEQ_STATE_COUNT;
            }
        }
        EXPECT_INT(in, >, 0);
        EXPECT_INT(out, >, 0);
    }
}

/* ---- all short lives ---- */

enum op {
    OP_ADD,
    OP_ADD_SIBLINGS,
    OP_PLAN,
    OP_COMMIT,
    OP_COMMIT_STOP,
    OP_CANCEL_FIRST,
    OP_CANCEL_LAST,
    OP_REAP,
    OP_COUNT
};

struct life {
    struct scheduler *s;
    const struct plan *flight[PLAN_DEPTH];
    int32_t flight_count;
    int32_t seq[64]; /* alive or not, until reaped */
    int32_t seq_count;
    int32_t ended_count;
};

static void life_add(struct life *life, int32_t sibling_count)
{
    static const int32_t token[3] = {1, 2, 3};
    struct seq_spec spec = {
        .token = token, .token_count = 3, .output_max = 3, .sibling_count = sibling_count};

    if (scheduler_add(life->s, &spec, life->seq + life->seq_count) == 0)
        life->seq_count += sibling_count;
}

static void life_commit(struct life *life, bool stop)
{
    struct sample_result result[8] = {{0}};
    static const int32_t token = 4;
    const struct plan *plan = life->flight[0];

    if (life->flight_count == 0)
        return;
    for (int32_t i = 0; i < plan->sample_count; i++) {
        if (scheduler_wants(life->s, &plan->sample[i], 1) == 1)
            result[i] = (struct sample_result){.token = &token, .token_count = 1, .stop = stop};
    }
    scheduler_commit(life->s, plan, result);
    life->flight[0] = life->flight[1];
    life->flight_count--;
}

static void life_reap(struct life *life)
{
    struct seq_end end;

    while (scheduler_reap(life->s, &end) == 1) {
        int32_t k = 0;
        while (k < life->seq_count && life->seq[k] != end.seq)
            k++;
        EXPECT_INT(k, <, life->seq_count);
        memmove(life->seq + k, life->seq + k + 1,
                sizeof(life->seq[0]) * (size_t)(life->seq_count - k - 1));
        life->seq_count--;
        life->ended_count++;
    }
}

static void life_plan(struct life *life)
{
    const struct plan *plan = scheduler_plan(life->s, 0);

    if (plan != NULL)
        life->flight[life->flight_count++] = plan;
}

static void life_do(struct life *life, enum op op)
{
    switch (op) {
    case OP_ADD:
        life_add(life, 1);
        break;
    case OP_ADD_SIBLINGS:
        life_add(life, 2);
        break;
    case OP_PLAN:
        life_plan(life);
        break;
    case OP_COMMIT:
    case OP_COMMIT_STOP:
        life_commit(life, op == OP_COMMIT_STOP);
        break;
    case OP_CANCEL_FIRST:
        if (life->seq_count > 0)
            scheduler_cancel(life->s, life->seq[0], 1);
        break;
    case OP_CANCEL_LAST:
        if (life->seq_count > 0)
            scheduler_cancel(life->s, life->seq[life->seq_count - 1], 2);
        break;
    default:
        life_reap(life);
        break;
    }
    scheduler_check(life->s);
}

/* Lets a life run out: it must end with everything free. */
static void life_end(struct life *life)
{
    for (int32_t i = 0; i < 200 && !scheduler_idle(life->s); i++) {
        life_plan(life);
        life_commit(life, false);
        scheduler_check(life->s);
    }
    life_reap(life);
    EXPECT(scheduler_idle(life->s));
    EXPECT_INT(life->seq_count, ==, 0);
    EXPECT_INT(scheduler_stats(life->s).kv.pinned_count, ==, 0);
}

static void lives_of(int32_t block_count, int32_t slot_max, int32_t depth, int32_t length)
{
    struct scheduler_config config = {
        .slot_max = slot_max,
        .waiting_max = 4,
        .step_token_max = 4,
        .sample_max = 3,
        .context_max = 8,
        .plan_depth = depth,
        .kv = {.block_count = block_count, .block_tokens = 2, .group_count = 1, .matching = true},
    };
    int64_t life_count = 1;

    for (int32_t i = 0; i < length; i++)
        life_count *= OP_COUNT;
    for (int64_t number = 0; number < life_count; number++) {
        struct life life = {.s = scheduler_create(&config)};
        int64_t rest = number;
        for (int32_t i = 0; i < length; i++, rest /= OP_COUNT)
            life_do(&life, (enum op)(rest % OP_COUNT));
        life_end(&life);
        scheduler_destroy(life.s);
    }
}

static void every_short_life_in_a_tight_pool_ends_with_all_free(void)
{
    lives_of(3, 2, 2, 6);
}

static void every_short_life_with_one_slot_ends_with_all_free(void)
{
    lives_of(6, 1, 2, 5);
}

static void every_short_life_with_one_plan_at_a_time_ends_with_all_free(void)
{
    lives_of(4, 3, 1, 5);
}

int main(void)
{
    TEST(every_event_in_every_state_does_what_the_table_says);
    TEST(every_state_is_reached_and_left);
    TEST(every_short_life_in_a_tight_pool_ends_with_all_free);
    TEST(every_short_life_with_one_slot_ends_with_all_free);
    TEST(every_short_life_with_one_plan_at_a_time_ends_with_all_free);
    return test_report();
}
