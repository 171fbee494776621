/* SPDX-License-Identifier: Apache-2.0
 *
 * The binding of ace: positional arguments only, see rap/_C.pyi.
 */
#include "../call.h"
#include "../module.h"
#include "ace.h"

static double
work(const void *args)
{
    const int64_t *q = ((const rap_ace_args *)args)->q.shape;

    return (double)q[0] * (double)q[1] * (double)q[1] * (double)q[2] / 2;
}

#define AT(view) (unsigned)offsetof(rap_ace_args, view)

enum {
    Q,
    K,
    CU_SEQLENS,
    RESPONSE_START,
    COLUMN_MASK,
    IMAGE_MASK,
    LSE,
    SUMMARY,
    POSITION,
    PSI,
    COUNT
};

static const rap_argument arguments[COUNT] = {
    [Q] = {"q", AT(q), 0},
    [K] = {"k", AT(k), 0},
    [CU_SEQLENS] = {"cu_seqlens", AT(cu_seqlens), RAP_HOST},
    [RESPONSE_START] = {"response_start", AT(response_start), RAP_HOST},
    [COLUMN_MASK] = {"column_mask", AT(column_mask), RAP_OPTIONAL | RAP_SMALL},
    [IMAGE_MASK] = {"image_mask", AT(image_mask), RAP_OPTIONAL | RAP_SMALL},
    [LSE] = {"lse", AT(lse), RAP_OPTIONAL},
    [SUMMARY] = {"summary", AT(summary), RAP_OUT_F64},
    [POSITION] = {"position", AT(position), RAP_OUT_I64},
    [PSI] = {"psi", AT(psi), RAP_OUT_F64},
};

static const rap_binding binding = {
    .arguments = arguments,
    .count = COUNT,
    .check = rap_ace_check,
    .work = work,
    .cpu = rap_ace_cpu,
    .device_bytes = rap_ace_device_bytes,
    .device = rap_ace_device,
};

/* An int instead of a vector of n int64, of which it is the last; the others are 0: the
 * offsets of one sample come as its length. Two small arrays are spared. */
static void
take_int(PyObject **object, int64_t *vector, int64_t n, rap_array *view)
{
    int overflow;

    if (PyLong_Check(*object)) {
        vector[n - 1] = PyLong_AsLongLongAndOverflow(*object, &overflow);
        if (overflow != 0) {
            vector[n - 1] = overflow < 0 ? INT64_MIN : INT64_MAX;
        }
        *view = (rap_array){
            .data = vector, .shape = {n}, .stride = {1}, .ndim = 1, .dtype = RAP_I64};
        *object = NULL;
    }
}

PyObject *
rap_py_ace(PyObject *module, PyObject *py_args)
{
    PyObject *o[COUNT];
    rap_ace_args args = {0};
    rap_ace_options *a = &args.o;
    PyObject *where;
    int64_t offsets[2] = {0}, start[1];

    static_assert(sizeof(Py_ssize_t) == sizeof(int64_t), "n fills an int64_t");
    if (!PyArg_ParseTuple(py_args, "OOOOOOOOOO(ddnnniiippp)O:ace", &o[Q], &o[K],
                          &o[CU_SEQLENS], &o[RESPONSE_START], &o[COLUMN_MASK],
                          &o[IMAGE_MASK], &o[LSE], &o[SUMMARY], &o[POSITION], &o[PSI],
                          &a->scale, &a->sigma, &a->min_rows, &a->window, &a->key_window,
                          &a->heads, &a->columns, &a->top, &a->renormalise, &a->normalise,
                          &a->want_stats, &where))
    {
        return NULL;
    }
    take_int(&o[CU_SEQLENS], offsets, 2, &args.cu_seqlens);
    take_int(&o[RESPONSE_START], start, 1, &args.response_start);
    return rap_call(module, &binding, o, where, &args);
}
