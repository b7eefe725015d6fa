/* Sums of memory, and the largest pool and context that they allow. */
#include "model/ledger.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>

enum { BLOCK_COUNT_MAX = 1 << 28, SIZE_TEXT = 32 };

const char *ledger_size(int64_t bytes, char *text)
{
    static const char *const unit[] = {"bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
    double size = (double)bytes;
    int power = 0;

    for (; size >= 1024.0 && power < 6; power++)
        size /= 1024.0;
    snprintf(text, SIZE_TEXT, power == 0 ? "%.0f %s" : "%.1f %s", size, unit[power]);
    return text;
}

static int64_t blocks_for(const struct ledger_wish *wish, int64_t tokens)
{
    return (tokens + wish->block_tokens - 1) / wish->block_tokens;
}

/* Bytes that the pool may take at a context of `context` tokens. */
static int64_t pool_room(const struct ledger_wish *wish, int64_t limit, int64_t context)
{
    return limit - wish->weight_bytes - wish->workspace_bytes - context * wish->position_bytes -
           wish->graph_bytes;
}

static int refuse(const struct ledger_wish *wish, int64_t limit, int64_t context, int64_t blocks,
                  char *error, size_t error_bytes)
{
    char weights[SIZE_TEXT], workspace[SIZE_TEXT], kv[SIZE_TEXT], allowed[SIZE_TEXT];
    char size[SIZE_TEXT], graphs[SIZE_TEXT + 16] = "";

    if (wish->graph_bytes > 0)
        snprintf(graphs, sizeof(graphs), " + graphs %s", ledger_size(wish->graph_bytes, size));
    snprintf(error, error_bytes,
             "not enough memory: weights %s + workspace %s%s + KV %s (%" PRId64
             " blocks of %" PRId32 " tokens; one sequence of %" PRId64 " tokens takes %" PRId64
             ") exceed the %s that may be used; ask for a smaller context or KV pool, fewer tokens "
             "a step, or a larger share of the memory",
             ledger_size(wish->weight_bytes, weights),
             ledger_size(wish->workspace_bytes + context * wish->position_bytes, workspace), graphs,
             ledger_size(blocks * wish->block_bytes, kv), blocks, wish->block_tokens, context,
             blocks_for(wish, context), ledger_size(limit, allowed));
    return -ENOMEM;
}

static int refuse_pool(const struct ledger_wish *wish, int64_t context, int64_t blocks, char *error,
                       size_t error_bytes)
{
    char given[SIZE_TEXT], needed[SIZE_TEXT];

    context = context > 0 ? context : 1;
    snprintf(error, error_bytes,
             "a KV pool of %s holds %" PRId64 " blocks of %" PRId32
             " tokens, but one sequence of %" PRId64 " tokens takes %" PRId64
             " (%s); ask for a larger pool or a smaller context",
             ledger_size(wish->kv_bytes, given), blocks, wish->block_tokens, context,
             blocks_for(wish, context),
             ledger_size(blocks_for(wish, context) * wish->block_bytes, needed));
    return -ENOMEM;
}

/* Others have what the share was to take. */
static int refuse_share(const struct ledger_wish *wish, int64_t limit, char *error,
                        size_t error_bytes)
{
    char total[SIZE_TEXT], share[SIZE_TEXT], left[SIZE_TEXT];

    snprintf(error, error_bytes,
             "not enough memory: %g of the device's %s is %s, but only %s are free; ask for a "
             "smaller share of the memory, or end what else uses the device",
             wish->memory_share, ledger_size(wish->total_bytes, total),
             ledger_size(limit + wish->taken_bytes, share),
             ledger_size(wish->free_bytes + wish->taken_bytes, left));
    return -ENOMEM;
}

/* The largest context, in whole blocks, of which one sequence fits; at most the model's. */
static int64_t fitting_context(const struct ledger_wish *wish, int64_t limit)
{
    int64_t room = pool_room(wish, limit, 0);
    int64_t each = wish->block_bytes + wish->block_tokens * wish->position_bytes;
    int64_t blocks = room <= 0 ? 0 : room / each;
    int64_t context = blocks > BLOCK_COUNT_MAX ? wish->context_model : blocks * wish->block_tokens;

    return context < wish->context_model ? context : wish->context_model;
}

/* Blocks from what was asked for; 0: as many as the share of the memory holds. */
static int64_t given_blocks(const struct ledger_wish *wish)
{
    int64_t blocks = wish->block_count;

    if (blocks == 0 && wish->kv_bytes > 0)
        blocks = wish->kv_bytes / wish->block_bytes;
    return blocks < BLOCK_COUNT_MAX ? blocks : BLOCK_COUNT_MAX;
}

static int64_t choose_context(const struct ledger_wish *wish, int64_t limit)
{
    int64_t blocks = given_blocks(wish), context;

    if (wish->context_max > 0)
        return wish->context_max;
    if (blocks == 0)
        return fitting_context(wish, limit);
    context = blocks * wish->block_tokens;
    return context < wish->context_model ? context : wish->context_model;
}

/* No more than kv_most, unless one sequence needs it. */
static int64_t under_limit(const struct ledger_wish *wish, int64_t context, int64_t blocks)
{
    int64_t most = wish->kv_most / wish->block_bytes;

    if (wish->kv_most == 0 || blocks <= most)
        return blocks;
    int64_t least = blocks_for(wish, context);
    if (most < least)
        most = least;
    return blocks < most ? blocks : most;
}

/* Bytes that may still be taken. Exact sizes may take all that is free. */
static int64_t memory_limit(const struct ledger_wish *wish, bool given)
{
    int64_t whole = wish->total_bytes > 0 ? wish->total_bytes : wish->free_bytes;
    int64_t limit = (int64_t)((double)whole * wish->memory_share) - wish->taken_bytes;

    if (given)
        return wish->free_bytes;
    return limit > 0 ? limit : 0;
}

int ledger_make(struct ledger *ledger, const struct ledger_wish *wish, char *error,
                size_t error_bytes)
{
    bool given = wish->block_count > 0 || wish->kv_bytes > 0;
    int64_t limit = memory_limit(wish, given);
    int64_t context = choose_context(wish, limit), blocks = given_blocks(wish), most;

    assert(wish->block_tokens > 0 && wish->block_bytes > 0 && wish->slot_max > 0);
    if (wish->context_max > wish->context_model) {
        snprintf(error, error_bytes,
                 "a context of %" PRId32 " tokens is asked for, but the model was made for %" PRId32
                 ": ask for at most that",
                 wish->context_max, wish->context_model);
        return -ENOTSUP;
    }
    if (limit > wish->free_bytes)
        return refuse_share(wish, limit, error, error_bytes);
    if (!given) {
        most = wish->slot_max * blocks_for(wish, context); /* more could never be in use */
        blocks = pool_room(wish, limit, context) / wish->block_bytes;
        blocks = blocks < most ? blocks : most;
        blocks = under_limit(wish, context, blocks);
        blocks = blocks < BLOCK_COUNT_MAX ? blocks : BLOCK_COUNT_MAX;
    }
    if (given && wish->block_count == 0 && blocks < blocks_for(wish, context > 0 ? context : 1))
        return refuse_pool(wish, context, blocks, error, error_bytes);
    if (context < 1 || blocks < 1 || pool_room(wish, limit, context) < blocks * wish->block_bytes ||
        (!given && blocks < blocks_for(wish, context))) {
        context = context < 1 ? wish->context_model : context;
        return refuse(wish, limit, context, given ? blocks : blocks_for(wish, context), error,
                      error_bytes);
    }
    *ledger = (struct ledger){
        .context_max = (int32_t)context,
        .block_count = (int32_t)blocks,
        .weight_bytes = wish->weight_bytes,
        .workspace_bytes = wish->workspace_bytes + context * wish->position_bytes,
        .graph_bytes = wish->graph_bytes,
        .kv_bytes = blocks * wish->block_bytes,
    };
    return 0;
}
