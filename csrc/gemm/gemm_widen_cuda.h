/* SPDX-License-Identifier: Apache-2.0
 *
 * rap_widen: rows of float32, bfloat16 or float16 -> dense float32, for products of two
 * dtypes, which cuBLASLt does not take.
 * rap_stack: rows of two matrices, the second below the first, for one product of both: as
 * they are if they have one dtype, else widened to float32.
 */
#ifndef RAP_GEMM_WIDEN_CUDA_H
#define RAP_GEMM_WIDEN_CUDA_H

#include <assert.h>

#include "../rap.h"

#define RAP_WIDEN_CUDA_THREADS 256

typedef struct {
    const void *src; /* [rows, columns], last dimension contiguous */
    float *dst;      /* [rows, columns], dense */
    int64_t stride;  /* elements between rows of src */
    int64_t rows, columns;
    int32_t dtype, unused;
} rap_widen_cuda;

typedef struct {
    const void *first, *second; /* [rows, columns] each, last dimension contiguous */
    void *dst;                  /* [2 rows, columns], rows on 16-byte boundaries */
    int64_t stride1, stride0;   /* elements between rows of first and second */
    int64_t ld;                 /* of dst */
    int64_t rows, columns;
    int32_t dtype1, dtype0;
} rap_stack_cuda;

static_assert(sizeof(rap_widen_cuda) == 48, "launcher and kernel must agree");
static_assert(sizeof(rap_stack_cuda) == 72, "launcher and kernel must agree");

static inline int64_t
rap_widen_cuda_grid(int64_t rows, int64_t columns)
{
    return RAP_MAX(
        1, RAP_MIN(rap_ceil_div(rows * rap_ceil_div(columns, 8), RAP_WIDEN_CUDA_THREADS),
                   65535));
}

#endif
