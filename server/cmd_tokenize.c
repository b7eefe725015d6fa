/* `quire tokenize MODEL TEXT`: the tokens of a text, or with --ids the text of tokens.
 *
 * Reads the vocabulary alone: no weights, no device.
 */
#include "model/load/source.h"
#include "model/text/detokenizer.h"
#include "model/text/tokenizer.h"
#include "server/command.h"
#include "server/config.h"

#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct tokenize {
    const char *model;
    const char **input; /* [input_count] the texts or ids among the arguments */
    int32_t input_count;
    bool ids;     /* the input is ids */
    bool numbers; /* print ids alone */
    bool bare;    /* no BOS or EOS */
    bool plain;   /* special tokens written in the text are text */
    bool help;
};

static const struct {
    const char *name;
    size_t member;
    const char *help;
} options[] = {
    {"--ids", offsetof(struct tokenize, ids), "the input is token ids: print their text"},
    {"--only-ids", offsetof(struct tokenize, numbers), "print ids alone, in one line"},
    {"--no-bos", offsetof(struct tokenize, bare), "leave out what the model adds around a text"},
    {"--no-special", offsetof(struct tokenize, plain),
     "special tokens written in the text are text; with --ids: leave them out"},
    {"--help", offsetof(struct tokenize, help), "print this"},
};
enum { OPTION_COUNT = sizeof options / sizeof options[0] };

static void print_help(FILE *out)
{
    fprintf(out, "usage: quire tokenize [OPTION...] MODEL [TEXT | ID... | -]\n\n"
                 "Prints the tokens of TEXT, a line each: id and spelling. Without TEXT, or with\n"
                 "\"-\", standard input is read as it is.\n\n");
    for (int i = 0; i < OPTION_COUNT; i++)
        fprintf(out, "  %-14s %s\n", options[i].name, options[i].help);
}

/* ---- arguments ---- */

static bool set_option(struct tokenize *tokenize, const char *name)
{
    const char *names[OPTION_COUNT];

    for (int i = 0; i < OPTION_COUNT; i++) {
        names[i] = options[i].name;
        if (strcmp(name, options[i].name) != 0)
            continue;
        *(bool *)((char *)tokenize + options[i].member) = true;
        return true;
    }
    if (strcmp(name, "-h") == 0)
        return tokenize->help = true;
    const char *nearest = config_nearest(name, names, OPTION_COUNT);
    if (nearest != NULL)
        fprintf(stderr, "quire tokenize: %.64s: unknown option; did you mean %s?\n", name, nearest);
    else
        fprintf(stderr, "quire tokenize: %.64s: unknown option; --help has all of them\n", name);
    return false;
}

/* Fills all but `input`, which has room for every argument. */
static bool read_arguments(struct tokenize *tokenize, int argc, char **argv)
{
    bool open = true; /* options may still come */

    for (int i = 1; i < argc; i++) {
        if (open && strcmp(argv[i], "--") == 0)
            open = false;
        else if (open && argv[i][0] == '-' && argv[i][1] != '\0') {
            if (!set_option(tokenize, argv[i]))
                return false;
        } else if (tokenize->model == NULL)
            tokenize->model = argv[i];
        else
            tokenize->input[tokenize->input_count++] = argv[i];
    }
    if (tokenize->help)
        return true;
    if (tokenize->model == NULL) {
        fprintf(stderr, "quire tokenize: no model is named: quire tokenize MODEL.gguf TEXT\n");
        return false;
    }
    if (!tokenize->ids && tokenize->input_count > 1) {
        fprintf(stderr, "quire tokenize: %d texts are given, not one: quote the text\n",
                tokenize->input_count);
        return false;
    }
    return true;
}

/* All of standard input, NUL-terminated; NULL: out of memory or unreadable, and said so. */
static char *read_input(size_t *bytes)
{
    size_t max = 1 << 16;
    char *text = malloc(max);

    *bytes = 0;
    while (text != NULL) {
        *bytes += fread(text + *bytes, 1, max - *bytes - 1, stdin);
        if (*bytes < max - 1)
            break;
        char *grown = realloc(text, max *= 2);
        if (grown == NULL)
            free(text);
        text = grown;
    }
    if (text == NULL || ferror(stdin)) {
        fprintf(stderr, "quire tokenize: could not read standard input: %s\n",
                text == NULL ? "out of memory" : strerror(errno));
        free(text);
        return NULL;
    }
    text[*bytes] = '\0';
    return text;
}

/* ---- text to tokens ---- */

static void print_spelling(const char *spelling, size_t bytes)
{
    putchar('"');
    for (size_t i = 0; i < bytes; i++) {
        unsigned char byte = (unsigned char)spelling[i];
        if (byte == '\n')
            fputs("\\n", stdout);
        else if (byte == '\t')
            fputs("\\t", stdout);
        else if (byte == '"' || byte == '\\')
            printf("\\%c", byte);
        else if (byte < 0x20 || byte == 0x7F)
            printf("\\x%02X", byte);
        else
            putchar(byte);
    }
    fputs("\"\n", stdout);
}

static int print_tokens(const struct tokenizer *tokenizer, const struct tokenize *tokenize,
                        const char *text, size_t text_bytes)
{
    unsigned flags = (tokenize->bare ? 0 : TOKENIZER_ADD_SPECIAL) |
                     (tokenize->plain ? 0 : TOKENIZER_PARSE_SPECIAL);
    int32_t *token;
    int64_t count = tokenizer_encode(tokenizer, text, text_bytes, flags, &token);

    if (count < 0) {
        fprintf(stderr, "quire tokenize: could not tokenise %zu bytes: %s\n", text_bytes,
                count == -EFBIG       ? "the text is too long"
                : count == -EOVERFLOW ? "a run that the model's pattern takes too long for"
                                      : "out of memory");
        return EXIT_CODE_RUNTIME;
    }
    for (int64_t i = 0; i < count; i++) {
        size_t bytes;
        const char *spelling = tokenizer_spelling(tokenizer, token[i], &bytes);
        if (tokenize->numbers) {
            printf("%s%d", i > 0 ? " " : "", token[i]);
            continue;
        }
        printf("%8d  ", token[i]);
        print_spelling(spelling, bytes);
    }
    if (tokenize->numbers)
        putchar('\n');
    free(token);
    return EXIT_CODE_OK;
}

/* ---- tokens to text ---- */

/* The next id of a list parted by white space, commas and brackets. 1; 0: there is none;
 * -1: something else is there, and it was said so. */
static int next_id(const char **cursor, int32_t token_count, int32_t *token)
{
    *cursor += strspn(*cursor, " \t\r\n,[]");
    if (**cursor == '\0')
        return 0;
    char *end;
    errno = 0;
    long long id = strtoll(*cursor, &end, 10);
    if (end == *cursor || errno != 0 || id < 0 || id >= token_count ||
        (*end != '\0' && strchr(" \t\r\n,[]", *end) == NULL)) {
        fprintf(stderr, "quire tokenize: %.*s: not a token id from 0 to %d\n",
                (int)strcspn(*cursor, " \t\r\n,[]"), *cursor, token_count - 1);
        return -1;
    }
    *cursor = end;
    *token = (int32_t)id;
    return 1;
}

static bool put_list(struct detokenizer *detokenizer, const char *list)
{
    int32_t token;

    while (next_id(&list, tokenizer_count(detokenizer->tokenizer), &token) > 0) {
        size_t bytes = 0;
        size_t max = tokenizer_bytes(detokenizer->tokenizer, token, NULL, 0) + DETOKENIZER_TEXT_MAX;
        char *text = malloc(max);
        if (text == NULL || !detokenizer_put(detokenizer, token, text, &bytes, max)) {
            free(text);
            fprintf(stderr, "quire tokenize: out of memory\n");
            return false;
        }
        fwrite(text, 1, bytes, stdout);
        free(text);
    }
    return true;
}

static bool check_list(const struct tokenizer *tokenizer, const char *list)
{
    int32_t token;
    int found;

    do
        found = next_id(&list, tokenizer_count(tokenizer), &token);
    while (found > 0);
    return found == 0;
}

/* The text of all ids, or nothing where one of them is none. */
static int print_text(const struct tokenizer *tokenizer, const struct tokenize *tokenize,
                      const char *read)
{
    const char *const *list = read != NULL ? &read : tokenize->input;
    int32_t list_count = read != NULL ? 1 : tokenize->input_count;
    struct detokenizer detokenizer;
    char text[DETOKENIZER_TEXT_MAX];
    size_t bytes = 0;

    detokenizer_init(&detokenizer, tokenizer, tokenize->plain);
    for (int32_t i = 0; i < list_count; i++)
        if (!check_list(tokenizer, list[i]))
            return EXIT_CODE_USAGE;
    for (int32_t i = 0; i < list_count; i++)
        if (!put_list(&detokenizer, list[i]))
            return EXIT_CODE_RUNTIME;
    if (detokenizer_end(&detokenizer, text, &bytes, sizeof text))
        fwrite(text, 1, bytes, stdout);
    putchar('\n');
    return EXIT_CODE_OK;
}

/* ---- the command ---- */

static struct tokenizer *open_tokenizer(const char *path, int *code)
{
    struct source *source = NULL;
    char error[512] = "";
    int result = source_open(&source, path, error, sizeof error);
    struct tokenizer *tokenizer = result == 0 ? source_tokenizer(source) : NULL;

    if (result == 0 && tokenizer == NULL) {
        result = source_status(source);
        if (result == 0) {
            snprintf(error, sizeof error, "could not tokenise: %.256s has no vocabulary", path);
            result = -EINVAL;
        }
    }
    source_close(source);
    *code = command_exit_code(result);
    if (tokenizer == NULL)
        fprintf(stderr, "quire tokenize: %s\n", error);
    return tokenizer;
}

static int run(const struct tokenize *tokenize)
{
    int code;
    struct tokenizer *tokenizer = open_tokenizer(tokenize->model, &code);
    bool piped = tokenize->input_count == 0 || strcmp(tokenize->input[0], "-") == 0;
    size_t bytes = piped ? 0 : strlen(tokenize->input[0]);

    if (tokenizer == NULL)
        return code;
    char *read = piped ? read_input(&bytes) : NULL;
    if (piped && read == NULL)
        code = EXIT_CODE_RUNTIME;
    else if (tokenize->ids)
        code = print_text(tokenizer, tokenize, read);
    else
        code = print_tokens(tokenizer, tokenize, piped ? read : tokenize->input[0], bytes);
    free(read);
    tokenizer_free(tokenizer);
    if (fflush(stdout) != 0 && code == EXIT_CODE_OK) {
        fprintf(stderr, "quire tokenize: could not write: %s\n", strerror(errno));
        code = EXIT_CODE_RUNTIME;
    }
    return code;
}

int cmd_tokenize(int argc, char **argv)
{
    struct tokenize tokenize = {.input = calloc((size_t)argc, sizeof(char *))};
    int code = EXIT_CODE_USAGE;

    if (tokenize.input == NULL) {
        fprintf(stderr, "quire tokenize: out of memory\n");
        return EXIT_CODE_RUNTIME;
    }
    if (read_arguments(&tokenize, argc, argv)) {
        if (tokenize.help)
            print_help(stdout);
        code = tokenize.help ? EXIT_CODE_OK : run(&tokenize);
    }
    free(tokenize.input);
    return code;
}
