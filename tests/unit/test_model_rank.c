/* A rank on a device that only remembers.
 *
 * Recorded steps: what the ledger counts for them, which are recorded at the start, what happens
 * when there are enough and when recording fails. Tables: which are handed over unasked. The device
 * is the CPU's with graphs that only remember their keys, and the architecture's forward only says
 * what it was called for. */
#include "model/rank.h"
#include "tests/gguf_writer.h"
#include "tests/test.h"

#include <errno.h>
#include <semaphore.h>
#include <unistd.h>

enum { GRAPH_BYTES = 1000, GRAPHS_MAX = 256, KEYS_MAX = 512, SHARE = 4 << 20 };

static char path[] = "/tmp/quire-rank-XXXXXX";
static char message[512]; /* the source's, as long as it is open */
static struct device_ops ops;
static struct arch arch;
static struct shape shape;

/* What the device saw; written by the rank's thread, read while it waits. */
static struct {
    int64_t key[KEYS_MAX];
    int32_t key_count, launch_count, run_count; /* recorded; launched; run without a graph */
    int32_t rows, samples;                      /* of the last forward */
    int32_t new_from;                           /* graphs that were not launched yet */
    int32_t fail_at;                            /* begin of this graph, from 0; -1: none */
    bool recording;
    int32_t line_count; /* of tables that were handed over */
    bool forgets;       /* every graph is good for one launch, right after it was recorded */
    char order[8];      /* of steps: b begun, s synchronised */
    sem_t *hold;        /* the first step to begin waits for it */
} seen;

static void note(char event)
{
    size_t count = strlen(seen.order);

    if (count < sizeof(seen.order) - 1)
        seen.order[count] = event;
}

static void count_forward(struct pass *pass)
{
    seen.rows = pass->rows;
    seen.samples = pass->sample_count;
    seen.run_count += !seen.recording;
}

static bool graph_begin(struct device *device, int64_t key)
{
    (void)device;
    EXPECT(!seen.recording);
    if (seen.key_count == seen.fail_at) {
        seen.fail_at = -1;
        return false;
    }
    seen.key[seen.key_count] = key;
    seen.recording = true;
    return true;
}

static bool graph_end(struct device *device, int64_t key)
{
    (void)device;
    EXPECT(seen.recording && seen.key[seen.key_count] == key);
    EXPECT_INT(key, ==, (int64_t)seen.rows << 32 | seen.samples);
    seen.key_count++;
    seen.recording = false;
    return true;
}

static bool graph_launch(struct device *device, int64_t key)
{
    int32_t first = seen.forgets ? seen.new_from : 0;

    (void)device;
    for (int32_t i = first; i < seen.key_count; i++)
        if (seen.key[i] == key) {
            seen.launch_count++;
            seen.new_from = seen.key_count;
            return true;
        }
    return false;
}

static size_t graph_bytes(struct device *device, int32_t layer_count)
{
    (void)device;
    return (size_t)layer_count * GRAPH_BYTES;
}

static const char *describe(struct device *device)
{
    (void)device;
    return "NVIDIA H200, compute capability 9.0, 139.8 GiB";
}

static int tuned(struct device *device, const struct tuned_line *line)
{
    (void)device, (void)line;
    seen.line_count++;
    return 0;
}

static size_t memory_free(struct device *device)
{
    (void)device;
    return 2 * (size_t)SHARE;
}

static void step_begin(struct device *device, const struct step *step)
{
    (void)device, (void)step;
    if (seen.hold != NULL)
        sem_wait(seen.hold);
    seen.hold = NULL;
    note('b');
}

static void step_end(struct device *device, struct step_result *result)
{
    (void)device, (void)result;
}

static int sync_step(struct device *device)
{
    (void)device;
    note('s');
    return 0;
}

static void make_device(bool has_graphs)
{
    ops = *backend_cpu();
    ops.memory_free = memory_free;
    ops.step_begin = step_begin;
    ops.step_end = step_end;
    ops.sync = sync_step;
    if (has_graphs) {
        ops.graph_begin = graph_begin;
        ops.graph_end = graph_end;
        ops.graph_launch = graph_launch;
        ops.graph_bytes = graph_bytes;
    }
    arch = arch_gemma3;
    arch.forward = count_forward;
    memset(&seen, 0, sizeof(seen));
    seen.fail_at = -1;
}

static struct rank_options simple(struct source *source)
{
    struct rank_options options = {
        .ops = &ops,
        .arch = &arch,
        .shape = &shape,
        .source = source,
        .device = {.thread_count = 1, .slot_max = 20, .token_max = 64, .sample_max = 64},
        .wish = {.slot_max = 20, .block_tokens = 16, .block_count = 32, .memory_share = 0.5}};

    memset(&shape, 0, sizeof(shape));
    arch.read_shape(&shape, source);
    EXPECT_INT(source_status(source), ==, 0);
    options.device.vocab_count = shape.vocab_count;
    options.device.context_max = options.wish.context_model = shape.context_model;
    options.device.history_max = options.device.change_max = options.device.move_max = 1024;
    return options;
}

static struct source *open_tiny(void)
{
    struct source *source = NULL;

    message[0] = '\0';
    EXPECT_INT(source_open(&source, path, message, sizeof(message)), ==, 0);
    return source;
}

/* One step of `token_count` rows of a token each. */
static int step(struct rank *rank, int32_t token_count)
{
    struct batch batch = {.step = {.row_count = token_count,
                                   .token_count = token_count,
                                   .sample_count = token_count}};

    rank_start(rank, &batch);
    return rank_wait(rank);
}

/* ---- the order of steps ---- */

/* Two steps, the second one started before the first has begun. */
static void two_steps(bool immediate, const char *order)
{
    struct batch batch[2] = {{.step = {.row_count = 1, .token_count = 1, .sample_count = 1}}};
    struct source *source = open_tiny();
    struct rank_options options;
    sem_t hold;

    batch[1] = batch[0];
    make_device(false);
    ops.immediate = immediate;
    options = simple(source);
    struct rank *rank = rank_create(&options);
    EXPECT_INT(rank_load(rank, NULL, NULL), ==, 0);
    sem_init(&hold, 0, 0);
    seen.hold = &hold;
    rank_start(rank, &batch[0]);
    rank_start(rank, &batch[1]);
    sem_post(&hold);
    EXPECT_INT(rank_wait(rank), ==, 0);
    EXPECT_INT(rank_wait(rank), ==, 0);
    rank_close(rank);
    EXPECT(strcmp(seen.order, order) == 0);
    sem_destroy(&hold);
    source_close(source);
}

static void a_step_that_has_run_does_not_wait_for_the_next(void)
{
    two_steps(true, "bsbs");
    two_steps(false, "bbss");
}

/* ---- the ledger ---- */

static struct ledger measure(bool has_graphs)
{
    struct source *source = open_tiny();
    struct rank_options options;
    struct ledger ledger;

    make_device(has_graphs);
    options = simple(source);
    options.measure = true;
    options.wish.block_count = 0;
    options.wish.slot_max = 100000;
    struct rank *rank = rank_create(&options);
    EXPECT_INT(rank_load(rank, NULL, NULL), ==, 0);
    ledger = *rank_ledger(rank);
    int64_t all =
        ledger.weight_bytes + ledger.workspace_bytes + ledger.graph_bytes + ledger.kv_bytes;
    EXPECT(all <= SHARE && all + rank_block_bytes(rank) > SHARE);
    EXPECT_INT(seen.key_count, ==, 0);
    rank_close(rank);
    source_close(source);
    return ledger;
}

static void graphs_are_a_line_of_the_ledger(void)
{
    struct ledger with = measure(true), without = measure(false);

    EXPECT_INT(without.graph_bytes, ==, 0);
    EXPECT_INT(with.graph_bytes, ==, (int64_t)GRAPHS_MAX * shape.layer_count * GRAPH_BYTES);
    EXPECT_INT(with.weight_bytes, ==, without.weight_bytes);
    EXPECT_INT(with.workspace_bytes, ==, without.workspace_bytes);
    EXPECT_INT(with.block_count, <, without.block_count);
}

/* ---- recording ---- */

static struct rank *open_rank(struct source *source, int32_t slot_max, int32_t token_max)
{
    struct rank_options options = simple(source);

    options.device.slot_max = slot_max;
    options.device.token_max = options.device.sample_max = token_max;
    return rank_create(&options);
}

static void expect_sizes_at_the_start(int32_t slot_max, int32_t token_max, int32_t count,
                                      int32_t most)
{
    static const int32_t size[] = {1, 2, 4, 8, 16, 24, 32, 40, 48, 56, 64, 80};
    struct source *source = open_tiny();

    make_device(true);
    struct rank *rank = open_rank(source, slot_max, token_max);
    EXPECT_INT(rank_load(rank, NULL, NULL), ==, 0);
    EXPECT_INT(seen.key_count, ==, count);
    EXPECT_INT(rank_graph_count(rank), ==, count);
    for (int32_t i = 0; i < count && i < 12; i++)
        EXPECT_INT(seen.key[i], ==, (int64_t)size[i] << 32 | size[i]);
    EXPECT_INT(seen.key[count - 1] >> 32, ==, most);
    for (int32_t rows = 1; rows <= slot_max && rows <= most; rows++)
        EXPECT_INT(step(rank, rows), ==, 0);
    EXPECT_INT(seen.key_count, ==, count); /* no step of decode had to wait for its recording */
    EXPECT_INT(seen.launch_count, ==, slot_max < most ? slot_max : most);
    EXPECT_INT(seen.run_count, ==, 0);
    rank_close(rank);
    source_close(source);
}

static void steps_of_decode_are_recorded_at_the_start(void)
{
    expect_sizes_at_the_start(20, 64, 6, 24);
    expect_sizes_at_the_start(20, 20, 5, 16);
    expect_sizes_at_the_start(1, 64, 1, 1);
    expect_sizes_at_the_start(70, 512, 12, 80);
    expect_sizes_at_the_start(512, 512, 23, 256);
}

static void beyond_the_most_graphs_steps_run_without(void)
{
    struct source *source = open_tiny();

    make_device(true);
    struct rank *rank = open_rank(source, 20, 64);
    EXPECT_INT(rank_load(rank, NULL, NULL), ==, 0);
    seen.forgets = true;
    seen.new_from = seen.key_count;
    for (int32_t i = seen.key_count; i < GRAPHS_MAX; i++)
        EXPECT_INT(step(rank, 5), ==, 0);
    EXPECT_INT(seen.run_count, ==, 0);
    EXPECT_INT(seen.key_count, ==, GRAPHS_MAX);
    EXPECT_INT(step(rank, 5), ==, 0);
    EXPECT_INT(seen.key_count, ==, GRAPHS_MAX);
    EXPECT_INT(seen.run_count, ==, 1);
    EXPECT_INT(seen.rows, ==, 5); /* not padded */
    EXPECT_INT(seen.samples, ==, 5);
    rank_close(rank);
    source_close(source);
}

static void what_cannot_be_recorded_at_the_start_is_refused(void)
{
    struct source *source = open_tiny();

    make_device(true);
    seen.fail_at = 2;
    struct rank *rank = open_rank(source, 20, 64);
    EXPECT_INT(rank_load(rank, NULL, NULL), ==, -ENOMEM);
    EXPECT_INT(seen.key_count, ==, 2);
    EXPECT(strstr(message, "could not record a step of 4 tokens on the cpu device") != NULL);
    rank_close(rank);
    source_close(source);
}

static void a_fault_of_recording_sticks(void)
{
    struct source *source = open_tiny();

    make_device(true);
    struct rank *rank = open_rank(source, 20, 64);
    EXPECT_INT(rank_load(rank, NULL, NULL), ==, 0);
    seen.fail_at = seen.key_count;
    EXPECT_INT(step(rank, 30), ==, -EIO); /* more rows than there are slots: not recorded yet */
    EXPECT_INT(seen.fail_at, ==, -1);
    EXPECT_INT(step(rank, 60), ==, -EIO); /* whose recording succeeds */
    EXPECT_INT(seen.key[seen.key_count - 1] >> 32, ==, 64);
    EXPECT(strstr(rank_fault(rank), "a graph of a step could not be captured") != NULL);
    rank_close(rank);
    source_close(source);
}

/* ---- tables ---- */

static void the_devices_built_in_table_is_followed_unasked(void)
{
    struct source *source = open_tiny();
    char text[512], expected[512], warning[512];

    make_device(true);
    ops.describe = describe;
    ops.tuned = tuned;
    struct rank *rank = open_rank(source, 20, 64);
    EXPECT_INT(rank_load(rank, NULL, NULL), ==, 0);
    EXPECT(seen.line_count > 0);
    rank_describe_table(rank, text, sizeof(text), warning, sizeof(warning));
    snprintf(expected, sizeof(expected), "built-in for NVIDIA H200 (%d lines)", seen.line_count);
    EXPECT_STRING(text, expected);
    EXPECT_STRING(warning, "");
    rank_close(rank);
    source_close(source);
}

static void a_device_of_one_way_says_nothing_of_tables(void)
{
    struct source *source = open_tiny();
    char text[512], warning[512];

    make_device(true);
    struct rank *rank = open_rank(source, 20, 64);
    EXPECT_INT(rank_load(rank, NULL, NULL), ==, 0);
    rank_describe_table(rank, text, sizeof(text), warning, sizeof(warning));
    EXPECT_STRING(text, "");
    EXPECT_STRING(warning, "");
    rank_close(rank);
    source_close(source);
}

int main(void)
{
    struct gguf_writer writer = {0};
    int file = mkstemp(path);

    if (file < 0)
        return 1;
    close(file);
    gguf_write_gemma(&writer, &(struct tiny_gemma){.seed = 1, .layer_count = 2, .width = 64});
    EXPECT(gguf_writer_save(&writer, path));
    gguf_writer_free(&writer);
    TEST(a_step_that_has_run_does_not_wait_for_the_next);
    TEST(graphs_are_a_line_of_the_ledger);
    TEST(steps_of_decode_are_recorded_at_the_start);
    TEST(beyond_the_most_graphs_steps_run_without);
    TEST(what_cannot_be_recorded_at_the_start_is_refused);
    TEST(a_fault_of_recording_sticks);
    TEST(the_devices_built_in_table_is_followed_unasked);
    TEST(a_device_of_one_way_says_nothing_of_tables);
    unlink(path);
    return test_report();
}
