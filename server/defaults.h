/* What a request gets for the sampling parameters that it leaves out, and the longest answer.
 *
 * As in vLLM: --generation-config says where they come from (the model's own, none, another
 * folder's), --override-generation-config changes single ones. A max_new_tokens that an operator
 * gave, in a folder or as an override, bounds every answer; one that came with the model does not:
 * it would be the default of an endpoint that has none of its own. Constant once made.
 */
#ifndef SERVER_DEFAULTS_H
#define SERVER_DEFAULTS_H

#include "model/model.h"

#include <stddef.h>
#include <stdint.h>

struct config;   /* server/config.h */
struct sampling; /* kernels/sampling.h */

struct defaults {
    struct model_defaults sampling; /* what differs from the table in kernels/sampling.h */
    int32_t output_limit;           /* tokens of an answer at most; 0: no limit */
};

/* The folder that --generation-config names, or NULL: auto or vllm. */
const char *defaults_folder(const struct config *config);
/* `own`: model_info's, which are that folder's where one is named. 0, or a negative errno and one
 * line: the override is wrong. */
int defaults_make(struct defaults *defaults, const struct config *config,
                  const struct model_defaults *own, char *error, size_t error_bytes);
/* Puts them over the table's values. */
void defaults_apply(const struct defaults *defaults, struct sampling *sampling);
/* For the log: "temperature=0.6 top_k=20", "none". */
void defaults_describe(const struct defaults *defaults, char *text, size_t text_bytes);

#endif
