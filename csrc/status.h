/* SPDX-License-Identifier: Apache-2.0
 *
 * Errors and memory. A function that can fail takes a rap_error, writes the status and one
 * sentence into it (rap_fail), and returns false; rap_result (binding.c) turns it into the
 * Python exception. All memory of the kernels is allocated by rap_alloc.
 */
#ifndef RAP_STATUS_H
#define RAP_STATUS_H

#include "rap.h"

/* Records the first error only, and always returns false: `return rap_fail(...)`. */
bool rap_fail(rap_error *err, rap_status status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* 64-byte aligned, not zeroed; NULL and RAP_EMEMORY in err on failure. */
void *rap_alloc(int64_t bytes, rap_error *err);
void rap_free(void *block);

#endif
