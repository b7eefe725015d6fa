/* The table of `quire tune`: which way a device makes each product of a model the fastest.
 *
 * A file is lines of kernels/tuned.h behind a line "device NAME", which it is good for; empty
 * lines and lines that begin with # do not count. Both functions belong to the rank's thread.
 */
#ifndef MODEL_TUNE_H
#define MODEL_TUNE_H

#include "model/arch.h"

/* The device's name, as the line has it, of what describe() says. */
void tune_device_name(const char *description, char *name, size_t max);

/* Hands a table to the device: 0, or a negative errno and one line in `error`: it cannot be read
 * (-EINVAL where a line is none), is of another device, or there is only one way here (-ENOTSUP).
 */
int tune_take(const struct device_ops *ops, struct device *device, const char *path, char *error,
              size_t error_bytes);

/* Measures all products of a model for up to token_max tokens, and gives each line as it is known:
 * 0, -ENOTSUP (there is one way only), -ENOMEM or -EIO. Takes seconds. */
int tune_measure(const struct device_ops *ops, struct device *device, const struct weights *weights,
                 int32_t layer_count, int32_t token_max,
                 void (*line)(void *context, const char *text), void *context);

#endif
