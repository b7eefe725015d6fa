/* The parts of a layer that architectures share, in ops. The rank's thread.
 *
 * A layer reads pass->normed and leaves its branches in pass->branch; adding them to the residual
 * stream, with or without a norm of the branch, is fused with the norm that follows. Decoders that
 * are the usual layers take sublayer_load and sublayer_forward whole; others compose the parts.
 */
#ifndef MODEL_SUBLAYER_H
#define MODEL_SUBLAYER_H

#include "model/arch.h"

/* Reads the settings that decoders share: counts, widths, epsilon, softcaps, biases, head. */
void sublayer_read_shape(struct shape *shape, struct source *source);
/* Windows: of the layers that the pattern lists, of all where there is a window and no pattern. */
void sublayer_read_windows(struct shape *shape, struct source *source);
/* The rotation at `index`, its base from `key` or else `base`, scaled as the settings say. */
void sublayer_read_rope(struct shape *shape, int32_t index, struct source *source, const char *key,
                        double base);
/* All of a decoder with one kind of rotation and SiLU. */
void sublayer_read_decoder(struct shape *shape, struct source *source);

/* Every tensor that the shape asks for, of all layers. */
void sublayer_load(struct weights *weights, const struct shape *shape, struct loader *loader);
/* Norm, attention, add, norm, MLP, add; with norms of the branches where there are some. */
void sublayer_forward(struct pass *pass);

/* q, k and v, in one tensor or three, and the output. */
void sublayer_load_attention(struct layer_weights *layer, int32_t index, const struct shape *shape,
                             struct loader *loader);
/* Gate and up, and down. */
void sublayer_load_mlp(struct layer_weights *layer, int32_t index, const struct shape *shape,
                       struct loader *loader);
/* Embedding, last norm, and head: its own, or else the embedding. */
void sublayer_load_ends(struct weights *weights, const struct shape *shape, struct loader *loader);

/* x = embeddings; normed = norm of it for layer 0. */
void sublayer_embed(struct pass *pass);
/* heads = attention of layer `index` over normed; k and v are stored. */
void sublayer_attention(struct pass *pass, int32_t index);
/* From here on the rows are the samples', where those are fewer: what the last layer does after
 * its attention matters to nobody else. */
void sublayer_pick(struct pass *pass);
/* branch = heads through the output map. */
void sublayer_attention_output(struct pass *pass, int32_t index);
/* branch = down(act(gate) * up) of normed. */
void sublayer_mlp(struct pass *pass, int32_t index);
/* Logits of the samples from normed, and their draws, a bounded number at a time. */
void sublayer_sample(struct pass *pass);

#endif
