/* A line for each step, in a file of the operator's (--step-log): what was in the step, how long it
 * took and what the engine knows of why. A table with commas, its columns named in its first line;
 * docs/performance.md says what each one is.
 *
 * Lines gather in memory. They are written when a second has gone by since the last time, when the
 * buffer is full and when the engine has nothing more to do, so that a busy engine makes one write
 * a second. A write that fails is told once and ends the log, not the server; a pipe that is full
 * is such a failure, since the engine waits for no reader. The engine's thread alone.
 */
#ifndef SERVER_STEP_LOG_H
#define SERVER_STEP_LOG_H

#include "model/model.h"
#include "scheduler/scheduler.h"
#include "server/engine_batch.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct step_log; /* opaque */

/* What a step was and took. */
struct step_line {
    int64_t step;
    int64_t duration_us; /* what METRIC_STEP_TIME has of it */
    int64_t wait_us;     /* of that, in which the engine's thread waited for the device */
    int64_t busy_us;     /* of that, in which the engine's thread had a processor */
    bool alone;          /* no other was in flight when it was planned */
    enum step_launch launch;
    int64_t launch_us;
    int64_t prompt_tokens;
    int64_t decode_rows;
    int64_t prompt_context; /* positions that the prompts' tokens attend to, all added up */
    int64_t decode_context; /* the same of the decode rows: the sum of their contexts */
    int32_t samples;        /* logits rows */
    int32_t drawn;          /* of them, with a temperature */
    int32_t penalised;      /* of them, with penalties or a bias */
    int32_t logprobs;       /* of them, with log-probabilities */
    int32_t scores;         /* of them, for the scores of a prompt */
    int32_t starts;         /* slots taken */
    int32_t resumed;        /* of them, by sequences that had been preempted */
    int32_t moves;          /* blocks copied */
};

/* Opens or goes on with the file. 0, or a negative errno and one line in `error`. */
int step_log_open(struct step_log **log, const char *path, char *error, size_t error_bytes);
void step_log_close(struct step_log *log); /* writes what is left; NULL is fine */

/* What the plan says of a step; the rest is 0. `seq` [handles]; while it is not committed. */
struct step_line step_line_make(const struct plan *plan, const struct engine_seq *seq);
/* Adds it; `stats` are those after its commit, now_us is CLOCK_MONOTONIC. */
void step_log_add(struct step_log *log, const struct step_line *line,
                  const struct scheduler_stats *stats, int64_t now_us);
void step_log_flush(struct step_log *log);

#endif
