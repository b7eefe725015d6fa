/* Blocks: free, pinned, cached, and how they go from one to the other (docs/kvcache.md).
 *
 * Three ideas carry it. A block that was published is never written again, so that any number of
 * tables may hold it. A block that may be written is held by one table; kvcache_grow sees to that
 * before the write. And what was published is known by identity, not by hash, so that a match is
 * a proof. Every operation on a block costs the same whatever the pool holds.
 * Who may call: one thread.
 */
#include "kvcache/state.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

static int32_t ceil_shift(int32_t value, int32_t shift)
{
    return (int32_t)(((int64_t)value + (1 << shift) - 1) >> shift);
}

struct kvcache *kvcache_create(const struct kvcache_config *config)
{
    assert(config->block_count >= 1);
    assert(config->block_tokens >= 1);
    assert((config->block_tokens & (config->block_tokens - 1)) == 0);
    assert(config->group_count >= 1 && config->group_count <= KVCACHE_GROUP_MAX);

    struct kvcache *kv = calloc(1, sizeof(*kv));
    if (kv == NULL)
        return NULL;
    kv->config = *config;
    kv->identity_next = IDENTITY_ROOT + 1;
    while ((1 << kv->token_shift) < config->block_tokens)
        kv->token_shift++;
    kv->bucket_count = 1;
    while (kv->bucket_count < config->block_count && kv->bucket_count < 1 << 30)
        kv->bucket_count *= 2;
    kv->root_count = config->block_count < 16 ? 16 : config->block_count;

    size_t block_count = (size_t)config->block_count;
    kv->block = calloc(block_count, sizeof(*kv->block));
    kv->token = calloc(block_count * (size_t)config->block_tokens, sizeof(*kv->token));
    kv->bucket = calloc((size_t)kv->bucket_count, sizeof(*kv->bucket));
    kv->root = calloc((size_t)kv->root_count, sizeof(*kv->root));
    kv->root_bucket = calloc((size_t)kv->bucket_count, sizeof(*kv->root_bucket));
    if (kv->block == NULL || kv->token == NULL || kv->bucket == NULL || kv->root == NULL ||
        kv->root_bucket == NULL) {
        kvcache_destroy(kv);
        return NULL;
    }
    for (int32_t i = 0; i < kv->bucket_count; i++)
        kv->bucket[i] = BLOCK_NONE;
    for (int32_t i = 0; i < config->block_count; i++)
        kv->block[i].older = i + 1 < config->block_count ? i + 1 : BLOCK_NONE;
    kv->free_count = config->block_count;
    kv->cached_oldest = BLOCK_NONE;
    kv->cached_newest = BLOCK_NONE;
    roots_init(kv);
    return kv;
}

void kvcache_destroy(struct kvcache *kv)
{
    if (kv == NULL)
        return;
    free(kv->block);
    free(kv->token);
    free(kv->bucket);
    free(kv->root);
    free(kv->root_bucket);
    free(kv);
}

/* ---- the three places of a block ---- */

static void free_put(struct kvcache *kv, int32_t index)
{
    kv->block[index].older = kv->free_first;
    kv->free_first = index;
    kv->free_count++;
}

static void cached_put(struct kvcache *kv, int32_t index)
{
    struct block *block = &kv->block[index];

    block->older = kv->cached_newest;
    block->newer = BLOCK_NONE;
    if (kv->cached_newest == BLOCK_NONE)
        kv->cached_oldest = index;
    else
        kv->block[kv->cached_newest].newer = index;
    kv->cached_newest = index;
    kv->cached_count++;
}

static void cached_take(struct kvcache *kv, int32_t index)
{
    const struct block *block = &kv->block[index];

    if (block->older == BLOCK_NONE)
        kv->cached_oldest = block->newer;
    else
        kv->block[block->older].newer = block->newer;
    if (block->newer == BLOCK_NONE)
        kv->cached_newest = block->older;
    else
        kv->block[block->newer].older = block->older;
    kv->cached_count--;
}

static void evict(struct kvcache *kv, int32_t index)
{
    cached_take(kv, index);
    index_remove(kv, index);
    free_put(kv, index);
}

static bool is_pending(const struct block *block)
{
    return block->ref_count > 0 && block->leaving == block->ref_count;
}

static void pin(struct kvcache *kv, int32_t index)
{
    struct block *block = &kv->block[index];

    if (is_pending(block))
        kv->pending_count--;
    if (block->ref_count == 0)
        cached_take(kv, index);
    block->ref_count++;
}

static void unpin(struct kvcache *kv, int32_t index, bool retired)
{
    struct block *block = &kv->block[index];

    assert(block->ref_count > 0);
    if (is_pending(block))
        kv->pending_count--;
    block->ref_count--;
    if (retired)
        block->leaving--;
    assert(block->leaving >= 0);
    if (is_pending(block))
        kv->pending_count++;
    if (block->ref_count > 0)
        return;
    if (block->identity == IDENTITY_NONE)
        free_put(kv, index);
    else
        cached_put(kv, index);
}

/* An unpublished block, pinned once: a free one, or else the cached one unused for longest. */
static int32_t take(struct kvcache *kv)
{
    if (kv->free_count == 0) {
        evict(kv, kv->cached_oldest);
        kv->evict_count++;
    }
    int32_t index = kv->free_first;
    assert(index != BLOCK_NONE);
    kv->free_first = kv->block[index].older;
    kv->free_count--;
    kv->block[index].ref_count = 1;
    assert(kv->block[index].identity == IDENTITY_NONE);
    return index;
}

/* ---- match ---- */

/* Finds one more block of every group after `parent`: its identity, or IDENTITY_NONE. */
static int64_t find_next(const struct kvcache *kv, int64_t parent, const int32_t *token,
                         int32_t *found /* [group_count] */)
{
    uint64_t hash = index_hash(kv, parent, token);

    assert(kv->config.group_count >= 1);
    for (int32_t g = 0; g < kv->config.group_count; g++) {
        found[g] = index_find(kv, hash, parent, g, token);
        if (found[g] == BLOCK_NONE)
            return IDENTITY_NONE;
    }
    return kv->block[found[0]].identity;
}

/* Whole blocks that may be matched: the last token is always computed, for its logits
 * (kvcache.md (12)). */
static int32_t match_block_max(const struct kvcache *kv, int32_t token_count)
{
    return kv->config.matching && token_count > 0 ? (token_count - 1) >> kv->token_shift : 0;
}

void kvcache_table_init(struct kv_table *table, int64_t root)
{
    table->block_count = 0;
    table->published_count = 0;
    table->forked_count = 0;
    table->parent = root;
    table->retired = false;
}

int32_t kvcache_match(struct kvcache *kv, struct kv_table *table, const int32_t *token,
                      int32_t token_count, int64_t root)
{
    int32_t block_max = match_block_max(kv, token_count);
    int32_t found[KVCACHE_GROUP_MAX];

    assert(table->block_count == 0);
    kvcache_table_init(table, root);
    if (block_max > table->block_max)
        block_max = table->block_max;
    for (int32_t i = 0; i < block_max; i++) {
        int64_t identity = find_next(kv, table->parent, token + (i << kv->token_shift), found);
        if (identity == IDENTITY_NONE)
            break;
        for (int32_t g = 0; g < kv->config.group_count; g++) {
            assert(table->block[g] != NULL);
            pin(kv, found[g]);
            table->block[g][i] = found[g];
        }
        table->parent = identity;
        table->block_count++;
    }
    table->published_count = table->block_count;
    kv->query_tokens += token_count;
    kv->hit_tokens += table->block_count << kv->token_shift;
    return table->block_count << kv->token_shift;
}

struct kv_peek kvcache_peek(const struct kvcache *kv, const int32_t *token, int32_t token_count,
                            int64_t root)
{
    int32_t block_max = match_block_max(kv, token_count);
    int32_t found[KVCACHE_GROUP_MAX];
    struct kv_peek peek = {.parent = root};

    for (int32_t i = 0; i < block_max; i++) {
        int64_t identity = find_next(kv, peek.parent, token + (i << kv->token_shift), found);
        if (identity == IDENTITY_NONE)
            break;
        for (int32_t g = 0; g < kv->config.group_count; g++)
            peek.cached_count += kv->block[found[g]].ref_count == 0;
        peek.parent = identity;
        peek.token_count += kv->config.block_tokens;
    }
    return peek;
}

/* ---- grow and fork ---- */

int32_t kvcache_available(const struct kvcache *kv)
{
    return kv->free_count + kv->cached_count;
}

int32_t kvcache_pending(const struct kvcache *kv)
{
    return kv->pending_count;
}

int32_t kvcache_holders(const struct kvcache *kv, int32_t block)
{
    assert(block >= 0 && block < kv->config.block_count);
    return kv->block[block].ref_count;
}

/* Entries that are missing, and those from `written` on that other tables hold too; retired
 * holders count when `retired` is true. No block is looked at that this table has for itself: a
 * step asks for every sequence, and each would be a line of memory that is in no cache. */
static int32_t grow_need(const struct kvcache *kv, const struct kv_table *table, int32_t written,
                         int32_t token_count, bool retired)
{
    int32_t want = ceil_shift(token_count, kv->token_shift);
    int32_t need = 0;

    if (want > table->block_count)
        need = (want - table->block_count) * kv->config.group_count;
    for (int32_t i = written >> kv->token_shift; i < table->forked_count; i++) {
        for (int32_t g = 0; g < kv->config.group_count; g++) {
            if (table->block[g][i] == BLOCK_NONE)
                continue;
            const struct block *block = &kv->block[table->block[g][i]];
            need += block->ref_count - (retired ? 0 : block->leaving) > 1;
        }
    }
    return need;
}

bool kvcache_has_place(const struct kvcache *kv, const struct kv_table *table, int32_t written)
{
    int32_t i = written >> kv->token_shift;

    return i >= table->forked_count && i < table->block_count;
}

int32_t kvcache_grow_need(const struct kvcache *kv, const struct kv_table *table, int32_t written,
                          int32_t token_count)
{
    return grow_need(kv, table, written, token_count, true);
}

int32_t kvcache_grow_need_settled(const struct kvcache *kv, const struct kv_table *table,
                                  int32_t written, int32_t token_count)
{
    assert(!table->retired);
    return grow_need(kv, table, written, token_count, false);
}

/* Copy on write of entry `i` of one group, if others hold it too (kvcache.md (10)). */
static void unshare(struct kvcache *kv, struct kv_table *table, int32_t group, int32_t i,
                    int32_t written, struct kv_moves *moves)
{
    int32_t source = table->block[group][i];

    if (source == BLOCK_NONE || kv->block[source].ref_count == 1)
        return;
    assert(i >= table->published_count); /* kvcache.md (9) */
    int32_t target = take(kv);
    table->block[group][i] = target;
    unpin(kv, source, false);
    if (i << kv->token_shift < written) {
        assert(moves->count < moves->max);
        moves->move[moves->count++] =
            (struct kv_move){.kind = KV_COPY, .source = source, .target = target};
    }
}

bool kvcache_grow(struct kvcache *kv, struct kv_table *table, int32_t written, int32_t token_count,
                  struct kv_moves *moves)
{
    int32_t want = ceil_shift(token_count, kv->token_shift);

    assert(want <= table->block_max);
    assert(!table->retired);
    assert(written >= table->published_count << kv->token_shift);
    if (kvcache_grow_need(kv, table, written, token_count) > kvcache_available(kv))
        return false;
    for (int32_t i = written >> kv->token_shift; i < table->forked_count; i++) {
        for (int32_t g = 0; g < kv->config.group_count; g++)
            unshare(kv, table, g, i, written, moves);
    }
    while (table->block_count < want) {
        for (int32_t g = 0; g < kv->config.group_count; g++)
            table->block[g][table->block_count] = take(kv);
        table->block_count++;
    }
    return true;
}

void kvcache_fork(struct kvcache *kv, struct kv_table *parent, struct kv_table *child)
{
    assert(child->block_count == 0);
    assert(child->block_max >= parent->block_count);
    assert(!parent->retired);
    for (int32_t i = 0; i < parent->block_count; i++) {
        for (int32_t g = 0; g < kv->config.group_count; g++) {
            child->block[g][i] = parent->block[g][i];
            if (parent->block[g][i] != BLOCK_NONE)
                pin(kv, parent->block[g][i]);
        }
    }
    child->block_count = parent->block_count;
    child->published_count = parent->published_count;
    child->forked_count = parent->forked_count = parent->block_count;
    child->parent = parent->parent;
    child->retired = false;
}

/* ---- publish ---- */

/* A sibling may have published this very block, and under another parent than this table's: when
 * one of two equal parents was evicted in between. Its identity stands for the same tokens. */
static int64_t own_identity(const struct kvcache *kv, const struct kv_table *table, int32_t i)
{
    for (int32_t g = 0; g < kv->config.group_count; g++) {
        int32_t index = table->block[g][i];
        if (index != BLOCK_NONE && kv->block[index].identity != IDENTITY_NONE)
            return kv->block[index].identity;
    }
    return IDENTITY_NONE;
}

/* The identity under which these tokens after `parent` are known in any group. */
static int64_t twin_identity(const struct kvcache *kv, uint64_t hash, int64_t parent,
                             const int32_t *token)
{
    for (int32_t g = 0; g < kv->config.group_count; g++) {
        int32_t index = index_find(kv, hash, parent, g, token);
        if (index != BLOCK_NONE)
            return kv->block[index].identity;
    }
    return IDENTITY_NONE;
}

/* Puts the blocks of entry `i` into the index where no twin of theirs is: their identity. */
static int64_t publish_entry(struct kvcache *kv, const struct kv_table *table, int32_t i,
                             const int32_t *token)
{
    uint64_t hash = index_hash(kv, table->parent, token);
    int64_t identity = twin_identity(kv, hash, table->parent, token);

    if (identity == IDENTITY_NONE)
        identity = kv->identity_next++;
    for (int32_t g = 0; g < kv->config.group_count; g++) {
        int32_t index = table->block[g][i];
        if (index == BLOCK_NONE || index_find(kv, hash, table->parent, g, token) != BLOCK_NONE)
            continue;
        kv->block[index].identity = identity;
        kv->block[index].parent = table->parent;
        kv->block[index].group = g;
        index_insert(kv, index, hash, token);
    }
    return identity;
}

void kvcache_publish(struct kvcache *kv, struct kv_table *table, const int32_t *token,
                     int32_t token_count)
{
    int32_t full_count = token_count >> kv->token_shift;

    if (!kv->config.matching)
        return;
    assert(full_count <= table->block_count);
    while (table->published_count < full_count) {
        int32_t i = table->published_count++;
        int64_t identity = own_identity(kv, table, i);
        if (identity == IDENTITY_NONE)
            identity = publish_entry(kv, table, i, token + (i << kv->token_shift));
        table->parent = identity;
    }
}

/* ---- slide, retire, release, reset ---- */

void kvcache_slide(struct kvcache *kv, struct kv_table *table, int32_t group, int32_t first_token)
{
    int32_t final = first_token >> kv->token_shift;

    assert(group >= 0 && group < kv->config.group_count);
    assert(!table->retired);
    if (final > table->block_count)
        final = table->block_count;
    /* Backwards to the first gap: what an earlier slide freed is not looked at again. */
    for (int32_t i = final - 1; i >= 0 && table->block[group][i] != BLOCK_NONE; i--) {
        unpin(kv, table->block[group][i], false);
        table->block[group][i] = BLOCK_NONE;
    }
}

void kvcache_retire(struct kvcache *kv, struct kv_table *table)
{
    assert(!table->retired);
    table->retired = true;
    for (int32_t i = 0; i < table->block_count; i++) {
        for (int32_t g = 0; g < kv->config.group_count; g++) {
            if (table->block[g][i] == BLOCK_NONE)
                continue;
            struct block *block = &kv->block[table->block[g][i]];
            block->leaving++;
            assert(block->leaving <= block->ref_count);
            if (is_pending(block))
                kv->pending_count++;
        }
    }
}

void kvcache_release(struct kvcache *kv, struct kv_table *table)
{
    for (int32_t i = table->block_count - 1; i >= 0; i--) {
        for (int32_t g = 0; g < kv->config.group_count; g++) {
            if (table->block[g][i] != BLOCK_NONE)
                unpin(kv, table->block[g][i], table->retired);
        }
    }
    kvcache_table_init(table, IDENTITY_NONE);
}

bool kvcache_reset(struct kvcache *kv)
{
    if (kvcache_available(kv) < kv->config.block_count)
        return false;
    while (kv->cached_count > 0)
        evict(kv, kv->cached_oldest);
    return true;
}

struct kvcache_stats kvcache_stats(const struct kvcache *kv)
{
    return (struct kvcache_stats){
        .free_count = kv->free_count,
        .cached_count = kv->cached_count,
        .pinned_count = kv->config.block_count - kv->free_count - kv->cached_count,
        .pending_count = kv->pending_count,
        .query_tokens = kv->query_tokens,
        .hit_tokens = kv->hit_tokens,
        .evict_count = kv->evict_count,
    };
}
