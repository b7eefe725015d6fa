/* Settings to a shape: what decoders share. */
#include "model/sublayer.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <math.h>

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

    if (source_is_dummy(source)) {
        shape->vocab_count = (int32_t)source_int(source, "vocab_size", 2, VOCAB_MAX);
        return;
    }
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
    shape->qkv_bias = source_int_or(source, "attention.qkv_bias", 0, 1, 0) != 0;
    shape->output_bias = source_int_or(source, "attention.output_bias", 0, 1, 0) != 0;
    shape->ffn_bias = source_int_or(source, "ffn_bias", 0, 1, 0) != 0;
    shape->tied = source_ties_head(source);
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

void sublayer_read_windows(struct shape *shape, struct source *source)
{
    int32_t window = (int32_t)source_int_or(source, "attention.sliding_window", 0, INT32_MAX, 0);
    bool local;

    for (int32_t i = 0; i < shape->layer_count; i++) {
        if (!source_truth_at(source, "attention.sliding_window_pattern", i, shape->layer_count,
                             &local))
            local = true;
        shape->layer[i].window = local ? window : 0;
    }
}

/* ---- rotation ---- */

static void read_llama3(struct rope_shape *rope, struct source *source)
{
    rope->scaling = ROPE_LLAMA3;
    rope->low = source_real(source, "rope.scaling.low_freq_factor", 1e-3, 1e6);
    rope->high = source_real(source, "rope.scaling.high_freq_factor", 1e-3, 1e6);
    if (rope->high <= rope->low)
        source_refuse(source, -EINVAL, "high_freq_factor is %g, not above low_freq_factor (%g)",
                      rope->high, rope->low);
}

static void read_yarn(struct rope_shape *rope, struct source *source)
{
    double magnitude = source_real_or(source, "rope.scaling.attn_factor", 1e-3, 1e3, 1);

    rope->scaling = ROPE_YARN;
    rope->fast = source_real_or(source, "rope.scaling.yarn_beta_fast", 1e-3, 1e6, 32);
    rope->slow = source_real_or(source, "rope.scaling.yarn_beta_slow", 1e-3, 1e6, 1);
    rope->truncate = source_int_or(source, "rope.scaling.yarn_truncate", 0, 1, 1) != 0;
    magnitude *= 0.1 * log(rope->factor) + 1;
    rope->magnitude = source_real_or(source, "rope.scaling.magnitude", 1e-3, 1e3, magnitude);
    if (rope->base <= 1)
        source_refuse(source, -EINVAL, "a base of %g cannot be scaled by yarn", rope->base);
}

static void read_scaling(struct shape *shape, struct rope_shape *rope, struct source *source)
{
    static const char type[] = "rope.scaling.type";

    rope->factor = source_real_or(source, "rope.scale_linear", 1e-3, 1e6, 1);
    if (source_is(source, type, "none", "linear")) {
        rope->factor = 1;
        return;
    }
    rope->factor = source_real_or(source, "rope.scaling.factor", 1e-3, 1e6, rope->factor);
    rope->original = source_real_or(source, "rope.scaling.original_context_length", 1, 1e9,
                                    (double)shape->context_model);
    if (source_is(source, type, "llama3", "linear"))
        read_llama3(rope, source);
    else if (source_is(source, type, "yarn", "linear"))
        read_yarn(rope, source);
    else if (!source_is(source, type, "linear", "linear"))
        source_refuse(source, -ENOTSUP, "rope.scaling.type is none of none, linear, llama3, yarn");
}

void sublayer_read_rope(struct shape *shape, int32_t index, struct source *source, const char *key,
                        double base)
{
    struct rope_shape *rope = &shape->rope[index];

    rope->rotary = (int32_t)source_int_or(source, "rope.dimension_count", 2, shape->head_width,
                                          shape->head_width);
    rope->base = source_real_or(source, key, 1, 1e12, base);
    rope->pairing = ROPE_HALVES;
    if (rope->rotary % 2 != 0 || rope->rotary > 2 * ROPE_PAIR_MAX)
        source_refuse(source, rope->rotary % 2 != 0 ? -EINVAL : -ENOTSUP,
                      "rope.dimension_count is %" PRId32 ", not even or beyond %d", rope->rotary,
                      2 * ROPE_PAIR_MAX);
    read_scaling(shape, rope, source);
}

void sublayer_read_decoder(struct shape *shape, struct source *source)
{
    sublayer_read_shape(shape, source);
    shape->score_scale = (float)(1.0 / sqrt((double)shape->head_width));
    shape->act = ACT_SILU;
    shape->rope_count = 1;
    sublayer_read_rope(shape, 0, source, "rope.freq_base", 10000.0);
    sublayer_read_windows(shape, source);
}
