/* SPDX-License-Identifier: Apache-2.0
 *
 * From hidden states: the head is taken RAP_LINEAR_CHUNK vocabulary rows at a time,
 * widened and packed once for both branches, multiplied with a block of rows of
 * [hidden1; hidden0], and the products are swept into the rows' states while they are
 * in cache. [T, V] never exists. js and tv need the log-sum-exps first and cost a
 * second round of products.
 *
 * The chunk is fixed, so the bits depend neither on threads nor on `memory`; `memory`
 * and the threads only set how many rows a task takes.
 */
#include <math.h>

#include "../gemm/gemm.h"
#include "../parallel.h"
#include "../status.h"
#include "cde_math.h"

#define RAP_LINEAR_CHUNK (5 * RAP_GEMM_COLUMNS)
#define RAP_LINEAR_ROWS 96 /* rows a task, at most: both branches' products stay in L2 */

typedef struct {
    const rap_linear_cde_args *args;
    rap_exec *exec;
    rap_cde_state *states; /* [T] */
    float *packed;         /* one chunk of the head */
    float *bias;           /* [CHUNK] as float32, or NULL */
    float *scratch;        /* a worker: widened lines or hidden rows, then products */
    int64_t scratch_size;  /* floats a worker */
    int64_t rows;          /* rows a task */
    int64_t begin, n;      /* this chunk */
    int64_t panels;        /* packed by one task each */
    bool pairs;            /* the product takes bfloat16 as it lies: 32 bits hold two */
    int64_t depth;         /* E; of pairs, half of it */
    int pass;
} linear_ctx;

/* Rows of two bfloat16 in 32 bits each. */
static bool
is_pairs(const rap_array *x)
{
    return x->dtype == RAP_BF16 && x->shape[1] % 2 == 0 && x->stride[0] % 2 == 0
           && (uintptr_t)x->data % sizeof(float) == 0;
}

static void
choose_product(linear_ctx *ctx)
{
    const rap_linear_cde_args *a = ctx->args;

    ctx->pairs = ctx->exec->kernels->gemm_panel_bf16 != NULL && is_pairs(&a->weight)
                 && is_pairs(&a->hidden1) && is_pairs(&a->hidden0);
    ctx->depth = ctx->pairs ? a->weight.shape[1] / 2 : a->weight.shape[1];
}

static void
pack_task(void *arg, int64_t panel, int worker)
{
    const linear_ctx *ctx = arg;
    const rap_array *w = &ctx->args->weight;
    const rap_kernels *kernels = ctx->exec->kernels;
    const int64_t depth_all = ctx->depth, nr = kernels->gemm_nr;
    const int64_t first = ctx->begin + panel * nr;
    const int64_t cols = RAP_MIN(nr, ctx->begin + ctx->n - first);
    float *lines = ctx->scratch + worker * ctx->scratch_size;
    const char *src =
        (const char *)w->data + first * w->stride[0] * (int64_t)rap_dtype_size(w->dtype);
    const float *b = (const float *)src;
    int64_t ldb = ctx->pairs ? w->stride[0] / 2 : w->stride[0];

    if (w->dtype != RAP_F32 && !ctx->pairs) {
        for (int64_t j = 0; j < cols; j++) {
            kernels->widen(src + j * w->stride[0] * (int64_t)rap_dtype_size(w->dtype),
                           w->dtype, depth_all, lines + j * depth_all);
        }
        b = lines;
        ldb = depth_all;
    }
    for (int64_t d = 0; d < depth_all; d += RAP_GEMM_DEPTH) {
        int64_t depth = RAP_MIN(RAP_GEMM_DEPTH, depth_all - d);

        kernels->gemm_pack(b + d, ldb, cols, depth,
                           ctx->packed + d * ctx->panels * nr + panel * depth * nr);
    }
}

/* Rows [row, row + n) of hidden as the product takes them: in place or widened. */
static const float *
hidden_rows(const linear_ctx *ctx, const rap_array *hidden, int64_t row, int64_t n,
            float *buffer, int64_t *ld)
{
    size_t size = rap_dtype_size(hidden->dtype);
    const char *at = (const char *)hidden->data + row * hidden->stride[0] * (int64_t)size;

    *ld = ctx->pairs ? hidden->stride[0] / 2 : hidden->stride[0];
    if (hidden->dtype == RAP_F32 || ctx->pairs) {
        return (const float *)at;
    }
    *ld = hidden->shape[1];
    for (int64_t i = 0; i < n; i++) {
        ctx->exec->kernels->widen(at + i * hidden->stride[0] * (int64_t)size, hidden->dtype,
                                  hidden->shape[1], buffer + i * hidden->shape[1]);
    }
    return buffer;
}

static void
sweep_row(const linear_ctx *ctx, int64_t row, float *l1, float *l0)
{
    const rap_linear_cde_args *a = ctx->args;
    const rap_kernels *kernels = ctx->exec->kernels;
    rap_cde_state *state = &ctx->states[row];

    kernels->cde_map(l1, ctx->n, ctx->bias, (float)a->scale, (float)a->softcap);
    kernels->cde_map(l0, ctx->n, ctx->bias, (float)a->scale, (float)a->softcap);
    if (ctx->pass == 1) {
        kernels->cde_mix(l1, l0, RAP_F32, ctx->n, a->want, state);
        return;
    }
    if (a->targets.data != NULL) {
        int64_t at =
            ((const int64_t *)a->targets.data)[row * a->targets.stride[0]] - ctx->begin;

        if (at >= 0 && at < ctx->n) {
            state->target1 = l1[at];
            state->target0 = l0[at];
        }
    }
    kernels->cde_sweep(l1, l0, RAP_F32, ctx->n, a->want, state);
}

static void
rows_task(void *arg, int64_t task, int worker)
{
    const linear_ctx *ctx = arg;
    const rap_linear_cde_args *a = ctx->args;
    const rap_kernels *kernels = ctx->exec->kernels;
    const int64_t row = task * ctx->rows;
    const int64_t n = RAP_MIN(ctx->rows, a->hidden1.shape[0] - row);
    float *products = ctx->scratch + worker * ctx->scratch_size;
    float *buffer = products + 2 * ctx->rows * RAP_LINEAR_CHUNK;

    for (int branch = 0; branch < 2; branch++) {
        int64_t ld;
        const float *h =
            hidden_rows(ctx, branch == 0 ? &a->hidden1 : &a->hidden0, row, n, buffer, &ld);

        rap_gemm(kernels, ctx->pairs ? kernels->gemm_panel_bf16 : kernels->gemm_panel, h,
                 ld, n, ctx->packed, ctx->n, ctx->depth,
                 products + branch * n * RAP_LINEAR_CHUNK, RAP_LINEAR_CHUNK);
    }
    for (int64_t i = 0; i < n; i++) {
        sweep_row(ctx, row + i, products + i * RAP_LINEAR_CHUNK,
                  products + (n + i) * RAP_LINEAR_CHUNK);
    }
}

static bool
run_chunks(linear_ctx *ctx, rap_error *err)
{
    const rap_linear_cde_args *a = ctx->args;
    const int64_t vocab = a->weight.shape[0];
    const int64_t tasks = rap_ceil_div(a->hidden1.shape[0], ctx->rows);

    for (ctx->begin = 0; ctx->begin < vocab; ctx->begin += RAP_LINEAR_CHUNK) {
        ctx->n = RAP_MIN(RAP_LINEAR_CHUNK, vocab - ctx->begin);
        ctx->panels = rap_ceil_div(ctx->n, ctx->exec->kernels->gemm_nr);
        for (int64_t v = 0; ctx->bias != NULL && v < ctx->n; v++) {
            size_t size = rap_dtype_size(a->bias.dtype);

            ctx->exec->kernels->widen((const char *)a->bias.data
                                          + (ctx->begin + v) * a->bias.stride[0]
                                                * (int64_t)size,
                                      a->bias.dtype, 1, ctx->bias + v);
        }
        if (!rap_parallel(ctx->exec, ctx->panels, pack_task, ctx, err)
            || !rap_parallel(ctx->exec, tasks, rows_task, ctx, err))
        {
            return false;
        }
    }
    return true;
}

/* Rows a task: few enough that every thread has one and scratch fits in `memory`. */
static int64_t
rows_per_task(const rap_linear_cde_args *a, const rap_exec *exec)
{
    const int64_t depth = a->weight.shape[1];
    const int64_t row_bytes = 4 * (2 * RAP_LINEAR_CHUNK + depth) * exec->threads;
    const int64_t left = RAP_MAX(a->memory, 0) - 4 * RAP_LINEAR_CHUNK * depth;
    int64_t rows =
        RAP_MIN(RAP_LINEAR_ROWS, rap_ceil_div(a->hidden1.shape[0], exec->threads));

    return RAP_MAX(1, RAP_MIN(rows, left / row_bytes));
}

bool
rap_linear_cde_cpu(void *args, rap_exec *exec, rap_error *err)
{
    const rap_linear_cde_args *a = args;
    const int64_t depth = a->weight.shape[1], tokens = a->hidden1.shape[0];
    const int nr = exec->kernels->gemm_nr;
    linear_ctx ctx = {.args = a, .exec = exec, .rows = rows_per_task(a, exec)};
    int64_t workers = RAP_MIN(exec->threads, RAP_MAX_THREADS);
    bool ok = false;

    ctx.scratch_size = RAP_MAX(ctx.rows * (2 * RAP_LINEAR_CHUNK + depth), nr * depth);
    ctx.scratch = rap_alloc(4 * workers * ctx.scratch_size, err);
    ctx.packed = rap_alloc(4 * RAP_LINEAR_CHUNK * depth, err);
    ctx.states = rap_alloc(tokens * (int64_t)sizeof(rap_cde_state), err);
    ctx.bias = a->bias.data != NULL ? rap_alloc(4 * RAP_LINEAR_CHUNK, err) : NULL;
    if (err->status != RAP_OK) {
        goto done;
    }
    choose_product(&ctx);
    for (int64_t t = 0; t < tokens; t++) {
        rap_cde_clear(&ctx.states[t]);
    }
    for (ctx.pass = 0; ctx.pass < (a->want & RAP_CDE_NEEDS_MIX ? 2 : 1); ctx.pass++) {
        if (tokens > 0 && !run_chunks(&ctx, err)) {
            goto done;
        }
    }
    for (int64_t t = 0; t < tokens; t++) {
        rap_cde_answer(&ctx.states[t], a->want, (double *)a->out.data + t,
                       a->out.stride[0]);
    }
    ok = true;
done:
    rap_free(ctx.bias);
    rap_free(ctx.states);
    rap_free(ctx.packed);
    rap_free(ctx.scratch);
    return ok;
}
