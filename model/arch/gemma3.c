/* Gemma 3: sandwich norms, norms of q and k, windows on most layers, two bases of rotation, the
 * embedding scaled and used again as the head. GGUF files hold norm weights with their 1 added. */
#include "model/arch.h"
#include "model/sublayer.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>

enum {
    ROPE_GLOBAL,
    ROPE_LOCAL,
    PERIOD_DEFAULT = 6, /* the last layer of each period is global */
    LAYERS_OF_27B = 62, /* which scales its queries by the width a head would have */
};

static void read_layers(struct shape *shape, struct source *source)
{
    static const char pattern[] = "attention.sliding_window_pattern";
    int32_t window = (int32_t)source_int_or(source, "attention.sliding_window", 0, INT32_MAX, 0);
    int64_t period = PERIOD_DEFAULT;
    bool local;

    if (!source_truth_at(source, pattern, 0, shape->layer_count, &local))
        period = source_int_or(source, pattern, 0, LAYER_MAX, PERIOD_DEFAULT);
    for (int32_t i = 0; i < shape->layer_count; i++) {
        if (!source_truth_at(source, pattern, i, shape->layer_count, &local))
            local = period == 0 || i % period < period - 1;
        local = local && window > 0;
        shape->layer[i] = (struct layer_shape){.window = local ? window : 0,
                                               .rope = local ? ROPE_LOCAL : ROPE_GLOBAL};
    }
}

static void read_ropes(struct shape *shape, struct source *source)
{
    int32_t rotary = (int32_t)source_int_or(source, "rope.dimension_count", 2, shape->head_width,
                                            shape->head_width);
    double factor = source_real_or(source, "rope.scale_linear", 1e-3, 1e6, 1.0);

    if (source_is(source, "rope.scaling.type", "linear", "linear"))
        factor = source_real_or(source, "rope.scaling.factor", 1e-3, 1e6, factor);
    else if (!source_is(source, "rope.scaling.type", "none", "linear"))
        source_refuse(source, -ENOTSUP, "rope.scaling.type is neither none nor linear");
    if (rotary % 2 != 0)
        source_refuse(source, -EINVAL, "rope.dimension_count is %" PRId32 ", not even", rotary);
    shape->rope_count = 2;
    shape->rope[ROPE_GLOBAL] = (struct rope_shape){
        .base = source_real_or(source, "rope.freq_base", 1, 1e12, 10000.0),
        .factor = factor,
        .rotary = rotary,
        .pairing = ROPE_HALVES,
    };
    shape->rope[ROPE_LOCAL] = (struct rope_shape){
        .base = source_real_or(source, "rope.freq_base_swa", 1, 1e12, 10000.0),
        .factor = 1.0,
        .rotary = rotary,
        .pairing = ROPE_HALVES,
    };
}

static void read_shape(struct shape *shape, struct source *source)
{
    double scale_width;

    sublayer_read_shape(shape, source);
    scale_width = shape->layer_count == LAYERS_OF_27B
                      ? (double)shape->width / (double)shape->head_count
                      : (double)shape->head_width;
    shape->score_scale =
        (float)source_real_or(source, "attention.scale", 1e-6, 1e6, 1.0 / sqrt(scale_width));
    shape->embed_scale = sqrtf((float)shape->width);
    shape->act = ACT_GELU_TANH;
    read_layers(shape, source);
    read_ropes(shape, source);
}

static void load(struct weights *weights, const struct shape *shape, struct loader *loader)
{
    sublayer_load_ends(weights, shape, loader);
    for (int32_t i = 0; i < shape->layer_count; i++) {
        struct layer_weights *layer = &weights->layer[i];

        loader_vector(loader, &layer->attn_norm, ROLE_ATTN_NORM, i, shape->width);
        sublayer_load_attention(layer, i, shape, loader);
        loader_vector(loader, &layer->q_norm, ROLE_Q_NORM, i, shape->head_width);
        loader_vector(loader, &layer->k_norm, ROLE_K_NORM, i, shape->head_width);
        loader_vector(loader, &layer->attn_post_norm, ROLE_ATTN_POST_NORM, i, shape->width);
        loader_vector(loader, &layer->ffn_norm, ROLE_FFN_NORM, i, shape->width);
        sublayer_load_mlp(layer, i, shape, loader);
        loader_vector(loader, &layer->ffn_post_norm, ROLE_FFN_POST_NORM, i, shape->width);
    }
}

/* x += norm(branch) * post, and what follows reads normed. */
static void add_branch(struct pass *pass, const float *post, const float *next)
{
    pass->ops->add_norm(pass->device, pass->normed, pass->x, pass->branch, post, next,
                        pass->shape->norm_eps, pass->rows, pass->shape->width);
}

static void forward(struct pass *pass)
{
    const struct weights *weights = pass->weights;
    int32_t last = pass->shape->layer_count - 1;

    sublayer_embed(pass);
    for (int32_t i = 0; i <= last; i++) {
        const struct layer_weights *layer = &weights->layer[i];

        sublayer_attention(pass, i);
        if (i == last)
            sublayer_pick(pass);
        if (pass->rows == 0)
            return;
        sublayer_attention_output(pass, i);
        add_branch(pass, layer->attn_post_norm, layer->ffn_norm);
        sublayer_mlp(pass, i);
        add_branch(pass, layer->ffn_post_norm,
                   i == last ? weights->output_norm : layer[1].attn_norm);
    }
    sublayer_sample(pass);
}

const struct arch arch_gemma3 = {
    .name = "gemma3", .read_shape = read_shape, .load = load, .forward = forward};
