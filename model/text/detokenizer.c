/* Tokens to text, one at a time: see detokenizer.h for what is held back and why. */
#include "model/text/detokenizer.h"

#include "model/text/spm.h"
#include "model/text/tokenizer_kind.h"
#include "model/text/unicode.h"

#include <assert.h>
#include <string.h>

/* What one token brings out of the held bytes, before its own. */
struct release {
    size_t bytes;
    char text[4 * UNICODE_REPLACEMENT_BYTES];
};

void detokenizer_init(struct detokenizer *detokenizer, const struct tokenizer *tokenizer,
                      bool skip_special)
{
    *detokenizer = (struct detokenizer){.tokenizer = tokenizer, .skip_special = skip_special};
}

void detokenizer_continue(struct detokenizer *detokenizer)
{
    detokenizer->started = true;
}

bool detokenizer_holds(const struct detokenizer *detokenizer)
{
    return detokenizer->held_count > 0;
}

static void release_broken(struct detokenizer *detokenizer, struct release *release)
{
    for (int32_t i = 0; i < detokenizer->held_count; i++)
        release->bytes += unicode_put_replacement(release->text + release->bytes);
    detokenizer->held_count = 0;
}

static void take_byte(struct detokenizer *detokenizer, char byte, struct release *release)
{
    size_t taken;

    assert(detokenizer->held_count < (int32_t)sizeof(detokenizer->held));
    detokenizer->held[detokenizer->held_count++] = byte;
    if (detokenizer->broken) {
        release_broken(detokenizer, release);
        return;
    }
    switch (unicode_next(detokenizer->held, (size_t)detokenizer->held_count, &taken)) {
    case UNICODE_INCOMPLETE:
        return;
    case UNICODE_COMPLETE:
        memcpy(release->text, detokenizer->held, taken);
        release->bytes = taken;
        detokenizer->held_count = 0;
        return;
    case UNICODE_BROKEN:
        detokenizer->broken = true;
        release_broken(detokenizer, release);
        return;
    }
}

/* Appends; the first text of all loses the space that encoding put before it. */
static void append(struct detokenizer *detokenizer, char *text, size_t *text_bytes,
                   const char *more, size_t more_bytes)
{
    if (more_bytes == 0)
        return;
    if (!detokenizer->started && detokenizer->tokenizer->space_prefix && more[0] == ' ') {
        more++;
        more_bytes--;
    }
    detokenizer->started = true;
    memmove(text + *text_bytes, more, more_bytes);
    *text_bytes += more_bytes;
}

/* ---- all tokens are one stream of bytes ---- */

/* raw[0 ... bytes - 1] as text, at `text` unless it is NULL; how many bytes of text that is.
 * *rest: what is not complete at the end. */
static size_t stream_text(const char *raw, size_t bytes, char *text, size_t *rest)
{
    size_t at = 0, count = 0, taken;

    for (*rest = 0; at < bytes; at += taken) {
        enum unicode_form form = unicode_next(raw + at, bytes - at, &taken);
        if (form == UNICODE_INCOMPLETE) {
            *rest = bytes - at;
            break;
        }
        if (form == UNICODE_BROKEN) {
            if (text != NULL)
                unicode_put_replacement(text + count);
            count += UNICODE_REPLACEMENT_BYTES;
            continue;
        }
        if (text != NULL)
            memcpy(text + count, raw + at, taken);
        count += taken;
    }
    return count;
}

static bool put_stream(struct detokenizer *detokenizer, int32_t token, char *text,
                       size_t *text_bytes, size_t max)
{
    char raw[sizeof(detokenizer->held) + SPM_SPELLING_MAX];
    size_t held = (size_t)detokenizer->held_count, rest;

    memcpy(raw, detokenizer->held, held);
    size_t bytes =
        held + tokenizer_bytes(detokenizer->tokenizer, token, raw + held, SPM_SPELLING_MAX);
    assert(bytes <= held + SPM_SPELLING_MAX);
    if (stream_text(raw, bytes, NULL, &rest) > max - *text_bytes)
        return false;
    *text_bytes += stream_text(raw, bytes, text + *text_bytes, &rest);
    assert(rest < sizeof(detokenizer->held));
    memcpy(detokenizer->held, raw + bytes - rest, rest);
    detokenizer->held_count = (int32_t)rest;
    return true;
}

/* The beginning of one character, if any: one ill-formed part. */
static bool end_stream(struct detokenizer *detokenizer, char *text, size_t *text_bytes, size_t max)
{
    if (detokenizer->held_count == 0)
        return true;
    if (max - *text_bytes < UNICODE_REPLACEMENT_BYTES)
        return false;
    *text_bytes += unicode_put_replacement(text + *text_bytes);
    detokenizer->held_count = 0;
    return true;
}

/* ---- one token ---- */

bool detokenizer_put(struct detokenizer *detokenizer, int32_t token, char *text, size_t *text_bytes,
                     size_t max)
{
    const struct tokenizer *tokenizer = detokenizer->tokenizer;
    struct detokenizer next = *detokenizer;
    struct release release = {0};
    size_t own_bytes = 0;

    if (token < 0 || token >= tokenizer_count(tokenizer))
        return true;
    enum token_kind kind = tokenizer_kind(tokenizer, token);
    if (detokenizer->skip_special && (kind == TOKEN_CONTROL || kind == TOKEN_UNKNOWN))
        return true;
    if (tokenizer->byte_stream)
        return put_stream(detokenizer, token, text, text_bytes, max);
    if (kind == TOKEN_BYTE) {
        char byte = 0;
        tokenizer_bytes(tokenizer, token, &byte, 1);
        take_byte(&next, byte, &release);
    } else {
        release_broken(&next, &release);
        next.broken = false;
        own_bytes = tokenizer_bytes(tokenizer, token, NULL, 0);
    }
    if (release.bytes + own_bytes > max - *text_bytes)
        return false;
    append(&next, text, text_bytes, release.text, release.bytes);
    if (own_bytes > 0) {
        char *own = text + *text_bytes;
        tokenizer_bytes(tokenizer, token, own, own_bytes);
        append(&next, text, text_bytes, own, own_bytes);
    }
    *detokenizer = next;
    return true;
}

bool detokenizer_end(struct detokenizer *detokenizer, char *text, size_t *text_bytes, size_t max)
{
    struct release release = {0};

    if (detokenizer->tokenizer->byte_stream)
        return end_stream(detokenizer, text, text_bytes, max);
    if ((size_t)detokenizer->held_count * UNICODE_REPLACEMENT_BYTES > max - *text_bytes)
        return false;
    release_broken(detokenizer, &release);
    detokenizer->broken = false;
    append(detokenizer, text, text_bytes, release.text, release.bytes);
    return true;
}
