/* Sampling defaults that do not come with the model: another folder's, or an operator's. */
#include "model/load/hf.h"
#include "model/model.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int model_read_generation(struct model_generation *generation, const char *folder, char *error,
                          size_t error_bytes)
{
    struct hf_config *config = calloc(1, sizeof(*config));
    char detail[512];
    int status = -ENOMEM;

    snprintf(detail, sizeof(detail), "no memory");
    if (config != NULL)
        status = hf_generation_read(config, folder, detail, sizeof(detail));
    if (status != 0) {
        snprintf(error, error_bytes, "could not read %s: %s", folder, detail);
        free(config);
        return status;
    }
    generation->defaults = config->defaults;
    generation->end_count = config->end_count;
    memcpy(generation->end_token, config->end_token, sizeof(generation->end_token));
    free(config);
    return 0;
}

int model_read_defaults(struct model_defaults *defaults, const char *json, char *error,
                        size_t error_bytes)
{
    struct hf_config *config = calloc(1, sizeof(*config));

    if (config == NULL) {
        snprintf(error, error_bytes, "no memory");
        return -ENOMEM;
    }
    int status = hf_config_read_defaults(config, json, strlen(json), error, error_bytes);
    if (status == 0)
        *defaults = config->defaults;
    free(config);
    return status;
}
