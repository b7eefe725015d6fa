/* Qwen 3: a Llama with norms of q and k, and heads of a width of their own. */
#include "model/arch.h"
#include "model/sublayer.h"

static void read_shape(struct shape *shape, struct source *source)
{
    sublayer_read_decoder(shape, source);
    shape->head_norms = true;
}

const struct arch arch_qwen3 = {
    .name = "qwen3", .read_shape = read_shape, .load = sublayer_load, .forward = sublayer_forward};
