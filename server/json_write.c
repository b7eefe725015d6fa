/* Writing JSON; see json_write.h. */
#include "server/json_write.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void json_release(struct json *json)
{
    free(json->text);
    *json = (struct json){0};
}

void json_clear(struct json *json)
{
    json->bytes = 0;
    json->lost = false;
}

/* Room for `more` bytes behind the text; false: nothing may be written. */
static bool room(struct json *json, size_t more)
{
    if (json->lost)
        return false;
    if (more <= json->max - json->bytes)
        return true;

    size_t max = json->max + json->max / 2 + more + 240;
    char *grown = realloc(json->text, max);
    if (grown == NULL) {
        json->lost = true;
        return false;
    }
    json->text = grown;
    json->max = max;
    return true;
}

void json_bytes(struct json *json, const char *text, size_t bytes)
{
    if (bytes == 0 || !room(json, bytes))
        return;
    memcpy(json->text + json->bytes, text, bytes);
    json->bytes += bytes;
}

void json_raw(struct json *json, const char *text)
{
    json_bytes(json, text, strlen(text));
}

void json_print(struct json *json, const char *format, ...)
{
    va_list list;

    if (!room(json, 256))
        return;
    va_start(list, format);
    int count = vsnprintf(json->text + json->bytes, json->max - json->bytes, format, list);
    va_end(list);
    if (count >= 0 && (size_t)count >= json->max - json->bytes) {
        if (!room(json, (size_t)count + 1))
            return;
        va_start(list, format);
        vsnprintf(json->text + json->bytes, json->max - json->bytes, format, list);
        va_end(list);
    }
    json->bytes += count > 0 ? (size_t)count : 0;
}

static bool continues(const unsigned char *c, size_t count)
{
    for (size_t i = 1; i <= count; i++) {
        if ((c[i] & 0xc0) != 0x80)
            return false;
    }
    return true;
}

size_t json_utf8(const char *text, size_t bytes)
{
    const unsigned char *c = (const unsigned char *)text;

    if (bytes == 0)
        return 0;
    if (c[0] < 0x80)
        return 1;
    if (c[0] < 0xc2)
        return 0;
    if (c[0] < 0xe0)
        return bytes >= 2 && continues(c, 1) ? 2 : 0;
    if (c[0] < 0xf0) {
        bool overlong = c[0] == 0xe0 && bytes >= 2 && c[1] < 0xa0;
        bool surrogate = c[0] == 0xed && bytes >= 2 && c[1] > 0x9f;
        return bytes >= 3 && !overlong && !surrogate && continues(c, 2) ? 3 : 0;
    }
    if (c[0] < 0xf5) {
        bool overlong = c[0] == 0xf0 && bytes >= 2 && c[1] < 0x90;
        bool beyond = c[0] == 0xf4 && bytes >= 2 && c[1] > 0x8f;
        return bytes >= 4 && !overlong && !beyond && continues(c, 3) ? 4 : 0;
    }
    return 0;
}

int64_t json_characters(const char *text, size_t bytes)
{
    int64_t count = 0;

    for (size_t i = 0; i < bytes; i++)
        count += ((unsigned char)text[i] & 0xc0) != 0x80;
    return count;
}

/* Bytes that stand in a JSON string as they are: ASCII without controls, quote and backslash. */
static size_t plain(const char *text, size_t bytes)
{
    size_t i = 0;

    while (i < bytes && (unsigned char)text[i] >= 0x20 && (unsigned char)text[i] < 0x7f &&
           text[i] != '"' && text[i] != '\\')
        i++;
    return i;
}

static void escape(struct json *json, unsigned char c)
{
    static const char named[] = "btn\0fr"; /* 8 to 13 */

    if (c == '"' || c == '\\')
        json_bytes(json, (char[]){'\\', (char)c}, 2);
    else if (c >= 8 && c <= 13 && named[c - 8] != '\0')
        json_bytes(json, (char[]){'\\', named[c - 8]}, 2);
    else
        json_print(json, "\\u%04x", (unsigned)c);
}

void json_escaped(struct json *json, const char *text, size_t bytes)
{
    for (size_t i = 0; i < bytes;) {
        size_t run = plain(text + i, bytes - i);
        size_t sequence;

        if (run > 0) {
            json_bytes(json, text + i, run);
            i += run;
        } else if ((unsigned char)text[i] < 0x80) {
            escape(json, (unsigned char)text[i++]);
        } else if ((sequence = json_utf8(text + i, bytes - i)) > 0) {
            json_bytes(json, text + i, sequence);
            i += sequence;
        } else {
            json_raw(json, "\xef\xbf\xbd");
            i++;
        }
    }
}

void json_string(struct json *json, const char *text, size_t bytes)
{
    json_raw(json, "\"");
    json_escaped(json, text, bytes);
    json_raw(json, "\"");
}

void json_int(struct json *json, int64_t value)
{
    char digit[24];
    size_t first = sizeof digit;
    uint64_t rest = value < 0 ? 0 - (uint64_t)value : (uint64_t)value;

    do {
        digit[--first] = (char)('0' + rest % 10);
        rest /= 10;
    } while (rest > 0);
    if (value < 0)
        digit[--first] = '-';
    json_bytes(json, digit + first, sizeof digit - first);
}

void json_float(struct json *json, float value)
{
    char text[32];

    if (isnan(value)) {
        json_raw(json, "null");
        return;
    }
    if (isinf(value))
        value = value > 0 ? 3.4028235e38F : -3.4028235e38F;
    /* Seven digits are nearly always enough to find the float again, nine always. */
    for (int digits = 7; digits <= 9; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, (double)value);
        if (strtof(text, NULL) == value)
            break;
    }
    json_raw(json, text);
    if (strpbrk(text, ".e") == NULL)
        json_raw(json, ".0");
}

void json_bool(struct json *json, bool value)
{
    json_raw(json, value ? "true" : "false");
}

void json_ints(struct json *json, const int32_t *value, int32_t count)
{
    json_raw(json, "[");
    for (int32_t i = 0; i < count; i++) {
        if (i > 0)
            json_raw(json, ",");
        json_int(json, value[i]);
    }
    json_raw(json, "]");
}
