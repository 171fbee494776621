/* SPDX-License-Identifier: Apache-2.0
 *
 * What cde_cuda.c hands to the kernels of cde_cuda.cu: one struct by value.
 *
 *   rap_cde_rows   rows of logits -> answers, [T, V] in one launch
 *   rap_cde_map    bias, scale and softcap on products, in place; only if there are any
 *   rap_cde_means  rows' answers -> means of each sample, a block a sample
 *
 * A block takes a row; its warps take tiles of RAP_CDE_CUDA_TILE pairs of logits. Tiles are
 * fixed, so the bits depend on the shapes and on where rows lie in 16 bytes alone.
 */
#ifndef RAP_CDE_CUDA_H
#define RAP_CDE_CUDA_H

#include <assert.h>

#include "cde.h"

#define RAP_CDE_CUDA_THREADS 256
#define RAP_CDE_CUDA_TILE 2048 /* 64 logits of each branch a lane */
#define RAP_CDE_CUDA_ROWS 64   /* blocks of products hold a multiple of it */

typedef struct {
    const void *l1, *l0;    /* [rows, columns] */
    const int64_t *targets; /* [rows], or NULL */
    double *out;            /* [OUTPUTS, rows], rows contiguous */
    int64_t stride1, stride0, target_stride, out_stride; /* elements */
    int64_t rows, columns;
    int32_t dtype1, dtype0; /* rap_dtype */
    uint32_t want, unused;
} rap_cde_cuda;

typedef struct {
    float *products;  /* [rows, columns] */
    const void *bias; /* [columns], or NULL */
    int64_t stride, bias_stride;
    int64_t rows, columns;
    float scale, softcap; /* softcap 0: none */
    int32_t bias_dtype, unused;
} rap_cde_map_cuda;

typedef struct {
    const double *answers;     /* [OUTPUTS, rows], rows contiguous */
    const void *weights;       /* [rows] float32 or float64, or NULL: all 1 */
    const int64_t *cu_seqlens; /* [samples + 1] */
    double *out;               /* [OUTPUTS, samples], samples contiguous */
    int64_t answers_stride, weight_stride, cu_stride, out_stride; /* elements */
    int64_t rows, samples;
    int32_t weight_dtype;
    uint32_t want;
} rap_cde_means_cuda;

/* Blocks: one a row; the loop inside is right for any number. */
static inline int64_t
rap_cde_cuda_grid(int64_t rows)
{
    return RAP_MIN(rows, 65535);
}

static inline int64_t
rap_cde_map_cuda_grid(int64_t rows, int64_t columns)
{
    return RAP_MIN(rap_ceil_div(rows * columns, 4 * RAP_CDE_CUDA_THREADS), 4096);
}

/* --- blocks of products (cde_linear_cuda.c) ---------------------------------------------- */

/* Floats between rows of logits: whole 256 bytes. */
static inline int64_t
rap_cde_cuda_ld(int64_t vocab)
{
    return rap_ceil_div(vocab, 64) * 64;
}

/* Rows a block of products: as many as have float32 logits of `branches` in `memory` bytes,
 * at least one; blocks of one size but for the last. */
static inline int64_t
rap_cde_cuda_rows(int64_t rows, int64_t vocab, int branches, int64_t memory)
{
    const int64_t each = 4 * branches * rap_cde_cuda_ld(vocab);
    const int64_t fit = RAP_MAX(1, RAP_MIN(memory / each, rows));
    const int64_t blocks = RAP_MAX(1, rap_ceil_div(rows, fit));
    const int64_t even = rap_ceil_div(rows, blocks);

    return RAP_MIN(fit, rap_ceil_div(even, RAP_CDE_CUDA_ROWS) * RAP_CDE_CUDA_ROWS);
}

static_assert(sizeof(rap_cde_cuda) == 96, "launcher and kernel must agree");
static_assert(sizeof(rap_cde_map_cuda) == 64, "launcher and kernel must agree");
static_assert(sizeof(rap_cde_means_cuda) == 88, "launcher and kernel must agree");

#endif
