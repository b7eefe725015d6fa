/* The tokenizers of model files: the `tokenizer.ggml.` keys of a GGUF to the arrays that model/text
 * takes, and the tokenizer.json of a folder. */
#include "model/load/gguf.h"
#include "model/load/hf.h"
#include "model/load/mapping.h"
#include "model/load/source_private.h"
#include "model/text/bpe.h"
#include "model/text/spm.h"
#include "model/text/tokenizer_json.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct gguf_value *find(const struct source *source, const char *key)
{
    char whole[128];

    snprintf(whole, sizeof(whole), "tokenizer.ggml.%s", key);
    return gguf_find(source->gguf, whole);
}

static bool text_is(struct gguf_string string, const char *text)
{
    return string.count == strlen(text) && memcmp(string.byte, text, string.count) == 0;
}

int64_t source_token_count(const struct source *source)
{
    const struct gguf_value *tokens = source->gguf == NULL ? NULL : find(source, "tokens");

    return tokens == NULL || !tokens->array ? 0 : tokens->count;
}

/* An id, `fallback` when the key is not there; whether it lies in the vocabulary is checked by
 * the tokenizer. */
static int32_t token_id(struct source *source, const char *key, int32_t fallback)
{
    const struct gguf_value *value = find(source, key);
    int64_t id;

    if (value == NULL)
        return fallback;
    if (gguf_int(value, 0, &id) && id >= -1 && id < SPM_TOKEN_MAX)
        return (int32_t)id;
    /* Some files write "none" as the greatest u32. */
    if (gguf_int(value, 0, &id) && id == UINT32_MAX)
        return -1;
    source_refuse(source, -EINVAL, "key tokenizer.ggml.%s is no token id", key);
    return fallback;
}

static bool truth(struct source *source, const char *key, bool fallback)
{
    const struct gguf_value *value = find(source, key);
    bool found;

    if (value == NULL)
        return fallback;
    if (gguf_truth(value, 0, &found))
        return found;
    source_refuse(source, -EINVAL, "key tokenizer.ggml.%s is no bool", key);
    return fallback;
}

/* The array of `type` that has `count` elements; NULL where it is not there. */
static const struct gguf_value *array_of(struct source *source, const char *key,
                                         enum gguf_type type, int64_t count)
{
    const struct gguf_value *value = find(source, key);

    if (value == NULL)
        return NULL;
    if (value->array && value->type == type && value->count == count)
        return value;
    source_refuse(source, -EINVAL,
                  "key tokenizer.ggml.%s is not a list of %" PRId64 " elements of the right type",
                  key, count);
    return NULL;
}

struct arrays {
    const char **spelling;
    size_t *spelling_bytes;
    float *score; /* NULL where the kind has none */
    int32_t *type;
    const char **merge; /* NULL where the kind has none */
    size_t *merge_bytes;
    int32_t merge_count;
};

static void free_arrays(struct arrays *arrays)
{
    free(arrays->spelling);
    free(arrays->spelling_bytes);
    free(arrays->score);
    free(arrays->type);
    free(arrays->merge);
    free(arrays->merge_bytes);
}

static bool no_memory(struct source *source, size_t count)
{
    source_refuse(source, -ENOMEM, "no memory for %zu tokens or merges", count);
    return false;
}

/* Texts of the file, in place. */
static bool list_strings(struct source *source, const struct gguf_value *value,
                         const char ***string, size_t **bytes)
{
    size_t count = (size_t)value->count;
    const unsigned char *cursor = value->data;

    *string = malloc((count + 1) * sizeof(**string));
    *bytes = malloc((count + 1) * sizeof(**bytes));
    if (*string == NULL || *bytes == NULL)
        return no_memory(source, count);
    for (size_t i = 0; i < count; i++) {
        struct gguf_string text = gguf_next(&cursor);

        (*string)[i] = text.byte;
        (*bytes)[i] = text.count;
    }
    return true;
}

/* Copies what the file holds unaligned. False: no memory, or a refusal. */
static bool fill(struct source *source, struct arrays *arrays, size_t count)
{
    const struct gguf_value *tokens = array_of(source, "tokens", GGUF_STRING, (int64_t)count);
    const struct gguf_value *types = array_of(source, "token_type", GGUF_I32, (int64_t)count);

    if (source_status(source) != 0 ||
        !list_strings(source, tokens, &arrays->spelling, &arrays->spelling_bytes))
        return false;
    if (types == NULL)
        return true;
    arrays->type = malloc(count * sizeof(*arrays->type));
    if (arrays->type == NULL)
        return no_memory(source, count);
    memcpy(arrays->type, types->data, count * sizeof(*arrays->type));
    return true;
}

static bool fill_scores(struct source *source, struct arrays *arrays, size_t count)
{
    const struct gguf_value *scores = array_of(source, "scores", GGUF_F32, (int64_t)count);

    if (scores == NULL)
        source_refuse(source, -EINVAL, "key tokenizer.ggml.scores is missing");
    if (source_status(source) != 0)
        return false;
    arrays->score = malloc(count * sizeof(*arrays->score));
    if (arrays->score == NULL)
        return no_memory(source, count);
    memcpy(arrays->score, scores->data, count * sizeof(*arrays->score));
    return true;
}

static bool fill_merges(struct source *source, struct arrays *arrays)
{
    const struct gguf_value *merges = find(source, "merges");

    if (merges == NULL || !merges->array || merges->type != GGUF_STRING ||
        merges->count > 4 * (int64_t)SPM_TOKEN_MAX) {
        source_refuse(source, -EINVAL, "key tokenizer.ggml.merges is no list of texts");
        return false;
    }
    arrays->merge_count = (int32_t)merges->count;
    return list_strings(source, merges, &arrays->merge, &arrays->merge_bytes);
}

static struct tokenizer *create_spm(struct source *source, const struct arrays *arrays,
                                    int32_t count)
{
    struct spm_vocabulary vocabulary = {
        .token_count = count,
        .spelling = arrays->spelling,
        .spelling_bytes = arrays->spelling_bytes,
        .score = arrays->score,
        .type = arrays->type,
        .bos = token_id(source, "bos_token_id", 1),
        .eos = token_id(source, "eos_token_id", 2),
        .unknown = token_id(source, "unknown_token_id", 0),
        .eot = token_id(source, "eot_token_id", -1),
        .eom = token_id(source, "eom_token_id", -1),
        .add_bos = truth(source, "add_bos_token", true),
        .add_eos = truth(source, "add_eos_token", false),
        .add_space_prefix = truth(source, "add_space_prefix", true),
    };
    char detail[256];
    struct tokenizer *tokenizer;

    if (source_status(source) != 0)
        return NULL;
    tokenizer = tokenizer_create_spm(&vocabulary, detail, sizeof(detail));
    if (tokenizer == NULL)
        source_refuse(source, -EINVAL, "%s", detail);
    return tokenizer;
}

static struct tokenizer *create_bpe(struct source *source, const struct arrays *arrays,
                                    int32_t count)
{
    struct gguf_string pre = gguf_text(find(source, "pre"));
    char detail[256], name[64];
    struct bpe_vocabulary vocabulary = {
        .token_count = count,
        .spelling = arrays->spelling,
        .spelling_bytes = arrays->spelling_bytes,
        .type = arrays->type,
        .merge_count = arrays->merge_count,
        .merge = arrays->merge,
        .merge_bytes = arrays->merge_bytes,
        .pre = pre.count == 0 ? NULL : gguf_printable(pre, name, sizeof(name)),
        .bos = token_id(source, "bos_token_id", count > 11 ? 11 : -1),
        .eos = token_id(source, "eos_token_id", count > 11 ? 11 : -1),
        .unknown = token_id(source, "unknown_token_id", -1),
        .eot = token_id(source, "eot_token_id", -1),
        .eom = token_id(source, "eom_token_id", -1),
        .add_bos =
            find(source, "add_bos_token") == NULL ? -1 : truth(source, "add_bos_token", false),
        .add_eos = truth(source, "add_eos_token", false),
    };

    if (source_status(source) != 0)
        return NULL;
    struct tokenizer *tokenizer = tokenizer_create_bpe(&vocabulary, detail, sizeof(detail));
    if (tokenizer == NULL)
        source_refuse(source, -EINVAL, "%s", detail);
    return tokenizer;
}

static struct tokenizer *open_gguf(struct source *source)
{
    struct gguf_string kind = gguf_text(find(source, "model"));
    int64_t count = source_token_count(source);
    struct arrays arrays = {0};
    struct tokenizer *tokenizer = NULL;
    char name[64];

    if (kind.count == 0 || text_is(kind, "none") || text_is(kind, "no_vocab"))
        return NULL;
    bool bpe = text_is(kind, "gpt2");
    if (!bpe && !text_is(kind, "llama")) {
        source_refuse(source, -ENOTSUP, "tokenizer.ggml.model is %s; supported are llama and gpt2",
                      gguf_printable(kind, name, sizeof(name)));
        return NULL;
    }
    if (count < 1 || count > SPM_TOKEN_MAX) {
        source_refuse(source, -EINVAL,
                      "tokenizer.ggml.tokens has %" PRId64 " elements, not from 1 to %d", count,
                      SPM_TOKEN_MAX);
        return NULL;
    }
    if (fill(source, &arrays, (size_t)count)) {
        if (bpe && fill_merges(source, &arrays))
            tokenizer = create_bpe(source, &arrays, (int32_t)count);
        else if (!bpe && fill_scores(source, &arrays, (size_t)count))
            tokenizer = create_spm(source, &arrays, (int32_t)count);
    }
    free_arrays(&arrays);
    return tokenizer;
}

/* The tokenizer.json of a folder. */
static struct tokenizer *open_json(struct source *source)
{
    const struct hf_config *config = &source->hf->config;
    const struct tokenizer_hints hints = {
        .bos = config->bos_name[0] == '\0' ? NULL : config->bos_name,
        .eos = config->eos_name[0] == '\0' ? NULL : config->eos_name,
        .bos_count = config->bos_token >= 0,
        .bos_token = config->bos_token,
        .end_count = config->end_count,
        .end = config->end_token,
    };
    struct tokenizer *tokenizer = NULL;
    const unsigned char *map = NULL;
    char path[4096], detail[512];
    size_t bytes = 0;
    int status = -ENAMETOOLONG;

    snprintf(detail, sizeof(detail), "its path is too long");
    if ((size_t)snprintf(path, sizeof(path), "%s/tokenizer.json", source->path) < sizeof(path))
        status = mapping_open(path, &map, &bytes, detail, sizeof(detail));
    if (status == 0) {
        tokenizer = tokenizer_open_json((const char *)map, bytes, &hints, detail, sizeof(detail));
        status = tokenizer == NULL ? -EINVAL : 0;
    }
    mapping_close(map, bytes);
    if (status != 0)
        source_refuse(source, status, "tokenizer.json: %s", detail);
    return tokenizer;
}

struct tokenizer *source_tokenizer(struct source *source)
{
    return source->hf != NULL ? open_json(source) : open_gguf(source);
}
