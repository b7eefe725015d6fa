/* The threads of the CPU backend: one atomic word hands out the tasks.
 *
 * The word holds the next task and the number of tasks. A thread claims by adding one; if what it
 * got is below the number, the run cannot end before that task is done, so the run's function and
 * context are stable while it works. A thread that comes too late gets a number past the end,
 * touches nothing and goes back to waiting. So nobody waits for a thread that has claimed nothing.
 *
 * Waiting is three phases: spin, spin and yield, sleep on a futex. A thread says that it sleeps
 * before it looks at the word for the last time, and the caller looks for sleepers after it has
 * written the word; both orders are sequentially consistent, so one of the two sees the other.
 */
#include "kernels/cpu/pool.h"

#include <assert.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum {
    SPIN_US = 20,         /* of pauses alone */
    SPIN_YIELD_US = 200,  /* from the start of the wait on, others may have the core */
    SPIN_BATCH = 16,      /* pauses between two looks at the clock */
    TASKS_PER_THREAD = 4, /* the last task of a run is the only one that others wait for */
    CACHE_LINE = 64,
};

struct pool_thread {
    struct pool *pool;
    int32_t worker;
    pthread_t thread;
};

struct pool {
    _Alignas(CACHE_LINE) _Atomic uint64_t word; /* next task << 32 | number of tasks */
    _Alignas(CACHE_LINE) _Atomic int32_t remaining;
    _Alignas(CACHE_LINE) _Atomic int32_t sleeper_count;
    _Atomic uint32_t wake; /* the futex; its value only changes */
    _Atomic bool stopping;
    pool_function *function; /* of the current run; read only by those that claimed a task of it */
    void *context;
    int32_t thread_count; /* the caller counted */
    int32_t started_count;
    struct pool_thread thread[];
};

static void pause_cpu(void)
{
    __builtin_ia32_pause();
}

static int64_t now_us(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return (int64_t)time.tv_sec * 1000000 + time.tv_nsec / 1000;
}

static bool has_tasks(uint64_t word)
{
    return (uint32_t)(word >> 32) < (uint32_t)word;
}

/* Claims and does tasks until there are none left. */
static void work(struct pool *pool, int32_t worker)
{
    while (has_tasks(atomic_load_explicit(&pool->word, memory_order_relaxed))) {
        uint64_t word =
            atomic_fetch_add_explicit(&pool->word, (uint64_t)1 << 32, memory_order_acquire);

        if (!has_tasks(word))
            return;
        pool->function(pool->context, (int32_t)(word >> 32), worker);
        atomic_fetch_sub_explicit(&pool->remaining, 1, memory_order_release);
    }
}

/* Waits for a run, or for the end. */
static void wait_for_tasks(struct pool *pool)
{
    int64_t start = now_us(), waited = 0;

    while (waited < SPIN_YIELD_US) {
        for (int32_t i = 0; i < SPIN_BATCH; i++) {
            if (has_tasks(atomic_load_explicit(&pool->word, memory_order_relaxed)))
                return;
            pause_cpu();
        }
        waited = now_us() - start;
        if (waited > SPIN_US)
            sched_yield();
    }
    uint32_t wake = atomic_load(&pool->wake);

    atomic_fetch_add(&pool->sleeper_count, 1);
    while (!has_tasks(atomic_load(&pool->word)) && !atomic_load(&pool->stopping) &&
           atomic_load(&pool->wake) == wake)
        syscall(SYS_futex, &pool->wake, FUTEX_WAIT_PRIVATE, wake, NULL, NULL, 0);
    atomic_fetch_sub(&pool->sleeper_count, 1);
}

static void wake_sleepers(struct pool *pool)
{
    if (atomic_load(&pool->sleeper_count) == 0)
        return;
    atomic_fetch_add(&pool->wake, 1);
    syscall(SYS_futex, &pool->wake, FUTEX_WAKE_PRIVATE, INT32_MAX, NULL, NULL, 0);
}

static void *thread_main(void *argument)
{
    struct pool_thread *self = argument;

    while (!atomic_load(&self->pool->stopping)) {
        wait_for_tasks(self->pool);
        work(self->pool, self->worker);
    }
    return NULL;
}

static int32_t core_count(void)
{
    cpu_set_t set;

    if (sched_getaffinity(0, sizeof set, &set) != 0)
        return 1;
    return CPU_COUNT(&set);
}

struct pool *pool_create(int32_t thread_count)
{
    assert(thread_count >= 0);
    if (thread_count == 0)
        thread_count = core_count();

    size_t bytes = sizeof(struct pool) + (size_t)thread_count * sizeof(struct pool_thread);
    size_t rounded = (bytes + CACHE_LINE - 1) / CACHE_LINE * CACHE_LINE;
    struct pool *pool = aligned_alloc(CACHE_LINE, rounded);

    if (pool == NULL)
        return NULL;
    *pool = (struct pool){.thread_count = thread_count, .started_count = 1};
    while (pool->started_count < thread_count) {
        struct pool_thread *thread = &pool->thread[pool->started_count];

        *thread = (struct pool_thread){.pool = pool, .worker = pool->started_count};
        if (pthread_create(&thread->thread, NULL, thread_main, thread) != 0) {
            pool_destroy(pool);
            return NULL;
        }
        pool->started_count++;
    }
    return pool;
}

void pool_destroy(struct pool *pool)
{
    if (pool == NULL)
        return;
    atomic_store(&pool->stopping, true);
    atomic_fetch_add(&pool->wake, 1);
    syscall(SYS_futex, &pool->wake, FUTEX_WAKE_PRIVATE, INT32_MAX, NULL, NULL, 0);
    for (int32_t i = 1; i < pool->started_count; i++)
        pthread_join(pool->thread[i].thread, NULL);
    free(pool);
}

int32_t pool_thread_count(const struct pool *pool)
{
    return pool->thread_count;
}

/* The caller has no tasks left but others have: they are at work, so this is short, unless
 * another process has their core; then yielding is all that helps. */
static void wait_for_end(struct pool *pool)
{
    int32_t looks = 0;

    while (atomic_load_explicit(&pool->remaining, memory_order_acquire) > 0) {
        pause_cpu();
        if (++looks % 1024 == 0)
            sched_yield();
    }
}

void pool_run(struct pool *pool, pool_function *function, void *context, int32_t task_count)
{
    assert(task_count >= 0);
    assert(task_count <= POOL_TASK_MAX);

    if (task_count <= 1 || pool->thread_count == 1) {
        for (int32_t task = 0; task < task_count; task++)
            function(context, task, 0);
        return;
    }
    pool->function = function;
    pool->context = context;
    atomic_store_explicit(&pool->remaining, task_count, memory_order_relaxed);
    atomic_store(&pool->word, (uint64_t)task_count);
    wake_sleepers(pool);
    work(pool, 0);
    wait_for_end(pool);
}

int32_t pool_task_count(const struct pool *pool, int64_t count, int64_t grain)
{
    assert(grain > 0);
    int64_t most = (int64_t)pool->thread_count * TASKS_PER_THREAD;
    int64_t tasks = count / grain < most ? count / grain : most;

    return tasks < 1 ? 1 : (int32_t)tasks;
}
