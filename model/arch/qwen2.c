/* Qwen 2 and 2.5: a Llama whose q, k and v have biases. */
#include "model/arch.h"
#include "model/sublayer.h"

static void read_shape(struct shape *shape, struct source *source)
{
    sublayer_read_decoder(shape, source);
    shape->qkv_bias = true;
}

const struct arch arch_qwen2 = {
    .name = "qwen2", .read_shape = read_shape, .load = sublayer_load, .forward = sublayer_forward};
