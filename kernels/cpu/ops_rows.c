/* Ops that work on each token alone: threads share the tokens. */
#include "kernels/cpu/device.h"
#include "kernels/cpu/linear.h"

#include <assert.h>
#include <string.h>

enum { GRAIN = 8192 }; /* elements that are worth waking a thread for */

struct rows_call {
    struct device *device;
    struct activation out, x, branch;
    const struct weight *table;
    const float *branch_weight, *weight;
    float number; /* scale or eps */
    enum act_kind act;
    int32_t count, width, task_count;
};

static float *row_of(struct activation activation, int64_t row)
{
    return (float *)activation.data + row * activation.stride;
}

static void run_rows(struct rows_call *call, pool_function *function)
{
    struct pool *pool = call->device->pool;

    if (call->count == 0)
        return;
    call->task_count = pool_task_count(pool, call->count, GRAIN / call->width + 1);
    pool_run(pool, function, call, call->task_count);
}

/* ---- embed ---- */

static void embed_row(const struct rows_call *call, int32_t t)
{
    const struct weight *table = call->table;
    float *out = row_of(call->out, t);
    int32_t part = 0;

    if (t >= call->device->step.token_count) {
        memset(out, 0, (size_t)table->in * sizeof(*out));
        return;
    }
    int32_t row = call->device->step.token[t];
    while (row >= table->part[part].out) {
        row -= table->part[part++].out;
        assert(part < table->part_count);
    }
    linear_row(&table->part[part], table->in, row, out);
    if (call->number != 1.0f)
        call->device->vector->scale(out, call->number, table->in);
}

static void embed_task(void *context, int32_t task, int32_t worker)
{
    const struct rows_call *call = context;
    int64_t end = pool_task_first(call->count, call->task_count, task + 1);

    (void)worker;
    for (int64_t t = pool_task_first(call->count, call->task_count, task); t < end; t++)
        embed_row(call, (int32_t)t);
}

void cpu_embed(struct device *device, struct activation out, const struct weight *table,
               float scale, int32_t T)
{
    struct rows_call call = {.device = device, .out = out, .table = table, .number = scale};

    call.count = T;
    call.width = table->in;
    run_rows(&call, embed_task);
}

/* ---- norms ---- */

static void norm_task(void *context, int32_t task, int32_t worker)
{
    const struct rows_call *call = context;
    int64_t end = pool_task_first(call->count, call->task_count, task + 1);

    (void)worker;
    for (int64_t t = pool_task_first(call->count, call->task_count, task); t < end; t++)
        call->device->vector->norm(row_of(call->out, t), row_of(call->x, t), call->weight,
                                   call->number, call->width);
}

void cpu_norm(struct device *device, struct activation out, struct activation x,
              const float *weight, float eps, int32_t count, int32_t D)
{
    struct rows_call call = {.device = device, .out = out, .x = x, .weight = weight};

    call.number = eps;
    call.count = count;
    call.width = D;
    run_rows(&call, norm_task);
}

static void add_norm_task(void *context, int32_t task, int32_t worker)
{
    const struct rows_call *call = context;
    const struct cpu_vector *vector = call->device->vector;
    int64_t end = pool_task_first(call->count, call->task_count, task + 1);

    (void)worker;
    for (int64_t t = pool_task_first(call->count, call->task_count, task); t < end; t++) {
        float *x = row_of(call->x, t);
        const float *branch = row_of(call->branch, t);
        if (call->branch_weight != NULL)
            vector->add_normed(x, branch, call->branch_weight, call->number, call->width);
        else
            vector->add(x, branch, call->width);
        vector->norm(row_of(call->out, t), x, call->weight, call->number, call->width);
    }
}

/* The op's own arguments. NOLINTNEXTLINE(readability-function-size) */
void cpu_add_norm(struct device *device, struct activation out, struct activation x,
                  struct activation branch, const float *branch_weight, const float *weight,
                  float eps, int32_t T, int32_t D)
{
    struct rows_call call = {.device = device, .out = out, .x = x, .branch = branch};

    call.branch_weight = branch_weight;
    call.weight = weight;
    call.number = eps;
    call.count = T;
    call.width = D;
    run_rows(&call, add_norm_task);
}

/* ---- activation ---- */

static void act_mul_task(void *context, int32_t task, int32_t worker)
{
    const struct rows_call *call = context;
    int64_t end = pool_task_first(call->count, call->task_count, task + 1);

    (void)worker;
    for (int64_t t = pool_task_first(call->count, call->task_count, task); t < end; t++) {
        const float *gate = row_of(call->x, t);
        call->device->vector->act_mul(row_of(call->out, t), gate, gate + call->width, call->act,
                                      call->width);
    }
}

void cpu_act_mul(struct device *device, struct activation out, struct activation gate_up,
                 enum act_kind act, int32_t T, int32_t F)
{
    struct rows_call call = {.device = device, .out = out, .x = gate_up, .act = act};

    call.count = T;
    call.width = F;
    run_rows(&call, act_mul_task);
}

/* ---- gather ---- */

void cpu_gather(struct device *device, struct activation out, struct activation x, int32_t S,
                int32_t D)
{
    const struct cpu_step *step = &device->step;

    for (int32_t s = 0; s < S; s++) {
        if (s >= step->sample_count) {
            memset(row_of(out, s), 0, (size_t)D * sizeof(float));
            continue;
        }
        assert(step->sample[s].index >= 0 && step->sample[s].index < step->token_count);
        memcpy(row_of(out, s), row_of(x, step->sample[s].index), (size_t)D * sizeof(float));
    }
}
