/* A rank's life: open, measure, load, then steps until it is closed. */
#include "model/rank.h"

#include "model/rope.h"
#include "model/tune.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum {
    STRIDE_ALIGN = 32, /* elements */
    BUFFER_MAX = 16,
    MIXED_GRAPH_MAX = 256, /* tokens of a step that has prompts in it */
    READY_GRAPH_MAX = 256, /* tokens of the largest step of decode that is recorded at the start */
    GRAPHS_MAX = 256,      /* all of them; further sizes run without */
};

struct rank {
    struct rank_options options;
    const struct device_ops *ops; /* of the device that opened */
    struct device *device;
    struct weights weights;
    struct pass pass; /* as every step begins */
    struct ledger ledger;
    int64_t block_bytes;
    int64_t weight_total; /* while loading */
    int64_t step_bytes;   /* of the weights, what a step reads */
    double read_rate;
    char description[128];
    struct tune_taken tuned;
    atomic_llong graph_count; /* recorded so far */
    bool graph_fault;         /* sticks, as a device's own faults do */
    char fault[256];          /* why; written once, before the wait that says -EIO returns */

    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t work; /* the rank's thread sleeps here */
    pthread_cond_t news; /* the others do */
    /* Guarded by lock. */
    bool loaded;
    int load_status;
    double share;
    bool closing;
    struct batch *queue[STEP_DEPTH];
    int status[STEP_DEPTH];
    int64_t started, issued, wanted, done;              /* batches so far */
    void (*tune_line)(void *context, const char *text); /* while rank_tune waits, else NULL */
    void *tune_context;
    int tune_status;
};

/* ---- buffers ---- */

struct buffer {
    struct activation *target;
    int64_t rows;
    int64_t width;
    bool residual;
};

static int32_t list_buffers(struct rank *rank, struct buffer *buffer)
{
    const struct shape *shape = rank->options.shape;
    struct pass *pass = &rank->pass;
    int64_t T = rank->options.device.token_max, S = rank->options.device.sample_max;
    int64_t heads = (int64_t)shape->head_count * shape->head_width;
    int64_t kv = (int64_t)shape->kv_head_count * shape->head_width;
    const struct buffer list[] = {
        {&pass->x, T, shape->width, true},
        {&pass->normed, T, shape->width, false},
        {&pass->branch, T, shape->width, false},
        {&pass->qkv, T, heads + 2 * kv, false},
        {&pass->heads, T, heads, false},
        {&pass->gate_up, T, 2 * (int64_t)shape->ffn_width, false},
        {&pass->act, T, shape->ffn_width, false},
        {&pass->picked_x, S, shape->width, true},
        {&pass->picked_heads, S, heads, false},
        {&pass->picked_normed, S, shape->width, false},
    };

    static_assert(sizeof(list) / sizeof(*list) <= BUFFER_MAX, "room for the list");
    memcpy(buffer, list, sizeof(list));
    return sizeof(list) / sizeof(*list);
}

static size_t buffer_bytes(const struct rank *rank, const struct buffer *buffer)
{
    int64_t stride = (buffer->width + STRIDE_ALIGN - 1) / STRIDE_ALIGN * STRIDE_ALIGN;

    return (size_t)(buffer->rows * stride) *
           (buffer->residual ? rank->ops->residual_bytes : rank->ops->activation_bytes);
}

static int32_t logit_rows(const struct rank *rank)
{
    int32_t most = rank->options.device.sample_max;

    return most < rank->ops->logit_rows ? most : rank->ops->logit_rows;
}

static size_t logit_bytes(const struct rank *rank)
{
    return (size_t)logit_rows(rank) * (size_t)rank->options.shape->vocab_count * sizeof(float);
}

static int take_buffers(struct rank *rank)
{
    struct buffer buffer[BUFFER_MAX];
    int32_t count = list_buffers(rank, buffer);

    for (int32_t i = 0; i < count; i++) {
        buffer[i].target->data = rank->ops->alloc(rank->device, buffer_bytes(rank, &buffer[i]));
        buffer[i].target->stride =
            (buffer[i].width + STRIDE_ALIGN - 1) / STRIDE_ALIGN * STRIDE_ALIGN;
        buffer[i].target->residual = buffer[i].residual;
        if (buffer[i].target->data == NULL)
            return -ENOMEM;
    }
    rank->pass.logit_rows = logit_rows(rank);
    rank->pass.logits = rank->ops->alloc(rank->device, logit_bytes(rank));
    return rank->pass.logits == NULL ? -ENOMEM : 0;
}

static int take_ropes(struct rank *rank)
{
    const struct shape *shape = rank->options.shape;
    int32_t context = rank->ledger.context_max;

    for (int32_t i = 0; i < shape->rope_count; i++) {
        size_t bytes = rope_table_bytes(&shape->rope[i], context);
        float *table = malloc(bytes);
        void *target = rank->ops->alloc(rank->device, bytes);

        if (table == NULL || target == NULL) {
            free(table);
            return -ENOMEM;
        }
        rope_table_fill(&shape->rope[i], context, table);
        rank->ops->upload(rank->device, target, table, bytes);
        rank->weights.rope[i] = target;
        free(table);
    }
    return 0;
}

/* ---- loading ---- */

static void tell(struct rank *rank, double share)
{
    pthread_mutex_lock(&rank->lock);
    rank->share = share;
    pthread_cond_signal(&rank->news);
    pthread_mutex_unlock(&rank->lock);
}

static void weights_packed(void *context, size_t weight_bytes)
{
    struct rank *rank = context;

    tell(rank, (double)weight_bytes / (double)(rank->weight_total + 1));
}

static bool open_device(struct rank *rank)
{
    char detail[256] = "";
    int status;

    rank->ops = rank->options.ops;
    status = rank->ops->open(&rank->device, &rank->options.device, detail, sizeof(detail));
    if (status == -ENODEV && rank->options.fallback != NULL) {
        rank->ops = rank->options.fallback;
        status = rank->ops->open(&rank->device, &rank->options.device, detail, sizeof(detail));
    }
    if (status == 0) {
        snprintf(rank->description, sizeof(rank->description), "%s",
                 rank->ops->describe(rank->device));
        return true;
    }
    rank->device = NULL;
    source_refuse(rank->options.source, status, "the %s device: %s", rank->ops->name, detail);
    return false;
}

/* Everything that is taken of the device is a line here, so that the sums are exact. */
static bool make_ledger(struct rank *rank, const struct loader *loader, const struct kv_shape *kv)
{
    const struct shape *shape = rank->options.shape;
    struct ledger_wish *wish = &rank->options.wish;
    struct buffer buffer[BUFFER_MAX];
    int32_t count = list_buffers(rank, buffer);
    char detail[512];
    int status;

    wish->weight_bytes = (int64_t)(loader->weight_bytes + loader->vector_bytes);
    wish->workspace_bytes = (int64_t)logit_bytes(rank);
    for (int32_t i = 0; i < count; i++)
        wish->workspace_bytes += (int64_t)buffer_bytes(rank, &buffer[i]);
    wish->position_bytes = 0;
    for (int32_t i = 0; i < shape->rope_count; i++)
        wish->position_bytes += (int64_t)rope_table_bytes(&shape->rope[i], 1);
    if (rank->ops->kv_fixed_bytes != NULL)
        wish->workspace_bytes += (int64_t)rank->ops->kv_fixed_bytes(rank->device, kv);
    if (rank->ops->graph_bytes != NULL)
        wish->graph_bytes =
            GRAPHS_MAX * (int64_t)rank->ops->graph_bytes(rank->device, shape->layer_count);
    wish->block_bytes = (int64_t)rank->ops->kv_block_bytes(rank->device, kv);
    wish->free_bytes = (int64_t)rank->ops->memory_free(rank->device);
    if (rank->ops->memory_total != NULL) {
        wish->total_bytes = (int64_t)rank->ops->memory_total(rank->device);
        wish->taken_bytes = (int64_t)rank->ops->memory_taken(rank->device);
    }
    rank->block_bytes = wish->block_bytes;
    status = ledger_make(&rank->ledger, wish, detail, sizeof(detail));
    if (status != 0)
        source_refuse(rank->options.source, status, "%s", detail);
    return status == 0;
}

static bool load_weights(struct rank *rank, struct loader *loader)
{
    int status = loader_begin_packing(loader);

    if (status == 0) {
        rank->weight_total = rank->ledger.weight_bytes;
        loader->progress = weights_packed;
        loader->progress_context = rank;
        rank->options.arch->load(&rank->weights, rank->options.shape, loader);
        status = source_status(rank->options.source);
    }
    if (status == 0)
        status = take_buffers(rank);
    if (status == 0)
        status = take_ropes(rank);
    if (status != 0)
        source_refuse(rank->options.source, status, "no memory on the %s device", rank->ops->name);
    return status == 0;
}

static bool open_kv(struct rank *rank, struct kv_shape *kv)
{
    int status;

    kv->block_count = rank->ledger.block_count;
    status = rank->ops->kv_open(rank->device, kv);
    if (status == -ENOTSUP)
        source_refuse(rank->options.source, status, "the %s device has no such KV dtype",
                      rank->ops->name);
    else if (status != 0)
        source_refuse(rank->options.source, status, "no memory for %d KV blocks on the %s device",
                      kv->block_count, rank->ops->name);
    return status == 0;
}

/* All weights, but for an embedding that is not the head too: few of its rows are. */
static int64_t count_step_bytes(const struct rank *rank)
{
    const struct weight *embed = &rank->weights.embed;
    int64_t bytes = rank->ledger.weight_bytes;

    for (int32_t i = 0; rank->weights.head != embed && i < embed->part_count; i++)
        bytes -= (int64_t)rank->ops->weight_bytes(rank->device, embed->part[i].format,
                                                  embed->part[i].out, embed->in);
    return bytes;
}

/* The tables that are to be followed, if there are some. */
static bool take_table(struct rank *rank)
{
    char detail[512] = "";
    int status = tune_take(rank->ops, rank->device, rank->options.tune_table, tuned_builtin,
                           &rank->tuned, detail, sizeof(detail));

    if (status != 0)
        source_refuse(rank->options.source, status, "%s", detail);
    return status == 0;
}

/* ---- recorded steps ---- */

/* The size that a graph for `count` tokens is captured at: few sizes, little padding. */
static int32_t padded(int32_t count)
{
    int32_t step = count <= 64 ? 8 : count <= 256 ? 16 : 32;

    if (count <= 2)
        return count;
    return count <= 4 ? 4 : (count + step - 1) / step * step;
}

static void forward(struct rank *rank, int32_t token_count, int32_t sample_count)
{
    struct pass pass = rank->pass;

    pass.rows = token_count;
    pass.sample_count = sample_count;
    rank->options.arch->forward(&pass);
}

/* The padded sizes that a graph is recorded for; none where T is 0. */
struct graph_size {
    int32_t T, S;
};

static int64_t key_of(struct graph_size size)
{
    return (int64_t)size.T << 32 | size.S;
}

static bool has_room_for_graph(const struct rank *rank)
{
    return atomic_load_explicit(&rank->graph_count, memory_order_relaxed) < GRAPHS_MAX;
}

/* False: it failed. */
static bool record(struct rank *rank, struct graph_size size)
{
    if (!rank->ops->graph_begin(rank->device, key_of(size)))
        return false;
    forward(rank, size.T, size.S);
    atomic_fetch_add_explicit(&rank->graph_count, 1, memory_order_relaxed);
    return rank->ops->graph_end(rank->device, key_of(size));
}

/* The sizes of decode, so that no step of it has to wait for its recording, and so that what the
 * device takes for them is taken now. */
static void record_decode(struct rank *rank)
{
    const struct device_options *limit = &rank->options.device;
    int32_t most = padded(limit->slot_max < READY_GRAPH_MAX ? limit->slot_max : READY_GRAPH_MAX);

    most = most < limit->token_max ? most : limit->token_max;
    most = most < limit->sample_max ? most : limit->sample_max;
    for (int32_t T = 1; rank->ops->graph_begin != NULL && T <= most; T = padded(T + 1)) {
        if (!record(rank, (struct graph_size){T, T})) {
            source_refuse(rank->options.source, -ENOMEM,
                          "could not record a step of %d tokens on the %s device", T,
                          rank->ops->name);
            return;
        }
    }
}

/* ---- loading, the last of it ---- */

static void load(struct rank *rank)
{
    static const int32_t one_group[LAYER_MAX];
    const struct shape *shape = rank->options.shape;
    struct loader loader = {.source = rank->options.source, .measure = true};
    struct kv_shape kv = {
        .layer_count = shape->layer_count,
        .block_count = 1,
        .block_tokens = rank->options.wish.block_tokens,
        .kv_head_count = shape->kv_head_count,
        .head_width = shape->head_width,
        .group_count = 1,
        .layer_group = one_group,
    };
    bool good;

    rank->weights.layer = calloc((size_t)shape->layer_count, sizeof(*rank->weights.layer));
    if (rank->weights.layer == NULL) {
        source_refuse(loader.source, -ENOMEM, "no memory for %d layers", shape->layer_count);
        return;
    }
    if (!open_device(rank) || !take_table(rank))
        return;
    loader.ops = rank->ops;
    loader.device = rank->device;
    rank->options.arch->load(&rank->weights, shape, &loader);
    source_check_used(loader.source);
    if (source_status(loader.source) != 0 || !make_ledger(rank, &loader, &kv) ||
        rank->options.measure)
        return;
    source_prefetch(loader.source);
    if (rank->options.read_rate)
        rank->read_rate = rank->ops->read_rate(rank->device);
    good = load_weights(rank, &loader);
    loader_end(&loader);
    if (!good || !open_kv(rank, &kv))
        return;
    rank->step_bytes = count_step_bytes(rank);
    rank->pass.ops = rank->ops;
    rank->pass.device = rank->device;
    rank->pass.shape = shape;
    rank->pass.weights = &rank->weights;
    record_decode(rank);
}

/* ---- steps ---- */

/* Small steps are recorded: in large ones the launches take less time than the work. Where all
 * rows are one token there is one graph a T; in a mixed step samples are padded to few sizes. */
static struct graph_size graph_size(const struct rank *rank, const struct step *step)
{
    const struct device_options *limit = &rank->options.device;
    bool mixed = step->row_count != step->token_count;
    struct graph_size size = {padded(step->token_count), 0};

    if (rank->ops->graph_begin == NULL || (mixed && size.T > MIXED_GRAPH_MAX))
        return (struct graph_size){0};
    size.S = size.T;
    if (mixed) {
        size.S = 8;
        while (size.S < step->sample_count)
            size.S *= 2;
        size.S = size.S < size.T ? size.S : size.T;
    }
    if (step->sample_count > size.S || size.T > limit->token_max || size.S > limit->sample_max)
        return (struct graph_size){0};
    return size;
}

/* STEP_DIRECT: there is no graph, old or new, to launch; a failure is a fault. */
static enum step_launch forward_graph(struct rank *rank, struct graph_size size)
{
    if (size.T == 0)
        return STEP_DIRECT;
    if (rank->ops->graph_launch(rank->device, key_of(size)))
        return STEP_REPLAYED;
    if (!has_room_for_graph(rank))
        return STEP_DIRECT;
    if (!record(rank, size) || !rank->ops->graph_launch(rank->device, key_of(size)))
        rank->graph_fault = true;
    return STEP_RECORDED;
}

static int64_t now_us(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

static void issue(struct rank *rank, struct batch *batch)
{
    const struct step *step = &batch->step;
    int64_t start_us = now_us();

    assert(step->token_count <= rank->options.device.token_max);
    assert(step->sample_count <= rank->options.device.sample_max);
    batch->launch = STEP_DIRECT;
    rank->ops->step_begin(rank->device, step);
    if (step->token_count > 0) {
        batch->launch = forward_graph(rank, graph_size(rank, step));
        if (batch->launch == STEP_DIRECT)
            forward(rank, step->token_count, step->sample_count);
    }
    rank->ops->step_end(rank->device, &batch->result);
    batch->launch_us = now_us() - start_us;
}

static void issue_next(struct rank *rank)
{
    struct batch *batch = rank->queue[rank->issued % STEP_DEPTH];

    pthread_mutex_unlock(&rank->lock);
    issue(rank, batch);
    pthread_mutex_lock(&rank->lock);
    rank->issued++;
}

static void keep_fault(struct rank *rank)
{
    const char *reason = rank->ops->fault == NULL ? NULL : rank->ops->fault(rank->device);

    if (reason == NULL)
        reason = rank->graph_fault ? "a graph of a step could not be captured" : "unknown";
    snprintf(rank->fault, sizeof(rank->fault), "the %s device: %s", rank->ops->name, reason);
}

static void finish_next(struct rank *rank)
{
    int status;

    pthread_mutex_unlock(&rank->lock);
    status = rank->ops->sync(rank->device);
    if (rank->graph_fault)
        status = -EIO;
    if (status != 0 && rank->fault[0] == '\0')
        keep_fault(rank);
    pthread_mutex_lock(&rank->lock);
    rank->status[rank->done % STEP_DEPTH] = status == 0 ? 0 : -EIO;
    rank->done++;
    pthread_cond_signal(&rank->news);
}

static void tune_now(struct rank *rank)
{
    int status;

    pthread_mutex_unlock(&rank->lock);
    status = tune_measure(rank->ops, rank->device, &rank->weights, rank->options.shape->layer_count,
                          rank->options.device.token_max, rank->tune_line, rank->tune_context);
    pthread_mutex_lock(&rank->lock);
    rank->tune_status = status;
    rank->tune_line = NULL;
    pthread_cond_signal(&rank->news);
}

/* Whether the oldest step that was issued is to be waited for now: where its work is done already,
 * before the next one is issued; else when there is nothing to issue and somebody asks. */
static bool is_finish_due(const struct rank *rank)
{
    if (rank->done == rank->issued)
        return false;
    return rank->ops->immediate ||
           (rank->issued == rank->started && (rank->done < rank->wanted || rank->closing));
}

static void *run(void *argument)
{
    struct rank *rank = argument;

    load(rank);
    pthread_mutex_lock(&rank->lock);
    rank->loaded = true;
    rank->load_status = source_status(rank->options.source);
    pthread_cond_signal(&rank->news);
    for (;;) {
        if (is_finish_due(rank))
            finish_next(rank);
        else if (rank->issued < rank->started)
            issue_next(rank);
        else if (rank->tune_line != NULL)
            tune_now(rank);
        else if (rank->closing)
            break;
        else
            pthread_cond_wait(&rank->work, &rank->lock);
    }
    pthread_mutex_unlock(&rank->lock);
    if (rank->device != NULL)
        rank->ops->close(rank->device);
    return NULL;
}

/* ---- the other side ---- */

struct rank *rank_create(const struct rank_options *options)
{
    struct rank *rank = calloc(1, sizeof(*rank));

    if (rank == NULL)
        return NULL;
    rank->options = *options;
    pthread_mutex_init(&rank->lock, NULL);
    pthread_cond_init(&rank->work, NULL);
    pthread_cond_init(&rank->news, NULL);
    if (pthread_create(&rank->thread, NULL, run, rank) == 0)
        return rank;
    free(rank);
    return NULL;
}

int rank_load(struct rank *rank, void (*progress)(void *context, double share, const char *what),
              void *context)
{
    double told = -1.0;
    int status;

    pthread_mutex_lock(&rank->lock);
    while (!rank->loaded) {
        double share = rank->share;

        if (progress != NULL && share != told) {
            pthread_mutex_unlock(&rank->lock);
            progress(context, share, "weights");
            told = share;
            pthread_mutex_lock(&rank->lock);
            continue;
        }
        pthread_cond_wait(&rank->news, &rank->lock);
    }
    status = rank->load_status;
    pthread_mutex_unlock(&rank->lock);
    if (progress != NULL && status == 0)
        progress(context, 1.0, "ready");
    return status;
}

const struct ledger *rank_ledger(const struct rank *rank)
{
    return &rank->ledger;
}

int64_t rank_block_bytes(const struct rank *rank)
{
    return rank->block_bytes;
}

int64_t rank_step_bytes(const struct rank *rank)
{
    return rank->step_bytes;
}

double rank_read_rate(const struct rank *rank)
{
    return rank->read_rate;
}

void rank_describe(const struct rank *rank, char *text, size_t max)
{
    snprintf(text, max, "%s", rank->description);
}

int64_t rank_graph_count(const struct rank *rank)
{
    return atomic_load_explicit(&rank->graph_count, memory_order_relaxed);
}

void rank_describe_table(const struct rank *rank, char *text, size_t max, char *warning,
                         size_t warning_max)
{
    text[0] = warning[0] = '\0';
    if (rank->ops->tuned == NULL)
        return;
    tune_describe(&rank->tuned, rank->options.tune_table, rank->description, text, max);
    tune_warning(&rank->tuned, rank->options.tune_table, warning, warning_max);
}

const char *rank_fault(const struct rank *rank)
{
    return rank->fault;
}

int rank_tune(struct rank *rank, void (*line)(void *context, const char *text), void *context)
{
    int status;

    pthread_mutex_lock(&rank->lock);
    assert(rank->loaded && rank->done == rank->started);
    rank->tune_context = context;
    rank->tune_line = line;
    pthread_cond_signal(&rank->work);
    while (rank->tune_line != NULL)
        pthread_cond_wait(&rank->news, &rank->lock);
    status = rank->tune_status;
    pthread_mutex_unlock(&rank->lock);
    return status;
}

void rank_start(struct rank *rank, struct batch *batch)
{
    pthread_mutex_lock(&rank->lock);
    assert(rank->loaded && rank->started - rank->wanted < STEP_DEPTH);
    rank->queue[rank->started % STEP_DEPTH] = batch;
    rank->started++;
    pthread_cond_signal(&rank->work);
    pthread_mutex_unlock(&rank->lock);
}

int rank_wait(struct rank *rank)
{
    int64_t index;
    int status;

    pthread_mutex_lock(&rank->lock);
    assert(rank->wanted < rank->started);
    index = rank->wanted++;
    pthread_cond_signal(&rank->work);
    while (rank->done <= index)
        pthread_cond_wait(&rank->news, &rank->lock);
    status = rank->status[index % STEP_DEPTH];
    pthread_mutex_unlock(&rank->lock);
    return status;
}

void rank_close(struct rank *rank)
{
    if (rank == NULL)
        return;
    pthread_mutex_lock(&rank->lock);
    rank->closing = true;
    pthread_cond_signal(&rank->work);
    pthread_mutex_unlock(&rank->lock);
    pthread_join(rank->thread, NULL);
    pthread_cond_destroy(&rank->news);
    pthread_cond_destroy(&rank->work);
    pthread_mutex_destroy(&rank->lock);
    free(rank->weights.layer);
    free(rank);
}
