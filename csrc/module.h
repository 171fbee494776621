/* SPDX-License-Identifier: Apache-2.0
 *
 * The functions that Python sees as rap._C; module.c lists them.
 */
#ifndef RAP_MODULE_H
#define RAP_MODULE_H

#include "binding.h"

/* The kernels. */
PyObject *rap_py_cde(PyObject *module, PyObject *args);
PyObject *rap_py_linear_cde(PyObject *module, PyObject *args);
PyObject *rap_py_cde_means(PyObject *module, PyObject *args);
PyObject *rap_py_ace(PyObject *module, PyObject *args);
PyObject *rap_py_drm(PyObject *module, PyObject *args);

/* CUDA, besides the kernels. */
bool rap_cuda_kernels_setup(PyObject *module); /* the constant CUDA_KERNELS */
PyObject *rap_py_cuda_info(PyObject *module, PyObject *unused);
PyObject *rap_py_cublaslt(PyObject *module, PyObject *args);
PyObject *rap_py_cuda_alloc(PyObject *module, PyObject *args);
PyObject *rap_py_cuda_read(PyObject *module, PyObject *args);
PyObject *rap_py_cuda_wait(PyObject *module, PyObject *args);
PyObject *rap_py_cuda_device_of(PyObject *module, PyObject *args);
PyObject *rap_py_cuda_dlpack(PyObject *module, PyObject *args);

#endif
