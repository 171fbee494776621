/* SPDX-License-Identifier: Apache-2.0
 *
 * Types that every kernel module shares. No Python.h and no CUDA header here: kernels and
 * their drivers see only this file, so they can be built and tested without Python.
 *
 * Vocabulary, the same everywhere: T rows (tokens), V vocabulary, E hidden size,
 * H heads, L sequence length, D head dim, S samples, K top-k.
 */
#ifndef RAP_H
#define RAP_H

#ifndef __cplusplus /* nvcc reads the contracts only, not how a CPU call runs */
#include <stdatomic.h>
#endif
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef enum {
    RAP_OK = 0,
    RAP_EINPUT,     /* shapes or values that cannot be used */
    RAP_ETYPE,      /* not an array, or a dtype that is not supported */
    RAP_EMEMORY,    /* an allocation failed */
    RAP_ECONFIG,    /* CUDA asked for where it cannot be had */
    RAP_EDEVICE,    /* the GPU or its driver failed */
    RAP_EINTERRUPT, /* stopped by a signal: the Python exception is already set */
    RAP_EPYTHON,    /* another Python exception is already set */
} rap_status;

/* Text is written where the error happens; rap_result (binding.c) makes the exception. */
typedef struct {
    rap_status status;
    char text[240];
} rap_error;

typedef enum {
    RAP_F32 = 0,
    RAP_F16,
    RAP_BF16,
    RAP_F64,
    RAP_I64,
    RAP_BOOL,
} rap_dtype;

#define RAP_MAX_NDIM 4

/* A view of somebody's array: strides in elements, never negative size. The owner
 * is released by rap_array_release (array.h); kernels only read the other fields. */
typedef struct {
    void *data;
    int64_t shape[RAP_MAX_NDIM];
    int64_t stride[RAP_MAX_NDIM];
    int ndim;
    rap_dtype dtype;
    bool readonly;
    int device; /* 0: host memory; n + 1: CUDA device n */
    void *owner;
    void (*release)(void *owner);
} rap_array;

struct rap_kernels; /* cpu.h */
struct rap_pool;    /* parallel.h */

#ifndef __cplusplus
/* How one call runs. `poll` is asked now and then on the calling thread; when it
 * answers true the call stops and returns RAP_EINTERRUPT. */
typedef struct {
    int threads;
    struct rap_pool *pool;
    const struct rap_kernels *kernels;
    bool (*poll)(void *arg);
    void *poll_arg;
    double polled; /* seconds, monotonic: when poll was last asked */
    atomic_bool stop;
    uint64_t fp_mode; /* of the calling thread, before the call */
} rap_exec;
#else
typedef struct rap_exec rap_exec;
#endif

#define RAP_MIN(a, b) ((a) < (b) ? (a) : (b))
#define RAP_MAX(a, b) ((a) > (b) ? (a) : (b))

static inline int64_t
rap_ceil_div(int64_t a, int64_t b)
{
    return (a + b - 1) / b;
}

/* Number i of a vector of int64 in host memory. */
static inline int64_t
rap_i64_at(const rap_array *v, int64_t i)
{
    return ((const int64_t *)v->data)[i * v->stride[0]];
}

static inline size_t
rap_dtype_size(rap_dtype dtype)
{
    static const unsigned char size[] = {4, 2, 2, 8, 8, 1};
    return size[dtype];
}

#endif
