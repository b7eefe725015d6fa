/* What the formats of model files differ in, and the dummy weights of a folder. */
#include "model/load/hf.h"
#include "model/load/source_private.h"

#include <math.h>
#include <string.h>

bool source_interleaves(const struct source *source)
{
    return source->hf == NULL;
}

bool source_states_biases(const struct source *source)
{
    return source->hf != NULL;
}

static bool is_norm(enum tensor_role role)
{
    return role == ROLE_OUTPUT_NORM || role == ROLE_ATTN_NORM || role == ROLE_ATTN_POST_NORM ||
           role == ROLE_FFN_NORM || role == ROLE_FFN_POST_NORM || role == ROLE_Q_NORM ||
           role == ROLE_K_NORM;
}

float source_norm_offset(const struct source *source, enum tensor_role role)
{
    return source->hf != NULL && source->hf->config.family->sandwich && is_norm(role) ? 1.0f : 0.0f;
}

/* To `bits` bits of significand, ties to even. */
static float round_to(float factor, int bits)
{
    int exponent;
    float fraction = frexpf(factor, &exponent);

    return ldexpf(nearbyintf(ldexpf(fraction, bits)), exponent - bits);
}

float source_round(const struct source *source, float factor)
{
    struct tensor embed = {0};
    const char *unsupported;

    if (source->hf == NULL)
        return factor;
    /* The tensors decide what the type is; without any, config.json does. */
    embed.format = source->hf->config.format;
    hf_folder_tensor(source->hf, ROLE_EMBED, LAYER_NONE, "weight", &embed, &unsupported);
    if (embed.format == FORMAT_F32)
        return factor;
    return round_to(factor, embed.format == FORMAT_F16 ? 11 : 8);
}

bool source_ties_head(const struct source *source)
{
    return source->hf != NULL && source->hf->config.tied;
}

int32_t source_ends(const struct source *source, int32_t *token, int32_t max)
{
    int32_t count = source->hf == NULL ? 0 : source->hf->config.end_count;

    count = count < max ? count : max;
    if (count > 0)
        memcpy(token, source->hf->config.end_token, (size_t)count * sizeof(*token));
    return count;
}

void source_defaults(const struct source *source, struct model_defaults *defaults)
{
    if (source->hf != NULL)
        *defaults = source->hf->config.defaults;
}

bool source_is_dummy(const struct source *source)
{
    return source->hf != NULL && source->hf->safetensors == NULL;
}

struct tensor source_dummy(const struct source *source, enum tensor_role role, int32_t layer,
                           int64_t out, int64_t in)
{
    struct tensor tensor = {.format = source->hf->config.format, .out = out, .in = in};

    hf_folder_name(source->hf, role, layer, "weight", tensor.name, sizeof(tensor.name));
    return tensor;
}

void source_count_dummy(struct source *source, const struct tensor *tensor)
{
    struct source_summary *summary = &source->hf->dummy;
    struct format_sum *sum = &summary->format[tensor->format];
    int64_t count = tensor->out * tensor->in;

    summary->tensor_count++;
    summary->parameter_count += count;
    sum->tensor_count++;
    sum->matrix_count += tensor->out > 1;
    sum->parameter_count += count;
    sum->bytes += count * format_info(tensor->format)->block_bytes;
}
