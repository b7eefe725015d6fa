/* Speed of attention on the GPU, in the shape of Llama 3.1 8B: JSON lines, one a case; nothing on a
 * machine without a GPU.
 *
 *     bench_attention [smoke|portable]
 *
 * A step runs the op for a few layers in turn, so that what one read is not in the cache for the
 * next; a case's time is the difference between steps with many calls and with few, over the
 * number of calls between them, so that a step's own cost is not in it.
 */
#include "tests/bench/measure.h"
#include "tests/kernels/harness.h"

enum {
    H = 32,
    K = 8,
    C = 128,
    QKV = (H + 2 * K) * C,
    BLOCK_TOKENS = 16,
    FILL_TOKENS = 8192, /* of a step that fills the cache */
    SAME_ROWS = 2048,   /* random rows are repeated from here on */
    REPEAT = 5,
    ROWS_MAX = 512,
};

/* `decodes` sequences of one token behind `context`, and prompts of `prompt` tokens. */
struct attention_case {
    const char *name;
    int32_t decodes, context, prompts, prompt;
    int32_t layers, calls; /* `calls`: of a step with many, a multiple of layers */
};

static const struct attention_case attention_case[] = {
    {"decode_1_at_32768", 1, 32768, 0, 0, 4, 256},
    {"decode_4_at_4096", 4, 4096, 0, 0, 4, 256}, /* 67 MB */
    {"decode_64_at_256", 64, 256, 0, 0, 4, 256},
    {"decode_256_at_256", 256, 256, 0, 0, 4, 256},
    {"decode_64_at_512", 64, 512, 0, 0, 4, 256},
    {"decode_64_at_1024", 64, 1024, 0, 0, 4, 256}, /* 268 MB */
    {"decode_256_at_2048", 256, 2048, 0, 0, 2, 16},
    {"decode_512_at_1500", 512, 1500, 0, 0, 2, 16},
    {"prompt_2048", 0, 0, 1, 2048, 2, 32},
    {"prompt_8192", 0, 0, 1, 8192, 2, 16},
    {"prompt_32768", 0, 0, 1, 32768, 1, 4},
    {"prompts_8_of_1000", 0, 0, 8, 1000, 2, 32},
    {"prompt_8192_beside_200_at_1024", 200, 1024, 1, 8192, 2, 16},
    {"prompt_448_beside_64_at_576", 64, 576, 1, 448, 4, 64}, /* a step of a server */
    {"prompt_820_beside_204_at_576", 204, 576, 1, 820, 4, 64},
    {"decode_200_at_1024", 200, 1024, 0, 0, 2, 16}, /* the same, without the prompt */
};

struct bench {
    const struct attention_case *c;
    struct device *device;
    struct activation qkv, out;
    struct rope_store_args rope;
    int32_t blocks, block_count; /* of a sequence; of all */
    struct step step;
    struct step_row row[ROWS_MAX];
    struct step_change *change;
    int32_t *token;
};

static int32_t most(int32_t a, int32_t b)
{
    return a > b ? a : b;
}

/* Blocks lie scattered, as those of a server that runs for long. */
static int32_t block_at(const struct bench *b, int32_t slot, int32_t index)
{
    return (int32_t)(((int64_t)slot * b->blocks + index) * 7919 % b->block_count);
}

static void add_row(struct bench *b, int32_t slot, int32_t position, int32_t count)
{
    b->row[b->step.row_count++] =
        (struct step_row){slot, position, b->step.token_count, count, false};
    b->step.token_count += count;
}

static void new_step(struct bench *b)
{
    b->step = (struct step){.row = b->row, .token = b->token, .change = b->change};
}

/* As a graph, so that the host's time for a launch is not in it. */
static double run_step(struct bench *b, int32_t calls)
{
    struct attention_args args = {
        .head_count = H, .kv_head_count = K, .head_width = C, .scale = 0.0883883f};
    struct step_result result = {0};
    double start = now_us();

    subject.ops->step_begin(b->device, &b->step);
    if (!subject.ops->graph_launch(b->device, calls)) {
        EXPECT(subject.ops->graph_begin(b->device, calls));
        for (int32_t i = 0; i < calls; i++) {
            args.layer = i % b->c->layers;
            subject.ops->attention(b->device, b->out, b->qkv, &args, b->step.token_count);
        }
        EXPECT(subject.ops->graph_end(b->device, calls));
        EXPECT(subject.ops->graph_launch(b->device, calls));
    }
    subject.ops->step_end(b->device, &result);
    EXPECT_INT(subject.ops->sync(b->device), ==, 0);
    return now_us() - start;
}

/* Gives every sequence its blocks, and keys and values for what stands before the timed step. */
static void fill(struct bench *b, int32_t slots, int32_t context)
{
    struct step_result result = {0};

    for (int32_t slot = 0; slot < slots; slot++) {
        for (int32_t first = 0; first == 0 || first < context; first += FILL_TOKENS) {
            int32_t count = context - first < FILL_TOKENS ? context - first : FILL_TOKENS;
            new_step(b);
            for (int32_t i = 0; first == 0 && i < b->blocks; i++)
                b->change[b->step.change_count++] =
                    (struct step_change){slot, 0, i, block_at(b, slot, i)};
            add_row(b, slot, first, most(count, 1));
            subject.ops->step_begin(b->device, &b->step);
            for (b->rope.layer = 0; b->rope.layer < b->c->layers; b->rope.layer++)
                subject.ops->rope_store(b->device, b->qkv, &b->rope, b->step.token_count);
            subject.ops->step_end(b->device, &result);
            EXPECT_INT(subject.ops->sync(b->device), ==, 0);
        }
    }
}

/* Random rows; the rope table is random too, only the size of its values counts. */
static void open_bench(struct bench *b, int32_t slots, int32_t tokens, int32_t context)
{
    static const int32_t layer_group[8] = {0};
    struct device_options options = small_options();
    uint64_t seed = 1;
    float *value = random_floats(&seed, (int64_t)SAME_ROWS * QKV, 1.0f);

    b->blocks = (context - 1) / BLOCK_TOKENS + 1;
    b->block_count = slots * b->blocks + 1;
    b->block_count += b->block_count % 7919 == 0;
    options.slot_max = slots;
    options.token_max = most(tokens, FILL_TOKENS);
    options.context_max = b->blocks * BLOCK_TOKENS;
    options.history_max = 16;
    options.change_max = b->blocks;
    b->device = open_device(&options);
    struct kv_shape kv = {b->c->layers, b->block_count, BLOCK_TOKENS, K, C, 1, layer_group};
    EXPECT_INT(subject.ops->kv_open(b->device, &kv), ==, 0);
    b->change = calloc((size_t)b->blocks, sizeof(*b->change));
    b->token = calloc((size_t)options.token_max, sizeof(*b->token));
    assert(b->change != NULL && b->token != NULL);
    b->qkv = new_activation(b->device, options.token_max, QKV);
    b->out = new_activation(b->device, options.token_max, H * C);
    for (int32_t first = 0; first < options.token_max; first += SAME_ROWS) {
        int32_t rows = options.token_max - first;
        subject.ops->put(b->device, rows_from(b->qkv, first), value,
                         rows < SAME_ROWS ? rows : SAME_ROWS, QKV);
    }
    float *rope = random_floats(&seed, (int64_t)options.context_max * C, 1.0f);
    b->rope = (struct rope_store_args){
        .head_count = H,
        .kv_head_count = K,
        .head_width = C,
        .rotary = C,
        .rope = upload_floats(b->device, rope, (int64_t)options.context_max * C)};
    free(rope);
    free(value);
}

static void run_case(const struct attention_case *c, bool smoke)
{
    struct bench b = {.c = c};
    int32_t slots = c->decodes + c->prompts, few = c->layers;
    int32_t context = most(c->decodes > 0 ? c->context + 1 : 0, c->prompt);
    int32_t many = smoke ? 2 * few : c->calls + few;
    double us[REPEAT], few_us[REPEAT];

    open_bench(&b, slots, c->decodes + c->prompts * c->prompt, context);
    fill(&b, slots, c->context);
    new_step(&b);
    for (int32_t i = 0; i < c->prompts; i++)
        add_row(&b, i, 0, c->prompt);
    for (int32_t i = 0; i < c->decodes; i++)
        add_row(&b, c->prompts + i, c->context, 1);
    (void)run_step(&b, few);
    (void)run_step(&b, many);
    for (int32_t i = 0; i < REPEAT; i++) {
        few_us[i] = run_step(&b, few);
        us[i] = run_step(&b, many);
    }
    qsort(us, REPEAT, sizeof(*us), ascending);
    qsort(few_us, REPEAT, sizeof(*few_us), ascending);
    for (int32_t i = 0; i < REPEAT; i++) /* not in pairs: a late short step would shorten a case */
        us[i] = (us[i] - few_us[REPEAT / 2]) / (many - few);
    double pairs = (double)c->prompts * c->prompt * (c->prompt + 1) / 2 +
                   (double)c->decodes * (c->context + 1);
    double bytes = (double)c->decodes * (c->context + 1) * 2 * K * C * 2;
    printf("{\"name\": \"attention_%s\", \"backend\": \"cuda\", \"repeat\": %d, "
           "\"median_us\": %.2f, \"min_us\": %.2f, \"max_us\": %.2f, \"flop_per_s\": %.4g, "
           "\"read_bytes\": %.4g, \"bytes_per_s\": %.4g}\n",
           c->name, REPEAT, us[REPEAT / 2], us[0], us[REPEAT - 1],
           pairs * H * C * 4 / us[REPEAT / 2] * 1e6, bytes, bytes / us[REPEAT / 2] * 1e6);
    fflush(stdout);
    subject.ops->close(b.device);
    free(b.change);
    free(b.token);
}

static void run_all(void)
{
    for (size_t i = 0; i < sizeof(attention_case) / sizeof(*attention_case); i++)
        run_case(&attention_case[i], false);
}

static void run_smoke(void)
{
    run_case(&attention_case[2], true);
}

int main(int argc, char **argv)
{
    const char *how = argc > 1 ? argv[1] : "";

    (void)run_cuda(strcmp(how, "smoke") == 0 ? run_smoke : run_all, strcmp(how, "portable") == 0);
    return test_check_failed > 0;
}
