/* Reading the table of products, and making it; see tune.h. */
#include "model/tune.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Tokens that lines are made for. */
static const int32_t token_case[] = {1,   2,   4,   8,    16,   24,   32,   48,  64,  80,
                                     96,  128, 160, 192,  224,  256,  320,  384, 448, 512,
                                     640, 768, 896, 1024, 1536, 2048, 4096, 8192};
enum { TOKEN_CASES = sizeof(token_case) / sizeof(*token_case) };

void tune_device_name(const char *description, char *name, size_t max)
{
    snprintf(name, max, "%.*s", (int)strcspn(description, ","), description);
}

/* ---- reading ---- */

struct reading {
    const struct device_ops *ops;
    struct device *device;
    const char *path;       /* NULL: the built-in tables */
    int32_t number;         /* of the line */
    bool named;             /* a device's line was there */
    bool other;             /* it named another one */
    struct tuned_table own; /* the file's lines */
    struct tune_taken *taken;
    char *error;
    size_t error_bytes;
};

__attribute__((format(printf, 3, 4))) static int refuse(const struct reading *reading, int status,
                                                        const char *format, ...)
{
    const char *path = reading->path == NULL ? "built-in table" : reading->path;
    va_list list;
    int count = snprintf(reading->error, reading->error_bytes, "%s:%d: ", path, reading->number);

    if (count < 0 || (size_t)count >= reading->error_bytes)
        return status;
    va_start(list, format);
    vsnprintf(reading->error + count, reading->error_bytes - (size_t)count, format, list);
    va_end(list);
    return status;
}

static int take_device(struct reading *reading, const char *wanted)
{
    char name[128];

    tune_device_name(reading->ops->describe(reading->device), name, sizeof(name));
    reading->named = true;
    reading->other = strcmp(wanted, name) != 0;
    if (reading->other && reading->path != NULL)
        return refuse(reading, -EINVAL, "the table is for %.100s, and this is %s", wanted, name);
    return 0;
}

static void skip(struct reading *reading)
{
    struct tune_taken *taken = reading->taken;

    taken->skipped_count++;
    if (reading->path != NULL && taken->skipped_line == 0)
        taken->skipped_line = reading->number;
}

static int take_product(struct reading *reading, const char *text)
{
    struct tuned_line line;

    if (!tuned_parse(&line, text))
        return refuse(reading, -EINVAL, "\"%.100s\" is no line of a table of quire tune", text);
    if (reading->path == NULL && tuned_find(&reading->own, &line.product, 1) != NULL)
        return 0;
    if (reading->path != NULL && !tuned_add(&reading->own, &line))
        return refuse(reading, -ENOMEM, "no memory for the table");
    int status = reading->ops->tuned(reading->device, &line);
    if (status == -ENOTSUP) {
        skip(reading);
        return 0;
    }
    if (status == 0 && reading->path != NULL)
        reading->taken->own_count++;
    else if (status == 0)
        reading->taken->builtin_count++;
    return status == 0 ? 0 : refuse(reading, status, "no memory for the table");
}

static int take_line(struct reading *reading, const char *text)
{
    static const char device[] = "device ";

    reading->number++;
    if (text[0] == '\0' || text[0] == '#')
        return 0;
    if (strncmp(text, device, strlen(device)) == 0)
        return take_device(reading, text + strlen(device));
    if (!reading->named)
        return refuse(reading, -EINVAL, "a table of quire tune begins with its device");
    return reading->other ? 0 : take_product(reading, text);
}

static int take_stream(struct reading *reading, FILE *file)
{
    char *text = NULL;
    size_t max = 0;
    int status = 0;

    for (ssize_t bytes; status == 0 && (bytes = getline(&text, &max, file)) >= 0;) {
        if (bytes > 0 && text[bytes - 1] == '\n')
            text[bytes - 1] = '\0';
        status = take_line(reading, text);
    }
    if (status == 0 && ferror(file))
        status = refuse(reading, -EIO, "could not be read: %s", strerror(errno));
    free(text);
    return status;
}

static int take_file(struct reading *reading)
{
    FILE *file = fopen(reading->path, "r");

    if (file == NULL) {
        int status = -errno;
        snprintf(reading->error, reading->error_bytes, "could not read %s: %s", reading->path,
                 strerror(-status));
        return status;
    }
    int status = take_stream(reading, file);
    fclose(file);
    if (status == 0 && !reading->named)
        status = refuse(reading, -EINVAL, "the table is empty");
    return status;
}

static int take_builtin(struct reading *reading, const char *builtin)
{
    size_t bytes = strlen(builtin);

    if (bytes == 0)
        return 0;
    reading->path = NULL;
    reading->named = false;
    reading->number = 0;
    FILE *file = fmemopen((char *)builtin, bytes, "r"); /* which does not write */
    if (file == NULL)
        return refuse(reading, -errno, "could not be opened: %s", strerror(errno));
    int status = take_stream(reading, file);
    fclose(file);
    return status;
}

int tune_take(const struct device_ops *ops, struct device *device, const char *path,
              const char *builtin, struct tune_taken *taken, char *error, size_t error_bytes)
{
    struct reading reading = {.ops = ops,
                              .device = device,
                              .path = path,
                              .taken = taken,
                              .error = error,
                              .error_bytes = error_bytes};

    memset(taken, 0, sizeof(*taken));
    if (ops->tuned == NULL && path == NULL)
        return 0;
    if (ops->tuned == NULL) {
        snprintf(error, error_bytes, "the %s device has one way to make products: no table",
                 ops->name);
        return -ENOTSUP;
    }
    int status = path == NULL ? 0 : take_file(&reading);
    if (status == 0)
        status = take_builtin(&reading, builtin);
    tuned_release(&reading.own);
    return status;
}

void tune_describe(const struct tune_taken *taken, const char *path, const char *device, char *text,
                   size_t max)
{
    char own[256] = "", builtin[192] = "", name[128];

    tune_device_name(device, name, sizeof(name));
    if (path != NULL)
        snprintf(own, sizeof(own), "%.200s (%d lines)", path, taken->own_count);
    if (taken->builtin_count > 0)
        snprintf(builtin, sizeof(builtin), "built-in for %s (%d lines)", name,
                 taken->builtin_count);
    snprintf(text, max, "%s%s%s", own, own[0] != '\0' && builtin[0] != '\0' ? ", " : "", builtin);
    if (taken->own_count + taken->builtin_count == 0)
        snprintf(text, max, "none: estimates");
}

void tune_warning(const struct tune_taken *taken, const char *path, char *text, size_t max)
{
    text[0] = '\0';
    if (taken->skipped_line > 0)
        snprintf(
            text, max,
            "%d lines of tune tables were skipped, since this build has no such way; the first "
            "one is %.200s:%d; make the table anew by quire tune",
            taken->skipped_count, path, taken->skipped_line);
    else if (taken->skipped_count > 0)
        snprintf(text, max,
                 "%d lines of the built-in tune table were skipped, since kernels of this GPU have "
                 "no such way",
                 taken->skipped_count);
}

/* ---- making ---- */

struct making {
    const struct device_ops *ops;
    struct device *device;
    int32_t token_max;
    void (*line)(void *context, const char *text);
    void *context;
    int32_t line_count;
};

static int measure(struct making *making, const struct weight *const *weight, int32_t count,
                   bool logits)
{
    for (int32_t i = 0; i < TOKEN_CASES && token_case[i] <= making->token_max; i++) {
        struct tuned_line line = {0};
        char text[TUNED_TEXT_MAX];
        int status = making->ops->tune(making->device, weight, count, logits, token_case[i], &line);
        if (status == -ENOTSUP)
            return 0;
        if (status != 0)
            return status;
        tuned_print(&line, text);
        making->line(making->context, text);
        making->line_count++;
    }
    return 0;
}

static bool is_alike(const struct weight *left, const struct weight *right)
{
    return left->out == right->out && left->in == right->in && left->gated == right->gated &&
           left->part_count == right->part_count && left->part[0].format == right->part[0].format;
}

/* One of a layer's weights, in all layers where it is as in the first. */
static int measure_layers(struct making *making, const struct weights *weights, int32_t layer_count,
                          size_t member)
{
    const struct weight **weight = calloc((size_t)layer_count, sizeof(*weight));
    int32_t count = 0;

    if (weight == NULL)
        return -ENOMEM;
    for (int32_t i = 0; i < layer_count; i++) {
        const struct weight *own =
            (const struct weight *)((const char *)&weights->layer[i] + member);
        if (count == 0 || is_alike(own, weight[0]))
            weight[count++] = own;
    }
    int status = measure(making, weight, count, false);
    free(weight);
    return status;
}

int tune_measure(const struct device_ops *ops, struct device *device, const struct weights *weights,
                 int32_t layer_count, int32_t token_max,
                 void (*line)(void *context, const char *text), void *context)
{
    static const size_t member[] = {
        offsetof(struct layer_weights, qkv), offsetof(struct layer_weights, attn_output),
        offsetof(struct layer_weights, gate_up), offsetof(struct layer_weights, down)};
    struct making making = {ops, device, token_max, line, context, 0};
    int status = ops->tune == NULL ? -ENOTSUP : 0;

    for (size_t i = 0; i < sizeof(member) / sizeof(*member) && status == 0; i++)
        status = measure_layers(&making, weights, layer_count, member[i]);
    if (status == 0)
        status = measure(&making, &weights->head, 1, true);
    return status == 0 && making.line_count == 0 ? -ENOTSUP : status;
}
