/* SPDX-License-Identifier: Apache-2.0
 *
 * Runs a grid on one host thread: a ucontext fiber for each CUDA thread, the next one to
 * run drawn at random by the seed at every wait. A few blocks are alive at a time, so that
 * blocks interleave; shared memory is fresh for each block and filled with 0xFF (NaN).
 *
 * This file is never instrumented. For ThreadSanitizer (-DRAP_TSAN) every fiber is one of
 * its fibers, switched to without an order of its own; what orders accesses is only
 *   launch  the host's work before it -> each thread     (cell `launch`)
 *   wait    all arrivals at a barrier or shuffle -> all departures from it, in two cells
 *           used in turn: with one, a thread that arrives at the next wait before another
 *           has left this one would order what is not ordered
 *   end     each thread -> the host's work after it      (cell `end`: another one, or
 *           threads that end early would be ordered before threads that start late)
 */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <ucontext.h>

#include "emulator.h"

#define LANES 32
#define STACK (256 * 1024)
#define ALIVE 1024 /* threads of all blocks that run side by side, at most */

#ifdef RAP_TSAN
void *__tsan_get_current_fiber(void);
void *__tsan_create_fiber(unsigned flags);
void __tsan_destroy_fiber(void *fiber);
void __tsan_switch_to_fiber(void *fiber, unsigned flags);
void __tsan_acquire(void *cell);
void __tsan_release(void *cell);
#else
#define __tsan_get_current_fiber() NULL
#define __tsan_create_fiber(flags) NULL
#define __tsan_destroy_fiber(fiber) ((void)(fiber))
#define __tsan_switch_to_fiber(fiber, flags) ((void)(fiber))
#define __tsan_acquire(cell) ((void)(cell))
#define __tsan_release(cell) ((void)(cell))
#endif
#define NO_ORDER 1

/* Where threads wait for each other: all of a block, or the lanes of a warp. */
typedef struct {
    int members, arrived;
    unsigned round;
    char cell[2];
} meeting;

typedef struct {
    meeting meet;
    uint64_t slot[2][LANES];
    uint32_t words[2][LANES][RAP_EMU_WORDS];
} warp;

/* Each has memory of its own until the grid has ended: in memory used again, a block would
 * inherit the order of the one before. */
typedef struct block {
    struct block *dead; /* the next in the list of those that have ended */
    meeting meet;
    void *shared;
    char made; /* cell: whoever makes the shared memory -> who uses it */
    int left;  /* threads that have not ended */
    warp warps[];
} block;

typedef enum { READY, AT_BARRIER, AT_SHUFFLE, ENDED } fiber_state;

typedef struct {
    ucontext_t context;
    rap_emu_place place;
    block *block;
    fiber_state state;
    char *stack;
    void *tsan;
    rap_emu_fetches fetches;
} fiber;

typedef struct {
    rap_emu_fn fn;
    void **params;
    ucontext_t host;
    void *host_tsan;
    fiber *fibers; /* those of the blocks that are alive */
    int *ready;    /* their numbers, in no order */
    int ready_count;
    fiber *here;
    block *dead;
    uint64_t random;
    char launch, end;
} machine;

static machine it;
static char *stacks; /* kept: touching fresh pages costs more than most kernels */
static char message[200];

static uint64_t
next_random(void)
{
    it.random ^= it.random << 13;
    it.random ^= it.random >> 7;
    it.random ^= it.random << 17;
    return it.random;
}

static int
fail(const char *format, ...)
{
    va_list args;

    va_start(args, format);
    vsnprintf(message, sizeof(message), format, args);
    va_end(args);
    return -1;
}

RAP_EMU_PUBLIC const char *
rap_emu_error(void)
{
    return message;
}

/* --- called by kernels, on a fiber ----------------------------------------------------- */

const rap_emu_place *
rap_emu_here(void)
{
    return &it.here->place;
}

void *
rap_emu_smem(size_t size)
{
    block *b = it.here->block;

    if (b->shared == NULL) {
        b->shared = malloc(size);
        memset(b->shared, 0xff, size);
        __tsan_release(&b->made);
    }
    __tsan_acquire(&b->made);
    return b->shared;
}

static void
to_host(void)
{
    fiber *f = it.here;

    __tsan_switch_to_fiber(it.host_tsan, NO_ORDER);
    swapcontext(&f->context, &it.host);
}

/* Makes runnable whoever waits in `state` among fibers [first, first + n). */
static void
wake(fiber *first, int n, fiber_state state)
{
    for (int i = 0; i < n; i++) {
        if (first[i].state == state) {
            first[i].state = READY;
            it.ready[it.ready_count++] = (int)(first + i - it.fibers);
        }
    }
}

static void
meet(meeting *m, fiber *first, fiber_state state)
{
    char *cell = &m->cell[m->round & 1];

    __tsan_release(cell);
    it.here->state = state;
    if (++m->arrived == m->members) {
        m->arrived = 0;
        m->round++;
        wake(first, m->members, state);
    }
    to_host();
    __tsan_acquire(cell);
}

static fiber *
first_of_block(void)
{
    return it.here - it.here->place.thread;
}

void
rap_emu_sync(void)
{
    meet(&it.here->block->meet, first_of_block(), AT_BARRIER);
}

static warp *
this_warp(void)
{
    return &it.here->block->warps[it.here->place.thread / LANES];
}

uint64_t
rap_emu_exchange(uint64_t bits, int lane)
{
    warp *w = this_warp();
    const unsigned side = w->meet.round & 1;
    const int own = it.here->place.thread % LANES;

    w->slot[side][own] = bits;
    meet(&w->meet, it.here - own, AT_SHUFFLE);
    return w->slot[side][lane % LANES];
}

const uint32_t (*rap_emu_gather(const uint32_t *own)) [RAP_EMU_WORDS] {
    warp *w = this_warp();
    const unsigned side = w->meet.round & 1;
    const int lane = it.here->place.thread % LANES;

    memcpy(w->words[side][lane], own, sizeof(w->words[side][lane]));
    meet(&w->meet, it.here - lane, AT_SHUFFLE);
    return (const uint32_t (*)[RAP_EMU_WORDS])w->words[side];
}

rap_emu_fetches *rap_emu_fetches_here(void)
{
    return &it.here->fetches;
}

_Noreturn void
rap_emu_bad_fetch(int count, int bytes)
{
    fprintf(stderr, "a fetch of %d bytes beside %d others\n", bytes, count);
    abort();
}

_Noreturn void
rap_emu_misaligned(const void *at)
{
    fprintf(stderr, "128 bits at %p: misaligned address\n", at);
    abort();
}

uint32_t
rap_emu_vote(bool x)
{
    warp *w = this_warp();
    const unsigned side = w->meet.round & 1;
    const int own = it.here->place.thread % LANES;
    uint32_t bits = 0;

    w->slot[side][own] = x;
    meet(&w->meet, it.here - own, AT_SHUFFLE);
    for (int i = 0; i < w->meet.members; i++) {
        bits |= (uint32_t)(w->slot[side][i] != 0) << i;
    }
    return bits;
}

/* --- the host's side ------------------------------------------------------------------- */

static void
run_thread(void)
{
    __tsan_acquire(&it.launch);
    it.fn(it.params);
    __tsan_release(&it.end);
    it.here->state = ENDED;
    it.here->block->left--;
    to_host();
}

static void
start_thread(fiber *f, int number)
{
    f->place.thread = number;
    f->state = READY;
    f->fetches.count = 0;
    f->tsan = __tsan_create_fiber(0);
    getcontext(&f->context);
    f->context.uc_stack.ss_sp = f->stack;
    f->context.uc_stack.ss_size = STACK;
    f->context.uc_link = NULL;
    makecontext(&f->context, run_thread, 0);
    it.ready[it.ready_count++] = (int)(f - it.fibers);
}

static block *
start_block(fiber *first, int number, int threads, int blocks)
{
    const size_t warps = (size_t)threads / LANES;
    block *b = calloc(1, sizeof(block) + warps * sizeof(warp));

    b->meet.members = threads;
    b->left = threads;
    for (size_t w = 0; w < warps; w++) {
        b->warps[w].meet.members = LANES;
    }
    for (int t = 0; t < threads; t++) {
        first[t].block = b;
        first[t].place.threads = threads;
        first[t].place.block = number;
        first[t].place.blocks = blocks;
        start_thread(&first[t], t);
    }
    return b;
}

static void
end_block(fiber *first, block *b, int threads)
{
    for (int t = 0; t < threads; t++) {
        __tsan_destroy_fiber(first[t].tsan);
    }
    b->dead = it.dead;
    it.dead = b;
}

static void
free_dead(void)
{
    while (it.dead != NULL) {
        block *b = it.dead;

        it.dead = b->dead;
        free(b->shared);
        free(b);
    }
}

static void
run_one(void)
{
    const int at = (int)(next_random() % (uint64_t)it.ready_count);

    it.here = &it.fibers[it.ready[at]];
    it.ready[at] = it.ready[--it.ready_count];
    __tsan_switch_to_fiber(it.here->tsan, NO_ORDER);
    swapcontext(&it.host, &it.here->context);
}

static int
stuck(int alive, int threads)
{
    int barrier = 0, shuffle = 0, ended = 0;

    for (int i = 0; i < alive * threads; i++) {
        barrier += it.fibers[i].state == AT_BARRIER;
        shuffle += it.fibers[i].state == AT_SHUFFLE;
        ended += it.fibers[i].state == ENDED;
    }
    return fail("deadlock: %d threads at a barrier, %d at a shuffle, %d ended", barrier,
                shuffle, ended);
}

/* Blocks in rising order into free places, as on a device; threads in any order. */
static int
run_grid(block **places, int alive, int threads, int blocks)
{
    int next = 0, done = 0;

    while (done < blocks) {
        for (int i = 0; i < alive; i++) {
            fiber *first = it.fibers + i * threads;

            if (places[i] != NULL && places[i]->left == 0) {
                end_block(first, places[i], threads);
                places[i] = NULL;
                done++;
            }
            if (places[i] == NULL && next < blocks) {
                places[i] = start_block(first, next++, threads, blocks);
            }
        }
        if (it.ready_count == 0 && done < blocks) {
            return stuck(alive, threads);
        }
        do {
            if (it.ready_count > 0) {
                run_one();
            }
        } while (it.ready_count > 0 && it.here->block->left > 0);
    }
    return 0;
}

static int
check_launch(const unsigned grid[3], const unsigned blk[3])
{
    const unsigned threads = blk[0];

    if (blk[1] != 1 || blk[2] != 1 || grid[1] != 1 || grid[2] != 1) {
        return fail("only one-dimensional grids are used here");
    }
    if (threads == 0 || threads > 1024 || threads % LANES != 0 || grid[0] == 0) {
        return fail("grid %u, block %u cannot be launched", grid[0], threads);
    }
    return 0;
}

RAP_EMU_PUBLIC int
rap_emu_launch(rap_emu_fn fn, const unsigned grid[3], const unsigned blk[3], size_t shared,
               void **params, uint64_t seed)
{
    const int threads = (int)blk[0], blocks = (int)grid[0];
    int alive, status;
    block **places;

    (void)shared; /* no kernel of ours has dynamic shared memory */
    message[0] = 0;
    if (check_launch(grid, blk) != 0) {
        return -1;
    }
    alive = ALIVE / threads < blocks ? ALIVE / threads : blocks;
    memset(&it, 0, sizeof(it));
    it.fn = fn;
    it.params = params;
    it.random = seed * 2654435769u + 88172645463325252u;
    it.host_tsan = __tsan_get_current_fiber();
    it.fibers = calloc((size_t)(alive * threads), sizeof(fiber));
    it.ready = calloc((size_t)(alive * threads), sizeof(int));
    stacks = stacks != NULL ? stacks : malloc((size_t)ALIVE * STACK);
    places = calloc((size_t)alive, sizeof(block *));
    for (int i = 0; i < alive * threads; i++) {
        it.fibers[i].stack = stacks + (size_t)i * STACK;
    }
    __tsan_release(&it.launch);
    status = run_grid(places, alive, threads, blocks);
    __tsan_acquire(&it.end);
    for (int i = 0; i < alive; i++) {
        if (places[i] != NULL) { /* stuck: what waits is given up */
            end_block(it.fibers + i * threads, places[i], threads);
        }
    }
    free_dead();
    free(places);
    free(it.ready);
    free(it.fibers);
    return status;
}
