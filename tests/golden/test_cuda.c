/* Small random Gemmas on a GPU: near the CPU's log-probabilities, and the same bits alone, in a
 * batch, in chunks and with two steps in flight. Steps of one token a row run as graphs, all
 * others do not, so that chunks of one token compare the two. Skipped where there is no GPU. */
#include "tests/gguf_writer.h"
#include "tests/golden/driver.h"

#include <math.h>
#include <unistd.h>

enum { SEQUENCES = 5, PROMPT = 70, OUTPUT = 12, TOKENS = 128 };

static char path[] = "/tmp/test_cuda_XXXXXX";
static int32_t prompt[SEQUENCES][PROMPT];

static const struct tiny_gemma gemma[] = {
    {.seed = 1},
    {.seed = 2, .plain = true, .own_head = true, .softcap = 15.0f},
    {.seed = 3, .fused = true, .head_count = 8, .kv_head_count = 1, .head_width = 32},
    {.seed = 4, .width = 256, .ffn_width = 512, .rope_factor = 8.0f, .period = 2},
};

static bool gpu_is_here(void)
{
    const struct device_options options = {
        .slot_max = 1, .token_max = 1, .sample_max = 1, .vocab_count = 1, .context_max = 1};
    struct device *device = NULL;
    char error[256];

    if (backend_cuda() == NULL)
        return false;
    if (backend_cuda()->open(&device, &options, error, sizeof(error)) != 0) {
        printf("%s\n", error);
        return false;
    }
    backend_cuda()->close(device);
    return true;
}

static bool open_on(struct driver *driver, const struct tiny_gemma *tiny, enum model_device device)
{
    struct gguf_writer writer = {0};

    gguf_write_gemma(&writer, tiny);
    EXPECT(gguf_writer_save(&writer, path));
    gguf_writer_free(&writer);
    driver_device = device;
    bool open = driver_open(driver, path, TOKENS);
    EXPECT(open);
    return open;
}

/* Sequences of different lengths. */
static void create(struct sequence *sequence)
{
    for (int32_t i = 0; i < SEQUENCES; i++) {
        for (int32_t p = 0; p < PROMPT; p++)
            prompt[i][p] = 6 + (p * 37 + i * 101 + p * p) % 390;
        sequence[i] = sequence_create(prompt[i], PROMPT - 11 * i, OUTPUT);
    }
}

static void release(struct sequence *sequence)
{
    for (int32_t i = 0; i < SEQUENCES; i++)
        sequence_free(&sequence[i]);
}

/* Of every token that the CPU read or put out, which the GPU reads: two runs of their own part at
 * a tie. */
static void compare(const struct sequence *cpu, const struct sequence *gpu)
{
    double sum = 0.0, worst = 0.0;
    int32_t count = 0;

    for (int32_t i = 0; i < SEQUENCES; i++) {
        int32_t scored = cpu[i].prompt_count - 1;
        for (int32_t p = 0; p < scored + OUTPUT; p++) {
            double known = (double)(p < scored ? cpu[i].score[p] : cpu[i].logprob[p - scored]);
            double delta = fabs(known - (double)gpu[i].score[p]);
            sum += delta;
            worst = fmax(worst, delta);
            count++;
        }
    }
    printf("log-probabilities: mean %.2g worst %.2g of %d\n", sum / count, worst, count);
    EXPECT(sum / count < 2e-2); /* activations are bf16: 2^-9 of each, some thirty in a row */
    EXPECT(worst < 1e-1);
}

/* The same sequences with what the CPU put out behind their prompts. */
static void create_longer(struct sequence *sequence, const struct sequence *cpu)
{
    static int32_t longer[SEQUENCES][PROMPT + OUTPUT];

    for (int32_t i = 0; i < SEQUENCES; i++) {
        int32_t count = cpu[i].prompt_count;
        memcpy(longer[i], cpu[i].prompt, (size_t)count * sizeof(int32_t));
        memcpy(longer[i] + count, cpu[i].token, OUTPUT * sizeof(int32_t));
        sequence[i] = sequence_create(longer[i], count + OUTPUT, 1);
    }
}

static void log_probabilities_are_near_the_cpus(void)
{
    for (size_t i = 0; i < sizeof(gemma) / sizeof(*gemma); i++) {
        struct sequence cpu[SEQUENCES], gpu[SEQUENCES];
        struct driver driver;

        create(cpu);
        if (open_on(&driver, &gemma[i], MODEL_DEVICE_CPU))
            EXPECT_INT(driver_run(&driver, cpu, SEQUENCES, 16, TOKENS, 1), ==, 0);
        model_close(driver.model);
        create_longer(gpu, cpu);
        if (open_on(&driver, &gemma[i], MODEL_DEVICE_CUDA))
            EXPECT_INT(driver_run(&driver, gpu, SEQUENCES, 16, TOKENS, STEP_DEPTH), ==, 0);
        model_close(driver.model);
        compare(cpu, gpu);
        release(cpu);
        release(gpu);
    }
}

/* All sequences again, in some manner. */
static void expect_same_bits(struct driver *driver, const struct sequence *alone, int32_t chunk,
                             int32_t stride, int depth)
{
    struct sequence sequence[SEQUENCES];

    create(sequence);
    driver_reset(driver, stride);
    EXPECT_INT(driver_run(driver, sequence, SEQUENCES, chunk, TOKENS, depth), ==, 0);
    for (int32_t i = 0; i < SEQUENCES; i++)
        EXPECT(sequence_equal(&sequence[i], &alone[i]));
    release(sequence);
}

static void run_alone(struct driver *driver, struct sequence *alone)
{
    for (int32_t i = 0; i < SEQUENCES; i++) {
        driver_reset(driver, 1);
        EXPECT_INT(driver_run(driver, &alone[i], 1, PROMPT, TOKENS, 1), ==, 0);
    }
}

static void batches_chunks_graphs_and_flight_change_no_bits(void)
{
    struct sequence alone[SEQUENCES];
    struct driver driver;

    create(alone);
    if (open_on(&driver, &gemma[0], MODEL_DEVICE_CUDA)) {
        run_alone(&driver, alone);
        expect_same_bits(&driver, alone, PROMPT, 1, 1);
        expect_same_bits(&driver, alone, 7, 389, 1);
        expect_same_bits(&driver, alone, 1, 77, 1);
        expect_same_bits(&driver, alone, 13, 5, STEP_DEPTH);
    }
    model_close(driver.model);
    release(alone);
}

int main(void)
{
    int file = mkstemp(path);

    if (gpu_is_here()) {
        TEST(log_probabilities_are_near_the_cpus);
        TEST(batches_chunks_graphs_and_flight_change_no_bits);
    } else {
        printf("skipped: there is no GPU to open\n");
        test_skipped = 2;
    }
    close(file);
    unlink(path);
    return test_report();
}
