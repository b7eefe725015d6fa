/* Reading JSON; see json_read.h. */
#include "server/json_read.h"

#include "server/json_write.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

struct check {
    const char *begin;
    const char *at;
    const char *end;
    const char *why; /* NULL: nothing is wrong */
};

static bool fail(struct check *check, const char *why)
{
    check->why = why;
    return false;
}

static const char *skip_blank(const char *at, const char *end)
{
    while (at < end && (*at == ' ' || *at == '\n' || *at == '\r' || *at == '\t'))
        at++;
    return at;
}

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

static int hex_digit(char c)
{
    if (is_digit(c))
        return c - '0';
    c = (char)(c | 0x20);
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* The four digits of \uXXXX, or -1. */
static int32_t hex_four(const char *at, const char *end)
{
    int32_t unit = 0;

    if (end - at < 4)
        return -1;
    for (int i = 0; i < 4; i++) {
        int digit = hex_digit(at[i]);
        if (digit < 0)
            return -1;
        unit = unit * 16 + digit;
    }
    return unit;
}

static bool is_high(int32_t unit)
{
    return unit >= 0xd800 && unit < 0xdc00;
}

static bool is_low(int32_t unit)
{
    return unit >= 0xdc00 && unit < 0xe000;
}

/* Behind a backslash. */
static bool check_escape(struct check *check)
{
    if (check->at == check->end)
        return fail(check, "the string does not end");
    char c = *check->at++;
    if (c != 'u')
        return memchr("\"\\/bfnrt", c, 8) != NULL || fail(check, "no such escape");

    int32_t unit = hex_four(check->at, check->end);
    if (unit < 0)
        return fail(check, "\\u needs four hexadecimal digits");
    check->at += 4;
    if (is_low(unit))
        return fail(check, "a lone surrogate");
    if (!is_high(unit))
        return true;
    if (check->end - check->at < 6 || check->at[0] != '\\' || check->at[1] != 'u' ||
        !is_low(hex_four(check->at + 2, check->end)))
        return fail(check, "a lone surrogate");
    check->at += 6;
    return true;
}

static bool check_string(struct check *check)
{
    check->at++; /* the quote */
    for (;;) {
        const char *at = check->at;
        while (at < check->end && (unsigned char)*at >= 0x20 && (unsigned char)*at < 0x80 &&
               *at != '"' && *at != '\\')
            at++;
        check->at = at;
        if (at == check->end)
            return fail(check, "the string does not end");
        if (*at == '"') {
            check->at++;
            return true;
        }
        if (*at == '\\') {
            check->at++;
            if (!check_escape(check))
                return false;
            continue;
        }
        if ((unsigned char)*at < 0x20)
            return fail(check, "a control character in a string");
        size_t sequence = json_utf8(at, (size_t)(check->end - at));
        if (sequence == 0)
            return fail(check, "the text is not UTF-8");
        check->at += sequence;
    }
}

static bool check_digits(struct check *check)
{
    const char *first = check->at;

    while (check->at < check->end && is_digit(*check->at))
        check->at++;
    return check->at > first || fail(check, "a number needs a digit here");
}

static bool check_number(struct check *check)
{
    if (*check->at == '-')
        check->at++;
    const char *first = check->at;
    if (!check_digits(check))
        return false;
    if (*first == '0' && check->at - first > 1) {
        check->at = first;
        return fail(check, "a number must not begin with 0");
    }
    if (check->at < check->end && *check->at == '.') {
        check->at++;
        if (!check_digits(check))
            return false;
    }
    if (check->at < check->end && (*check->at == 'e' || *check->at == 'E')) {
        check->at++;
        if (check->at < check->end && (*check->at == '+' || *check->at == '-'))
            check->at++;
        return check_digits(check);
    }
    return true;
}

static bool check_word(struct check *check, const char *word)
{
    size_t bytes = strlen(word);

    if ((size_t)(check->end - check->at) < bytes || memcmp(check->at, word, bytes) != 0)
        return fail(check, "a value was expected here");
    check->at += bytes;
    return true;
}

static bool check_value(struct check *check, int depth);

/* A member's name and colon. */
static bool check_key(struct check *check)
{
    check->at = skip_blank(check->at, check->end);
    if (check->at == check->end || *check->at != '"')
        return fail(check, "a name in quotes was expected here");
    if (!check_string(check))
        return false;
    check->at = skip_blank(check->at, check->end);
    if (check->at == check->end || *check->at != ':')
        return fail(check, "a colon was expected here");
    check->at++;
    return true;
}

/* A list or an object, from its bracket on. */
static bool check_group(struct check *check, int depth)
{
    bool object = *check->at == '{';
    char close = object ? '}' : ']';

    if (depth == JSON_DEPTH_MAX)
        return fail(check, "nested too deep");
    check->at = skip_blank(check->at + 1, check->end);
    if (check->at < check->end && *check->at == close) {
        check->at++;
        return true;
    }
    for (;;) {
        if (object && !check_key(check))
            return false;
        if (!check_value(check, depth + 1))
            return false;
        check->at = skip_blank(check->at, check->end);
        if (check->at < check->end && *check->at == ',') {
            check->at++;
            continue;
        }
        if (check->at == check->end || *check->at != close)
            return fail(check, object ? "a comma or } was expected here"
                                      : "a comma or ] was expected here");
        check->at++;
        return true;
    }
}

static bool check_value(struct check *check, int depth)
{
    check->at = skip_blank(check->at, check->end);
    if (check->at == check->end)
        return fail(check, "the text ends too early");
    switch (*check->at) {
    case '{':
    case '[':
        return check_group(check, depth);
    case '"':
        return check_string(check);
    case 't':
        return check_word(check, "true");
    case 'f':
        return check_word(check, "false");
    case 'n':
        return check_word(check, "null");
    default:
        if (*check->at == '-' || is_digit(*check->at))
            return check_number(check);
        return fail(check, "a value was expected here");
    }
}

static enum json_kind kind_of(char c)
{
    switch (c) {
    case '{':
        return JSON_OBJECT;
    case '[':
        return JSON_LIST;
    case '"':
        return JSON_STRING;
    case 't':
    case 'f':
        return JSON_BOOL;
    case 'n':
        return JSON_NULL;
    default:
        return JSON_NUMBER;
    }
}

bool json_check(const char *text, size_t bytes, struct json_value *value, size_t *offset,
                const char **why)
{
    struct check check = {text, text, text + bytes, NULL};
    const char *first = skip_blank(text, check.end);

    if (check_value(&check, 0)) {
        *value = (struct json_value){first, (size_t)(check.at - first), kind_of(*first)};
        check.at = skip_blank(check.at, check.end);
        if (check.at < check.end)
            check.why = "something follows the value";
    }
    *offset = (size_t)(check.at - text);
    *why = check.why;
    return check.why == NULL;
}

struct json_walk json_walk(const struct json_value *value)
{
    assert(value->kind == JSON_LIST || value->kind == JSON_OBJECT);
    return (struct json_walk){value->text + 1, value->text + value->bytes - 1};
}

static const char *skip_string(const char *at)
{
    for (at++; *at != '"'; at++) {
        if (*at == '\\')
            at++;
    }
    return at + 1;
}

/* The end of the value that starts at `at`; the text was checked. */
static const char *skip_value(const char *at, const char *end)
{
    int depth = 0;

    do {
        if (*at == '"') {
            at = skip_string(at);
        } else if (*at == '[' || *at == '{') {
            depth++;
            at++;
        } else if (*at == ']' || *at == '}') {
            depth--;
            at++;
        } else if (depth > 0) {
            at++;
        } else {
            while (at < end && memchr(" \n\r\t,]}", *at, 7) == NULL)
                at++;
        }
    } while (depth > 0);
    return at;
}

bool json_next(struct json_walk *walk, struct json_value *key, struct json_value *value)
{
    const char *at = skip_blank(walk->at, walk->end);

    if (at < walk->end && *at == ',')
        at = skip_blank(at + 1, walk->end);
    if (at >= walk->end)
        return false;
    if (key != NULL) {
        const char *name_end = skip_string(at);
        *key = (struct json_value){at, (size_t)(name_end - at), JSON_STRING};
        at = skip_blank(name_end, walk->end);
        at = skip_blank(at + 1, walk->end); /* the colon */
    }
    walk->at = skip_value(at, walk->end);
    *value = (struct json_value){at, (size_t)(walk->at - at), kind_of(*at)};
    return true;
}

bool json_true(const struct json_value *value)
{
    return value->kind == JSON_BOOL && value->text[0] == 't';
}

/* Digits only: from the text. */
static bool integer_digits(const struct json_value *value, int64_t *number)
{
    bool negative = value->text[0] == '-';
    uint64_t limit = negative ? (uint64_t)INT64_MAX + 1 : (uint64_t)INT64_MAX;
    uint64_t sum = 0;

    for (size_t i = negative; i < value->bytes; i++) {
        uint64_t digit = (uint64_t)(value->text[i] - '0');
        if (sum > (limit - digit) / 10)
            return false;
        sum = sum * 10 + digit;
    }
    *number = negative ? (int64_t)(0 - sum) : (int64_t)sum;
    return true;
}

bool json_integer(const struct json_value *value, int64_t *number)
{
    assert(value->kind == JSON_NUMBER);
    size_t digits = value->text[0] == '-';

    while (digits < value->bytes && is_digit(value->text[digits]))
        digits++;
    if (digits == value->bytes)
        return integer_digits(value, number);

    double real = json_number(value);
    if (!(fabs(real) <= 9007199254740992.0) || real != floor(real))
        return false;
    *number = (int64_t)real;
    return true;
}

double json_number(const struct json_value *value)
{
    char text[64];

    assert(value->kind == JSON_NUMBER);
    if (value->bytes < sizeof text) {
        memcpy(text, value->text, value->bytes);
        text[value->bytes] = '\0';
        return strtod(text, NULL);
    }
    char *copy = malloc(value->bytes + 1);
    if (copy == NULL)
        return NAN;
    memcpy(copy, value->text, value->bytes);
    copy[value->bytes] = '\0';
    double number = strtod(copy, NULL);
    free(copy);
    return number;
}

static size_t put_code(char *text, int32_t code)
{
    if (code < 0x80) {
        text[0] = (char)code;
        return 1;
    }
    if (code < 0x800) {
        text[0] = (char)(0xc0 | code >> 6);
        text[1] = (char)(0x80 | (code & 0x3f));
        return 2;
    }
    if (code < 0x10000) {
        text[0] = (char)(0xe0 | code >> 12);
        text[1] = (char)(0x80 | (code >> 6 & 0x3f));
        text[2] = (char)(0x80 | (code & 0x3f));
        return 3;
    }
    text[0] = (char)(0xf0 | code >> 18);
    text[1] = (char)(0x80 | (code >> 12 & 0x3f));
    text[2] = (char)(0x80 | (code >> 6 & 0x3f));
    text[3] = (char)(0x80 | (code & 0x3f));
    return 4;
}

/* Writes what the escape at *at means and moves behind it. */
static size_t put_escape(const char **at, const char *end, char *text)
{
    static const char from[] = "bfnrt", to[] = "\b\f\n\r\t";
    char c = (*at)[1];

    *at += 2;
    if (c == 'u') {
        int32_t code = hex_four(*at, end);
        *at += 4;
        if (is_high(code)) {
            code = 0x10000 + ((code - 0xd800) << 10) + (hex_four(*at + 2, end) - 0xdc00);
            *at += 6;
        }
        return put_code(text, code);
    }
    const char *known = memchr(from, c, 5);
    text[0] = known != NULL ? to[known - from] : c;
    return 1;
}

size_t json_text(const struct json_value *value, char *text)
{
    assert(value->kind == JSON_STRING);
    const char *at = value->text + 1;
    const char *end = value->text + value->bytes - 1;
    size_t bytes = 0;

    while (at < end) {
        const char *escape = memchr(at, '\\', (size_t)(end - at));
        size_t run = (size_t)((escape != NULL ? escape : end) - at);
        memcpy(text + bytes, at, run);
        bytes += run;
        at += run;
        if (at < end)
            bytes += put_escape(&at, end, text + bytes);
    }
    return bytes;
}

bool json_has_nul(const struct json_value *value)
{
    const char *end = value->text + value->bytes - 1;

    for (const char *at = value->text + 1; at < end; at++) {
        if (*at != '\\')
            continue;
        at++;
        if (*at == 'u' && hex_four(at + 1, end) == 0)
            return true;
    }
    return false;
}

bool json_is(const struct json_value *value, const char *text)
{
    size_t bytes = strlen(text);
    char plain[512];

    assert(6 * bytes + 2 <= sizeof plain);
    if (value->kind != JSON_STRING)
        return false;
    if (memchr(value->text, '\\', value->bytes) == NULL)
        return value->bytes == bytes + 2 && memcmp(value->text + 1, text, bytes) == 0;
    /* Each of its characters may be an escape of six bytes. */
    if (value->bytes > sizeof plain)
        return false;
    return json_text(value, plain) == bytes && memcmp(plain, text, bytes) == 0;
}

const char *json_kind_name(enum json_kind kind)
{
    static const char *const name[] = {"null",     "a boolean", "a number",
                                       "a string", "a list",    "an object"};
    return name[kind];
}
