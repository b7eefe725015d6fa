/* Attention over the cache.
 *
 * Work is cut into tasks of query rows: pairs (token, head) of one sequence and one key/value
 * head, up to CPU_ROWS_MAX of them, so that a tile of keys and values is converted once for all
 * of them: the heads that share it, and the tokens of a prompt. Positions are never shared out:
 * a row walks its tiles, counted from position 0, in ascending order with a running softmax, and
 * what it gets does not depend on the rows beside it (docs/kernels.md, determinism). A window
 * starts at the tile of its first position and masks the rest of that tile. */
#include "kernels/cpu/device.h"

#include <assert.h>
#include <errno.h>
#include <math.h>
#include <string.h>

struct attend_call {
    struct device *device;
    struct activation out, qkv;
    const struct attention_args *args;
    int32_t group;    /* query heads of a key/value head */
    int32_t rows_max; /* of a task */
    int32_t task_count;
    int32_t *task_first; /* [row_count + 1] first task of each of the step's rows */
};

/* One task: rows [first, first + count) of a step row's (token, head) pairs, token-major. */
struct attend_task {
    const struct step_row *row;
    int32_t kv_head;
    int32_t first, count;
    int32_t visible_first, visible_final; /* positions that any of the rows sees */
};

static int32_t padded(int32_t C)
{
    return (C + ATTEND_ALIGN - 1) / ATTEND_ALIGN * ATTEND_ALIGN;
}

int cpu_attention_open(struct device *device)
{
    size_t C = (size_t)device->kv.head_width, wide = (size_t)padded(device->kv.head_width);
    int32_t threads = pool_thread_count(device->pool);

    device->attend = cpu_alloc(device, (size_t)threads * sizeof(*device->attend));
    device->attend_first =
        cpu_alloc(device, (size_t)(device->options.slot_max + 1) * sizeof(int32_t));
    device->attend_zero = cpu_alloc(device, ATTEND_RUN * wide * sizeof(*device->attend_zero));
    if (device->attend == NULL || device->attend_first == NULL || device->attend_zero == NULL)
        return -ENOMEM;
    for (int32_t i = 0; i < threads; i++) {
        struct cpu_attend *attend = &device->attend[i];
        attend->q = cpu_alloc(device, CPU_ROWS_MAX * C * sizeof(float));
        attend->out = cpu_alloc(device, CPU_ROWS_MAX * wide * sizeof(float));
        attend->score = cpu_alloc(device, CPU_ROWS_MAX * ATTEND_TILE * sizeof(float));
        attend->key = cpu_alloc(device, C * ATTEND_TILE * sizeof(float));
        attend->value = cpu_alloc(device, ATTEND_TILE * wide * sizeof(float));
        if (attend->q == NULL || attend->out == NULL || attend->score == NULL ||
            attend->key == NULL || attend->value == NULL)
            return -ENOMEM;
    }
    return 0;
}

static int32_t row_position(const struct attend_call *call, const struct attend_task *task,
                            int32_t r)
{
    return task->row->position + (task->first + r) / call->group;
}

static int32_t window_first(const struct attend_call *call, int32_t position)
{
    int32_t window = call->args->window;
    return window > 0 && position >= window ? position - window + 1 : 0;
}

/* Queries of the task, scaled, one beneath the other. */
static void load_queries(const struct attend_call *call, const struct attend_task *task,
                         struct cpu_attend *attend)
{
    int32_t C = call->args->head_width, wide = padded(C);

    for (int32_t r = 0; r < task->count; r++) {
        int32_t t = task->row->token_first + (task->first + r) / call->group;
        int32_t head = task->kv_head * call->group + (task->first + r) % call->group;
        const float *q = (const float *)call->qkv.data + t * call->qkv.stride + (int64_t)head * C;
        float *target = attend->q + (int64_t)r * C;
        memcpy(target, q, (size_t)C * sizeof(*q));
        call->device->vector->scale(target, call->args->scale, C);
        attend->max[r] = -INFINITY;
        attend->sum[r] = 0.0f;
    }
    memset(attend->out, 0, (size_t)task->count * (size_t)wide * sizeof(*attend->out));
}

static void load_key(const struct device *device, float *target, const uint16_t *key, int32_t C)
{
    int32_t lanes = device->kv.lanes;

    if (device->kv.halves == 1) {
        device->vector->load_key(target, key, lanes, C);
        return;
    }
    for (int32_t c = 0; c < C; c++)
        memcpy(target + (int64_t)c * ATTEND_TILE, key + 2 * (int64_t)c * lanes,
               (size_t)lanes * sizeof(*target));
}

static void load_value(const struct device *device, float *target, const uint16_t *value, int32_t C)
{
    if (device->kv.halves == 1)
        device->vector->load_value(target, value, C);
    else
        memcpy(target, value, (size_t)C * sizeof(*target));
}

/* Keys and values of a tile as floats. Positions that no row sees may have no block, or hold
 * what another sequence left: values become 0; keys may be anything, their scores are masked. */
static void load_tile(const struct attend_call *call, const struct attend_task *task,
                      struct cpu_attend *attend, int32_t tile_first)
{
    struct device *device = call->device;
    int32_t layer = call->args->layer, C = call->args->head_width, wide = padded(C);
    int32_t lanes = device->kv.lanes, tokens = device->kv.block_tokens;
    const int32_t *table = cpu_kv_table(device, layer, task->row->slot);

    for (int32_t i = 0; i < ATTEND_TILE; i += lanes) {
        int32_t p = tile_first + i;
        if (p + lanes <= task->visible_first || p > task->visible_final)
            continue;
        load_key(device, attend->key + i,
                 cpu_kv_key(device, layer, task->kv_head, table[p / tokens], p % tokens), C);
    }
    for (int32_t i = 0; i < ATTEND_TILE; i++) {
        int32_t p = tile_first + i;
        float *value = attend->value + (int64_t)i * wide;
        if (p < task->visible_first || p > task->visible_final) {
            memset(value, 0, (size_t)C * sizeof(*value));
            continue;
        }
        load_value(device, value,
                   cpu_kv_value(device, layer, task->kv_head, table[p / tokens], p % tokens), C);
    }
}

/* Where a tile's keys and values lie; zeros for what no row sees. */
static void find_tile(const struct attend_call *call, const struct attend_task *task,
                      int32_t tile_first, const uint16_t **key, const uint16_t **value)
{
    struct device *device = call->device;
    int32_t layer = call->args->layer, tokens = device->kv.block_tokens;
    const int32_t *table = cpu_kv_table(device, layer, task->row->slot);

    for (int32_t i = 0; i < ATTEND_TILE / ATTEND_RUN; i++) {
        int32_t p = tile_first + i * ATTEND_RUN;
        bool seen = p + ATTEND_RUN > task->visible_first && p <= task->visible_final;
        key[i] = seen ? cpu_kv_key(device, layer, task->kv_head, table[p / tokens], p % tokens)
                      : device->attend_zero;
    }
    for (int32_t i = 0; i < ATTEND_TILE; i++) {
        int32_t p = tile_first + i;
        bool seen = p >= task->visible_first && p <= task->visible_final;
        value[i] = seen ? cpu_kv_value(device, layer, task->kv_head, table[p / tokens], p % tokens)
                        : device->attend_zero;
    }
}

/* Scores of one row become weights: those that it does not see 0. */
static void soften_row(const struct attend_call *call, const struct attend_task *task,
                       struct cpu_attend *attend, int32_t r, int32_t tile_first)
{
    int32_t position = row_position(call, task, r);
    int32_t first = window_first(call, position) - tile_first;
    int32_t end = position + 1 - tile_first;
    float *score = attend->score + r * ATTEND_TILE;

    if (end <= 0 || first >= ATTEND_TILE) {
        memset(score, 0, ATTEND_TILE * sizeof(*score));
        attend->factor[r] = 1.0f;
        return;
    }
    if (call->args->softcap > 0.0f)
        call->device->vector->softcap(score, call->args->softcap, ATTEND_TILE);
    for (int32_t i = 0; i < first; i++)
        score[i] = -INFINITY;
    for (int32_t i = end; i < ATTEND_TILE; i++)
        score[i] = -INFINITY;
    attend->factor[r] = call->device->vector->soften(score, &attend->max[r], &attend->sum[r]);
}

/* A sink is one more score, without a value. */
static void finish_row(const struct attend_call *call, const struct attend_task *task,
                       struct cpu_attend *attend, int32_t r)
{
    int32_t C = call->args->head_width, wide = padded(C);
    int32_t t = task->row->token_first + (task->first + r) / call->group;
    int32_t head = task->kv_head * call->group + (task->first + r) % call->group;
    float *out = (float *)call->out.data + t * call->out.stride + (int64_t)head * C;
    float max = attend->max[r], sum = attend->sum[r], factor = 1.0f;

    if (call->args->sinks != NULL) {
        float sink = call->args->sinks[head];
        float most = sink > max ? sink : max;
        factor = expf(max - most);
        sum = sum * factor + expf(sink - most);
    }
    memcpy(out, attend->out + (int64_t)r * wide, (size_t)C * sizeof(*out));
    call->device->vector->scale(out, factor / sum, C);
}

static struct attend_task task_of(const struct attend_call *call, int32_t index)
{
    int32_t low = 0, high = call->device->step.row_count;

    while (high - low > 1) {
        int32_t middle = (low + high) / 2;
        if (call->task_first[middle] <= index)
            low = middle;
        else
            high = middle;
    }
    const struct step_row *row = &call->device->step.row[low];
    int32_t pairs = row->token_count * call->group;
    int32_t each = (pairs - 1) / call->rows_max + 1; /* tasks of one key/value head */
    int32_t within = index - call->task_first[low];
    struct attend_task task = {.row = row, .kv_head = within / each};

    /* Last positions first: they take longest. */
    task.first = (each - 1 - within % each) * call->rows_max;
    task.count = pairs - task.first < call->rows_max ? pairs - task.first : call->rows_max;
    task.visible_first = window_first(call, row_position(call, &task, 0));
    task.visible_final = row_position(call, &task, task.count - 1);
    return task;
}

static void soften_rows(const struct attend_call *call, const struct attend_task *task,
                        struct cpu_attend *attend, int32_t tile_first)
{
    for (int32_t r = 0; r < task->count; r++)
        soften_row(call, task, attend, r, tile_first);
}

static int32_t tile_start(int32_t position)
{
    return position / ATTEND_TILE * ATTEND_TILE;
}

static void attend_by_tiles(const struct attend_call *call, const struct attend_task *task,
                            struct cpu_attend *attend)
{
    const struct cpu_vector *vector = call->device->vector;
    int32_t C = call->args->head_width;

    for (int32_t p = tile_start(task->visible_first); p <= task->visible_final; p += ATTEND_TILE) {
        load_tile(call, task, attend, p);
        vector->scores(attend->score, attend->q, attend->key, task->count, C);
        soften_rows(call, task, attend, p);
        vector->values(attend->out, attend->factor, attend->score, attend->value, task->count,
                       padded(C));
    }
}

/* `after` is the task that this thread is likely to take next. */
static void attend_direct(const struct attend_call *call, const struct attend_task *task,
                          const struct attend_task *after, struct cpu_attend *attend)
{
    const struct cpu_vector *vector = call->device->vector;
    struct attend_tile *tile = &attend->tile;
    int32_t C = call->args->head_width, p = tile_start(task->visible_first);

    find_tile(call, task, p, tile->next_key, tile->next_value);
    for (; p <= task->visible_final; p += ATTEND_TILE) {
        memcpy(tile->key, tile->next_key, sizeof(tile->key));
        memcpy(tile->value, tile->next_value, sizeof(tile->value));
        if (p + ATTEND_TILE > task->visible_final)
            find_tile(call, after, tile_start(after->visible_first), tile->next_key,
                      tile->next_value);
        else
            find_tile(call, task, p + ATTEND_TILE, tile->next_key, tile->next_value);
        vector->scores_direct(attend->score, attend->q, tile, task->count, C);
        soften_rows(call, task, attend, p);
        vector->values_direct(attend->out, attend->factor, attend->score, tile, task->count, C);
    }
}

static void attend(void *context, int32_t index, int32_t worker)
{
    const struct attend_call *call = context;
    const struct device *device = call->device;
    struct cpu_attend *attend = &device->attend[worker];
    struct attend_task task = task_of(call, index);
    bool direct = task.count <= device->vector->direct_max && device->kv.halves == 1 &&
                  device->kv.lanes == ATTEND_RUN && call->args->head_width % ATTEND_ALIGN == 0;

    load_queries(call, &task, attend);
    if (direct) {
        int32_t next = index + pool_thread_count(device->pool);
        struct attend_task after = next < call->task_count ? task_of(call, next) : task;
        attend_direct(call, &task, &after, attend);
    } else {
        attend_by_tiles(call, &task, attend);
    }
    for (int32_t r = 0; r < task.count; r++)
        finish_row(call, &task, attend, r);
}

/* Sets task_first for tasks of rows_max rows; gives their number. */
static int32_t cut(struct attend_call *call)
{
    const struct cpu_step *step = &call->device->step;
    int32_t count = 0;

    for (int32_t i = 0; i < step->row_count; i++) {
        int32_t pairs = step->row[i].token_count * call->group;
        call->task_first[i] = count;
        if (pairs > 0)
            count += ((pairs - 1) / call->rows_max + 1) * call->args->kv_head_count;
    }
    call->task_first[step->row_count] = count;
    return count;
}

void cpu_attention(struct device *device, struct activation out, struct activation qkv,
                   const struct attention_args *args, int32_t T)
{
    int32_t threads = pool_thread_count(device->pool);
    struct attend_call call = {
        .device = device,
        .out = out,
        .qkv = qkv,
        .args = args,
        .group = args->head_count / args->kv_head_count,
        .rows_max = CPU_ROWS_MAX,
        .task_first = device->attend_first,
    };

    assert(T >= device->step.token_count);
    assert(args->head_width == device->kv.head_width);
    assert(args->head_count % args->kv_head_count == 0);
    call.task_count = cut(&call);
    while (call.task_count < 2 * threads && call.rows_max > CPU_ROWS_LEAST && threads > 1) {
        call.rows_max /= 2;
        call.task_count = cut(&call);
    }
    pool_run(device->pool, attend, &call, call.task_count);
}
