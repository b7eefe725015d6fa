/* The engine thread and its mailbox; see engine.h. The turns themselves are in engine_turn.c.
 *
 * The mailbox is the one meeting point of the engine thread with all others: a lock, a condition
 * and lists that the engine takes as a whole. While steps run it is looked at once a turn; with
 * nothing to do the engine sleeps on the condition, so an idle server uses no CPU.
 */
#include "server/engine.h"
#include "server/config.h"
#include "server/defaults.h"
#include "server/engine_turn.h"
#include "server/log.h"
#include "server/metrics.h"
#include "server/notifier.h"
#include "server/stop_match.h"
#include "server/stream_private.h"
#include "server/text.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

/* "This sequence may stop": a handle, and the serial that tells its owners apart. */
struct stop_letter {
    int32_t seq;
    int64_t serial;
};

struct mailbox {
    struct job *job; /* list, oldest first */
    struct job *job_final;
    struct stop_letter *stop; /* [stop_count] */
    int32_t stop_count, stop_max;
    struct stream **cancel; /* [cancel_count] held */
    int32_t cancel_count, cancel_max;
    bool reset_wanted;
    bool stopping;
    int64_t deadline_us; /* when stopping: until then sequences may go on */
};

struct engine {
    struct model *model;
    const struct config *config;
    struct defaults defaults;
    struct turn *turn; /* the engine thread's */
    struct text *text;
    struct notifier *notifier;
    pthread_t thread;
    bool started;
    void (*lost)(void *context); /* or NULL */
    void *lost_context;

    atomic_bool alive;
    atomic_llong load;      /* jobs accepted and not ended */
    atomic_llong sequences; /* their sequences: what the queue's limit is about */

    pthread_mutex_t lock;
    pthread_cond_t letter; /* something is in the mailbox */
    pthread_cond_t answer; /* a reset was done, or the engine ended */
    /* guarded by lock */
    struct mailbox mailbox;
    bool taking; /* jobs are taken */
    bool ended;
    bool reset_result;
    int64_t reset_count; /* resets done */
};

/* ---- jobs ---- */

struct job *job_create(void)
{
    struct job *job = calloc(1, sizeof *job);

    if (job == NULL)
        return NULL;
    job->sibling_count = 1;
    job->output_max = -1;
    job->add_special = true;
    job->skip_special = true;
    job->sampling.temperature = 1;
    job->sampling.top_p = 1;
    job->sampling.repetition_penalty = 1;
    job->sampling.top_count = -1;
    job->arrival_us = engine_now_us();
    return job;
}

void job_free(struct job *job)
{
    if (job == NULL)
        return;
    for (int32_t i = 0; i < job->stop_count; i++)
        free(job->stop[i]);
    free(job->stop);
    free(job->text);
    free(job->token);
    free(job->score);
    free(job->score_top);
    stop_set_free(job->stop_set);
    stream_release(job->stream);
    free(job);
}

/* ---- what the text threads call ---- */

static const struct stream_error shutting_down = {
    .status = 503,
    .type = "service_unavailable_error",
    .code = "shutting_down",
    .message = "The server is shutting down.",
};

static const struct stream_error engine_dead = {
    .status = 503,
    .type = "service_unavailable_error",
    .code = "engine_dead",
    .message = "A device was lost; the server is stopping.",
};

static void take_ended(void *context, struct job *job);

/* Jobs that were tokenised after the engine thread had ended. */
static void fail_late(struct engine *engine, struct job *jobs)
{
    while (jobs != NULL) {
        struct job *next = jobs->next;
        struct stream *stream = jobs->stream;
        stream_fail(stream, atomic_load(&engine->alive) ? &shutting_down : &engine_dead);
        stream_hold(stream);
        notifier_wake(engine->notifier, &stream, 1);
        take_ended(engine, jobs);
        jobs = next;
    }
}

static void take_tokenised(void *context, struct job *jobs)
{
    struct engine *engine = context;
    struct job *final = jobs;

    while (final->next != NULL)
        final = final->next;
    pthread_mutex_lock(&engine->lock);
    bool late = engine->ended;
    if (!late) {
        if (engine->mailbox.job == NULL)
            engine->mailbox.job = jobs;
        else
            engine->mailbox.job_final->next = jobs;
        engine->mailbox.job_final = final;
        pthread_cond_signal(&engine->letter);
    }
    pthread_mutex_unlock(&engine->lock);
    if (late)
        fail_late(engine, jobs);
}

static void take_stop(void *context, int32_t seq, int64_t serial)
{
    struct engine *engine = context;
    struct mailbox *box = &engine->mailbox;

    pthread_mutex_lock(&engine->lock);
    if (box->stop_count == box->stop_max) {
        int32_t max = box->stop_max * 2 + 16;
        struct stop_letter *grown = realloc(box->stop, (size_t)max * sizeof *grown);
        if (grown != NULL) {
            box->stop = grown;
            box->stop_max = max;
        }
    }
    /* Without memory the sequence runs to its length; its text has ended all the same. */
    if (box->stop_count < box->stop_max)
        box->stop[box->stop_count++] = (struct stop_letter){seq, serial};
    pthread_cond_signal(&engine->letter);
    pthread_mutex_unlock(&engine->lock);
}

static void take_wake(void *context, struct stream *const *stream, int32_t count)
{
    struct engine *engine = context;

    notifier_wake(engine->notifier, stream, count);
}

static void take_ended(void *context, struct job *job)
{
    struct engine *engine = context;

    atomic_fetch_sub(&engine->sequences, job->sibling_count);
    long long load = atomic_fetch_sub(&engine->load, 1) - 1;
    metrics_set(METRIC_LOAD, (double)load);
    job_free(job);
}

/* ---- the thread ---- */

/* Waits until there is a letter or it is time to look; takes all letters. */
static struct mailbox take_letters(struct engine *engine, bool idle)
{
    pthread_mutex_lock(&engine->lock);
    struct mailbox *box = &engine->mailbox;
    while (idle && box->job == NULL && box->stop_count == 0 && box->cancel_count == 0 &&
           !box->reset_wanted && !box->stopping)
        pthread_cond_wait(&engine->letter, &engine->lock);

    struct mailbox taken = *box;
    *box = (struct mailbox){.stopping = taken.stopping, .deadline_us = taken.deadline_us};
    pthread_mutex_unlock(&engine->lock);
    return taken;
}

static void read_letters(struct engine *engine, struct mailbox *box)
{
    while (box->job != NULL) {
        struct job *job = box->job;
        box->job = job->next;
        job->next = NULL;
        turn_add(engine->turn, job);
    }
    for (int32_t i = 0; i < box->stop_count; i++)
        turn_cancel_seq(engine->turn, box->stop[i].seq, box->stop[i].serial);
    for (int32_t i = 0; i < box->cancel_count; i++) {
        turn_cancel_stream(engine->turn, box->cancel[i]);
        stream_release(box->cancel[i]);
    }
    free(box->stop);
    free(box->cancel);
    if (box->reset_wanted) {
        bool done = turn_reset_cache(engine->turn);
        pthread_mutex_lock(&engine->lock);
        engine->reset_result = done;
        engine->reset_count++;
        pthread_cond_broadcast(&engine->answer);
        pthread_mutex_unlock(&engine->lock);
    }
}

/* From now on no job is taken, and those in the mailbox end with an error. */
static void close_mailbox(struct engine *engine)
{
    pthread_mutex_lock(&engine->lock);
    engine->taking = false;
    engine->ended = true;
    struct job *job = engine->mailbox.job;
    engine->mailbox.job = NULL;
    pthread_cond_broadcast(&engine->answer);
    pthread_mutex_unlock(&engine->lock);
    fail_late(engine, job);
}

static void *run(void *context)
{
    struct engine *engine = context;
    enum turn_state state = TURN_IDLE;
    bool cut = false;

    for (;;) {
        struct mailbox box = take_letters(engine, state == TURN_IDLE);
        read_letters(engine, &box);
        if (box.stopping && !cut && engine_now_us() >= box.deadline_us) {
            turn_cancel_all(engine->turn, &shutting_down);
            cut = true;
        }
        state = turn_run(engine->turn);
        turn_report(engine->turn, engine_now_us());
        if (state == TURN_LOST ||
            (box.stopping && state == TURN_IDLE && (cut || atomic_load(&engine->load) == 0)))
            break;
        if (box.stopping && state == TURN_IDLE) /* jobs still lie with the text threads */
            sched_yield();
    }
    if (state == TURN_LOST)
        atomic_store(&engine->alive, false);
    close_mailbox(engine);
    if (state == TURN_LOST && engine->lost != NULL)
        engine->lost(engine->lost_context);
    return NULL;
}

/* ---- life ---- */

int engine_create(struct engine **created, struct model *model, const struct config *config,
                  char *error, size_t error_bytes)
{
    struct engine *engine = calloc(1, sizeof *engine);

    *created = NULL;
    if (engine == NULL) {
        snprintf(error, error_bytes, "could not start the engine: out of memory");
        return -ENOMEM;
    }
    engine->model = model;
    engine->config = config;
    engine->taking = true;
    atomic_init(&engine->alive, true);
    pthread_mutex_init(&engine->lock, NULL);
    pthread_cond_init(&engine->letter, NULL);
    pthread_cond_init(&engine->answer, NULL);
    int result =
        defaults_make(&engine->defaults, config, &model_info(model)->defaults, error, error_bytes);
    if (result == 0) {
        engine->turn = turn_create(model, config, error, error_bytes);
        result = engine->turn == NULL ? -ENOMEM : 0;
    }
    if (result < 0) {
        engine_destroy(engine);
        return result;
    }
    *created = engine;
    return 0;
}

void engine_on_lost(struct engine *engine, void (*lost)(void *context), void *context)
{
    assert(!engine->started);
    engine->lost = lost;
    engine->lost_context = context;
}

void engine_set_step_log(struct engine *engine, struct step_log *log)
{
    assert(!engine->started);
    turn_set_step_log(engine->turn, log);
}

int engine_start(struct engine *engine)
{
    struct text_sink sink = {.context = engine,
                             .submit = take_tokenised,
                             .stop = take_stop,
                             .wake = take_wake,
                             .ended = take_ended};

    engine->notifier = notifier_start();
    if (engine->notifier == NULL)
        return -EAGAIN;
    engine->text = text_start(engine->model, engine->config->text_threads, &sink);
    if (engine->text == NULL)
        return -EAGAIN;
    turn_set_text(engine->turn, engine->text);
    if (pthread_create(&engine->thread, NULL, run, engine) != 0)
        return -EAGAIN;
    pthread_setname_np(engine->thread, "engine");
    engine->started = true;
    return 0;
}

void engine_stop(struct engine *engine, int64_t grace_us)
{
    if (engine == NULL)
        return;
    if (engine->started) {
        int64_t deadline_us = engine_now_us() + grace_us;
        pthread_mutex_lock(&engine->lock);
        engine->taking = false;
        if (!engine->mailbox.stopping || deadline_us < engine->mailbox.deadline_us)
            engine->mailbox.deadline_us = deadline_us;
        engine->mailbox.stopping = true;
        pthread_cond_signal(&engine->letter);
        pthread_mutex_unlock(&engine->lock);
        pthread_join(engine->thread, NULL);
        engine->started = false;
    }
    text_stop(engine->text);
    engine->text = NULL;
    notifier_stop(engine->notifier);
    engine->notifier = NULL;
}

void engine_destroy(struct engine *engine)
{
    if (engine == NULL)
        return;
    assert(!engine->started);
    turn_destroy(engine->turn);
    for (int32_t i = 0; i < engine->mailbox.cancel_count; i++)
        stream_release(engine->mailbox.cancel[i]);
    free(engine->mailbox.cancel);
    free(engine->mailbox.stop);
    pthread_cond_destroy(&engine->answer);
    pthread_cond_destroy(&engine->letter);
    pthread_mutex_destroy(&engine->lock);
    free(engine);
}

/* ---- what handlers call ---- */

static void cancel_hook(void *context, struct stream *stream)
{
    engine_cancel(context, stream);
}

int engine_submit(struct engine *engine, struct job *jobs)
{
    int64_t job_count = 0;
    int64_t seq_count = 0;

    assert(jobs != NULL);
    for (struct job *job = jobs; job != NULL; job = job->next) {
        job_count++;
        seq_count += job->sibling_count;
        atomic_init(&job->open_count, job->sibling_count);
    }
    pthread_mutex_lock(&engine->lock);
    bool taking = engine->taking;
    pthread_mutex_unlock(&engine->lock);
    if (!taking || !atomic_load(&engine->alive))
        return -ESHUTDOWN;

    int64_t limit = engine->config->max_num_seqs + engine->config->max_num_queued_reqs;
    if (atomic_fetch_add(&engine->sequences, seq_count) + seq_count > limit) {
        atomic_fetch_sub(&engine->sequences, seq_count);
        return -EAGAIN;
    }
    metrics_set(METRIC_LOAD, (double)(atomic_fetch_add(&engine->load, job_count) + job_count));
    stream_set_cancel(jobs->stream, cancel_hook, engine);
    if (text_submit(engine->text, jobs))
        return 0;
    atomic_fetch_sub(&engine->sequences, seq_count);
    atomic_fetch_sub(&engine->load, job_count);
    return -EAGAIN;
}

void engine_cancel(struct engine *engine, struct stream *stream)
{
    struct mailbox *box = &engine->mailbox;

    stream_hold(stream);
    pthread_mutex_lock(&engine->lock);
    if (box->cancel_count == box->cancel_max) {
        int32_t max = box->cancel_max * 2 + 16;
        struct stream **grown = realloc(box->cancel, (size_t)max * sizeof(struct stream *));
        if (grown != NULL) {
            box->cancel = grown;
            box->cancel_max = max;
        }
    }
    bool fits = box->cancel_count < box->cancel_max;
    if (fits)
        box->cancel[box->cancel_count++] = stream;
    pthread_cond_signal(&engine->letter);
    pthread_mutex_unlock(&engine->lock);
    if (!fits) /* no memory for the letter: the sequence runs on unread */
        stream_release(stream);
}

void engine_watch(struct engine *engine, int fd, struct stream *stream)
{
    notifier_watch(engine->notifier, fd, stream);
}

void engine_unwatch(struct engine *engine, int fd, struct stream *stream)
{
    notifier_unwatch(engine->notifier, fd, stream);
}

bool engine_alive(struct engine *engine)
{
    return atomic_load(&engine->alive);
}

struct model *engine_model(struct engine *engine)
{
    return engine->model;
}

const struct defaults *engine_defaults(const struct engine *engine)
{
    return &engine->defaults;
}

bool engine_reset_cache(struct engine *engine)
{
    pthread_mutex_lock(&engine->lock);
    int64_t before = engine->reset_count;
    engine->mailbox.reset_wanted = true;
    pthread_cond_signal(&engine->letter);
    while (engine->reset_count == before && !engine->ended)
        pthread_cond_wait(&engine->answer, &engine->lock);
    bool done = engine->reset_count != before && engine->reset_result;
    pthread_mutex_unlock(&engine->lock);
    return done;
}

int64_t engine_load(struct engine *engine)
{
    return atomic_load(&engine->load);
}
