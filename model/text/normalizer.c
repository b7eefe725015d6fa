/* Normal forms and the small changes.
 *
 * utf8proc's tables are used, its ordering of combining marks is not: it is an insertion sort, so
 * that a text of marks alone would cost the square of its length.
 */
#include "model/text/normalizer.h"

#include "model/text/unicode.h"

#include <assert.h>
#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <utf8proc.h>

enum { TEXT_BYTES_MAX = INT32_MAX / 4 };

/* A text that grows. */
struct growing {
    char *text;
    size_t bytes, max;
};

static int grow(struct growing *growing, size_t more)
{
    if (more <= growing->max - growing->bytes)
        return 0;
    if (more > TEXT_BYTES_MAX || growing->bytes > TEXT_BYTES_MAX - more)
        return -EFBIG;
    size_t max = growing->max + growing->max / 2 + more;
    assert(max >= more && max > growing->max);
    char *grown = realloc(growing->text, max);
    if (grown == NULL)
        return -ENOMEM;
    growing->text = grown;
    growing->max = max;
    return 0;
}

static int append(struct growing *growing, const char *text, size_t bytes)
{
    int result = grow(growing, bytes);

    if (result != 0 || bytes == 0)
        return result;
    assert(growing->text != NULL);
    memcpy(growing->text + growing->bytes, text, bytes);
    growing->bytes += bytes;
    return 0;
}

static int append_code(struct growing *growing, int32_t code)
{
    char byte[4] = "";
    size_t bytes = unicode_put(byte, code);

    return append(growing, byte, bytes);
}

/* ---- normal forms ---- */

struct codes {
    int32_t *code;
    size_t count, max;
};

static int decompose_one(struct codes *codes, int32_t code, utf8proc_option_t options)
{
    enum { DECOMPOSED_MAX = 32 }; /* the longest of all is 18 */
    int last_class = 0;

    if (codes->max - codes->count < DECOMPOSED_MAX) {
        size_t max = codes->max + codes->max / 2 + 256;
        int32_t *grown = realloc(codes->code, max * sizeof(*grown));
        if (grown == NULL)
            return -ENOMEM;
        codes->code = grown;
        codes->max = max;
    }
    utf8proc_ssize_t count = utf8proc_decompose_char(code, codes->code + codes->count,
                                                     DECOMPOSED_MAX, options, &last_class);
    assert(count >= 0 && count <= DECOMPOSED_MAX);
    codes->count += (size_t)count;
    return 0;
}

static int class_of(int32_t code)
{
    return code < 0x300 ? 0 : utf8proc_get_property(code)->combining_class;
}

/* A run of combining marks into the order of their classes, equal ones as they stand. Counting
 * sort: classes are below 256. */
static int order_marks(int32_t *mark, size_t count)
{
    size_t first[257] = {0};
    int32_t *sorted = malloc(count * sizeof(*sorted));

    if (sorted == NULL)
        return -ENOMEM;
    for (size_t i = 0; i < count; i++)
        first[class_of(mark[i]) + 1]++;
    for (int class = 0; class < 256; class ++)
        first[class + 1] += first[class];
    for (size_t i = 0; i < count; i++)
        sorted[first[class_of(mark[i])]++] = mark[i];
    memcpy(mark, sorted, count * sizeof(*sorted));
    free(sorted);
    return 0;
}

static int order_all(struct codes *codes)
{
    size_t run = 0; /* marks before i */
    bool ordered = true;

    for (size_t i = 0; i <= codes->count; i++) {
        int class = i < codes->count ? class_of(codes->code[i]) : 0;
        if (class != 0) {
            ordered = ordered && (run == 0 || class_of(codes->code[i - 1]) <= class);
            run++;
            continue;
        }
        if (!ordered && order_marks(codes->code + i - run, run) != 0)
            return -ENOMEM;
        run = 0;
        ordered = true;
    }
    return 0;
}

static int put_form(struct growing *growing, struct codes *codes, utf8proc_option_t options)
{
    int result = order_all(codes);

    if (result == 0 && (options & UTF8PROC_COMPOSE) != 0) {
        utf8proc_ssize_t count = utf8proc_normalize_utf32(
            codes->code, (utf8proc_ssize_t)codes->count, UTF8PROC_STABLE | UTF8PROC_COMPOSE);
        assert(count >= 0);
        codes->count = (size_t)count;
    }
    for (size_t i = 0; result == 0 && i < codes->count; i++)
        result = append_code(growing, codes->code[i]);
    codes->count = 0;
    return result;
}

/* Code points that no form changes and that nothing before them joins to. */
static bool is_inert(int32_t code)
{
    return code < 0x80;
}

/* Inert stretches are copied; what is between two inert ones is put into the form on its own,
 * with the inert one before it, which a mark may join to. */
static int run_form(const char *text, size_t bytes, utf8proc_option_t options,
                    struct growing *growing)
{
    struct codes codes = {0};
    int result = 0;
    size_t taken;

    for (size_t at = 0; result == 0 && at < bytes;) {
        size_t first = at;
        while (at < bytes && is_inert((unsigned char)text[at]))
            at++;
        size_t kept = at > first && at < bytes ? at - 1 : at;
        result = append(growing, text + first, kept - first);
        for (at = kept; result == 0 && at < bytes; at += taken) {
            if (at > kept && is_inert((unsigned char)text[at]))
                break;
            int32_t code = unicode_at(text + at, bytes - at);
            assert(code >= 0);
            unicode_next(text + at, bytes - at, &taken);
            result = decompose_one(&codes, code, options);
        }
        if (result == 0)
            result = put_form(growing, &codes, options);
    }
    free(codes.code);
    return result;
}

/* ---- small changes ---- */

static int run_lowercase(const char *text, size_t bytes, struct growing *growing)
{
    int result = 0;
    size_t taken;

    for (size_t at = 0; result == 0 && at < bytes; at += taken) {
        int32_t code = unicode_at(text + at, bytes - at);
        unicode_next(text + at, bytes - at, &taken);
        if (code == 0x130) /* the one letter whose lower case is two code points */
            result = append(growing, "i\xCC\x87", 3);
        else
            result = append_code(growing, utf8proc_tolower(code));
    }
    return result;
}

static int run_strip_accents(const char *text, size_t bytes, struct growing *growing)
{
    int result = 0;
    size_t taken;

    for (size_t at = 0; result == 0 && at < bytes; at += taken) {
        int32_t code = unicode_at(text + at, bytes - at);
        unicode_next(text + at, bytes - at, &taken);
        if (utf8proc_category(code) != UTF8PROC_CATEGORY_MN)
            result = append(growing, text + at, taken);
    }
    return result;
}

static int run_strip(const struct normalizer_step *step, const char *text, size_t bytes,
                     struct growing *growing)
{
    size_t first = 0, taken;

    while (step->left && first < bytes &&
           unicode_is_space(unicode_at(text + first, bytes - first))) {
        unicode_next(text + first, bytes - first, &taken);
        first += taken;
    }
    while (step->right && bytes > first && unicode_is_space(unicode_before(text, bytes))) {
        do
            bytes--;
        while (bytes > first && (text[bytes] & 0xC0) == 0x80);
    }
    return append(growing, text + first, bytes - first);
}

static int run_replace(const struct normalizer_step *step, struct regex_scratch *scratch,
                       const char *text, size_t bytes, struct growing *growing)
{
    size_t at = 0, first, final;
    int found;

    while ((found = regex_next(step->regex, scratch, text, bytes, at, &first, &final)) == 1) {
        int result = append(growing, text + at, first - at);
        if (result == 0)
            result = append(growing, step->content, step->content_bytes);
        if (result != 0)
            return result;
        at = final;
    }
    return found < 0 ? found : append(growing, text + at, bytes - at);
}

static int run_prepend(const struct normalizer_step *step, const char *text, size_t bytes,
                       struct growing *growing)
{
    int result = bytes == 0 ? 0 : append(growing, step->content, step->content_bytes);

    return result != 0 ? result : append(growing, text, bytes);
}

static int run_step(const struct normalizer_step *step, struct regex_scratch *scratch,
                    const char *text, size_t bytes, struct growing *growing)
{
    switch (step->kind) {
    case NORMALIZE_NFC:
        return run_form(text, bytes, UTF8PROC_STABLE | UTF8PROC_DECOMPOSE | UTF8PROC_COMPOSE,
                        growing);
    case NORMALIZE_NFD:
        return run_form(text, bytes, UTF8PROC_STABLE | UTF8PROC_DECOMPOSE, growing);
    case NORMALIZE_NFKC:
        return run_form(text, bytes,
                        UTF8PROC_STABLE | UTF8PROC_DECOMPOSE | UTF8PROC_COMPOSE | UTF8PROC_COMPAT,
                        growing);
    case NORMALIZE_NFKD:
        return run_form(text, bytes, UTF8PROC_STABLE | UTF8PROC_DECOMPOSE | UTF8PROC_COMPAT,
                        growing);
    case NORMALIZE_LOWERCASE:
        return run_lowercase(text, bytes, growing);
    case NORMALIZE_STRIP_ACCENTS:
        return run_strip_accents(text, bytes, growing);
    case NORMALIZE_STRIP:
        return run_strip(step, text, bytes, growing);
    case NORMALIZE_REPLACE:
        return run_replace(step, scratch, text, bytes, growing);
    case NORMALIZE_PREPEND:
        return run_prepend(step, text, bytes, growing);
    }
    return 0;
}

static bool is_ascii(const char *text, size_t bytes)
{
    size_t at = 0;

    for (; at + 8 <= bytes; at += 8) {
        uint64_t word;
        memcpy(&word, text + at, sizeof(word));
        if ((word & UINT64_C(0x8080808080808080)) != 0)
            return false;
    }
    while (at < bytes && (unsigned char)text[at] < 0x80)
        at++;
    return at == bytes;
}

/* Whether the step is known to leave the text as it is. */
static bool leaves(const struct normalizer_step *step, const char *text, size_t bytes)
{
    switch (step->kind) {
    case NORMALIZE_NFC:
    case NORMALIZE_NFD:
    case NORMALIZE_NFKC:
    case NORMALIZE_NFKD:
    case NORMALIZE_STRIP_ACCENTS:
        return is_ascii(text, bytes);
    default:
        return bytes == 0;
    }
}

int normalizer_run(const struct normalizer *normalizer, struct regex_scratch *scratch,
                   const char *text, size_t bytes, struct normalized *normalized)
{
    *normalized = (struct normalized){.text = text, .bytes = bytes};
    for (int i = 0; i < normalizer->step_count; i++) {
        const struct normalizer_step *step = &normalizer->step[i];
        struct growing growing = {0};
        if (leaves(step, normalized->text, normalized->bytes))
            continue;
        int result = grow(&growing, normalized->bytes + 64);
        if (result == 0)
            result = run_step(step, scratch, normalized->text, normalized->bytes, &growing);
        free(normalized->memory);
        if (result != 0) {
            free(growing.text);
            *normalized = (struct normalized){0};
            return result;
        }
        normalized->text = normalized->memory = growing.text;
        normalized->bytes = growing.bytes;
    }
    return 0;
}

void normalizer_release(struct normalizer *normalizer)
{
    for (int i = 0; i < normalizer->step_count; i++) {
        regex_destroy(normalizer->step[i].regex);
        free(normalizer->step[i].content);
    }
    normalizer->step_count = 0;
}
