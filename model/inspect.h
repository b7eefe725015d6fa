/* What a model file holds and what it would need, without loading it. Implemented in model.c. */
#ifndef MODEL_INSPECT_H
#define MODEL_INSPECT_H

#include "model/load/source.h"
#include "model/model.h"

struct model_inspection {
    bool readable; /* the file is whole: `summary` is filled */
    bool fits;     /* everything else is */
    struct source_summary summary;
    struct model_info info; /* at the options given */
    int32_t width, head_count, kv_head_count, head_width, ffn_width, window;
    int64_t block_bytes;
};

/* Opens the device and adds up. 0; or what model_open would return, with its line, and whatever
 * is known nevertheless. */
int model_inspect(struct model_inspection *inspection, const struct model_options *options,
                  char *error, size_t error_bytes);

#endif
