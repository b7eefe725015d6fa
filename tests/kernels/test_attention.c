/* rope_store and attention on every backend and instruction set: random steps of several
 * sequences against the reference, and the same sequences cut into steps in other ways, which
 * must give the same bits. */
#include "tests/kernels/harness.h"

enum {
    SEQS = 5,
    LENGTH_MAX = 160,
    LAYERS = 2,
    BLOCKS = 832,
    SLOTS = 8,
};

struct shape {
    const char *name;
    int32_t H, K, C, block_tokens, rotary;
    enum rope_pairing pairing;
    bool normed;
    int32_t window;
    float softcap;
    bool sinks;
    int32_t groups;
};

static const struct shape shape_case[] = {
    {"gemma window", 4, 1, 256, 16, 256, ROPE_HALVES, true, 48, 0, false, 1},
    {"gemma global", 4, 1, 256, 32, 256, ROPE_HALVES, true, 0, 0, false, 1},
    {"two groups", 4, 2, 64, 16, 64, ROPE_HALVES, true, 33, 0, false, 2},
    {"llama", 8, 2, 128, 16, 128, ROPE_INTERLEAVED, false, 0, 0, false, 1},
    {"one head", 1, 1, 64, 16, 64, ROPE_HALVES, false, 0, 0, false, 1},
    {"many heads", 6, 6, 80, 16, 32, ROPE_HALVES, false, 0, 0, false, 1},
    {"softcap", 4, 2, 96, 64, 96, ROPE_HALVES, false, 40, 20.0f, false, 1},
    {"sinks", 8, 1, 64, 16, 64, ROPE_HALVES, false, 16, 0, true, 1},
    {"seventy to one", 70, 1, 32, 16, 32, ROPE_HALVES, false, 0, 0, true, 1},
    {"wide head", 2, 1, 192, 128, 64, ROPE_INTERLEAVED, true, 0, 0, false, 1},
    {"blocks of one", 3, 1, 20, 1, 10, ROPE_HALVES, false, 7, 0, false, 1},
    {"pages of one", 4, 2, 64, 1, 64, ROPE_HALVES, false, 40, 0, false, 1},
    {"pages of two", 3, 1, 96, 2, 96, ROPE_HALVES, true, 0, 0, true, 1},
    {"pages of eight", 8, 4, 128, 8, 64, ROPE_HALVES, false, 0, 0, false, 2},
    {"blocks of four", 2, 2, 6, 4, 4, ROPE_INTERLEAVED, true, 0, 5.0f, false, 1},
    {"width of two", 2, 1, 2, 2, 2, ROPE_HALVES, false, 1, 0, false, 1},
    {"pages of four", 4, 2, 64, 4, 64, ROPE_HALVES, false, 33, 0, false, 1},
    {"pages of 64", 8, 2, 128, 64, 128, ROPE_HALVES, false, 50, 0, true, 1},
    {"no rotation", 2, 1, 16, 256, 0, ROPE_HALVES, false, 0, 0, false, 1},
};
enum { SHAPES = sizeof(shape_case) / sizeof(*shape_case) };

/* One sequence: what went in, and what came out for each position. */
struct seq {
    int32_t length, done;
    uint64_t seed;
    float *qkv;    /* [LAYERS, LENGTH_MAX, (H + 2K) C] as the device held it */
    float *out;    /* [LAYERS, LENGTH_MAX, H C] */
    float *turned; /* [LAYERS, LENGTH_MAX, H C] q after rope_store */
    int32_t block[KV_GROUP_MAX][LENGTH_MAX];
    int32_t block_count;
};

struct world {
    const struct shape *shape;
    struct device *device;
    int32_t width, q_width;
    int32_t layer_group[LAYERS];
    struct rope_store_args rope;
    struct attention_args attention;
    float *rope_table, *q_norm, *k_norm, *sink; /* on the host */
    int32_t free_block[BLOCKS], free_count;
    struct seq seq[SEQS];
    bool poisoning; /* puts in NaN */

    /* The step being made. */
    struct step step;
    struct step_row row[SLOTS];
    struct step_change change[SLOTS * LENGTH_MAX * KV_GROUP_MAX];
    struct step_move move[SLOTS * KV_GROUP_MAX];
    int32_t token[256];
    int32_t seq_of[SLOTS];
};

/* Opens the cache, which takes what was said. */
static void open_cache(struct device *device, const struct kv_shape *kv)
{
    const struct device_ops *ops = subject.ops;
    size_t block_bytes = ops->kv_block_bytes(device, kv);
    size_t before = ops->memory_taken == NULL ? 0 : ops->memory_taken(device);

    EXPECT(block_bytes > 0);
    EXPECT_INT(ops->kv_open(device, kv), ==, 0);
    if (ops->memory_taken != NULL)
        EXPECT_INT(ops->memory_taken(device) - before, ==,
                   (size_t)kv->block_count * block_bytes + ops->kv_fixed_bytes(device, kv));
}

static void world_device(struct world *w, const struct shape *shape)
{
    struct device_options options = small_options();
    struct kv_shape kv = {LAYERS,   BLOCKS,        shape->block_tokens, shape->K,
                          shape->C, shape->groups, w->layer_group};

    w->device = open_device(&options);
    open_cache(w->device, &kv);
    struct store_shape store = {shape->H,       shape->K,      shape->C, shape->rotary,
                                shape->pairing, w->rope_table, NULL,     NULL};
    if (shape->normed) {
        store.q_norm = w->q_norm;
        store.k_norm = w->k_norm;
    }
    w->rope = upload_store(w->device, &store, options.context_max);
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
}

static struct world *world_open(const struct shape *shape)
{
    struct world *w = calloc(1, sizeof(*w));
    uint64_t seed = 11;

    assert(w != NULL);
    w->shape = shape;
    w->width = (shape->H + 2 * shape->K) * shape->C;
    w->q_width = shape->H * shape->C;
    for (int32_t i = 0; i < LAYERS; i++)
        w->layer_group[i] = i % shape->groups;
    w->rope_table = make_rope_table(shape->rotary, 513);
    w->q_norm = random_floats(&seed, shape->C, 1.5f);
    w->k_norm = random_floats(&seed, shape->C, 1.5f);
    w->sink = random_floats(&seed, shape->H, 2.0f);
    world_device(w, shape);
    for (int32_t i = 0; i < BLOCKS; i++)
        w->free_block[w->free_count++] = i;
    for (int32_t i = BLOCKS - 1; i > 0; i--) { /* neighbours in a table are not so in memory */
        int32_t j = random_below(&seed, i + 1), other = w->free_block[i];
        w->free_block[i] = w->free_block[j];
        w->free_block[j] = other;
    }
    for (int32_t i = 0; i < SEQS; i++) {
        struct seq *seq = &w->seq[i];
        seq->qkv = calloc((size_t)LAYERS * LENGTH_MAX * (size_t)w->width, sizeof(float));
        seq->out = calloc((size_t)LAYERS * LENGTH_MAX * (size_t)w->q_width, sizeof(float));
        seq->turned = calloc((size_t)LAYERS * LENGTH_MAX * (size_t)w->q_width, sizeof(float));
        seq->seed = 1000 + (uint64_t)i;
        assert(seq->qkv != NULL && seq->out != NULL && seq->turned != NULL);
    }
    return w;
}

static void world_close(struct world *w)
{
    subject.ops->close(w->device);
    for (int32_t i = 0; i < SEQS; i++) {
        free(w->seq[i].qkv);
        free(w->seq[i].out);
        free(w->seq[i].turned);
    }
    free(w->rope_table);
    free(w->q_norm);
    free(w->k_norm);
    free(w->sink);
    free(w);
}

static void step_clear(struct world *w)
{
    w->step = (struct step){.row = w->row, .change = w->change, .move = w->move, .token = w->token};
}

static void set_block(struct world *w, int32_t index, int32_t group, int32_t entry, int32_t block)
{
    w->seq[index].block[group][entry] = block;
    w->change[w->step.change_count++] = (struct step_change){index, group, entry, block};
}

/* Blocks for `length` tokens, in every group. */
static void grow(struct world *w, int32_t index, int32_t length)
{
    struct seq *seq = &w->seq[index];

    for (; seq->block_count * w->shape->block_tokens < length; seq->block_count++) {
        for (int32_t g = 0; g < w->shape->groups; g++) {
            assert(w->free_count > 0);
            set_block(w, index, g, seq->block_count, w->free_block[--w->free_count]);
        }
    }
}

/* Gives back what lies wholly behind the window of the next position. */
static void slide(struct world *w, int32_t index)
{
    struct seq *seq = &w->seq[index];
    int32_t first = w->shape->window > 0 ? seq->done - w->shape->window + 1 : 0;

    for (int32_t i = 0; (i + 1) * w->shape->block_tokens <= first; i++) {
        for (int32_t g = 0; g < w->shape->groups; g++) {
            if (seq->block[g][i] < 0)
                continue;
            w->free_block[w->free_count++] = seq->block[g][i];
            set_block(w, index, g, i, -1);
        }
    }
}

static void add_row(struct world *w, int32_t index, int32_t count)
{
    struct seq *seq = &w->seq[index];

    slide(w, index);
    grow(w, index, seq->done + count);
    w->seq_of[w->step.row_count] = index;
    w->row[w->step.row_count++] = (struct step_row){
        .slot = index,
        .position = seq->done,
        .token_first = w->step.token_count,
        .token_count = count,
    };
    w->step.token_count += count;
}

/* What a sequence puts in at a position: a function of its seed, the layer and the position. */
static void fill_input(const struct world *w, const struct seq *seq, int32_t layer,
                       int32_t position, float *target)
{
    uint64_t seed = seq->seed * 7919u + (uint64_t)(layer * 4096 + position);

    for (int32_t i = 0; i < w->width; i++)
        target[i] = w->poisoning ? NAN : random_float(&seed) * 1.5f;
}

static int64_t at(int32_t layer, int32_t position)
{
    return (int64_t)layer * LENGTH_MAX + position;
}

static void run_layer(struct world *w, int32_t layer)
{
    int32_t T = w->step.token_count;
    struct activation qkv = new_activation(w->device, T + 2, w->width + 4);
    struct activation out = new_activation(w->device, T + 2, w->q_width + 2);
    float *input = malloc((size_t)T * (size_t)w->width * sizeof(*input));
    float *output = malloc((size_t)T * (size_t)w->width * sizeof(*output));

    for (int32_t r = 0; r < w->step.row_count; r++) {
        for (int32_t i = 0; i < w->row[r].token_count; i++)
            fill_input(w, &w->seq[w->seq_of[r]], layer, w->row[r].position + i,
                       input + (int64_t)(w->row[r].token_first + i) * w->width);
    }
    put_rounded(w->device, qkv, input, T, w->width);
    w->rope.layer = w->attention.layer = layer;
    subject.ops->rope_store(w->device, qkv, &w->rope, T + 2);
    subject.ops->attention(w->device, out, qkv, &w->attention, T + 2);
    for (int32_t r = 0; r < w->step.row_count; r++) {
        struct seq *seq = &w->seq[w->seq_of[r]];
        int64_t first = w->row[r].token_first, place = at(layer, w->row[r].position);
        struct activation part = out;
        memcpy(seq->qkv + place * w->width, input + first * w->width,
               (size_t)w->row[r].token_count * (size_t)w->width * sizeof(*input));
        part.data = (char *)out.data + first * out.stride * subject.ops->activation_bytes;
        subject.ops->get(w->device, seq->out + place * w->q_width, part, w->row[r].token_count,
                         w->q_width);
        part = qkv;
        part.data = (char *)qkv.data + first * qkv.stride * subject.ops->activation_bytes;
        subject.ops->get(w->device, seq->turned + place * w->q_width, part, w->row[r].token_count,
                         w->q_width);
    }
    free(input);
    free(output);
}

static void run_step(struct world *w)
{
    struct step_result result = {0};

    subject.ops->step_begin(w->device, &w->step);
    for (int32_t layer = 0; layer < LAYERS; layer++)
        run_layer(w, layer);
    subject.ops->step_end(w->device, &result);
    EXPECT_INT(subject.ops->sync(w->device), ==, 0);
    for (int32_t r = 0; r < w->step.row_count; r++)
        w->seq[w->seq_of[r]].done += w->row[r].token_count;
    step_clear(w);
}

/* ---- against the reference ---- */

/* k and v of a sequence as they lie in the cache. [LENGTH_MAX, K C] */
static void reference_cache(const struct world *w, const struct seq *seq, int32_t layer, double *k,
                            double *v)
{
    int32_t C = w->shape->C, wide = w->shape->K * C;

    for (int32_t p = 0; p < seq->done; p++) {
        const float *input = seq->qkv + at(layer, p) * w->width + w->q_width;
        double *key = k + (int64_t)p * wide, *value = v + (int64_t)p * wide;
        for (int32_t i = 0; i < wide; i++) {
            key[i] = (double)input[i];
            value[i] = reference_round((double)input[wide + i], subject.cache);
        }
        for (int32_t h = 0; h < w->shape->K; h++)
            reference_rope(key + (int64_t)h * C, w->shape->normed ? w->k_norm : NULL, 1e-6,
                           &w->rope, w->rope_table, p);
        for (int32_t i = 0; i < wide; i++)
            key[i] = reference_round(key[i], subject.cache);
    }
}

static bool position_fits(const struct world *w, const struct seq *seq, int32_t layer, int32_t p,
                          const double *k, const double *v)
{
    const struct shape *shape = w->shape;
    int32_t C = shape->C, wide = shape->K * C;
    bool fits = true;
    double q[256], out[256];

    for (int32_t h = 0; h < shape->H && fits; h++) {
        int64_t kv = (int64_t)(h / (shape->H / shape->K)) * C;
        for (int32_t c = 0; c < C; c++)
            q[c] = (double)seq->qkv[at(layer, p) * w->width + (int64_t)h * C + c];
        reference_rope(q, shape->normed ? w->q_norm : NULL, 1e-6, &w->rope, w->rope_table, p);
        fits =
            close_to("q of rope_store", q, seq->turned + at(layer, p) * w->q_width + (int64_t)h * C,
                     C, subject.tolerance);
        for (int32_t c = 0; c < C; c++) /* what attention is given: it may have been rounded */
            q[c] = (double)seq->turned[at(layer, p) * w->q_width + (int64_t)h * C + c];
        reference_attention(out, q, k + kv, v + kv, wide, p, &w->attention,
                            shape->sinks ? &w->sink[h] : NULL);
        fits = fits &&
               close_to("attention", out, seq->out + at(layer, p) * w->q_width + (int64_t)h * C, C,
                        subject.loose);
    }
    return fits;
}

static void check_seq(const struct world *w, const struct seq *seq)
{
    size_t count = (size_t)LENGTH_MAX * (size_t)w->shape->K * (size_t)w->shape->C;
    double *k = calloc(count, sizeof(*k)), *v = calloc(count, sizeof(*v));

    for (int32_t layer = 0; layer < LAYERS; layer++) {
        reference_cache(w, seq, layer, k, v);
        for (int32_t p = 0; p < seq->done; p++) {
            if (!position_fits(w, seq, layer, p, k, v)) {
                printf("%s: %s, layer %d, position %d\n", subject.name, w->shape->name, layer, p);
                EXPECT(!"attention is near the reference");
                p = seq->done;
            }
        }
    }
    free(k);
    free(v);
}

/* ---- ways to cut sequences into steps ---- */

static const int32_t length_case[SEQS] = {1, 33, 100, LENGTH_MAX - 1, 64};

static void run_alone(struct world *w, int32_t chunk)
{
    for (int32_t i = 0; i < SEQS; i++) {
        w->seq[i].length = length_case[i];
        while (w->seq[i].done < w->seq[i].length) {
            int32_t left = w->seq[i].length - w->seq[i].done;
            add_row(w, i, left < chunk ? left : chunk);
            run_step(w);
        }
    }
}

/* Rows of random sizes of whichever sequences, in random order, until all are whole. */
static void run_mixed(struct world *w, uint64_t seed)
{
    int32_t left = SEQS;

    for (int32_t i = 0; i < SEQS; i++)
        w->seq[i].length = length_case[i];
    while (left > 0) {
        int32_t turn = random_below(&seed, SEQS);
        left = 0;
        for (int32_t j = 0; j < SEQS; j++) {
            int32_t i = (j + turn) % SEQS, rest = w->seq[i].length - w->seq[i].done;
            int32_t count = random_below(&seed, 3) == 0 ? 1 : 1 + random_below(&seed, 40);
            if (rest > 0 && random_below(&seed, 4) != 0)
                add_row(w, i, count < rest ? count : rest);
            left += w->seq[i].length - w->seq[i].done > 0;
        }
        if (w->step.row_count > 0)
            run_step(w);
    }
}

static bool equal_bits(const struct world *a, const struct world *b)
{
    for (int32_t i = 0; i < SEQS; i++) {
        size_t count = (size_t)LAYERS * LENGTH_MAX * (size_t)a->q_width;
        if (memcmp(a->seq[i].out, b->seq[i].out, count * sizeof(float)) != 0) {
            printf("%s: %s: sequence %d differs\n", subject.name, a->shape->name, i);
            return false;
        }
    }
    return true;
}

static struct world *world_ready(const struct shape *shape)
{
    struct world *w = world_open(shape);

    step_clear(w);
    return w;
}

static void attention_is_near_the_reference_however_a_prompt_is_cut(void)
{
    for (size_t s = 0; s < SHAPES; s++) {
        if (!test_takes(s))
            continue;
        struct world *whole = world_ready(&shape_case[s]);
        run_alone(whole, LENGTH_MAX);
        for (int32_t i = 0; i < SEQS; i++)
            check_seq(whole, &whole->seq[i]);
        for (int way = 0; way < 4; way++) {
            struct world *other = world_ready(&shape_case[s]);
            if (way == 0)
                run_alone(other, 1);
            else if (way == 1)
                run_alone(other, 7);
            else
                run_mixed(other, (uint64_t)way);
            EXPECT(equal_bits(whole, other));
            world_close(other);
        }
        world_close(whole);
    }
}

/* A fork shares its parent's full blocks and gets a copy of the one that is half full; then both
 * go on, each with tokens of its own. */
static void fork_seq(struct world *w, int32_t parent, int32_t child)
{
    struct seq *from = &w->seq[parent], *to = &w->seq[child];
    int32_t shared = from->done / w->shape->block_tokens;

    to->done = from->done;
    to->block_count = from->block_count;
    for (int32_t g = 0; g < w->shape->groups; g++) {
        for (int32_t i = 0; i < from->block_count; i++) {
            int32_t block = from->block[g][i];
            if (i >= shared) {
                block = w->free_block[--w->free_count];
                w->move[w->step.move_count++] =
                    (struct step_move){STEP_COPY, from->block[g][i], block};
            }
            set_block(w, child, g, i, block);
        }
    }
    for (int32_t layer = 0; layer < LAYERS; layer++)
        memcpy(to->qkv + at(layer, 0) * w->width, from->qkv + at(layer, 0) * w->width,
               (size_t)from->done * (size_t)w->width * sizeof(float));
}

static void forks_go_on_from_a_copy_of_the_half_full_block(void)
{
    for (size_t s = 0; s < SHAPES; s++) {
        if (!test_takes(s))
            continue;
        struct shape shape = shape_case[s];
        shape.window = 0; /* so that no block is given back while it is shared */
        struct world *w = world_ready(&shape);
        add_row(w, 0, 37);
        run_step(w);
        fork_seq(w, 0, 1);
        add_row(w, 0, 3);
        add_row(w, 1, 20);
        run_step(w);
        add_row(w, 1, 1);
        add_row(w, 0, 9);
        run_step(w);
        struct seq *child = &w->seq[1];
        for (int32_t layer = 0; layer < LAYERS; layer++) { /* its first 37 were not computed */
            memcpy(child->out + at(layer, 0) * w->q_width,
                   w->seq[0].out + at(layer, 0) * w->q_width,
                   37 * (size_t)w->q_width * sizeof(float));
            memcpy(child->turned + at(layer, 0) * w->q_width,
                   w->seq[0].turned + at(layer, 0) * w->q_width,
                   37 * (size_t)w->q_width * sizeof(float));
        }
        check_seq(w, &w->seq[0]);
        check_seq(w, child);
        world_close(w);
    }
}

/* Fills the blocks that will be taken next with what is not a number, and gives them back. */
static void poison(struct world *w)
{
    w->poisoning = true;
    for (int32_t i = 0; i < SEQS; i++) {
        add_row(w, i, LENGTH_MAX);
        run_step(w);
    }
    w->poisoning = false;
    for (int32_t i = SEQS - 1; i >= 0; i--) {
        struct seq *seq = &w->seq[i];
        for (int32_t j = seq->block_count - 1; j >= 0; j--) {
            for (int32_t g = w->shape->groups - 1; g >= 0; g--)
                w->free_block[w->free_count++] = seq->block[g][j];
        }
        seq->done = seq->block_count = 0;
        memset(seq->out, 0, (size_t)LAYERS * LENGTH_MAX * (size_t)w->q_width * sizeof(float));
    }
}

static void what_another_sequence_left_in_a_block_does_not_matter(void)
{
    for (size_t s = 0; s < SHAPES; s++) {
        if (!test_takes(s))
            continue;
        struct world *clean = world_ready(&shape_case[s]), *used = world_ready(&shape_case[s]);
        run_mixed(clean, 5);
        poison(used);
        run_mixed(used, 5);
        EXPECT(equal_bits(clean, used));
        world_close(clean);
        world_close(used);
    }
}

static void tests(void)
{
    TEST(attention_is_near_the_reference_however_a_prompt_is_cut);
    TEST(forks_go_on_from_a_copy_of_the_half_full_block);
    TEST(what_another_sequence_left_in_a_block_does_not_matter);
}

int main(int argc, char **argv)
{
    return run_subjects(argc, argv, tests);
}
