/* New and preempted sequences get a slot, a prefix and a reservation of blocks.
 *
 * In order, and only if all that is known of a sequence fits: a half-filled pool of prompts that
 * wait for each other cannot come about. Reserved blocks are taken chunk by chunk; until then
 * they are free ones, whose old contents can still be matched. One that does not fit stops those
 * behind it, or large ones would wait for ever. One whose next block is being computed by a
 * sequence before it is held back until that block is published, so that one prefix is computed
 * once.
 */
#include "scheduler/state.h"

#include <assert.h>
#include <string.h>

/* Of how many tokens `q` may take all but the last from the cache. */
static int32_t match_token_count(const struct seq *q)
{
    /* The logits of the token before the first unscored one are needed (scheduler.md (16)). */
    return q->score_next < q->prompt_count ? q->score_next : q->token_count;
}

/* ---- holding back ---- */

/* Running sequences that will still publish a block which they already know whole. */
static void find_producers(struct scheduler *s)
{
    s->making.producer_count = 0;
    if (!s->config.kv.matching)
        return;
    for (int32_t i = s->pool.running.first; i != SEQ_NONE; i = s->pool.seq[i].next) {
        const struct seq *q = &s->pool.seq[i];
        if (q->table.published_count < q->token_count / s->config.kv.block_tokens)
            s->producer[s->making.producer_count++] = i;
    }
}

/* Leading blocks that `q` could match and `producer` will publish: whole blocks of equal tokens. */
static int32_t common_blocks(const struct scheduler *s, const struct seq *q,
                             const struct seq *producer)
{
    int32_t block_tokens = s->config.kv.block_tokens;
    int32_t block_max = (match_token_count(q) - 1) / block_tokens;
    int32_t count = producer->token_count / block_tokens;
    size_t bytes = sizeof(*q->token) * (size_t)block_tokens;
    const int32_t *own = q->token;
    const int32_t *other = producer->token;
    int32_t i = producer->table.published_count;

    if (count > block_max)
        count = block_max;
    own += (int64_t)i * block_tokens;
    other += (int64_t)i * block_tokens;
    while (i < count && memcmp(own, other, bytes) == 0) {
        own += block_tokens;
        other += block_tokens;
        i++;
    }
    return i;
}

/* Looks for a producer that stands where the cached prefix of `q` ends and goes on like it. Only
 * one that comes before `q` counts: it cannot be waiting, directly or not, for `q`
 * (scheduler.md (11)). */
static bool hold_back(struct scheduler *s, int32_t seq, const struct kv_peek *peek)
{
    struct seq *q = &s->pool.seq[seq];
    int32_t found_count = peek->token_count / s->config.kv.block_tokens;

    for (int32_t i = 0; i < s->making.producer_count; i++) {
        const struct seq *producer = &s->pool.seq[s->producer[i]];
        if (producer->table.parent != peek->parent ||
            producer->table.published_count != found_count ||
            !order_before(&s->pool, s->producer[i], seq))
            continue;
        int32_t count = common_blocks(s, q, producer);
        if (count <= found_count)
            continue;
        q->hold_seq = s->producer[i];
        q->hold_arrival = producer->arrival;
        q->hold_block_count = count;
        return true;
    }
    return false;
}

/* Whether the sequence that `q` was held back for is still on its way there. */
static bool still_held(const struct scheduler *s, struct seq *q)
{
    if (q->hold_seq == SEQ_NONE)
        return false;
    const struct seq *producer = &s->pool.seq[q->hold_seq];
    if (producer->state == SEQ_RUNNING && producer->arrival == q->hold_arrival &&
        producer->table.published_count < q->hold_block_count)
        return true;
    q->hold_seq = SEQ_NONE;
    return false;
}

/* ---- admission ---- */

/* Blocks that `q` takes until all that is known of it is computed. */
static int32_t prefill_need(const struct scheduler *s, const struct seq *q, int32_t found_count)
{
    int32_t block_tokens = s->config.kv.block_tokens;
    int32_t want = (seq_target(q) - 1) / block_tokens + 1;

    return (want - found_count / block_tokens) * s->config.kv.group_count;
}

static bool fits(const struct scheduler *s, const struct seq *q, const struct kv_peek *peek)
{
    int32_t need = prefill_need(s, q, peek->token_count);

    return need <= scheduler_available(s) - peek->cached_count;
}

static void admit(struct scheduler *s, int32_t seq, const struct kv_peek *peek, int32_t chunk)
{
    struct seq *q = &s->pool.seq[seq];

    seq_admit(&s->pool, seq, s->slot_free[--s->slot_free_count]);
    q->table = scheduler_table(s, q->slot);
    int32_t found = kvcache_match(s->kv, &q->table, q->token, match_token_count(q), q->root);
    assert(found == peek->token_count);
    scheduler_reserve(s, q, prefill_need(s, q, found));
    q->prefill_count = seq_target(q);
    q->planned_count = found;
    q->written_count = found;
    if (q->cached_count < 0)
        q->cached_count = found < q->prompt_count ? found : q->prompt_count;
    plan_add_start(s, seq);
    plan_add_changes(s, seq);
    plan_add_prompt_row(s, seq, chunk);
    if (s->config.kv.matching &&
        q->table.published_count < q->token_count / s->config.kv.block_tokens)
        s->producer[s->making.producer_count++] = seq;
}

void plan_admit(struct scheduler *s)
{
    int32_t next = SEQ_NONE;

    if (s->making.blocks_short || s->pool.waiting.count == 0 || s->slot_free_count == 0 ||
        s->making.token_left == 0)
        return;
    find_producers(s);
    for (int32_t seq = s->pool.waiting.first; seq != SEQ_NONE; seq = next) {
        struct seq *q = &s->pool.seq[seq];
        next = q->next;
        if (s->slot_free_count == 0 || s->making.token_left == 0 || scheduler_available(s) == 0)
            return;
        if (still_held(s, q))
            continue;
        struct kv_peek peek = kvcache_peek(s->kv, q->token, match_token_count(q), q->root);
        if (hold_back(s, seq, &peek))
            continue;
        int32_t chunk = plan_chunk(s, q, peek.token_count);
        if (chunk == 0 || !fits(s, q, &peek))
            return;
        admit(s, seq, &peek, chunk);
    }
}
