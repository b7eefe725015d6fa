/* `quire inspect MODEL`: what a model file holds, and the memory that it will need with the options
 * given, which are those of `quire serve`. Nothing is loaded. --json prints one JSON object. */
#include "model/inspect.h"

#include "server/command.h"
#include "server/config.h"
#include "server/json_write.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

static const char *size_text(int64_t bytes, char text[32])
{
    static const char *const unit[] = {"bytes", "KiB", "MiB", "GiB", "TiB"};
    double size = (double)bytes;
    int power = 0;

    for (; size >= 1024.0 && power < 4; power++)
        size /= 1024.0;
    snprintf(text, 32, power == 0 ? "%.0f %s" : "%.1f %s", size, unit[power]);
    return text;
}

static double millions(int64_t count)
{
    return (double)count / 1e6;
}

/* ---- for people ---- */

static void print_summary(const struct source_summary *summary, const char *path)
{
    char text[32], format[32] = "safetensors";

    if (summary->version > 0)
        snprintf(format, sizeof(format), "GGUF version %" PRId32, summary->version);
    printf("name           %s\n", summary->name);
    printf("file           %s\n", path);
    printf("               %s, %s, %" PRId32 " part%s\n", size_text(summary->file_bytes, text),
           format, summary->part_count, summary->part_count == 1 ? "" : "s");
    printf("architecture   %s\n", summary->architecture);
    printf("parameters     %.1f million in %" PRId64 " tensors\n",
           millions(summary->parameter_count), summary->tensor_count);
    for (int i = 0; i < FORMAT_COUNT; i++) {
        const struct format_sum *sum = &summary->format[i];

        if (sum->tensor_count > 0)
            printf("  %-12s %5" PRId64 " tensors %10.2f million %12s\n",
                   format_info((enum format)i)->name, sum->tensor_count,
                   millions(sum->parameter_count), size_text(sum->bytes, text));
    }
    printf("tokenizer      %s\n", summary->tokenizer[0] == '\0' ? "none" : summary->tokenizer);
}

static void print_shape(const struct model_inspection *inspection)
{
    const struct model_info *info = &inspection->info;

    printf("vocabulary     %" PRId32 " tokens; ends:", info->vocab_count);
    for (int32_t i = 0; i < info->end_count; i++)
        printf(" %" PRId32, info->end_token[i]);
    printf("%s\n", info->end_count == 0 ? " none" : "");
    printf("layers         %" PRId32 " of width %" PRId32 ", feed-forward %" PRId32 "\n",
           info->layer_count, inspection->width, inspection->ffn_width);
    printf("attention      %" PRId32 " heads, %" PRId32 " for keys and values, of %" PRId32,
           inspection->head_count, inspection->kv_head_count, inspection->head_width);
    if (inspection->window > 0)
        printf(", window %" PRId32, inspection->window);
    printf("\ncontext        %" PRId32 " tokens\n", info->context_model);
}

static void print_memory(const struct model_inspection *inspection,
                         const struct model_options *options)
{
    const struct model_info *info = &inspection->info;
    int64_t tokens = (int64_t)info->block_count * info->block_tokens;
    int64_t blocks = (info->context_max + info->block_tokens - 1) / info->block_tokens;
    char text[32];

    printf("\non             %s\n", info->device);
    printf("  weights      %s\n", size_text(info->weight_bytes, text));
    printf("  workspace    %s for steps of %" PRId32 " tokens\n",
           size_text(info->workspace_bytes, text), info->step_tokens);
    if (info->graph_bytes > 0)
        printf("  graphs       %s\n", size_text(info->graph_bytes, text));
    printf("  KV           %s a token;",
           size_text(inspection->block_bytes / info->block_tokens, text));
    printf(" %s for a sequence of %" PRId32 " tokens\n",
           size_text(blocks * inspection->block_bytes, text), info->context_max);
    printf("  KV pool      %s: %" PRId32 " blocks of %" PRId32 ", %" PRId64
           " tokens for at most %" PRId32 " sequences\n",
           size_text(info->kv_bytes, text), info->block_count, info->block_tokens, tokens,
           options->slot_max);
    printf("  all          %s\n", size_text(info->weight_bytes + info->workspace_bytes +
                                                info->graph_bytes + info->kv_bytes,
                                            text));
}

/* ---- for programs ---- */

static void text_member(struct json *json, const char *name, const char *value)
{
    json_print(json, ",\"%s\":", name);
    json_string(json, value, strlen(value));
}

static void int_member(struct json *json, const char *name, int64_t value)
{
    json_print(json, ",\"%s\":%" PRId64, name, value);
}

static void summary_members(struct json *json, const struct source_summary *summary)
{
    const char *comma = "";

    text_member(json, "name", summary->name);
    text_member(json, "architecture", summary->architecture);
    text_member(json, "tokenizer", summary->tokenizer);
    int_member(json, "gguf_version", summary->version);
    int_member(json, "parts", summary->part_count);
    int_member(json, "file_bytes", summary->file_bytes);
    int_member(json, "tensors", summary->tensor_count);
    int_member(json, "parameters", summary->parameter_count);
    json_raw(json, ",\"formats\":{");
    for (int i = 0; i < FORMAT_COUNT; i++) {
        const struct format_sum *sum = &summary->format[i];

        if (sum->tensor_count == 0)
            continue;
        json_print(json,
                   "%s\"%s\":{\"tensors\":%" PRId64 ",\"parameters\":%" PRId64 ",\"bytes\":%" PRId64
                   "}",
                   comma, format_info((enum format)i)->name, sum->tensor_count,
                   sum->parameter_count, sum->bytes);
        comma = ",";
    }
    json_raw(json, "}");
}

static void info_members(struct json *json, const struct model_inspection *inspection)
{
    const struct model_info *info = &inspection->info;

    int_member(json, "vocabulary", info->vocab_count);
    json_raw(json, ",\"end_tokens\":");
    json_ints(json, info->end_token, info->end_count);
    int_member(json, "layers", info->layer_count);
    int_member(json, "width", inspection->width);
    int_member(json, "feed_forward", inspection->ffn_width);
    int_member(json, "heads", inspection->head_count);
    int_member(json, "kv_heads", inspection->kv_head_count);
    int_member(json, "head_width", inspection->head_width);
    int_member(json, "window", inspection->window);
    int_member(json, "context_model", info->context_model);
    int_member(json, "context", info->context_max);
    text_member(json, "device", info->device);
    int_member(json, "weight_bytes", info->weight_bytes);
    int_member(json, "workspace_bytes", info->workspace_bytes);
    int_member(json, "graph_bytes", info->graph_bytes);
    int_member(json, "kv_bytes", info->kv_bytes);
    int_member(json, "kv_bytes_per_token", inspection->block_bytes / info->block_tokens);
    int_member(json, "kv_blocks", info->block_count);
    int_member(json, "block_tokens", info->block_tokens);
}

static bool print_json(const struct model_inspection *inspection, const char *path)
{
    struct json json = {0};
    bool good;

    json_raw(&json, "{\"file\":");
    json_string(&json, path, strlen(path));
    summary_members(&json, &inspection->summary);
    if (inspection->fits)
        info_members(&json, inspection);
    json_raw(&json, "}\n");
    good = !json.lost && fwrite(json.text, 1, json.bytes, stdout) == json.bytes;
    json_release(&json);
    return good;
}

/* ---- the command ---- */

static int inspect(const struct config *config, bool as_json)
{
    struct model_inspection inspection;
    struct model_options options;
    char error[1024] = "";
    bool good = true;
    int result;

    command_model_options(config, &options);
    result = model_inspect(&inspection, &options, error, sizeof(error));
    if (inspection.readable && as_json)
        good = print_json(&inspection, config->model);
    else if (inspection.readable)
        print_summary(&inspection.summary, config->model);
    if (inspection.fits && !as_json) {
        print_shape(&inspection);
        print_memory(&inspection, &options);
    }
    if (fflush(stdout) != 0 || !good) {
        fprintf(stderr, "quire inspect: could not write: %s\n", strerror(errno));
        return EXIT_CODE_RUNTIME;
    }
    if (result != 0)
        fprintf(stderr, "quire inspect: %s\n", error);
    return command_exit_code(result);
}

/* Takes --json out of the arguments, which are otherwise those of `serve`. */
static bool take_json(int *argc, char **argv)
{
    bool found = false;
    int kept = 1;

    for (int i = 1; i < *argc; i++) {
        if (strcmp(argv[i], "--json") == 0)
            found = true;
        else
            argv[kept++] = argv[i];
    }
    argv[kept] = NULL;
    *argc = kept;
    return found;
}

int cmd_inspect(int argc, char **argv)
{
    bool as_json = take_json(&argc, argv);
    struct config config;
    int code;

    if (command_configure(&config, CONFIG_SERVE, argc, argv, &code))
        code = inspect(&config, as_json);
    config_release(&config);
    return code;
}
