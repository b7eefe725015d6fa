/* scheduler by its sentences: one sequence, what a step holds, plans in flight, preemption. */
#include "tests/unit/scheduler_world.h"

/* ---- one sequence ---- */

static void a_prompt_is_computed_in_chunks_and_then_one_token_a_step(void)
{
    struct scheduler_config config = roomy();
    config.step_token_max = 8;
    struct world w = world_of(config);
    int32_t seq = add(&w, 1, 20, 3);

    const struct plan *made = plan(&w);
    EXPECT_INT(made->start_count, ==, 1);
    EXPECT_INT(made->start[0].token_count, ==, 20);
    EXPECT_INT(made->change_count, ==, 2); /* blocks of this chunk alone */
    EXPECT_INT(made->row[0].position, ==, 0);
    EXPECT_INT(made->row[0].token_count, ==, 8);
    EXPECT_INT(made->sample_count, ==, 0);
    commit(&w);
    EXPECT_INT(plan(&w)->row[0].position, ==, 8);
    commit(&w);
    made = plan(&w);
    EXPECT_INT(made->row[0].token_count, ==, 4);
    EXPECT_INT(made->sample_count, ==, 1);
    EXPECT_INT(made->sample[0].index, ==, 3);
    EXPECT_INT(made->sample[0].output_index, ==, 0);
    commit(&w);
    made = plan(&w);
    EXPECT_INT(made->row[0].position, ==, 20);
    EXPECT_INT(made->row[0].token[0], ==, 1000);
    EXPECT_INT(made->change_count, ==, 1);
    EXPECT_INT(made->sample[0].output_index, ==, 1);
    commit(&w);
    EXPECT_INT(plan(&w)->row[0].position, ==, 21);
    commit(&w);
    EXPECT(plan(&w) == NULL);
    EXPECT(scheduler_idle(w.s));
    EXPECT_INT(end_of(&w, seq)->reason, ==, SEQ_END_LENGTH);
    EXPECT_INT(end_of(&w, seq)->output_count, ==, 3);
    EXPECT_INT(scheduler_stats(w.s).prompt_tokens, ==, 20);
    world_end(&w);
}

static void a_stop_ends_a_sequence_and_is_reaped_once(void)
{
    struct world w = world_of(roomy());
    int32_t seq = add(&w, 1, 5, 10);

    plan(&w);
    commit(&w);
    plan(&w);
    commit_stop(&w, seq);
    EXPECT_INT(w.end_count, ==, 1);
    EXPECT_INT(w.end[0].reason, ==, SEQ_END_STOP);
    EXPECT_INT(w.end[0].output_count, ==, 2);
    EXPECT(scheduler_idle(w.s));
    EXPECT_INT(scheduler_stats(w.s).kv.pinned_count, ==, 0);
    world_end(&w);
}

static void a_stop_on_the_last_token_is_a_stop(void)
{
    struct world w = world_of(roomy());
    int32_t seq = add(&w, 1, 5, 1);

    plan(&w);
    commit_stop(&w, seq);
    EXPECT_INT(end_of(&w, seq)->reason, ==, SEQ_END_STOP);
    world_end(&w);
}

static void what_cannot_be_is_refused_and_changes_nothing(void)
{
    struct scheduler_config config = roomy();
    config.waiting_max = 3;
    config.kv.block_count = 10;
    struct world w = world_of(config);
    struct seq_spec siblings = {
        .token = prompt(1, 2), .token_count = 2, .output_max = 1, .sibling_count = 2};

    EXPECT_INT(add(&w, 1, 200, 57), ==, -E2BIG); /* beyond the context */
    EXPECT_INT(add(&w, 1, 36, 6), ==, -E2BIG);   /* beyond the pool ... */
    EXPECT_INT(add(&w, 1, 36, 5), >=, 0);        /* the last token needs no K and V */
    siblings.sibling_count = 4;
    EXPECT_INT(add_spec(&w, siblings), ==, -E2BIG); /* more than may ever wait */
    siblings.sibling_count = 3;
    EXPECT_INT(add_spec(&w, siblings), ==, -EAGAIN);
    EXPECT_INT(scheduler_stats(w.s).waiting_count, ==, 1);
    siblings.sibling_count = 2;
    EXPECT_INT(add_spec(&w, siblings), >=, 0);
    EXPECT_INT(add(&w, 1, 1, 1), ==, -EAGAIN);
    run_out(&w);
    EXPECT_INT(w.end_count, ==, 3);
    world_end(&w);
}

static void handles_stay_good_until_they_are_reaped(void)
{
    struct scheduler_config config = roomy();
    config.slot_max = 1;
    config.waiting_max = 1;
    struct world w = world_of(config);
    int32_t first = add(&w, 1, 2, 1);
    struct seq_end end;

    scheduler_cancel(w.s, first, 7);
    int32_t second = add(&w, 1, 2, 1);
    EXPECT(second != first);
    EXPECT_INT(add(&w, 1, 2, 1), ==, -EAGAIN);
    scheduler_cancel(w.s, first, 8); /* the first reason stays */
    EXPECT_INT(scheduler_reap(w.s, &end), ==, 1);
    EXPECT_INT(end.seq, ==, first);
    EXPECT_INT(end.reason, ==, SEQ_END_CANCEL);
    EXPECT_INT(end.cancel_code, ==, 7);
    EXPECT_INT(scheduler_reap(w.s, &end), ==, 0);
    world_end(&w);
}

/* ---- what a step holds ---- */

static void decoding_sequences_come_before_prompts(void)
{
    struct scheduler_config config = roomy();
    config.step_token_max = 6;
    struct world w = world_of(config);
    int32_t a = add(&w, 1, 2, 9), b = add(&w, 50, 2, 9);

    plan(&w);
    commit(&w);
    int32_t big = add_spec(
        &w, (struct seq_spec){
                .token = prompt(200, 100), .token_count = 100, .output_max = 2, .priority = -1});
    for (int32_t i = 0; i < 8; i++) {
        const struct plan *made = plan(&w);
        EXPECT_INT(row_tokens(made, a), ==, 1);
        EXPECT_INT(row_tokens(made, b), ==, 1);
        EXPECT_INT(row_tokens(made, big), ==, 4);
        EXPECT_INT(made->token_count, ==, 6);
        commit(&w);
    }
    run_out(&w);
    world_end(&w);
}

static void a_long_prompt_leaves_a_quarter_to_those_behind(void)
{
    struct world w = world_of(roomy());
    int32_t big = add(&w, 1, 250, 2);
    int32_t small = add(&w, 1000, 9, 2), other = add(&w, 2000, 5, 2);
    const struct plan *made = plan(&w);

    EXPECT_INT(row_tokens(made, small), ==, 9);
    EXPECT_INT(row_tokens(made, other), ==, 5);
    EXPECT_INT(row_tokens(made, big), ==, 50); /* what they left goes back to it */
    EXPECT_INT(made->token_count, ==, 64);
    world_end(&w);
}

static void a_lone_prompt_gets_the_whole_budget(void)
{
    struct world w = world_of(roomy());
    int32_t big = add(&w, 1, 250, 2);

    EXPECT_INT(row_tokens(plan(&w), big), ==, 64);
    commit(&w);
    EXPECT_INT(row_tokens(plan(&w), big), ==, 64);
    world_end(&w);
}

static void prompts_take_their_time_beside_sequences_that_decode(void)
{
    struct scheduler_config config = roomy();
    config.step_token_low = 16;
    struct world w = world_of(config);

    add(&w, 1, 60, 20);
    EXPECT_INT(plan(&w)->token_count, ==, 60); /* nobody decodes */
    commit(&w);
    add(&w, 100, 100, 4);
    EXPECT_INT(plan(&w)->token_count, ==, 16);
    commit(&w);
    for (int32_t i = 0; i < 3; i++)
        add(&w, 300 + i * 200, 200, 4);
    EXPECT_INT(plan(&w)->token_count, ==, 1 + (85 + 600) / 16); /* a share of what waits */
    commit(&w);
    for (int32_t i = 0; i < 3; i++)
        add(&w, 900 + i * 200, 200, 4);
    EXPECT_INT(plan(&w)->token_count, ==, 64); /* and the whole budget of a burst */
    commit(&w);
    run_out(&w);
    EXPECT_INT(w.end_count, ==, 8);
    world_end(&w);
}

static void a_crowd_that_decodes_leaves_prompts_a_quarter(void)
{
    struct scheduler_config config = roomy();
    config.step_token_low = 8;
    struct world w = world_of(config);

    for (int32_t i = 0; i < 10; i++)
        add(&w, i * 10, 1, 10);
    plan(&w);
    commit(&w);
    add(&w, 500, 12, 1);
    EXPECT_INT(plan(&w)->token_count, ==, 10 + 8 / 4);
    commit(&w);
    run_out(&w);
    world_end(&w);
}

static void a_chunk_is_no_longer_than_its_limit(void)
{
    struct scheduler_config config = roomy();
    config.chunk_token_max = 10;
    struct world w = world_of(config);
    int32_t a = add(&w, 1, 25, 2), b = add(&w, 500, 25, 2);
    const struct plan *made = plan(&w);

    EXPECT_INT(row_tokens(made, a), ==, 10);
    EXPECT_INT(row_tokens(made, b), ==, 10);
    commit(&w);
    made = plan(&w);
    EXPECT_INT(row_tokens(made, a), ==, 10); /* all that are under way go on */
    EXPECT_INT(row_tokens(made, b), ==, 10);
    world_end(&w);
}

static void a_step_has_no_more_samples_than_its_limit(void)
{
    struct scheduler_config config = roomy();
    config.sample_max = 3;
    struct world w = world_of(config);

    for (int32_t i = 0; i < 5; i++)
        add(&w, 100 * (i + 1), 3, 4);
    const struct plan *made = plan(&w);
    EXPECT_INT(made->sample_count, ==, 3);
    EXPECT_INT(made->row_count, ==, 5); /* the others compute all but their last token */
    EXPECT_INT(made->row[3].token_count, ==, 2);
    EXPECT_INT(made->row[4].token_count, ==, 2);
    commit(&w);
    run_out(&w);
    EXPECT_INT(w.end_count, ==, 5);
    world_end(&w);
}

static void lower_priority_values_run_earlier(void)
{
    struct scheduler_config config = roomy();
    config.slot_max = 1;
    struct world w = world_of(config);
    int32_t late = add(&w, 1, 4, 1);
    int32_t soon = add_spec(
        &w, (struct seq_spec){
                .token = prompt(60, 4), .token_count = 4, .output_max = 1, .priority = -5});

    EXPECT_INT(plan(&w)->row[0].seq, ==, soon);
    commit(&w);
    EXPECT_INT(plan(&w)->row[0].seq, ==, late);
    world_end(&w);
}

static void blocks_of_a_prompt_are_reserved_and_taken_chunk_by_chunk(void)
{
    struct scheduler_config config = roomy();
    config.step_token_max = 9;
    config.kv.block_count = 8;
    struct world w = world_of(config);
    add(&w, 1, 3, 9); /* decodes: its second block is wanted in step 3 */

    plan(&w);
    commit(&w);
    int32_t prompt_seq = add(&w, 100, 24, 1); /* 6 of the 7 blocks that are left */
    int32_t third = add(&w, 200, 8, 1);       /* 2: they are free, and yet promised */
    plan(&w);
    commit(&w);
    EXPECT_INT(scheduler_stats(w.s).kv.pinned_count, ==, 3);
    EXPECT_INT(scheduler_stats(w.s).running_count, ==, 2);
    EXPECT_INT(scheduler_stats(w.s).waiting_count, ==, 1);
    EXPECT_INT(scheduler_stats(w.s).used_kv_tokens, ==, 3 + 1 + 8);
    plan(&w);
    commit(&w);
    EXPECT_INT(scheduler_stats(w.s).preempt_count, ==, 0);
    EXPECT_INT(scheduler_stats(w.s).kv.pinned_count, ==, 6);
    plan(&w);
    commit(&w);
    EXPECT(end_of(&w, prompt_seq) != NULL);
    run_out(&w);
    EXPECT(end_of(&w, third) != NULL);
    EXPECT_INT(scheduler_stats(w.s).preempt_count, ==, 0);
    world_end(&w);
}

static void a_prompt_that_does_not_fit_is_not_overtaken(void)
{
    struct scheduler_config config = roomy();
    config.kv.block_count = 10;
    struct world w = world_of(config);
    int32_t first = add(&w, 1, 24, 4);

    plan(&w);
    commit(&w);
    int32_t large = add(&w, 500, 20, 2), small = add(&w, 900, 2, 2);
    const struct plan *made = plan(&w);
    EXPECT_INT(made->row_count, ==, 1);
    EXPECT_INT(made->row[0].seq, ==, first);
    scheduler_cancel(w.s, first, 0);
    commit(&w);
    made = plan(&w);
    EXPECT_INT(row_tokens(made, large), ==, 20);
    EXPECT_INT(row_tokens(made, small), ==, 2);
    world_end(&w);
}

/* ---- plans in flight ---- */

static void a_step_is_planned_before_the_last_one_is_known(void)
{
    struct scheduler_config config = roomy();
    config.plan_depth = 2;
    struct world w = world_of(config);
    int32_t seq = add(&w, 1, 5, 3);

    plan(&w);
    const struct plan *second = plan(&w);
    EXPECT(second->row[0].token == NULL);
    EXPECT_INT(second->row[0].position, ==, 5);
    EXPECT_INT(second->sample[0].output_index, ==, 1);
    EXPECT(plan(&w) == NULL); /* two are in flight */
    commit(&w);
    EXPECT_INT(plan(&w)->sample[0].output_index, ==, 2);
    commit(&w);
    EXPECT(plan(&w) == NULL); /* the last draw is in flight */
    EXPECT(!scheduler_idle(w.s));
    commit(&w);
    EXPECT_INT(end_of(&w, seq)->output_count, ==, 3);
    world_end(&w);
}

static void a_token_planned_before_the_end_was_known_is_dropped(void)
{
    struct scheduler_config config = roomy();
    config.plan_depth = 2;
    struct world w = world_of(config);
    int32_t seq = add(&w, 1, 5, 9);

    plan(&w);
    const struct plan *second = plan(&w);
    commit_stop(&w, seq);
    EXPECT_INT(scheduler_wants(w.s, &second->sample[0], 1), ==, 0);
    EXPECT_INT(w.end_count, ==, 0); /* the second plan still names it */
    EXPECT(scheduler_stats(w.s).kv.pinned_count > 0);
    EXPECT_INT(scheduler_stats(w.s).kv.pending_count, ==, scheduler_stats(w.s).kv.pinned_count);
    commit(&w);
    EXPECT_INT(end_of(&w, seq)->output_count, ==, 1);
    EXPECT_INT(scheduler_stats(w.s).kv.pinned_count, ==, 0);
    world_end(&w);
}

static void what_a_plan_in_flight_names_is_not_given_away(void)
{
    struct scheduler_config config = roomy();
    config.slot_max = 1;
    config.kv.block_count = 4;
    struct world w = world_of(config);
    int32_t first = add(&w, 1, 8, 2), second = add(&w, 500, 8, 2);

    plan(&w);
    scheduler_cancel(w.s, first, 3);
    scheduler_check(w.s);
    EXPECT_INT(scheduler_stats(w.s).running_count, ==, 1);
    EXPECT_INT(scheduler_stats(w.s).kv.pinned_count, ==, 2);
    EXPECT(scheduler_plan(w.s, 0) == NULL);
    commit(&w);
    EXPECT_INT(end_of(&w, first)->cancel_code, ==, 3);
    EXPECT_INT(end_of(&w, first)->output_count, ==, 0);
    EXPECT_INT(row_tokens(plan(&w), second), ==, 8);
    world_end(&w);
}

static void a_plan_does_not_change_while_the_next_is_made(void)
{
    struct scheduler_config config = roomy();
    config.plan_depth = 2;
    struct world w = world_of(config);

    for (int32_t i = 0; i < 4; i++)
        add(&w, 100 * i + 1, 6, 5);
    const struct plan *first = plan(&w);
    struct plan copy = *first;
    struct plan_row row[4];
    memcpy(row, first->row, sizeof(row));
    scheduler_cancel(w.s, first->row[1].seq, 0);
    const struct plan *second = plan(&w);
    EXPECT(second != first);
    EXPECT(memcmp(&copy, first, sizeof(copy)) == 0);
    EXPECT(memcmp(row, first->row, sizeof(row)) == 0);
    EXPECT_INT(first->row[3].token[5], ==, 306);
    world_end(&w);
}

static void host_dependent_sequences_are_never_planned_ahead(void)
{
    struct scheduler_config config = roomy();
    config.plan_depth = 2;
    struct world w = world_of(config);
    int32_t seq = add_spec(
        &w, (struct seq_spec){
                .token = prompt(1, 5), .token_count = 5, .output_max = 3, .host_dependent = true});

    plan(&w);
    EXPECT(plan(&w) == NULL);
    commit(&w);
    const struct plan *made = plan(&w);
    EXPECT_INT(row_of(made, seq)->token[0], ==, 1000);
    EXPECT(plan(&w) == NULL);
    world_end(&w);
}

/* ---- preemption ---- */

static void the_youngest_of_the_lowest_priority_gives_up_its_blocks(void)
{
    struct scheduler_config config = roomy();
    config.kv.block_count = 3;
    struct world w = world_of(config);
    int32_t low = add_spec(
        &w, (struct seq_spec){
                .token = prompt(500, 4), .token_count = 4, .output_max = 6, .priority = 1});
    int32_t a = add(&w, 1, 4, 6), b = add(&w, 900, 4, 2);

    plan(&w);
    commit(&w);
    const struct plan *made = plan(&w); /* a needs a second block */
    EXPECT_INT(row_tokens(made, a), ==, 1);
    EXPECT(row_of(made, low) == NULL);
    EXPECT(row_of(made, b) == NULL); /* needs one too, and there is no other victim */
    EXPECT_INT(scheduler_stats(w.s).preempt_count, ==, 2);
    commit(&w);
    run_out(&w);
    EXPECT_INT(end_of(&w, low)->output_count, ==, 6);
    EXPECT_INT(end_of(&w, b)->output_count, ==, 2);
    world_end(&w);
}

static void a_preempted_sequence_comes_back_with_its_output(void)
{
    struct scheduler_config config = roomy();
    config.kv.block_count = 4;
    config.kv.matching = false;
    struct world w = world_of(config);
    int32_t old = add(&w, 1, 6, 8), young = add(&w, 500, 7, 4);
    int32_t step_count = 0;

    while (scheduler_stats(w.s).preempt_count == 0 && step_count++ < 10) {
        plan(&w);
        commit(&w);
    }
    EXPECT_INT(scheduler_stats(w.s).preempt_count, ==, 1);
    EXPECT_INT(scheduler_stats(w.s).waiting_count, ==, 1);
    const struct plan *made = NULL;
    while (start_of(made, young) == NULL && step_count++ < 40) {
        if (w.flight_count > 0)
            commit(&w);
        made = plan(&w);
    }
    const struct plan_start *start = start_of(made, young);
    assert(made != NULL && start != NULL);
    EXPECT_INT(start->prompt_count, ==, 7);
    EXPECT_INT(start->token_count, ==, 9);
    EXPECT_INT(start->token[7], ==, 1000);
    EXPECT_INT(start->token[8], ==, 1001);
    EXPECT_INT(row_tokens(made, young), ==, 9);
    EXPECT_INT(made->sample[made->sample_count - 1].output_index, ==, 2);
    commit(&w);
    run_out(&w);
    EXPECT_INT(end_of(&w, old)->output_count, ==, 8);
    EXPECT_INT(end_of(&w, young)->output_count, ==, 4);
    EXPECT_INT(scheduler_stats(w.s).prompt_tokens, ==, 6 + 7 + 9);
    world_end(&w);
}

static void no_victim_is_taken_while_blocks_in_flight_suffice(void)
{
    struct scheduler_config config = roomy();
    config.plan_depth = 2;
    config.kv.block_count = 3;
    struct world w = world_of(config);
    int32_t a = add(&w, 1, 4, 6), b = add(&w, 500, 4, 6), c = add(&w, 900, 4, 6);

    plan(&w);
    scheduler_cancel(w.s, c, 0); /* its block comes with the commit */
    EXPECT(plan(&w) == NULL);
    EXPECT_INT(scheduler_stats(w.s).preempt_count, ==, 0);
    commit(&w);
    const struct plan *made = plan(&w);
    EXPECT_INT(row_tokens(made, a), ==, 1);
    EXPECT(row_of(made, b) == NULL); /* it was the youngest that still ran */
    EXPECT_INT(scheduler_stats(w.s).preempt_count, ==, 1);
    world_end(&w);
}

static void the_token_in_flight_of_a_preempted_sequence_counts(void)
{
    struct scheduler_config config = roomy();
    config.plan_depth = 2;
    config.kv.block_count = 2;
    struct world w = world_of(config);
    int32_t a = add(&w, 1, 4, 3), b = add(&w, 500, 4, 2);
    const struct plan *first = plan(&w);

    EXPECT(plan(&w) == NULL); /* a takes b's block, which the first plan still names */
    EXPECT_INT(scheduler_stats(w.s).preempt_count, ==, 1);
    EXPECT_INT(scheduler_wants(w.s, &first->sample[1], 1), ==, 1);
    commit(&w);
    run_out(&w);
    EXPECT_INT(end_of(&w, a)->output_count, ==, 3);
    EXPECT_INT(end_of(&w, b)->output_count, ==, 2);
    world_end(&w);
}

int main(void)
{
    TEST(a_prompt_is_computed_in_chunks_and_then_one_token_a_step);
    TEST(a_stop_ends_a_sequence_and_is_reaped_once);
    TEST(a_stop_on_the_last_token_is_a_stop);
    TEST(what_cannot_be_is_refused_and_changes_nothing);
    TEST(handles_stay_good_until_they_are_reaped);
    TEST(decoding_sequences_come_before_prompts);
    TEST(a_long_prompt_leaves_a_quarter_to_those_behind);
    TEST(a_lone_prompt_gets_the_whole_budget);
    TEST(prompts_take_their_time_beside_sequences_that_decode);
    TEST(a_crowd_that_decodes_leaves_prompts_a_quarter);
    TEST(a_chunk_is_no_longer_than_its_limit);
    TEST(a_step_has_no_more_samples_than_its_limit);
    TEST(lower_priority_values_run_earlier);
    TEST(blocks_of_a_prompt_are_reserved_and_taken_chunk_by_chunk);
    TEST(a_prompt_that_does_not_fit_is_not_overtaken);
    TEST(a_step_is_planned_before_the_last_one_is_known);
    TEST(a_token_planned_before_the_end_was_known_is_dropped);
    TEST(what_a_plan_in_flight_names_is_not_given_away);
    TEST(a_plan_does_not_change_while_the_next_is_made);
    TEST(host_dependent_sequences_are_never_planned_ahead);
    TEST(the_youngest_of_the_lowest_priority_gives_up_its_blocks);
    TEST(a_preempted_sequence_comes_back_with_its_output);
    TEST(no_victim_is_taken_while_blocks_in_flight_suffice);
    TEST(the_token_in_flight_of_a_preempted_sequence_counts);
    return test_report();
}
