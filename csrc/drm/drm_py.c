/* SPDX-License-Identifier: Apache-2.0
 *
 * The binding of drm: positional arguments only, see rap/_C.pyi.
 */
#include "../call.h"
#include "../module.h"
#include "drm.h"

static double
work(const void *args)
{
    return 8 * (double)((const rap_drm_args *)args)->difficulty.shape[0];
}

#define AT(view) (unsigned)offsetof(rap_drm_args, view)

static const rap_argument arguments[] = {
    {"difficulty", AT(difficulty), 0},
    {"gain", AT(gain), RAP_OPTIONAL},
    {"eligible", AT(eligible), RAP_OPTIONAL | RAP_SMALL},
    {"out", AT(out), RAP_OUT_I64},
};

#define COUNT (int)(sizeof(arguments) / sizeof(arguments[0]))

static const rap_binding binding = {
    .arguments = arguments,
    .count = COUNT,
    .check = rap_drm_check,
    .work = work,
    .cpu = rap_drm_cpu,
    .device_bytes = rap_drm_device_bytes,
    .device = rap_drm_device,
};

PyObject *
rap_py_drm(PyObject *module, PyObject *py_args)
{
    PyObject *o[COUNT], *answer;
    rap_drm_args args = {0};
    PyObject *where;

    if (!PyArg_ParseTuple(py_args, "OOOOO:drm", &o[0], &o[1], &o[2], &o[3], &where)) {
        return NULL;
    }
    answer = rap_call(module, &binding, o, where, &args);
    if (answer == NULL) {
        return NULL;
    }
    Py_DECREF(answer);
    return PyLong_FromLongLong(args.found);
}
