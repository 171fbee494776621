/* SPDX-License-Identifier: Apache-2.0
 *
 * Binding in five paragraphs: parse, acquire, check, run, release and answer.
 */
#include "../array.h"
#include "../module.h"
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
