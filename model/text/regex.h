/* The regular expressions of tokenizers: Oniguruma's dialect in the files, PCRE2 underneath.
 *
 * Immutable once made and thread-safe; what one search needs is in a scratch of the caller. No
 * pattern recurses on the machine's stack, and each search has a limit of steps and of memory.
 */
#ifndef MODEL_TEXT_REGEX_H
#define MODEL_TEXT_REGEX_H

#include <stddef.h>

struct regex;
struct regex_scratch;

/* NULL with one line in `error`: PCRE2 refuses it, it uses what the two dialects understand
 * differently, it matches the empty text only, or there is no memory. */
struct regex *regex_create(const char *pattern, size_t bytes, char *error, size_t error_bytes);
/* A pattern that matches this text and nothing else. */
struct regex *regex_create_plain(const char *text, size_t bytes, char *error, size_t error_bytes);
void regex_destroy(struct regex *regex); /* NULL is fine */

struct regex_scratch *regex_scratch_create(void);          /* NULL: out of memory */
void regex_scratch_destroy(struct regex_scratch *scratch); /* NULL is fine */

/* The first match of at least one byte in text[from ... bytes - 1], well-formed UTF-8; what stands
 * before `from` is seen by look-behind. 1, or 0 for none, or -EOVERFLOW (past a limit), -ENOMEM. */
int regex_next(const struct regex *regex, struct regex_scratch *scratch, const char *text,
               size_t bytes, size_t from, size_t *first, size_t *final);

#endif
