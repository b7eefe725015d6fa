/* The tiny Hugging Face checkpoints against what transformers computed from them in f32, and the
 * same bits however a step is cut.
 *
 * Logits never leave a device, so that what is compared is every log-probability of the
 * vocabulary: 320 scores a position, one for each token. The cache holds f32 here: the weights are
 * bf16, exact, and activations are f32, so that nothing is rounded below that. */
#include "model/load/safetensors.h"
#include "tests/gguf_writer.h"
#include "tests/golden/driver.h"

#include <inttypes.h>
#include <math.h>
#include <unistd.h>

enum {
    PROMPTS = 4,
    LOGIT_POSITIONS = 16,
    OUTPUT = 32,
    VOCAB = 320,
    TOKEN_MAX = 256,
    SCORES_MAX = 3, /* positions of one step, of sample_max 1200 */
    LENGTH_MAX = 162,
};

static const char *const families[] = {"llama", "llama3", "mistral", "qwen2", "qwen3", "gemma3"};
static const char *family;
static struct safetensors *golden;
static struct driver driver;

static const char *folder(char *text, size_t max)
{
    snprintf(text, max, "../shared/checkpoints/%s", family);
    return text;
}

/* ---- what the reference says ---- */

static const struct safetensors_tensor *golden_tensor(const char *kind, int index)
{
    char name[32];
    const struct safetensors_tensor *tensor;

    snprintf(name, sizeof(name), "%s_%d", kind, index);
    tensor = safetensors_find(golden, name);
    if (tensor == NULL)
        abort();
    return tensor;
}

static int32_t golden_tokens(const char *kind, int index, int32_t *token)
{
    const struct safetensors_tensor *tensor = golden_tensor(kind, index);

    if (tensor->type != SAFETENSORS_I32 || tensor->value_count > LENGTH_MAX)
        abort();
    memcpy(token, tensor->data, tensor->bytes);
    return (int32_t)tensor->value_count;
}

/* The golden's own precision where the device has it: a GPU keeps its cache in f16. */
static enum kv_dtype finest_cache(void)
{
    return driver_device == MODEL_DEVICE_CUDA ? KV_AUTO : KV_F32;
}

static double log_sum(const float *logits)
{
    double most = -INFINITY, sum = 0;

    for (int i = 0; i < VOCAB; i++)
        most = fmax(most, (double)logits[i]);
    for (int i = 0; i < VOCAB; i++)
        sum += exp((double)logits[i] - most);
    return most + log(sum);
}

/* ---- what the model says ---- */

/* Log-probabilities of all tokens behind positions first .. count - 1 of a sequence, in chunks of
 * `chunk` tokens: [count - first, VOCAB]. */
static bool score_all(const int32_t *token, int32_t count, int32_t first, int32_t chunk,
                      float *logprob)
{
    struct sequence sequence = sequence_create(token, count, 0);
    bool good = true;

    driver_reset(&driver, 1);
    while (good && sequence.fed < count) {
        struct batch *batch = model_batch(driver.model);
        int32_t from = sequence.fed, left = count - from, wanted = chunk < left ? chunk : left;
        int32_t skip;

        if (from < first)
            wanted = wanted < first - from ? wanted : first - from;
        else
            wanted = wanted < SCORES_MAX ? wanted : SCORES_MAX;
        skip = from < first ? wanted : 0;
        driver_row(&driver, &batch->step, 0, &sequence, token + from, wanted);
        for (int32_t i = skip; i < wanted; i++)
            for (int32_t v = 0; v < VOCAB; v++)
                driver_sample(&batch->step, STEP_SCORE, 0, i, 0, v);
        model_start(driver.model, batch);
        good = model_wait(driver.model, batch) == 0;
        if (skip == 0)
            memcpy(logprob + (ptrdiff_t)(from - first) * VOCAB, batch->result.logprob,
                   (size_t)wanted * VOCAB * sizeof(float));
    }
    sequence_free(&sequence);
    return good;
}

static bool open_family(enum kv_dtype kv)
{
    char path[128];

    driver_kv = kv;
    driver_skips_tokenizer = true;
    EXPECT(driver_open(&driver, folder(path, sizeof(path)), TOKEN_MAX));
    return driver.model != NULL;
}

/* The largest difference over the stored positions, as a share of the largest logit. */
static double worst_share(void)
{
    static float logprob[LOGIT_POSITIONS * VOCAB];
    double worst = 0;

    for (int p = 0; p < PROMPTS; p++) {
        const struct safetensors_tensor *stored = golden_tensor("logits", p);
        int32_t token[LENGTH_MAX], count = golden_tokens("prompt", p, token);
        int32_t rows = (int32_t)stored->dim[0];
        float logits[VOCAB];

        if (!score_all(token, count, count - rows, TOKEN_MAX, logprob))
            return INFINITY;
        for (int32_t r = 0; r < rows; r++) {
            double most = 0, delta = 0, sum;

            memcpy(logits, stored->data + (size_t)r * sizeof(logits), sizeof(logits));
            sum = log_sum(logits);
            for (int v = 0; v < VOCAB; v++) {
                most = fmax(most, fabs((double)logits[v]));
                delta = fmax(delta, fabs((double)logprob[r * VOCAB + v] + sum - (double)logits[v]));
            }
            worst = fmax(worst, delta / most);
        }
    }
    return worst;
}

static void log_probabilities_are_the_references(void)
{
    double worst;

    if (golden == NULL)
        SKIP("../shared/checkpoints is not there");
    if (!open_family(KV_F32))
        return;
    worst = worst_share();
    printf("%-8s f32 cache: worst delta %.2e of the largest logit\n", family, worst);
    EXPECT(worst <= 1e-4);
    EXPECT(worst > 0);
    model_close(driver.model);
}

/* How far a logit may be from the golden's, as a share of the largest, with the cache as it is
 * served. On a CPU only the cache is rounded, to f16, whose last bit is 2^-11; what that does to a
 * logit is of the same size, times the few keys and values that matter to it. On a GPU activations
 * are bf16: a path through a layer meets eight roundings of at most 2^-9 (normed, q or k, heads and
 * branch; normed, gate or up, their product and branch) and both factors of a product may have
 * one, and there are two more before the head. That is the sum at worst. transformers in bf16 is
 * 1.5e-2 to 7.3e-2 off on the same files. */
static double share_limit(void)
{
    const struct model_info *info = model_info(driver.model);

    if (driver_device != MODEL_DEVICE_CUDA)
        return 4e-3;
    return 2 * (8 * info->layer_count + 2) * 0x1p-9;
}

static void a_cache_of_halves_costs_little(void)
{
    double worst;

    if (golden == NULL)
        SKIP("../shared/checkpoints is not there");
    if (!open_family(KV_AUTO))
        return;
    worst = worst_share();
    printf("%-8s f16 cache: worst delta %.2e of the largest logit\n", family, worst);
    EXPECT(worst <= share_limit());
    model_close(driver.model);
}

/* Fed the reference's tokens, each step's best is the reference's, or one within the tolerance of
 * it. */
static void greedy_is_the_references_step_by_step(void)
{
    static float logprob[OUTPUT * VOCAB];
    /* Twice what a logit of 6 may be off. */
    float tolerance = 1e-3f;
    int32_t near_max = finest_cache() == KV_F32 ? 1 : 4;

    if (golden == NULL)
        SKIP("../shared/checkpoints is not there");
    if (!open_family(finest_cache()))
        return;
    if (finest_cache() != KV_F32)
        tolerance = 2 * 6 * (float)share_limit();
    for (int p = 0; p < PROMPTS; p++) {
        int32_t token[LENGTH_MAX], count = golden_tokens("greedy", p, token),
                                   first = count - OUTPUT;
        int32_t near = 0;

        EXPECT(score_all(token, count - 1, first - 1, TOKEN_MAX, logprob));
        for (int32_t i = 0; i < OUTPUT; i++) {
            const float *row = logprob + i * VOCAB;
            int best = 0;

            for (int v = 1; v < VOCAB; v++)
                best = row[v] > row[best] ? v : best;
            near += best != token[first + i];
            if (best != token[first + i])
                EXPECT(row[best] - row[token[first + i]] < tolerance);
        }
        EXPECT_INT(near, <=, near_max);
    }
    model_close(driver.model);
}

static void its_tokenizer_comes_with_it(void)
{
    const struct model_info *info;
    char path[128];

    if (golden == NULL)
        SKIP("../shared/checkpoints is not there");
    driver_skips_tokenizer = false;
    EXPECT(driver_open(&driver, folder(path, sizeof(path)), TOKEN_MAX));
    if (driver.model == NULL)
        return;
    info = model_info(driver.model);
    EXPECT(model_tokenizer(driver.model) != NULL);
    EXPECT_INT(info->end_count, ==, 2); /* of the configs; <|endoftext|> by name */
    EXPECT_INT(info->end_token[0], ==, 2);
    EXPECT_INT(info->end_token[1], ==, 0);
    model_close(driver.model);
}

/* ---- determinism ---- */

static void expect_same_bits(struct sequence *alone, int32_t chunk, int32_t token_max,
                             int32_t stride, int depth)
{
    struct sequence sequence[PROMPTS];

    for (int i = 0; i < PROMPTS; i++)
        sequence[i] = sequence_create(alone[i].prompt, alone[i].prompt_count, OUTPUT);
    driver_reset(&driver, stride);
    EXPECT_INT(driver_run(&driver, sequence, PROMPTS, chunk, token_max, depth), ==, 0);
    for (int i = 0; i < PROMPTS; i++) {
        EXPECT(sequence_equal(&sequence[i], &alone[i]));
        sequence_free(&sequence[i]);
    }
}

static void expect_determinism(enum kv_dtype kv)
{
    static int32_t token[PROMPTS][LENGTH_MAX];
    struct sequence alone[PROMPTS];

    if (!open_family(kv))
        return;
    for (int i = 0; i < PROMPTS; i++) {
        alone[i] = sequence_create(token[i], golden_tokens("prompt", i, token[i]), OUTPUT);
        driver_reset(&driver, 1);
        EXPECT_INT(driver_run(&driver, &alone[i], 1, TOKEN_MAX, TOKEN_MAX, 1), ==, 0);
    }
    expect_same_bits(alone, TOKEN_MAX, TOKEN_MAX, 1, 1);
    expect_same_bits(alone, 7, TOKEN_MAX, 389, 1);
    expect_same_bits(alone, 16, 40, 77, STEP_DEPTH);
    for (int i = 1; i < PROMPTS; i++) {
        EXPECT(driver_prefix_hit_is_equal(&driver, &alone[i], 7, TOKEN_MAX));
        EXPECT(driver_preemption_is_equal(&driver, &alone[i], 5, 13, TOKEN_MAX));
    }
    for (int i = 0; i < PROMPTS; i++)
        sequence_free(&alone[i]);
    model_close(driver.model);
}

static void a_sequence_has_the_same_bits_however_steps_are_cut(void)
{
    if (golden == NULL)
        SKIP("../shared/checkpoints is not there");
    expect_determinism(KV_AUTO);
    if (finest_cache() == KV_F32)
        expect_determinism(KV_F32);
}

/* ---- the same models as GGUF ---- */

enum { HEADS = 4, KV_HEADS = 2, HEAD_WIDTH = 64, ROW_MAX = 256 };

/* As converters do: in each head of q and k row i goes to 2 i, row i + C / 2 to 2 i + 1. */
static void interleave(unsigned char *target, const unsigned char *source, int heads, size_t row)
{
    for (int h = 0; h < heads; h++)
        for (int i = 0; i < HEAD_WIDTH; i++) {
            int to = i < HEAD_WIDTH / 2 ? 2 * i : 2 * (i - HEAD_WIDTH / 2) + 1;

            memcpy(target + (size_t)(h * HEAD_WIDTH + to) * row,
                   source + (size_t)(h * HEAD_WIDTH + i) * row, row);
        }
}

static void write_as(struct gguf_writer *writer, const struct safetensors *from, const char *name,
                     const char *as, int heads)
{
    static unsigned char rows[HEADS * HEAD_WIDTH * ROW_MAX * 2];
    const struct safetensors_tensor *tensor = safetensors_find(from, name);
    int64_t dim[2] = {0, 1};
    const unsigned char *data;

    if (tensor == NULL)
        return;
    data = tensor->data;
    dim[0] = tensor->dim[tensor->dim_count - 1];
    dim[1] = tensor->value_count / dim[0];
    if (heads > 0 && tensor->dim_count == 2) {
        interleave(rows, data, heads, (size_t)dim[0] * 2);
        data = rows;
    }
    gguf_write_tensor(writer, as, 30, tensor->dim_count, dim, data, tensor->bytes);
}

static void write_layer(struct gguf_writer *writer, const struct safetensors *from, int layer,
                        bool llama)
{
    static const char *const names[][2] = {
        {"self_attn.q_proj.weight", "attn_q.weight"},
        {"self_attn.k_proj.weight", "attn_k.weight"},
        {"self_attn.v_proj.weight", "attn_v.weight"},
        {"self_attn.q_proj.bias", "attn_q.bias"},
        {"self_attn.k_proj.bias", "attn_k.bias"},
        {"self_attn.v_proj.bias", "attn_v.bias"},
        {"self_attn.q_norm.weight", "attn_q_norm.weight"},
        {"self_attn.k_norm.weight", "attn_k_norm.weight"},
        {"self_attn.o_proj.weight", "attn_output.weight"},
        {"input_layernorm.weight", "attn_norm.weight"},
        {"post_attention_layernorm.weight", "ffn_norm.weight"},
        {"mlp.gate_proj.weight", "ffn_gate.weight"},
        {"mlp.up_proj.weight", "ffn_up.weight"},
        {"mlp.down_proj.weight", "ffn_down.weight"},
    };
    char name[96], as[64];

    for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++) {
        int heads = i == 0 ? HEADS : i == 1 ? KV_HEADS : 0;

        snprintf(name, sizeof(name), "model.layers.%d.%s", layer, names[i][0]);
        snprintf(as, sizeof(as), "blk.%d.%s", layer, names[i][1]);
        write_as(writer, from, name, as, llama ? heads : 0);
    }
}

static void write_key(struct gguf_writer *writer, const char *arch, const char *key, uint32_t value)
{
    char whole[96];

    snprintf(whole, sizeof(whole), "%s.%s", arch, key);
    gguf_write_u32(writer, whole, value);
}

static void write_keys(struct gguf_writer *writer, const char *arch, uint32_t width)
{
    char whole[96];

    gguf_write_text(writer, "general.architecture", arch);
    write_key(writer, arch, "block_count", 2);
    write_key(writer, arch, "context_length", 2048);
    write_key(writer, arch, "embedding_length", width);
    write_key(writer, arch, "feed_forward_length", 96);
    write_key(writer, arch, "attention.head_count", HEADS);
    write_key(writer, arch, "attention.head_count_kv", KV_HEADS);
    write_key(writer, arch, "attention.key_length", HEAD_WIDTH);
    write_key(writer, arch, "attention.value_length", HEAD_WIDTH);
    write_key(writer, arch, "rope.freq_base", strcmp(family, "llama3") == 0 ? 500000 : 10000);
    if (strcmp(family, "mistral") == 0)
        write_key(writer, arch, "attention.sliding_window", 48);
    snprintf(whole, sizeof(whole), "%s.attention.layer_norm_rms_epsilon", arch);
    gguf_write_f32(writer, whole, 1e-6f);
}

/* The scaling of llama3 (8, 1, 4, 256 at base 500000) as divisors. */
static void write_divisors(struct gguf_writer *writer)
{
    float divisor[HEAD_WIDTH / 2];
    const int64_t dim = HEAD_WIDTH / 2;

    for (int i = 0; i < HEAD_WIDTH / 2; i++) {
        double wave = 2 * M_PI / pow(500000, -2.0 * i / HEAD_WIDTH);
        double smooth = (256 / wave - 1) / 3;

        smooth = fmin(fmax(smooth, 0), 1);
        divisor[i] = (float)(1 / ((1 - smooth) / 8 + smooth));
    }
    gguf_write_tensor(writer, "rope_freqs.weight", 0, 1, &dim, divisor, sizeof(divisor));
}

static bool write_gguf(const char *path)
{
    const char *arch = strncmp(family, "qwen", 4) == 0 ? family : "llama";
    struct gguf_writer writer = {0};
    struct safetensors *from;
    char text[128], error[512];
    bool good;

    if (safetensors_open(&from, folder(text, sizeof(text)), error, sizeof(error)) != 0)
        return false;
    write_keys(&writer, arch,
               (uint32_t)safetensors_find(from, "model.embed_tokens.weight")->dim[1]);
    write_as(&writer, from, "model.embed_tokens.weight", "token_embd.weight", 0);
    write_as(&writer, from, "model.norm.weight", "output_norm.weight", 0);
    write_as(&writer, from, "lm_head.weight", "output.weight", 0);
    for (int i = 0; i < 2; i++)
        write_layer(&writer, from, i, strcmp(arch, "llama") == 0);
    if (strcmp(family, "llama3") == 0)
        write_divisors(&writer);
    good = gguf_writer_save(&writer, path);
    gguf_writer_free(&writer);
    safetensors_close(from);
    return good;
}

static void a_gguf_of_it_is_the_same_model(void)
{
    char path[] = "/tmp/quire-family-XXXXXX";
    double worst;
    int fd;

    if (golden == NULL)
        SKIP("../shared/checkpoints is not there");
    fd = mkstemp(path);
    EXPECT(fd >= 0 && write_gguf(path));
    driver_kv = KV_F32;
    EXPECT(driver_open(&driver, path, TOKEN_MAX));
    if (driver.model != NULL) {
        worst = worst_share();
        printf("%-8s as a GGUF: worst delta %.2e of the largest logit\n", family, worst);
        EXPECT(worst <= 1e-4);
        model_close(driver.model);
    }
    close(fd);
    unlink(path);
}

/* ---- the same models in other folders ---- */

static const char *shards[] = {"model-00001-of-00002.safetensors",
                               "model-00002-of-00002.safetensors"};

static FILE *create(const char *path, const char *name)
{
    char whole[160];
    FILE *file;

    snprintf(whole, sizeof(whole), "%s/%s", path, name);
    file = fopen(whole, "wb");
    if (file == NULL)
        abort();
    return file;
}

/* Without the prefix that the checkpoints have. */
static const char *short_name(const char *name)
{
    return strncmp(name, "model.", 6) == 0 ? name + 6 : name;
}

/* Every second tensor, as F32, behind a header that leaves the data at an odd address. */
static void write_shard(const char *path, const struct safetensors *from, int shard)
{
    char *header = NULL;
    size_t bytes = 0, end = 0;
    FILE *text = open_memstream(&header, &bytes), *file = create(path, shards[shard]);
    uint64_t size;

    for (int64_t i = shard; i < from->tensor_count; i += 2) {
        const struct safetensors_tensor *tensor = &from->tensor[i];

        fprintf(text, "%s\"%s\":{\"dtype\":\"F32\",\"shape\":[", i == shard ? "{" : ",",
                short_name(tensor->name));
        for (int k = 0; k < tensor->dim_count; k++)
            fprintf(text, "%s%" PRId64, k > 0 ? "," : "", tensor->dim[k]);
        fprintf(text, "],\"data_offsets\":[%zu,%zu]}", end, end + 2 * tensor->bytes);
        end += 2 * tensor->bytes;
    }
    fprintf(text, "}");
    while (ftell(text) % 2 == 0)
        fprintf(text, " ");
    fclose(text);
    size = bytes;
    fwrite(&size, sizeof(size), 1, file);
    fwrite(header, 1, bytes, file);
    for (int64_t i = shard; i < from->tensor_count; i += 2)
        for (int64_t k = 0; k < from->tensor[i].value_count; k++) {
            uint32_t value = (uint32_t)from->tensor[i].data[2 * k] << 16 |
                             (uint32_t)from->tensor[i].data[2 * k + 1] << 24;

            fwrite(&value, sizeof(value), 1, file);
        }
    fclose(file);
    free(header);
}

static void write_index(const char *path, const struct safetensors *from)
{
    FILE *file = create(path, "model.safetensors.index.json");

    for (int64_t i = 0; i < from->tensor_count; i++)
        fprintf(file, "%s\"%s\":\"%s\"", i == 0 ? "{\"weight_map\":{" : ",",
                short_name(from->tensor[i].name), shards[i % 2]);
    fprintf(file, "}}");
    fclose(file);
}

static void copy_config(const char *path)
{
    char text[8192] = "", from[160];
    FILE *source, *target = create(path, "config.json");
    size_t count;

    snprintf(from, sizeof(from), "../shared/checkpoints/%s/config.json", family);
    source = fopen(from, "rb");
    if (source == NULL)
        abort();
    count = fread(text, 1, sizeof(text), source);
    if (count == 0 || count == sizeof(text) || fwrite(text, 1, count, target) != count)
        abort();
    fclose(source);
    fclose(target);
}

static void erase(const char *path, const char *name)
{
    char whole[160];

    snprintf(whole, sizeof(whole), "%s/%s", path, name);
    unlink(whole);
}

static void shards_of_f32_without_the_prefix_are_the_same_model(void)
{
    char path[] = "/tmp/quire-shards-XXXXXX", text[128], error[512];
    struct safetensors *from;
    double worst;

    if (golden == NULL)
        SKIP("../shared/checkpoints is not there");
    EXPECT_INT(safetensors_open(&from, folder(text, sizeof(text)), error, sizeof(error)), ==, 0);
    if (from == NULL || mkdtemp(path) == NULL)
        abort();
    copy_config(path);
    write_index(path, from);
    write_shard(path, from, 0);
    write_shard(path, from, 1);
    safetensors_close(from);
    driver_kv = KV_F32;
    driver_skips_tokenizer = true;
    EXPECT(driver_open(&driver, path, TOKEN_MAX));
    if (driver.model != NULL) {
        EXPECT_STRING(model_info(driver.model)->format, "F32");
        worst = worst_share();
        EXPECT(worst > 0 && worst <= 1e-4);
        model_close(driver.model);
    }
    erase(path, "config.json");
    erase(path, "model.safetensors.index.json");
    erase(path, shards[0]);
    erase(path, shards[1]);
    rmdir(path);
}

static void *read_golden(size_t *bytes)
{
    char path[160];
    FILE *file;
    long size;
    void *data;

    snprintf(path, sizeof(path), "../shared/checkpoints/%s/golden.safetensors", family);
    file = fopen(path, "rb");
    if (file == NULL)
        return NULL;
    fseek(file, 0, SEEK_END);
    size = ftell(file);
    rewind(file);
    data = malloc((size_t)size);
    if (data == NULL || fread(data, 1, (size_t)size, file) != (size_t)size)
        abort();
    fclose(file);
    *bytes = (size_t)size;
    return data;
}

static void run(void)
{
    size_t bytes = 0;
    void *data = read_golden(&bytes);
    char error[512];

    if (data != NULL && safetensors_open_memory(&golden, data, bytes, error, sizeof(error)) != 0)
        abort();
    if (finest_cache() == KV_F32)
        TEST(log_probabilities_are_the_references);
    TEST(a_cache_of_halves_costs_little);
    TEST(greedy_is_the_references_step_by_step);
    TEST(its_tokenizer_comes_with_it);
    TEST(a_sequence_has_the_same_bits_however_steps_are_cut);
    if (finest_cache() == KV_F32)
        TEST(shards_of_f32_without_the_prefix_are_the_same_model);
    if (finest_cache() == KV_F32 && strcmp(family, "gemma3") != 0) /* test_tiny.c has its GGUF */
        TEST(a_gguf_of_it_is_the_same_model);
    safetensors_close(golden);
    golden = NULL;
    free(data);
}

/* test_families [--device cuda|portable] */
int main(int argc, char **argv)
{
    driver_arguments(argc, argv);
    for (size_t i = 0; i < sizeof(families) / sizeof(*families); i++) {
        family = families[i];
        run();
    }
    return test_report();
}
