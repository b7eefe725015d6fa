/* The whole chain of ops of a small random Gemma: a sequence gets the same tokens and the same
 * log-probabilities, bit for bit, alone, in a batch, in chunks, after coming back, with two steps
 * in flight, and with any number of threads. */
#include "tests/kernels/harness.h"

enum {
    D = 64,
    H = 4,
    K = 1,
    C = 32,
    F = 96,
    V = 1500,
    LAYERS = 2,
    WINDOW = 24,
    BLOCK_TOKENS = 16,
    BLOCKS_EACH = 8,
    SEQS = 5,
    PROMPT_MAX = 60,
    OUTPUTS = 20,
};

struct layer {
    struct weight qkv, o, gate_up, down;
    float *norm[6]; /* before attention, q, k, after attention, before and after feed-forward */
};

struct small_model {
    struct device *device;
    struct weight embedding;
    struct layer layer[LAYERS];
    float *final_norm, *rope, *logits;
    struct activation x, y, qkv, attended, branch, gate_up, inner, picked;
};

struct answer {
    int32_t token[OUTPUTS];
    float logprob[OUTPUTS];
};

struct want {
    int32_t prompt[PROMPT_MAX];
    int32_t prompt_count;
    struct sampling sampling;
};

static struct weight packed(struct device *device, uint64_t *seed, int32_t out, int32_t in)
{
    float *value = random_floats(seed, (int64_t)out * in, 1.0f / sqrtf((float)in));
    struct weight_source source = {FORMAT_F32, out, in, value};
    struct weight weight;

    EXPECT_INT(subject.ops->weight_pack(device, &weight, &source, 1, NULL, false), ==, 0);
    free(value);
    return weight;
}

/* Norm weights about 1. */
static float *norm_weight(struct device *device, uint64_t *seed, int32_t width)
{
    float *value = random_floats(seed, width, 0.2f);

    for (int32_t i = 0; i < width; i++)
        value[i] += 1.0f;
    float *uploaded = upload_floats(device, value, width);
    free(value);
    return uploaded;
}

static float *rope_table(struct device *device, int32_t length)
{
    float *table = malloc((size_t)length * C * sizeof(*table));

    assert(table != NULL);
    for (int32_t p = 0; p < length; p++) {
        for (int32_t i = 0; i < C / 2; i++) {
            double angle = p * pow(10000.0, -2.0 * i / C);
            table[(p * (C / 2) + i) * 2] = (float)cos(angle);
            table[(p * (C / 2) + i) * 2 + 1] = (float)sin(angle);
        }
    }
    float *uploaded = upload_floats(device, table, (int64_t)length * C);
    free(table);
    return uploaded;
}

static void open_buffers(struct small_model *m, const struct device_options *options)
{
    m->x = new_residual(m->device, options->token_max, D);
    m->y = new_activation(m->device, options->token_max, D);
    m->qkv = new_activation(m->device, options->token_max, (H + 2 * K) * C);
    m->attended = new_activation(m->device, options->token_max, H * C);
    m->branch = new_activation(m->device, options->token_max, D);
    m->gate_up = new_activation(m->device, options->token_max, 2 * F);
    m->inner = new_activation(m->device, options->token_max, F);
    m->picked = new_activation(m->device, options->sample_max, D);
    m->logits = subject.ops->alloc(m->device, (size_t)options->sample_max * V * sizeof(float));
}

static struct small_model *model_open(int32_t thread_count)
{
    static const int32_t layer_group[LAYERS] = {0};
    struct small_model *m = calloc(1, sizeof(*m));
    struct device_options options = small_options();
    struct kv_shape kv = {LAYERS, 2 * SEQS * BLOCKS_EACH, BLOCK_TOKENS, K, C, 1, layer_group};
    uint64_t seed = 2;

    assert(m != NULL);
    options.vocab_count = V;
    options.thread_count = thread_count;
    m->device = open_device(&options);
    EXPECT_INT(subject.ops->kv_open(m->device, &kv), ==, 0);
    m->embedding = packed(m->device, &seed, V, D);
    for (int32_t i = 0; i < LAYERS; i++) {
        struct layer *layer = &m->layer[i];
        layer->qkv = packed(m->device, &seed, (H + 2 * K) * C, D);
        layer->o = packed(m->device, &seed, D, H * C);
        layer->gate_up = packed(m->device, &seed, 2 * F, D);
        layer->down = packed(m->device, &seed, D, F);
        for (int32_t j = 0; j < 6; j++)
            layer->norm[j] = norm_weight(m->device, &seed, j == 1 || j == 2 ? C : D);
    }
    m->final_norm = norm_weight(m->device, &seed, D);
    m->rope = rope_table(m->device, options.context_max);
    open_buffers(m, &options);
    return m;
}

static void model_close(struct small_model *m)
{
    subject.ops->close(m->device);
    free(m);
}

static void run_layer(struct small_model *m, int32_t index, int32_t T)
{
    const struct device_ops *ops = subject.ops;
    const struct layer *layer = &m->layer[index];
    bool last = index + 1 == LAYERS;
    struct rope_store_args rope = {.layer = index,
                                   .head_count = H,
                                   .kv_head_count = K,
                                   .head_width = C,
                                   .q_norm = layer->norm[1],
                                   .k_norm = layer->norm[2],
                                   .norm_eps = 1e-6f,
                                   .rope = m->rope,
                                   .rotary = C};
    struct attention_args attention = {.layer = index,
                                       .head_count = H,
                                       .kv_head_count = K,
                                       .head_width = C,
                                       .scale = 0.5f,
                                       .window = index % 2 == 0 ? WINDOW : 0};

    ops->linear(m->device, m->qkv, m->y, &layer->qkv, T);
    ops->rope_store(m->device, m->qkv, &rope, T);
    ops->attention(m->device, m->attended, m->qkv, &attention, T);
    ops->linear(m->device, m->branch, m->attended, &layer->o, T);
    ops->add_norm(m->device, m->y, m->x, m->branch, layer->norm[3], layer->norm[4], 1e-6f, T, D);
    ops->linear(m->device, m->gate_up, m->y, &layer->gate_up, T);
    ops->act_mul(m->device, m->inner, m->gate_up, ACT_GELU_TANH, T, F);
    ops->linear(m->device, m->branch, m->inner, &layer->down, T);
    ops->add_norm(m->device, m->y, m->x, m->branch, layer->norm[5],
                  last ? m->final_norm : m->layer[index + 1].norm[0], 1e-6f, T, D);
}

static void forward(struct small_model *m, const struct step *step)
{
    const struct device_ops *ops = subject.ops;
    int32_t T = step->token_count, S = step->sample_count;

    ops->step_begin(m->device, step);
    ops->embed(m->device, m->x, &m->embedding, 8.0f, T);
    ops->norm(m->device, m->y, m->x, m->layer[0].norm[0], 1e-6f, T, D);
    for (int32_t i = 0; i < LAYERS; i++)
        run_layer(m, i, T);
    if (S == 0)
        return;
    ops->gather(m->device, m->picked, m->y, S, D);
    ops->logits(m->device, m->logits, m->picked, &m->embedding, 30.0f, S);
    ops->sample(m->device, m->logits, 0, S);
}

/* ---- a small engine: steps for whichever sequences, one step ahead of the results ---- */

struct run {
    struct small_model *model;
    const struct want *want;
    int32_t chunk_max; /* tokens of a row */
    int32_t seq_count; /* sequences that run together */
    int32_t first;     /* of want[] */
    int32_t flight;    /* steps in flight: 1 or STEP_DEPTH */
    int32_t return_at; /* a sequence with so many outputs starts anew from its history; 0: no */
    uint64_t seed;     /* of the row sizes */
    struct answer *answer;

    int32_t done[SEQS];  /* tokens computed */
    int32_t drawn[SEQS]; /* tokens drawn, asked for at least */
    bool started[SEQS], returned[SEQS];

    struct made {
        struct step step;
        struct step_start start[SEQS];
        int32_t history[SEQS * (PROMPT_MAX + OUTPUTS)];
        struct step_change change[SEQS * BLOCKS_EACH];
        struct step_row row[SEQS];
        int32_t token[256];
        struct step_sample sample[SEQS];
        int32_t seq[SEQS];
        struct step_result result;
        int32_t result_token[16], rank[16], top_token[16 * SAMPLING_TOP_MAX];
        float logprob[16], top_logprob[16 * SAMPLING_TOP_MAX];
    } made[STEP_DEPTH];
    int32_t begun, waited;
};

/* The i-th token of a sequence, prompt and output. */
static int32_t token_at(const struct run *run, int32_t s, int32_t i)
{
    const struct want *want = &run->want[run->first + s];
    return i < want->prompt_count ? want->prompt[i]
                                  : run->answer[run->first + s].token[i - want->prompt_count];
}

static void start_seq(struct run *run, struct made *made, int32_t s, int32_t token_count)
{
    struct step_start *start = &made->start[made->step.start_count++];

    *start = (struct step_start){
        .slot = s,
        .prompt_count = run->want[run->first + s].prompt_count,
        .token_first = made->step.history_count,
        .token_count = token_count,
        .sampling = run->want[run->first + s].sampling,
    };
    for (int32_t i = 0; i < token_count; i++)
        made->history[made->step.history_count++] = token_at(run, s, i);
    for (int32_t i = 0; i < BLOCKS_EACH; i++)
        made->change[made->step.change_count++] = (struct step_change){
            s, 0, i, (run->returned[s] ? 2 * SEQS - 1 - s : s) * BLOCKS_EACH + i};
    run->done[s] = 0;
    run->started[s] = true;
}

static void add_row(struct run *run, struct made *made, int32_t s)
{
    int32_t prompt = run->want[run->first + s].prompt_count;
    int32_t known = prompt + run->drawn[s], left = known - run->done[s];
    int32_t most = left < run->chunk_max ? left : run->chunk_max;
    int32_t count = run->seed != 0 ? 1 + random_below(&run->seed, most) : most;
    struct step_row *row = &made->row[made->step.row_count++];
    int32_t final = run->done[s] + count;

    *row = (struct step_row){s, run->done[s], made->step.token_count, count, false};
    row->token_on_device = run->flight > 1 && run->drawn[s] > 0 && left == 1;
    for (int32_t i = 0; i < count; i++)
        made->token[made->step.token_count++] =
            row->token_on_device ? 0 : token_at(run, s, run->done[s] + i);
    run->done[s] = final;
    if (final < known)
        return;
    made->seq[made->step.sample_count] = s;
    made->sample[made->step.sample_count++] = (struct step_sample){
        .slot = s, .index = made->step.token_count - 1, .output_index = run->drawn[s]};
    run->drawn[s]++;
}

static void wait_step(struct run *run)
{
    struct made *made = &run->made[run->waited++ % STEP_DEPTH];

    EXPECT_INT(subject.ops->sync(run->model->device), ==, 0);
    for (int32_t i = 0; i < made->step.sample_count; i++) {
        struct answer *answer = &run->answer[run->first + made->seq[i]];
        answer->token[made->sample[i].output_index] = made->result.token[i];
        answer->logprob[made->sample[i].output_index] = made->result.logprob[i];
    }
}

static bool make_step(struct run *run)
{
    struct made *made = &run->made[run->begun % STEP_DEPTH];

    *made = (struct made){0};
    made->step = (struct step){.start = made->start,
                               .history = made->history,
                               .change = made->change,
                               .row = made->row,
                               .token = made->token,
                               .sample = made->sample};
    made->result = (struct step_result){made->result_token, made->logprob, made->rank,
                                        made->top_token, made->top_logprob};
    for (int32_t s = 0; s < run->seq_count; s++) {
        bool again = run->drawn[s] == run->return_at && !run->returned[s] && run->return_at > 0;
        if (run->drawn[s] == OUTPUTS)
            continue;
        if (again) { /* only once its tokens are known */
            while (run->waited < run->begun)
                wait_step(run);
            run->returned[s] = true;
        }
        if (again || !run->started[s])
            start_seq(run, made, s, run->want[run->first + s].prompt_count + run->drawn[s]);
        if (run->seed == 0 || made->step.row_count == 0 || random_below(&run->seed, 4) != 0)
            add_row(run, made, s);
    }
    return made->step.row_count > 0;
}

/* Runs want[first, first + seq_count) to their ends; answers go to answer[first on]. */
static void run_all(struct run *run)
{
    while (make_step(run)) {
        struct made *made = &run->made[run->begun++ % STEP_DEPTH];
        forward(run->model, &made->step);
        subject.ops->step_end(run->model->device, &made->result);
        while (run->begun - run->waited >= run->flight)
            wait_step(run);
    }
    while (run->waited < run->begun)
        wait_step(run);
}

static void make_wants(struct want *want)
{
    uint64_t seed = 4;

    for (int32_t s = 0; s < SEQS; s++) {
        want[s] = (struct want){.prompt_count = s == 0 ? 1 : 10 + random_below(&seed, 50)};
        for (int32_t i = 0; i < want[s].prompt_count; i++)
            want[s].prompt[i] = random_below(&seed, V);
        want[s].sampling = (struct sampling){
            .temperature = s % 2 == 0 ? 0.0f : 1.2f,
            .top_p = s == 3 ? 0.9f : 1.0f,
            .repetition_penalty = s == 4 ? 1.2f : 1.0f,
            .seed = 1000 + (uint64_t)s,
        };
    }
}

static void answers_equal(const struct answer *a, const struct answer *b, const char *how)
{
    for (int32_t s = 0; s < SEQS; s++) {
        if (memcmp(&a[s], &b[s], sizeof(*a)) != 0) {
            printf("%s: sequence %d, %s\n", subject.name, s, how);
            EXPECT(!"the bits are those of the sequence alone");
        }
    }
}

static void answers_alone(struct want *want, struct answer *answer)
{
    make_wants(want);
    for (int32_t s = 0; s < SEQS; s++) {
        struct small_model *m = model_open(1);
        struct run run = {.model = m,
                          .want = want,
                          .chunk_max = 256,
                          .seq_count = 1,
                          .first = s,
                          .flight = 1,
                          .answer = answer};
        run_all(&run);
        model_close(m);
    }
}

static void the_chain_gives_a_sequence_the_same_bits_in_any_company(void)
{
    static const struct {
        const char *how;
        int32_t threads, chunk_max, flight, return_at;
        uint64_t seed;
    } way[] = {
        {"in a batch", 1, 256, 1, 0, 0},
        {"with two threads", 2, 256, 1, 0, 0},
        {"with three threads, in chunks of 7", 3, 7, 1, 0, 0},
        {"token by token", 2, 1, 1, 0, 0},
        {"two steps in flight", 2, 256, STEP_DEPTH, 0, 0},
        {"two steps in flight, chunks of 7", 1, 7, STEP_DEPTH, 0, 0},
        {"in random steps", 2, 33, STEP_DEPTH, 0, 77},
        {"coming back after 5", 2, 256, 1, 5, 0},
        {"coming back after 9, in random steps", 2, 20, STEP_DEPTH, 9, 78},
    };
    struct want want[SEQS];
    struct answer alone[SEQS] = {0};

    answers_alone(want, alone);
    for (size_t i = 0; i < sizeof(way) / sizeof(*way); i++) {
        struct answer answer[SEQS] = {0};
        struct small_model *m = model_open(way[i].threads);
        struct run run = {.model = m,
                          .want = want,
                          .chunk_max = way[i].chunk_max,
                          .seq_count = SEQS,
                          .flight = way[i].flight,
                          .return_at = way[i].return_at,
                          .seed = way[i].seed,
                          .answer = answer};
        run_all(&run);
        answers_equal(alone, answer, way[i].how);
        model_close(m);
    }
}

static void answers_differ_between_sequences(void)
{
    struct want want[SEQS];
    struct answer alone[SEQS] = {0};

    answers_alone(want, alone);
    for (int32_t s = 0; s < SEQS; s++) {
        EXPECT(alone[s].logprob[OUTPUTS - 1] < 0.0f);
        for (int32_t other = 0; other < s; other++)
            EXPECT(memcmp(alone[s].token, alone[other].token, sizeof(alone[s].token)) != 0);
    }
}

static void tests(void)
{
    TEST(answers_differ_between_sequences);
    TEST(the_chain_gives_a_sequence_the_same_bits_in_any_company);
}

int main(int argc, char **argv)
{
    return run_subjects(argc, argv, tests);
}
