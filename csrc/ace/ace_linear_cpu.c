/* SPDX-License-Identifier: Apache-2.0
 *
 * The linear form for single heads whose row log-sum-exps are given: see ace.h.
 */
#include <string.h>

#include "ace_plan.h"

static const float *
vector_at(const ace_ctx *ctx, const rap_array *x, int64_t head, int64_t at, float *buffer)
{
    const char *vector =
        (const char *)x->data
        + (head * x->stride[0] + at * x->stride[1]) * (int64_t)rap_dtype_size(x->dtype);

    if (x->dtype == RAP_F32) {
        return (const float *)vector;
    }
    ctx->exec->kernels->widen(vector, x->dtype, ctx->dim, buffer);
    return buffer;
}

/* sum (+ or -)= q_row, and the same for its log-sum-exp */
static void
suffix_add(const ace_ctx *ctx, const ace_sample *s, int64_t head, int64_t row, double sign,
           float *buffer, double *suffix, double *lse)
{
    const float *q = vector_at(ctx, &ctx->a->q, head, s->begin + row, buffer);

    ctx->exec->kernels->ace_suffix_add(suffix, q, ctx->dim, sign);
    *lse += sign * rap_ace_lse(ctx, head, s->begin + row);
}

static double
column_sum(const ace_ctx *ctx, const ace_sample *s, int64_t head, int64_t j, float *buffer,
           const double *suffix, double lse)
{
    const float *k = vector_at(ctx, &ctx->a->k, head / ctx->group, s->begin + j, buffer);

    return ctx->a->o.scale * ctx->exec->kernels->ace_suffix_dot(suffix, k, ctx->dim) - lse;
}

void
rap_ace_linear(const ace_ctx *ctx, const ace_sample *s, int64_t head, float *scratch,
               double *sums)
{
    const int64_t window = rap_ace_window(&ctx->a->o, s->length);
    double *suffix = (double *)scratch, lse = 0;
    float *buffer = scratch + 2 * ctx->dim;

    memset(suffix, 0, (size_t)ctx->dim * sizeof(double));
    for (int64_t j = s->length - 1; j >= s->start; j--) {
        suffix_add(ctx, s, head, j, 1, buffer, suffix, &lse);
        if (j + window < s->length) {
            suffix_add(ctx, s, head, j + window, -1, buffer, suffix, &lse);
        }
        if (ctx->a->o.columns & RAP_ACE_RESPONSE) {
            sums[j] = column_sum(ctx, s, head, j, buffer, suffix, lse);
        }
    }
    /* the sums now cover the first rows of the response: I(j) of every prompt column */
    for (int64_t j = 0; j < s->start && (ctx->a->o.columns & RAP_ACE_PROMPT); j++) {
        sums[j] = column_sum(ctx, s, head, j, buffer, suffix, lse);
    }
}
