/* SPDX-License-Identifier: Apache-2.0 */
#include "cuda_call.h"

#include "array.h"
#include "driver.h"
#include "status.h"

bool
rap_place_on_device(PyObject *object, rap_place *place)
{
    if (!PyTuple_Check(object)) {
        PyErr_SetString(PyExc_TypeError, "place: expected threads or (stream, allocate)");
        return false;
    }
    return PyArg_ParseTuple(object, "LO:place", &place->stream, &place->allocate) != 0;
}

static bool
same_device(const rap_binding *binding, void *args, rap_error *err)
{
    const rap_argument *first = binding->arguments;
    const int device = rap_view(first, args)->device;

    for (int i = 0; i < binding->count; i++) {
        const rap_argument *a = &first[i];
        const rap_array *view = rap_view(a, args);

        if (view->data == NULL || view->device == device
            || (view->device == 0 && (a->kind & (RAP_SMALL | RAP_HOST))))
        {
            continue;
        }
        return rap_fail(err, RAP_EINPUT, "%s and %s must be on the same device",
                        first->name, a->name);
    }
    return device > 0
           || rap_fail(err, RAP_EINPUT, "%s is not on a CUDA device", first->name);
}

static bool
workspace(const rap_place *place, int64_t bytes, int device, rap_array *view,
          rap_error *err)
{
    PyObject *memory;
    bool ok;

    if (bytes == 0) {
        return true;
    }
    memory = PyObject_CallFunction(place->allocate, "L", (long long)rap_ceil_div(bytes, 8));
    if (memory == NULL) {
        return rap_fail(err, RAP_EPYTHON, "workspace");
    }
    ok = rap_array_out(memory, "workspace", RAP_I64, rap_dlpack_stream(place->stream), view,
                       err);
    if (ok && (view->device != device || view->ndim != 1 || 8 * view->shape[0] < bytes)) {
        ok = rap_fail(err, RAP_EINPUT, "workspace: too small, or on another device");
    }
    Py_DECREF(memory);
    return ok;
}

/* An array in host memory is copied when the call is queued: into a graph that is being
 * captured would go the pointer, to be read at every replay. */
static bool
can_be_captured(const rap_binding *binding, rap_cuda_call *call, void *args, rap_error *err)
{
    const rap_argument *host = NULL;
    bool captures = false;

    for (int i = 0; i < binding->count; i++) {
        const rap_argument *a = &binding->arguments[i];
        const rap_array *view = rap_view(a, args);

        if ((a->kind & RAP_SMALL) && view->data != NULL && view->device == 0) {
            host = a;
        }
    }
    if (host == NULL) {
        return true;
    }
    return rap_cuda_captures(call, &captures, err)
           && (!captures
               || rap_fail(
                   err, RAP_EINPUT,
                   "%s is in host memory, which a CUDA graph that is being captured "
                   "would read again at every replay: put it on the device first",
                   host->name));
}

static bool
run(const rap_state *state, const rap_binding *binding, const rap_place *place,
    const rap_array *space, void *args, rap_error *err)
{
    rap_cuda_call call;
    const int ordinal = rap_view(binding->arguments, args)->device - 1;
    bool ok =
        rap_cuda_enter(state->cuda, ordinal, (void *)(intptr_t)place->stream, &call, err);

    call.blas = state->blas;
    for (int i = 0; ok && i < binding->count; i++) {
        const rap_argument *a = &binding->arguments[i];
        const rap_array *view = rap_view(a, args);

        ok = view->device == 0 || rap_cuda_holds(&call, view, a->name, err);
    }
    ok = ok && rap_cuda_holds(&call, space, "workspace", err)
         && can_be_captured(binding, &call, args, err)
         && binding->device(args, &call, space->data, err);
    rap_cuda_leave(&call);
    return ok;
}

bool
rap_run_on_device(PyObject *module, const rap_binding *binding, const rap_place *place,
                  void *args, rap_error *err)
{
    rap_array space = {0};
    const rap_state *state = rap_state_of(module);
    const int device = rap_view(binding->arguments, args)->device;
    bool ok = same_device(binding, args, err)
              && workspace(place, binding->device_bytes(args), device, &space, err);

    if (ok) {
        PyThreadState *saved = PyEval_SaveThread();

        ok = run(state, binding, place, &space, args, err);
        PyEval_RestoreThread(saved);
    }
    rap_array_release(&space);
    return ok;
}
