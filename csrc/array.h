/* SPDX-License-Identifier: Apache-2.0
 *
 * Python object -> rap_array, without a copy: NumPy through its C API, torch through
 * DLPack's C exchange table, any other producer through __dlpack__, then the buffer
 * protocol. The view keeps its owner alive until rap_array_release.
 *
 * Taken: float32, float16, bfloat16 (ml_dtypes or DLPack), float64, int64, bool; native
 * byte order; aligned; at most RAP_MAX_NDIM dimensions; in host memory or on a CUDA device.
 */
#ifndef RAP_ARRAY_H
#define RAP_ARRAY_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "rap.h"

/* Imports NumPy's C API; once, from the module's exec slot. */
bool rap_array_setup(void);

/* A view of `object`, ready on `stream` as the array API counts streams: view.device says
 * where it lies. Views may be released as soon as the work is queued on the stream, the
 * producer's own: its allocator is ordered by it. A host array is read before the call
 * returns. With RAP_NO_STREAM the array must be in host memory. */
#define RAP_NO_STREAM INT64_MIN
bool rap_array_from(PyObject *object, const char *name, int64_t stream, rap_array *view,
                    rap_error *err);

/* The same for a writable array of this dtype, made by ops.py for the answer. */
bool rap_array_out(PyObject *object, const char *name, rap_dtype dtype, int64_t stream,
                   rap_array *view, rap_error *err);

/* The number of a stream in the array API's way of counting, for __dlpack__. */
int64_t rap_dlpack_stream(int64_t stream);

/* Idempotent; also right for an empty view. */
static inline void
rap_array_release(rap_array *view)
{
    if (view->release != NULL) {
        view->release(view->owner);
    }
    view->data = NULL;
    view->release = NULL;
}

#endif
