/* A model over a shadow KV: see fake_model.h.
 *
 * A KV entry is the token that was written there. A row reads its whole prefix through its slot's
 * table and hashes it; logits are a function of that hash, sampled by the rules of
 * kernels/sampling_math.h in plain loops. A thread computes the steps, so that two can be in
 * flight as on a device.
 */
#include "tests/fake_model.h"

#include "kernels/sampling_math.h"
#include "model/model.h"
#include "model/text/spm.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

static const char *const words[] = {
    "\u2581",     "\u2581the", "\u2581of",  "\u2581and", "\u2581to", "\u2581in", "\u2581a",
    "\u2581is",   "ing",       "ed",        "er",        "tion",     "th",       "he",
    "on",         "qu",        "ire",       "\u00e9",    "\u4e16",   "\u754c",   "\n",
    ".",          ",",         "!",         "?",         ":",        "User",     "STOP",
    "\u2581STOP", "hello",     "\u2581wor", "ld",        "Hello",    "Once",     "\u2581upon",
};
enum {
    WORD_COUNT = sizeof(words) / sizeof(words[0]),
    FIRST_LETTER = FAKE_FIRST_WORD + WORD_COUNT,
    LETTER_COUNT = 26 + 26 + 10,
    V = FIRST_LETTER + LETTER_COUNT,
};

/* All atomic. */
struct control {
    _Atomic int64_t delay_us, load_us, step_count, fault_count;
    atomic_bool lost;
};
static struct control own_control, *control = &own_control;

void fake_model_share(void)
{
    if (control != &own_control)
        return;
    control =
        mmap(NULL, sizeof(*control), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (control == MAP_FAILED)
        abort();
}

void fake_model_delay(int64_t step_us)
{
    atomic_store(&control->delay_us, step_us);
}

void fake_model_load(int64_t load_us)
{
    atomic_store(&control->load_us, load_us);
}

void fake_model_lose(bool lost)
{
    atomic_store(&control->lost, lost);
}

int64_t fake_model_steps(void)
{
    return atomic_load(&control->step_count);
}

int64_t fake_model_faults(void)
{
    return atomic_load(&control->fault_count);
}

static void sleep_us(int64_t us)
{
    if (us > 0)
        nanosleep(&(struct timespec){us / 1000000, us % 1000000 * 1000}, NULL);
}

/* ---- vocabulary ---- */

struct tokenizer *fake_tokenizer_create(void)
{
    static const char letter[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789";
    char made[V][8];
    const char *spelling[V] = {"<unk>", "<s>", "</s>"};
    size_t bytes[V];
    float score[V];
    int32_t type[V] = {2, 3, 3};
    char error[256];

    for (int32_t i = 3; i < V; i++) {
        spelling[i] = made[i];
        type[i] = i < FAKE_FIRST_WORD ? 6 : 1;
        if (i < FAKE_FIRST_WORD)
            snprintf(made[i], sizeof(made[i]), "<0x%02X>", (unsigned)(i - FAKE_FIRST_BYTE));
        else if (i < FIRST_LETTER)
            spelling[i] = words[i - FAKE_FIRST_WORD];
        else
            snprintf(made[i], sizeof(made[i]), "%c", letter[i - FIRST_LETTER]);
    }
    for (int32_t i = 0; i < V; i++) {
        bytes[i] = strlen(spelling[i]);
        score[i] = (float)bytes[i] - (float)i / V; /* longer first, then in their order */
    }
    struct spm_vocabulary vocabulary = {.token_count = V,
                                        .spelling = spelling,
                                        .spelling_bytes = bytes,
                                        .score = score,
                                        .type = type,
                                        .bos = FAKE_BOS,
                                        .eos = FAKE_EOS,
                                        .eot = -1,
                                        .eom = -1,
                                        .add_bos = true};
    struct tokenizer *tokenizer = tokenizer_create_spm(&vocabulary, error, sizeof(error));
    if (tokenizer == NULL) {
        fprintf(stderr, "fake model: %s\n", error);
        abort();
    }
    return tokenizer;
}

/* ---- what the model computes ---- */

static uint64_t mix(uint64_t hash, uint64_t value)
{
    hash = (hash ^ value) * 0x9E3779B97F4A7C15u;
    return hash ^ hash >> 29;
}

static const uint64_t hash_start = 0x243F6A8885A308D3u;

/* Logits after a prefix. Words are likely, an end is rare, and the first half of a two-byte
 * character is followed by the second, so that characters span tokens. */
static void compute_logits(uint64_t prefix, int32_t last_token, float logits[V])
{
    enum { LEAD = FAKE_FIRST_BYTE + 0xC3, TRAIL = FAKE_FIRST_BYTE + 0xA9 };

    for (int32_t i = 0; i < V; i++) {
        double uniform = (double)(mix(prefix, (uint64_t)i + 1) >> 40) * (1.0 / (1 << 24));
        logits[i] = (float)(8 * uniform);
        if (i < FAKE_FIRST_WORD && i != LEAD)
            logits[i] -= 20;
    }
    if (mix(prefix, V) % 101 == 0)
        logits[FAKE_EOS] = 12;
    if (last_token == LEAD)
        logits[TRAIL] = 30;
}

static double log_sum(const float logits[V])
{
    double max = logits[0], sum = 0;

    for (int32_t i = 1; i < V; i++)
        max = logits[i] > max ? logits[i] : max;
    for (int32_t i = 0; i < V; i++)
        sum += exp(logits[i] - max);
    return max + log(sum);
}

static uint64_t hash_of(const int32_t *token, int32_t token_count)
{
    uint64_t hash = hash_start;

    for (int32_t i = 0; i < token_count; i++)
        hash = mix(hash, (uint64_t)token[i]);
    return hash;
}

static int32_t largest(const float x[V])
{
    int32_t best = 0;

    for (int32_t i = 1; i < V; i++)
        if (x[i] > x[best])
            best = i;
    return best;
}

int32_t fake_model_greedy(const int32_t *token, int32_t token_count)
{
    float logits[V];

    assert(token_count > 0);
    compute_logits(hash_of(token, token_count), token[token_count - 1], logits);
    return largest(logits);
}

float fake_model_logprob(const int32_t *prefix, int32_t prefix_count, int32_t token)
{
    float logits[V];

    assert(prefix_count > 0 && token >= 0 && token < V);
    compute_logits(hash_of(prefix, prefix_count), prefix[prefix_count - 1], logits);
    return (float)(logits[token] - log_sum(logits));
}

/* ---- sampling, by the order of kernels/sampling_math.h ---- */

struct slot {
    bool taken;
    struct sampling sampling;
    int32_t *history; /* [context_max] tokens so far, drawn ones included */
    int32_t history_count;
    int32_t *table; /* [table_max] blocks */
    int32_t last_draw;
    bool seen[V];
    int32_t put_out[V];
};

static void change_logits(const struct slot *slot, int32_t output_index, float x[V])
{
    const struct sampling *sampling = &slot->sampling;

    for (int32_t i = 0; i < sampling->bias_count; i++)
        x[sampling->bias_token[i]] += sampling->bias_value[i];
    for (int32_t i = 0; i < sampling->stop_count && output_index < sampling->min_tokens; i++)
        x[sampling->stop_token[i]] = -INFINITY;
    for (int32_t i = 0; i < V; i++)
        if (slot->seen[i] || slot->put_out[i] > 0)
            x[i] = sampling_penalise(sampling, x[i], slot->put_out[i]);
}

static int compare_likelier(const void *left, const void *right, void *context)
{
    const float *x = context;
    int32_t a = *(const int32_t *)left, b = *(const int32_t *)right;

    return sampling_before(x[a], a, x[b], b) ? -1 : 1;
}

static void sort_tokens(float x[V], int32_t order[V])
{
    for (int32_t i = 0; i < V; i++)
        order[i] = i;
    qsort_r(order, V, sizeof(order[0]), compare_likelier, x);
}

static int32_t draw(const struct slot *slot, int32_t output_index, float x[V])
{
    const struct sampling *sampling = &slot->sampling;
    int32_t order[V];
    double weight[V] = {0}, mass = 0, kept = 0;

    change_logits(slot, output_index, x);
    if (sampling_greedy(sampling))
        return largest(x);
    sort_tokens(x, order);
    float max = x[order[0]], least = sampling_floor(sampling, max);
    int32_t count = sampling_keep_count(sampling, V);
    for (int32_t i = 0; i < count && x[order[i]] >= least; i++) {
        weight[order[i]] = exp((x[order[i]] - max) / sampling->temperature);
        mass += weight[order[i]];
    }
    for (int32_t i = 0; i < V; i++) {
        if (kept >= sampling->top_p * mass)
            weight[order[i]] = 0;
        kept += weight[order[i]];
    }
    double bar = sampling_uniform(sampling->seed, output_index) * kept, running = 0;
    for (int32_t i = 0; i < V; i++) {
        running += weight[i];
        if (running > bar)
            return i;
    }
    return order[0];
}

/* ---- the device ---- */

struct model {
    struct model_info info;
    struct tokenizer *tokenizer;
    int32_t slot_max, token_max, sample_max;
    int32_t table_max; /* blocks of a sequence */

    struct slot *slot; /* [slot_max] */
    int32_t *kv;       /* [block_count, block_tokens] the token written there, -1: none */
    uint64_t *prefix;  /* [token_max] hash up to each of the step's tokens */
    int32_t *token;    /* [token_max] the step's tokens, drawn ones filled in */

    struct batch batch[STEP_DEPTH];
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    /* guarded by lock */
    int64_t handed, started, computed, waited; /* batches so far */
    bool closing;
};

static int32_t *kv_at(struct model *model, const struct slot *slot, int32_t position)
{
    int32_t index = position / model->info.block_tokens;

    assert(index < model->table_max);
    int32_t block = slot->table[index];
    assert(block >= 0 && block < model->info.block_count);
    return &model->kv[(int64_t)block * model->info.block_tokens +
                      position % model->info.block_tokens];
}

static void begin_slots(struct model *model, const struct step *step)
{
    for (int32_t i = 0; i < step->start_count; i++) {
        const struct step_start *start = &step->start[i];
        const int32_t *token = step->history + start->token_first;
        assert(start->slot >= 0 && start->slot < model->slot_max);
        assert(start->token_count > 0 && start->token_count <= model->info.context_max);
        assert(start->token_first + start->token_count <= step->history_count);
        struct slot *slot = &model->slot[start->slot];
        slot->taken = true;
        slot->sampling = start->sampling;
        slot->history_count = start->token_count;
        memcpy(slot->history, token, (size_t)start->token_count * sizeof(*token));
        memset(slot->table, 0xFF, (size_t)model->table_max * sizeof(*slot->table)); /* -1 */
        memset(slot->seen, 0, sizeof(slot->seen));
        memset(slot->put_out, 0, sizeof(slot->put_out));
        for (int32_t k = 0; k < start->token_count; k++) {
            assert(token[k] >= 0 && token[k] < V);
            slot->seen[token[k]] = true;
            slot->put_out[token[k]] += k >= start->prompt_count;
        }
    }
}

static void change_tables(struct model *model, const struct step *step)
{
    int32_t block_tokens = model->info.block_tokens;

    for (int32_t i = 0; i < step->change_count; i++) {
        const struct step_change *change = &step->change[i];
        assert(change->slot >= 0 && change->slot < model->slot_max);
        assert(change->group == 0);
        assert(change->index >= 0 && change->index < model->table_max);
        assert(change->block >= 0 && change->block < model->info.block_count);
        model->slot[change->slot].table[change->index] = change->block;
    }
    for (int32_t i = 0; i < step->move_count; i++) {
        const struct step_move *move = &step->move[i];
        assert(move->kind == STEP_COPY);
        assert(move->source >= 0 && move->source < model->info.block_count);
        assert(move->target >= 0 && move->target < model->info.block_count);
        memcpy(&model->kv[(int64_t)move->target * block_tokens],
               &model->kv[(int64_t)move->source * block_tokens],
               (size_t)block_tokens * sizeof(*model->kv));
    }
}

/* Writes all rows first, as a step's layers do, so that rows that share a block by mistake spoil
 * each other's prefix. */
static void write_rows(struct model *model, const struct step *step)
{
    for (int32_t i = 0; i < step->row_count; i++) {
        const struct step_row *row = &step->row[i];
        assert(row->slot >= 0 && row->slot < model->slot_max);
        assert(row->position >= 0 && row->token_count > 0);
        assert(row->position + row->token_count <= model->info.context_max);
        assert(row->token_first + row->token_count <= step->token_count);
        struct slot *slot = &model->slot[row->slot];
        assert(slot->taken);
        for (int32_t k = 0; k < row->token_count; k++) {
            int32_t token = step->token[row->token_first + k];
            if (row->token_on_device) {
                assert(row->token_count == 1);
                token = slot->last_draw;
            }
            assert(token >= 0 && token < V);
            model->token[row->token_first + k] = token;
            *kv_at(model, slot, row->position + k) = token;
        }
    }
}

static void read_rows(struct model *model, const struct step *step)
{
    for (int32_t i = 0; i < step->row_count; i++) {
        const struct step_row *row = &step->row[i];
        const struct slot *slot = &model->slot[row->slot];
        uint64_t hash = hash_start;
        for (int32_t p = 0; p < row->position + row->token_count; p++) {
            int32_t token = *kv_at(model, slot, p);
            hash = mix(hash, (uint64_t)token);
            if (p >= slot->history_count || token != slot->history[p])
                atomic_fetch_add(&control->fault_count, 1);
            if (p >= row->position)
                model->prefix[row->token_first + p - row->position] = hash;
        }
    }
}

static void report(const float logits[V], int32_t token, int32_t top_count, int32_t index,
                   struct step_result *result)
{
    float x[V];
    int32_t order[V];
    double sum = log_sum(logits);
    int32_t *top_token = result->top_token + (int64_t)index * SAMPLING_TOP_MAX;
    float *top_logprob = result->top_logprob + (int64_t)index * SAMPLING_TOP_MAX;

    memcpy(x, logits, sizeof(x));
    sort_tokens(x, order);
    result->logprob[index] = (float)(logits[token] - sum);
    result->rank[index] = 0;
    for (int32_t i = 0; i < V; i++)
        result->rank[index] += logits[i] > logits[token];
    for (int32_t i = 0; i < SAMPLING_TOP_MAX; i++) {
        bool wanted = i < top_count && i < V;
        top_token[i] = wanted ? order[i] : -1;
        top_logprob[i] = wanted ? (float)(logits[order[i]] - sum) : 0;
    }
}

static void take_sample(struct model *model, const struct step_sample *sample, int32_t index,
                        struct step_result *result)
{
    struct slot *slot = &model->slot[sample->slot];
    float logits[V], x[V];
    int32_t token = sample->token;

    compute_logits(model->prefix[sample->index], model->token[sample->index], logits);
    if (sample->kind == STEP_DRAW) {
        memcpy(x, logits, sizeof(x));
        token = draw(slot, sample->output_index, x);
        slot->last_draw = token;
        slot->put_out[token]++;
        if (slot->history_count < model->info.context_max)
            slot->history[slot->history_count++] = token;
    }
    result->token[index] = token;
    result->logprob[index] = 0;
    if (sample->top_count >= 0)
        report(logits, token, sample->top_count, index, result);
}

static void compute(struct model *model, struct batch *batch)
{
    const struct step *step = &batch->step;

    sleep_us(atomic_load(&control->delay_us));
    assert(step->token_count > 0 && step->token_count <= model->token_max);
    assert(step->sample_count <= model->sample_max && step->row_count <= model->slot_max);
    begin_slots(model, step);
    change_tables(model, step);
    write_rows(model, step);
    read_rows(model, step);
    for (int32_t i = 0; i < step->sample_count; i++) {
        assert(step->sample[i].slot >= 0 && step->sample[i].slot < model->slot_max);
        assert(step->sample[i].index >= 0 && step->sample[i].index < step->token_count);
        take_sample(model, &step->sample[i], i, &batch->result);
    }
    atomic_fetch_add(&control->step_count, 1);
}

static void *run(void *context)
{
    struct model *model = context;

    pthread_mutex_lock(&model->lock);
    for (;;) {
        while (model->computed == model->started && !model->closing)
            pthread_cond_wait(&model->changed, &model->lock);
        if (model->computed == model->started)
            break;
        struct batch *batch = &model->batch[model->computed % STEP_DEPTH];
        pthread_mutex_unlock(&model->lock);
        compute(model, batch);
        pthread_mutex_lock(&model->lock);
        model->computed++;
        pthread_cond_broadcast(&model->changed);
    }
    pthread_mutex_unlock(&model->lock);
    return NULL;
}

/* ---- model.h ---- */

static void *take(size_t count, size_t bytes)
{
    void *memory = calloc(count, bytes);

    if (memory == NULL)
        abort();
    return memory;
}

static void allocate_batch(struct batch *batch, const struct model *model)
{
    struct step *step = &batch->step;
    struct step_result *result = &batch->result;
    size_t slots = (size_t)model->slot_max, samples = (size_t)model->sample_max;

    step->history_max = model->slot_max * model->info.context_max;
    step->change_max = model->slot_max * (model->table_max + 1);
    step->move_max = 2 * model->slot_max;
    step->start = take(slots, sizeof(*step->start));
    step->history = take((size_t)step->history_max, sizeof(*step->history));
    step->change = take((size_t)step->change_max, sizeof(*step->change));
    step->move = take((size_t)step->move_max, sizeof(*step->move));
    step->row = take(slots, sizeof(*step->row));
    step->token = take((size_t)model->token_max, sizeof(*step->token));
    step->sample = take(samples, sizeof(*step->sample));
    result->token = take(samples, sizeof(*result->token));
    result->logprob = take(samples, sizeof(*result->logprob));
    result->rank = take(samples, sizeof(*result->rank));
    result->top_token = take(samples, SAMPLING_TOP_MAX * sizeof(*result->top_token));
    result->top_logprob = take(samples, SAMPLING_TOP_MAX * sizeof(*result->top_logprob));
}

static void fill_info(struct model_info *info, const struct model_options *options)
{
    snprintf(info->name, sizeof(info->name), "fake");
    snprintf(info->architecture, sizeof(info->architecture), "fake");
    snprintf(info->format, sizeof(info->format), "none");
    snprintf(info->device, sizeof(info->device), "a table of hashes");
    info->vocab_count = V;
    info->layer_count = 1;
    info->step_tokens = options->token_max;
    info->context_model = FAKE_CONTEXT;
    info->context_max = FAKE_CONTEXT;
    if (options->context_max > 0 && options->context_max < FAKE_CONTEXT)
        info->context_max = options->context_max;
    info->weight_bytes = info->step_bytes = FAKE_WEIGHT_BYTES;
    info->read_rate = options->read_rate ? FAKE_READ_RATE : 0;
    info->block_tokens = options->block_tokens;
    info->block_count = options->block_count > 0 ? options->block_count : 4096;
    info->end_count = 1;
    info->end_token[0] = FAKE_EOS;
    if (options->generation != NULL) {
        const struct model_generation *generation = options->generation;
        info->defaults = generation->defaults;
        for (int32_t i = 0; i < generation->end_count && info->end_count < MODEL_END_MAX; i++)
            info->end_token[info->end_count++] = generation->end_token[i];
    }
}

/* Takes the time it was told to, a hundredth at a time. */
static void load(const struct model_options *options)
{
    int64_t load_us = atomic_load(&control->load_us);

    for (int i = 1; i <= 100; i++) {
        sleep_us(load_us / 100);
        if (options->progress != NULL)
            options->progress(options->progress_context, i / 100.0, "nothing");
    }
}

int model_open(struct model **target, const struct model_options *options, char *error,
               size_t error_bytes)
{
    struct model *model = take(1, sizeof(*model));

    if (error_bytes > 0)
        error[0] = '\0';
    fill_info(&model->info, options);
    model->tokenizer = options->skip_tokenizer ? NULL : fake_tokenizer_create();
    model->slot_max = options->slot_max;
    model->token_max = options->token_max;
    model->sample_max = options->sample_max;
    model->table_max = model->info.context_max / model->info.block_tokens + 1;
    model->slot = take((size_t)model->slot_max, sizeof(*model->slot));
    for (int32_t i = 0; i < model->slot_max; i++) {
        model->slot[i].history =
            take((size_t)model->info.context_max, sizeof(*model->slot[i].history));
        model->slot[i].table = take((size_t)model->table_max, sizeof(*model->slot[i].table));
    }
    size_t kv_count = (size_t)model->info.block_count * (size_t)model->info.block_tokens;
    model->kv = take(kv_count, sizeof(*model->kv));
    memset(model->kv, 0xFF, kv_count * sizeof(*model->kv)); /* -1 */
    model->prefix = take((size_t)model->token_max, sizeof(*model->prefix));
    model->token = take((size_t)model->token_max, sizeof(*model->token));
    for (int32_t i = 0; i < STEP_DEPTH; i++)
        allocate_batch(&model->batch[i], model);
    pthread_mutex_init(&model->lock, NULL);
    pthread_cond_init(&model->changed, NULL);
    if (pthread_create(&model->thread, NULL, run, model) != 0)
        abort();
    load(options);
    *target = model;
    return 0;
}

void model_close(struct model *model)
{
    if (model == NULL)
        return;
    pthread_mutex_lock(&model->lock);
    model->closing = true;
    pthread_cond_broadcast(&model->changed);
    pthread_mutex_unlock(&model->lock);
    pthread_join(model->thread, NULL);
    for (int32_t i = 0; i < STEP_DEPTH; i++) {
        struct step *step = &model->batch[i].step;
        struct step_result *result = &model->batch[i].result;
        void *const part[] = {step->start,  step->history,     step->change,
                              step->move,   step->row,         step->token,
                              step->sample, result->token,     result->logprob,
                              result->rank, result->top_token, result->top_logprob};
        for (size_t k = 0; k < sizeof(part) / sizeof(part[0]); k++)
            free(part[k]);
    }
    for (int32_t i = 0; i < model->slot_max; i++) {
        free(model->slot[i].history);
        free(model->slot[i].table);
    }
    free(model->slot);
    free(model->kv);
    free(model->prefix);
    free(model->token);
    tokenizer_free(model->tokenizer);
    pthread_mutex_destroy(&model->lock);
    pthread_cond_destroy(&model->changed);
    free(model);
}

int64_t model_kv_bytes(const struct model *model, int32_t context)
{
    (void)model;
    return (int64_t)context * FAKE_KV_BYTES;
}

const struct model_info *model_info(const struct model *model)
{
    return &model->info;
}

int64_t model_graph_count(const struct model *model)
{
    (void)model;
    return 0;
}

int model_tune(struct model *model, void (*line)(void *context, const char *text), void *context)
{
    (void)model, (void)line, (void)context;
    return -ENOTSUP;
}

const struct tokenizer *model_tokenizer(const struct model *model)
{
    return model->tokenizer;
}

struct batch *model_batch(struct model *model)
{
    pthread_mutex_lock(&model->lock);
    assert(model->handed == model->started); /* one is filled at a time */
    assert(model->started - model->waited < STEP_DEPTH);
    struct batch *batch = &model->batch[model->handed++ % STEP_DEPTH];
    pthread_mutex_unlock(&model->lock);
    struct step *step = &batch->step;
    step->start_count = step->change_count = step->move_count = step->row_count = 0;
    step->token_count = step->sample_count = step->history_count = 0;
    return batch;
}

void model_start(struct model *model, struct batch *batch)
{
    pthread_mutex_lock(&model->lock);
    assert(batch == &model->batch[model->started % STEP_DEPTH]);
    assert(model->handed == model->started + 1);
    model->started++;
    pthread_cond_broadcast(&model->changed);
    pthread_mutex_unlock(&model->lock);
}

int model_wait(struct model *model, struct batch *batch)
{
    pthread_mutex_lock(&model->lock);
    assert(model->waited < model->started);
    assert(batch == &model->batch[model->waited % STEP_DEPTH]);
    while (model->computed == model->waited)
        pthread_cond_wait(&model->changed, &model->lock);
    model->waited++;
    pthread_mutex_unlock(&model->lock);
    return atomic_load(&control->lost) ? -EIO : 0;
}

const char *model_fault(const struct model *model)
{
    (void)model;
    return atomic_load(&control->lost) ? "the test took the device away" : "";
}
