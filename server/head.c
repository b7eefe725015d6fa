/* Judging the head of a request; see head.h. */
#include "server/head.h"

#include <string.h>
#include <strings.h>

enum { KEY_MAX = 512 }; /* keys are compared over this many bytes, whatever they are */

/* The characters of a header's name (RFC 9110, token). */
static bool name_good(const char *name, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++) {
        unsigned char c = (unsigned char)name[i];
        if (c <= 0x20 || c >= 0x7f || strchr("\"(),/:;<=>?@[\\]{}", c) != NULL)
            return false;
    }
    return bytes > 0;
}

static bool value_good(const char *value, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++) {
        unsigned char c = (unsigned char)value[i];
        if ((c < 0x20 && c != '\t') || c == 0x7f)
            return false;
    }
    return true;
}

static bool is(const struct head_field *field, const char *name)
{
    return field->name_bytes == strlen(name) &&
           strncasecmp(field->name, name, field->name_bytes) == 0;
}

static int32_t count(const struct head *head, const char *name)
{
    int32_t found = 0;

    for (int32_t i = 0; i < head->field_count; i++)
        found += is(&head->field[i], name);
    return found;
}

const char *head_value(const struct head *head, const char *name)
{
    const char *value = NULL;

    if (head->field_count > HEAD_FIELD_MAX || count(head, name) != 1)
        return NULL;
    for (int32_t i = 0; i < head->field_count; i++) {
        if (is(&head->field[i], name))
            value = head->field[i].value;
    }
    return value;
}

int64_t head_body_bytes(const struct head *head)
{
    const char *text = head_value(head, "Content-Length");
    int64_t bytes = 0;

    if (text == NULL || text[0] == '\0' || strlen(text) > 18 ||
        strspn(text, "0123456789") != strlen(text))
        return -1;
    for (; *text != '\0'; text++)
        bytes = bytes * 10 + (*text - '0');
    return bytes;
}

static const char *framing_fault(const struct head *head)
{
    int32_t lengths = count(head, "Content-Length");
    int32_t codings = count(head, "Transfer-Encoding");

    if (lengths > 1)
        return "more than one Content-Length";
    if (codings > 1)
        return "more than one Transfer-Encoding";
    if (lengths + codings > 1)
        return "both Content-Length and Transfer-Encoding";
    if (lengths == 1 && head_body_bytes(head) < 0)
        return "Content-Length is not a number";
    if (codings == 1 && strcasecmp(head_value(head, "Transfer-Encoding"), "chunked") != 0)
        return "the Transfer-Encoding is not chunked";
    return NULL;
}

const char *head_fault(const struct head *head)
{
    int32_t hosts;

    if (head->field_count > HEAD_FIELD_MAX)
        return "too many headers";
    for (int32_t i = 0; i < head->field_count; i++) {
        const struct head_field *field = &head->field[i];
        if (!name_good(field->name, field->name_bytes))
            return "a header's name holds a character that it must not";
        if (!value_good(field->value, field->value_bytes))
            return "a header's value holds a control character";
    }
    hosts = count(head, "Host");
    if (hosts > 1)
        return "more than one Host";
    if (hosts == 0 && strcmp(head->version, "HTTP/1.0") != 0)
        return "no Host";
    if (head->path[0] != '/' &&
        !(strcmp(head->method, "OPTIONS") == 0 && strcmp(head->path, "*") == 0))
        return "the target is not a path";
    return framing_fault(head);
}

bool head_media_good(const struct head *head)
{
    static const char json[] = "application/json";
    const char *type = head_value(head, "Content-Type");

    if (type == NULL)
        return count(head, "Content-Type") == 0 && count(head, "Origin") == 0;
    if (strncasecmp(type, json, sizeof json - 1) != 0)
        return false;
    type += sizeof json - 1;
    type += strspn(type, " \t");
    return *type == '\0' || *type == ';';
}

/* Compares KEY_MAX bytes of both, zeros behind their ends. */
static bool same(const char padded[KEY_MAX], const char *key)
{
    char other[KEY_MAX] = {0};
    volatile unsigned char difference = 0;
    size_t bytes = strlen(key);

    if (bytes == 0 || bytes > KEY_MAX)
        return false;
    memcpy(other, key, bytes);
    for (size_t i = 0; i < KEY_MAX; i++)
        difference = (unsigned char)(difference | (unsigned char)(padded[i] ^ other[i]));
    return difference == 0;
}

bool head_key_good(const struct head *head, const struct config_list *key)
{
    const char *text = head_value(head, "Authorization");
    char padded[KEY_MAX] = {0};
    bool good = false;

    if (text == NULL || strncasecmp(text, "Bearer ", 7) != 0)
        return false;
    text += 7;
    size_t bytes = strlen(text);
    if (bytes == 0 || bytes > KEY_MAX)
        return false;
    memcpy(padded, text, bytes);
    for (int32_t i = 0; i < key->count; i++)
        good |= same(padded, key->item[i]); /* all of them: which one matched shows in no time */
    return good;
}

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    c = (char)(c | 0x20);
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

size_t head_unescape(char *text)
{
    char *to = text;

    for (const char *from = text; *from != '\0'; from++) {
        int high = from[0] == '%' ? hex_digit(from[1]) : -1;
        int low = high >= 0 ? hex_digit(from[2]) : -1;
        if (low < 0 || high * 16 + low == 0) {
            *to++ = *from;
            continue;
        }
        *to++ = (char)(high * 16 + low);
        from += 2;
    }
    *to = '\0';
    return (size_t)(to - text);
}

bool head_id_good(const char *id)
{
    size_t bytes = id == NULL ? 0 : strlen(id);

    return bytes >= 1 && bytes <= HEAD_ID_MAX &&
           strspn(id, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.:") ==
               bytes;
}
