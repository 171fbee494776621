/* SPDX-License-Identifier: Apache-2.0
 *
 * What ace_cuda.c hands to the kernels of ace_cuda.cu, and, as a part, ace_tensor_cuda.c to those
 * of ace_tensor_cuda.cu: one struct by value; on one stream:
 *
 *   rap_ace_start                       once: clears the sums
 *   for each sample, for each block of its response rows [row, row + rows):
 *       scores[h, r, c] = q[h, begin + row + r] . k[h / group, begin + key + c]   (cuBLASLt)
 *       rap_ace_lse                     each head's row: reference and sum
 *       rap_ace_fold                    scores -> weights, folded over heads
 *       rap_ace_stats                   if stats or renormalise
 *       rap_ace_columns                 adds the block's rows to the columns' sums
 *   rap_ace_finish                      for each sample
 *
 * Single heads whose log-sum-exps are given need no scores: ace_linear_cuda.h stands between
 * rap_ace_start and rap_ace_finish. Head mean and maximum of 16-bit numbers on tensor cores
 * have launches of their own: ace_tensor_cuda.h.
 *
 * A block's scores stay in L2 and neither L x L nor all rows at once ever exist. Columns are
 * added block after block, so the bits depend on the shapes alone.
 */
#ifndef RAP_ACE_LAUNCH_CUDA_H
#define RAP_ACE_LAUNCH_CUDA_H

#include <assert.h>

#include "ace.h"

#define RAP_ACE_CUDA_THREADS 256
#define RAP_ACE_CUDA_SCORES (INT64_C(6) << 20) /* floats of scores a block: 24 MiB */
#define RAP_ACE_CUDA_ROWS_MOST 512
#define RAP_ACE_CUDA_ROWS_LEAST 8

typedef struct {
    const void *lse;            /* [Hq, L] float32 or float64, or NULL */
    const uint8_t *column_mask; /* [L], or NULL */
    const uint8_t *image_mask;  /* [L], or NULL */
    float *scores;              /* [Hq, block_rows, ld] */
    float *weights;             /* [F, block_rows, ld]; for EACH the scores themselves */
    float *reference; /* [2, Hq, block_rows]: shift; 1 / (Z Hq) for the mean, else log2 Z */
    float *total;     /* [2, F, block_rows]: ln of a row's sum of weights, in two parts */
    double *sums;     /* [F, L] */
    double *stats;    /* [3, F, L]: of each row */
    double *summary;  /* out [OUTPUTS, S, F] */
    int64_t *position; /* out [S, F] */
    double *psi;       /* out [F, L] */
    double unit, ln_sigma;
    rap_ace_options o;
    int64_t lse_stride[2];        /* elements: head, row */
    int64_t total_length;         /* L */
    int64_t samples, sample;      /* S, and which one */
    int64_t begin, length, start; /* of the sample; of the response inside it */
    int64_t row, key; /* the block's first row and first key, inside the sample */
    int64_t ld;       /* floats between two rows of scores */
    int32_t rows, block_rows, hq, fields, lse_dtype;
    float scale2; /* scale in units of log2 */
    float unit32; /* unit: nvcc would convert it for each number */
    int32_t unused;
} rap_ace_cuda;

static_assert(sizeof(rap_ace_cuda) == 296, "launcher and kernel must agree");

/* Floats between two rows of scores. */
static inline int64_t
rap_ace_cuda_ld(int64_t length)
{
    return rap_ceil_div(RAP_MAX(length, 1), 32) * 32;
}

/* Rows of a block: the scores of all heads fit half of an L2 cache. */
static inline int64_t
rap_ace_cuda_block_rows(int64_t hq, int64_t length)
{
    const int64_t rows = RAP_ACE_CUDA_SCORES / (hq * rap_ace_cuda_ld(length)) / 8 * 8;

    return RAP_MAX(RAP_ACE_CUDA_ROWS_LEAST, RAP_MIN(rows, RAP_ACE_CUDA_ROWS_MOST));
}

/* --- blocks of each launch; every loop is right for any number ------------------------- */

static inline int64_t
rap_ace_cuda_blocks(int64_t blocks)
{
    return RAP_MAX(1, RAP_MIN(blocks, 65535));
}

static inline int64_t
rap_ace_cuda_start_grid(const rap_ace_cuda *p)
{
    return rap_ace_cuda_blocks(
        rap_ceil_div(p->fields * p->total_length, 4 * RAP_ACE_CUDA_THREADS));
}

static inline int64_t
rap_ace_cuda_lse_grid(const rap_ace_cuda *p) /* a warp a row of a head */
{
    return rap_ace_cuda_blocks(
        rap_ceil_div((int64_t)p->hq * p->rows, RAP_ACE_CUDA_THREADS / 32));
}

static inline int64_t
rap_ace_cuda_fold_grid(const rap_ace_cuda *p) /* a thread four columns of a row */
{
    const int64_t keys = p->row + p->rows - p->key;

    return rap_ace_cuda_blocks(rap_ceil_div(
        (int64_t)p->fields * p->rows * rap_ceil_div(keys, 4), RAP_ACE_CUDA_THREADS));
}

static inline int64_t
rap_ace_cuda_stats_grid(const rap_ace_cuda *p) /* a block a row */
{
    return rap_ace_cuda_blocks((int64_t)p->fields * p->rows);
}

static inline int64_t
rap_ace_cuda_columns_grid(const rap_ace_cuda *p) /* a thread a column */
{
    const int64_t keys = p->row + p->rows - p->key;

    return rap_ace_cuda_blocks(
        rap_ceil_div((int64_t)p->fields * keys, RAP_ACE_CUDA_THREADS));
}

static inline int64_t
rap_ace_cuda_finish_grid(const rap_ace_cuda *p) /* a block a field */
{
    return rap_ace_cuda_blocks(p->fields);
}

#endif
