/* Choosing, laying over and describing sampling defaults; see defaults.h. Any thread. */
#include "server/defaults.h"

#include "kernels/sampling.h"
#include "server/config.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* DEFAULT(field): all that a generation_config.json says of sampling. */
#define DEFAULTS(DEFAULT)                                                                          \
    DEFAULT(temperature)                                                                           \
    DEFAULT(top_p)                                                                                 \
    DEFAULT(top_k)                                                                                 \
    DEFAULT(min_p)                                                                                 \
    DEFAULT(repetition_penalty)

const char *defaults_folder(const struct config *config)
{
    const char *from = config->generation_config;

    return strcmp(from, "auto") == 0 || strcmp(from, "vllm") == 0 ? NULL : from;
}

int defaults_make(struct defaults *defaults, const struct config *config,
                  const struct model_defaults *own, char *error, size_t error_bytes)
{
    struct model_defaults given = {0};

    *defaults = (struct defaults){0};
    if (strcmp(config->generation_config, "vllm") != 0)
        defaults->sampling = *own;
    if (defaults_folder(config) != NULL && own->has_max_new_tokens)
        defaults->output_limit = own->max_new_tokens;
    if (config->override_generation_config[0] == '\0')
        return 0;
    int result =
        model_read_defaults(&given, config->override_generation_config, error, error_bytes);
    if (result < 0)
        return result;
#define DEFAULT(field)                                                                             \
    if (given.has_##field) {                                                                       \
        defaults->sampling.has_##field = true;                                                     \
        defaults->sampling.field = given.field;                                                    \
    }
    DEFAULTS(DEFAULT)
#undef DEFAULT
    if (given.has_max_new_tokens)
        defaults->output_limit = given.max_new_tokens;
    return 0;
}

void defaults_apply(const struct defaults *defaults, struct sampling *sampling)
{
#define DEFAULT(field)                                                                             \
    if (defaults->sampling.has_##field)                                                            \
        sampling->field = defaults->sampling.field;
    DEFAULTS(DEFAULT)
#undef DEFAULT
}

__attribute__((format(printf, 3, 4))) static void add(char *text, size_t text_bytes,
                                                      const char *format, ...)
{
    size_t used = strlen(text);
    va_list list;

    va_start(list, format);
    vsnprintf(text + used, text_bytes - used, format, list);
    va_end(list);
}

void defaults_describe(const struct defaults *defaults, char *text, size_t text_bytes)
{
    text[0] = '\0';
#define DEFAULT(field)                                                                             \
    if (defaults->sampling.has_##field)                                                            \
        add(text, text_bytes, " %s=%.7g", #field, (double)defaults->sampling.field);
    DEFAULTS(DEFAULT)
#undef DEFAULT
    if (defaults->output_limit > 0)
        add(text, text_bytes, " max_new_tokens=%d", defaults->output_limit);
    if (text[0] == '\0')
        add(text, text_bytes, " none");
    memmove(text, text + 1, strlen(text));
}
