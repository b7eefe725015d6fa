/* A reader of JSON text that builds no tree: vocabularies are tens of megabytes of it.
 *
 * The cursor moves over text in memory; every function checks what it reads, and after the first
 * error all of them fail without moving. One thread an object.
 */
#ifndef MODEL_TEXT_JSON_READER_H
#define MODEL_TEXT_JSON_READER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { JSON_DEPTH_MAX = 64 }; /* of lists and objects in each other */

struct json_reader {
    const char *start, *at, *end;
    const char *error; /* NULL: none so far */
};

void json_reader_init(struct json_reader *reader, const char *json, size_t bytes);
/* What comes next, its first byte: one of `{["tfn-0`...; 0 at the end or after an error. */
char json_peek(struct json_reader *reader);
/* Takes `{` or `[`. */
bool json_enter(struct json_reader *reader, char bracket);
/* Before each element, with *count zeroed before the first: whether there is one more; takes the
 * comma, or the closing bracket after the last. */
bool json_more(struct json_reader *reader, char bracket, int64_t *count);
/* A string: where it stands in the JSON itself, or, with escapes, decoded to the end of `target`
 * (as long as all the JSON: never too small), which moves up. */
bool json_take_text(struct json_reader *reader, char **target, const char **text, size_t *bytes);
/* The key of a member and the colon after it. */
bool json_key(struct json_reader *reader, char **target, const char **text, size_t *bytes);
/* A whole number that an int32_t holds. */
bool json_take_int(struct json_reader *reader, int32_t *number);
/* Skips any value, which is from *value on `bytes` long. */
bool json_skip(struct json_reader *reader, const char **value, size_t *bytes);

#endif
