/* Any bytes as a configuration file: refused with one line, or taken with every option in its
 * range; what is taken prints as a file that is taken again. */
#include "server/config.h"
#include "server/config_table.h"

#include <assert.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static void check_ranges(const struct config *config)
{
    assert(config->port >= 0 && config->port <= 65535);
    assert(config->gpu_memory_utilization >= 0 && config->gpu_memory_utilization <= 1);
    assert(config->max_model_len >= 0);
    assert(config->log_level >= 0 && config->log_level < 4);
    assert(config->api_key.count <= 1024);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    struct config config, again;
    char error[512] = "", *text = NULL;
    size_t text_bytes;

    if (config_defaults(&config, CONFIG_SERVE) < 0 || config_defaults(&again, CONFIG_SERVE) < 0)
        abort();
    int result = config_read_yaml(&config, "fuzz", (const char *)data, bytes, error, sizeof error);
    assert(result == 0 || (error[0] != '\0' && strchr(error, '\n') == NULL));
    if (result == 0) {
        check_ranges(&config);
        FILE *out = open_memstream(&text, &text_bytes);
        config_print_dump(out, &config);
        fclose(out);
        result = config_read_yaml(&again, "dump", text, text_bytes, error, sizeof error);
        assert(result == 0);
        free(text);
    }
    config_release(&config);
    config_release(&again);
    return 0;
}
