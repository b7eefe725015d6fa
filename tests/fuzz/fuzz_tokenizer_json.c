/* tokenizer.json files of arbitrary bytes, and arbitrary text for what they make.
 *
 * The first byte chooses. Even: the rest is a file, which is refused with a reason or must work on
 * its own bytes. Odd: the second byte chooses among fixed components, the rest is text for them;
 * with a byte-level vocabulary its tokens' bytes must be the text again.
 */
#include "model/text/detokenizer.h"
#include "model/text/tokenizer_json.h"
#include "model/text/unicode.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { JSON_MAX = 1 << 16, KIND_COUNT = 6 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* What the tokens give, in one go and with a held-back rest: it must be well-formed. */
static void decode(const struct tokenizer *tokenizer, const int32_t *token, int64_t count)
{
    struct detokenizer detokenizer;
    size_t bytes = 0, max = DETOKENIZER_TEXT_MAX;

    for (int64_t i = 0; i < count; i++)
        max += tokenizer_bytes(tokenizer, token[i], NULL, 0) + DETOKENIZER_TEXT_MAX;
    char *text = malloc(max);
    detokenizer_init(&detokenizer, tokenizer, false);
    for (int64_t i = 0; i < count; i++) {
        size_t room = bytes + tokenizer_bytes(tokenizer, token[i], NULL, 0) + DETOKENIZER_TEXT_MAX;
        bool good = detokenizer_put(&detokenizer, token[i], text, &bytes, room);
        assert(good);
    }
    bool good = detokenizer_end(&detokenizer, text, &bytes, max);
    assert(good);
    assert(unicode_valid(text, bytes));
    free(text);
}

static void encode(const struct tokenizer *tokenizer, const char *text, size_t bytes, bool same)
{
    int32_t *token;
    int64_t count = tokenizer_encode(tokenizer, text, bytes,
                                     TOKENIZER_ADD_SPECIAL | TOKENIZER_PARSE_SPECIAL, &token);
    size_t at = 0;

    if (count < 0) {
        assert(token == NULL);
        return;
    }
    for (int64_t i = 0; i < count; i++) {
        char part[64];
        assert(token[i] >= 0 && token[i] < tokenizer_count(tokenizer));
        if (!same)
            continue;
        size_t part_bytes = tokenizer_bytes(tokenizer, token[i], part, sizeof(part));
        assert(part_bytes <= sizeof(part) && part_bytes <= bytes - at);
        assert(memcmp(part, text + at, part_bytes) == 0);
        at += part_bytes;
    }
    assert(!same || at == bytes);
    decode(tokenizer, token, count);
    free(token);
}

static size_t add(char *json, size_t at, const char *text)
{
    return at + (size_t)snprintf(json + at, JSON_MAX - at, "%s", text);
}

/* All bytes in GPT-2's alphabet or as <0xNN>, some letters, and merges of them. */
static size_t add_vocabulary(char *json, size_t at, bool byte_level)
{
    int extra = 0;

    at = add(json, at, "\"vocab\":{");
    for (int byte = 0; byte < 256; byte++) {
        bool plain = (byte >= 33 && byte <= 126) || (byte >= 161 && byte != 173);
        char spelling[64];
        int code = plain ? byte : 256 + extra++;
        if (byte_level)
            snprintf(spelling, sizeof(spelling), "\"\\u%04X\":%d,", (unsigned)code, byte);
        else
            snprintf(spelling, sizeof(spelling), "\"<0x%02X>\":%d,", (unsigned)byte, byte);
        at = add(json, at, spelling);
    }
    if (byte_level)
        return add(json, at,
                   "\"ab\":256,\"aa\":257,\"aaaa\":258,\"\\u0120ab\":259},"
                   "\"merges\":[\"a b\",\"a a\",\"aa aa\",\"\\u0120 ab\"]}");
    return add(json, at,
               "\"a\":256,\"b\":257,\"\\u2581\":258,\"ab\":259,\"\\u2581ab\":260,\"aa\":261,"
               "\"b\\u2581\":262},\"merges\":[[\"a\",\"b\"],[\"\\u2581\",\"ab\"],[\"a\",\"a\"],"
               "[\"b\",\"\\u2581\"]]}");
}

static const struct tokenizer *fixed(int kind)
{
    static const char added[] =
        "{\"added_tokens\":[{\"id\":300,\"content\":\"<x>\",\"special\":true,\"lstrip\":%s,"
        "\"normalized\":false},{\"id\":301,\"content\":\"<xy>\",\"special\":false,\"single_word\":"
        "%s,\"normalized\":%s}],";
    static const char *const pieces[KIND_COUNT] = {
        "\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false},",
        "\"normalizer\":{\"type\":\"NFC\"},\"pre_tokenizer\":{\"type\":\"Sequence\","
        "\"pretokenizers\":[{\"type\":\"Digits\",\"individual_digits\":true},{\"type\":\"Split\","
        "\"pattern\":{\"Regex\":\"[^\\\\r\\\\n\\\\p{L}\\\\p{N}]?\\\\p{L}+|\\\\s+(?!\\\\S)|\\\\s+\"}"
        ","
        "\"behavior\":\"Isolated\"},{\"type\":\"ByteLevel\",\"use_regex\":false}]},",
        "\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Punctuation\"},"
        "{\"type\":\"Split\",\"pattern\":{\"String\":\" \"},\"behavior\":\"MergedWithNext\"},"
        "{\"type\":\"ByteLevel\",\"add_prefix_space\":false}]},",
        "\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"Prepend\",\"prepend\":"
        "\"\\u2581\"},{\"type\":\"Replace\",\"pattern\":{\"String\":\" \"},\"content\":\"\\u2581\"}"
        "]},",
        "\"pre_tokenizer\":{\"type\":\"Metaspace\",\"replacement\":\"\\u2581\",\"prepend_scheme\":"
        "\"first\"},",
        "\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"NFKD\"},{\"type\":"
        "\"StripAccents\"},{\"type\":\"Lowercase\"},{\"type\":\"Strip\"}]},\"pre_tokenizer\":"
        "{\"type\":\"WhitespaceSplit\"},",
    };
    static struct tokenizer *made[KIND_COUNT];
    static char json[JSON_MAX];
    char error[256] = "";
    bool byte_level = kind < 3;

    if (made[kind] != NULL)
        return made[kind];
    const char *flag = kind == 1 || kind == 4 ? "true" : "false";
    size_t at = (size_t)snprintf(json, JSON_MAX, added, flag, flag, flag);
    at = add(json, at, pieces[kind]);
    at = add(json, at,
             byte_level ? "\"decoder\":{\"type\":\"ByteLevel\"},"
                        : "\"decoder\":{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"Replace\","
                          "\"pattern\":{\"String\":\"\\u2581\"},\"content\":\" \"},{\"type\":"
                          "\"ByteFallback\"},{\"type\":\"Fuse\"}]},");
    at = add(json, at, "\"model\":{\"byte_fallback\":true,");
    at = add_vocabulary(json, at, byte_level);
    at = add(json, at, "}");
    made[kind] = tokenizer_open_json(json, at, NULL, error, sizeof(error));
    if (made[kind] == NULL)
        fprintf(stderr, "%s\n", error);
    assert(made[kind] != NULL);
    return made[kind];
}

static void hostile(const char *json, size_t bytes)
{
    char error[256] = "";
    struct tokenizer *tokenizer = tokenizer_open_json(json, bytes, NULL, error, sizeof(error));

    assert((tokenizer == NULL) == (error[0] != '\0'));
    if (tokenizer == NULL)
        return;
    encode(tokenizer, json, bytes < 4096 ? bytes : 4096, false);
    tokenizer_free(tokenizer);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 2)
        return 0;
    if ((data[0] & 1) == 0) {
        hostile((const char *)data + 1, size - 1);
        return 0;
    }
    /* Kinds 0 and 2 change nothing in the text, and take no white space with a special token. */
    int kind = data[1] % KIND_COUNT;
    encode(fixed(kind), (const char *)data + 2, size - 2, kind == 0 || kind == 2);
    return 0;
}
