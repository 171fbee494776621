/* SPDX-License-Identifier: Apache-2.0
 *
 * PyInit__C: method table, module state, multi-phase initialisation, limited API.
 */
#include "module.h"

#include <stdlib.h>

#include "array.h"
#include "cde/cde.h"
#include "driver.h"
#include "gemm/gemm_cuda.h"

/* --- module functions ---------------------------------------------------------------- */

static PyObject *
isa_names(PyObject *module, PyObject *unused)
{
    const char *names[4];
    int n = rap_cpu_names(names, 4);
    PyObject *list = PyList_New(n);

    (void)module;
    (void)unused;
    for (int i = 0; list != NULL && i < n; i++) {
        PyObject *name = PyUnicode_FromString(names[i]);

        if (name == NULL || PyList_SetItem(list, i, name) != 0) {
            Py_DECREF(list);
            list = NULL;
        }
    }
    return list;
}

static PyObject *
isa(PyObject *module, PyObject *args)
{
    rap_state *state = rap_state_of(module);
    const char *before = state->kernels->name, *name = NULL;
    const rap_kernels *table;

    if (!PyArg_ParseTuple(args, "|z:isa", &name)) {
        return NULL;
    }
    if (name != NULL) {
        table = rap_cpu_table(name);
        if (table == NULL) {
            return PyErr_Format(state->input_error,
                                "no kernels called '%s' on this processor", name);
        }
        state->kernels = table;
    }
    return PyUnicode_FromString(before);
}

static PyMethodDef methods[] = {
    {"cde", rap_py_cde, METH_VARARGS,
     PyDoc_STR("Divergences from logits; see rap.cde and csrc/cde/cde.h.")},
    {"linear_cde", rap_py_linear_cde, METH_VARARGS,
     PyDoc_STR("Divergences from hidden states; see rap.linear_cde and csrc/cde/cde.h.")},
    {"cde_means", rap_py_cde_means, METH_VARARGS,
     PyDoc_STR("Means of cde's answers over packed samples, on a CUDA device.")},
    {"ace", rap_py_ace, METH_VARARGS,
     PyDoc_STR("Attention confidence from q and k; see rap.ace and csrc/ace/ace.h.")},
    {"drm", rap_py_drm, METH_VARARGS,
     PyDoc_STR("The k hardest samples; see rap.drm and csrc/drm/drm.h.")},
    {"isa", isa, METH_VARARGS,
     PyDoc_STR(
         "isa(name=None) -> name of the kernel table in use before; sets it if given.")},
    {"isa_names", isa_names, METH_NOARGS,
     PyDoc_STR("Kernel tables this processor can run, best first.")},
    {"cuda_info", rap_py_cuda_info, METH_NOARGS,
     PyDoc_STR("What CUDA would compute with here, and why it cannot: see rap.info().")},
    {"cublaslt", rap_py_cublaslt, METH_VARARGS,
     PyDoc_STR("cublaslt(path=None) -> version of the library, opened if it is not yet.")},
    {"cuda_alloc", rap_py_cuda_alloc, METH_VARARGS,
     PyDoc_STR("cuda_alloc(bytes, device, stream) -> (owner, pointer), stream-ordered.")},
    {"cuda_read", rap_py_cuda_read, METH_VARARGS,
     PyDoc_STR("cuda_read(to, pointer, device, stream): waits, then `to` is filled.")},
    {"cuda_wait", rap_py_cuda_wait, METH_VARARGS,
     PyDoc_STR("cuda_wait(device, stream): until the stream's work is done.")},
    {"cuda_device_of", rap_py_cuda_device_of, METH_VARARGS,
     PyDoc_STR("cuda_device_of(pointer) -> ordinal, -1 for other memory.")},
    {"cuda_dlpack", rap_py_cuda_dlpack, METH_VARARGS,
     PyDoc_STR("cuda_dlpack(owner, pointer, shape, strides, code, bits, device).")},
    {NULL, NULL, 0, NULL},
};

static int
choose_kernels(rap_state *state)
{
    const char *name = getenv("RAP_ISA");

    state->kernels = rap_cpu_table(name != NULL && name[0] != '\0' ? name : NULL);
    if (state->kernels == NULL) {
        PyErr_Format(PyExc_ImportError, "RAP_ISA=%s: no such kernels on this processor",
                     name);
        return -1;
    }
    return 0;
}

static int
exec(PyObject *module)
{
    rap_state *state = rap_state_of(module);
    PyObject *errors = PyImport_ImportModule("rap.errors");

    if (errors == NULL) {
        return -1;
    }
    state->input_error = PyObject_GetAttrString(errors, "RapInputError");
    state->config_error = PyObject_GetAttrString(errors, "RapConfigError");
    state->device_error = PyObject_GetAttrString(errors, "RapDeviceError");
    Py_DECREF(errors);
    if (state->input_error == NULL || state->config_error == NULL
        || state->device_error == NULL || !rap_array_setup() || choose_kernels(state) != 0)
    {
        return -1;
    }
    state->pool = rap_pool_new();
    state->cuda = rap_cuda_new();
    state->blas = rap_blas_new();
    if (state->pool == NULL || state->cuda == NULL || state->blas == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    if (!rap_cuda_kernels_setup(module)
        || PyModule_AddIntConstant(module, "GIL_BYTES", RAP_GIL_BYTES) != 0)
    {
        return -1;
    }
    return PyModule_AddIntConstant(module, "CDE_OUTPUTS", RAP_CDE_OUTPUTS);
}

static int
traverse(PyObject *module, visitproc visit, void *arg)
{
    rap_state *state = rap_state_of(module);

    Py_VISIT(state->input_error);
    Py_VISIT(state->config_error);
    Py_VISIT(state->device_error);
    return 0;
}

static int
clear(PyObject *module)
{
    rap_state *state = rap_state_of(module);

    Py_CLEAR(state->input_error);
    Py_CLEAR(state->config_error);
    Py_CLEAR(state->device_error);
    return 0;
}

static void
release(void *module)
{
    rap_state *state = rap_state_of(module);

    clear(module);
    rap_pool_free(state->pool);
    state->pool = NULL;
    rap_blas_free(state->blas);
    state->blas = NULL;
    rap_cuda_free(state->cuda);
    state->cuda = NULL;
}

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, exec},
    {0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "rap._C",
    .m_doc = PyDoc_STR("RAP's kernels. Use rap.cde, rap.linear_cde, rap.ace, rap.drm."),
    .m_size = sizeof(rap_state),
    .m_methods = methods,
    .m_slots = slots,
    .m_traverse = traverse,
    .m_clear = clear,
    .m_free = release,
};

PyMODINIT_FUNC
PyInit__C(void)
{
    return PyModuleDef_Init(&definition);
}
