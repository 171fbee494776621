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

        /* the caller's array may have changed since the check: NaN then, as on a device */
        if (target >= 0 && target < a->logits1.shape[1]) {
            state.target1 = logit(kernels, &a->logits1, row, target);
            state.target0 = logit(kernels, &a->logits0, row, target);
        }
    }
    sweep_row(kernels, a, row, &state);
    rap_cde_answer(&state, a->want, (double *)a->out.data + row, a->out.stride[0]);
}

bool
rap_cde_cpu(void *args, rap_exec *exec, rap_error *err)
{
    rows_ctx ctx = {args, exec};

    return rap_parallel(exec, ctx.args->logits1.shape[0], rows_task, &ctx, err);
}
