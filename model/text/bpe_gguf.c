/* BPE from a GGUF, which has no patterns but a name for them: the table of names, and how each
 * family's text is cut. A family's patterns cut one after the other, matches and the rest apart.
 */
#include "model/text/bpe.h"

#include "model/text/bpe_kind.h"
#include "model/text/spm.h"

#include <stdio.h>
#include <string.h>

enum { PATTERN_MAX = 5 };

struct family {
    const char *pattern[PATTERN_MAX]; /* NULL: no more */
    bool ignore_merges;
    bool add_bos; /* where the file is silent */
};

#define GPT2_PATTERN                                                                               \
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"
#define CONTRACTIONS    "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
#define SPACE_PATTERN   "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
#define SIGNS_PATTERN   " ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|" SPACE_PATTERN
#define LETTERS_PATTERN "[^\\r\\n\\p{L}\\p{N}]?\\p{L}+"
#define LLAMA3_PATTERN  CONTRACTIONS "|" LETTERS_PATTERN "|\\p{N}{1,3}|" SIGNS_PATTERN
/* Words of two alphabets' cases: upper ones, then lower ones, one of both at least. */
#define UPPER_CLASS "[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]"
#define LOWER_CLASS "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]"
#define CASED_PATTERN(after)                                                                       \
    "[^\\r\\n\\p{L}\\p{N}]?" UPPER_CLASS "*" LOWER_CLASS "+" after                                 \
    "|[^\\r\\n\\p{L}\\p{N}]?" UPPER_CLASS "+" LOWER_CLASS "*" after
#define CASED_SIGNS " ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|" SPACE_PATTERN

static const struct family family_default = {
    {"[\\p{P}$+<=>^~|]+", GPT2_PATTERN, "\\p{N}+", "[0-9][0-9][0-9]"}, false, false};
static const struct family family_gpt2 = {{GPT2_PATTERN}, false, false};
static const struct family family_digits = {{"\\p{N}", GPT2_PATTERN}, false, false};
static const struct family family_falcon = {
    {"[\\p{P}$+<=>^~|`]+", GPT2_PATTERN, "[0-9][0-9][0-9]"}, false, false};
static const struct family family_llama3 = {{LLAMA3_PATTERN}, true, true};
static const struct family family_dbrx = {{LLAMA3_PATTERN}, false, false};
static const struct family family_qwen2 = {
    {CONTRACTIONS "|" LETTERS_PATTERN "|\\p{N}|" SIGNS_PATTERN}, false, false};
static const struct family family_qwen35 = {
    {CONTRACTIONS "|[^\\r\\n\\p{L}\\p{N}]?[\\p{L}\\p{M}]+|\\p{N}"
                  "| ?[^\\s\\p{L}\\p{M}\\p{N}]+[\\r\\n]*|" SPACE_PATTERN},
    false,
    false};
static const struct family family_gpt4o = {
    {CASED_PATTERN(CONTRACTIONS "?") "|\\p{N}{1,3}|" CASED_SIGNS}, false, false};
static const struct family family_tekken = {{CASED_PATTERN("") "|\\p{N}|" CASED_SIGNS}, true, true};
static const struct family family_deepseek3 = {
    {"\\p{N}{1,3}", "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
     "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+"
     "|[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\\r\\n]*|" SPACE_PATTERN},
    false,
    false};
static const struct family family_deepseek_coder = {{"[\\r\\n]", "\\s?\\p{L}+", "\\s?\\p{P}+",
                                                     "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+",
                                                     "\\p{N}"},
                                                    false,
                                                    false};

/* Names of `tokenizer.ggml.pre`, as the converters write them. */
static const struct {
    const char *name;
    const struct family *family;
} name_table[] = {
    {"default", &family_default},
    {"gpt-2", &family_gpt2},
    {"phi-2", &family_gpt2},
    {"mpt", &family_gpt2},
    {"olmo", &family_gpt2},
    {"jais", &family_gpt2},
    {"starcoder", &family_digits},
    {"refact", &family_digits},
    {"command-r", &family_digits},
    {"smollm", &family_digits},
    {"codeshell", &family_digits},
    {"falcon", &family_falcon},
    {"llama3", &family_llama3},
    {"llama-v3", &family_llama3},
    {"llama-bpe", &family_llama3},
    {"falcon3", &family_llama3},
    {"pixtral", &family_llama3},
    {"lfm2", &family_llama3},
    {"dbrx", &family_dbrx},
    {"smaug-bpe", &family_dbrx},
    {"glm4", &family_dbrx},
    {"chatglm-bpe", &family_dbrx},
    {"qwen2", &family_qwen2},
    {"deepseek-r1-qwen", &family_qwen2},
    {"stablelm2", &family_qwen2},
    {"megrez", &family_qwen2},
    {"qwen35", &family_qwen35},
    {"gpt-4o", &family_gpt4o},
    {"llama4", &family_gpt4o},
    {"tekken", &family_tekken},
    {"deepseek-v3", &family_deepseek3},
    {"deepseek-coder", &family_deepseek_coder},
};

static const struct family *find_family(const char *name)
{
    for (size_t i = 0; i < sizeof(name_table) / sizeof(name_table[0]); i++) {
        if (strcmp(name_table[i].name, name) == 0)
            return name_table[i].family;
    }
    return NULL;
}

static bool set_family(struct bpe *bpe, const struct family *family, char *error,
                       size_t error_bytes)
{
    struct splitter *splitter = &bpe->splitter;

    for (int i = 0; i < PATTERN_MAX && family->pattern[i] != NULL; i++) {
        struct splitter_step *step = &splitter->step[splitter->step_count++];
        const char *pattern = family->pattern[i];
        *step = (struct splitter_step){.kind = SPLIT_PATTERN, .behavior = SPLIT_ISOLATED};
        step->regex = regex_create(pattern, strlen(pattern), error, error_bytes);
        if (step->regex == NULL)
            return false;
    }
    bpe->model.byte_level = true;
    bpe->model.ignore_merges = family->ignore_merges;
    bpe->base.byte_stream = true;
    return true;
}

static bool refuse(char *error, size_t error_bytes, const char *what, int32_t number)
{
    snprintf(error, error_bytes, "could not use the vocabulary: %s %d", what, number);
    return false;
}

static bool check(const struct bpe_vocabulary *vocabulary, char *error, size_t error_bytes)
{
    const int32_t id[] = {vocabulary->bos, vocabulary->eos, vocabulary->unknown, vocabulary->eot,
                          vocabulary->eom};

    if (vocabulary->token_count < 1 || vocabulary->token_count > SPM_TOKEN_MAX)
        return refuse(error, error_bytes,
                      "a number of tokens that is out of range:", vocabulary->token_count);
    if (vocabulary->merge_count < 0 || vocabulary->merge_count > 4 * SPM_TOKEN_MAX)
        return refuse(error, error_bytes,
                      "a number of merges that is out of range:", vocabulary->merge_count);
    for (size_t i = 0; i < sizeof(id) / sizeof(id[0]); i++) {
        if (id[i] < -1 || id[i] >= vocabulary->token_count)
            return refuse(error, error_bytes, "a special token that is none of it:", id[i]);
    }
    return true;
}

static bool set_kinds(struct bpe *bpe, const struct bpe_vocabulary *vocabulary, char *error,
                      size_t error_bytes)
{
    static const uint8_t kind[] = {[1] = TOKEN_NORMAL, [2] = TOKEN_UNKNOWN, [3] = TOKEN_CONTROL,
                                   [4] = TOKEN_USER,   [5] = TOKEN_UNUSED,  [6] = TOKEN_NORMAL};

    for (int32_t i = 0; i < vocabulary->token_count; i++) {
        int32_t type = vocabulary->type == NULL ? 1 : vocabulary->type[i];
        if (type < 1 || type > 6)
            return refuse(error, error_bytes, "a type that is not 1 to 6, of token", i);
        bpe->base.token_kind[i] = kind[type];
        if (kind[type] != TOKEN_CONTROL && kind[type] != TOKEN_UNKNOWN)
            bpe_inside(bpe, i);
    }
    return true;
}

static void add_frame(struct token_frame *frame, int32_t token)
{
    if (token >= 0)
        frame->token[frame->count++] = token;
}

static void set_ids(struct bpe *bpe, const struct bpe_vocabulary *vocabulary, bool add_bos)
{
    struct tokenizer *base = &bpe->base;

    base->bos = vocabulary->bos;
    base->eos = vocabulary->eos;
    base->unknown = bpe->model.unknown = vocabulary->unknown;
    if (add_bos)
        add_frame(&base->before, base->bos);
    if (vocabulary->add_eos)
        add_frame(&base->after, base->eos);
    if (vocabulary->eot >= 0)
        base->token_ends[vocabulary->eot] = 1;
    if (vocabulary->eom >= 0)
        base->token_ends[vocabulary->eom] = 1;
}

static bool build(struct bpe *bpe, const struct bpe_vocabulary *vocabulary,
                  const struct family *family, char *error, size_t error_bytes)
{
    bool add_bos = vocabulary->add_bos < 0 ? family->add_bos : vocabulary->add_bos != 0;

    if (!set_family(bpe, family, error, error_bytes) ||
        !bpe_set_tokens(bpe, vocabulary->token_count, vocabulary->spelling,
                        vocabulary->spelling_bytes, error, error_bytes) ||
        !set_kinds(bpe, vocabulary, error, error_bytes) ||
        !bpe_reserve(bpe, vocabulary->merge_count, error, error_bytes))
        return false;
    for (int32_t i = 0; i < vocabulary->merge_count; i++) {
        if (!bpe_merge_line(bpe, vocabulary->merge[i], vocabulary->merge_bytes[i], error,
                            error_bytes))
            return false;
    }
    set_ids(bpe, vocabulary, add_bos);
    if (!tokenizer_cut_kinds(&bpe->base)) {
        snprintf(error, error_bytes, "could not use the vocabulary: out of memory");
        return false;
    }
    return bpe_ready(bpe, error, error_bytes);
}

struct tokenizer *tokenizer_create_bpe(const struct bpe_vocabulary *vocabulary, char *error,
                                       size_t error_bytes)
{
    const char *name = vocabulary->pre == NULL ? "default" : vocabulary->pre;
    const struct family *family = find_family(name);

    if (family == NULL) {
        snprintf(error, error_bytes,
                 "could not use the vocabulary: the pre-tokenizer '%.60s' is not known", name);
        return NULL;
    }
    if (!check(vocabulary, error, error_bytes))
        return NULL;
    struct bpe *bpe = bpe_new(error, error_bytes);
    if (bpe == NULL)
        return NULL;
    if (build(bpe, vocabulary, family, error, error_bytes))
        return &bpe->base;
    tokenizer_free(&bpe->base);
    return NULL;
}
