/* The command line: flags and the model's name.
 *
 * Flags are found first and set last: --config among them names a file, which is weaker.
 */
#include "server/config_table.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct config_place by_flag = {.source = CONFIG_BY_FLAG};

static void give(struct config_flags *flags, int32_t option, const char *value)
{
    flags->given[flags->count++] = (struct config_given){.option = option, .value = value};
}

/* Flags that are no options. False: it is none of them. */
static bool take_action(struct config_flags *flags, const char *name)
{
    static const struct {
        const char *name;
        enum config_action action;
    } actions[] = {
        {"help", CONFIG_HELP},         {"version", CONFIG_VERSION},    {"dump-config", CONFIG_DUMP},
        {"print-config", CONFIG_DUMP}, {"check-config", CONFIG_CHECK},
    };
    struct config *config = flags->reader->config;

    for (size_t i = 0; i < sizeof actions / sizeof actions[0]; i++) {
        if (strcmp(name, actions[i].name) == 0) {
            if (config->action == CONFIG_RUN)
                config->action = actions[i].action;
            return true;
        }
    }
    return false;
}

/* The value of a flag: behind '=', or the next word. NULL: there is none. */
static const char *flag_value(struct config_flags *flags, const char *inline_value)
{
    if (inline_value != NULL)
        return inline_value;
    if (flags->next >= flags->argc)
        return NULL;
    const char *value = flags->argv[flags->next];
    /* A word that begins with '-' is the next flag, unless it is a number. */
    if (value[0] == '-' && !isdigit((unsigned char)value[1]))
        return NULL;
    flags->next++;
    return value;
}

static int take_option(struct config_flags *flags, int32_t option, const char *name,
                       const char *inline_value)
{
    const struct config_entry *entry = &config_table[option];
    bool list = entry->kind == CONFIG_KIND_LIST || entry->kind == CONFIG_KIND_SECRETS;

    if (entry->kind == CONFIG_KIND_BOOL) {
        give(flags, option, inline_value != NULL ? inline_value : "true");
        return 0;
    }
    const char *value = flag_value(flags, inline_value);
    if (value == NULL)
        return config_refuse(flags->reader, name, by_flag, "a value is missing");
    give(flags, option, value);
    /* Like vLLM's: --served-model-name one two. */
    while (list && inline_value == NULL && (value = flag_value(flags, NULL)) != NULL)
        give(flags, option, value);
    return 0;
}

/* "--name", "--name=value", "--no-name"; `word` is behind the dashes. */
static int take_long(struct config_flags *flags, const char *word)
{
    struct config_reader *reader = flags->reader;
    char name[CONFIG_NAME_MAX * 2];
    size_t bytes = strcspn(word, "=");
    const char *value = word[bytes] == '=' ? word + bytes + 1 : NULL;

    snprintf(name, sizeof name, "%.*s", (int)(bytes < sizeof name ? bytes : sizeof name), word);
    if (strcmp(name, "config") == 0) {
        reader->config->file = flag_value(flags, value);
        return reader->config->file != NULL
                   ? 0
                   : config_refuse(reader, name, by_flag, "a value is missing");
    }
    if (value == NULL && take_action(flags, name))
        return 0;
    int32_t option = config_find(reader->config->command, name);
    if (option >= 0)
        return take_option(flags, option, name, value);
    if (strncmp(name, "no-", 3) == 0 && value == NULL) {
        option = config_find(reader->config->command, name + 3);
        if (option >= 0 && config_table[option].kind == CONFIG_KIND_BOOL) {
            give(flags, option, "false");
            return 0;
        }
    }
    if (value == NULL && config_is_always(name))
        return 0;
    return config_unknown(reader, name, by_flag);
}

static int take_word(struct config_flags *flags, const char *word)
{
    struct config_reader *reader = flags->reader;
    char shown[128];

    if (strcmp(word, "-h") == 0 || strcmp(word, "-V") == 0) {
        take_action(flags, word[1] == 'h' ? "help" : "version");
        return 0;
    }
    if (word[0] == '-' && word[1] == '-')
        return take_long(flags, word + 2);
    if (word[0] == '-' && word[1] != '\0') {
        snprintf(shown, sizeof shown, "%.*s", (int)strcspn(word + 1, "="), word + 1);
        int result = config_unknown(reader, shown, by_flag);
        memmove(reader->error, reader->error + 1, strlen(reader->error)); /* one dash was typed */
        return result;
    }
    for (int32_t i = 0; i < flags->count; i++) {
        if (flags->given[i].option == CONFIG_model) {
            snprintf(reader->error, reader->error_bytes,
                     "unexpected argument \"%s\": the model was named already",
                     config_printable(word, shown, sizeof shown));
            return -EINVAL;
        }
    }
    give(flags, CONFIG_model, word);
    return 0;
}

int config_collect_flags(struct config_flags *flags)
{
    int result = 0;

    for (flags->next = 1; result == 0 && flags->next < flags->argc;) {
        const char *word = flags->argv[flags->next++];
        if (strcmp(word, "--") != 0) {
            result = take_word(flags, word);
            continue;
        }
        if (flags->next < flags->argc)
            give(flags, CONFIG_model, flags->argv[flags->next++]);
    }
    return result;
}

int config_set_flags(struct config_flags *flags)
{
    int result = 0;

    for (int32_t i = 0; result == 0 && i < flags->count; i++)
        result = config_set(flags->reader, flags->given[i].option, flags->given[i].value, by_flag);
    return result;
}
