/* kvcache by its sentences: each test builds a small pool and says what must be. */
#include "kvcache/kvcache.h"

#include "tests/test.h"

enum { BLOCK_TOKENS = 4, BLOCK_MAX = 8 };

/* A table with memory of its own. */
struct held {
    int32_t block[KVCACHE_GROUP_MAX][BLOCK_MAX];
    struct kv_table table;
};

static struct kv_move move_memory[BLOCK_MAX];
static struct kv_moves moves;

static struct kvcache *pool(int32_t block_count)
{
    moves = (struct kv_moves){.move = move_memory, .max = BLOCK_MAX};
    return kvcache_create(&(struct kvcache_config){.block_count = block_count,
                                                   .block_tokens = BLOCK_TOKENS,
                                                   .group_count = 1,
                                                   .matching = true});
}

static struct kv_table *table_of(struct held *held, int64_t root)
{
    held->table = (struct kv_table){.block_max = BLOCK_MAX};
    for (int32_t g = 0; g < KVCACHE_GROUP_MAX; g++)
        held->table.block[g] = held->block[g];
    kvcache_table_init(&held->table, root);
    return &held->table;
}

static void count_up(int32_t *token, int32_t count, int32_t first)
{
    for (int32_t i = 0; i < count; i++)
        token[i] = first + i;
}

/* A released sequence of these tokens, all full blocks published. */
static void cache(struct kvcache *kv, const int32_t *token, int32_t count, int64_t root)
{
    struct held held;
    struct kv_table *table = table_of(&held, root);

    int32_t found = kvcache_match(kv, table, token, count, root);
    EXPECT(kvcache_grow(kv, table, found, count, &moves));
    kvcache_publish(kv, table, token, count);
    kvcache_release(kv, table);
}

static int32_t peek_count(const struct kvcache *kv, const int32_t *token, int32_t count,
                          int64_t root)
{
    return kvcache_peek(kv, token, count, root).token_count;
}

static void grow_is_all_or_nothing(void)
{
    struct kvcache *kv = pool(4);
    struct held a;
    struct kv_table *table = table_of(&a, kvcache_root(kv, 0, 0));

    EXPECT(kvcache_grow(kv, table, 0, 3 * BLOCK_TOKENS, &moves));
    EXPECT_INT(kvcache_grow_need(kv, table, 3 * BLOCK_TOKENS, 5 * BLOCK_TOKENS), ==, 2);
    EXPECT(!kvcache_grow(kv, table, 3 * BLOCK_TOKENS, 5 * BLOCK_TOKENS, &moves));
    EXPECT_INT(table->block_count, ==, 3);
    EXPECT_INT(kvcache_available(kv), ==, 1);
    EXPECT_INT(moves.count, ==, 0);
    kvcache_check(kv);
    kvcache_release(kv, table);
    EXPECT_INT(table->block_count, ==, 0);
    EXPECT(kvcache_grow(kv, table, 0, 4 * BLOCK_TOKENS, &moves)); /* the refusal took nothing */
    kvcache_check(kv);
    kvcache_destroy(kv);
}

static void growing_to_what_is_there_takes_nothing(void)
{
    struct kvcache *kv = pool(2);
    struct held a;
    struct kv_table *table = table_of(&a, kvcache_root(kv, 0, 0));

    EXPECT(kvcache_grow(kv, table, 0, 1, &moves));
    EXPECT(kvcache_grow(kv, table, 1, BLOCK_TOKENS, &moves));
    EXPECT(kvcache_grow(kv, table, 1, 2, &moves));
    EXPECT_INT(table->block_count, ==, 1);
    EXPECT_INT(kvcache_available(kv), ==, 1);
    kvcache_destroy(kv);
}

static void a_match_leaves_the_last_token_to_compute(void)
{
    struct kvcache *kv = pool(8);
    int64_t root = kvcache_root(kv, 0, 0);
    int32_t token[12];

    count_up(token, 12, 100);
    cache(kv, token, 12, root);
    EXPECT_INT(peek_count(kv, token, 12, root), ==, 8);
    EXPECT_INT(peek_count(kv, token, 9, root), ==, 8);
    EXPECT_INT(peek_count(kv, token, 8, root), ==, 4);
    EXPECT_INT(peek_count(kv, token, 1, root), ==, 0);
    EXPECT_INT(peek_count(kv, token, 0, root), ==, 0);
    kvcache_destroy(kv);
}

static void a_match_pins_what_it_found(void)
{
    struct kvcache *kv = pool(3);
    struct held a, b;
    int64_t root = kvcache_root(kv, 0, 0);
    int32_t token[12];

    count_up(token, 12, 1);
    cache(kv, token, 8, root);
    struct kv_peek peek = kvcache_peek(kv, token, 12, root);
    EXPECT_INT(peek.cached_count, ==, 2);
    EXPECT_INT(kvcache_match(kv, table_of(&a, root), token, 12, root), ==, 8);
    EXPECT_INT(a.table.parent, ==, peek.parent);
    EXPECT_INT(a.table.published_count, ==, 2);
    EXPECT_INT(kvcache_available(kv), ==, 1);
    EXPECT_INT(kvcache_peek(kv, token, 12, root).cached_count, ==, 0);
    EXPECT(!kvcache_grow(kv, table_of(&b, root), 0, 2 * BLOCK_TOKENS, &moves));
    EXPECT_INT(peek_count(kv, token, 12, root), ==, 8);
    kvcache_check(kv);
    kvcache_release(kv, &a.table);
    EXPECT_INT(kvcache_stats(kv).cached_count, ==, 2);
    kvcache_destroy(kv);
}

static void equal_tokens_after_other_parents_do_not_match(void)
{
    struct kvcache *kv = pool(8);
    int64_t root = kvcache_root(kv, 0, 0);
    int32_t first[9] = {1, 1, 1, 1, 7, 7, 7, 7, 9};
    int32_t other[9] = {2, 2, 2, 2, 7, 7, 7, 7, 9};

    cache(kv, first, 8, root);
    cache(kv, other, 4, root);
    EXPECT_INT(peek_count(kv, other, 9, root), ==, 4);
    EXPECT_INT(peek_count(kv, first, 9, root), ==, 8);
    kvcache_destroy(kv);
}

static void equal_hashes_do_not_match(void)
{
    struct kvcache *kv = kvcache_create(&(struct kvcache_config){.block_count = 8,
                                                                 .block_tokens = BLOCK_TOKENS,
                                                                 .group_count = 1,
                                                                 .matching = true,
                                                                 .hash_constant = true});
    int64_t root = kvcache_root(kv, 0, 0);
    int32_t first[5] = {1, 2, 3, 4, 5};
    int32_t other[5] = {1, 2, 3, 5, 5};

    moves = (struct kv_moves){.move = move_memory, .max = BLOCK_MAX};
    cache(kv, first, 4, root);
    EXPECT_INT(peek_count(kv, other, 5, root), ==, 0);
    EXPECT_INT(peek_count(kv, first, 5, root), ==, 4);
    EXPECT(kvcache_root(kv, 1, 0) != kvcache_root(kv, 2, 0));
    kvcache_check(kv);
    kvcache_destroy(kv);
}

static void salts_adapters_and_private_roots_share_nothing(void)
{
    struct kvcache *kv = pool(8);
    int32_t token[5] = {1, 2, 3, 4, 5};
    int64_t salted = kvcache_root(kv, 7, 0);

    cache(kv, token, 4, salted);
    EXPECT_INT(kvcache_root(kv, 7, 0), ==, salted);
    EXPECT_INT(peek_count(kv, token, 5, kvcache_root(kv, 7, 0)), ==, 4);
    EXPECT_INT(peek_count(kv, token, 5, kvcache_root(kv, 0, 0)), ==, 0);
    EXPECT_INT(peek_count(kv, token, 5, kvcache_root(kv, 8, 0)), ==, 0);
    EXPECT_INT(peek_count(kv, token, 5, kvcache_root(kv, 7, 1)), ==, 0);
    EXPECT_INT(peek_count(kv, token, 5, kvcache_root_unique(kv)), ==, 0);
    EXPECT(kvcache_root_unique(kv) != kvcache_root_unique(kv));
    kvcache_destroy(kv);
}

static void a_root_pushed_out_comes_back_as_another(void)
{
    struct kvcache *kv = pool(4);
    int32_t token[5] = {1, 2, 3, 4, 5};
    int64_t salted = kvcache_root(kv, 1000, 0);

    cache(kv, token, 4, salted);
    for (uint64_t salt = 1; salt <= 100; salt++)
        EXPECT(kvcache_root(kv, salt, 0) != salted);
    EXPECT(kvcache_root(kv, 1000, 0) != salted);
    EXPECT_INT(peek_count(kv, token, 5, kvcache_root(kv, 1000, 0)), ==, 0);
    kvcache_check(kv);
    kvcache_destroy(kv);
}

static void without_matching_nothing_is_published_or_found(void)
{
    struct kvcache *kv = kvcache_create(
        &(struct kvcache_config){.block_count = 4, .block_tokens = BLOCK_TOKENS, .group_count = 1});
    int32_t token[5] = {1, 2, 3, 4, 5};

    moves = (struct kv_moves){.move = move_memory, .max = BLOCK_MAX};
    cache(kv, token, 5, kvcache_root(kv, 0, 0));
    EXPECT_INT(peek_count(kv, token, 5, kvcache_root(kv, 0, 0)), ==, 0);
    EXPECT_INT(kvcache_stats(kv).free_count, ==, 4);
    kvcache_destroy(kv);
}

static void only_full_blocks_are_published(void)
{
    struct kvcache *kv = pool(4);
    struct held a;
    int64_t root = kvcache_root(kv, 0, 0);
    int32_t token[8];

    count_up(token, 8, 1);
    EXPECT(kvcache_grow(kv, table_of(&a, root), 0, 8, &moves));
    kvcache_publish(kv, &a.table, token, 7);
    EXPECT_INT(a.table.published_count, ==, 1);
    kvcache_publish(kv, &a.table, token, 7);
    EXPECT_INT(a.table.published_count, ==, 1);
    kvcache_publish(kv, &a.table, token, 8);
    EXPECT_INT(a.table.published_count, ==, 2);
    kvcache_check(kv);
    kvcache_release(kv, &a.table);
    EXPECT_INT(kvcache_stats(kv).cached_count, ==, 2);
    kvcache_destroy(kv);
}

static void the_longest_unused_block_is_taken_first_and_a_prefix_last(void)
{
    struct kvcache *kv = pool(4);
    struct held a;
    int64_t root = kvcache_root(kv, 0, 0);
    int32_t old[9] = {1, 1, 1, 1, 2, 2, 2, 2, 3};
    int32_t new[9] = {4, 4, 4, 4, 5, 5, 5, 5, 6};

    cache(kv, old, 8, root);
    cache(kv, new, 8, root);
    EXPECT(kvcache_grow(kv, table_of(&a, root), 0, 1, &moves));
    EXPECT_INT(peek_count(kv, old, 9, root), ==, 4); /* its tail went, not its head */
    EXPECT_INT(peek_count(kv, new, 9, root), ==, 8);
    EXPECT(kvcache_grow(kv, &a.table, 1, 2 * BLOCK_TOKENS, &moves));
    EXPECT_INT(peek_count(kv, old, 9, root), ==, 0);
    EXPECT_INT(peek_count(kv, new, 9, root), ==, 8);
    EXPECT_INT(kvcache_stats(kv).evict_count, ==, 2);
    kvcache_check(kv);
    kvcache_destroy(kv);
}

static void a_match_makes_a_prefix_new_again(void)
{
    struct kvcache *kv = pool(2);
    struct held a;
    int64_t root = kvcache_root(kv, 0, 0);
    int32_t old[5] = {1, 1, 1, 1, 2};
    int32_t new[5] = {3, 3, 3, 3, 4};

    cache(kv, old, 4, root);
    cache(kv, new, 4, root);
    EXPECT_INT(kvcache_match(kv, table_of(&a, root), old, 5, root), ==, 4);
    kvcache_release(kv, &a.table);
    EXPECT(kvcache_grow(kv, table_of(&a, root), 0, 1, &moves));
    EXPECT_INT(peek_count(kv, old, 5, root), ==, 4);
    EXPECT_INT(peek_count(kv, new, 5, root), ==, 0);
    kvcache_destroy(kv);
}

static void siblings_share_and_the_first_to_write_copies(void)
{
    struct kvcache *kv = pool(4);
    struct held a, b;

    EXPECT(kvcache_grow(kv, table_of(&a, 1), 0, 6, &moves));
    EXPECT(kvcache_has_place(kv, &a.table, 6));
    kvcache_fork(kv, &a.table, table_of(&b, 1));
    EXPECT(!kvcache_has_place(kv, &a.table, 6));
    EXPECT(!kvcache_has_place(kv, &b.table, 6));
    EXPECT_INT(kvcache_available(kv), ==, 2);
    EXPECT_INT(kvcache_holders(kv, a.block[0][1]), ==, 2);
    EXPECT_INT(kvcache_grow_need(kv, &a.table, 6, 7), ==, 1);
    EXPECT(kvcache_grow(kv, &a.table, 6, 7, &moves));
    EXPECT_INT(moves.count, ==, 1);
    EXPECT_INT(moves.move[0].kind, ==, KV_COPY);
    EXPECT_INT(moves.move[0].source, ==, b.block[0][1]);
    EXPECT_INT(moves.move[0].target, ==, a.block[0][1]);
    EXPECT_INT(a.block[0][0], ==, b.block[0][0]);
    EXPECT_INT(kvcache_grow_need(kv, &b.table, 6, 7), ==, 0); /* its own by now */
    EXPECT(kvcache_grow(kv, &b.table, 6, 7, &moves));
    EXPECT_INT(moves.count, ==, 1);
    kvcache_check(kv);
    kvcache_destroy(kv);
}

static void siblings_of_a_full_block_copy_nothing(void)
{
    struct kvcache *kv = pool(4);
    struct held a, b;

    EXPECT(kvcache_grow(kv, table_of(&a, 1), 0, 8, &moves));
    kvcache_fork(kv, &a.table, table_of(&b, 1));
    EXPECT(kvcache_grow(kv, &a.table, 8, 9, &moves));
    EXPECT(kvcache_grow(kv, &b.table, 8, 9, &moves));
    EXPECT_INT(moves.count, ==, 0);
    EXPECT_INT(kvcache_available(kv), ==, 0);
    EXPECT(a.block[0][2] != b.block[0][2]);
    EXPECT(kvcache_has_place(kv, &a.table, 9));
    EXPECT(!kvcache_has_place(kv, &a.table, 12));
    kvcache_destroy(kv);
}

static void a_shared_block_with_nothing_in_it_is_replaced_without_a_copy(void)
{
    struct kvcache *kv = pool(4);
    struct held a, b;

    EXPECT(kvcache_grow(kv, table_of(&a, 1), 0, 8, &moves)); /* room ahead of what is written */
    kvcache_fork(kv, &a.table, table_of(&b, 1));
    EXPECT(kvcache_grow(kv, &a.table, 4, 5, &moves));
    EXPECT_INT(moves.count, ==, 0);
    EXPECT(a.block[0][1] != b.block[0][1]);
    kvcache_check(kv);
    kvcache_destroy(kv);
}

static void a_refused_copy_changes_nothing(void)
{
    struct kvcache *kv = pool(2);
    struct held a, b;

    EXPECT(kvcache_grow(kv, table_of(&a, 1), 0, 6, &moves));
    kvcache_fork(kv, &a.table, table_of(&b, 1));
    EXPECT(!kvcache_grow(kv, &b.table, 6, 7, &moves));
    EXPECT_INT(moves.count, ==, 0);
    EXPECT_INT(b.block[0][1], ==, a.block[0][1]);
    EXPECT_INT(kvcache_holders(kv, a.block[0][1]), ==, 2);
    kvcache_check(kv);
    kvcache_destroy(kv);
}

static void a_twin_keeps_its_block_and_goes_on_under_the_first_ones_identity(void)
{
    struct kvcache *kv = pool(8);
    struct held a, b;
    int64_t root = kvcache_root(kv, 0, 0);
    int32_t token[13];

    count_up(token, 13, 1);
    EXPECT(kvcache_grow(kv, table_of(&a, root), 0, 8, &moves));
    EXPECT(kvcache_grow(kv, table_of(&b, root), 0, 12, &moves));
    kvcache_publish(kv, &a.table, token, 8);
    kvcache_publish(kv, &b.table, token, 12);
    EXPECT(a.block[0][0] != b.block[0][0]);
    kvcache_check(kv);
    /* Blocks 0 and 1 are a's, block 2 is b's, and they form one prefix. */
    EXPECT_INT(peek_count(kv, token, 13, root), ==, 12);
    kvcache_release(kv, &b.table);
    EXPECT_INT(kvcache_stats(kv).cached_count, ==, 1);
    kvcache_release(kv, &a.table);
    EXPECT_INT(peek_count(kv, token, 13, root), ==, 12);
    kvcache_check(kv);
    kvcache_destroy(kv);
}

static void siblings_publish_a_shared_block_once_though_its_parent_was_evicted(void)
{
    struct kvcache *kv = pool(8);
    struct held twin, a, b, c;
    int64_t root = kvcache_root(kv, 0, 0);
    int32_t token[9];

    count_up(token, 9, 1);
    EXPECT(kvcache_grow(kv, table_of(&a, root), 0, 8, &moves));
    EXPECT(kvcache_grow(kv, table_of(&twin, root), 0, 4, &moves));
    kvcache_publish(kv, &twin.table, token, 4);
    kvcache_fork(kv, &a.table, table_of(&b, root));
    kvcache_publish(kv, &a.table, token, 8); /* goes on under the twin's identity */
    kvcache_release(kv, &twin.table);
    EXPECT(kvcache_grow(kv, table_of(&c, root), 0, 6 * BLOCK_TOKENS, &moves)); /* evicts it */
    EXPECT_INT(kvcache_stats(kv).evict_count, ==, 1);
    kvcache_publish(kv, &b.table, token, 8); /* the same blocks, and the first one has no twin */
    EXPECT(a.table.parent == b.table.parent);
    kvcache_check(kv);
    kvcache_release(kv, &a.table);
    kvcache_release(kv, &b.table);
    kvcache_check(kv);
    kvcache_destroy(kv);
}

static void a_child_of_an_evicted_parent_is_not_found(void)
{
    struct kvcache *kv = pool(4);
    struct held a, b, c;
    int64_t root = kvcache_root(kv, 0, 0);
    int32_t token[9];

    count_up(token, 9, 1);
    EXPECT(kvcache_grow(kv, table_of(&a, root), 0, 4, &moves));
    EXPECT(kvcache_grow(kv, table_of(&b, root), 0, 8, &moves));
    kvcache_publish(kv, &a.table, token, 4); /* the parent is a's ... */
    kvcache_publish(kv, &b.table, token, 8); /* ... and its child b's */
    kvcache_release(kv, &a.table);
    EXPECT(kvcache_grow(kv, table_of(&c, root), 0, 8, &moves)); /* takes the parent */
    EXPECT_INT(kvcache_stats(kv).evict_count, ==, 1);
    EXPECT_INT(peek_count(kv, token, 9, root), ==, 0);
    kvcache_release(kv, &c.table);
    /* Computed again, the parent has another identity: the old child is not its child. */
    cache(kv, token, 4, root);
    EXPECT_INT(peek_count(kv, token, 9, root), ==, 4);
    kvcache_check(kv);
    kvcache_destroy(kv);
}

static void retired_tables_are_pending_until_released(void)
{
    struct kvcache *kv = pool(4);
    struct held a, b;

    EXPECT(kvcache_grow(kv, table_of(&a, 1), 0, 6, &moves));
    kvcache_fork(kv, &a.table, table_of(&b, 1));
    EXPECT(kvcache_grow(kv, &b.table, 6, 7, &moves));
    kvcache_retire(kv, &b.table);
    EXPECT_INT(kvcache_pending(kv), ==, 1); /* the shared block is still a's */
    EXPECT_INT(kvcache_available(kv), ==, 1);
    kvcache_retire(kv, &a.table);
    EXPECT_INT(kvcache_pending(kv), ==, 3);
    kvcache_check(kv);
    kvcache_release(kv, &a.table);
    EXPECT_INT(kvcache_pending(kv), ==, 2);
    EXPECT_INT(kvcache_available(kv), ==, 2);
    kvcache_release(kv, &b.table);
    EXPECT_INT(kvcache_pending(kv), ==, 0);
    EXPECT_INT(kvcache_available(kv), ==, 4);
    kvcache_check(kv);
    kvcache_destroy(kv);
}

static void a_match_brings_a_pending_block_back(void)
{
    struct kvcache *kv = pool(4);
    struct held a, b;
    int64_t root = kvcache_root(kv, 0, 0);
    int32_t token[5] = {1, 2, 3, 4, 5};

    EXPECT(kvcache_grow(kv, table_of(&a, root), 0, 4, &moves));
    kvcache_publish(kv, &a.table, token, 4);
    kvcache_retire(kv, &a.table);
    EXPECT_INT(kvcache_pending(kv), ==, 1);
    EXPECT_INT(kvcache_match(kv, table_of(&b, root), token, 5, root), ==, 4);
    EXPECT_INT(kvcache_pending(kv), ==, 0);
    kvcache_release(kv, &a.table);
    EXPECT_INT(kvcache_holders(kv, b.block[0][0]), ==, 1);
    kvcache_check(kv);
    kvcache_destroy(kv);
}

static void a_copy_is_not_needed_once_the_other_holder_has_left(void)
{
    struct kvcache *kv = pool(2);
    struct held a, b;

    EXPECT(kvcache_grow(kv, table_of(&a, 1), 0, 6, &moves));
    kvcache_fork(kv, &a.table, table_of(&b, 1));
    EXPECT_INT(kvcache_grow_need_settled(kv, &a.table, 6, 7), ==, 1);
    kvcache_retire(kv, &b.table);
    EXPECT_INT(kvcache_grow_need(kv, &a.table, 6, 7), ==, 1);
    EXPECT_INT(kvcache_grow_need_settled(kv, &a.table, 6, 7), ==, 0);
    kvcache_release(kv, &b.table);
    EXPECT_INT(kvcache_grow_need(kv, &a.table, 6, 7), ==, 0);
    kvcache_destroy(kv);
}

static void reset_forgets_all_or_nothing(void)
{
    struct kvcache *kv = pool(4);
    struct held a;
    int64_t root = kvcache_root(kv, 0, 0);
    int32_t token[9];

    count_up(token, 9, 1);
    cache(kv, token, 8, root);
    EXPECT(kvcache_grow(kv, table_of(&a, root), 0, 1, &moves));
    EXPECT(!kvcache_reset(kv));
    EXPECT_INT(peek_count(kv, token, 9, root), ==, 8);
    kvcache_release(kv, &a.table);
    EXPECT(kvcache_reset(kv));
    EXPECT_INT(peek_count(kv, token, 9, root), ==, 0);
    EXPECT_INT(kvcache_stats(kv).free_count, ==, 4);
    EXPECT(kvcache_reset(kv));
    kvcache_check(kv);
    kvcache_destroy(kv);
}

static void stats_count_what_match_asked_and_found(void)
{
    struct kvcache *kv = pool(4);
    struct held a;
    int64_t root = kvcache_root(kv, 0, 0);
    int32_t token[9];

    count_up(token, 9, 1);
    cache(kv, token, 8, root);
    EXPECT_INT(kvcache_stats(kv).query_tokens, ==, 8);
    EXPECT_INT(kvcache_stats(kv).hit_tokens, ==, 0);
    (void)peek_count(kv, token, 9, root);
    kvcache_match(kv, table_of(&a, root), token, 9, root);
    EXPECT_INT(kvcache_stats(kv).query_tokens, ==, 17);
    EXPECT_INT(kvcache_stats(kv).hit_tokens, ==, 8);
    EXPECT_INT(kvcache_stats(kv).pinned_count, ==, 2);
    kvcache_destroy(kv);
}

static struct kvcache *pool_of_two_groups(int32_t block_count)
{
    moves = (struct kv_moves){.move = move_memory, .max = BLOCK_MAX};
    return kvcache_create(&(struct kvcache_config){.block_count = block_count,
                                                   .block_tokens = BLOCK_TOKENS,
                                                   .group_count = 2,
                                                   .matching = true});
}

static void two_groups_have_lists_of_their_own_and_match_together(void)
{
    struct kvcache *kv = pool_of_two_groups(8);
    struct held a, b;
    int64_t root = kvcache_root(kv, 0, 0);
    int32_t token[9];

    count_up(token, 9, 1);
    EXPECT_INT(kvcache_grow_need(kv, table_of(&a, root), 0, 8), ==, 4);
    EXPECT(kvcache_grow(kv, &a.table, 0, 8, &moves));
    EXPECT(a.block[0][0] != a.block[1][0]);
    kvcache_publish(kv, &a.table, token, 8);
    EXPECT_INT(kvcache_match(kv, table_of(&b, root), token, 9, root), ==, 8);
    EXPECT_INT(b.block[0][1], ==, a.block[0][1]);
    EXPECT_INT(b.block[1][1], ==, a.block[1][1]);
    kvcache_check(kv);
    kvcache_destroy(kv);
}

static void behind_a_window_a_group_frees_its_blocks(void)
{
    struct kvcache *kv = pool_of_two_groups(8);
    struct held a, b;
    int64_t root = kvcache_root(kv, 0, 0);
    int32_t token[13];

    count_up(token, 13, 1);
    EXPECT(kvcache_grow(kv, table_of(&a, root), 0, 12, &moves));
    kvcache_publish(kv, &a.table, token, 4);
    kvcache_slide(kv, &a.table, 1, 9);
    EXPECT_INT(a.block[1][0], ==, -1);
    EXPECT_INT(a.block[1][1], ==, -1);
    EXPECT(a.block[1][2] >= 0);
    EXPECT(a.block[0][0] >= 0);
    EXPECT_INT(kvcache_stats(kv).free_count, ==, 3); /* block 1; block 0 was published */
    EXPECT_INT(kvcache_stats(kv).cached_count, ==, 1);
    kvcache_slide(kv, &a.table, 1, 9);
    kvcache_fork(kv, &a.table, table_of(&b, root));
    EXPECT_INT(b.block[1][0], ==, -1);
    kvcache_publish(kv, &a.table, token, 12);
    EXPECT_INT(kvcache_peek(kv, token, 13, root).token_count, ==, 4); /* as far as both reach */
    kvcache_check(kv);
    kvcache_release(kv, &a.table);
    kvcache_release(kv, &b.table);
    EXPECT_INT(kvcache_available(kv), ==, 8);
    kvcache_check(kv);
    kvcache_destroy(kv);
}

static void a_pool_of_one_block_works(void)
{
    struct kvcache *kv = pool(1);
    struct held a;
    int64_t root = kvcache_root(kv, 0, 0);
    int32_t token[5] = {1, 2, 3, 4, 5};

    for (int32_t i = 0; i < 3; i++) {
        EXPECT(kvcache_grow(kv, table_of(&a, root), 0, 4, &moves));
        kvcache_publish(kv, &a.table, token, 4);
        EXPECT(!kvcache_grow(kv, &a.table, 4, 5, &moves));
        kvcache_release(kv, &a.table);
        kvcache_check(kv);
    }
    EXPECT_INT(kvcache_stats(kv).evict_count, ==, 2);
    kvcache_destroy(kv);
}

static void destroying_nothing_is_fine(void)
{
    kvcache_destroy(NULL);
}

int main(void)
{
    TEST(grow_is_all_or_nothing);
    TEST(growing_to_what_is_there_takes_nothing);
    TEST(a_match_leaves_the_last_token_to_compute);
    TEST(a_match_pins_what_it_found);
    TEST(equal_tokens_after_other_parents_do_not_match);
    TEST(equal_hashes_do_not_match);
    TEST(salts_adapters_and_private_roots_share_nothing);
    TEST(a_root_pushed_out_comes_back_as_another);
    TEST(without_matching_nothing_is_published_or_found);
    TEST(only_full_blocks_are_published);
    TEST(the_longest_unused_block_is_taken_first_and_a_prefix_last);
    TEST(a_match_makes_a_prefix_new_again);
    TEST(siblings_share_and_the_first_to_write_copies);
    TEST(siblings_of_a_full_block_copy_nothing);
    TEST(a_shared_block_with_nothing_in_it_is_replaced_without_a_copy);
    TEST(a_refused_copy_changes_nothing);
    TEST(a_twin_keeps_its_block_and_goes_on_under_the_first_ones_identity);
    TEST(siblings_publish_a_shared_block_once_though_its_parent_was_evicted);
    TEST(a_child_of_an_evicted_parent_is_not_found);
    TEST(retired_tables_are_pending_until_released);
    TEST(a_match_brings_a_pending_block_back);
    TEST(a_copy_is_not_needed_once_the_other_holder_has_left);
    TEST(reset_forgets_all_or_nothing);
    TEST(stats_count_what_match_asked_and_found);
    TEST(two_groups_have_lists_of_their_own_and_match_together);
    TEST(behind_a_window_a_group_frees_its_blocks);
    TEST(a_pool_of_one_block_works);
    TEST(destroying_nothing_is_fine);
    return test_report();
}
