/* Gemma 3: sandwich norms, norms of q and k, windows on most layers, two bases of rotation, the
 * embedding scaled and used again as the head. */
#include "model/arch.h"
#include "model/sublayer.h"

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

static void read_shape(struct shape *shape, struct source *source)
{
    double scale_width;

    sublayer_read_shape(shape, source);
    scale_width = shape->layer_count == LAYERS_OF_27B
                      ? (double)shape->width / (double)shape->head_count
                      : (double)shape->head_width;
    shape->score_scale =
        (float)source_real_or(source, "attention.scale", 1e-6, 1e6, 1.0 / sqrt(scale_width));
    shape->embed_scale = source_round(source, sqrtf((float)shape->width));
    shape->act = ACT_GELU_TANH;
    shape->head_norms = true;
    shape->post_norms = true;
    shape->rope_count = 2;
    sublayer_read_rope(shape, ROPE_GLOBAL, source, "rope.freq_base", 10000.0);
    sublayer_read_rope(shape, ROPE_LOCAL, source, "rope.freq_base_swa", 10000.0);
    shape->rope[ROPE_LOCAL].scaling = ROPE_LINEAR; /* only global layers are scaled */
    shape->rope[ROPE_LOCAL].factor = 1.0;
    read_layers(shape, source);
}

const struct arch arch_gemma3 = {
    .name = "gemma3", .read_shape = read_shape, .load = sublayer_load, .forward = sublayer_forward};
