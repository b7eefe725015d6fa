/* Ops that work on each token alone, and linear in every format, against the reference, on every
 * backend and instruction set of this machine. test_attention, test_sample and test_chain have
 * the rest. */
#include "tests/kernels/harness.h"

/* Widths around the vector lengths, all small ones, and those of models. */
static const int32_t width_case[] = {1, 2, 3, 4, 5, 8, 15, 16, 17, 31, 33, 64, 96, 640, 1152};
enum { WIDTHS = sizeof(width_case) / sizeof(*width_case) };

static void norm_is_the_formula(void)
{
    for (int w = 0; w < WIDTHS; w++) {
        int32_t D = width_case[w], rows = 1 + w % 5;
        uint64_t seed = (uint64_t)D;
        struct device_options options = small_options();
        struct device *device = open_device(&options);
        struct activation x = new_residual(device, rows, D + 3);
        struct activation out = new_activation(device, rows, D + 5);
        float *value = random_floats(&seed, (int64_t)rows * D, 3.0f);
        float *weight = random_floats(&seed, D, 1.0f);
        float *got = malloc((size_t)rows * (size_t)D * sizeof(*got));
        double expected[2048];

        put_rounded(device, x, value, rows, D);
        subject.ops->norm(device, out, x, upload_floats(device, weight, D), 1e-6f, rows, D);
        subject.ops->get(device, got, out, rows, D);
        double *wide = doubles(value, (int64_t)rows * D);
        for (int32_t r = 0; r < rows; r++) {
            reference_norm(expected, wide + r * D, weight, 1e-6, D);
            EXPECT(close_to("norm", expected, got + r * D, D, subject.tolerance));
        }
        subject.ops->close(device);
        free(value);
        free(weight);
        free(got);
        free(wide);
    }
}

static void check_add_norm(int32_t D, int32_t rows, bool normed)
{
    uint64_t seed = (uint64_t)D + 77;
    struct device_options options = small_options();
    struct device *device = open_device(&options);
    struct activation x = new_residual(device, rows, D), out = new_activation(device, rows, D);
    struct activation branch = new_activation(device, rows, D + 1);
    float *value = random_floats(&seed, (int64_t)rows * D, 2.0f);
    float *other = random_floats(&seed, (int64_t)rows * D, 5.0f);
    float *weight = random_floats(&seed, D, 1.0f);
    float *branch_weight = random_floats(&seed, D, 1.0f);
    float *got = malloc((size_t)rows * (size_t)D * sizeof(*got));
    float *got_x = malloc((size_t)rows * (size_t)D * sizeof(*got));
    double expected[2048];

    put_rounded(device, x, value, rows, D);
    put_rounded(device, branch, other, rows, D);
    subject.ops->add_norm(device, out, x, branch,
                          normed ? upload_floats(device, branch_weight, D) : NULL,
                          upload_floats(device, weight, D), 1e-6f, rows, D);
    subject.ops->get(device, got, out, rows, D);
    subject.ops->get(device, got_x, x, rows, D);
    double *wide = doubles(value, (int64_t)rows * D);
    double *wide_branch = doubles(other, (int64_t)rows * D);
    for (int32_t r = 0; r < rows; r++) {
        reference_add_norm(expected, wide + r * D, wide_branch + r * D,
                           normed ? branch_weight : NULL, weight, 1e-6, D);
        EXPECT(close_to("add_norm", expected, got + r * D, D, 2 * subject.tolerance));
        EXPECT(close_to("x of add_norm", wide + r * D, got_x + r * D, D, subject.tolerance));
    }
    subject.ops->close(device);
    free(value);
    free(other);
    free(weight);
    free(branch_weight);
    free(got);
    free(got_x);
    free(wide);
    free(wide_branch);
}

static void add_norm_adds_the_branch_then_norms(void)
{
    for (int w = 0; w < WIDTHS; w++) {
        check_add_norm(width_case[w], 1 + w % 4, false);
        check_add_norm(width_case[w], 1 + w % 4, true);
    }
}

static void check_act_mul(int32_t F, enum act_kind act)
{
    enum { ROWS = 3 };
    uint64_t seed = (uint64_t)F + 5;
    struct device_options options = small_options();
    struct device *device = open_device(&options);
    struct activation x = new_activation(device, ROWS, 2 * F + 1);
    struct activation out = new_activation(device, ROWS, F);
    float *value = random_floats(&seed, (int64_t)ROWS * 2 * F, 4.0f);
    float *got = malloc((size_t)ROWS * (size_t)F * sizeof(*got));
    double expected[2048];

    value[0] = -100.0f; /* tails: 0, the value itself, and what is between */
    value[2 * F] = 100.0f;
    value[4 * F] = act == ACT_SILU ? -12.0f : -4.0f;
    put_rounded(device, x, value, ROWS, 2 * F);
    subject.ops->act_mul(device, out, x, act, ROWS, F);
    subject.ops->get(device, got, out, ROWS, F);
    double *wide = doubles(value, (int64_t)ROWS * 2 * F);
    for (int32_t r = 0; r < ROWS; r++) {
        reference_act_mul(expected, wide + r * 2 * F, act, F);
        EXPECT(close_to("act_mul", expected, got + r * F, F, subject.tolerance));
    }
    subject.ops->close(device);
    free(value);
    free(got);
    free(wide);
}

static void act_mul_is_the_formula(void)
{
    for (int w = 0; w < WIDTHS; w++) {
        check_act_mul(width_case[w], ACT_SILU);
        check_act_mul(width_case[w], ACT_GELU_TANH);
    }
}

/* ---- weights of every format: random bytes, with the scales made sane ---- */

struct scale_place {
    int32_t first, second; /* offsets of f16 scales in a block, or -1 */
};

static struct scale_place scale_place(enum format format)
{
    switch (format) {
    case FORMAT_Q4_0:
    case FORMAT_Q5_0:
    case FORMAT_Q8_0:
    case FORMAT_IQ4_NL:
    case FORMAT_IQ4_XS:
        return (struct scale_place){0, -1};
    case FORMAT_Q4_1:
    case FORMAT_Q5_1:
    case FORMAT_Q4_K:
    case FORMAT_Q5_K:
        return (struct scale_place){0, 2};
    case FORMAT_Q2_K:
        return (struct scale_place){80, 82};
    case FORMAT_Q3_K:
        return (struct scale_place){108, -1};
    case FORMAT_Q6_K:
        return (struct scale_place){208, -1};
    default:
        return (struct scale_place){-1, -1};
    }
}

/* A half between 2^-10 and 2^-6. */
static void set_scale(uint8_t *block, int32_t offset, uint64_t *seed)
{
    if (offset < 0)
        return;
    block[offset] = (uint8_t)random_next(seed);
    block[offset + 1] = (uint8_t)(0x14 + random_below(seed, 0x10));
}

static void sane_value(uint8_t *block, enum format format, uint64_t *seed)
{
    float value = random_float(seed) * 0.1f;
    uint32_t bits;

    memcpy(&bits, &value, sizeof(bits));
    if (format == FORMAT_F32)
        memcpy(block, &bits, sizeof(bits));
    if (format == FORMAT_BF16) {
        block[0] = (uint8_t)(bits >> 16);
        block[1] = (uint8_t)(bits >> 24);
    }
    if (format == FORMAT_F16)
        block[1] = (uint8_t)((block[1] & 0x83) | (0x20 + random_below(seed, 0xc)));
    if (format == FORMAT_MXFP4)
        block[0] = (uint8_t)(118 + random_below(seed, 6));
}

static uint8_t *random_weight(uint64_t *seed, enum format format, int32_t out, int32_t in)
{
    const struct format_info *info = format_info(format);
    int64_t blocks = (int64_t)out * in / info->block_values;
    uint8_t *data = malloc((size_t)blocks * (size_t)info->block_bytes);
    struct scale_place place = scale_place(format);

    assert(data != NULL && in % info->block_values == 0);
    for (int64_t i = 0; i < blocks * info->block_bytes; i++)
        data[i] = (uint8_t)random_next(seed);
    for (int64_t b = 0; b < blocks; b++) {
        uint8_t *block = data + b * info->block_bytes;
        set_scale(block, place.first, seed);
        set_scale(block, place.second, seed);
        sane_value(block, format, seed);
    }
    return data;
}

static float *dequantised(const uint8_t *data, enum format format, int32_t out, int32_t in)
{
    int64_t count = (int64_t)out * in;
    float *value = malloc((size_t)count * sizeof(*value));

    assert(value != NULL);
    format_dequantise(format, data, count / format_info(format)->block_values, value);
    return value;
}

static void check_linear_at(enum format format, int32_t out, int32_t in, int32_t T, int64_t stride)
{
    uint64_t seed = (uint64_t)format * 1000003u + (uint64_t)(out * 31 + in * 7 + T);
    struct device_options options = small_options();
    struct device *device = open_device(&options);
    uint8_t *data = random_weight(&seed, format, out, in);
    float *bias = T % 2 == 0 ? random_floats(&seed, out, 1.0f) : NULL;
    float *value = random_floats(&seed, (int64_t)T * in, 1.0f);
    float *got = malloc((size_t)T * (size_t)out * sizeof(*got));
    double *expected = malloc((size_t)out * sizeof(*expected));
    struct activation x = new_activation(device, T, in);
    struct activation y = new_activation(device, T, stride);
    struct weight weight;
    struct weight_source source = {format, out, in, data};

    EXPECT_INT(subject.ops->weight_pack(device, &weight, &source, 1, bias, false), ==, 0);
    put_rounded(device, x, value, T, in);
    subject.ops->linear(device, y, x, &weight, T);
    subject.ops->get(device, got, y, T, out);
    float *plain = dequantised(data, format, out, in);
    double *wide = doubles(value, (int64_t)T * in);
    for (int32_t t = 0; t < T; t++) {
        reference_linear(expected, wide + (int64_t)t * in, plain, bias, out, in);
        if (!close_to(format_info(format)->name, expected, got + (int64_t)t * out, out,
                      subject.loose)) {
            EXPECT(!"linear is near the reference");
            break;
        }
    }
    subject.ops->close(device);
    free(data);
    free(bias);
    free(value);
    free(got);
    free(expected);
    free(plain);
    free(wide);
}

/* Rows that begin anywhere, and rows of whole chunks, which may be read in other ways. */
static void check_linear(enum format format, int32_t out, int32_t in, int32_t T)
{
    check_linear_at(format, out, in, T, out + 1);
    check_linear_at(format, out, in, T, (out + 31) / 32 * 32);
}

/* The bits of a token's outputs do not depend on how many others there are. */
static void linear_has_the_same_bits_in_any_step(void)
{
    enum { OUT = 200, IN = 768, MOST = 256 };
    static const int32_t few[] = {1, 2, 8, 9, 17, 32, 33, 70, 128, 130};

    for (int format = 0; format < FORMAT_COUNT; format++) {
        uint64_t seed = 77 + (uint64_t)format;
        struct device_options options = small_options();
        struct device *device = open_device(&options);
        uint8_t *data = random_weight(&seed, (enum format)format, OUT, IN);
        float *value = random_floats(&seed, (int64_t)MOST * IN, 1.0f);
        float *all = malloc(sizeof(float) * MOST * OUT), *got = malloc(sizeof(float) * MOST * OUT);
        struct activation x = new_activation(device, MOST, IN);
        struct activation y = new_activation(device, MOST, 224);
        struct weight_source source = {(enum format)format, OUT, IN, data};
        struct weight weight;

        EXPECT_INT(subject.ops->weight_pack(device, &weight, &source, 1, NULL, false), ==, 0);
        put_rounded(device, x, value, MOST, IN);
        subject.ops->linear(device, y, x, &weight, MOST);
        subject.ops->get(device, all, y, MOST, OUT);
        for (size_t i = 0; i < sizeof(few) / sizeof(*few); i++) {
            subject.ops->linear(device, y, x, &weight, few[i]);
            subject.ops->get(device, got, y, few[i], OUT);
            bool same = memcmp(got, all, sizeof(float) * (size_t)few[i] * OUT) == 0;
            if (!same)
                printf("%s: %s: %d tokens\n", subject.name, format_info((enum format)format)->name,
                       few[i]);
            EXPECT(same);
        }
        subject.ops->close(device);
        free(data);
        free(value);
        free(all);
        free(got);
    }
}

static void linear_is_near_the_reference_in_every_format(void)
{
    for (int format = 0; format < FORMAT_COUNT; format++) {
        int32_t block = format_info((enum format)format)->block_values;
        check_linear((enum format)format, 1, block, 1);
        check_linear((enum format)format, 16, 2 * block, 2);
        check_linear((enum format)format, 33, 512, 3);
        check_linear((enum format)format, 48, 768, 17);
        check_linear((enum format)format, 20, 256, 70);
    }
}

static void linear_works_at_every_small_shape(void)
{
    for (int32_t out = 1; out <= 4; out++) {
        for (int32_t in = 1; in <= 4; in++) {
            for (int32_t T = 1; T <= 4; T++)
                check_linear(FORMAT_F32, out, in, T);
        }
    }
}

/* Parts of different formats joined along their outputs, as q, k and v are. */
static void linear_joins_parts(void)
{
    enum { IN = 256, T = 5, OUT = 40 + 24 + 7 };
    static const enum format format[3] = {FORMAT_Q5_0, FORMAT_Q8_0, FORMAT_F16};
    static const int32_t out[3] = {40, 24, 7};
    uint64_t seed = 9;
    struct device_options options = small_options();
    struct device *device = open_device(&options);
    struct weight_source source[3];
    struct weight weight;
    uint8_t *data[3];
    float *value = random_floats(&seed, (int64_t)T * IN, 1.0f), got[T * OUT];
    struct activation x = new_activation(device, T, IN), y = new_activation(device, T, OUT);

    for (int i = 0; i < 3; i++) {
        data[i] = random_weight(&seed, format[i], out[i], IN);
        source[i] = (struct weight_source){format[i], out[i], IN, data[i]};
    }
    EXPECT_INT(subject.ops->weight_pack(device, &weight, source, 3, NULL, false), ==, 0);
    EXPECT_INT(weight.out, ==, OUT);
    put_rounded(device, x, value, T, IN);
    subject.ops->linear(device, y, x, &weight, T);
    subject.ops->get(device, got, y, T, OUT);
    double *wide = doubles(value, (int64_t)T * IN);
    for (int i = 0, first = 0; i < 3; first += out[i++]) {
        float *plain = dequantised(data[i], format[i], out[i], IN);
        for (int t = 0; t < T; t++) {
            double expected[64];
            reference_linear(expected, wide + t * IN, plain, NULL, out[i], IN);
            EXPECT(close_to("part", expected, got + t * OUT + first, out[i], subject.loose));
        }
        free(plain);
        free(data[i]);
    }
    subject.ops->close(device);
    free(value);
    free(wide);
}

static void logits_are_capped(void)
{
    enum { IN = 64, V = 999, S = 3 };
    uint64_t seed = 4;
    struct device_options options = small_options();
    options.vocab_count = V;
    struct device *device = open_device(&options);
    uint8_t *data = random_weight(&seed, FORMAT_Q8_0, V, IN);
    float *value = random_floats(&seed, (int64_t)S * IN, 8.0f);
    float *got = malloc(S * V * sizeof(*got));
    struct activation x = new_activation(device, S, IN);
    float *logits = subject.ops->alloc(device, S * V * sizeof(*logits));
    struct weight weight;
    struct weight_source source = {FORMAT_Q8_0, V, IN, data};
    double expected[V];

    EXPECT_INT(subject.ops->weight_pack(device, &weight, &source, 1, NULL, false), ==, 0);
    put_rounded(device, x, value, S, IN);
    subject.ops->logits(device, logits, x, &weight, 30.0f, S);
    subject.ops->download(device, got, logits, S * V * sizeof(*got));
    float *plain = dequantised(data, FORMAT_Q8_0, V, IN);
    double *wide = doubles(value, (int64_t)S * IN);
    for (int s = 0; s < S; s++) {
        reference_linear(expected, wide + s * IN, plain, NULL, V, IN);
        for (int i = 0; i < V; i++)
            expected[i] = reference_softcap(expected[i], 30.0);
        EXPECT(close_to("logits", expected, got + s * V, V, subject.loose));
    }
    subject.ops->close(device);
    free(data);
    free(value);
    free(got);
    free(plain);
    free(wide);
}

/* One row of T tokens in slot 0, for ops that read the step's tokens. */
static void begin_tokens(struct device *device, int32_t *token, int32_t T, int32_t sample_count,
                         struct step_sample *sample)
{
    struct step_row row = {.token_count = T};
    struct step step = {.row_count = 1, .token_count = T, .row = &row, .token = token};

    step.sample_count = sample_count;
    step.sample = sample;
    subject.ops->step_begin(device, &step);
}

static void embed_gives_scaled_rows(void)
{
    enum { D = 256, V = 100, T = 9, PADDED = 12 };
    for (int format = 0; format < FORMAT_COUNT; format++) {
        uint64_t seed = 3 + (uint64_t)format;
        struct device_options options = small_options();
        options.vocab_count = V;
        struct device *device = open_device(&options);
        uint8_t *data = random_weight(&seed, (enum format)format, V, D);
        float *plain = dequantised(data, (enum format)format, V, D);
        struct activation out = new_residual(device, PADDED, D);
        struct weight weight;
        struct weight_source source = {(enum format)format, V, D, data};
        int32_t token[T];
        float got[PADDED * D];

        for (int t = 0; t < T; t++)
            token[t] = t == 0 ? V - 1 : random_below(&seed, V);
        EXPECT_INT(subject.ops->weight_pack(device, &weight, &source, 1, NULL, false), ==, 0);
        begin_tokens(device, token, T, 0, NULL);
        subject.ops->embed(device, out, &weight, 25.25f, PADDED);
        subject.ops->get(device, got, out, PADDED, D);
        for (int t = 0; t < T; t++) {
            double expected[D];
            for (int i = 0; i < D; i++)
                expected[i] = (double)plain[token[t] * D + i] * 25.25;
            EXPECT(close_to("embed", expected, got + t * D, D, subject.tolerance));
        }
        subject.ops->close(device);
        free(data);
        free(plain);
    }
}

static void check_gather(bool residual)
{
    enum { D = 33, T = 6, S = 4 };
    uint64_t seed = 8;
    struct device_options options = small_options();
    struct device *device = open_device(&options);
    struct activation x = residual ? new_residual(device, T, D) : new_activation(device, T, D);
    struct activation out =
        residual ? new_residual(device, S, D + 2) : new_activation(device, S, D + 2);
    float *value = random_floats(&seed, T * D, 1.0f), got[S * D];
    int32_t token[T] = {0};
    struct step_sample sample[S] = {{.index = 5}, {.index = 0}, {.index = 5}, {.index = 3}};

    put_rounded(device, x, value, T, D);
    begin_tokens(device, token, T, S, sample);
    subject.ops->gather(device, out, x, S, D);
    subject.ops->get(device, got, out, S, D);
    for (int s = 0; s < S; s++)
        EXPECT(memcmp(got + s * D, value + sample[s].index * D, D * sizeof(float)) == 0);
    subject.ops->close(device);
    free(value);
}

static void gather_takes_the_rows_of_samples(void)
{
    check_gather(false);
    check_gather(true);
}

static void memory_is_zeroed_and_kept_apart(void)
{
    struct device_options options = small_options();
    struct device *device = open_device(&options);
    static const size_t bytes[] = {1, 64, 4096, 3 << 20};
    uint8_t *copy = malloc(3 << 20);

    EXPECT(subject.ops->memory_free(device) > 0);
    EXPECT(strlen(subject.ops->describe(device)) > 0);
    for (int i = 0; i < 4; i++) {
        uint8_t *data = subject.ops->alloc(device, bytes[i]);
        int32_t set = 0;
        subject.ops->download(device, copy, data, bytes[i]);
        for (size_t j = 0; j < bytes[i]; j++)
            set += copy[j] != 0;
        EXPECT_INT(set, ==, 0);
        memset(copy, 0xff, bytes[i]);
        subject.ops->upload(device, data, copy, bytes[i]);
    }
    EXPECT(subject.ops->alloc(device, (size_t)1 << 50) == NULL);
    subject.ops->close(device);
    free(copy);
}

/* Error of `got` in units of the last place of what it should be. */
static double ulps(float got, double expected)
{
    float size = fabsf((float)expected);
    return fabs((double)got - expected) / (double)(nextafterf(size, INFINITY) - size);
}

static double silu(double x)
{
    return x / (1.0 + exp(-x));
}

static double gelu(double x)
{
    return x / (1.0 + exp(-2.0 * sqrt(2.0 / M_PI) * x * (1.0 + 0.044715 * x * x)));
}

/* The bounds of docs/kernels.md, on a grid that no two of its points share bits with. */
static void functions_are_within_their_stated_errors(void)
{
    const struct cpu_vector *vector = cpu_vector(subject.isa);
    double worst_exp = 0, worst_tanh = 0, worst_silu = 0, worst_gelu = 0;
    float one = 1.0f, y;

    if (!subject.is_cpu)
        SKIP("its functions are its compiler's");
    for (int32_t i = -26000; i <= 26000; i++) {
        float x = (float)i * 0.003337f;
        vector->chunk_weights(&y, &x, 1, 0.0f, 1.0f);
        worst_exp = fmax(worst_exp, ulps(y, exp((double)x)));
        vector->act_mul(&y, &x, &one, ACT_SILU, 1);
        if (i != 0)
            worst_silu = fmax(worst_silu, ulps(y, silu((double)x)));
        x *= 0.1f;
        vector->act_mul(&y, &x, &one, ACT_GELU_TANH, 1);
        if (i != 0)
            worst_gelu = fmax(worst_gelu, fabs((double)y - gelu((double)x)) / fabs((double)x));
        y = x;
        vector->softcap(&y, 1.0f, 1);
        if (i != 0)
            worst_tanh = fmax(worst_tanh, ulps(y, tanh((double)x)));
    }
    EXPECT(worst_exp <= 2.0);
    EXPECT(worst_tanh <= 2.0);
    EXPECT(worst_silu <= 4.0);
    EXPECT(worst_gelu <= 1.0 / (1 << 22));
    float below = -90.0f;
    vector->chunk_weights(&y, &below, 1, 0.0f, 1.0f);
    EXPECT(y == 0.0f);
}

/* Every half to f32 and back, and the roundings between, on the processor's own functions. */
static void halves_are_rounded_to_even_and_saturate(void)
{
    const struct cpu_vector *vector = cpu_vector(subject.isa);

    if (!subject.is_cpu)
        SKIP("its halves are its compiler's");
    for (int32_t i = 0; i < 0x7c00; i++) {
        uint16_t half = (uint16_t)i, back[3];
        float value, next;
        vector->load_value(&value, &half, 1);
        EXPECT((double)value == reference_round((double)value, REFERENCE_F16));
        half = (uint16_t)(i + 1 < 0x7c00 ? i + 1 : i);
        vector->load_value(&next, &half, 1);
        float middle = (value + next) * 0.5f;
        const float x[3] = {value, -middle, nextafterf(middle, INFINITY)};
        vector->to_f16(back, x, 3);
        EXPECT_INT(back[0], ==, i);
        vector->load_value(&value, &back[1], 1);
        EXPECT((double)value == reference_round((double)-middle, REFERENCE_F16));
        vector->load_value(&value, &back[2], 1);
        EXPECT((double)value == reference_round((double)x[2], REFERENCE_F16));
    }
    const float beyond[3] = {1e9f, -70000.0f, NAN};
    uint16_t half[3];
    vector->to_f16(half, beyond, 3);
    EXPECT_INT(half[0], ==, 0x7bff);
    EXPECT_INT(half[1], ==, 0xfbff);
    EXPECT((half[2] & 0x7fff) > 0x7c00);
}

static void tests(void)
{
    TEST(functions_are_within_their_stated_errors);
    TEST(halves_are_rounded_to_even_and_saturate);
    TEST(norm_is_the_formula);
    TEST(add_norm_adds_the_branch_then_norms);
    TEST(act_mul_is_the_formula);
    TEST(linear_has_the_same_bits_in_any_step);
    TEST(linear_works_at_every_small_shape);
    TEST(linear_is_near_the_reference_in_every_format);
    TEST(linear_joins_parts);
    TEST(logits_are_capped);
    TEST(embed_gives_scaled_rows);
    TEST(gather_takes_the_rows_of_samples);
    TEST(memory_is_zeroed_and_kept_apart);
}

int main(int argc, char **argv)
{
    return run_subjects(argc, argv, tests);
}
