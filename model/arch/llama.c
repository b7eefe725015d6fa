/* Llama 2 and 3, and the many models that are one: norms before each branch, SiLU, rotation of
 * whole heads, scaled in 3.1 on. */
#include "model/arch.h"
#include "model/sublayer.h"

#include <errno.h>
#include <inttypes.h>

/* A GGUF of Llama 3.1 on holds its scaling as divisors of the frequencies. */
static void read_divisors(struct rope_shape *rope, struct source *source)
{
    struct tensor tensor;

    if (!source_tensor(source, ROLE_ROPE_FREQS, LAYER_NONE, &tensor))
        return;
    if (tensor.format != FORMAT_F32 || tensor.out != 1 || tensor.in != rope->rotary / 2) {
        source_refuse(source, -EINVAL, "tensor %s is no row of %" PRId32 " F32", tensor.name,
                      rope->rotary / 2);
        return;
    }
    rope->divisor_count = rope->rotary / 2;
    format_dequantise(FORMAT_F32, tensor.data, rope->divisor_count, rope->divisor);
    for (int32_t i = 0; i < rope->divisor_count; i++)
        if (!(rope->divisor[i] > 0))
            source_refuse(source, -EINVAL, "tensor %s: value %" PRId32 " is %g, not above 0",
                          tensor.name, i, (double)rope->divisor[i]);
}

static void read_shape(struct shape *shape, struct source *source)
{
    sublayer_read_decoder(shape, source);
    if (source_interleaves(source))
        shape->rope[0].pairing = ROPE_INTERLEAVED;
    if (source_status(source) == 0)
        read_divisors(&shape->rope[0], source);
}

const struct arch arch_llama = {
    .name = "llama", .read_shape = read_shape, .load = sublayer_load, .forward = sublayer_forward};
