/* UTF-8, by the table of well-formed byte sequences of the Unicode standard (3.9, D92). */
#include "model/text/unicode.h"

#include <assert.h>
#include <string.h>

#include <utf8proc.h>

/* Bytes of the code point that `lead` begins, 0 if none; the range of its second byte. */
static size_t lead_bytes(unsigned char lead, unsigned char *least, unsigned char *greatest)
{
    *least = 0x80;
    *greatest = 0xBF;
    if (lead < 0x80)
        return 1;
    if (lead < 0xC2 || lead > 0xF4)
        return 0;
    if (lead < 0xE0)
        return 2;
    if (lead == 0xE0)
        *least = 0xA0; /* below: an overlong form */
    if (lead == 0xED)
        *greatest = 0x9F; /* above: a surrogate */
    if (lead == 0xF0)
        *least = 0x90;
    if (lead == 0xF4)
        *greatest = 0x8F; /* above: past U+10FFFF */
    return lead < 0xF0 ? 3 : 4;
}

enum unicode_form unicode_next(const char *text, size_t bytes, size_t *taken)
{
    assert(bytes > 0);
    unsigned char least, greatest;
    size_t want = lead_bytes((unsigned char)text[0], &least, &greatest);

    *taken = 1;
    if (want == 0)
        return UNICODE_BROKEN;
    while (*taken < want && *taken < bytes) {
        unsigned char next = (unsigned char)text[*taken];
        if (next < least || next > greatest)
            return UNICODE_BROKEN;
        least = 0x80;
        greatest = 0xBF;
        ++*taken;
    }
    return *taken == want ? UNICODE_COMPLETE : UNICODE_INCOMPLETE;
}

bool unicode_valid(const char *text, size_t bytes)
{
    size_t at = 0, taken;

    while (at < bytes) {
        if ((unsigned char)text[at] < 0x80) {
            at++;
            continue;
        }
        if (unicode_next(text + at, bytes - at, &taken) != UNICODE_COMPLETE)
            return false;
        at += taken;
    }
    return true;
}

size_t unicode_put_replacement(char *target)
{
    static const char replacement[UNICODE_REPLACEMENT_BYTES] = {'\xEF', '\xBF', '\xBD'};

    memcpy(target, replacement, sizeof(replacement));
    return sizeof(replacement);
}

int32_t unicode_at(const char *text, size_t bytes)
{
    const unsigned char *byte = (const unsigned char *)text;
    size_t taken;

    if (unicode_next(text, bytes, &taken) != UNICODE_COMPLETE)
        return -1;
    switch (taken) {
    case 1:
        return byte[0];
    case 2:
        return (byte[0] & 0x1F) << 6 | (byte[1] & 0x3F);
    case 3:
        return (byte[0] & 0x0F) << 12 | (byte[1] & 0x3F) << 6 | (byte[2] & 0x3F);
    default:
        return (byte[0] & 0x07) << 18 | (byte[1] & 0x3F) << 12 | (byte[2] & 0x3F) << 6 |
               (byte[3] & 0x3F);
    }
}

int32_t unicode_before(const char *text, size_t at)
{
    size_t first = at - 1;

    assert(at > 0);
    while (first > 0 && at - first < 4 && (text[first] & 0xC0) == 0x80)
        first--;
    size_t taken;
    if (unicode_next(text + first, at - first, &taken) != UNICODE_COMPLETE || taken != at - first)
        return -1;
    return unicode_at(text + first, at - first);
}

bool unicode_is_space(int32_t code)
{
    if (code >= 0 && code < 0x80)
        return code == ' ' || (code >= '\t' && code <= '\r');
    return code == 0x85 || code == 0xA0 || code == 0x1680 || (code >= 0x2000 && code <= 0x200A) ||
           code == 0x2028 || code == 0x2029 || code == 0x202F || code == 0x205F || code == 0x3000;
}

/* Letters in circles and squares: Alphabetic, although their category is "other symbol". */
static bool is_enclosed_letter(int32_t code)
{
    return (code >= 0x24B6 && code <= 0x24E9) || (code >= 0x1F130 && code <= 0x1F149) ||
           (code >= 0x1F150 && code <= 0x1F169) || (code >= 0x1F170 && code <= 0x1F189);
}

bool unicode_is_word(int32_t code)
{
    if (code < 0)
        return false;
    utf8proc_category_t category = utf8proc_category(code);
    if (category >= UTF8PROC_CATEGORY_LU && category <= UTF8PROC_CATEGORY_NL)
        return true; /* letters, marks, decimal digits, letter numbers, in this order */
    return category == UTF8PROC_CATEGORY_PC || is_enclosed_letter(code);
}

size_t unicode_put(char *target, int32_t code)
{
    utf8proc_ssize_t bytes = utf8proc_encode_char(code, (utf8proc_uint8_t *)target);

    assert(bytes > 0);
    return (size_t)bytes;
}
