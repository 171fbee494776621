/* SPDX-License-Identifier: Apache-2.0
 *
 * What ace_cuda.c hands to the kernels of ace_linear_cuda.cu: the linear form of ace.h for
 * single heads whose row log-sum-exps are given, O(L D). One struct by value; for each
 * sample, on one stream, between rap_ace_start and rap_ace_finish of ace_launch_cuda.h:
 *
 *   rap_ace_tiles     sums of q over the rows of each tile
 *   rap_ace_suffix    sums over the tile and all after it
 *   rap_ace_linear    walks each tile from its last row; its columns' sums
 *
 * Tiles of RAP_ACE_LINEAR_TILE rows begin at the response. Beside the D sums of q stands
 * that of the log-sum-exps. Every sum has one order, so the bits depend on the shapes alone.
 */
#ifndef RAP_ACE_LINEAR_CUDA_H
#define RAP_ACE_LINEAR_CUDA_H

#include <assert.h>

#include "ace.h"

#define RAP_ACE_LINEAR_THREADS 256
#define RAP_ACE_LINEAR_TILE 32 /* a lane a row */

typedef struct {
    const void *q, *k; /* [Hq, L, D], [Hkv, L, D], from the sample's first row on */
    const void *lse;   /* [Hq, L] float32 or float64, likewise */
    double *tiles;     /* [Hq, tiles + 1, D + 1] */
    double *sums;      /* out [Hq, total_length], likewise */
    double scale;
    int64_t q_stride[2], k_stride[2], lse_stride[2]; /* elements: head, row */
    int64_t total_length;
    int64_t length, start; /* of the sample; of the response inside it */
    int64_t window;        /* rows of I(j), at most; 1 or more */
    int64_t tiles_count;   /* of the response */
    int64_t dim;
    int32_t hq, group, columns;
    int32_t q_dtype, k_dtype, lse_dtype;
    int32_t q_wide, k_wide; /* whether rows begin at 16-byte boundaries */
} rap_ace_linear_cuda;

static_assert(sizeof(rap_ace_linear_cuda) == 176, "launcher and kernel must agree");

static inline int64_t
rap_ace_linear_tiles(int64_t rows)
{
    return rap_ceil_div(rows, RAP_ACE_LINEAR_TILE);
}

/* Doubles of `tiles` for a sample with so many response rows. */
static inline int64_t
rap_ace_linear_space(int64_t hq, int64_t rows, int64_t dim)
{
    return hq * (rap_ace_linear_tiles(rows) + 1) * (dim + 1);
}

/* --- blocks of each launch; every loop is right for any number ------------------------- */

static inline int64_t
rap_ace_linear_blocks(int64_t threads)
{
    return RAP_MAX(1, RAP_MIN(rap_ceil_div(threads, RAP_ACE_LINEAR_THREADS), 65535));
}

static inline int64_t
rap_ace_linear_tiles_grid(
    const rap_ace_linear_cuda *p) /* a thread 8 dimensions of a tile */
{
    return rap_ace_linear_blocks(p->hq * p->tiles_count * (rap_ceil_div(p->dim, 8) + 1));
}

static inline int64_t
rap_ace_linear_suffix_grid(const rap_ace_linear_cuda *p) /* a thread a dimension */
{
    return rap_ace_linear_blocks((int64_t)p->hq * (p->dim + 1));
}

static inline int64_t
rap_ace_linear_grid(const rap_ace_linear_cuda *p) /* a warp a tile of columns */
{
    return rap_ace_linear_blocks(32 * p->hq
                                 * (p->tiles_count + rap_ace_linear_tiles(p->start)));
}

#endif
