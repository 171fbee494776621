/* SPDX-License-Identifier: Apache-2.0
 *
 * From hidden states on a CUDA device: for each block of token rows, chunks of the head are
 * multiplied with both branches (gemm_cuda.h) and swept into the rows' states while they
 * are in L2; js and tv need the log-sum-exps first and cost a second round of products.
 * Blocks and chunks are fixed, so the bits depend on the shapes alone.
 *
 * Workspace: [cuBLASLt's | products and states (cde_cuda.h) | targets from the host].
 */
#include "../driver.h"
#include "../gemm/gemm_cuda.h"
#include "../status.h"
#include "cde_cuda.h"

typedef struct {
    const rap_linear_cde_args *a;
    rap_cuda_call *call;
    char *blas_workspace;
    float *products1, *products0;
    rap_cde_state *states;
    const int64_t *targets;
    int64_t target_stride;
} linear_run;

static int64_t
block_rows(const rap_linear_cde_args *a)
{
    return RAP_MIN(a->hidden1.shape[0], RAP_CDE_CUDA_ROWS);
}

static int64_t
states_end(const rap_linear_cde_args *a)
{
    const int64_t bytes = RAP_BLAS_WORKSPACE + rap_cde_cuda_workspace(block_rows(a));

    return rap_ceil_div(bytes, 256) * 256;
}

int64_t
rap_linear_cde_device_bytes(const void *args)
{
    const rap_linear_cde_args *a = args;

    return a->hidden1.shape[0] == 0 ? 0 : states_end(a) + rap_cuda_small_bytes(&a->targets);
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

/* logits of rows [row, row + rows) and vocabulary [begin, begin + n) of one branch */
static bool
multiply(const linear_run *run, const rap_array *hidden, float *products, int64_t row,
         int64_t rows, int64_t begin, int64_t n, rap_error *err)
{
    const rap_linear_cde_args *a = run->a;
    const rap_array *bias = &a->bias;
    const rap_product product = {
        .a = rows_of(hidden, row, rows),
        .b = rows_of(&a->weight, begin, n),
        .c = products,
        .ldc = RAP_CDE_CUDA_COLUMNS,
        .depth = a->weight.shape[1],
        .batch = 1,
        .workspace = run->blas_workspace,
    };
    rap_cde_map_cuda map = {
        .products = products,
        .bias_stride = bias->stride[0],
        .stride = RAP_CDE_CUDA_COLUMNS,
        .rows = rows,
        .columns = n,
        .scale = (float)a->scale,
        .softcap = (float)a->softcap,
        .bias_dtype = (int32_t)bias->dtype,
    };

    if (bias->data != NULL) {
        map.bias = (const char *)bias->data
                   + begin * bias->stride[0] * (int64_t)rap_dtype_size(bias->dtype);
    }
    if (!rap_product_device(run->call, &product, err)) {
        return false;
    }
    return (map.bias == NULL && map.scale == 1 && map.softcap == 0)
           || rap_cuda_launch(run->call, "cde", "rap_cde_map",
                              rap_cde_map_cuda_grid(rows, n), RAP_CDE_CUDA_THREADS, &map,
                              err);
}

/* One chunk of the vocabulary; steps: what becomes of it. */
static bool
chunk(const linear_run *run, int64_t row, int64_t rows, int64_t begin, uint32_t steps,
      rap_error *err)
{
    const rap_linear_cde_args *a = run->a;
    const int64_t n = RAP_MIN(RAP_CDE_CUDA_COLUMNS, a->weight.shape[0] - begin);
    rap_cde_cuda p = {
        .l1 = run->products1,
        .l0 = run->products0,
        .state = run->states,
        .out = (double *)a->out.data + row,
        .stride1 = RAP_CDE_CUDA_COLUMNS,
        .stride0 = RAP_CDE_CUDA_COLUMNS,
        .target_stride = run->target_stride,
        .out_stride = a->out.stride[0],
        .rows = rows,
        .columns = n,
        .begin = begin,
        .dtype1 = RAP_F32,
        .dtype0 = RAP_F32,
        .want = a->want,
        .steps = steps,
    };

    if (run->targets != NULL) {
        p.targets = run->targets + row * run->target_stride;
    }
    return multiply(run, &a->hidden1, run->products1, row, rows, begin, n, err)
           && multiply(run, &a->hidden0, run->products0, row, rows, begin, n, err)
           && rap_cuda_launch(run->call, "cde", "rap_cde_rows", rap_cde_cuda_grid(rows),
                              RAP_CDE_CUDA_THREADS, &p, err);
}

static bool
block(const linear_run *run, int64_t row, int64_t rows, rap_error *err)
{
    const rap_linear_cde_args *a = run->a;
    const int passes = a->want & RAP_CDE_NEEDS_MIX ? 2 : 1;
    bool ok = true;

    for (int pass = 0; pass < passes; pass++) {
        for (int64_t begin = 0; ok && begin < a->weight.shape[0];
             begin += RAP_CDE_CUDA_COLUMNS)
        {
            const bool last = begin + RAP_CDE_CUDA_COLUMNS >= a->weight.shape[0];
            uint32_t steps = pass == 0 ? RAP_CDE_CUDA_SWEEP : RAP_CDE_CUDA_MIX;

            steps |= pass == 0 && begin == 0 ? RAP_CDE_CUDA_START : 0;
            steps |= pass == passes - 1 && last ? RAP_CDE_CUDA_FINISH : 0;
            ok = chunk(run, row, rows, begin, steps, err);
        }
    }
    return ok;
}

bool
rap_linear_cde_device(void *args, rap_cuda_call *call, void *workspace, rap_error *err)
{
    const rap_linear_cde_args *a = args;
    const int64_t tokens = a->hidden1.shape[0];
    char *products = (char *)workspace + RAP_BLAS_WORKSPACE;
    char *products0 = products + rap_cde_cuda_products_bytes(block_rows(a));
    char *space = (char *)workspace + states_end(a);
    const void *targets = NULL;
    linear_run run = {
        .a = a,
        .call = call,
        .blas_workspace = workspace,
        .products1 = (float *)products,
        .products0 = (float *)products0,
        .states = (rap_cde_state *)(products0 + rap_cde_cuda_products_bytes(block_rows(a))),
        .target_stride = a->targets.stride[0],
    };
    bool ok = tokens == 0 || rap_cuda_small(call, &a->targets, &space, &targets, err);

    run.targets = targets;
    for (int64_t row = 0; ok && row < tokens; row += RAP_CDE_CUDA_ROWS) {
        ok = block(&run, row, RAP_MIN(RAP_CDE_CUDA_ROWS, tokens - row), err);
    }
    return ok;
}
