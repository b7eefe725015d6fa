/* The engine thread's own state, and one turn of its wheel: plan n, fill, start n, wait for
 * n - 1, hand its tokens to the text threads, commit, reap. No locks: one thread.
 */
#ifndef SERVER_ENGINE_TURN_H
#define SERVER_ENGINE_TURN_H

#include "server/config.h"
#include "server/engine.h"
#include "server/text.h"

/* The scheduler's settings for a model as it was opened; `quire bench` sizes its own. */
struct scheduler_config engine_scheduler_config(const struct config *config,
                                                const struct model_info *info, int32_t slot_max,
                                                int32_t waiting_max);

struct turn;     /* opaque */
struct step_log; /* server/step_log.h */

/* NULL and one line in `error` when a sequence of the model's context cannot be scheduled. */
struct turn *turn_create(struct model *model, const struct config *config, char *error,
                         size_t error_bytes);
void turn_destroy(struct turn *turn);
void turn_set_text(struct turn *turn, struct text *text); /* before the first job */
/* Each step from now on is a line of it; the caller closes it after turn_destroy. */
void turn_set_step_log(struct turn *turn, struct step_log *log);

/* Takes one job; what becomes of it is told through its stream, also a refusal. */
void turn_add(struct turn *turn, struct job *job);
/* Ends the sequences of a stream; of one sequence (a stop string was found); of all. */
void turn_cancel_stream(struct turn *turn, const struct stream *stream);
void turn_cancel_seq(struct turn *turn, int32_t seq, int64_t serial);
void turn_cancel_all(struct turn *turn, const struct stream_error *error);
bool turn_reset_cache(struct turn *turn);

enum turn_state {
    TURN_IDLE,   /* nothing runs and nothing waits */
    TURN_WORKED, /* call again */
    TURN_LOST,   /* a device is lost: every sequence was ended with an error */
};
enum turn_state turn_run(struct turn *turn);
/* Gauges and counters as they are now; the periodic log line. */
void turn_report(struct turn *turn, int64_t now_us);

int64_t engine_now_us(void); /* CLOCK_MONOTONIC */

#endif
