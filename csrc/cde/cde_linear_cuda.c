/* SPDX-License-Identifier: Apache-2.0
 *
 * From hidden states on a CUDA device. For each block of token rows: the rows of both
 * branches become one matrix (rap_stack), one product with the whole head leaves their
 * float32 logits (gemm_cuda.h), bias, scale and softcap are put on if there are any
 * (rap_cde_map), and rap_cde_rows makes the answers, js and tv too. A block has as many rows
 * as have their logits in `memory` bytes. What reads one branch only (its log-probabilities,
 * its entropy) multiplies that one.
 *
 * Launches a block: 3, or 4 with a map; of one branch one less. The bits depend on the shapes,
 * on `memory` and on the library.
 *
 * Workspace: [cuBLASLt's | stacked rows | logits | targets from the host].
 */
#include "../driver.h"
#include "../gemm/gemm_cuda.h"
#include "../status.h"
#include "cde_cuda.h"

typedef struct {
    const rap_linear_cde_args *a;
    rap_cuda_call *call;
    void *blas_workspace, *stacked;
    float *logits; /* [branches * rows, ld] */
    const int64_t *targets;
    int64_t ld;
    int branches;
} linear_run;

/* Where the parts of the workspace begin, and where the last ends. */
typedef struct {
    int64_t stacked, logits, targets, end, rows; /* rows: a block */
} linear_layout;

static linear_layout
layout_of(const rap_linear_cde_args *a)
{
    const int64_t vocab = a->weight.shape[0], depth = a->weight.shape[1];
    const int branches = rap_cde_branches(a->want);
    linear_layout at;

    at.rows = rap_cde_cuda_rows(a->hidden1.shape[0], vocab, branches, a->memory);
    at.stacked = RAP_BLAS_WORKSPACE;
    at.logits = at.stacked;
    if (branches == 2) {
        at.logits += rap_stack_bytes(a->hidden1.dtype, a->hidden0.dtype, at.rows, depth);
    }
    at.targets = at.logits + 4 * branches * at.rows * rap_cde_cuda_ld(vocab);
    at.end = at.targets + rap_cuda_small_bytes(&a->targets);
    return at;
}

int64_t
rap_linear_cde_device_bytes(const void *args)
{
    const rap_linear_cde_args *a = args;

    return a->hidden1.shape[0] == 0 ? 0 : layout_of(a).end;
}

static rap_operand
rows_of(const rap_array *x, int64_t row, int64_t rows)
{
    return (rap_operand){.data = (const char *)x->data
                                 + row * x->stride[0] * (int64_t)rap_dtype_size(x->dtype),
                         .dtype = x->dtype,
                         .rows = rows,
                         .ld = x->stride[0]};
}

/* The rows that are multiplied: of the one branch that is read, or both stacked. */
static bool
operand(const linear_run *run, int64_t row, int64_t rows, rap_operand *x, rap_error *err)
{
    const rap_linear_cde_args *a = run->a;
    const rap_operand first = rows_of(&a->hidden1, row, rows);
    const rap_operand second = rows_of(&a->hidden0, row, rows);

    if (run->branches == 2) {
        return rap_stack_device(run->call, &first, &second, a->weight.shape[1],
                                run->stacked, x, err);
    }
    *x = rap_cde_reads(a->want, 1) ? first : second;
    return true;
}

/* products -> logits, in place */
static bool
map(const linear_run *run, int64_t rows, rap_error *err)
{
    const rap_linear_cde_args *a = run->a;
    rap_cde_map_cuda p = {
        .products = run->logits,
        .bias = a->bias.data,
        .stride = run->ld,
        .bias_stride = a->bias.stride[0],
        .rows = rows,
        .columns = a->weight.shape[0],
        .scale = (float)a->scale,
        .softcap = (float)a->softcap,
        .bias_dtype = (int32_t)a->bias.dtype,
    };

    return (p.bias == NULL && p.scale == 1 && p.softcap == 0)
           || rap_cuda_launch(run->call, "cde", "rap_cde_map",
                              rap_cde_map_cuda_grid(rows, p.columns), RAP_CDE_CUDA_THREADS,
                              &p, err);
}

/* Of one branch the other's part is played by it too: nobody reads what comes of that. */
static bool
answers(const linear_run *run, int64_t row, int64_t rows, rap_error *err)
{
    const rap_linear_cde_args *a = run->a;
    const int64_t target_stride = a->targets.stride[0];
    rap_cde_cuda p = {
        .l1 = run->logits,
        .l0 = run->logits + (run->branches - 1) * rows * run->ld,
        .out = (double *)a->out.data + row,
        .stride1 = run->ld,
        .stride0 = run->ld,
        .target_stride = target_stride,
        .out_stride = a->out.stride[0],
        .rows = rows,
        .columns = a->weight.shape[0],
        .dtype1 = RAP_F32,
        .dtype0 = RAP_F32,
        .want = a->want,
    };

    if (run->targets != NULL) {
        p.targets = run->targets + row * target_stride;
    }
    return rap_cuda_launch(run->call, "cde", "rap_cde_rows", rap_cde_cuda_grid(rows),
                           RAP_CDE_CUDA_THREADS, &p, err);
}

static bool
block(const linear_run *run, int64_t row, int64_t rows, rap_error *err)
{
    const rap_linear_cde_args *a = run->a;
    rap_product product = {
        .b = rows_of(&a->weight, 0, a->weight.shape[0]),
        .c = run->logits,
        .ldc = run->ld,
        .depth = a->weight.shape[1],
        .batch = 1,
        .workspace = run->blas_workspace,
    };

    return operand(run, row, rows, &product.a, err)
           && rap_product_device(run->call, &product, err)
           && map(run, run->branches * rows, err) && answers(run, row, rows, err);
}

bool
rap_linear_cde_device(void *args, rap_cuda_call *call, void *workspace, rap_error *err)
{
    const rap_linear_cde_args *a = args;
    const int64_t tokens = a->hidden1.shape[0];
    const linear_layout at = layout_of(a);
    char *space = (char *)workspace + at.targets;
    const void *targets = NULL;
    linear_run run = {
        .a = a,
        .call = call,
        .blas_workspace = workspace,
        .stacked = (char *)workspace + at.stacked,
        .logits = (float *)((char *)workspace + at.logits),
        .ld = rap_cde_cuda_ld(a->weight.shape[0]),
        .branches = rap_cde_branches(a->want),
    };
    bool ok = tokens == 0 || rap_cuda_small(call, &a->targets, &space, &targets, err);

    run.targets = targets;
    for (int64_t row = 0; ok && row < tokens; row += at.rows) {
        ok = block(&run, row, RAP_MIN(at.rows, tokens - row), err);
    }
    return ok;
}
