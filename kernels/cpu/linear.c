/* The work of `linear`, cut into tasks and tiles; linear_layout.h has the layouts.
 *
 * A task is some units of rows (of all parts, one after the other) for all tokens. For each unit
 * and each 512 values of K it makes a panel, once, and runs all tokens of a chunk over it, so that
 * what unpacking costs is shared by the tokens. A sum goes through its panels in ascending K
 * whatever T, the chunk or the thread.
 */
#include "kernels/cpu/linear.h"

#include "kernels/cpu/linear_layout.h"

#include <assert.h>

enum {
    CHUNK_BYTES = 512 * 1024, /* activations that stay in a core's L2 cache */
    CHUNK_TOKENS_MIN = 24,
    CHUNK_TOKENS_MAX = 192,
    AHEAD_BYTES = 8 * 1024, /* covers the latency of memory; measured from 2 to 16 KiB */
    FEW_TOKENS = 32,
    QUANTISE_TOKENS = 8, /* of a task; fewer tokens than this are not worth a run of the pool */
};

/* A thread's own memory. */
struct worker_scratch {
    struct linear_panel panel;
    _Alignas(64) float sum[(CHUNK_TOKENS_MAX + LINEAR_TOKENS_SPARE) * LINEAR_ROWS];
};

struct job {
    const struct linear_kernels *kernels;
    const struct linear_call *call;
    struct linear_block *block; /* [T, block_count] */
    struct worker_scratch *worker;
    int32_t block_count; /* of a token */
    int32_t unit_count;  /* of all parts */
    int32_t task_count;
};

/* Some units of one part for some tokens. */
struct piece {
    const struct weight_part *part;
    size_t group_bytes;
    struct linear_layout layout; /* of a quantised format */
    int32_t out_first;           /* of the part in a row of out */
    int32_t token_first;
    int32_t token_count;
};

static const struct linear_kernels *kernels_of(enum cpu_isa isa)
{
    static const struct linear_kernels *const kernels[CPU_ISA_COUNT] = {
        [CPU_ISA_PLAIN] = &linear_plain,
        [CPU_ISA_AVX2] = &linear_avx2,
        [CPU_ISA_AVX512] = &linear_avx512,
        [CPU_ISA_AVX512BF16] = &linear_avx512bf16,
    };

    assert((unsigned)isa < CPU_ISA_COUNT);
    return kernels[isa];
}

static size_t blocks_bytes(int32_t in, int32_t token_count)
{
    return (size_t)(in / LINEAR_BLOCK) * (size_t)token_count * sizeof(struct linear_block);
}

static size_t align_up(size_t bytes)
{
    return (bytes + LINEAR_ALIGN - 1) / LINEAR_ALIGN * LINEAR_ALIGN;
}

size_t linear_scratch_bytes(const struct pool *pool, int32_t in_max, int32_t token_max)
{
    return (size_t)pool_thread_count(pool) * sizeof(struct worker_scratch) +
           align_up(blocks_bytes(in_max, token_max + LINEAR_TOKENS_SPARE));
}

/* ---- activations ---- */

static void quantise_task(void *context, int32_t task, int32_t worker)
{
    const struct job *job = context;
    const struct linear_call *call = job->call;
    int32_t first = task * QUANTISE_TOKENS;
    int32_t end = first + QUANTISE_TOKENS < call->T ? first + QUANTISE_TOKENS : call->T;

    (void)worker;
    for (int32_t token = first; token < end; token++)
        job->kernels->quantise(call->x + token * call->x_stride, call->weight->in,
                               job->block + (ptrdiff_t)token * job->block_count);
}

static bool any_quantised(const struct weight *weight)
{
    for (int32_t i = 0; i < weight->part_count; i++) {
        if (!linear_is_float(weight->part[i].format))
            return true;
    }
    return false;
}

/* ---- units ---- */

static const uint8_t *group_of(const struct piece *piece, int32_t row)
{
    return (const uint8_t *)piece->part->data + (size_t)(row / LINEAR_ROWS) * piece->group_bytes;
}

static void sum_codes(const struct job *job, const struct piece *piece, int32_t row_first,
                      struct worker_scratch *scratch)
{
    const struct linear_layout *layout = &piece->layout;
    bool direct = piece->token_count <= job->kernels->direct_tokens;
    int32_t panel_bytes = layout->record_bytes * LINEAR_PANEL_BLOCKS >> layout->record_shift;
    struct linear_tile tile = {
        .layout = layout,
        .group = group_of(piece, row_first),
        .strip = row_first % LINEAR_ROWS / LINEAR_STRIP_ROWS,
        .block_count = job->block_count,
        .direct = direct,
        .ahead = direct ? AHEAD_BYTES : panel_bytes,
        .panel = &scratch->panel,
        .block = job->block + (ptrdiff_t)piece->token_first * job->block_count,
        .block_stride = job->block_count,
        .token_count = piece->token_count,
        .sum = scratch->sum,
    };

    if (direct) {
        job->kernels->tile(&tile);
        return;
    }
    for (int32_t first = 0; first < job->block_count; first += LINEAR_PANEL_BLOCKS) {
        int32_t left = job->block_count - first;

        tile.block_first = first;
        tile.block_count = left < LINEAR_PANEL_BLOCKS ? left : LINEAR_PANEL_BLOCKS;
        job->kernels->decode(&tile);
        job->kernels->tile(&tile);
        tile.block += LINEAR_PANEL_BLOCKS;
    }
}

static void sum_floats(const struct job *job, const struct piece *piece, int32_t row_first,
                       struct worker_scratch *scratch)
{
    const struct linear_call *call = job->call;
    struct linear_float_tile tile = {
        .format = piece->part->format,
        .group = group_of(piece, row_first),
        .strip = row_first % LINEAR_ROWS / LINEAR_STRIP_ROWS,
        .in = call->weight->in,
        .ahead = AHEAD_BYTES,
        .x = call->x + piece->token_first * call->x_stride,
        .x_stride = call->x_stride,
        .token_count = piece->token_count,
        .sum = scratch->sum,
    };

    job->kernels->tile_float(&tile);
}

/* Sums of a unit to their places, with the bias. */
static void store(const struct job *job, const struct piece *piece, int32_t row_first,
                  const float *sum)
{
    const struct linear_call *call = job->call;
    int32_t unit_rows = job->kernels->unit_rows;
    int32_t left = piece->part->out - row_first;
    int32_t row_count = left < unit_rows ? left : unit_rows;
    const float *bias = call->weight->bias;
    int32_t column = piece->out_first + row_first;

    for (int32_t token = 0; token < piece->token_count; token++) {
        float *out = call->out + (piece->token_first + token) * call->out_stride + column;
        const float *from = sum + (ptrdiff_t)token * unit_rows;

        if (bias == NULL) {
            memcpy(out, from, (size_t)row_count * sizeof *out);
            continue;
        }
        for (int32_t row = 0; row < row_count; row++)
            out[row] = from[row] + bias[column + row];
    }
}

static void run_unit(const struct job *job, const struct piece *piece, int32_t unit,
                     struct worker_scratch *scratch)
{
    size_t sums = (size_t)piece->token_count * (size_t)job->kernels->unit_rows;
    int32_t row_first = unit * job->kernels->unit_rows;

    memset(scratch->sum, 0, sums * sizeof *scratch->sum);
    if (linear_is_float(piece->part->format))
        sum_floats(job, piece, row_first, scratch);
    else
        sum_codes(job, piece, row_first, scratch);
    store(job, piece, row_first, scratch->sum);
}

/* ---- tasks ---- */

static int32_t unit_count(const struct job *job, const struct weight_part *part)
{
    return (part->out - 1) / job->kernels->unit_rows + 1;
}

static void enter_part(const struct job *job, struct piece *piece, const struct weight_part *part)
{
    int32_t in = job->call->weight->in;

    piece->part = part;
    piece->group_bytes = linear_group_bytes(part->format, in);
    if (linear_is_float(part->format))
        return;
    piece->layout = linear_layout(part->format);
}

/* Units [first, end) of all parts for the tokens of one chunk. */
static void run_units(const struct job *job, struct piece piece, int64_t first, int64_t end,
                      struct worker_scratch *scratch)
{
    const struct weight *weight = job->call->weight;
    int64_t part_first = 0;

    piece.out_first = 0;
    for (int32_t i = 0; i < weight->part_count; i++) {
        int64_t part_end = part_first + unit_count(job, &weight->part[i]);
        int64_t from = first > part_first ? first : part_first;
        int64_t to = end < part_end ? end : part_end;

        if (from < to)
            enter_part(job, &piece, &weight->part[i]);
        for (int64_t unit = from; unit < to; unit++)
            run_unit(job, &piece, (int32_t)(unit - part_first), scratch);
        piece.out_first += weight->part[i].out;
        part_first = part_end;
    }
}

static int32_t chunk_tokens(const struct job *job)
{
    size_t token_bytes = (size_t)job->block_count * sizeof(struct linear_block);
    size_t fit = CHUNK_BYTES / (token_bytes > 0 ? token_bytes : 1) / CHUNK_TOKENS_MIN;
    size_t tokens = fit * CHUNK_TOKENS_MIN;

    if (tokens < CHUNK_TOKENS_MIN)
        return CHUNK_TOKENS_MIN;
    return tokens < CHUNK_TOKENS_MAX ? (int32_t)tokens : CHUNK_TOKENS_MAX;
}

static void run_task(void *context, int32_t task, int32_t worker)
{
    const struct job *job = context;
    int64_t first = pool_task_first(job->unit_count, job->task_count, task);
    int64_t end = pool_task_first(job->unit_count, job->task_count, task + 1);
    int32_t chunk = chunk_tokens(job);

    for (int32_t token = 0; token < job->call->T; token += chunk) {
        int32_t left = job->call->T - token;
        struct piece piece = {.token_first = token, .token_count = left < chunk ? left : chunk};

        run_units(job, piece, first, end, &job->worker[worker]);
    }
}

static int32_t task_count(const struct pool *pool, const struct job *job)
{
    int64_t threads = pool_thread_count(pool), units = job->unit_count, tasks;

    if (job->call->T > FEW_TOKENS) {
        /* Units are long, and the units of a task share a chunk's activations. */
        tasks = 8 * threads;
    } else {
        /* A task starts with weights that nobody has fetched ahead. */
        tasks = units / 4;
        tasks = tasks < 2 * threads ? 2 * threads : tasks;
        tasks = tasks > 32 * threads ? 32 * threads : tasks;
    }
    return (int32_t)(tasks < units ? tasks : units);
}

void linear_run(struct pool *pool, enum cpu_isa isa, const struct linear_call *call)
{
    const struct weight *weight = call->weight;
    size_t workers = (size_t)pool_thread_count(pool) * sizeof(struct worker_scratch);
    struct job job = {
        .kernels = kernels_of(isa),
        .call = call,
        .block = (void *)((uint8_t *)call->scratch + workers),
        .worker = call->scratch,
        .block_count = weight->in / LINEAR_BLOCK,
    };

    assert((uintptr_t)call->scratch % LINEAR_ALIGN == 0);
    assert(weight->part_count <= WEIGHT_PART_MAX);
    if (call->T == 0)
        return;
    if (any_quantised(weight))
        pool_run(pool, quantise_task, &job, (call->T - 1) / QUANTISE_TOKENS + 1);
    for (int32_t i = 0; i < weight->part_count; i++)
        job.unit_count += unit_count(&job, &weight->part[i]);
    job.task_count = task_count(pool, &job);
    pool_run(pool, run_task, &job, job.task_count);
}
