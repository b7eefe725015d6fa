/* Attention over contexts of several partials: the output of a position must have the same bits
 * in a whole prompt, in chunks of any size, in decode and beside others; and be near the
 * reference. What rope_store gives and puts in the cache is the same in all of them. */
#include "tests/kernels/harness.h"

/* A crowd is large enough for a GPU of 100 to 150 multiprocessors to cut contexts coarsely, and
 * those of a few sequences finely where there are six kv heads. */
enum {
    LENGTH = 1410,
    SLOTS = 3,
    CROWD = 200,
    PROMPT = 300, /* beside the crowd, in a slot of its own */
    BLOCK_TOKENS = 16,
    SEQ_BLOCKS = (LENGTH + 15) / 16,
};

/* `loud`: keys grow within every 512 positions, so that a later one may outweigh all before it. */
struct long_shape {
    int32_t H, K, C, window;
    float softcap;
    bool sinks, loud, normed;
    int32_t rotary;
    enum rope_pairing pairing;
};

static const struct long_shape shape_case[] = {
    {4, 2, 64, 0, 0, true, true, false, 0, ROPE_HALVES},
    {6, 6, 80, 0, 0, false, false, true, 32, ROPE_HALVES},
    {4, 2, 96, 700, 20.0f, false, true, false, 0, ROPE_HALVES},
    {8, 2, 128, 0, 0, false, false, false, 128, ROPE_INTERLEAVED},
    {7, 1, 128, 600, 0, true, true, false, 0, ROPE_HALVES},
    {2, 1, 192, 0, 0, false, true, false, 0, ROPE_HALVES},
    {4, 1, 256, 0, 0, false, true, false, 0, ROPE_HALVES},
    {6, 3, 256, 530, 0, false, false, true, 128, ROPE_HALVES},
    {40, 1, 64, 0, 0, false, false, false, 0, ROPE_HALVES},
    {2, 1, 48, 0, 5.0f, false, false, false, 0, ROPE_HALVES},
};
enum { SHAPES = sizeof(shape_case) / sizeof(*shape_case) };

/* A sequence's inputs, the same for every slot and way: row p is position p. */
struct world {
    const struct long_shape *shape;
    struct device *device;
    struct rope_store_args store;
    struct attention_args attention;
    struct activation qkv, out;
    float *input, *sink, *norm, *rope;
    int32_t width, q_width;
    int32_t done[CROWD + 1];
    struct step step;
    struct step_row row[CROWD + 1];
    struct step_change change[(CROWD + 1) * SEQ_BLOCKS];
    int32_t token[LENGTH + 2];
};

/* What positions put in: all alike, but that keys may grow, from once to 4.5 times. */
static float *make_input(const struct long_shape *shape, int32_t width)
{
    uint64_t seed = 3;
    float *input = random_floats(&seed, (int64_t)LENGTH * width, 1.5f);

    for (int32_t p = 0; shape->loud && p < LENGTH; p++)
        for (int32_t i = 0; i < shape->K * shape->C; i++)
            input[(int64_t)p * width + shape->H * shape->C + i] *=
                1.0f + 0.5f * (float)(p / 64 % 8);
    return input;
}

static void open_store(struct world *w)
{
    const struct long_shape *shape = w->shape;
    struct store_shape store = {shape->H,       shape->K, shape->C, shape->rotary,
                                shape->pairing, w->rope,  NULL,     NULL};

    if (shape->normed) {
        store.q_norm = w->norm;
        store.k_norm = w->norm + 1;
    }
    w->store = upload_store(w->device, &store, LENGTH);
}

static struct world *world_open(const struct long_shape *shape)
{
    struct world *w = calloc(1, sizeof(*w));
    struct device_options options = small_options();
    int32_t group[1] = {0};
    struct kv_shape kv = {1, SLOTS * SEQ_BLOCKS, BLOCK_TOKENS, shape->K, shape->C, 1, group};
    uint64_t seed = 4;

    assert(w != NULL);
    w->shape = shape;
    w->width = (shape->H + 2 * shape->K) * shape->C;
    w->q_width = shape->H * shape->C;
    options.token_max = LENGTH + 2;
    options.context_max = LENGTH;
    options.slot_max = CROWD + 1;
    options.change_max = (CROWD + 1) * SEQ_BLOCKS;
    w->device = open_device(&options);
    EXPECT_INT(subject.ops->kv_open(w->device, &kv), ==, 0);
    w->input = make_input(shape, w->width);
    w->norm = random_floats(&seed, shape->C + 1, 1.5f);
    w->rope = make_rope_table(shape->rotary, LENGTH);
    w->sink = random_floats(&seed, shape->H, 2.0f);
    w->qkv = new_activation(w->device, LENGTH + 2, w->width);
    w->out = new_activation(w->device, LENGTH + 2, w->q_width);
    put_rounded(w->device, w->qkv, w->input, LENGTH, w->width);
    open_store(w);
    w->attention = (struct attention_args){
        .head_count = shape->H,
        .kv_head_count = shape->K,
        .head_width = shape->C,
        .scale = 1.0f / sqrtf((float)shape->C),
        .softcap = shape->softcap,
        .window = shape->window,
    };
    if (shape->sinks)
        w->attention.sinks = upload_floats(w->device, w->sink, shape->H);
    w->step = (struct step){.row = w->row, .change = w->change, .token = w->token};
    for (int32_t i = 0; i < SLOTS * SEQ_BLOCKS; i++)
        w->change[w->step.change_count++] =
            (struct step_change){i % SLOTS, 0, i / SLOTS, (i * 37) % (SLOTS * SEQ_BLOCKS)};
    return w;
}

static void world_close(struct world *w)
{
    subject.ops->close(w->device);
    free(w->input);
    free(w->sink);
    free(w->norm);
    free(w->rope);
    free(w);
}

static void add_row(struct world *w, int32_t slot, int32_t count)
{
    int32_t left = LENGTH - w->done[slot];

    if (count > left)
        count = left;
    if (count == 0)
        return;
    w->row[w->step.row_count++] =
        (struct step_row){slot, w->done[slot], w->step.token_count, count, false};
    w->step.token_count += count;
}

/* Begins a step of the rows, up to their outputs. */
static void begin_step(struct world *w)
{
    int32_t T = w->step.token_count;

    subject.ops->step_begin(w->device, &w->step);
    for (int32_t r = 0; r < w->step.row_count; r++)
        subject.ops->put(w->device, rows_from(w->qkv, w->row[r].token_first),
                         w->input + (int64_t)w->row[r].position * w->width, w->row[r].token_count,
                         w->width);
    subject.ops->rope_store(w->device, w->qkv, &w->store, T);
    subject.ops->attention(w->device, w->out, w->qkv, &w->attention, T);
}

static void end_step(struct world *w)
{
    struct step_result result = {0};

    subject.ops->step_end(w->device, &result);
    EXPECT_INT(subject.ops->sync(w->device), ==, 0);
    w->step.row_count = w->step.token_count = w->step.change_count = 0;
}

/* Runs the rows; slot 0's outputs go to out[position]. */
static void run_step(struct world *w, float *out)
{
    begin_step(w);
    for (int32_t r = 0; r < w->step.row_count; r++) {
        struct step_row row = w->row[r];
        w->done[row.slot] += row.token_count;
        if (row.slot == 0)
            subject.ops->get(w->device, out + (int64_t)row.position * w->q_width,
                             rows_from(w->out, row.token_first), row.token_count, w->q_width);
    }
    end_step(w);
}

static void check_reference(const struct world *w, const float *out, int32_t position)
{
    int32_t C = w->shape->C, wide = w->shape->K * C;
    size_t count = (size_t)(position + 1) * (size_t)wide;
    double *k = calloc(count, sizeof(*k)), *v = calloc(count, sizeof(*v)), q[256], expected[256];

    for (size_t i = 0; i < count; i++) {
        const float *row = w->input + (int64_t)(i / (size_t)wide) * w->width + w->q_width;
        k[i] = reference_round((double)row[i % (size_t)wide], subject.cache);
        v[i] = reference_round((double)row[wide + i % (size_t)wide], subject.cache);
    }
    for (int32_t h = 0; h < w->shape->H; h++) {
        int64_t kv = (int64_t)(h / (w->shape->H / w->shape->K)) * C;
        for (int32_t c = 0; c < C; c++)
            q[c] = (double)w->input[(int64_t)position * w->width + (int64_t)h * C + c];
        reference_attention(expected, q, k + kv, v + kv, wide, position, &w->attention,
                            w->shape->sinks ? &w->sink[h] : NULL);
        EXPECT(close_to("attention", expected,
                        out + (int64_t)position * w->q_width + (int64_t)h * C, C, subject.loose));
    }
    free(k);
    free(v);
}

/* Ways to cut: 0 whole; 1 and 2 chunks; 3 a prompt and then token by token; 4 beside others. */
enum { WAYS = 5 };

static int32_t next_count(int32_t way, int32_t done, uint64_t *seed)
{
    switch (way) {
    case 0:
        return LENGTH;
    case 1:
        return 100;
    case 2:
        return 1 + random_below(seed, 300);
    case 3:
        return done == 0 ? LENGTH - 60 : 1;
    default:
        return random_below(seed, 2) == 0 ? 1 + random_below(seed, 5) : 90;
    }
}

static void run_way(const struct long_shape *shape, int32_t way, float *out, bool checked)
{
    struct world *w = world_open(shape);
    uint64_t seed = 9;

    while (w->done[0] < LENGTH) {
        if (way == 4)
            add_row(w, 1, 1 + random_below(&seed, 200));
        add_row(w, 0, next_count(way, w->done[0], &seed));
        if (way == 4)
            add_row(w, 2, 1 + random_below(&seed, 9));
        run_step(w, out);
    }
    if (checked) {
        static const int32_t position_case[] = {0, 63, 511, 512, 1024, LENGTH - 1};
        for (size_t i = 0; i < sizeof(position_case) / sizeof(*position_case); i++)
            check_reference(w, out, position_case[i]);
    }
    world_close(w);
}

static void a_position_has_the_same_bits_in_prompts_chunks_and_decode(void)
{
    for (size_t s = 0; s < SHAPES; s++) {
        if (!test_takes(s))
            continue;
        const struct long_shape *shape = &shape_case[s];
        size_t count = (size_t)LENGTH * (size_t)(shape->H * shape->C);
        float *whole = calloc(count, sizeof(float)), *other = calloc(count, sizeof(float));

        /* what is stored as it came in; test_attention has what is normed and rotated first */
        run_way(shape, 0, whole, shape->rotary == 0);
        for (int32_t way = 1; way < WAYS; way++) {
            size_t same = 0;
            run_way(shape, way, other, false);
            while (same < count && memcmp(whole + same, other + same, sizeof(float)) == 0)
                same++;
            if (same < count)
                printf("%s: H %d K %d C %d, way %d, position %zu: %.9g, not %.9g\n", subject.name,
                       shape->H, shape->K, shape->C, way, same / (size_t)(shape->H * shape->C),
                       (double)other[same], (double)whole[same]);
            EXPECT(same == count);
        }
        free(whole);
        free(other);
    }
}

/* All slots of the crowd go on from the blocks of slot 0, and one more has the blocks of slot 1. */
static void share_blocks(struct world *w)
{
    for (int32_t slot = 0; slot <= CROWD; slot++)
        for (int32_t i = 0; i < SEQ_BLOCKS; i++) {
            int32_t source = i * SLOTS + (slot == CROWD ? 1 : 0); /* as world_open gave them */
            w->change[w->step.change_count++] =
                (struct step_change){slot, 0, i, source * 37 % (SLOTS * SEQ_BLOCKS)};
        }
}

/* A step of the crowd's last positions and a prompt's first ones; `out` has their outputs. */
static void run_mixed(struct world *w, float *out)
{
    for (int32_t slot = 0; slot <= CROWD; slot++) {
        w->done[slot] = slot < CROWD ? LENGTH - 1 : 0;
        add_row(w, slot, slot < CROWD ? 1 : PROMPT);
    }
    begin_step(w);
    subject.ops->get(w->device, out, w->out, CROWD + PROMPT, w->q_width);
    end_step(w);
}

/* What a sequence gives alone, and what a crowd of it and a prompt of its tokens do. */
static void check_crowd(const struct long_shape *shape)
{
    struct world *w = world_open(shape);
    size_t width = (size_t)w->q_width, bytes = width * sizeof(float);
    float *alone = calloc(LENGTH, bytes), *mixed = calloc(CROWD + PROMPT, bytes);

    assert(alone != NULL && mixed != NULL);
    while (w->done[0] < LENGTH) {
        add_row(w, 0, w->done[0] == 0 ? LENGTH - 1 : 1);
        run_step(w, alone);
    }
    share_blocks(w);
    for (int32_t time = 0; time < 2; time++) { /* each finds what the one before left */
        int32_t same = 0;
        memset(mixed, 0, (CROWD + PROMPT) * bytes);
        run_mixed(w, mixed);
        while (same < CROWD + PROMPT &&
               memcmp(mixed + (size_t)same * width,
                      alone + (size_t)(same < CROWD ? LENGTH - 1 : same - CROWD) * width,
                      bytes) == 0)
            same++;
        EXPECT_INT(same, ==, CROWD + PROMPT);
    }
    free(alone);
    free(mixed);
    world_close(w);
}

static void a_crowd_and_a_prompt_have_the_bits_that_each_has_alone(void)
{
    static const int crowd_case[] = {0, 1, 3, 6};
    for (size_t i = 0; i < sizeof(crowd_case) / sizeof(*crowd_case); i++)
        if (test_takes(i))
            check_crowd(&shape_case[crowd_case[i]]);
}

static void tests(void)
{
    TEST(a_position_has_the_same_bits_in_prompts_chunks_and_decode);
    TEST(a_crowd_and_a_prompt_have_the_bits_that_each_has_alone);
}

int main(int argc, char **argv)
{
    return run_subjects(argc, argv, tests);
}
