/* Inside of the reader of tokenizer.json: its small components, from cJSON trees.
 *
 * Each takes the component's tree, NULL or JSON's null where the file has none, and returns false
 * with one line in `error` that names what is not supported.
 */
#ifndef MODEL_TEXT_JSON_PARTS_H
#define MODEL_TEXT_JSON_PARTS_H

#include "model/text/bpe_kind.h"

struct cJSON;

bool json_read_normalizer(struct bpe *bpe, const struct cJSON *json, char *error,
                          size_t error_bytes);
bool json_read_splitter(struct bpe *bpe, const struct cJSON *json, char *error, size_t error_bytes);
/* After the tokens are set, kinds included. */
bool json_read_decoder(struct bpe *bpe, const struct cJSON *json, char *error, size_t error_bytes);
bool json_read_frame(struct bpe *bpe, const struct cJSON *json, char *error, size_t error_bytes);

#endif
