/* Speed of the CPU backend's ops but linear: JSON lines, one a case.
 *
 *     bench_ops [smoke] [THREADS] [ISA]
 *
 * Shapes are those of Gemma 3 270M: 18 layers, 4 heads over 1, width 256, 262144 logits. `hash` is
 * of the result, so that a change of bits is seen.
 */
#include "tests/bench/measure.h"
#include "tests/kernels/harness.h"

enum {
    LAYERS = 18,
    HEADS = 4,
    WIDTH = 256,
    QKV = (HEADS + 2) * WIDTH,
    D = 640,
    F = 2048,
    V = 262144,
    BLOCK_TOKENS = 16,
    REPEAT_MAX = 25,
};

struct bench {
    struct device *device;
    int32_t threads;
    bool smoke;
};

static void print_case(const struct bench *bench, const char *name, double *us, int32_t repeat,
                       double flop, double bytes, uint64_t hash)
{
    qsort(us, (size_t)repeat, sizeof(*us), ascending);
    double median = us[repeat / 2];

    printf("{\"name\": \"%s\", \"backend\": \"cpu\", \"isa\": \"%s\", \"threads\": %d, "
           "\"repeat\": %d, \"median_us\": %.1f, \"min_us\": %.1f, \"p90_us\": %.1f",
           name, cpu_isa_name(subject.isa), bench->threads, repeat, median, us[0],
           us[repeat * 9 / 10]);
    if (flop > 0)
        printf(", \"flop_per_s\": %.3g", flop / median * 1e6);
    if (bytes > 0)
        printf(", \"bytes_per_s\": %.3g", bytes / median * 1e6);
    printf(", \"hash\": \"%016" PRIx64 "\"}\n", hash);
    fflush(stdout);
}

/* ---- attention ---- */

struct attention_case {
    const char *name;
    int32_t rows, count, position, window, layers;
};

static const struct attention_case attention_case[] = {
    {"attention_prompt_512", 1, 512, 0, 512, LAYERS},
    {"attention_prompt_512_at_1024", 1, 512, 1024, 512, LAYERS},
    {"attention_decode_1_at_512", 1, 1, 512, 512, LAYERS},
    {"attention_decode_16_at_512", 16, 1, 512, 512, LAYERS},
    {"attention_decode_1_at_8192", 1, 1, 8192, 0, 3},
};

static void end_step(struct device *device)
{
    static int32_t token[64], rank[64], top_token[64 * SAMPLING_TOP_MAX];
    static float logprob[64], top_logprob[64 * SAMPLING_TOP_MAX];
    struct step_result result = {token, logprob, rank, top_token, top_logprob};

    subject.ops->step_end(device, &result);
    EXPECT_INT(subject.ops->sync(device), ==, 0);
}

static void begin_rows(struct device *device, const struct attention_case *c, int32_t blocks)
{
    size_t entries = (size_t)(c->rows * blocks);
    struct step_change *change = calloc(entries, sizeof(*change));
    struct step_row *row = calloc((size_t)c->rows, sizeof(*row));
    int32_t *token = calloc((size_t)(c->rows * c->count), sizeof(*token));
    struct step step = {.row_count = c->rows,
                        .token_count = c->rows * c->count,
                        .change_count = c->rows * blocks,
                        .change = change,
                        .row = row,
                        .token = token};

    assert(change != NULL && row != NULL && token != NULL);
    for (int32_t r = 0; r < c->rows; r++) {
        row[r] = (struct step_row){r, c->position, r * c->count, c->count, false};
        for (int32_t i = 0; i < blocks; i++)
            change[r * blocks + i] = (struct step_change){r, 0, i, r * blocks + i};
    }
    subject.ops->step_begin(device, &step);
    free(change);
    free(row);
    free(token);
}

/* Halves between 2^-7 and 2^-3 in all of the cache. */
static void fill_cache(struct device *device)
{
    int64_t count = (int64_t)device->kv.block_count * device->kv.block_stride;
    uint64_t seed = 1;

    for (int64_t i = 0; i < count; i++)
        device->kv.data[i] = (uint16_t)(0x2000 + (random_next(&seed) & 0x8fff));
}

static void run_attention(struct bench *bench, const struct attention_case *c)
{
    static const int32_t layer_group[LAYERS] = {0};
    int32_t T = c->rows * c->count, blocks = (c->position + c->count - 1) / BLOCK_TOKENS + 1;
    int32_t repeat = bench->smoke ? 2 : REPEAT_MAX;
    struct kv_shape kv = {c->layers, c->rows * blocks, BLOCK_TOKENS, 1, WIDTH, 1, layer_group};
    struct attention_args args = {.head_count = HEADS,
                                  .kv_head_count = 1,
                                  .head_width = WIDTH,
                                  .scale = 1.0f / 16,
                                  .window = c->window};
    struct activation qkv = new_activation(bench->device, T, QKV);
    struct activation out = new_activation(bench->device, T, HEADS * WIDTH);
    double us[REPEAT_MAX], pairs = 0;
    uint64_t seed = 2;
    float *value = random_floats(&seed, (int64_t)T * QKV, 1.0f);

    EXPECT_INT(subject.ops->kv_open(bench->device, &kv), ==, 0);
    begin_rows(bench->device, c, blocks);
    fill_cache(bench->device);
    subject.ops->put(bench->device, qkv, value, T, QKV);
    for (int32_t i = 0; i < repeat; i++) {
        us[i] = now_us();
        for (args.layer = 0; args.layer < c->layers; args.layer++)
            subject.ops->attention(bench->device, out, qkv, &args, T);
        us[i] = now_us() - us[i];
    }
    for (int32_t i = 0; i < c->count; i++) {
        int32_t seen = c->position + i + 1;
        pairs += c->window > 0 && seen > c->window ? c->window : seen;
    }
    end_step(bench->device);
    double flop = pairs * c->rows * c->layers * HEADS * WIDTH * 4.0;
    double bytes = c->count > 1 ? 0 : pairs * c->rows * c->layers * WIDTH * 4.0;
    print_case(bench, c->name, us, repeat, flop, bytes,
               hash_of(out.data, (size_t)T * HEADS * WIDTH * sizeof(float)));
    free(value);
}

/* ---- sampling ---- */

struct sample_case {
    const char *name;
    struct sampling sampling;
    int32_t top_count;
};

static const struct sample_case sample_case[] = {
    {"sample_greedy", {.temperature = 0, .top_p = 1, .repetition_penalty = 1}, -1},
    {"sample_greedy_top_5", {.temperature = 0, .top_p = 1, .repetition_penalty = 1}, 5},
    {"sample_temperature", {.temperature = 1, .top_p = 1, .repetition_penalty = 1}, -1},
    {"sample_top_p", {.temperature = 1, .top_p = 0.9f, .repetition_penalty = 1}, -1},
    {"sample_top_k", {.temperature = 1, .top_p = 0.95f, .top_k = 40, .repetition_penalty = 1}, -1},
    {"sample_penalty", {.temperature = 1, .top_p = 1, .repetition_penalty = 1.1f}, -1},
};

static void begin_samples(struct device *device, const struct sample_case *c, int32_t S)
{
    enum { HISTORY = 400 };
    struct step_start *start = calloc((size_t)S, sizeof(*start));
    struct step_sample *sample = calloc((size_t)S, sizeof(*sample));
    int32_t history[HISTORY], zero = 0;
    struct step_row row = {.token_count = 1};
    uint64_t seed = 3;

    assert(start != NULL && sample != NULL);
    for (int32_t i = 0; i < HISTORY; i++)
        history[i] = random_below(&seed, V);
    for (int32_t i = 0; i < S; i++) {
        start[i] = (struct step_start){i, HISTORY / 2, 0, HISTORY, c->sampling};
        start[i].sampling.seed = (uint64_t)i;
        sample[i] = (struct step_sample){.slot = i, .top_count = c->top_count};
    }
    subject.ops->step_begin(device, &(struct step){.start_count = S,
                                                   .start = start,
                                                   .history = history,
                                                   .row_count = 1,
                                                   .row = &row,
                                                   .token_count = 1,
                                                   .token = &zero,
                                                   .sample_count = S,
                                                   .sample = sample});
    free(start);
    free(sample);
}

static void run_sample(struct bench *bench, const struct sample_case *c, int32_t S)
{
    int32_t repeat = bench->smoke ? 2 : REPEAT_MAX;
    uint64_t seed = 4;
    float *value = random_floats(&seed, V, 4.0f);
    float *logits = subject.ops->alloc(bench->device, (size_t)S * V * sizeof(*logits));
    double us[REPEAT_MAX];
    char name[64];

    assert(logits != NULL);
    for (int32_t i = 0; i < S; i++)
        memcpy(logits + (int64_t)i * V, value, V * sizeof(*logits));
    begin_samples(bench->device, c, S);
    for (int32_t i = 0; i < repeat; i++) {
        us[i] = now_us();
        subject.ops->sample(bench->device, logits, 0, S);
        us[i] = now_us() - us[i];
    }
    end_step(bench->device);
    (void)snprintf(name, sizeof(name), "%s_S%d", c->name, S);
    print_case(bench, name, us, repeat, 0, (double)S * V * sizeof(*logits),
               hash_of(bench->device->result.token, (size_t)S * sizeof(int32_t)));
    free(value);
}

/* ---- rows ---- */

static void run_rows(struct bench *bench)
{
    enum { T = 512 };
    int32_t repeat = bench->smoke ? 2 : REPEAT_MAX;
    uint64_t seed = 5;
    float *value = random_floats(&seed, (int64_t)T * 2 * F, 1.0f);
    struct activation wide = new_activation(bench->device, T, 2 * F);
    struct activation out = new_activation(bench->device, T, F);
    struct activation x = new_activation(bench->device, T, D);
    struct activation branch = new_activation(bench->device, T, D);
    float *weight = upload_floats(bench->device, value, D);
    double us[REPEAT_MAX];

    subject.ops->put(bench->device, wide, value, T, 2 * F);
    subject.ops->put(bench->device, branch, value, T, D);
    for (int32_t i = 0; i < repeat; i++) {
        us[i] = now_us();
        subject.ops->act_mul(bench->device, out, wide, ACT_GELU_TANH, T, F);
        us[i] = now_us() - us[i];
    }
    print_case(bench, "act_mul_512x2048", us, repeat, 0, 0,
               hash_of(out.data, (size_t)T * F * sizeof(float)));
    for (int32_t i = 0; i < repeat; i++) {
        us[i] = now_us();
        subject.ops->add_norm(bench->device, out, x, branch, weight, weight, 1e-6f, T, D);
        us[i] = now_us() - us[i];
    }
    print_case(bench, "add_norm_512x640", us, repeat, 0, 0,
               hash_of(x.data, (size_t)T * D * sizeof(float)));
    free(value);
}

static void open_bench(struct bench *bench)
{
    struct device_options options = small_options();

    options.thread_count = bench->threads;
    options.slot_max = options.sample_max = 64;
    options.token_max = 2048;
    options.context_max = 16384;
    options.vocab_count = V;
    bench->device = open_device(&options);
    bench->threads = pool_thread_count(bench->device->pool);
}

int main(int argc, char **argv)
{
    struct bench bench = {.smoke = argc > 1 && strcmp(argv[1], "smoke") == 0};
    int argument = bench.smoke ? 2 : 1;

    subject = (struct subject){.ops = backend_cpu(), .is_cpu = true, .isa = cpu_isa_best()};
    bench.threads = argument < argc ? atoi(argv[argument]) : 0;
    for (int isa = 0; argument + 1 < argc && isa < CPU_ISA_COUNT; isa++) {
        if (strcmp(argv[argument + 1], cpu_isa_name((enum cpu_isa)isa)) == 0)
            subject.isa = (enum cpu_isa)isa;
    }
    for (size_t i = 0; i < sizeof(attention_case) / sizeof(*attention_case); i++) {
        open_bench(&bench);
        run_attention(&bench, &attention_case[i]);
        subject.ops->close(bench.device);
    }
    open_bench(&bench);
    for (size_t i = 0; i < sizeof(sample_case) / sizeof(*sample_case); i++) {
        run_sample(&bench, &sample_case[i], 1);
        run_sample(&bench, &sample_case[i], bench.smoke ? 2 : 16);
    }
    run_rows(&bench);
    subject.ops->close(bench.device);
    return test_check_failed > 0;
}
