/* One turn; see engine_turn.h. The handles of the scheduler index an array of what the engine
 * knows of each sequence; its serial number tells a handle's owners apart.
 */
#include "server/engine_turn.h"
#include "server/engine_batch.h"
#include "server/log.h"
#include "server/metrics.h"
#include "server/step_log.h"
#include "server/stream_private.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

struct flight {
    const struct plan *plan;
    struct batch *batch;
    int64_t start_us;
    int64_t busy_us;       /* thread_busy_us then */
    struct step_line line; /* where there is a step log: what is known of it so far */
};

struct turn {
    struct model *model;
    struct scheduler *scheduler;
    struct text *text;
    const struct config *config;
    const struct model_info *info;
    struct step_log *step_log; /* or NULL */

    struct engine_seq *seq; /* [seq_max] by handle */
    int32_t seq_max;
    int32_t *handle; /* [max_n] what scheduler_add gives */
    int64_t serial;

    struct flight flight[PLAN_DEPTH]; /* oldest first */
    int32_t flight_count;
    int32_t flight_max;
    struct sample_result *result; /* [sample_max] */
    struct text_batch *batch;     /* [text threads] items of the step being finished */

    /* For the report. */
    struct scheduler_stats reported;
    int64_t report_us;       /* of the last log line; 0: none since work began */
    int64_t output_tokens;   /* since the start */
    int64_t output_counted;  /* of them, those in the metrics */
    int64_t graphs_counted;  /* steps that were recorded, in the metrics */
    int64_t output_reported; /* of them, those in a log line */
    int64_t prompt_reported;
};

enum { CANCEL_BY_CLIENT = 1, CANCEL_BY_STOP = 2, CANCEL_BY_ERROR = 3 };

int64_t engine_now_us(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

struct scheduler_config engine_scheduler_config(const struct config *config,
                                                const struct model_info *info, int32_t slot_max,
                                                int32_t waiting_max)
{
    return (struct scheduler_config){
        .slot_max = slot_max,
        .waiting_max = waiting_max,
        .step_token_max = info->step_tokens,
        .step_token_low = info->step_tokens / 2,
        .sample_max = info->step_tokens,
        .context_max = info->context_max,
        .chunk_token_max = config->long_prefill_token_threshold,
        .plan_depth = config->async_scheduling ? PLAN_DEPTH : 1,
        .kv = {.block_count = info->block_count,
               .block_tokens = info->block_tokens,
               .group_count = 1,
               .matching = config->enable_prefix_caching},
    };
}

struct turn *turn_create(struct model *model, const struct config *config, char *error,
                         size_t error_bytes)
{
    struct turn *turn = calloc(1, sizeof *turn);
    if (turn == NULL) {
        snprintf(error, error_bytes, "could not start the engine: out of memory");
        return NULL;
    }
    turn->model = model;
    turn->config = config;
    turn->info = model_info(model);
    turn->flight_max = config->async_scheduling ? PLAN_DEPTH : 1;
    struct scheduler_config settings =
        engine_scheduler_config(config, turn->info, config->max_num_seqs,
                                config->max_num_queued_reqs + config->max_num_seqs);
    turn->scheduler = scheduler_create(&settings);
    if (turn->scheduler != NULL) {
        turn->seq_max = scheduler_seq_max(turn->scheduler);
        turn->seq = calloc((size_t)turn->seq_max, sizeof *turn->seq);
    }
    turn->handle = calloc((size_t)config->max_n, sizeof *turn->handle);
    turn->result = calloc((size_t)settings.sample_max, sizeof *turn->result);
    turn->batch = calloc((size_t)config->text_threads, sizeof *turn->batch);
    if (turn->seq == NULL || turn->handle == NULL || turn->result == NULL || turn->batch == NULL) {
        snprintf(error, error_bytes,
                 "could not start the engine: no memory for %d sequences and %d blocks",
                 settings.slot_max + settings.waiting_max, settings.kv.block_count);
        turn_destroy(turn);
        return NULL;
    }
    return turn;
}

void turn_destroy(struct turn *turn)
{
    if (turn == NULL)
        return;
    scheduler_destroy(turn->scheduler);
    for (int32_t i = 0; turn->batch != NULL && i < turn->config->text_threads; i++) {
        free(turn->batch[i].item);
        free(turn->batch[i].top);
    }
    free(turn->batch);
    free(turn->seq);
    free(turn->handle);
    free(turn->result);
    free(turn);
}

void turn_set_text(struct turn *turn, struct text *text)
{
    turn->text = text;
}

void turn_set_step_log(struct turn *turn, struct step_log *log)
{
    turn->step_log = log;
}

/* ---- jobs come and go ---- */

static void refuse(struct job *job, int32_t status, const char *code, const char *message)
{
    struct stream_error error =
        stream_error_make(status, code, status == 400 ? "prompt" : NULL, "%s", message);

    stream_fail(job->stream, &error);
}

/* The text thread of a job that never ran frees it on the last of its ends. */
static void push_end(struct turn *turn, struct engine_seq *seq, enum finish finish)
{
    struct text_batch *batch = &turn->batch[seq->job->text_thread];

    if (!text_batch_room(batch, 0)) /* the end of a sequence cannot be dropped */
        abort();
    batch->item[batch->item_count++] = (struct text_item){
        .kind = TEXT_END, .answer = seq->answer, .finish = finish, .stop_token = -1};
}

static void flush(struct turn *turn)
{
    for (int32_t i = 0; i < text_thread_count(turn->text); i++) {
        struct text_batch *batch = &turn->batch[i];
        if (batch->item_count > 0)
            text_append(turn->text, i, batch);
        batch->item_count = 0;
        batch->top_count = 0;
    }
}

static struct seq_spec spec_of(const struct job *job)
{
    return (struct seq_spec){
        .token = job->token,
        .token_count = job->token_count,
        .output_max = job->output_max,
        .sibling_count = job->sibling_count,
        .priority = job->priority,
        .salt = job->salt,
        .score_prompt = job->score_prompt,
    };
}

/* The job's sequences get their answers; false when memory ran out: those without one end too. */
static bool open_answers(struct turn *turn, struct job *job)
{
    bool good = true;

    for (int32_t i = 0; i < job->sibling_count; i++) {
        int32_t handle = turn->handle[i];
        int64_t serial = ++turn->serial;
        struct answer *answer = answer_create(turn->text, job, i, handle, serial);
        turn->seq[handle] =
            (struct engine_seq){.answer = answer, .job = job, .sibling = i, .serial = serial};
        good &= answer != NULL;
    }
    return good;
}

void turn_add(struct turn *turn, struct job *job)
{
    assert(job->sibling_count <= turn->config->max_n);
    struct seq_spec spec = spec_of(job);
    int32_t rc =
        stream_dead(job->stream) ? -ECANCELED : scheduler_add(turn->scheduler, &spec, turn->handle);

    if (rc == -EAGAIN)
        refuse(job, 429, "queue_full", "Too many requests wait; try again later.");
    else if (rc == -E2BIG)
        refuse(job, 400, "context_length_exceeded",
               "The prompt and the tokens asked for do not fit into the KV cache of this server.");
    if (rc < 0) {
        turn_cancel_stream(turn, job->stream); /* a response runs as a whole or not at all */
        text_drop(turn->text, job);
        return;
    }
    if (!open_answers(turn, job)) {
        refuse(job, 503, "out_of_memory", "The server is out of memory.");
        for (int32_t i = 0; i < job->sibling_count; i++)
            scheduler_cancel(turn->scheduler, turn->handle[i], CANCEL_BY_ERROR);
    }
}

void turn_cancel_stream(struct turn *turn, const struct stream *stream)
{
    for (int32_t i = 0; i < turn->seq_max; i++)
        if (turn->seq[i].job != NULL && turn->seq[i].job->stream == stream)
            scheduler_cancel(turn->scheduler, i, CANCEL_BY_CLIENT);
}

void turn_cancel_seq(struct turn *turn, int32_t seq, int64_t serial)
{
    if (turn->seq[seq].job != NULL && turn->seq[seq].serial == serial)
        scheduler_cancel(turn->scheduler, seq, CANCEL_BY_STOP);
}

void turn_cancel_all(struct turn *turn, const struct stream_error *error)
{
    for (int32_t i = 0; i < turn->seq_max; i++)
        if (turn->seq[i].job != NULL) {
            stream_fail(turn->seq[i].job->stream, error);
            scheduler_cancel(turn->scheduler, i, CANCEL_BY_ERROR);
        }
}

bool turn_reset_cache(struct turn *turn)
{
    return scheduler_reset_cache(turn->scheduler);
}

static void observe_end(const struct engine_seq *seq, const struct seq_end *end)
{
    enum metric_counter counter = METRIC_FINISH_ABORT;
    if (end->reason == SEQ_END_STOP || end->cancel_code == CANCEL_BY_STOP)
        counter = METRIC_FINISH_STOP;
    else if (end->reason == SEQ_END_LENGTH)
        counter = METRIC_FINISH_LENGTH;
    else if (end->cancel_code == CANCEL_BY_ERROR)
        counter = METRIC_FINISH_ERROR;
    metrics_add(counter, 1);
    metrics_observe(METRIC_OUTPUT_LENGTH, end->output_count);
    if (seq->first_us == 0)
        return;
    double decode = (double)(seq->final_us - seq->first_us) * 1e-6;
    metrics_observe(METRIC_E2E, (double)(seq->final_us - seq->job->arrival_us) * 1e-6);
    metrics_observe(METRIC_DECODE, decode);
    metrics_observe(METRIC_INFERENCE, (double)(seq->final_us - seq->job->start_us) * 1e-6);
    if (seq->token_count > 1)
        metrics_observe(METRIC_TPOT, decode / (seq->token_count - 1));
}

static void reap(struct turn *turn)
{
    struct seq_end end;

    while (scheduler_reap(turn->scheduler, &end)) {
        struct engine_seq *seq = &turn->seq[end.seq];
        observe_end(seq, &end);
        if (seq->answer != NULL)
            push_end(turn, seq,
                     end.reason == SEQ_END_STOP     ? FINISH_STOP
                     : end.reason == SEQ_END_LENGTH ? FINISH_LENGTH
                                                    : FINISH_NONE);
        else
            text_drop_one(turn->text, seq->job);
        *seq = (struct engine_seq){0};
    }
}

/* ---- one step's results ---- */

/* Whether `token` ends the sequence of `job`; *own: by one of the caller's own ids. */
static bool stops(const struct job *job, int32_t token, bool *own)
{
    for (int32_t i = 0; i < job->sampling.stop_count; i++)
        if (job->sampling.stop_token[i] == token) {
            *own = i < job->stop_token_count;
            return true;
        }
    return false;
}

static void observe_token(struct turn *turn, struct engine_seq *seq, int64_t now_us)
{
    if (seq->first_us == 0) {
        seq->first_us = now_us;
        metrics_observe(METRIC_TTFT, (double)(now_us - seq->job->arrival_us) * 1e-6);
        metrics_observe(METRIC_PREFILL, (double)(now_us - seq->job->start_us) * 1e-6);
    } else {
        metrics_observe(METRIC_ITL, (double)(now_us - seq->final_us) * 1e-6);
    }
    seq->final_us = now_us;
    seq->token_count++;
    turn->output_tokens++;
}

/* An item for sample `index`, with its likeliest tokens; the caller sets the rest. */
static struct text_item *push(struct turn *turn, const struct engine_seq *seq,
                              const struct step_result *result, int32_t index)
{
    int32_t top_count = seq->job->sampling.top_count > 0 ? seq->job->sampling.top_count : 0;
    struct text_batch *batch = &turn->batch[seq->job->text_thread];

    if (!text_batch_room(batch, top_count))
        return NULL;
    struct text_item *item = &batch->item[batch->item_count++];
    *item = (struct text_item){
        .answer = seq->answer,
        .token = result->token[index],
        .logprob = result->logprob[index],
        .top_first = batch->top_count,
        .stop_token = -1,
    };
    const int32_t *token = result->top_token + (int64_t)index * SAMPLING_TOP_MAX;
    const float *logprob = result->top_logprob + (int64_t)index * SAMPLING_TOP_MAX;
    for (int32_t i = 0; i < top_count && token[i] >= 0; i++) {
        batch->top[batch->top_count++] = (struct token_top){token[i], logprob[i]};
        item->top_count++;
    }
    return item;
}

/* Out of memory: this response ends, the others do not notice. */
static void drop(struct turn *turn, const struct plan_sample *sample)
{
    refuse(turn->seq[sample->seq].job, 503, "out_of_memory", "The server is out of memory.");
    scheduler_cancel(turn->scheduler, sample->seq, CANCEL_BY_ERROR);
}

static void take_draw(struct turn *turn, const struct flight *flight, int32_t index, int64_t now_us)
{
    const struct plan_sample *sample = &flight->plan->sample[index];
    struct engine_seq *seq = &turn->seq[sample->seq];
    int32_t *token = &flight->batch->result.token[index];
    bool own = false;
    bool stop = stops(seq->job, *token, &own);

    turn->result[index] = (struct sample_result){.token = token, .token_count = 1, .stop = stop};
    if (scheduler_wants(turn->scheduler, sample, 1) == 0)
        return;
    observe_token(turn, seq, now_us);
    struct text_item *item = push(turn, seq, &flight->batch->result, index);
    if (item == NULL) {
        drop(turn, sample);
        return;
    }
    item->kind = TEXT_TOKEN;
    if (stop)
        item->finish = FINISH_STOP;
    else if (sample->output_index + 1 >= seq->job->output_max)
        item->finish = FINISH_LENGTH;
    item->stop_token = stop && own ? *token : -1;
}

static void take_score(struct turn *turn, const struct flight *flight, int32_t index)
{
    const struct plan_sample *sample = &flight->plan->sample[index];
    struct engine_seq *seq = &turn->seq[sample->seq];

    turn->result[index] = (struct sample_result){0};
    struct text_item *item = push(turn, seq, &flight->batch->result, index);
    if (item == NULL) {
        drop(turn, sample);
        return;
    }
    item->kind = TEXT_SCORE;
    item->token_index = sample->token_index;
}

/* Processor time of this thread, where there is a log that wants it. */
static int64_t thread_busy_us(const struct turn *turn)
{
    struct timespec busy;

    if (turn->step_log == NULL)
        return 0;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &busy);
    return (int64_t)busy.tv_sec * 1000000 + busy.tv_nsec / 1000;
}

/* Once it is committed. */
static void log_step(struct turn *turn, const struct flight *flight, int64_t wait_us,
                     int64_t now_us, int64_t busy_us)
{
    struct scheduler_stats stats = scheduler_stats(turn->scheduler);
    struct step_line line = flight->line;

    line.duration_us = now_us - flight->start_us;
    line.wait_us = wait_us;
    line.busy_us = busy_us - flight->busy_us;
    line.launch = flight->batch->launch;
    line.launch_us = flight->batch->launch_us;
    step_log_add(turn->step_log, &line, &stats, now_us);
}

/* `wait_from_us` is when the wait for it began. */
static void finish_step(struct turn *turn, int64_t wait_from_us)
{
    struct flight flight = turn->flight[0];
    const struct plan *plan = flight.plan;
    int64_t now_us = engine_now_us(), busy_us = thread_busy_us(turn);

    for (int32_t i = 0; i < plan->sample_count; i++) {
        if (plan->sample[i].kind == PLAN_DRAW)
            take_draw(turn, &flight, i, now_us);
        else
            take_score(turn, &flight, i);
    }
    flush(turn); /* before the commit: the text threads start while we commit */
    metrics_add(METRIC_STEPS, 1);
    metrics_observe(METRIC_STEP_TOKENS, plan->token_count);
    metrics_observe(METRIC_STEP_ROWS, plan->row_count);
    metrics_observe(METRIC_STEP_TIME, (double)(now_us - flight.start_us) * 1e-6);
    scheduler_commit(turn->scheduler, plan, turn->result);
    turn->flight_count--;
    turn->flight[0] = turn->flight[1];
    if (turn->flight_count > 0) { /* it could not start before this one ended */
        turn->flight[0].start_us = now_us;
        turn->flight[0].busy_us = busy_us;
    }
    if (turn->step_log != NULL)
        log_step(turn, &flight, now_us - wait_from_us, now_us, busy_us);
}

/* ---- the turn ---- */

/* Notes when a prompt's first tokens are computed, and how many the cache held. */
static void note_rows(struct turn *turn, const struct plan *plan, int64_t now_us)
{
    for (int32_t i = 0; i < plan->row_count; i++) {
        const struct plan_row *row = &plan->row[i];
        struct job *job = turn->seq[row->seq].job;
        if (job->start_us != 0)
            continue;
        job->start_us = now_us;
        job->cached_count = row->position;
        metrics_add(METRIC_PROMPT_TOKENS, job->token_count);
        metrics_add(METRIC_PROMPT_TOKENS_CACHED, row->position);
        metrics_observe(METRIC_PROMPT_LENGTH, job->token_count);
        metrics_observe(METRIC_QUEUE, (double)(now_us - job->arrival_us) * 1e-6);
    }
}

static bool start_step(struct turn *turn, int64_t now_us)
{
    if (turn->flight_count == turn->flight_max)
        return false;
    int64_t busy_us = thread_busy_us(turn);
    const struct plan *plan = scheduler_plan(turn->scheduler, now_us);
    if (plan == NULL)
        return false;
    note_rows(turn, plan, now_us);
    struct batch *batch = model_batch(turn->model);
    engine_fill(batch, plan, turn->seq);
    model_start(turn->model, batch);
    struct flight *flight = &turn->flight[turn->flight_count];
    *flight = (struct flight){.plan = plan, .batch = batch, .start_us = now_us, .busy_us = busy_us};
    if (turn->step_log != NULL) {
        flight->line = step_line_make(plan, turn->seq);
        flight->line.alone = turn->flight_count == 0;
    }
    turn->flight_count++;
    return true;
}

static void lose(struct turn *turn)
{
    static const struct stream_error lost = {
        .status = 503,
        .type = "service_unavailable_error",
        .code = "engine_dead",
        .message = "A device was lost; the server is stopping.",
    };

    const char *fault = model_fault(turn->model);
    log_error("engine", "a device is lost, all requests end reason=\"%s\"",
              fault == NULL ? "unknown" : fault);
    for (int32_t i = 0; i < turn->seq_max; i++) {
        struct engine_seq *seq = &turn->seq[i];
        if (seq->job == NULL)
            continue;
        stream_fail(seq->job->stream, &lost);
        metrics_add(METRIC_FINISH_ERROR, 1);
        if (seq->answer != NULL)
            push_end(turn, seq, FINISH_NONE);
        *seq = (struct engine_seq){0};
    }
    flush(turn);
    if (turn->step_log != NULL) /* the process ends without closing it */
        step_log_flush(turn->step_log);
}

enum turn_state turn_run(struct turn *turn)
{
    bool started = start_step(turn, engine_now_us());

    if (turn->flight_count > 0 && (!started || turn->flight_count == turn->flight_max)) {
        int64_t wait_from_us = engine_now_us();
        if (model_wait(turn->model, turn->flight[0].batch) < 0) {
            lose(turn);
            return TURN_LOST;
        }
        finish_step(turn, wait_from_us);
    }
    reap(turn);
    flush(turn);
    if (!scheduler_idle(turn->scheduler))
        return TURN_WORKED;
    if (turn->step_log != NULL)
        step_log_flush(turn->step_log);
    return TURN_IDLE;
}

/* ---- what operators see ---- */

static void set_gauges(const struct scheduler_stats *stats, double block_count)
{
    double pinned = (double)stats->pinned_kv_tokens;

    metrics_set(METRIC_RUNNING, stats->running_count);
    metrics_set(METRIC_WAITING, stats->waiting_count);
    metrics_set(METRIC_KV_USAGE, stats->kv.pinned_count / block_count);
    metrics_set(METRIC_KV_TOTAL, block_count);
    metrics_set(METRIC_KV_USED, stats->kv.pinned_count);
    metrics_set(METRIC_KV_CACHED, stats->kv.cached_count);
    metrics_set(METRIC_KV_FREE, stats->kv.free_count);
    metrics_set(METRIC_KV_WASTE, pinned > 0 ? 1 - (double)stats->used_kv_tokens / pinned : 0);
}

static void log_report(struct turn *turn, const struct scheduler_stats *stats, int64_t now_us)
{
    double seconds = (double)(now_us - turn->report_us) * 1e-6;

    if (turn->report_us != 0 && !turn->config->disable_log_stats)
        log_info("engine",
                 "load running=%d waiting=%d blocks_used=%d blocks_cached=%d blocks=%d "
                 "prompt_tokens_per_s=%.1f output_tokens_per_s=%.1f preemptions=%lld",
                 stats->running_count, stats->waiting_count, stats->kv.pinned_count,
                 stats->kv.cached_count, turn->info->block_count,
                 (double)(stats->prompt_tokens - turn->prompt_reported) / seconds,
                 (double)(turn->output_tokens - turn->output_reported) / seconds,
                 (long long)stats->preempt_count);
    turn->report_us = now_us;
    turn->prompt_reported = stats->prompt_tokens;
    turn->output_reported = turn->output_tokens;
}

void turn_report(struct turn *turn, int64_t now_us)
{
    struct scheduler_stats stats = scheduler_stats(turn->scheduler);
    const struct scheduler_stats *before = &turn->reported;

    set_gauges(&stats, turn->info->block_count);
    metrics_add(METRIC_GENERATION_TOKENS, turn->output_tokens - turn->output_counted);
    turn->output_counted = turn->output_tokens;
    metrics_add(METRIC_PREFIX_QUERIES, stats.kv.query_tokens - before->kv.query_tokens);
    metrics_add(METRIC_PREFIX_HITS, stats.kv.hit_tokens - before->kv.hit_tokens);
    metrics_add(METRIC_PREEMPTIONS, stats.preempt_count - before->preempt_count);
    int64_t graph_count = model_graph_count(turn->model);
    metrics_add(METRIC_GRAPHS, graph_count - turn->graphs_counted);
    turn->graphs_counted = graph_count;
    turn->reported = stats;
    if (scheduler_idle(turn->scheduler))
        turn->report_us = 0;
    else if (turn->report_us == 0 ||
             now_us - turn->report_us >= (int64_t)(turn->config->log_stats_interval * 1e6))
        log_report(turn, &stats, now_us);
}
