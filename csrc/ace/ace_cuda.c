/* SPDX-License-Identifier: Apache-2.0
 *
 * The launches of ace_cuda.h, in order. Workspace: cuBLASLt's, the sums of all columns and
 * rows, what one block of rows needs, masks that came from the host.
 */
#include "ace_cuda.h"
#include "ace_linear_cuda.h"
#include "ace_tensor_cuda.h"

#include <math.h>

#include "../driver.h"
#include "../gemm/gemm_cuda.h"
#include "ace_math.h"

enum { COMPUTE_CAPABILITY_MAJOR = 75 }; /* CUdevice_attribute */

/* Bytes of each part of the workspace; the largest sample decides. */
typedef struct {
    int64_t blas, sums, stats, scores, weights, reference, total, tiles;
} ace_space;

typedef struct {
    const rap_ace_args *a;
    rap_cuda_call *call;
    void *blas_workspace;
    double *tiles; /* of the linear form */
    char *tensor;  /* what the form on tensor cores needs; NULL: scores are multiplied */
    rap_ace_cuda p;
} ace_run;

static int64_t
whole(int64_t bytes)
{
    return rap_ceil_div(bytes, 256) * 256;
}

static int64_t
sample_length(const rap_ace_args *a, int64_t s)
{
    return rap_i64_at(&a->cu_seqlens, s + 1) - rap_i64_at(&a->cu_seqlens, s);
}

static int64_t
fields_of(const rap_ace_args *a)
{
    return a->o.heads == RAP_ACE_EACH ? a->q.shape[0] : 1;
}

static bool
is_linear(const rap_ace_args *a)
{
    return rap_ace_is_linear(&a->o, a->lse.data != NULL);
}

static ace_space
linear_space(const rap_ace_args *a)
{
    const int64_t hq = a->q.shape[0], dim = a->q.shape[2];
    ace_space space = {0};

    for (int64_t s = 0; s < a->cu_seqlens.shape[0] - 1; s++) {
        const int64_t rows = sample_length(a, s) - rap_i64_at(&a->response_start, s);

        space.tiles = RAP_MAX(space.tiles, whole(8 * rap_ace_linear_space(hq, rows, dim)));
    }
    return space;
}

static ace_space
scores_space(const rap_ace_args *a)
{
    const int64_t hq = a->q.shape[0], fields = fields_of(a);
    ace_space space = {.blas = RAP_BLAS_WORKSPACE};

    for (int64_t s = 0; s < a->cu_seqlens.shape[0] - 1; s++) {
        const int64_t length = sample_length(a, s);
        const int64_t rows = rap_ace_cuda_block_rows(hq, length);
        const int64_t line = rows * rap_ace_cuda_ld(length);

        space.scores = RAP_MAX(space.scores, whole(4 * hq * line));
        space.weights = RAP_MAX(space.weights, whole(4 * fields * line));
        space.reference = RAP_MAX(space.reference, whole(8 * hq * rows));
        space.total = RAP_MAX(space.total, whole(8 * fields * rows));
    }
    space.weights = a->o.heads == RAP_ACE_EACH ? 0 : space.weights;
    return space;
}

static ace_space
space_of(const rap_ace_args *a)
{
    const int64_t numbers = fields_of(a) * a->q.shape[1];
    ace_space space = is_linear(a) ? linear_space(a) : scores_space(a);

    space.sums = whole(8 * numbers);
    space.stats = whole(24 * numbers);
    return space;
}

int64_t
rap_ace_device_bytes(const void *args)
{
    const rap_ace_args *a = args;
    const ace_space s = space_of(a);
    const int64_t scores = s.blas + s.scores + s.weights + s.reference + s.total + s.tiles;
    const int64_t tensor = rap_ace_is_tensor(a) ? rap_ace_tensor_bytes(a) : 0;

    return s.sums + s.stats + RAP_MAX(scores, tensor) /* the device is not known yet */
           + rap_cuda_small_bytes(&a->column_mask) + rap_cuda_small_bytes(&a->image_mask);
}

static bool
launch(ace_run *run, const char *kernel, int64_t blocks, rap_error *err)
{
    return rap_cuda_launch(run->call, "ace", kernel, blocks, RAP_ACE_CUDA_THREADS, &run->p,
                           err);
}

static bool
launch_linear(ace_run *run, const char *kernel, int64_t blocks, rap_ace_linear_cuda *p,
              rap_error *err)
{
    return rap_cuda_launch(run->call, "ace_linear", kernel, blocks, RAP_ACE_LINEAR_THREADS,
                           p, err);
}

/* Heads [head, ...) of x, from one row of the packed sequence on. */
static rap_operand
rows_of(const rap_array *x, int64_t head, int64_t row, int64_t rows, int64_t batch_stride)
{
    const int64_t at = head * x->stride[0] + row * x->stride[1];

    return (rap_operand){.data =
                             (const char *)x->data + at * (int64_t)rap_dtype_size(x->dtype),
                         .dtype = x->dtype,
                         .rows = rows,
                         .ld = x->stride[1],
                         .batch_stride = batch_stride};
}

/* scores of all heads for the block: a batch of query heads for each key head */
static bool
multiply(ace_run *run, rap_error *err)
{
    const rap_ace_cuda *p = &run->p;
    const rap_array *q = &run->a->q, *k = &run->a->k;
    const int64_t group = q->shape[0] / k->shape[0];
    const int64_t keys = p->row + p->rows - p->key, stride = p->block_rows * p->ld;
    bool ok = true;

    for (int64_t head = 0; ok && head < k->shape[0]; head++) {
        const rap_product product = {
            .a = rows_of(q, head * group, p->begin + p->row, p->rows, q->stride[0]),
            .b = rows_of(k, head, p->begin + p->key, keys, 0),
            .c = p->scores + head * group * stride,
            .ldc = p->ld,
            .c_stride = stride,
            .depth = q->shape[2],
            .batch = group,
            .workspace = run->blas_workspace,
        };

        ok = rap_product_device(run->call, &product, err);
    }
    return ok;
}

static bool
block(ace_run *run, rap_error *err)
{
    const rap_ace_cuda *p = &run->p;

    return multiply(run, err) && launch(run, "rap_ace_lse", rap_ace_cuda_lse_grid(p), err)
           && launch(run, "rap_ace_fold", rap_ace_cuda_fold_grid(p), err)
           && (!(p->o.want_stats || p->o.renormalise)
               || launch(run, "rap_ace_stats", rap_ace_cuda_stats_grid(p), err))
           && launch(run, "rap_ace_columns", rap_ace_cuda_columns_grid(p), err);
}

/* Column sums of the sample block after block, from scores. */
static bool
blocks(ace_run *run, rap_error *err)
{
    rap_ace_cuda *p = &run->p;
    bool ok = true;

    p->ld = rap_ace_cuda_ld(p->length);
    p->block_rows = (int32_t)rap_ace_cuda_block_rows(p->hq, p->length);
    for (p->row = p->start; ok && p->row < p->length; p->row += p->block_rows) {
        p->rows = (int32_t)RAP_MIN(p->block_rows, p->length - p->row);
        p->key = rap_ace_first_key(&p->o, p->lse != NULL, p->length, p->start, p->row);
        p->key = p->key / 4 * 4; /* rows are read by fours */
        ok = block(run, err);
    }
    return ok;
}

static bool
is_wide(const rap_operand *x, const rap_array *from)
{
    const int64_t size = (int64_t)rap_dtype_size(from->dtype);

    return (uintptr_t)x->data % 16 == 0 && from->stride[0] * size % 16 == 0
           && from->stride[1] * size % 16 == 0;
}

static rap_ace_linear_cuda
linear_of(const ace_run *run)
{
    const rap_ace_args *a = run->a;
    const rap_ace_cuda *p = &run->p;
    const rap_operand q = rows_of(&a->q, 0, p->begin, p->length, 0);
    const rap_operand k = rows_of(&a->k, 0, p->begin, p->length, 0);

    return (rap_ace_linear_cuda){
        .q = q.data,
        .k = k.data,
        .lse = (const char *)a->lse.data
               + p->begin * a->lse.stride[1] * (int64_t)rap_dtype_size(a->lse.dtype),
        .tiles = run->tiles,
        .sums = p->sums + p->begin,
        .scale = a->o.scale,
        .q_stride = {a->q.stride[0], a->q.stride[1]},
        .k_stride = {a->k.stride[0], a->k.stride[1]},
        .lse_stride = {a->lse.stride[0], a->lse.stride[1]},
        .total_length = p->total_length,
        .length = p->length,
        .start = p->start,
        .window = rap_ace_window(&p->o, p->length),
        .tiles_count = rap_ace_linear_tiles(p->length - p->start),
        .hq = p->hq,
        .group = (int32_t)(a->q.shape[0] / a->k.shape[0]),
        .dim = a->q.shape[2],
        .columns = p->o.columns,
        .q_dtype = (int32_t)a->q.dtype,
        .k_dtype = (int32_t)a->k.dtype,
        .lse_dtype = (int32_t)a->lse.dtype,
        .q_wide = is_wide(&q, &a->q),
        .k_wide = is_wide(&k, &a->k),
    };
}

/* Column sums of the sample from suffix sums of the queries. */
static bool
linear(ace_run *run, rap_error *err)
{
    rap_ace_linear_cuda p = linear_of(run);

    return launch_linear(run, "rap_ace_tiles", rap_ace_linear_tiles_grid(&p), &p, err)
           && launch_linear(run, "rap_ace_suffix", rap_ace_linear_suffix_grid(&p), &p, err)
           && launch_linear(run, "rap_ace_linear", rap_ace_linear_grid(&p), &p, err);
}

static bool
sample(ace_run *run, int64_t s, rap_error *err)
{
    rap_ace_cuda *p = &run->p;
    bool ok = true;

    p->sample = s;
    p->begin = rap_i64_at(&run->a->cu_seqlens, s);
    p->length = sample_length(run->a, s);
    p->start = rap_i64_at(&run->a->response_start, s);
    if (run->tensor != NULL) {
        return rap_ace_tensor(run->a, run->call, p, run->tensor, err);
    }
    if (p->start < p->length) {
        ok = is_linear(run->a) ? linear(run, err) : blocks(run, err);
    }
    return ok && launch(run, "rap_ace_finish", rap_ace_cuda_finish_grid(p), err);
}

static void
options(const rap_ace_args *a, rap_ace_cuda *p)
{
    p->lse = a->lse.data;
    p->lse_dtype = (int32_t)a->lse.dtype;
    p->lse_stride[0] = a->lse.stride[0];
    p->lse_stride[1] = a->lse.stride[1];
    p->summary = a->summary.data;
    p->position = a->position.data;
    p->psi = a->psi.data;
    p->o = a->o;
    p->scale2 = rap_ace_scale2(&a->o);
    p->unit = rap_ace_unit(&a->o);
    p->unit32 = (float)p->unit;
    p->ln_sigma = log(a->o.sigma);
    p->total_length = a->q.shape[1];
    p->samples = a->cu_seqlens.shape[0] - 1;
    p->hq = (int32_t)a->q.shape[0];
    p->fields = (int32_t)fields_of(a);
}

/* Parts of the workspace: sums, masks, then what one of the forms needs. */
static bool
lay_out(ace_run *run, char *at, rap_error *err)
{
    const ace_space s = space_of(run->a);
    const void *column_mask = NULL, *image_mask = NULL;
    rap_ace_cuda *p = &run->p;
    bool ok;

    p->sums = (double *)at, at += s.sums;
    p->stats = (double *)at, at += s.stats;
    ok = rap_cuda_small(run->call, &run->a->column_mask, &at, &column_mask, err)
         && rap_cuda_small(run->call, &run->a->image_mask, &at, &image_mask, err);
    run->tensor = run->tensor != NULL ? at : NULL;
    run->blas_workspace = at, at += s.blas;
    p->scores = (float *)at, at += s.scores;
    p->weights = s.weights > 0 ? (float *)at : p->scores, at += s.weights;
    p->reference = (float *)at, at += s.reference;
    p->total = (float *)at, at += s.total;
    run->tiles = (double *)at;
    p->column_mask = column_mask;
    p->image_mask = image_mask;
    return ok;
}

/* Whether the device multiplies bfloat16 on tensor cores: sm_80 and later. */
static bool
has_tensor_cores(rap_cuda_call *call, bool *has, rap_error *err)
{
    int major = 0;
    const int result =
        call->api->device_attribute(&major, COMPUTE_CAPABILITY_MAJOR, call->device);

    *has = major >= 8;
    return rap_cuda_ok(call->api, result, "asking for the device's capability", err);
}

bool
rap_ace_device(void *args, rap_cuda_call *call, void *workspace, rap_error *err)
{
    ace_run run = {.a = args, .call = call};
    bool ok = true, tensor = rap_ace_is_tensor(args);

    options(args, &run.p);
    if (tensor) {
        ok = has_tensor_cores(call, &tensor, err);
    }
    run.tensor = tensor ? workspace : NULL;
    ok = ok && lay_out(&run, workspace, err);
    if (ok && !tensor && run.p.total_length > 0) {
        ok = launch(&run, "rap_ace_start", rap_ace_cuda_start_grid(&run.p), err);
    }
    for (int64_t s = 0; ok && s < run.p.samples; s++) {
        ok = sample(&run, s, err);
    }
    return ok;
}
