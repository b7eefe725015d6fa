/* `quire COMMAND`: one file server/cmd_*.c each; argv[0] is the command's name.
 *
 * A command prints its results to standard output and its troubles, one line each, to standard
 * error, and returns one of these exit codes.
 */
#ifndef SERVER_COMMAND_H
#define SERVER_COMMAND_H

#include <stdbool.h>

struct config;        /* server/config.h */
struct model_options; /* model/model.h */

enum exit_code {
    EXIT_CODE_OK = 0,
    EXIT_CODE_RUNTIME = 1, /* a port in use, a write that failed; --check-config: not good */
    EXIT_CODE_USAGE = 2,   /* an unknown command, option or value */
    EXIT_CODE_INPUT = 3,   /* the model or the configuration file is invalid */
    EXIT_CODE_DEVICE = 4,  /* no device, or not enough memory */
    EXIT_CODE_LOST = 70,   /* a device was lost: start the process again */
};

/* The commands of main.c's table that have a file of their own. */
int cmd_serve(int argc, char **argv);
int cmd_bench(int argc, char **argv);
int cmd_tune(int argc, char **argv);
int cmd_inspect(int argc, char **argv);
int cmd_tokenize(int argc, char **argv);

/* The exit code for what model_open returned. */
int command_exit_code(int model_error);

/* What model_open needs, from a resolved configuration; `options` points into it. */
void command_model_options(const struct config *config, struct model_options *options);

/* Reads a command's options and does what --help, --version, --check-config and --dump-config
 * ask for. True: go on, `config` is filled and resolved. False: end with *exit_code. The caller
 * calls config_release in either case. */
bool command_configure(struct config *config, int command, int argc, char **argv, int *exit_code);

/* One line of version and build; the commit that was built, or "unknown". */
const char *command_version(void);
const char *command_commit(void);

#endif
