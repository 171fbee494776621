/* SPDX-License-Identifier: Apache-2.0
 *
 * Binding in five paragraphs: parse, acquire, check, run, release and answer.
 */
#include "../cuda_py.h"
#include "ace.h"

/* Offsets as int64 arrays; or None for one sample of length L, and an int for its
 * response_start: `one` holds them then, and two small arrays are spared. */
static bool
acquire_samples(PyObject *cu_seqlens, PyObject *response_start, int64_t one[3],
                rap_ace_args *a, rap_error *err)
{
    int overflow = 0;
    bool ok = true;

    if (cu_seqlens == Py_None) {
        one[0] = 0;
        one[1] = a->q.shape[1];
        a->cu_seqlens = (rap_array){
            .data = one, .shape = {2}, .stride = {1}, .ndim = 1, .dtype = RAP_I64};
    }
    else {
        ok = rap_array_from(cu_seqlens, "cu_seqlens", false, &a->cu_seqlens, err);
    }
    if (ok && PyLong_Check(response_start)) {
        one[2] = PyLong_AsLongLongAndOverflow(response_start, &overflow);
        a->response_start = (rap_array){
            .data = one + 2, .shape = {1}, .stride = {1}, .ndim = 1, .dtype = RAP_I64};
    }
    else {
        ok = ok
             && rap_array_from(response_start, "response_start", false, &a->response_start,
                               err);
    }
    return ok;
}

static bool
acquire(PyObject *const *object, int64_t one[3], rap_ace_args *a, rap_error *err)
{
    return rap_array_from(object[0], "q", false, &a->q, err)
           && rap_array_from(object[1], "k", false, &a->k, err)
           && acquire_samples(object[2], object[3], one, a, err)
           && rap_array_from(object[4], "column_mask", true, &a->column_mask, err)
           && rap_array_from(object[5], "image_mask", true, &a->image_mask, err)
           && rap_array_from(object[6], "lse", true, &a->lse, err)
           && rap_array_out(object[7], "summary", RAP_F64, &a->summary, err)
           && rap_array_out(object[8], "position", RAP_I64, &a->position, err)
           && rap_array_out(object[9], "psi", RAP_F64, &a->psi, err);
}

PyObject *
rap_py_ace(PyObject *module, PyObject *py_args, PyObject *kwargs)
{
    static char *names[] = {"q",           "k",          "cu_seqlens",  "response_start",
                            "column_mask", "image_mask", "lse",         "summary",
                            "position",    "psi",        "scale",       "sigma",
                            "min_rows",    "window",     "key_window",  "heads",
                            "columns",     "top",        "renormalise", "normalise",
                            "stats",       "threads",    NULL};
    PyObject *o[10];
    rap_ace_args args = {0};
    rap_error err = {0};
    rap_exec exec;
    int64_t one[3];
    long long min_rows, window, key_window;
    int renormalise, normalise, stats, threads;

    if (!PyArg_ParseTupleAndKeywords(py_args, kwargs, "OOOOOOOOOOddLLLiiipppi:ace", names,
                                     &o[0], &o[1], &o[2], &o[3], &o[4], &o[5], &o[6], &o[7],
                                     &o[8], &o[9], &args.scale, &args.sigma, &min_rows,
                                     &window, &key_window, &args.heads, &args.columns,
                                     &args.top, &renormalise, &normalise, &stats, &threads))
    {
        return NULL;
    }
    args.min_rows = min_rows;
    args.window = window;
    args.key_window = key_window;
    args.renormalise = renormalise;
    args.normalise = normalise;
    args.stats = stats;

    if (acquire(o, one, &args, &err) && rap_ace_check(&args, &err)) {
        const int64_t *shape = args.q.shape;
        double products =
            (double)shape[0] * (double)shape[1] * (double)shape[1] * (double)shape[2] / 2;
        PyThreadState *saved = rap_begin(module, threads, products, &exec);

        rap_ace_cpu(&args, &exec, &err);
        rap_end(saved, &exec);
    }

    rap_array *views[] = {
        &args.q,           &args.k,          &args.cu_seqlens, &args.response_start,
        &args.column_mask, &args.image_mask, &args.lse,        &args.summary,
        &args.position,    &args.psi};

    for (size_t i = 0; i < sizeof(views) / sizeof(views[0]); i++) {
        rap_array_release(views[i]);
    }
    return rap_result(module, &err);
}

/* --- the same on a CUDA device ------------------------------------------------------- */

static bool
acquire_device(PyObject *const *object, int64_t ready, int64_t one[3], rap_ace_args *a,
               rap_error *err)
{
    return rap_array_from_device(object[0], "q", false, ready, &a->q, err)
           && rap_array_from_device(object[1], "k", false, ready, &a->k, err)
           && acquire_samples(object[2], object[3], one, a, err)
           && rap_array_from_device(object[4], "column_mask", true, ready, &a->column_mask,
                                    err)
           && rap_array_from_device(object[5], "image_mask", true, ready, &a->image_mask,
                                    err)
           && rap_array_from_device(object[6], "lse", true, ready, &a->lse, err)
           && rap_array_out_device(object[7], "summary", RAP_F64, ready, &a->summary, err)
           && rap_array_out_device(object[8], "position", RAP_I64, ready, &a->position, err)
           && rap_array_out_device(object[9], "psi", RAP_F64, ready, &a->psi, err);
}

PyObject *
rap_py_ace_cuda(PyObject *module, PyObject *py_args, PyObject *kwargs)
{
    static char *names[] = {"q",           "k",          "cu_seqlens",  "response_start",
                            "column_mask", "image_mask", "lse",         "summary",
                            "position",    "psi",        "scale",       "sigma",
                            "min_rows",    "window",     "key_window",  "heads",
                            "columns",     "top",        "renormalise", "normalise",
                            "stats",       "stream",     "allocate",    NULL};
    PyObject *o[10];
    rap_ace_args args = {0};
    rap_device_plan plan = {.bytes = rap_ace_device_bytes, .run = rap_ace_device};
    rap_device_array arrays[] = {{&args.q, "q", false},
                                 {&args.k, "k", false},
                                 {&args.lse, "lse", false},
                                 {&args.summary, "summary", false},
                                 {&args.position, "position", false},
                                 {&args.psi, "psi", false},
                                 {&args.column_mask, "column_mask", true},
                                 {&args.image_mask, "image_mask", true},
                                 {NULL, NULL, false}};
    rap_error err = {0};
    int64_t one[3];
    long long min_rows, window, key_window, stream;
    int renormalise, normalise, stats;

    if (!PyArg_ParseTupleAndKeywords(
            py_args, kwargs, "OOOOOOOOOOddLLLiiipppLO:ace_cuda", names, &o[0], &o[1], &o[2],
            &o[3], &o[4], &o[5], &o[6], &o[7], &o[8], &o[9], &args.scale, &args.sigma,
            &min_rows, &window, &key_window, &args.heads, &args.columns, &args.top,
            &renormalise, &normalise, &stats, &stream, &plan.allocate))
    {
        return NULL;
    }
    args.min_rows = min_rows;
    args.window = window;
    args.key_window = key_window;
    args.renormalise = renormalise;
    args.normalise = normalise;
    args.stats = stats;
    plan.stream = stream;

    if (acquire_device(o, rap_dlpack_stream(stream), one, &args, &err)
        && rap_ace_check(&args, &err))
    {
        rap_run_on_device(module, arrays, &plan, &args, &err);
    }

    for (const rap_device_array *a = arrays; a->view != NULL; a++) {
        rap_array_release(a->view);
    }
    rap_array_release(&args.cu_seqlens);
    rap_array_release(&args.response_start);
    return rap_result(module, &err);
}
