/* SPDX-License-Identifier: Apache-2.0
 *
 * Keys are packed once. A task is (sample, field, group of row blocks); its column sums
 * and statistics go to its own place and are added in the order of the groups by
 * reduce_task, so the bits depend on each sample's shape alone: not on threads, and not
 * on the samples packed beside it.
 */
#include <math.h>
#include <string.h>

#include "../gemm/gemm.h"
#include "../parallel.h"
#include "../status.h"
#include "ace_plan.h"

/* --- one head of one block of rows --------------------------------------------------- */

typedef struct {
    int64_t row, n;  /* rows [row, row + n) of the sample */
    int64_t key, ld; /* first key column computed; floats a row */
    float *scores, *weights, *ln_row, *query;
} block;

static const float *
query_rows(const ace_ctx *ctx, const ace_sample *s, const block *b, int64_t head,
           int64_t *ld)
{
    const rap_array *q = &ctx->a->q;
    int64_t size = (int64_t)rap_dtype_size(q->dtype);
    const char *at = (const char *)q->data
                     + (head * q->stride[0] + (s->begin + b->row) * q->stride[1]) * size;

    *ld = q->stride[1];
    if (q->dtype == RAP_F32) {
        return (const float *)at;
    }
    for (int64_t r = 0; r < b->n; r++) {
        ctx->exec->kernels->widen(at + r * q->stride[1] * size, q->dtype, ctx->dim,
                                  b->query + r * ctx->dim);
    }
    *ld = ctx->dim;
    return b->query;
}

static void
head_scores(const ace_ctx *ctx, const ace_sample *s, const block *b, int64_t head)
{
    const int64_t keys = b->row + b->n;
    int64_t ld;
    const float *q = query_rows(ctx, s, b, head, &ld);
    const float *k = ctx->packed + s->packed_at + head / ctx->group * s->packed_size;

    rap_ace_scores(ctx, q, ld, b->n, k, s, b->key, keys - b->key, b->scores, b->ld);
}

/* Row sum in float64 over pieces, so that long rows do not drift. */
static double
row_sum(const rap_kernels *kernels, float *s, int64_t n, float scale, float shift,
        bool keep)
{
    double sum = 0;

    for (int64_t j = 0; j < n; j += kernels->piece) {
        int64_t m = RAP_MIN(kernels->piece, n - j);

        sum += keep ? kernels->ace_exp(s + j, m, scale, shift)
                    : kernels->ace_sum_exp(s + j, m, scale, shift);
    }
    return sum;
}

/* The keys [key, key + n) that row r of the block sees, and where they lie in it. */
typedef struct {
    int64_t row, key, n, at;
} span;

static span
row_span(const ace_ctx *ctx, const block *b, int64_t r)
{
    span x = {.row = b->row + r};

    x.key = RAP_MAX(b->key, rap_ace_first_seen(&ctx->a->o, x.row));
    x.n = x.row + 1 - x.key;
    x.at = r * b->ld + x.key - b->key;
    return x;
}

static void
fold_row(const ace_ctx *ctx, const ace_sample *s, const block *b, int64_t head, int64_t i,
         bool first)
{
    const rap_kernels *kernels = ctx->exec->kernels;
    const float scale = ctx->scale2;
    const span x = row_span(ctx, b, i);
    float *scores = b->scores + x.at, *weights = b->weights + x.at;
    const bool mean = ctx->a->o.heads == RAP_ACE_MEAN;
    rap_ace_reference r;
    float rest;

    if (rap_ace_lse_given(ctx)) {
        r = rap_ace_given(rap_ace_lse(ctx, head, s->begin + x.row), ctx->unit);
        if (mean) {
            kernels->ace_exp(scores, x.n, scale, r.shift);
        }
    }
    else {
        r.shift = scale * kernels->ace_max(scores, x.n);
        r.z = row_sum(kernels, scores, x.n, scale, r.shift, mean);
    }
    rest = rap_ace_rest(&ctx->a->o, r.z, ctx->hq);
    if (mean) {
        kernels->ace_add(weights, scores, x.n, rest, first);
    }
    else {
        kernels->ace_log_max(weights, scores, x.n, scale, r.shift, rest, first);
    }
}

/* --- what a finished row of weights gives -------------------------------------------- */

static double
top_mass(const rap_kernels *kernels, const float *w, int64_t n, int top)
{
    float best[RAP_ACE_TOP] = {0}; /* gcc -fanalyzer cannot follow `have` */
    double mass = 0;
    int have = 0;

    for (int64_t begin = 0; begin < n; begin += 64) {
        int64_t end = RAP_MIN(n, begin + 64);

        if (have == top && kernels->ace_max(w + begin, end - begin) <= best[top - 1]) {
            continue; /* most blocks hold nothing large */
        }
        for (int64_t j = begin; j < end; j++) {
            int at = have < top ? have++ : top;

            for (; at > 0 && best[at - 1] < w[j]; at--) {
                if (at < top) {
                    best[at] = best[at - 1];
                }
            }
            if (at < top) {
                best[at] = w[j];
            }
        }
    }
    for (int i = 0; i < have; i++) {
        mass += best[i];
    }
    return mass;
}

/* column_j += ln w_j - shift over the columns of [from, to) that the row sees */
static void
add_range(const ace_ctx *ctx, const span *x, int64_t from, int64_t to, const float *ln_w,
          double shift, double *column)
{
    from = RAP_MAX(from, x->key);
    if (from < to) {
        ctx->exec->kernels->ace_columns(column + from, ln_w + from - x->key, to - from,
                                        shift);
    }
}

static void
add_columns(const ace_ctx *ctx, const ace_sample *s, const span *x, const float *ln_w,
            double shift, double *column)
{
    const rap_ace_options *o = &ctx->a->o;
    const int64_t window = rap_ace_window(o, s->length);

    if ((o->columns & RAP_ACE_PROMPT) && x->row - s->start < window) {
        add_range(ctx, x, 0, s->start, ln_w, shift, column);
    }
    if (o->columns & RAP_ACE_RESPONSE) {
        add_range(ctx, x, RAP_MAX(s->start, x->row - window + 1), x->row + 1, ln_w, shift,
                  column);
    }
}

/* A row's weights, linear and in the log domain, and their sum. */
typedef struct {
    const float *linear, *ln;
    double sum;
} row_weights;

static row_weights
finish_weights(const ace_ctx *ctx, const block *b, const span *x)
{
    const rap_kernels *kernels = ctx->exec->kernels;
    float *weights = b->weights + x->at, *scores = b->scores + x->at;

    if (ctx->a->o.heads == RAP_ACE_MEAN) {
        kernels->ace_ln(b->ln_row, weights, x->n);
        return (row_weights){weights, b->ln_row, 1};
    }
    for (int64_t j = 0; j < x->n; j++) {
        scores[j] = weights[j];
        weights[j] *= (float)ctx->unit;
    }
    if (!ctx->a->o.want_stats && !ctx->a->o.renormalise) {
        return (row_weights){NULL, weights, 1};
    }
    return (row_weights){scores, weights, row_sum(kernels, scores, x->n, 1.0f, 0.0f, true)};
}

static void
finish_row(const ace_ctx *ctx, const ace_sample *s, const block *b, int64_t r, double *sums)
{
    const rap_kernels *kernels = ctx->exec->kernels;
    const span x = row_span(ctx, b, r);
    const row_weights w = finish_weights(ctx, b, &x);
    double *stats = sums + s->length;

    add_columns(ctx, s, &x, w.ln, ctx->a->o.renormalise ? log(w.sum) : 0, sums);
    if (!ctx->a->o.want_stats) {
        return;
    }
    stats[0] += log(w.sum) - kernels->ace_dot(w.linear, w.ln, x.n) / w.sum;
    stats[1] += top_mass(kernels, w.linear, x.n, ctx->a->o.top) / w.sum;
    if (ctx->image != NULL) {
        const float *image = ctx->image + s->begin + x.key;

        stats[2] += kernels->ace_dot(w.linear, image, x.n) / w.sum;
    }
}

/* --- tasks --------------------------------------------------------------------------- */

static void
run_block(const ace_ctx *ctx, const ace_sample *s, int64_t field, int64_t number,
          int worker, double *sums)
{
    const bool each = ctx->a->o.heads == RAP_ACE_EACH;
    const int64_t nr = ctx->exec->kernels->gemm_nr;
    const int64_t first = each ? field : 0, last = each ? field + 1 : ctx->hq;
    block b = {.row = s->start + number * s->block_rows, .key = 0, .ld = s->ld};

    b.n = RAP_MIN(s->block_rows, s->length - b.row);
    b.key =
        rap_ace_first_key(&ctx->a->o, rap_ace_lse_given(ctx), s->length, s->start, b.row);
    b.key = b.key / nr * nr;
    b.scores = ctx->scratch + worker * ctx->scratch_size;
    b.weights = b.scores + s->block_rows * s->ld;
    b.ln_row = b.weights + s->block_rows * s->ld;
    b.query = b.ln_row + s->ld;
    for (int64_t head = first; head < last; head++) {
        if (rap_should_stop(ctx->exec, worker)) {
            return;
        }
        head_scores(ctx, s, &b, head);
        for (int64_t r = 0; r < b.n; r++) {
            fold_row(ctx, s, &b, head, r, head == first);
        }
    }
    for (int64_t r = 0; r < b.n; r++) {
        finish_row(ctx, s, &b, r, sums);
    }
}

static void
group_task(void *arg, int64_t task, int worker)
{
    const ace_ctx *ctx = arg;
    const ace_sample *s = rap_ace_sample_of(ctx, task);
    const int64_t local = task - s->task_at;
    const int64_t field = local / s->groups, group = local % s->groups;
    double *sums = ctx->sums + s->sums_at + local * (s->length + 3);

    memset(sums, 0, (size_t)(s->length + 3) * sizeof(double));
    if (ctx->linear) {
        rap_ace_linear(ctx, s, field, ctx->scratch + worker * ctx->scratch_size, sums);
        return;
    }
    /* interleaved: late blocks see more keys than early ones */
    for (int64_t number = group; number < s->blocks; number += s->groups) {
        run_block(ctx, s, field, number, worker, sums);
    }
}

static bool
is_masked(const ace_ctx *ctx, int64_t at)
{
    const rap_array *mask = &ctx->a->column_mask; /* not bool: any byte may be there */

    return mask->data != NULL && !((const uint8_t *)mask->data)[at * mask->stride[0]];
}

static void
reduce_task(void *arg, int64_t task, int worker)
{
    const ace_ctx *ctx = arg;
    const ace_sample *s = &ctx->sample[task / ctx->fields];
    const int64_t field = task % ctx->fields, width = s->length + 3;
    const double *sums = ctx->sums + s->sums_at + field * s->groups * width;
    double *psi = (double *)ctx->a->psi.data + field * ctx->a->q.shape[1] + s->begin;
    double *out = (double *)ctx->a->summary.data + task;
    const int64_t outputs = ctx->samples * ctx->fields, rows = s->length - s->start;
    double best = -INFINITY;
    int64_t position = -1;

    (void)worker;
    for (int64_t j = 0; j < width; j++) {
        double sum = 0;

        for (int64_t g = 0; g < s->groups; g++) {
            sum += sums[g * width + j];
        }
        if (j >= s->length) {
            bool known = rows > 0 && ctx->a->o.want_stats
                         && (j - s->length < 2 || ctx->image != NULL);

            out[(RAP_ACE_ENTROPY + j - s->length) * outputs] =
                known ? sum / (double)rows : NAN;
            continue;
        }
        psi[j] = rap_ace_psi(&ctx->a->o, ctx->ln_sigma, s->length, s->start, j,
                             is_masked(ctx, s->begin + j), sum);
        if (rap_ace_beats(psi[j], best)) {
            best = psi[j];
            position = isnan(best) ? -1 : j;
        }
    }
    out[RAP_ACE_LOG_PSI * outputs] = best;
    ((int64_t *)ctx->a->position.data)[task] = position;
}

bool
rap_ace_cpu(void *args, rap_exec *exec, rap_error *err)
{
    ace_ctx ctx = {0};
    bool ok = rap_ace_plan(args, exec, &ctx, err) && (ctx.linear || rap_ace_pack(&ctx, err))
              && rap_parallel(exec, ctx.tasks, group_task, &ctx, err)
              && rap_parallel(exec, ctx.samples * ctx.fields, reduce_task, &ctx, err);

    rap_ace_plan_free(&ctx);
    return ok;
}
