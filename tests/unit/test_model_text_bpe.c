/* BPE in the small: components of tokenizer.json, GGUF vocabularies, and what hostile text costs.
 */
#include "model/text/bpe.h"
#include "model/text/detokenizer.h"
#include "model/text/normalizer.h"
#include "model/text/special.h"
#include "model/text/splitter.h"
#include "model/text/tokenizer_json.h"
#include "tests/test.h"

#include <errno.h>
#include <stdbool.h>
#include <time.h>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
static const bool sanitized = true;
#else
static const bool sanitized = false;
#endif

static const char checkpoint[] = "../shared/checkpoints/llama/tokenizer.json";

static int64_t cpu_us(void)
{
    struct timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return now.tv_sec * 1000000LL + now.tv_nsec / 1000;
}

/* ---- patterns ---- */

/* The matches in brackets. */
static const char *matches(const char *pattern, const char *text)
{
    static char marked[512];
    char error[256] = "";
    struct regex *regex = regex_create(pattern, strlen(pattern), error, sizeof(error));
    struct regex_scratch *scratch = regex_scratch_create();
    size_t at = 0, first, final, count = 0;

    if (regex == NULL || scratch == NULL) {
        regex_scratch_destroy(scratch);
        return strcpy(marked, error); // NOLINT
    }
    while (regex_next(regex, scratch, text, strlen(text), at, &first, &final) == 1) {
        count += (size_t)snprintf(marked + count, sizeof(marked) - count, "%.*s[%.*s]",
                                  (int)(first - at), text + at, (int)(final - first), text + first);
        at = final;
    }
    snprintf(marked + count, sizeof(marked) - count, "%s", text + at);
    regex_destroy(regex);
    regex_scratch_destroy(scratch);
    return marked;
}

static void spaces_and_words_are_what_unicode_says(void)
{
    EXPECT_STRING(matches("\\s+", "a\u00a0\u2003b\u180ec\xC2\x85"
                                  "d"),
                  "a[\u00a0\u2003]b\u180ec[\xC2\x85]d");
    EXPECT_STRING(matches("[^\\s]+", "a b\u180ec"), "[a] [b\u180ec]");
    EXPECT_STRING(matches("\\S+", "a \u3000b"), "[a] \u3000[b]");
    EXPECT_STRING(matches("\\w+", "a\u0301_1-\u24b6"), "[a\u0301_1]-[\u24b6]");
    EXPECT_STRING(matches("\\W+", "a-b"), "a[-]b");
    EXPECT_STRING(matches("[a[bc]]+d", "abcd"), "[abcd]"); /* a union in Oniguruma */
    EXPECT_STRING(matches("[\\[a]+", "x[a]"), "x[[a]]");
    EXPECT_STRING(matches("(?i:'s)", "it'S"), "it['S]");
}

static void patterns_that_mean_something_else_are_refused(void)
{
    static const char different[] = "the pattern uses what Oniguruma and PCRE2 read differently";

    EXPECT_STRING(matches("[a&&b]", "a"), different);
    EXPECT_STRING(matches("[a[^b]]", "a"), different);
    EXPECT_STRING(matches("[\\S]", "a"), different);
    EXPECT_STRING(matches("[]a]", "a"), different);
    EXPECT_STRING(matches("\\h", "a"), different);
    EXPECT_STRING(matches("a\\K", "a"), different);
    EXPECT(strstr(matches("(a", "a"), "at byte 2 of the pattern") != NULL);
}

static void a_pattern_that_explodes_gives_up(void)
{
    static const char pattern[] = "(?:a+)+[bc]";
    char error[256], text[64];
    struct regex *regex = regex_create(pattern, strlen(pattern), error, sizeof(error));
    struct regex_scratch *scratch = regex_scratch_create();
    size_t first, final;

    memset(text, 'a', sizeof(text));
    EXPECT_INT(regex_next(regex, scratch, text, sizeof(text), 0, &first, &final), ==, -EOVERFLOW);
    text[40] = 'b'; /* and the next search is as good as any */
    EXPECT_INT(regex_next(regex, scratch, text, 41, 0, &first, &final), ==, 1);
    EXPECT_INT(final, ==, 41);
    regex_destroy(regex);
    regex_scratch_destroy(scratch);
}

/* ---- normal forms ---- */

static const char *normal(enum normalizer_kind kind, const char *text)
{
    static char copy[256];
    struct normalizer normalizer = {.step_count = 1,
                                    .step = {{.kind = kind, .left = true, .right = true}}};
    struct normalized normalized;

    if (normalizer_run(&normalizer, NULL, text, strlen(text), &normalized) != 0)
        return "failed";
    snprintf(copy, sizeof(copy), "%.*s", (int)normalized.bytes, normalized.text);
    free(normalized.memory);
    return copy;
}

static void normal_forms_are_those_of_unicode(void)
{
    EXPECT_STRING(normal(NORMALIZE_NFC, "xe\u0301y"), "x\u00e9y");
    EXPECT_STRING(normal(NORMALIZE_NFC, "e\u0301"), "\u00e9");
    EXPECT_STRING(normal(NORMALIZE_NFC, "a\u0301\u0323"), "\u1ea1\u0301"); /* marks in order */
    EXPECT_STRING(normal(NORMALIZE_NFC, "\u1112\u1161\u11ab"), "\ud55c");
    EXPECT_STRING(normal(NORMALIZE_NFC, "\u212b\ufb01"), "\u00c5\ufb01");
    EXPECT_STRING(normal(NORMALIZE_NFC, "\u0958"), "\u0915\u093c"); /* composition excluded */
    EXPECT_STRING(normal(NORMALIZE_NFD, "\u00e9a"), "e\u0301a");
    EXPECT_STRING(normal(NORMALIZE_NFKC, "\ufb01"), "fi");
    EXPECT_STRING(normal(NORMALIZE_NFKD, "\u00bd"), "1\u20442");
    EXPECT_STRING(normal(NORMALIZE_LOWERCASE, "\u00c9A\u0130"), "\u00e9ai\u0307");
    EXPECT_STRING(normal(NORMALIZE_STRIP_ACCENTS, "e\u0301a"), "ea");
    EXPECT_STRING(normal(NORMALIZE_STRIP, " \u3000a b\u00a0\n"), "a b");
}

static void a_text_of_marks_alone_is_normalised_fast(void)
{
    enum { MARK_COUNT = 1 << 18 };
    struct normalizer normalizer = {.step_count = 1, .step = {{.kind = NORMALIZE_NFC}}};
    struct normalized normalized;
    char *text = malloc(2 * MARK_COUNT);

    for (size_t i = 0; i < MARK_COUNT; i++)
        memcpy(text + 2 * i, i % 2 == 0 ? "\u0301" : "\u0323", 2); /* classes 230 and 220 */
    int64_t start_us = cpu_us();
    EXPECT_INT(normalizer_run(&normalizer, NULL, text, 2 * MARK_COUNT, &normalized), ==, 0);
    int64_t cost_us = cpu_us() - start_us;
    EXPECT_INT(normalized.bytes, ==, 2 * MARK_COUNT);
    EXPECT(memcmp(normalized.text, "\u0323\u0323", 4) == 0);
    if (!sanitized)
        EXPECT_INT(cost_us, <, 500000);
    free(normalized.memory);
    free(text);
}

/* ---- pieces ---- */

static const char *cut(struct splitter_step step, const char *pattern, const char *text)
{
    static char marked[256];
    char error[128];
    struct pieces pieces = {0};
    struct splitter splitter = {.step_count = 1, .step = {step}};
    struct regex_scratch *scratch = regex_scratch_create();
    size_t count = 0;

    if (pattern != NULL)
        splitter.step[0].regex = regex_create(pattern, strlen(pattern), error, sizeof(error));
    int result = splitter_run(&splitter, scratch, text, strlen(text), true, &pieces);
    marked[0] = '\0';
    for (size_t i = 0; result == 0 && i < pieces.now.count; i++)
        count +=
            (size_t)snprintf(marked + count, sizeof(marked) - count, "%s%.*s", i == 0 ? "" : "|",
                             (int)(pieces.now.piece[i].final - pieces.now.piece[i].first),
                             pieces.text + pieces.now.piece[i].first);
    pieces_release(&pieces);
    splitter_release(&splitter);
    regex_scratch_destroy(scratch);
    return marked;
}

static struct splitter_step split(enum splitter_behavior behavior, bool invert)
{
    return (struct splitter_step){.kind = SPLIT_PATTERN, .behavior = behavior, .invert = invert};
}

/* The example of the original's documentation, and one that begins and ends with matches. */
static void behaviors_put_the_matches_where_they_belong(void)
{
    static const char text[] = "the-final--countdown";

    EXPECT_STRING(cut(split(SPLIT_ISOLATED, false), "-", text), "the|-|final|-|-|countdown");
    EXPECT_STRING(cut(split(SPLIT_REMOVED, false), "-", text), "the|final|countdown");
    EXPECT_STRING(cut(split(SPLIT_CONTIGUOUS, false), "-", text), "the|-|final|--|countdown");
    EXPECT_STRING(cut(split(SPLIT_MERGED_WITH_PREVIOUS, false), "-", text),
                  "the-|final-|-|countdown");
    EXPECT_STRING(cut(split(SPLIT_MERGED_WITH_NEXT, false), "-", text), "the|-final|-|-countdown");
    EXPECT_STRING(cut(split(SPLIT_MERGED_WITH_NEXT, false), "-", "-a-"), "-a|-");
    EXPECT_STRING(cut(split(SPLIT_MERGED_WITH_PREVIOUS, false), "-", "-a-"), "-|a-");
    EXPECT_STRING(cut(split(SPLIT_REMOVED, true), "[a-z]+", text), "the|final|countdown");
}

static void digits_and_spaces_cut(void)
{
    struct splitter_step digits = {.kind = SPLIT_DIGITS, .behavior = SPLIT_ISOLATED};
    struct splitter_step spaces = {.kind = SPLIT_SPACE, .behavior = SPLIT_REMOVED};

    EXPECT_STRING(cut(digits, NULL, "a12b\u0663"), "a|1|2|b|\u0663");
    digits.behavior = SPLIT_CONTIGUOUS;
    EXPECT_STRING(cut(digits, NULL, "a12b\u0663"), "a|12|b|\u0663");
    EXPECT_STRING(cut(spaces, NULL, " a  b\u3000"), "a|b");
}

static void marks_and_prefixes_change_the_text(void)
{
    struct splitter_step prefix = {.kind = SPLIT_PREFIX, .content = " ", .content_bytes = 1};
    struct splitter_step mark = {.kind = SPLIT_MARK, .content = "\u2581", .content_bytes = 3};

    EXPECT_STRING(cut(prefix, NULL, "a"), " a");
    EXPECT_STRING(cut(prefix, NULL, " a"), " a");
    EXPECT_STRING(cut(mark, NULL, "a b "), "a\u2581b\u2581");
}

/* ---- special tokens ---- */

static void special_tokens_take_space_and_ask_for_borders(void)
{
    static const char text[] = "x  <m> yword word <m><mm>";
    struct special_set set = {0};
    struct special_match match;

    EXPECT(special_add(&set, "<m>", 3, 1, SPECIAL_STRIP_LEFT | SPECIAL_STRIP_RIGHT));
    EXPECT(special_add(&set, "word", 4, 2, SPECIAL_WORD));
    EXPECT(special_add(&set, "<mm>", 4, 3, SPECIAL_CONTROL));
    special_ready(&set);
    EXPECT(special_next(&set, text, strlen(text), 0, true, &match));
    EXPECT_INT(match.first, ==, 1); /* both spaces before, and one after */
    EXPECT_INT(match.final, ==, 7);
    EXPECT(special_next(&set, text, strlen(text), match.final, true, &match));
    EXPECT_INT(match.token, ==, 2); /* not the end of "yword" */
    EXPECT_INT(match.first, ==, 13);
    EXPECT(special_next(&set, text, strlen(text), match.final, false, &match));
    EXPECT_INT(match.token, ==, 1);
    EXPECT(!special_next(&set, text, strlen(text), match.final, false, &match));
    EXPECT(special_next(&set, text, strlen(text), match.final, true, &match));
    EXPECT_INT(match.token, ==, 3);
    special_release(&set);
}

/* ---- small tokenizers ---- */

#define FILE_OF(normalizer, pre, model, added)                                                     \
    "{\"added_tokens\":[" added "],\"normalizer\":" normalizer ",\"pre_tokenizer\":" pre           \
    ",\"post_processor\":null,\"decoder\":{\"type\":\"ByteLevel\"},\"model\":" model "}"
#define BYTES "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":true}"
#define SMALL                                                                                      \
    "{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1,\"c\":2,\"ab\":3,\"\\u0120\":4,\"abc\":9},"      \
    "\"merges\":[\"a b\",[\"ab\",\"c\"]]}"

static struct tokenizer *open_text(const char *json, char *error, size_t error_bytes)
{
    error[0] = '\0';
    return tokenizer_open_json(json, strlen(json), NULL, error, error_bytes);
}

static const char *refusal(const char *json)
{
    static char error[256];
    struct tokenizer *tokenizer = open_text(json, error, sizeof(error));

    tokenizer_free(tokenizer);
    return tokenizer == NULL ? error : "accepted";
}

static bool encodes(const struct tokenizer *tokenizer, const char *text, const char *want)
{
    char got[256] = "";
    size_t count = 0;
    int32_t *token;
    int64_t token_count =
        tokenizer_encode(tokenizer, text, strlen(text), TOKENIZER_PARSE_SPECIAL, &token);

    for (int64_t i = 0; i < token_count; i++)
        count +=
            (size_t)snprintf(got + count, sizeof(got) - count, "%s%d", i == 0 ? "" : " ", token[i]);
    free(token);
    if (strcmp(got, want) != 0)
        printf("'%s' is %s, not %s\n", text, got, want);
    return strcmp(got, want) == 0;
}

static void both_forms_of_merges_and_holes_in_ids_are_read(void)
{
    char error[256];
    struct tokenizer *tokenizer =
        open_text(FILE_OF("null", BYTES, SMALL, ""), error, sizeof(error));

    EXPECT_STRING(error, "");
    EXPECT_INT(tokenizer_count(tokenizer), ==, 10);
    EXPECT_INT(tokenizer_kind(tokenizer, 7), ==, TOKEN_UNUSED);
    EXPECT(encodes(tokenizer, "abc ab", "9 4 3"));
    EXPECT(encodes(tokenizer, "xa", "0")); /* what has no token is dropped, as the original does */
    tokenizer_free(tokenizer);
}

static void normalized_added_tokens_are_found_in_normalised_text(void)
{
    char error[256];
    struct tokenizer *tokenizer =
        open_text(FILE_OF("{\"type\":\"Lowercase\"}", BYTES, SMALL,
                          "{\"id\":5,\"content\":\"<X>\",\"normalized\":true,\"special\":false},"
                          "{\"id\":6,\"content\":\"<Y>\",\"normalized\":false,\"special\":true}"),
                  error, sizeof(error));

    EXPECT_STRING(error, "");
    EXPECT(encodes(tokenizer, "A<x>B<y><Y><X>", "0 5 1 6 5"));
    EXPECT_INT(tokenizer_kind(tokenizer, 5), ==, TOKEN_USER);
    EXPECT_INT(tokenizer_kind(tokenizer, 6), ==, TOKEN_CONTROL);
    tokenizer_free(tokenizer);
}

static void unknown_components_are_refused_by_name(void)
{
    EXPECT_STRING(refusal(FILE_OF("{\"type\":\"Precompiled\"}", BYTES, SMALL, "")),
                  "tokenizer.json: normalizer: unknown type Precompiled");
    EXPECT_STRING(refusal(FILE_OF("null", "{\"type\":\"BertPreTokenizer\"}", SMALL, "")),
                  "tokenizer.json: pre_tokenizer: unknown type BertPreTokenizer");
    EXPECT_STRING(refusal(FILE_OF("null", BYTES, "{\"type\":\"Unigram\",\"vocab\":[]}", "")),
                  "tokenizer.json: model: supported is BPE, not \"Unigram\"");
    EXPECT_STRING(refusal(FILE_OF("null",
                                  "{\"type\":\"Sequence\",\"pretokenizers\":[" BYTES
                                  ",{\"type\":\"Digits\"}]}",
                                  SMALL, "")),
                  "tokenizer.json: pre_tokenizer: a step after ByteLevel");
    EXPECT_STRING(refusal("{\"model\":" SMALL "}"), "tokenizer.json: decoder: there is none");
}

static void broken_files_are_refused(void)
{
    EXPECT_STRING(refusal(""), "tokenizer.json: no object in the file, at byte 0 of it");
    EXPECT_STRING(refusal("{\"model\":{\"vocab\":{\"a\":0},\"merges\":[]"),
                  "tokenizer.json: it ends too early in the file, at byte 37 of it");
    EXPECT_STRING(refusal("{\"model\":{\"vocab\":{\"a\":0},\"merges\":[\"a b\"]}}"),
                  "could not use the vocabulary: merge 0 joins what are no tokens, or to none");
    EXPECT_STRING(refusal("{\"model\":{\"vocab\":{\"a\":0,\"b\":0},\"merges\":[]}}"),
                  "tokenizer.json: two tokens of one id");
    EXPECT_STRING(refusal("{\"model\":{\"vocab\":{\"a\":123456},\"merges\":[]}}"),
                  "tokenizer.json: an id that is negative or far beyond the tokens");
    EXPECT_STRING(refusal("{\"model\":{\"vocab\":{\"\\ud800\":0},\"merges\":[]}}"),
                  "tokenizer.json: a \\u that is no character in vocab, at byte 8 of it");
}

/* ---- a checkpoint's tokenizer: all bytes, 60 merges ---- */

static struct tokenizer *open_checkpoint(const struct tokenizer_hints *hints)
{
    static char json[1 << 20];
    char error[256] = "";
    FILE *file = fopen(checkpoint, "rb");

    if (file == NULL)
        return NULL;
    size_t bytes = fread(json, 1, sizeof(json), file);
    fclose(file);
    struct tokenizer *tokenizer = tokenizer_open_json(json, bytes, hints, error, sizeof(error));
    EXPECT_STRING(error, "");
    return tokenizer;
}

static void hints_name_the_ends(void)
{
    static const int32_t end[] = {3, 5000};
    struct tokenizer_hints hints = {
        .eos = "<|im_end|>", .bos_count = 1, .bos_token = 0, .end_count = 2, .end = end};
    struct tokenizer *tokenizer = open_checkpoint(&hints);

    if (tokenizer == NULL)
        SKIP("../shared is not here");
    EXPECT_INT(tokenizer_bos(tokenizer), ==, 0);
    EXPECT_INT(tokenizer_eos(tokenizer), ==, 2);
    EXPECT(tokenizer_ends(tokenizer, 2));
    EXPECT(tokenizer_ends(tokenizer, 3)); /* <|pad|>, because the hint says so */
    EXPECT(tokenizer_ends(tokenizer, 0)); /* <|endoftext|> by its name */
    EXPECT(!tokenizer_ends(tokenizer, 1));
    tokenizer_free(tokenizer);
}

static size_t decode(const struct tokenizer *tokenizer, const int32_t *token, int64_t count,
                     char *text, size_t max)
{
    struct detokenizer detokenizer;
    size_t bytes = 0;

    detokenizer_init(&detokenizer, tokenizer, false);
    for (int64_t i = 0; i < count; i++)
        EXPECT(detokenizer_put(&detokenizer, token[i], text, &bytes, max));
    EXPECT(detokenizer_end(&detokenizer, text, &bytes, max));
    return bytes;
}

static void any_bytes_come_back_or_become_replacements(void)
{
    static const char text[] =
        "a\xF0\x9F\x98\x80 \xE4\xB8\x96\xFF\xE4\xB8<|im_end|>\xC3\xA9\xF0\x9F";
    static const char want[] = "a\xF0\x9F\x98\x80 \xE4\xB8\x96\uFFFD\uFFFD<|im_end|>\xC3\xA9\uFFFD";
    struct tokenizer *tokenizer = open_checkpoint(NULL);
    char got[256];
    int32_t *token;

    if (tokenizer == NULL)
        SKIP("../shared is not here");
    int64_t count =
        tokenizer_encode(tokenizer, text, strlen(text), TOKENIZER_PARSE_SPECIAL, &token);
    got[decode(tokenizer, token, count, got, sizeof(got) - 1)] = '\0';
    EXPECT_STRING(got, want);
    free(token);
    tokenizer_free(tokenizer);
}

static void hostile_texts_cost_what_their_length_says(void)
{
    enum { BYTES_MAX = 1 << 20 };
    static const char *const unit[] = {"a", " ", "\n", "1", "'", "\xFF", "\u0301", "aB", " a\n"};
    struct tokenizer *tokenizer = open_checkpoint(NULL);
    char *text = malloc(BYTES_MAX);

    if (tokenizer == NULL) {
        free(text);
        SKIP("../shared is not here");
    }
    for (size_t i = 0; i < sizeof(unit) / sizeof(unit[0]); i++) {
        int32_t *token;
        size_t bytes = strlen(unit[i]);
        for (size_t at = 0; at < BYTES_MAX; at++)
            text[at] = unit[i][at % bytes];
        int64_t start_us = cpu_us();
        EXPECT_INT(tokenizer_encode(tokenizer, text, BYTES_MAX, 0, &token), >, 0);
        int64_t cost_us = cpu_us() - start_us;
        if (!sanitized)
            EXPECT_INT(cost_us, <, 1000000);
        free(token);
    }
    free(text);
    tokenizer_free(tokenizer);
}

/* ---- GGUF ---- */

static struct tokenizer *create_gguf(const char *pre, int32_t bos, char *error, size_t error_bytes)
{
    static const char *const spelling[] = {"a", "b", "ab", "\u0120", "\u0120ab", "1", "<s>", "12"};
    static const int32_t type[] = {1, 1, 1, 1, 1, 1, 3, 1};
    static const char *const merge[] = {"a b", "\u0120 ab"};
    size_t bytes[8], merge_bytes[2];

    for (int i = 0; i < 8; i++)
        bytes[i] = strlen(spelling[i]);
    for (int i = 0; i < 2; i++)
        merge_bytes[i] = strlen(merge[i]);
    struct bpe_vocabulary vocabulary = {.token_count = 8,
                                        .spelling = spelling,
                                        .spelling_bytes = bytes,
                                        .type = type,
                                        .merge_count = 2,
                                        .merge = merge,
                                        .merge_bytes = merge_bytes,
                                        .pre = pre,
                                        .bos = bos,
                                        .eos = -1,
                                        .unknown = -1,
                                        .eot = -1,
                                        .eom = -1,
                                        .add_bos = -1};
    error[0] = '\0';
    return tokenizer_create_bpe(&vocabulary, error, error_bytes);
}

static void a_gguf_vocabulary_works_under_every_known_name(void)
{
    static const char *const name[] = {"default",   "gpt-2",  "starcoder",   "falcon",
                                       "llama-bpe", "dbrx",   "qwen2",       "qwen35",
                                       "gpt-4o",    "tekken", "deepseek-v3", "deepseek-coder"};
    char error[256];

    for (size_t i = 0; i < sizeof(name) / sizeof(name[0]); i++) {
        struct tokenizer *tokenizer = create_gguf(name[i], 6, error, sizeof(error));
        EXPECT_STRING(error, "");
        EXPECT(encodes(tokenizer, "ab ab<s>", "2 4 6"));
        tokenizer_free(tokenizer);
    }
    EXPECT(create_gguf("nobody-knows", 6, error, sizeof(error)) == NULL);
    EXPECT(strstr(error, "'nobody-knows' is not known") != NULL);
    EXPECT(create_gguf("gpt-2", 8, error, sizeof(error)) == NULL);
}

static void a_gguf_name_decides_on_bos_and_whole_pieces(void)
{
    char error[256];
    int32_t *token;
    struct tokenizer *tokenizer = create_gguf("llama-bpe", 6, error, sizeof(error));

    EXPECT_INT(tokenizer_encode(tokenizer, "12", 2, TOKENIZER_ADD_SPECIAL, &token), ==, 2);
    EXPECT_INT(token[0], ==, 6);
    EXPECT_INT(token[1], ==, 7); /* no merge makes "12" */
    free(token);
    tokenizer_free(tokenizer);
}

int main(void)
{
    TEST(spaces_and_words_are_what_unicode_says);
    TEST(patterns_that_mean_something_else_are_refused);
    TEST(a_pattern_that_explodes_gives_up);
    TEST(normal_forms_are_those_of_unicode);
    TEST(a_text_of_marks_alone_is_normalised_fast);
    TEST(behaviors_put_the_matches_where_they_belong);
    TEST(digits_and_spaces_cut);
    TEST(marks_and_prefixes_change_the_text);
    TEST(special_tokens_take_space_and_ask_for_borders);
    TEST(both_forms_of_merges_and_holes_in_ids_are_read);
    TEST(normalized_added_tokens_are_found_in_normalised_text);
    TEST(unknown_components_are_refused_by_name);
    TEST(broken_files_are_refused);
    TEST(hints_name_the_ends);
    TEST(any_bytes_come_back_or_become_replacements);
    TEST(hostile_texts_cost_what_their_length_says);
    TEST(a_gguf_vocabulary_works_under_every_known_name);
    TEST(a_gguf_name_decides_on_bos_and_whole_pieces);
    return test_report();
}
