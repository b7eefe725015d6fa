/* Attention, gated MLP, embedding and head in ops, and the decoder made of them. */
#include "model/sublayer.h"

#include <assert.h>

void sublayer_load_attention(struct layer_weights *layer, int32_t index, const struct shape *shape,
                             struct loader *loader)
{
    int32_t q = shape->head_count * shape->head_width;
    int32_t kv = shape->kv_head_count * shape->head_width;
    bool bias = shape->qkv_bias;
    struct loader_part three[] = {{ROLE_Q, q, bias}, {ROLE_K, kv, bias}, {ROLE_V, kv, bias}};
    struct loader_part fused = {ROLE_QKV, q + 2 * kv, bias};
    struct loader_part output = {ROLE_ATTN_OUTPUT, shape->width, shape->output_bias};

    if (source_has_tensor(loader->source, ROLE_QKV, index))
        loader_linear(loader, &layer->qkv, index, &fused, 1, shape->width);
    else
        loader_linear(loader, &layer->qkv, index, three, 3, shape->width);
    loader_linear(loader, &layer->attn_output, index, &output, 1, q);
}

void sublayer_load_mlp(struct layer_weights *layer, int32_t index, const struct shape *shape,
                       struct loader *loader)
{
    int32_t width = shape->ffn_width;
    bool bias = shape->ffn_bias;
    struct loader_part two[] = {{ROLE_FFN_GATE, width, bias}, {ROLE_FFN_UP, width, bias}};
    struct loader_part fused = {ROLE_FFN_UP, 2 * width, bias};
    struct loader_part down = {ROLE_FFN_DOWN, shape->width, bias};
    struct tensor up;

    if (!source_has_tensor(loader->source, ROLE_FFN_GATE, index) &&
        source_tensor(loader->source, ROLE_FFN_UP, index, &up) && up.out == 2 * (int64_t)width)
        loader_gated_linear(loader, &layer->gate_up, index, &fused, 1, shape->width);
    else
        loader_gated_linear(loader, &layer->gate_up, index, two, 2, shape->width);
    loader_linear(loader, &layer->down, index, &down, 1, shape->ffn_width);
}

void sublayer_load_ends(struct weights *weights, const struct shape *shape, struct loader *loader)
{
    struct loader_part embed = {ROLE_EMBED, shape->vocab_count, false};
    struct loader_part head = {ROLE_HEAD, shape->vocab_count, false};

    loader_linear(loader, &weights->embed, LAYER_NONE, &embed, 1, shape->width);
    weights->head = &weights->embed;
    if (!shape->tied && source_has_tensor(loader->source, ROLE_HEAD, LAYER_NONE)) {
        loader_linear(loader, &weights->own_head, LAYER_NONE, &head, 1, shape->width);
        weights->head = &weights->own_head;
    }
    loader_vector(loader, &weights->output_norm, ROLE_OUTPUT_NORM, LAYER_NONE, shape->width);
}

static void load_layer(struct layer_weights *layer, int32_t index, const struct shape *shape,
                       struct loader *loader)
{
    loader_vector(loader, &layer->attn_norm, ROLE_ATTN_NORM, index, shape->width);
    sublayer_load_attention(layer, index, shape, loader);
    if (shape->head_norms) {
        loader_vector(loader, &layer->q_norm, ROLE_Q_NORM, index, shape->head_width);
        loader_vector(loader, &layer->k_norm, ROLE_K_NORM, index, shape->head_width);
    }
    if (shape->post_norms)
        loader_vector(loader, &layer->attn_post_norm, ROLE_ATTN_POST_NORM, index, shape->width);
    loader_vector(loader, &layer->ffn_norm, ROLE_FFN_NORM, index, shape->width);
    sublayer_load_mlp(layer, index, shape, loader);
    if (shape->post_norms)
        loader_vector(loader, &layer->ffn_post_norm, ROLE_FFN_POST_NORM, index, shape->width);
}

void sublayer_load(struct weights *weights, const struct shape *shape, struct loader *loader)
{
    sublayer_load_ends(weights, shape, loader);
    for (int32_t i = 0; i < shape->layer_count; i++)
        load_layer(&weights->layer[i], i, shape, loader);
}

void sublayer_embed(struct pass *pass)
{
    const struct shape *shape = pass->shape;

    pass->ops->embed(pass->device, pass->x, &pass->weights->embed, shape->embed_scale, pass->rows);
    pass->ops->norm(pass->device, pass->normed, pass->x, pass->weights->layer[0].attn_norm,
                    shape->norm_eps, pass->rows, shape->width);
}

void sublayer_attention(struct pass *pass, int32_t index)
{
    const struct shape *shape = pass->shape;
    const struct layer_shape *kind = &shape->layer[index];
    const struct layer_weights *layer = &pass->weights->layer[index];
    struct rope_store_args store = {
        .layer = index,
        .head_count = shape->head_count,
        .kv_head_count = shape->kv_head_count,
        .head_width = shape->head_width,
        .q_norm = layer->q_norm,
        .k_norm = layer->k_norm,
        .norm_eps = shape->norm_eps,
        .rope = pass->weights->rope[kind->rope],
        .rotary = shape->rope[kind->rope].rotary,
        .pairing = shape->rope[kind->rope].pairing,
    };
    struct attention_args attention = {
        .layer = index,
        .head_count = shape->head_count,
        .kv_head_count = shape->kv_head_count,
        .head_width = shape->head_width,
        .scale = shape->score_scale,
        .softcap = shape->score_softcap,
        .window = kind->window,
    };

    assert(!pass->picked);
    pass->ops->linear(pass->device, pass->qkv, pass->normed, &layer->qkv, pass->rows);
    pass->ops->rope_store(pass->device, pass->qkv, &store, pass->rows);
    pass->ops->attention(pass->device, pass->heads, pass->qkv, &attention, pass->rows);
}

void sublayer_pick(struct pass *pass)
{
    const struct shape *shape = pass->shape;

    assert(!pass->picked);
    if (pass->sample_count >= pass->rows)
        return;
    pass->ops->gather(pass->device, pass->picked_x, pass->x, pass->sample_count, shape->width);
    pass->ops->gather(pass->device, pass->picked_heads, pass->heads, pass->sample_count,
                      shape->head_count * shape->head_width);
    pass->x = pass->picked_x;
    pass->heads = pass->picked_heads;
    pass->rows = pass->sample_count;
    pass->picked = true;
}

void sublayer_attention_output(struct pass *pass, int32_t index)
{
    pass->ops->linear(pass->device, pass->branch, pass->heads,
                      &pass->weights->layer[index].attn_output, pass->rows);
}

void sublayer_mlp(struct pass *pass, int32_t index)
{
    const struct shape *shape = pass->shape;
    const struct layer_weights *layer = &pass->weights->layer[index];

    pass->ops->gated_linear(pass->device, pass->act, pass->gate_up, pass->normed, &layer->gate_up,
                            shape->act, pass->rows);
    pass->ops->linear(pass->device, pass->branch, pass->act, &layer->down, pass->rows);
}

void sublayer_sample(struct pass *pass)
{
    const struct shape *shape = pass->shape;
    struct activation rows = pass->normed;
    size_t row_bytes;

    if (!pass->picked) {
        pass->ops->gather(pass->device, pass->picked_normed, pass->normed, pass->sample_count,
                          shape->width);
        rows = pass->picked_normed;
    }
    row_bytes = (size_t)rows.stride * pass->ops->activation_bytes;
    for (int32_t first = 0; first < pass->sample_count; first += pass->logit_rows) {
        int32_t left = pass->sample_count - first;
        int32_t count = left < pass->logit_rows ? left : pass->logit_rows;
        struct activation some = {.data = (unsigned char *)rows.data + (size_t)first * row_bytes,
                                  .stride = rows.stride};

        pass->ops->logits(pass->device, pass->logits, some, pass->weights->head,
                          shape->logit_softcap, count);
        pass->ops->sample(pass->device, pass->logits, first, count);
    }
}

/* x += branch, or its norm; and what follows reads normed. */
static void add_branch(struct pass *pass, const float *post, const float *next)
{
    pass->ops->add_norm(pass->device, pass->normed, pass->x, pass->branch, post, next,
                        pass->shape->norm_eps, pass->rows, pass->shape->width);
}

void sublayer_forward(struct pass *pass)
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
