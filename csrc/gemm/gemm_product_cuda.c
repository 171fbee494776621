/* SPDX-License-Identifier: Apache-2.0
 *
 * Products of any operands: what cuBLASLt does not take is copied to float32 first. And the
 * rows of two matrices as one operand.
 */
#include "gemm_widen_cuda.h"

#include "../status.h"
#include "gemm_cuda.h"

/* --- float32 copies of operands ------------------------------------------------------ */

/* Rows of one matrix, or of each of a batch, as dense float32 at `to`. */
static bool
widen(rap_cuda_call *call, rap_operand *x, int64_t depth, int64_t batch, float *to,
      rap_error *err)
{
    const int64_t copies = x->batch_stride == 0 ? 1 : batch;
    bool ok = true;

    for (int64_t i = 0; ok && i < copies; i++) {
        rap_widen_cuda p = {
            .src = (const char *)x->data
                   + i * x->batch_stride * (int64_t)rap_dtype_size(x->dtype),
            .dst = to + i * x->rows * depth,
            .stride = x->ld,
            .rows = x->rows,
            .columns = depth,
            .dtype = (int32_t)x->dtype,
        };

        ok = rap_cuda_launch(call, "gemm", "rap_widen", rap_widen_cuda_grid(x->rows, depth),
                             RAP_WIDEN_CUDA_THREADS, &p, err);
    }
    *x = (rap_operand){.data = to,
                       .dtype = RAP_F32,
                       .rows = x->rows,
                       .ld = depth,
                       .batch_stride = x->batch_stride == 0 ? 0 : x->rows * depth};
    return ok;
}

static int64_t
elements(const rap_operand *x, int64_t depth, int64_t batch)
{
    return x->rows * depth * (x->batch_stride == 0 ? 1 : batch);
}

/* Rows of B that are widened at a time: all of them in a batch, whose matrices are small. */
static int64_t
widened_rows(const rap_product *p)
{
    const int64_t fit = RAP_BLAS_WIDENED / (4 * RAP_MAX(1, p->depth));

    return p->batch > 1 ? p->b.rows : RAP_MIN(p->b.rows, RAP_MAX(64, fit / 64 * 64));
}

/* Columns [begin, begin + rows) of the answer; A is float32 already, a copy of B's rows goes
 * to `to`. */
static bool
multiply_part(rap_cuda_call *call, rap_product p, int64_t begin, int64_t rows, float *to,
              rap_error *err)
{
    bool refused = false;

    p.b.data = (const char *)p.b.data + begin * p.b.ld * (int64_t)rap_dtype_size(p.b.dtype);
    p.b.rows = rows;
    p.c += begin;
    return widen(call, &p.b, p.depth, p.batch, to, err)
           && rap_blas_multiply(call, &p, &refused, err)
           && (!refused
               || rap_fail(err, RAP_EDEVICE, "cuBLASLt cannot multiply float32 here"));
}

/* Memory of the stream's pool: given back in the stream's order. */
static bool
multiply_widened(rap_cuda_call *call, const rap_product *product, rap_error *err)
{
    rap_product p = *product;
    const int64_t a = rap_ceil_div(elements(&p.a, p.depth, p.batch), 64) * 64;
    const int64_t rows = widened_rows(&p);
    const rap_operand part = {.rows = rows, .batch_stride = p.b.batch_stride};
    const int64_t bytes = 4 * (a + elements(&part, p.depth, p.batch));
    uint64_t pointer = 0;
    bool ok = rap_cuda_ok(call->api,
                          call->api->memory_alloc(&pointer, (size_t)bytes, call->stream),
                          "allocating float32 copies", err);

    if (!ok) {
        return false;
    }
    ok = widen(call, &p.a, p.depth, p.batch, (float *)pointer, err);
    for (int64_t begin = 0; ok && begin < p.b.rows; begin += rows) {
        ok = multiply_part(call, p, begin, RAP_MIN(rows, p.b.rows - begin),
                           (float *)pointer + a, err);
    }
    call->api->memory_free(pointer, call->stream);
    return ok;
}

/* Rows that overlap or run backwards are not for cuBLASLt; of one row the distance to the
 * next says nothing. */
static bool
is_plain(rap_operand *x, int64_t depth)
{
    x->ld = x->rows <= 1 ? depth : x->ld;
    return x->ld >= depth;
}

bool
rap_product_device(rap_cuda_call *call, const rap_product *product, rap_error *err)
{
    rap_product p = *product;
    bool plain_a = is_plain(&p.a, p.depth), plain_b = is_plain(&p.b, p.depth);
    bool refused = !plain_a || !plain_b || p.a.dtype != p.b.dtype;

    return rap_blas_open(call->blas, NULL, NULL, err)
           && (refused || rap_blas_multiply(call, &p, &refused, err))
           && (!refused || multiply_widened(call, &p, err));
}

/* --- rows of two matrices as one ------------------------------------------------------ */

static rap_dtype
stacked_dtype(rap_dtype first, rap_dtype second)
{
    return first == second ? first : RAP_F32;
}

static int64_t
stacked_ld(int64_t depth)
{
    return rap_ceil_div(depth, 64) * 64;
}

int64_t
rap_stack_bytes(rap_dtype first, rap_dtype second, int64_t rows, int64_t depth)
{
    const int64_t size = (int64_t)rap_dtype_size(stacked_dtype(first, second));

    return rap_ceil_div(2 * rows * stacked_ld(depth) * size, 256) * 256;
}

bool
rap_stack_device(rap_cuda_call *call, const rap_operand *first, const rap_operand *second,
                 int64_t depth, void *to, rap_operand *stacked, rap_error *err)
{
    rap_stack_cuda p = {
        .first = first->data,
        .second = second->data,
        .dst = to,
        .stride1 = first->ld,
        .stride0 = second->ld,
        .ld = stacked_ld(depth),
        .rows = first->rows,
        .columns = depth,
        .dtype1 = (int32_t)first->dtype,
        .dtype0 = (int32_t)second->dtype,
    };

    *stacked = (rap_operand){.data = to,
                             .dtype = stacked_dtype(first->dtype, second->dtype),
                             .rows = 2 * first->rows,
                             .ld = p.ld};
    return rap_cuda_launch(call, "gemm", "rap_stack",
                           rap_widen_cuda_grid(2 * p.rows, depth), RAP_WIDEN_CUDA_THREADS,
                           &p, err);
}
