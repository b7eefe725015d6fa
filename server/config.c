/* Options: from where they are taken, and how they hang together. The only file that reads the
 * environment.
 *
 * Everything an option gets, its default too, is text that goes through config_set: one parser,
 * one range check, one form of message. Sources are read from the weakest to the strongest, so
 * that the last one to set an option wins and is remembered.
 */
#include "server/config_table.h"

#include "model/model.h"

#include <assert.h>
#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h> /* environ */

enum { FILE_BYTES_MAX = 1 << 20 };

/* ---- the file ---- */

/* The whole of a small file, NUL-terminated and owned by the caller; NULL: errno says why. */
static char *read_file(const char *path, size_t *bytes, mode_t *mode)
{
    FILE *file = fopen(path, "re");
    char *text = file != NULL ? malloc(FILE_BYTES_MAX + 1) : NULL;
    struct stat status = {0};

    *bytes = 0;
    if (text != NULL) {
        *bytes = fread(text, 1, FILE_BYTES_MAX + 1, file);
        bool bad = ferror(file) || fstat(fileno(file), &status) < 0;
        if (!bad && *bytes > FILE_BYTES_MAX)
            errno = EFBIG;
        if (bad || *bytes > FILE_BYTES_MAX) {
            free(text);
            text = NULL;
        } else {
            text[*bytes] = '\0';
        }
    }
    *mode = status.st_mode;
    int saved = errno;
    if (file != NULL)
        fclose(file);
    errno = saved;
    return text;
}

static int read_config_file(struct config_reader *reader)
{
    struct config *config = reader->config;
    size_t bytes;
    mode_t mode;

    if (config->file == NULL)
        return 0;
    char *text = read_file(config->file, &bytes, &mode);
    if (text == NULL) {
        snprintf(reader->error, reader->error_bytes, "--config: could not read %s: %s",
                 config->file, strerror(errno));
        return -EBADMSG;
    }
    int result =
        config_read_yaml(config, config->file, text, bytes, reader->error, reader->error_bytes);
    free(text);
    return result;
}

/* The keys of --api-key-file are added to those of --api-key. */
static int read_keys(struct config_reader *reader)
{
    struct config *config = reader->config;
    struct config_place place = {.source = CONFIG_BY_FLAG, .file = config->api_key_file};
    size_t bytes;
    mode_t mode;
    int result = 0;

    if (config->api_key_file[0] == '\0')
        return 0;
    char *text = read_file(config->api_key_file, &bytes, &mode), *rest = text, *line;
    if (text == NULL) {
        snprintf(reader->error, reader->error_bytes, "--api-key-file: could not read %s: %s",
                 config->api_key_file, strerror(errno));
        return -EBADMSG;
    }
    int32_t before = config->api_key.count;
    struct config_origin origin = config->origin[CONFIG_api_key];
    config->origin[CONFIG_api_key].source = CONFIG_BY_FLAG; /* these add to the others */
    while (result == 0 && (line = strsep(&rest, "\r\n")) != NULL)
        if (line[0] != '#')
            result = config_set(reader, CONFIG_api_key, line, place);
    config->origin[CONFIG_api_key] =
        origin.source == CONFIG_BY_DEFAULT ? config->origin[CONFIG_api_key_file] : origin;
    explicit_bzero(text, bytes);
    free(text);
    if (result == 0 && config->api_key.count == before) {
        snprintf(reader->error, reader->error_bytes, "--api-key-file: %s holds no key",
                 config->api_key_file);
        return -EBADMSG;
    }
    if ((mode & S_IROTH) != 0)
        snprintf(config->warning, sizeof config->warning,
                 "api-key-file %s can be read by everyone; chmod o-r", config->api_key_file);
    return result;
}

/* ---- the environment ---- */

const char *config_environment(const char *name)
{
    return getenv(name);
}

/* QUIRE_X in `upper` of "x". */
static void environment_name(int32_t option, char *upper, size_t upper_bytes)
{
    snprintf(upper, upper_bytes, "QUIRE_%s", config_table[option].member);
    for (char *c = upper; *c != '\0'; c++)
        *c = (char)toupper((unsigned char)*c);
}

/* A variable of our prefix that is no option but nearly one is a slip; any other one may be
 * anybody's (Kubernetes sets QUIRE_SERVICE_HOST for a service of that name). */
static int check_environment(struct config_reader *reader)
{
    char names[CONFIG_OPTION_COUNT][CONFIG_NAME_MAX + 8];
    const char *name_of[CONFIG_OPTION_COUNT];

    for (int32_t i = 0; i < CONFIG_OPTION_COUNT; i++) {
        environment_name(i, names[i], sizeof names[i]);
        name_of[i] = names[i] + strlen("QUIRE_");
    }
    for (char **variable = environ; *variable != NULL; variable++) {
        char name[CONFIG_NAME_MAX + 1];
        const char *rest = *variable + strlen("QUIRE_");
        if (strncmp(*variable, "QUIRE_", strlen("QUIRE_")) != 0 ||
            strcspn(rest, "=") >= sizeof name)
            continue;
        snprintf(name, sizeof name, "%.*s", (int)strcspn(rest, "="), rest);
        const char *nearest = config_nearest(name, name_of, CONFIG_OPTION_COUNT);
        if (nearest == NULL || strcmp(name, nearest) == 0 || strcmp(name, "CONFIG") == 0 ||
            strncmp(name, "PORT_", 5) == 0 || strncmp(name, "SERVICE_", 8) == 0)
            continue;
        snprintf(reader->error, reader->error_bytes,
                 "QUIRE_%s: unknown option; did you mean QUIRE_%s?", name, nearest);
        return -EINVAL;
    }
    return 0;
}

static int read_environment(struct config_reader *reader)
{
    struct config_place place = {.source = CONFIG_BY_ENVIRONMENT};

    for (int32_t i = 0; i < CONFIG_OPTION_COUNT; i++) {
        char name[CONFIG_NAME_MAX + 8];
        environment_name(i, name, sizeof name);
        const char *value = getenv(name);
        /* An empty variable is how composed environments say "not set". */
        if (value == NULL || value[0] == '\0' ||
            !config_takes(reader->config->command, &config_table[i]))
            continue;
        int result = config_set(reader, i, value, place);
        if (result < 0)
            return result;
    }
    return check_environment(reader);
}

/* ---- all together ---- */

/* Sampling defaults: an override that cannot be read is known before the model is. */
static int check_defaults(struct config_reader *reader)
{
    const struct config *config = reader->config;
    struct model_defaults given;
    char reason[256];

    if (config->generation_config[0] == '\0') {
        snprintf(reader->error, reader->error_bytes,
                 "generation-config: must be auto, vllm or the path of a folder");
        return -EINVAL;
    }
    if (config->override_generation_config[0] == '\0' ||
        model_read_defaults(&given, config->override_generation_config, reason, sizeof reason) == 0)
        return 0;
    snprintf(reader->error, reader->error_bytes, "override-generation-config: %s", reason);
    return -EINVAL;
}

/* Relations between options. */
static int check_relations(struct config_reader *reader)
{
    struct config *config = reader->config;

    if ((config->block_size & (config->block_size - 1)) != 0) {
        snprintf(reader->error, reader->error_bytes,
                 "block-size: must be a power of two from 1 to 256, not %d", config->block_size);
        return -EINVAL;
    }
    if (config->max_num_seqs > 0 && config->max_num_batched_tokens > 0 &&
        config->max_num_batched_tokens < config->max_num_seqs) {
        snprintf(reader->error, reader->error_bytes,
                 "max-num-batched-tokens: must be at least max-num-seqs (%d), not %d",
                 config->max_num_seqs, config->max_num_batched_tokens);
        return -EINVAL;
    }
    return check_defaults(reader);
}

/* Without a name of its own the model is called as its file, without folder and ".gguf". */
static int name_model(struct config_reader *reader)
{
    struct config *config = reader->config;
    const char *slash = strrchr(config->model, '/');
    char name[256];

    if (config->served_model_name.count > 0 || config->model[0] == '\0')
        return 0;
    config->origin[CONFIG_served_model_name] = (struct config_origin){0};
    snprintf(name, sizeof name, "%s",
             slash != NULL && slash[1] != '\0' ? slash + 1 : config->model);
    size_t bytes = strlen(name);
    if (bytes > 5 && strcmp(name + bytes - 5, ".gguf") == 0)
        name[bytes - 5] = '\0';
    for (char *c = name; *c != '\0'; c++)
        *c = (char)(*c == ',' ? '_' : *c);
    return config_set(reader, CONFIG_served_model_name, name,
                      (struct config_place){.source = CONFIG_BY_DEFAULT});
}

int config_defaults(struct config *config, enum config_command command)
{
    char error[256];
    struct config_reader reader = {config, error, sizeof error};
    int result = 0;

    *config = (struct config){.command = command};
    for (int32_t i = 0; result == 0 && i < CONFIG_OPTION_COUNT; i++)
        result = config_set(&reader, i, config_table[i].fallback,
                            (struct config_place){.source = CONFIG_BY_DEFAULT});
    return result;
}

int config_read(struct config *config, enum config_command command, int argc, char **argv,
                char *error, size_t error_bytes)
{
    struct config_reader reader = {config, error, error_bytes};
    struct config_flags flags = {.reader = &reader, .argc = argc, .argv = argv};

    assert(error_bytes > 1);
    error[0] = '\0';
    flags.given = calloc((size_t)argc + 1, sizeof *flags.given);
    if (config_defaults(config, command) < 0 || flags.given == NULL) {
        snprintf(error, error_bytes, "out of memory");
        free(flags.given);
        return -EINVAL;
    }
    const char *file = getenv("QUIRE_CONFIG");
    config->file = file != NULL && file[0] != '\0' ? file : NULL;
    int result = config_collect_flags(&flags);
    bool only_shown = config->action == CONFIG_HELP || config->action == CONFIG_VERSION;
    if (result == 0 && !only_shown) {
        result = read_config_file(&reader);
        result = result < 0 ? result : read_environment(&reader);
        result = result < 0 ? result : config_set_flags(&flags);
        result = result < 0 ? result : check_relations(&reader);
        result = result < 0 ? result : read_keys(&reader);
        result = result < 0 ? result : name_model(&reader);
    }
    free(flags.given);
    return result;
}

/* A default that the device decides. */
static void resolve(struct config *config, enum config_option option, int32_t value)
{
    int32_t *member = (void *)((char *)config + config_table[option].offset);

    if (*member != 0)
        return;
    *member = value;
    config->origin[option] = (struct config_origin){.source = CONFIG_BY_DEVICE};
}

void config_resolve(struct config *config, bool gpu)
{
    int32_t seqs = gpu ? 256 : 64, tokens = gpu ? 8192 : 512;

    /* A step has a token of every sequence at least, so the one that was given bounds the other. */
    if (config->max_num_batched_tokens > 0 && config->max_num_batched_tokens < seqs)
        seqs = config->max_num_batched_tokens;
    if (config->max_num_seqs > tokens)
        tokens = config->max_num_seqs;
    if (config->gpu_memory_utilization == 0) {
        config->gpu_memory_utilization = gpu ? 0.92 : 0.5; /* others live on a CPU's memory */
        config->origin[CONFIG_gpu_memory_utilization] =
            (struct config_origin){.source = CONFIG_BY_DEVICE};
    }
    resolve(config, CONFIG_device, gpu ? CONFIG_DEVICE_CUDA : CONFIG_DEVICE_CPU);
    resolve(config, CONFIG_max_num_seqs, seqs);
    resolve(config, CONFIG_max_num_batched_tokens, tokens);
}
