/* `quire COMMAND`: the table of commands. */
#include "server/api.h"
#include "server/command.h"
#include "server/config.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>

static int cmd_docs(int argc, char **argv);
static int cmd_help(int argc, char **argv);
static int cmd_version(int argc, char **argv);

static const struct command {
    const char *name;
    int (*run)(int argc, char **argv);
    const char *help;
} commands[] = {
    {"serve", cmd_serve, "serve a model over HTTP"},
    {"bench", cmd_bench, "measure a model without HTTP"},
    {"tune", cmd_tune, "measure how a GPU makes a model's products the fastest"},
    {"inspect", cmd_inspect, "what a model file holds and what it will need"},
    {"tokenize", cmd_tokenize, "text to tokens and back"},
    {"docs", cmd_docs, "print a reference that is made from the tables"},
    {"help", cmd_help, "print this, or the help of a command"},
    {"version", cmd_version, "print version and build"},
};
enum { COMMAND_COUNT = sizeof commands / sizeof commands[0] };

static const struct command *find(const char *name)
{
    for (int i = 0; i < COMMAND_COUNT; i++)
        if (strcmp(commands[i].name, name) == 0)
            return &commands[i];
    return NULL;
}

static void print_commands(FILE *out)
{
    fprintf(out, "usage: quire COMMAND [OPTION...] [MODEL]\n\n");
    for (int i = 0; i < COMMAND_COUNT; i++)
        fprintf(out, "  %-10s %s\n", commands[i].name, commands[i].help);
    fprintf(out, "\nquire COMMAND --help has the options of a command.\n"
                 "First: quire serve MODEL.gguf\n");
}

/* Writes what a table printed; false when standard output takes no more. */
static bool print_json(struct json *text)
{
    bool good = !text->lost && fwrite(text->text, 1, text->bytes, stdout) == text->bytes;

    json_release(text);
    return good;
}

static int cmd_docs(int argc, char **argv)
{
    const char *name = argc == 2 ? argv[1] : "";
    struct json text = {0};
    bool good = true;

    if (strcmp(name, "config") == 0) {
        config_print_docs(stdout);
    } else if (strcmp(name, "yaml") == 0) {
        config_print_yaml(stdout);
    } else if (strcmp(name, "api") == 0) {
        route_document(&text);
        good = print_json(&text);
    } else {
        bool help = strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0;
        fprintf(help ? stdout : stderr, "usage: quire docs config | yaml | api\n");
        return help ? EXIT_CODE_OK : EXIT_CODE_USAGE;
    }
    return good && fflush(stdout) == 0 ? EXIT_CODE_OK : EXIT_CODE_RUNTIME;
}

static int unknown(const char *name)
{
    const char *names[COMMAND_COUNT];

    for (int i = 0; i < COMMAND_COUNT; i++)
        names[i] = commands[i].name;
    const char *nearest = config_nearest(name, names, COMMAND_COUNT);
    if (nearest != NULL)
        fprintf(stderr, "quire: %.64s: unknown command; did you mean %s?\n", name, nearest);
    else
        fprintf(stderr, "quire: %.64s: unknown command; quire help has all of them\n", name);
    return EXIT_CODE_USAGE;
}

static int cmd_help(int argc, char **argv)
{
    const struct command *command = argc > 1 ? find(argv[1]) : NULL;
    char help[] = "--help", *arguments[] = {argc > 1 ? argv[1] : help, help, NULL};

    if (argc > 1 && command == NULL)
        return unknown(argv[1]);
    if (command != NULL && command->run != cmd_help && command->run != cmd_version)
        return command->run(2, arguments);
    print_commands(stdout);
    return EXIT_CODE_OK;
}

static int cmd_version(int argc, char **argv)
{
    (void)argc;
    (void)argv;
    printf("%s\n", command_version());
    return EXIT_CODE_OK;
}

int main(int argc, char **argv)
{
    const char *name = argc > 1 ? argv[1] : "";

    signal(SIGPIPE, SIG_IGN); /* a reader that left is an error of write, not the end of us */
    if (name[0] == '\0') {
        print_commands(stderr);
        return EXIT_CODE_USAGE;
    }
    if (strcmp(name, "-h") == 0 || strcmp(name, "--help") == 0)
        name = "help";
    if (strcmp(name, "-V") == 0 || strcmp(name, "--version") == 0)
        name = "version";
    const struct command *command = find(name);
    return command == NULL ? unknown(name) : command->run(argc - 1, argv + 1);
}
