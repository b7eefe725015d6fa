/* Real tokenizer.json files against the ids and texts of the original tokenizers. */
#include "model/text/bpe.h"
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
        if (ids->count > 8192 || !json_take_int(reader, &ids->token[ids->count - 1]))
            break;
    }
}

static void read_line(const char *json, size_t bytes, struct line *line)
{
    struct json_reader reader;
    const char *key = "", *value;
    size_t key_bytes = 0, value_bytes;
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
            json_take_text(&reader, &target, &text->byte, &text->count);
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
    bool same = count == want->count && token != NULL &&
                memcmp(token, want->token, (size_t)count * sizeof(int32_t)) == 0;
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
    good = good && bytes == want.count && want.byte != NULL && memcmp(text, want.byte, bytes) == 0;
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
static int wrong_lines(const char *name, const struct tokenizer *tokenizer, bool quiet)
{
    struct line line = {0};
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
        if (wrong != 0 && !quiet)
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
    EXPECT_INT(wrong_lines(name, tokenizer, false), ==, 0);
    /* What was found out about tokens the first time is used the second time. */
    EXPECT_INT(wrong_lines(name, tokenizer, false), ==, 0);
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

/* ---- the same vocabulary as a GGUF has it ---- */

struct merges {
    char *memory; /* all "left right", one after the other */
    const char **line;
    size_t *bytes;
    int32_t count;
};

static void read_merge(struct json_reader *reader, char **target, struct merges *merges,
                       char **memory)
{
    const char *text;
    size_t bytes;
    int64_t count = 0;

    merges->line[merges->count] = *memory;
    if (json_peek(reader) == '"' && json_take_text(reader, target, &text, &bytes)) {
        memcpy(*memory, text, bytes);
        *memory += bytes;
    } else if (json_enter(reader, '[')) {
        while (json_more(reader, '[', &count) && json_take_text(reader, target, &text, &bytes)) {
            if (count == 2)
                *(*memory)++ = ' ';
            memcpy(*memory, text, bytes);
            *memory += bytes;
        }
    }
    merges->bytes[merges->count] = (size_t)(*memory - merges->line[merges->count]);
    merges->count++;
}

static bool read_merges(const char *name, struct merges *merges)
{
    char path[256];
    size_t bytes = 0;
    struct json_reader reader = {0};
    int64_t count = 0;

    snprintf(path, sizeof(path), "build/tokenizers/%s/tokenizer.json", name);
    char *json = read_file(path, &bytes);
    if (json == NULL)
        return false;
    char *decoded = malloc(bytes + 1), *target = decoded;
    char *memory = merges->memory = malloc(bytes + 1);
    const char *at = strstr(json, "\"merges\": [");
    merges->line = calloc(bytes / 4 + 1, sizeof(*merges->line));
    merges->bytes = calloc(bytes / 4 + 1, sizeof(*merges->bytes));
    if (at != NULL) {
        json_reader_init(&reader, strchr(at, '['), (size_t)(json + bytes - strchr(at, '[')));
        json_enter(&reader, '[');
        while (json_more(&reader, '[', &count))
            read_merge(&reader, &target, merges, &memory);
    }
    free(json);
    free(decoded);
    return at != NULL && reader.error == NULL;
}

static struct tokenizer *as_gguf(const char *name, const struct tokenizer *from, const char *pre)
{
    struct merges merges = {0};
    char error[256] = "";
    int32_t count = tokenizer_count(from);
    const char **spelling = calloc((size_t)count, sizeof(*spelling));
    size_t *bytes = calloc((size_t)count, sizeof(*bytes));
    int32_t *type = calloc((size_t)count, sizeof(*type));

    EXPECT(read_merges(name, &merges));
    for (int32_t i = 0; i < count; i++) {
        enum token_kind kind = tokenizer_kind(from, i);
        spelling[i] = tokenizer_spelling(from, i, &bytes[i]);
        type[i] = kind == TOKEN_CONTROL ? 3 : kind == TOKEN_USER ? 4 : 1;
    }
    struct bpe_vocabulary vocabulary = {.token_count = count,
                                        .spelling = spelling,
                                        .spelling_bytes = bytes,
                                        .type = type,
                                        .merge_count = merges.count,
                                        .merge = merges.line,
                                        .merge_bytes = merges.bytes,
                                        .pre = pre,
                                        .bos = tokenizer_bos(from),
                                        .eos = -1,
                                        .unknown = -1,
                                        .eot = -1,
                                        .eom = -1,
                                        .add_bos = -1};
    struct tokenizer *made = tokenizer_create_bpe(&vocabulary, error, sizeof(error));
    EXPECT_STRING(error, "");
    free(spelling);
    free(bytes);
    free(type);
    free(merges.memory);
    free(merges.line);
    free(merges.bytes);
    return made;
}

static void check_gguf(const char *name, const char *pre, int wrong_max)
{
    struct tokenizer *tokenizer = open_name(name, NULL);

    if (tokenizer == NULL && access(shared, R_OK) != 0)
        SKIP("../shared is not here");
    EXPECT(tokenizer != NULL);
    struct tokenizer *made = as_gguf(name, tokenizer, pre);
    int wrong = wrong_lines(name, made, wrong_max > 0);
    EXPECT(wrong >= 0);
    EXPECT_INT(wrong, <=, wrong_max);
    tokenizer_free(made);
    tokenizer_free(tokenizer);
}

static void a_gguf_of_llama3_gives_the_same(void)
{
    check_gguf("llama3_1", "llama-bpe", 0);
}

static void a_gguf_of_deepseek_gives_the_same(void)
{
    check_gguf("deepseek_v3", "deepseek-v3", 0);
}

static void a_gguf_of_gptoss_gives_the_same(void)
{
    check_gguf("gptoss", "gpt-4o", 0);
}

/* A GGUF has no normal form: the texts that NFC changes differ. */
static void a_gguf_of_qwen3_gives_the_same_where_nfc_changes_nothing(void)
{
    check_gguf("qwen3", "qwen2", 32);
}

/* ---- threads ---- */

static void *encode_all_lines(void *tokenizer)
{
    return (void *)(intptr_t)wrong_lines("qwen3", tokenizer, false);
}

static void threads_share_a_tokenizer(void)
{
    struct tokenizer *tokenizer = open_name("qwen3", NULL);
    pthread_t thread[4];

    if (tokenizer == NULL)
        SKIP("../shared is not here");
    for (int i = 0; i < 4; i++)
        EXPECT_INT(pthread_create(&thread[i], NULL, encode_all_lines, tokenizer), ==, 0);
    for (int i = 0; i < 4; i++) {
        void *wrong;
        pthread_join(thread[i], &wrong);
        EXPECT_INT((intptr_t)wrong, ==, 0);
    }
    tokenizer_free(tokenizer);
}

int main(void)
{
    TEST(llama3_is_as_the_original);
    TEST(qwen3_is_as_the_original);
    TEST(gptoss_is_as_the_original);
    TEST(deepseek_is_as_the_original);
    TEST(gemma3_is_as_the_original);
    TEST(llama2_is_as_the_original);
    TEST(a_gguf_of_llama3_gives_the_same);
    TEST(a_gguf_of_deepseek_gives_the_same);
    TEST(a_gguf_of_gptoss_gives_the_same);
    TEST(a_gguf_of_qwen3_gives_the_same_where_nfc_changes_nothing);
    TEST(threads_share_a_tokenizer);
    return test_report();
}
