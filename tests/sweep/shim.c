/* SPDX-License-Identifier: Apache-2.0
 *
 * Preloaded: the n-th allocation fails, once, and those before it are counted. Of four
 * kinds, each by itself: what Python's allocators are asked for by the thread that armed
 * them; of that what they are asked for inside of an extension's functions (sweep_enter);
 * the blocks that it (sweep_watch) asks of malloc; the threads that it starts.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

enum { PYTHON, INSIDE, MALLOC, THREAD };
enum { DOMAINS = 3 }; /* PYMEM_DOMAIN_RAW, _MEM, _OBJ */

static uintptr_t low, high;
static atomic_long asked, failing;
static atomic_int kind = -1, met;
static pthread_t armed_by;
static _Thread_local int inside; /* of calls of the extension */

/* --- the plan ------------------------------------------------------------------------ */

void
sweep_watch(uintptr_t from, uintptr_t to)
{
    low = from;
    high = to;
}

/* `nth` 0: none fails. */
void
sweep_arm(int which, long nth)
{
    armed_by = pthread_self();
    atomic_store(&asked, 0);
    atomic_store(&failing, nth);
    atomic_store(&met, 0);
    atomic_store(&kind, which);
}

void
sweep_disarm(void)
{
    atomic_store(&kind, -1);
}

/* Since it was armed: how many there were; whether one failed. */
long
sweep_asked(void)
{
    return atomic_load(&asked);
}

int
sweep_met(void)
{
    return atomic_load(&met);
}

static int
fails(int which)
{
    if (atomic_load(&kind) != which
        || atomic_fetch_add(&asked, 1) + 1 != atomic_load(&failing))
    {
        return 0;
    }
    atomic_store(&met, 1);
    return 1;
}

/* --- Python's allocators ------------------------------------------------------------- */

typedef struct {
    void *ctx;
    void *(*malloc)(void *ctx, size_t size);
    void *(*calloc)(void *ctx, size_t count, size_t size);
    void *(*realloc)(void *ctx, void *block, size_t size);
    void (*free)(void *ctx, void *block);
} allocator; /* PyMemAllocatorEx */

static allocator before[DOMAINS];

static int
python_fails(void)
{
    const int which = atomic_load(&kind);

    return (which == PYTHON || (which == INSIDE && inside > 0))
           && pthread_equal(armed_by, pthread_self()) && fails(which);
}

static void *
python_malloc(void *ctx, size_t size)
{
    const allocator *real = ctx;

    return python_fails() ? NULL : real->malloc(real->ctx, size);
}

static void *
python_calloc(void *ctx, size_t count, size_t size)
{
    const allocator *real = ctx;

    return python_fails() ? NULL : real->calloc(real->ctx, count, size);
}

static void *
python_realloc(void *ctx, void *block, size_t size)
{
    const allocator *real = ctx;

    return python_fails() ? NULL : real->realloc(real->ctx, block, size);
}

static void
python_free(void *ctx, void *block)
{
    const allocator *real = ctx;

    real->free(real->ctx, block);
}

/* Once, with the GIL held. */
int
sweep_hook_python(void)
{
    void (*get)(int, allocator *) =
        (void (*)(int, allocator *))dlsym(RTLD_DEFAULT, "PyMem_GetAllocator");
    void (*set)(int, allocator *) =
        (void (*)(int, allocator *))dlsym(RTLD_DEFAULT, "PyMem_SetAllocator");

    if (get == NULL || set == NULL) {
        return -1;
    }
    for (int domain = 0; domain < DOMAINS; domain++) {
        allocator ours = {&before[domain], python_malloc, python_calloc, python_realloc,
                          python_free};

        get(domain, &before[domain]);
        set(domain, &ours);
    }
    return 0;
}

/* --- inside of the extension's functions --------------------------------------------- */

typedef void *function(void *self, void *arguments);

typedef struct {
    const char *name;
    function *call;
    int flags;
    const char *doc;
} method; /* PyMethodDef */

typedef struct {
    intptr_t references;
    void *type;
    method *method;
} builtin; /* the beginning of PyCFunctionObject */

static function *entered[20];

#define ENTRY(i)                                       \
    static void *entry##i(void *self, void *arguments) \
    {                                                  \
        void *found;                                   \
                                                       \
        inside++;                                      \
        found = entered[i](self, arguments);           \
        inside--;                                      \
        return found;                                  \
    }

/* clang-format off */
ENTRY(0) ENTRY(1) ENTRY(2) ENTRY(3) ENTRY(4) ENTRY(5) ENTRY(6) ENTRY(7) ENTRY(8) ENTRY(9)
ENTRY(10) ENTRY(11) ENTRY(12) ENTRY(13) ENTRY(14) ENTRY(15) ENTRY(16) ENTRY(17) ENTRY(18)
ENTRY(19)

static function *const entries[] = {
    entry0, entry1, entry2, entry3, entry4, entry5, entry6, entry7, entry8, entry9, entry10,
    entry11, entry12, entry13, entry14, entry15, entry16, entry17, entry18, entry19,
};
/* clang-format on */

/* From now on calls of `object`, the i-th function, are known to be inside. */
int
sweep_enter(int i, void *object)
{
    method *m = ((builtin *)object)->method;

    if (i < 0 || i >= (int)(sizeof(entries) / sizeof(entries[0]))) {
        return -1;
    }
    entered[i] = m->call;
    m->call = entries[i];
    return 0;
}

/* --- what the extension asks for ----------------------------------------------------- */

static int
is_watched(const void *caller)
{
    return (uintptr_t)caller >= low && (uintptr_t)caller < high;
}

#define CALLER is_watched(__builtin_return_address(0))
#define NEXT(name) ((name##_call *)dlsym(RTLD_NEXT, #name))

extern void *__libc_calloc(size_t count, size_t size);
extern void *__libc_malloc(size_t size);
extern void __libc_free(void *block);

/* The blocks that are out. A jump out of the extension looks like a call from it: what is
 * freed there may be another's. */
enum { MOST = 4096 };

static void *blocks[MOST];
static pthread_mutex_t of_blocks = PTHREAD_MUTEX_INITIALIZER;

static void
replace(const void *from, void *to)
{
    int i = 0;

    pthread_mutex_lock(&of_blocks);
    while (i < MOST && blocks[i] != from) {
        i++;
    }
    if (i < MOST) {
        blocks[i] = to;
    }
    pthread_mutex_unlock(&of_blocks);
}

long
sweep_live(void)
{
    long n = 0;

    for (int i = 0; i < MOST; i++) {
        n += blocks[i] != NULL;
    }
    return n;
}

static void *
given(void *block)
{
    if (block != NULL) {
        replace(NULL, block);
    }
    return block;
}

typedef int posix_memalign_call(void **, size_t, size_t);

int
posix_memalign(void **block, size_t align, size_t bytes)
{
    static posix_memalign_call *real;
    const int watched = CALLER;
    int error;

    if (real == NULL) {
        real = NEXT(posix_memalign);
    }
    if (watched && fails(MALLOC)) {
        return ENOMEM;
    }
    error = real(block, align, bytes);
    if (watched && error == 0) {
        given(*block);
    }
    return error;
}

/* dlsym itself asks for memory by these: theirs is called by its other name. */
void *
calloc(size_t count, size_t size)
{
    if (!CALLER) {
        return __libc_calloc(count, size);
    }
    return fails(MALLOC) ? NULL : given(__libc_calloc(count, size));
}

void *
malloc(size_t size)
{
    if (!CALLER) {
        return __libc_malloc(size);
    }
    return fails(MALLOC) ? NULL : given(__libc_malloc(size));
}

void
free(void *block)
{
    if (block != NULL && CALLER) {
        replace(block, NULL);
    }
    __libc_free(block);
}

typedef int pthread_create_call(pthread_t *, const pthread_attr_t *, void *(*)(void *),
                                void *);

int
pthread_create(pthread_t *thread, const pthread_attr_t *how, void *(*run)(void *),
               void *arg)
{
    return CALLER && fails(THREAD) ? EAGAIN : NEXT(pthread_create)(thread, how, run, arg);
}
