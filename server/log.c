/* Log lines; see log.h. A line is put together on the stack and written by one write(2). */
#include "server/log.h"

#include <assert.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static const char *const level_name[] = {"error", "warn", "info", "debug"};
static const char *const form_name[] = {"text", "json"};

static atomic_int level_wanted = LOG_LEVEL_INFO;
static atomic_int form_wanted = LOG_FORM_TEXT;

void log_configure(enum log_level level, enum log_form form)
{
    atomic_store_explicit(&level_wanted, (int)level, memory_order_relaxed);
    atomic_store_explicit(&form_wanted, (int)form, memory_order_relaxed);
}

bool log_wants(enum log_level level)
{
    return (int)level <= atomic_load_explicit(&level_wanted, memory_order_relaxed);
}

bool log_level_parse(const char *name, enum log_level *level)
{
    for (int i = 0; i < 4; i++) {
        if (strcmp(name, level_name[i]) == 0) {
            *level = (enum log_level)i;
            return true;
        }
    }
    return false;
}

bool log_form_parse(const char *name, enum log_form *form)
{
    for (int i = 0; i < 2; i++) {
        if (strcmp(name, form_name[i]) == 0) {
            *form = (enum log_form)i;
            return true;
        }
    }
    return false;
}

/* A line on its way; what does not fit is left out. */
struct line {
    char *text;
    size_t bytes;
    size_t max;
};

static void put(struct line *line, const char *text, size_t bytes)
{
    if (bytes > line->max - line->bytes)
        return;
    memcpy(line->text + line->bytes, text, bytes);
    line->bytes += bytes;
}

static void put_string(struct line *line, const char *text)
{
    put(line, text, strlen(text));
}

/* One byte of a message. Text form: control characters and bytes above 126 as \n, \xNN, so that
 * a terminal sees no escape sequence. JSON form: as JSON escapes. */
static void put_escaped(struct line *line, unsigned char c, enum log_form form)
{
    char escape[8];

    if (form == LOG_FORM_JSON && (c == '"' || c == '\\')) {
        put(line, (char[]){'\\', (char)c}, 2);
    } else if (c == '\n') {
        put(line, "\\n", 2);
    } else if (c == '\t') {
        put(line, "\\t", 2);
    } else if (c == '\r') {
        put(line, "\\r", 2);
    } else if (c < 0x20 || c > 0x7e) {
        int count = snprintf(escape, sizeof escape, form == LOG_FORM_JSON ? "\\u%04x" : "\\x%02x",
                             (unsigned)c);
        put(line, escape, (size_t)count);
    } else {
        put(line, (const char *)&c, 1);
    }
}

static void put_all(struct line *line, const char *text, size_t bytes, enum log_form form)
{
    for (size_t i = 0; i < bytes; i++)
        put_escaped(line, (unsigned char)text[i], form);
}

static size_t key_bytes(const char *word)
{
    size_t bytes = strspn(word, "abcdefghijklmnopqrstuvwxyz_0123456789");
    return bytes > 0 && word[bytes] == '=' ? bytes : 0;
}

/* The end of the value that starts at `value`: a quoted one may hold blanks, and \" for ". */
static const char *value_end(const char *value)
{
    if (*value != '"')
        return value + strcspn(value, " ");
    for (const char *c = value + 1; *c != '\0'; c++) {
        if (*c == '\\' && c[1] != '\0')
            c++;
        else if (*c == '"')
            return c + 1;
    }
    return value + strlen(value);
}

/* Where the trailing run of key=value words starts; the end of the message if there is none. */
static const char *members_begin(const char *message)
{
    const char *begin = NULL;

    for (const char *c = message; *c != '\0';) {
        size_t key = key_bytes(c);
        if (key == 0)
            begin = NULL;
        else if (begin == NULL)
            begin = c;
        c = key == 0 ? c + strcspn(c, " ") : value_end(c + key + 1);
        c += strspn(c, " ");
    }
    return begin != NULL ? begin : message + strlen(message);
}

/* Whether the value may stand in JSON without quotes. */
static bool is_number(const char *text, size_t bytes)
{
    size_t i = text[0] == '-' ? 1 : 0;
    size_t whole = strspn(text + i, "0123456789");

    if (whole == 0 || bytes > 20 || (whole > 1 && text[i] == '0'))
        return false;
    i += whole;
    if (i < bytes && text[i] == '.') {
        size_t part = strspn(text + i + 1, "0123456789");
        if (part == 0)
            return false;
        i += 1 + part;
    }
    return i == bytes;
}

static void put_members(struct line *line, const char *members)
{
    while (*members != '\0') {
        size_t key = key_bytes(members);
        const char *value = members + key + 1;
        const char *end = value_end(value);
        const char *next = end + strspn(end, " ");

        put_string(line, ",\"");
        put(line, members, key);
        put_string(line, "\":");
        if (is_number(value, (size_t)(end - value))) {
            put(line, value, (size_t)(end - value));
        } else {
            bool quoted = value[0] == '"' && end > value + 1 && end[-1] == '"';
            put_string(line, "\"");
            put_all(line, value + quoted, (size_t)(end - value) - (quoted ? 2 : 0), LOG_FORM_JSON);
            put_string(line, "\"");
        }
        members = next;
    }
}

static void put_time(struct line *line)
{
    struct timespec now;
    struct tm parts;
    char text[64];

    clock_gettime(CLOCK_REALTIME, &now);
    gmtime_r(&now.tv_sec, &parts);
    size_t bytes = strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%S", &parts);
    put(line, text, bytes);
    int count = snprintf(text, sizeof text, ".%03ldZ", now.tv_nsec / 1000000);
    put(line, text, (size_t)count);
}

size_t log_line(enum log_form form, enum log_level level, const char *module, const char *message,
                char *text, size_t max)
{
    assert(max > 8);
    struct line line = {text, 0, max - 4}; /* room to close it, whatever was left out */

    if (form == LOG_FORM_TEXT) {
        put_time(&line);
        put_string(&line, " ");
        put_string(&line, level_name[level]);
        put_string(&line, " ");
        put_string(&line, module);
        put_string(&line, " ");
        put_all(&line, message, strlen(message), form);
    } else {
        const char *members = members_begin(message);
        size_t bytes = (size_t)(members - message);

        while (bytes > 0 && message[bytes - 1] == ' ')
            bytes--;
        put_string(&line, "{\"ts\":\"");
        put_time(&line);
        put_string(&line, "\",\"level\":\"");
        put_string(&line, level_name[level]);
        put_string(&line, "\",\"module\":\"");
        put_string(&line, module);
        put_string(&line, "\",\"event\":\"");
        put_all(&line, message, bytes, form);
        put_string(&line, "\"");
        put_members(&line, members);
    }
    line.max = max;
    put_string(&line, form == LOG_FORM_JSON ? "}\n" : "\n");
    return line.bytes;
}

static void write_line(enum log_level level, const char *module, const char *format, va_list list)
{
    char message[LOG_LINE_MAX / 2];
    char text[4 * LOG_LINE_MAX]; /* a byte may become six */

    if (!log_wants(level))
        return;
    vsnprintf(message, sizeof message, format, list);
    enum log_form form = (enum log_form)atomic_load_explicit(&form_wanted, memory_order_relaxed);
    size_t bytes = log_line(form, level, module, message, text, sizeof text);
    /* A full disk or a closed terminal must not end the server, and there is no one to tell. */
    ssize_t written = write(STDERR_FILENO, text, bytes);
    (void)written;
}

void log_error(const char *module, const char *format, ...)
{
    va_list list;
    va_start(list, format);
    write_line(LOG_LEVEL_ERROR, module, format, list);
    va_end(list);
}

void log_warn(const char *module, const char *format, ...)
{
    va_list list;
    va_start(list, format);
    write_line(LOG_LEVEL_WARN, module, format, list);
    va_end(list);
}

void log_info(const char *module, const char *format, ...)
{
    va_list list;
    va_start(list, format);
    write_line(LOG_LEVEL_INFO, module, format, list);
    va_end(list);
}

void log_debug(const char *module, const char *format, ...)
{
    va_list list;
    va_start(list, format);
    write_line(LOG_LEVEL_DEBUG, module, format, list);
    va_end(list);
}
