/* SPDX-License-Identifier: Apache-2.0
 *
 * What every binding uses: the module's state, how a call runs, and the one place where
 * a status becomes an exception.
 */
#ifndef RAP_MODULE_H
#define RAP_MODULE_H

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

/* Bindings, one a room. */
PyObject *rap_py_cde(PyObject *module, PyObject *args, PyObject *kwargs);
PyObject *rap_py_linear_cde(PyObject *module, PyObject *args, PyObject *kwargs);
PyObject *rap_py_ace(PyObject *module, PyObject *args, PyObject *kwargs);
PyObject *rap_py_drm(PyObject *module, PyObject *args, PyObject *kwargs);
PyObject *rap_py_cde_cuda(PyObject *module, PyObject *args, PyObject *kwargs);
PyObject *rap_py_linear_cde_cuda(PyObject *module, PyObject *args, PyObject *kwargs);
PyObject *rap_py_cde_means_cuda(PyObject *module, PyObject *args, PyObject *kwargs);
PyObject *rap_py_ace_cuda(PyObject *module, PyObject *args, PyObject *kwargs);
PyObject *rap_py_drm_cuda(PyObject *module, PyObject *args, PyObject *kwargs);
bool rap_cuda_rooms_setup(PyObject *module); /* the constant CUDA_ROOMS */
PyObject *rap_py_cuda_info(PyObject *module, PyObject *unused);
PyObject *rap_py_cublaslt(PyObject *module, PyObject *args);
PyObject *rap_py_cuda_alloc(PyObject *module, PyObject *args);
PyObject *rap_py_cuda_read(PyObject *module, PyObject *args);
PyObject *rap_py_cuda_wait(PyObject *module, PyObject *args);
PyObject *rap_py_cuda_device_of(PyObject *module, PyObject *args);
PyObject *rap_py_cuda_dlpack(PyObject *module, PyObject *args);

#endif
