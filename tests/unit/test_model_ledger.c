/* The sums of memory: what fits, what is refused, and the tables of rotations. */
#include "model/arch.h"
#include "model/ledger.h"
#include "model/rope.h"
#include "tests/test.h"

#include <errno.h>
#include <math.h>

static char message[512];

/* 1,000 bytes of weights, 100 of workspace and 1 a position; blocks of 16 tokens and 32 bytes. */
static struct ledger_wish simple(void)
{
    return (struct ledger_wish){.context_model = 256,
                                .slot_max = 4,
                                .block_tokens = 16,
                                .memory_share = 0.5,
                                .free_bytes = 100000,
                                .weight_bytes = 1000,
                                .workspace_bytes = 100,
                                .position_bytes = 1,
                                .block_bytes = 32};
}

static int make(struct ledger *ledger, const struct ledger_wish *wish)
{
    message[0] = '\0';
    return ledger_make(ledger, wish, message, sizeof(message));
}

static void the_pool_takes_the_share_that_is_left(void)
{
    struct ledger_wish wish = simple();
    struct ledger ledger;

    wish.slot_max = 1000;
    EXPECT_INT(make(&ledger, &wish), ==, 0);
    EXPECT_INT(ledger.context_max, ==, 256);
    EXPECT_INT(ledger.workspace_bytes, ==, 356);
    EXPECT_INT(ledger.block_count, ==, (50000 - 1000 - 356) / 32);
    EXPECT_INT(ledger.kv_bytes, ==, ledger.block_count * 32);
    EXPECT(ledger.weight_bytes + ledger.workspace_bytes + ledger.kv_bytes <= 50000);
    wish.graph_bytes = 640;
    EXPECT_INT(make(&ledger, &wish), ==, 0);
    EXPECT_INT(ledger.graph_bytes, ==, 640);
    EXPECT_INT(ledger.block_count, ==, (50000 - 1000 - 356 - 640) / 32);
}

/* Each term of the sum, one at a time: with so many bytes more of it the pool has as many fewer. */
static void every_term_is_taken_off_the_pool(void)
{
    static const size_t term[] = {offsetof(struct ledger_wish, weight_bytes),
                                  offsetof(struct ledger_wish, workspace_bytes),
                                  offsetof(struct ledger_wish, graph_bytes)};

    for (size_t i = 0; i < sizeof(term) / sizeof(*term); i++) {
        struct ledger_wish wish = simple();
        struct ledger before, after;

        wish.slot_max = 1000;
        EXPECT_INT(make(&before, &wish), ==, 0);
        *(int64_t *)((char *)&wish + term[i]) += 3200;
        EXPECT_INT(make(&after, &wish), ==, 0);
        EXPECT_INT(after.block_count, ==, before.block_count - 100);
        EXPECT_INT(
            after.weight_bytes + after.workspace_bytes + after.graph_bytes + after.kv_bytes, ==,
            before.weight_bytes + before.workspace_bytes + before.graph_bytes + before.kv_bytes);
        wish.block_count = (int32_t)((100000 - 1356) / 32 - 99); /* a size that is given, too */
        EXPECT_INT(make(&after, &wish), ==, -ENOMEM);
        wish.block_count--;
        EXPECT_INT(make(&after, &wish), ==, 0);
    }
}

static void a_devices_own_memory_is_shared_out_as_a_whole(void)
{
    struct ledger_wish wish = simple();
    struct ledger ledger;

    wish.slot_max = 1000;
    wish.total_bytes = 120000; /* others have 20,000: the share is of all the same */
    EXPECT_INT(make(&ledger, &wish), ==, 0);
    EXPECT_INT(ledger.block_count, ==, (60000 - 1000 - 356) / 32);
    wish.taken_bytes = 3200; /* what the device took when it opened is part of the share */
    EXPECT_INT(make(&ledger, &wish), ==, 0);
    EXPECT_INT(ledger.block_count, ==, (60000 - 3200 - 1000 - 356) / 32);
    wish.taken_bytes = 0;
    wish.memory_share = 0.9;
    EXPECT_INT(make(&ledger, &wish), ==, -ENOMEM);
    EXPECT_STRING(message, "not enough memory: 0.9 of the device's 117.2 KiB is 105.5 KiB, but "
                           "only 97.7 KiB are free; ask for a smaller share of the memory, or end "
                           "what else uses the device");
    wish.kv_bytes = 3200; /* a size that is given asks for no share */
    EXPECT_INT(make(&ledger, &wish), ==, 0);
    EXPECT_INT(ledger.block_count, ==, 100);
}

static void the_pool_is_no_larger_than_can_be_used(void)
{
    struct ledger_wish wish = simple();
    struct ledger ledger;

    EXPECT_INT(make(&ledger, &wish), ==, 0);
    EXPECT_INT(ledger.block_count, ==, 4 * 256 / 16);
}

static void the_context_shrinks_only_when_none_was_asked_for(void)
{
    struct ledger_wish wish = simple();
    struct ledger ledger;

    wish.free_bytes = 2 * (1100 + 5 * (32 + 16) + 20);
    EXPECT_INT(make(&ledger, &wish), ==, 0);
    EXPECT_INT(ledger.context_max, ==, 5 * 16);
    EXPECT_INT(ledger.block_count, ==, 5);
    wish.context_max = 5 * 16;
    EXPECT_INT(make(&ledger, &wish), ==, 0);
    wish.context_max = 6 * 16;
    EXPECT_INT(make(&ledger, &wish), ==, -ENOMEM);
    EXPECT(strstr(message, "not enough memory: weights 1000 bytes") != NULL);
    EXPECT(strstr(message, "one sequence of 96 tokens takes 6") != NULL);
}

static void what_cannot_fit_at_all_is_refused(void)
{
    struct ledger_wish wish = simple();
    struct ledger ledger;

    wish.free_bytes = 2 * 1100;
    EXPECT_INT(make(&ledger, &wish), ==, -ENOMEM);
    wish.weight_bytes = 1LL << 40;
    EXPECT_INT(make(&ledger, &wish), ==, -ENOMEM);
    EXPECT(strstr(message, "weights 1.0 TiB + workspace 356 bytes + KV") != NULL);
    wish.graph_bytes = 2048;
    EXPECT_INT(make(&ledger, &wish), ==, -ENOMEM);
    EXPECT(strstr(message, "weights 1.0 TiB + workspace 356 bytes + graphs 2.0 KiB + KV") != NULL);
}

static void given_pools_are_taken_as_they_are(void)
{
    struct ledger_wish wish = simple();
    struct ledger ledger;

    wish.block_count = 3;
    EXPECT_INT(make(&ledger, &wish), ==, 0);
    EXPECT_INT(ledger.block_count, ==, 3);
    EXPECT_INT(ledger.context_max, ==, 48);
    wish.context_max = 200; /* an override may hold less than the longest sequence */
    EXPECT_INT(make(&ledger, &wish), ==, 0);
    EXPECT_INT(ledger.context_max, ==, 200);
    wish.block_count = 0;
    wish.kv_bytes = 100;
    EXPECT_INT(make(&ledger, &wish), ==, -ENOMEM);
    EXPECT(strstr(message, "a KV pool of 100 bytes holds 3 blocks") != NULL);
    wish.context_max = 0;
    EXPECT_INT(make(&ledger, &wish), ==, 0);
    EXPECT_INT(ledger.context_max, ==, 48);
    wish.kv_bytes = 10;
    EXPECT_INT(make(&ledger, &wish), ==, -ENOMEM);
    wish.kv_bytes = 1 << 20;
    EXPECT_INT(make(&ledger, &wish), ==, -ENOMEM);
    EXPECT(strstr(message, "not enough memory") != NULL);
}

static void a_context_beyond_the_models_is_refused(void)
{
    struct ledger_wish wish = simple();
    struct ledger ledger;

    wish.context_max = 257;
    EXPECT_INT(make(&ledger, &wish), ==, -ENOTSUP);
    EXPECT(strstr(message, "257") != NULL && strstr(message, "256") != NULL);
}

static void rotations_are_those_of_the_library(void)
{
    static float table[5000 * 32 * 2];
    struct rope_shape rope = {.base = 10000, .factor = 8, .rotary = 64};
    double worst = 0;

    EXPECT_INT(rope_table_bytes(&rope, 5000), ==, sizeof(table));
    rope_table_fill(&rope, 5000, table);
    for (int p = 0; p < 5000; p++)
        for (int i = 0; i < 32; i++) {
            double angle = p / 8.0 * pow(10000, -2.0 * i / 64);

            worst = fmax(worst, fabs((double)table[(p * 32 + i) * 2] - cos(angle)));
            worst = fmax(worst, fabs((double)table[(p * 32 + i) * 2 + 1] - sin(angle)));
        }
    EXPECT(worst < 6e-8); /* half a unit in the last place of an f32 near 1 */
}

static void architectures_are_found_by_name(void)
{
    char names[64];

    EXPECT(arch_find("gemma3") == &arch_gemma3);
    EXPECT(arch_find("gemma") == NULL);
    arch_names(names, sizeof(names));
    EXPECT_STRING(names, "llama, mistral, qwen2, qwen3, gemma3");
}

static void a_limit_keeps_the_pool_small_but_not_below_one_sequence(void)
{
    struct ledger_wish wish = simple();
    struct ledger ledger;

    wish.kv_most = 20 * 32;
    EXPECT_INT(make(&ledger, &wish), ==, 0);
    EXPECT_INT(ledger.block_count, ==, 20);
    EXPECT_INT(ledger.context_max, ==, 256);
    wish.kv_most = 3 * 32;
    EXPECT_INT(make(&ledger, &wish), ==, 0);
    EXPECT_INT(ledger.block_count, ==, 16);
    wish.block_count = 30;
    EXPECT_INT(make(&ledger, &wish), ==, 0);
    EXPECT_INT(ledger.block_count, ==, 30);
}

int main(void)
{
    TEST(the_pool_takes_the_share_that_is_left);
    TEST(every_term_is_taken_off_the_pool);
    TEST(a_devices_own_memory_is_shared_out_as_a_whole);
    TEST(the_pool_is_no_larger_than_can_be_used);
    TEST(the_context_shrinks_only_when_none_was_asked_for);
    TEST(what_cannot_fit_at_all_is_refused);
    TEST(given_pools_are_taken_as_they_are);
    TEST(a_context_beyond_the_models_is_refused);
    TEST(rotations_are_those_of_the_library);
    TEST(architectures_are_found_by_name);
    TEST(a_limit_keeps_the_pool_small_but_not_below_one_sequence);
    return test_report();
}
