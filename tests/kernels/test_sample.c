/* Sampling on every backend and instruction set: every parameter and their combinations on
 * logits of many kinds against the reference; state of slots; that nothing but its own inputs
 * matters to a sample. */
#include "kernels/sampling_math.h"
#include "tests/kernels/harness.h"

enum { SAMPLES = 8, HISTORY = 40 };

/* ---- parameters ---- */

static const struct sampling sampling_case[] = {
    {.temperature = 0, .top_p = 1, .repetition_penalty = 1},
    {.temperature = 1, .top_p = 1, .repetition_penalty = 1},
    {.temperature = 0.7f, .top_p = 1, .repetition_penalty = 1},
    {.temperature = 2, .top_p = 1, .repetition_penalty = 1},
    {.temperature = 0.01f, .top_p = 1, .repetition_penalty = 1},
    {.temperature = 1, .top_p = 0, .repetition_penalty = 1},
    {.temperature = 1, .top_p = 1, .top_k = 1, .repetition_penalty = 1},
    {.temperature = 1, .top_p = 1, .top_k = 2, .repetition_penalty = 1},
    {.temperature = 1.3f, .top_p = 1, .top_k = 40, .repetition_penalty = 1},
    {.temperature = 1, .top_p = 1, .top_k = 900, .repetition_penalty = 1},
    {.temperature = 1, .top_p = 1, .top_k = -1, .repetition_penalty = 1},
    {.temperature = 1, .top_p = 0.9f, .repetition_penalty = 1},
    {.temperature = 1, .top_p = 0.5f, .repetition_penalty = 1},
    {.temperature = 1, .top_p = 0.01f, .repetition_penalty = 1},
    {.temperature = 2, .top_p = 0.999f, .repetition_penalty = 1},
    {.temperature = 1, .top_p = 1, .min_p = 0.05f, .repetition_penalty = 1},
    {.temperature = 1, .top_p = 1, .min_p = 0.6f, .repetition_penalty = 1},
    {.temperature = 1.5f, .top_p = 1, .min_p = 1, .repetition_penalty = 1},
    {.temperature = 0.8f, .top_p = 0.95f, .top_k = 50, .min_p = 0.02f, .repetition_penalty = 1},
    {.temperature = 1, .top_p = 0.3f, .top_k = 3, .repetition_penalty = 1},
    {.temperature = 1, .top_p = 0.8f, .min_p = 0.1f, .repetition_penalty = 1},
    {.temperature = 1, .top_p = 1, .repetition_penalty = 1.3f},
    {.temperature = 0, .top_p = 1, .repetition_penalty = 2},
    {.temperature = 0, .top_p = 1, .repetition_penalty = 1, .presence_penalty = 2},
    {.temperature = 1, .top_p = 1, .repetition_penalty = 1, .frequency_penalty = 0.5f},
    {.temperature = 1, .top_p = 1, .repetition_penalty = 0.8f, .presence_penalty = -1},
    {.temperature = 0.9f,
     .top_p = 0.9f,
     .top_k = 20,
     .repetition_penalty = 1.1f,
     .presence_penalty = 0.5f,
     .frequency_penalty = 0.2f},
    {.temperature = 0, .top_p = 1, .repetition_penalty = 1, .min_tokens = 1000},
    {.temperature = 1, .top_p = 0.9f, .repetition_penalty = 1, .min_tokens = 1000},
};
enum { SAMPLINGS = sizeof(sampling_case) / sizeof(*sampling_case) };

/* ---- logits ---- */

enum kind { NORMAL, PEAKED, EQUAL, TIED, MASKED, BROKEN, NOTHING, HUGE_VALUES, KINDS };

static void fill_logits(float *x, int32_t V, enum kind kind, uint64_t seed)
{
    for (int32_t i = 0; i < V; i++) {
        float value = random_float(&seed);
        int32_t die = random_below(&seed, 10);
        x[i] = value * 3.0f;
        if (kind == PEAKED)
            x[i] = value * 2.0f - 20.0f + (i % 97 == 5 ? 22.0f : 0.0f);
        if (kind == EQUAL)
            x[i] = 1.5f;
        if (kind == TIED)
            x[i] = rintf(value * 2.0f) * 0.5f;
        if (kind == MASKED && die < 8)
            x[i] = -INFINITY;
        if (kind == BROKEN && die < 3)
            x[i] = die == 0 ? NAN : die == 1 ? -INFINITY : x[i];
        if (kind == NOTHING)
            x[i] = die < 5 ? NAN : -INFINITY;
        if (kind == HUGE_VALUES)
            x[i] = die == 0 ? INFINITY : value * 1e38f;
    }
}

/* ---- a device with slots, and what it should hold ---- */

struct bench {
    struct device *device;
    int32_t V;
    float *logits; /* on the device [SAMPLES, V] */
    struct step_start start[SAMPLES];
    int32_t history[SAMPLES * HISTORY * 4];
    struct step_sample sample[SAMPLES];
    struct step_result result;
    int32_t token[SAMPLES], rank[SAMPLES], top_token[SAMPLES * SAMPLING_TOP_MAX];
    float logprob[SAMPLES], top_logprob[SAMPLES * SAMPLING_TOP_MAX];
};

static struct bench *bench_open(int32_t V, int32_t thread_count)
{
    struct bench *b = calloc(1, sizeof(*b));
    struct device_options options = small_options();

    assert(b != NULL);
    options.vocab_count = b->V = V;
    options.thread_count = thread_count;
    b->device = open_device(&options);
    b->logits = subject.ops->alloc(b->device, (size_t)SAMPLES * (size_t)V * sizeof(float));
    b->result = (struct step_result){b->token, b->logprob, b->rank, b->top_token, b->top_logprob};
    return b;
}

static void bench_close(struct bench *b)
{
    subject.ops->close(b->device);
    free(b);
}

/* Runs `count` samples on logits[count, V]; the first start_count starts are new. Samples are
 * taken in two calls, as where logits do not all fit. */
static void bench_run(struct bench *b, const float *logits, int32_t start_count, int32_t count)
{
    struct step_row row = {.token_count = 1};
    int32_t zero = 0, first = count / 3;
    struct step step = {
        .start_count = start_count,
        .start = b->start,
        .history = b->history,
        .history_count = start_count > 0 ? SAMPLES * HISTORY * 4 : 0,
        .row_count = 1,
        .row = &row,
        .token_count = 1,
        .token = &zero,
        .sample_count = count,
        .sample = b->sample,
    };

    subject.ops->step_begin(b->device, &step);
    subject.ops->upload(b->device, b->logits, logits,
                        (size_t)count * (size_t)b->V * sizeof(*logits));
    if (first > 0)
        subject.ops->sample(b->device, b->logits, 0, first);
    subject.ops->sample(b->device, b->logits + (int64_t)first * b->V, first, count - first);
    subject.ops->step_end(b->device, &b->result);
    EXPECT_INT(subject.ops->sync(b->device), ==, 0);
}

/* Slot i takes sampling_case[i + first], with tokens of its own. */
static void set_starts(struct bench *b, int32_t first, uint64_t *seed)
{
    for (int32_t i = 0; i < SAMPLES; i++) {
        struct step_start *start = &b->start[i];
        *start = (struct step_start){.slot = i, .token_first = i * HISTORY};
        start->sampling = sampling_case[(first + i) % SAMPLINGS];
        start->sampling.seed = random_next(seed);
        start->prompt_count = random_below(seed, HISTORY / 2);
        start->token_count = start->prompt_count + random_below(seed, HISTORY / 2);
        for (int32_t j = 0; j < start->token_count; j++)
            b->history[start->token_first + j] = random_below(seed, b->V < 30 ? b->V : 30);
        if ((first + i) % 3 == 0 && b->V > 4) {
            start->sampling.bias_count = 2;
            start->sampling.bias_token[0] = 3;
            start->sampling.bias_value[0] = 5.0f;
            start->sampling.bias_token[1] = b->V - 1;
            start->sampling.bias_value[1] = -100.0f;
        }
        start->sampling.stop_count = b->V > 2 ? 2 : 0;
        start->sampling.stop_token[0] = 1;
        start->sampling.stop_token[1] = b->V - 1;
        b->sample[i] = (struct step_sample){
            .kind = STEP_DRAW,
            .slot = i,
            .output_index = start->token_count - start->prompt_count,
            .top_count = i % 4 == 0 ? SAMPLING_TOP_MAX : i % 4 - 2,
        };
    }
}

static bool logprob_fits(float got, double expected)
{
    return got == (float)expected || fabs((double)got - expected) <= 2e-6 * (10 + fabs(expected));
}

static void check_report(const struct bench *b, const float *logits, int32_t i)
{
    int32_t top_count = b->sample[i].top_count, token = b->token[i];
    int32_t expected[SAMPLING_TOP_MAX];
    const int32_t *top = b->top_token + i * SAMPLING_TOP_MAX;

    if (top_count < 0) {
        EXPECT(b->logprob[i] == 0.0f);
    } else {
        EXPECT(logprob_fits(b->logprob[i], reference_logprob(logits, b->V, token)));
        EXPECT_INT(b->rank[i], ==, reference_rank(logits, b->V, token));
    }
    reference_top(expected, logits, b->V, SAMPLING_TOP_MAX);
    for (int32_t j = 0; j < SAMPLING_TOP_MAX; j++) {
        int32_t want = j < top_count ? expected[j] : -1;
        EXPECT_INT(top[j], ==, want);
        if (want >= 0 && top[j] == want)
            EXPECT(logprob_fits(b->top_logprob[i * SAMPLING_TOP_MAX + j],
                                reference_logprob(logits, b->V, want)));
    }
}

static bool draw_fits(const struct bench *b, const float *logits, int32_t i)
{
    const struct step_start *start = &b->start[i];
    struct reference_history history = {b->history + start->token_first, start->token_count,
                                        start->prompt_count};
    double *probability = malloc((size_t)b->V * sizeof(*probability));
    int32_t index = b->sample[i].output_index;
    double u = sampling_uniform(start->sampling.seed, index);

    assert(probability != NULL);
    reference_distribution(probability, logits, b->V, &start->sampling, &history, index);
    bool fits = reference_draw_fits(probability, b->V, u, b->token[i], 2e-6);
    if (!fits)
        printf("%s: drew %d, not %d\n", subject.name, b->token[i],
               reference_draw(probability, b->V, u));
    free(probability);
    return fits;
}

static void check_kind(struct bench *b, enum kind kind, float *logits)
{
    uint64_t seed = (uint64_t)b->V * 16 + (uint64_t)kind;

    for (int32_t first = 0; first < SAMPLINGS; first += SAMPLES) {
        for (int32_t i = 0; i < SAMPLES; i++)
            fill_logits(logits + (int64_t)i * b->V, b->V, kind, random_next(&seed));
        set_starts(b, first, &seed);
        bench_run(b, logits, SAMPLES, SAMPLES);
        for (int32_t i = 0; i < SAMPLES; i++) {
            if (!draw_fits(b, logits + (int64_t)i * b->V, i)) {
                printf("V %d, kind %d, case %d\n", b->V, (int)kind, (first + i) % SAMPLINGS);
                EXPECT(!"the draw is the reference's");
            }
            check_report(b, logits + (int64_t)i * b->V, i);
        }
    }
}

static void every_parameter_does_what_the_reference_does(void)
{
    static const int32_t size_case[] = {1,    2,    3,    4,    7,    100,  1000,
                                        1023, 1024, 1025, 5000, 9001, 20000};

    for (size_t v = 0; v < sizeof(size_case) / sizeof(*size_case); v++) {
        struct bench *b = bench_open(size_case[v], 2);
        float *logits = malloc((size_t)SAMPLES * (size_t)b->V * sizeof(*logits));
        assert(logits != NULL);
        for (int kind = 0; kind < KINDS; kind++)
            if (test_takes(v * KINDS + (size_t)kind))
                check_kind(b, (enum kind)kind, logits);
        free(logits);
        bench_close(b);
    }
}

/* Tokens of many draws come as often as their probabilities say, within 5 sigma. */
static void draws_follow_the_distribution(void)
{
    enum { V = 7, DRAWS = 2000 };
    struct bench *b = bench_open(V, 1);
    float logits[SAMPLES * V];
    int32_t seen[V] = {0};
    double probability[V];
    struct reference_history none = {0};
    struct sampling sampling = {.temperature = 1.5f, .top_p = 0.97f, .repetition_penalty = 1};
    uint64_t seed = 21;

    fill_logits(logits, V, NORMAL, 4);
    for (int32_t i = 1; i < SAMPLES; i++)
        memcpy(logits + i * V, logits, V * sizeof(*logits));
    for (int32_t n = 0; n < DRAWS; n++) {
        for (int32_t i = 0; i < SAMPLES; i++) {
            b->start[i] = (struct step_start){.slot = i, .sampling = sampling};
            b->start[i].sampling.seed = random_next(&seed);
            b->sample[i] = (struct step_sample){.slot = i, .output_index = n, .top_count = -1};
        }
        bench_run(b, logits, SAMPLES, SAMPLES);
        for (int32_t i = 0; i < SAMPLES; i++)
            seen[b->token[i]]++;
    }
    reference_distribution(probability, logits, V, &sampling, &none, 0);
    for (int32_t i = 0; i < V; i++) {
        double mean = probability[i] * DRAWS * SAMPLES;
        EXPECT(fabs(seen[i] - mean) <= 5.0 * sqrt(mean) + 1e-9);
    }
    bench_close(b);
}

/* Bits of one sample's results, for comparison. */
static void same_results(const struct bench *a, int32_t i, const struct bench *b, int32_t j)
{
    EXPECT_INT(a->token[i], ==, b->token[j]);
    EXPECT(memcmp(&a->logprob[i], &b->logprob[j], sizeof(float)) == 0);
    EXPECT_INT(a->rank[i], ==, b->rank[j]);
    EXPECT(memcmp(a->top_token + i * SAMPLING_TOP_MAX, b->top_token + j * SAMPLING_TOP_MAX,
                  SAMPLING_TOP_MAX * sizeof(int32_t)) == 0);
    EXPECT(memcmp(a->top_logprob + i * SAMPLING_TOP_MAX, b->top_logprob + j * SAMPLING_TOP_MAX,
                  SAMPLING_TOP_MAX * sizeof(float)) == 0);
}

static void a_sample_is_the_same_alone_in_a_batch_and_with_any_threads(void)
{
    enum { V = 30000 };
    float *logits = malloc((size_t)SAMPLES * V * sizeof(*logits));

    assert(logits != NULL);
    for (int32_t first = 0; first < SAMPLINGS; first += SAMPLES) {
        struct bench *batch = bench_open(V, 3), *alone = bench_open(V, 1);
        uint64_t seed = 5 + (uint64_t)first;
        for (int32_t i = 0; i < SAMPLES; i++)
            fill_logits(logits + i * V, V, i % 2 ? NORMAL : PEAKED, random_next(&seed));
        set_starts(batch, first, &seed);
        memcpy(alone->history, batch->history, sizeof(batch->history));
        bench_run(batch, logits, SAMPLES, SAMPLES);
        for (int32_t i = 0; i < SAMPLES; i++) {
            alone->start[0] = batch->start[i];
            alone->start[0].slot = 7 - i;
            alone->sample[0] = batch->sample[i];
            alone->sample[0].slot = 7 - i;
            bench_run(alone, logits + i * V, 1, 1);
            same_results(batch, i, alone, 0);
        }
        bench_close(batch);
        bench_close(alone);
    }
    free(logits);
}

/* ---- the same candidates, lying otherwise ---- */

enum { LIKELY = 3000, STRIDE = 13, LAYOUT_V = LIKELY * STRIDE + 1001 };

static const struct sampling layout_case[] = {
    {.temperature = 1, .top_p = 1, .repetition_penalty = 1},
    {.temperature = 1, .top_p = 1, .top_k = 50, .repetition_penalty = 1},
    {.temperature = 1, .top_p = 0.5f, .repetition_penalty = 1},
    {.temperature = 0.5f, .top_p = 0.9f, .top_k = 70, .repetition_penalty = 1},
    {.temperature = 1, .top_p = 0.99f, .top_k = 1000, .repetition_penalty = 1},
    {.temperature = 2, .top_p = 0.9f, .min_p = 0.001f, .repetition_penalty = 1},
    {.temperature = 2, .top_p = 1, .min_p = 0.01f, .top_k = 2900, .repetition_penalty = 1},
    {.temperature = 1, .top_p = 0.999f, .repetition_penalty = 1},
};
static_assert(sizeof(layout_case) / sizeof(*layout_case) == SAMPLES, "a slot each");

/* The i-th likely token has id first + i * stride; all others are far below. */
static void lay_out(float *logits, const float *likely, int32_t first, int32_t stride)
{
    for (int32_t i = 0; i < LAYOUT_V; i++)
        logits[i] = -80.0f;
    for (int32_t i = 0; i < LIKELY; i++)
        logits[first + i * stride] = likely[i];
    for (int32_t s = 1; s < SAMPLES; s++)
        memcpy(logits + (int64_t)s * LAYOUT_V, logits, LAYOUT_V * sizeof(*logits));
}

static void same_layouts(const struct bench *close, int32_t first, const struct bench *apart)
{
    for (int32_t s = 0; s < SAMPLES; s++) {
        EXPECT_INT((close->token[s] - first) * STRIDE, ==, apart->token[s]);
        EXPECT_INT(close->rank[s], ==, apart->rank[s]);
        for (int32_t i = 0; i < SAMPLING_TOP_MAX; i++) {
            int32_t at = s * SAMPLING_TOP_MAX + i;
            EXPECT_INT((close->top_token[at] - first) * STRIDE, ==, apart->top_token[at]);
        }
    }
}

/* Few parts of V have all that is likely, or all parts have some: what finds the candidates
 * quickly in one of them does not in the other. */
static void a_draw_does_not_depend_on_where_its_candidates_lie(void)
{
    const int32_t first = 777;
    struct bench *close = bench_open(LAYOUT_V, 2), *apart = bench_open(LAYOUT_V, 2);
    float *logits = malloc((size_t)SAMPLES * LAYOUT_V * sizeof(*logits)), likely[LIKELY];
    uint64_t seed = 77;

    assert(logits != NULL);
    for (int32_t round = 0; round < 6; round++) {
        for (int32_t i = 0; i < LIKELY; i++) /* with ties in some rounds */
            likely[i] = random_float(&seed) * 2.0f;
        for (int32_t i = 0; i < LIKELY && round % 2 == 1; i++)
            likely[i] = rintf(likely[i] * 4.0f) * 0.25f;
        for (int32_t s = 0; s < SAMPLES; s++) {
            close->start[s] = (struct step_start){.slot = s, .sampling = layout_case[s]};
            close->start[s].sampling.seed = random_next(&seed);
            close->sample[s] =
                (struct step_sample){.slot = s, .output_index = round, .top_count = 32};
            apart->start[s] = close->start[s];
            apart->sample[s] = close->sample[s];
        }
        lay_out(logits, likely, first, 1);
        bench_run(close, logits, SAMPLES, SAMPLES);
        lay_out(logits, likely, 0, STRIDE);
        bench_run(apart, logits, SAMPLES, SAMPLES);
        same_layouts(close, first, apart);
        for (int32_t s = 0; s < SAMPLES; s++)
            EXPECT(draw_fits(apart, logits + (int64_t)s * LAYOUT_V, s));
    }
    free(logits);
    bench_close(close);
    bench_close(apart);
}

/* ---- state of slots ---- */

/* A sequence that draws with penalties knows its own output; one that comes back after a
 * preemption, and one whose slot served another before, give the same. */
static void slots_remember_and_forget(void)
{
    enum { V = 50, STEPS = 12 };
    struct bench *b = bench_open(V, 2), *again = bench_open(V, 2);
    float logits[V];
    int32_t *history = b->history;
    uint64_t seed = 31;
    struct step_start start = {.slot = 2, .prompt_count = 4, .token_count = 4};

    start.sampling = (struct sampling){.temperature = 1,
                                       .top_p = 0.9f,
                                       .repetition_penalty = 1.5f,
                                       .presence_penalty = 1,
                                       .frequency_penalty = 0.5f,
                                       .seed = 99};
    for (int32_t i = 0; i < 4; i++)
        history[i] = i * 3;
    for (int32_t n = 0; n < STEPS; n++) {
        fill_logits(logits, V, NORMAL, random_next(&seed) % 3);
        start.token_count = 4 + n;
        b->start[0] = again->start[0] = start;
        b->sample[0] = again->sample[0] =
            (struct step_sample){.slot = 2, .output_index = n, .top_count = 3};
        bench_run(b, logits, n == 0, 1);
        EXPECT(draw_fits(b, logits, 0));
        memcpy(again->history, history, sizeof(b->history));
        bench_run(again, logits, 1, 1); /* always a new start, in a slot that was in use */
        same_results(b, 0, again, 0);
        history[4 + n] = b->token[0];
    }
    bench_close(b);
    bench_close(again);
}

static void scores_are_of_the_token_asked_for(void)
{
    enum { V = 3000 };
    struct bench *b = bench_open(V, 2);
    float *logits = malloc((size_t)SAMPLES * V * sizeof(*logits));
    uint64_t seed = 17;

    assert(logits != NULL);
    for (int32_t i = 0; i < SAMPLES; i++) {
        fill_logits(logits + i * V, V, i % 2 ? TIED : BROKEN, random_next(&seed));
        b->sample[i] = (struct step_sample){
            .kind = STEP_SCORE, .token = random_below(&seed, V), .top_count = i};
    }
    bench_run(b, logits, 0, SAMPLES);
    for (int32_t i = 0; i < SAMPLES; i++) {
        EXPECT_INT(b->token[i], ==, b->sample[i].token);
        check_report(b, logits + i * V, i);
    }
    free(logits);
    bench_close(b);
}

/* A slot that served a sequence with penalties, then one without, then one with them again. */
static void a_slot_starts_anew_whoever_was_there(void)
{
    enum { V = 50, STEPS = 4 };
    struct bench *used = bench_open(V, 2), *fresh = bench_open(V, 2);
    float logits[V];
    uint64_t seed = 12;

    for (int32_t turn = 0; turn < 5; turn++) {
        struct step_start start = {.slot = 3, .prompt_count = 6, .token_count = 9};
        start.sampling = sampling_case[turn % 2 == 0 ? 26 : 1];
        start.sampling.seed = random_next(&seed);
        for (int32_t i = 0; i < 9; i++)
            used->history[i] = random_below(&seed, V);
        if (turn == 4) {
            fresh->start[0] = start;
            memcpy(fresh->history, used->history, sizeof(used->history));
        }
        used->start[0] = start;
        for (int32_t n = 0; n < STEPS; n++) {
            fill_logits(logits, V, NORMAL, random_next(&seed) % 3);
            used->sample[0] = fresh->sample[0] =
                (struct step_sample){.slot = 3, .output_index = 3 + n, .top_count = 2};
            bench_run(used, logits, n == 0, 1);
            if (turn == 4) {
                bench_run(fresh, logits, n == 0, 1);
                same_results(used, 0, fresh, 0);
            }
        }
    }
    bench_close(used);
    bench_close(fresh);
}

/* An op that is padded to more samples than the step has leaves the others' slots alone. */
static void samples_past_the_steps_own_change_nothing(void)
{
    enum { V = 3000 };
    struct bench *padded = bench_open(V, 2), *exact = bench_open(V, 2);
    float *logits = malloc((size_t)SAMPLES * V * sizeof(*logits));
    struct step_row row = {.token_count = 1};
    int32_t zero = 0;
    struct step step = {.row_count = 1, .row = &row, .token_count = 1, .token = &zero};
    uint64_t seed = 8;

    assert(logits != NULL);
    for (int32_t i = 0; i < SAMPLES; i++)
        fill_logits(logits + i * V, V, NORMAL, random_next(&seed));
    set_starts(padded, 21, &seed);
    memcpy(exact->start, padded->start, sizeof(padded->start));
    memcpy(exact->sample, padded->sample, sizeof(padded->sample));
    memcpy(exact->history, padded->history, sizeof(padded->history));
    bench_run(padded, logits, SAMPLES, SAMPLES);
    bench_run(exact, logits, SAMPLES, SAMPLES);
    step.sample_count = 1;
    step.sample = padded->sample;
    subject.ops->step_begin(padded->device, &step);
    subject.ops->sample(padded->device, padded->logits, 0, SAMPLES);
    subject.ops->step_end(padded->device, &padded->result);
    EXPECT_INT(subject.ops->sync(padded->device), ==, 0);
    bench_run(exact, logits, 0, 1);
    for (int32_t i = 0; i < SAMPLES; i++)
        same_results(padded, i, exact, i);
    bench_run(padded, logits, 0, SAMPLES);
    bench_run(exact, logits, 0, SAMPLES);
    for (int32_t i = 0; i < SAMPLES; i++)
        same_results(padded, i, exact, i);
    free(logits);
    bench_close(padded);
    bench_close(exact);
}

/* More scores than any one launch or table has room for. */
static void scores_of_many_positions_are_those_of_one(void)
{
    enum { V = 70, MANY = 600 };
    struct device_options options = small_options();
    static struct step_sample sample[MANY];
    static int32_t token[MANY], rank[MANY], top_token[MANY * SAMPLING_TOP_MAX];
    static float logprob[MANY], top_logprob[MANY * SAMPLING_TOP_MAX], logits[MANY * V];
    struct step_result result = {token, logprob, rank, top_token, top_logprob};
    struct step_row row = {.token_count = 1};
    int32_t zero = 0;
    uint64_t seed = 6;

    options.vocab_count = V;
    options.sample_max = MANY;
    struct device *device = open_device(&options);
    for (int32_t i = 0; i < MANY; i++) {
        fill_logits(logits + i * V, V, NORMAL, random_next(&seed));
        sample[i] = (struct step_sample){.kind = STEP_SCORE, .token = i % V, .top_count = 1};
    }
    subject.ops->step_begin(device, &(struct step){.row_count = 1,
                                                   .row = &row,
                                                   .token_count = 1,
                                                   .token = &zero,
                                                   .sample_count = MANY,
                                                   .sample = sample});
    subject.ops->sample(device, upload_floats(device, logits, MANY * V), 0, MANY);
    subject.ops->step_end(device, &result);
    EXPECT_INT(subject.ops->sync(device), ==, 0);
    for (int32_t i = 0; i < MANY; i++) {
        const float *x = logits + i * V;
        int32_t top;
        reference_top(&top, x, V, 1);
        EXPECT_INT(top_token[i * SAMPLING_TOP_MAX], ==, top);
        EXPECT_INT(rank[i], ==, reference_rank(x, V, i % V));
        EXPECT(logprob_fits(logprob[i], reference_logprob(x, V, i % V)));
    }
    subject.ops->close(device);
}

/* Known answers of Random123 for Philox4x32-10. */
static void philox_gives_its_known_answers(void)
{
    static const uint32_t zero[4] = {0}, ones[4] = {~0u, ~0u, ~0u, ~0u};
    static const uint32_t pi[4] = {0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344};
    struct sampling_words a = sampling_philox(0, zero), b = sampling_philox(UINT64_MAX, ones);
    struct sampling_words c = sampling_philox(0x299f31d0a4093822, pi);

    EXPECT_INT(a.word[0], ==, 0x6627e8d5);
    EXPECT_INT(a.word[3], ==, 0x9b00dbd8);
    EXPECT_INT(b.word[0], ==, 0x408f276d);
    EXPECT_INT(b.word[3], ==, 0x6d5451fd);
    EXPECT_INT(c.word[0], ==, 0xd16cfe09);
    EXPECT_INT(c.word[3], ==, 0x24126ea1);
    for (int32_t i = 0; i < 1000; i++) {
        double u = sampling_uniform(7, i);
        EXPECT(u > 0.0 && u < 1.0);
    }
}

static void tests(void)
{
    TEST(philox_gives_its_known_answers);
    TEST(every_parameter_does_what_the_reference_does);
    TEST(draws_follow_the_distribution);
    TEST(a_sample_is_the_same_alone_in_a_batch_and_with_any_threads);
    TEST(a_draw_does_not_depend_on_where_its_candidates_lie);
    TEST(slots_remember_and_forget);
    TEST(a_slot_starts_anew_whoever_was_there);
    TEST(samples_past_the_steps_own_change_nothing);
    TEST(scores_are_of_the_token_asked_for);
    TEST(scores_of_many_positions_are_those_of_one);
}

int main(int argc, char **argv)
{
    return run_subjects(argc, argv, tests);
}
