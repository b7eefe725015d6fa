/* Opening a model: what is refused and how, what the shape of a Gemma becomes, what is reported. */
#include "model/arch.h"
#include "model/inspect.h"
#include "model/load/gguf.h"
#include "model/model.h"
#include "model/text/tokenizer.h"
#include "tests/gguf_writer.h"
#include "tests/test.h"

#include <errno.h>
#include <math.h>
#include <unistd.h>

static char path[] = "/tmp/quire-open-XXXXXX";
static char message[1024];
static double last_share;

static struct model_options simple_options(void)
{
    return (struct model_options){.path = path,
                                  .device = MODEL_DEVICE_CPU,
                                  .thread_count = 1,
                                  .slot_max = 4,
                                  .token_max = 32,
                                  .sample_max = 32,
                                  .block_tokens = 16,
                                  .block_count = 64,
                                  .memory_share = 0.5};
}

static const struct tiny_gemma small = {.seed = 1, .layer_count = 2, .width = 64};

/* Opens what the writer holds, plus the tiny Gemma where `tiny` is not NULL; frees the writer. */
static int open_written(struct gguf_writer *writer, const struct tiny_gemma *tiny,
                        struct model **model)
{
    struct model_options options = simple_options();

    if (tiny != NULL)
        gguf_write_gemma(writer, tiny);
    EXPECT(gguf_writer_save(writer, path));
    gguf_writer_free(writer);
    message[0] = '\0';
    return model_open(model, &options, message, sizeof(message));
}

static void expect_refusal(struct gguf_writer *writer, int status, const char *reason)
{
    struct model *model;

    EXPECT_INT(open_written(writer, &small, &model), ==, status);
    EXPECT(model == NULL);
    if (strstr(message, reason) == NULL || strstr(message, path) == NULL ||
        strchr(message, '\n') != NULL)
        EXPECT_STRING(message, reason);
    model_close(model);
}

/* ---- refusals ---- */

static void a_missing_tensor_is_named(void)
{
    static const char *const names[] = {
        "token_embd.weight",      "output_norm.weight",      "blk.0.attn_q.weight",
        "blk.1.attn_norm.weight", "blk.1.ffn_down.weight",   "blk.0.attn_k_norm.weight",
        "blk.1.ffn_up.weight",    "blk.0.ffn_norm.weight",   "blk.1.post_ffw_norm.weight",
        "blk.0.attn_v.weight",    "blk.1.attn_output.weight"};

    for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++) {
        struct gguf_writer writer = {.skip = names[i]};
        char reason[128];

        snprintf(reason, sizeof(reason), "tensor %s is missing", names[i]);
        expect_refusal(&writer, -EINVAL, reason);
    }
}

static void a_tensor_without_a_place_is_named(void)
{
    uint64_t seed = 3;
    struct gguf_writer unused = {0}, beyond = {0}, ignorable = {0};
    struct model *model;

    gguf_write_random(&unused, "blk.0.attn_sinks.weight", FORMAT_F32, 1, 4, &seed);
    expect_refusal(&unused, -ENOTSUP, "tensor blk.0.attn_sinks.weight has no place");
    gguf_write_random(&beyond, "blk.2.attn_norm.weight", FORMAT_F32, 1, 64, &seed);
    expect_refusal(&beyond, -ENOTSUP, "tensor blk.2.attn_norm.weight has no place");
    gguf_write_random(&ignorable, "rope_freqs.weight", FORMAT_F32, 1, 16, &seed);
    gguf_write_random(&ignorable, "blk.0.ffn_up.input_scale", FORMAT_F32, 1, 1, &seed);
    EXPECT_INT(open_written(&ignorable, &small, &model), ==, 0);
    model_close(model);
}

static void a_tensor_of_another_shape_is_named(void)
{
    uint64_t seed = 3;
    struct gguf_writer wide = {0}, vector = {0};

    gguf_write_random(&wide, "blk.1.ffn_down.weight", FORMAT_F32, 64, 128, &seed);
    wide.skip = "blk.1.ffn_down.weight";
    expect_refusal(&wide, -EINVAL, "tensor blk.1.ffn_down.weight has rows of 128 and 64 of them");
    gguf_write_random(&vector, "output_norm.weight", FORMAT_F32, 1, 63, &seed);
    vector.skip = "output_norm.weight";
    expect_refusal(&vector, -EINVAL, "tensor output_norm.weight has rows of 63");
}

static void a_missing_setting_is_named(void)
{
    static const char *const names[] = {
        "gemma3.block_count",          "gemma3.embedding_length",
        "gemma3.context_length",       "gemma3.feed_forward_length",
        "gemma3.attention.head_count", "gemma3.attention.layer_norm_rms_epsilon"};

    for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++) {
        struct gguf_writer writer = {.skip = names[i]};
        char reason[128];

        snprintf(reason, sizeof(reason), "key %s is missing", names[i]);
        expect_refusal(&writer, -EINVAL, reason);
    }
}

/* The Gemma with one setting replaced by an integer. */
static void expect_setting(const char *key, int64_t value, int status, const char *reason)
{
    struct gguf_writer writer = {0};

    gguf_write_int(&writer, key, GGUF_I64, value);
    writer.skip = key;
    expect_refusal(&writer, status, reason);
}

static void settings_beyond_their_range_are_refused(void)
{
    expect_setting("gemma3.block_count", 0, -EINVAL, "block_count is 0, not from 1 to");
    expect_setting("gemma3.block_count", 1 << 30, -EINVAL, "block_count is 1073741824");
    expect_setting("gemma3.embedding_length", -64, -EINVAL, "embedding_length is -64");
    expect_setting("gemma3.attention.head_count", INT64_MAX, -EINVAL, "attention.head_count is");
    expect_setting("gemma3.attention.head_count_kv", 3, -EINVAL, "cannot share 3");
    expect_setting("gemma3.attention.value_length", 32, -ENOTSUP, "value_length differs");
    expect_setting("gemma3.context_length", 0, -EINVAL, "context_length is 0");
    expect_setting("gemma3.rope.dimension_count", 63, -EINVAL, "not even");
    expect_setting("general.architecture", 5, -EINVAL, "general.architecture is missing or no");
}

static void settings_of_another_type_are_refused(void)
{
    static const uint32_t differ[] = {4, 2};
    struct gguf_writer text = {0}, fraction = {0}, list = {0}, yarn = {0};

    gguf_write_text(&text, "gemma3.block_count", "two");
    text.skip = "gemma3.block_count";
    expect_refusal(&text, -EINVAL, "gemma3.block_count is no integer");
    gguf_write_f32(&fraction, "gemma3.block_count", 2.5f);
    fraction.skip = "gemma3.block_count";
    expect_refusal(&fraction, -EINVAL, "gemma3.block_count is no integer");
    gguf_write_list(&list, "gemma3.attention.head_count", GGUF_U32, differ, sizeof(*differ), 2);
    list.skip = "gemma3.attention.head_count";
    expect_refusal(&list, -ENOTSUP, "differs between layers (4 and 2)");
    gguf_write_text(&yarn, "gemma3.rope.scaling.type", "longrope");
    expect_refusal(&yarn, -ENOTSUP, "rope.scaling.type");
}

static void an_architecture_that_is_not_there_is_refused_by_name(void)
{
    struct gguf_writer writer = {0};

    gguf_write_text(&writer, "general.architecture", "mamba");
    writer.skip = "general.architecture";
    expect_refusal(&writer, -ENOTSUP, "architecture mamba is not supported; supported: llama, ");
}

static void a_vocabulary_that_does_not_match_is_refused(void)
{
    static const float score[3] = {0};
    struct gguf_writer short_one = {0}, scores = {0}, kind = {0}, bos = {0};
    static const char *const words[] = {"a", "b", "c"};

    gguf_write_texts(&short_one, "tokenizer.ggml.tokens", words, 3);
    short_one.skip = "tokenizer.ggml.tokens";
    expect_refusal(&short_one, -EINVAL, "400 rows for a vocabulary of 3 tokens");
    gguf_write_list(&scores, "tokenizer.ggml.scores", GGUF_F32, score, sizeof(*score), 3);
    scores.skip = "tokenizer.ggml.scores";
    expect_refusal(&scores, -EINVAL, "tokenizer.ggml.scores is not a list of 400");
    gguf_write_text(&kind, "tokenizer.ggml.model", "rwkv");
    kind.skip = "tokenizer.ggml.model";
    expect_refusal(&kind, -ENOTSUP, "tokenizer.ggml.model is rwkv");
    gguf_write_int(&bos, "tokenizer.ggml.bos_token_id", GGUF_I64, 1LL << 40);
    bos.skip = "tokenizer.ggml.bos_token_id";
    expect_refusal(&bos, -EINVAL, "tokenizer.ggml.bos_token_id is no token id");
}

static void a_model_beyond_the_memory_is_refused_with_the_sums(void)
{
    struct model_options options = simple_options();
    struct gguf_writer writer = {0};
    struct model *model;

    gguf_write_gemma(&writer, &small);
    EXPECT(gguf_writer_save(&writer, path));
    gguf_writer_free(&writer);
    options.block_count = 0;
    options.memory_share = 1e-9;
    EXPECT_INT(model_open(&model, &options, message, sizeof(message)), ==, -ENOMEM);
    EXPECT(strstr(message, "not enough memory: weights") != NULL);
    options.memory_share = 0.5;
    options.context_max = 513;
    EXPECT_INT(model_open(&model, &options, message, sizeof(message)), ==, -ENOTSUP);
    EXPECT(strstr(message, "a context of 513 tokens is asked for") != NULL);
    options.device = MODEL_DEVICE_CUDA;
    int status = model_open(&model, &options, message, sizeof(message));
    if (status == -ENODEV) /* no GPU here, or none in the build */
        EXPECT(strstr(message,
                      backend_cuda() == NULL ? "no CUDA backend" : "could not open GPU 0") != NULL);
    else
        EXPECT_INT(status, ==, -ENOTSUP); /* the context, again */
    options.path = "/nowhere/model.gguf";
    EXPECT_INT(model_open(&model, &options, message, sizeof(message)), ==, -ENOENT);
    EXPECT(strstr(message, "cannot load /nowhere/model.gguf: No such file") != NULL);
}

/* ---- shapes ---- */

/* The shape of a tiny Gemma with keys of its own in front. */
static struct shape *read_shape(struct gguf_writer *writer, const struct tiny_gemma *tiny)
{
    static struct shape shape;
    struct source *source;

    memset(&shape, 0, sizeof(shape));
    gguf_write_gemma(writer, tiny);
    EXPECT(gguf_writer_save(writer, path));
    gguf_writer_free(writer);
    EXPECT_INT(source_open(&source, path, message, sizeof(message)), ==, 0);
    arch_gemma3.read_shape(&shape, source);
    EXPECT_INT(source_status(source), ==, 0);
    source_close(source);
    return &shape;
}

static void gemmas_defaults_are_kept(void)
{
    struct gguf_writer writer = {0};
    const struct shape *shape =
        read_shape(&writer, &(struct tiny_gemma){.layer_count = 13, .window = 9});

    EXPECT_INT(shape->layer_count, ==, 13);
    EXPECT_INT(shape->vocab_count, ==, 400);
    EXPECT(shape->embed_scale == 8.0f && shape->score_scale == 0.125f);
    EXPECT(shape->logit_softcap == 0.0f && shape->score_softcap == 0.0f);
    for (int i = 0; i < 13; i++) {
        bool local = i % 6 < 5;

        EXPECT_INT(shape->layer[i].window, ==, local ? 9 : 0);
        EXPECT(shape->rope[shape->layer[i].rope].base == (local ? 10000.0 : 1000000.0));
    }
}

static void window_patterns_are_periods_or_lists(void)
{
    static const unsigned char pattern[] = {0, 1, 1, 0};
    struct gguf_writer period = {0}, list = {0}, none = {0};
    const struct shape *shape =
        read_shape(&period, &(struct tiny_gemma){.layer_count = 4, .period = 2, .window = 9});

    for (int i = 0; i < 4; i++)
        EXPECT_INT(shape->layer[i].window, ==, i % 2 == 0 ? 9 : 0);
    gguf_write_list(&list, "gemma3.attention.sliding_window_pattern", GGUF_BOOL, pattern, 1, 4);
    shape = read_shape(&list, &(struct tiny_gemma){.layer_count = 4, .window = 9});
    for (int i = 0; i < 4; i++)
        EXPECT_INT(shape->layer[i].window, ==, pattern[i] ? 9 : 0);
    shape = read_shape(&none, &(struct tiny_gemma){.layer_count = 4, .window = -1});
    for (int i = 0; i < 4; i++)
        EXPECT_INT(shape->layer[i].window, ==, 0);
}

static void scaling_is_of_global_layers_alone(void)
{
    static const uint32_t same[] = {4, 4, 4, 4, 4, 4, 4};
    struct gguf_writer writer = {0}, off = {0};
    const struct shape *shape;

    gguf_write_list(&writer, "gemma3.attention.head_count", GGUF_U32, same, sizeof(*same), 7);
    gguf_write_f32(&writer, "gemma3.rope.freq_base_swa", 500.0f);
    writer.skip = "gemma3.attention.head_count";
    shape = read_shape(&writer, &(struct tiny_gemma){.rope_factor = 8, .softcap = 30});
    EXPECT_INT(shape->head_count, ==, 4);
    EXPECT(shape->logit_softcap == 30.0f);
    EXPECT(shape->rope[shape->layer[0].rope].factor == 1.0);
    EXPECT(shape->rope[shape->layer[0].rope].base == 500.0);
    EXPECT(shape->rope[shape->layer[5].rope].factor == 8.0);
    gguf_write_text(&off, "gemma3.rope.scaling.type", "none");
    off.skip = "gemma3.rope.scaling.type";
    shape = read_shape(&off, &(struct tiny_gemma){.rope_factor = 8});
    EXPECT(shape->rope[shape->layer[5].rope].factor == 1.0);
}

static void the_27b_model_scales_queries_by_its_width(void)
{
    struct gguf_writer writer = {0};
    const struct shape *shape = read_shape(&writer, &(struct tiny_gemma){.layer_count = 62});

    EXPECT(shape->score_scale == 0.25f); /* 1 / sqrt(64 / 4) */
}

/* ---- good models ---- */

static void note_progress(void *context, double share, const char *what)
{
    int32_t *calls = context;

    EXPECT(share >= last_share && share <= 1.0);
    EXPECT(what != NULL && what[0] != '\0');
    last_share = share;
    ++*calls;
}

static void opening_tells_its_progress_and_the_facts(void)
{
    struct model_options options = simple_options();
    struct gguf_writer writer = {0};
    int32_t calls = 0;
    struct model *model;
    const struct model_info *info;

    gguf_write_gemma(&writer, &small);
    EXPECT(gguf_writer_save(&writer, path));
    gguf_writer_free(&writer);
    options.progress = note_progress;
    options.progress_context = &calls;
    last_share = 0;
    EXPECT_INT(model_open(&model, &options, message, sizeof(message)), ==, 0);
    EXPECT(calls > 0);
    info = model_info(model);
    EXPECT_STRING(info->name, "Tiny Gemma");
    EXPECT_INT(info->layer_count, ==, 2);
    EXPECT_INT(info->vocab_count, ==, 400);
    EXPECT_INT(info->block_count, ==, 64);
    EXPECT_INT(info->context_max, ==, 512);
    EXPECT(model_tokenizer(model) != NULL);
    EXPECT_INT(tokenizer_bos(model_tokenizer(model)), ==, 2);
    model_close(model);
}

static void a_model_without_a_vocabulary_has_no_tokenizer(void)
{
    struct gguf_writer writer = {0};
    struct model *model;

    EXPECT_INT(
        open_written(&writer,
                     &(struct tiny_gemma){.seed = 1, .layer_count = 1, .no_vocabulary = true},
                     &model),
        ==, 0);
    EXPECT(model_tokenizer(model) == NULL);
    EXPECT_INT(model_info(model)->end_count, ==, 0);
    model_close(model);
}

static void auto_takes_the_device_that_is_there(void)
{
    struct model_options options = simple_options();
    struct gguf_writer writer = {0};
    struct model *model;

    gguf_write_gemma(&writer, &small);
    EXPECT(gguf_writer_save(&writer, path));
    gguf_writer_free(&writer);
    options.device = MODEL_DEVICE_AUTO;
    EXPECT_INT(model_open(&model, &options, message, sizeof(message)), ==, 0);
    EXPECT(model != NULL && model_info(model)->device[0] != '\0');
    model_close(model);
}

/* Steps of the tiny Gemma, opened with `work` for them. */
static int32_t step_tokens(int64_t work, int32_t slot_max)
{
    struct model_options options = simple_options();
    struct model *model;
    int32_t tokens = 0;

    options.step_work = work;
    options.slot_max = slot_max;
    options.token_max = options.sample_max = 4096;
    if (model_open(&model, &options, message, sizeof(message)) == 0)
        tokens = model_info(model)->step_tokens;
    model_close(model);
    return tokens;
}

static void the_work_of_a_step_bounds_its_tokens(void)
{
    /* q, k, v and output of 4 heads over 2, and three matrices of the feed-forward */
    const int64_t work = 2 * 64 * ((4 + 2 * 2 + 4) * 64 + 3 * 256);
    struct gguf_writer writer = {0};
    struct model *model;

    EXPECT_INT(open_written(&writer, &small, &model), ==, 0);
    EXPECT_INT(model_info(model)->step_tokens, ==, 32);
    model_close(model);
    EXPECT_INT(step_tokens(0, 4), ==, 4096);
    EXPECT_INT(step_tokens(1, 4), ==, STEP_TOKENS_LEAST);
    EXPECT_INT(step_tokens(1, 700), ==, 1024);
    EXPECT_INT(step_tokens(2048 * work - 1, 4), ==, 1024);
    EXPECT_INT(step_tokens(2048 * work, 4), ==, 2048);
    EXPECT_INT(step_tokens(INT64_MAX / 4, 4), ==, 4096);
}

static void inspecting_says_what_opening_finds(void)
{
    struct model_options options = simple_options();
    struct gguf_writer writer = {0}, unknown = {0};
    struct model_inspection inspection;
    struct model *model;

    EXPECT_INT(open_written(&writer, &small, &model), ==, 0);
    EXPECT_INT(model_inspect(&inspection, &options, message, sizeof(message)), ==, 0);
    EXPECT(inspection.readable && inspection.fits);
    EXPECT_INT(inspection.info.weight_bytes, ==, model_info(model)->weight_bytes);
    EXPECT_INT(inspection.info.kv_bytes, ==, model_info(model)->kv_bytes);
    EXPECT_INT(inspection.info.workspace_bytes, ==, model_info(model)->workspace_bytes);
    EXPECT_INT(inspection.summary.tensor_count, ==, 2 + 2 * 13);
    model_close(model);
    gguf_write_text(&unknown, "general.architecture", "mamba");
    unknown.skip = "general.architecture";
    EXPECT_INT(open_written(&unknown, &small, &model), ==, -ENOTSUP);
    EXPECT_INT(model_inspect(&inspection, &options, message, sizeof(message)), ==, -ENOTSUP);
    EXPECT(inspection.readable && !inspection.fits);
    EXPECT_STRING(inspection.summary.architecture, "mamba");
}

static void batches_take_turns_and_begin_empty(void)
{
    struct gguf_writer writer = {0};
    struct batch *first, *second;
    struct model *model;

    EXPECT_INT(open_written(&writer, &small, &model), ==, 0);
    first = model_batch(model);
    model_start(model, first);
    second = model_batch(model);
    EXPECT(first != second);
    model_start(model, second);
    EXPECT_INT(model_wait(model, first), ==, 0);
    EXPECT(model_batch(model) == first);
    EXPECT_INT(first->step.token_count, ==, 0);
    EXPECT(first->step.history_max >= 4 * 512);
    EXPECT(first->step.change_max >= 4 * 512 / 16);
    model_close(model); /* with one batch started and one handed out */
}

int main(void)
{
    int fd = mkstemp(path);

    if (fd < 0)
        return 1;
    close(fd);
    TEST(a_missing_tensor_is_named);
    TEST(a_tensor_without_a_place_is_named);
    TEST(a_tensor_of_another_shape_is_named);
    TEST(a_missing_setting_is_named);
    TEST(settings_beyond_their_range_are_refused);
    TEST(settings_of_another_type_are_refused);
    TEST(an_architecture_that_is_not_there_is_refused_by_name);
    TEST(a_vocabulary_that_does_not_match_is_refused);
    TEST(a_model_beyond_the_memory_is_refused_with_the_sums);
    TEST(gemmas_defaults_are_kept);
    TEST(window_patterns_are_periods_or_lists);
    TEST(scaling_is_of_global_layers_alone);
    TEST(the_27b_model_scales_queries_by_its_width);
    TEST(opening_tells_its_progress_and_the_facts);
    TEST(a_model_without_a_vocabulary_has_no_tokenizer);
    TEST(auto_takes_the_device_that_is_there);
    TEST(the_work_of_a_step_bounds_its_tokens);
    TEST(inspecting_says_what_opening_finds);
    TEST(batches_take_turns_and_begin_empty);
    unlink(path);
    return test_report();
}
