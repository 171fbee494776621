/* SPDX-License-Identifier: Apache-2.0
 *
 * What every binding uses: the module's state, how a call runs, and the one place where
 * a status becomes an exception. A binding is a table (rap_binding); call.h makes calls
 * of it.
 */
#ifndef RAP_BINDING_H
#define RAP_BINDING_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "cpu.h"
#include "parallel.h"

/* Below this much work, in bytes read or written once, a call keeps the GIL and its own
 * thread: releasing and waking costs more. Exported as _C.GIL_BYTES. */
#define RAP_GIL_BYTES 65536

typedef struct {
    PyObject *input_error;  /* rap.errors.RapInputError */
    PyObject *config_error; /* rap.errors.RapConfigError */
    PyObject *device_error; /* rap.errors.RapDeviceError */
    struct rap_pool *pool;
    const rap_kernels *kernels;
    struct rap_cuda *cuda;
    struct rap_blas *blas;
} rap_state;

rap_state *rap_state_of(PyObject *module);

/* Fills exec for a call of so much work; gives up the GIL when it is worth it. No Python
 * between begin and end. */
PyThreadState *rap_begin(PyObject *module, int threads, double work, rap_exec *exec);
void rap_end(PyThreadState *saved, const rap_exec *exec);

/* None, or the exception that err describes. */
PyObject *rap_result(PyObject *module, const rap_error *err);

/* What an array of a call may be. */
enum {
    RAP_OPTIONAL = 1, /* None leaves its view empty */
    RAP_SMALL = 2,    /* of a call on a device: may lie in host memory, is uploaded */
    RAP_HOST = 4,     /* in host memory, wherever the call runs */
    RAP_OUT_F64 = 8,  /* written: made by ops.py for the answer */
    RAP_OUT_I64 = 16,
};

typedef struct {
    const char *name;
    unsigned at;   /* offset of its view in the kernel's arguments */
    unsigned kind; /* bits of the above */
} rap_argument;

struct rap_cuda_call; /* driver.h */

/* A kernel as Python calls it. `args` is its own struct of arguments, rap_NAME_args. The
 * first array says on which device a call runs. */
typedef struct {
    const rap_argument *arguments;
    int count;
    bool (*check)(const void *args, rap_error *err);
    double (*work)(const void *args);                        /* as rap_begin counts it */
    bool (*cpu)(void *args, rap_exec *exec, rap_error *err); /* NULL: on devices only */
    int64_t (*device_bytes)(const void *args);               /* of workspace */
    bool (*device)(void *args, struct rap_cuda_call *call, void *workspace, rap_error *err);
} rap_binding;

/* Where a call runs; the last argument of every kernel in Python. */
typedef struct {
    int threads; /* on the CPU */
    PyObject
        *allocate;    /* on a device, else NULL: number of int64 -> memory of the device */
    long long stream; /* the producer's, as the driver knows it */
} rap_place;

static inline rap_array *
rap_view(const rap_argument *argument, void *args)
{
    return (rap_array *)((char *)args + argument->at);
}

#endif
