/* SPDX-License-Identifier: Apache-2.0 */
#include "ace_plan.h"

#include <math.h>

#include "../gemm/gemm.h"
#include "../parallel.h"
#include "../status.h"

/* --- plan ---------------------------------------------------------------------------- */

/* The offsets are read again here: the caller's arrays may have changed since the check,
 * and from here on only the plan is used. */
static bool
plan_sample(ace_ctx *ctx, int64_t i, ace_sample *s, rap_error *err)
{
    const int64_t nr = ctx->exec->kernels->gemm_nr;
    int64_t rows;

    s->begin = rap_i64_at(&ctx->a->cu_seqlens, i);
    s->length = rap_i64_at(&ctx->a->cu_seqlens, i + 1) - s->begin;
    s->start = rap_i64_at(&ctx->a->response_start, i);
    if (s->begin < 0 || s->length < 0 || s->length > ctx->a->q.shape[1] - s->begin
        || s->start < 0 || s->start > s->length)
    {
        return rap_fail(err, RAP_EINPUT, "sample %lld: offsets changed during the call",
                        (long long)i);
    }
    s->ld = rap_ceil_div(RAP_MAX(s->length, 1), nr) * nr;
    rows = RAP_ACE_BLOCK / s->ld / RAP_ACE_ROWS * RAP_ACE_ROWS;
    s->block_rows = RAP_MAX(RAP_ACE_ROWS, RAP_MIN(4 * RAP_ACE_ROWS, rows));
    s->blocks = rap_ceil_div(s->length - s->start, s->block_rows);
    s->groups = RAP_MIN(RAP_ACE_GROUPS / ctx->fields, s->blocks / 2);
    s->groups = ctx->linear ? 1 : RAP_MAX(1, s->groups);
    s->packed_size = s->ld * ctx->dim;
    return true;
}

/* Floats of a worker: two blocks of scores, a row of logarithms and widened queries; the
 * linear form's suffix sum in float64 and a widened vector. */
static int64_t
scratch_of(const ace_ctx *ctx, const ace_sample *s)
{
    if (ctx->linear) {
        return 3 * ctx->dim;
    }
    return (2 * s->block_rows + 1) * s->ld + s->block_rows * ctx->dim;
}

bool
rap_ace_plan(const rap_ace_args *a, rap_exec *exec, ace_ctx *ctx, rap_error *err)
{
    int64_t packed = 0, sums = 0, total = a->q.shape[1];

    *ctx = (ace_ctx){.a = a, .exec = exec, .samples = a->cu_seqlens.shape[0] - 1};
    ctx->hq = a->q.shape[0];
    ctx->group = ctx->hq / a->k.shape[0];
    ctx->dim = a->q.shape[2];
    ctx->scale2 = rap_ace_scale2(&a->o);
    ctx->unit = rap_ace_unit(&a->o);
    ctx->ln_sigma = log(a->o.sigma);
    ctx->fields = a->o.heads == RAP_ACE_EACH ? ctx->hq : 1;
    ctx->linear = rap_ace_is_linear(&a->o, rap_ace_lse_given(ctx));
    ctx->sample = rap_alloc(ctx->samples * (int64_t)sizeof(ace_sample), err);
    if (ctx->sample == NULL) {
        return false;
    }
    for (int64_t i = 0; i < ctx->samples; i++) {
        ace_sample *s = &ctx->sample[i];

        if (!plan_sample(ctx, i, s, err)) {
            return false;
        }
        s->task_at = ctx->tasks;
        s->sums_at = sums;
        s->packed_at = packed;
        ctx->tasks += ctx->fields * s->groups;
        sums += ctx->fields * s->groups * (s->length + 3);
        packed += a->k.shape[0] * s->packed_size;
        ctx->scratch_size = RAP_MAX(ctx->scratch_size, scratch_of(ctx, s));
    }
    ctx->scratch_size = rap_ceil_div(ctx->scratch_size, 16) * 16; /* whole cache lines */
    ctx->sums = rap_alloc(8 * sums, err);
    ctx->scratch = rap_alloc(4 * ctx->scratch_size * rap_workers(exec, ctx->tasks), err);
    ctx->packed = ctx->linear ? NULL : rap_alloc(4 * packed, err);
    ctx->image = a->image_mask.data != NULL ? rap_alloc(4 * total, err) : NULL;
    for (int64_t i = 0; ctx->image != NULL && i < total; i++) {
        ctx->image[i] =
            ((const uint8_t *)a->image_mask.data)[i * a->image_mask.stride[0]] != 0;
    }
    return err->status == RAP_OK;
}

void
rap_ace_plan_free(ace_ctx *ctx)
{
    rap_free(ctx->image);
    rap_free(ctx->packed);
    rap_free(ctx->scratch);
    rap_free(ctx->sums);
    rap_free(ctx->sample);
}

const ace_sample *
rap_ace_sample_of(const ace_ctx *ctx, int64_t task)
{
    int64_t low = 0, high = ctx->samples - 1;

    while (low < high) {
        int64_t middle = (low + high + 1) / 2;

        if (ctx->sample[middle].task_at <= task) {
            low = middle;
        }
        else {
            high = middle - 1;
        }
    }
    return &ctx->sample[low];
}

/* --- keys and scores ----------------------------------------------------------------- */

typedef struct {
    const ace_ctx *ctx;
    float *lines; /* a worker: one panel of widened keys */
    int64_t lines_size;
    bool ok;
} pack_ctx;

static void
pack_task(void *arg, int64_t task, int worker)
{
    const pack_ctx *p = arg;
    const ace_ctx *ctx = p->ctx;
    const rap_array *k = &ctx->a->k;
    const ace_sample *s = &ctx->sample[task / k->shape[0]];
    const int64_t head = task % k->shape[0];
    const char *at = (const char *)k->data
                     + (head * k->stride[0] + s->begin * k->stride[1])
                           * (int64_t)rap_dtype_size(k->dtype);

    rap_gemm_pack(ctx->exec->kernels, at, k->dtype, k->stride[1], s->length, ctx->dim,
                  ctx->packed + s->packed_at + head * s->packed_size,
                  p->lines == NULL ? NULL : p->lines + worker * p->lines_size);
}

bool
rap_ace_pack(ace_ctx *ctx, rap_error *err)
{
    const int64_t tasks = ctx->samples * ctx->a->k.shape[0];
    pack_ctx p = {.ctx = ctx};
    bool ok;

    if (ctx->a->k.dtype != RAP_F32) {
        p.lines_size = ctx->exec->kernels->gemm_nr * ctx->dim;
        p.lines = rap_alloc(4 * p.lines_size * rap_workers(ctx->exec, tasks), err);
    }
    ok = err->status == RAP_OK && rap_parallel(ctx->exec, tasks, pack_task, &p, err);
    rap_free(p.lines);
    return ok;
}

void
rap_ace_scores(const ace_ctx *ctx, const float *q, int64_t ldq, int64_t rows,
               const float *packed, const ace_sample *s, int64_t key, int64_t keys,
               float *scores, int64_t ld)
{
    const rap_kernels *kernels = ctx->exec->kernels;
    const int64_t nr = kernels->gemm_nr, panels = s->ld / nr;

    for (int64_t d = 0; d < ctx->dim; d += RAP_GEMM_DEPTH) {
        int64_t depth = RAP_MIN(RAP_GEMM_DEPTH, ctx->dim - d);
        const float *block = packed + d * panels * nr;

        for (int64_t p = key / nr; p * nr < key + keys; p++) {
            kernels->gemm_panel(q + d, ldq, rows, block + p * depth * nr, depth, d > 0,
                                scores + p * nr - key, ld);
        }
    }
}

double
rap_ace_lse(const ace_ctx *ctx, int64_t head, int64_t at)
{
    const rap_array *lse = &ctx->a->lse;
    const int64_t i = head * lse->stride[0] + at * lse->stride[1];

    return lse->dtype == RAP_F32 ? ((const float *)lse->data)[i]
                                 : ((const double *)lse->data)[i];
}
