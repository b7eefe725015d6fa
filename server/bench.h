/* The engine's turn without threads, streams or text: what `quire bench` measures.
 *
 * Drives the real scheduler and model through the same joint as the engine (engine_fill), one or
 * two steps in flight. One thread.
 */
#ifndef SERVER_BENCH_H
#define SERVER_BENCH_H

#include "model/model.h"
#include "server/config.h"

#include <stdbool.h>
#include <stdint.h>

struct bench; /* opaque */

/* A step that was computed and committed. */
struct bench_step {
    int64_t end_us;  /* CLOCK_MONOTONIC, when its results were there */
    int64_t host_us; /* of planning, filling and committing it */
    int32_t token_count;
    int32_t row_count;
    int32_t draw_count;
    int64_t read_bytes; /* that it cannot do without: weights once, its sequences' KV once */
};

/* The largest that a run may be; decides slots, context and KV blocks. */
struct bench_limits {
    int32_t sequence_max; /* running at once */
    int32_t waiting_max;
    int32_t length_max; /* tokens of a sequence, prompt and output */
};

/* 0, or a negative errno as of model_open and one line. */
int bench_open(struct bench **bench, const struct config *config, const struct bench_limits *limits,
               char *error, size_t error_bytes);
void bench_close(struct bench *bench); /* NULL is fine */
/* The open model's facts. */
const struct model_info *bench_info(const struct bench *bench);

/* A sequence with a prompt of random tokens, never the same one; it puts out output_count tokens
 * whatever they are. `request` is the caller's own name for it. */
void bench_add(struct bench *bench, int32_t prompt_count, int32_t output_count, int64_t request);
/* From now on bench_turn calls `token` for every token that a request gets; NULL: no more. */
void bench_on_token(struct bench *bench,
                    void (*token)(void *context, int64_t request, int64_t now_us), void *context);

/* Runs until a step is committed: 1 and *step; 0: nothing runs; -EIO: the device is lost. */
int bench_turn(struct bench *bench, struct bench_step *step);

/* A hash of all tokens drawn since the last call: equal runs give equal hashes. */
uint64_t bench_hash(struct bench *bench);

int64_t bench_now_us(void); /* CLOCK_MONOTONIC */

#endif
