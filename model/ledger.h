/* The memory ledger: what a model takes on a device, and how much KV and context that leaves.
 * Pure arithmetic; model.c and `quire inspect` share it. */
#ifndef MODEL_LEDGER_H
#define MODEL_LEDGER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct ledger_wish {
    int32_t context_max; /* wanted; 0: the model's, or less where that does not fit */
    int32_t context_model;
    int32_t slot_max;
    int32_t block_tokens;
    int32_t block_count; /* 0: from kv_bytes or memory_share */
    int64_t kv_bytes;    /* 0: from memory_share */
    double memory_share; /* of total_bytes; of free_bytes where that is 0 */
    int64_t kv_most;     /* with memory_share: at most this, but one sequence's; 0: no limit */

    int64_t free_bytes;
    int64_t total_bytes; /* of a device of its own memory, others' use included; else 0 */
    int64_t taken_bytes; /* of total_bytes, by the device itself before the ledger: of its share */
    int64_t weight_bytes;
    int64_t workspace_bytes; /* that does not depend on the context */
    int64_t position_bytes;  /* of workspace, for each position of the context */
    int64_t graph_bytes;     /* of all recorded steps; 0 where a device has none */
    int64_t block_bytes;
};

struct ledger {
    int32_t context_max;
    int32_t block_count;
    int64_t weight_bytes;
    int64_t workspace_bytes;
    int64_t graph_bytes;
    int64_t kv_bytes;
};

/* 0; -ENOMEM with the sums in `error`; -ENOTSUP for a context beyond the model's. */
int ledger_make(struct ledger *ledger, const struct ledger_wish *wish, char *error,
                size_t error_bytes);
/* "1.5 GiB", "12.0 MiB": in `text`, which has at least 32 bytes. */
const char *ledger_size(int64_t bytes, char *text);

#endif
