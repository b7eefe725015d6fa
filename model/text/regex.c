/* PCRE2 behind a small door, and the translation of patterns to its dialect.
 *
 * The classes \s and \w are written out, because PCRE2 counts U+180E as a space and neither marks
 * nor connectors as word characters, where Oniguruma follows Unicode. Compiled to machine code
 * where that is allowed; the interpreter does the same where it is not, or where the
 * 32 KiB of stack that machine code gets are too small.
 */
#include "model/text/regex.h"

#include <assert.h>
#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

enum {
    PATTERN_BYTES_MAX = 1 << 16,
    MATCH_STEPS_MAX = 50 * 1000 * 1000, /* of one search; a text is one search a piece */
    MATCH_HEAP_KIB_MAX = 256 * 1024,
};

struct regex {
    pcre2_code *code;
    bool fast; /* there is machine code */
};

struct regex_scratch {
    pcre2_match_data *match;
    pcre2_match_context *context;
};

/* ---- translation ---- */

static const char space_class[] = "\\t-\\r \\x{85}\\p{Z}";
static const char word_class[] = "\\p{L}\\p{M}\\p{Nd}\\p{Nl}\\p{Pc}\\x{24B6}-\\x{24E9}"
                                 "\\x{1F130}-\\x{1F149}\\x{1F150}-\\x{1F169}\\x{1F170}-\\x{1F189}";

struct translation {
    char *target;
    size_t count, max;
    int depth;   /* of brackets */
    bool opened; /* right after one, or after its "^" */
};

static void put(struct translation *translation, const char *text, size_t bytes)
{
    assert(bytes <= translation->max - translation->count);
    memcpy(translation->target + translation->count, text, bytes);
    translation->count += bytes;
}

static void put_text(struct translation *translation, const char *text)
{
    put(translation, text, strlen(text));
}

/* A class that stands for a backslash and a letter; NULL: PCRE2 knows the same. */
static const char *class_of(char letter)
{
    switch (letter) {
    case 's':
    case 'S':
        return space_class;
    case 'w':
    case 'W':
        return word_class;
    default:
        return NULL;
    }
}

/* After the backslash. False: the dialects differ. */
static bool put_escape(struct translation *translation, char letter)
{
    const char *class = class_of(letter);
    bool negated = letter == 'S' || letter == 'W';

    if (class == NULL) {
        put(translation, "\\", 1);
        put(translation, &letter, 1);
        return strchr("bBhHRXKOyYgGkCQEN", letter) == NULL || letter == '\0';
    }
    if (translation->depth > 0) {
        put_text(translation, negated ? "" : class);
        return !negated; /* no way to write it inside of a class */
    }
    put_text(translation, negated ? "[^" : "[");
    put_text(translation, class);
    put_text(translation, "]");
    return true;
}

/* A byte of a class that is no escape. A class in a class is a union in Oniguruma and is
 * flattened here; intersections, complements in classes and named classes are its own. */
static bool put_in_class(struct translation *translation, char byte, char next)
{
    bool opened = translation->opened;

    translation->opened = opened && byte == '^';
    if ((byte == ']' && opened) || (byte == '&' && next == '&'))
        return false;
    if (byte == '[') {
        translation->depth++;
        translation->opened = true;
        return next != '^' && next != ':';
    }
    if (byte == ']' && --translation->depth > 0)
        return true;
    put(translation, &byte, 1);
    return true;
}

static bool translate(struct translation *translation, const char *pattern, size_t bytes)
{
    for (size_t at = 0; at < bytes; at++) {
        char byte = pattern[at], next = at + 1 < bytes ? pattern[at + 1] : '\0';
        if (byte == '\\' && at + 1 < bytes) {
            translation->opened = false;
            if (!put_escape(translation, next))
                return false;
            at++;
            continue;
        }
        if (translation->depth > 0) {
            if (!put_in_class(translation, byte, next))
                return false;
            continue;
        }
        if (byte == '[')
            translation->opened = ++translation->depth > 0;
        put(translation, &byte, 1);
    }
    return true;
}

/* ---- making one ---- */

static struct regex *compile(const char *pattern, size_t bytes, uint32_t options, char *error,
                             size_t error_bytes)
{
    int code;
    size_t at;
    struct regex *regex = calloc(1, sizeof(*regex));

    if (regex == NULL) {
        snprintf(error, error_bytes, "out of memory");
        return NULL;
    }
    regex->code = pcre2_compile((PCRE2_SPTR)pattern, bytes, options, &code, &at, NULL);
    if (regex->code == NULL) {
        char reason[160] = "";
        pcre2_get_error_message(code, (PCRE2_UCHAR *)reason, sizeof(reason));
        snprintf(error, error_bytes, "%s, at byte %zu of the pattern", reason, at);
        free(regex);
        return NULL;
    }
    regex->fast = pcre2_jit_compile(regex->code, PCRE2_JIT_COMPLETE) == 0;
    return regex;
}

struct regex *regex_create(const char *pattern, size_t bytes, char *error, size_t error_bytes)
{
    if (bytes == 0 || bytes > PATTERN_BYTES_MAX) {
        snprintf(error, error_bytes, "a pattern of %zu bytes, not 1 to %d", bytes,
                 PATTERN_BYTES_MAX);
        return NULL;
    }
    size_t longest = sizeof(word_class) + 4; /* for the two bytes of an escape */
    struct translation translation = {.max = bytes * longest};
    translation.target = malloc(translation.max);
    if (translation.target == NULL) {
        snprintf(error, error_bytes, "out of memory");
        return NULL;
    }
    struct regex *regex = NULL;
    if (translate(&translation, pattern, bytes))
        regex = compile(translation.target, translation.count,
                        PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C, error, error_bytes);
    else
        snprintf(error, error_bytes, "the pattern uses what Oniguruma and PCRE2 read differently");
    free(translation.target);
    return regex;
}

struct regex *regex_create_plain(const char *text, size_t bytes, char *error, size_t error_bytes)
{
    if (bytes == 0 || bytes > PATTERN_BYTES_MAX) {
        snprintf(error, error_bytes, "a pattern of %zu bytes, not 1 to %d", bytes,
                 PATTERN_BYTES_MAX);
        return NULL;
    }
    return compile(text, bytes, PCRE2_UTF | PCRE2_LITERAL, error, error_bytes);
}

void regex_destroy(struct regex *regex)
{
    if (regex == NULL)
        return;
    pcre2_code_free(regex->code);
    free(regex);
}

/* ---- searching ---- */

struct regex_scratch *regex_scratch_create(void)
{
    struct regex_scratch *scratch = calloc(1, sizeof(*scratch));

    if (scratch == NULL)
        return NULL;
    scratch->match = pcre2_match_data_create(1, NULL);
    scratch->context = pcre2_match_context_create(NULL);
    if (scratch->match == NULL || scratch->context == NULL) {
        regex_scratch_destroy(scratch);
        return NULL;
    }
    pcre2_set_match_limit(scratch->context, MATCH_STEPS_MAX);
    pcre2_set_heap_limit(scratch->context, MATCH_HEAP_KIB_MAX);
    return scratch;
}

void regex_scratch_destroy(struct regex_scratch *scratch)
{
    if (scratch == NULL)
        return;
    pcre2_match_data_free(scratch->match);
    pcre2_match_context_free(scratch->context);
    free(scratch);
}

static int search(const struct regex *regex, struct regex_scratch *scratch, const char *text,
                  size_t bytes, size_t from)
{
    PCRE2_SPTR subject = (PCRE2_SPTR)text;
    int result = PCRE2_ERROR_JIT_STACKLIMIT;

    if (regex->fast)
        result = pcre2_jit_match(regex->code, subject, bytes, from, PCRE2_NOTEMPTY, scratch->match,
                                 scratch->context);
    if (result == PCRE2_ERROR_JIT_STACKLIMIT)
        result = pcre2_match(regex->code, subject, bytes, from,
                             PCRE2_NO_UTF_CHECK | PCRE2_NOTEMPTY | PCRE2_NO_JIT, scratch->match,
                             scratch->context);
    return result;
}

int regex_next(const struct regex *regex, struct regex_scratch *scratch, const char *text,
               size_t bytes, size_t from, size_t *first, size_t *final)
{
    int result = search(regex, scratch, text, bytes, from);

    if (result == PCRE2_ERROR_NOMATCH)
        return 0;
    if (result == PCRE2_ERROR_NOMEMORY)
        return -ENOMEM;
    if (result < 0)
        return -EOVERFLOW;
    const size_t *bound = pcre2_get_ovector_pointer(scratch->match);
    *first = bound[0];
    *final = bound[1];
    /* \K, which could move the start past the end, is not translated. */
    assert(*first >= from && *first < *final && *final <= bytes);
    return 1;
}
