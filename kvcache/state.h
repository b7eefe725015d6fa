/* What kvcache.c, index.c and check.c share. Nothing else includes it. */
#ifndef KVCACHE_STATE_H
#define KVCACHE_STATE_H

#include "kvcache/kvcache.h"

#include <stdbool.h>
#include <stdint.h>

enum { BLOCK_NONE = -1 };
enum { IDENTITY_NONE = 0, IDENTITY_ROOT = 1 }; /* 1: the root of salt 0 and adapter 0 */

struct block {
    int64_t identity;  /* IDENTITY_NONE: not in the index */
    int64_t parent;    /* of an indexed block */
    uint64_t hash;     /* of an indexed block */
    int32_t ref_count; /* tables that hold it */
    int32_t leaving;   /* of those, retired ones */
    int32_t group;     /* of an indexed block */
    int32_t older;     /* in the list of cached blocks; of a free block: the next free one */
    int32_t newer;
    int32_t chain_next; /* in its bucket of the index */
    int32_t chain_prev;
};

/* A (salt, adapter) that was asked for, and its identity. */
struct root {
    uint64_t salt;
    uint64_t adapter;
    int64_t identity; /* IDENTITY_NONE: entry never used */
    int32_t chain_next;
    int32_t older;
    int32_t newer;
};

struct kvcache {
    struct kvcache_config config;
    int32_t token_shift;   /* log2 of block_tokens */
    int64_t identity_next; /* never comes back */
    struct block *block;   /* [block_count] */
    int32_t *token;        /* [block_count, block_tokens] of indexed blocks */
    int32_t *bucket;       /* [bucket_count] first block of each chain */
    int32_t bucket_count;  /* a power of two */
    int32_t free_first;    /* stack of free blocks */
    int32_t free_count;
    int32_t cached_oldest; /* list of cached blocks, by their last release */
    int32_t cached_newest;
    int32_t cached_count;
    int32_t pending_count;
    int64_t query_tokens;
    int64_t hit_tokens;
    int64_t evict_count;
    struct root *root;    /* [root_count] */
    int32_t *root_bucket; /* [bucket_count] */
    int32_t root_count;
    int32_t root_oldest;
    int32_t root_newest;
};

/* index.c: where published blocks are found. */
uint64_t index_hash(const struct kvcache *kv, int64_t parent, const int32_t *token);
/* The block of `group` that was published as these tokens after `parent`, or BLOCK_NONE. */
int32_t index_find(const struct kvcache *kv, uint64_t hash, int64_t parent, int32_t group,
                   const int32_t *token);
void index_insert(struct kvcache *kv, int32_t index, uint64_t hash, const int32_t *token);
void index_remove(struct kvcache *kv, int32_t index);
void roots_init(struct kvcache *kv);

#endif
