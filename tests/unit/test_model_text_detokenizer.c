/* Tokens to text: nothing depends on where a stream is cut, and nothing ill-formed comes out. */
#include "model/text/detokenizer.h"
#include "model/text/spm.h"
#include "model/text/unicode.h"
#include "tests/test.h"

#include <stdbool.h>

/* <unk> 0, <s> 1, </s> 2, bytes from 3, words from 259. */
static const char *const word[] = {"\u2581the", "a", "\u2581", "\u00e9", "\u4e16\u754c", "<tool>"};
enum {
    WORD_COUNT = sizeof(word) / sizeof(word[0]),
    FIRST_BYTE = 3,
    FIRST_WORD = 259,
    TOKEN_COUNT = FIRST_WORD + WORD_COUNT,
    TEXT_MAX = 4096,
};

static struct tokenizer *make(bool space_prefix)
{
    static const char *spelling[TOKEN_COUNT] = {"<unk>", "<s>", "</s>"};
    static size_t bytes[TOKEN_COUNT];
    static float score[TOKEN_COUNT];
    static int32_t type[TOKEN_COUNT] = {2, 3, 3};
    static char byte_spelling[256][8];
    char error[256] = "";

    for (int32_t i = 0; i < 256; i++) {
        snprintf(byte_spelling[i], 8, "<0x%02X>", (unsigned)i);
        spelling[FIRST_BYTE + i] = byte_spelling[i];
        type[FIRST_BYTE + i] = 6;
    }
    for (int32_t i = 0; i < WORD_COUNT; i++) {
        spelling[FIRST_WORD + i] = word[i];
        type[FIRST_WORD + i] = word[i][0] == '<' ? 4 : 1;
    }
    for (int32_t i = 0; i < TOKEN_COUNT; i++)
        bytes[i] = strlen(spelling[i]);
    struct tokenizer *tokenizer =
        tokenizer_create_spm(&(struct spm_vocabulary){.token_count = TOKEN_COUNT,
                                                      .spelling = spelling,
                                                      .spelling_bytes = bytes,
                                                      .score = score,
                                                      .type = type,
                                                      .bos = 1,
                                                      .eos = 2,
                                                      .unknown = 0,
                                                      .eot = -1,
                                                      .eom = -1,
                                                      .add_space_prefix = space_prefix},
                             error, sizeof(error));
    if (tokenizer == NULL)
        printf("%s\n", error);
    return tokenizer;
}

struct output {
    char text[TEXT_MAX];
    size_t bytes;
};

static void decode(const struct tokenizer *tokenizer, const int32_t *token, int32_t count,
                   bool skip_special, struct output *output)
{
    struct detokenizer detokenizer;

    output->bytes = 0;
    detokenizer_init(&detokenizer, tokenizer, skip_special);
    for (int32_t i = 0; i < count; i++)
        EXPECT(detokenizer_put(&detokenizer, token[i], output->text, &output->bytes, TEXT_MAX));
    EXPECT(detokenizer_end(&detokenizer, output->text, &output->bytes, TEXT_MAX));
    output->text[output->bytes] = '\0';
}

static const char *decoded(const struct tokenizer *tokenizer, const int32_t *token, int32_t count,
                           bool skip_special)
{
    static struct output output;

    decode(tokenizer, token, count, skip_special, &output);
    return output.text;
}

#define DECODED(tokenizer, skip, ...)                                                              \
    decoded(tokenizer, (const int32_t[]){__VA_ARGS__},                                             \
            sizeof((const int32_t[]){__VA_ARGS__}) / sizeof(int32_t), skip)
#define B(byte)  (FIRST_BYTE + (byte))
#define W(index) (FIRST_WORD + (index))

static void a_valid_run_of_bytes_is_its_text(void)
{
    struct tokenizer *tokenizer = make(false);

    EXPECT_STRING(DECODED(tokenizer, false, B(0xE2), B(0x98), B(0x83)), "\u2603");
    EXPECT_STRING(DECODED(tokenizer, false, W(1), B(0xC3), B(0xA9), B('x'), W(0)), "a\u00e9x the");
    EXPECT_STRING(DECODED(tokenizer, false, B(0xF4), B(0x8F), B(0xBF), B(0xBF)), "\U0010FFFF");
    tokenizer_free(tokenizer);
}

static void an_ill_formed_run_is_a_replacement_a_byte(void)
{
    struct tokenizer *tokenizer = make(false);

    EXPECT_STRING(DECODED(tokenizer, false, B(0xE2), B(0x98)), "\uFFFD\uFFFD");
    EXPECT_STRING(DECODED(tokenizer, false, B(0xE2), W(1), B(0x98)), "\uFFFDa\uFFFD");
    EXPECT_STRING(DECODED(tokenizer, false, B(0xC3), B('('), B('x')), "\uFFFD\uFFFD\uFFFD");
    EXPECT_STRING(DECODED(tokenizer, false, B('o'), B(0xFF), W(1), B('k')), "o\uFFFDak");
    EXPECT_STRING(DECODED(tokenizer, false, B(0xED), B(0xA0), B(0x80)), "\uFFFD\uFFFD\uFFFD");
    tokenizer_free(tokenizer);
}

static void special_tokens_are_skipped_only_when_asked(void)
{
    struct tokenizer *tokenizer = make(false);

    EXPECT_STRING(DECODED(tokenizer, true, 1, W(1), 0, W(5), W(0), 2), "a<tool> the");
    EXPECT_STRING(DECODED(tokenizer, false, 1, W(1), 2), "<s>a</s>");
    EXPECT_STRING(DECODED(tokenizer, true, B(0xC3), 1, B(0xA9)), "\u00e9");
    tokenizer_free(tokenizer);
}

static void ids_beyond_the_vocabulary_give_nothing(void)
{
    struct tokenizer *tokenizer = make(false);

    EXPECT_STRING(DECODED(tokenizer, false, -1, TOKEN_COUNT, INT32_MAX, INT32_MIN), "");
    EXPECT_STRING(DECODED(tokenizer, false, B(0xC3), TOKEN_COUNT, B(0xA9)), "\u00e9");
    tokenizer_free(tokenizer);
}

static void one_space_of_the_start_is_dropped_where_one_was_added(void)
{
    struct tokenizer *tokenizer = make(true), *plain = make(false);
    struct detokenizer detokenizer;
    char text[64];
    size_t bytes = 0;

    EXPECT_STRING(DECODED(tokenizer, true, 1, W(0), W(0)), "the the");
    EXPECT_STRING(DECODED(tokenizer, false, 1, W(0)), "<s> the");
    EXPECT_STRING(DECODED(tokenizer, true, W(2), W(2), W(1)), " a");
    EXPECT_STRING(DECODED(tokenizer, true, B(' '), B(' ')), " ");
    EXPECT_STRING(DECODED(plain, true, W(0)), " the");
    detokenizer_init(&detokenizer, tokenizer, true);
    detokenizer_continue(&detokenizer);
    EXPECT(detokenizer_put(&detokenizer, W(0), text, &bytes, sizeof(text)));
    EXPECT_INT(bytes, ==, 4);
    tokenizer_free(tokenizer);
    tokenizer_free(plain);
}

static void too_little_room_changes_nothing(void)
{
    struct tokenizer *tokenizer = make(false);
    struct detokenizer detokenizer, before;
    char text[64];
    size_t bytes = 0;

    detokenizer_init(&detokenizer, tokenizer, false);
    EXPECT(detokenizer_put(&detokenizer, B(0xE2), text, &bytes, 0));
    EXPECT(detokenizer_holds(&detokenizer));
    EXPECT(detokenizer_put(&detokenizer, B(0x98), text, &bytes, 0));
    before = detokenizer;
    EXPECT(!detokenizer_put(&detokenizer, B(0x83), text, &bytes, 2));
    EXPECT(!detokenizer_put(&detokenizer, W(1), text, &bytes, 6));
    EXPECT(!detokenizer_end(&detokenizer, text, &bytes, 5));
    EXPECT_INT(detokenizer.held_count, ==, before.held_count);
    EXPECT(detokenizer.started == before.started && detokenizer.broken == before.broken);
    EXPECT_INT(bytes, ==, 0);
    EXPECT(detokenizer_put(&detokenizer, B(0x83), text, &bytes, 3));
    EXPECT(!detokenizer_holds(&detokenizer));
    EXPECT_INT(bytes, ==, 3);
    tokenizer_free(tokenizer);
}

/* The rule in one look at all tokens: a run's well-formed beginning, then one U+FFFD a byte. */
static void decode_whole(const struct tokenizer *tokenizer, const int32_t *token, int32_t count,
                         struct output *output)
{
    output->bytes = 0;
    for (int32_t i = 0; i < count;) {
        char run[TEXT_MAX] = "";
        size_t run_bytes = 0, at = 0, taken;
        for (; i < count && token[i] >= FIRST_BYTE && token[i] < FIRST_WORD; i++)
            run[run_bytes++] = (char)(token[i] - FIRST_BYTE);
        while (at < run_bytes && unicode_next(run + at, run_bytes - at, &taken) == UNICODE_COMPLETE)
            at += taken;
        memcpy(output->text + output->bytes, run, at);
        output->bytes += at;
        for (; at < run_bytes; at++)
            output->bytes += unicode_put_replacement(output->text + output->bytes);
        if (i < count)
            output->bytes += tokenizer_bytes(tokenizer, token[i++], output->text + output->bytes,
                                             TEXT_MAX - output->bytes);
    }
}

static uint32_t random_state = 1;

static uint32_t random_below(uint32_t bound)
{
    random_state = random_state * 1664525 + 1013904223;
    return (uint32_t)((uint64_t)random_state * bound >> 32);
}

/* Mostly bytes that go together, so that runs are often whole and often nearly so. */
static int32_t random_tokens(int32_t *token, int32_t max)
{
    int32_t count = 0;

    while (count < max - 4) {
        char text[8] = "\u00e9";
        switch (random_below(6)) {
        case 0:
            token[count++] = (int32_t)(FIRST_WORD + random_below(WORD_COUNT));
            continue;
        case 1:
            token[count++] = (int32_t)(FIRST_BYTE + random_below(256));
            continue;
        case 2:
            memcpy(text, "\u2603", 4);
            break;
        case 3:
            memcpy(text, "\U0001F600", 5);
            break;
        default:
            break;
        }
        size_t bytes = strlen(text) - (random_below(8) == 0);
        for (size_t i = 0; i < bytes; i++)
            token[count++] = B((unsigned char)text[i]);
        if (random_below(20) == 0)
            break;
    }
    return count;
}

/* What is in `from` goes to the end of `to`. */
static void move_text(struct output *to, const char *from, size_t *bytes)
{
    EXPECT(unicode_valid(from, *bytes));
    memcpy(to->text + to->bytes, from, *bytes);
    to->bytes += *bytes;
    *bytes = 0;
}

/* Now and then the buffer is too small first, or is given away with text in it. */
static void decode_in_pieces(const struct tokenizer *tokenizer, const int32_t *token, int32_t count,
                             struct output *output)
{
    struct detokenizer detokenizer;
    char text[64];
    size_t bytes = 0;

    output->bytes = 0;
    detokenizer_init(&detokenizer, tokenizer, false);
    for (int32_t i = 0; i < count; i++) {
        size_t max = bytes + random_below(6);
        if (!detokenizer_put(&detokenizer, token[i], text, &bytes, max))
            EXPECT(detokenizer_put(&detokenizer, token[i], text, &bytes, sizeof(text)));
        if (bytes >= 30 || random_below(2) == 0)
            move_text(output, text, &bytes);
    }
    EXPECT(detokenizer_end(&detokenizer, text, &bytes, sizeof(text)));
    move_text(output, text, &bytes);
}

static void any_cut_of_the_stream_gives_the_text_of_the_whole(void)
{
    struct tokenizer *tokenizer = make(false);
    static struct output whole, pieces;

    for (int round = 0; round < 20000 && test_check_failed == 0; round++) {
        int32_t token[64];
        int32_t count = random_tokens(token, 64);

        decode_whole(tokenizer, token, count, &whole);
        decode_in_pieces(tokenizer, token, count, &pieces);
        EXPECT_INT(pieces.bytes, ==, whole.bytes);
        EXPECT(memcmp(pieces.text, whole.text, whole.bytes) == 0);
        EXPECT(unicode_valid(whole.text, whole.bytes));
    }
    tokenizer_free(tokenizer);
}

/* ---- UTF-8 itself: all code points, and what the standard calls ill-formed ---- */

static size_t put_code(char *target, uint32_t code)
{
    if (code < 0x80) {
        target[0] = (char)code;
        return 1;
    }
    size_t bytes = code < 0x800 ? 2 : code < 0x10000 ? 3 : 4;
    for (size_t i = bytes - 1; i > 0; i--, code >>= 6)
        target[i] = (char)(0x80 | (code & 0x3F));
    target[0] = (char)(0xF00 >> bytes | code);
    return bytes;
}

static void every_code_point_but_surrogates_is_well_formed(void)
{
    for (uint32_t code = 0; code < 0x120000; code++) {
        char text[4];
        size_t taken, bytes = put_code(text, code);
        bool good = code < 0x110000 && (code < 0xD800 || code > 0xDFFF);
        enum unicode_form form = unicode_next(text, bytes, &taken);
        if ((form == UNICODE_COMPLETE) != good || (good && taken != bytes))
            EXPECT_INT(code, ==, -1);
        if (!good)
            continue;
        for (size_t cut = 1; cut < bytes; cut++)
            EXPECT_INT(unicode_next(text, cut, &taken), ==, UNICODE_INCOMPLETE);
    }
    size_t taken;
    EXPECT_INT(unicode_next("\xC0\x80", 2, &taken), ==, UNICODE_BROKEN); /* overlong */
    EXPECT_INT(unicode_next("\xE0\x80\x80", 3, &taken), ==, UNICODE_BROKEN);
    EXPECT_INT(unicode_next("\xF0\x8F\xBF\xBF", 4, &taken), ==, UNICODE_BROKEN);
    EXPECT_INT(unicode_next("\xE2\x98x", 3, &taken), ==, UNICODE_BROKEN);
    EXPECT_INT(taken, ==, 2);
}

int main(void)
{
    TEST(a_valid_run_of_bytes_is_its_text);
    TEST(an_ill_formed_run_is_a_replacement_a_byte);
    TEST(special_tokens_are_skipped_only_when_asked);
    TEST(ids_beyond_the_vocabulary_give_nothing);
    TEST(one_space_of_the_start_is_dropped_where_one_was_added);
    TEST(too_little_room_changes_nothing);
    TEST(any_cut_of_the_stream_gives_the_text_of_the_whole);
    TEST(every_code_point_but_surrogates_is_well_formed);
    return test_report();
}
