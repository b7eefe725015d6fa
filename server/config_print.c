/* The option table as text: --help, --dump-config, configs/quire.yaml, docs/config.md. */
#include "server/config_table.h"

#include <assert.h>
#include <inttypes.h>
#include <string.h>

void config_format_bytes(int64_t bytes, char *text, size_t text_bytes)
{
    static const char suffix[] = "\0KMGT";
    int power = 0;

    while (power < 4 && bytes != 0 && bytes % 1024 == 0) {
        bytes /= 1024;
        power++;
    }
    snprintf(text, text_bytes, "%" PRId64 "%.1s", bytes, suffix + power);
}

/* A bound of a whole number, "" where it is the type's own. */
static void format_bound(const struct config_entry *entry, int64_t bound, char *text,
                         size_t text_bytes)
{
    if (bound == INT64_MAX || bound == INT32_MAX)
        snprintf(text, text_bytes, "%s", "");
    else if (entry->kind == CONFIG_KIND_BYTES)
        config_format_bytes(bound, text, text_bytes);
    else
        snprintf(text, text_bytes, "%" PRId64, bound);
}

void config_range(const struct config_entry *entry, char *text, size_t text_bytes)
{
    char least[32], greatest[32];

    switch (entry->kind) {
    case CONFIG_KIND_STRING:
    case CONFIG_KIND_LIST:
    case CONFIG_KIND_SECRETS:
        snprintf(text, text_bytes, "%s", "");
        return;
    case CONFIG_KIND_BOOL:
        snprintf(text, text_bytes, "true or false");
        return;
    case CONFIG_KIND_REAL:
        snprintf(text, text_bytes, "%g to %g", entry->least_real, entry->greatest_real);
        return;
    case CONFIG_KIND_CHOICE:
        snprintf(text, text_bytes, "one of %s", entry->choices);
        for (char *bar; (bar = strchr(text, '|')) != NULL && strlen(text) + 2 < text_bytes;) {
            memmove(bar + 2, bar + 1, strlen(bar + 1) + 1);
            bar[0] = ',';
            bar[1] = ' ';
        }
        return;
    default:
        format_bound(entry, entry->least, least, sizeof least);
        format_bound(entry, entry->greatest, greatest, sizeof greatest);
        if (greatest[0] == '\0')
            snprintf(text, text_bytes, "a whole number from %s", least);
        else
            snprintf(text, text_bytes, "%s%s to %s",
                     entry->kind == CONFIG_KIND_LENGTH ? "auto or " : "", least, greatest);
    }
}

/* The escape of a character that YAML would not read back as it is, in quotes, or NULL; *bytes:
 * of the character. Values hold no ASCII control characters: config_set refuses them. */
static const char *yaml_escape(const char *value, size_t *bytes, char *escape, size_t escape_bytes)
{
    static const struct {
        const char *bytes, *escape;
    } special[] = {{"\"", "\\\""},
                   {"\\", "\\\\"},
                   {"\xe2\x80\xa8", "\\u2028"},
                   {"\xe2\x80\xa9", "\\u2029"},
                   {"\xef\xbb\xbf", "\\ufeff"},
                   {"\xef\xbf\xbe", "\\ufffe"},
                   {"\xef\xbf\xbf", "\\uffff"}};

    for (size_t i = 0; i < sizeof special / sizeof special[0]; i++) {
        *bytes = strlen(special[i].bytes);
        if (strncmp(value, special[i].bytes, *bytes) == 0)
            return special[i].escape;
    }
    *bytes = 2;
    if ((unsigned char)value[0] != 0xc2 || (unsigned char)value[1] > 0x9f)
        return NULL;
    snprintf(escape, escape_bytes, "\\u00%02x", (unsigned)(unsigned char)value[1]); /* C1 */
    return escape;
}

/* A string as YAML: plain where nothing can be misread, else in double quotes. */
static void format_string(const char *value, char *text, size_t text_bytes)
{
    static const char plain[] =
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-./";
    size_t used = 0, bytes;
    char buffer[8];

    if (value[0] != '\0' && value[0] != '-' && strspn(value, plain) == strlen(value) &&
        strcasecmp(value, "null") != 0) {
        snprintf(text, text_bytes, "%s", value);
        return;
    }
    text[used++] = '"';
    while (*value != '\0' && used + 8 < text_bytes) {
        const char *escape = yaml_escape(value, &bytes, buffer, sizeof buffer);
        if (escape != NULL) {
            used += (size_t)snprintf(text + used, text_bytes - used, "%s", escape);
            value += bytes;
        } else {
            text[used++] = *value++;
        }
    }
    snprintf(text + used, text_bytes - used, "\"");
}

static void format_list(const struct config_list *list, char *text, size_t text_bytes)
{
    size_t used = 1;

    snprintf(text, text_bytes, "[");
    for (int32_t i = 0; i < list->count; i++) {
        char item[CONFIG_VALUE_MAX];
        format_string(list->item[i], item, sizeof item);
        if (used + strlen(item) + 4 >= text_bytes)
            break;
        used += (size_t)snprintf(text + used, text_bytes - used, "%s%s", i > 0 ? ", " : "", item);
    }
    snprintf(text + used, text_bytes - used, "]");
}

void config_value(const struct config *config, int32_t option, char *text, size_t text_bytes)
{
    const struct config_entry *entry = &config_table[option];
    const void *member = (const char *)config + entry->offset;
    const char *choice = entry->choices;

    switch (entry->kind) {
    case CONFIG_KIND_STRING:
        format_string(*(const char *const *)member, text, text_bytes);
        return;
    case CONFIG_KIND_LIST:
        format_list(member, text, text_bytes);
        return;
    case CONFIG_KIND_SECRETS:
        snprintf(text, text_bytes, "%d given, not shown",
                 ((const struct config_list *)member)->count);
        return;
    case CONFIG_KIND_LENGTH:
        if (*(const int32_t *)member == 0) {
            snprintf(text, text_bytes, "auto");
            return;
        } /* fall through */
    case CONFIG_KIND_INT:
        snprintf(text, text_bytes, "%d", *(const int32_t *)member);
        return;
    case CONFIG_KIND_BIG:
        snprintf(text, text_bytes, "%" PRId64, *(const int64_t *)member);
        return;
    case CONFIG_KIND_BYTES:
        config_format_bytes(*(const int64_t *)member, text, text_bytes);
        return;
    case CONFIG_KIND_REAL:
        snprintf(text, text_bytes, "%g", *(const double *)member);
        return;
    case CONFIG_KIND_BOOL:
        snprintf(text, text_bytes, "%s", *(const bool *)member ? "true" : "false");
        return;
    case CONFIG_KIND_CHOICE:
        for (int32_t i = *(const int32_t *)member; i > 0; i--)
            choice = strchr(choice, '|') + 1;
        snprintf(text, text_bytes, "%.*s", (int)strcspn(choice, "|"), choice);
        return;
    }
}

/* ---- --help ---- */

/* What stands for a value in a flag's line. */
static const char *placeholder(const struct config_entry *entry)
{
    static const char *const word[] = {
        [CONFIG_KIND_STRING] = "TEXT", [CONFIG_KIND_LIST] = "TEXT,...",
        [CONFIG_KIND_SECRETS] = "KEY", [CONFIG_KIND_INT] = "N",
        [CONFIG_KIND_LENGTH] = "N",    [CONFIG_KIND_BIG] = "N",
        [CONFIG_KIND_BYTES] = "BYTES", [CONFIG_KIND_REAL] = "X",
        [CONFIG_KIND_BOOL] = "",       [CONFIG_KIND_CHOICE] = "",
    };
    return entry->kind == CONFIG_KIND_CHOICE ? entry->choices : word[entry->kind];
}

/* Text in lines of at most 100 columns, each behind `indent` blanks. */
static void print_wrapped(FILE *out, const char *text, int indent)
{
    int column = 0;

    while (*text != '\0') {
        int bytes = (int)strcspn(text, " ");
        if (column == 0 || column + 1 + bytes > 100) {
            fprintf(out, "%s%*s", column == 0 ? "" : "\n", indent, "");
            column = indent;
        } else {
            fputc(' ', out);
            column++;
        }
        fprintf(out, "%.*s", bytes, text);
        column += bytes;
        text += bytes;
        text += strspn(text, " ");
    }
    fputc('\n', out);
}

static void print_flag(FILE *out, int32_t option)
{
    const struct config_entry *entry = &config_table[option];
    char name[CONFIG_NAME_MAX], range[256], line[1024];
    bool boolean = entry->kind == CONFIG_KIND_BOOL, choice = entry->kind == CONFIG_KIND_CHOICE;

    config_range(entry, range, sizeof range);
    config_name(option, name);
    if (boolean)
        fprintf(out, "  --%s, --no-%s\n", name, name);
    else
        fprintf(out, "  --%s %s\n", name, placeholder(entry));
    snprintf(line, sizeof line, "%s (%s%s%s%s)", entry->help, boolean || choice ? "" : range,
             boolean || choice || range[0] == '\0' ? "" : "; ",
             entry->fallback[0] != '\0' ? "default " : "no default",
             boolean ? (strcmp(entry->fallback, "true") == 0 ? "on" : "off") : entry->fallback);
    print_wrapped(out, line, 8);
}

void config_print_help(FILE *out, enum config_command command)
{
    static const char *const name[] = {"serve", "bench", "tune"};
    static const char *const what[] = {
        "Serves a model over HTTP, with OpenAI's and vLLM's endpoints.",
        "Measures a model without HTTP; one JSON object a figure on standard output.",
        "Measures how this GPU makes a model's products the fastest, for --tune-table FILE."};

    fprintf(out,
            "quire %s [OPTION...] MODEL\n\n"
            "%s\n\n"
            "  --config FILE\n        YAML file of the options below, without their dashes\n"
            "  --check-config\n        check all options and end: 0 when they are good, else 1\n"
            "  --dump-config\n        print the options in force and who set them, and end\n"
            "  -h, --help\n        print this and end\n"
            "  -V, --version\n        print version and build, and end\n",
            name[command], what[command]);
    for (int group = 0; group < CONFIG_GROUP_COUNT; group++) {
        bool titled = false;
        for (int32_t i = 0; i < CONFIG_OPTION_COUNT; i++) {
            if ((int)config_table[i].group != group || !config_takes(command, &config_table[i]))
                continue;
            if (!titled)
                fprintf(out, "\n%s\n", config_group_title[group]);
            titled = true;
            print_flag(out, i);
        }
    }
    fprintf(out, "\nAn option may also stand in the environment: QUIRE_MAX_NUM_SEQS=8. A flag is "
                 "stronger than\nthe environment, the environment than the file, the file than the "
                 "default. Whole numbers take\nk, m, g (powers of 1000) and K, M, G (of 1024).\n");
}

/* ---- --dump-config ---- */

static void print_source(FILE *out, const struct config *config, int32_t option)
{
    const struct config_origin *origin = &config->origin[option];

    switch (origin->source) {
    case CONFIG_BY_DEFAULT:
        fprintf(out, "default");
        break;
    case CONFIG_BY_DEVICE:
        fprintf(out, "default for the device");
        break;
    case CONFIG_BY_FILE:
        fprintf(out, "%s:%d", config->file != NULL ? config->file : "file", origin->line);
        break;
    case CONFIG_BY_ENVIRONMENT:
        fprintf(out, "environment");
        break;
    case CONFIG_BY_FLAG:
        fprintf(out, "flag");
        break;
    }
}

/* Whether the option has no value that could be written down. */
static bool unsaid(const struct config *config, int32_t option)
{
    const void *member = (const char *)config + config_table[option].offset;

    switch (config_table[option].kind) {
    case CONFIG_KIND_STRING:
        return (*(const char *const *)member)[0] == '\0';
    case CONFIG_KIND_LIST:
        return ((const struct config_list *)member)->count == 0;
    case CONFIG_KIND_SECRETS:
        return true;
    default:
        return false;
    }
}

void config_print_dump(FILE *out, const struct config *config)
{
    for (int32_t i = 0; i < CONFIG_OPTION_COUNT; i++) {
        char name[CONFIG_NAME_MAX], value[4096], line[4096 + CONFIG_NAME_MAX + 4];

        if (!config_takes(config->command, &config_table[i]))
            continue;
        config_value(config, i, value, sizeof value);
        snprintf(line, sizeof line, "%s%s: %s", unsaid(config, i) ? "# " : "", config_name(i, name),
                 value);
        fprintf(out, "%-46s # ", line);
        print_source(out, config, i);
        fputc('\n', out);
    }
}

/* ---- configs/quire.yaml and docs/config.md ---- */

void config_print_yaml(FILE *out)
{
    fprintf(out, "# Every option of `quire serve` at its default. Made by `quire docs` from the "
                 "table in\n# server/config.h: change it there. Use it with --config FILE; a line "
                 "that is left out is its default.\n");
    for (int group = 0; group < CONFIG_GROUP_COUNT; group++) {
        if (group == CONFIG_GROUP_BENCH)
            continue;
        fprintf(out, "\n# ---- %s ----\n", config_group_title[group]);
        for (int32_t i = 0; i < CONFIG_OPTION_COUNT; i++) {
            const struct config_entry *entry = &config_table[i];
            char name[CONFIG_NAME_MAX], range[256];
            if ((int)entry->group != group)
                continue;
            config_range(entry, range, sizeof range);
            fprintf(out, "\n# %s%s%s\n", entry->help, range[0] != '\0' ? "; " : "", range);
            fprintf(out, "%s%s:%s%s\n", entry->fallback[0] == '\0' ? "# " : "",
                    config_name(i, name), entry->fallback[0] == '\0' ? "" : " ", entry->fallback);
        }
    }
}

static void print_docs_group(FILE *out, int group)
{
    fprintf(out, "\n## %s\n\n| option | values | default | what it does |\n|---|---|---|---|\n",
            config_group_title[group]);
    for (int32_t i = 0; i < CONFIG_OPTION_COUNT; i++) {
        const struct config_entry *entry = &config_table[i];
        char name[CONFIG_NAME_MAX], range[256];
        if ((int)entry->group != group)
            continue;
        config_range(entry, range, sizeof range);
        if (range[0] == '\0')
            snprintf(range, sizeof range, "%s",
                     entry->kind == CONFIG_KIND_STRING ? "text" : "list");
        fprintf(out, "| `--%s` | %s | %s%s%s | %s |\n", config_name(i, name), range,
                entry->fallback[0] != '\0' ? "`" : "", entry->fallback,
                entry->fallback[0] != '\0' ? "`" : "none", entry->help);
    }
}

static void print_docs_refused(FILE *out)
{
    fprintf(out, "\n## Flags of vLLM's that are taken and change nothing\n\n");
    for (const struct config_refusal *entry = config_always; entry->name != NULL; entry++)
        fprintf(out, "- `--%s`: %s\n", entry->name, entry->why);
    fprintf(out, "\n## Flags of vLLM's that are refused\n\n");
    for (const struct config_refusal *entry = config_refused; entry->name != NULL; entry++)
        fprintf(out, "- `%s%s`: %s\n", strlen(entry->name) > 2 ? "--" : "-", entry->name,
                entry->why);
}

void config_print_docs(FILE *out)
{
    fprintf(
        out,
        "# Options\n\n"
        "Made by `quire docs` from the table in `server/config.h`: change it there.\n\n"
        "Every option is a flag, a variable of the environment and a line of the file:\n\n"
        "| where | how `max-num-seqs` is written |\n|---|---|\n"
        "| flag | `--max-num-seqs 8` or `--max-num-seqs=8`; a switch: `--x` or `--no-x` |\n"
        "| environment | `QUIRE_MAX_NUM_SEQS=8`; lists with commas; an empty one is not set |\n"
        "| file, by `--config FILE` or `QUIRE_CONFIG` | `max-num-seqs: 8`; lists as YAML lists |\n"
        "\nThe first of these that says something counts; then the default. `--dump-config` shows "
        "what is\nin force and who said it. Names are vLLM's where the meaning is. Whole numbers "
        "take its suffixes:\n`k m g t` are powers of 1,000 (`25.6k` too), `K M G T` powers of "
        "1,024. `configs/quire.yaml` has every\noption at its default.\n\n"
        "Exit codes: 0 good, 1 trouble at run time (a port in use; `--check-config`: not good), "
        "2 a wrong flag\nor variable, 3 a model or a file that is invalid, 4 no device or too "
        "little memory, 70 a device was\nlost (start again).\n");
    for (int group = 0; group < CONFIG_GROUP_COUNT; group++)
        print_docs_group(out, group);
    print_docs_refused(out);
}
