/* SPDX-License-Identifier: Apache-2.0
 *
 * rap_widen: rows of float32, bfloat16 or float16 -> dense float32, for products of two
 * dtypes, which cuBLASLt does not take.
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

static_assert(sizeof(rap_widen_cuda) == 48, "launcher and kernel must agree");

static inline int64_t
rap_widen_cuda_grid(int64_t rows, int64_t columns)
{
    return RAP_MAX(
        1, RAP_MIN(rap_ceil_div(rows * rap_ceil_div(columns, 8), RAP_WIDEN_CUDA_THREADS),
                   65535));
}

#endif
