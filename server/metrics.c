/* Counters and the page that shows them; see metrics.h.
 *
 * Every cell is an atomic of its own, relaxed: a page is consistent within a histogram (its
 * count is the sum of what it prints), and between families to within what happened meanwhile.
 */
#include "server/metrics.h"

#include "server/api.h"

#include <assert.h>
#include <dirent.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { EDGE_MAX = 32, STATUS_MAX = 24 };

struct edges {
    int32_t count;
    double edge[EDGE_MAX];
};

/* vLLM's edges; TOKEN has four finer ones in front, for machines that are faster than 10 ms. */
enum edges_kind { FIRST, TOKEN, REQUEST, LENGTH, COUNT, STEP, EDGES_COUNT };

static const struct edges edges[EDGES_COUNT] = {
    [FIRST] = {22, {0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75,
                    1,     2.5,   5,    7.5,  10,   20,   40,   80,  160,  640, 2560}},
    [TOKEN] = {23, {0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3,
                    0.4,    0.5,   0.75,  1,     2.5,  5,     7.5,  10,    20,  40,   80}},
    [REQUEST] = {21, {0.3, 0.5, 0.8, 1,  1.5, 2,   2.5, 5,   10,   15,  20,
                      30,  40,  50,  60, 120, 240, 480, 960, 1920, 7680}},
    [LENGTH] = {18,
                {1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000,
                 200000, 500000}},
    [COUNT] = {5, {1, 2, 5, 10, 20}},
    [STEP] = {13, {1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384}},
};

struct histogram {
    _Atomic int64_t bucket[EDGE_MAX + 1]; /* not cumulative; the last one: above every edge */
    _Atomic int64_t sum_millionths;
};

static const int32_t status_known[] = {200, 204, 400, 401, 403, 404, 405,
                                       413, 415, 429, 431, 499, 500, 503};
enum { STATUS_COUNT = sizeof status_known / sizeof status_known[0] };

/* Codes of stream_error_make, so that no other word ever becomes a label. */
static const char *const error_known[] = {"cancelled",
                                          "context_length_exceeded",
                                          "engine_dead",
                                          "invalid_api_key",
                                          "invalid_json",
                                          "invalid_request",
                                          "invalid_type",
                                          "invalid_value",
                                          "method_not_allowed",
                                          "missing_required_parameter",
                                          "model_loading",
                                          "model_not_found",
                                          "out_of_memory",
                                          "queue_full",
                                          "request_too_large",
                                          "shutting_down",
                                          "unknown_url",
                                          "unsupported_media_type",
                                          "unsupported_parameter",
                                          "unsupported_value",
                                          "other"};
enum { ERROR_COUNT = sizeof error_known / sizeof error_known[0] };

static _Atomic int64_t error_cell[ERROR_COUNT];
static _Atomic int64_t counter_cell[METRIC_COUNTER_COUNT];
static _Atomic double gauge_cell[METRIC_GAUGE_COUNT];
static struct histogram histogram_cell[METRIC_HISTOGRAM_COUNT];
static _Atomic int64_t http_cell[METRIC_ROUTE_MAX + 1][STATUS_COUNT + 1];
static struct metrics_info described;

struct row {
    const char *name, *labels, *alias, *alias_labels, *help;
};

struct histogram_row {
    const char *name, *alias;
    enum edges_kind edges;
    const char *help;
};

#define ROW(id, name, labels, alias, alias_labels, help) {name, labels, alias, alias_labels, help},
static const struct row counter_row[] = {METRIC_COUNTERS(ROW)};
static const struct row gauge_row[] = {METRIC_GAUGES(ROW)};
#undef ROW
#define ROW(id, name, alias, edges, help) {name, alias, edges, help},
static const struct histogram_row histogram_row[] = {METRIC_HISTOGRAMS(ROW)};
#undef ROW

void metrics_add(enum metric_counter counter, int64_t amount)
{
    assert(amount >= 0);
    atomic_fetch_add_explicit(&counter_cell[counter], amount, memory_order_relaxed);
}

void metrics_set(enum metric_gauge gauge, double value)
{
    atomic_store_explicit(&gauge_cell[gauge], value, memory_order_relaxed);
}

void metrics_move(enum metric_gauge gauge, double change)
{
    double before = atomic_load_explicit(&gauge_cell[gauge], memory_order_relaxed);

    while (!atomic_compare_exchange_weak_explicit(&gauge_cell[gauge], &before, before + change,
                                                  memory_order_relaxed, memory_order_relaxed)) {
    }
}

void metrics_observe(enum metric_histogram histogram, double value)
{
    const struct edges *edge = &edges[histogram_row[histogram].edges];
    struct histogram *cell = &histogram_cell[histogram];
    int32_t bucket = 0;

    while (bucket < edge->count && value > edge->edge[bucket])
        bucket++;
    atomic_fetch_add_explicit(&cell->bucket[bucket], 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&cell->sum_millionths, (int64_t)(value * 1e6), memory_order_relaxed);
}

int64_t metrics_counter(enum metric_counter counter)
{
    return atomic_load_explicit(&counter_cell[counter], memory_order_relaxed);
}

double metrics_gauge(enum metric_gauge gauge)
{
    return atomic_load_explicit(&gauge_cell[gauge], memory_order_relaxed);
}

int64_t metrics_count(enum metric_histogram histogram)
{
    int64_t count = 0;

    for (int32_t i = 0; i <= edges[histogram_row[histogram].edges].count; i++)
        count += atomic_load_explicit(&histogram_cell[histogram].bucket[i], memory_order_relaxed);
    return count;
}

void metrics_http(int32_t route, int32_t status)
{
    int32_t row = route < 0 || route >= METRIC_ROUTE_MAX ? METRIC_ROUTE_MAX : route;
    int32_t column = 0;

    while (column < STATUS_COUNT && status_known[column] != status)
        column++;
    atomic_fetch_add_explicit(&http_cell[row][column], 1, memory_order_relaxed);
}

void metrics_error(const char *code)
{
    int32_t i = 0;

    while (i < ERROR_COUNT - 1 && strcmp(error_known[i], code) != 0)
        i++;
    atomic_fetch_add_explicit(&error_cell[i], 1, memory_order_relaxed);
}

void metrics_describe(const struct metrics_info *info)
{
    described = *info;
    metrics_set(METRIC_KV_TOTAL, info->block_count);
}

/* HELP and TYPE of a family, once. */
static void write_head(struct json *text, const char *prefix, const char *name, const char *help,
                       const char *type)
{
    json_print(text, "# HELP %s%s %s\n# TYPE %s%s %s\n", prefix, name, help, prefix, name, type);
}

/* A label's value with its backslashes, quotes and line feeds escaped. */
static void write_label(struct json *text, const char *name, const char *value)
{
    json_print(text, "%s=\"", name);
    for (const char *c = value == NULL ? "" : value; *c != '\0'; c++) {
        if (*c == '\\' || *c == '"')
            json_raw(text, "\\");
        if (*c == '\n')
            json_raw(text, "\\n");
        else
            json_bytes(text, c, 1);
    }
    json_raw(text, "\"");
}

/* vLLM's labels, which every one of its families carries. */
static void write_common(struct json *text)
{
    write_label(text, "model_name", described.model_name);
    json_raw(text, ",engine=\"0\"");
}

static void write_labels(struct json *text, bool alias, const char *labels)
{
    if (!alias && labels[0] == '\0')
        return;
    json_raw(text, "{");
    if (alias)
        write_common(text);
    if (alias && labels[0] != '\0')
        json_raw(text, ",");
    json_raw(text, labels);
    json_raw(text, "}");
}

static const char *const prefix_of[2] = {"quire_", "vllm:"};

static void write_counters(struct json *text, bool alias)
{
    const char *last = "";

    for (int32_t i = 0; i < METRIC_COUNTER_COUNT; i++) {
        const struct row *row = &counter_row[i];
        const char *name = alias ? row->alias : row->name;
        if (name[0] == '\0')
            continue;
        if (strcmp(name, last) != 0)
            write_head(text, prefix_of[alias], name, row->help, "counter");
        last = name;
        json_print(text, "%s%s", prefix_of[alias], name);
        write_labels(text, alias, alias ? row->alias_labels : row->labels);
        json_print(text, " %lld\n", (long long)metrics_counter((enum metric_counter)i));
    }
}

static void write_gauges(struct json *text, bool alias)
{
    const char *last = "";

    for (int32_t i = 0; i < METRIC_GAUGE_COUNT; i++) {
        const struct row *row = &gauge_row[i];
        const char *name = alias ? row->alias : row->name;
        if (name[0] == '\0')
            continue;
        if (strcmp(name, last) != 0)
            write_head(text, prefix_of[alias], name, row->help, "gauge");
        last = name;
        json_print(text, "%s%s", prefix_of[alias], name);
        write_labels(text, alias, alias ? row->alias_labels : row->labels);
        json_print(text, " %.17g\n", metrics_gauge((enum metric_gauge)i));
    }
}

static void write_bucket(struct json *text, bool alias, const char *name, const char *edge,
                         int64_t count)
{
    json_print(text, "%s%s_bucket{", prefix_of[alias], name);
    if (alias) {
        write_common(text);
        json_raw(text, ",");
    }
    json_print(text, "le=\"%s\"} %lld\n", edge, (long long)count);
}

static void write_histogram(struct json *text, bool alias, int32_t index)
{
    const struct histogram_row *row = &histogram_row[index];
    struct histogram *cell = &histogram_cell[index];
    const struct edges *edge = &edges[row->edges];
    const char *name = alias ? row->alias : row->name;
    int64_t count = 0;
    char printed[32];

    if (name[0] == '\0')
        return;
    write_head(text, prefix_of[alias], name, row->help, "histogram");
    for (int32_t i = 0; i <= edge->count; i++) {
        count += atomic_load_explicit(&cell->bucket[i], memory_order_relaxed);
        if (i < edge->count)
            snprintf(printed, sizeof printed, "%.10g", edge->edge[i]);
        else
            snprintf(printed, sizeof printed, "+Inf");
        write_bucket(text, alias, name, printed, count);
    }
    int64_t sum = atomic_load_explicit(&cell->sum_millionths, memory_order_relaxed);
    json_print(text, "%s%s_sum", prefix_of[alias], name);
    write_labels(text, alias, "");
    json_print(text, " %.6f\n%s%s_count", (double)sum / 1e6, prefix_of[alias], name);
    write_labels(text, alias, "");
    json_print(text, " %lld\n", (long long)count);
}

static void write_info(struct json *text, bool alias)
{
    write_head(text, prefix_of[alias], "cache_config_info", "How the KV cache is cut.", "gauge");
    json_print(text, "%scache_config_info{", prefix_of[alias]);
    if (alias) {
        write_common(text);
        json_raw(text, ",");
    }
    json_print(text, "block_size=\"%d\",num_gpu_blocks=\"%.0f\",", described.block_tokens,
               metrics_gauge(METRIC_KV_TOTAL));
    write_label(text, "cache_dtype", described.cache_dtype);
    json_raw(text, "} 1\n");
    if (alias)
        return;
    write_head(text, "quire_", "build_info", "What runs.", "gauge");
    json_raw(text, "quire_build_info{");
    write_label(text, "version", described.version);
    json_raw(text, ",");
    write_label(text, "model", described.model_name);
    json_raw(text, "} 1\n");
}

static const char error_help[] = "Requests that ended in an error, by its code.";

static void write_http(struct json *text)
{
    write_head(text, "quire_", "http_requests_total", "Replies, by route and status.", "counter");
    for (int32_t i = 0; i <= METRIC_ROUTE_MAX; i++) {
        for (int32_t j = 0; j <= STATUS_COUNT; j++) {
            int64_t count = atomic_load_explicit(&http_cell[i][j], memory_order_relaxed);
            if (count == 0)
                continue;
            const struct route *route = i < route_count ? &routes[i] : NULL;
            json_raw(text, "quire_http_requests_total{");
            write_label(text, "method", route != NULL ? route->method : "other");
            json_raw(text, ",");
            write_label(text, "route", route != NULL ? route->path : "other");
            if (j < STATUS_COUNT)
                json_print(text, ",code=\"%d\"} %lld\n", status_known[j], (long long)count);
            else
                json_print(text, ",code=\"other\"} %lld\n", (long long)count);
        }
    }
}

static void write_errors(struct json *text)
{
    write_head(text, "quire_", "request_errors_total", error_help, "counter");
    for (int32_t i = 0; i < ERROR_COUNT; i++)
        json_print(text, "quire_request_errors_total{code=\"%s\"} %lld\n", error_known[i],
                   (long long)atomic_load_explicit(&error_cell[i], memory_order_relaxed));
}

static int64_t resident_bytes(void)
{
    long long pages = 0;
    FILE *file = fopen("/proc/self/statm", "re");

    if (file == NULL)
        return 0;
    if (fscanf(file, "%*d %lld", &pages) != 1)
        pages = 0;
    fclose(file);
    return (int64_t)pages * sysconf(_SC_PAGESIZE);
}

static int32_t open_files(void)
{
    int32_t count = 0;
    DIR *folder = opendir("/proc/self/fd");

    if (folder == NULL)
        return 0;
    while (readdir(folder) != NULL)
        count++;
    closedir(folder);
    return count - 3; /* ".", ".." and the folder itself */
}

static double process_start(void)
{
    struct timespec real, boot;
    unsigned long long ticks = 0;
    FILE *file = fopen("/proc/self/stat", "re");

    if (file == NULL)
        return 0;
    /* The name may hold blanks and brackets, and is the only field that may. */
    if (fscanf(file,
               "%*d %*[^)]) %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d"
               " %*d %*d %*d %*d %llu",
               &ticks) != 1)
        ticks = 0;
    fclose(file);
    clock_gettime(CLOCK_REALTIME, &real);
    clock_gettime(CLOCK_BOOTTIME, &boot);
    return (double)real.tv_sec - (double)boot.tv_sec + (double)ticks / (double)sysconf(_SC_CLK_TCK);
}

/* The stock names of every Prometheus client library. */
static void write_process(struct json *text)
{
    struct timespec used;

    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &used);
    write_head(text, "process_", "start_time_seconds", "Start, since the epoch.", "gauge");
    json_print(text, "process_start_time_seconds %.3f\n", process_start());
    write_head(text, "process_", "resident_memory_bytes", "Resident memory.", "gauge");
    json_print(text, "process_resident_memory_bytes %lld\n", (long long)resident_bytes());
    write_head(text, "process_", "open_fds", "Open descriptors.", "gauge");
    json_print(text, "process_open_fds %d\n", open_files());
    write_head(text, "process_", "cpu_seconds_total", "User and system time.", "counter");
    json_print(text, "process_cpu_seconds_total %.6f\n",
               (double)used.tv_sec + (double)used.tv_nsec / 1e9);
}

void metrics_write(struct json *text, unsigned names)
{
    for (int alias = 0; alias < 2; alias++) {
        if ((names & (alias ? METRICS_VLLM : METRICS_OWN)) == 0)
            continue;
        write_counters(text, alias);
        write_gauges(text, alias);
        for (int32_t i = 0; i < METRIC_HISTOGRAM_COUNT; i++)
            write_histogram(text, alias, i);
        write_info(text, alias);
    }
    if (names & METRICS_OWN) {
        write_http(text);
        write_errors(text);
        write_process(text);
    }
}

static void document(struct json *text, const char *name, const char *alias, const char *type,
                     const char *help)
{
    json_print(text, "| `quire_%s` | ", name);
    if (alias[0] != '\0')
        json_print(text, "`vllm:%s`", alias);
    json_print(text, " | %s | %s |\n", type, help);
}

static void document_rows(struct json *text, const struct row *row, int32_t count, const char *type)
{
    for (int32_t i = 0; i < count; i++) {
        if (i == 0 || strcmp(row[i].name, row[i - 1].name) != 0)
            document(text, row[i].name, row[i].alias, type, row[i].help);
    }
}

void metrics_document(struct json *text)
{
    json_raw(text, "| family | vLLM's name | type | meaning |\n|---|---|---|---|\n");
    document_rows(text, counter_row, METRIC_COUNTER_COUNT, "counter");
    document_rows(text, gauge_row, METRIC_GAUGE_COUNT, "gauge");
    for (int32_t i = 0; i < METRIC_HISTOGRAM_COUNT; i++)
        document(text, histogram_row[i].name, histogram_row[i].alias, "histogram",
                 histogram_row[i].help);
    document(text, "http_requests_total", "", "counter", "Replies, by route and status.");
    document(text, "request_errors_total", "", "counter", error_help);
    document(text, "cache_config_info", "cache_config_info", "gauge", "How the KV cache is cut.");
    document(text, "build_info", "", "gauge", "What runs.");
}
