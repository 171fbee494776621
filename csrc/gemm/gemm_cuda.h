/* SPDX-License-Identifier: Apache-2.0
 *
 * CONTRACT: C[M, N] = A[M, K] B[N, K]^T on a CUDA device, float32 sums and answers, never
 * TF32; a batch of such products with a stride each. cuBLASLt 13 or 12 does them: the copy
 * that is loaded already (torch's), else a file that Python names, else the system's.
 * RAP_LIBCUBLASLT names another. Reduction schemes that depend on the order of atomics are
 * not allowed, so the bits depend on shapes, strides, alignment of the rows
 * and the library alone.
 *
 * cuBLASLt multiplies one dtype by itself: operands of two dtypes, or a layout it refuses,
 * are widened to float32 first (gemm_cuda.cu) in memory of the stream's pool, B some rows at
 * a time.
 *
 * Which of its ways cuBLASLt takes is asked once for a shape: RAP_BLAS_CHOICES answers are
 * kept.
 */
#ifndef RAP_GEMM_CUDA_H
#define RAP_GEMM_CUDA_H

#include "../driver.h"

#define RAP_BLAS_WORKSPACE (INT64_C(32) << 20) /* bytes: what NVIDIA advises for Hopper */
#define RAP_BLAS_CHOICES 64
#define RAP_BLAS_WIDENED \
    (INT64_C(64) << 20) /* bytes of a float32 copy of rows of B, about */

typedef struct {
    const void *data;
    rap_dtype dtype;
    int64_t rows, ld, batch_stride; /* elements */
} rap_operand;

typedef struct {
    rap_operand a, b; /* [M, K], [N, K] */
    float *c;         /* [M, N] */
    int64_t ldc, c_stride;
    int64_t depth; /* K */
    int64_t batch;
    void *workspace; /* RAP_BLAS_WORKSPACE bytes, 256-byte aligned */
} rap_product;

typedef struct rap_blas rap_blas;

rap_blas *rap_blas_new(void);
void rap_blas_free(rap_blas *blas);

/* Loads the library, `path` first among what is not loaded yet, unless NULL; its version
 * (130100) in *version. Once loaded it stays. */
bool rap_blas_open(rap_blas *blas, const char *path, int64_t *version, rap_error *err);

/* One dtype for both operands, or *refused: the library has no way to do it (gemm_cuda.c);
 * any operands (gemm_product_cuda.c). */
bool rap_blas_multiply(rap_cuda_call *call, const rap_product *product, bool *refused,
                       rap_error *err);
bool rap_product_device(rap_cuda_call *call, const rap_product *product, rap_error *err);

/* Rows of `first`, then of `second` (as many), into `to` (rows of *ld elements, a multiple of
 * 64, at most 4 bytes each): one operand in *stacked. */
bool rap_stack_device(rap_cuda_call *call, const rap_operand *first,
                      const rap_operand *second, int64_t depth, void *to,
                      rap_operand *stacked, rap_error *err);
int64_t rap_stack_bytes(rap_dtype first, rap_dtype second, int64_t rows, int64_t depth);

#endif
