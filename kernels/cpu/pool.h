/* The threads of the CPU backend.
 *
 * A run is a number of tasks that the calling thread and the pool's own threads take one by one.
 * The caller returns when all tasks are done; a thread that is late (another process has its core)
 * takes no task and is not waited for. Between runs the threads spin for a short while, since a
 * step is hundreds of runs, and then sleep: an idle pool uses no CPU.
 *
 * One thread at a time may call pool_run. A run must not start another.
 */
#ifndef KERNELS_CPU_POOL_H
#define KERNELS_CPU_POOL_H

#include <stdint.h>

struct pool;

enum { POOL_TASK_MAX = 1 << 30 };

/* Does one task. `worker` is below pool_thread_count and names the thread, so that a task can use
 * scratch memory of its own; the caller is worker 0. */
typedef void pool_function(void *context, int32_t task, int32_t worker);

/* A pool of thread_count threads, the caller counted (so 1 starts none). 0: one a core that this
 * process may run on. NULL when the threads cannot be started. */
struct pool *pool_create(int32_t thread_count);

/* Stops and joins the threads. NULL is fine. */
void pool_destroy(struct pool *pool);

/* Threads that take part, the caller counted. */
int32_t pool_thread_count(const struct pool *pool);

/* Runs function(context, task, worker) for every task from 0 to task_count - 1, in any order, on
 * any threads, and returns when all are done. A single task runs on the caller. */
void pool_run(struct pool *pool, pool_function *function, void *context, int32_t task_count);

/* How many tasks to cut `count` equal pieces of work into: enough for the threads to share them
 * evenly, none smaller than `grain` pieces (but for the last). At least 1, at most count. */
int32_t pool_task_count(const struct pool *pool, int64_t count, int64_t grain);

/* The first piece of `task` when `count` pieces are cut into task_count tasks; that of
 * task + 1 is its end. */
static inline int64_t pool_task_first(int64_t count, int32_t task_count, int32_t task)
{
    return count * task / task_count;
}

#endif
