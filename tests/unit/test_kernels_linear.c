/* linear of the CPU backend: every format on every instruction set of this machine, against double
 * precision; the promise that a token's bits depend on that token alone; the pool. */
#include "kernels/cpu/linear.h"
#include "kernels/format_codes.h"

#include "tests/test.h"

#include <math.h>
#include <stdatomic.h>
#include <time.h>

enum { T_MAX = 40, OUT_MAX = 160, IN_MAX = 1024 };

/* ---- a small world ---- */

static uint64_t random_state;

static uint32_t random_bits(void)
{
    random_state = random_state * 6364136223846793005U + 1442695040888963407U;
    return (uint32_t)(random_state >> 32);
}

/* In [-1, 1). */
static float random_unit(void)
{
    return (float)(int32_t)random_bits() * 0x1p-31F;
}

static void put_half(uint8_t *target, bool brain)
{
    /* Between 1/64 and 1/32, either sign. */
    uint32_t mantissa = random_bits(), sign = (random_bits() & 1) << 15;
    uint32_t half = brain ? 0x3c80U | (mantissa & 127) : 0x2400U | (mantissa & 1023);

    half |= sign;
    target[0] = (uint8_t)half;
    target[1] = (uint8_t)(half >> 8);
}

/* A block of random codes with scales of a sane size. */
static void random_block(enum format format, uint8_t *block)
{
    static const int32_t first_half[FORMAT_COUNT] = {
        [FORMAT_Q2_K] = 80, [FORMAT_Q3_K] = 108, [FORMAT_Q6_K] = 208};
    const struct format_info *info = format_info(format);
    bool two = format == FORMAT_Q4_1 || format == FORMAT_Q5_1 || format == FORMAT_Q2_K ||
               format == FORMAT_Q4_K || format == FORMAT_Q5_K;

    for (int32_t i = 0; i < info->block_bytes; i++)
        block[i] = (uint8_t)random_bits();
    if (format == FORMAT_F32) {
        float value = random_unit();

        memcpy(block, &value, sizeof value);
    } else if (format == FORMAT_MXFP4) {
        block[0] = (uint8_t)(120 + random_bits() % 4);
    } else {
        put_half(block + first_half[format], format == FORMAT_BF16);
    }
    if (two)
        put_half(block + first_half[format] + 2, false);
}

static void *aligned(size_t bytes)
{
    void *memory = aligned_alloc(LINEAR_ALIGN, (bytes / LINEAR_ALIGN + 1) * LINEAR_ALIGN);

    if (memory == NULL)
        abort();
    memset(memory, 0xa5, bytes);
    return memory;
}

struct tensor {
    struct weight_source source;
    struct weight_part part;
    float *value;     /* [out, in] dequantised */
    float *magnitude; /* [out, in] |scale * q| + |min|, what roundings are relative to */
};

static void block_magnitudes(enum format format, const uint8_t *block, const float *value,
                             float *target)
{
    const struct format_scheme *scheme = format_scheme(format);
    struct format_codes codes;

    if (scheme == NULL) {
        target[0] = fabsf(value[0]);
        return;
    }
    format_codes(format, block, &codes);
    for (int32_t i = 0; i < format_info(format)->block_values; i++) {
        float min = codes.min[i / scheme->sub_values];

        target[i] = fabsf(value[i] + min) + fabsf(min);
    }
}

static struct tensor tensor_create(struct pool *pool, enum format format, int32_t out, int32_t in)
{
    const struct format_info *info = format_info(format);
    size_t row_bytes = format_row_bytes(format, in);
    size_t blocks = row_bytes / (size_t)info->block_bytes * (size_t)out;
    uint8_t *data = aligned(row_bytes * (size_t)out);
    struct tensor tensor = {.source = {format, out, in, data}};

    tensor.value = aligned((size_t)out * (size_t)in * sizeof(float));
    tensor.magnitude = aligned((size_t)out * (size_t)in * sizeof(float));
    for (size_t i = 0; i < blocks; i++) {
        uint8_t *block = data + i * (size_t)info->block_bytes;
        size_t first = i * (size_t)info->block_values;

        random_block(format, block);
        format_dequantise(format, block, 1, tensor.value + first);
        block_magnitudes(format, block, tensor.value + first, tensor.magnitude + first);
    }
    tensor.part = (struct weight_part){format, out, aligned(linear_packed_bytes(format, out, in))};
    linear_pack(pool, &tensor.source, tensor.part.data);
    return tensor;
}

static void tensor_free(struct tensor *tensor)
{
    free((void *)tensor->source.data);
    free(tensor->part.data);
    free(tensor->value);
    free(tensor->magnitude);
}

/* A width that fills more than one panel, and not evenly. */
static int32_t width_of(enum format format)
{
    if (format_info(format)->block_values == 1)
        return 301;
    return format_info(format)->block_values == 32 ? 672 : 768;
}

static void random_activations(float *x, int32_t count)
{
    for (int32_t i = 0; i < count; i++)
        x[i] = random_unit() * (random_bits() % 61 == 0 ? 100.0F : 1.0F);
}

static void run(struct pool *pool, enum cpu_isa isa, const struct weight *weight, const float *x,
                float *out, int32_t T)
{
    void *scratch = aligned(linear_scratch_bytes(pool, weight->in, T));
    struct linear_call call = {.weight = weight,
                               .x = x,
                               .x_stride = weight->in,
                               .out = out,
                               .out_stride = weight->out,
                               .T = T,
                               .scratch = scratch};

    linear_run(pool, isa, &call);
    free(scratch);
}

/* ---- against double precision ---- */

/* What one output may be off by. Half a step of each activation (a step is its block's largest
 * magnitude over 32639) times the weight; and half an ulp of all that may have been added so far
 * for each of the additions: one a value for floats; for codes one a sub-block, one for its min,
 * and three for what is added. */
static double tolerance(const struct tensor *tensor, int32_t row, const float *x)
{
    const struct format_scheme *scheme = format_scheme(tensor->source.format);
    int32_t in = tensor->source.in;
    const float *w = tensor->value + (size_t)row * (size_t)in;
    const float *magnitude = tensor->magnitude + (size_t)row * (size_t)in;
    double steps = 0, products = 0;

    for (int32_t i = 0; i < in; i++)
        products += fabs((double)magnitude[i] * x[i]);
    if (scheme == NULL)
        return products * 0x1p-24 * 1.01 * in;
    for (int32_t first = 0; first < in; first += 32) {
        double largest = 0, weights = 0;

        for (int32_t i = first; i < first + 32; i++) {
            largest = fmax(largest, fabs(x[i]));
            weights += fabs(w[i]);
        }
        steps += weights * largest / 32639 * 0.51;
    }
    return steps + products * 0x1p-24 * 1.01 * (3 + 2.0 * in / scheme->sub_values);
}

static int32_t count_wrong(const struct tensor *tensor, const float *x, const float *out, int32_t T)
{
    int32_t in = tensor->source.in, wrong = 0;

    for (int32_t i = 0; i < T * tensor->source.out; i++) {
        int32_t token = i / tensor->source.out, row = i % tensor->source.out;
        const float *from = x + (size_t)token * (size_t)in;
        double exact = 0;

        for (int32_t k = 0; k < in; k++)
            exact += (double)tensor->value[(size_t)row * (size_t)in + (size_t)k] * from[k];
        wrong += !(fabs(out[i] - exact) <= tolerance(tensor, row, from));
    }
    return wrong;
}

/* The result of every T on every instruction set is that of plain C for one token at a time. */
static void check_bits(struct pool *pool, const struct weight *weight, const float *x,
                       const float *expected, const char *name)
{
    static const int32_t sizes[] = {1, 2, 3, 5, 8, 16, 17, 33};
    static float out[T_MAX * OUT_MAX];

    for (enum cpu_isa isa = 0; isa < CPU_ISA_COUNT; isa++) {
        if (!cpu_isa_available(isa))
            continue;
        for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
            size_t count = (size_t)sizes[i] * (size_t)weight->out;

            memset(out, 0, sizeof out);
            run(pool, isa, weight, x, out, sizes[i]);
            if (memcmp(out, expected, count * sizeof *out) != 0) {
                printf("%s on %s with T = %d, out = %d\n", name, cpu_isa_name(isa), sizes[i],
                       weight->out);
                EXPECT(false);
            }
        }
    }
}

static void check_format(struct pool *pool, enum format format, int32_t out)
{
    static float x[T_MAX * IN_MAX], expected[T_MAX * OUT_MAX];
    int32_t in = width_of(format);
    struct tensor tensor = tensor_create(pool, format, out, in);
    struct weight weight = {.part_count = 1, .out = out, .in = in, .part = {tensor.part}};

    random_activations(x, 33 * in);
    for (int32_t token = 0; token < 33; token++)
        run(pool, CPU_ISA_PLAIN, &weight, x + (size_t)token * (size_t)in,
            expected + (size_t)token * (size_t)out, 1);
    EXPECT_INT(count_wrong(&tensor, x, expected, 33), ==, 0);
    check_bits(pool, &weight, x, expected, format_info(format)->name);
    tensor_free(&tensor);
}

static void every_format_on_every_instruction_set_gives_the_same_bits_for_any_number_of_tokens(void)
{
    static const int32_t out[] = {1, 37, 64, 149};
    struct pool *pool = pool_create(2);

    for (enum format format = 0; format < FORMAT_COUNT; format++) {
        for (size_t i = 0; i < sizeof out / sizeof out[0]; i++)
            check_format(pool, format, out[i]);
    }
    pool_destroy(pool);
}

static void a_prompt_of_many_chunks_gives_each_token_what_it_gets_alone(void)
{
    enum { T = 437, OUT = 40, IN = 2048 };
    struct pool *pool = pool_create(3);
    struct tensor tensor = tensor_create(pool, FORMAT_Q6_K, OUT, IN);
    struct weight weight = {.part_count = 1, .out = OUT, .in = IN, .part = {tensor.part}};
    float *x = aligned(sizeof(float) * T * IN), *out = aligned(sizeof(float) * T * OUT);
    int32_t wrong = 0;

    random_activations(x, T * IN);
    run(pool, cpu_isa_best(), &weight, x, out, T);
    for (int32_t token = 0; token < T; token++) {
        float alone[OUT];

        run(pool, cpu_isa_best(), &weight, x + token * IN, alone, 1);
        wrong += memcmp(alone, out + token * OUT, sizeof alone) != 0;
    }
    EXPECT_INT(wrong, ==, 0);
    EXPECT_INT(count_wrong(&tensor, x, out, 8), ==, 0);
    free(x);
    free(out);
    tensor_free(&tensor);
    pool_destroy(pool);
}

static void parts_of_different_formats_are_joined_and_the_bias_is_added(void)
{
    enum { T = 7, IN = 768, OUT = 37 + 20 + 5, STRIDE = OUT + 3, X_STRIDE = IN + 5 };
    struct pool *pool = pool_create(2);
    struct tensor tensor[3] = {tensor_create(pool, FORMAT_Q5_0, 37, IN),
                               tensor_create(pool, FORMAT_BF16, 20, IN),
                               tensor_create(pool, FORMAT_Q4_K, 5, IN)};
    static float x[T * X_STRIDE], out[T * STRIDE], alone[OUT_MAX];
    float bias[OUT];
    struct weight weight = {.part_count = 3, .out = OUT, .in = IN, .bias = bias};
    void *scratch = aligned(linear_scratch_bytes(pool, IN, T));
    struct linear_call call = {.weight = &weight,
                               .x = x,
                               .x_stride = X_STRIDE,
                               .out = out,
                               .out_stride = STRIDE,
                               .T = T,
                               .scratch = scratch};
    int32_t wrong = 0;

    random_activations(x, T * X_STRIDE);
    random_activations(bias, OUT);
    for (int32_t i = 0; i < T * STRIDE; i++)
        out[i] = 77;
    for (int32_t i = 0; i < 3; i++)
        weight.part[i] = tensor[i].part;
    linear_run(pool, cpu_isa_best(), &call);
    for (int32_t token = 0; token < T; token++) {
        for (int32_t i = 0, column = token * STRIDE; i < 3; i++) {
            struct weight one = {
                .part_count = 1, .out = tensor[i].part.out, .in = IN, .part = {tensor[i].part}};

            run(pool, CPU_ISA_PLAIN, &one, x + token * X_STRIDE, alone, 1);
            for (int32_t row = 0; row < one.out; row++, column++)
                wrong += out[column] != alone[row] + bias[column - token * STRIDE];
        }
        for (int32_t i = OUT; i < STRIDE; i++)
            wrong += out[token * STRIDE + i] != 77;
    }
    EXPECT_INT(wrong, ==, 0);
    for (int32_t i = 0; i < 3; i++)
        tensor_free(&tensor[i]);
    free(scratch);
    pool_destroy(pool);
}

/* ---- activations out of the ordinary ---- */

static void an_activation_that_is_not_finite_spoils_its_own_token_alone(void)
{
    enum { T = 4, IN = 64, OUT = 17 };
    static float x[T * IN], out[T * OUT], clean[T * OUT];
    struct pool *pool = pool_create(1);
    struct tensor tensor = tensor_create(pool, FORMAT_Q8_0, OUT, IN);
    struct weight weight = {.part_count = 1, .out = OUT, .in = IN, .part = {tensor.part}};

    random_activations(x, T * IN);
    for (enum cpu_isa isa = 0; isa < CPU_ISA_COUNT; isa++) {
        if (!cpu_isa_available(isa))
            continue;
        x[IN + 3] = 0.5F;
        x[2 * IN + 40] = 0.5F;
        run(pool, isa, &weight, x, clean, T);
        x[IN + 3] = NAN;
        x[2 * IN + 40] = -INFINITY;
        run(pool, isa, &weight, x, out, T);
        EXPECT(memcmp(out, clean, OUT * sizeof *out) == 0);
        EXPECT(memcmp(out + 3 * OUT, clean + 3 * OUT, OUT * sizeof *out) == 0);
        for (int32_t i = OUT; i < 3 * OUT; i++)
            EXPECT(isnan(out[i]));
    }
    tensor_free(&tensor);
    pool_destroy(pool);
}

static void zeros_and_tiny_activations_give_the_bias(void)
{
    enum { IN = 256, OUT = 16 };
    float x[IN] = {0}, out[OUT], bias[OUT];
    struct pool *pool = pool_create(1);
    struct tensor tensor = tensor_create(pool, FORMAT_Q4_K, OUT, IN);
    struct weight weight = {
        .part_count = 1, .out = OUT, .in = IN, .part = {tensor.part}, .bias = bias};

    x[77] = 1e-38F;
    random_activations(bias, OUT);
    for (enum cpu_isa isa = 0; isa < CPU_ISA_COUNT; isa++) {
        if (!cpu_isa_available(isa))
            continue;
        run(pool, isa, &weight, x, out, 1);
        for (int32_t i = 0; i < OUT; i++)
            EXPECT(out[i] == bias[i]);
    }
    tensor_free(&tensor);
    pool_destroy(pool);
}

static void an_outlier_costs_only_its_own_block_precision(void)
{
    enum { IN = 640, OUT = 16 };
    static float x[IN], out[OUT];
    struct pool *pool = pool_create(1);
    struct tensor tensor = tensor_create(pool, FORMAT_Q5_0, OUT, IN);
    struct weight weight = {.part_count = 1, .out = OUT, .in = IN, .part = {tensor.part}};

    for (int32_t i = 0; i < IN; i++)
        x[i] = random_unit() * 1e-3F;
    x[100] = 20000;
    for (int32_t row = 0; row < OUT; row++)
        EXPECT(tolerance(&tensor, row, x) < 20000.0 * 32 / 32639);
    run(pool, cpu_isa_best(), &weight, x, out, 1);
    EXPECT_INT(count_wrong(&tensor, x, out, 1), ==, 0);
    tensor_free(&tensor);
    pool_destroy(pool);
}

/* ---- packing ---- */

static void rows_come_back_bit_for_bit(void)
{
    enum { OUT = 131 };
    struct pool *pool = pool_create(2);

    for (enum format format = 0; format < FORMAT_COUNT; format++) {
        int32_t in = width_of(format);
        struct tensor tensor = tensor_create(pool, format, OUT, in);
        float row[IN_MAX];

        for (int32_t i = 0; i < OUT; i++) {
            linear_row(&tensor.part, in, i, row);
            EXPECT(memcmp(row, tensor.value + (size_t)i * (size_t)in, (size_t)in * sizeof *row) ==
                   0);
        }
        tensor_free(&tensor);
    }
    pool_destroy(pool);
}

static void packing_takes_no_more_bytes_than_the_file(void)
{
    static const enum format formats[] = {
        FORMAT_F32,  FORMAT_F16,    FORMAT_BF16,  FORMAT_Q4_0, FORMAT_Q4_1,
        FORMAT_Q5_0, FORMAT_Q5_1,   FORMAT_Q8_0,  FORMAT_Q4_K, FORMAT_Q5_K,
        FORMAT_Q6_K, FORMAT_IQ4_NL, FORMAT_MXFP4,
    };

    for (size_t i = 0; i < sizeof formats / sizeof formats[0]; i++)
        EXPECT_INT(linear_packed_bytes(formats[i], 640, 2048), ==,
                   640 * format_row_bytes(formats[i], 2048));
}

static void groups_may_be_packed_one_by_one(void)
{
    enum { OUT = 150, IN = 256 };
    struct pool *pool = pool_create(1);
    struct tensor tensor = tensor_create(pool, FORMAT_Q3_K, OUT, IN);
    size_t bytes = linear_packed_bytes(FORMAT_Q3_K, OUT, IN);
    uint8_t *again = aligned(bytes);

    for (int32_t group = linear_group_count(OUT) - 1; group >= 0; group--)
        linear_pack_groups(&tensor.source, again, group, 1);
    EXPECT(memcmp(again, tensor.part.data, bytes) == 0);
    free(again);
    tensor_free(&tensor);
    pool_destroy(pool);
}

int main(void)
{
    TEST(every_format_on_every_instruction_set_gives_the_same_bits_for_any_number_of_tokens);
    TEST(a_prompt_of_many_chunks_gives_each_token_what_it_gets_alone);
    TEST(parts_of_different_formats_are_joined_and_the_bias_is_added);
    TEST(an_activation_that_is_not_finite_spoils_its_own_token_alone);
    TEST(zeros_and_tiny_activations_give_the_bias);
    TEST(an_outlier_costs_only_its_own_block_precision);
    TEST(rows_come_back_bit_for_bit);
    TEST(packing_takes_no_more_bytes_than_the_file);
    TEST(groups_may_be_packed_one_by_one);
    return test_report();
}
