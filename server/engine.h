/* The engine thread: joins the deciding pillar to the computing one.
 *
 * A turn: take jobs and cancels from the mailbox; plan; turn the plan into a batch; start it;
 * wait for the batch before; hand its tokens to the text threads; commit; reap. The thread sleeps
 * on its mailbox when there is nothing to do, and never waits for a client.
 */
#ifndef SERVER_ENGINE_H
#define SERVER_ENGINE_H

#include "kernels/sampling.h"
#include "model/model.h"
#include "scheduler/scheduler.h"
#include "server/stream.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

struct engine;   /* opaque */
struct config;   /* server/config.h */
struct defaults; /* server/defaults.h */
struct step_log; /* server/step_log.h */
struct stop_set; /* server/stop_match.h */

/* What the model says of a prompt's token, given those before it. */
struct token_score {
    bool known;
    float logprob;
    int32_t top_count;
};

/* One prompt and its n answers. Filled by a handler, tokenised by a text thread, owned by the
 * engine from engine_submit = 0 until it ends. */
struct job {
    struct job *next;
    struct stream *stream; /* held */
    int32_t prompt_index;  /* among the response's prompts */
    int32_t sibling_count; /* n; choices prompt_index * n ... + n - 1 */

    /* The prompt: text, or ids when `text` is NULL. Owned. */
    char *text;
    size_t text_bytes;
    bool add_special;
    int32_t *token; /* [token_count] */
    int32_t token_count;

    struct sampling sampling; /* seed of sibling i is seed + i */
    int32_t output_max;       /* -1: the rest of the context; 0: score only (echo) */
    bool output_max_given;    /* by the caller: then beyond the context is an error, not a cut */
    bool echo;                /* the prompt's text (and, with logprobs, scores) come first */
    bool score_prompt;        /* echo with logprobs */
    bool ignore_eos;
    bool skip_special;        /* leave control tokens out of the text */
    bool keep_stop;           /* include_stop_str_in_output */
    int32_t stop_token_count; /* the caller's own, in sampling.stop_token[0 ...]; the text thread
                                 adds the model's end tokens behind them unless ignore_eos */
    int32_t stop_count;       /* stop strings; owned */
    char **stop;
    int32_t priority;
    uint64_t salt;
    int64_t arrival_us; /* CLOCK_MONOTONIC, when the request was read */
    char request_id[64];

    /* The engine's and the text thread's. */
    atomic_int open_count; /* siblings that have not ended */
    int32_t text_thread;
    int64_t start_us; /* of the first step that computes the prompt, for all siblings; 0 before */
    int32_t cached_count;        /* prompt tokens found in the cache, set at that step */
    struct stop_set *stop_set;   /* of the stop strings, or NULL */
    struct token_score *score;   /* [token_count] the prompt's, with score_prompt */
    struct token_top *score_top; /* [token_count, sampling.top_count] */
};

struct job *job_create(void);   /* with defaults; NULL: out of memory */
void job_free(struct job *job); /* drops its hold of the stream */

int engine_create(struct engine **engine, struct model *model, const struct config *config,
                  char *error, size_t error_bytes);
/* What the engine thread calls once a device is lost and all streams were ended. Before start. */
void engine_on_lost(struct engine *engine, void (*lost)(void *context), void *context);
/* Each step becomes a line of `log`, which the caller closes after engine_destroy. Before start. */
void engine_set_step_log(struct engine *engine, struct step_log *log);
int engine_start(struct engine *engine); /* the threads: engine, text, notifier */
/* Stops: no more jobs are taken; running ones may go on for grace_us, then end with an error.
 * Joins all threads. */
void engine_stop(struct engine *engine, int64_t grace_us);
void engine_destroy(struct engine *engine);

/* From a handler: tokenises on a text thread, then runs; the stream tells what becomes of them.
 * Takes the jobs (a list by `next`, all of one stream) when it returns 0.
 * -ESHUTDOWN: stopping or lost; -EAGAIN: too many wait. All jobs or none. */
int engine_submit(struct engine *engine, struct job *jobs);

/* The sequences of a cancelled stream end within a step. Any thread; called by stream_cancel. */
void engine_cancel(struct engine *engine, struct stream *stream);

/* Watches a parked connection's socket: a hang-up cancels the stream. Any thread. */
void engine_watch(struct engine *engine, int fd, struct stream *stream);
void engine_unwatch(struct engine *engine, int fd, struct stream *stream);

bool engine_alive(struct engine *engine); /* false once a device is lost */
struct model *engine_model(struct engine *engine);
const struct defaults *engine_defaults(const struct engine *engine); /* of sampling */
bool engine_reset_cache(struct engine *engine);                      /* waits for a turn */
int64_t engine_load(struct engine *engine); /* jobs accepted and not ended */

#endif
