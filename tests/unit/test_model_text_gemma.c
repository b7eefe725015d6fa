/* The real Gemma 3 vocabulary of the GGUF against the ids and texts of the original tokenizer. */
#include "model/load/gguf.h"
#include "model/text/detokenizer.h"
#include "model/text/spm.h"
#include "model/text/tokenizer.h"
#include "tests/test.h"

#include <stdbool.h>
#include <time.h>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
static const bool sanitized = true;
#else
static const bool sanitized = false;
#endif

static const char model_path[] = "build/models/gemma-3-270m-q4_k_m.gguf";
static const char truth_path[] = "../shared/tokenizers/gemma3.encode.jsonl";

static struct tokenizer *tokenizer; /* NULL: no model here */
static double create_ms;

/* ---- the vocabulary ---- */

static int64_t cpu_us(void)
{
    struct timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return now.tv_sec * 1000000LL + now.tv_nsec / 1000;
}

static struct tokenizer *load(const struct gguf *gguf)
{
    const struct gguf_value *tokens = gguf_find(gguf, "tokenizer.ggml.tokens");
    const struct gguf_value *scores = gguf_find(gguf, "tokenizer.ggml.scores");
    const struct gguf_value *types = gguf_find(gguf, "tokenizer.ggml.token_type");
    char error[256] = "";

    if (tokens == NULL || scores == NULL || types == NULL)
        return NULL;
    size_t count = (size_t)tokens->count;
    const char **spelling = calloc(count, sizeof(*spelling));
    size_t *bytes = calloc(count, sizeof(*bytes));
    float *score = calloc(count, sizeof(*score));
    int32_t *type = calloc(count, sizeof(*type));
    const unsigned char *cursor = tokens->data;
    for (size_t i = 0; i < count; i++) {
        struct gguf_string string = gguf_next(&cursor);
        int64_t number = 0;
        double real = 0;
        spelling[i] = string.byte;
        bytes[i] = string.count;
        gguf_real(scores, (int64_t)i, &real);
        gguf_int(types, (int64_t)i, &number);
        score[i] = (float)real;
        type[i] = (int32_t)number;
    }
    struct spm_vocabulary vocabulary = {.token_count = (int32_t)count,
                                        .spelling = spelling,
                                        .spelling_bytes = bytes,
                                        .score = score,
                                        .type = type,
                                        .bos = 2,
                                        .eos = 1,
                                        .unknown = 3,
                                        .eot = -1,
                                        .eom = -1,
                                        .add_bos = true};
    int64_t start_us = cpu_us();
    struct tokenizer *made = tokenizer_create_spm(&vocabulary, error, sizeof(error));
    create_ms = (double)(cpu_us() - start_us) / 1000;
    if (made == NULL)
        printf("%s\n", error);
    free(spelling);
    free(bytes);
    free(score);
    free(type);
    return made;
}

/* ---- the truth: one JSON object a line, whose strings may hold NULs ---- */

struct text {
    char *byte;
    size_t count;
};

struct ids {
    int32_t *token;
    int64_t count;
};

static size_t put_utf8(char *target, uint32_t code)
{
    if (code < 0x80) {
        target[0] = (char)code;
        return 1;
    }
    if (code < 0x800) {
        target[0] = (char)(0xC0 | code >> 6);
        target[1] = (char)(0x80 | (code & 0x3F));
        return 2;
    }
    if (code < 0x10000) {
        target[0] = (char)(0xE0 | code >> 12);
        target[1] = (char)(0x80 | (code >> 6 & 0x3F));
        target[2] = (char)(0x80 | (code & 0x3F));
        return 3;
    }
    target[0] = (char)(0xF0 | code >> 18);
    target[1] = (char)(0x80 | (code >> 12 & 0x3F));
    target[2] = (char)(0x80 | (code >> 6 & 0x3F));
    target[3] = (char)(0x80 | (code & 0x3F));
    return 4;
}

static uint32_t read_hex(const char *digits)
{
    char copy[5] = "";
    memcpy(copy, digits, 4);
    return (uint32_t)strtoul(copy, NULL, 16);
}

/* After "\u": one code unit, or two that are a pair. */
static uint32_t read_code(const char **cursor)
{
    uint32_t code = read_hex(*cursor);

    *cursor += 4;
    if (code < 0xD800 || code > 0xDBFF || (*cursor)[0] != '\\' || (*cursor)[1] != 'u')
        return code;
    uint32_t low = read_hex(*cursor + 2);
    *cursor += 6;
    return 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
}

static struct text read_text(const char *line, const char *key)
{
    char quoted[32];
    snprintf(quoted, sizeof(quoted), "\"%s\": \"", key);
    const char *at = strstr(line, quoted);
    struct text text = {.byte = malloc(strlen(line) + 1)};

    if (at == NULL)
        return text;
    for (at += strlen(quoted); *at != '"'; at++) {
        if (*at != '\\') {
            text.byte[text.count++] = *at;
            continue;
        }
        static const char escape[] = "nrtbf", meaning[] = "\n\r\t\b\f";
        const char *known = strchr(escape, *++at);
        if (*at == 'u') {
            at++;
            text.count += put_utf8(text.byte + text.count, read_code(&at));
            at--;
        } else {
            text.byte[text.count++] = *(known != NULL ? meaning + (known - escape) : at);
        }
    }
    return text;
}

static struct ids read_ids(const char *line, const char *key)
{
    char quoted[32];
    snprintf(quoted, sizeof(quoted), "\"%s\": [", key);
    const char *at = strstr(line, quoted);
    struct ids ids = {.token = calloc(strlen(line) + 1, sizeof(int32_t))};

    if (at == NULL)
        return ids;
    for (at += strlen(quoted); *at != ']';) {
        char *end;
        ids.token[ids.count++] = (int32_t)strtol(at, &end, 10);
        at = *end == ',' ? end + 1 : end;
    }
    return ids;
}

/* ---- one line of it ---- */

static bool encodes_to(struct text text, unsigned flags, struct ids want)
{
    int32_t *token;
    int64_t count = tokenizer_encode(tokenizer, text.byte, text.count, flags, &token);
    bool same =
        count == want.count && memcmp(token, want.token, (size_t)count * sizeof(int32_t)) == 0;
    free(token);
    return same;
}

static bool decodes_to(struct ids ids, bool skip_special, struct text want)
{
    struct detokenizer detokenizer;
    size_t bytes = 0, max = want.count + DETOKENIZER_TEXT_MAX;
    char *text = malloc(max);

    detokenizer_init(&detokenizer, tokenizer, skip_special);
    bool good = true;
    for (int64_t i = 0; good && i < ids.count; i++)
        good = detokenizer_put(&detokenizer, ids.token[i], text, &bytes, max);
    good = good && detokenizer_end(&detokenizer, text, &bytes, max);
    good = good && bytes == want.count && memcmp(text, want.byte, bytes) == 0;
    free(text);
    return good;
}

static int line_is_wrong(const char *line)
{
    struct text text = read_text(line, "text");
    struct text decoded = read_text(line, "decoded");
    struct text skipped = read_text(line, "decoded_skip");
    struct ids ids = read_ids(line, "ids"), plain = read_ids(line, "ids_plain");
    unsigned both = TOKENIZER_ADD_SPECIAL | TOKENIZER_PARSE_SPECIAL;
    int wrong = 0;

    wrong |= encodes_to(text, both, ids) ? 0 : 1;
    wrong |= encodes_to(text, TOKENIZER_PARSE_SPECIAL, plain) ? 0 : 2;
    wrong |= decodes_to(plain, false, decoded) ? 0 : 4;
    wrong |= decodes_to(ids, true, skipped) ? 0 : 8;
    free(text.byte);
    free(decoded.byte);
    free(skipped.byte);
    free(ids.token);
    free(plain.token);
    return wrong;
}

/* ---- tests ---- */

static void all_texts_encode_and_decode_as_the_original_does(void)
{
    FILE *file = fopen(truth_path, "r");
    char *line = NULL;
    size_t max = 0;
    int32_t line_count = 0;

    if (tokenizer == NULL || file == NULL)
        SKIP("the model or ../shared is not here");
    while (getline(&line, &max, file) > 0) {
        int wrong = line_is_wrong(line);
        line_count++;
        if (wrong != 0)
            printf("line %d: wrong in %d (1 ids, 2 ids_plain, 4 decoded, 8 decoded_skip)\n",
                   line_count, wrong);
        EXPECT_INT(wrong, ==, 0);
    }
    free(line);
    fclose(file);
    EXPECT_INT(line_count, ==, 139);
}

static void ends_are_the_end_of_text_and_of_turn(void)
{
    if (tokenizer == NULL)
        SKIP("the model is not here");
    for (int32_t i = 0; i < tokenizer_count(tokenizer); i++) {
        if (tokenizer_ends(tokenizer, i) != (i == 1 || i == 106))
            EXPECT_INT(i, ==, -1);
    }
    EXPECT_INT(tokenizer_find(tokenizer, "</s>", 4), ==, 212); /* an HTML tag here */
}

static void control_tokens_in_text_stay_text_unless_asked_for(void)
{
    static const char text[] = "<end_of_turn>\n<unused7>";
    int32_t *token;

    if (tokenizer == NULL)
        SKIP("the model is not here");
    int64_t count = tokenizer_encode(tokenizer, text, strlen(text), 0, &token);
    EXPECT_INT(count, >, 4);
    for (int64_t i = 0; i < count; i++)
        EXPECT_INT(token[i], !=, 106);
    EXPECT_INT(token[count - 2], ==, 107);
    EXPECT_INT(token[count - 1], ==, 13); /* added, but not special */
    free(token);
}

static void every_token_is_found_by_its_spelling(void)
{
    int32_t wrong = 0;

    if (tokenizer == NULL)
        SKIP("the model is not here");
    for (int32_t i = 0; i < tokenizer_count(tokenizer); i++) {
        size_t bytes;
        const char *spelling = tokenizer_spelling(tokenizer, i, &bytes);
        wrong += tokenizer_find(tokenizer, spelling, bytes) != i;
    }
    EXPECT_INT(wrong, ==, 0);
}

static void a_real_vocabulary_is_ready_in_150_ms(void)
{
    if (tokenizer == NULL)
        SKIP("the model is not here");
    if (sanitized)
        SKIP("a sanitizer's build is not timed");
    printf("vocabulary of %d tokens made in %.1f ms of CPU\n", tokenizer_count(tokenizer),
           create_ms);
    EXPECT(create_ms < 150);
}

/* Without spaces nothing cuts the text into words: the heap holds all of it. */
static void a_long_text_costs_no_more_than_n_log_n(void)
{
    size_t bytes = 1 << 20;
    int64_t cost_us[2];

    if (tokenizer == NULL)
        SKIP("the model is not here");
    char *text = malloc(bytes);
    for (size_t i = 0; i < bytes; i++)
        text[i] = (char)('a' + (i * i + i / 7) % 26);
    for (int part = 0; part < 2; part++) {
        int32_t *token;
        int64_t start_us = cpu_us();
        int64_t count =
            tokenizer_encode(tokenizer, text, part == 0 ? bytes / 16 : bytes, 0, &token);
        cost_us[part] = cpu_us() - start_us;
        EXPECT_INT(count, >, 0);
        free(token);
    }
    printf("%zu bytes in one word: %.2f us a byte\n", bytes, (double)cost_us[1] / (double)bytes);
    EXPECT(cost_us[1] < INT64_C(96) * cost_us[0]); /* 16 times the text; quadratic: 256 */
    free(text);
}

int main(void)
{
    struct gguf *gguf = NULL;
    char error[256] = "";

    if (gguf_open(&gguf, model_path, error, sizeof(error)) == 0)
        tokenizer = load(gguf);
    TEST(all_texts_encode_and_decode_as_the_original_does);
    TEST(ends_are_the_end_of_text_and_of_turn);
    TEST(control_tokens_in_text_stay_text_unless_asked_for);
    TEST(every_token_is_found_by_its_spelling);
    TEST(a_real_vocabulary_is_ready_in_150_ms);
    TEST(a_long_text_costs_no_more_than_n_log_n);
    tokenizer_free(tokenizer);
    gguf_close(gguf);
    return test_report();
}
