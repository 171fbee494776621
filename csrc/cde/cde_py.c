/* SPDX-License-Identifier: Apache-2.0
 *
 * The bindings of cde, linear_cde and cde_means: positional arguments only, see rap/_C.pyi.
 */
#include "../call.h"
#include "../module.h"
#include "cde.h"

#define AT(args, view) (unsigned)offsetof(args, view)
#define COUNT(list) (int)(sizeof(list) / sizeof((list)[0]))

/* --- from logits --------------------------------------------------------------------- */

static double
cde_work(const void *args)
{
    const rap_array *l1 = &((const rap_cde_args *)args)->logits1;

    return 8 * (double)l1->shape[0] * (double)l1->shape[1];
}

static const rap_argument cde_arguments[] = {
    {"logits1", AT(rap_cde_args, logits1), 0},
    {"logits0", AT(rap_cde_args, logits0), 0},
    {"targets", AT(rap_cde_args, targets), RAP_OPTIONAL | RAP_SMALL},
    {"out", AT(rap_cde_args, out), RAP_OUT_F64},
};

static const rap_binding cde_binding = {
    .arguments = cde_arguments,
    .count = COUNT(cde_arguments),
    .check = rap_cde_check,
    .work = cde_work,
    .cpu = rap_cde_cpu,
    .device_bytes = rap_cde_device_bytes,
    .device = rap_cde_device,
};

PyObject *
rap_py_cde(PyObject *module, PyObject *py_args)
{
    PyObject *o[COUNT(cde_arguments)];
    rap_cde_args args = {0};
    PyObject *where;

    if (!PyArg_ParseTuple(py_args, "OOOOIO:cde", &o[0], &o[1], &o[2], &o[3], &args.want,
                          &where))
    {
        return NULL;
    }
    return rap_call(module, &cde_binding, o, where, &args);
}

/* --- from hidden states -------------------------------------------------------------- */

static double
linear_cde_work(const void *args)
{
    const rap_linear_cde_args *a = args;
    const int64_t *hidden = a->hidden1.shape;

    return (double)hidden[0] * (double)hidden[1] * (double)a->weight.shape[0];
}

static const rap_argument linear_cde_arguments[] = {
    {"hidden1", AT(rap_linear_cde_args, hidden1), 0},
    {"hidden0", AT(rap_linear_cde_args, hidden0), 0},
    {"weight", AT(rap_linear_cde_args, weight), 0},
    {"bias", AT(rap_linear_cde_args, bias), RAP_OPTIONAL},
    {"targets", AT(rap_linear_cde_args, targets), RAP_OPTIONAL | RAP_SMALL},
    {"out", AT(rap_linear_cde_args, out), RAP_OUT_F64},
};

static const rap_binding linear_cde_binding = {
    .arguments = linear_cde_arguments,
    .count = COUNT(linear_cde_arguments),
    .check = rap_linear_cde_check,
    .work = linear_cde_work,
    .cpu = rap_linear_cde_cpu,
    .device_bytes = rap_linear_cde_device_bytes,
    .device = rap_linear_cde_device,
};

PyObject *
rap_py_linear_cde(PyObject *module, PyObject *py_args)
{
    PyObject *o[COUNT(linear_cde_arguments)];
    rap_linear_cde_args args = {0};
    PyObject *where;
    Py_ssize_t memory;

    if (!PyArg_ParseTuple(py_args, "OOOOOOddnIO:linear_cde", &o[0], &o[1], &o[2], &o[3],
                          &o[4], &o[5], &args.scale, &args.softcap, &memory, &args.want,
                          &where))
    {
        return NULL;
    }
    args.memory = memory;
    return rap_call(module, &linear_cde_binding, o, where, &args);
}

/* --- means over packed samples ------------------------------------------------------- */

static const rap_argument means_arguments[] = {
    {"answers", AT(rap_cde_means_args, answers), 0},
    {"weights", AT(rap_cde_means_args, weights), RAP_OPTIONAL | RAP_SMALL},
    {"cu_seqlens", AT(rap_cde_means_args, cu_seqlens), RAP_SMALL},
    {"out", AT(rap_cde_means_args, out), RAP_OUT_F64},
};

static const rap_binding means_binding = {
    .arguments = means_arguments,
    .count = COUNT(means_arguments),
    .check = rap_cde_means_check,
    .device_bytes = rap_cde_means_device_bytes,
    .device = rap_cde_means_device,
};

PyObject *
rap_py_cde_means(PyObject *module, PyObject *py_args)
{
    PyObject *o[COUNT(means_arguments)];
    rap_cde_means_args args = {0};
    PyObject *where;

    if (!PyArg_ParseTuple(py_args, "OOOOIO:cde_means", &o[0], &o[1], &o[2], &o[3],
                          &args.want, &where))
    {
        return NULL;
    }
    return rap_call(module, &means_binding, o, where, &args);
}
