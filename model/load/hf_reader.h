/* The insides of reading a config.json, for the files that do it. Refusals stick in the reader. */
#ifndef MODEL_LOAD_HF_READER_H
#define MODEL_LOAD_HF_READER_H

#include "model/load/hf_config.h"
#include "model/load/json_tree.h"

struct hf_reader {
    struct hf_config *config;
    const cJSON *root;
    const cJSON *text; /* the language model's settings: the root, or within it */
    int status;        /* of the first refusal */
    char *error;
    size_t error_bytes;
};

/* The first one wins. */
void hf_refuse(struct hf_reader *reader, int status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* Members of an object, which may be NULL: those that are of another type are refused. */
bool hf_number(struct hf_reader *reader, const cJSON *object, const char *name, double *number);
bool hf_truth(struct hf_reader *reader, const cJSON *object, const char *name, bool fallback);
const char *hf_text(struct hf_reader *reader, const cJSON *object, const char *name,
                    const char *fallback);
/* A member of the language model's settings that is there and not null, or NULL. */
const cJSON *hf_find(const struct hf_reader *reader, const char *name);

/* Settings; the key is kept as it is given. */
void hf_put_number(struct hf_reader *reader, const char *key, const char *name, double number);
void hf_put_text(struct hf_reader *reader, const char *key, const char *name, const char *text);

/* hf_rope.c: bases, rotated part and scaling, in either form. */
void hf_read_ropes(struct hf_reader *reader);

#endif
