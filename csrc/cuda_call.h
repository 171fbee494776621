/* SPDX-License-Identifier: Apache-2.0
 *
 * A call of a kernel on a CUDA device.
 */
#ifndef RAP_CUDA_CALL_H
#define RAP_CUDA_CALL_H

#include "binding.h"

/* A place from (stream, allocate): false with an exception set if it is none. */
bool rap_place_on_device(PyObject *object, rap_place *place);

/* All arrays on one device, then workspace, context, launches, without the GIL from there
 * on. */
bool rap_run_on_device(PyObject *module, const rap_binding *binding, const rap_place *place,
                       void *args, rap_error *err);

#endif
