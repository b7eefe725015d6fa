/* `quire serve MODEL`: starts everything in order, waits for a signal, stops it in reverse.
 *
 * HTTP comes first, so that /health answers 503 while the model loads and a port in use is known
 * at once. The main thread then sleeps in sigwaitinfo: SIGTERM, SIGINT and SIGHUP drain, SIGUSR1
 * (sent by the engine thread) says that a device is lost.
 */
#include "model/model.h"
#include "server/command.h"
#include "server/config.h"
#include "server/defaults.h"
#include "server/engine.h"
#include "server/http.h"
#include "server/log.h"
#include "server/metrics.h"
#include "server/step_log.h"
#include "server/systemd.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

struct serving {
    struct config config;
    struct http *http;
    struct model *model;
    struct engine *engine;
    struct step_log *step_log; /* or NULL */
    sigset_t signals;          /* what the main thread waits for; blocked in all threads */
    int64_t start_us;
    int64_t progress_us; /* when progress was last told */
    bool terminal;       /* standard error is one */
};

static int64_t now_us(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

/* ---- signals ---- */

static void take_signals(struct serving *serving)
{
    sigemptyset(&serving->signals);
    sigaddset(&serving->signals, SIGTERM);
    sigaddset(&serving->signals, SIGINT);
    sigaddset(&serving->signals, SIGUSR1);
    if (signal(SIGHUP, SIG_DFL) != SIG_IGN) /* nohup ignores it; else the terminal is gone */
        sigaddset(&serving->signals, SIGHUP);
    else
        signal(SIGHUP, SIG_IGN);
    /* Threads inherit the mask: only the main thread ever sees these. */
    pthread_sigmask(SIG_BLOCK, &serving->signals, NULL);
}

/* Sleeps until one comes: a stop and a continue (Ctrl-Z, fg) end the call without one. */
static void await_signal(const struct serving *serving)
{
    while (sigwaitinfo(&serving->signals, NULL) < 0)
        continue;
}

/* A signal that came while nobody waited for one. */
static bool signalled(const struct serving *serving)
{
    return sigtimedwait(&serving->signals, NULL, &(struct timespec){0}) > 0;
}

/* ---- progress ---- */

/* A line that grows in place on a terminal; elsewhere a log line every few seconds. */
static void tell_progress(void *context, double share, const char *what)
{
    struct serving *serving = context;
    int64_t now = now_us(), pause_us = serving->terminal ? 50000 : 5000000;
    char bar[33], status[160];

    if (signalled(serving)) /* nothing is served yet, so there is nothing to finish */
        _exit(EXIT_CODE_OK);
    if (share < 1 && now - serving->progress_us < pause_us)
        return;
    serving->progress_us = now;
    snprintf(status, sizeof status, "STATUS=loading: %s %.0f %%\nEXTEND_TIMEOUT_USEC=60000000",
             what, share * 100);
    systemd_notify(status);
    if (!serving->terminal) {
        log_info("model", "loading share=%.2f part=\"%s\"", share, what);
        return;
    }
    for (int i = 0; i < 32; i++)
        bar[i] = i < (int)(share * 32) ? '#' : '.';
    bar[32] = '\0';
    fprintf(stderr, "\r[%s] %3.0f %%  %-32.32s", bar, share * 100, what);
    if (share >= 1)
        fprintf(stderr, "\r%80s\r", "");
    fflush(stderr);
}

/* ---- start ---- */

static void describe_metrics(const struct config *config)
{
    metrics_describe(&(struct metrics_info){
        .model_name = config->served_model_name.item[0],
        .version = QUIRE_VERSION,
        .cache_dtype = "auto",
        .block_tokens = config->block_size,
    });
}

static int load_model(struct serving *serving)
{
    const struct config *config = &serving->config;
    struct model_options options;
    struct model_generation generation;
    char error[1024];
    int result = 0;

    command_model_options(config, &options);
    options.progress = tell_progress;
    options.progress_context = serving;
    if (defaults_folder(config) != NULL) {
        result = model_read_generation(&generation, defaults_folder(config), error, sizeof error);
        options.generation = &generation;
    }
    if (result == 0)
        result = model_open(&serving->model, &options, error, sizeof error);
    if (result < 0) {
        if (serving->terminal)
            fprintf(stderr, "\r%80s\r", "");
        log_error("model", "%s", error);
        return command_exit_code(result);
    }
    return EXIT_CODE_OK;
}

/* What decides performance. */
static void log_ready(const struct serving *serving)
{
    const struct config *config = &serving->config;
    const struct model_info *info = model_info(serving->model);
    int64_t token_count = (int64_t)info->block_count * info->block_tokens;
    const char *host = config->host;
    char defaults[256];

    log_info("model", "loaded name=\"%s\" architecture=%s format=%s parameters=%lld device=\"%s\"",
             info->name, info->architecture, info->format, (long long)info->parameter_count,
             info->device);
    if (info->note[0] != '\0')
        log_warn("model", "%s", info->note);
    if (config->max_model_len == 0 && info->context_max < info->context_model)
        log_warn("model",
                 "the memory holds sequences of %d tokens, fewer than the model's %d; see "
                 "kv-cache-memory-bytes and gpu-memory-utilization",
                 info->context_max, info->context_model);
    log_info("model", "memory weights_mib=%.1f kv_mib=%.1f workspace_mib=%.1f graphs_mib=%.1f",
             (double)info->weight_bytes / (1 << 20), (double)info->kv_bytes / (1 << 20),
             (double)info->workspace_bytes / (1 << 20), (double)info->graph_bytes / (1 << 20));
    if (info->tune_table[0] != '\0')
        log_info("model", "tune table=\"%s\"", info->tune_table);
    if (info->tune_warning[0] != '\0')
        log_warn("model", "%s", info->tune_warning);
    log_info("engine",
             "limits kv_blocks=%d block_tokens=%d kv_tokens=%lld context=%d slots=%d "
             "step_tokens=%d",
             info->block_count, info->block_tokens, (long long)token_count, info->context_max,
             config->max_num_seqs, info->step_tokens);
    defaults_describe(engine_defaults(serving->engine), defaults, sizeof defaults);
    log_info("engine", "sampling defaults %s generation_config=%s", defaults,
             config->generation_config);
    log_info("main", "ready url=http://%s%s%s:%d model=\"%s\" seconds=%.2f",
             strchr(host, ':') != NULL ? "[" : "", host, strchr(host, ':') != NULL ? "]" : "",
             http_port(serving->http), config->served_model_name.item[0],
             (double)(now_us() - serving->start_us) / 1e6);
}

/* Called by the engine thread. */
static void wake_main(void *context)
{
    (void)context;
    kill(getpid(), SIGUSR1);
}

static int start(struct serving *serving)
{
    const struct config *config = &serving->config;
    char error[1024];

    describe_metrics(config);
    if (config->step_log[0] != '\0' &&
        step_log_open(&serving->step_log, config->step_log, error, sizeof error) < 0) {
        log_error("main", "%s", error);
        return EXIT_CODE_RUNTIME;
    }
    if (http_start(&serving->http, config, error, sizeof error) < 0) {
        log_error("http", "%s", error);
        return EXIT_CODE_RUNTIME;
    }
    log_info("http", "listening host=%s port=%d", config->host, http_port(serving->http));
    int code = load_model(serving);
    if (code != EXIT_CODE_OK)
        return code;
    metrics_set(METRIC_KV_TOTAL, model_info(serving->model)->block_count);
    metrics_set(METRIC_KV_FREE, model_info(serving->model)->block_count);
    int result = engine_create(&serving->engine, serving->model, config, error, sizeof error);
    if (result < 0) {
        log_error("engine", "%s", error);
        return command_exit_code(result);
    }
    engine_on_lost(serving->engine, wake_main, NULL);
    engine_set_step_log(serving->engine, serving->step_log);
    result = engine_start(serving->engine);
    if (result < 0) {
        log_error("engine", "could not start its threads: %s", strerror(-result));
        return EXIT_CODE_RUNTIME;
    }
    http_set_engine(serving->http, serving->engine);
    log_ready(serving);
    systemd_notify("READY=1\nSTATUS=ready");
    return EXIT_CODE_OK;
}

/* ---- stop ---- */

/* The engine has ended every stream with an error; a hung device may not let the rest end. */
static void leave_lost(struct serving *serving)
{
    log_error("main", "a device is lost: ending with exit code %d to be started again",
              EXIT_CODE_LOST);
    http_drain(serving->http);
    http_wait_idle(serving->http, 1000000);
    _exit(EXIT_CODE_LOST);
}

/* Lets running requests end: until none is left, the grace is over, or another signal comes. */
static void drain(struct serving *serving)
{
    int64_t grace_us = (int64_t)(serving->config.shutdown_timeout * 1e6);
    int64_t deadline_us = now_us() + grace_us, slice_us = 50000;

    systemd_notify("STOPPING=1\nSTATUS=finishing what runs");
    http_drain(serving->http);
    int64_t left = http_wait_idle(serving->http, 0);
    log_info("main", "stopping requests=%lld grace_s=%.0f", (long long)left,
             serving->config.shutdown_timeout);
    while (left > 0 && now_us() < deadline_us) {
        if (signalled(serving)) {
            if (!engine_alive(serving->engine))
                leave_lost(serving);
            log_info("main", "stopping at once requests=%lld", (long long)left);
            pthread_sigmask(SIG_UNBLOCK, &serving->signals, NULL); /* a third one kills */
            return;
        }
        int64_t rest_us = deadline_us - now_us();
        left = http_wait_idle(serving->http, rest_us < slice_us ? rest_us : slice_us);
    }
    if (left > 0)
        log_warn("main", "the time to finish is over requests=%lld", (long long)left);
}

static void stop(struct serving *serving)
{
    http_stop(serving->http);
    engine_stop(serving->engine, 0);
    engine_destroy(serving->engine);
    step_log_close(serving->step_log);
    model_close(serving->model);
}

int cmd_serve(int argc, char **argv)
{
    struct serving serving = {.start_us = now_us(), .terminal = isatty(STDERR_FILENO) == 1};
    int code;

    if (!command_configure(&serving.config, CONFIG_SERVE, argc, argv, &code)) {
        config_release(&serving.config);
        return code;
    }
    log_configure((enum log_level)serving.config.log_level,
                  (enum log_form)serving.config.log_format);
    log_info("main", "%s", command_version());
    if (serving.config.no_gpu[0] != '\0')
        log_info("main", "serving on the CPU: %s", serving.config.no_gpu);
    take_signals(&serving);
    code = start(&serving);
    if (code == EXIT_CODE_OK) {
        await_signal(&serving);
        if (!engine_alive(serving.engine))
            leave_lost(&serving);
        drain(&serving);
    }
    stop(&serving);
    config_release(&serving.config);
    if (code == EXIT_CODE_OK)
        log_info("main", "stopped");
    return code;
}
