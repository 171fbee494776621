/* SPDX-License-Identifier: Apache-2.0
 *
 * Bindings in five paragraphs: parse, acquire, check, run, release and answer.
 */
#include "../array.h"
#include "../module.h"
#include "cde.h"

static double
size_of(const rap_array *a)
{
    return (double)a->shape[0] * (double)a->shape[1];
}

PyObject *
rap_py_cde(PyObject *module, PyObject *py_args, PyObject *kwargs)
{
    static char *names[] = {"logits1", "logits0", "targets", "out",
                            "want",    "threads", NULL};
    PyObject *logits1, *logits0, *targets, *out;
    rap_cde_args args = {0};
    rap_error err = {0};
    rap_exec exec;
    int threads;

    if (!PyArg_ParseTupleAndKeywords(py_args, kwargs, "OOOOIi:cde", names, &logits1,
                                     &logits0, &targets, &out, &args.want, &threads))
    {
        return NULL;
    }

    if (rap_array_from(logits1, "logits1", false, &args.logits1, &err)
        && rap_array_from(logits0, "logits0", false, &args.logits0, &err)
        && rap_array_from(targets, "targets", true, &args.targets, &err)
        && rap_array_out(out, "out", RAP_F64, &args.out, &err)
        && rap_cde_check(&args, &err))
    {
        PyThreadState *saved =
            rap_begin(module, threads, 8 * size_of(&args.logits1), &exec);

        rap_cde_cpu(&args, &exec, &err);
        rap_end(saved, &exec);
    }

    rap_array_release(&args.logits1);
    rap_array_release(&args.logits0);
    rap_array_release(&args.targets);
    rap_array_release(&args.out);
    return rap_result(module, &err);
}

PyObject *
rap_py_linear_cde(PyObject *module, PyObject *py_args, PyObject *kwargs)
{
    static char *names[] = {"hidden1", "hidden0", "weight", "bias", "targets", "out",
                            "scale",   "softcap", "memory", "want", "threads", NULL};
    PyObject *hidden1, *hidden0, *weight, *bias, *targets, *out;
    rap_linear_cde_args args = {0};
    rap_error err = {0};
    rap_exec exec;
    long long memory;
    int threads;

    if (!PyArg_ParseTupleAndKeywords(py_args, kwargs, "OOOOOOddLIi:linear_cde", names,
                                     &hidden1, &hidden0, &weight, &bias, &targets, &out,
                                     &args.scale, &args.softcap, &memory, &args.want,
                                     &threads))
    {
        return NULL;
    }
    args.memory = memory;

    if (rap_array_from(hidden1, "hidden1", false, &args.hidden1, &err)
        && rap_array_from(hidden0, "hidden0", false, &args.hidden0, &err)
        && rap_array_from(weight, "weight", false, &args.weight, &err)
        && rap_array_from(bias, "bias", true, &args.bias, &err)
        && rap_array_from(targets, "targets", true, &args.targets, &err)
        && rap_array_out(out, "out", RAP_F64, &args.out, &err)
        && rap_linear_cde_check(&args, &err))
    {
        double products = size_of(&args.hidden1) * (double)args.weight.shape[0];
        PyThreadState *saved = rap_begin(module, threads, products, &exec);

        rap_linear_cde_cpu(&args, &exec, &err);
        rap_end(saved, &exec);
    }

    rap_array_release(&args.hidden1);
    rap_array_release(&args.hidden0);
    rap_array_release(&args.weight);
    rap_array_release(&args.bias);
    rap_array_release(&args.targets);
    rap_array_release(&args.out);
    return rap_result(module, &err);
}
