/* `quire tune MODEL >TABLE`: measures which way the GPU makes each of a model's products the
 * fastest. `quire serve --tune-table TABLE` then follows it; no way changes a bit of an answer.
 * Tables in configs/tune are part of the binary and need no option (`make tune-table`).
 *
 * Weights count by their shapes alone, so random ones (--load-format dummy) do as well.
 */
#include "model/model.h"
#include "server/command.h"
#include "server/config.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

enum { TOKENS = 8192, CONTEXT = 512 };

/* The lines as they come; *context: whether standard output took all. */
static void print_line(void *context, const char *text)
{
    bool *good = context;

    *good = printf("%s\n", text) >= 0 && fflush(stdout) == 0 && *good;
}

static int tune(struct model *model)
{
    bool good = printf("# quire tune, %s: %s, %s\n", command_commit(), model_info(model)->name,
                       model_info(model)->format) >= 0;
    int result = model_tune(model, print_line, &good);

    if (result == -ENOTSUP)
        fprintf(stderr,
                "quire tune: nothing to tune: on %s there is one way for each of this "
                "model's products\n",
                model_info(model)->device);
    else if (result == -EIO)
        fprintf(stderr, "quire tune: a device is lost: %s\n", model_fault(model));
    else if (result < 0)
        fprintf(stderr, "quire tune: %s\n", strerror(-result));
    else if (!good)
        fprintf(stderr, "quire tune: could not write to standard output\n");
    if (result == -ENOTSUP)
        return EXIT_CODE_DEVICE;
    return result < 0 ? command_exit_code(result) : good ? EXIT_CODE_OK : EXIT_CODE_RUNTIME;
}

/* Of the memory it takes what one short sequence needs. */
static int open_model(struct model **model, const struct config *config, char *error,
                      size_t error_bytes)
{
    struct model_options options;

    command_model_options(config, &options);
    options.slot_max = 1;
    options.token_max = options.sample_max = TOKENS;
    options.step_work = 0;
    options.context_max = CONTEXT;
    options.block_count = CONTEXT / options.block_tokens;
    options.kv_bytes = 0;
    options.skip_tokenizer = true;
    return model_open(model, &options, error, error_bytes);
}

int cmd_tune(int argc, char **argv)
{
    struct config config;
    struct model *model = NULL;
    char error[1024];
    int code;

    if (command_configure(&config, CONFIG_TUNE, argc, argv, &code)) {
        if (config.no_gpu[0] != '\0')
            fprintf(stderr, "quire tune: on the CPU: %s\n", config.no_gpu);
        int result = open_model(&model, &config, error, sizeof error);
        if (result < 0)
            fprintf(stderr, "quire tune: %s\n", error);
        code = result < 0 ? command_exit_code(result) : tune(model);
        model_close(model);
    }
    config_release(&config);
    return code;
}
