/* SPDX-License-Identifier: Apache-2.0 */
#include "binding.h"

rap_state *
rap_state_of(PyObject *module)
{
    return PyModule_GetState(module);
}

/* True when a signal handler raised (Ctrl-C). Runs on the calling thread only. */
static bool
poll_signals(void *arg)
{
    PyGILState_STATE gil = PyGILState_Ensure();
    bool stop = PyErr_CheckSignals() != 0;

    (void)arg;
    PyGILState_Release(gil);
    return stop;
}

PyThreadState *
rap_begin(PyObject *module, int threads, double work, rap_exec *exec)
{
    rap_state *state = rap_state_of(module);
    bool small = work < RAP_GIL_BYTES;

    *exec = (rap_exec){.threads = small ? 1 : RAP_MAX(1, threads),
                       .pool = state->pool,
                       .kernels = state->kernels,
                       .poll = poll_signals};
    atomic_init(&exec->stop, false);
    exec->fp_mode = rap_fp_mode_enter();
    return small ? NULL : PyEval_SaveThread();
}

void
rap_end(PyThreadState *saved, const rap_exec *exec)
{
    rap_fp_mode_leave(exec->fp_mode);
    if (saved != NULL) {
        PyEval_RestoreThread(saved);
    }
}

PyObject *
rap_result(PyObject *module, const rap_error *err)
{
    switch (err->status) {
    case RAP_OK:
        Py_RETURN_NONE;
    case RAP_EINPUT:
        PyErr_SetString(rap_state_of(module)->input_error, err->text);
        break;
    case RAP_ETYPE:
        PyErr_SetString(PyExc_TypeError, err->text);
        break;
    case RAP_EMEMORY:
        PyErr_SetString(PyExc_MemoryError, err->text);
        break;
    case RAP_ECONFIG:
        PyErr_SetString(rap_state_of(module)->config_error, err->text);
        break;
    case RAP_EDEVICE:
        PyErr_SetString(rap_state_of(module)->device_error, err->text);
        break;
    case RAP_EINTERRUPT:
    case RAP_EPYTHON:
        break; /* set by whoever met it */
    }
    return NULL;
}
