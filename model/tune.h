/* The table of `quire tune`: which way a device makes each product of a model the fastest.
 *
 * A file is lines of kernels/tuned.h behind a line "device NAME", which they are good for; empty
 * lines and lines that begin with # do not count. Tables that come with the source (configs/tune)
 * are parts of the binary, one text of all devices; what a file has of a product goes before what
 * they have. tune_take and tune_measure belong to the rank's thread.
 */
#ifndef MODEL_TUNE_H
#define MODEL_TUNE_H

#include "model/arch.h"

/* The device's name, as the line has it, of what describe() says. */
void tune_device_name(const char *description, char *name, size_t max);

/* What a device was told. */
struct tune_taken {
    int32_t own_count, builtin_count; /* lines */
    int32_t skipped_count;            /* whose way this build does not have */
    int32_t skipped_line;             /* of the file, the first one; 0: none of its */
};

/* Hands tables to the device: of the file, where `path` is not NULL, then of `builtin` the lines
 * for this device, but for products that the file has. 0, or a negative errno and one line in
 * `error`: the file cannot be read (-EINVAL where a line is none), is of another device, or there
 * is only one way here (-ENOTSUP). */
int tune_take(const struct device_ops *ops, struct device *device, const char *path,
              const char *builtin, struct tune_taken *taken, char *error, size_t error_bytes);
/* Which tables are followed, for the log: "built-in for NVIDIA H200 (222 lines)". `device` is what
 * describe() says, `path` the file or NULL. */
void tune_describe(const struct tune_taken *taken, const char *path, const char *device, char *text,
                   size_t max);
/* What to warn of; "" where there is nothing. */
void tune_warning(const struct tune_taken *taken, const char *path, char *text, size_t max);

/* Measures all products of a model for up to token_max tokens, and gives each line as it is known:
 * 0, -ENOTSUP (there is one way only), -ENOMEM or -EIO. Takes seconds. */
int tune_measure(const struct device_ops *ops, struct device *device, const struct weights *weights,
                 int32_t layer_count, int32_t token_max,
                 void (*line)(void *context, const char *text), void *context);

#endif
