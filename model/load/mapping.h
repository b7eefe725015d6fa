/* Whole files, mapped to be read. Any thread.
 *
 * A mapping shows what the file holds now: a file that somebody cuts short while it is being
 * loaded ends the process by SIGBUS, as with every program that maps files.
 */
#ifndef MODEL_LOAD_MAPPING_H
#define MODEL_LOAD_MAPPING_H

#include <stddef.h>

/* 0; or a negative errno and why: open's, -EISDIR, -EINVAL for what is empty or no file. */
int mapping_open(const char *path, const unsigned char **map, size_t *bytes, char *error,
                 size_t error_bytes);
void mapping_close(const unsigned char *map, size_t bytes); /* NULL is fine */
/* Asks the kernel to read it ahead. */
void mapping_prefetch(const unsigned char *map, size_t bytes);

#endif
