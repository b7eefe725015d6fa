/* Values of options from text, and the messages about them. */
#include "server/config_table.h"

#include <assert.h>
#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

/* What a user typed, fit for a terminal and one line. */
const char *config_printable(const char *text, char *target, size_t target_bytes)
{
    size_t i = 0;

    for (; text[i] != '\0' && i + 4 < target_bytes; i++)
        target[i] = (char)(iscntrl((unsigned char)text[i]) ? '?' : text[i]);
    snprintf(target + i, target_bytes - i, "%s", text[i] == '\0' ? "" : "...");
    return target;
}

int config_refuse(struct config_reader *reader, const char *name, struct config_place place,
                  const char *format, ...)
{
    char reason[512], shown[CONFIG_NAME_MAX + 16];
    va_list arguments;

    va_start(arguments, format);
    vsnprintf(reason, sizeof reason, format, arguments);
    va_end(arguments);
    config_printable(name, shown, sizeof shown);
    if (place.source == CONFIG_BY_FILE) {
        snprintf(reader->error, reader->error_bytes, "%s:%d: %s: %s", place.file, place.line, shown,
                 reason);
    } else if (place.source == CONFIG_BY_ENVIRONMENT) {
        for (char *c = shown; *c != '\0'; c++)
            *c = (char)(*c == '-' ? '_' : toupper((unsigned char)*c));
        snprintf(reader->error, reader->error_bytes, "QUIRE_%s: %s", shown, reason);
    } else {
        snprintf(reader->error, reader->error_bytes, "--%s: %s", shown, reason);
    }
    return -EINVAL;
}

/* ---- values ---- */

/* Copies of strings, freed together. */
struct config_text {
    struct config_text *next;
    char text[];
};

static const char *keep(struct config *config, const char *text, size_t bytes)
{
    struct config_text *copy = malloc(sizeof *copy + bytes + 1);

    if (copy == NULL)
        return NULL;
    memcpy(copy->text, text, bytes);
    copy->text[bytes] = '\0';
    copy->next = config->text;
    config->text = copy;
    return copy->text;
}

/* A whole number with one of vLLM's suffixes, "32k", "25.6k", "2G". */
static bool parse_whole(const char *text, int64_t *value)
{
    static const char suffixes[] = "kmgtKMGT";
    const char *digits = text[0] == '-' ? text + 1 : text;
    size_t digit_count = strspn(digits, "0123456789"), length = digit_count;
    int64_t unit = 1;

    if (digits[length] == '.')
        length += 1 + strspn(digits + length + 1, "0123456789");
    if (digits[length] != '\0') {
        const char *suffix = strchr(suffixes, digits[length]);
        if (suffix == NULL || digits[length + 1] != '\0')
            return false;
        for (int power = (int)((suffix - suffixes) % 4) + 1; power > 0; power--)
            unit *= suffix - suffixes < 4 ? 1000 : 1024;
    }
    if (digit_count == 0 || digit_count > 19)
        return false;
    if (length > digit_count) { /* a fraction: only of a decimal unit, as in vLLM */
        double whole = strtod(text, NULL) * (double)unit;
        bool decimal = unit > 1 && strchr("kmgt", digits[length]) != NULL;
        *value = (int64_t)llround(whole);
        return decimal && length > digit_count + 1 && fabs(whole) < 9e15 &&
               fabs(whole - (double)*value) < 1e-6;
    }
    errno = 0;
    *value = strtoll(text, NULL, 10);
    return errno == 0 && !__builtin_mul_overflow(*value, unit, value);
}

static bool parse_real(const char *text, double *value)
{
    char *end;

    if (text[0] == '\0' || text[strspn(text, "0123456789.eE+-")] != '\0')
        return false;
    *value = strtod(text, &end);
    return *end == '\0' && isfinite(*value);
}

static bool parse_bool(const char *text, bool *value)
{
    static const char *const word[] = {"true", "yes", "on", "1", "false", "no", "off", "0"};

    for (int i = 0; i < 8; i++) {
        if (strcasecmp(text, word[i]) == 0) {
            *value = i < 4;
            return true;
        }
    }
    return false;
}

/* The index of `text` among "a|b|c", or -1. */
static int32_t parse_choice(const char *text, const char *choices)
{
    size_t bytes = strlen(text);

    for (int32_t i = 0;; i++) {
        size_t choice_bytes = strcspn(choices, "|");
        if (choice_bytes == bytes && strncmp(text, choices, bytes) == 0)
            return i;
        if (choices[choice_bytes] == '\0')
            return -1;
        choices += choice_bytes + 1;
    }
}

static bool set_whole(const struct config_entry *entry, void *member, const char *text)
{
    int64_t value;

    if (entry->kind == CONFIG_KIND_LENGTH &&
        (strcmp(text, "auto") == 0 || strcmp(text, "-1") == 0)) {
        *(int32_t *)member = 0;
        return true;
    }
    if (!parse_whole(text, &value) || value < entry->least || value > entry->greatest)
        return false;
    if (entry->kind == CONFIG_KIND_BIG || entry->kind == CONFIG_KIND_BYTES)
        *(int64_t *)member = value;
    else
        *(int32_t *)member = (int32_t)value;
    return true;
}

static bool set_number(const struct config_entry *entry, void *member, const char *text)
{
    double real;

    switch (entry->kind) {
    case CONFIG_KIND_BOOL:
        return parse_bool(text, member);
    case CONFIG_KIND_CHOICE:
        if (parse_choice(text, entry->choices) < 0)
            return false;
        *(int32_t *)member = parse_choice(text, entry->choices);
        return true;
    case CONFIG_KIND_REAL:
        if (!parse_real(text, &real) || real < entry->least_real || real > entry->greatest_real)
            return false;
        *(double *)member = real;
        return true;
    default:
        return set_whole(entry, member, text);
    }
}

/* Adds the items of "a,b" (a secret is one item) to a list. */
static int add_items(struct config_reader *reader, int32_t option, const char *value,
                     struct config_place place)
{
    const struct config_entry *entry = &config_table[option];
    struct config_list *list = (void *)((char *)reader->config + entry->offset);
    bool split = entry->kind == CONFIG_KIND_LIST || place.source == CONFIG_BY_ENVIRONMENT;
    char name[CONFIG_NAME_MAX];

    for (const char *item = value; *item != '\0';) {
        size_t bytes = split ? strcspn(item, ",") : strlen(item);
        if (bytes > 0) {
            if (list->count == entry->greatest)
                return config_refuse(reader, config_name(option, name), place,
                                     "more than %lld are given", (long long)entry->greatest);
            char **grown = realloc(list->item, ((size_t)list->count + 1) * sizeof *grown);
            const char *copy = keep(reader->config, item, bytes);
            list->item = grown != NULL ? grown : list->item;
            if (grown == NULL || copy == NULL)
                return config_refuse(reader, config_name(option, name), place, "out of memory");
            list->item[list->count++] = (char *)copy;
        }
        item += bytes + (item[bytes] == ',' ? 1 : 0);
    }
    return 0;
}

int config_set(struct config_reader *reader, int32_t option, const char *value,
               struct config_place place)
{
    const struct config_entry *entry = &config_table[option];
    struct config_origin *origin = &reader->config->origin[option];
    void *member = (char *)reader->config + entry->offset;
    char name[CONFIG_NAME_MAX], range[256], shown[128];
    bool higher = origin->source != place.source;

    assert(place.source >= origin->source);
    for (const char *c = value; *c != '\0'; c++)
        if (iscntrl((unsigned char)*c))
            return config_refuse(reader, config_name(option, name), place,
                                 "a control character is in \"%s\"",
                                 config_printable(value, shown, sizeof shown));
    *origin = (struct config_origin){.source = place.source, .line = place.line};
    switch (entry->kind) {
    case CONFIG_KIND_STRING:
        *(const char **)member = keep(reader->config, value, strlen(value));
        return *(const char **)member != NULL
                   ? 0
                   : config_refuse(reader, config_name(option, name), place, "out of memory");
    case CONFIG_KIND_LIST:
    case CONFIG_KIND_SECRETS:
        if (higher)
            ((struct config_list *)member)->count = 0;
        return add_items(reader, option, value, place);
    default:
        if (set_number(entry, member, value))
            return 0;
        config_range(entry, range, sizeof range);
        return config_refuse(reader, config_name(option, name), place, "must be %s, not \"%s\"%s",
                             range, config_printable(value, shown, sizeof shown),
                             strncmp(value, "tcp://", 6) == 0
                                 ? " (Kubernetes sets this for a service named quire: set "
                                   "enableServiceLinks: false)"
                                 : "");
    }
}

void config_release(struct config *config)
{
    while (config->text != NULL) {
        struct config_text *text = config->text;
        config->text = text->next;
        explicit_bzero(text->text, strlen(text->text)); /* it may be a key */
        free(text);
    }
    for (int32_t i = 0; i < CONFIG_OPTION_COUNT; i++)
        if (config_table[i].kind == CONFIG_KIND_LIST || config_table[i].kind == CONFIG_KIND_SECRETS)
            free(((struct config_list *)((char *)config + config_table[i].offset))->item);
    *config = (struct config){0};
}
