/* Real tokenizer.json files against the ids and texts of the original tokenizers. */
#include "model/text/detokenizer.h"
#include "model/text/json_reader.h"
#include "model/text/tokenizer_json.h"
#include "tests/test.h"

#include <pthread.h>
#include <stdbool.h>
#include <time.h>
#include <unistd.h>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
static const bool sanitized = true;
#else
static const bool sanitized = false;
#endif

static const char shared[] = "../shared/tokenizers";

static int64_t cpu_us(void)
{
    struct timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return now.tv_sec * 1000000LL + now.tv_nsec / 1000;
}

static char *read_file(const char *path, size_t *bytes)
{
    FILE *file = fopen(path, "rb");
    char *text = NULL;

    if (file == NULL)
        return NULL;
    fseek(file, 0, SEEK_END);
    *bytes = (size_t)ftell(file);
    rewind(file);
    text = malloc(*bytes + 1);
    if (fread(text, 1, *bytes, file) != *bytes)
        *bytes = 0;
    text[*bytes] = '\0';
    fclose(file);
    return text;
}

static struct tokenizer *open_path(const char *path)
{
    char error[256] = "";
    size_t bytes;
    char *json = read_file(path, &bytes);

    if (json == NULL)
        return NULL;
    struct tokenizer *tokenizer = tokenizer_open_json(json, bytes, NULL, error, sizeof(error));
    if (tokenizer == NULL)
        printf("%s: %s\n", path, error);
    free(json);
    return tokenizer;
}

/* Unpacked once under build/, under a name of this process first: tests run side by side. */
static bool unpack(const char *name, char *path, size_t path_bytes)
{
    char command[512];

    snprintf(path, path_bytes, "build/tokenizers/%s/tokenizer.json", name);
    if (access(path, R_OK) == 0)
        return true;
    snprintf(command, sizeof(command),
             "mkdir -p build/tokenizers && t=$(mktemp -d build/tokenizers/XXXXXX) && "
             "tar -xJf %s/%s.tar.xz -C $t && { mv -T $t/%s build/tokenizers/%s 2>/dev/null; "
             "rm -rf $t; }",
             shared, name, name, name);
    return system(command) == 0 && access(path, R_OK) == 0; // NOLINT(cert-env33-c)
}

static struct tokenizer *open_name(const char *name, double *open_ms)
{
    char path[256];

    if (!unpack(name, path, sizeof(path)))
        return NULL;
    int64_t start_us = cpu_us();
    struct tokenizer *tokenizer = open_path(path);
    if (open_ms != NULL)
        *open_ms = (double)(cpu_us() - start_us) / 1000;
    return tokenizer;
}

/* ---- the truth: one JSON object a line ---- */

struct text {
    const char *byte;
    size_t count;
};

struct ids {
    int32_t token[8192];
    int64_t count;
};

struct line {
    char *memory;
    struct text text, decoded, skipped;
    struct ids ids, plain;
};

static void read_ids(struct json_reader *reader, struct ids *ids)
{
    ids->count = 0;
    json_enter(reader, '[');
    while (json_more(reader, '[', &ids->count)) {
        if (ids->count > 8192 || !json_int(reader, &ids->token[ids->count - 1]))
            break;
    }
}

static void read_line(const char *json, size_t bytes, struct line *line)
{
    struct json_reader reader;
    const char *key, *value;
    size_t key_bytes, value_bytes;
    int64_t count = 0;
    char *target = line->memory = malloc(bytes);

    json_reader_init(&reader, json, bytes);
    json_enter(&reader, '{');
    while (json_more(&reader, '{', &count) && json_key(&reader, &target, &key, &key_bytes)) {
        struct text *text = NULL;
        if (key_bytes == 4)
            text = &line->text;
        else if (key_bytes == 7)
            text = &line->decoded;
        else if (key_bytes == 12)
            text = &line->skipped;
        if (text != NULL)
            json_text(&reader, &target, &text->byte, &text->count);
        else if (key_bytes == 3)
            read_ids(&reader, &line->ids);
        else if (key_bytes == 9)
            read_ids(&reader, &line->plain);
        else
            json_skip(&reader, &value, &value_bytes);
    }
    EXPECT(reader.error == NULL);
}

static bool encodes_to(const struct tokenizer *tokenizer, struct text text, unsigned flags,
                       const struct ids *want)
{
    int32_t *token;
    int64_t count = tokenizer_encode(tokenizer, text.byte, text.count, flags, &token);
    bool same =
        count == want->count && memcmp(token, want->token, (size_t)count * sizeof(int32_t)) == 0;
    free(token);
    return same;
}

static bool decodes_to(const struct tokenizer *tokenizer, const struct ids *ids, bool skip_special,
                       struct text want)
{
    struct detokenizer detokenizer;
    size_t bytes = 0, max = want.count + DETOKENIZER_TEXT_MAX;
    char *text = malloc(max);
    bool good = true;

    detokenizer_init(&detokenizer, tokenizer, skip_special);
    for (int64_t i = 0; good && i < ids->count; i++)
        good = detokenizer_put(&detokenizer, ids->token[i], text, &bytes, max);
    good = good && detokenizer_end(&detokenizer, text, &bytes, max);
    good = good && bytes == want.count && memcmp(text, want.byte, bytes) == 0;
    free(text);
    return good;
}

static int line_is_wrong(const struct tokenizer *tokenizer, const struct line *line)
{
    unsigned both = TOKENIZER_ADD_SPECIAL | TOKENIZER_PARSE_SPECIAL;
    int wrong = 0;

    wrong |= encodes_to(tokenizer, line->text, both, &line->ids) ? 0 : 1;
    wrong |= encodes_to(tokenizer, line->text, TOKENIZER_PARSE_SPECIAL, &line->plain) ? 0 : 2;
    wrong |= decodes_to(tokenizer, &line->plain, false, line->decoded) ? 0 : 4;
    wrong |= decodes_to(tokenizer, &line->ids, true, line->skipped) ? 0 : 8;
    return wrong;
}

/* Lines that are wrong, or -1: the files are not here. */
static int wrong_lines(const char *name, const struct tokenizer *tokenizer)
{
    static struct line line;
    char path[256], *json = NULL;
    size_t max = 0;
    ssize_t bytes;
    int count = 0, wrong_count = 0;

    snprintf(path, sizeof(path), "%s/%s.encode.jsonl", shared, name);
    FILE *file = fopen(path, "r");
    if (tokenizer == NULL || file == NULL)
        return -1;
    while ((bytes = getline(&json, &max, file)) > 0) {
        read_line(json, (size_t)bytes, &line);
        int wrong = line_is_wrong(tokenizer, &line);
        free(line.memory);
        count++;
        wrong_count += wrong != 0;
        if (wrong != 0)
            printf("%s, line %d: wrong in %d (1 ids, 2 ids_plain, 4 decoded, 8 decoded_skip)\n",
                   name, count, wrong);
    }
    free(json);
    fclose(file);
    EXPECT_INT(count, ==, 139);
    return wrong_count;
}

/* ---- tests ---- */

static void check_name(const char *name)
{
    double open_ms = 0;
    struct tokenizer *tokenizer = open_name(name, &open_ms);

    if (tokenizer == NULL && access(shared, R_OK) != 0)
        SKIP("../shared is not here");
    EXPECT(tokenizer != NULL);
    EXPECT_INT(wrong_lines(name, tokenizer), ==, 0);
    /* From cache to memoised tokens: the second time gives the same. */
    EXPECT_INT(wrong_lines(name, tokenizer), ==, 0);
    printf("%s: %d tokens, opened in %.0f ms of CPU\n", name, tokenizer_count(tokenizer), open_ms);
    if (!sanitized)
        EXPECT(open_ms < 1000);
    tokenizer_free(tokenizer);
}

static void llama3_is_as_the_original(void)
{
    check_name("llama3_1");
}

static void qwen3_is_as_the_original(void)
{
    check_name("qwen3");
}

static void gptoss_is_as_the_original(void)
{
    check_name("gptoss");
}

static void deepseek_is_as_the_original(void)
{
    check_name("deepseek_v3");
}

static void gemma3_is_as_the_original(void)
{
    check_name("gemma3");
}

static void llama2_is_as_the_original(void)
{
    check_name("llama2");
}

int main(void)
{
    TEST(llama3_is_as_the_original);
    TEST(qwen3_is_as_the_original);
    TEST(gptoss_is_as_the_original);
    TEST(deepseek_is_as_the_original);
    TEST(gemma3_is_as_the_original);
    TEST(llama2_is_as_the_original);
    return test_report();
}
