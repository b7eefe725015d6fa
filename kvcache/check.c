/* The invariants of docs/kvcache.md, checked one by one. Costs a walk over all blocks: for tests
 * and simulation. */
#include "kvcache/state.h"

#include <assert.h>

/* (1), (2): the free list holds exactly free_count blocks, none pinned, none published. */
static void check_free(const struct kvcache *kv)
{
    int32_t count = 0;

    for (int32_t i = kv->free_first; count < kv->free_count; i = kv->block[i].older) {
        assert(i >= 0 && i < kv->config.block_count);
        assert(kv->block[i].ref_count == 0);
        assert(kv->block[i].identity == IDENTITY_NONE);
        count++;
    }
}

/* (1), (3): the cached list, both ways: published, not pinned. */
static void check_cached(const struct kvcache *kv)
{
    int32_t count = 0;
    int32_t older = BLOCK_NONE;

    for (int32_t i = kv->cached_oldest; i != BLOCK_NONE; i = kv->block[i].newer) {
        assert(i >= 0 && i < kv->config.block_count);
        assert(kv->block[i].older == older);
        assert(kv->block[i].ref_count == 0);
        assert(kv->block[i].identity != IDENTITY_NONE);
        older = i;
        count++;
        assert(count <= kv->cached_count);
    }
    assert(kv->cached_newest == older);
    assert(count == kv->cached_count);
}

/* (4) to (6): every block in the index is found as itself, under an identity younger than its
 * parent's. That it finds itself, and not another, proves that it has no twin in the index. */
static void check_index(const struct kvcache *kv)
{
    int32_t chained = 0, indexed = 0;

    for (int32_t b = 0; b < kv->bucket_count; b++) {
        for (int32_t i = kv->bucket[b]; i != BLOCK_NONE; i = kv->block[i].chain_next) {
            chained++;
            assert(kv->block[i].identity != IDENTITY_NONE);
            assert(chained <= kv->config.block_count);
        }
    }
    for (int32_t i = 0; i < kv->config.block_count; i++) {
        const struct block *block = &kv->block[i];
        if (block->identity == IDENTITY_NONE)
            continue;
        const int32_t *token = kv->token + ((int64_t)i << kv->token_shift);
        indexed++;
        assert(block->parent < block->identity);
        assert(block->identity < kv->identity_next);
        assert(block->hash == index_hash(kv, block->parent, token));
        assert(index_find(kv, block->hash, block->parent, block->group, token) == i);
    }
    assert(chained == indexed);
}

/* (1), (7): pinned blocks are the rest, and pending those that only retired tables hold. */
static void check_pinned(const struct kvcache *kv)
{
    int32_t pinned = 0, pending = 0;

    for (int32_t i = 0; i < kv->config.block_count; i++) {
        const struct block *block = &kv->block[i];
        assert(block->ref_count >= 0);
        assert(block->leaving >= 0);
        assert(block->leaving <= block->ref_count);
        pinned += block->ref_count > 0;
        pending += block->ref_count > 0 && block->leaving == block->ref_count;
    }
    assert(pinned + kv->free_count + kv->cached_count == kv->config.block_count);
    assert(pending == kv->pending_count);
}

void kvcache_check(const struct kvcache *kv)
{
    check_free(kv);
    check_cached(kv);
    check_index(kv);
    check_pinned(kv);
    assert(kv->hit_tokens <= kv->query_tokens); /* (8) */
}
