/* SPDX-License-Identifier: Apache-2.0
 *
 * Preloaded: counts what a process changes below one folder (opens for writing, writes,
 * syncs, renames, removals, new folders) and does harm at the n-th such call. The plan is
 * told by chaos_plan(), or to a process that others start in its environment:
 *
 *     CHAOS_PLAN="HOW WHAT NTH WITH BELOW\nMARK"
 *
 * MARK: a file that is made by the process that is harmed; the others then are not.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { NOTHING, KILL_BEFORE, KILL_AFTER, SIGNAL, FAIL, FAIL_ON, NO_MEMORY };
enum { OPEN = 1, WRITE = 2, SYNC = 4, RENAME = 8, REMOVE = 16, FOLDER = 32 };

static char folder[PATH_MAX], mark[PATH_MAX];
static int harm, kinds, value;
static long nth;
static atomic_long count, of_kind[6];

/* `what`: kinds of calls that are counted, bits. `with`: a signal, an errno or bytes. */
void
chaos_plan(const char *below, int how, int what, long at, int with)
{
    strncpy(folder, below, sizeof(folder) - 1);
    harm = how;
    kinds = what;
    nth = at;
    value = with;
    atomic_store(&count, 0);
    for (int i = 0; i < 6; i++) {
        atomic_store(&of_kind[i], 0);
    }
}

__attribute__((constructor)) static void
plan_of_environment(void)
{
    const char *told = getenv("CHAOS_PLAN");
    char below[PATH_MAX];
    int how, what, with;
    long at;

    if (told != NULL
        && sscanf(told, "%d %d %ld %d %4095[^\n]\n%4095[^\n]", &how, &what, &at, &with,
                  below, mark)
               == 6)
    {
        chaos_plan(below, how, what, at, with);
    }
}

/* Whether this process is the one to harm. */
static int
is_mine(void)
{
    static atomic_int mine; /* 0: not known yet */
    int found = atomic_load(&mine);

    if (mark[0] == '\0') {
        return 1;
    }
    if (found == 0) {
        const long fd =
            syscall(SYS_openat, AT_FDCWD, mark, O_CREAT | O_EXCL | O_WRONLY, 0644);

        found = fd >= 0 ? 1 : -1;
        if (fd >= 0) {
            close((int)fd);
        }
        atomic_store(&mine, found);
    }
    return found > 0;
}

/* Calls so far: those that are counted for the harm, and those of the i-th kind. */
long
chaos_count(void)
{
    return atomic_load(&count);
}

long
chaos_of_kind(int i)
{
    return atomic_load(&of_kind[i]);
}

static int
is_below(const char *path)
{
    char whole[2 * PATH_MAX];
    const size_t n = strlen(folder);

    if (path == NULL || n == 0) {
        return 0;
    }
    if (path[0] != '/') {
        char here[PATH_MAX];

        if (getcwd(here, sizeof(here)) == NULL) {
            return 0;
        }
        snprintf(whole, sizeof(whole), "%s/%s", here, path);
        path = whole;
    }
    return strncmp(path, folder, n) == 0;
}

static int
is_file_below(int fd)
{
    char name[64], path[PATH_MAX];
    ssize_t n;

    if (folder[0] == '\0') {
        return 0;
    }
    snprintf(name, sizeof(name), "/proc/self/fd/%d", fd);
    n = readlink(name, path, sizeof(path) - 1);
    if (n < 0) {
        return 0;
    }
    path[n] = '\0';
    return is_below(path);
}

/* No more address space than there is now and some more. */
static void
take_memory(long more)
{
    struct rlimit limit;
    FILE *file = fopen("/proc/self/statm", "r");
    long pages = 0;

    if (file == NULL || fscanf(file, "%ld", &pages) != 1) {
        pages = 0;
    }
    if (file != NULL) {
        fclose(file);
    }
    limit.rlim_cur = limit.rlim_max = (rlim_t)(pages * sysconf(_SC_PAGESIZE) + more);
    setrlimit(RLIMIT_AS, &limit);
}

/* Before a call of this kind: an errno that it is to fail with, 0: it may go on; *last: the
 * process ends after it. */
static int
before(int kind, int below, int *last)
{
    long at;

    *last = 0;
    if (!below) {
        return 0;
    }
    atomic_fetch_add(&of_kind[__builtin_ctz((unsigned)kind)], 1);
    if (!(kinds & kind)) {
        return 0;
    }
    at = atomic_fetch_add(&count, 1) + 1;
    if (harm == NOTHING || at < nth || (at > nth && harm != FAIL_ON) || !is_mine()) {
        return 0;
    }
    switch (harm) {
    case KILL_BEFORE:
        kill(getpid(), SIGKILL);
        break;
    case KILL_AFTER:
        *last = 1;
        break;
    case SIGNAL:
        kill(getpid(), value);
        break;
    case FAIL:
    case FAIL_ON:
        return value;
    case NO_MEMORY:
        take_memory(value);
        break;
    default:
        break;
    }
    return 0;
}

static void
after(int last)
{
    if (last) {
        kill(getpid(), SIGKILL);
    }
}

#define NEXT(name) ((name##_call *)dlsym(RTLD_NEXT, #name))

/* A function of two or three plain arguments. */
#define WRAP(type, name, kind, below, parameters, arguments) \
    typedef type name##_call parameters;                     \
    type name parameters                                     \
    {                                                        \
        int last, error = before(kind, below, &last);        \
        type found;                                          \
                                                             \
        if (error) {                                         \
            errno = error;                                   \
            return -1;                                       \
        }                                                    \
        found = NEXT(name) arguments;                        \
        after(last);                                         \
        return found;                                        \
    }

WRAP(int, fsync, SYNC, is_file_below(fd), (int fd), (fd))
WRAP(int, fdatasync, SYNC, is_file_below(fd), (int fd), (fd))
WRAP(int, rename, RENAME, is_below(to), (const char *from, const char *to), (from, to))
WRAP(int, unlink, REMOVE, is_below(path), (const char *path), (path))
WRAP(int, unlinkat, REMOVE, is_file_below(fd) || is_below(path),
     (int fd, const char *path, int flags), (fd, path, flags))
WRAP(int, rmdir, REMOVE, is_below(path), (const char *path), (path))
WRAP(int, mkdir, FOLDER, is_below(path), (const char *path, mode_t mode), (path, mode))
WRAP(int, link, RENAME, is_below(to), (const char *from, const char *to), (from, to))
WRAP(int, ftruncate64, WRITE, is_file_below(fd), (int fd, off64_t size), (fd, size))
WRAP(ssize_t, pwrite64, WRITE, is_file_below(fd),
     (int fd, const void *from, size_t n, off64_t at), (fd, from, n, at))

typedef ssize_t write_call(int, const void *, size_t);

/* A write that is to fail, or the last, is half done: a disk that is full takes what it can. */
ssize_t
write(int fd, const void *from, size_t n)
{
    int last, error = before(WRITE, fd > 2 && is_file_below(fd), &last);
    const size_t half = n > 1 && (error || last) ? n / 2 : n;
    ssize_t found;

    if (error && half == n) {
        errno = error;
        return -1;
    }
    found = NEXT(write)(fd, from, half);
    after(last);
    if (error) {
        errno = error;
        return -1;
    }
    return found;
}

typedef ssize_t writev_call(int, const struct iovec *, int);

/* As ``write``: of several pieces the first. */
ssize_t
writev(int fd, const struct iovec *pieces, int n)
{
    int last, error = before(WRITE, fd > 2 && is_file_below(fd), &last);
    ssize_t found;

    if (error && n < 2) {
        errno = error;
        return -1;
    }
    found = NEXT(writev)(fd, pieces, n > 1 && (error || last) ? 1 : n);
    after(last);
    if (error) {
        errno = error;
        return -1;
    }
    return found;
}

/* C++'s streams open files by these. */
#define WRAP_FOPEN(name)                                                                 \
    typedef FILE *name##_call(const char *, const char *);                               \
    FILE *name(const char *path, const char *mode)                                       \
    {                                                                                    \
        int last,                                                                        \
            error = before(OPEN, strpbrk(mode, "wa+") != NULL && is_below(path), &last); \
        FILE *found;                                                                     \
                                                                                         \
        if (error) {                                                                     \
            errno = error;                                                               \
            return NULL;                                                                 \
        }                                                                                \
        found = NEXT(name)(path, mode);                                                  \
        after(last);                                                                     \
        return found;                                                                    \
    }

WRAP_FOPEN(fopen)
WRAP_FOPEN(fopen64)

#define WRAP_OPEN(name)                                                  \
    typedef int name##_call(const char *, int, ...);                     \
    int name(const char *path, int flags, ...)                           \
    {                                                                    \
        const int writes = (flags & (O_WRONLY | O_RDWR | O_CREAT)) != 0; \
        int last, error = before(OPEN, writes && is_below(path), &last); \
        va_list more;                                                    \
        mode_t mode;                                                     \
        int found;                                                       \
                                                                         \
        va_start(more, flags);                                           \
        mode = va_arg(more, mode_t);                                     \
        va_end(more);                                                    \
        if (error) {                                                     \
            errno = error;                                               \
            return -1;                                                   \
        }                                                                \
        found = NEXT(name)(path, flags, mode);                           \
        after(last);                                                     \
        return found;                                                    \
    }

WRAP_OPEN(open)
WRAP_OPEN(open64)
