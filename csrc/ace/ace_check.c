/* SPDX-License-Identifier: Apache-2.0 */
#include "ace.h"

#include <math.h>
#include <stdio.h>

#include "../status.h"

static bool
check_heads(const rap_ace_args *a, rap_error *err)
{
    const rap_array *q = &a->q, *k = &a->k;

    if (q->ndim != 3 || k->ndim != 3) {
        return rap_fail(err, RAP_EINPUT,
                        "q and k: expected [heads, L, D], got %d and %d dimensions",
                        q->ndim, k->ndim);
    }
    if (q->shape[2] < 1) {
        return rap_fail(err, RAP_EINPUT, "q: heads have no dimension, D = 0");
    }
    if (q->shape[1] != k->shape[1] || q->shape[2] != k->shape[2]) {
        return rap_fail(
            err, RAP_EINPUT,
            "q [%lld, %lld, %lld] and k [%lld, %lld, %lld] must agree in L and D",
            (long long)q->shape[0], (long long)q->shape[1], (long long)q->shape[2],
            (long long)k->shape[0], (long long)k->shape[1], (long long)k->shape[2]);
    }
    if (k->shape[0] < 1 || q->shape[0] < 1 || q->shape[0] % k->shape[0] != 0) {
        return rap_fail(err, RAP_EINPUT, "%lld query heads cannot share %lld key heads",
                        (long long)q->shape[0], (long long)k->shape[0]);
    }
    if (q->shape[0] > RAP_ACE_MOST || q->shape[2] > RAP_ACE_MOST
        || q->shape[1] > RAP_ACE_MOST * RAP_ACE_MOST / q->shape[0])
    {
        return rap_fail(err, RAP_EINPUT,
                        "q [%lld, %lld, %lld]: more than 2^20 heads or dimensions, or 2^40 "
                        "rows of all heads",
                        (long long)q->shape[0], (long long)q->shape[1],
                        (long long)q->shape[2]);
    }
    return rap_expect_rows(q, "q", err) && rap_expect_rows(k, "k", err);
}

static bool
check_vector(const rap_array *v, const char *name, rap_dtype dtype, int64_t n,
             rap_error *err)
{
    if (v->data == NULL || (v->ndim == 1 && v->dtype == dtype && v->shape[0] == n)) {
        return true;
    }
    return rap_no_vector(v, name, dtype == RAP_BOOL ? "bool" : "int64", n, err);
}

/* What is wrong with sample number s, of which two offsets and a start are known. Where the
 * caller gave no offsets there is one sample, and they are right. */
static bool
wrong_sample(int64_t s, int64_t samples, const int64_t offset[2], int64_t start,
             rap_error *err)
{
    int64_t length;

    if (offset[1] < offset[0]) {
        return rap_fail(err, RAP_EINPUT,
                        "cu_seqlens[%lld] = %lld is below the one before it, %lld",
                        (long long)s + 1, (long long)offset[1], (long long)offset[0]);
    }
    length = offset[1] - offset[0];
    if (samples == 1) {
        return rap_fail(err, RAP_EINPUT, "response_start = %lld: expected 0 to L = %lld",
                        (long long)start, (long long)length);
    }
    return rap_fail(err, RAP_EINPUT,
                    "response_start = %lld of sample %lld: expected 0 to %lld, its length",
                    (long long)start, (long long)s, (long long)length);
}

static bool
check_samples(const rap_ace_args *a, rap_error *err)
{
    const int64_t samples = a->cu_seqlens.shape[0] - 1;
    int64_t before = 0;

    if (a->cu_seqlens.ndim != 1 || a->cu_seqlens.dtype != RAP_I64 || samples < 0
        || rap_i64_at(&a->cu_seqlens, 0) != 0
        || rap_i64_at(&a->cu_seqlens, samples) != a->q.shape[1])
    {
        return rap_fail(err, RAP_EINPUT,
                        "cu_seqlens: expected int64 [S + 1] that rises from 0 to L = %lld",
                        (long long)a->q.shape[1]);
    }
    if (!check_vector(&a->response_start, "response_start", RAP_I64, samples, err)) {
        return false;
    }
    for (int64_t s = 0; s < samples; s++) {
        int64_t end = rap_i64_at(&a->cu_seqlens, s + 1),
                start = rap_i64_at(&a->response_start, s);

        if (end < before || start < 0 || start > end - before) {
            return wrong_sample(s, samples, (int64_t[]){before, end}, start, err);
        }
        before = end;
    }
    return true;
}

static bool
is_dense(const rap_array *x, int64_t elements)
{
    int64_t size = 1;
    bool dense = true;

    for (int i = x->ndim - 1; i >= 0; i--) {
        dense = dense && (x->shape[i] <= 1 || x->stride[i] == size);
        size *= x->shape[i];
    }
    return size == elements && (dense || size == 0);
}

static bool
check_outputs(const rap_ace_args *a, rap_error *err)
{
    const int64_t fields = a->o.heads == RAP_ACE_EACH ? a->q.shape[0] : 1;
    const int64_t samples = a->cu_seqlens.shape[0] - 1;

    if (!is_dense(&a->summary, RAP_ACE_OUTPUTS * samples * fields)
        || !is_dense(&a->position, samples * fields)
        || !is_dense(&a->psi, fields * a->q.shape[1]))
    {
        return rap_fail(err, RAP_EINPUT, "outputs: expected other shapes, contiguous");
    }
    return true;
}

static bool
check_options(const rap_ace_options *o, rap_error *err)
{
    if (!isfinite(o->scale) || o->scale < 0) {
        return rap_fail(err, RAP_EINPUT, "scale = %g: expected a finite number >= 0",
                        o->scale);
    }
    if (!isfinite(o->sigma) || o->sigma <= 0) {
        return rap_fail(err, RAP_EINPUT, "sigma = %g: expected a finite number > 0",
                        o->sigma);
    }
    if (o->top < 1 || RAP_ACE_TOP < o->top) {
        return rap_fail(err, RAP_EINPUT, "top = %d: expected 1 to %d", o->top, RAP_ACE_TOP);
    }
    if (o->min_rows < 1 || o->window < 0 || o->key_window < 0 || o->heads < RAP_ACE_MEAN
        || o->heads > RAP_ACE_EACH || o->columns < RAP_ACE_RESPONSE
        || o->columns > RAP_ACE_ALL)
    {
        return rap_fail(err, RAP_EINPUT,
                        "options: expected min_rows >= 1, windows >= 0, heads and columns "
                        "of rap.kernels");
    }
    return true;
}

bool
rap_ace_check(const void *args, rap_error *err)
{
    const rap_ace_args *a = args;
    const rap_array *lse = &a->lse;
    char expected[72];

    if (!check_heads(a, err) || !check_samples(a, err)
        || !check_vector(&a->column_mask, "column_mask", RAP_BOOL, a->q.shape[1], err)
        || !check_vector(&a->image_mask, "image_mask", RAP_BOOL, a->q.shape[1], err)
        || !check_outputs(a, err))
    {
        return false;
    }
    if (lse->data != NULL
        && (lse->ndim != 2 || lse->shape[0] != a->q.shape[0]
            || lse->shape[1] != a->q.shape[1]
            || (lse->dtype != RAP_F32 && lse->dtype != RAP_F64)))
    {
        snprintf(expected, sizeof(expected), "float32 or float64 [%lld, %lld]",
                 (long long)a->q.shape[0], (long long)a->q.shape[1]);
        return rap_unexpected(lse, "lse", expected, err);
    }
    return check_options(&a->o, err);
}
