/* The steps that cut a text into pieces. Every step is one pass over the text. */
#include "model/text/splitter.h"

#include "model/text/unicode.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include <utf8proc.h>

/* One call of one step: the piece that is being cut and where its parts go. */
struct cutting {
    const struct splitter_step *step;
    struct regex_scratch *scratch;
    const char *text;
    struct piece_list *list;
    size_t list_first; /* parts of this piece begin here */
    bool after_match;  /* the last part was one */
};

static int add_piece(struct piece_list *list, size_t first, size_t final)
{
    if (list->count == list->max) {
        size_t max = list->max + list->max / 2 + 256;
        struct piece *grown = realloc(list->piece, max * sizeof(*grown));
        if (grown == NULL)
            return -ENOMEM;
        list->piece = grown;
        list->max = max;
    }
    list->piece[list->count++] =
        (struct piece){.first = (uint32_t)first, .final = (uint32_t) final};
    return 0;
}

/* Whether this part goes to the one before. MERGED_WITH_NEXT is the mirror of _PREVIOUS: of n
 * matches in a row, the last goes to what follows, and the others stand alone. */
static bool joins(const struct cutting *cutting, bool match)
{
    if (cutting->list->count == cutting->list_first)
        return false;
    switch (cutting->step->behavior) {
    case SPLIT_CONTIGUOUS:
        return match == cutting->after_match;
    case SPLIT_MERGED_WITH_PREVIOUS:
        return match && !cutting->after_match;
    case SPLIT_MERGED_WITH_NEXT:
        return !match && cutting->after_match;
    case SPLIT_ISOLATED:
    case SPLIT_REMOVED:
        break;
    }
    return false;
}

/* The next part of the piece, a match or what stands between matches. */
static int add_part(struct cutting *cutting, size_t first, size_t final, bool match)
{
    struct piece_list *list = cutting->list;

    if (first == final)
        return 0;
    match = match != cutting->step->invert;
    bool join = joins(cutting, match);
    cutting->after_match = match;
    if (match && cutting->step->behavior == SPLIT_REMOVED)
        return 0;
    if (!join)
        return add_piece(list, first, final);
    list->piece[list->count - 1].final = (uint32_t) final;
    return 0;
}

/* A pattern sees one piece and nothing before it. */
static int cut_pattern(struct cutting *cutting, struct piece piece)
{
    const char *text = cutting->text + piece.first;
    size_t bytes = piece.final - piece.first, at = 0, first, final;
    int found;

    while (at < bytes && (found = regex_next(cutting->step->regex, cutting->scratch, text, bytes,
                                             at, &first, &final)) != 0) {
        if (found < 0)
            return found;
        int result = add_part(cutting, piece.first + at, piece.first + first, false);
        if (result == 0)
            result = add_part(cutting, piece.first + first, piece.first + final, true);
        if (result != 0)
            return result;
        at = final;
    }
    return add_part(cutting, piece.first + at, piece.final, false);
}

/* ---- digits and spaces ---- */

static bool is_number(int32_t code)
{
    utf8proc_category_t category = utf8proc_category(code);

    return category == UTF8PROC_CATEGORY_ND || category == UTF8PROC_CATEGORY_NL ||
           category == UTF8PROC_CATEGORY_NO;
}

/* Each digit or space is a match of its own; the behaviour may join them. */
static int cut_characters(struct cutting *cutting, struct piece piece)
{
    size_t taken, rest = piece.first;
    int result = 0;

    for (size_t at = piece.first; result == 0 && at < piece.final; at += taken) {
        int32_t code = unicode_at(cutting->text + at, piece.final - at);
        unicode_next(cutting->text + at, piece.final - at, &taken);
        bool match = cutting->step->kind == SPLIT_DIGITS ? is_number(code) : unicode_is_space(code);
        if (!match)
            continue;
        result = add_part(cutting, rest, at, false);
        if (result == 0)
            result = add_part(cutting, at, at + taken, true);
        rest = at + taken;
    }
    return result != 0 ? result : add_part(cutting, rest, piece.final, false);
}

static int cut(const struct splitter_step *step, struct regex_scratch *scratch,
               struct pieces *pieces)
{
    struct cutting cutting = {
        .step = step, .scratch = scratch, .text = pieces->text, .list = &pieces->next};

    pieces->next.count = 0;
    for (size_t i = 0; i < pieces->now.count; i++) {
        cutting.list_first = pieces->next.count;
        cutting.after_match = false;
        int result = step->kind == SPLIT_PATTERN ? cut_pattern(&cutting, pieces->now.piece[i])
                                                 : cut_characters(&cutting, pieces->now.piece[i]);
        if (result != 0)
            return result;
    }
    return 0;
}

/* ---- steps that change the text ---- */

static bool starts_with(const struct splitter_step *step, const char *text, size_t bytes)
{
    return bytes >= step->content_bytes && memcmp(text, step->content, step->content_bytes) == 0;
}

/* Bytes of all pieces once the step has changed them; at least as many as before. */
static size_t changed_bytes(const struct splitter_step *step, const struct pieces *pieces)
{
    size_t bytes = 0;

    for (size_t i = 0; i < pieces->now.count; i++) {
        struct piece piece = pieces->now.piece[i];
        bytes += piece.final - piece.first;
        if (step->kind == SPLIT_PREFIX)
            bytes += step->content_bytes;
        for (size_t at = piece.first; step->kind == SPLIT_MARK && at < piece.final; at++)
            bytes += pieces->text[at] == ' ' ? step->content_bytes : 0;
    }
    return bytes;
}

static size_t change_piece(const struct splitter_step *step, bool prefix, const char *text,
                           size_t bytes, char *target)
{
    size_t count = 0;

    if (prefix && !starts_with(step, text, bytes)) {
        memcpy(target, step->content, step->content_bytes);
        count = step->content_bytes;
    }
    if (step->kind == SPLIT_PREFIX) {
        memcpy(target + count, text, bytes);
        return count + bytes;
    }
    for (size_t at = 0; at < bytes; at++) {
        if (text[at] != ' ') {
            target[count++] = text[at];
            continue;
        }
        memcpy(target + count, step->content, step->content_bytes);
        count += step->content_bytes;
    }
    return count;
}

static int change(const struct splitter_step *step, bool begins, struct pieces *pieces)
{
    size_t bytes = changed_bytes(step, pieces), at = 0;

    if (bytes > INT32_MAX)
        return -EFBIG;
    char *memory = malloc(bytes + 1);
    if (memory == NULL)
        return -ENOMEM;
    pieces->next.count = 0;
    for (size_t i = 0; i < pieces->now.count; i++) {
        struct piece piece = pieces->now.piece[i];
        bool prefix = step->kind == SPLIT_PREFIX && (!step->begins || (begins && piece.first == 0));
        size_t first = at;
        at += change_piece(step, prefix, pieces->text + piece.first, piece.final - piece.first,
                           memory + at);
        if (add_piece(&pieces->next, first, at) != 0) {
            free(memory);
            return -ENOMEM;
        }
    }
    assert(at <= bytes);
    free(pieces->memory);
    pieces->text = pieces->memory = memory;
    pieces->bytes = at;
    return 0;
}

int splitter_run(const struct splitter *splitter, struct regex_scratch *scratch, const char *text,
                 size_t bytes, bool begins, struct pieces *pieces)
{
    assert(bytes <= INT32_MAX);
    free(pieces->memory);
    pieces->memory = NULL;
    pieces->text = text;
    pieces->bytes = bytes;
    pieces->now.count = 0;
    int result = bytes == 0 ? 0 : add_piece(&pieces->now, 0, bytes);
    for (int i = 0; result == 0 && i < splitter->step_count; i++) {
        const struct splitter_step *step = &splitter->step[i];
        bool changes = step->kind == SPLIT_PREFIX || step->kind == SPLIT_MARK;
        result = changes ? change(step, begins, pieces) : cut(step, scratch, pieces);
        struct piece_list cut_up = pieces->next;
        pieces->next = pieces->now;
        pieces->now = cut_up;
    }
    return result;
}

void pieces_release(struct pieces *pieces)
{
    free(pieces->memory);
    free(pieces->now.piece);
    free(pieces->next.piece);
    *pieces = (struct pieces){0};
}

void splitter_release(struct splitter *splitter)
{
    for (int i = 0; i < splitter->step_count; i++)
        regex_destroy(splitter->step[i].regex);
    splitter->step_count = 0;
}
