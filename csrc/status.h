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

const char *rap_dtype_name(rap_dtype dtype);

/* Whether x holds numbers that are read as they lie; else says what is taken, and what came.
 * rap.host rounds float64 of NumPy, torch, JAX and lists before. */
bool rap_expect_floats(const rap_array *x, const char *name, rap_error *err);

/* The same, and each of its rows without gaps. */
bool rap_expect_rows(const rap_array *x, const char *name, rap_error *err);

/* Says that x was to be `expected`, and what it is. Always false, as rap_fail. */
bool rap_unexpected(const rap_array *x, const char *name, const char *expected,
                    rap_error *err);

/* The same for a vector [n] of one dtype. */
bool rap_no_vector(const rap_array *x, const char *name, const char *dtype, int64_t n,
                   rap_error *err);

/* 64-byte aligned, not zeroed; NULL and RAP_EMEMORY in err on failure. */
void *rap_alloc(int64_t bytes, rap_error *err);
void rap_free(void *block);

#endif
