/* SPDX-License-Identifier: Apache-2.0 */
#include "ace_plan.h"

#include <math.h>
#include <string.h>

#include "../gemm/gemm.h"
#include "../hd.h"
#include "../parallel.h"
#include "../status.h"

/* --- checks -------------------------------------------------------------------------- */

static bool
check_heads(const rap_ace_args *a, rap_error *err)
{
    const rap_array *q = &a->q, *k = &a->k;

    if (q->ndim != 3 || k->ndim != 3) {
        return rap_fail(err, RAP_EINPUT,
                        "q and k: expected [heads, L, D], got %d and %d "
                        "dimensions",
                        q->ndim, k->ndim);
    }
    if (q->dtype > RAP_BF16 || k->dtype > RAP_BF16) {
        return rap_fail(err, RAP_ETYPE, "q, k: expected float32, float16 or bfloat16");
    }
    if (q->shape[1] != k->shape[1] || q->shape[2] != k->shape[2] || q->shape[2] < 1) {
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
    if ((q->shape[2] > 1 && q->stride[2] != 1) || (k->shape[2] > 1 && k->stride[2] != 1)) {
        return rap_fail(err, RAP_EINPUT, "q, k: the last dimension must be contiguous");
    }
    return true;
}

static bool
check_vector(const rap_array *v, const char *name, rap_dtype dtype, int64_t n,
             rap_error *err)
{
    if (v->data == NULL || (v->ndim == 1 && v->dtype == dtype && v->shape[0] == n)) {
        return true;
    }
    return rap_fail(err, RAP_EINPUT, "%s: expected %s [%lld]", name,
                    dtype == RAP_BOOL ? "bool" : "int64", (long long)n);
}

static int64_t
at_i64(const rap_array *v, int64_t i)
{
    return ((const int64_t *)v->data)[i * v->stride[0]];
}

static bool
check_samples(const rap_ace_args *a, rap_error *err)
{
    const int64_t samples = a->cu_seqlens.shape[0] - 1;
    int64_t before = 0;

    if (a->cu_seqlens.ndim != 1 || a->cu_seqlens.dtype != RAP_I64 || samples < 0
        || at_i64(&a->cu_seqlens, 0) != 0
        || at_i64(&a->cu_seqlens, samples) != a->q.shape[1])
    {
        return rap_fail(err, RAP_EINPUT, "cu_seqlens: expected int64 from 0 to L = %lld",
                        (long long)a->q.shape[1]);
    }
    if (!check_vector(&a->response_start, "response_start", RAP_I64, samples, err)) {
        return false;
    }
    for (int64_t s = 0; s < samples; s++) {
        int64_t end = at_i64(&a->cu_seqlens, s + 1), start = at_i64(&a->response_start, s);

        if (end < before || start < 0 || start > end - before) {
            return rap_fail(
                err, RAP_EINPUT,
                "sample %lld: cu_seqlens must rise and response_start lie inside",
                (long long)s);
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
    const int64_t fields = a->heads == RAP_ACE_EACH ? a->q.shape[0] : 1;
    const int64_t samples = a->cu_seqlens.shape[0] - 1;

    if (!is_dense(&a->summary, RAP_ACE_OUTPUTS * samples * fields)
        || !is_dense(&a->position, samples * fields)
        || !is_dense(&a->psi, fields * a->q.shape[1]))
    {
        return rap_fail(err, RAP_EINPUT, "outputs: expected other shapes, contiguous");
    }
    return true;
}

bool
rap_ace_check(const rap_ace_args *a, rap_error *err)
{
    const rap_array *lse = &a->lse;

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
        return rap_fail(err, RAP_EINPUT, "lse: expected float32 or float64 [%lld, %lld]",
                        (long long)a->q.shape[0], (long long)a->q.shape[1]);
    }
    if (!isfinite(a->scale) || a->scale < 0 || !isfinite(a->sigma) || a->sigma <= 0) {
        return rap_fail(err, RAP_EINPUT, "scale >= 0 and sigma > 0 expected, both finite");
    }
    if (a->min_rows < 1 || a->window < 0 || a->key_window < 0 || a->top < 1
        || a->top > RAP_ACE_TOP || a->heads < RAP_ACE_MEAN || a->heads > RAP_ACE_EACH
        || a->columns < RAP_ACE_RESPONSE || a->columns > RAP_ACE_ALL)
    {
        return rap_fail(err, RAP_EINPUT,
                        "min_rows >= 1, windows >= 1 or none, 1 <= top <= %d expected",
                        RAP_ACE_TOP);
    }
    return true;
}

/* --- plan ---------------------------------------------------------------------------- */

/* The offsets are read again here: the caller's arrays may have changed since the check,
 * and from here on only the plan is believed. */
static bool
plan_sample(ace_ctx *ctx, int64_t i, ace_sample *s, rap_error *err)
{
    const int64_t nr = ctx->exec->kernels->gemm_nr;
    int64_t rows;

    s->begin = at_i64(&ctx->a->cu_seqlens, i);
    s->length = at_i64(&ctx->a->cu_seqlens, i + 1) - s->begin;
    s->start = at_i64(&ctx->a->response_start, i);
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

bool
rap_ace_plan(const rap_ace_args *a, rap_exec *exec, ace_ctx *ctx, rap_error *err)
{
    int64_t packed = 0, sums = 0, total = a->q.shape[1];

    *ctx = (ace_ctx){.a = a, .exec = exec, .samples = a->cu_seqlens.shape[0] - 1};
    ctx->hq = a->q.shape[0];
    ctx->group = ctx->hq / a->k.shape[0];
    ctx->dim = a->q.shape[2];
    ctx->scale2 = (float)(a->scale * (double)RAP_LOG2E);
    ctx->unit = ctx->scale2 != 0 ? a->scale / ctx->scale2 : 1 / (double)RAP_LOG2E;
    ctx->fields = a->heads == RAP_ACE_EACH ? ctx->hq : 1;
    ctx->needs_all = rap_ace_needs_all(a);
    ctx->linear = rap_ace_is_linear(a);
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
        ctx->scratch_size = RAP_MAX(ctx->scratch_size, (2 * s->block_rows + 1) * s->ld
                                                           + s->block_rows * ctx->dim);
    }
    ctx->scratch_size = rap_ceil_div(RAP_MAX(ctx->scratch_size, 6 * ctx->dim), 16) * 16;
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

int64_t
rap_ace_first_key(const ace_ctx *ctx, int64_t row)
{
    return ctx->a->key_window > 0 ? RAP_MAX(0, row - ctx->a->key_window + 1) : 0;
}

double
rap_ace_lse(const ace_ctx *ctx, int64_t head, int64_t at)
{
    const rap_array *lse = &ctx->a->lse;
    const int64_t i = head * lse->stride[0] + at * lse->stride[1];

    return lse->dtype == RAP_F32 ? ((const float *)lse->data)[i]
                                 : ((const double *)lse->data)[i];
}

/* --- linear form --------------------------------------------------------------------- */

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

    return ctx->a->scale * ctx->exec->kernels->ace_suffix_dot(suffix, k, ctx->dim) - lse;
}

void
rap_ace_linear(const ace_ctx *ctx, const ace_sample *s, int64_t head, float *scratch,
               double *sums)
{
    const int64_t window = rap_ace_window(ctx->a, s);
    double *suffix = (double *)scratch, lse = 0;
    float *buffer = scratch + 2 * ctx->dim;

    memset(suffix, 0, (size_t)ctx->dim * sizeof(double));
    for (int64_t j = s->length - 1; j >= s->start; j--) {
        suffix_add(ctx, s, head, j, 1, buffer, suffix, &lse);
        if (j + window < s->length) {
            suffix_add(ctx, s, head, j + window, -1, buffer, suffix, &lse);
        }
        if (ctx->a->columns & RAP_ACE_RESPONSE) {
            sums[j] = column_sum(ctx, s, head, j, buffer, suffix, lse);
        }
    }
    /* the sums now cover the first rows of the response: I(j) of every prompt column */
    for (int64_t j = 0; j < s->start && (ctx->a->columns & RAP_ACE_PROMPT); j++) {
        sums[j] = column_sum(ctx, s, head, j, buffer, suffix, lse);
    }
}
