/* The tokenizer of a tokenizer.json, as Hugging Face's tokenizers read it: BPE over bytes or over
 * characters ("SPM-BPE"). Other models and unknown components are refused by name.
 */
#ifndef MODEL_TEXT_TOKENIZER_JSON_H
#define MODEL_TEXT_TOKENIZER_JSON_H

#include "model/text/tokenizer.h"

/* What the files beside it say, borrowed for the call; zeroed says nothing. */
struct tokenizer_hints {
    const char *bos, *eos; /* names from tokenizer_config.json; NULL: none */
    int32_t bos_count;     /* 0 or 1: `bos_token` is set (bos_token_id of config.json) */
    int32_t bos_token;
    int32_t end_count; /* eos_token_id of config.json and generation_config.json, all of them */
    const int32_t *end;
};

/* Special tokens that are put before and after texts come from the post-processor alone. A hint
 * that is no token of the file is left out: configs name more ids than tokenizers have. NULL with
 * one line in `error`: no JSON, a component that is not supported, a broken vocabulary, or no
 * memory. */
struct tokenizer *tokenizer_open_json(const char *json, size_t json_bytes,
                                      const struct tokenizer_hints *hints, char *error,
                                      size_t error_bytes);

#endif
