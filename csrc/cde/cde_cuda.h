/* SPDX-License-Identifier: Apache-2.0
 *
 * What cde_cuda.c hands to the kernels of cde_cuda.cu: one struct by value.
 *
 *   rap_cde_rows   rows of logits: [T, V] in one launch (steps ALL, state NULL), or chunks of
 *                  products, the rows' sums waiting in `state` between launches
 *   rap_cde_map    bias, scale and softcap on a chunk of products, in place; only if there
 *                  are any
 *   rap_cde_means  rows' answers -> means of each sample, a block a sample
 *
 * A block takes a row; its warps take tiles of RAP_CDE_CUDA_TILE logits. Chunks and tiles
 * are fixed, so the bits depend on the shapes alone.
 */
#ifndef RAP_CDE_CUDA_H
#define RAP_CDE_CUDA_H

#include <assert.h>

#include "cde.h"

#define RAP_CDE_CUDA_THREADS 256
#define RAP_CDE_CUDA_TILE 2048    /* 64 logits of each branch a lane */
#define RAP_CDE_CUDA_ROWS 512     /* of a block of products */
#define RAP_CDE_CUDA_COLUMNS 4096 /* both branches' products: 16 MiB, inside L2 */

/* Bits of `steps`. */
enum {
    RAP_CDE_CUDA_START = 1,  /* the rows' first columns: no state yet */
    RAP_CDE_CUDA_SWEEP = 2,  /* fold these columns into the sums */
    RAP_CDE_CUDA_MIX = 4,    /* js and tv of these columns; the sums are complete */
    RAP_CDE_CUDA_FINISH = 8, /* write the answers */
};

typedef struct {
    const void *l1, *l0;    /* [rows, columns] */
    const int64_t *targets; /* [rows], or NULL */
    rap_cde_state *state;   /* [rows], or NULL */
    double *out;            /* [OUTPUTS, rows], rows contiguous */
    int64_t stride1, stride0, target_stride, out_stride; /* elements */
    int64_t rows, columns;
    int64_t begin;          /* the first column's place in the vocabulary */
    int32_t dtype1, dtype0; /* rap_dtype */
    uint32_t want, steps;
} rap_cde_cuda;

typedef struct {
    float *products;  /* [rows, columns] */
    const void *bias; /* [columns]: already advanced to the chunk; or NULL */
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

/* linear_cde's workspace: [products1 | products0 | states] for `rows` <= ROWS. */
static inline int64_t
rap_cde_cuda_products_bytes(int64_t rows)
{
    return rows * RAP_CDE_CUDA_COLUMNS * (int64_t)sizeof(float);
}

static inline int64_t
rap_cde_cuda_workspace(int64_t rows)
{
    return 2 * rap_cde_cuda_products_bytes(rows) + rows * (int64_t)sizeof(rap_cde_state);
}

static_assert(sizeof(rap_cde_cuda) == 112, "launcher and kernel must agree");
static_assert(sizeof(rap_cde_map_cuda) == 64, "launcher and kernel must agree");
static_assert(sizeof(rap_cde_means_cuda) == 88, "launcher and kernel must agree");

#endif
