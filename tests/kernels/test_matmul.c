/* bf16 weights in products of many sizes: a token's outputs are near the reference, and have the
 * same bits whatever is beside it in the step. */
#include "tests/kernels/harness.h"

#include <errno.h>

enum { TOKENS = 600 };

/* Around the sizes at which a backend goes over to another way. */
static const int32_t token_case[] = {1,  2,  5,   8,   9,   16,  17,  32,  33,  64,
                                     65, 96, 128, 129, 200, 256, 257, 300, 513, TOKENS};
enum { TOKEN_CASES = sizeof(token_case) / sizeof(*token_case) };

struct product {
    struct device *device;
    int32_t out, in;
    bool f32;   /* logits */
    bool gated; /* act(gate) * up of two halves */
    struct weight weight;
    struct activation x, y, gate_up;
    float *logits;
    float *value, *bias, *plain;
};

static uint16_t *random_bf16(uint64_t *seed, int64_t count, float scale, float *plain)
{
    uint16_t *data = malloc((size_t)count * sizeof(*data));

    assert(data != NULL);
    for (int64_t i = 0; i < count; i++) {
        union {
            float value;
            uint32_t bits;
        } number = {.value = random_float(seed) * scale};
        number.bits &= 0xffff0000u;
        data[i] = (uint16_t)(number.bits >> 16);
        plain[i] = number.value;
    }
    return data;
}

/* The weight in up to three parts, as q, k and v are. */
static struct product make(int32_t out, int32_t in, int32_t part_count, bool f32, bool gated)
{
    struct product p = {.out = out, .in = in, .f32 = f32, .gated = gated};
    struct device_options options = small_options();
    struct weight_source source[3];
    uint64_t seed = (uint64_t)out * 31 + (uint64_t)in;
    int32_t done = 0;

    options.vocab_count = out;
    options.token_max = TOKENS;
    options.sample_max = TOKENS;
    p.device = open_device(&options);
    p.plain = malloc((size_t)out * (size_t)in * sizeof(float));
    assert(p.plain != NULL);
    uint16_t *data = random_bf16(&seed, (int64_t)out * in, 0.05f, p.plain);
    for (int32_t i = 0; i < part_count; i++) {
        int32_t rows = i == part_count - 1 ? out - done : out / part_count / (gated ? 1 : 2);
        source[i] = (struct weight_source){FORMAT_BF16, rows, in, data + (int64_t)done * in};
        done += rows;
    }
    p.bias = f32 ? NULL : random_floats(&seed, out, 1.0f);
    EXPECT_INT(subject.ops->weight_pack(p.device, &p.weight, source, part_count, p.bias, gated), ==,
               0);
    free(data);
    p.value = random_floats(&seed, (int64_t)TOKENS * in, 1.0f);
    p.x = new_activation(p.device, TOKENS, (in + 31) / 32 * 32);
    p.y = new_activation(p.device, TOKENS, (out + 31) / 32 * 32);
    put_rounded(p.device, p.x, p.value, TOKENS, in);
    p.gate_up = new_activation(p.device, TOKENS, (out + 31) / 32 * 32);
    p.logits = subject.ops->alloc(p.device, (size_t)TOKENS * (size_t)out * sizeof(float));
    return p;
}

static void end(struct product *p)
{
    subject.ops->close(p->device);
    free(p->value);
    free(p->bias);
    free(p->plain);
}

/* How many outputs a token has in the end. */
static int32_t width(const struct product *p)
{
    return p->gated ? p->out / 2 : p->out;
}

/* The outputs of the first T tokens. */
static void run(struct product *p, float *got, int32_t T)
{
    size_t bytes = (size_t)T * (size_t)p->out * sizeof(float);

    if (p->f32) {
        subject.ops->logits(p->device, p->logits, p->x, &p->weight, 0.0f, T);
        subject.ops->download(p->device, got, p->logits, bytes);
    } else if (p->gated) {
        subject.ops->gated_linear(p->device, p->y, p->gate_up, p->x, &p->weight, ACT_SILU, T);
        subject.ops->get(p->device, got, p->y, T, width(p));
    } else {
        subject.ops->linear(p->device, p->y, p->x, &p->weight, T);
        subject.ops->get(p->device, got, p->y, T, p->out);
    }
}

static void check_product(struct product p, int32_t most)
{
    int32_t out = width(&p), in = p.in;
    float *all = malloc((size_t)most * (size_t)out * sizeof(*all));
    float *got = malloc((size_t)most * (size_t)out * sizeof(*got));
    double *sum = malloc((size_t)p.out * sizeof(*sum));
    double *expected = malloc((size_t)p.out * sizeof(*expected));
    double *wide = doubles(p.value, (int64_t)TOKENS * in);

    run(&p, all, most);
    for (int32_t t = 0; t < most; t += most / 7) {
        reference_linear(sum, wide + (int64_t)t * in, p.plain, p.bias, p.out, in);
        if (p.gated)
            reference_act_mul(expected, sum, ACT_SILU, out);
        else
            memcpy(expected, sum, (size_t)out * sizeof(*sum));
        EXPECT(close_to("product", expected, all + (int64_t)t * out, out, subject.tolerance));
    }
    for (int i = 0; i < TOKEN_CASES && token_case[i] <= most; i++) {
        int32_t T = token_case[i];
        run(&p, got, T);
        if (memcmp(got, all, (size_t)T * (size_t)out * sizeof(*got)) == 0)
            continue;
        printf("%s: %d x %d: %d tokens have other bits than in %d\n", subject.name, out, in, T,
               most);
        EXPECT(!"the same bits");
    }
    free(all);
    free(got);
    free(expected);
    free(sum);
    free(wide);
    end(&p);
}

static void check(int32_t out, int32_t in, int32_t part_count, bool f32, int32_t most)
{
    check_product(make(out, in, part_count, f32, false), most);
}

static void check_gated(int32_t out, int32_t in, int32_t part_count, int32_t most)
{
    check_product(make(2 * out, in, part_count, false, true), most);
}

static void a_token_has_the_same_bits_in_any_step(void)
{
    check(64, 64, 1, false, TOKENS);
    check(72, 200, 1, false, TOKENS);  /* no multiple of a tile in any way */
    check(640, 128, 3, false, TOKENS); /* parts */
    check(8, 72, 1, false, 64);
    check(257, 65, 1, false, 64); /* single columns */
}

static void logits_have_the_same_bits_in_any_step(void)
{
    check(1000, 64, 1, true, TOKENS);
    check(1001, 72, 1, true, 64);
}

static void gate_and_up_have_the_same_bits_in_any_step(void)
{
    check_gated(64, 64, 2, TOKENS);
    check_gated(200, 72, 2, TOKENS);
    check_gated(96, 128, 1, TOKENS); /* one tensor of both */
    check_gated(33, 65, 2, 64);
}

/* Shapes of Qwen3 0.6B and Llama 8B: too slow for a reference on one processor. */
static void shapes_of_models_too(void)
{
    if (subject.is_cpu)
        return;
    check(4096, 1024, 3, false, TOKENS);
    check(1024, 3072, 1, false, TOKENS);
    check(6144, 4096, 3, false, TOKENS);
    check(4096, 14336, 1, false, TOKENS);
    check(151936, 1024, 1, true, 64);
    check_gated(3072, 1024, 2, TOKENS);
    check_gated(14336, 4096, 2, TOKENS);
}

static int take(struct product *p, const char *text)
{
    struct tuned_line line;

    return tuned_parse(&line, text) ? subject.ops->tuned(p->device, &line) : -EINVAL;
}

/* What a table of ways says changes speed alone. */
static void check_tuned(int32_t out, int32_t in, bool f32, bool gated)
{
    static const int32_t tuned_case[] = {1, 24, 64, 200, 256, 512};
    struct product p = make(out, in, 1, f32, gated);
    const struct weight *weight = &p.weight;
    int32_t most = f32 ? 256 : TOKENS, columns = width(&p);
    float *all = malloc((size_t)most * (size_t)out * sizeof(*all));
    float *got = malloc((size_t)most * (size_t)out * sizeof(*got));

    assert(all != NULL && got != NULL);
    run(&p, all, most);
    for (size_t i = 0; i < sizeof(tuned_case) / sizeof(*tuned_case); i++) {
        int32_t T = tuned_case[i];
        struct tuned_line line = {0};
        char text[TUNED_TEXT_MAX];
        if (T > most)
            continue;
        EXPECT_INT(subject.ops->tune(p.device, &weight, 1, f32, T, &line), ==, 0);
        tuned_print(&line, text);
        EXPECT(tuned_parse(&line, text));
        EXPECT_INT(line.token_count, ==, T);
        EXPECT_INT(take(&p, text), ==, 0);
        run(&p, got, T);
        EXPECT(memcmp(got, all, (size_t)T * (size_t)columns * sizeof(*got)) == 0);
    }
    EXPECT_INT(take(&p, "nothing"), ==, -EINVAL);
    free(all);
    free(got);
    end(&p);
}

static void a_table_changes_no_bits(void)
{
    if (subject.ops->tune == NULL || subject.portable) { /* Hopper's products have ways */
        test_skipped++;
        return;
    }
    check_tuned(1024, 3072, false, false);
    check_tuned(6144, 1024, false, true);
    check_tuned(32000, 1024, true, false);
}

/* A kernel that goes takes its lines with it: configs/tune is to be measured anew. */
static void every_line_of_the_built_in_tables_has_its_way(void)
{
    if (subject.ops->tune == NULL || subject.portable) {
        test_skipped++;
        return;
    }
    struct product p = make(1024, 1024, 1, false, false);
    for (const char *at = tuned_builtin; *at != '\0'; at += strcspn(at, "\n") + 1) {
        char text[TUNED_TEXT_MAX];

        snprintf(text, sizeof(text), "%.*s", (int)strcspn(at, "\n"), at);
        if (text[0] != '#' && strncmp(text, "device ", 7) != 0 && take(&p, text) != 0)
            EXPECT_STRING(text, "a way of this build");
    }
    EXPECT_INT(take(&p, "bf16 1024 1024 8: few 1 8 1 4 rows 24"), ==, -ENOTSUP);
    EXPECT_INT(take(&p, "bf16 1024 1024 8: few 1 12 1 4 rows 64"), ==, -ENOTSUP);
    end(&p);
}

static void tests(void)
{
    TEST(a_token_has_the_same_bits_in_any_step);
    TEST(logits_have_the_same_bits_in_any_step);
    TEST(gate_and_up_have_the_same_bits_in_any_step);
    TEST(shapes_of_models_too);
    TEST(a_table_changes_no_bits);
    TEST(every_line_of_the_built_in_tables_has_its_way);
}

int main(int argc, char **argv)
{
    return run_subjects(argc, argv, tests);
}
