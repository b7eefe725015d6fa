/* Reading JSON objects by table; see fields.h. */
#include "server/fields.h"

#include "server/api.h"
#include "server/metrics.h"

#include <assert.h>
#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MEMBER_MAX = 4096 }; /* of an object, known or not: each is looked up in the table */

bool fields_wrong_type(struct stream_error *error, const char *path, const char *expected,
                       const struct json_value *got)
{
    *error = stream_error_make(400, "invalid_type", path, "'%s' must be %s, got %s.", path,
                               expected, json_kind_name(got->kind));
    return false;
}

bool fields_wrong_value(struct stream_error *error, const char *path, const char *limit,
                        const struct json_value *got)
{
    enum { SHOWN_MAX = 40 };
    int shown = got->bytes < SHOWN_MAX ? (int)got->bytes : SHOWN_MAX;

    *error = stream_error_make(400, "invalid_value", path, "'%s' must be %s, got %.*s%s.", path,
                               limit, shown, got->text, got->bytes > SHOWN_MAX ? "..." : "");
    return false;
}

/* The range in words. */
static void range_words(double least, double greatest, char *text, size_t max)
{
    if (greatest >= 2147483647.0)
        snprintf(text, max, "at least %.15g", least);
    else
        snprintf(text, max, "between %.15g and %.15g", least, greatest);
}

bool fields_wrong_range(struct stream_error *error, const char *path, double least, double greatest,
                        const struct json_value *got)
{
    char limit[80];

    range_words(least, greatest, limit, sizeof limit);
    return fields_wrong_value(error, path, limit, got);
}

bool fields_unsupported(struct stream_error *error, const char *path, const char *reason)
{
    *error = stream_error_make(400, "unsupported_parameter", path, "'%s' is not supported: %s.",
                               path, reason);
    return false;
}

bool fields_refuse(struct stream_error *error, const char *path, const char *format, ...)
{
    char message[256];
    va_list list;

    va_start(list, format);
    vsnprintf(message, sizeof message, format, list);
    va_end(list);
    *error = stream_error_make(400, "invalid_value", path, "%s", message);
    return false;
}

bool fields_parse(const char *body, size_t bytes, struct json_value *object,
                  struct stream_error *error)
{
    size_t offset;
    const char *why;

    if (!json_check(body, bytes, object, &offset, &why)) {
        *error = stream_error_make(400, "invalid_json", NULL,
                                   "could not parse the body as JSON: %s (byte %zu of %zu).", why,
                                   offset, bytes);
        return false;
    }
    if (object->kind != JSON_OBJECT) {
        *error = stream_error_make(400, "invalid_json", NULL,
                                   "could not parse the body: it must be a JSON object, got %s.",
                                   json_kind_name(object->kind));
        return false;
    }
    return true;
}

static const char *expected_kind(const struct field *field)
{
    switch (field->type) {
    case FIELD_BOOL:
        return "a boolean";
    case FIELD_INT32:
    case FIELD_INT64:
        return "an integer";
    case FIELD_FLOAT:
        return "a number";
    case FIELD_STRING:
        return "a string";
    default:
        return field->kind;
    }
}

static bool read_integer(const struct field *field, const struct json_value *value,
                         const char *path, void *member, struct stream_error *error)
{
    int64_t number;
    bool wide = field->type == FIELD_INT64;
    double real = value->kind == JSON_NUMBER ? json_number(value) : 0;

    if (value->kind != JSON_NUMBER || (isfinite(real) && real != floor(real)))
        return fields_wrong_type(error, path, expected_kind(field), value);
    if (!json_integer(value, &number) ||
        (!wide && ((double)number < field->least || (double)number > field->greatest))) {
        if (wide)
            return fields_wrong_value(error, path, "an integer of 64 bits", value);
        return fields_wrong_range(error, path, field->least, field->greatest, value);
    }
    if (wide)
        *(int64_t *)member = number;
    else
        *(int32_t *)member = (int32_t)number;
    return true;
}

static bool read_float(const struct field *field, const struct json_value *value, const char *path,
                       float *member, struct stream_error *error)
{
    if (value->kind != JSON_NUMBER)
        return fields_wrong_type(error, path, expected_kind(field), value);
    double number = json_number(value);
    if (!(number >= field->least && number <= field->greatest))
        return fields_wrong_range(error, path, field->least, field->greatest, value);
    *member = (float)number;
    return true;
}

/* Whether the value of a refused field asks for nothing. */
static bool asks_nothing(const struct field *field, const struct json_value *value)
{
    struct json_value neutral;
    size_t offset;
    const char *why;

    switch (value->kind) {
    case JSON_BOOL:
        return !json_true(value);
    case JSON_STRING:
        return value->bytes == 2 || json_is(value, field->fallback);
    case JSON_LIST:
    case JSON_OBJECT: {
        struct json_walk walk = json_walk(value);
        struct json_value key, first;
        return !json_next(&walk, value->kind == JSON_OBJECT ? &key : NULL, &first);
    }
    case JSON_NUMBER:
        if (!json_check(field->fallback, strlen(field->fallback), &neutral, &offset, &why) ||
            neutral.kind != JSON_NUMBER)
            return json_number(value) == 0;
        return json_number(value) == json_number(&neutral);
    default:
        return true;
    }
}

static bool read_field(const struct field *field, const struct json_value *value, const char *path,
                       void *target, struct stream_error *error)
{
    char *member = (char *)target + field->offset;

    if (field->given != 0)
        *((bool *)((char *)target + field->given)) = true;
    switch (field->type) {
    case FIELD_BOOL:
        if (value->kind != JSON_BOOL)
            return fields_wrong_type(error, path, expected_kind(field), value);
        *(bool *)member = json_true(value);
        return true;
    case FIELD_INT32:
    case FIELD_INT64:
        return read_integer(field, value, path, member, error);
    case FIELD_FLOAT:
        return read_float(field, value, path, (float *)member, error);
    case FIELD_STRING:
        if (value->kind != JSON_STRING)
            return fields_wrong_type(error, path, expected_kind(field), value);
        *(struct json_value *)member = *value;
        return true;
    case FIELD_VALUE:
        *(struct json_value *)member = *value;
        return true;
    case FIELD_IGNORED:
        return true;
    case FIELD_REFUSED:
        return asks_nothing(field, value) || fields_unsupported(error, path, field->help);
    }
    return true;
}

/* The default of a line, written once in the table. */
static void read_fallback(const struct field *field, void *target)
{
    struct json_value value;
    struct stream_error error;
    struct field plain = *field;
    size_t offset;
    const char *why;

    if (field->type >= FIELD_STRING || field->fallback[0] == '\0')
        return;
    plain.given = 0;
    bool good = json_check(field->fallback, strlen(field->fallback), &value, &offset, &why) &&
                read_field(&plain, &value, field->name, target, &error);
    assert(good);
}

void fields_preset(const struct field *field, int32_t field_count, void *target)
{
    for (int32_t i = 0; i < field_count; i++)
        read_fallback(&field[i], target);
}

bool fields_read(const struct field *field, int32_t field_count, const struct json_value *object,
                 const char *path, void *target, struct stream_error *error)
{
    struct json_value seen[FIELD_MAX] = {0}; /* the last value of each name counts */
    struct json_walk walk = json_walk(object);
    struct json_value key, value;
    char name[128];
    int32_t member_count = 0;

    assert(field_count <= FIELD_MAX);
    while (json_next(&walk, &key, &value)) {
        if (++member_count > MEMBER_MAX)
            return fields_refuse(error, "", "An object must have at most %d members.", MEMBER_MAX);
        int32_t i = 0;
        while (i < field_count && !json_is(&key, field[i].name))
            i++;
        if (i < field_count)
            seen[i] = value;
        else
            metrics_add(METRIC_UNKNOWN_FIELDS, 1);
    }
    for (int32_t i = 0; i < field_count; i++) {
        if (seen[i].text == NULL || seen[i].kind == JSON_NULL)
            continue;
        snprintf(name, sizeof name, "%s%s", path, field[i].name);
        if (!read_field(&field[i], &seen[i], name, target, error))
            return false;
    }
    return true;
}

bool fields_tokens(const struct json_value *list, const char *path, int32_t vocab_count,
                   int32_t token_max, int32_t **token, int64_t *token_count,
                   struct stream_error *error)
{
    struct json_walk walk = json_walk(list);
    struct json_value value;
    int64_t count = 0;
    int64_t max = (int64_t)(list->bytes / 2) + 1; /* each takes a digit and a comma */
    char name[128];

    max = max < token_max ? max : token_max;
    int32_t *id = malloc((size_t)(max > 0 ? max : 1) * sizeof *id);
    if (id == NULL) {
        *error =
            stream_error_make(503, "out_of_memory", NULL, "There is no memory for this request.");
        return false;
    }
    while (json_next(&walk, NULL, &value)) {
        int64_t number = -1;
        bool whole = value.kind == JSON_NUMBER && json_integer(&value, &number);
        if (!whole || number < 0 || number >= vocab_count) {
            snprintf(name, sizeof name, "%s[%lld]", path, (long long)count);
            free(id);
            double real = value.kind == JSON_NUMBER ? json_number(&value) : 0;
            if (value.kind != JSON_NUMBER || (isfinite(real) && real != floor(real)))
                return fields_wrong_type(error, name, "a token id", &value);
            return fields_wrong_range(error, name, 0, vocab_count - 1, &value);
        }
        if (count < max)
            id[count] = (int32_t)number;
        count++;
    }
    *token = id;
    *token_count = count;
    return true;
}

static void document_type(struct json *text, const struct field *field)
{
    char range[80];

    json_raw(text, expected_kind(field));
    if (field->type == FIELD_INT32 || field->type == FIELD_FLOAT) {
        range_words(field->least, field->greatest, range, sizeof range);
        json_print(text, ", %s", range);
    }
}

void fields_document(struct json *text, const struct field *field, int32_t field_count,
                     const char *path)
{
    for (int32_t i = 0; i < field_count; i++) {
        json_print(text, "| `%s%s` | ", path, field[i].name);
        if (field[i].type == FIELD_REFUSED) {
            json_print(text, "refused | | %s |\n", field[i].help);
            continue;
        }
        if (field[i].type == FIELD_IGNORED)
            json_raw(text, "ignored");
        else
            document_type(text, &field[i]);
        json_print(text, " | %s | %s |\n", field[i].fallback, field[i].help);
    }
}
