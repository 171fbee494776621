/* SPDX-License-Identifier: Apache-2.0
 *
 * What the bindings of the rooms share for a call on a CUDA device.
 */
#ifndef RAP_CUDA_PY_H
#define RAP_CUDA_PY_H

#include "array.h"
#include "driver.h"
#include "module.h"

/* An array of the call. `small`: may lie in host memory, the launcher uploads it. */
typedef struct {
    rap_array *view;
    const char *name;
    bool small;
} rap_device_array;

typedef struct {
    PyObject *allocate; /* called with a number of int64, answers memory of the device */
    int64_t stream;     /* the producer's, as the driver knows it */
    int64_t (*bytes)(const void *args);
    bool (*run)(void *args, rap_cuda_call *call, void *workspace, rap_error *err);
} rap_device_plan;

/* The stream's number in the array API's way of counting, for __dlpack__. */
int64_t rap_dlpack_stream(int64_t stream);

/* All arrays on one device, then workspace, context, launches, without the GIL from there
 * on. `arrays` ends with view == NULL; the first one says the device. */
bool rap_run_on_device(PyObject *module, const rap_device_array *arrays,
                       const rap_device_plan *plan, void *args, rap_error *err);

#endif
