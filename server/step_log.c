/* Counting what a plan holds, and a buffer in front of a file; see step_log.h. */
#include "server/step_log.h"

#include "server/log.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { BUFFER_BYTES = 1 << 16, LINE_MAX_BYTES = 512, FLUSH_US = 1000000 };

struct step_log {
    int fd; /* -1: a write failed */
    char *path;
    size_t byte_count; /* in the buffer */
    int64_t flushed_us;
    int64_t preempt_count; /* until the last line */
    char buffer[BUFFER_BYTES];
};

static const char header[] =
    "time,step,duration_us,wait_us,busy_us,launch,launch_us,alone,prompt_tokens,decode_rows,"
    "prompt_context,decode_context,samples,drawn,penalised,logprobs,scores,starts,resumed,"
    "preempted,moves,running,waiting,blocks_used,blocks_free\n";

/* ---- life ---- */

int step_log_open(struct step_log **opened, const char *path, char *error, size_t error_bytes)
{
    struct step_log *log = calloc(1, sizeof *log);
    struct stat status;
    int reason = ENOMEM;

    *opened = NULL;
    if (log != NULL) {
        log->path = strdup(path);
        /* Not to wait for a pipe's reader; a regular file does not care. */
        log->fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NONBLOCK, 0644);
        reason = log->fd < 0 ? errno : ENOMEM;
    }
    if (log == NULL || log->path == NULL || log->fd < 0) {
        snprintf(error, error_bytes, "could not open the step log %s: %s", path, strerror(reason));
        step_log_close(log);
        return -reason;
    }
    /* A file that is gone on with has its header. */
    if (fstat(log->fd, &status) != 0 || status.st_size == 0) {
        memcpy(log->buffer, header, sizeof header - 1);
        log->byte_count = sizeof header - 1;
    }
    *opened = log;
    return 0;
}

void step_log_close(struct step_log *log)
{
    if (log == NULL)
        return;
    step_log_flush(log);
    if (log->fd >= 0)
        close(log->fd);
    free(log->path);
    free(log);
}

void step_log_flush(struct step_log *log)
{
    size_t done = 0;

    while (log->fd >= 0 && done < log->byte_count) {
        ssize_t bytes = write(log->fd, log->buffer + done, log->byte_count - done);
        if (bytes >= 0) {
            done += (size_t)bytes;
        } else if (errno != EINTR) {
            log_error("engine", "the step log ends here: could not write path=\"%s\" reason=\"%s\"",
                      log->path, strerror(errno));
            close(log->fd);
            log->fd = -1;
        }
    }
    log->byte_count = 0;
}

/* ---- what is in a step ---- */

static void count_rows(struct step_line *line, const struct plan *plan,
                       const struct engine_seq *seq)
{
    for (int32_t i = 0; i < plan->row_count; i++) {
        const struct plan_row *row = &plan->row[i];
        int64_t count = row->token_count;
        int64_t context = count * row->position + count * (count + 1) / 2;

        /* Behind the prompt and alone: a token that the step before put out. What comes back after
         * a preemption is computed as prompts are. */
        if (count == 1 && row->position >= seq[row->seq].job->token_count) {
            line->decode_rows++;
            line->decode_context += context;
        } else {
            line->prompt_tokens += count;
            line->prompt_context += context;
        }
    }
}

static void count_samples(struct step_line *line, const struct plan *plan,
                          const struct engine_seq *seq)
{
    for (int32_t i = 0; i < plan->sample_count; i++) {
        const struct sampling *sampling = &seq[plan->sample[i].seq].job->sampling;

        if (plan->sample[i].kind == PLAN_SCORE) {
            line->scores++;
        } else {
            line->drawn += sampling->temperature > 0;
            line->penalised += sampling->presence_penalty != 0 ||
                               sampling->frequency_penalty != 0 ||
                               sampling->repetition_penalty != 1 || sampling->bias_count > 0;
        }
        line->logprobs += sampling->top_count >= 0;
    }
    line->samples = plan->sample_count;
}

struct step_line step_line_make(const struct plan *plan, const struct engine_seq *seq)
{
    struct step_line line = {
        .step = plan->step, .starts = plan->start_count, .moves = plan->move_count};

    count_rows(&line, plan, seq);
    count_samples(&line, plan, seq);
    for (int32_t i = 0; i < plan->start_count; i++)
        line.resumed += plan->start[i].token_count > plan->start[i].prompt_count;
    assert(line.prompt_tokens + line.decode_rows == plan->token_count);
    return line;
}

/* ---- lines ---- */

static const char *launch_name(enum step_launch launch)
{
    static const char *const name[] = {"direct", "replayed", "recorded"};

    assert(launch >= 0 && (size_t)launch < sizeof name / sizeof name[0]);
    return name[launch];
}

static size_t format(const struct step_line *line, const struct scheduler_stats *stats,
                     int64_t preempted, char *text)
{
    struct timespec now;

    clock_gettime(CLOCK_REALTIME, &now);
    int length = snprintf(
        text, LINE_MAX_BYTES,
        "%lld.%06ld,%" PRId64 ",%" PRId64 ",%" PRId64 ",%" PRId64 ",%s,%" PRId64 ",%d,%" PRId64
        ",%" PRId64 ",%" PRId64 ",%" PRId64 ",%d,%d,%d,%d,%d,%d,%d,%" PRId64 ",%d,%d,%d,%d,%d\n",
        (long long)now.tv_sec, now.tv_nsec / 1000, line->step, line->duration_us, line->wait_us,
        line->busy_us, launch_name(line->launch), line->launch_us, line->alone, line->prompt_tokens,
        line->decode_rows, line->prompt_context, line->decode_context, line->samples, line->drawn,
        line->penalised, line->logprobs, line->scores, line->starts, line->resumed, preempted,
        line->moves, stats->running_count, stats->waiting_count, stats->kv.pinned_count,
        stats->kv.free_count + stats->kv.cached_count);
    assert(length > 0 && length < LINE_MAX_BYTES); /* 25 numbers of at most 20 digits */
    return (size_t)length;
}

void step_log_add(struct step_log *log, const struct step_line *line,
                  const struct scheduler_stats *stats, int64_t now_us)
{
    int64_t preempted = stats->preempt_count - log->preempt_count;

    log->preempt_count = stats->preempt_count;
    if (log->fd < 0)
        return;
    assert(log->byte_count + LINE_MAX_BYTES <= BUFFER_BYTES);
    log->byte_count += format(line, stats, preempted, log->buffer + log->byte_count);
    if (log->byte_count + LINE_MAX_BYTES > BUFFER_BYTES || now_us - log->flushed_us >= FLUSH_US) {
        step_log_flush(log);
        log->flushed_us = now_us;
    }
}
