/* SPDX-License-Identifier: Apache-2.0
 *
 * From logits: one task a row; 16-bit logits are widened block by block on the stack.
 */
#include "cde.h"

#include <math.h>

#include "../hd.h"
#include "../parallel.h"
#include "../status.h"

void
rap_cde_start(rap_cde_state *state)
{
    *state =
        (rap_cde_state){.m1 = -INFINITY, .m0 = -INFINITY, .target1 = NAN, .target0 = NAN};
}

/* Rounding may leave a divergence a little outside its range; more than that is left to be
 * seen. */
static double
divergence(double value, double most)
{
    if (value < 0 && value > -RAP_CDE_SLACK) {
        return 0;
    }
    return value > most && value < most + RAP_CDE_SLACK ? most : value;
}

void
rap_cde_finish(const rap_cde_state *st, unsigned want, double *out, int64_t stride)
{
    const double unit = 1.0 / (double)RAP_LOG2E;
    double lnz1 = log2(st->z1), lnz0 = log2(st->z0);
    double kl = divergence(unit * (st->s1 / st->z1 - lnz1 + lnz0), INFINITY);
    double rkl = divergence(unit * (lnz1 - lnz0 - st->s0 / st->z0), INFINITY);
    double value[RAP_CDE_OUTPUTS] = {
        [RAP_CDE_KL] = kl,
        [RAP_CDE_RKL] = rkl,
        [RAP_CDE_JEFFREYS] = kl + rkl,
        [RAP_CDE_JS] = divergence(unit * st->js, RAP_LN2),
        [RAP_CDE_TV] = divergence(st->tv, 1),
        [RAP_CDE_HELLINGER2] = divergence(1 - st->b / sqrt(st->z1 * st->z0), 1),
        [RAP_CDE_ENTROPY1] = unit * (lnz1 - st->u1 / st->z1),
        [RAP_CDE_ENTROPY0] = unit * (lnz0 - st->u0 / st->z0),
        [RAP_CDE_LOGP1] = st->target1 - st->m1 - unit * lnz1,
        [RAP_CDE_LOGP0] = st->target0 - st->m0 - unit * lnz0,
    };

    for (int i = 0; i < RAP_CDE_OUTPUTS; i++) {
        if (want & RAP_CDE_BIT(i)) {
            out[i * stride] = value[i];
        }
    }
}

/* Floats at [row, begin) of logits: in place, or widened into buffer. */
static const float *
block_at(const rap_kernels *kernels, const rap_array *logits, int64_t row, int64_t begin,
         int64_t n, float *buffer)
{
    size_t size = rap_dtype_size(logits->dtype);
    const char *at =
        (const char *)logits->data + (row * logits->stride[0] + begin) * (int64_t)size;

    if (logits->dtype == RAP_F32) {
        return (const float *)at;
    }
    kernels->widen(at, logits->dtype, n, buffer);
    return buffer;
}

void
rap_cde_row(const rap_kernels *kernels, const rap_array *logits1, const rap_array *logits0,
            int64_t row, int64_t target, unsigned want, rap_cde_state *state)
{
    float buffer1[RAP_CDE_BLOCK], buffer0[RAP_CDE_BLOCK];
    const int64_t vocab = logits1->shape[1];

    for (int pass = 0; pass < (want & RAP_CDE_NEEDS_MIX ? 2 : 1); pass++) {
        for (int64_t begin = 0; begin < vocab; begin += RAP_CDE_BLOCK) {
            int64_t n = RAP_MIN(RAP_CDE_BLOCK, vocab - begin);
            const float *l1 = block_at(kernels, logits1, row, begin, n, buffer1);
            const float *l0 = block_at(kernels, logits0, row, begin, n, buffer0);

            if (target >= begin && target < begin + n) {
                state->target1 = l1[target - begin];
                state->target0 = l0[target - begin];
            }
            (pass == 0 ? kernels->cde_sweep : kernels->cde_mix)(l1, l0, n, want, state);
        }
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
    rap_cde_state state;
    int64_t target = -1;

    (void)worker;
    if (a->targets.data != NULL) {
        target = ((const int64_t *)a->targets.data)[row * a->targets.stride[0]];
    }
    rap_cde_start(&state);
    rap_cde_row(ctx->exec->kernels, &a->logits1, &a->logits0, row, target, a->want, &state);
    rap_cde_finish(&state, a->want, (double *)a->out.data + row, a->out.stride[0]);
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
    for (int64_t t = 0; t < rows; t++) {
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
