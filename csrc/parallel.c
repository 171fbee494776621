/* SPDX-License-Identifier: Apache-2.0 */
#include "parallel.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "status.h"

#define POLL_SECONDS 0.05

typedef struct {
    rap_task fn;
    void *ctx;
    rap_exec *exec;
    int64_t tasks;
    atomic_llong next;
    int wanted;  /* workers that may join, beside the caller */
    int joined;  /* under the pool's lock */
    int running; /* under the pool's lock */
} job;

struct rap_pool {
    _Atomic pid_t owner;  /* 0 while the pool is being made anew after a fork */
    pthread_mutex_t busy; /* held by the call that owns the pool's workers */
    pthread_mutex_t lock;
    pthread_cond_t wake;
    pthread_cond_t done;
    job *current;
    bool quit;
    int threads;
    pthread_t thread[RAP_MAX_THREADS];
};

static double
now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void
pool_reset(struct rap_pool *pool)
{
    pthread_condattr_t attr;

    pthread_mutex_init(&pool->busy, NULL);
    pthread_mutex_init(&pool->lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&pool->wake, &attr);
    pthread_cond_init(&pool->done, &attr);
    pthread_condattr_destroy(&attr);
    pool->current = NULL;
    pool->quit = false;
    pool->threads = 0;
}

struct rap_pool *
rap_pool_new(void)
{
    struct rap_pool *pool = calloc(1, sizeof(*pool));

    if (pool != NULL) {
        pool_reset(pool);
        atomic_store(&pool->owner, getpid());
    }
    return pool;
}

bool
rap_should_stop(rap_exec *exec, int worker)
{
    if (worker == 0 && exec->poll != NULL
        && !atomic_load_explicit(&exec->stop, memory_order_relaxed))
    {
        double t = now();

        if (t - exec->polled > POLL_SECONDS) {
            exec->polled = t;
            if (exec->poll(exec->poll_arg)) {
                atomic_store(&exec->stop, true);
            }
        }
    }
    return atomic_load_explicit(&exec->stop, memory_order_relaxed);
}

uint64_t
rap_fp_mode_enter(void)
{
#if defined(__x86_64__)
    unsigned before = __builtin_ia32_stmxcsr();

    __builtin_ia32_ldmxcsr(before & ~0x8040u); /* FTZ, DAZ */
    return before;
#elif defined(__aarch64__)
    uint64_t before;

    __asm__ volatile("mrs %0, fpcr" : "=r"(before));
    __asm__ volatile("msr fpcr, %0" : : "r"(before & ~(UINT64_C(1) << 24))); /* FZ */
    return before;
#else
    return 0;
#endif
}

void
rap_fp_mode_leave(uint64_t before)
{
#if defined(__x86_64__)
    __builtin_ia32_ldmxcsr((unsigned)before);
#elif defined(__aarch64__)
    __asm__ volatile("msr fpcr, %0" : : "r"(before));
#else
    (void)before;
#endif
}

static void
run_tasks(job *j, int worker)
{
    uint64_t mode = rap_fp_mode_enter();
    int64_t task;

    while ((task = atomic_fetch_add(&j->next, 1)) < j->tasks
           && !rap_should_stop(j->exec, worker))
    {
        j->fn(j->ctx, task, worker);
    }
    rap_fp_mode_leave(mode);
}

static void *
worker_main(void *arg)
{
    struct rap_pool *pool = arg;

    pthread_mutex_lock(&pool->lock);
    while (!pool->quit) {
        job *j = pool->current;

        if (j == NULL || j->joined >= j->wanted) {
            pthread_cond_wait(&pool->wake, &pool->lock);
            continue;
        }
        int worker = ++j->joined;

        j->running++;
        pthread_mutex_unlock(&pool->lock);
        run_tasks(j, worker);
        pthread_mutex_lock(&pool->lock);
        if (--j->running == 0) {
            pthread_cond_signal(&pool->done);
        }
    }
    pthread_mutex_unlock(&pool->lock);
    return NULL;
}

/* Starts missing workers with all signals blocked: signals belong to Python's main
 * thread. Fewer threads than asked for is no error, only slower. */
static void
pool_grow(struct rap_pool *pool, int threads)
{
    sigset_t all, old;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    while (pool->threads < threads) {
        if (pthread_create(&pool->thread[pool->threads], NULL, worker_main, pool) != 0) {
            break;
        }
        pool->threads++;
    }
    pthread_sigmask(SIG_SETMASK, &old, NULL);
}

static struct timespec
deadline(double seconds)
{
    double t = now() + seconds;
    struct timespec when = {.tv_sec = (time_t)t};

    when.tv_nsec = (long)((t - (double)when.tv_sec) * 1e9);
    return when;
}

/* The caller's share is done: no further worker may join, then wait for the rest. */
static void
pool_finish(struct rap_pool *pool, job *j)
{
    pthread_mutex_lock(&pool->lock);
    pool->current = NULL;
    while (j->running > 0) {
        struct timespec when = deadline(POLL_SECONDS);

        if (pthread_cond_timedwait(&pool->done, &pool->lock, &when) == ETIMEDOUT) {
            /* poll takes the GIL: never while holding the lock a worker needs */
            pthread_mutex_unlock(&pool->lock);
            rap_should_stop(j->exec, 0);
            pthread_mutex_lock(&pool->lock);
        }
    }
    pthread_mutex_unlock(&pool->lock);
}

static void
run_pooled(struct rap_pool *pool, job *j, int threads)
{
    j->wanted = threads - 1;
    pthread_mutex_lock(&pool->lock);
    pool_grow(pool, j->wanted);
    pool->current = j;
    pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->lock);
    run_tasks(j, 0);
    pool_finish(pool, j);
}

int
rap_workers(const rap_exec *exec, int64_t tasks)
{
    int64_t n = RAP_MIN((int64_t)exec->threads, tasks);

    return (int)RAP_MAX(1, RAP_MIN(n, RAP_MAX_THREADS));
}

/* True when the pool's workers belong to this process. A forked child makes the pool
 * anew; a thread that arrives meanwhile does its work alone. */
static bool
pool_ready(struct rap_pool *pool)
{
    pid_t me = getpid(), owner = atomic_load(&pool->owner);

    if (owner == me) {
        return true;
    }
    if (owner == 0 || !atomic_compare_exchange_strong(&pool->owner, &owner, 0)) {
        return false;
    }
    pool_reset(pool);
    atomic_store(&pool->owner, me);
    return true;
}

bool
rap_parallel(rap_exec *exec, int64_t tasks, rap_task fn, void *ctx, rap_error *err)
{
    job j = {.fn = fn, .ctx = ctx, .exec = exec, .tasks = tasks};
    struct rap_pool *pool = exec->pool;
    int threads = rap_workers(exec, tasks);

    if (threads > 1 && pool != NULL && pool_ready(pool)
        && pthread_mutex_trylock(&pool->busy) == 0)
    {
        run_pooled(pool, &j, threads);
        pthread_mutex_unlock(&pool->busy);
    }
    else {
        run_tasks(&j, 0);
    }
    if (atomic_load(&exec->stop)) {
        return rap_fail(err, RAP_EINTERRUPT, "interrupted");
    }
    return true;
}

void
rap_pool_free(struct rap_pool *pool)
{
    if (pool == NULL) {
        return;
    }
    if (pool->owner == getpid()) {
        pthread_mutex_lock(&pool->lock);
        pool->quit = true;
        pthread_cond_broadcast(&pool->wake);
        pthread_mutex_unlock(&pool->lock);
        for (int i = 0; i < pool->threads; i++) {
            pthread_join(pool->thread[i], NULL);
        }
    }
    free(pool);
}
