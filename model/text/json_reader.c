/* JSON by RFC 8259, without a tree. */
#include "model/text/json_reader.h"

#include "model/text/unicode.h"

#include <string.h>

void json_reader_init(struct json_reader *reader, const char *json, size_t bytes)
{
    *reader = (struct json_reader){.start = json, .at = json, .end = json + bytes};
}

static bool fail(struct json_reader *reader, const char *error)
{
    if (reader->error == NULL)
        reader->error = error;
    reader->end = reader->at;
    return false;
}

char json_peek(struct json_reader *reader)
{
    const char *at = reader->at;

    while (at < reader->end && (*at == ' ' || *at == '\n' || *at == '\r' || *at == '\t'))
        at++;
    reader->at = at;
    return at < reader->end ? *at : 0;
}

static bool take(struct json_reader *reader, char byte, const char *error)
{
    if (json_peek(reader) != byte)
        return fail(reader, error);
    reader->at++;
    return true;
}

bool json_enter(struct json_reader *reader, char bracket)
{
    return take(reader, bracket, bracket == '{' ? "no object" : "no list");
}

bool json_more(struct json_reader *reader, char bracket, int64_t *count)
{
    char next = json_peek(reader);

    if (next == (bracket == '{' ? '}' : ']')) {
        reader->at++;
        return false;
    }
    if (next == 0)
        return fail(reader, "it ends too early");
    if (*count > 0 && !take(reader, ',', "no comma between elements"))
        return false;
    ++*count;
    return true;
}

/* ---- strings ---- */

static int hex_value(const char *digits)
{
    int value = 0;

    for (int i = 0; i < 4; i++) {
        char digit = digits[i];
        if (digit >= '0' && digit <= '9')
            value = 16 * value + digit - '0';
        else if ((digit | 0x20) >= 'a' && (digit | 0x20) <= 'f')
            value = 16 * value + (digit | 0x20) - 'a' + 10;
        else
            return -1;
    }
    return value;
}

/* After "\u": one code unit or a pair; -1: neither. */
static int32_t take_code(struct json_reader *reader)
{
    if (reader->end - reader->at < 4)
        return -1;
    int32_t high = hex_value(reader->at);
    reader->at += 4;
    if (high < 0xD800 || high > 0xDFFF)
        return high;
    if (high > 0xDBFF || reader->end - reader->at < 6 || reader->at[0] != '\\' ||
        reader->at[1] != 'u')
        return -1;
    int32_t low = hex_value(reader->at + 2);
    reader->at += 6;
    return low < 0xDC00 || low > 0xDFFF ? -1 : 0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00);
}

/* After the backslash. */
static bool take_escape(struct json_reader *reader, char **target)
{
    static const char escape[] = "\"\\/bfnrt", meaning[] = "\"\\/\b\f\n\r\t";
    char byte = reader->at < reader->end ? *reader->at : 0;

    if (byte == 'u') {
        reader->at++;
        int32_t code = take_code(reader);
        if (code < 0)
            return fail(reader, "a \\u that is no character");
        *target += unicode_put(*target, code);
        return true;
    }
    const char *known = byte == 0 ? NULL : strchr(escape, byte);
    if (known == NULL)
        return fail(reader, "an unknown escape");
    *(*target)++ = meaning[known - escape];
    reader->at++;
    return true;
}

/* The first quote, backslash or control character from `at` on. */
static const char *plain_end(const char *at, const char *end)
{
    while (at < end && *at != '"' && *at != '\\' && (unsigned char)*at >= 0x20)
        at++;
    return at;
}

bool json_take_text(struct json_reader *reader, char **target, const char **text, size_t *bytes)
{
    if (!take(reader, '"', "no string"))
        return false;
    const char *first = reader->at, *at = plain_end(first, reader->end);
    if (at < reader->end && *at == '"') {
        *text = first;
        *bytes = (size_t)(at - first);
        reader->at = at + 1;
        return true;
    }
    char *decoded = *target;
    for (;;) {
        memcpy(*target, reader->at, (size_t)(at - reader->at));
        *target += at - reader->at;
        reader->at = at;
        if (at == reader->end || (*at != '"' && *at != '\\'))
            return fail(reader, "a string that does not end");
        reader->at++;
        if (*at == '"')
            break;
        if (!take_escape(reader, target))
            return false;
        at = plain_end(reader->at, reader->end);
    }
    *text = decoded;
    *bytes = (size_t)(*target - decoded);
    return true;
}

bool json_key(struct json_reader *reader, char **target, const char **text, size_t *bytes)
{
    return json_take_text(reader, target, text, bytes) && take(reader, ':', "no colon after a key");
}

/* ---- numbers and the rest ---- */

bool json_take_int(struct json_reader *reader, int32_t *number)
{
    int64_t value = 0;
    bool negative = json_peek(reader) == '-';
    const char *at = reader->at + negative, *first = at;

    for (; at < reader->end && *at >= '0' && *at <= '9' && value <= INT32_MAX; at++)
        value = 10 * value + (*at - '0');
    if (at == first || value > INT32_MAX ||
        (at < reader->end && (*at == '.' || *at == 'e' || *at == 'E')))
        return fail(reader, "no whole number of 32 bits");
    reader->at = at;
    *number = (int32_t)(negative ? -value : value);
    return true;
}

static bool skip_string(struct json_reader *reader)
{
    const char *at = plain_end(reader->at + 1, reader->end);

    while (at + 1 < reader->end && *at == '\\')
        at = plain_end(at + 2, reader->end);
    if (at >= reader->end || *at != '"')
        return fail(reader, "a string that does not end");
    reader->at = at + 1;
    return true;
}

/* A number or a word; what it says is left to who reads it. */
static bool skip_plain(struct json_reader *reader)
{
    const char *first = reader->at;

    while (reader->at < reader->end && memchr(" \n\r\t,:]}[{\"", *reader->at, 11) == NULL)
        reader->at++;
    return reader->at > first || fail(reader, "no value");
}

bool json_skip(struct json_reader *reader, const char **value, size_t *bytes)
{
    int depth = 0;

    json_peek(reader);
    *value = reader->at;
    do {
        char next = json_peek(reader);
        if (next == '{' || next == '[') {
            if (++depth > JSON_DEPTH_MAX)
                return fail(reader, "it is nested too deeply");
            reader->at++;
        } else if (next == '}' || next == ']') {
            depth--;
            reader->at++;
        } else if (depth > 0 && (next == ',' || next == ':')) {
            reader->at++;
        } else if (next == '"' ? !skip_string(reader) : !skip_plain(reader)) {
            return false;
        }
    } while (depth > 0);
    if (depth < 0)
        return fail(reader, "no value");
    *bytes = (size_t)(reader->at - *value);
    return true;
}
