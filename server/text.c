/* The text threads: inboxes, and prompts on their way in. Tokens on their way out: answer.c. */
#include "server/text.h"
#include "server/answer.h"
#include "server/stop_match.h"
#include "server/stream_private.h"

#include "model/text/tokenizer.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct inbox {
    struct text *text;
    pthread_t thread;
    bool started;

    /* The thread's own. */
    struct text_batch work;
    struct answer_wakes wakes;

    pthread_mutex_t lock;
    pthread_cond_t letter;
    /* guarded by lock */
    struct job **jobs; /* [jobs_count] lists, one a response, oldest first from jobs_first */
    int32_t jobs_first, jobs_count, jobs_max;
    struct text_batch batch;
    bool stopping;
};

struct text {
    struct model *model;
    const struct tokenizer *tokenizer; /* NULL: prompts must be ids */
    struct text_sink sink;
    int32_t thread_count;
    atomic_uint turn; /* which thread the next response goes to */
    struct inbox inbox[];
};

/* ---- room ---- */

bool text_batch_room(struct text_batch *batch, int32_t top_count)
{
    if (batch->item_count == batch->item_max) {
        int32_t max = batch->item_max * 2 + 64;
        struct text_item *grown = realloc(batch->item, (size_t)max * sizeof *grown);
        if (grown == NULL)
            return false;
        batch->item = grown;
        batch->item_max = max;
    }
    if (batch->top_count + top_count > batch->top_max) {
        int32_t max = (batch->top_count + top_count) * 2;
        struct token_top *grown = realloc(batch->top, (size_t)max * sizeof *grown);
        if (grown == NULL)
            return false;
        batch->top = grown;
        batch->top_max = max;
    }
    return true;
}

/* Appends all of `from`; there is no way to go on without the ends that it may hold. */
static void batch_append(struct text_batch *to, const struct text_batch *from)
{
    for (int32_t i = 0; i < from->item_count; i++) {
        const struct text_item *item = &from->item[i];
        if (!text_batch_room(to, item->top_count))
            abort();
        struct text_item *copy = &to->item[to->item_count++];
        *copy = *item;
        copy->top_first = to->top_count;
        if (item->top_count > 0)
            memcpy(to->top + to->top_count, from->top + item->top_first,
                   (size_t)item->top_count * sizeof(struct token_top));
        to->top_count += item->top_count;
    }
}

/* ---- prompts on their way in ---- */

static void fail(struct job *job, int32_t status, const char *code, const char *param,
                 const char *message)
{
    struct stream_error error = stream_error_make(status, code, param, "%s", message);

    stream_fail(job->stream, &error);
}

static bool out_of_memory(struct job *job)
{
    fail(job, 503, "out_of_memory", "", "The server is out of memory.");
    return false;
}

static bool tokenise(const struct text *text, struct job *job)
{
    unsigned flags = TOKENIZER_PARSE_SPECIAL | (job->add_special ? TOKENIZER_ADD_SPECIAL : 0);

    if (text->tokenizer == NULL) {
        fail(job, 400, "unsupported_value", "prompt",
             "'prompt' must be token ids: this model has no tokenizer.");
        return false;
    }
    int64_t count =
        tokenizer_encode(text->tokenizer, job->text, job->text_bytes, flags, &job->token);
    if (count == -EFBIG || count == -EOVERFLOW) {
        fail(job, 400, "invalid_value", "prompt",
             count == -EFBIG ? "'prompt' is too long to be cut into tokens."
                             : "'prompt' has a run that the model's pattern takes too long for.");
        return false;
    }
    if (count < 0 || count > INT32_MAX)
        return out_of_memory(job);
    job->token_count = (int32_t)count;
    if (count > 0)
        return true;

    /* An empty prompt begins where every text does. */
    if (tokenizer_bos(text->tokenizer) < 0) {
        fail(job, 400, "invalid_value", "prompt", "'prompt' must not be empty.");
        return false;
    }
    free(job->token);
    job->token = malloc(sizeof *job->token);
    if (job->token == NULL)
        return out_of_memory(job);
    job->token[0] = tokenizer_bos(text->tokenizer);
    job->token_count = 1;
    return true;
}

static bool check_ids(const struct job *job, int32_t vocab_count)
{
    for (int32_t i = 0; i < job->token_count; i++)
        if (job->token[i] < 0 || job->token[i] >= vocab_count) {
            char message[160];
            snprintf(message, sizeof message, "'prompt[%d]' must be a token id below %d, got %d.",
                     i, vocab_count, job->token[i]);
            fail((struct job *)job, 400, "invalid_value", "prompt", message);
            return false;
        }
    return true;
}

/* Cuts the output to the context, or refuses what was asked for beyond it. */
static bool fit_context(struct job *job, int32_t context_max)
{
    int64_t asked = job->output_max_given ? job->output_max : job->output_max == 0 ? 0 : 1;

    if (job->token_count + asked > context_max) {
        char message[256];
        snprintf(message, sizeof message,
                 "This model's maximum context length is %d tokens. However, you requested "
                 "%lld tokens (%d in the prompt, %lld in the completion). Please reduce the "
                 "length of the prompt or the completion.",
                 context_max, (long long)(job->token_count + asked), job->token_count,
                 (long long)asked);
        fail(job, 400, "context_length_exceeded", "prompt", message);
        return false;
    }
    int32_t room = context_max - job->token_count;
    if (job->output_max < 0 || job->output_max > room)
        job->output_max = room;
    return true;
}

static bool add_ends(struct job *job, const struct model_info *info)
{
    struct sampling *sampling = &job->sampling;

    if (job->ignore_eos)
        return true;
    for (int32_t i = 0; i < info->end_count; i++) {
        if (sampling->stop_count == SAMPLING_STOP_MAX) {
            fail(job, 400, "invalid_value", "stop_token_ids", "Too many 'stop_token_ids'.");
            return false;
        }
        sampling->stop_token[sampling->stop_count++] = info->end_token[i];
    }
    return true;
}

static bool make_room(struct job *job)
{
    size_t count = (size_t)job->token_count;
    size_t top = job->sampling.top_count > 0 ? (size_t)job->sampling.top_count : 0;

    if (job->stop_count > 0) {
        job->stop_set = stop_set_create((const char *const *)job->stop, job->stop_count);
        if (job->stop_set == NULL)
            return out_of_memory(job);
    }
    if (job->score_prompt) {
        job->score = calloc(count, sizeof *job->score);
        job->score_top = calloc(count * top + 1, sizeof *job->score_top);
        if (job->score == NULL || job->score_top == NULL)
            return out_of_memory(job);
    }
    if (!stream_set_prompt(job->stream, job->prompt_index, job->token, job->token_count))
        return out_of_memory(job);
    return true;
}

static bool prepare(const struct text *text, struct job *job)
{
    const struct model_info *info = model_info(text->model);

    if (job->text != NULL && !tokenise(text, job))
        return false;
    return check_ids(job, info->vocab_count) && fit_context(job, info->context_max) &&
           add_ends(job, info) && make_room(job);
}

/* Tokenises a response's jobs and hands them on, all or none. */
static void submit(struct inbox *inbox, struct job *jobs)
{
    struct text *text = inbox->text;
    bool good = !stream_dead(jobs->stream);

    for (struct job *job = jobs; job != NULL && good; job = job->next)
        good = prepare(text, job);
    if (good) {
        text->sink.submit(text->sink.context, jobs);
        return;
    }
    answer_wake(&inbox->wakes, jobs->stream);
    while (jobs != NULL) {
        struct job *next = jobs->next;
        text->sink.ended(text->sink.context, jobs);
        jobs = next;
    }
}

/* ---- the threads ---- */

static struct job *take_jobs(struct inbox *inbox)
{
    if (inbox->jobs_count == 0)
        return NULL;
    struct job *jobs = inbox->jobs[inbox->jobs_first++];
    if (--inbox->jobs_count == 0)
        inbox->jobs_first = 0;
    return jobs;
}

/* Waits for work and takes all tokens, and the jobs of one response: tokens of running streams
 * must not wait behind many long prompts. False: stopped, with nothing left. */
static bool take_work(struct inbox *inbox, struct job **jobs)
{
    pthread_mutex_lock(&inbox->lock);
    while (inbox->batch.item_count == 0 && inbox->jobs_count == 0 && !inbox->stopping)
        pthread_cond_wait(&inbox->letter, &inbox->lock);
    struct text_batch work = inbox->batch;
    inbox->batch = inbox->work;
    inbox->batch.item_count = 0;
    inbox->batch.top_count = 0;
    inbox->work = work;
    *jobs = take_jobs(inbox);
    bool more = work.item_count > 0 || *jobs != NULL || !inbox->stopping;
    pthread_mutex_unlock(&inbox->lock);
    return more;
}

static void *run(void *context)
{
    struct inbox *inbox = context;
    struct text *text = inbox->text;
    struct job *jobs;

    while (take_work(inbox, &jobs)) {
        for (int32_t i = 0; i < inbox->work.item_count; i++)
            answer_take(&inbox->work.item[i], inbox->work.top, &text->sink, &inbox->wakes);
        if (inbox->wakes.count > 0)
            text->sink.wake(text->sink.context, inbox->wakes.stream, inbox->wakes.count);
        inbox->wakes.count = 0;
        if (jobs != NULL)
            submit(inbox, jobs);
        if (inbox->wakes.count > 0)
            text->sink.wake(text->sink.context, inbox->wakes.stream, inbox->wakes.count);
        inbox->wakes.count = 0;
    }
    return NULL;
}

struct text *text_start(struct model *model, int32_t thread_count, const struct text_sink *sink)
{
    struct text *text = calloc(1, sizeof *text + (size_t)thread_count * sizeof(struct inbox));

    if (text == NULL)
        return NULL;
    text->model = model;
    text->tokenizer = model_tokenizer(model);
    text->sink = *sink;
    text->thread_count = thread_count;
    for (int32_t i = 0; i < thread_count; i++) {
        struct inbox *inbox = &text->inbox[i];
        inbox->text = text;
        pthread_mutex_init(&inbox->lock, NULL);
        pthread_cond_init(&inbox->letter, NULL);
        inbox->started = pthread_create(&inbox->thread, NULL, run, inbox) == 0;
        if (!inbox->started) {
            text->thread_count = i + 1;
            text_stop(text);
            return NULL;
        }
        pthread_setname_np(inbox->thread, "text");
    }
    return text;
}

void text_stop(struct text *text)
{
    if (text == NULL)
        return;
    for (int32_t i = 0; i < text->thread_count; i++) {
        struct inbox *inbox = &text->inbox[i];
        pthread_mutex_lock(&inbox->lock);
        inbox->stopping = true;
        pthread_cond_signal(&inbox->letter);
        pthread_mutex_unlock(&inbox->lock);
        if (inbox->started)
            pthread_join(inbox->thread, NULL);
        free(inbox->batch.item);
        free(inbox->batch.top);
        free(inbox->work.item);
        free(inbox->work.top);
        free(inbox->wakes.stream);
        free(inbox->jobs);
        pthread_cond_destroy(&inbox->letter);
        pthread_mutex_destroy(&inbox->lock);
    }
    free(text);
}

/* Lock held. */
static bool jobs_room(struct inbox *inbox)
{
    if (inbox->jobs_first + inbox->jobs_count < inbox->jobs_max)
        return true;
    if (inbox->jobs_first > 0) {
        memmove(inbox->jobs, inbox->jobs + inbox->jobs_first,
                (size_t)inbox->jobs_count * sizeof(struct job *));
        inbox->jobs_first = 0;
        return true;
    }
    int32_t max = inbox->jobs_max * 2 + 64;
    struct job **grown = realloc(inbox->jobs, (size_t)max * sizeof(struct job *));
    if (grown == NULL)
        return false;
    inbox->jobs = grown;
    inbox->jobs_max = max;
    return true;
}

bool text_submit(struct text *text, struct job *jobs)
{
    unsigned turn = atomic_fetch_add_explicit(&text->turn, 1, memory_order_relaxed);
    int32_t index = (int32_t)(turn % (unsigned)text->thread_count);
    struct inbox *inbox = &text->inbox[index];

    for (struct job *job = jobs; job != NULL; job = job->next)
        job->text_thread = index;
    pthread_mutex_lock(&inbox->lock);
    bool fits = jobs_room(inbox);
    if (fits)
        inbox->jobs[inbox->jobs_first + inbox->jobs_count++] = jobs;
    pthread_cond_signal(&inbox->letter);
    pthread_mutex_unlock(&inbox->lock);
    return fits;
}

void text_append(struct text *text, int32_t index, const struct text_batch *batch)
{
    struct inbox *inbox = &text->inbox[index];

    pthread_mutex_lock(&inbox->lock);
    batch_append(&inbox->batch, batch);
    pthread_cond_signal(&inbox->letter);
    pthread_mutex_unlock(&inbox->lock);
}

const struct tokenizer *text_tokenizer(const struct text *text)
{
    return text->tokenizer;
}

int32_t text_thread_count(const struct text *text)
{
    return text->thread_count;
}

void text_drop(struct text *text, struct job *job)
{
    struct stream *stream = job->stream;

    stream_hold(stream);
    text->sink.wake(text->sink.context, &stream, 1);
    text->sink.ended(text->sink.context, job);
}

void text_drop_one(struct text *text, struct job *job)
{
    if (atomic_fetch_sub(&job->open_count, 1) == 1)
        text_drop(text, job);
}
