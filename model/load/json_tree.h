/* JSON of files that nobody vouches for, as cJSON's trees. Any thread.
 *
 * Before cJSON sees a text its nesting and its number of values are bounded, so that memory is,
 * and no string may hold a NUL; afterwards no object may have a member twice.
 */
#ifndef MODEL_LOAD_JSON_TREE_H
#define MODEL_LOAD_JSON_TREE_H

#include <cjson/cJSON.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { JSON_TREE_DEPTH_MAX = 32, JSON_TREE_VALUE_MAX = 1 << 21 };

/* NULL: -EINVAL's or -ENOMEM's reason is in `error`. Freed by cJSON_Delete. */
cJSON *json_tree_parse(const char *text, size_t bytes, char *error, size_t error_bytes);
/* A member that is there and not null; else NULL. `object` may be NULL or anything. */
const cJSON *json_tree_member(const cJSON *object, const char *name);
/* A number without a fraction, below 2^53 either way. */
bool json_tree_int(const cJSON *value, int64_t *out);
/* A copy fit for a message: printable ASCII, cut to `max` with its NUL. */
const char *json_tree_printable(const char *string, char *text, size_t max);

#endif
