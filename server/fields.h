/* Reads a JSON object into a struct by a table, and names the culprit.
 *
 * An endpoint's fields are a table of lines; parsing, ranges, messages and docs/api.md come from
 * it. Explicit null is the same as absent; of a repeated name the last one counts; names that
 * the table does not know are counted and ignored; names that it refuses are an error unless
 * their value asks for nothing.
 */
#ifndef SERVER_FIELDS_H
#define SERVER_FIELDS_H

#include "server/json_read.h"
#include "server/json_write.h"
#include "server/stream.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum field_type {
    FIELD_BOOL,    /* bool */
    FIELD_INT32,   /* int32_t */
    FIELD_INT64,   /* int64_t */
    FIELD_FLOAT,   /* float */
    FIELD_STRING,  /* struct json_value, a string */
    FIELD_VALUE,   /* struct json_value of any kind: the endpoint looks closer */
    FIELD_IGNORED, /* may be anything, changes nothing */
    FIELD_REFUSED, /* not supported: an error unless false, 0, "", [], {} or `fallback` */
};

enum { FIELD_MAX = 96 }; /* lines of a table */

struct field {
    const char *name;
    enum field_type type;
    size_t offset;        /* of the member */
    size_t given;         /* of a bool that says whether the field was there; 0: none */
    const char *fallback; /* the default as JSON; "": none */
    double least, greatest;
    const char *kind; /* FIELD_VALUE: what it may be, "a string or a list of strings" */
    const char *help; /* FIELD_REFUSED: the reason */
};

/* A float's or integer's line for a parameter of kernels/sampling.h within `member`. */
#define FIELD_SAMPLING_TYPE_float FIELD_FLOAT
#define FIELD_SAMPLING_TYPE_int32 FIELD_INT32

/* Puts in the table's defaults. */
void fields_preset(const struct field *field, int32_t field_count, void *target);
/* Puts in what the object says; the rest stays. `path` is put before names in messages ("" or
 * "stream_options."). False: *error says what is wrong. */
bool fields_read(const struct field *field, int32_t field_count, const struct json_value *object,
                 const char *path, void *target, struct stream_error *error);

/* Messages of the usual kinds; all return false, for `return fields_...`. */
bool fields_wrong_type(struct stream_error *error, const char *path, const char *expected,
                       const struct json_value *got);
/* "'n' must be between 1 and 128, got 200." */
bool fields_wrong_value(struct stream_error *error, const char *path, const char *limit,
                        const struct json_value *got);
bool fields_wrong_range(struct stream_error *error, const char *path, double least, double greatest,
                        const struct json_value *got);
bool fields_unsupported(struct stream_error *error, const char *path, const char *reason);
/* A sentence of its own; code invalid_value. */
bool fields_refuse(struct stream_error *error, const char *path, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* An object at the top of a body: checked, or error 400 invalid_json. */
bool fields_parse(const char *body, size_t bytes, struct json_value *object,
                  struct stream_error *error);

/* A list of token ids within [0, vocab_count): an array that the caller frees. Ids beyond
 * `token_max` are counted, not kept. `path` names the list in messages. */
bool fields_tokens(const struct json_value *list, const char *path, int32_t vocab_count,
                   int32_t token_max, int32_t **token, int64_t *token_count,
                   struct stream_error *error);

/* Rows of a Markdown table. */
void fields_document(struct json *text, const struct field *field, int32_t field_count,
                     const char *path);

#endif
