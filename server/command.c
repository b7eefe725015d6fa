/* What the commands share: configuration to model options, errors to exit codes. */
#include "server/command.h"

#include "kernels/backend.h"
#include "model/model.h"
#include "server/config.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#ifndef QUIRE_COMMIT
#define QUIRE_COMMIT "unknown"
#endif
#if QUIRE_CUDA
#define CUDA_TEXT "cpu and cuda"
#else
#define CUDA_TEXT "cpu"
#endif

const char *command_version(void)
{
    return "quire " QUIRE_VERSION " (commit " QUIRE_COMMIT ", " __VERSION__ ", devices: " CUDA_TEXT
           ")";
}

const char *command_commit(void)
{
    return QUIRE_COMMIT;
}

int command_exit_code(int model_error)
{
    switch (model_error) {
    case 0:
        return EXIT_CODE_OK;
    case -ENOMEM:
    case -ENODEV:
        return EXIT_CODE_DEVICE;
    case -EIO:
        return EXIT_CODE_LOST;
    default:
        return EXIT_CODE_INPUT;
    }
}

/* Whether the model will be computed on a GPU: asked for, or there is one and nothing was asked
 * for. Opens and closes the device to know; keeps why there is none. A GPU that cannot be opened
 * for another reason is one: the model's opening tells it. */
static bool on_gpu(struct config *config)
{
    const struct device_ops *cuda = backend_cuda();
    struct device_options options = {
        .slot_max = 1, .token_max = 1, .sample_max = 1, .vocab_count = 1, .context_max = 1};
    struct device *device = NULL;

    if (config->device != CONFIG_DEVICE_AUTO)
        return config->device == CONFIG_DEVICE_CUDA;
    if (cuda == NULL) {
        snprintf(config->no_gpu, sizeof config->no_gpu, "this build has no CUDA backend");
        return false;
    }
    int result = cuda->open(&device, &options, config->no_gpu, sizeof config->no_gpu);
    if (result == -ENODEV)
        return false;
    config->no_gpu[0] = '\0';
    if (result == 0)
        cuda->close(device);
    return true;
}

/* Multiplications of a step on a GPU unless its tokens are given: about 25 ms of an H100, which
 * those who are being answered wait when a prompt comes in between; 8,192 tokens of a model of up
 * to a billion parameters, 1,024 of one with eight. */
enum { GPU_STEP_WORK_LOG2 = 43 };

void command_model_options(const struct config *config, struct model_options *options)
{
    assert(config->device != CONFIG_DEVICE_AUTO);
    *options = (struct model_options){
        .path = config->model,
        .device = config->device == CONFIG_DEVICE_CUDA ? MODEL_DEVICE_CUDA : MODEL_DEVICE_CPU,
        .thread_count = config->threads,
        .context_max = config->max_model_len,
        .slot_max = config->max_num_seqs,
        .token_max = config->max_num_batched_tokens,
        .sample_max = config->max_num_batched_tokens,
        .step_work =
            config->device == CONFIG_DEVICE_CUDA &&
                    config->origin[CONFIG_max_num_batched_tokens].source == CONFIG_BY_DEVICE
                ? (int64_t)1 << GPU_STEP_WORK_LOG2
                : 0,
        .block_tokens = config->block_size,
        .block_count = config->num_gpu_blocks_override,
        .memory_share = config->gpu_memory_utilization,
        .kv_bytes = config->kv_cache_memory_bytes,
        .kv_dtype = (enum kv_dtype)config->kv_cache_dtype,
        .portable = config->gpu_kernels == CONFIG_KERNELS_PORTABLE,
        .dummy_weights = config->load_format == CONFIG_LOAD_DUMMY,
        .skip_tokenizer = config->skip_tokenizer_init,
        .tune_table = config->tune_table[0] != '\0' ? config->tune_table : NULL,
        /* Nobody asked for all of a laptop's memory; a GPU's has no other use. */
        .kv_most = config->device == CONFIG_DEVICE_CPU &&
                           config->origin[CONFIG_gpu_memory_utilization].source == CONFIG_BY_DEVICE
                       ? (int64_t)4 << 30
                       : 0,
    };
}

/* --check-config was given, also where another option is wrong. */
static bool only_checks(int argc, char **argv)
{
    for (int i = 1; i < argc; i++)
        if (strcmp(argv[i], "--check-config") == 0)
            return true;
    return false;
}

/* --check-config: the options are good; is the model there? */
static int check(const struct config *config)
{
    if (config->model[0] != '\0' && access(config->model, R_OK) != 0) {
        fprintf(stderr, "quire: could not read model %s: %s\n", config->model, strerror(errno));
        return EXIT_CODE_RUNTIME;
    }
    printf("the configuration is good\n");
    return EXIT_CODE_OK;
}

bool command_configure(struct config *config, int command, int argc, char **argv, int *exit_code)
{
    char error[1024];
    int result = config_read(config, command, argc, argv, error, sizeof error);

    *exit_code = EXIT_CODE_OK;
    if (result < 0) {
        fprintf(stderr, "quire %s: %s\n", argv[0], error);
        *exit_code = only_checks(argc, argv) ? EXIT_CODE_RUNTIME
                     : result == -EBADMSG    ? EXIT_CODE_INPUT
                                             : EXIT_CODE_USAGE;
        return false;
    }
    switch (config->action) {
    case CONFIG_HELP:
        config_print_help(stdout, command);
        return false;
    case CONFIG_VERSION:
        printf("%s\n", command_version());
        return false;
    case CONFIG_CHECK:
        *exit_code = check(config);
        return false;
    case CONFIG_DUMP:
        config_resolve(config, on_gpu(config));
        config_print_dump(stdout, config);
        return false;
    case CONFIG_RUN:
        break;
    }
    if (config->model[0] == '\0') {
        fprintf(stderr, "quire %s: no model is named: quire %s MODEL.gguf\n", argv[0], argv[0]);
        *exit_code = EXIT_CODE_USAGE;
        return false;
    }
    if (config->warning[0] != '\0')
        fprintf(stderr, "quire %s: %s\n", argv[0], config->warning);
    config_resolve(config, on_gpu(config));
    return true;
}
