/* SPDX-License-Identifier: Apache-2.0
 *
 * One call of a kernel from Python: its arrays are acquired and checked, the kernel runs
 * where the place says, the arrays are released. Inlined into each binding, whose table is
 * constant there: a call that has nothing to compute costs what one written out would
 * (benchmarks/instructions.py counts it).
 */
#ifndef RAP_CALL_H
#define RAP_CALL_H

#include "array.h"
#include "binding.h"
#include "cuda_call.h"
#include "status.h"

#define RAP_INLINE static inline __attribute__((always_inline))

/* What a place is in Python: an int, a number of threads; or a tuple, see place_on_device. */
RAP_INLINE bool
rap_place_from(PyObject *object, rap_place *place)
{
    *place = (rap_place){0};
    if (!PyLong_Check(object)) {
        return rap_place_on_device(object, place);
    }
    place->threads = (int)PyLong_AsLong(object);
    return place->threads > 0 || PyErr_Occurred() == NULL;
}

RAP_INLINE bool
rap_acquire(const rap_argument *argument, PyObject *object, int64_t stream, rap_array *view,
            rap_error *err)
{
    const unsigned kind = argument->kind;

    if (object == NULL || ((kind & RAP_OPTIONAL) && object == Py_None)) {
        return true;
    }
    if (kind & (RAP_OUT_F64 | RAP_OUT_I64)) {
        return rap_array_out(object, argument->name, kind & RAP_OUT_F64 ? RAP_F64 : RAP_I64,
                             stream, view, err);
    }
    return rap_array_from(object, argument->name, kind & RAP_HOST ? RAP_NO_STREAM : stream,
                          view, err);
}

RAP_INLINE void
rap_run(PyObject *module, const rap_binding *binding, const rap_place *place, void *args,
        rap_error *err)
{
    PyThreadState *saved;
    rap_exec exec;

    if (place->allocate != NULL) {
        rap_run_on_device(module, binding, place, args, err);
    }
    else if (binding->cpu == NULL) {
        rap_fail(err, RAP_EINPUT, "computed on a CUDA device only");
    }
    else {
        saved = rap_begin(module, place->threads, binding->work(args), &exec);
        binding->cpu(args, &exec, err);
        rap_end(saved, &exec);
    }
}

/* `objects`: one for each of the binding's arguments; NULL: its view is filled already.
 * `where`: a place. None, or NULL with an exception set. */
RAP_INLINE PyObject *
rap_call(PyObject *module, const rap_binding *binding, PyObject *const *objects,
         PyObject *where, void *args)
{
    rap_error err = {0};
    rap_place place;
    int64_t stream;
    bool ok = true;

    if (!rap_place_from(where, &place)) {
        return NULL;
    }
    stream = place.allocate == NULL ? RAP_NO_STREAM : rap_dlpack_stream(place.stream);
#pragma GCC unroll 16
    for (int i = 0; i < binding->count; i++) {
        const rap_argument *argument = &binding->arguments[i];

        ok =
            ok && rap_acquire(argument, objects[i], stream, rap_view(argument, args), &err);
    }
    if (ok && binding->check(args, &err)) {
        rap_run(module, binding, &place, args, &err);
    }
#pragma GCC unroll 16
    for (int i = 0; i < binding->count; i++) {
        rap_array_release(rap_view(&binding->arguments[i], args));
    }
    return rap_result(module, &err);
}

#endif
