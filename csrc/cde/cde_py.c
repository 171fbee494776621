/* SPDX-License-Identifier: Apache-2.0
 *
 * Bindings in five paragraphs: parse, acquire, check, run, release and answer.
 */
#include "../cuda_py.h"
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

/* --- the same on a CUDA device ------------------------------------------------------- */

PyObject *
rap_py_cde_cuda(PyObject *module, PyObject *py_args, PyObject *kwargs)
{
    static char *names[] = {"logits1", "logits0", "targets",  "out",
                            "want",    "stream",  "allocate", NULL};
    PyObject *logits1, *logits0, *targets, *out;
    rap_cde_args args = {0};
    rap_device_plan plan = {.bytes = rap_cde_device_bytes, .run = rap_cde_device};
    rap_device_array arrays[] = {{&args.logits1, "logits1", false},
                                 {&args.logits0, "logits0", false},
                                 {&args.out, "out", false},
                                 {&args.targets, "targets", true},
                                 {NULL, NULL, false}};
    rap_error err = {0};
    long long stream;
    int64_t ready;

    if (!PyArg_ParseTupleAndKeywords(py_args, kwargs, "OOOOILO:cde_cuda", names, &logits1,
                                     &logits0, &targets, &out, &args.want, &stream,
                                     &plan.allocate))
    {
        return NULL;
    }
    plan.stream = stream;
    ready = rap_dlpack_stream(stream);

    if (rap_array_from_device(logits1, "logits1", false, ready, &args.logits1, &err)
        && rap_array_from_device(logits0, "logits0", false, ready, &args.logits0, &err)
        && rap_array_from_device(targets, "targets", true, ready, &args.targets, &err)
        && rap_array_out_device(out, "out", RAP_F64, ready, &args.out, &err)
        && rap_cde_check(&args, &err))
    {
        rap_run_on_device(module, arrays, &plan, &args, &err);
    }

    for (const rap_device_array *a = arrays; a->view != NULL; a++) {
        rap_array_release(a->view);
    }
    return rap_result(module, &err);
}

PyObject *
rap_py_linear_cde_cuda(PyObject *module, PyObject *py_args, PyObject *kwargs)
{
    static char *names[] = {"hidden1", "hidden0", "weight", "bias",   "targets",  "out",
                            "scale",   "softcap", "want",   "stream", "allocate", NULL};
    PyObject *hidden1, *hidden0, *weight, *bias, *targets, *out;
    rap_linear_cde_args args = {0};
    rap_device_plan plan = {.bytes = rap_linear_cde_device_bytes,
                            .run = rap_linear_cde_device};
    rap_device_array arrays[] = {{&args.hidden1, "hidden1", false},
                                 {&args.hidden0, "hidden0", false},
                                 {&args.weight, "weight", false},
                                 {&args.out, "out", false},
                                 {&args.bias, "bias", false},
                                 {&args.targets, "targets", true},
                                 {NULL, NULL, false}};
    rap_error err = {0};
    long long stream;
    int64_t ready;

    if (!PyArg_ParseTupleAndKeywords(py_args, kwargs, "OOOOOOddILO:linear_cde_cuda", names,
                                     &hidden1, &hidden0, &weight, &bias, &targets, &out,
                                     &args.scale, &args.softcap, &args.want, &stream,
                                     &plan.allocate))
    {
        return NULL;
    }
    plan.stream = stream;
    ready = rap_dlpack_stream(stream);

    if (rap_array_from_device(hidden1, "hidden1", false, ready, &args.hidden1, &err)
        && rap_array_from_device(hidden0, "hidden0", false, ready, &args.hidden0, &err)
        && rap_array_from_device(weight, "weight", false, ready, &args.weight, &err)
        && rap_array_from_device(bias, "bias", true, ready, &args.bias, &err)
        && rap_array_from_device(targets, "targets", true, ready, &args.targets, &err)
        && rap_array_out_device(out, "out", RAP_F64, ready, &args.out, &err)
        && rap_linear_cde_check(&args, &err))
    {
        rap_run_on_device(module, arrays, &plan, &args, &err);
    }

    for (const rap_device_array *a = arrays; a->view != NULL; a++) {
        rap_array_release(a->view);
    }
    return rap_result(module, &err);
}

PyObject *
rap_py_cde_means_cuda(PyObject *module, PyObject *py_args, PyObject *kwargs)
{
    static char *names[] = {"answers", "weights", "cu_seqlens", "out",
                            "want",    "stream",  "allocate",   NULL};
    PyObject *answers, *weights, *cu_seqlens, *out;
    rap_cde_means_args args = {0};
    rap_device_plan plan = {.bytes = rap_cde_means_device_bytes,
                            .run = rap_cde_means_device};
    rap_device_array arrays[] = {{&args.answers, "answers", false},
                                 {&args.out, "out", false},
                                 {&args.cu_seqlens, "cu_seqlens", true},
                                 {&args.weights, "weights", true},
                                 {NULL, NULL, false}};
    rap_error err = {0};
    long long stream;
    int64_t ready;

    if (!PyArg_ParseTupleAndKeywords(py_args, kwargs, "OOOOILO:cde_means_cuda", names,
                                     &answers, &weights, &cu_seqlens, &out, &args.want,
                                     &stream, &plan.allocate))
    {
        return NULL;
    }
    plan.stream = stream;
    ready = rap_dlpack_stream(stream);

    if (rap_array_from_device(answers, "answers", false, ready, &args.answers, &err)
        && rap_array_from_device(weights, "weights", true, ready, &args.weights, &err)
        && rap_array_from_device(cu_seqlens, "cu_seqlens", false, ready, &args.cu_seqlens,
                                 &err)
        && rap_array_out_device(out, "out", RAP_F64, ready, &args.out, &err)
        && rap_cde_means_check(&args, &err))
    {
        rap_run_on_device(module, arrays, &plan, &args, &err);
    }

    for (const rap_device_array *a = arrays; a->view != NULL; a++) {
        rap_array_release(a->view);
    }
    return rap_result(module, &err);
}
