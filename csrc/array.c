/* SPDX-License-Identifier: Apache-2.0 */
#include "array.h"

#define NPY_NO_DEPRECATED_API NPY_1_25_API_VERSION
#define NPY_TARGET_VERSION NPY_1_25_API_VERSION
#include <numpy/arrayobject.h>
#include <stdio.h>
#include <string.h>

#include "status.h"
#include "third_party/dlpack.h"

static int
import_numpy(void)
{
    import_array1(-1);
    return 0;
}

bool
rap_array_setup(void)
{
    return import_numpy() == 0;
}

/* --- checks every producer shares ---------------------------------------------------- */

static bool
fits(const char *name, rap_array *view, rap_error *err)
{
    int64_t size = 1;

    for (int i = 0; i < view->ndim; i++) {
        if (view->shape[i] != 0 && size > INT64_MAX / 8 / view->shape[i]) {
            return rap_fail(err, RAP_EINPUT, "%s: too large", name);
        }
        size *= view->shape[i];
    }
    if (size == 0) { /* nothing to step over: NumPy calls such strides 0 */
        int64_t dense = 1;

        for (int i = view->ndim - 1; i >= 0; i--) {
            view->stride[i] = dense;
            dense *= RAP_MAX(1, view->shape[i]);
        }
    }
    else if (view->data == NULL) {
        return rap_fail(
            err, RAP_EINPUT,
            "%s: %lld elements and no memory that holds them; pass an ordinary "
            "array (a torch tensor: x.dequantize(), x.full_tensor() or x.clone())",
            name, (long long)size);
    }
    if ((uintptr_t)view->data % rap_dtype_size(view->dtype) != 0) {
        return rap_fail(err, RAP_EINPUT, "%s: not aligned to its dtype", name);
    }
    return true;
}

static bool
dimensions(const char *name, int64_t ndim, rap_array *view, rap_error *err)
{
    if (ndim < 0 || ndim > RAP_MAX_NDIM) {
        return rap_fail(err, RAP_EINPUT, "%s: %lld dimensions, at most %d are taken", name,
                        (long long)ndim, RAP_MAX_NDIM);
    }
    view->ndim = (int)ndim;
    return true;
}

/* What a dtype is called that no kernel reads. Always false, as rap_fail. */
static bool
unread(const char *name, const char *dtype, rap_error *err)
{
    return rap_fail(
        err, RAP_ETYPE,
        "%s: %.40s is not taken; expected float32, float64, float16 or bfloat16 "
        "(indices: int64, masks: bool)",
        name, dtype);
}

/* Drops an exception that only says "not in this way". That memory was refused, or that
 * someone interrupts (Ctrl-C in the object's own Python code, which is no Exception), says
 * nothing about the array, and stays. */
static void
clear_if_about_the_array(void)
{
    if (PyErr_Occurred() != NULL && PyErr_ExceptionMatches(PyExc_Exception)
        && !PyErr_ExceptionMatches(PyExc_MemoryError))
    {
        PyErr_Clear();
    }
}

/* --- NumPy --------------------------------------------------------------------------- */

static void
release_object(void *owner)
{
    Py_DECREF((PyObject *)owner);
}

/* bfloat16 is no NumPy type of its own: ml_dtypes registers one, known by its name. False
 * with the exception set when there was no memory to ask for that. */
static bool
is_bfloat16(PyArrayObject *array)
{
    PyObject *name = PyObject_GetAttrString((PyObject *)PyArray_DESCR(array), "name");
    bool found = name != NULL && PyUnicode_CompareWithASCIIString(name, "bfloat16") == 0;

    Py_XDECREF(name);
    clear_if_about_the_array();
    return found;
}

static bool
unread_numpy(PyArrayObject *array, const char *name, rap_error *err)
{
    PyObject *text;
    const char *dtype;

    if (PyErr_Occurred() != NULL) { /* is_bfloat16 */
        return rap_fail(err, RAP_EPYTHON, "%s", name);
    }
    text = PyObject_Str((PyObject *)PyArray_DESCR(array));
    dtype = text != NULL ? PyUnicode_AsUTF8AndSize(text, NULL) : NULL;
    PyErr_Clear();
    unread(name, dtype != NULL ? dtype : "this dtype", err);
    Py_XDECREF(text);
    return false;
}

static bool
numpy_dtype(PyArrayObject *array, const char *name, rap_array *view, rap_error *err)
{
    int type = PyArray_TYPE(array);

    if (PyArray_ISBYTESWAPPED(array)) {
        return rap_fail(err, RAP_ETYPE,
                        "%s: byte order is not native; convert it with "
                        "x.astype(x.dtype.newbyteorder('='))",
                        name);
    }
    switch (type) {
    case NPY_FLOAT:
        view->dtype = RAP_F32;
        return true;
    case NPY_HALF:
        view->dtype = RAP_F16;
        return true;
    case NPY_DOUBLE:
        view->dtype = RAP_F64;
        return true;
    case NPY_BOOL:
        view->dtype = RAP_BOOL;
        return true;
    case NPY_LONG:
    case NPY_LONGLONG:
        view->dtype = RAP_I64;
        return PyArray_ITEMSIZE(array) == 8
               || rap_fail(err, RAP_ETYPE, "%s: expected 64-bit integers", name);
    default:
        view->dtype = RAP_BF16;
        return (type >= NPY_USERDEF && is_bfloat16(array))
               || unread_numpy(array, name, err);
    }
}

static bool
from_numpy(PyArrayObject *array, const char *name, rap_array *view, rap_error *err)
{
    npy_intp itemsize = PyArray_ITEMSIZE(array);

    if (!dimensions(name, PyArray_NDIM(array), view, err)
        || !numpy_dtype(array, name, view, err))
    {
        return false;
    }
    for (int i = 0; i < view->ndim; i++) {
        if (PyArray_STRIDE(array, i) % itemsize != 0) {
            return rap_fail(err, RAP_EINPUT, "%s: strides are no multiple of the item size",
                            name);
        }
        view->shape[i] = PyArray_DIM(array, i);
        view->stride[i] = PyArray_STRIDE(array, i) / itemsize;
    }
    view->data = PyArray_DATA(array);
    view->readonly = !PyArray_ISWRITEABLE(array);
    Py_INCREF((PyObject *)array);
    view->owner = array;
    view->release = release_object;
    return fits(name, view, err);
}

/* --- DLPack -------------------------------------------------------------------------- */

static void
release_dlpack(void *owner)
{
    DLManagedTensor *managed = owner;

    if (managed->deleter != NULL) {
        managed->deleter(managed);
    }
}

static void
release_dlpack_versioned(void *owner)
{
    DLManagedTensorVersioned *managed = owner;

    if (managed->deleter != NULL) {
        managed->deleter(managed);
    }
}

static bool
dlpack_dtype(DLDataType type, const char *name, rap_array *view, rap_error *err)
{
    static const struct {
        unsigned char code, bits;
        rap_dtype dtype;
    } known[] = {{kDLFloat, 32, RAP_F32}, {kDLFloat, 16, RAP_F16},
                 {kDLFloat, 64, RAP_F64}, {kDLBfloat, 16, RAP_BF16},
                 {kDLInt, 64, RAP_I64},   {kDLBool, 8, RAP_BOOL}};
    static const char *const kinds[] = {"int",    "uint",    "float", "opaque",
                                        "bfloat", "complex", "bool"};
    char dtype[24];

    for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++) {
        if (type.code == known[i].code && type.bits == known[i].bits && type.lanes == 1) {
            view->dtype = known[i].dtype;
            return true;
        }
    }
    if (type.code < sizeof(kinds) / sizeof(kinds[0])) {
        snprintf(dtype, sizeof(dtype), "%s%d", kinds[type.code], type.bits);
    }
    else { /* float8 and its kin */
        snprintf(dtype, sizeof(dtype), "a dtype of %d bits", type.bits);
    }
    return unread(name, dtype, err);
}

static bool
from_dltensor(const DLTensor *t, const char *name, rap_array *view, rap_error *err)
{
    int64_t dense = 1;

    if (t->device.device_type == kDLCUDA || t->device.device_type == kDLCUDAManaged) {
        view->device = t->device.device_id + 1;
    }
    else if (t->device.device_type != kDLCPU && t->device.device_type != kDLCUDAHost) {
        return rap_fail(err, RAP_EINPUT,
                        "%s is on device type %d: neither the CPU nor CUDA; move it with "
                        ".cpu()",
                        name, (int)t->device.device_type);
    }
    if (!dimensions(name, t->ndim, view, err) || !dlpack_dtype(t->dtype, name, view, err)) {
        return false;
    }
    for (int i = view->ndim - 1; i >= 0; i--) {
        view->shape[i] = t->shape[i];
        view->stride[i] = t->strides != NULL ? t->strides[i] : dense;
        dense *= t->shape[i];
    }
    view->data = t->data == NULL ? NULL : (char *)t->data + t->byte_offset;
    return fits(name, view, err);
}

/* NULL with no Python error set when the object knows no __dlpack__. `stream`: where the
 * data must be ready, as the array API counts streams; RAP_NO_STREAM for host memory. */
static PyObject *
ask_dlpack(PyObject *object, int64_t stream)
{
    PyObject *method = PyObject_GetAttrString(object, "__dlpack__");
    PyObject *empty = NULL, *kwargs = NULL, *capsule = NULL;

    if (method == NULL) {
        clear_if_about_the_array();
        return NULL;
    }
    empty = PyTuple_New(0);
    kwargs = Py_BuildValue("{s:(ii)}", "max_version", DLPACK_MAJOR_VERSION, 1);
    if (kwargs != NULL && stream != RAP_NO_STREAM) {
        PyObject *number = PyLong_FromLongLong(stream);

        if (number == NULL || PyDict_SetItemString(kwargs, "stream", number) != 0) {
            Py_CLEAR(kwargs);
        }
        Py_XDECREF(number);
    }
    if (empty != NULL && kwargs != NULL) {
        capsule = PyObject_Call(method, empty, kwargs);
        if (capsule == NULL && PyErr_ExceptionMatches(PyExc_TypeError)) {
            PyErr_Clear(); /* a producer from before DLPack 1.0 */
            if (PyDict_DelItemString(kwargs, "max_version") == 0) {
                capsule = PyObject_Call(method, empty, kwargs);
            }
        }
    }
    Py_XDECREF(kwargs);
    Py_XDECREF(empty);
    Py_DECREF(method);
    return capsule;
}

static bool
from_managed(DLManagedTensorVersioned *managed, const char *name, rap_array *view,
             rap_error *err)
{
    view->owner = managed; /* first: the deleter may be called whatever the version */
    view->release = release_dlpack_versioned;
    if (managed->version.major != DLPACK_MAJOR_VERSION) {
        return rap_fail(err, RAP_EINPUT, "%s: DLPack version %u is not known", name,
                        (unsigned)managed->version.major);
    }
    view->readonly = (managed->flags & DLPACK_FLAG_BITMASK_READ_ONLY) != 0;
    return from_dltensor(&managed->dl_tensor, name, view, err);
}

/* The table of C functions that a framework (torch >= 2.10) hangs on its array type, or
 * NULL: an export through it costs a tenth of a call to __dlpack__. */
static const DLPackExchangeAPI *
exchange_api(PyObject *object)
{
    PyObject *capsule =
        PyObject_GetAttrString((PyObject *)Py_TYPE(object), "__dlpack_c_exchange_api__");
    const DLPackExchangeAPI *api = NULL;

    if (capsule != NULL && PyCapsule_IsValid(capsule, "dlpack_exchange_api")) {
        api = PyCapsule_GetPointer(capsule, "dlpack_exchange_api");
    }
    Py_XDECREF(capsule); /* the table lives as long as the process */
    PyErr_Clear();
    return api != NULL && api->header.version.major == DLPACK_MAJOR_VERSION ? api : NULL;
}

int64_t
rap_dlpack_stream(int64_t stream)
{
    return stream == 0 ? 1 : stream; /* 0 is ambiguous there: 1 is the legacy stream */
}

/* Whether what the producer queues on the array's device now comes before what is queued on
 * `stream` (as the array API counts): then neither has to wait. */
static bool
in_order(const DLPackExchangeAPI *api, DLDevice device, int64_t stream)
{
    void *theirs = NULL;

    if (stream == RAP_NO_STREAM || device.device_type == kDLCPU) {
        return true;
    }
    if (api->current_work_stream == NULL
        || api->current_work_stream(device.device_type, device.device_id, &theirs) != 0)
    {
        PyErr_Clear();
        return false;
    }
    return rap_dlpack_stream((int64_t)(intptr_t)theirs) == stream;
}

/* What a framework says of a tensor that it cannot export, one without memory of its own
 * (sparse, quantised, passed in by vmap), as our error; other exceptions stay. */
static bool
not_exported(const char *name, rap_error *err)
{
    PyObject *type, *value, *traceback, *text = NULL;
    const char *said = NULL;

    if (!PyErr_ExceptionMatches(PyExc_RuntimeError)) {
        return rap_fail(err, RAP_EPYTHON, "%s", name);
    }
    PyErr_Fetch(&type, &value, &traceback);
    text = value != NULL ? PyObject_Str(value) : NULL;
    said = text != NULL ? PyUnicode_AsUTF8AndSize(text, NULL) : NULL;
    PyErr_Clear();
    rap_fail(err, RAP_EINPUT,
             "%s: no memory of its own that could be read; pass an ordinary tensor, e.g. "
             "x.to_dense() or x.dequantize() (%.*s)",
             name, said != NULL ? (int)strcspn(said, "\n") : 0, said != NULL ? said : "");
    Py_XDECREF(text);
    Py_XDECREF(type);
    Py_XDECREF(value);
    Py_XDECREF(traceback);
    return false;
}

/* An owning export: the memory stays whatever another thread does to the tensor. False in
 * `taken`: the array is to be asked for in the other way, which waits. */
static bool
from_exchange(const DLPackExchangeAPI *api, PyObject *object, int64_t stream,
              const char *name, rap_array *view, bool *taken, rap_error *err)
{
    DLManagedTensorVersioned *managed = NULL;

    *taken = true;
    if (api->managed_tensor_from_py_object_no_sync(object, &managed) != 0) {
        return not_exported(name, err);
    }
    if (!in_order(api, managed->dl_tensor.device, stream)) {
        *taken = false;
        managed->deleter(managed);
        return true;
    }
    return from_managed(managed, name, view, err);
}

static bool
from_capsule(PyObject *capsule, const char *name, rap_array *view, rap_error *err)
{
    if (PyCapsule_IsValid(capsule, "dltensor_versioned")) {
        DLManagedTensorVersioned *managed =
            PyCapsule_GetPointer(capsule, "dltensor_versioned");

        PyCapsule_SetName(capsule, "used_dltensor_versioned");
        return from_managed(managed, name, view, err);
    }
    if (PyCapsule_IsValid(capsule, "dltensor")) {
        DLManagedTensor *managed = PyCapsule_GetPointer(capsule, "dltensor");

        PyCapsule_SetName(capsule, "used_dltensor");
        view->owner = managed;
        view->release = release_dlpack;
        return from_dltensor(&managed->dl_tensor, name, view, err);
    }
    return rap_fail(err, RAP_ETYPE, "%s: __dlpack__ gave no DLPack capsule", name);
}

/* --- buffer protocol ----------------------------------------------------------------- */

static void
release_buffer(void *owner)
{
    PyBuffer_Release(owner);
    PyMem_Free(owner);
}

static bool
buffer_dtype(const Py_buffer *buffer, const char *name, rap_array *view, rap_error *err)
{
    static const struct {
        char code;
        unsigned char size;
        rap_dtype dtype;
    } known[] = {{'f', 4, RAP_F32}, {'d', 8, RAP_F64}, {'e', 2, RAP_F16},
                 {'l', 8, RAP_I64}, {'q', 8, RAP_I64}, {'?', 1, RAP_BOOL}};
    const char *format = buffer->format != NULL ? buffer->format : "B";

    format += format[0] == '@' || format[0] == '='
              || (format[0] == '<' && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__);

    for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++) {
        if (format[0] == known[i].code && format[1] == '\0'
            && buffer->itemsize == known[i].size)
        {
            view->dtype = known[i].dtype;
            return true;
        }
    }
    return rap_fail(err, RAP_ETYPE, "%s: buffer format '%.20s' is not supported", name,
                    format);
}

static bool
no_array(PyObject *object, const char *name, rap_error *err)
{
    PyObject *type = PyType_GetName(Py_TYPE(object));
    const char *given = type != NULL ? PyUnicode_AsUTF8AndSize(type, NULL) : NULL;

    PyErr_Clear();
    rap_fail(
        err, RAP_ETYPE,
        "%s: expected an array (NumPy, torch, JAX, DLPack or buffer protocol) or lists "
        "of numbers, got %.60s",
        name, given != NULL ? given : "something else");
    Py_XDECREF(type);
    return false;
}

static bool
from_buffer(PyObject *object, const char *name, rap_array *view, rap_error *err)
{
    Py_buffer *buffer = PyMem_Malloc(sizeof(*buffer));

    if (buffer == NULL) {
        return rap_fail(err, RAP_EMEMORY, "out of memory");
    }
    if (PyObject_GetBuffer(object, buffer, PyBUF_RECORDS_RO) != 0) {
        clear_if_about_the_array();
        PyMem_Free(buffer);
        return PyErr_Occurred() != NULL ? rap_fail(err, RAP_EPYTHON, "%s", name)
                                        : no_array(object, name, err);
    }
    view->owner = buffer;
    view->release = release_buffer;
    if (!dimensions(name, buffer->ndim, view, err)
        || !buffer_dtype(buffer, name, view, err))
    {
        return false;
    }
    for (int i = 0; i < view->ndim; i++) {
        if (buffer->strides[i] % buffer->itemsize != 0) {
            return rap_fail(err, RAP_EINPUT, "%s: strides are no multiple of the item size",
                            name);
        }
        view->shape[i] = buffer->shape[i];
        view->stride[i] = buffer->strides[i] / buffer->itemsize;
    }
    view->data = buffer->buf;
    view->readonly = buffer->readonly != 0;
    return fits(name, view, err);
}

/* ------------------------------------------------------------------------------------- */

/* What is not NumPy's: by the table of C functions, by DLPack, as a buffer. */
static bool
from_producer(PyObject *object, int64_t stream, const char *name, rap_array *view,
              rap_error *err)
{
    const DLPackExchangeAPI *api = exchange_api(object);
    PyObject *capsule = NULL;
    bool ok = false, taken = false;

    if (api != NULL) {
        ok = from_exchange(api, object, stream, name, view, &taken, err);
    }
    if (taken) {
        return ok;
    }
    capsule = ask_dlpack(object, stream);
    if (capsule != NULL) {
        ok = from_capsule(capsule, name, view, err);
    }
    else if (PyErr_Occurred()) {
        ok = rap_fail(err, RAP_EPYTHON, "%s", name);
    }
    else {
        ok = from_buffer(object, name, view, err);
    }
    Py_XDECREF(capsule);
    return ok;
}

static bool
is_in_host_memory(const char *name, rap_array *view, rap_error *err)
{
    if (view->device != 0) {
        rap_array_release(view);
        return rap_fail(err, RAP_EINPUT,
                        "%s is on a CUDA device and cannot be computed with here; move it "
                        "with .cpu()",
                        name);
    }
    return true;
}

bool
rap_array_from(PyObject *object, const char *name, int64_t stream, rap_array *view,
               rap_error *err)
{
    static const char nothing[64] = {0};
    bool ok;

    if (object == Py_None) {
        return rap_fail(err, RAP_ETYPE, "%s: expected an array, got None", name);
    }
    ok = PyArray_Check(object) ? from_numpy((PyArrayObject *)object, name, view, err)
                               : from_producer(object, stream, name, view, err);
    if (!ok) {
        rap_array_release(view);
        return false;
    }
    if (view->data == NULL) {
        view->data = (void *)nothing; /* empty tensors may have no memory at all */
    }
    return stream != RAP_NO_STREAM || is_in_host_memory(name, view, err);
}

bool
rap_array_out(PyObject *object, const char *name, rap_dtype dtype, int64_t stream,
              rap_array *view, rap_error *err)
{
    if (!rap_array_from(object, name, stream, view, err)) {
        return false;
    }
    if (view->dtype != dtype || view->readonly || view->ndim < 1
        || (view->shape[view->ndim - 1] > 1 && view->stride[view->ndim - 1] != 1))
    {
        return rap_fail(err, RAP_ETYPE, "%s: expected a writable contiguous array", name);
    }
    return true;
}
