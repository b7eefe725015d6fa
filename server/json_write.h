/* A growing text and what is written into it: JSON, event streams, metric pages.
 *
 * Writers append and never fail one by one: when memory runs out `lost` is set, nothing more is
 * appended, and whoever sends the text looks once, at the end. One thread an object.
 */
#ifndef SERVER_JSON_WRITE_H
#define SERVER_JSON_WRITE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct json {
    char *text; /* NULL while empty; not NUL-terminated */
    size_t bytes;
    size_t max;
    bool lost; /* out of memory: the text is not whole */
};

void json_release(struct json *json); /* frees the text; the object is empty again */
void json_clear(struct json *json);   /* keeps the memory */

void json_bytes(struct json *json, const char *text, size_t bytes); /* as they are */
void json_raw(struct json *json, const char *text);                 /* as it is, to the NUL */
void json_print(struct json *json, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* A string in quotes. Bytes that are not UTF-8 become U+FFFD. */
void json_string(struct json *json, const char *text, size_t bytes);
/* The string without its quotes, to put one together. */
void json_escaped(struct json *json, const char *text, size_t bytes);
void json_int(struct json *json, int64_t value);
/* The shortest decimal that reads back as the same float: equal floats print equal text.
 * Infinities and NaN are no JSON: they print as the largest finite ones and null. */
void json_float(struct json *json, float value);
void json_bool(struct json *json, bool value);
/* [1,2,3] */
void json_ints(struct json *json, const int32_t *value, int32_t count);

/* Bytes of the well-formed UTF-8 sequence that text starts with, or 0. */
size_t json_utf8(const char *text, size_t bytes);
/* Code points of well-formed UTF-8. */
int64_t json_characters(const char *text, size_t bytes);

#endif
