/* UTF-8, by the table of well-formed byte sequences of the Unicode standard (3.9, D92). */
#include "model/text/unicode.h"

#include <assert.h>
#include <string.h>

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
