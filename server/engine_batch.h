/* Joins a plan to a batch: sequences and blocks become flat arrays. */
#ifndef SERVER_ENGINE_BATCH_H
#define SERVER_ENGINE_BATCH_H

#include "model/model.h"
#include "scheduler/scheduler.h"
#include "server/engine.h"

/* What the engine knows of a sequence in flight. */
struct engine_seq {
    struct answer *answer; /* NULL: no sequence has this handle */
    struct job *job;
    int32_t sibling;
    int64_t serial;      /* never reused, unlike the handle */
    int64_t first_us;    /* of its first token; 0 before */
    int64_t final_us;    /* of its latest token */
    int32_t token_count; /* put out so far */
};

/* Fills an empty batch. `seq` [handles]. The engine's thread. */
void engine_fill(struct batch *batch, const struct plan *plan, const struct engine_seq *seq);

#endif
