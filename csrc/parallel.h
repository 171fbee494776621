/* SPDX-License-Identifier: Apache-2.0
 *
 * A small fork-safe thread pool. Not OpenMP: a process that used libgomp hangs in a forked
 * child, and a DataLoader worker is one.
 *
 * - Workers start on first use and sleep between jobs. After a fork the child finds
 *   another process id, forgets the parent's threads and starts its own.
 * - A task's number fixes its work, never the number of threads: results have the
 *   same bits for any thread count.
 * - One job at a time: a second caller finds the pool busy and runs its tasks on its
 *   own thread.
 */
#ifndef RAP_PARALLEL_H
#define RAP_PARALLEL_H

#include "rap.h"

#define RAP_MAX_THREADS 256

/* `worker` is 0 for the calling thread and < threads: an index into scratch. */
typedef void (*rap_task)(void *ctx, int64_t task, int worker);

struct rap_pool *rap_pool_new(void);
void rap_pool_free(struct rap_pool *pool);

/* Runs fn(ctx, 0 .. tasks-1, worker) and waits. False if stopped by exec->poll. */
bool rap_parallel(rap_exec *exec, int64_t tasks, rap_task fn, void *ctx, rap_error *err);

/* Threads that rap_parallel will use at most: the size of per-worker scratch. */
int rap_workers(const rap_exec *exec, int64_t tasks);

/* Kernels run with subnormal numbers kept, whatever a thread was told by others: torch's
 * set_flush_denormal holds for threads made after it, and results must not depend on which
 * thread does the work. Workers and the calling thread enter; leave puts the mode back. */
uint64_t rap_fp_mode_enter(void);
void rap_fp_mode_leave(uint64_t before);

/* For loops inside a task: true when the call should end early. */
bool rap_should_stop(rap_exec *exec, int worker);

#endif
