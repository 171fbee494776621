/* SPDX-License-Identifier: Apache-2.0 */
#include "cde.h"

#include <math.h>

#include "../hd.h"
#include "../status.h"

static bool
check_pair(const rap_array *a, const rap_array *b, const char *name, rap_error *err)
{
    if (a->ndim != 2 || b->ndim != 2) {
        return rap_fail(err, RAP_EINPUT,
                        "%s1 and %s0: expected two dimensions, got %d and %d", name, name,
                        a->ndim, b->ndim);
    }
    if (a->shape[0] != b->shape[0] || a->shape[1] != b->shape[1]) {
        return rap_fail(err, RAP_EINPUT,
                        "%s1 [%lld, %lld] and %s0 [%lld, %lld] must have the same shape",
                        name, (long long)a->shape[0], (long long)a->shape[1], name,
                        (long long)b->shape[0], (long long)b->shape[1]);
    }
    if (a->shape[1] < 1) {
        return rap_fail(err, RAP_EINPUT, "%s1: rows are empty", name);
    }
    if ((a->shape[1] > 1 && a->stride[1] != 1) || (b->shape[1] > 1 && b->stride[1] != 1)) {
        return rap_fail(err, RAP_EINPUT, "%s1, %s0: the last dimension must be contiguous",
                        name, name);
    }
    if (a->dtype > RAP_BF16 || b->dtype > RAP_BF16) {
        return rap_fail(err, RAP_ETYPE, "%s1, %s0: expected float32, float16 or bfloat16",
                        name, name);
    }
    return true;
}

static bool
check_targets(const rap_array *targets, int64_t rows, int64_t vocab, rap_error *err)
{
    const int64_t *data = targets->data;

    if (data == NULL) {
        return true;
    }
    if (targets->dtype != RAP_I64 || targets->ndim != 1 || targets->shape[0] != rows) {
        return rap_fail(err, RAP_EINPUT, "targets: expected int64 [%lld]", (long long)rows);
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

    return check_pair(&a->logits1, &a->logits0, "logits", err)
           && check_targets(&a->targets, a->logits1.shape[0], a->logits1.shape[1], err)
           && check_out(&a->out, a->logits1.shape[0], err);
}

bool
rap_linear_cde_check(const void *args, rap_error *err)
{
    const rap_linear_cde_args *a = args;
    const rap_array *w = &a->weight, *bias = &a->bias;

    if (!check_pair(&a->hidden1, &a->hidden0, "hidden", err)) {
        return false;
    }
    if (w->ndim != 2 || w->shape[1] != a->hidden1.shape[1] || w->shape[0] < 1) {
        return rap_fail(err, RAP_EINPUT, "weight: expected shape [V, %lld]",
                        (long long)a->hidden1.shape[1]);
    }
    if (w->dtype > RAP_BF16 || (w->shape[1] > 1 && w->stride[1] != 1)) {
        return rap_fail(err, RAP_EINPUT,
                        "weight: expected float32, float16 or bfloat16, rows contiguous");
    }
    if (bias->data != NULL
        && (bias->ndim != 1 || bias->shape[0] != w->shape[0] || bias->dtype > RAP_BF16))
    {
        return rap_fail(err, RAP_EINPUT, "bias: expected [%lld], float32 or 16-bit",
                        (long long)w->shape[0]);
    }
    if (!isfinite((float)a->scale) || !isfinite((float)a->softcap) || a->softcap < 0
        || (a->softcap > 0 && (float)a->softcap < RAP_FLOAT_TINY))
    {
        return rap_fail(err, RAP_EINPUT,
                        "scale and softcap must be float32 numbers, softcap positive");
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
