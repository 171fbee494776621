/* SPDX-License-Identifier: Apache-2.0
 *
 * From hidden states: the head is taken RAP_LINEAR_CHUNK vocabulary rows at a time,
 * widened and packed once for both branches, multiplied with a block of rows of
 * [hidden1; hidden0], and the products are swept into the rows' states while they are
 * in cache. js and tv need the log-sum-exps first: for a second sweep the float32 logits of
 * as many rows as fit in `memory` are kept, block by block of rows; where those are too few
 * to be worth packing the head for, the products are made a second time. What reads one
 * branch only (its log-probabilities, its entropy) multiplies that one.
 *
 * The chunk is fixed, so the bits depend neither on threads nor on `memory`; `memory`
 * and the threads only set how many rows a task and a block take.
 */
#include <math.h>

#include "../gemm/gemm.h"
#include "../parallel.h"
#include "../status.h"
#include "cde_math.h"

#define RAP_LINEAR_CHUNK (5 * RAP_GEMM_COLUMNS)
#define RAP_LINEAR_ROWS 96 /* rows a task, at most: both branches' products stay in L2 */
#define RAP_LINEAR_KEPT \
    16 /* rows a block, at least: packing costs about ten rows' products */

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
    int64_t first, tokens; /* rows of this block */
    float *logits;         /* [branches][block rows][ld], or NULL: not kept */
    int64_t block_rows, ld;
    int branches;
    int64_t panels; /* packed by one task each */
    bool pairs;     /* the product takes bfloat16 as it lies: 32 bits hold two */
    int64_t depth;  /* E; of pairs, half of it */
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
    if (l0 != l1) {
        kernels->cde_map(l0, ctx->n, ctx->bias, (float)a->scale, (float)a->softcap);
    }
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

/* Where a branch's products of a task go, whose rows begin at `at` in the block: among the
 * kept logits, or in the worker's scratch. */
static float *
products_at(const linear_ctx *ctx, int branch, int64_t at, int64_t rows, int worker)
{
    if (ctx->logits == NULL) {
        return ctx->scratch + worker * ctx->scratch_size + branch * rows * RAP_LINEAR_CHUNK;
    }
    return ctx->logits + (branch * ctx->block_rows + at) * ctx->ld + ctx->begin;
}

/* Of one branch the other's part is played by it too: nobody reads what comes of that. */
static void
rows_task(void *arg, int64_t task, int worker)
{
    const linear_ctx *ctx = arg;
    const rap_linear_cde_args *a = ctx->args;
    const rap_kernels *kernels = ctx->exec->kernels;
    const int64_t at = task * ctx->rows, row = ctx->first + at;
    const int64_t n = RAP_MIN(ctx->rows, ctx->tokens - at);
    float *buffer =
        ctx->scratch + worker * ctx->scratch_size + 2 * ctx->rows * RAP_LINEAR_CHUNK;
    const int64_t ldc = ctx->logits == NULL ? RAP_LINEAR_CHUNK : ctx->ld;
    float *products[2];

    for (int branch = 0; branch < ctx->branches; branch++) {
        const bool first = branch == 0 && rap_cde_reads(a->want, 1);
        int64_t ld;
        const float *h =
            hidden_rows(ctx, first ? &a->hidden1 : &a->hidden0, row, n, buffer, &ld);

        products[branch] = products_at(ctx, branch, at, n, worker);
        rap_gemm(kernels, ctx->pairs ? kernels->gemm_panel_bf16 : kernels->gemm_panel, h,
                 ld, n, ctx->packed, ctx->n, ctx->depth, products[branch], ldc);
    }
    for (int64_t i = 0; i < n; i++) {
        sweep_row(ctx, row + i, products[0] + i * ldc,
                  products[ctx->branches - 1] + i * ldc);
    }
}

/* js and tv of one row of the block from its kept logits, in the chunks of the first sweep. */
static void
mix_task(void *arg, int64_t at, int worker)
{
    const linear_ctx *ctx = arg;
    const int64_t vocab = ctx->args->weight.shape[0];
    const float *l1 = ctx->logits + at * ctx->ld, *l0 = l1 + ctx->block_rows * ctx->ld;

    (void)worker;
    for (int64_t begin = 0; begin < vocab; begin += RAP_LINEAR_CHUNK) {
        ctx->exec->kernels->cde_mix(l1 + begin, l0 + begin, RAP_F32,
                                    RAP_MIN(RAP_LINEAR_CHUNK, vocab - begin),
                                    ctx->args->want, &ctx->states[ctx->first + at]);
    }
}

static bool
run_chunks(linear_ctx *ctx, rap_error *err)
{
    const rap_linear_cde_args *a = ctx->args;
    const int64_t vocab = a->weight.shape[0];
    const int64_t tasks = rap_ceil_div(ctx->tokens, ctx->rows);

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

/* Rows of logits that are kept at a time: none if nothing reads them again, or if they are
 * few. Room for whole panels behind the last column. */
static int64_t
kept_rows(const linear_ctx *ctx)
{
    const rap_linear_cde_args *a = ctx->args;
    const int64_t tokens = a->hidden1.shape[0];
    const int64_t left = RAP_MAX(a->memory, 0) - 4 * RAP_LINEAR_CHUNK * a->weight.shape[1];
    const int64_t fit = RAP_MAX(0, left) / (4 * ctx->branches * ctx->ld);

    if (!(a->want & RAP_CDE_NEEDS_MIX) || fit < RAP_MIN(tokens, RAP_LINEAR_KEPT)) {
        return 0;
    }
    return RAP_MIN(fit, tokens);
}

/* Rows a task: few enough that every thread has one and, unless logits are kept, scratch
 * fits in `memory`. */
static int64_t
rows_per_task(const linear_ctx *ctx)
{
    const rap_linear_cde_args *a = ctx->args;
    const int64_t depth = a->weight.shape[1], threads = ctx->exec->threads;
    const int64_t row_bytes = 4 * (2 * RAP_LINEAR_CHUNK + depth) * threads;
    const int64_t left = RAP_MAX(a->memory, 0) - 4 * RAP_LINEAR_CHUNK * depth;
    const int64_t rows = RAP_MIN(RAP_LINEAR_ROWS, rap_ceil_div(ctx->block_rows, threads));

    return RAP_MAX(1, ctx->ld > 0 ? rows : RAP_MIN(rows, left / row_bytes));
}

/* How the rows are cut up, and the memory for it. */
static bool
prepare(linear_ctx *ctx, rap_error *err)
{
    const rap_linear_cde_args *a = ctx->args;
    const int64_t depth = a->weight.shape[1], tokens = a->hidden1.shape[0];
    const int64_t workers = RAP_MIN(ctx->exec->threads, RAP_MAX_THREADS);
    int64_t kept;

    ctx->branches = rap_cde_branches(a->want);
    ctx->ld = rap_ceil_div(a->weight.shape[0], RAP_GEMM_COLUMNS) * RAP_GEMM_COLUMNS;
    kept = kept_rows(ctx);
    ctx->ld = kept > 0 ? ctx->ld : 0;
    ctx->block_rows = kept > 0 ? kept : tokens;
    ctx->rows = rows_per_task(ctx);
    ctx->scratch_size = RAP_MAX(ctx->rows * (2 * RAP_LINEAR_CHUNK + depth),
                                ctx->exec->kernels->gemm_nr * depth);
    ctx->scratch = rap_alloc(4 * workers * ctx->scratch_size, err);
    ctx->packed = rap_alloc(4 * RAP_LINEAR_CHUNK * depth, err);
    ctx->states = rap_alloc(tokens * (int64_t)sizeof(rap_cde_state), err);
    ctx->bias = a->bias.data != NULL ? rap_alloc(4 * RAP_LINEAR_CHUNK, err) : NULL;
    ctx->logits = kept > 0 ? rap_alloc(4 * ctx->branches * kept * ctx->ld, err) : NULL;
    return err->status == RAP_OK;
}

/* Rows [first, first + tokens). */
static bool
run_block(linear_ctx *ctx, rap_error *err)
{
    const bool mix = ctx->args->want & RAP_CDE_NEEDS_MIX;
    const int passes = mix && ctx->logits == NULL ? 2 : 1;
    bool ok = true;

    for (ctx->pass = 0; ok && ctx->pass < passes; ctx->pass++) {
        ok = run_chunks(ctx, err);
    }
    return ok
           && (!mix || ctx->logits == NULL
               || rap_parallel(ctx->exec, ctx->tokens, mix_task, ctx, err));
}

bool
rap_linear_cde_cpu(void *args, rap_exec *exec, rap_error *err)
{
    const rap_linear_cde_args *a = args;
    const int64_t tokens = a->hidden1.shape[0];
    linear_ctx ctx = {.args = a, .exec = exec};
    bool ok = prepare(&ctx, err);

    for (int64_t t = 0; ok && t < tokens; t++) {
        rap_cde_clear(&ctx.states[t]);
    }
    choose_product(&ctx);
    for (; ok && ctx.first < tokens; ctx.first += ctx.block_rows) {
        ctx.tokens = RAP_MIN(ctx.block_rows, tokens - ctx.first);
        ok = run_block(&ctx, err);
    }
    for (int64_t t = 0; ok && t < tokens; t++) {
        rap_cde_answer(&ctx.states[t], a->want, (double *)a->out.data + t,
                       a->out.stride[0]);
    }
    rap_free(ctx.logits);
    rap_free(ctx.bias);
    rap_free(ctx.states);
    rap_free(ctx.packed);
    rap_free(ctx.scratch);
    return ok;
}
