/* SPDX-License-Identifier: Apache-2.0
 *
 * Binding in five paragraphs: parse, acquire, check, run, release and answer.
 */
#include "../cuda_py.h"
#include "drm.h"

PyObject *
rap_py_drm(PyObject *module, PyObject *py_args, PyObject *kwargs)
{
    static char *names[] = {"difficulty", "gain", "eligible", "out", "threads", NULL};
    PyObject *difficulty, *gain, *eligible, *out, *answer;
    rap_drm_args args = {0};
    rap_error err = {0};
    rap_exec exec;
    int threads;

    if (!PyArg_ParseTupleAndKeywords(py_args, kwargs, "OOOOi:drm", names, &difficulty,
                                     &gain, &eligible, &out, &threads))
    {
        return NULL;
    }

    if (rap_array_from(difficulty, "difficulty", false, &args.difficulty, &err)
        && rap_array_from(gain, "gain", true, &args.gain, &err)
        && rap_array_from(eligible, "eligible", true, &args.eligible, &err)
        && rap_array_out(out, "out", RAP_I64, &args.out, &err)
        && rap_drm_check(&args, &err))
    {
        PyThreadState *saved =
            rap_begin(module, threads, args.difficulty.shape[0] * 8, &exec);

        rap_drm_cpu(&args, &exec, &err);
        rap_end(saved, &exec);
    }

    rap_array_release(&args.difficulty);
    rap_array_release(&args.gain);
    rap_array_release(&args.eligible);
    rap_array_release(&args.out);
    answer = rap_result(module, &err);
    if (answer != NULL) {
        Py_DECREF(answer);
        answer = PyLong_FromLongLong(args.found);
    }
    return answer;
}

PyObject *
rap_py_drm_cuda(PyObject *module, PyObject *py_args, PyObject *kwargs)
{
    static char *names[] = {"difficulty", "gain",     "eligible", "out",
                            "stream",     "allocate", NULL};
    PyObject *difficulty, *gain, *eligible, *out, *answer;
    rap_drm_args args = {0};
    rap_device_plan plan = {.bytes = rap_drm_device_bytes, .run = rap_drm_device};
    rap_device_array arrays[] = {{&args.difficulty, "difficulty", false},
                                 {&args.out, "out", false},
                                 {&args.gain, "gain", false},
                                 {&args.eligible, "eligible", true},
                                 {NULL, NULL, false}};
    rap_error err = {0};
    long long stream;
    int64_t ready;

    if (!PyArg_ParseTupleAndKeywords(py_args, kwargs, "OOOOLO:drm_cuda", names, &difficulty,
                                     &gain, &eligible, &out, &stream, &plan.allocate))
    {
        return NULL;
    }
    plan.stream = stream;
    ready = rap_dlpack_stream(stream);

    if (rap_array_from_device(difficulty, "difficulty", false, ready, &args.difficulty,
                              &err)
        && rap_array_from_device(gain, "gain", true, ready, &args.gain, &err)
        && rap_array_from_device(eligible, "eligible", true, ready, &args.eligible, &err)
        && rap_array_out_device(out, "out", RAP_I64, ready, &args.out, &err)
        && rap_drm_check(&args, &err))
    {
        rap_run_on_device(module, arrays, &plan, &args, &err);
    }

    for (const rap_device_array *a = arrays; a->view != NULL; a++) {
        rap_array_release(a->view);
    }
    answer = rap_result(module, &err);
    if (answer != NULL) {
        Py_DECREF(answer);
        answer = PyLong_FromLongLong(args.found);
    }
    return answer;
}
