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

const char *
rap_dtype_name(rap_dtype dtype)
{
    static const char *const names[] = {"float32", "float16", "bfloat16",
                                        "float64", "int64",   "bool"};
    return names[dtype];
}

bool
rap_expect_floats(const rap_array *x, const char *name, rap_error *err)
{
    if (x->dtype == RAP_F64) {
        return rap_fail(err, RAP_ETYPE,
                        "%s: float64 is taken of NumPy, torch, JAX and lists only; convert "
                        "it to float32",
                        name);
    }
    return x->dtype <= RAP_BF16
           || rap_fail(err, RAP_ETYPE,
                       "%s: expected float32, float64, float16 or bfloat16, got %s", name,
                       rap_dtype_name(x->dtype));
}

bool
rap_expect_rows(const rap_array *x, const char *name, rap_error *err)
{
    const int last = x->ndim - 1;

    if (!rap_expect_floats(x, name, err)) {
        return false;
    }
    return x->shape[last] <= 1 || x->stride[last] == 1
           || rap_fail(err, RAP_EINPUT, "%s: the last dimension must be contiguous", name);
}

bool
rap_unexpected(const rap_array *x, const char *name, const char *expected, rap_error *err)
{
    char shape[24 * RAP_MAX_NDIM + 2] = "";
    int n = 0;

    for (int i = 0; i < x->ndim; i++) {
        n += snprintf(shape + n, sizeof(shape) - (size_t)n, i > 0 ? ", %lld" : "%lld",
                      (long long)x->shape[i]);
    }
    return rap_fail(err, RAP_EINPUT, "%s: expected %s, got %s [%s]", name, expected,
                    rap_dtype_name(x->dtype), shape);
}

bool
rap_no_vector(const rap_array *x, const char *name, const char *dtype, int64_t n,
              rap_error *err)
{
    char expected[48];

    snprintf(expected, sizeof(expected), "%s [%lld]", dtype, (long long)n);
    return rap_unexpected(x, name, expected, err);
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
