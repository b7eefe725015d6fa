/* What can be judged of a request by its head alone. Pure functions over plain strings, so that
 * they can be tested without a socket.
 */
#ifndef SERVER_HEAD_H
#define SERVER_HEAD_H

#include "server/config.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { HEAD_FIELD_MAX = 128, HEAD_ID_MAX = 128 };

struct head_field {
    const char *name;
    size_t name_bytes;
    const char *value; /* "" when there is none */
    size_t value_bytes;
};

struct head {
    const char *method;
    const char *path; /* decoded, without query */
    const char *version;
    struct head_field field[HEAD_FIELD_MAX];
    int32_t field_count; /* may be beyond HEAD_FIELD_MAX: too many */
};

/* A fault that could make us and a proxy disagree on where this request ends, in words; NULL:
 * none. Answered with 400 and the end of the connection. */
const char *head_fault(const struct head *head);
/* The value of a header, NULL when it is not there or there more than once. */
const char *head_value(const struct head *head, const char *name);
/* Bytes of the body by Content-Length, or -1. */
int64_t head_body_bytes(const struct head *head);
/* Whether the body may be read as JSON: application/json, or no type from no browser. */
bool head_media_good(const struct head *head);
/* Whether Authorization carries one of the keys. Takes as long for a near miss as for a far one. */
bool head_key_good(const struct head *head, const struct config_list *key);
/* Decodes %XX in place, but for %00; what is no escape stays. Returns the bytes. */
size_t head_unescape(char *text);
/* Whether a caller's request id may be echoed and logged: 1 to HEAD_ID_MAX safe characters. */
bool head_id_good(const char *id);

#endif
