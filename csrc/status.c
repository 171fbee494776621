/* SPDX-License-Identifier: Apache-2.0 */
#include "status.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

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
    return block;
}

void
rap_free(void *block)
{
    free(block);
}
