/* Reading JSON without building a tree: one pass checks a text whole, then values are read where
 * they stand.
 *
 * Why not a tree: a request's size must bound its memory (a list of 131,072 ids would be 8 MB of
 * nodes), numbers must be read from their digits (a seed is an int64), strings may hold NUL.
 * What the check refuses: ill-formed UTF-8, lone surrogates, nesting beyond JSON_DEPTH_MAX,
 * anything behind the value, every deviation from RFC 8259. Pure functions, any thread.
 */
#ifndef SERVER_JSON_READ_H
#define SERVER_JSON_READ_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { JSON_DEPTH_MAX = 64 };

enum json_kind { JSON_NULL, JSON_BOOL, JSON_NUMBER, JSON_STRING, JSON_LIST, JSON_OBJECT };

/* A value within a checked text; text == NULL: no value. */
struct json_value {
    const char *text; /* a string's with its quotes */
    size_t bytes;
    enum json_kind kind;
};

/* Checks the whole text and gives its value. False: *offset and *why say what is wrong. */
bool json_check(const char *text, size_t bytes, struct json_value *value, size_t *offset,
                const char **why);

/* A walk over the elements of a list or the members of an object. */
struct json_walk {
    const char *at;
    const char *end;
};
struct json_walk json_walk(const struct json_value *value);
/* The next element: false at the end. `key` is NULL for lists, else gets the member's name. */
bool json_next(struct json_walk *walk, struct json_value *key, struct json_value *value);

bool json_true(const struct json_value *value); /* the literal true */
/* A number without a fraction, from its digits; 16.0 and 1e3 count. False: it has a fraction, or
 * is beyond int64. */
bool json_integer(const struct json_value *value, int64_t *number);
double json_number(const struct json_value *value);
/* A string's text: `text` has room for value->bytes. Returns its bytes; adds no NUL. */
size_t json_text(const struct json_value *value, char *text);
/* Whether a string holds U+0000. */
bool json_has_nul(const struct json_value *value);
/* Whether a string is exactly `text`. */
bool json_is(const struct json_value *value, const char *text);
/* "a string", "a number", ... */
const char *json_kind_name(enum json_kind kind);

#endif
