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
static struct tune_taken taken;

enum { NO_SUCH_COLUMNS = 7 }; /* of a way that this device does not have */

static const char *describe(struct device *device)
{
    (void)device;
    return "Test GPU 7, compute capability 9.0, 80 GiB";
}

static int tuned(struct device *device, const struct tuned_line *line)
{
    if (line->way.columns == NO_SUCH_COLUMNS)
        return -ENOTSUP;
    return tuned_add(&device->table, line) ? 0 : -ENOMEM;
}

static int tune(struct device *device, const struct weight *const *weight, int32_t count,
                bool logits, int32_t T, struct tuned_line *line)
{
    *line = (struct tuned_line){{logits ? TUNED_F32 : TUNED_BF16, weight[0]->out, weight[0]->in},
                                T,
                                {true, 1, 8, 1, 4, 16}};

    device->asked_count++;
    device->head_count += logits;
    if (T == 1 && device->shape_count < 8)
        device->weight_count[device->shape_count++] = count;
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

static const char tables[] =
    "# the first file\n"
    "device Test GPU 8\n"
    "bf16 4096 1024 1: few 1 64 1 4 rows 32\n"
    "device Test GPU 7\n"
    "bf16 4096 1024 1: few 1 8 1 4 rows 32\n"
    "bf16 4096 1024 64: few 1 16 1 4 rows 32\n"
    "gated 6144 1024 64: few 1 24 1 4 rows 64\n"
    "device Test GPU 70\n"
    "bf16 4096 1024 64: few 1 64 1 4 rows 32\n"
    "# another file, and a line that is longer than one of a table may be, "
    "which does not count, so that nobody has to keep remarks short or cut "
    "them before they are put into a table of this kind\n"
    "\n"
    "device Test GPU 7\n"
    "f32 1000 1024 8: few 1 32 1 4 rows 32";

static int take_both(const char *text, const char *builtin)
{
    FILE *file = fopen(path, "w");

    reset();
    EXPECT(file != NULL && fputs(text, file) >= 0 && fclose(file) == 0);
    return tune_take(&gpu, &gpu7, path, builtin, &taken, message, sizeof(message));
}

static int take(const char *text)
{
    return take_both(text, "");
}

/* Columns of the way that is followed; 0: none is. */
static int32_t columns_for(enum tuned_kind kind, int32_t out, int32_t token_count)
{
    const struct tuned_product product = {kind, out, 1024};
    const struct tuned_line *line = tuned_find(&gpu7.table, &product, token_count);

    return line == NULL ? 0 : line->way.columns;
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
    EXPECT_INT(tune_take(&plain, &gpu7, path, tables, &taken, message, sizeof(message)), ==,
               -ENOTSUP);
    EXPECT_STRING(message, "the cpu device has one way to make products: no table");
    EXPECT_INT(tune_take(&plain, &gpu7, NULL, tables, &taken, message, sizeof(message)), ==, 0);
    EXPECT_INT(taken.builtin_count, ==, 0);
    EXPECT_INT(tune_take(&gpu, &gpu7, "/nope/table", tables, &taken, message, sizeof(message)), ==,
               -ENOENT);
    EXPECT_STRING(message, "could not read /nope/table: No such file or directory");
}

static void tables_of_several_models_are_one(void)
{
    EXPECT_INT(take("device Test GPU 7\nbf16 4096 1024 8: few 1 8 1 4 rows 32\n"
                    "device Test GPU 7\nbf16 6144 1024 8: few 1 16 1 4 rows 32\n"),
               ==, 0);
    EXPECT_INT(taken.own_count, ==, 2);
    expect_refusal("device Test GPU 7\nbf16 4096 1024 8: few 1 8 1 4 rows 32\n"
                   "device Test GPU 8\nbf16 6144 1024 8: few 1 16 1 4 rows 32\n",
                   ":3: the table is for Test GPU 8, and this is Test GPU 7");
}

/* ---- built-in tables ---- */

static int take_builtin(const char *text)
{
    reset();
    return tune_take(&gpu, &gpu7, NULL, text, &taken, message, sizeof(message));
}

static void expect_said(const char *own_path, const char *table, const char *warning)
{
    char text[512];

    tune_describe(&taken, own_path, describe(&gpu7), text, sizeof(text));
    EXPECT_STRING(text, table);
    tune_warning(&taken, own_path, text, sizeof(text));
    EXPECT_STRING(text, warning);
}

static void of_the_built_in_tables_this_devices_is_taken(void)
{
    EXPECT_INT(take_builtin(tables), ==, 0);
    EXPECT_INT(taken.builtin_count, ==, 4);
    EXPECT_INT(gpu7.table.count, ==, 4);
    EXPECT_INT(columns_for(TUNED_BF16, 4096, 1), ==, 8); /* 64 of it are GPU 8's and GPU 70's */
    EXPECT_INT(columns_for(TUNED_BF16, 4096, 64), ==, 16);
    EXPECT_INT(columns_for(TUNED_GATED, 6144, 64), ==, 24);
    EXPECT_INT(columns_for(TUNED_F32, 1000, 8), ==, 32); /* behind another device's */
    expect_said(NULL, "built-in for Test GPU 7 (4 lines)", "");
}

static void a_device_without_a_built_in_table_has_none(void)
{
    EXPECT_INT(take_builtin("device Test GPU\nbf16 4096 1024 8: few 1 64 1 4 rows 32\n"
                            "device Test GPU 70\nbf16 4096 1024 8: few 1 64 1 4 rows 32\n"),
               ==, 0);
    EXPECT_INT(gpu7.table.count, ==, 0);
    expect_said(NULL, "none: estimates", "");
    EXPECT_INT(take_builtin(""), ==, 0);
    expect_said(NULL, "none: estimates", "");
}

static void a_file_goes_before_the_built_in_table(void)
{
    EXPECT_INT(take_both("device Test GPU 7\nbf16 4096 1024 32: few 1 128 1 4 rows 32\n", tables),
               ==, 0);
    EXPECT_INT(taken.own_count, ==, 1);
    EXPECT_INT(taken.builtin_count, ==, 2);
    EXPECT_INT(columns_for(TUNED_BF16, 4096, 1), ==, 128); /* of a product all or nothing */
    EXPECT_INT(columns_for(TUNED_BF16, 4096, 64), ==, 0);
    EXPECT_INT(columns_for(TUNED_GATED, 6144, 64), ==, 24);
    expect_said("own.txt", "own.txt (1 lines), built-in for Test GPU 7 (2 lines)", "");
    EXPECT_INT(take("device Test GPU 7\nbf16 4096 1024 32: few 1 128 1 4 rows 32\n"), ==, 0);
    expect_said("own.txt", "own.txt (1 lines)", "");
}

static void ways_that_are_gone_are_skipped_with_a_warning(void)
{
    static const char gone[] = "device Test GPU 7\nbf16 4096 1024 1: few 1 8 1 4 rows 32\n"
                               "bf16 4096 1024 8: few 1 7 1 4 rows 32\n"
                               "bf16 4096 1024 64: few 1 7 1 4 rows 32\n";

    EXPECT_INT(take(gone), ==, 0);
    EXPECT_INT(gpu7.table.count, ==, 1);
    EXPECT_INT(taken.skipped_count, ==, 2);
    expect_said("own.txt", "own.txt (1 lines)",
                "2 lines of tune tables were skipped, since this build has no such way; the first "
                "one is own.txt:3; make the table anew by quire tune");
    EXPECT_INT(take_builtin(gone), ==, 0);
    expect_said(NULL, "built-in for Test GPU 7 (1 lines)",
                "2 lines of the built-in tune table were skipped, since kernels of this GPU have "
                "no such way");
    EXPECT_INT(take("device Test GPU 7\nbf16 4096 1024 8: few 1 7 1 4 rows 32\n"), ==, 0);
    expect_said("own.txt", "none: estimates",
                "1 lines of tune tables were skipped, since this build has no such way; the first "
                "one is own.txt:2; make the table anew by quire tune");
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
    TEST(tables_of_several_models_are_one);
    TEST(of_the_built_in_tables_this_devices_is_taken);
    TEST(a_device_without_a_built_in_table_has_none);
    TEST(a_file_goes_before_the_built_in_table);
    TEST(ways_that_are_gone_are_skipped_with_a_warning);
    TEST(every_product_is_measured_over_its_layers);
    TEST(what_the_device_answers_comes_back);
    close(file);
    unlink(path);
    return test_report();
}
