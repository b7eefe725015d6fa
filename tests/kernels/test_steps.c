/* Steps on every backend of the build: a small random transformer written in ops, run alone, in
 * batches, in chunks, with two steps in flight, captured in a graph, after copies of blocks. All
 * of these must give the same bits. Backends without a device here are skipped.
 *
 * With `--backend NAME` only that backend is run, and it must be there.
 */
#include "kernels/backend.h"
#include "tests/test.h"

#include <errno.h>
#include <math.h>

enum {
    D = 256,
    F = 512,
    H = 4,
    K = 2,
    C = 32,
    V = 512,
    LAYERS = 3,
    GROUPS = 2,
    WINDOW = 24,
    BLOCK_TOKENS = 8,
    CONTEXT = 128,
    TABLE = CONTEXT / BLOCK_TOKENS,
    SLOTS = 6,
    TOKENS = 64,
    SAMPLES = 8,
    QKV = (H + 2 * K) * C,
    PROMPT = 45,
    OUTPUT = 12,
    CHANGES = 2 * SLOTS * GROUPS * TABLE,
    CROWD = 3, /* tokens a step of the sequence that is in the way */
};

static const struct device_ops *ops; /* the backend under test */

static bool same_bits(const void *left, const void *right, size_t bytes)
{
    return memcmp(left, right, bytes) == 0;
}

/* ---- random weights ---- */

static uint64_t random_state;

static uint32_t random_bits(void)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(random_state >> 33);
}

static float random_float(float scale)
{
    return ((float)(random_bits() & 0xffffff) / 8388608.0f - 1.0f) * scale;
}

/* Where a block's halves d and m lie and what makes its values small: f16 bits. */
struct recipe {
    int32_t scale_at, minimum_at; /* -1: none */
    uint16_t scale, minimum;
};

static const struct recipe recipe[FORMAT_COUNT] = {
    [FORMAT_Q4_0] = {0, -1, 0x2000, 0},     [FORMAT_Q4_1] = {0, 2, 0x2000, 0xac00},
    [FORMAT_Q5_0] = {0, -1, 0x1c00, 0},     [FORMAT_Q5_1] = {0, 2, 0x1c00, 0xac00},
    [FORMAT_Q8_0] = {0, -1, 0x1000, 0},     [FORMAT_Q2_K] = {80, 82, 0x2000, 0x2400},
    [FORMAT_Q3_K] = {108, -1, 0x1400, 0},   [FORMAT_Q4_K] = {0, 2, 0x0c00, 0x1780},
    [FORMAT_Q5_K] = {0, 2, 0x0800, 0x17c0}, [FORMAT_Q6_K] = {208, -1, 0x0400, 0},
    [FORMAT_IQ4_NL] = {0, -1, 0x1000, 0},   [FORMAT_IQ4_XS] = {0, -1, 0x0300, 0},
    [FORMAT_MXFP4] = {-1, -1, 0, 0},
};

static void put_half(uint8_t *at, uint16_t bits)
{
    at[0] = (uint8_t)bits;
    at[1] = (uint8_t)(bits >> 8);
}

static void random_block(enum format format, uint8_t *block)
{
    const struct recipe *r = &recipe[format];
    int32_t bytes = format_info(format)->block_bytes;

    if (format == FORMAT_F32) {
        float value = random_float(0.1f);
        memcpy(block, &value, sizeof(value));
        return;
    }
    for (int32_t i = 0; i < bytes; i++)
        block[i] = (uint8_t)random_bits();
    if (format == FORMAT_F16) /* exponents from 2^-7 to 2^-4 */
        put_half(block, (uint16_t)((random_bits() & 0x83ff) | (8 + random_bits() % 4) << 10));
    else if (format == FORMAT_BF16)
        put_half(block, (uint16_t)((random_bits() & 0x807f) | (120 + random_bits() % 4) << 7));
    else if (format == FORMAT_MXFP4)
        block[0] = (uint8_t)(120 + random_bits() % 3);
    if (r->scale != 0)
        put_half(block + r->scale_at, (uint16_t)(r->scale + random_bits() % 512));
    if (r->minimum != 0)
        put_half(block + r->minimum_at, r->minimum);
}

static uint8_t *random_tensor(enum format format, int32_t out, int32_t in)
{
    int64_t blocks = (int64_t)out * in / format_info(format)->block_values;
    size_t block_bytes = (size_t)format_info(format)->block_bytes;
    uint8_t *data = malloc((size_t)blocks * block_bytes);

    for (int64_t i = 0; i < blocks; i++)
        random_block(format, data + (size_t)i * block_bytes);
    return data;
}

/* ---- the model ---- */

struct layer {
    struct weight qkv, output, gate_up, down;
    float *norm, *post_norm, *ffn_norm, *post_ffn_norm, *q_norm, *k_norm;
};

struct world {
    struct device *device;
    struct weight table;
    struct layer layer[LAYERS];
    float *final_norm, *rope, *logits;
    struct activation x, y, qkv, mixed, branch, gate_up, hidden, gathered;
};

/* Parts are the outputs of `out` in equal shares. */
static void pack(struct world *w, struct weight *weight, int32_t out, int32_t in, bool biased,
                 int32_t part_count, const enum format *format)
{
    struct weight_source source[WEIGHT_PART_MAX];
    void *data[WEIGHT_PART_MAX];
    float bias[2 * F];

    for (int32_t i = 0; i < part_count; i++) {
        data[i] = random_tensor(format[i], out / part_count, in);
        source[i] = (struct weight_source){format[i], out / part_count, in, data[i]};
    }
    for (int32_t i = 0; biased && i < out; i++)
        bias[i] = random_float(0.1f);
    EXPECT_INT(ops->weight_pack(w->device, weight, source, part_count, biased ? bias : NULL, false),
               ==, 0);
    for (int32_t i = 0; i < part_count; i++)
        free(data[i]);
}

static float *vector(struct world *w, int32_t width, float least)
{
    float *target = ops->alloc(w->device, (size_t)width * sizeof(float));
    float source[D];

    for (int32_t i = 0; i < width; i++)
        source[i] = least + fabsf(random_float(1.0f));
    ops->upload(w->device, target, source, (size_t)width * sizeof(float));
    return target;
}

static struct activation activation(struct world *w, int32_t rows, int32_t width)
{
    size_t bytes = (size_t)rows * (size_t)width * ops->activation_bytes;
    return (struct activation){.data = ops->alloc(w->device, bytes), .stride = width};
}

static struct activation residual(struct world *w, int32_t rows, int32_t width)
{
    size_t bytes = (size_t)rows * (size_t)width * ops->residual_bytes;
    return (struct activation){
        .data = ops->alloc(w->device, bytes), .stride = width, .residual = true};
}

static void load_layer(struct world *w, struct layer *layer)
{
    const enum format qkv[] = {FORMAT_Q4_K, FORMAT_Q6_K, FORMAT_Q5_0, FORMAT_F16};
    const enum format output[] = {FORMAT_Q4_0, FORMAT_MXFP4};
    const enum format gate_up[] = {FORMAT_Q5_K, FORMAT_Q8_0};
    const enum format down[] = {FORMAT_BF16, FORMAT_IQ4_XS};

    pack(w, &layer->qkv, QKV, D, true, 4, qkv);
    pack(w, &layer->output, D, H * C, false, 2, output);
    pack(w, &layer->gate_up, 2 * F, D, false, 2, gate_up);
    pack(w, &layer->down, D, F, true, 2, down);
    layer->norm = vector(w, D, 0.5f);
    layer->post_norm = vector(w, D, 0.5f);
    layer->ffn_norm = vector(w, D, 0.5f);
    layer->post_ffn_norm = vector(w, D, 0.5f);
    layer->q_norm = vector(w, C, 0.5f);
    layer->k_norm = vector(w, C, 0.5f);
}

static float *rope_table(struct world *w)
{
    float source[CONTEXT][C / 2][2];
    float *target = ops->alloc(w->device, sizeof(source));

    for (int32_t p = 0; p < CONTEXT; p++) {
        for (int32_t i = 0; i < C / 2; i++) {
            double angle = p * pow(10000.0, -2.0 * i / C);
            source[p][i][0] = (float)cos(angle);
            source[p][i][1] = (float)sin(angle);
        }
    }
    ops->upload(w->device, target, source, sizeof(source));
    return target;
}

static struct device_options options = {
    .thread_count = 2,
    .slot_max = SLOTS,
    .token_max = TOKENS,
    .sample_max = SAMPLES,
    .vocab_count = V,
    .context_max = CONTEXT,
    .history_max = SLOTS * CONTEXT,
    .change_max = CHANGES,
    .move_max = CHANGES,
};

/* Layers 0 and 2 see a window and are group 0; layer 1 sees all and is group 1. */
static const int32_t layer_group[LAYERS] = {0, 1, 0};

static bool world_open(struct world *w)
{
    const struct kv_shape shape = {LAYERS,     SLOTS * GROUPS * TABLE, BLOCK_TOKENS, K, C, GROUPS,
                                   layer_group};
    const enum format table[] = {FORMAT_Q8_0};
    char error[256];

    *w = (struct world){0};
    random_state = 7;
    int status = ops->open(&w->device, &options, error, sizeof(error));
    EXPECT_INT(status, ==, 0);
    if (status != 0)
        return false;
    EXPECT_INT(ops->kv_open(w->device, &shape), ==, 0);
    pack(w, &w->table, V, D, false, 1, table);
    for (int32_t i = 0; i < LAYERS; i++)
        load_layer(w, &w->layer[i]);
    w->final_norm = vector(w, D, 0.5f);
    w->rope = rope_table(w);
    w->logits = ops->alloc(w->device, (size_t)SAMPLES * V * sizeof(float));
    w->x = residual(w, TOKENS, D);
    w->y = activation(w, TOKENS, D);
    w->qkv = activation(w, TOKENS, QKV);
    w->mixed = activation(w, TOKENS, H * C);
    w->branch = activation(w, TOKENS, D);
    w->gate_up = activation(w, TOKENS, 2 * F);
    w->hidden = activation(w, TOKENS, F);
    w->gathered = activation(w, SAMPLES, D);
    return true;
}

static void layer_forward(struct world *w, int32_t index, int32_t T)
{
    const struct layer *layer = &w->layer[index];
    const float *next = index + 1 < LAYERS ? w->layer[index + 1].norm : w->final_norm;
    const struct rope_store_args rope = {index,         H,     K,       C, layer->q_norm,
                                         layer->k_norm, 1e-6f, w->rope, C, ROPE_HALVES};
    const struct attention_args attend = {
        index, H, K, C, 0.25f, 30.0f, layer_group[index] == 0 ? WINDOW : 0, NULL};

    ops->linear(w->device, w->qkv, w->y, &layer->qkv, T);
    ops->rope_store(w->device, w->qkv, &rope, T);
    ops->attention(w->device, w->mixed, w->qkv, &attend, T);
    ops->linear(w->device, w->branch, w->mixed, &layer->output, T);
    ops->add_norm(w->device, w->y, w->x, w->branch, layer->post_norm, layer->ffn_norm, 1e-6f, T, D);
    ops->linear(w->device, w->gate_up, w->y, &layer->gate_up, T);
    ops->act_mul(w->device, w->hidden, w->gate_up, ACT_GELU_TANH, T, F);
    ops->linear(w->device, w->branch, w->hidden, &layer->down, T);
    ops->add_norm(w->device, w->y, w->x, w->branch, index == 1 ? NULL : layer->post_ffn_norm, next,
                  1e-6f, T, D);
}

static void forward(struct world *w, int32_t T, int32_t S)
{
    ops->embed(w->device, w->x, &w->table, 2.0f, T);
    ops->norm(w->device, w->y, w->x, w->layer[0].norm, 1e-6f, T, D);
    for (int32_t i = 0; i < LAYERS; i++)
        layer_forward(w, i, T);
    ops->gather(w->device, w->gathered, w->y, S, D);
    ops->logits(w->device, w->logits, w->gathered, &w->table, 20.0f, S);
    ops->sample(w->device, w->logits, 0, S);
}

/* ---- a step as plain data ---- */

struct trip {
    struct step step;
    struct step_result result;
    struct step_start start[SLOTS];
    int32_t history[SLOTS * CONTEXT];
    struct step_change change[CHANGES];
    struct step_move move[CHANGES];
    struct step_row row[SLOTS];
    int32_t token[TOKENS];
    struct step_sample sample[SAMPLES];
    int32_t drawn[SAMPLES], rank[SAMPLES], top_token[SAMPLES * SAMPLING_TOP_MAX];
    float logprob[SAMPLES], top_logprob[SAMPLES * SAMPLING_TOP_MAX];
};

static struct trip trips[STEP_DEPTH];

static struct trip *trip_clear(struct trip *trip)
{
    trip->step = (struct step){
        .start = trip->start,
        .history = trip->history,
        .history_max = SLOTS * CONTEXT,
        .change = trip->change,
        .change_max = CHANGES,
        .move = trip->move,
        .move_max = CHANGES,
        .row = trip->row,
        .token = trip->token,
        .sample = trip->sample,
    };
    trip->result = (struct step_result){trip->drawn, trip->logprob, trip->rank, trip->top_token,
                                        trip->top_logprob};
    return trip;
}

static int32_t block_of(int32_t slot, int32_t group, int32_t index)
{
    return ((SLOTS - 1 - slot) * GROUPS + group) * TABLE + index;
}

/* The slot starts with these tokens; its tables get blocks for all of the context. */
static void trip_start(struct trip *trip, int32_t slot, const int32_t *token, int32_t token_count,
                       const struct sampling *sampling)
{
    struct step *step = &trip->step;

    step->start[step->start_count++] =
        (struct step_start){slot, token_count, step->history_count, token_count, *sampling};
    memcpy(step->history + step->history_count, token, (size_t)token_count * sizeof(*token));
    step->history_count += token_count;
    for (int32_t group = 0; group < GROUPS; group++) {
        for (int32_t i = 0; i < TABLE; i++) {
            step->change[step->change_count++] =
                (struct step_change){slot, group, i, block_of(slot, group, i)};
        }
    }
}

/* `token` is NULL for the slot's last draw. */
static void trip_row(struct trip *trip, int32_t slot, int32_t position, const int32_t *token,
                     int32_t token_count)
{
    struct step *step = &trip->step;

    step->row[step->row_count++] =
        (struct step_row){slot, position, step->token_count, token_count, token == NULL};
    for (int32_t i = 0; i < token_count; i++)
        step->token[step->token_count++] = token == NULL ? 0 : token[i];
}

static void trip_sample(struct trip *trip, enum step_sample_kind kind, int32_t slot,
                        int32_t output_index, int32_t token)
{
    struct step *step = &trip->step;

    step->sample[step->sample_count++] =
        (struct step_sample){kind, slot, step->token_count - 1, output_index, token, 3};
}

/* ---- sequences ---- */

struct manner {
    int32_t slot;
    int32_t chunk;   /* prompt tokens a step */
    int32_t depth;   /* steps in flight */
    bool crowded;    /* another sequence's rows go first in every step */
    bool captured;   /* steps are padded and run as a graph */
    bool crowd_late; /* the neighbour's rows come last */
};

struct output {
    int32_t token[OUTPUT], top_token[OUTPUT][3];
    float logprob[OUTPUT], top_logprob[OUTPUT][3];
};

static const struct sampling sampling = {
    .temperature = 0.8f,
    .top_p = 0.95f,
    .top_k = 60,
    .frequency_penalty = 0.3f,
    .repetition_penalty = 1.1f,
    .seed = 0x123456789abcdefu,
    .bias_count = 2,
    .bias_token = {5, 6},
    .bias_value = {-2.0f, 2.0f},
};

static int32_t prompt_token(int32_t slot, int32_t position)
{
    return (position * 131 + slot * 17 + 3) % V;
}

/* Rows and samples of the sequence that is in the way, until its context is full. */
static void crowd(struct trip *trip, int32_t number)
{
    int32_t token[CROWD], position = CROWD * number;

    if (position + CROWD > CONTEXT)
        return;
    for (int32_t i = 0; i < CROWD; i++)
        token[i] = prompt_token(5, position + i);
    if (number == 0)
        trip_start(trip, 5, token, CROWD, &sampling);
    trip_row(trip, 5, position, token, CROWD);
    trip_sample(trip, STEP_SCORE, 5, 0, 9);
}

static void run(struct world *w, struct trip *trip, bool captured)
{
    const int64_t key = TOKENS;

    ops->step_begin(w->device, &trip->step);
    if (!captured) {
        forward(w, trip->step.token_count, trip->step.sample_count);
    } else if (!ops->graph_launch(w->device, key)) {
        EXPECT(ops->graph_begin(w->device, key));
        forward(w, TOKENS, SAMPLES);
        EXPECT(ops->graph_end(w->device, key));
        EXPECT(ops->graph_launch(w->device, key));
    }
    ops->step_end(w->device, &trip->result);
}

/* Waits for the oldest step; its draw for `slot`, if any, is the sequence's next. */
static void take(struct world *w, const struct trip *trip, int32_t slot, struct output *output)
{
    int status = ops->sync(w->device);
    EXPECT_INT(status, ==, 0);
    if (status != 0) {
        printf("%s\n", ops->fault(w->device));
        return;
    }
    for (int32_t s = 0; s < trip->step.sample_count; s++) {
        const struct step_sample *sample = &trip->step.sample[s];
        if (sample->slot != slot || sample->kind != STEP_DRAW)
            continue;
        int32_t index = sample->output_index;
        output->token[index] = trip->drawn[s];
        output->logprob[index] = trip->logprob[s];
        int64_t top = (int64_t)s * SAMPLING_TOP_MAX;
        memcpy(output->top_token[index], trip->top_token + top, sizeof(output->top_token[index]));
        memcpy(output->top_logprob[index], trip->top_logprob + top,
               sizeof(output->top_logprob[index]));
    }
}

/* Rows and sample of the sequence in its step number `number`; the position it then has. */
static int32_t sequence_row(struct trip *trip, const struct manner *manner, int32_t position)
{
    int32_t token[PROMPT], count = 1;

    for (int32_t i = 0; i < PROMPT; i++)
        token[i] = prompt_token(0, i);
    if (position == 0)
        trip_start(trip, manner->slot, token, PROMPT, &sampling);
    if (position < PROMPT) {
        count = PROMPT - position < manner->chunk ? PROMPT - position : manner->chunk;
        trip_row(trip, manner->slot, position, token + position, count);
    } else {
        trip_row(trip, manner->slot, position, NULL, 1);
    }
    position += count;
    if (position >= PROMPT)
        trip_sample(trip, STEP_DRAW, manner->slot, position - PROMPT, 0);
    return position;
}

/* The same prompt and its continuation, in some manner. */
static void generate(struct world *w, const struct manner *manner, struct output *output)
{
    int32_t position = 0, begun = 0, taken = 0;

    *output = (struct output){0};
    while (position < PROMPT + OUTPUT - 1) {
        struct trip *trip = trip_clear(&trips[begun % STEP_DEPTH]);
        if (manner->crowded && !manner->crowd_late)
            crowd(trip, begun);
        position = sequence_row(trip, manner, position);
        if (manner->crowded && manner->crowd_late)
            crowd(trip, begun);
        run(w, trip, manner->captured);
        begun++;
        if (begun - taken == manner->depth)
            take(w, &trips[taken++ % STEP_DEPTH], manner->slot, output);
    }
    while (taken < begun)
        take(w, &trips[taken++ % STEP_DEPTH], manner->slot, output);
}

static void expect_same(const struct output *left, const struct output *right)
{
    for (int32_t i = 0; i < OUTPUT; i++) {
        EXPECT_INT(left->token[i], ==, right->token[i]);
        EXPECT(left->logprob[i] < 0.0f);
        EXPECT(isfinite(left->logprob[i]));
    }
    EXPECT(same_bits(left, right, sizeof(*left)));
}

static const struct manner alone = {.slot = 0, .chunk = PROMPT, .depth = 1};

static void expect_as_alone(const struct manner *manner)
{
    struct world w;
    struct output expected, output;

    if (!world_open(&w))
        return;
    generate(&w, &alone, &expected);
    generate(&w, manner, &output);
    expect_same(&expected, &output);
    ops->close(w.device);
}

/* ---- tests ---- */

static void a_sequence_repeats_itself(void)
{
    expect_as_alone(&alone);
}

static void neighbours_change_nothing(void)
{
    expect_as_alone(&(struct manner){.slot = 2, .chunk = PROMPT, .depth = 1, .crowded = true});
    expect_as_alone(&(struct manner){
        .slot = 2, .chunk = PROMPT, .depth = 1, .crowded = true, .crowd_late = true});
}

static void chunks_of_a_prompt_change_nothing(void)
{
    expect_as_alone(&(struct manner){.slot = 3, .chunk = 7, .depth = 1});
    expect_as_alone(&(struct manner){.slot = 3, .chunk = 1, .depth = 1, .crowded = true});
}

static void two_steps_in_flight_change_nothing(void)
{
    expect_as_alone(&(struct manner){.slot = 1, .chunk = 7, .depth = 2});
    expect_as_alone(&(struct manner){.slot = 1, .chunk = 16, .depth = 2, .crowded = true});
}

static void a_captured_padded_step_changes_nothing(void)
{
    if (ops->graph_begin == NULL)
        SKIP("this backend has no graphs");
    expect_as_alone(&(struct manner){.slot = 4, .chunk = 20, .depth = 1, .captured = true});
    expect_as_alone(
        &(struct manner){.slot = 4, .chunk = 20, .depth = 2, .captured = true, .crowded = true});
}

static void a_step_may_be_captured_before_anything_ran(void)
{
    const struct manner manner = {.slot = 0, .chunk = 20, .depth = 2, .captured = true};
    struct world w;
    struct output expected, output;

    if (ops->graph_begin == NULL)
        SKIP("this backend has no graphs");
    if (!world_open(&w))
        return;
    EXPECT(!ops->graph_launch(w.device, TOKENS));
    generate(&w, &manner, &output);
    generate(&w, &alone, &expected);
    expect_same(&expected, &output);
    ops->close(w.device);
}

/* The prompt's blocks are copied to another slot, which goes on from there. */
static void a_copy_of_the_blocks_is_a_copy_of_the_sequence(void)
{
    struct world w;
    struct output expected, output = {0};
    int32_t token[PROMPT];

    if (!world_open(&w))
        return;
    generate(&w, &alone, &expected);
    for (int32_t i = 0; i < PROMPT; i++)
        token[i] = prompt_token(0, i);
    struct trip *trip = trip_clear(&trips[0]);
    trip_start(trip, 3, token, PROMPT, &sampling);
    for (int32_t group = 0; group < GROUPS; group++)
        for (int32_t i = 0; i <= (PROMPT - 1) / BLOCK_TOKENS; i++)
            trip->move[trip->step.move_count++] =
                (struct step_move){STEP_COPY, block_of(0, group, i), block_of(3, group, i)};
    trip_row(trip, 3, PROMPT - 1, token + PROMPT - 1, 1);
    trip_sample(trip, STEP_DRAW, 3, 0, 0);
    run(&w, trip, false);
    take(&w, trip, 3, &output);
    for (int32_t i = 1; i < OUTPUT; i++) {
        trip = trip_clear(&trips[0]);
        trip_row(trip, 3, PROMPT - 1 + i, NULL, 1);
        trip_sample(trip, STEP_DRAW, 3, i, 0);
        run(&w, trip, false);
        take(&w, trip, 3, &output);
    }
    expect_same(&expected, &output);
    ops->close(w.device);
}

static void expect_row_bits(struct world *w, enum format format)
{
    float expected[2 * D], got[2 * D];
    const int32_t token[] = {2, 37};
    uint8_t *data = random_tensor(format, 48, D);
    struct weight_source source = {format, 48, D, data};
    struct trip *trip = trip_clear(&trips[0]);
    struct weight table;

    EXPECT_INT(ops->weight_pack(w->device, &table, &source, 1, NULL, false), ==, 0);
    trip_row(trip, 0, 0, token, 2);
    ops->step_begin(w->device, &trip->step);
    ops->embed(w->device, w->x, &table, 1.0f, 2);
    ops->get(w->device, got, w->x, 2, D);
    ops->step_end(w->device, &trip->result);
    EXPECT_INT(ops->sync(w->device), ==, 0);
    for (int32_t i = 0; i < 2; i++)
        format_dequantise(format, data + (size_t)token[i] * format_row_bytes(format, D),
                          D / format_info(format)->block_values, expected + (ptrdiff_t)i * D);
    if (!same_bits(expected, got, sizeof(got)))
        printf("%s differs\n", format_info(format)->name);
    EXPECT(same_bits(expected, got, sizeof(got)));
    free(data);
}

static void a_row_of_the_table_has_the_bits_of_its_format(void)
{
    struct world w;

    if (!world_open(&w))
        return;
    for (int32_t format = 0; format < FORMAT_COUNT; format++)
        expect_row_bits(&w, (enum format)format);
    ops->close(w.device);
}

static void memory_is_read_at_some_rate_and_given_back(void)
{
    struct device *device;
    char error[256];

    EXPECT_INT(ops->open(&device, &options, error, sizeof(error)), ==, 0);
    for (int i = 0; i < 2; i++) {
        double rate = ops->read_rate(device);
        EXPECT(rate == 0 || (rate > 1e8 && rate < 1e14)); /* 0: memory is short here */
    }
    EXPECT(ops->fault == NULL || ops->fault(device) == NULL);
    ops->close(device);
}

static void no_such_device_is_refused_in_a_line(void)
{
    struct device_options far = options;
    struct device *device = NULL;
    char error[256] = "";

    if (ops == backend_cpu())
        SKIP("there is always a CPU");
    far.index = 99;
    EXPECT_INT(ops->open(&device, &far, error, sizeof(error)), ==, -ENODEV);
    EXPECT(device == NULL);
    EXPECT(strlen(error) > 10);
    EXPECT(strchr(error, '\n') == NULL);
}

/* More heads than a launch can have: the one fault that harms nothing else. */
static void a_fault_sticks_to_its_device(void)
{
    const struct attention_args args = {
        .head_count = 1 << 20, .kv_head_count = 1 << 20, .head_width = C};
    struct world w;

    if (ops == backend_cpu())
        SKIP("a CPU has no faults of its own");
    if (!world_open(&w))
        return;
    EXPECT(ops->fault(w.device) == NULL);
    for (int32_t i = 0; i < 3; i++) {
        struct trip *trip = trip_clear(&trips[0]);
        ops->step_begin(w.device, &trip->step);
        if (i == 0)
            ops->attention(w.device, w.mixed, w.qkv, &args, 1);
        ops->step_end(w.device, &trip->result);
        EXPECT_INT(ops->sync(w.device), ==, -EIO);
        EXPECT(ops->fault(w.device) != NULL);
    }
    ops->close(w.device);
    EXPECT(world_open(&w)); /* and not to the next */
    ops->close(w.device);
}

/* Log-probabilities of a prompt's tokens under both backends. */
static void score_prompt(float *logprob)
{
    struct world w;
    int32_t token[PROMPT];

    if (!world_open(&w))
        return;
    for (int32_t i = 0; i < PROMPT; i++)
        token[i] = prompt_token(0, i);
    for (int32_t first = 0; first < PROMPT; first += SAMPLES) {
        int32_t count = PROMPT - first < SAMPLES ? PROMPT - first : SAMPLES;
        struct trip *trip = trip_clear(&trips[0]);
        if (first == 0)
            trip_start(trip, 0, token, PROMPT, &sampling);
        trip_row(trip, 0, first, token + first, count);
        for (int32_t i = 0; i < count; i++) {
            trip_sample(trip, STEP_SCORE, 0, 0, (token[first + i] + 1) % V);
            trip->sample[i].index = i;
        }
        run(&w, trip, false);
        EXPECT_INT(ops->sync(w.device), ==, 0);
        memcpy(logprob + first, trip->logprob, (size_t)count * sizeof(*logprob));
    }
    ops->close(w.device);
}

static void the_backend_agrees_with_the_cpu(void)
{
    const struct device_ops *other = ops;
    float expected[PROMPT] = {0}, logprob[PROMPT] = {0};
    double sum = 0.0, most = 0.0;

    if (ops == backend_cpu())
        SKIP("it is the CPU");
    score_prompt(logprob);
    ops = backend_cpu();
    score_prompt(expected);
    ops = other;
    for (int32_t i = 0; i < PROMPT; i++) {
        double difference = fabs((double)logprob[i] - (double)expected[i]);
        EXPECT(isfinite(logprob[i]));
        sum += difference;
        most = fmax(most, difference);
    }
    printf("mean and greatest difference of log-probabilities: %.2g %.2g\n", sum / PROMPT, most);
    /* Activations of 16 bits are rounded eight times as coarsely as the cache's halves. */
    double unit = ops->activation_bytes == sizeof(float) ? 1.0 : 8.0;
    EXPECT(sum / PROMPT < 2e-3 * unit);
    EXPECT(most < 1e-2 * unit);
}

static void run_backend(const struct device_ops *backend, bool required, bool portable)
{
    struct device *device = NULL;
    char error[256];

    ops = backend;
    options.portable = portable;
    int status = ops->open(&device, &options, error, sizeof(error));
    if (status != 0) {
        printf("%s %s: %s\n", required ? "FAILED" : "skipped", ops->name, error);
        test_failed += required;
        test_skipped += !required;
        return;
    }
    printf("%s: %s\n", ops->name, ops->describe(device));
    ops->close(device);
    TEST(a_step_may_be_captured_before_anything_ran);
    TEST(a_sequence_repeats_itself);
    TEST(neighbours_change_nothing);
    TEST(chunks_of_a_prompt_change_nothing);
    TEST(two_steps_in_flight_change_nothing);
    TEST(a_captured_padded_step_changes_nothing);
    TEST(a_copy_of_the_blocks_is_a_copy_of_the_sequence);
    TEST(a_row_of_the_table_has_the_bits_of_its_format);
    TEST(memory_is_read_at_some_rate_and_given_back);
    TEST(no_such_device_is_refused_in_a_line);
    TEST(the_backend_agrees_with_the_cpu);
    TEST(a_fault_sticks_to_its_device);
}

int main(int argc, char **argv)
{
    const char *only = argc == 3 && strcmp(argv[1], "--backend") == 0 ? argv[2] : NULL;

    if (only == NULL || strcmp(only, "cpu") == 0)
        run_backend(backend_cpu(), true, false);
    if (backend_cuda() != NULL && (only == NULL || strcmp(only, "cuda") == 0))
        run_backend(backend_cuda(), only != NULL, false);
    if (backend_cuda() != NULL && (only == NULL || strcmp(only, "portable") == 0))
        run_backend(backend_cuda(), only != NULL, true);
    return test_report();
}
