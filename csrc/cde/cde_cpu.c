/* SPDX-License-Identifier: Apache-2.0
 *
 * From logits: one task a row.
 */
#include "cde.h"

#include <math.h>

#include "../parallel.h"
#include "../status.h"
#include "cde_math.h"

static const char *
logits_at(const rap_array *logits, int64_t row, int64_t v)
{
    return (const char *)logits->data
           + (row * logits->stride[0] + v) * (int64_t)rap_dtype_size(logits->dtype);
}

static double
logit(const rap_kernels *kernels, const rap_array *logits, int64_t row, int64_t v)
{
    float value;

    kernels->widen(logits_at(logits, row, v), logits->dtype, 1, &value);
    return value;
}

/* Branches of two dtypes: both widened, block by block. */
static void
sweep_mixed(const rap_kernels *kernels, const rap_cde_args *a, int64_t row, int pass,
            rap_cde_state *state)
{
    float buffer1[RAP_CDE_BLOCK], buffer0[RAP_CDE_BLOCK];
    const int64_t vocab = a->logits1.shape[1];

    for (int64_t v = 0; v < vocab; v += RAP_CDE_BLOCK) {
        int64_t n = RAP_MIN(RAP_CDE_BLOCK, vocab - v);

        kernels->widen(logits_at(&a->logits1, row, v), a->logits1.dtype, n, buffer1);
        kernels->widen(logits_at(&a->logits0, row, v), a->logits0.dtype, n, buffer0);
        (pass == 0 ? kernels->cde_sweep : kernels->cde_mix)(buffer1, buffer0, RAP_F32, n,
                                                            a->want, state);
    }
}

static void
sweep_row(const rap_kernels *kernels, const rap_cde_args *a, int64_t row,
          rap_cde_state *state)
{
    for (int pass = 0; pass < (a->want & RAP_CDE_NEEDS_MIX ? 2 : 1); pass++) {
        if (a->logits1.dtype != a->logits0.dtype) {
            sweep_mixed(kernels, a, row, pass, state);
            continue;
        }
        (pass == 0 ? kernels->cde_sweep : kernels->cde_mix)(
            logits_at(&a->logits1, row, 0), logits_at(&a->logits0, row, 0),
            a->logits1.dtype, a->logits1.shape[1], a->want, state);
    }
}

typedef struct {
    const rap_cde_args *args;
    rap_exec *exec;
} rows_ctx;

static void
rows_task(void *arg, int64_t row, int worker)
{
    const rows_ctx *ctx = arg;
    const rap_cde_args *a = ctx->args;
    const rap_kernels *kernels = ctx->exec->kernels;
    rap_cde_state state;

    (void)worker;
    rap_cde_clear(&state);
    if (a->targets.data != NULL) {
        int64_t target = ((const int64_t *)a->targets.data)[row * a->targets.stride[0]];

        state.target1 = logit(kernels, &a->logits1, row, target);
        state.target0 = logit(kernels, &a->logits0, row, target);
    }
    sweep_row(kernels, a, row, &state);
    rap_cde_answer(&state, a->want, (double *)a->out.data + row, a->out.stride[0]);
}

bool
rap_cde_cpu(const rap_cde_args *args, rap_exec *exec, rap_error *err)
{
    rows_ctx ctx = {args, exec};

    return rap_parallel(exec, args->logits1.shape[0], rows_task, &ctx, err);
}

/* --- checks, shared with linear_cde -------------------------------------------------- */

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
rap_cde_check(const rap_cde_args *a, rap_error *err)
{
    return check_pair(&a->logits1, &a->logits0, "logits", err)
           && check_targets(&a->targets, a->logits1.shape[0], a->logits1.shape[1], err)
           && check_out(&a->out, a->logits1.shape[0], err);
}

bool
rap_linear_cde_check(const rap_linear_cde_args *a, rap_error *err)
{
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
