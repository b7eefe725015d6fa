/* Opening a model, and its two batches. Loading and computing are the rank's (rank.c). */
#include "model/model.h"

#include "model/inspect.h"
#include "model/rank.h"
#include "model/text/tokenizer.h"
#include "model/tune.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct model {
    struct model_info info;
    struct shape shape;
    struct tokenizer *tokenizer;
    struct rank *rank;
    struct batch batch[STEP_DEPTH];
    int64_t handed, started, waited; /* batches so far; batch i is batch[i % STEP_DEPTH] */
};

/* ---- limits ---- */

static int64_t blocks_of_a_sequence(const struct model_options *options, int32_t context)
{
    return ((int64_t)context + options->block_tokens - 1) / options->block_tokens;
}

static int32_t bounded(int64_t count)
{
    return count < INT32_MAX ? (int32_t)count : INT32_MAX;
}

/* The limits of a step. `context` bounds the longest sequence: each row of a step may start one,
 * with all its tokens and blocks. The arrays are that large so that no legal plan is too much for
 * them; memory that is never written costs nothing. */
static struct device_options device_limits(const struct model_options *options,
                                           const struct shape *shape, int32_t context)
{
    int64_t start_max =
        options->slot_max < options->token_max ? options->slot_max : options->token_max;

    return (struct device_options){
        .index = 0,
        .thread_count = options->thread_count,
        .slot_max = options->slot_max,
        .token_max = options->token_max,
        .sample_max = options->sample_max,
        .vocab_count = shape->vocab_count,
        .context_max = context,
        .kv_dtype = options->kv_dtype,
        .portable = options->portable,
        .history_max = bounded(start_max * context),
        .change_max = bounded(options->slot_max * (blocks_of_a_sequence(options, context) + 1)),
        /* A copy on write for each row, for the block being written and the one after it. */
        .move_max = bounded(2 * (int64_t)options->slot_max),
    };
}

static bool allocate_batch(struct batch *batch, const struct device_options *limit)
{
    struct step *step = &batch->step;
    struct step_result *result = &batch->result;
    size_t slots = (size_t)limit->slot_max, samples = (size_t)limit->sample_max;

    step->history_max = limit->history_max;
    step->change_max = limit->change_max;
    step->move_max = limit->move_max;
    step->start = calloc(slots, sizeof(*step->start));
    step->history = calloc((size_t)step->history_max, sizeof(*step->history));
    step->change = calloc((size_t)step->change_max, sizeof(*step->change));
    step->move = calloc((size_t)step->move_max, sizeof(*step->move));
    step->row = calloc(slots, sizeof(*step->row));
    step->token = calloc((size_t)limit->token_max, sizeof(*step->token));
    step->sample = calloc(samples, sizeof(*step->sample));
    result->token = calloc(samples, sizeof(*result->token));
    result->logprob = calloc(samples, sizeof(*result->logprob));
    result->rank = calloc(samples, sizeof(*result->rank));
    result->top_token = calloc(samples, SAMPLING_TOP_MAX * sizeof(*result->top_token));
    result->top_logprob = calloc(samples, SAMPLING_TOP_MAX * sizeof(*result->top_logprob));
    return step->start != NULL && step->history != NULL && step->change != NULL &&
           step->move != NULL && step->row != NULL && step->token != NULL && step->sample != NULL &&
           result->token != NULL && result->logprob != NULL && result->rank != NULL &&
           result->top_token != NULL && result->top_logprob != NULL;
}

static void free_batch(struct batch *batch)
{
    free(batch->step.start);
    free(batch->step.history);
    free(batch->step.change);
    free(batch->step.move);
    free(batch->step.row);
    free(batch->step.token);
    free(batch->step.sample);
    free(batch->result.token);
    free(batch->result.logprob);
    free(batch->result.rank);
    free(batch->result.top_token);
    free(batch->result.top_logprob);
}

/* ---- opening ---- */

static const char *main_format(const struct source_summary *summary)
{
    int best = 0;

    for (int i = 1; i < FORMAT_COUNT; i++)
        if (summary->format[i].matrix_count > summary->format[best].matrix_count)
            best = i;
    return format_info((enum format)best)->name;
}

static void fill_info(struct model *model, const struct model_options *options,
                      const struct source *source)
{
    const struct ledger *ledger = rank_ledger(model->rank);
    struct model_info *info = &model->info;
    struct source_summary summary;

    source_summary(source, &summary);
    snprintf(info->name, sizeof(info->name), "%s", summary.name);
    snprintf(info->architecture, sizeof(info->architecture), "%s", summary.architecture);
    snprintf(info->format, sizeof(info->format), "%s", main_format(&summary));
    rank_describe(model->rank, info->device, sizeof(info->device));
    info->parameter_count = summary.parameter_count;
    info->file_bytes = summary.file_bytes;
    info->weight_bytes = ledger->weight_bytes;
    info->step_bytes = rank_step_bytes(model->rank);
    info->read_rate = rank_read_rate(model->rank);
    info->kv_bytes = ledger->kv_bytes;
    info->workspace_bytes = ledger->workspace_bytes;
    info->graph_bytes = ledger->graph_bytes;
    rank_describe_table(model->rank, info->tune_table, sizeof(info->tune_table), info->tune_warning,
                        sizeof(info->tune_warning));
    info->step_tokens = options->token_max;
    info->layer_count = model->shape.layer_count;
    info->vocab_count = model->shape.vocab_count;
    info->context_max = ledger->context_max;
    info->context_model = model->shape.context_model;
    info->block_count = ledger->block_count;
    info->block_tokens = options->block_tokens;
    snprintf(info->note, sizeof(info->note), "%s", summary.note);
    source_defaults(source, &info->defaults);
    if (options->generation != NULL)
        info->defaults = options->generation->defaults;
}

static void add_end(struct model_info *info, int32_t token)
{
    for (int32_t i = 0; i < info->end_count; i++)
        if (info->end_token[i] == token)
            return;
    if (info->end_count < MODEL_END_MAX)
        info->end_token[info->end_count++] = token;
}

/* What the settings say, and what the vocabulary says: files that disagree mean both. */
static void find_ends(struct model *model, const struct model_generation *generation,
                      const struct source *source)
{
    struct model_info *info = &model->info;
    int32_t stated[MODEL_END_MAX], count = source_ends(source, stated, MODEL_END_MAX);

    for (int32_t i = 0; i < count; i++)
        if (stated[i] < info->vocab_count)
            add_end(info, stated[i]);
    for (int32_t i = 0; generation != NULL && i < generation->end_count; i++)
        if (generation->end_token[i] < info->vocab_count)
            add_end(info, generation->end_token[i]);
    for (int32_t i = 0; model->tokenizer != NULL && i < tokenizer_count(model->tokenizer); i++)
        if (tokenizer_ends(model->tokenizer, i))
            add_end(info, i);
}

static void choose_devices(const struct model_options *options, struct rank_options *rank)
{
    bool cuda = options->device != MODEL_DEVICE_CPU && backend_cuda() != NULL;

    rank->ops = cuda ? backend_cuda() : backend_cpu();
    rank->fallback = cuda && options->device == MODEL_DEVICE_AUTO ? backend_cpu() : NULL;
}

static const struct arch *read_shape(struct shape *shape, struct source *source)
{
    const struct arch *arch = arch_find(source_architecture(source));
    char names[256];

    if (arch == NULL) {
        arch_names(names, sizeof(names));
        source_refuse(source, -ENOTSUP, "architecture %s is not supported; supported: %s",
                      source_architecture(source), names);
        return NULL;
    }
    arch->read_shape(shape, source);
    return arch;
}

static void check_options(const struct model_options *options)
{
    assert(options->slot_max > 0);
    assert(options->token_max > 0);
    assert(options->sample_max > 0);
    assert(options->block_tokens > 0);
    assert((options->block_tokens & (options->block_tokens - 1)) == 0);
    assert(options->context_max >= 0);
    assert(options->block_count >= 0 && options->kv_bytes >= 0);
    assert(options->block_count > 0 || options->kv_bytes > 0 || options->memory_share > 0);
}

/* The longest sequence that a step must have room for, before the memory is known. */
static int32_t context_bound(const struct model_options *options, const struct shape *shape)
{
    return options->context_max > 0 && options->context_max < shape->context_model
               ? options->context_max
               : shape->context_model;
}

/* Multiplications that a token of a prompt takes: it goes through all matrices of all layers. */
static int64_t token_work(const struct shape *shape)
{
    int64_t heads = shape->head_count + 2 * shape->kv_head_count + shape->head_count;

    return shape->layer_count * (heads * shape->head_width + 3 * (int64_t)shape->ffn_width) *
           shape->width;
}

/* Puts step_work into effect: tokens of a step are a power of two then. */
static void fit_step(struct model_options *options, const struct shape *shape)
{
    int64_t least = STEP_TOKENS_LEAST, work = token_work(shape);

    if (options->step_work == 0)
        return;
    while (least < options->slot_max)
        least *= 2;
    while (least < options->token_max && 2 * least * work <= options->step_work)
        least *= 2;
    if (least < options->token_max)
        options->token_max = (int32_t)least;
    if (least < options->sample_max)
        options->sample_max = (int32_t)least;
}

/* With `measure` it stops once the memory is known. Lowers what step_work does. */
static int load(struct model *model, struct model_options *options, struct source *source,
                bool measure)
{
    struct rank_options rank = {
        .shape = &model->shape,
        .source = source,
        .measure = measure,
        .read_rate = options->read_rate,
        .tune_table = options->tune_table,
        .wish = {.context_max = options->context_max,
                 .slot_max = options->slot_max,
                 .block_tokens = options->block_tokens,
                 .block_count = options->block_count,
                 .kv_bytes = options->kv_bytes,
                 .kv_most = options->kv_most,
                 .memory_share = options->memory_share},
    };

    if (options->device == MODEL_DEVICE_CUDA && backend_cuda() == NULL) {
        source_refuse(source, -ENODEV, "this build has no CUDA backend");
        return source_status(source);
    }
    choose_devices(options, &rank);
    rank.arch = read_shape(&model->shape, source);
    if (source_status(source) != 0)
        return source_status(source);
    fit_step(options, &model->shape);
    rank.wish.context_model = model->shape.context_model;
    rank.device = device_limits(options, &model->shape, context_bound(options, &model->shape));
    if (!options->skip_tokenizer)
        model->tokenizer = source_tokenizer(source);
    if (source_status(source) != 0)
        return source_status(source);
    model->rank = rank_create(&rank);
    if (model->rank == NULL) {
        source_refuse(source, -ENOMEM, "no memory for the rank's thread");
        return source_status(source);
    }
    return rank_load(model->rank, options->progress, options->progress_context);
}

static int allocate_batches(struct model *model, const struct model_options *options,
                            struct source *source)
{
    struct device_options limit = device_limits(options, &model->shape, model->info.context_max);

    for (int i = 0; i < STEP_DEPTH; i++)
        if (!allocate_batch(&model->batch[i], &limit))
            source_refuse(source, -ENOMEM, "no memory for the batches");
    return source_status(source);
}

static int open_source(struct source **source, const struct model_options *options, char *error,
                       size_t error_bytes)
{
    return options->dummy_weights ? source_open_dummy(source, options->path, error, error_bytes)
                                  : source_open(source, options->path, error, error_bytes);
}

int model_open(struct model **target, const struct model_options *options, char *error,
               size_t error_bytes)
{
    struct model *model = calloc(1, sizeof(*model));
    struct model_options fitted = *options;
    struct source *source;
    int status;

    *target = NULL;
    check_options(options);
    if (model == NULL) {
        snprintf(error, error_bytes, "cannot load %s: no memory", options->path);
        return -ENOMEM;
    }
    status = open_source(&source, options, error, error_bytes);
    if (status == 0)
        status = load(model, &fitted, source, false);
    if (status == 0) {
        fill_info(model, &fitted, source);
        find_ends(model, options->generation, source);
        status = allocate_batches(model, &fitted, source);
    }
    if (status != 0) {
        model_close(model); /* first: the rank may still look at the source */
        model = NULL;
    }
    source_close(source);
    *target = model;
    return status;
}

static void fill_inspection(struct model_inspection *inspection, const struct model *model)
{
    const struct shape *shape = &model->shape;

    inspection->fits = true;
    inspection->info = model->info;
    inspection->width = shape->width;
    inspection->head_count = shape->head_count;
    inspection->kv_head_count = shape->kv_head_count;
    inspection->head_width = shape->head_width;
    inspection->ffn_width = shape->ffn_width;
    for (int32_t i = 0; i < shape->layer_count; i++)
        if (shape->layer[i].window > 0)
            inspection->window = shape->layer[i].window;
    inspection->block_bytes = rank_block_bytes(model->rank);
}

int model_inspect(struct model_inspection *inspection, const struct model_options *options,
                  char *error, size_t error_bytes)
{
    struct model *model = calloc(1, sizeof(*model));
    struct model_options fitted = *options;
    struct source *source;
    int status;

    memset(inspection, 0, sizeof(*inspection));
    check_options(options);
    if (model == NULL) {
        snprintf(error, error_bytes, "cannot inspect %s: no memory", options->path);
        return -ENOMEM;
    }
    status = open_source(&source, options, error, error_bytes);
    if (status == 0) {
        inspection->readable = true;
        source_summary(source, &inspection->summary);
        status = load(model, &fitted, source, true);
    }
    if (status == 0) {
        fill_info(model, &fitted, source);
        find_ends(model, options->generation, source);
        fill_inspection(inspection, model);
    }
    model_close(model);
    source_close(source);
    return status;
}

void model_close(struct model *model)
{
    if (model == NULL)
        return;
    rank_close(model->rank);
    tokenizer_free(model->tokenizer);
    for (int i = 0; i < STEP_DEPTH; i++)
        free_batch(&model->batch[i]);
    free(model);
}

const struct model_info *model_info(const struct model *model)
{
    return &model->info;
}

const struct tokenizer *model_tokenizer(const struct model *model)
{
    return model->tokenizer;
}

int64_t model_kv_bytes(const struct model *model, int32_t context)
{
    const struct shape *shape = &model->shape;
    int64_t token_bytes = rank_block_bytes(model->rank) / model->info.block_tokens, bytes = 0;

    for (int32_t i = 0; i < shape->layer_count; i++) {
        int32_t window = shape->layer[i].window;
        bytes += window > 0 && window < context ? window : context;
    }
    return bytes * token_bytes / shape->layer_count;
}

/* ---- steps ---- */

struct batch *model_batch(struct model *model)
{
    struct batch *batch = &model->batch[model->handed % STEP_DEPTH];
    struct step *step = &batch->step;

    assert(model->handed == model->started);
    assert(model->started - model->waited < STEP_DEPTH);
    model->handed++;
    step->start_count = 0;
    step->history_count = 0;
    step->change_count = 0;
    step->move_count = 0;
    step->row_count = 0;
    step->token_count = 0;
    step->sample_count = 0;
    return batch;
}

void model_start(struct model *model, struct batch *batch)
{
    assert(model->handed == model->started + 1);
    assert(batch == &model->batch[model->started % STEP_DEPTH]);
    model->started++;
    rank_start(model->rank, batch);
}

int model_wait(struct model *model, struct batch *batch)
{
    assert(model->waited < model->started);
    assert(batch == &model->batch[model->waited % STEP_DEPTH]);
    model->waited++;
    return rank_wait(model->rank);
}

int64_t model_graph_count(const struct model *model)
{
    return rank_graph_count(model->rank);
}

int model_tune(struct model *model, void (*line)(void *context, const char *text), void *context)
{
    char text[sizeof(model->info.device) + 8] = "device ";

    assert(model->handed == model->waited);
    tune_device_name(model->info.device, text + strlen(text), sizeof(text) - strlen(text));
    line(context, text);
    return rank_tune(model->rank, line, context);
}

const char *model_fault(const struct model *model)
{
    return rank_fault(model->rank);
}
