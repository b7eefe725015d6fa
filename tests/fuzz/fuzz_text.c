/* Text to tokens and back on arbitrary bytes, and vocabularies made of arbitrary bytes.
 *
 * The first byte chooses. Even: the rest is text for a fixed vocabulary; its tokens' bytes must be
 * the text again, and the streaming decoder must give well-formed text. Odd: the rest is a
 * vocabulary, which is refused or must work on its own bytes.
 */
#include "model/text/detokenizer.h"
#include "model/text/spm.h"
#include "model/text/unicode.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TOKEN_MAX = 1024 };

struct pieces {
    int32_t count;
    const char *spelling[TOKEN_MAX];
    size_t bytes[TOKEN_MAX];
    float score[TOKEN_MAX];
    int32_t type[TOKEN_MAX];
};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void add(struct pieces *pieces, const char *spelling, size_t bytes, float score,
                int32_t type)
{
    int32_t at = pieces->count++;

    pieces->spelling[at] = spelling;
    pieces->bytes[at] = bytes;
    pieces->score[at] = score;
    pieces->type[at] = type;
}

static void add_bytes(struct pieces *pieces)
{
    static char spelling[256][8];

    for (int byte = 0; byte < 256; byte++) {
        snprintf(spelling[byte], 8, "<0x%02X>", (unsigned)byte);
        add(pieces, spelling[byte], 6, 0, 6);
    }
}

static struct tokenizer *create(const struct pieces *pieces, bool space_prefix)
{
    char error[256] = "";
    struct spm_vocabulary vocabulary = {.token_count = pieces->count,
                                        .spelling = pieces->spelling,
                                        .spelling_bytes = pieces->bytes,
                                        .score = pieces->score,
                                        .type = pieces->type,
                                        .bos = 1,
                                        .eos = 2,
                                        .eot = -1,
                                        .eom = -1,
                                        .add_space_prefix = space_prefix};
    struct tokenizer *tokenizer = tokenizer_create_spm(&vocabulary, error, sizeof(error));

    assert((tokenizer == NULL) == (error[0] != '\0'));
    return tokenizer;
}

static const struct tokenizer *fixed(void)
{
    static const char *const word[] = {"a",       "b",       "ab",     "abab",    "bb",    "\u2581",
                                       "\u2581a", "a\u2581", "\u00e9", "\u00e9a", "\u4e16"};
    static struct tokenizer *tokenizer;
    static struct pieces pieces;

    if (tokenizer != NULL)
        return tokenizer;
    add(&pieces, "<unk>", 5, 0, 2);
    add(&pieces, "<s>", 3, 0, 3);
    add(&pieces, "</s>", 4, 0, 3);
    add(&pieces, "aab", 3, -1000, 4);
    add(&pieces, "  ", 2, -1000, 4);
    add_bytes(&pieces);
    for (size_t i = 0; i < sizeof(word) / sizeof(word[0]); i++)
        add(&pieces, word[i], strlen(word[i]), -(float)(i * 7 % 5), i == 4 ? 5 : 1);
    tokenizer = create(&pieces, false);
    assert(tokenizer != NULL);
    return tokenizer;
}

static void decode(const struct tokenizer *tokenizer, const int32_t *token, int64_t count,
                   size_t text_bytes)
{
    struct detokenizer detokenizer;
    size_t bytes = 0, max = 3 * text_bytes + DETOKENIZER_TEXT_MAX;
    char *text = malloc(max);

    detokenizer_init(&detokenizer, tokenizer, false);
    for (int64_t i = 0; i < count; i++) {
        bool good = detokenizer_put(&detokenizer, token[i], text, &bytes, max);
        assert(good);
        assert(detokenizer.held_count < 4);
    }
    bool good = detokenizer_end(&detokenizer, text, &bytes, max);
    assert(good);
    assert(unicode_valid(text, bytes));
    free(text);
}

/* The tokens' bytes, which must be the text with spaces for marks. */
static void round_trip(const struct tokenizer *tokenizer, const char *text, size_t text_bytes)
{
    int32_t *token;
    int64_t count = tokenizer_encode(tokenizer, text, text_bytes, 0, &token);
    size_t at = 0;

    assert(count >= 0);
    for (int64_t i = 0; i < count; i++) {
        char bytes[64];
        size_t token_bytes = tokenizer_bytes(tokenizer, token[i], bytes, sizeof(bytes));
        assert(token_bytes > 0 && token_bytes <= sizeof(bytes));
        for (size_t k = 0; k < token_bytes; k++) {
            bool mark = text_bytes - at >= 3 && memcmp(text + at, "\u2581", 3) == 0;
            assert(bytes[k] == (mark ? ' ' : text[at]));
            at += mark ? 3 : 1;
        }
    }
    assert(at == text_bytes);
    decode(tokenizer, token, count, text_bytes);
    free(token);
}

/* Records of a length, a type, a score and that many bytes. */
static void hostile(const uint8_t *data, size_t size)
{
    static struct pieces pieces;
    size_t at = 1;

    pieces.count = 0;
    add(&pieces, "<unk>", 5, 0, 2);
    add(&pieces, "<s>", 3, 0, 3);
    add(&pieces, "</s>", 4, 0, 3);
    if (size > 0 && (data[0] & 2) != 0)
        add_bytes(&pieces);
    while (pieces.count < TOKEN_MAX && at + 3 < size) {
        size_t bytes = data[at] % 12u;
        if (bytes > size - at - 3)
            break;
        add(&pieces, (const char *)data + at + 3, bytes, (float)(int8_t)data[at + 2],
            data[at + 1] % 8);
        at += 3 + bytes;
    }
    struct tokenizer *tokenizer = create(&pieces, (data[0] & 4) != 0);
    if (tokenizer == NULL)
        return;
    int32_t *token;
    int64_t count = tokenizer_encode(tokenizer, (const char *)data, size,
                                     TOKENIZER_ADD_SPECIAL | TOKENIZER_PARSE_SPECIAL, &token);
    assert(count >= 0);
    for (int64_t i = 0; i < count; i++)
        assert(token[i] >= 0 && token[i] < pieces.count);
    decode(tokenizer, token, count, 6 * (size_t)count + size);
    free(token);
    tokenizer_free(tokenizer);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0)
        return 0;
    if ((data[0] & 1) != 0)
        hostile(data, size);
    else
        round_trip(fixed(), (const char *)data + 1, size - 1);
    return 0;
}
