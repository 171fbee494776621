/* SPDX-License-Identifier: Apache-2.0
 *
 * What Python asks of the CUDA side besides the kernels.
 */
#include "array.h"
#include "cuda/fatbin.h"
#include "driver.h"
#include "gemm/gemm_cuda.h"
#include "module.h"
#include "status.h"
#include "third_party/dlpack.h"

enum { CAPABILITY_MAJOR = 75, CAPABILITY_MINOR = 76 }; /* CUdevice_attribute */

static PyObject *
kernels(void)
{
    PyObject *list = PyList_New(0);

    for (const rap_fatbin *f = rap_fatbins; list != NULL && f->kernels != NULL; f++) {
        PyObject *name = PyUnicode_FromString(f->kernels);

        if (name == NULL || PyList_Append(list, name) != 0) {
            Py_CLEAR(list);
        }
        Py_XDECREF(name);
    }
    return list;
}

bool
rap_cuda_kernels_setup(PyObject *module)
{
    PyObject *list = kernels(), *tuple = list != NULL ? PyList_AsTuple(list) : NULL;
    bool ok = tuple != NULL && PyModule_AddObjectRef(module, "CUDA_KERNELS", tuple) == 0;

    Py_XDECREF(tuple);
    Py_XDECREF(list);
    return ok;
}

static PyObject *
device_name(const rap_cuda_api *api, int ordinal)
{
    char name[128] = "?";
    int device = 0, major = 0, minor = 0;

    if (api->device_get(&device, ordinal) == 0) {
        api->device_name(name, (int)sizeof(name), device);
        api->device_attribute(&major, CAPABILITY_MAJOR, device);
        api->device_attribute(&minor, CAPABILITY_MINOR, device);
    }
    return PyUnicode_FromFormat("%s (sm_%d%d)", name, major, minor);
}

static PyObject *
devices(const rap_cuda_api *api)
{
    PyObject *list = PyList_New(0);
    int count = 0;

    if (api != NULL && api->device_count(&count) != 0) {
        count = 0;
    }
    for (int i = 0; list != NULL && i < count; i++) {
        PyObject *name = device_name(api, i);

        if (name == NULL || PyList_Append(list, name) != 0) {
            Py_CLEAR(list);
        }
        Py_XDECREF(name);
    }
    return list;
}

PyObject *
rap_py_cuda_info(PyObject *module, PyObject *unused)
{
    rap_error err = {0};
    const rap_cuda_api *api = rap_cuda_open(rap_state_of(module)->cuda, &err);
    PyObject *built = kernels(), *found = devices(api);
    int version = 0;

    (void)unused;
    if (built == NULL || found == NULL) {
        Py_XDECREF(built);
        Py_XDECREF(found);
        return NULL;
    }
    if (api != NULL) {
        api->version(&version);
    }
    return Py_BuildValue("{s:s,s:N,s:i,s:i,s:N,s:z}", "made", rap_fatbin_made, "kernels",
                         built, "toolkit", rap_fatbin_toolkit, "driver", version, "devices",
                         found, "error", api == NULL ? err.text : NULL);
}

PyObject *
rap_py_cublaslt(PyObject *module, PyObject *args)
{
    rap_error err = {0};
    const char *path = NULL;
    int64_t version = 0;

    if (!PyArg_ParseTuple(args, "|z:cublaslt", &path)) {
        return NULL;
    }
    if (!rap_blas_open(rap_state_of(module)->blas, path, &version, &err)) {
        return rap_result(module, &err);
    }
    return PyLong_FromLongLong(version);
}

/* --- memory -------------------------------------------------------------------------- */

typedef struct {
    PyObject *module; /* keeps the driver */
    int ordinal;
    int64_t stream;
    uint64_t pointer;
} device_block;

static const char block_name[] = "rap.device_block";

/* What cannot be freed any more (a context that died, a fork) is left to the driver. The
 * stream may be gone before its memory: then the legacy stream frees, which waits for all
 * that was queued on streams that block. */
static void
free_block(PyObject *capsule)
{
    device_block *block = PyCapsule_GetPointer(capsule, block_name);
    rap_error err = {0};
    rap_cuda_call call;

    if (rap_cuda_enter(rap_state_of(block->module)->cuda, block->ordinal,
                       (void *)block->stream, &call, &err))
    {
        if (call.api->memory_free(block->pointer, call.stream) != 0 && block->stream != 0) {
            call.api->memory_free(block->pointer, NULL);
        }
    }
    rap_cuda_leave(&call);
    Py_DECREF(block->module);
    PyMem_Free(block);
}

PyObject *
rap_py_cuda_alloc(PyObject *module, PyObject *args)
{
    rap_error err = {0};
    rap_cuda_call call = {0};
    device_block *block = NULL;
    PyObject *capsule = NULL;
    long long bytes, stream;
    uint64_t pointer = 0;
    int ordinal;

    if (!PyArg_ParseTuple(args, "LiL:cuda_alloc", &bytes, &ordinal, &stream)) {
        return NULL;
    }
    if (rap_cuda_enter(rap_state_of(module)->cuda, ordinal, (void *)(intptr_t)stream, &call,
                       &err)
        && rap_cuda_ok(
            call.api,
            call.api->memory_alloc(&pointer, (size_t)RAP_MAX(bytes, 8), call.stream),
            "allocating device memory", &err))
    {
        block = PyMem_Malloc(sizeof(*block));
        if (block != NULL) {
            *block = (device_block){module, ordinal, stream, pointer};
            capsule = PyCapsule_New(block, block_name, free_block);
        }
        if (capsule == NULL) {
            call.api->memory_free(pointer, call.stream);
            PyMem_Free(block);
            rap_fail(&err, RAP_EMEMORY, "out of memory");
        }
    }
    rap_cuda_leave(&call);
    if (capsule == NULL) {
        return rap_result(module, &err);
    }
    Py_INCREF(module);
    return Py_BuildValue("(NK)", capsule, (unsigned long long)pointer);
}

PyObject *
rap_py_cuda_read(PyObject *module, PyObject *args)
{
    rap_error err = {0};
    rap_cuda_call call = {0};
    rap_array to = {0};
    PyObject *array;
    unsigned long long pointer;
    long long stream;
    int ordinal;

    if (!PyArg_ParseTuple(args, "OKiL:cuda_read", &array, &pointer, &ordinal, &stream)) {
        return NULL;
    }
    if (rap_array_from(array, "to", RAP_NO_STREAM, &to, &err) && !to.readonly
        && to.ndim == 1)
    {
        PyThreadState *saved = PyEval_SaveThread();

        if (rap_cuda_enter(rap_state_of(module)->cuda, ordinal, (void *)(intptr_t)stream,
                           &call, &err))
        {
            rap_cuda_download(&call, to.data, (const void *)(uintptr_t)pointer,
                              to.shape[0] * (int64_t)rap_dtype_size(to.dtype), &err);
        }
        rap_cuda_leave(&call);
        PyEval_RestoreThread(saved);
    }
    rap_array_release(&to);
    return rap_result(module, &err);
}

PyObject *
rap_py_cuda_wait(PyObject *module, PyObject *args)
{
    rap_error err = {0};
    rap_cuda_call call;
    long long stream;
    PyThreadState *saved;
    int ordinal;

    if (!PyArg_ParseTuple(args, "iL:cuda_wait", &ordinal, &stream)) {
        return NULL;
    }
    saved = PyEval_SaveThread();
    if (rap_cuda_enter(rap_state_of(module)->cuda, ordinal, (void *)(intptr_t)stream, &call,
                       &err))
    {
        rap_cuda_wait(&call, &err);
    }
    rap_cuda_leave(&call);
    PyEval_RestoreThread(saved);
    return rap_result(module, &err);
}

PyObject *
rap_py_cuda_device_of(PyObject *module, PyObject *args)
{
    rap_error err = {0};
    const rap_cuda_api *api;
    unsigned long long pointer;

    if (!PyArg_ParseTuple(args, "K:cuda_device_of", &pointer)) {
        return NULL;
    }
    api = rap_cuda_open(rap_state_of(module)->cuda, &err);
    if (api == NULL) {
        return rap_result(module, &err);
    }
    return PyLong_FromLong(rap_cuda_device_of(api, (const void *)(uintptr_t)pointer));
}

/* --- DLPack -------------------------------------------------------------------------- */

typedef struct {
    DLManagedTensorVersioned managed;
    PyObject *owner;
    int64_t shape[RAP_MAX_NDIM], stride[RAP_MAX_NDIM];
} exported;

static void
delete_exported(DLManagedTensorVersioned *managed)
{
    exported *e = (exported *)managed->manager_ctx;
    PyGILState_STATE gil = PyGILState_Ensure();

    Py_DECREF(e->owner);
    PyMem_Free(e);
    PyGILState_Release(gil);
}

/* Of a capsule that was not consumed. */
static void
delete_capsule(PyObject *capsule)
{
    if (PyCapsule_IsValid(capsule, "dltensor_versioned")) {
        delete_exported(PyCapsule_GetPointer(capsule, "dltensor_versioned"));
    }
}

static bool
fill_shape(PyObject *tuple, int64_t *to, int ndim)
{
    for (int i = 0; i < ndim; i++) {
        to[i] = PyLong_AsLongLong(PyTuple_GetItem(tuple, i));
    }
    return PyErr_Occurred() == NULL;
}

PyObject *
rap_py_cuda_dlpack(PyObject *module, PyObject *args)
{
    PyObject *owner, *shape, *strides, *capsule;
    unsigned long long pointer;
    int code, bits, ordinal, ndim;
    exported *e;

    if (!PyArg_ParseTuple(args, "OKO!O!iii:cuda_dlpack", &owner, &pointer, &PyTuple_Type,
                          &shape, &PyTuple_Type, &strides, &code, &bits, &ordinal))
    {
        return NULL;
    }
    ndim = (int)PyTuple_Size(shape);
    if (ndim > RAP_MAX_NDIM || PyTuple_Size(strides) != ndim) {
        PyErr_SetString(rap_state_of(module)->input_error, "too many dimensions");
        return NULL;
    }
    e = PyMem_Calloc(1, sizeof(*e));
    if (e == NULL || !fill_shape(shape, e->shape, ndim)
        || !fill_shape(strides, e->stride, ndim))
    {
        PyMem_Free(e);
        return PyErr_Occurred() != NULL ? NULL : PyErr_NoMemory();
    }
    Py_INCREF(owner);
    e->owner = owner;
    e->managed = (DLManagedTensorVersioned){
        .version = {DLPACK_MAJOR_VERSION, DLPACK_MINOR_VERSION},
        .manager_ctx = e,
        .deleter = delete_exported,
        .dl_tensor = {.data = (void *)(uintptr_t)pointer,
                      .device = {kDLCUDA, ordinal},
                      .ndim = ndim,
                      .dtype = {(uint8_t)code, (uint8_t)bits, 1},
                      .shape = e->shape,
                      .strides = e->stride},
    };
    capsule = PyCapsule_New(&e->managed, "dltensor_versioned", delete_capsule);
    if (capsule == NULL) {
        delete_exported(&e->managed);
    }
    return capsule;
}
