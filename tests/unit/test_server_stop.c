/* Stop strings against a definition that looks at the whole text at once. */
#include "server/stop_match.h"
#include "tests/test.h"

#include <time.h>

static int64_t cpu_us(void)
{
    struct timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return now.tv_sec * 1000000LL + now.tv_nsec / 1000;
}

/* ---- the definition ---- */

static bool ends_with(const char *text, int64_t bytes, const char *string)
{
    int64_t string_bytes = (int64_t)strlen(string);

    return string_bytes <= bytes &&
           memcmp(text + bytes - string_bytes, string, (size_t)string_bytes) == 0;
}

/* The first end of any string; of those there the longest, of equal ones the first. */
static struct stop_result match_whole(const char *text, const char *const *string, int32_t count)
{
    struct stop_result result = {.string = -1};

    for (int64_t end = 1; end <= (int64_t)strlen(text) && result.string < 0; end++) {
        for (int32_t i = 0; i < count; i++) {
            int64_t from = end - (int64_t)strlen(string[i]);
            if (!ends_with(text, end, string[i]) ||
                (result.string >= 0 && from >= result.safe_bytes))
                continue;
            result = (struct stop_result){.string = i, .safe_bytes = from, .end_bytes = end};
        }
    }
    if (result.string >= 0)
        return result;
    /* No match: what begins a string at the end of the text is held back. */
    int64_t held = 0, bytes = (int64_t)strlen(text);
    for (int32_t i = 0; i < count; i++) {
        for (int64_t part = 1; part < (int64_t)strlen(string[i]) && part <= bytes; part++) {
            if (memcmp(text + bytes - part, string[i], (size_t)part) == 0 && part > held)
                held = part;
        }
    }
    result.safe_bytes = bytes - held;
    return result;
}

/* Feeds `text` cut at the bits of `cuts`; checks that nothing of a match was called safe. */
static void expect_as_whole(const char *text, const char *const *string, int32_t count,
                            const struct stop_set *set, uint32_t cuts)
{
    struct stop_match match = {.set = set};
    struct stop_result want = match_whole(text, string, count), got = {.string = -1};
    int64_t bytes = (int64_t)strlen(text), at = 0, safe = 0;

    while (at < bytes && got.string < 0) {
        int64_t first = at++;
        while (at < bytes && (cuts >> at & 1) == 0)
            at++;
        got = stop_match_feed(&match, text + first, (size_t)(at - first));
        EXPECT(got.safe_bytes >= safe);
        safe = got.safe_bytes;
        if (want.string >= 0)
            EXPECT(safe <= want.safe_bytes);
    }
    if (got.string == want.string && got.safe_bytes == want.safe_bytes &&
        (got.string < 0 || got.end_bytes == want.end_bytes))
        return;
    printf("text \"%s\", cuts %x, first string \"%s\"\n", text, cuts, string[0]);
    EXPECT_INT(got.string, ==, want.string);
    EXPECT_INT(got.safe_bytes, ==, want.safe_bytes);
}

/* ---- tests ---- */

static void a_match_is_found_across_any_border(void)
{
    static const char *const string[] = {"\n\nUser:", "</s>"};
    struct stop_set *set = stop_set_create(string, 2);

    for (uint32_t cuts = 0; cuts < 1u << 12; cuts++) {
        expect_as_whole("ok.\n\nUser: hi", string, 2, set, cuts);
        expect_as_whole("a\n\n\nUser:</s>", string, 2, set, cuts);
        expect_as_whole("</</s</s>\n", string, 2, set, cuts);
    }
    stop_set_free(set);
}

static void what_may_become_a_match_is_held_back_and_then_released(void)
{
    static const char *const string[] = {"abcd"};
    struct stop_set *set = stop_set_create(string, 1);
    struct stop_match match = {.set = set};

    EXPECT_INT(stop_match_feed(&match, "xabc", 4).safe_bytes, ==, 1);
    EXPECT_INT(stop_match_feed(&match, "", 0).safe_bytes, ==, 1);
    EXPECT_INT(stop_match_feed(&match, "ab", 2).safe_bytes, ==, 4);
    EXPECT_INT(stop_match_feed(&match, "z", 1).safe_bytes, ==, 7);
    EXPECT_INT(stop_match_feed(&match, "ab", 2).safe_bytes, ==, 7);
    struct stop_result result = stop_match_feed(&match, "cdef", 4);
    EXPECT_INT(result.string, ==, 0);
    EXPECT_INT(result.safe_bytes, ==, 7);
    EXPECT_INT(result.end_bytes, ==, 11);
    stop_set_free(set);
}

static void the_earliest_end_wins_and_then_the_longest(void)
{
    static const char *const string[] = {"bcde", "bc", "abc", "bc"};
    struct stop_set *set = stop_set_create(string, 4);
    struct stop_match match = {.set = set};
    struct stop_result result = stop_match_feed(&match, "xabcde", 6);

    EXPECT_INT(result.string, ==, 2);
    EXPECT_INT(result.safe_bytes, ==, 1);
    EXPECT_INT(result.end_bytes, ==, 4);
    match = (struct stop_match){.set = set};
    EXPECT_INT(stop_match_feed(&match, "xbc", 3).string, ==, 1);
    stop_set_free(set);
}

static void without_strings_all_text_is_safe(void)
{
    struct stop_match match = {.set = NULL};
    struct stop_set *set = stop_set_create(NULL, 0);

    EXPECT_INT(stop_match_feed(&match, "abc", 3).safe_bytes, ==, 3);
    match = (struct stop_match){.set = set};
    EXPECT_INT(stop_match_feed(&match, "abc", 3).safe_bytes, ==, 3);
    EXPECT_INT(stop_match_feed(&match, "abc", 3).string, ==, -1);
    stop_set_free(set);
}

/* The `index`th word over {a, b}, from the empty one on: "", a, b, aa, ab, ... */
static void word_of(int32_t index, char *word)
{
    char reversed[32];
    size_t bytes = 0;

    for (index++; index > 1; index /= 2)
        reversed[bytes++] = index % 2 == 0 ? 'a' : 'b';
    for (size_t i = 0; i < bytes; i++)
        word[i] = reversed[bytes - 1 - i];
    word[bytes] = '\0';
}

static void all_short_texts_and_pairs_of_strings_match_as_defined(void)
{
    enum { STRING_END = 31, TEXT_END = 255 }; /* up to 4 letters, up to 7 */
    char left[8], right[8], text[16];
    const char *string[2] = {left, right};

    for (int32_t i = 1; i < STRING_END; i++) {
        for (int32_t j = 1; j < STRING_END; j++) {
            word_of(i, left);
            word_of(j, right);
            struct stop_set *set = stop_set_create(string, 2);
            for (int32_t k = 0; k < TEXT_END && test_check_failed == 0; k++) {
                word_of(k, text);
                expect_as_whole(text, string, 2, set, ~0u);
                expect_as_whole(text, string, 2, set, (uint32_t)(i * 7 + j * 3 + k));
            }
            stop_set_free(set);
        }
    }
}

static uint32_t random_state = 1;

static uint32_t random_below(uint32_t bound)
{
    random_state = random_state * 1664525 + 1013904223;
    return (uint32_t)((uint64_t)random_state * bound >> 32);
}

static void random_sets_of_many_strings_match_as_defined(void)
{
    for (int round = 0; round < 4000 && test_check_failed == 0; round++) {
        static char bytes[64][12];
        const char *string[64];
        char text[32];
        int32_t count = (int32_t)(1 + random_below(64));
        uint32_t letters = 2 + random_below(4);

        for (int32_t i = 0; i < count; i++) {
            uint32_t string_bytes = 1 + random_below(10);
            for (uint32_t k = 0; k < string_bytes; k++)
                bytes[i][k] = (char)('a' + random_below(letters));
            bytes[i][string_bytes] = '\0';
            string[i] = bytes[i];
        }
        struct stop_set *set = stop_set_create(string, count);
        uint32_t text_bytes = random_below(31);
        for (uint32_t k = 0; k < text_bytes; k++)
            text[k] = (char)('a' + random_below(letters));
        text[text_bytes] = '\0';
        expect_as_whole(text, string, count, set, random_below(UINT32_MAX));
        stop_set_free(set);
    }
}

/* Strings that are nearly matched at every byte: a naive search takes text times string. */
static void the_cost_does_not_grow_with_the_strings(void)
{
    enum { STRING_BYTES = 10000, TEXT_BYTES = 1 << 21 };
    char *string = malloc(STRING_BYTES + 1), *text = malloc(TEXT_BYTES);
    const char *many[1] = {string};
    struct stop_match match;

    memset(string, 'a', STRING_BYTES);
    memcpy(string + STRING_BYTES - 1, "b", 2);
    memset(text, 'a', TEXT_BYTES);
    struct stop_set *set = stop_set_create(many, 1);
    match = (struct stop_match){.set = set};
    int64_t start_us = cpu_us();
    for (size_t i = 0; i < TEXT_BYTES; i += 64)
        EXPECT_INT(stop_match_feed(&match, text + i, 64).string, ==, -1);
    int64_t cost_us = cpu_us() - start_us;
    printf("%d bytes against a string of %d: %.1f ns a byte\n", TEXT_BYTES, STRING_BYTES,
           1000.0 * (double)cost_us / TEXT_BYTES);
    EXPECT(cost_us < 2000000); /* a naive search: 20 G comparisons */
    stop_set_free(set);
    free(string);
    free(text);
}

int main(void)
{
    TEST(a_match_is_found_across_any_border);
    TEST(what_may_become_a_match_is_held_back_and_then_released);
    TEST(the_earliest_end_wins_and_then_the_longest);
    TEST(without_strings_all_text_is_safe);
    TEST(all_short_texts_and_pairs_of_strings_match_as_defined);
    TEST(random_sets_of_many_strings_match_as_defined);
    TEST(the_cost_does_not_grow_with_the_strings);
    return test_report();
}
