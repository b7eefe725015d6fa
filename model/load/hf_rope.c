/* Rope settings of a config.json. transformers 4 has rope_theta beside rope_scaling (and
 * rope_local_base_freq beside those); 5 has one object rope_parameters, or one for each type of
 * layer. Where a file has both, the old form wins, as in transformers. */
#include "model/load/hf_reader.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

enum { BASE_DEFAULT = 10000, GEMMA_BASE_DEFAULT = 1000000 };

static const char full[] = "full_attention";
static const char sliding[] = "sliding_attention";

struct rope {
    const cJSON *scaled; /* the object with the settings, or NULL */
    double base;
    double context; /* max_position_embeddings */
};

static double number_or(struct hf_reader *reader, const cJSON *object, const char *name,
                        double fallback)
{
    double number = fallback;

    hf_number(reader, object, name, &number);
    return number;
}

static double need(struct hf_reader *reader, const cJSON *object, const char *name)
{
    double number = 1;

    if (!hf_number(reader, object, name, &number))
        hf_refuse(reader, -EINVAL, "rope settings: %s is missing", name);
    return number;
}

static double original_length(struct hf_reader *reader, const struct rope *rope)
{
    static const char name[] = "original_max_position_embeddings";
    double length = number_or(reader, rope->scaled, name, rope->context);

    return number_or(reader, reader->text, name, length);
}

/* What YaRN's longer context does to the scores: see docs of the formula in model/rope.h. */
static double yarn_magnitude(double factor, double scale)
{
    return factor <= 1 ? 1 : 0.1 * scale * log(factor) + 1;
}

static void read_yarn(struct hf_reader *reader, const struct rope *rope)
{
    double original = original_length(reader, rope);
    double factor =
        number_or(reader, rope->scaled, "factor", original > 0 ? rope->context / original : 1);
    double one = number_or(reader, rope->scaled, "mscale", 0);
    double all = number_or(reader, rope->scaled, "mscale_all_dim", 0);
    double magnitude = yarn_magnitude(factor, 1);

    if (one != 0 && all != 0)
        magnitude = yarn_magnitude(factor, one) / yarn_magnitude(factor, all);
    hf_put_number(reader, "rope.scaling.factor", "factor", factor);
    hf_put_number(reader, "rope.scaling.original_context_length",
                  "original_max_position_embeddings", original);
    hf_put_number(reader, "rope.scaling.magnitude", "attention_factor",
                  number_or(reader, rope->scaled, "attention_factor", magnitude));
    hf_put_number(reader, "rope.scaling.yarn_beta_fast", "beta_fast",
                  number_or(reader, rope->scaled, "beta_fast", 32));
    hf_put_number(reader, "rope.scaling.yarn_beta_slow", "beta_slow",
                  number_or(reader, rope->scaled, "beta_slow", 1));
    hf_put_number(reader, "rope.scaling.yarn_truncate", "truncate",
                  hf_truth(reader, rope->scaled, "truncate", true));
}

static void read_llama3(struct hf_reader *reader, const struct rope *rope)
{
    hf_put_number(reader, "rope.scaling.factor", "factor", need(reader, rope->scaled, "factor"));
    hf_put_number(reader, "rope.scaling.low_freq_factor", "low_freq_factor",
                  need(reader, rope->scaled, "low_freq_factor"));
    hf_put_number(reader, "rope.scaling.high_freq_factor", "high_freq_factor",
                  need(reader, rope->scaled, "high_freq_factor"));
    hf_put_number(reader, "rope.scaling.original_context_length",
                  "original_max_position_embeddings", original_length(reader, rope));
}

static const char *kind_of(struct hf_reader *reader, const cJSON *object)
{
    const char *old = hf_text(reader, object, "type", "default");

    return hf_text(reader, object, "rope_type", old);
}

static void read_scaling(struct hf_reader *reader, const struct rope *rope)
{
    const char *kind = kind_of(reader, rope->scaled);
    char text[64];

    if (strcmp(kind, "default") == 0)
        return;
    if (strcmp(kind, "linear") == 0)
        hf_put_number(reader, "rope.scaling.factor", "factor",
                      need(reader, rope->scaled, "factor"));
    else if (strcmp(kind, "llama3") == 0)
        read_llama3(reader, rope);
    else if (strcmp(kind, "yarn") == 0)
        read_yarn(reader, rope);
    else
        hf_refuse(reader, -ENOTSUP,
                  "rope scaling %s is not supported; supported: default, linear, llama3, yarn",
                  json_tree_printable(kind, text, sizeof(text)));
    if (reader->status == 0)
        hf_put_text(reader, "rope.scaling.type", "rope_type", kind);
}

/* The part of a head that rotates, where that is not all of it. */
static void read_rotary(struct hf_reader *reader, const struct rope *rope)
{
    const struct hf_setting *width = hf_config_find(reader->config, "attention.key_length");
    double outer = number_or(reader, reader->text, "partial_rotary_factor", 1);
    double share = number_or(reader, rope->scaled, "partial_rotary_factor", outer);
    double dims;

    if (share == 1)
        return;
    if (!(share > 0 && share < 1) || width == NULL || !gguf_real(&width->value, 0, &dims))
        hf_refuse(reader, -ENOTSUP,
                  "partial_rotary_factor is %g, which needs a head_dim and to be from 0 to 1",
                  share);
    else
        hf_put_number(reader, "rope.dimension_count", "partial_rotary_factor", floor(dims * share));
}

/* The object for a type of layer; NULL: there is none. */
static const cJSON *of_type(struct hf_reader *reader, const cJSON *object, const char *type)
{
    const cJSON *member = json_tree_member(object, type);

    if (!cJSON_IsObject(member))
        hf_refuse(reader, -ENOTSUP, "rope_parameters has no object for %s", type);
    return member;
}

/* Gemma's layers with a window have a base of their own, and no scaling. */
static void read_local(struct hf_reader *reader, const cJSON *object)
{
    double base = number_or(reader, reader->text, "rope_local_base_freq", BASE_DEFAULT);

    if (strcmp(kind_of(reader, object), "default") != 0)
        hf_refuse(reader, -ENOTSUP, "rope scaling of %s is not supported", sliding);
    hf_put_number(reader, "rope.freq_base_swa", "rope_local_base_freq",
                  number_or(reader, object, "rope_theta", base));
}

void hf_read_ropes(struct hf_reader *reader)
{
    bool gemma = strcmp(reader->config->family->architecture, "gemma3") == 0;
    const cJSON *old = hf_find(reader, "rope_scaling");
    const cJSON *now = hf_find(reader, "rope_parameters");
    const struct hf_setting *context = hf_config_find(reader->config, "context_length");
    bool by_type = json_tree_member(now, full) != NULL || json_tree_member(now, sliding) != NULL;
    struct rope rope = {.base = gemma ? GEMMA_BASE_DEFAULT : BASE_DEFAULT};

    if ((old != NULL && !cJSON_IsObject(old)) || (now != NULL && !cJSON_IsObject(now)))
        hf_refuse(reader, -EINVAL, "rope_scaling or rope_parameters is no object");
    if (by_type && !gemma)
        hf_refuse(reader, -ENOTSUP, "rope_parameters for each type of layer are not supported");
    if (reader->status != 0)
        return;
    if (gemma)
        read_local(reader, by_type ? of_type(reader, now, sliding) : NULL);
    if (by_type)
        now = of_type(reader, now, full);
    rope.base = number_or(reader, reader->text, "rope_theta", rope.base);
    rope.base = number_or(reader, now, "rope_theta", rope.base);
    rope.scaled = old != NULL && old->child != NULL ? old : now;
    rope.base = number_or(reader, rope.scaled, "rope_theta", rope.base);
    if (context != NULL)
        gguf_real(&context->value, 0, &rope.context);
    hf_put_number(reader, "rope.freq_base", "rope_theta", rope.base);
    read_rotary(reader, &rope);
    read_scaling(reader, &rope);
}
