/* The pool of the CPU backend: every task once, no waiting for late threads, idle when idle. */
#include "kernels/cpu/pool.h"

#include "tests/test.h"

#include <stdatomic.h>
#include <time.h>

enum { TASK_MAX = 1000 };

struct counts {
    _Atomic int32_t task[TASK_MAX];
    _Atomic int32_t wrong_worker;
    int32_t worker_count;
    int32_t plain; /* written by the caller between runs, read by tasks */
    int32_t seen[TASK_MAX];
};

static void count_task(void *context, int32_t task, int32_t worker)
{
    struct counts *counts = context;

    counts->task[task]++;
    counts->seen[task] = counts->plain;
    if (worker < 0 || worker >= counts->worker_count)
        counts->wrong_worker++;
}

static void check_runs(int32_t thread_count, int32_t task_count, int32_t run_count)
{
    struct pool *pool = pool_create(thread_count);
    static struct counts counts;
    int32_t wrong = 0;

    memset(&counts, 0, sizeof counts);
    counts.worker_count = thread_count;
    for (int32_t run = 1; run <= run_count; run++) {
        counts.plain = run;
        pool_run(pool, count_task, &counts, task_count);
        for (int32_t task = 0; task < task_count; task++)
            wrong += counts.task[task] != run || counts.seen[task] != run;
    }
    EXPECT_INT(wrong, ==, 0);
    EXPECT_INT(counts.wrong_worker, ==, 0);
    pool_destroy(pool);
}

static void every_task_runs_once_in_every_run(void)
{
    check_runs(1, 7, 10);
    check_runs(2, 2, 20000);
    check_runs(2, 13, 5000);
    check_runs(3, 5, 2000);
    check_runs(8, 64, 200);
    check_runs(3, TASK_MAX, 20);
}

static void a_run_of_no_tasks_does_nothing(void)
{
    check_runs(2, 0, 3);
}

static void nap(int64_t us)
{
    struct timespec time = {.tv_sec = us / 1000000, .tv_nsec = us % 1000000 * 1000};

    nanosleep(&time, NULL);
}

static void sleeping_threads_wake_for_a_run(void)
{
    static struct counts counts;
    struct pool *pool = pool_create(3);

    memset(&counts, 0, sizeof counts);
    counts.worker_count = 3;
    for (int32_t run = 1; run <= 50; run++) {
        nap(run % 2 == 0 ? 2000 : 200);
        pool_run(pool, count_task, &counts, 30);
    }
    for (int32_t task = 0; task < 30; task++)
        EXPECT_INT(counts.task[task], ==, 50);
    pool_destroy(pool);
}

/* Waits until another thread has come, so that a pool that runs all on the caller is found out. */
static void meeting_task(void *context, int32_t task, int32_t worker)
{
    _Atomic int32_t *arrived = context;

    (void)task;
    (void)worker;
    atomic_fetch_add(arrived, 1);
    for (int32_t i = 0; i < 20000 && atomic_load(arrived) < 2; i++)
        nap(100);
}

static void threads_work_at_the_same_time(void)
{
    _Atomic int32_t arrived = 0;
    struct pool *pool = pool_create(2);

    nap(5000);
    pool_run(pool, meeting_task, (void *)&arrived, 2);
    EXPECT_INT(arrived, ==, 2);
    pool_destroy(pool);
}

static int64_t process_cpu_us(void)
{
    struct timespec time;

    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
    return (int64_t)time.tv_sec * 1000000 + time.tv_nsec / 1000;
}

static void an_idle_pool_uses_no_processor_time(void)
{
    static struct counts counts;
    struct pool *pool = pool_create(4);
    int64_t start;

    counts.worker_count = 4;
    pool_run(pool, count_task, &counts, 100);
    nap(100000);
    start = process_cpu_us();
    nap(300000);
    EXPECT_INT(process_cpu_us() - start, <, 3000);
    pool_destroy(pool);
}

static void work_is_cut_into_tasks_that_cover_it(void)
{
    struct pool *pool = pool_create(2);

    for (int64_t count = 1; count < 300; count += 7) {
        int32_t task_count = pool_task_count(pool, count, 10);

        EXPECT_INT(task_count, >=, 1);
        EXPECT_INT(task_count, <=, count);
        EXPECT(task_count == 1 || count / task_count >= 10);
        EXPECT_INT(pool_task_first(count, task_count, 0), ==, 0);
        EXPECT_INT(pool_task_first(count, task_count, task_count), ==, count);
        for (int32_t task = 0; task < task_count; task++)
            EXPECT(pool_task_first(count, task_count, task) <
                   pool_task_first(count, task_count, task + 1));
    }
    EXPECT_INT(pool_thread_count(pool), ==, 2);
    pool_destroy(pool);
}

static void zero_threads_mean_one_a_core(void)
{
    struct pool *pool = pool_create(0);

    EXPECT_INT(pool_thread_count(pool), >=, 1);
    pool_destroy(pool);
    pool_destroy(NULL);
}

int main(void)
{
    TEST(every_task_runs_once_in_every_run);
    TEST(a_run_of_no_tasks_does_nothing);
    TEST(sleeping_threads_wake_for_a_run);
    TEST(threads_work_at_the_same_time);
    TEST(an_idle_pool_uses_no_processor_time);
    TEST(work_is_cut_into_tasks_that_cover_it);
    TEST(zero_threads_mean_one_a_core);
    return test_report();
}
