/* SPDX-License-Identifier: Apache-2.0
 *
 * Python object -> rap_array, without a copy: NumPy through its C API, torch through
 * DLPack's C exchange table, any other producer through __dlpack__, then the buffer
 * protocol. The view keeps its owner
 * alive until rap_array_release.
 *
 * Taken: float32, float16, bfloat16 (ml_dtypes or DLPack), float64, int64, bool; native
 * byte order; aligned; at most RAP_MAX_NDIM dimensions; in host memory, or
 * on a CUDA device (rap_array_from_device).
 */
#ifndef RAP_ARRAY_H
#define RAP_ARRAY_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "rap.h"

/* Imports NumPy's C API; once, from the module's exec slot. */
bool rap_array_setup(void);

/* None leaves the view empty (data == NULL) when `optional`. */
bool rap_array_from(PyObject *object, const char *name, bool optional, rap_array *view,
                    rap_error *err);

/* A writable float64 or int64 array made by ops.py for the answer. */
bool rap_array_out(PyObject *object, const char *name, rap_dtype dtype, rap_array *view,
                   rap_error *err);

/* The same for arrays of a call on a CUDA device: view.device says where each lies. Views
 * may be released as soon as the work is queued on `stream`, the producer's own: its
 * allocator is ordered by it. A host array is read before the call returns. */
#define RAP_NO_STREAM INT64_MIN
bool rap_array_from_device(PyObject *object, const char *name, bool optional,
                           int64_t stream, rap_array *view, rap_error *err);
bool rap_array_out_device(PyObject *object, const char *name, rap_dtype dtype,
                          int64_t stream, rap_array *view, rap_error *err);

/* Idempotent; also right for an empty view. */
void rap_array_release(rap_array *view);

#endif
