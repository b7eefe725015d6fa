/* What the machine's memory gives to this device's threads: the floor of a step that reads every
 * weight once.
 *
 * A buffer several times the largest cache is read from end to end by all threads, in lines, with
 * the processor's own prefetch and ours; the best of a few passes counts, since whatever else runs
 * only takes away. */
#include "kernels/cpu/device.h"

#include <assert.h>
#include <stdatomic.h>
#include <time.h>
#include <unistd.h>

enum {
    LINE_WORDS = 8,
    AHEAD_WORDS = 512, /* how far ahead lines are asked for */
    PASS_COUNT = 8,
    GRAIN_LINES = 1 << 10,
    CACHE_TIMES = 4,
};
static const size_t bytes_least = (size_t)256 << 20, bytes_most = (size_t)4 << 30;

struct reading {
    uint64_t *word;
    int64_t line_count;
    int32_t task_count;
    _Atomic uint64_t sum; /* so that the reads are of use */
};

static double now_s(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

static void write_task(void *context, int32_t task, int32_t worker)
{
    struct reading *reading = context;
    int64_t line = pool_task_first(reading->line_count, reading->task_count, task);
    int64_t end = pool_task_first(reading->line_count, reading->task_count, task + 1);

    (void)worker;
    for (; line < end; line++) /* a page that was never written is no memory of its own */
        reading->word[line * LINE_WORDS] = (uint64_t)line;
}

static void read_task(void *context, int32_t task, int32_t worker)
{
    struct reading *reading = context;
    int64_t line = pool_task_first(reading->line_count, reading->task_count, task);
    int64_t end = pool_task_first(reading->line_count, reading->task_count, task + 1);
    uint64_t sum[LINE_WORDS] = {0}, total = 0;

    (void)worker;
    for (; line < end; line++) {
        const uint64_t *word = reading->word + line * LINE_WORDS;
        __builtin_prefetch(word + AHEAD_WORDS);
        for (int32_t i = 0; i < LINE_WORDS; i++)
            sum[i] += word[i];
    }
    for (int32_t i = 0; i < LINE_WORDS; i++)
        total += sum[i];
    atomic_fetch_add_explicit(&reading->sum, total, memory_order_relaxed);
}

/* Several times the largest cache; 0: there is not the memory. */
static size_t buffer_bytes(struct device *device)
{
    long cache = sysconf(_SC_LEVEL3_CACHE_SIZE);
    size_t bytes = cache > 0 ? (size_t)cache * CACHE_TIMES : 0;

    bytes = bytes < bytes_least ? bytes_least : bytes;
    bytes = bytes > bytes_most ? bytes_most : bytes;
    return bytes <= cpu_memory_free(device) / 2 ? bytes : 0;
}

double cpu_read_rate(struct device *device)
{
    size_t bytes = buffer_bytes(device);
    struct reading reading = {.word = bytes > 0 ? cpu_alloc(device, bytes) : NULL};
    double best = 0;

    if (reading.word == NULL)
        return 0;
    reading.line_count = (int64_t)(bytes / (LINE_WORDS * sizeof(uint64_t)));
    reading.task_count = pool_task_count(device->pool, reading.line_count, GRAIN_LINES);
    pool_run(device->pool, write_task, &reading, reading.task_count);
    for (int32_t i = 0; i < PASS_COUNT; i++) {
        double start = now_s();
        pool_run(device->pool, read_task, &reading, reading.task_count);
        double rate = (double)bytes / (now_s() - start);
        best = rate > best ? rate : best;
    }
    cpu_free(device, reading.word);
    return best;
}
