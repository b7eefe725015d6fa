/* How long each kernel of a program ran: a library that CUDA loads into it.
 *
 *     make kernel-trace
 *     export CUDA_INJECTION64_PATH=$PWD/build/kernel_trace.so TRACE_LAST_MS=200
 *     build/quire bench ... 2>trace
 *     c++filt <trace
 *
 * At the end a line for each kernel and size of grid on standard error: milliseconds, launches,
 * microseconds of one. A kernel's time is what it ran longer than all before it, as launches begin
 * while those before them end; what nothing ran is the line "(none)". TRACE_LAST_MS takes only that
 * much of the end, where a benchmark is in its stride. Needs CUPTI, which comes with the toolkit.
 */
#include <cupti.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { BUFFER_BYTES = 8 << 20, BUFFER_ALIGN = 64, LINES_MAX = 4096 };

struct launch {
    uint64_t start, end; /* ns */
    const char *name;    /* CUPTI's own: one for all launches of a kernel */
    int64_t blocks;
};

/* A kernel with grids of one size. */
struct line {
    const char *name;
    int64_t blocks, count;
    uint64_t ns;
};

static struct launch *launches;
static size_t launch_count, launch_max;
static struct line lines[LINES_MAX];
static size_t line_count;

static void CUPTIAPI give_buffer(uint8_t **buffer, size_t *bytes, size_t *records)
{
    *buffer = aligned_alloc(BUFFER_ALIGN, BUFFER_BYTES);
    *bytes = *buffer == NULL ? 0 : BUFFER_BYTES;
    *records = 0; /* as many as fit */
}

static void keep(const CUpti_ActivityKernel9 *kernel)
{
    if (launch_count == launch_max) {
        size_t more = launch_max == 0 ? 1 << 16 : 2 * launch_max;
        struct launch *grown = realloc(launches, more * sizeof(*grown));
        if (grown == NULL)
            return;
        launches = grown;
        launch_max = more;
    }
    launches[launch_count++] = (struct launch){
        .start = kernel->start,
        .end = kernel->end,
        .name = kernel->name,
        .blocks = (int64_t)kernel->gridX * kernel->gridY * kernel->gridZ,
    };
}

static void CUPTIAPI take_buffer(CUcontext context, uint32_t stream, uint8_t *buffer, size_t bytes,
                                 size_t valid)
{
    CUpti_Activity *record = NULL;

    (void)context, (void)stream, (void)bytes;
    while (cuptiActivityGetNextRecord(buffer, valid, &record) == CUPTI_SUCCESS)
        if (record->kind == CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL)
            keep((const CUpti_ActivityKernel9 *)record);
    free(buffer);
}

static int by_start(const void *a, const void *b)
{
    uint64_t left = ((const struct launch *)a)->start, right = ((const struct launch *)b)->start;
    return left < right ? -1 : left > right;
}

static int by_time(const void *a, const void *b)
{
    uint64_t left = ((const struct line *)a)->ns, right = ((const struct line *)b)->ns;
    return left > right ? -1 : left < right;
}

static void add(const char *name, int64_t blocks, uint64_t ns)
{
    size_t i = 0;

    while (i < line_count && (lines[i].blocks != blocks || strcmp(lines[i].name, name) != 0))
        i++;
    if (i == line_count) {
        if (line_count == LINES_MAX)
            return;
        lines[line_count++] = (struct line){.name = name, .blocks = blocks};
    }
    lines[i].count++;
    lines[i].ns += ns;
}

/* From launch `first` on. */
static void add_up(size_t first)
{
    uint64_t done = launches[first].start;

    for (size_t i = first; i < launch_count; i++) {
        const struct launch *launch = &launches[i];
        uint64_t begin = launch->start > done ? launch->start : done;
        if (launch->start > done)
            add("(none)", 0, launch->start - done);
        add(launch->name, launch->blocks, launch->end > begin ? launch->end - begin : 0);
        done = launch->end > done ? launch->end : done;
    }
    fprintf(stderr, "%10.3f ms in all\n", (double)(done - launches[first].start) / 1e6);
}

static void report(void)
{
    const char *last = getenv("TRACE_LAST_MS");
    size_t first = 0;

    cuptiActivityFlushAll(CUPTI_ACTIVITY_FLAG_FLUSH_FORCED);
    if (launch_count == 0)
        return;
    qsort(launches, launch_count, sizeof(*launches), by_start);
    if (last != NULL) {
        double ns = strtod(last, NULL) * 1e6;
        uint64_t end = launches[launch_count - 1].start;
        while ((double)(end - launches[first].start) > ns)
            first++;
    }
    add_up(first);
    qsort(lines, line_count, sizeof(*lines), by_time);
    for (size_t i = 0; i < line_count; i++)
        fprintf(stderr, "%10.3f ms %8lld x %10.2f us  %s, %lld blocks\n", (double)lines[i].ns / 1e6,
                (long long)lines[i].count, (double)lines[i].ns / 1e3 / (double)lines[i].count,
                lines[i].name, (long long)lines[i].blocks);
}

/* CUDA calls this when it loads the library. Not 0: all is well. */
int InitializeInjection(void)
{
    return cuptiActivityRegisterCallbacks(give_buffer, take_buffer) == CUPTI_SUCCESS &&
           cuptiActivityEnable(CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL) == CUPTI_SUCCESS &&
           atexit(report) == 0;
}
