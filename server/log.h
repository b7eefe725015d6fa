/* One line an event, to standard error: `time level module message key=value ...`.
 *
 *     log_info("engine", "ready blocks=%d tokens=%d", blocks, tokens);
 *
 * A value with blanks goes in double quotes (key="two words"). In JSON form the trailing
 * key=value words become members. Control characters and ill-formed bytes are escaped, so that
 * nothing a client sends can forge a line. One write(2) a line; any thread; never blocks on a
 * lock. Nothing is logged per token; no prompt, output or key is ever passed in here.
 */
#ifndef SERVER_LOG_H
#define SERVER_LOG_H

#include <stdbool.h>
#include <stdio.h>

enum log_level { LOG_LEVEL_ERROR, LOG_LEVEL_WARN, LOG_LEVEL_INFO, LOG_LEVEL_DEBUG };
enum log_form { LOG_FORM_TEXT, LOG_FORM_JSON };

enum { LOG_LINE_MAX = 2048 }; /* bytes of a line; what is longer is cut */

/* Until called: info, text. Any thread, any time. */
void log_configure(enum log_level level, enum log_form form);
bool log_wants(enum log_level level);

/* "error", "warn", "info", "debug" to a level, "text", "json" to a form; false: no such name. */
bool log_level_parse(const char *name, enum log_level *level);
bool log_form_parse(const char *name, enum log_form *form);

/* A line of that level, if it is wanted. */
void log_error(const char *module, const char *format, ...) __attribute__((format(printf, 2, 3)));
void log_warn(const char *module, const char *format, ...) __attribute__((format(printf, 2, 3)));
void log_info(const char *module, const char *format, ...) __attribute__((format(printf, 2, 3)));
void log_debug(const char *module, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* The line itself, with its line feed, for tests: `text` gets at most `max` bytes. Returns the
 * bytes written. `message` is what the format made. */
size_t log_line(enum log_form form, enum log_level level, const char *module, const char *message,
                char *text, size_t max);

#endif
