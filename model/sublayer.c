/* Attention, gated MLP, embedding and head in ops. */
#include "model/sublayer.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>

enum {
    WIDTH_MAX = 1 << 20,
    HEAD_MAX = 1 << 12,
    VOCAB_MAX = 1 << 24,
    CONTEXT_MAX = 1 << 28,
};

/* V: the vocabulary that the file lists, a setting, or the rows of the embedding. */
static void read_vocab(struct shape *shape, struct source *source)
{
    int64_t listed = source_token_count(source);
    struct tensor embed;

    if (!source_tensor(source, ROLE_EMBED, LAYER_NONE, &embed)) {
        source_refuse(source, -EINVAL, "tensor %s is missing", embed.name);
        return;
    }
    if (embed.out < 2 || embed.out > VOCAB_MAX)
        source_refuse(source, -EINVAL, "tensor %s has %" PRId64 " rows, not from 2 to %d",
                      embed.name, embed.out, VOCAB_MAX);
    else if (listed != 0 && listed != embed.out)
        source_refuse(source, -EINVAL,
                      "tensor %s has %" PRId64 " rows for a vocabulary of %" PRId64 " tokens",
                      embed.name, embed.out, listed);
    else
        shape->vocab_count = (int32_t)embed.out;
}

void sublayer_read_shape(struct shape *shape, struct source *source)
{
    int32_t wanted;

    read_vocab(shape, source);
    shape->layer_count = (int32_t)source_int(source, "block_count", 1, LAYER_MAX);
    shape->width = (int32_t)source_int(source, "embedding_length", 1, WIDTH_MAX);
    shape->ffn_width = (int32_t)source_int(source, "feed_forward_length", 1, WIDTH_MAX);
    shape->context_model = (int32_t)source_int(source, "context_length", 1, CONTEXT_MAX);
    shape->head_count = (int32_t)source_int(source, "attention.head_count", 1, HEAD_MAX);
    shape->kv_head_count =
        (int32_t)source_int_or(source, "attention.head_count_kv", 1, HEAD_MAX, shape->head_count);
    wanted = shape->width / shape->head_count;
    shape->head_width = (int32_t)source_int_or(source, "attention.key_length", 2, 1 << 14, wanted);
    shape->norm_eps = (float)source_real(source, "attention.layer_norm_rms_epsilon", 1e-12, 1.0);
    shape->score_softcap = (float)source_real_or(source, "attn_logit_softcapping", 0, 1e6, 0);
    shape->logit_softcap = (float)source_real_or(source, "final_logit_softcapping", 0, 1e6, 0);
    shape->embed_scale = 1.0f;
    if (source_int_or(source, "attention.value_length", 1, 1 << 14, shape->head_width) !=
        shape->head_width)
        source_refuse(source, -ENOTSUP,
                      "attention.value_length differs from key_length (%" PRId32
                      "), which is not supported",
                      shape->head_width);
    if (shape->head_count % shape->kv_head_count != 0)
        source_refuse(source, -EINVAL,
                      "%" PRId32 " query heads cannot share %" PRId32 " key/value heads evenly",
                      shape->head_count, shape->kv_head_count);
}

void sublayer_load_attention(struct layer_weights *layer, int32_t index, const struct shape *shape,
                             struct loader *loader)
{
    int32_t q = shape->head_count * shape->head_width;
    int32_t kv = shape->kv_head_count * shape->head_width;
    struct loader_part three[] = {{ROLE_Q, q}, {ROLE_K, kv}, {ROLE_V, kv}};
    struct loader_part fused = {ROLE_QKV, q + 2 * kv};
    struct loader_part output = {ROLE_ATTN_OUTPUT, shape->width};

    if (source_has_tensor(loader->source, ROLE_QKV, index))
        loader_linear(loader, &layer->qkv, index, &fused, 1, shape->width);
    else
        loader_linear(loader, &layer->qkv, index, three, 3, shape->width);
    loader_linear(loader, &layer->attn_output, index, &output, 1, q);
}

void sublayer_load_mlp(struct layer_weights *layer, int32_t index, const struct shape *shape,
                       struct loader *loader)
{
    struct loader_part two[] = {{ROLE_FFN_GATE, shape->ffn_width}, {ROLE_FFN_UP, shape->ffn_width}};
    struct loader_part fused = {ROLE_FFN_UP, 2 * shape->ffn_width};
    struct loader_part down = {ROLE_FFN_DOWN, shape->width};

    if (source_has_tensor(loader->source, ROLE_FFN_GATE, index))
        loader_linear(loader, &layer->gate_up, index, two, 2, shape->width);
    else
        loader_linear(loader, &layer->gate_up, index, &fused, 1, shape->width);
    loader_linear(loader, &layer->down, index, &down, 1, shape->ffn_width);
}

void sublayer_load_ends(struct weights *weights, const struct shape *shape, struct loader *loader)
{
    struct loader_part embed = {ROLE_EMBED, shape->vocab_count};
    struct loader_part head = {ROLE_HEAD, shape->vocab_count};

    loader_linear(loader, &weights->embed, LAYER_NONE, &embed, 1, shape->width);
    weights->head = &weights->embed;
    if (source_has_tensor(loader->source, ROLE_HEAD, LAYER_NONE)) {
        loader_linear(loader, &weights->own_head, LAYER_NONE, &head, 1, shape->width);
        weights->head = &weights->own_head;
    }
    loader_vector(loader, &weights->output_norm, ROLE_OUTPUT_NORM, LAYER_NONE, shape->width);
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

    pass->ops->linear(pass->device, pass->gate_up, pass->normed, &layer->gate_up, pass->rows);
    pass->ops->act_mul(pass->device, pass->act, pass->gate_up, shape->act, pass->rows,
                       shape->ffn_width);
    pass->ops->linear(pass->device, pass->branch, pass->act, &layer->down, pass->rows);
}

void sublayer_sample(struct pass *pass)
{
    const struct shape *shape = pass->shape;
    struct activation rows = pass->normed;
    size_t row_bytes;

    if (!pass->picked) {
        pass->ops->gather(pass->device, pass->picked_x, pass->normed, pass->sample_count,
                          shape->width);
        rows = pass->picked_x;
    }
    row_bytes = (size_t)rows.stride * pass->ops->activation_bytes;
    for (int32_t first = 0; first < pass->sample_count; first += pass->logit_rows) {
        int32_t left = pass->sample_count - first;
        int32_t count = left < pass->logit_rows ? left : pass->logit_rows;
        struct activation some = {(unsigned char *)rows.data + (size_t)first * row_bytes,
                                  rows.stride};

        pass->ops->logits(pass->device, pass->logits, some, pass->weights->head,
                          shape->logit_softcap, count);
        pass->ops->sample(pass->device, pass->logits, first, count);
    }
}
