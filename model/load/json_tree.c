/* Bounds before cJSON, duplicates after it. */
#include "model/load/json_tree.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The end of the string that begins behind a quote; NULL: there is none, or it holds a NUL. */
static const char *skip_string(const char *at, const char *end)
{
    for (; at < end && *at != '"'; at++) {
        if (*at == '\0')
            return NULL;
        if (*at != '\\')
            continue;
        if (end - at >= 6 && memcmp(at, "\\u0000", 6) == 0)
            return NULL;
        at++;
    }
    return at < end ? at + 1 : NULL;
}

/* NULL: within bounds; else why not. */
static const char *find_excess(const char *at, const char *end)
{
    int64_t values = 1;
    int depth = 0;

    while (at < end) {
        char c = *at++;

        if (c == '"') {
            at = skip_string(at, end);
            if (at == NULL)
                return "a string does not end, or holds a NUL";
        } else if (c == '{' || c == '[') {
            depth++;
            values++;
        } else if (c == '}' || c == ']') {
            depth--;
        } else if (c == ',') {
            values++;
        }
        if (depth > JSON_TREE_DEPTH_MAX || values > JSON_TREE_VALUE_MAX)
            return depth > JSON_TREE_DEPTH_MAX ? "nested too deeply" : "too many values";
    }
    return NULL;
}

static int compare_names(const void *left, const void *right)
{
    return strcmp(*(const char *const *)left, *(const char *const *)right);
}

/* Of one object: the name that is there twice, or NULL. False: no memory. */
static bool find_duplicate(const cJSON *object, const char **twice)
{
    size_t count = 0, at = 0;
    const char **name;
    const cJSON *member;

    *twice = NULL;
    for (member = object->child; member != NULL; member = member->next)
        count++;
    if (count < 2)
        return true;
    name = malloc(count * sizeof(*name));
    if (name == NULL)
        return false;
    for (member = object->child; member != NULL; member = member->next)
        name[at++] = member->string;
    qsort(name, count, sizeof(*name), compare_names);
    for (size_t i = 1; i < count && *twice == NULL; i++)
        if (strcmp(name[i - 1], name[i]) == 0)
            *twice = name[i];
    free(name);
    return true;
}

/* Depth is bounded by find_excess. */
static bool check_duplicates(const cJSON *value, char *error, size_t error_bytes)
{
    const char *twice = NULL;
    const cJSON *member;
    char text[64];

    if (!cJSON_IsObject(value) && !cJSON_IsArray(value))
        return true;
    if (cJSON_IsObject(value) && !find_duplicate(value, &twice)) {
        snprintf(error, error_bytes, "no memory");
        return false;
    }
    if (twice != NULL) {
        snprintf(error, error_bytes, "\"%s\" is there twice",
                 json_tree_printable(twice, text, sizeof(text)));
        return false;
    }
    for (member = value->child; member != NULL; member = member->next)
        if (!check_duplicates(member, error, error_bytes))
            return false;
    return true;
}

cJSON *json_tree_parse(const char *text, size_t bytes, char *error, size_t error_bytes)
{
    const char *end = text + bytes, *stop = NULL;
    const char *excess = find_excess(text, end);
    cJSON *value;

    if (excess != NULL) {
        snprintf(error, error_bytes, "no JSON that is taken: %s", excess);
        return NULL;
    }
    value = cJSON_ParseWithLengthOpts(text, bytes, &stop, false);
    if (value == NULL) {
        snprintf(error, error_bytes, "no JSON from byte %zu on",
                 stop == NULL ? (size_t)0 : (size_t)(stop - text));
        return NULL;
    }
    while (stop < end && (*stop == ' ' || *stop == '\n' || *stop == '\r' || *stop == '\t'))
        stop++;
    if (stop < end)
        snprintf(error, error_bytes, "more than one JSON value, from byte %zu on",
                 (size_t)(stop - text));
    if (stop == end && check_duplicates(value, error, error_bytes))
        return value;
    cJSON_Delete(value);
    return NULL;
}

const cJSON *json_tree_member(const cJSON *object, const char *name)
{
    const cJSON *member =
        cJSON_IsObject(object) ? cJSON_GetObjectItemCaseSensitive(object, name) : NULL;

    return member == NULL || cJSON_IsNull(member) ? NULL : member;
}

bool json_tree_int(const cJSON *value, int64_t *out)
{
    if (!cJSON_IsNumber(value) || !(fabs(value->valuedouble) < 9007199254740992.0) ||
        value->valuedouble != floor(value->valuedouble))
        return false;
    *out = (int64_t)value->valuedouble;
    return true;
}

const char *json_tree_printable(const char *string, char *text, size_t max)
{
    size_t count = 0;

    for (; string[count] != '\0' && count + 1 < max; count++)
        text[count] = string[count] < ' ' || string[count] > '~' ? '?' : string[count];
    text[count] = '\0';
    return text;
}
