/* Tiny random Gemmas against a double-precision reference, whatever their shape, and the same bits
 * however a step is cut. Needs no file from outside. */
#include "tests/gguf_writer.h"
#include "tests/golden/driver.h"
#include "tests/golden/gemma_reference.h"

#include <unistd.h>

enum { PROMPT = 90, OUTPUT = 12, TOKEN_MAX = 256, SEQUENCES = 9 };

static char path[] = "/tmp/quire-tiny-XXXXXX";
static int32_t token[SEQUENCES][PROMPT];

static void fill_tokens(int32_t vocab_count)
{
    uint64_t state = 88172645463325252u;

    for (int32_t i = 0; i < SEQUENCES; i++)
        for (int32_t k = 0; k < PROMPT; k++) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            token[i][k] = k == 0 ? 2 : (int32_t)(state % (uint64_t)vocab_count);
        }
}

static bool open_tiny(struct driver *driver, const struct tiny_gemma *tiny)
{
    struct gguf_writer writer = {0};
    bool good;

    gguf_write_gemma(&writer, tiny);
    good = gguf_writer_save(&writer, path);
    gguf_writer_free(&writer);
    return good && driver_open(driver, path, TOKEN_MAX);
}

/* The worst error of scores, draws and likeliest tokens. The limits are those of the formats:
 * halves in the cache, 16-bit activations. */
static void expect_reference(const char *name, const struct tiny_gemma *tiny)
{
    struct driver driver = {0};
    struct reference reference = {0};
    struct sequence sequence;
    int32_t whole[PROMPT + OUTPUT];
    double *truth, worst = 0, sum = 0;

    EXPECT(open_tiny(&driver, tiny));
    if (driver.model == NULL)
        return;
    sequence = sequence_create(token[0], PROMPT, OUTPUT);
    fill_tokens(model_info(driver.model)->vocab_count);
    EXPECT_INT(driver_run(&driver, &sequence, 1, PROMPT, TOKEN_MAX, 1), ==, 0);
    memcpy(whole, token[0], sizeof(token[0]));
    memcpy(whole + PROMPT, sequence.token, OUTPUT * sizeof(int32_t));
    reference_open(&reference, path);
    truth = reference_forward(&reference, whole, PROMPT + OUTPUT);
    for (int32_t t = 0; t + 1 < PROMPT + OUTPUT; t++) {
        const double *row = truth + t * reference.vocab;
        int32_t k = t - PROMPT + 1;
        double ours = (double)(k < 0 ? sequence.score[t] : sequence.logprob[k]);
        double delta = fabs(ours - row[whole[t + 1]]);

        worst = fmax(worst, delta);
        sum += delta;
        for (int32_t i = 0; k >= 0 && i < DRIVER_TOP; i++)
            worst = fmax(worst, fabs((double)sequence.top_logprob[k * DRIVER_TOP + i] -
                                     row[sequence.top[k * DRIVER_TOP + i]]));
    }
    printf("%-12s mean %.6f worst %.6f\n", name, sum / (PROMPT + OUTPUT - 1), worst);
    EXPECT(worst < 0.03);
    EXPECT(sum / (PROMPT + OUTPUT - 1) < 0.005);
    EXPECT(sum > 0);
    free(truth);
    gguf_close(reference.gguf);
    sequence_free(&sequence);
    model_close(driver.model);
}

static void plain_weights_give_the_references_log_probabilities(void)
{
    expect_reference("plain", &(struct tiny_gemma){.seed = 1, .plain = true});
}

static void quantised_weights_do_too(void)
{
    expect_reference("quantised", &(struct tiny_gemma){.seed = 2});
}

static void fused_tensors_are_the_same_model(void)
{
    expect_reference("fused", &(struct tiny_gemma){.seed = 3, .fused = true});
}

static void scaling_softcap_and_an_own_head_are_kept(void)
{
    expect_reference("particular", &(struct tiny_gemma){.seed = 4,
                                                        .rope_factor = 8,
                                                        .softcap = 5,
                                                        .own_head = true,
                                                        .period = 3,
                                                        .window = 17});
}

static void without_a_window_every_layer_sees_everything(void)
{
    expect_reference("no window",
                     &(struct tiny_gemma){.seed = 5, .window = -1, .kv_head_count = 1});
}

/* ---- determinism ---- */

static struct driver shared;
static struct sequence alone[SEQUENCES];

static void expect_same_bits(int32_t chunk, int32_t token_max, int32_t stride, int depth)
{
    struct sequence sequence[SEQUENCES];

    for (int32_t i = 0; i < SEQUENCES; i++)
        sequence[i] = sequence_create(token[i], PROMPT - 8 * i, OUTPUT);
    driver_reset(&shared, stride);
    EXPECT_INT(driver_run(&shared, sequence, SEQUENCES, chunk, token_max, depth), ==, 0);
    for (int32_t i = 0; i < SEQUENCES; i++) {
        EXPECT(sequence_equal(&sequence[i], &alone[i]));
        sequence_free(&sequence[i]);
    }
}

static void a_sequence_has_the_same_bits_however_steps_are_cut(void)
{
    EXPECT(open_tiny(&shared, &(struct tiny_gemma){.seed = 6}));
    fill_tokens(model_info(shared.model)->vocab_count);
    for (int32_t i = 0; i < SEQUENCES; i++) {
        driver_reset(&shared, 1);
        alone[i] = sequence_create(token[i], PROMPT - 8 * i, OUTPUT);
        EXPECT_INT(driver_run(&shared, &alone[i], 1, PROMPT, TOKEN_MAX, 1), ==, 0);
    }
    expect_same_bits(PROMPT, TOKEN_MAX, 1, 1);
    expect_same_bits(7, TOKEN_MAX, 1, 1);
    expect_same_bits(1, 33, 1, 1);
    expect_same_bits(16, TOKEN_MAX, 389, 1);
    expect_same_bits(PROMPT, 100, 77, STEP_DEPTH);
    expect_same_bits(7, 40, 77, STEP_DEPTH);
    for (int32_t i = 0; i < SEQUENCES; i++) {
        EXPECT(driver_prefix_hit_is_equal(&shared, &alone[i], 7, TOKEN_MAX));
        EXPECT(driver_preemption_is_equal(&shared, &alone[i], 5, 13, TOKEN_MAX));
    }
    for (int32_t i = 0; i < SEQUENCES; i++)
        sequence_free(&alone[i]);
    model_close(shared.model);
}

static void the_memory_is_what_the_ledger_says(void)
{
    struct driver driver = {0};
    const struct model_info *info;

    EXPECT(open_tiny(&driver, &(struct tiny_gemma){.seed = 7}));
    info = model_info(driver.model);
    EXPECT_INT(info->block_count, ==, DRIVER_BLOCKS);
    EXPECT_INT(info->context_max, ==, 512);
    EXPECT_INT(info->end_count, ==, 2);
    EXPECT_INT(info->end_token[0], ==, 1);
    EXPECT_INT(info->end_token[1], ==, 5);
    EXPECT_STRING(info->architecture, "gemma3");
    EXPECT_STRING(info->format, "Q5_0");
    EXPECT(info->weight_bytes > 0 && info->workspace_bytes > 0);
    EXPECT_INT(info->kv_bytes % DRIVER_BLOCKS, ==, 0);
    model_close(driver.model);
}

int main(void)
{
    int fd = mkstemp(path);

    if (fd < 0)
        return 1;
    close(fd);
    fill_tokens(400);
    TEST(plain_weights_give_the_references_log_probabilities);
    TEST(quantised_weights_do_too);
    TEST(fused_tensors_are_the_same_model);
    TEST(scaling_softcap_and_an_own_head_are_kept);
    TEST(without_a_window_every_layer_sees_everything);
    TEST(a_sequence_has_the_same_bits_however_steps_are_cut);
    TEST(the_memory_is_what_the_ledger_says);
    unlink(path);
    return test_report();
}
