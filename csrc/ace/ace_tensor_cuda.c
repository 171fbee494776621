/* SPDX-License-Identifier: Apache-2.0
 *
 * The launches of ace_tensor_cuda.h for a sample: three with log-sum-exps given, else four.
 */
#include "ace_tensor_cuda.h"

#include "../driver.h"

/* Bytes of each part of the workspace, in order. */
typedef struct {
    int64_t reference, part, columns, row_sums, largest, totals, ticket;
} tensor_space;

static int64_t
whole(int64_t bytes)
{
    return rap_ceil_div(bytes, 256) * 256;
}

static int64_t
first_column(const rap_ace_options *o, int64_t start)
{
    return o->columns & RAP_ACE_PROMPT ? 0 : start;
}

static tensor_space
space_of(const rap_ace_args *a, int64_t length, int64_t start)
{
    const int64_t hq = a->q.shape[0], rows = length - start;
    const int64_t chunks = rap_ace_tensor_chunks(rows, length);

    return (tensor_space){
        .reference = whole(8 * hq * rows),
        .part = a->lse.data == NULL ? whole(4 * 2 * chunks * hq * rows) : 0,
        .columns = whole(8 * rap_ace_tensor_row_tiles(rows)
                         * (length - first_column(&a->o, start))),
        .row_sums = whole(8 * 3 * chunks * rows),
        .largest = a->o.want_stats ? whole(4 * chunks * a->o.top * rows) : 0,
        .totals = whole(8 * (rows + 1)),
        .ticket = whole(4),
    };
}

bool
rap_ace_is_tensor(const rap_ace_args *a)
{
    return a->o.heads != RAP_ACE_EACH && a->q.dtype == a->k.dtype && a->q.dtype != RAP_F32
           && a->q.shape[1] <= INT32_MAX - RAP_ACE_TENSOR_COLUMNS;
}

int64_t
rap_ace_tensor_bytes(const rap_ace_args *a)
{
    int64_t most = 0;

    for (int64_t i = 0; i < a->cu_seqlens.shape[0] - 1; i++) {
        const int64_t length =
            rap_i64_at(&a->cu_seqlens, i + 1) - rap_i64_at(&a->cu_seqlens, i);
        const tensor_space s = space_of(a, length, rap_i64_at(&a->response_start, i));

        most = RAP_MAX(most, s.reference + 2 * s.part + s.columns + s.row_sums + s.largest
                                 + s.totals + s.ticket);
    }
    return most;
}

/* An array from one row of the packed sequence on, and whether its rows begin at 16-byte
 * boundaries, whatever the head. */
static const void *
rows_of(const rap_array *x, int64_t row, int64_t *stride, int32_t *wide)
{
    const char *data = (const char *)x->data + 2 * row * x->stride[1];

    stride[0] = x->stride[0];
    stride[1] = x->stride[1];
    *wide = (uintptr_t)data % 16 == 0 && (x->stride[1] % 8 == 0 || x->shape[1] == 1)
            && (x->stride[0] % 8 == 0 || x->shape[0] == 1);
    return data;
}

static rap_ace_tensor_cuda
params_of(const rap_ace_args *a, const rap_ace_cuda *p, char *at)
{
    const tensor_space s = space_of(a, p->length, p->start);
    rap_ace_tensor_cuda t = {.a = *p};

    t.a.row = p->start;
    t.a.rows = t.a.block_rows = (int32_t)(p->length - p->start);
    t.q = rows_of(&a->q, p->begin, t.q_stride, &t.q_wide);
    t.k = rows_of(&a->k, p->begin, t.k_stride, &t.k_wide);
    t.a.reference = (float *)at, at += s.reference;
    t.part_max = (float *)at, at += s.part;
    t.part_sum = (float *)at, at += s.part;
    t.column_sums = (double *)at, at += s.columns;
    t.row_sums = (double *)at, at += s.row_sums;
    t.largest = (uint32_t *)at, at += s.largest;
    t.totals = (double *)at, at += s.totals;
    t.ticket = (uint32_t *)at;
    t.first_column = first_column(&p->o, p->start);
    t.row_tiles = rap_ace_tensor_row_tiles(t.a.rows);
    t.chunks = rap_ace_tensor_chunks(t.a.rows, p->length);
    t.group = (int32_t)(a->q.shape[0] / a->k.shape[0]);
    t.dim = (int32_t)a->q.shape[2];
    return t;
}

static bool
launch(rap_cuda_call *call, const char *kernel, int64_t blocks, int threads,
       rap_ace_tensor_cuda *t, rap_error *err)
{
    return rap_cuda_launch(call, "ace_tensor", kernel, blocks, threads, t, err);
}

bool
rap_ace_tensor(const rap_ace_args *a, rap_cuda_call *call, const rap_ace_cuda *p,
               char *space, rap_error *err)
{
    rap_ace_tensor_cuda t = params_of(a, p, space);
    const bool bf16 = a->q.dtype == RAP_BF16, some = t.a.rows > 0;
    bool ok = true;

    if (some && p->lse == NULL) {
        ok = launch(call, bf16 ? "rap_fused_lse_bf16" : "rap_fused_lse_f16",
                    rap_ace_tensor_grid(&t), RAP_ACE_TENSOR_THREADS, &t, err);
    }
    ok = ok
         && launch(call, "rap_fused_reference", rap_ace_tensor_reference_grid(&t),
                   RAP_ACE_CUDA_THREADS, &t, err);
    if (ok && some) {
        ok = launch(call, bf16 ? "rap_fused_fold_bf16" : "rap_fused_fold_f16",
                    rap_ace_tensor_grid(&t), RAP_ACE_TENSOR_THREADS, &t, err);
    }
    return ok
           && launch(call, "rap_fused_finish", rap_ace_tensor_finish_grid(&t),
                     RAP_ACE_CUDA_THREADS, &t, err);
}
