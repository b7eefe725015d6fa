/* Mistral: a Llama, with a window on all layers in its first version. GGUF files call it llama. */
#include "model/arch.h"
#include "model/sublayer.h"

static void read_shape(struct shape *shape, struct source *source)
{
    sublayer_read_decoder(shape, source);
}

const struct arch arch_mistral = {.name = "mistral",
                                  .read_shape = read_shape,
                                  .load = sublayer_load,
                                  .forward = sublayer_forward};
