/* Tiny random Gemma 3 models with a small vocabulary, for tests without the real one. */
#include "tests/gguf_writer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SPELLING_BYTES = 24, KIND_NORMAL = 1, KIND_UNKNOWN = 2, KIND_CONTROL = 3, KIND_BYTE = 6 };

/* Printable ASCII, then pairs of letters; a space is "▁". */
static void spell_piece(int32_t index, char *spelling, int32_t *kind)
{
    static const char letters[] = "etaoinshrdlucmfwypvbgkqjxz";

    *kind = KIND_NORMAL;
    if (index == 0)
        snprintf(spelling, SPELLING_BYTES, "\u2581");
    else if (index < 95)
        snprintf(spelling, SPELLING_BYTES, "%c", ' ' + index);
    else if (index < 95 + 26)
        snprintf(spelling, SPELLING_BYTES, "\u2581%c", letters[index - 95]);
    else
        snprintf(spelling, SPELLING_BYTES, "%c%c", letters[(index - 121) / 26],
                 letters[(index - 121) % 26]);
}

static void spell(int32_t token, char *spelling, int32_t *kind)
{
    static const char *const first[] = {"<pad>", "<eos>",           "<bos>",
                                        "<unk>", "<start_of_turn>", "<end_of_turn>"};

    *kind = token == 3 ? KIND_UNKNOWN : KIND_CONTROL;
    if (token < 6) {
        snprintf(spelling, SPELLING_BYTES, "%s", first[token]);
    } else if (token < 262) {
        *kind = KIND_BYTE;
        snprintf(spelling, SPELLING_BYTES, "<0x%02X>", (unsigned)(token - 6) & 255);
    } else {
        spell_piece(token - 262, spelling, kind);
    }
}

void gguf_write_vocabulary(struct gguf_writer *writer, int32_t count)
{
    char(*spelling)[SPELLING_BYTES] = calloc((size_t)count, sizeof(*spelling));
    const char **text = calloc((size_t)count, sizeof(*text));
    float *score = calloc((size_t)count, sizeof(*score));
    int32_t *kind = calloc((size_t)count, sizeof(*kind));

    if (spelling == NULL || text == NULL || score == NULL || kind == NULL)
        abort();
    for (int32_t i = 0; i < count; i++) {
        spell(i, spelling[i], &kind[i]);
        text[i] = spelling[i];
        score[i] = i < 262 ? -1000.0f : (float)(262 - i);
        /* Single characters last: a pair is joined whenever it can be. */
        if (i >= 262 && i < 262 + 95)
            score[i] = (float)(-1000 - i);
    }
    gguf_write_text(writer, "tokenizer.ggml.model", "llama");
    gguf_write_texts(writer, "tokenizer.ggml.tokens", text, count);
    gguf_write_list(writer, "tokenizer.ggml.scores", GGUF_F32, score, sizeof(*score), count);
    gguf_write_list(writer, "tokenizer.ggml.token_type", GGUF_I32, kind, sizeof(*kind), count);
    gguf_write_u32(writer, "tokenizer.ggml.bos_token_id", 2);
    gguf_write_u32(writer, "tokenizer.ggml.eos_token_id", 1);
    gguf_write_u32(writer, "tokenizer.ggml.unknown_token_id", 3);
    gguf_write_int(writer, "tokenizer.ggml.add_bos_token", GGUF_BOOL, 1);
    gguf_write_int(writer, "tokenizer.ggml.add_space_prefix", GGUF_BOOL, 0);
    free(spelling);
    free(text);
    free(score);
    free(kind);
}

static void set(int32_t *field, int32_t value)
{
    if (*field == 0)
        *field = value;
}

static void write_settings(struct gguf_writer *writer, const struct tiny_gemma *tiny)
{
    gguf_write_text(writer, "general.architecture", "gemma3");
    gguf_write_text(writer, "general.name", "Tiny Gemma");
    gguf_write_u32(writer, "gemma3.context_length", (uint32_t)tiny->context_count);
    gguf_write_u32(writer, "gemma3.embedding_length", (uint32_t)tiny->width);
    gguf_write_u32(writer, "gemma3.block_count", (uint32_t)tiny->layer_count);
    gguf_write_u32(writer, "gemma3.feed_forward_length", (uint32_t)tiny->ffn_width);
    gguf_write_u32(writer, "gemma3.attention.head_count", (uint32_t)tiny->head_count);
    gguf_write_u32(writer, "gemma3.attention.head_count_kv", (uint32_t)tiny->kv_head_count);
    gguf_write_u32(writer, "gemma3.attention.key_length", (uint32_t)tiny->head_width);
    gguf_write_u32(writer, "gemma3.attention.value_length", (uint32_t)tiny->head_width);
    gguf_write_f32(writer, "gemma3.attention.layer_norm_rms_epsilon", 1e-6f);
    gguf_write_f32(writer, "gemma3.rope.freq_base", 1000000.0f);
    if (tiny->window > 0)
        gguf_write_u32(writer, "gemma3.attention.sliding_window", (uint32_t)tiny->window);
    if (tiny->period > 0)
        gguf_write_u32(writer, "gemma3.attention.sliding_window_pattern", (uint32_t)tiny->period);
    if (tiny->rope_factor > 0) {
        gguf_write_text(writer, "gemma3.rope.scaling.type", "linear");
        gguf_write_f32(writer, "gemma3.rope.scaling.factor", tiny->rope_factor);
    }
    if (tiny->softcap > 0)
        gguf_write_f32(writer, "gemma3.final_logit_softcapping", tiny->softcap);
    if (!tiny->no_vocabulary)
        gguf_write_vocabulary(writer, tiny->vocab_count);
}

/* One tensor of layer `layer`. */
static void write_one(struct gguf_writer *writer, int32_t layer, const char *name,
                      enum format format, int32_t out, int32_t in, uint64_t *seed)
{
    char whole[64];

    snprintf(whole, sizeof(whole), "blk.%d.%s.weight", (int)layer, name);
    gguf_write_random(writer, whole, format, out, in, seed);
}

static void write_attention(struct gguf_writer *writer, const struct tiny_gemma *tiny, int32_t i,
                            uint64_t *seed)
{
    int32_t q = tiny->head_count * tiny->head_width, kv = tiny->kv_head_count * tiny->head_width;
    enum format qk = tiny->plain ? FORMAT_F32 : FORMAT_Q5_0;
    enum format v = tiny->plain ? FORMAT_F32 : i % 2 == 0 ? FORMAT_Q8_0 : FORMAT_Q5_0;
    enum format output = tiny->plain ? FORMAT_F32 : FORMAT_Q4_K;

    if (tiny->fused) {
        write_one(writer, i, "attn_qkv", qk, q + 2 * kv, tiny->width, seed);
    } else {
        write_one(writer, i, "attn_q", qk, q, tiny->width, seed);
        write_one(writer, i, "attn_k", qk, kv, tiny->width, seed);
        write_one(writer, i, "attn_v", v, kv, tiny->width, seed);
    }
    write_one(writer, i, "attn_output", output, tiny->width, q, seed);
    write_one(writer, i, "attn_q_norm", FORMAT_F32, 1, tiny->head_width, seed);
    write_one(writer, i, "attn_k_norm", FORMAT_F32, 1, tiny->head_width, seed);
}

static void write_mlp(struct gguf_writer *writer, const struct tiny_gemma *tiny, int32_t i,
                      uint64_t *seed)
{
    enum format up = tiny->plain ? FORMAT_F32 : i % 3 == 2 ? FORMAT_BF16 : FORMAT_Q5_0;
    enum format gate = tiny->plain ? FORMAT_F32 : i % 3 == 1 ? FORMAT_Q4_0 : FORMAT_Q5_0;
    enum format down = tiny->plain ? FORMAT_F32 : i % 2 == 0 ? FORMAT_Q6_K : FORMAT_Q4_K;

    if (tiny->fused) {
        write_one(writer, i, "ffn_up", up, 2 * tiny->ffn_width, tiny->width, seed);
    } else {
        write_one(writer, i, "ffn_gate", gate, tiny->ffn_width, tiny->width, seed);
        write_one(writer, i, "ffn_up", up, tiny->ffn_width, tiny->width, seed);
    }
    write_one(writer, i, "ffn_down", down, tiny->width, tiny->ffn_width, seed);
}

void gguf_write_gemma(struct gguf_writer *writer, const struct tiny_gemma *wish)
{
    struct tiny_gemma tiny = *wish;
    uint64_t seed = tiny.seed * 1000003 + 17;
    enum format embed = tiny.plain ? FORMAT_F32 : FORMAT_Q8_0;

    set(&tiny.layer_count, 7);
    set(&tiny.width, 64);
    set(&tiny.head_count, 4);
    set(&tiny.kv_head_count, 2);
    set(&tiny.head_width, 64);
    set(&tiny.ffn_width, 256);
    set(&tiny.vocab_count, 400);
    set(&tiny.context_count, 512);
    set(&tiny.window, 24);
    write_settings(writer, &tiny);
    gguf_write_random(writer, "output_norm.weight", FORMAT_F32, 1, tiny.width, &seed);
    gguf_write_random(writer, "token_embd.weight", embed, tiny.vocab_count, tiny.width, &seed);
    if (tiny.own_head)
        gguf_write_random(writer, "output.weight", tiny.plain ? FORMAT_F32 : FORMAT_F16,
                          tiny.vocab_count, tiny.width, &seed);
    for (int32_t i = 0; i < tiny.layer_count; i++) {
        write_one(writer, i, "attn_norm", FORMAT_F32, 1, tiny.width, &seed);
        write_attention(writer, &tiny, i, &seed);
        write_one(writer, i, "post_attention_norm", FORMAT_F32, 1, tiny.width, &seed);
        write_one(writer, i, "ffn_norm", FORMAT_F32, 1, tiny.width, &seed);
        write_mlp(writer, &tiny, i, &seed);
        write_one(writer, i, "post_ffw_norm", FORMAT_F32, 1, tiny.width, &seed);
    }
}
