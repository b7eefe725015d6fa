/* Commands that end before they serve: exit codes, and what they say where. */
#include "model/model.h"
#include "server/command.h"
#include "server/config.h"
#include "tests/test.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

struct ended {
    int exit_code; /* -1: by a signal */
    char *out;
    char *error;
};

static char *read_all(int file)
{
    off_t bytes = lseek(file, 0, SEEK_END);
    char *text = calloc((size_t)bytes + 1, 1);

    if (text == NULL || pread(file, text, (size_t)bytes, 0) != bytes)
        abort();
    close(file);
    return text;
}

static int temporary_file(void)
{
    char path[] = "/tmp/quire-command-XXXXXX";
    int file = mkstemp(path);

    unlink(path);
    return file;
}

/* Runs a command with the words of `line` in a process of its own. */
static struct ended run(int (*command)(int, char **), const char *name, const char *line)
{
    int out = temporary_file(), error = temporary_file(), status = 0;

    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        static char copy[1024];
        char *argv[24] = {(char *)name}, *save;
        int argc = 1;
        snprintf(copy, sizeof copy, "%s", line);
        for (char *word = strtok_r(copy, " ", &save); word != NULL && argc < 24;
             word = strtok_r(NULL, " ", &save))
            argv[argc++] = word;
        dup2(out, STDOUT_FILENO);
        dup2(error, STDERR_FILENO);
        int code = command(argc, argv);
        fflush(stdout);
        _exit(code);
    }
    waitpid(child, &status, 0);
    return (struct ended){WIFEXITED(status) ? WEXITSTATUS(status) : -1, read_all(out),
                          read_all(error)};
}

static void ended_release(struct ended *ended)
{
    free(ended->out);
    free(ended->error);
}

#define EXPECT_END(ended, code, out_text, error_text)                                              \
    do {                                                                                           \
        EXPECT_INT((ended).exit_code, ==, code);                                                   \
        EXPECT(strstr((ended).out, out_text) != NULL);                                             \
        EXPECT(strstr((ended).error, error_text) != NULL);                                         \
        ended_release(&(ended));                                                                   \
    } while (0)

static void only_a_cpus_memory_is_left_to_others_unasked(void)
{
    struct config config;
    struct model_options options;
    char name[] = "serve", model[] = "m", share[] = "--gpu-memory-utilization=0.7", error[256];
    char *argv[] = {name, model, share};

    for (int asked = 0; asked < 2; asked++) {
        for (int gpu = 0; gpu < 2; gpu++) {
            EXPECT_INT(config_read(&config, CONFIG_SERVE, 2 + asked, argv, error, sizeof error), ==,
                       0);
            config_resolve(&config, gpu);
            command_model_options(&config, &options);
            EXPECT_INT(options.kv_most, ==, asked || gpu ? 0 : 4LL << 30);
            EXPECT(options.memory_share == (asked ? 0.7 : gpu ? 0.92 : 0.5));
            config_release(&config);
        }
    }
}

static void help_and_version_go_to_standard_output(void)
{
    struct ended help = run(cmd_serve, "serve", "--help");
    struct ended version = run(cmd_serve, "serve", "--version");

    EXPECT_STRING(help.error, "");
    EXPECT_END(help, EXIT_CODE_OK, "--max-num-seqs", "");
    EXPECT_STRING(version.error, "");
    EXPECT_END(version, EXIT_CODE_OK, "quire ", "");
}

static void usage_is_one_line_and_exit_code_2(void)
{
    struct ended unknown = run(cmd_serve, "serve", "m.gguf --prot 1");
    struct ended missing = run(cmd_serve, "serve", "");

    EXPECT_STRING(unknown.out, "");
    EXPECT_STRING(unknown.error, "quire serve: --prot: unknown option; did you mean --port?\n");
    EXPECT_END(unknown, EXIT_CODE_USAGE, "", "");
    EXPECT_STRING(missing.error, "quire serve: no model is named: quire serve MODEL.gguf\n");
    EXPECT_END(missing, EXIT_CODE_USAGE, "", "");
}

static void a_wrong_file_of_options_is_exit_code_3(void)
{
    struct ended ended = run(cmd_serve, "serve", "m.gguf --config /nowhere.yaml");

    EXPECT_END(ended, EXIT_CODE_INPUT, "", "could not read /nowhere.yaml");
}

static void check_config_says_yes_or_no(void)
{
    struct ended good = run(cmd_serve, "serve", "--check-config --port 1");
    struct ended wrong = run(cmd_serve, "serve", "--check-config --port x");
    struct ended missing = run(cmd_serve, "serve", "--check-config /nowhere.gguf");

    EXPECT_END(good, EXIT_CODE_OK, "good", "");
    EXPECT_END(wrong, EXIT_CODE_RUNTIME, "", "--port: must be 0 to 65535");
    EXPECT_END(missing, EXIT_CODE_RUNTIME, "", "could not read model /nowhere.gguf");
}

static void dump_config_names_sources_and_hides_keys(void)
{
    struct ended ended =
        run(cmd_serve, "serve", "--dump-config --device cpu --port 1 --api-key canary");

    EXPECT(strstr(ended.out, "canary") == NULL);
    EXPECT(strstr(ended.out, "# flag\n") != NULL);
    EXPECT_END(ended, EXIT_CODE_OK, "max-num-seqs: 64", "");
}

static void a_missing_or_broken_model_is_exit_code_3(void)
{
    char path[] = "/tmp/quire-model-XXXXXX", line[128];
    int file = mkstemp(path);
    bool written = write(file, "GGUF\3\0\0\0broken", 14) == 14;

    EXPECT(written);
    close(file);
    struct ended missing = run(cmd_serve, "serve", "/nowhere.gguf --port 0 --device cpu");
    EXPECT_END(missing, EXIT_CODE_INPUT, "", "error model cannot load /nowhere.gguf");
    snprintf(line, sizeof line, "%s --port 0 --device cpu", path);
    struct ended broken = run(cmd_serve, "serve", line);
    EXPECT_END(broken, EXIT_CODE_INPUT, "", "error model cannot load");
    snprintf(line, sizeof line, "%s --device cpu", path);
    struct ended bench = run(cmd_bench, "bench", line);
    EXPECT_END(bench, EXIT_CODE_INPUT, "", "quire bench: cannot load");
    unlink(path);
}

static void a_port_in_use_is_exit_code_1_before_the_model_is_read(void)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t bytes = sizeof address;
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    char line[64];

    if (bind(fd, (struct sockaddr *)&address, bytes) < 0 || listen(fd, 1) < 0 ||
        getsockname(fd, (struct sockaddr *)&address, &bytes) < 0)
        SKIP("no port to take");
    snprintf(line, sizeof line, "/nowhere.gguf --device cpu --port %d", ntohs(address.sin_port));
    struct ended ended = run(cmd_serve, "serve", line);
    EXPECT_END(ended, EXIT_CODE_RUNTIME, "", "Address already in use");
    close(fd);
}

int main(void)
{
    TEST(only_a_cpus_memory_is_left_to_others_unasked);
    TEST(help_and_version_go_to_standard_output);
    TEST(usage_is_one_line_and_exit_code_2);
    TEST(a_wrong_file_of_options_is_exit_code_3);
    TEST(check_config_says_yes_or_no);
    TEST(dump_config_names_sources_and_hides_keys);
    TEST(a_missing_or_broken_model_is_exit_code_3);
    TEST(a_port_in_use_is_exit_code_1_before_the_model_is_read);
    return test_report();
}
