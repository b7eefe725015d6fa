/* The configuration file: a YAML mapping of option names to scalars or lists of scalars.
 *
 * Only that much of YAML is taken, event by event: the first nested, anchored, tagged or aliased
 * node ends the reading, so that a hostile file costs no more than its bytes.
 */
#include "server/config_table.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <yaml.h>

struct reading {
    struct config_reader *reader;
    const char *name; /* of the file */
    yaml_parser_t parser;
    yaml_event_t event;
    bool has_event;
    int32_t seen_line[CONFIG_OPTION_COUNT]; /* where an option was said; 0: not yet */
};

static int32_t line_of(const struct reading *reading)
{
    return (int32_t)reading->event.start_mark.line + 1;
}

__attribute__((format(printf, 3, 4))) static int refuse_line(struct reading *reading, int32_t line,
                                                             const char *format, ...)
{
    char reason[256];
    va_list arguments;

    va_start(arguments, format);
    vsnprintf(reason, sizeof reason, format, arguments);
    va_end(arguments);
    snprintf(reading->reader->error, reading->reader->error_bytes, "%s:%d: %s", reading->name, line,
             reason);
    return -EBADMSG;
}

/* The next event in reading->event. */
static int next_event(struct reading *reading)
{
    if (reading->has_event)
        yaml_event_delete(&reading->event);
    reading->has_event = yaml_parser_parse(&reading->parser, &reading->event) != 0;
    if (reading->has_event)
        return 0;
    const char *problem = reading->parser.problem;
    return refuse_line(reading, (int32_t)reading->parser.problem_mark.line + 1, "not YAML: %s",
                       problem != NULL ? problem : "out of memory");
}

/* The text of a scalar event, or NULL and one line. */
static const char *scalar(struct reading *reading, const char *what)
{
    const yaml_event_t *event = &reading->event;
    int32_t line = line_of(reading);

    if (event->type == YAML_ALIAS_EVENT)
        refuse_line(reading, line, "%s: anchors and aliases are not taken", what);
    else if (event->type != YAML_SCALAR_EVENT)
        refuse_line(reading, line, "%s: must be one value, not a list or a mapping", what);
    else if (event->data.scalar.anchor != NULL || event->data.scalar.tag != NULL)
        refuse_line(reading, line, "%s: anchors and tags are not taken", what);
    else if (strlen((const char *)event->data.scalar.value) != event->data.scalar.length)
        refuse_line(reading, line, "%s: a zero byte is in the value", what);
    else if (event->data.scalar.length > CONFIG_VALUE_MAX)
        refuse_line(reading, line, "%s: longer than %d bytes", what, CONFIG_VALUE_MAX);
    else
        return (const char *)event->data.scalar.value;
    return NULL;
}

static bool is_null(const yaml_event_t *event, const char *value)
{
    return event->data.scalar.style == YAML_PLAIN_SCALAR_STYLE &&
           (value[0] == '\0' || strcmp(value, "~") == 0 || strcasecmp(value, "null") == 0);
}

static int set_scalar(struct reading *reading, int32_t option, const char *name)
{
    struct config_place place = {CONFIG_BY_FILE, reading->name, line_of(reading)};
    const char *value = scalar(reading, name);

    if (value == NULL)
        return -EBADMSG;
    if (is_null(&reading->event, value))
        return refuse_line(reading, place.line, "%s: has no value; leave the line out", name);
    return config_set(reading->reader, option, value, place) < 0 ? -EBADMSG : 0;
}

static int set_list(struct reading *reading, int32_t option, const char *name)
{
    enum config_kind kind = config_table[option].kind;

    if (reading->event.data.sequence_start.anchor != NULL ||
        reading->event.data.sequence_start.tag != NULL)
        return refuse_line(reading, line_of(reading), "%s: anchors and tags are not taken", name);
    if (kind != CONFIG_KIND_LIST && kind != CONFIG_KIND_SECRETS)
        return refuse_line(reading, line_of(reading), "%s: must be one value, not a list", name);
    for (;;) {
        int result = next_event(reading);
        if (result < 0)
            return result;
        if (reading->event.type == YAML_SEQUENCE_END_EVENT)
            return 0;
        result = set_scalar(reading, option, name);
        if (result < 0)
            return result;
    }
}

/* reading->event is a key of the mapping. */
static int read_pair(struct reading *reading)
{
    struct config_reader *reader = reading->reader;
    struct config_place place = {CONFIG_BY_FILE, reading->name, line_of(reading)};
    char name[CONFIG_NAME_MAX * 2];
    const char *key = scalar(reading, "a name");

    if (key == NULL)
        return -EBADMSG;
    snprintf(name, sizeof name, "%s", key);
    int32_t option = config_find(reader->config->command, name);
    if (option < 0 && !config_is_always(name)) {
        config_unknown(reader, name, place);
        return -EBADMSG;
    }
    int result = next_event(reading);
    if (result < 0)
        return result;
    if (option < 0) {
        const char *value = scalar(reading, name);
        if (value != NULL && strcmp(value, "true") != 0)
            refuse_line(reading, place.line, "%s: cannot be turned off", name);
        return value != NULL && strcmp(value, "true") == 0 ? 0 : -EBADMSG;
    }
    if (reading->seen_line[option] > 0)
        return refuse_line(reading, place.line, "%s: said already in line %d", name,
                           reading->seen_line[option]);
    reading->seen_line[option] = place.line;
    return reading->event.type == YAML_SEQUENCE_START_EVENT ? set_list(reading, option, name)
                                                            : set_scalar(reading, option, name);
}

static int read_mapping(struct reading *reading)
{
    if (reading->event.data.mapping_start.anchor != NULL ||
        reading->event.data.mapping_start.tag != NULL)
        return refuse_line(reading, line_of(reading), "anchors and tags are not taken");
    for (;;) {
        int result = next_event(reading);
        if (result < 0)
            return result;
        if (reading->event.type == YAML_MAPPING_END_EVENT)
            return 0;
        result = read_pair(reading);
        if (result < 0)
            return result;
    }
}

static int read_documents(struct reading *reading)
{
    bool seen = false;

    for (;;) {
        int result = next_event(reading);
        if (result < 0)
            return result;
        switch (reading->event.type) {
        case YAML_STREAM_END_EVENT:
            return 0;
        case YAML_STREAM_START_EVENT:
        case YAML_DOCUMENT_END_EVENT:
            break;
        case YAML_DOCUMENT_START_EVENT:
            if (seen)
                return refuse_line(reading, line_of(reading), "a second document");
            seen = true;
            break;
        case YAML_MAPPING_START_EVENT:
            result = read_mapping(reading);
            if (result < 0)
                return result;
            break;
        case YAML_SCALAR_EVENT: /* "---" and nothing behind it */
            if (is_null(&reading->event, (const char *)reading->event.data.scalar.value))
                break;
            return refuse_line(reading, line_of(reading), "must be lines of \"name: value\"");
        default:
            return refuse_line(reading, line_of(reading), "must be lines of \"name: value\"");
        }
    }
}

int config_read_yaml(struct config *config, const char *name, const char *text, size_t text_bytes,
                     char *error, size_t error_bytes)
{
    struct config_reader reader = {config, error, error_bytes};
    struct reading reading = {.reader = &reader, .name = name};

    if (!yaml_parser_initialize(&reading.parser)) {
        snprintf(error, error_bytes, "%s: out of memory", name);
        return -EBADMSG;
    }
    yaml_parser_set_input_string(&reading.parser, (const unsigned char *)text, text_bytes);
    int result = read_documents(&reading);
    if (reading.has_event)
        yaml_event_delete(&reading.event);
    yaml_parser_delete(&reading.parser);
    return result;
}
