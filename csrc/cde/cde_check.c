/* SPDX-License-Identifier: Apache-2.0 */
#include "cde.h"

#include <math.h>
#include <stdio.h>

#include "../hd.h"
#include "../status.h"

static bool
check_pair(const rap_array *a, const rap_array *b, const char *name1, const char *name0,
           rap_error *err)
{
    if (a->ndim != 2 || b->ndim != 2) {
        return rap_fail(err, RAP_EINPUT,
                        "%s and %s: expected two dimensions, or three, each; got %d and %d",
                        name1, name0, a->ndim, b->ndim);
    }
    if (a->shape[0] != b->shape[0] || a->shape[1] != b->shape[1]) {
        return rap_fail(err, RAP_EINPUT,
                        "%s [%lld, %lld] and %s [%lld, %lld] must have the same shape",
                        name1, (long long)a->shape[0], (long long)a->shape[1], name0,
                        (long long)b->shape[0], (long long)b->shape[1]);
    }
    if (a->shape[1] < 1) {
        return rap_fail(err, RAP_EINPUT, "%s: rows are empty", name1);
    }
    return rap_expect_rows(a, name1, err) && rap_expect_rows(b, name0, err);
}

static bool
check_targets(const rap_array *targets, int64_t rows, int64_t vocab, rap_error *err)
{
    const int64_t *data = targets->data;

    if (data == NULL) {
        return true;
    }
    if (targets->dtype != RAP_I64 || targets->ndim != 1 || targets->shape[0] != rows) {
        return rap_no_vector(targets, "targets", "int64", rows, err);
    }
    for (int64_t t = 0; targets->device == 0 && t < rows; t++) {
        int64_t target = data[t * targets->stride[0]];

        if (target < 0 || target >= vocab) {
            return rap_fail(err, RAP_EINPUT, "targets[%lld] = %lld is not in [0, %lld)",
                            (long long)t, (long long)target, (long long)vocab);
        }
    }
    return true;
}

static bool
check_out(const rap_array *out, int64_t rows, rap_error *err)
{
    if (out->ndim != 2 || out->shape[0] != RAP_CDE_OUTPUTS || out->shape[1] != rows) {
        return rap_fail(err, RAP_EINPUT, "out: expected float64 [%d, %lld]",
                        RAP_CDE_OUTPUTS, (long long)rows);
    }
    return true;
}

bool
rap_cde_check(const void *args, rap_error *err)
{
    const rap_cde_args *a = args;

    return check_pair(&a->logits1, &a->logits0, "logits1", "logits0", err)
           && check_targets(&a->targets, a->logits1.shape[0], a->logits1.shape[1], err)
           && check_out(&a->out, a->logits1.shape[0], err);
}

bool
rap_linear_cde_check(const void *args, rap_error *err)
{
    const rap_linear_cde_args *a = args;
    const rap_array *w = &a->weight, *bias = &a->bias;
    char expected[40];

    if (!check_pair(&a->hidden1, &a->hidden0, "hidden1", "hidden0", err)) {
        return false;
    }
    if (w->ndim != 2 || w->shape[1] != a->hidden1.shape[1] || w->shape[0] < 1) {
        snprintf(expected, sizeof(expected), "[V, %lld]", (long long)a->hidden1.shape[1]);
        return rap_unexpected(w, "weight", expected, err);
    }
    if (!rap_expect_rows(w, "weight", err)) {
        return false;
    }
    if (bias->data != NULL && (bias->ndim != 1 || bias->shape[0] != w->shape[0])) {
        return rap_no_vector(bias, "bias", "numbers", w->shape[0], err);
    }
    if (bias->data != NULL && !rap_expect_floats(bias, "bias", err)) {
        return false;
    }
    if (!isfinite((float)a->scale)) {
        return rap_fail(err, RAP_EINPUT, "scale = %g: expected a finite float32", a->scale);
    }
    if (!isfinite((float)a->softcap) || a->softcap < 0
        || (a->softcap > 0 && (float)a->softcap < RAP_FLOAT_TINY))
    {
        return rap_fail(err, RAP_EINPUT, "softcap = %g: expected a float32 > 0",
                        a->softcap);
    }
    return check_targets(&a->targets, a->hidden1.shape[0], w->shape[0], err)
           && check_out(&a->out, a->hidden1.shape[0], err);
}

bool
rap_cde_means_check(const void *args, rap_error *err)
{
    const rap_cde_means_args *a = args;
    const int64_t rows = a->answers.shape[1], samples = a->cu_seqlens.shape[0] - 1;

    if (a->answers.ndim != 2 || a->out.ndim != 2 || a->answers.shape[0] != RAP_CDE_OUTPUTS
        || a->out.shape[0] != RAP_CDE_OUTPUTS || a->answers.dtype != RAP_F64)
    {
        return rap_fail(err, RAP_EINPUT, "answers and out: expected [%d, ...]",
                        RAP_CDE_OUTPUTS);
    }
    if (a->cu_seqlens.ndim != 1 || samples < 0 || a->out.shape[1] != samples) {
        return rap_fail(err, RAP_EINPUT, "cu_seqlens: expected [S + 1]");
    }
    if (a->cu_seqlens.dtype != RAP_I64) {
        return rap_fail(err, RAP_ETYPE, "cu_seqlens: expected int64");
    }
    if (a->weights.data == NULL) {
        return true;
    }
    if (a->weights.ndim != 1 || a->weights.shape[0] != rows) {
        return rap_fail(err, RAP_EINPUT, "weights: expected finite numbers >= 0, [%lld]",
                        (long long)rows);
    }
    return a->weights.dtype == RAP_F32 || a->weights.dtype == RAP_F64
           || rap_fail(err, RAP_ETYPE, "weights: expected float32 or float64");
}
