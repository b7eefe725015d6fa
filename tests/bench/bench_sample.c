/* Speed of sampling on a GPU: JSON lines, one a case; nothing where there is no GPU.
 *
 *     bench_sample [V]
 *
 * A case is timed as graphs of FEW and MANY calls of the op: what they differ by is the calls
 * alone. `likely` logits are as a model's: most of the mass is on a hundred tokens of 300 that
 * stand out of a normal bulk. `flat` ones are normal: top_p keeps tens of thousands. `hash` is of
 * the tokens, so that a change of bits is seen.
 */
#include "tests/bench/measure.h"
#include "tests/kernels/harness.h"

enum { FEW = 4, MANY = 24, REPEAT = 9, SAMPLES = 256, HISTORY = 400 };

struct bench {
    struct device *device;
    int32_t V;
    float *logits; /* on the device [SAMPLES, V] */
};

struct sample_case {
    const char *name;
    struct sampling sampling;
    int32_t top_count;
};

static const struct sample_case sample_case[] = {
    {"greedy", {.temperature = 0, .top_p = 1, .repetition_penalty = 1}, -1},
    {"greedy_logprob", {.temperature = 0, .top_p = 1, .repetition_penalty = 1}, 0},
    {"greedy_top_5", {.temperature = 0, .top_p = 1, .repetition_penalty = 1}, 5},
    {"temperature", {.temperature = 0.8f, .top_p = 1, .repetition_penalty = 1}, -1},
    {"temperature_top_5", {.temperature = 0.8f, .top_p = 1, .repetition_penalty = 1}, 5},
    {"top_k_50", {.temperature = 1, .top_p = 1, .top_k = 50, .repetition_penalty = 1}, -1},
    {"top_p", {.temperature = 1, .top_p = 0.9f, .repetition_penalty = 1}, -1},
    {"top_k_p", {.temperature = 1, .top_p = 0.9f, .top_k = 50, .repetition_penalty = 1}, -1},
    {"top_k_1000", {.temperature = 1, .top_p = 1, .top_k = 1000, .repetition_penalty = 1}, -1},
    {"min_p", {.temperature = 1, .top_p = 1, .min_p = 0.05f, .repetition_penalty = 1}, -1},
    {"greedy_penalty", {.temperature = 0, .top_p = 1, .repetition_penalty = 1.1f}, -1},
    {"top_p_penalty", {.temperature = 1, .top_p = 0.9f, .repetition_penalty = 1.1f}, -1},
};

static void fill(const struct bench *bench, bool flat)
{
    float *row = malloc((size_t)bench->V * sizeof(*row));
    uint64_t seed = 7;

    assert(row != NULL);
    for (int32_t s = 0; s < SAMPLES; s++) {
        for (int32_t i = 0; i < bench->V; i++)
            row[i] = random_float(&seed) * (flat ? 1.0f : 2.0f);
        for (int32_t i = 0; !flat && i < 300; i++) {
            float u = (float)random_below(&seed, 1000) * 1e-3f;
            row[random_below(&seed, bench->V)] = 8.0f + 8.0f * u * u * u;
        }
        subject.ops->upload(bench->device, bench->logits + (int64_t)s * bench->V, row,
                            (size_t)bench->V * sizeof(*row));
    }
    free(row);
}

static void begin(const struct bench *bench, const struct sample_case *c, int32_t S)
{
    static struct step_start start[SAMPLES];
    static struct step_sample sample[SAMPLES];
    static int32_t history[HISTORY];
    struct step_row row = {.token_count = 1};
    int32_t zero = 0;
    uint64_t seed = 3;

    for (int32_t i = 0; i < HISTORY; i++)
        history[i] = random_below(&seed, bench->V);
    for (int32_t i = 0; i < S; i++) {
        start[i] = (struct step_start){i, HISTORY / 2, 0, HISTORY, c->sampling};
        start[i].sampling.seed = (uint64_t)i;
        sample[i] = (struct step_sample){.slot = i, .top_count = c->top_count};
    }
    subject.ops->step_begin(bench->device, &(struct step){.start_count = S,
                                                          .start = start,
                                                          .history = history,
                                                          .history_count = HISTORY,
                                                          .row_count = 1,
                                                          .row = &row,
                                                          .token_count = 1,
                                                          .token = &zero,
                                                          .sample_count = S,
                                                          .sample = sample});
}

static void wait_for(const struct bench *bench)
{
    float word;

    subject.ops->download(bench->device, &word, bench->logits, sizeof(word));
}

/* Median time of the graph `key`. */
static double graph_us(const struct bench *bench, int64_t key)
{
    double us[REPEAT];

    for (int32_t i = 0; i < REPEAT; i++) {
        wait_for(bench);
        us[i] = now_us();
        EXPECT(subject.ops->graph_launch(bench->device, key));
        wait_for(bench);
        us[i] = now_us() - us[i];
    }
    qsort(us, REPEAT, sizeof(*us), ascending);
    return us[REPEAT / 2];
}

static void run(const struct bench *bench, const struct sample_case *c, int32_t S, bool flat)
{
    static int32_t token[SAMPLES], rank[SAMPLES], top_token[SAMPLES * SAMPLING_TOP_MAX];
    static float logprob[SAMPLES], top_logprob[SAMPLES * SAMPLING_TOP_MAX];
    struct step_result result = {token, logprob, rank, top_token, top_logprob};
    static int64_t key;

    begin(bench, c, S);
    for (int32_t graph = 0; graph < 2; graph++) {
        EXPECT(subject.ops->graph_begin(bench->device, key + graph));
        for (int32_t i = 0; i < (graph == 0 ? FEW : MANY); i++)
            subject.ops->sample(bench->device, bench->logits, 0, S);
        EXPECT(subject.ops->graph_end(bench->device, key + graph));
    }
    double few = graph_us(bench, key), many = graph_us(bench, key + 1);
    double us = (many - few) / (MANY - FEW);
    key += 2;
    subject.ops->step_end(bench->device, &result);
    EXPECT_INT(subject.ops->sync(bench->device), ==, 0);
    printf("{\"name\": \"sample_%s_%s\", \"backend\": \"cuda\", \"V\": %d, \"S\": %d, "
           "\"us\": %.1f, \"bytes_per_s\": %.3g, \"hash\": \"%016" PRIx64 "\"}\n",
           c->name, flat ? "flat" : "likely", bench->V, S, us,
           (double)S * bench->V * sizeof(float) / us * 1e6,
           hash_of(token, (size_t)S * sizeof(*token)));
    fflush(stdout);
}

int main(int argc, char **argv)
{
    struct device_options options = small_options();
    struct bench bench = {.V = argc > 1 ? atoi(argv[1]) : 151936};
    char error[256] = "";

    options.slot_max = options.sample_max = SAMPLES;
    options.vocab_count = bench.V;
    subject = (struct subject){.ops = backend_cuda(), .name = "cuda"};
    if (subject.ops == NULL ||
        subject.ops->open(&bench.device, &options, error, sizeof(error)) != 0) {
        (void)fprintf(stderr, "bench_sample: %s\n", subject.ops == NULL ? "no CUDA" : error);
        return 0;
    }
    (void)fprintf(stderr, "%s\n", subject.ops->describe(bench.device));
    bench.logits =
        subject.ops->alloc(bench.device, (size_t)SAMPLES * (size_t)bench.V * sizeof(float));
    for (int flat = 0; flat < 2; flat++) {
        fill(&bench, flat != 0);
        for (size_t i = 0; i < sizeof(sample_case) / sizeof(*sample_case); i++) {
            run(&bench, &sample_case[i], 1, flat != 0);
            run(&bench, &sample_case[i], 64, flat != 0);
            run(&bench, &sample_case[i], SAMPLES, flat != 0);
        }
    }
    subject.ops->close(bench.device);
    return test_check_failed > 0;
}
