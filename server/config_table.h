/* The option table as data, shared by the files config*.c; nobody else needs it. */
#ifndef SERVER_CONFIG_TABLE_H
#define SERVER_CONFIG_TABLE_H

#include "server/config.h"

enum config_group {
#define GROUP(constant, title) CONFIG_GROUP_##constant,
    CONFIG_GROUPS(GROUP)
#undef GROUP
        CONFIG_GROUP_COUNT
};

enum config_kind {
    CONFIG_KIND_STRING,
    CONFIG_KIND_LIST,
    CONFIG_KIND_SECRETS,
    CONFIG_KIND_INT,
    CONFIG_KIND_LENGTH,
    CONFIG_KIND_BIG,
    CONFIG_KIND_BYTES,
    CONFIG_KIND_REAL,
    CONFIG_KIND_BOOL,
    CONFIG_KIND_CHOICE,
};

enum { CONFIG_NAME_MAX = 64, CONFIG_VALUE_MAX = 1024 };

struct config_entry {
    const char *member; /* "max_num_seqs" */
    enum config_group group;
    enum config_kind kind;
    size_t offset; /* of the member in struct config */
    const char *fallback;
    int64_t least, greatest;          /* of whole numbers; greatest: items of a list */
    double least_real, greatest_real; /* of REAL */
    const char *choices;
    const char *help;
};

extern const struct config_entry config_table[CONFIG_OPTION_COUNT];
extern const char *const config_group_title[CONFIG_GROUP_COUNT];

/* A flag of vLLM's that quire does not take, and why; ended by a NULL name. */
struct config_refusal {
    const char *name;
    const char *why;
};
extern const struct config_refusal config_refused[];
/* Flags of vLLM's whose behaviour is always on here: taken, except with "no-". */
extern const struct config_refusal config_always[];

/* Where a value was found, for messages: "--port", "QUIRE_PORT", "FILE:7: port". */
struct config_place {
    enum config_source source;
    const char *file;
    int32_t line;
};

/* What a message about an option needs to know. */
struct config_reader {
    struct config *config;
    char *error;
    size_t error_bytes;
};

/* An option as users write it, "max-num-seqs", in name[CONFIG_NAME_MAX], which is returned. */
const char *config_name(int32_t option, char *name);
/* Whether a command has use for an option. */
bool config_takes(enum config_command command, const struct config_entry *entry);
/* The option called `name` (dashes and underscores are the same), or -1. */
int32_t config_find(enum config_command command, const char *name);
/* Sets an option; a list is replaced by the first item of a higher source and grows with others
 * of the same one. 0, or -EINVAL and one line. */
int config_set(struct config_reader *reader, int32_t option, const char *value,
               struct config_place place);
/* One line about a name that is no option; returns -EINVAL. */
int config_unknown(struct config_reader *reader, const char *name, struct config_place place);
/* True for a name of config_always. */
bool config_is_always(const char *name);
/* One line, prefixed by the place of `name`; returns -EINVAL. */
int config_refuse(struct config_reader *reader, const char *name, struct config_place place,
                  const char *format, ...) __attribute__((format(printf, 4, 5)));

/* What a user typed, fit for a terminal and one line, in target, which is returned. */
const char *config_printable(const char *text, char *target, size_t target_bytes);

/* A flag that was found, to be set once the weaker sources are read. */
struct config_given {
    int32_t option;
    const char *value;
};

struct config_flags {
    struct config_reader *reader;
    struct config_given *given; /* [argc + 1] */
    int32_t count;
    int argc;
    char **argv;
    int next; /* index into argv */
};

/* Finds the flags, the action and the file's name; 0, or -EINVAL and one line. */
int config_collect_flags(struct config_flags *flags);
/* Sets what was found; 0, or -EINVAL and one line. */
int config_set_flags(struct config_flags *flags);

/* The range of an option in words, "" when there is none: "0 to 65535", "one of a, b". */
void config_range(const struct config_entry *entry, char *text, size_t text_bytes);
/* The value of an option as YAML. */
void config_value(const struct config *config, int32_t option, char *text, size_t text_bytes);
/* A number of bytes as it is best read: 33554432 is "32M", 1000 is "1000". */
void config_format_bytes(int64_t bytes, char *text, size_t text_bytes);

#endif
