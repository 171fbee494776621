/* SPDX-License-Identifier: Apache-2.0 */
#include "status.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

bool
rap_fail(rap_error *err, rap_status status, const char *format, ...)
{
    va_list args;

    if (err->status == RAP_OK) {
        err->status = status;
        va_start(args, format);
        vsnprintf(err->text, sizeof(err->text), format, args);
        va_end(args);
    }
    return false;
}

/* Large blocks are asked for in pages of 2 MiB, where the system gives them on demand: half
 * of a drm call would go into page faults otherwise. No more memory is resident than the
 * block's own, rounded inwards. */
#define HUGE_PAGE ((uintptr_t)2 << 20)

static void
advise_huge(void *block, int64_t bytes)
{
#if defined(MADV_HUGEPAGE)
    uintptr_t begin = ((uintptr_t)block + HUGE_PAGE - 1) & ~(HUGE_PAGE - 1);
    uintptr_t end = ((uintptr_t)block + (uintptr_t)bytes) & ~(HUGE_PAGE - 1);

    if (end > begin) {
        (void)madvise((void *)begin, end - begin, MADV_HUGEPAGE);
    }
#else
    (void)block;
    (void)bytes;
#endif
}

void *
rap_alloc(int64_t bytes, rap_error *err)
{
    void *block = NULL;

    if (bytes < 0 || bytes > INT64_MAX - 64
        || posix_memalign(&block, 64, (size_t)RAP_MAX(bytes, 64)) != 0)
    {
        rap_fail(err, RAP_EMEMORY, "out of memory: %lld bytes", (long long)bytes);
        return NULL;
    }
    advise_huge(block, bytes);
    return block;
}

void
rap_free(void *block)
{
    free(block);
}
