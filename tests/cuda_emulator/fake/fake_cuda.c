/* SPDX-License-Identifier: Apache-2.0
 *
 * A libcuda.so.1 for tests: what csrc/driver.c asks for and nothing else.
 *
 * - Device memory is unreadable except while a kernel or a copy runs: a host access is a
 *   segmentation fault. It is full of NaN when allocated, unreadable for good when freed.
 * - Work on streams is queued and done late, at a wait, in an order that RAP_FAKE_SEED
 *   fixes: streams are mixed at random. The legacy stream is ordered with the per-thread one
 *   and not with rap_fake_stream's, which are non-blocking, as torch's are.
 * - Kernels are the .cu files built for the host (RAP_EMU_KERNELS); RAP_FAKE_CUBINS lists
 *   what the fat binaries inside rap._C hold: after "toolkit 13000", one line "hash-of-image
 *   arch kernel parameter-bytes most-threads shared-bytes" each. An image is loaded as for a
 *   device of RAP_FAKE_ARCH (86) and a driver of RAP_FAKE_DRIVER (13000), and has the
 *   kernels that the list says and no others.
 * - A stream can record a graph (rap_fake_capture, rap_fake_replay): what it would copy from
 *   host memory is read again at every replay, and nothing may wait for it.
 * - Any entry point can be made to fail (rap_fake_fail) or be missing (RAP_FAKE_MISSING).
 *
 * Kinder than a real one: the primary context outlives its last release, and a kernel that
 * failed is told at the next wait, not by every call after it.
 */
#include "fake_cuda.h"

#include <dlfcn.h>
#include <malloc.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "../emulator.h"

enum { DEVICES = 2, MOST = 4096, ALIGN = 256 };
#define MEMORY (UINT64_C(8) << 30) /* bytes a device has */
#define MOST_SHARED 49152          /* bytes a block has, unless it asks for more */
enum {
    INVALID_VALUE = 1,
    NOT_INITIALIZED = 3,
    INVALID_DEVICE = 101,
    INVALID_IMAGE = 200,
    INVALID_CONTEXT = 201,
    NO_BINARY_FOR_GPU = 209,
    UNSUPPORTED_PTX = 222,
    INVALID_HANDLE = 400,
    NOT_FOUND = 500,
    LAUNCH_FAILED = 719,
    CONTEXT_IS_DESTROYED = 709,
    CAPTURE_UNSUPPORTED = 900,
    CAPTURE_IMPLICIT = 906,
};

typedef struct {
    char *map;    /* whole pages, then one that is never opened */
    char *at;     /* what the user has: ends less than ALIGN before that page */
    size_t pages; /* bytes */
    size_t bytes;
    int device;
    bool live;
} block;

typedef struct {
    int device;
    unsigned long long id; /* 0: not alive */
    int retained;
} context;

typedef struct {
    int device;
} stream;

typedef struct {
    context *context;
    unsigned long long id, image;
    int arch; /* of the code that runs */
} module;

/* A kernel of a fat binary, as the real assembler left it. */
typedef struct {
    unsigned long long image;
    int arch;
    char name[64];
    size_t param_size, shared;
    unsigned most_threads;
} cubin;

typedef struct {
    module module;
    const rap_emu_kernel *kernel;
    const cubin *cubin;
} function;

typedef struct op {
    struct op *next;
    void *stream;
    void (*run)(struct op *);
    const rap_emu_kernel *kernel;
    unsigned grid[3], block[3];
    void *copy; /* parameters, or bytes to upload */
    uint64_t device_at;
    void *host_at;
    size_t bytes;
    void (*fn)(void *);
} op;

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static block blocks[MOST];
static int block_count;
static bool idle; /* no kernel is run, nothing multiplied */
static context primary[DEVICES];
static unsigned long long last_id;
static _Thread_local context *current;
static op *queue;       /* oldest first */
static void *capturing; /* the stream whose work goes into `graph` instead */
static op *graph;
static stream streams[64];
static int stream_count;
static uint64_t random_state = 1;
static cubin cubins[512];
static int cubin_count, toolkit;
static const char *pinned, *pinned_end;
static bool started;
static long owner; /* process that called cuInit */
static int sticky; /* after a kernel failed */
static long launches, waits, modules;
static char problem[512];
static struct {
    char name[64];
    int nth, code;
} failure;

static struct {
    const rap_emu_kernel *table;
    int count;
    int (*launch)(rap_emu_fn, const unsigned *, const unsigned *, size_t, void **,
                  uint64_t);
    const char *(*error)(void);
} kernels;

static uint64_t
draw(void)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state;
}

static void
complain(const char *what, const char *of)
{
    if (problem[0] == '\0') {
        snprintf(problem, sizeof(problem), "%s: %s", of, what);
    }
}

/* The code that this call must answer instead of doing anything, or 0. */
static int
injected(const char *name)
{
    if (failure.nth > 0 && strcmp(failure.name, name) == 0 && --failure.nth == 0) {
        return failure.code;
    }
    return 0;
}

#define ENTER(name, needs_context)                            \
    int code = injected(name);                                \
    if (code == 0 && (!started || owner != (long)getpid())) { \
        code = NOT_INITIALIZED;                               \
    }                                                         \
    if (code == 0 && (needs_context) && current == NULL) {    \
        code = INVALID_CONTEXT;                               \
    }                                                         \
    if (code == 0 && (needs_context) && current->id == 0) {   \
        code = CONTEXT_IS_DESTROYED;                          \
    }                                                         \
    if (code != 0) {                                          \
        return code;                                          \
    }

/* --- memory -------------------------------------------------------------------------- */

static void
protect(int how)
{
    for (int i = 0; i < block_count; i++) {
        if (blocks[i].live) {
            mprotect(blocks[i].map, blocks[i].pages, how);
        }
    }
}

static block *
block_of(uint64_t pointer)
{
    for (int i = 0; i < block_count; i++) {
        const block *b = &blocks[i];

        if (b->live && (char *)pointer >= b->at
            && (char *)pointer < b->at + (b->bytes > 0 ? b->bytes : 1))
        {
            return &blocks[i];
        }
    }
    return NULL;
}

/* Only now may the addresses of what was freed be given out again. */
static void
forget_dead(void)
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    int kept = 0;

    for (int i = 0; i < block_count; i++) {
        if (blocks[i].live) {
            blocks[kept++] = blocks[i];
        }
        else {
            munmap(blocks[i].map, blocks[i].pages + page);
        }
    }
    block_count = kept;
    if (kept == MOST) {
        abort();
    }
}

static uint64_t
allocate(int device, size_t bytes)
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    size_t taken = (bytes + ALIGN - 1) / ALIGN * ALIGN;
    size_t pages = (taken + page - 1) / page * page;
    block *b;

    if (bytes > MEMORY) {
        return 0;
    }
    if (block_count == MOST) {
        forget_dead();
    }
    b = &blocks[block_count++];
    pages = pages > 0 ? pages : page;
    *b = (block){.pages = pages, .bytes = bytes, .device = device, .live = true};
    b->map = mmap(NULL, pages + page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (b->map == MAP_FAILED) {
        block_count--;
        return 0;
    }
    mprotect(b->map, pages, PROT_READ | PROT_WRITE);
    /* NaN in every float type, -1 in every integer; idle, around the block only */
    memset(b->map, 0xFF, idle ? pages - taken : pages);
    memset(b->map + pages - taken + bytes, 0xFF, taken - bytes);
    mprotect(b->map, pages, PROT_NONE);
    b->at = b->map + pages - taken;
    return (uint64_t)b->at;
}

/* Bytes around the block must still be what allocate wrote. With memory open. */
static void
check_edges(const block *b, const char *of)
{
    const char *const parts[2][2] = {{b->map, b->at},
                                     {b->at + b->bytes, b->map + b->pages}};

    for (int i = 0; i < 2; i++) {
        for (const char *p = parts[i][0]; p < parts[i][1]; p++) {
            if ((unsigned char)*p != 0xFF) {
                complain("wrote outside its memory", of);
                return;
            }
        }
    }
}

/* The address stays taken, so that a late use is a fault and no other block's. */
static void
release_block(block *b)
{
    mprotect(b->map, b->pages, PROT_READ | PROT_WRITE);
    check_edges(b, "free");
    mprotect(b->map, b->pages, PROT_NONE);
    madvise(b->map, b->pages, MADV_DONTNEED);
    b->live = false;
}

/* --- streams ------------------------------------------------------------------------- */

static bool
is_legacy(const void *s)
{
    return s == NULL || s == (void *)1;
}

static bool
is_blocking(const void *s)
{
    return is_legacy(s) || s == (void *)2;
}

/* Work on these two streams runs in the order in which it was queued. */
static bool
are_ordered(const void *s, const void *t)
{
    return s == t || (is_legacy(s) && is_blocking(t)) || (is_blocking(s) && is_legacy(t));
}

/* No older work that this must wait for. */
static bool
is_ready(const op *o)
{
    for (const op *before = queue; before != o; before = before->next) {
        if (are_ordered(before->stream, o->stream)) {
            return false;
        }
    }
    return true;
}

static void
run_op(op *o)
{
    op **at = &queue;

    while (*at != o) {
        at = &(*at)->next;
    }
    *at = o->next;
    protect(PROT_READ | PROT_WRITE);
    o->run(o);
    protect(PROT_NONE);
    free(o->copy);
    free(o);
}

/* Everything that `wanted` must wait for, and by chance some that it need not. */
static void
drain(const void *wanted, bool all)
{
    for (;;) {
        op *ready[64];
        int count = 0;
        bool needed = false;

        for (op *o = queue; o != NULL; o = o->next) {
            needed = needed || all || are_ordered(o->stream, wanted);
            if (count < 64 && is_ready(o)) {
                ready[count++] = o;
            }
        }
        if (!needed || count == 0) {
            return;
        }
        run_op(ready[draw() % (uint64_t)count]);
    }
}

static void
enqueue(op *o)
{
    op **at = capturing != NULL && o->stream == capturing ? &graph : &queue;

    while (*at != NULL) {
        at = &(*at)->next;
    }
    o->next = NULL;
    *at = o;
}

static op *
new_op(void *on, void (*run)(op *))
{
    op *o = calloc(1, sizeof(*o));

    if (o == NULL) {
        abort();
    }
    o->stream = on;
    o->run = run;
    return o;
}

static bool
stream_is_known(const void *s, int device)
{
    if (is_legacy(s) || s == (void *)2) {
        return true;
    }
    for (int i = 0; i < stream_count; i++) {
        if (s == &streams[i]) {
            return streams[i].device == device;
        }
    }
    return false;
}

static void
run_kernel(op *o)
{
    void *params[] = {o->copy};

    if (!idle && sticky == 0
        && kernels.launch(o->kernel->fn, o->grid, o->block, 0, params, draw()) != 0)
    {
        sticky = LAUNCH_FAILED;
        complain(kernels.error(), o->kernel->name);
    }
    for (int i = 0; i < block_count; i++) {
        if (blocks[i].live) {
            check_edges(&blocks[i], o->kernel->name);
        }
    }
}

static void
run_upload(op *o)
{
    memcpy((void *)o->device_at, o->copy != NULL ? o->copy : o->host_at, o->bytes);
}

static void
run_download(op *o)
{
    memcpy(o->host_at, (const void *)o->device_at, o->bytes);
}

static void
run_release(op *o)
{
    block *b = block_of(o->device_at);

    if (b == NULL) {
        complain("freed twice, or never allocated", "free");
        return;
    }
    release_block(b);
}

static void
run_call(op *o)
{
    if (!idle) {
        o->fn(o->host_at);
    }
    free(o->host_at);
}

/* --- kernels ------------------------------------------------------------------------- */

static void
load_kernels(void)
{
    const char *path = getenv("RAP_EMU_KERNELS");
    void *library = path != NULL ? dlopen(path, RTLD_NOW | RTLD_LOCAL) : NULL;
    const rap_emu_kernel *(*table)(int *);

    if (library == NULL) {
        return;
    }
    table = (const rap_emu_kernel *(*)(int *))dlsym(library, "rap_emu_table");
    kernels.launch = (int (*)(rap_emu_fn, const unsigned *, const unsigned *, size_t,
                              void **, uint64_t))dlsym(library, "rap_emu_launch");
    kernels.error = (const char *(*)(void))dlsym(library, "rap_emu_error");
    kernels.table = table(&kernels.count);
}

static void
load_cubins(void)
{
    const char *path = getenv("RAP_FAKE_CUBINS");
    FILE *file = path != NULL ? fopen(path, "r") : NULL;
    cubin *c = cubins;

    if (file == NULL || fscanf(file, "toolkit %d", &toolkit) != 1) {
        complain("no list of what the fat binaries hold", "RAP_FAKE_CUBINS");
    }
    while (file != NULL && cubin_count < 512
           && fscanf(file, "%llx %d %63s %zu %u %zu", &c->image, &c->arch, c->name,
                     &c->param_size, &c->most_threads, &c->shared)
                  == 6)
    {
        c++, cubin_count++;
    }
    if (file != NULL) {
        fclose(file);
    }
}

static int
number(const char *name, int otherwise)
{
    const char *text = getenv(name);

    return text != NULL ? atoi(text) : otherwise;
}

/* FNV-1a over a fat binary: its header says how long it is. */
static unsigned long long
hash_of(const unsigned char *image)
{
    uint16_t head;
    uint64_t size;
    unsigned long long hash = 0xCBF29CE484222325u;

    memcpy(&head, image + 6, sizeof(head));
    memcpy(&size, image + 8, sizeof(size));
    for (uint64_t i = 0; i < head + size; i++) {
        hash = (hash ^ image[i]) * 0x100000001B3u;
    }
    return hash;
}

/* The code of the image that the device runs: machine code of its own major number and no
 * later minor one, else what the driver makes of the PTX of the least. 0, or why not. */
static int
choose_code(unsigned long long image, int *arch)
{
    const int device = number("RAP_FAKE_ARCH", 86),
              driver = number("RAP_FAKE_DRIVER", 13000);
    int least = 0;

    *arch = 0;
    for (int i = 0; i < cubin_count; i++) {
        const int a = cubins[i].arch;

        if (cubins[i].image == image) {
            least = least == 0 || a < least ? a : least;
            *arch = a / 10 == device / 10 && a <= device && a > *arch ? a : *arch;
        }
    }
    if (least == 0 || driver / 1000 < toolkit / 1000) {
        return INVALID_IMAGE;
    }
    if (*arch == 0 && device < least) {
        return NO_BINARY_FOR_GPU;
    }
    if (*arch == 0 && driver < toolkit) {
        return UNSUPPORTED_PTX;
    }
    *arch = *arch != 0 ? *arch : least;
    return 0;
}

static const cubin *
find_cubin(const module *m, const char *name)
{
    for (int i = 0; i < cubin_count; i++) {
        const cubin *c = &cubins[i];

        if (c->image == m->image && c->arch == m->arch && strcmp(c->name, name) == 0) {
            return c;
        }
    }
    return NULL;
}

/* --- the driver's entry points ------------------------------------------------------- */

/* RAP_FAKE_THREADS: fewer fibers, where a kernel is right for any number of threads. */
static unsigned
threads(const char *name, unsigned asked)
{
    const char *most = getenv("RAP_FAKE_THREADS");
    const bool any = strncmp(name, "rap_ace", 7) == 0 || strncmp(name, "rap_cde", 7) == 0;

    return most != NULL && any && (unsigned)atoi(most) < asked ? (unsigned)atoi(most)
                                                               : asked;
}

#define API RAP_FAKE_PUBLIC int

API
cuInit(unsigned flags)
{
    const char *seed = getenv("RAP_FAKE_SEED");
    int code = injected("cuInit");

    if (code != 0) {
        return code;
    }
    if (started && owner != (long)getpid()) {
        return NOT_INITIALIZED;
    }
    if (!started) {
        random_state = 0x9E3779B97F4A7C15u * (1 + (seed ? strtoull(seed, NULL, 10) : 0));
        load_kernels();
        load_cubins();
        owner = (long)getpid();
        started = true;
    }
    return flags == 0 ? 0 : INVALID_VALUE;
}

API
cuDriverGetVersion(int *version)
{
    *version = number("RAP_FAKE_DRIVER", 13000);
    return injected("cuDriverGetVersion");
}

API
cuGetErrorName(int result, const char **text)
{
    static const struct {
        int code;
        const char *name;
    } names[] = {
        {1, "CUDA_ERROR_INVALID_VALUE"},    {2, "CUDA_ERROR_OUT_OF_MEMORY"},
        {100, "CUDA_ERROR_NO_DEVICE"},      {201, "CUDA_ERROR_INVALID_CONTEXT"},
        {400, "CUDA_ERROR_INVALID_HANDLE"}, {709, "CUDA_ERROR_CONTEXT_IS_DESTROYED"},
        {719, "CUDA_ERROR_LAUNCH_FAILED"}};

    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        if (names[i].code == result) {
            *text = names[i].name;
            return 0;
        }
    }
    *text = NULL;
    return INVALID_VALUE;
}

API
cuGetErrorString(int result, const char **text)
{
    *text = "as the fake driver was told";
    return result == 0 ? INVALID_VALUE : 0;
}

API
cuDeviceGetCount(int *count)
{
    ENTER("cuDeviceGetCount", false)
    *count = DEVICES;
    return 0;
}

API
cuDeviceGet(int *device, int ordinal)
{
    ENTER("cuDeviceGet", false)
    if (ordinal < 0 || ordinal >= DEVICES) {
        return INVALID_DEVICE;
    }
    *device = 10 + ordinal; /* a handle, not the ordinal */
    return 0;
}

API
cuDeviceGetName(char *name, int size, int device)
{
    ENTER("cuDeviceGetName", false)
    snprintf(name, (size_t)size, "fake device %d", device - 10);
    return 0;
}

API
cuDeviceGetAttribute(int *value, int attribute, int device)
{
    ENTER("cuDeviceGetAttribute", false)
    (void)device;
    *value = number("RAP_FAKE_ARCH", 86);
    *value = attribute == 75 ? *value / 10 : attribute == 76 ? *value % 10 : 0;
    return 0;
}

API
cuCtxGetCurrent(void **at)
{
    ENTER("cuCtxGetCurrent", false)
    *at = current;
    return 0;
}

API
cuCtxSetCurrent(void *to)
{
    ENTER("cuCtxSetCurrent", false)
    current = to;
    return 0;
}

API
cuCtxGetDevice(int *device)
{
    ENTER("cuCtxGetDevice", true)
    *device = 10 + current->device;
    return 0;
}

API
cuCtxGetId(void *of, unsigned long long *id)
{
    ENTER("cuCtxGetId", false)
    *id = ((context *)of)->id;
    return *id != 0 ? 0 : CONTEXT_IS_DESTROYED;
}

API
cuDevicePrimaryCtxRetain(void **at, int device)
{
    context *c = &primary[device - 10];

    ENTER("cuDevicePrimaryCtxRetain", false)
    if (c->id == 0) {
        *c = (context){.device = device - 10, .id = ++last_id};
    }
    c->retained++;
    *at = c;
    return 0;
}

API
cuDevicePrimaryCtxRelease_v2(int device)
{
    ENTER("cuDevicePrimaryCtxRelease", false)
    if (--primary[device - 10].retained < 0) {
        complain("released more often than retained", "context");
    }
    return 0;
}

API
cuModuleLoadData(void **at, const void *image)
{
    module *m;
    unsigned long long hash;
    int arch;

    ENTER("cuModuleLoadData", true)
    if (capturing != NULL) {
        return CAPTURE_UNSUPPORTED;
    }
    if (*(const uint32_t *)image != 0xBA55ED50u) {
        return INVALID_IMAGE;
    }
    hash = hash_of(image);
    code = choose_code(hash, &arch);
    if (code != 0) {
        return code;
    }
    m = calloc(1, sizeof(*m));
    *m = (module){current, current->id, hash, arch};
    modules++;
    *at = m;
    return 0;
}

API
cuModuleGetFunction(void **at, void *of, const char *name)
{
    const module *m = of;
    const cubin *found;

    ENTER("cuModuleGetFunction", true)
    if (m->context != current || m->id != current->id) {
        return INVALID_HANDLE;
    }
    found = find_cubin(m, name);
    for (int i = 0; found != NULL && i < kernels.count; i++) {
        if (strcmp(kernels.table[i].name, name) == 0) {
            function *f = calloc(1, sizeof(*f));

            if (kernels.table[i].param_size != found->param_size) {
                complain("has other parameters in the fat binary", name);
                return NOT_FOUND;
            }
            *f = (function){*m, &kernels.table[i], found};
            *at = f;
            return 0;
        }
    }
    complain("is not in this fat binary", name);
    return NOT_FOUND;
}

API
cuLaunchKernel(void *of, unsigned grid_x, unsigned grid_y, unsigned grid_z,
               unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared,
               void *on, void **params, void **extra)
{
    const function *f = of;
    op *o;

    ENTER("cuLaunchKernel", true)
    launches++;
    if (f->module.context != current || f->module.id != current->id
        || !stream_is_known(on, current->device))
    {
        return INVALID_HANDLE;
    }
    if (grid_x < 1 || grid_x > 0x7fffffffu || grid_y != 1 || grid_z != 1 || block_x < 1
        || block_x > f->cubin->most_threads || block_y != 1 || block_z != 1
        || f->cubin->shared + shared > MOST_SHARED || shared != 0 || extra != NULL)
    {
        complain("launch limits", f->kernel->name);
        return INVALID_VALUE;
    }
    o = new_op(on, run_kernel);
    o->kernel = f->kernel;
    memcpy(o->grid, (unsigned[]){grid_x, 1, 1}, sizeof(o->grid));
    memcpy(o->block, (unsigned[]){threads(f->kernel->name, block_x), 1, 1},
           sizeof(o->block));
    o->copy = malloc(f->kernel->param_size);
    memcpy(o->copy, params[0], f->kernel->param_size);
    pthread_mutex_lock(&mutex);
    enqueue(o);
    pthread_mutex_unlock(&mutex);
    return 0;
}

API
cuPointerGetAttribute(void *value, int attribute, uint64_t pointer)
{
    const block *b;

    ENTER("cuPointerGetAttribute", false)
    b = block_of(pointer);
    if (b == NULL) {
        return INVALID_VALUE;
    }
    *(int *)value = attribute == 2 ? 2 : b->device;
    return attribute == 2 || attribute == 9 ? 0 : INVALID_VALUE;
}

API
cuMemAllocAsync(uint64_t *pointer, size_t bytes, void *on)
{
    ENTER("cuMemAllocAsync", true)
    if (bytes == 0 || !stream_is_known(on, current->device)) {
        return INVALID_VALUE;
    }
    pthread_mutex_lock(&mutex);
    *pointer = allocate(current->device, bytes);
    pthread_mutex_unlock(&mutex);
    return *pointer != 0 ? 0 : 2;
}

API
cuMemFreeAsync(uint64_t pointer, void *on)
{
    ENTER("cuMemFreeAsync", true)
    if (!stream_is_known(on, current->device)) {
        return INVALID_HANDLE;
    }
    rap_fake_release(pointer, on);
    return 0;
}

static bool
in_range(uint64_t pointer, size_t bytes)
{
    const block *b = block_of(pointer);

    return b != NULL && (char *)pointer + bytes <= b->at + b->bytes;
}

/* From pageable memory the bytes are taken now and arrive late; pinned memory is read when
 * the copy is done. */
API
cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t bytes, void *on)
{
    op *o;

    ENTER("cuMemcpyHtoDAsync", true)
    if (!in_range(to, bytes)) {
        return INVALID_VALUE;
    }
    o = new_op(on, run_upload);
    if (((const char *)from >= pinned && (const char *)from < pinned_end)
        || (capturing != NULL && on == capturing))
    {
        o->host_at = (void *)from;
    }
    else {
        o->copy = malloc(bytes);
        memcpy(o->copy, from, bytes);
    }
    o->device_at = to;
    o->bytes = bytes;
    pthread_mutex_lock(&mutex);
    enqueue(o);
    pthread_mutex_unlock(&mutex);
    return 0;
}

API
cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t bytes, void *on)
{
    op *o;

    ENTER("cuMemcpyDtoHAsync", true)
    if (!in_range(from, bytes)) {
        return INVALID_VALUE;
    }
    o = new_op(on, run_download);
    o->host_at = to;
    o->device_at = from;
    o->bytes = bytes;
    pthread_mutex_lock(&mutex);
    enqueue(o);
    pthread_mutex_unlock(&mutex);
    return 0;
}

API
cuStreamSynchronize(void *on)
{
    ENTER("cuStreamSynchronize", true)
    if (capturing != NULL && on == capturing) {
        complain("waited for", "a graph that is being captured");
        return CAPTURE_UNSUPPORTED;
    }
    waits++;
    pthread_mutex_lock(&mutex);
    drain(on, false);
    pthread_mutex_unlock(&mutex);
    return sticky;
}

API
cuStreamIsCapturing(void *on, int *status)
{
    ENTER("cuStreamIsCapturing", true)
    *status = capturing != NULL && on == capturing;
    return capturing != NULL && is_legacy(on) ? CAPTURE_IMPLICIT : 0;
}

#ifndef RAP_FAKE_OLD /* a driver from before cuGetProcAddress */
API
cuGetProcAddress_v2(const char *name, void **at, int version, uint64_t flags, int *found)
{
    static const struct {
        const char *name;
        void *at;
    } known[] = {
        {"cuInit", (void *)cuInit},
        {"cuDriverGetVersion", (void *)cuDriverGetVersion},
        {"cuGetErrorName", (void *)cuGetErrorName},
        {"cuGetErrorString", (void *)cuGetErrorString},
        {"cuDeviceGetCount", (void *)cuDeviceGetCount},
        {"cuDeviceGet", (void *)cuDeviceGet},
        {"cuDeviceGetName", (void *)cuDeviceGetName},
        {"cuDeviceGetAttribute", (void *)cuDeviceGetAttribute},
        {"cuCtxGetCurrent", (void *)cuCtxGetCurrent},
        {"cuCtxSetCurrent", (void *)cuCtxSetCurrent},
        {"cuCtxGetDevice", (void *)cuCtxGetDevice},
        {"cuCtxGetId", (void *)cuCtxGetId},
        {"cuDevicePrimaryCtxRetain", (void *)cuDevicePrimaryCtxRetain},
        {"cuDevicePrimaryCtxRelease", (void *)cuDevicePrimaryCtxRelease_v2},
        {"cuModuleLoadData", (void *)cuModuleLoadData},
        {"cuModuleGetFunction", (void *)cuModuleGetFunction},
        {"cuLaunchKernel", (void *)cuLaunchKernel},
        {"cuPointerGetAttribute", (void *)cuPointerGetAttribute},
        {"cuMemAllocAsync", (void *)cuMemAllocAsync},
        {"cuMemFreeAsync", (void *)cuMemFreeAsync},
        {"cuMemcpyHtoDAsync", (void *)cuMemcpyHtoDAsync_v2},
        {"cuMemcpyDtoHAsync", (void *)cuMemcpyDtoHAsync_v2},
        {"cuStreamSynchronize", (void *)cuStreamSynchronize},
        {"cuStreamIsCapturing", (void *)cuStreamIsCapturing},
    };
    const char *missing = getenv("RAP_FAKE_MISSING");

    (void)found;
    *at = NULL;
    if (version < 12000 || flags != 0) {
        return INVALID_VALUE;
    }
    for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++) {
        if (strcmp(known[i].name, name) == 0
            && (missing == NULL || strcmp(missing, name) != 0))
        {
            *at = known[i].at;
            return 0;
        }
    }
    return NOT_FOUND;
}
#endif

/* --- for tests ----------------------------------------------------------------------- */

RAP_FAKE_PUBLIC uint64_t
rap_fake_alloc(int device, size_t bytes)
{
    uint64_t pointer;

    pthread_mutex_lock(&mutex);
    pointer = allocate(device, bytes);
    pthread_mutex_unlock(&mutex);
    return pointer;
}

RAP_FAKE_PUBLIC void
rap_fake_release(uint64_t pointer, void *on)
{
    op *o = new_op(on, run_release);

    o->device_at = pointer;
    pthread_mutex_lock(&mutex);
    enqueue(o);
    pthread_mutex_unlock(&mutex);
}

static int
copy_now(void *to, const void *from, size_t bytes)
{
    pthread_mutex_lock(&mutex);
    drain(NULL, true);
    protect(PROT_READ | PROT_WRITE);
    memcpy(to, from, bytes);
    protect(PROT_NONE);
    pthread_mutex_unlock(&mutex);
    return sticky;
}

RAP_FAKE_PUBLIC int
rap_fake_write(uint64_t to, const void *from, size_t bytes)
{
    return copy_now((void *)to, from, bytes);
}

RAP_FAKE_PUBLIC int
rap_fake_read(void *to, uint64_t from, size_t bytes)
{
    return copy_now(to, (const void *)from, bytes);
}

RAP_FAKE_PUBLIC void *
rap_fake_stream(int device)
{
    streams[stream_count].device = device;
    return &streams[stream_count++];
}

RAP_FAKE_PUBLIC void
rap_fake_lose_stream(void *on)
{
    pthread_mutex_lock(&mutex);
    drain(on, false);
    ((stream *)on)->device = -1;
    pthread_mutex_unlock(&mutex);
}

RAP_FAKE_PUBLIC void
rap_fake_capture(void *on)
{
    pthread_mutex_lock(&mutex);
    capturing = on;
    pthread_mutex_unlock(&mutex);
}

static void *
copy_of(void *block)
{
    const size_t bytes = block != NULL ? malloc_usable_size(block) : 0;

    return block != NULL ? memcpy(malloc(bytes), block, bytes) : NULL;
}

RAP_FAKE_PUBLIC void
rap_fake_replay(void)
{
    pthread_mutex_lock(&mutex);
    for (const op *o = graph; o != NULL; o = o->next) {
        op *again = new_op(o->stream, o->run);

        *again = *o;
        again->next = NULL;
        again->copy = copy_of(o->copy);
        again->host_at = o->run == run_call ? copy_of(o->host_at) : o->host_at;
        enqueue(again);
    }
    pthread_mutex_unlock(&mutex);
}

RAP_FAKE_PUBLIC void
rap_fake_pin(const void *from, size_t bytes)
{
    pinned = from;
    pinned_end = pinned + bytes;
}

RAP_FAKE_PUBLIC unsigned long long
rap_fake_context(void)
{
    return current != NULL ? current->id : 0;
}

RAP_FAKE_PUBLIC void
rap_fake_queue(void *on, void (*fn)(void *), void *arg)
{
    op *o = new_op(on, run_call);

    o->fn = fn;
    o->host_at = arg;
    pthread_mutex_lock(&mutex);
    enqueue(o);
    pthread_mutex_unlock(&mutex);
}

RAP_FAKE_PUBLIC void
rap_fake_fail(const char *name, int nth, int with)
{
    snprintf(failure.name, sizeof(failure.name), "%s", name);
    failure.nth = nth;
    failure.code = with;
}

RAP_FAKE_PUBLIC void
rap_fake_reset(int device)
{
    pthread_mutex_lock(&mutex);
    drain(NULL, true);
    primary[device] = (context){.device = device};
    sticky = 0;
    pthread_mutex_unlock(&mutex);
}

RAP_FAKE_PUBLIC long
rap_fake_count(const char *what)
{
    long count = 0;

    if (strcmp(what, "launches") == 0) {
        return launches;
    }
    if (strcmp(what, "waits") == 0) {
        return waits;
    }
    if (strcmp(what, "modules") == 0) {
        return modules;
    }
    if (strcmp(what, "bound") == 0) {
        return current != NULL;
    }
    if (strcmp(what, "retained") == 0) {
        return primary[0].retained + primary[1].retained;
    }
    if (strcmp(what, "queued") == 0) {
        for (const op *o = queue; o != NULL; o = o->next) {
            count++;
        }
        return count;
    }
    for (int i = 0; i < block_count; i++) {
        count += blocks[i].live;
    }
    return count;
}

/* Kernels and products are queued and not run: what is looked at is the host's doing. */
RAP_FAKE_PUBLIC void
rap_fake_idle(int on)
{
    idle = on != 0;
}

RAP_FAKE_PUBLIC const char *
rap_fake_problem(void)
{
    return problem;
}
