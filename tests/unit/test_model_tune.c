/* The table of `quire tune`, on a device that only remembers what it was told and asked. */
#include "model/tune.h"
#include "tests/test.h"

#include <errno.h>
#include <unistd.h>

enum { LAYERS = 3 };

struct device {
    struct tuned_table table;
    int32_t asked_count, head_count; /* calls of tune; of them, for logits */
    int32_t weight_count[8];         /* of the first calls for one token */
    int32_t shape_count;
    int status; /* what tune answers */
};

static struct device gpu7;
static char path[] = "/tmp/quire-tune-XXXXXX";
static char message[512];

static const char *describe(struct device *device)
{
    (void)device;
    return "Test GPU 7, compute capability 9.0, 80 GiB";
}

static int tuned(struct device *device, const char *text)
{
    struct tuned_line line;

    if (!tuned_parse(&line, text))
        return -EINVAL;
    return tuned_add(&device->table, &line) ? 0 : -ENOMEM;
}

static int tune(struct device *device, const struct weight *const *weight, int32_t count,
                bool logits, int32_t T, char *text)
{
    struct tuned_line line = {{logits ? TUNED_F32 : TUNED_BF16, weight[0]->out, weight[0]->in},
                              T,
                              {true, 1, 8, 1, 4, 16}};

    device->asked_count++;
    device->head_count += logits;
    if (T == 1 && device->shape_count < 8)
        device->weight_count[device->shape_count++] = count;
    if (device->status == 0)
        tuned_print(&line, text);
    return device->status;
}

static const struct device_ops gpu = {
    .name = "test", .describe = describe, .tune = tune, .tuned = tuned};
static const struct device_ops plain = {.name = "cpu", .describe = describe};

static void reset(void)
{
    tuned_release(&gpu7.table);
    gpu7 = (struct device){0};
    message[0] = '\0';
}

/* ---- reading ---- */

static int take(const char *text)
{
    FILE *file = fopen(path, "w");

    reset();
    EXPECT(file != NULL && fputs(text, file) >= 0 && fclose(file) == 0);
    return tune_take(&gpu, &gpu7, path, message, sizeof(message));
}

static void a_table_of_this_device_is_taken(void)
{
    EXPECT_INT(take("# by quire\n\ndevice Test GPU 7\n"
                    "bf16 4096 1024 8: few 1 8 1 4 rows 32\n# more\n"
                    "gated 6144 1024 64: few 1 64 1 2 rows 64"),
               ==, 0);
    EXPECT_STRING(message, "");
    EXPECT_INT(gpu7.table.count, ==, 2);
}

static void expect_refusal(const char *text, const char *reason)
{
    EXPECT_INT(take(text), <, 0);
    if (strstr(message, reason) == NULL || strstr(message, path) == NULL)
        EXPECT_STRING(message, reason);
}

static void other_tables_are_refused_with_the_line(void)
{
    expect_refusal("", "the table is empty");
    expect_refusal("# quire\n\n", "the table is empty");
    expect_refusal("# quire\ndevice Test GPU 8\n",
                   ":2: the table is for Test GPU 8, and this is Test GPU 7");
    expect_refusal("bf16 4096 1024 8: few 1 8 1 4 rows 32\n", ":1: a table of quire tune begins");
    expect_refusal("device Test GPU 7\nbf16 4096 1024 8: few\n",
                   ":2: \"bf16 4096 1024 8: few\" is no line of a table");
}

static void where_there_is_one_way_no_table_is_taken(void)
{
    EXPECT_INT(take("device Test GPU 7\n"), ==, 0);
    EXPECT_INT(tune_take(&plain, &gpu7, path, message, sizeof(message)), ==, -ENOTSUP);
    EXPECT_STRING(message, "the cpu device has one way to make products: no table");
    EXPECT_INT(tune_take(&gpu, &gpu7, "/nope/table", message, sizeof(message)), ==, -ENOENT);
    EXPECT_STRING(message, "could not read /nope/table: No such file or directory");
}

/* ---- making ---- */

static int32_t line_count;

static void count_line(void *context, const char *text)
{
    struct tuned_line line;

    EXPECT(context == &line_count);
    EXPECT(tuned_parse(&line, text));
    line_count++;
}

static struct weight weight_of(int32_t out, int32_t in)
{
    return (struct weight){.part_count = 1, .out = out, .in = in};
}

static int make(int32_t token_max)
{
    struct layer_weights layer[LAYERS] = {0};
    struct weights weights = {.own_head = weight_of(1000, 64), .layer = layer};

    for (int32_t i = 0; i < LAYERS; i++) {
        layer[i].qkv = weight_of(96, 64);
        layer[i].attn_output = weight_of(64, 64);
        layer[i].gate_up = weight_of(i == 1 ? 512 : 256, 64); /* one layer is wider */
        layer[i].down = weight_of(64, 128);
    }
    weights.head = &weights.own_head;
    line_count = 0;
    return tune_measure(&gpu, &gpu7, &weights, LAYERS, token_max, count_line, &line_count);
}

static void every_product_is_measured_over_its_layers(void)
{
    static const int32_t layers[] = {LAYERS, LAYERS, LAYERS - 1, LAYERS, 1};

    reset();
    EXPECT_INT(make(8), ==, 0);
    EXPECT_INT(gpu7.shape_count, ==, 5);
    for (int32_t i = 0; i < 5; i++)
        EXPECT_INT(gpu7.weight_count[i], ==, layers[i]);
    EXPECT_INT(gpu7.asked_count, ==, 5 * 4); /* 1, 2, 4, 8 tokens */
    EXPECT_INT(gpu7.head_count, ==, 4);
    EXPECT_INT(line_count, ==, 5 * 4);
}

static void what_the_device_answers_comes_back(void)
{
    reset();
    gpu7.status = -ENOTSUP;
    EXPECT_INT(make(8), ==, -ENOTSUP);
    EXPECT_INT(gpu7.asked_count, ==, 5); /* once a product */
    reset();
    gpu7.status = -EIO;
    EXPECT_INT(make(8), ==, -EIO);
    EXPECT_INT(gpu7.asked_count, ==, 1);
    EXPECT_INT(line_count, ==, 0);
    EXPECT_INT(tune_measure(&plain, &gpu7, NULL, 0, 8, count_line, &line_count), ==, -ENOTSUP);
    reset();
}

int main(void)
{
    int file = mkstemp(path);

    TEST(a_table_of_this_device_is_taken);
    TEST(other_tables_are_refused_with_the_line);
    TEST(where_there_is_one_way_no_table_is_taken);
    TEST(every_product_is_measured_over_its_layers);
    TEST(what_the_device_answers_comes_back);
    close(file);
    unlink(path);
    return test_report();
}
