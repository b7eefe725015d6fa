/* `quire tokenize` in a child process, over a vocabulary written here. */
#include "server/command.h"
#include "tests/gguf_writer.h"
#include "tests/test.h"

#include <sys/wait.h>
#include <unistd.h>

static char model[] = "/tmp/quire-tokenize-XXXXXX";
static char output[4096]; /* of the last run: standard output, then standard error */

static void read_back(int fd, size_t at)
{
    ssize_t bytes = pread(fd, output + at, sizeof(output) - 1 - at, 0);

    output[at + (bytes > 0 ? (size_t)bytes : 0)] = '\0';
    close(fd);
}

static int temporary(void)
{
    char path[] = "/tmp/quire-output-XXXXXX";
    int fd = mkstemp(path);

    unlink(path);
    return fd;
}

/* Runs the command with arguments up to NULL and `input` at standard input: its exit code. */
static int run(char *const *argument, const char *input)
{
    char name[] = "tokenize", *argv[12] = {name};
    int argc = 1, in = temporary(), out = temporary(), error = temporary(), status = 0;

    while (argument[argc - 1] != NULL && argc < 11) {
        argv[argc] = argument[argc - 1];
        argc++;
    }
    if (write(in, input, strlen(input)) < 0 || lseek(in, 0, SEEK_SET) < 0)
        abort();
    fflush(stdout);
    pid_t pid = fork();
    if (pid == 0) {
        dup2(in, STDIN_FILENO);
        dup2(out, STDOUT_FILENO);
        dup2(error, STDERR_FILENO);
        exit(cmd_tokenize(argc, argv));
    }
    waitpid(pid, &status, 0);
    close(in);
    read_back(out, 0);
    read_back(error, strlen(output));
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

#define RUN(input, ...) run((char *[]){__VA_ARGS__, NULL}, input)

static char text[] = "Hi\n", hyphen[] = "-", ids[] = "--ids", only[] = "--only-ids",
            no_bos[] = "--no-bos", no_special[] = "--no-special", help[] = "--help";

static void a_text_becomes_a_line_a_token(void)
{
    EXPECT_INT(RUN("", model, text), ==, 0);
    EXPECT(strncmp(output, "       2  \"<bos>\"\n", 18) == 0);
    EXPECT(strstr(output, "\"H\"\n") != NULL || strstr(output, "\"Hi\"\n") != NULL);
    EXPECT(strstr(output, "\"<0x0A>\"\n") != NULL);
    EXPECT_INT(RUN("", no_bos, model, text), ==, 0);
    EXPECT(strstr(output, "<bos>") == NULL);
}

static void ids_become_the_text_again(void)
{
    static char list[sizeof(output)];

    EXPECT_INT(RUN("caf\u00e9 \U0001F389 <x>\n", only, no_bos, model, hyphen), ==, 0);
    memcpy(list, output, sizeof(output));
    EXPECT_INT(RUN(list, ids, model), ==, 0);
    EXPECT_STRING(output, "caf\u00e9 \U0001F389 <x>\n\n");
}

static void special_tokens_in_the_text_count_unless_refused(void)
{
    static char turn[] = "<end_of_turn>", number[] = "[2, 5]";

    EXPECT_INT(RUN("", only, model, turn), ==, 0);
    EXPECT_STRING(output, "2 5\n");
    EXPECT_INT(RUN("", only, no_special, model, turn), ==, 0);
    EXPECT(strcmp(output, "2 5\n") != 0);
    EXPECT_INT(RUN("", ids, model, number), ==, 0);
    EXPECT_STRING(output, "<bos><end_of_turn>\n");
    EXPECT_INT(RUN("", ids, no_special, model, number), ==, 0);
    EXPECT_STRING(output, "\n");
}

static void what_is_wrong_is_said_in_one_line(void)
{
    static char nothing[] = "/nowhere/model.gguf", far[] = "400", word[] = "x", wrong[] = "--idz";

    EXPECT_INT(RUN("", nothing, text), ==, 3);
    EXPECT(strstr(output, nothing) != NULL);
    EXPECT_INT(RUN("", ids, model, far), ==, 2);
    EXPECT(strstr(output, "400: not a token id from 0 to 399") != NULL);
    EXPECT_INT(RUN("", ids, model, word), ==, 2);
    EXPECT_INT(RUN("", wrong, model), ==, 2);
    EXPECT(strstr(output, "did you mean --ids?") != NULL);
    EXPECT_INT(RUN("", model, text, word), ==, 2);
    EXPECT_INT(RUN("", only), ==, 2);
    EXPECT_INT(RUN("", help), ==, 0);
    EXPECT(strstr(output, "usage: quire tokenize") == output);
}

int main(void)
{
    struct gguf_writer writer = {0};

    close(mkstemp(model));
    gguf_write_gemma(&writer, &(struct tiny_gemma){.seed = 1, .vocab_count = 400});
    if (!gguf_writer_save(&writer, model))
        abort();
    gguf_writer_free(&writer);
    TEST(a_text_becomes_a_line_a_token);
    TEST(ids_become_the_text_again);
    TEST(special_tokens_in_the_text_count_unless_refused);
    TEST(what_is_wrong_is_said_in_one_line);
    unlink(model);
    return test_report();
}
