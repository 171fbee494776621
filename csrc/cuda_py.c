/* SPDX-License-Identifier: Apache-2.0
 *
 * What Python asks of the CUDA side besides the kernels.
 */
#include "module.h"

#include <stdio.h>

#include "cuda/fatbin.h"
#include "driver.h"

enum { CAPABILITY_MAJOR = 75, CAPABILITY_MINOR = 76 }; /* CUdevice_attribute */

static PyObject *
rooms(void)
{
    PyObject *list = PyList_New(0);

    for (const rap_fatbin *f = rap_fatbins; list != NULL && f->room != NULL; f++) {
        PyObject *room = PyUnicode_FromString(f->room);

        if (room == NULL || PyList_Append(list, room) != 0) {
            Py_CLEAR(list);
        }
        Py_XDECREF(room);
    }
    return list;
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
    PyObject *built = rooms(), *found = devices(api);
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
    return Py_BuildValue("{s:s,s:N,s:i,s:i,s:N,s:z}", "made", rap_fatbin_made, "rooms",
                         built, "toolkit", rap_fatbin_toolkit, "driver", version, "devices",
                         found, "error", api == NULL ? err.text : NULL);
}
