/* scheduler by its sentences: siblings, the prefix cache, scores, counters. */
#include "tests/unit/scheduler_world.h"

/* ---- siblings ---- */

static int32_t add_siblings(struct world *w, int32_t first, int32_t token_count, int32_t output_max,
                            int32_t sibling_count, int32_t *seq)
{
    struct seq_spec spec = {.token = prompt(first, token_count),
                            .token_count = token_count,
                            .output_max = output_max,
                            .sibling_count = sibling_count};

    return scheduler_add(w->s, &spec, seq);
}

static void siblings_share_one_computation_of_their_prompt(void)
{
    struct world w = world_of(roomy());
    int32_t seq[4];

    EXPECT_INT(add_siblings(&w, 1, 10, 5, 4, seq), ==, 0);
    const struct plan *made = plan(&w);
    EXPECT_INT(made->row_count, ==, 1);
    EXPECT_INT(made->row[0].token_count, ==, 10);
    EXPECT_INT(made->start_count, ==, 4);
    EXPECT_INT(made->sample_count, ==, 4);
    for (int32_t i = 0; i < 4; i++) {
        EXPECT_INT(made->sample[i].seq, ==, seq[i]);
        EXPECT_INT(made->sample[i].row, ==, 0);
        EXPECT_INT(made->sample[i].index, ==, 9);
    }
    EXPECT_INT(scheduler_stats(w.s).kv.pinned_count, ==, 3);
    commit(&w);
    made = plan(&w);
    EXPECT_INT(made->row_count, ==, 4);
    EXPECT_INT(made->move_count, ==, 3); /* the last one has the half-full block to itself */
    EXPECT_INT(scheduler_stats(w.s).kv.pinned_count, ==, 6);
    commit(&w);
    run_out(&w);
    EXPECT_INT(w.end_count, ==, 4);
    EXPECT_INT(scheduler_stats(w.s).prompt_tokens, ==, 10);
    world_end(&w);
}

static void siblings_beyond_the_slots_run_later_from_the_cache(void)
{
    struct scheduler_config config = roomy();
    config.slot_max = 2;
    struct world w = world_of(config);
    int32_t seq[5];

    add_siblings(&w, 1, 10, 2, 5, seq);
    EXPECT_INT(plan(&w)->sample_count, ==, 2);
    EXPECT_INT(scheduler_stats(w.s).waiting_count, ==, 3);
    commit(&w);
    run_out(&w);
    EXPECT_INT(w.end_count, ==, 5);
    EXPECT_INT(scheduler_stats(w.s).prompt_tokens, ==, 10 + 3 * 2);
    EXPECT_INT(scheduler_stats(w.s).kv.hit_tokens, ==, 3 * 8);
    world_end(&w);
}

static void a_cancelled_first_sibling_hands_the_prompt_on(void)
{
    struct scheduler_config config = roomy();
    config.step_token_max = 8;
    struct world w = world_of(config);
    int32_t seq[3];

    add_siblings(&w, 1, 20, 2, 3, seq);
    plan(&w);
    commit(&w);
    scheduler_cancel(w.s, seq[0], 1);
    const struct plan *made = plan(&w);
    EXPECT_INT(made->row[0].seq, ==, seq[1]);
    EXPECT_INT(made->row[0].position, ==, 8); /* what was published is not lost */
    scheduler_cancel(w.s, seq[1], 1);
    commit(&w);
    run_out(&w);
    EXPECT_INT(w.end_count, ==, 3);
    EXPECT_INT(end_of(&w, seq[2])->reason, ==, SEQ_END_LENGTH);
    world_end(&w);
}

static void a_group_gives_way_as_a_whole(void)
{
    struct scheduler_config config = roomy();
    config.kv.block_count = 5;
    struct world w = world_of(config);
    int32_t seq[2];
    add(&w, 1, 4, 9);

    add_siblings(&w, 500, 8, 4, 2, seq);
    plan(&w);
    commit(&w);
    plan(&w); /* old takes the fourth block, a sibling the fifth, the other gives up its own */
    EXPECT_INT(scheduler_stats(w.s).preempt_count, ==, 1);
    commit(&w);
    for (int32_t i = 0; i < 3; i++) {
        plan(&w);
        commit(&w);
    }
    EXPECT_INT(scheduler_stats(w.s).preempt_count, ==, 1);
    run_out(&w);
    world_end(&w);

    config.kv.block_count = 4;
    w = world_of(config);
    int32_t old = add(&w, 1, 4, 9);
    add_siblings(&w, 500, 12, 4, 2, seq);
    plan(&w);
    commit(&w);
    const struct plan *made = plan(&w);
    EXPECT_INT(made->row_count, ==, 1);
    EXPECT_INT(made->row[0].seq, ==, old);
    EXPECT_INT(scheduler_stats(w.s).preempt_count, ==, 2);
    commit(&w);
    run_out(&w);
    EXPECT_INT(w.end_count, ==, 3);
    world_end(&w);
}

/* ---- the prefix cache ---- */

static void one_prefix_is_computed_once(void)
{
    struct scheduler_config config = roomy();
    config.slot_max = 64;
    config.sample_max = 64;
    struct world w = world_of(config);

    for (int32_t i = 0; i < 64; i++) {
        int32_t token[104];
        memcpy(token, prompt(1, 100), sizeof(int32_t) * 100);
        for (int32_t k = 100; k < 104; k++)
            token[k] = 1000 * (i + 1) + k;
        struct seq_spec spec = {.token = token, .token_count = 104, .output_max = 2};
        EXPECT_INT(add_spec(&w, spec), >=, 0);
    }
    run_out(&w);
    EXPECT_INT(w.end_count, ==, 64);
    EXPECT_INT(scheduler_stats(w.s).prompt_tokens, ==, 104 + 63 * 4);
    EXPECT_INT(w.end[63].cached_count, ==, 100);
    world_end(&w);
}

static void one_held_back_goes_on_when_the_other_is_cancelled(void)
{
    struct scheduler_config config = roomy();
    config.step_token_max = 8;
    struct world w = world_of(config);
    int32_t first = add(&w, 1, 40, 2), second = add(&w, 1, 40, 2);

    EXPECT_INT(plan(&w)->row_count, ==, 1);
    commit(&w);
    const struct plan *made = plan(&w);
    EXPECT(row_of(made, second) == NULL);
    commit(&w);
    scheduler_cancel(w.s, first, 0);
    made = plan(&w);
    EXPECT_INT(row_of(made, second)->position, ==, 16);
    commit(&w);
    run_out(&w);
    world_end(&w);
}

static void nobody_is_held_back_by_one_that_comes_later(void)
{
    struct scheduler_config config = roomy();
    config.step_token_max = 8;
    struct world w = world_of(config);

    add(&w, 1, 40, 2);
    plan(&w);
    commit(&w);
    int32_t urgent = add_spec(
        &w, (struct seq_spec){
                .token = prompt(1, 40), .token_count = 40, .output_max = 2, .priority = -1});
    const struct plan *made = plan(&w);
    EXPECT(row_of(made, urgent) != NULL);
    world_end(&w);
}

static void the_next_turn_finds_the_answer_in_the_cache(void)
{
    struct world w = world_of(roomy());
    int32_t token[20];

    add(&w, 1, 6, 7);
    run_out(&w);
    memcpy(token, prompt(1, 6), sizeof(int32_t) * 6);
    for (int32_t i = 0; i < 7; i++)
        token[6 + i] = 1000 + i;
    token[13] = 5;
    struct seq_spec spec = {.token = token, .token_count = 14, .output_max = 1};
    int32_t seq = add_spec(&w, spec);
    /* 6 + 7 tokens; the last one's K and V were never computed: 12 of them in whole blocks. */
    EXPECT_INT(row_of(plan(&w), seq)->position, ==, 12);
    commit(&w);
    EXPECT_INT(w.end[1].cached_count, ==, 12);
    world_end(&w);
}

static void salted_and_private_prompts_are_computed_anew(void)
{
    struct world w = world_of(roomy());
    struct seq_spec spec = {.token_count = 20, .output_max = 1, .sibling_count = 1};

    add(&w, 1, 20, 1);
    run_out(&w);
    spec.token = prompt(1, 20);
    spec.salt = 9;
    add_spec(&w, spec);
    spec.salt = 0;
    spec.private_root = true;
    add_spec(&w, spec);
    EXPECT_INT(plan(&w)->token_count, ==, 40);
    commit(&w);
    world_end(&w);
}

static void the_cache_can_be_forgotten_only_at_rest(void)
{
    struct world w = world_of(roomy());

    add(&w, 1, 20, 2);
    plan(&w);
    EXPECT(!scheduler_reset_cache(w.s));
    commit(&w);
    run_out(&w);
    EXPECT(scheduler_stats(w.s).kv.cached_count > 0);
    EXPECT(scheduler_reset_cache(w.s));
    EXPECT_INT(scheduler_stats(w.s).kv.cached_count, ==, 0);
    world_end(&w);
}

/* ---- scores ---- */

static void every_prompt_token_but_the_first_is_scored_once(void)
{
    struct scheduler_config config = roomy();
    config.step_token_max = 7;
    config.sample_max = 5;
    struct world w = world_of(config);
    int32_t scored[20] = {0};

    add(&w, 1, 20, 1); /* so that a match would be found */
    run_out(&w);
    int32_t seq = add_spec(
        &w, (struct seq_spec){
                .token = prompt(1, 20), .token_count = 20, .output_max = 0, .score_prompt = true});
    while (!scheduler_idle(w.s)) {
        const struct plan *made = plan(&w);
        for (int32_t i = 0; i < made->sample_count; i++) {
            const struct plan_sample *sample = &made->sample[i];
            EXPECT_INT(sample->kind, ==, PLAN_SCORE);
            EXPECT_INT(sample->token, ==, sample->token_index + 1);
            EXPECT_INT(made->row[sample->row].position + sample->index + 1, ==,
                       sample->token_index);
            scored[sample->token_index]++;
        }
        commit(&w);
    }
    for (int32_t i = 1; i < 20; i++)
        EXPECT_INT(scored[i], ==, 1);
    EXPECT_INT(scored[0], ==, 0);
    EXPECT_INT(end_of(&w, seq)->reason, ==, SEQ_END_LENGTH);
    EXPECT_INT(end_of(&w, seq)->cached_count, ==, 0);
    world_end(&w);
}

static void a_lone_token_has_no_score_and_ends_with_its_siblings(void)
{
    struct world w = world_of(roomy());
    struct seq_spec spec = {.token = prompt(1, 1),
                            .token_count = 1,
                            .output_max = 0,
                            .sibling_count = 3,
                            .score_prompt = true};

    add_spec(&w, spec);
    const struct plan *made = plan(&w);
    EXPECT_INT(made->row_count, ==, 1);
    EXPECT_INT(made->sample_count, ==, 0);
    commit(&w);
    EXPECT_INT(w.end_count, ==, 3);
    EXPECT(scheduler_idle(w.s));
    world_end(&w);
}

static void scores_come_with_the_first_draws_of_all_siblings(void)
{
    struct world w = world_of(roomy());
    struct seq_spec spec = {.token = prompt(1, 6),
                            .token_count = 6,
                            .output_max = 1,
                            .sibling_count = 2,
                            .score_prompt = true};

    add_spec(&w, spec);
    const struct plan *made = plan(&w);
    EXPECT_INT(made->sample_count, ==, 5 + 2);
    EXPECT_INT(made->sample[4].kind, ==, PLAN_SCORE);
    EXPECT_INT(made->sample[5].kind, ==, PLAN_DRAW);
    EXPECT_INT(made->sample[6].kind, ==, PLAN_DRAW);
    commit(&w);
    EXPECT_INT(w.end_count, ==, 2);
    world_end(&w);
}

/* ---- counters ---- */

static void unused_places_of_pinned_blocks_are_counted(void)
{
    struct world w = world_of(roomy());
    int32_t seq[3];

    add_siblings(&w, 1, 10, 5, 3, seq);
    plan(&w);
    struct scheduler_stats stats = scheduler_stats(w.s);
    EXPECT_INT(stats.pinned_kv_tokens, ==, 12);
    EXPECT_INT(stats.used_kv_tokens, ==, 10);
    EXPECT_INT(stats.running_count, ==, 3);
    commit(&w);
    plan(&w);
    stats = scheduler_stats(w.s);
    EXPECT_INT(stats.pinned_kv_tokens, ==, 20);
    EXPECT_INT(stats.used_kv_tokens, ==, 8 + 3 * 3);
    EXPECT_INT(stats.step_count, ==, 1);
    world_end(&w);
}

int main(void)
{
    TEST(siblings_share_one_computation_of_their_prompt);
    TEST(siblings_beyond_the_slots_run_later_from_the_cache);
    TEST(a_cancelled_first_sibling_hands_the_prompt_on);
    TEST(a_group_gives_way_as_a_whole);
    TEST(one_prefix_is_computed_once);
    TEST(one_held_back_goes_on_when_the_other_is_cancelled);
    TEST(nobody_is_held_back_by_one_that_comes_later);
    TEST(the_next_turn_finds_the_answer_in_the_cache);
    TEST(salted_and_private_prompts_are_computed_anew);
    TEST(the_cache_can_be_forgotten_only_at_rest);
    TEST(every_prompt_token_but_the_first_is_scored_once);
    TEST(a_lone_token_has_no_score_and_ends_with_its_siblings);
    TEST(scores_come_with_the_first_draws_of_all_siblings);
    TEST(unused_places_of_pinned_blocks_are_counted);
    return test_report();
}
