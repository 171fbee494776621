/* SPDX-License-Identifier: Apache-2.0
 *
 * Binding in five paragraphs: parse, acquire, check, run, release and answer.
 */
#include "../array.h"
#include "../module.h"
#include "ace.h"

static bool
acquire(PyObject *const *object, rap_ace_args *a, rap_error *err)
{
    return rap_array_from(object[0], "q", false, &a->q, err)
           && rap_array_from(object[1], "k", false, &a->k, err)
           && rap_array_from(object[2], "cu_seqlens", false, &a->cu_seqlens, err)
           && rap_array_from(object[3], "response_start", false, &a->response_start, err)
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

    if (acquire(o, &args, &err) && rap_ace_check(&args, &err)) {
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
