/* Which KV block holds what: accounting only, no tensor is here.
 *
 * A block is free, pinned (in at least one table: a reference count), or cached (in no table and
 * still matchable; taken back least recently used first). Numbered invariants, which comments
 * cite as "kvcache.md (4)", are in docs/kvcache.md; kvcache_check aborts unless all hold.
 *
 * Pure: no clock, random number, lock, log or I/O, and no allocation after kvcache_create. One
 * thread (the engine's). All-or-nothing: a call that refuses has changed nothing.
 */
#ifndef KVCACHE_KVCACHE_H
#define KVCACHE_KVCACHE_H

#include <stdbool.h>
#include <stdint.h>

struct kvcache; /* opaque */

struct kvcache_config {
    int32_t block_count;
    int32_t block_tokens; /* tokens a block holds; a power of two */
    int32_t group_count;  /* kinds of layers with block lists of their own, from 1 */
    bool matching;        /* false: nothing is published, nothing is matched */
    bool hash_constant;   /* simulation: every hash is 0, so that a match by hash alone is found */
};

enum { KVCACHE_GROUP_MAX = 2 };

/* The blocks of one sequence, one list a group; memory is the caller's. Entry i of a list holds
 * positions i * block_tokens on; -1 where the block was freed behind a window. */
struct kv_table {
    int32_t *block[KVCACHE_GROUP_MAX]; /* [block_max] */
    int32_t block_max;
    int32_t block_count;     /* entries in use, the same in every group */
    int32_t published_count; /* leading blocks that are published */
    int32_t forked_count;    /* leading blocks that a fork left in two tables, perhaps still */
    int64_t parent;          /* identity of the last published block, or the root */
    bool retired;            /* kvcache_retire: will be released, and nothing else */
};

/* What kvcache_match would find. */
struct kv_peek {
    int32_t token_count;  /* found, whole blocks */
    int32_t cached_count; /* blocks of it that nobody pins: kvcache_available falls by these */
    int64_t parent;       /* identity of the last block found, or the root */
};

/* A copy of a whole block. KV_COPY is done before its step; KV_OUT and KV_IN, to and from host
 * memory, run beside it and end at that plan's commit. */
struct kv_move {
    enum kv_move_kind { KV_COPY, KV_OUT, KV_IN } kind;
    int32_t source;
    int32_t target;
};

/* Copies wanted by kvcache_grow; memory is the caller's. */
struct kv_moves {
    struct kv_move *move; /* [max] */
    int32_t count;
    int32_t max;
};

struct kvcache_stats {
    int32_t free_count;   /* neither pinned nor matchable */
    int32_t cached_count; /* matchable, unpinned: as good as free */
    int32_t pinned_count;
    int32_t pending_count; /* of the pinned: free or cached once all retired tables are released */
    int64_t query_tokens;  /* asked of kvcache_match, since creation */
    int64_t hit_tokens;    /* found by it */
    int64_t evict_count;   /* cached blocks taken back */
};

struct kvcache *kvcache_create(const struct kvcache_config *config); /* NULL: out of memory */
void kvcache_destroy(struct kvcache *kv);

/* A root: the identity that the first block's parent has. Equal (salt, adapter) give equal
 * roots (a pair long unused may get a new one, which costs hits and nothing else);
 * kvcache_root_unique gives one that nothing else ever matches (cache off). */
int64_t kvcache_root(struct kvcache *kv, uint64_t salt, uint64_t adapter);
int64_t kvcache_root_unique(struct kvcache *kv);

/* Makes `table` an empty one under `root`, for blocks that are not matched. */
void kvcache_table_init(struct kv_table *table, int64_t root);
/* Fills an empty table with the longest cached prefix in whole blocks, always fewer than
 * token_count tokens, and pins it. Returns the tokens found. */
int32_t kvcache_match(struct kvcache *kv, struct kv_table *table, const int32_t *token,
                      int32_t token_count, int64_t root);
/* What that would find; changes nothing and counts nothing. */
struct kv_peek kvcache_peek(const struct kvcache *kv, const int32_t *token, int32_t token_count,
                            int64_t root);

/* Room for token_count tokens, and every shared block from the one that holds position `written`
 * on replaced by one of its own (copy on write); where it holds positions before `written`, a
 * copy is added to `moves`: at most one a group. False: too few blocks. */
bool kvcache_grow(struct kvcache *kv, struct kv_table *table, int32_t written, int32_t token_count,
                  struct kv_moves *moves);
/* True: position `written` has a block, which nobody shares, so a token more takes nothing and
 * kvcache_grow would do nothing. False says nothing. What a step asks for every sequence. */
bool kvcache_has_place(const struct kvcache *kv, const struct kv_table *table, int32_t written);
/* Blocks that this kvcache_grow would take. */
int32_t kvcache_grow_need(const struct kvcache *kv, const struct kv_table *table, int32_t written,
                          int32_t token_count);
/* The same once all retired tables are released: a block shared with them needs no copy then. */
int32_t kvcache_grow_need_settled(const struct kvcache *kv, const struct kv_table *table,
                                  int32_t written, int32_t token_count);
/* Blocks that could be taken now: free and cached. */
int32_t kvcache_available(const struct kvcache *kv);
/* Blocks that only retired tables hold. */
int32_t kvcache_pending(const struct kvcache *kv);
/* How many tables hold this block. */
int32_t kvcache_holders(const struct kvcache *kv, int32_t block);

/* `child`, an empty table, pins every block of `parent`. */
void kvcache_fork(struct kvcache *kv, struct kv_table *parent, struct kv_table *child);

/* Makes full blocks matchable. Only accepted tokens whose K and V a committed step wrote may be
 * passed: the first token_count of `token`. Where a twin was published first, the table keeps
 * its own block unpublished-in-the-index but goes on under the twin's identity. */
void kvcache_publish(struct kvcache *kv, struct kv_table *table, const int32_t *token,
                     int32_t token_count);

/* Frees what lies wholly before first_token in one group (behind a window). */
void kvcache_slide(struct kvcache *kv, struct kv_table *table, int32_t group, int32_t first_token);

/* This table will be released as soon as no plan names its blocks: it takes part in nothing but
 * kvcache_publish and kvcache_release any more, and its blocks count as pending. */
void kvcache_retire(struct kvcache *kv, struct kv_table *table);

/* Unpins all and empties the table. Last block first: a block whose parent is gone can never be
 * matched, so it should go sooner. */
void kvcache_release(struct kvcache *kv, struct kv_table *table);

/* Forgets all cached blocks and is true, unless a block is pinned. */
bool kvcache_reset(struct kvcache *kv);

struct kvcache_stats kvcache_stats(const struct kvcache *kv);
void kvcache_check(const struct kvcache *kv); /* aborts unless every invariant holds */

#endif
