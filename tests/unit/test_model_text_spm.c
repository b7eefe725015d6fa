/* The SentencePiece kind over small vocabularies made here: order of joins, bytes, special tokens,
 * the space before a text, and vocabularies that are refused.
 */
#include "model/text/spm.h"
#include "model/text/tokenizer.h"
#include "tests/test.h"

#include <math.h>
#include <stdbool.h>

enum { NORMAL = 1, UNKNOWN, CONTROL, USER, UNUSED, BYTE };

struct piece {
    const char *spelling;
    float score;
    int32_t type;
};

enum { PIECE_MAX = 512 };

/* A vocabulary: <unk> 0, <s> 1, </s> 2, then bytes (if wanted) from 3, then the pieces. */
struct world {
    struct spm_vocabulary vocabulary;
    const char *spelling[PIECE_MAX];
    size_t spelling_bytes[PIECE_MAX];
    float score[PIECE_MAX];
    int32_t type[PIECE_MAX];
    char byte_spelling[256][8];
};

static void world_add(struct world *world, const char *spelling, float score, int32_t type)
{
    int32_t at = world->vocabulary.token_count++;

    world->spelling[at] = spelling;
    world->spelling_bytes[at] = strlen(spelling);
    world->score[at] = score;
    world->type[at] = type;
}

static struct world *world_create(bool bytes, const struct piece *piece, size_t piece_count)
{
    struct world *world = calloc(1, sizeof(*world));

    world->vocabulary = (struct spm_vocabulary){.spelling = world->spelling,
                                                .spelling_bytes = world->spelling_bytes,
                                                .score = world->score,
                                                .type = world->type,
                                                .bos = 1,
                                                .eos = 2,
                                                .eot = -1,
                                                .eom = -1,
                                                .add_bos = true};
    world_add(world, "<unk>", 0, UNKNOWN);
    world_add(world, "<s>", 0, CONTROL);
    world_add(world, "</s>", 0, CONTROL);
    for (int byte = 0; bytes && byte < 256; byte++) {
        snprintf(world->byte_spelling[byte], 8, "<0x%02X>", (unsigned)byte);
        world_add(world, world->byte_spelling[byte], 0, BYTE);
    }
    for (size_t i = 0; i < piece_count; i++)
        world_add(world, piece[i].spelling, piece[i].score, piece[i].type);
    return world;
}

static struct tokenizer *world_tokenizer(struct world *world)
{
    char error[256] = "";
    struct tokenizer *tokenizer = tokenizer_create_spm(&world->vocabulary, error, sizeof(error));

    if (tokenizer == NULL)
        printf("%s\n", error);
    return tokenizer;
}

/* The spellings of a text's tokens, parted by spaces. */
static const char *spelled(const struct tokenizer *tokenizer, const char *text, unsigned flags)
{
    static char line[4096];
    int32_t *token;
    size_t at = 0;
    int64_t count = tokenizer_encode(tokenizer, text, strlen(text), flags, &token);

    line[0] = '\0';
    for (int64_t i = 0; i < count; i++) {
        size_t bytes;
        const char *spelling = tokenizer_spelling(tokenizer, token[i], &bytes);
        at += (size_t)snprintf(line + at, sizeof(line) - at, "%s%.*s", i > 0 ? " " : "", (int)bytes,
                               spelling);
    }
    free(token);
    return line;
}

#define WORLD(world, bytes, ...)                                                                   \
    static const struct piece pieces[] = {__VA_ARGS__};                                            \
    struct world *world = world_create(bytes, pieces, sizeof(pieces) / sizeof(pieces[0]))

static void world_end(struct world *world, struct tokenizer *tokenizer)
{
    tokenizer_free(tokenizer);
    free(world);
}

static void the_best_score_is_joined_first(void)
{
    WORLD(world, true, {"a", -9, NORMAL}, {"b", -9, NORMAL}, {"c", -9, NORMAL}, {"ab", -2, NORMAL},
          {"bc", -1, NORMAL}, {"abc", -3, NORMAL});
    struct tokenizer *tokenizer = world_tokenizer(world);

    EXPECT_STRING(spelled(tokenizer, "ab", 0), "ab");
    EXPECT_STRING(spelled(tokenizer, "abab", 0), "ab ab");
    EXPECT_STRING(spelled(tokenizer, "abcbc", 0), "abc bc");
    EXPECT_STRING(spelled(tokenizer, "acb", 0), "a c b");
    world_end(world, tokenizer);
}

static void equal_scores_are_joined_from_the_left(void)
{
    WORLD(world, true, {"a", -9, NORMAL}, {"aa", -1, NORMAL}, {"aaaa", -1, NORMAL});
    struct tokenizer *tokenizer = world_tokenizer(world);

    EXPECT_STRING(spelled(tokenizer, "aaa", 0), "aa a");
    EXPECT_STRING(spelled(tokenizer, "aaaaaaa", 0), "aaaa aa a");
    world_end(world, tokenizer);
}

static void unused_pieces_fall_back_into_what_was_joined(void)
{
    WORLD(world, true, {"a", -9, NORMAL}, {"b", -9, NORMAL}, {"c", -9, NORMAL}, {"ab", -1, UNUSED},
          {"abc", -2, NORMAL});
    struct tokenizer *tokenizer = world_tokenizer(world);

    EXPECT_STRING(spelled(tokenizer, "abc", 0), "abc");
    EXPECT_STRING(spelled(tokenizer, "abb", 0), "a b b");
    world_end(world, tokenizer);
}

static void a_piece_across_a_space_is_found(void)
{
    WORLD(world, true, {"\u2581", -9, NORMAL}, {">", -9, NORMAL}, {"<", -9, NORMAL},
          {">\u2581", -1, NORMAL}, {">\u2581<", -2, NORMAL}, {"x", -9, NORMAL});
    struct tokenizer *tokenizer = world_tokenizer(world);

    EXPECT_STRING(spelled(tokenizer, "x> <x < >", 0), "x >\u2581< x \u2581 < \u2581 >");
    world_end(world, tokenizer);
}

static void characters_without_a_piece_become_their_bytes(void)
{
    WORLD(world, true, {"a", -9, NORMAL});
    struct tokenizer *tokenizer = world_tokenizer(world);

    EXPECT_STRING(spelled(tokenizer, "a\u00e9a", 0), "a <0xC3> <0xA9> a");
    EXPECT_STRING(spelled(tokenizer, "\xE2\x98", 0), "<0xE2> <0x98>");
    EXPECT_STRING(spelled(tokenizer, "\xFF\x80z", 0), "<0xFF> <0x80> <0x7A>");
    EXPECT_STRING(spelled(tokenizer, "<0x41>", 0), "<0x3C> <0x30> <0x78> <0x34> <0x31> <0x3E>");
    world_end(world, tokenizer);
}

static void without_byte_tokens_a_run_is_one_unknown(void)
{
    WORLD(world, false, {"a", -9, NORMAL}, {"\u2581", -9, NORMAL});
    struct tokenizer *tokenizer = world_tokenizer(world);

    EXPECT_STRING(spelled(tokenizer, "axyza", 0), "a <unk> a");
    EXPECT_STRING(spelled(tokenizer, "x a y", 0), "<unk> \u2581 a \u2581 <unk>");
    world_end(world, tokenizer);
}

static void special_tokens_are_cut_out_first_and_longest(void)
{
    WORLD(world, true, {"a", -9, NORMAL}, {"<", -9, NORMAL}, {"\u2581", -9, NORMAL},
          {"<t>", -1000, USER}, {"<t><t>", -1000, USER}, {"  ", -1000, USER}, {"    ", -1000, USER},
          {"<unused1>", -1000, CONTROL});
    struct tokenizer *tokenizer = world_tokenizer(world);

    EXPECT_STRING(spelled(tokenizer, "a<t><t><t>a", 0), "a <t><t> <t> a");
    EXPECT_STRING(spelled(tokenizer, "a       a", 0), "a         \u2581 a"); /* 4, 2, 1 */
    EXPECT_STRING(spelled(tokenizer, "<<unused1>", 0), "< <unused1>");
    EXPECT_STRING(spelled(tokenizer, "<s>a</s>", TOKENIZER_PARSE_SPECIAL), "<s> a </s>");
    EXPECT_STRING(spelled(tokenizer, "<s>", 0), "< <0x73> <0x3E>");
    EXPECT_STRING(spelled(tokenizer, "<s>", TOKENIZER_ADD_SPECIAL), "<s> < <0x73> <0x3E>");
    world_end(world, tokenizer);
}

static void the_space_prefix_comes_at_the_start_and_after_special_tokens(void)
{
    WORLD(world, true, {"a", -9, NORMAL}, {"\u2581", -9, NORMAL}, {"\u2581a", -1, NORMAL});
    world->vocabulary.add_space_prefix = true;
    world->vocabulary.add_eos = true;
    struct tokenizer *tokenizer = world_tokenizer(world);

    EXPECT_STRING(spelled(tokenizer, "", 0), "");
    EXPECT_STRING(spelled(tokenizer, "aa", 0), "\u2581a a");
    EXPECT_STRING(spelled(tokenizer, " a", 0), "\u2581 \u2581a");
    EXPECT_STRING(spelled(tokenizer, "<s>a", TOKENIZER_PARSE_SPECIAL), "<s> \u2581a");
    EXPECT_STRING(spelled(tokenizer, "a", TOKENIZER_ADD_SPECIAL), "<s> \u2581a </s>");
    world_end(world, tokenizer);
}

static void ids_beyond_the_vocabulary_have_no_bytes(void)
{
    WORLD(world, true, {"\u2581a", -9, NORMAL});
    struct tokenizer *tokenizer = world_tokenizer(world);
    char bytes[8];
    size_t count;

    EXPECT_INT(tokenizer_bytes(tokenizer, -1, bytes, 8), ==, 0);
    EXPECT_INT(tokenizer_bytes(tokenizer, 260, bytes, 8), ==, 0);
    EXPECT_INT(tokenizer_bytes(tokenizer, INT32_MAX, bytes, 8), ==, 0);
    tokenizer_spelling(tokenizer, 260, &count);
    EXPECT_INT(count, ==, 0);
    EXPECT(!tokenizer_ends(tokenizer, 260) && !tokenizer_ends(tokenizer, -1));
    EXPECT_INT(tokenizer_bytes(tokenizer, 259, bytes, 8), ==, 2);
    EXPECT(memcmp(bytes, " a", 2) == 0);
    EXPECT_INT(tokenizer_bytes(tokenizer, 259, bytes, 1), ==, 2);
    EXPECT_INT(tokenizer_bytes(tokenizer, 3 + 0xE2, bytes, 8), ==, 1);
    EXPECT_INT((unsigned char)bytes[0], ==, 0xE2);
    world_end(world, tokenizer);
}

static void ends_are_eos_eot_and_known_control_tokens(void)
{
    WORLD(world, true, {"<|im_end|>", 0, CONTROL}, {"<end_of_turn>", 0, USER},
          {"<mine>", 0, CONTROL});
    world->vocabulary.eot = 261;
    struct tokenizer *tokenizer = world_tokenizer(world);

    EXPECT(tokenizer_ends(tokenizer, 2));
    EXPECT(tokenizer_ends(tokenizer, 259));
    EXPECT(!tokenizer_ends(tokenizer, 260)); /* a user's token of that name is only text */
    EXPECT(tokenizer_ends(tokenizer, 261));
    EXPECT(!tokenizer_ends(tokenizer, 1));
    world_end(world, tokenizer);
}

/* What is wrong must be in the line. */
static void expect_refused(struct world *world, const char *why)
{
    char error[256] = "";
    struct tokenizer *tokenizer = tokenizer_create_spm(&world->vocabulary, error, sizeof(error));

    EXPECT(tokenizer == NULL);
    if (strstr(error, why) == NULL)
        EXPECT_STRING(error, why);
    EXPECT(strchr(error, '\n') == NULL);
    world_end(world, tokenizer);
}

static void broken_vocabularies_are_refused_with_a_line(void)
{
    static const struct piece doubled[] = {{"a", 0, NORMAL}, {"a", 0, NORMAL}};
    expect_refused(world_create(true, doubled, 2), "tokens 259 and 260 are spelled alike");
    static const struct piece empty[] = {{"", 0, NORMAL}};
    expect_refused(world_create(true, empty, 1), "token 259 has 0 bytes");
    static const struct piece ill[] = {{"\xC3", 0, NORMAL}};
    expect_refused(world_create(true, ill, 1), "token 259 is not UTF-8");
    static const struct piece score[] = {{"a", NAN, NORMAL}};
    expect_refused(world_create(true, score, 1), "score that is not a number");
    static const struct piece type[] = {{"a", 0, 7}};
    expect_refused(world_create(true, type, 1), "token 259 has a type");
    static const struct piece byte[] = {{"<0xG0>", 0, BYTE}};
    expect_refused(world_create(true, byte, 1), "not spelled <0xNN>");
    static const struct piece again[] = {{"<0xfF>", 0, BYTE}};
    expect_refused(world_create(true, again, 1), "a second token of its byte");

    struct world *world = world_create(true, NULL, 0);
    world->vocabulary.eos = 259;
    expect_refused(world, "eos token is 259");
    world = world_create(false, NULL, 0);
    world->vocabulary.unknown = -1;
    world->type[0] = CONTROL;
    expect_refused(world, "byte 0x00");
    world = world_create(true, NULL, 0);
    world->vocabulary.token_count = 0;
    expect_refused(world, "0 tokens");
    world = world_create(true, NULL, 0);
    world->spelling_bytes[2] = (size_t)1 << 40;
    expect_refused(world, "token 2 has 1099511627776 bytes");
}

int main(void)
{
    TEST(the_best_score_is_joined_first);
    TEST(equal_scores_are_joined_from_the_left);
    TEST(unused_pieces_fall_back_into_what_was_joined);
    TEST(a_piece_across_a_space_is_found);
    TEST(characters_without_a_piece_become_their_bytes);
    TEST(without_byte_tokens_a_run_is_one_unknown);
    TEST(special_tokens_are_cut_out_first_and_longest);
    TEST(the_space_prefix_comes_at_the_start_and_after_special_tokens);
    TEST(ids_beyond_the_vocabulary_have_no_bytes);
    TEST(ends_are_eos_eot_and_known_control_tokens);
    TEST(broken_vocabularies_are_refused_with_a_line);
    return test_report();
}
