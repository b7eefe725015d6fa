/* The index of published blocks, and the roots.
 *
 * A hash only says where to look: a block is found by its parent's identity, its group and all
 * of its tokens (kvcache.md (6)). Chains are doubly linked, so that taking a block out costs the
 * same whatever its bucket holds. Roots are kept in a table of fixed size; the one unused for
 * longest makes room, and if its pair is asked for again it gets a new identity: blocks under the
 * old one are not found any more, which is a loss and never an error.
 */
#include "kvcache/state.h"

#include <assert.h>
#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

uint64_t index_hash(const struct kvcache *kv, int64_t parent, const int32_t *token)
{
    size_t bytes = sizeof(*token) * (size_t)kv->config.block_tokens;

    return kv->config.hash_constant ? 0 : XXH3_64bits_withSeed(token, bytes, (uint64_t)parent);
}

static int32_t bucket_of(const struct kvcache *kv, uint64_t hash)
{
    return (int32_t)(hash & (uint64_t)(kv->bucket_count - 1));
}

int32_t index_find(const struct kvcache *kv, uint64_t hash, int64_t parent, int32_t group,
                   const int32_t *token)
{
    size_t bytes = sizeof(*token) * (size_t)kv->config.block_tokens;
    int32_t index = kv->bucket[bucket_of(kv, hash)];

    for (; index != BLOCK_NONE; index = kv->block[index].chain_next) {
        const struct block *block = &kv->block[index];
        const int32_t *own = kv->token + ((int64_t)index << kv->token_shift);
        if (block->hash == hash && block->parent == parent && block->group == group &&
            memcmp(own, token, bytes) == 0)
            return index;
    }
    return BLOCK_NONE;
}

void index_insert(struct kvcache *kv, int32_t index, uint64_t hash, const int32_t *token)
{
    struct block *block = &kv->block[index];
    int32_t *first = &kv->bucket[bucket_of(kv, hash)];

    assert(block->identity != IDENTITY_NONE);
    assert(block->ref_count > 0);
    block->hash = hash;
    block->chain_prev = BLOCK_NONE;
    block->chain_next = *first;
    if (*first != BLOCK_NONE)
        kv->block[*first].chain_prev = index;
    *first = index;
    memcpy(kv->token + ((int64_t)index << kv->token_shift), token,
           sizeof(*token) * (size_t)kv->config.block_tokens);
}

void index_remove(struct kvcache *kv, int32_t index)
{
    struct block *block = &kv->block[index];

    assert(block->identity != IDENTITY_NONE);
    if (block->chain_prev == BLOCK_NONE)
        kv->bucket[bucket_of(kv, block->hash)] = block->chain_next;
    else
        kv->block[block->chain_prev].chain_next = block->chain_next;
    if (block->chain_next != BLOCK_NONE)
        kv->block[block->chain_next].chain_prev = block->chain_prev;
    block->identity = IDENTITY_NONE;
}

/* ---- roots ---- */

void roots_init(struct kvcache *kv)
{
    for (int32_t i = 0; i < kv->bucket_count; i++)
        kv->root_bucket[i] = BLOCK_NONE;
    for (int32_t i = 0; i < kv->root_count; i++) {
        kv->root[i] = (struct root){.chain_next = BLOCK_NONE, .older = i - 1, .newer = i + 1};
    }
    kv->root[kv->root_count - 1].newer = BLOCK_NONE;
    kv->root_oldest = 0;
    kv->root_newest = kv->root_count - 1;
}

static void root_use(struct kvcache *kv, int32_t index)
{
    struct root *root = &kv->root[index];

    if (kv->root_newest == index)
        return;
    kv->root[root->newer].older = root->older;
    if (root->older == BLOCK_NONE)
        kv->root_oldest = root->newer;
    else
        kv->root[root->older].newer = root->newer;
    root->older = kv->root_newest;
    root->newer = BLOCK_NONE;
    kv->root[kv->root_newest].newer = index;
    kv->root_newest = index;
}

static int32_t root_bucket_of(const struct kvcache *kv, uint64_t salt, uint64_t adapter)
{
    uint64_t pair[2] = {salt, adapter};

    return bucket_of(kv, kv->config.hash_constant ? 0 : XXH3_64bits(pair, sizeof(pair)));
}

static void root_unchain(struct kvcache *kv, int32_t index)
{
    const struct root *root = &kv->root[index];
    int32_t *link = &kv->root_bucket[root_bucket_of(kv, root->salt, root->adapter)];

    while (*link != index)
        link = &kv->root[*link].chain_next;
    *link = root->chain_next;
}

int64_t kvcache_root(struct kvcache *kv, uint64_t salt, uint64_t adapter)
{
    if (salt == 0 && adapter == 0)
        return IDENTITY_ROOT;

    int32_t bucket = root_bucket_of(kv, salt, adapter);
    int32_t index = kv->root_bucket[bucket];
    for (; index != BLOCK_NONE; index = kv->root[index].chain_next) {
        if (kv->root[index].salt == salt && kv->root[index].adapter == adapter)
            break;
    }
    if (index == BLOCK_NONE) {
        index = kv->root_oldest;
        if (kv->root[index].identity != IDENTITY_NONE)
            root_unchain(kv, index);
        kv->root[index].salt = salt;
        kv->root[index].adapter = adapter;
        kv->root[index].identity = kv->identity_next++;
        kv->root[index].chain_next = kv->root_bucket[bucket];
        kv->root_bucket[bucket] = index;
    }
    root_use(kv, index);
    return kv->root[index].identity;
}

int64_t kvcache_root_unique(struct kvcache *kv)
{
    return kv->identity_next++;
}
