/* The insides of a source, for the files that fill it. */
#ifndef MODEL_LOAD_SOURCE_PRIVATE_H
#define MODEL_LOAD_SOURCE_PRIVATE_H

#include "model/load/source.h"

struct source {
    struct gguf *gguf;    /* owned; NULL: a folder */
    struct hf_folder *hf; /* owned; NULL: a GGUF */
    char *path;
    char architecture[64];
    bool *used; /* [tensor_count of gguf], in the order of its index */
    int status; /* of the first refusal */
    char *error;
    size_t error_bytes;
};

#endif
