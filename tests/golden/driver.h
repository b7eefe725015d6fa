/* Drives a model through model.h alone: block tables, slots and steps of its own, for the golden
 * tests. Sequences get their blocks from a list that may be shuffled; every sequence has the slot
 * of its index. */
#ifndef TESTS_GOLDEN_DRIVER_H
#define TESTS_GOLDEN_DRIVER_H

#include "model/model.h"
#include "tests/test.h"

#include <stdbool.h>

enum { DRIVER_SLOTS = 32, DRIVER_BLOCKS = 1024, DRIVER_BLOCK_TOKENS = 16, DRIVER_TOP = 8 };

/* What driver_open opens. */
static enum model_device driver_device = MODEL_DEVICE_CPU;
static bool driver_portable; /* a GPU without kernels of its own */
static enum kv_dtype driver_kv = KV_AUTO;
static bool driver_skips_tokenizer, driver_is_dummy;

struct driver {
    struct model *model;
    int32_t block[DRIVER_BLOCKS]; /* the order in which blocks are given out */
    int32_t given;
    int32_t held[DRIVER_SLOTS]; /* blocks that a slot's table has */
};

/* A sequence that is run: what is known of it, and what came out. */
struct sequence {
    const int32_t *prompt; /* and, behind it, the outputs of an earlier run (preemption) */
    int32_t prompt_count;
    int32_t output_before; /* of prompt_count, those outputs */
    int32_t shared_count;  /* leading tokens whose blocks the slot has already (a prefix hit) */
    int32_t score_step;    /* every so many prompt tokens are scored; 0: all */
    bool begun;
    int32_t output_max;
    int32_t *token;     /* [output_max] drawn */
    float *logprob;     /* [output_max] of each */
    float *score;       /* [prompt_count - 1] of prompt tokens 1 on */
    int32_t fed, drawn; /* positions computed; tokens that have been asked for */
    int32_t arrived;    /* of them, those whose step has been waited for */
    int32_t *top;       /* [output_max, DRIVER_TOP] */
    float *top_logprob; /* [output_max, DRIVER_TOP] */
};

static inline bool driver_open(struct driver *driver, const char *path, int32_t token_max)
{
    struct model_options options = {
        .path = path,
        .device = driver_device,
        .kv_dtype = driver_kv,
        .portable = driver_portable,
        .skip_tokenizer = driver_skips_tokenizer,
        .dummy_weights = driver_is_dummy,
        .context_max = 0,
        .slot_max = DRIVER_SLOTS,
        .token_max = token_max,
        .sample_max = 1200,
        .block_tokens = DRIVER_BLOCK_TOKENS,
        .block_count = DRIVER_BLOCKS,
        .memory_share = 0.9,
    };
    char error[1024] = "";

    memset(driver, 0, sizeof(*driver));
    for (int32_t i = 0; i < DRIVER_BLOCKS; i++)
        driver->block[i] = i;
    if (model_open(&driver->model, &options, error, sizeof(error)) == 0)
        return true;
    printf("%s\n", error);
    return false;
}

/* Takes `--device cuda`, or `--device portable`: a GPU with the kernels that any has. */
static inline void driver_arguments(int argc, char **argv)
{
    const char *device = argc == 3 && strcmp(argv[1], "--device") == 0 ? argv[2] : "cpu";

    driver_portable = strcmp(device, "portable") == 0;
    driver_device =
        driver_portable || strcmp(device, "cuda") == 0 ? MODEL_DEVICE_CUDA : MODEL_DEVICE_CPU;
}

/* All blocks and slots are free again; `stride`, which is odd, gives another order of blocks. */
static inline void driver_reset(struct driver *driver, int32_t stride)
{
    driver->given = 0;
    memset(driver->held, 0, sizeof(driver->held));
    for (int64_t i = 0; i < DRIVER_BLOCKS; i++)
        driver->block[i] = (int32_t)(i * stride % DRIVER_BLOCKS);
}

static inline void driver_grow(struct driver *driver, struct step *step, int32_t slot,
                               int32_t token_count)
{
    int32_t want = (token_count + DRIVER_BLOCK_TOKENS - 1) / DRIVER_BLOCK_TOKENS;

    for (; driver->held[slot] < want; driver->held[slot]++) {
        if (driver->given == DRIVER_BLOCKS)
            abort();
        step->change[step->change_count++] = (struct step_change){
            .slot = slot, .index = driver->held[slot], .block = driver->block[driver->given++]};
    }
}

static inline void driver_begin(struct step *step, int32_t slot, const struct sequence *sequence)
{
    struct step_start *start = &step->start[step->start_count++];

    *start = (struct step_start){.slot = slot,
                                 .prompt_count = sequence->prompt_count - sequence->output_before,
                                 .token_first = step->history_count,
                                 .token_count = sequence->prompt_count};
    start->sampling.top_p = 1.0f;
    start->sampling.repetition_penalty = 1.0f;
    start->sampling.top_count = DRIVER_TOP;
    memcpy(step->history + step->history_count, sequence->prompt,
           (size_t)sequence->prompt_count * sizeof(int32_t));
    step->history_count += sequence->prompt_count;
}

/* `count` tokens of a sequence from where it stands; `token` NULL: the slot's last draw. */
static inline void driver_row(struct driver *driver, struct step *step, int32_t slot,
                              struct sequence *sequence, const int32_t *token, int32_t count)
{
    struct step_row *row = &step->row[step->row_count++];

    if (!sequence->begun)
        driver_begin(step, slot, sequence);
    sequence->begun = true;
    driver_grow(driver, step, slot, sequence->fed + count);
    *row = (struct step_row){.slot = slot,
                             .position = sequence->fed,
                             .token_first = step->token_count,
                             .token_count = count,
                             .token_on_device = token == NULL};
    for (int32_t i = 0; i < count; i++)
        step->token[step->token_count++] = token == NULL ? 0 : token[i];
    sequence->fed += count;
}

static inline void driver_sample(struct step *step, enum step_sample_kind kind, int32_t slot,
                                 int32_t index, int32_t output_index, int32_t token)
{
    step->sample[step->sample_count++] = (struct step_sample){.kind = kind,
                                                              .slot = slot,
                                                              .index = index,
                                                              .output_index = output_index,
                                                              .token = token,
                                                              .top_count = DRIVER_TOP};
}

/* The next chunk of a prompt with the scores of what follows each token, or the next draw. */
static inline void driver_next(struct driver *driver, struct step *step, int32_t slot,
                               struct sequence *sequence, int32_t chunk)
{
    int32_t first = step->token_count, left = sequence->prompt_count - sequence->fed;
    int32_t count = left < chunk ? left : chunk, from = sequence->fed;

    if (left <= 0) {
        bool known = sequence->arrived == sequence->drawn;

        driver_row(driver, step, slot, sequence,
                   known ? &sequence->token[sequence->drawn - 1] : NULL, 1);
    } else {
        driver_row(driver, step, slot, sequence, sequence->prompt + from, count);
        for (int32_t i = 0; i < count && from + i + 1 < sequence->prompt_count; i++)
            if (sequence->score_step == 0 || (from + i) % sequence->score_step == 0)
                driver_sample(step, STEP_SCORE, slot, first + i, 0, sequence->prompt[from + i + 1]);
    }
    if (sequence->fed >= sequence->prompt_count && sequence->drawn < sequence->output_max)
        driver_sample(step, STEP_DRAW, slot, step->token_count - 1,
                      sequence->output_before + sequence->drawn++, 0);
}

/* Results of a step to their sequences. */
static inline void driver_take(const struct batch *batch, struct sequence *sequence)
{
    const struct step *step = &batch->step;
    const struct step_result *result = &batch->result;

    for (int32_t i = 0; i < step->sample_count; i++) {
        const struct step_sample *sample = &step->sample[i];
        struct sequence *one = &sequence[sample->slot];
        int32_t row = 0, k = sample->output_index - one->output_before;

        if (sample->kind == STEP_SCORE) {
            while (sample->index >= step->row[row].token_first + step->row[row].token_count)
                row++;
            one->score[step->row[row].position + sample->index - step->row[row].token_first] =
                result->logprob[i];
            continue;
        }
        one->token[k] = result->token[i];
        one->logprob[k] = result->logprob[i];
        for (int32_t t = 0; t < DRIVER_TOP; t++) {
            one->top[k * DRIVER_TOP + t] = result->top_token[i * SAMPLING_TOP_MAX + t];
            one->top_logprob[k * DRIVER_TOP + t] = result->top_logprob[i * SAMPLING_TOP_MAX + t];
        }
        one->arrived = k + 1;
    }
}

static inline bool driver_done(const struct sequence *sequence)
{
    int32_t last = sequence->prompt_count + sequence->output_max;

    return sequence->fed >= sequence->prompt_count &&
           (sequence->output_max == 0 || sequence->fed >= last - 1);
}

/* Fills a step with a part of every sequence that is not done, up to the limits; false: all are. */
static inline bool driver_fill(struct driver *driver, struct step *step, struct sequence *sequence,
                               int32_t count, int32_t chunk, int32_t token_max)
{
    for (int32_t i = 0; i < count; i++) {
        int32_t room = token_max - step->token_count;

        if (room > 0 && !driver_done(&sequence[i]))
            driver_next(driver, step, i, &sequence[i], chunk < room ? chunk : room);
    }
    return step->row_count > 0;
}

/* Runs all sequences to their ends, `depth` steps in flight. 0, or what model_wait said. */
static inline int driver_run(struct driver *driver, struct sequence *sequence, int32_t count,
                             int32_t chunk, int32_t token_max, int depth)
{
    struct batch *flight[STEP_DEPTH];
    int64_t started = 0, waited = 0;
    bool more = true;
    int status = 0;

    for (int32_t i = 0; i < count; i++) {
        sequence[i].fed = sequence[i].shared_count;
        sequence[i].drawn = sequence[i].arrived = 0;
        sequence[i].begun = false;
    }
    while (more || waited < started) {
        while (more && started - waited < depth) {
            struct batch *batch = model_batch(driver->model);

            more = driver_fill(driver, &batch->step, sequence, count, chunk, token_max);
            /* An empty step is legal; it ends the run. */
            model_start(driver->model, batch);
            flight[started++ % STEP_DEPTH] = batch;
        }
        if (model_wait(driver->model, flight[waited % STEP_DEPTH]) != 0)
            status = -1;
        driver_take(flight[waited++ % STEP_DEPTH], sequence);
    }
    return status;
}

static inline struct sequence sequence_create(const int32_t *prompt, int32_t prompt_count,
                                              int32_t output_max)
{
    size_t outputs = (size_t)output_max + 1;
    struct sequence sequence = {
        .prompt = prompt, .prompt_count = prompt_count, .output_max = output_max};

    sequence.token = calloc(outputs, sizeof(int32_t));
    sequence.logprob = calloc(outputs, sizeof(float));
    sequence.score = calloc((size_t)prompt_count, sizeof(float));
    sequence.top = calloc(outputs * DRIVER_TOP, sizeof(int32_t));
    sequence.top_logprob = calloc(outputs * DRIVER_TOP, sizeof(float));
    if (sequence.token == NULL || sequence.logprob == NULL || sequence.score == NULL ||
        sequence.top == NULL || sequence.top_logprob == NULL)
        abort();
    return sequence;
}

static inline void sequence_free(struct sequence *sequence)
{
    free(sequence->token);
    free(sequence->logprob);
    free(sequence->score);
    free(sequence->top);
    free(sequence->top_logprob);
}

/* Bit for bit: ids, log-probabilities, scores. `part` may have begun behind a shared prefix or
 * behind some outputs of `whole`; what it computed itself is compared. */
static inline bool sequence_equal(const struct sequence *part, const struct sequence *whole)
{
    size_t outputs = (size_t)part->output_max, before = (size_t)part->output_before;
    size_t first = (size_t)part->shared_count;
    size_t scores = (size_t)whole->prompt_count - 1 - first;

    return memcmp(part->token, whole->token + before, outputs * sizeof(int32_t)) == 0 &&
           memcmp(part->logprob, whole->logprob + before, outputs * sizeof(float)) == 0 &&
           memcmp(part->top, whole->top + before * DRIVER_TOP,
                  outputs * DRIVER_TOP * sizeof(int32_t)) == 0 &&
           memcmp(part->top_logprob, whole->top_logprob + before * DRIVER_TOP,
                  outputs * DRIVER_TOP * sizeof(float)) == 0 &&
           memcmp(part->score + first, whole->score + first, scores * sizeof(float)) == 0;
}

/* Runs `whole` again behind its first full blocks, which an earlier run left in slot 0. */
static inline bool driver_prefix_hit_is_equal(struct driver *driver, const struct sequence *whole,
                                              int32_t chunk, int32_t token_max)
{
    struct sequence again = sequence_create(whole->prompt, whole->prompt_count, whole->output_max);
    bool equal;

    again.score_step = whole->score_step;
    driver_reset(driver, 1);
    equal = driver_run(driver, &again, 1, chunk, token_max, 1) == 0;
    driver->held[0] = (whole->prompt_count - 1) / DRIVER_BLOCK_TOKENS;
    again.shared_count = driver->held[0] * DRIVER_BLOCK_TOKENS;
    memset(again.token, 0, (size_t)again.output_max * sizeof(*again.token));
    memset(again.logprob, 0, (size_t)again.output_max * sizeof(*again.logprob));
    equal = equal && driver_run(driver, &again, 1, chunk, token_max, 1) == 0 &&
            sequence_equal(&again, whole);
    sequence_free(&again);
    return equal;
}

/* Runs `whole` again from its prompt and its first `before` outputs, recomputed in other blocks. */
static inline bool driver_preemption_is_equal(struct driver *driver, const struct sequence *whole,
                                              int32_t before, int32_t chunk, int32_t token_max)
{
    int32_t count = whole->prompt_count + before;
    int32_t *known = malloc((size_t)count * sizeof(*known));
    struct sequence again = sequence_create(known, count, whole->output_max - before);
    bool equal;

    if (known == NULL)
        abort();
    memcpy(known, whole->prompt, (size_t)whole->prompt_count * sizeof(*known));
    memcpy(known + whole->prompt_count, whole->token, (size_t)before * sizeof(*known));
    again.output_before = before;
    again.score_step = whole->score_step;
    driver_reset(driver, 55);
    equal =
        driver_run(driver, &again, 1, chunk, token_max, 1) == 0 && sequence_equal(&again, whole);
    sequence_free(&again);
    free(known);
    return equal;
}

#endif
