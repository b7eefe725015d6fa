/* JSON in and out: what is taken, what is refused, that writing and reading agree. */
#include "server/json_read.h"
#include "server/json_write.h"
#include "tests/test.h"

#include <math.h>

static bool good(const char *text, size_t bytes)
{
    struct json_value value;
    size_t offset;
    const char *why;

    bool result = json_check(text, bytes, &value, &offset, &why);
    EXPECT(offset <= bytes);
    EXPECT(result == (why == NULL));
    return result;
}

#define GOOD(text) EXPECT(good(text, sizeof(text) - 1))
#define BAD(text)  EXPECT(!good(text, sizeof(text) - 1))

static struct json_value parse(const char *text)
{
    struct json_value value = {0};
    size_t offset;
    const char *why;

    EXPECT(json_check(text, strlen(text), &value, &offset, &why));
    return value;
}

static void whole_texts_by_the_rules_are_taken(void)
{
    GOOD("null");
    GOOD(" \t\r\n{} ");
    GOOD("[1,-0,0.5,1e9,-1.25E-3]");
    GOOD("{\"a\":[true,false,null],\"b\":{\"c\":\"\\u00e9\\ud83d\\ude00\\\"\\\\\\/"
         "\\b\\f\\n\\r\\t\"}}");
    GOOD("\"\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80\"");
    GOOD("\"\\u0000\"");
}

static void deviations_are_refused(void)
{
    BAD("");
    BAD("{");
    BAD("[1,]");
    BAD("[,1]");
    BAD("{\"a\":1,}");
    BAD("{a:1}");
    BAD("{\"a\" 1}");
    BAD("01");
    BAD("+1");
    BAD(".5");
    BAD("1.");
    BAD("1e");
    BAD("-");
    BAD("NaN");
    BAD("Infinity");
    BAD("tru");
    BAD("'a'");
    BAD("\"a");
    BAD("\"\\x41\"");
    BAD("\"\\u12\"");
    BAD("\"a\nb\"");
    BAD("1 2");
    BAD("{} x");
    BAD("\xef\xbb\xbf{}");
    BAD("[1\0]");
}

static void text_that_is_not_utf8_is_refused(void)
{
    BAD("\"\xff\"");
    BAD("\"\xc0\x80\"");
    BAD("\"\xe0\x80\x80\"");
    BAD("\"\xed\xa0\x80\"");
    BAD("\"\xf4\x90\x80\x80\"");
    BAD("\"\xe2\x82\"");
    BAD("\"\\ud800\"");
    BAD("\"\\udc00\"");
    BAD("\"\\ud800\\u0041\"");
    BAD("\"\\ud800\\ud800\"");
}

static void nesting_ends_at_its_limit(void)
{
    char text[2 * JSON_DEPTH_MAX + 3];

    for (int depth = JSON_DEPTH_MAX; depth <= JSON_DEPTH_MAX + 1; depth++) {
        memset(text, '[', (size_t)depth);
        memset(text + depth, ']', (size_t)depth);
        EXPECT(good(text, 2 * (size_t)depth) == (depth == JSON_DEPTH_MAX));
    }
}

static void every_prefix_of_a_text_is_refused(void)
{
    static const char text[] = "{\"a\":[1,\"b\\u00e9\\n\",{\"c\":null}],\"d\":-1.5e3}";

    for (size_t bytes = 0; bytes + 1 < sizeof text - 1; bytes++)
        EXPECT(!good(text, bytes));
    EXPECT(good(text, sizeof text - 1));
}

static void integers_keep_all_their_digits(void)
{
    static const struct {
        const char *text;
        bool whole;
        int64_t number;
    } row[] = {
        {"0", true, 0},
        {"-0", true, 0},
        {"9223372036854775807", true, INT64_MAX},
        {"-9223372036854775808", true, INT64_MIN},
        {"9007199254740993", true, 9007199254740993},
        {"9223372036854775808", false, 0},
        {"-9223372036854775809", false, 0},
        {"99999999999999999999999", false, 0},
        {"16.0", true, 16},
        {"1e3", true, 1000},
        {"1.5", false, 0},
        {"1e400", false, 0},
        {"1e300", false, 0},
    };

    for (size_t i = 0; i < sizeof row / sizeof row[0]; i++) {
        struct json_value value = parse(row[i].text);
        int64_t number = 0;
        EXPECT(json_integer(&value, &number) == row[i].whole);
        if (row[i].whole)
            EXPECT_INT(number, ==, row[i].number);
    }
}

static void long_numbers_are_read_whole(void)
{
    char text[400] = "0.";

    memset(text + 2, '1', 300);
    struct json_value value = parse(text);
    EXPECT(fabs(json_number(&value) - 1.0 / 9) < 1e-15);
}

static void members_are_walked_in_order(void)
{
    struct json_value object = parse(" { \"a\" : [1, [2]] ,\"b\\u0063\":\"]},\\\"\", \"d\":{} } ");
    struct json_walk walk = json_walk(&object);
    struct json_value key, value;

    EXPECT(json_next(&walk, &key, &value));
    EXPECT(json_is(&key, "a"));
    EXPECT_INT(value.kind, ==, JSON_LIST);
    EXPECT_INT(value.bytes, ==, 8);
    EXPECT(json_next(&walk, &key, &value));
    EXPECT(json_is(&key, "bc"));
    EXPECT(json_is(&value, "]},\""));
    EXPECT(json_next(&walk, &key, &value));
    EXPECT_INT(value.kind, ==, JSON_OBJECT);
    EXPECT(!json_next(&walk, &key, &value));
}

static void strings_are_decoded(void)
{
    struct json_value value = parse("\"a\\u0000\\u00e9\\ud83d\\ude00\\n\\/\"");
    char text[64];
    size_t bytes = json_text(&value, text);

    EXPECT_INT(bytes, ==, 10);
    EXPECT(memcmp(text, "a\0\xc3\xa9\xf0\x9f\x98\x80\n/", 10) == 0);
    EXPECT(json_has_nul(&value));
    value = parse("\"\\\\u0000\"");
    EXPECT(!json_has_nul(&value));
}

static void every_code_point_survives_a_round_trip(void)
{
    struct json json = {0};
    char text[8], back[32];

    for (int32_t code = 0; code < 0x110000; code++) {
        size_t bytes = 0;
        if (code >= 0xd800 && code < 0xe000)
            continue;
        if (code < 0x80) {
            text[bytes++] = (char)code;
        } else if (code < 0x800) {
            text[bytes++] = (char)(0xc0 | code >> 6);
            text[bytes++] = (char)(0x80 | (code & 63));
        } else {
            if (code < 0x10000) {
                text[bytes++] = (char)(0xe0 | code >> 12);
            } else {
                text[bytes++] = (char)(0xf0 | code >> 18);
                text[bytes++] = (char)(0x80 | (code >> 12 & 63));
            }
            text[bytes++] = (char)(0x80 | (code >> 6 & 63));
            text[bytes++] = (char)(0x80 | (code & 63));
        }
        json_clear(&json);
        json_string(&json, text, bytes);
        struct json_value value;
        size_t offset;
        const char *why;
        bool same = json_check(json.text, json.bytes, &value, &offset, &why) &&
                    json_text(&value, back) == bytes && memcmp(back, text, bytes) == 0;
        if (!same) {
            EXPECT_INT(code, ==, -1);
            break;
        }
    }
    json_release(&json);
}

static void bytes_that_are_no_text_become_replacements(void)
{
    struct json json = {0};

    json_string(&json, "a\xff\xe2\x82z", 5);
    json_bytes(&json, "", 1);
    EXPECT_STRING(json.text, "\"a\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbdz\"");
    json_release(&json);
}

static void floats_read_back_as_themselves_and_stay_in_order(void)
{
    struct json json = {0};
    uint64_t state = 1;
    double last = 0;

    for (int i = 0; i < 20000; i++) {
        state = state * 6364136223846793005ULL + 1442695040888963407ULL;
        float value = -(float)(state >> 40) / 524288;
        json_clear(&json);
        json_float(&json, value);
        json_bytes(&json, "", 1);
        EXPECT(strtof(json.text, NULL) == value);
        /* Its neighbour prints another number, on the right side of it. */
        last = strtod(json.text, NULL);
        json_clear(&json);
        json_float(&json, nextafterf(value, -1e9F));
        json_bytes(&json, "", 1);
        EXPECT(strtod(json.text, NULL) < last);
        if (test_check_failed > 0)
            break;
    }
    json_release(&json);
}

static void numbers_are_written_in_full(void)
{
    struct json json = {0};

    json_int(&json, INT64_MIN);
    json_raw(&json, " ");
    json_int(&json, 0);
    json_raw(&json, " ");
    json_ints(&json, (int32_t[]){1, -2, 3}, 3);
    json_raw(&json, " ");
    json_float(&json, 0);
    json_raw(&json, " ");
    json_float(&json, -9999);
    json_raw(&json, " ");
    json_float(&json, NAN);
    json_bytes(&json, "", 1);
    EXPECT_STRING(json.text, "-9223372036854775808 0 [1,-2,3] 0.0 -9999.0 null");
    json_release(&json);
}

static void texts_grow_as_needed(void)
{
    struct json json = {0};

    for (int i = 0; i < 10000; i++)
        json_print(&json, "%d,", i);
    EXPECT_INT(json.bytes, ==, 48890);
    EXPECT(!json.lost);
    json_release(&json);
    EXPECT(json.text == NULL);
}

int main(void)
{
    TEST(whole_texts_by_the_rules_are_taken);
    TEST(deviations_are_refused);
    TEST(text_that_is_not_utf8_is_refused);
    TEST(nesting_ends_at_its_limit);
    TEST(every_prefix_of_a_text_is_refused);
    TEST(integers_keep_all_their_digits);
    TEST(long_numbers_are_read_whole);
    TEST(members_are_walked_in_order);
    TEST(strings_are_decoded);
    TEST(every_code_point_survives_a_round_trip);
    TEST(bytes_that_are_no_text_become_replacements);
    TEST(floats_read_back_as_themselves_and_stay_in_order);
    TEST(numbers_are_written_in_full);
    TEST(texts_grow_as_needed);
    return test_report();
}
