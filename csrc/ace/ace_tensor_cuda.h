/* SPDX-License-Identifier: Apache-2.0
 *
 * What ace_tensor_cuda.c hands to the kernels of ace_tensor_cuda.cu: head mean and head maximum
 * of bfloat16 or float16 queries and keys on tensor cores, without a score in memory. One
 * struct by value; for each sample, on one stream:
 *
 *   rap_fused_lse_*      unless log-sum-exps are given: part_max, part_sum
 *   rap_fused_reference  each head's row: reference and rest, from the parts or as given
 *   rap_fused_fold_*     weights, folded over heads in registers: sums of columns and rows
 *   rap_fused_finish     adds the parts; the last block gives the answers
 *
 * A block takes a tile of RAP_ACE_TENSOR_ROWS response rows and one of `chunks` equal shares
 * of the column tiles that these rows see; inside a column tile it loops over heads, a key
 * head's tile of keys staying in shared memory for all its query heads (up to 128
 * dimensions). Every sum has one order: the bits depend on the shapes and options alone.
 *
 * Bytes through L2, two passes: a tile of rows and columns reads 2 D (64 Hq + 128 Hkv) bytes
 * for 2 D 64 128 Hq FLOP. See benchmarks/ROOFLINE.md.
 */
#ifndef RAP_ACE_TENSOR_CUDA_H
#define RAP_ACE_TENSOR_CUDA_H

#include "ace_launch_cuda.h"
#include "ace_math.h"

#define RAP_ACE_TENSOR_THREADS 128
#define RAP_ACE_TENSOR_ROWS 64     /* of a tile */
#define RAP_ACE_TENSOR_COLUMNS 128 /* of a tile: one a thread */
#define RAP_ACE_TENSOR_DEPTH 64    /* dimensions of a step: 128 bytes a row */
#define RAP_ACE_TENSOR_BLOCKS 1536 /* wanted, where there are so many tiles */

typedef struct {
    rap_ace_cuda a;      /* row = start, rows = block_rows = all of the response, F = 1 */
    const void *q, *k;   /* [Hq, L, D], [Hkv, L, D], from the sample's first row on */
    float *part_max;     /* [2 chunks, Hq, rows], units of log2, whole numbers */
    float *part_sum;     /* likewise: sum of 2^(scale2 s - part_max) */
    double *column_sums; /* [row tiles, length - first_column]: sums of ln w */
    double *row_sums;    /* [3, chunks, rows]: sum of w, of w ln w, of w on image tokens */
    uint32_t *largest;   /* [chunks, top, rows]: bits of weights, 0 where there are fewer */
    double *totals;      /* [rows + 1]: ln of a row's sum of weights, then sums before */
    uint32_t *ticket;
    int64_t q_stride[2], k_stride[2]; /* elements: head, row */
    int64_t first_column;             /* the first that may be a candidate */
    int32_t row_tiles, chunks;
    int32_t group, dim;
    int32_t q_wide, k_wide; /* whether rows begin at 16-byte boundaries */
} rap_ace_tensor_cuda;

static_assert(sizeof(rap_ace_tensor_cuda) == 432, "launcher and kernel must agree");

/* The keys that a tile's rows [row, end) need: [lo, hi). The pass that makes log-sum-exps
 * needs all that the rows see. */
typedef struct {
    int64_t lo, hi;
} rap_ace_keys;

RAP_HD rap_ace_keys
rap_ace_tensor_keys(const rap_ace_tensor_cuda *p, int64_t row, int64_t end, bool lse_pass)
{
    const rap_ace_options *o = &p->a.o;
    const bool given = p->a.lse != NULL;
    rap_ace_keys keys;

    keys.lo = lse_pass ? rap_ace_first_seen(o, row)
                       : rap_ace_first_key(o, given, p->a.length, p->a.start, row);
    keys.hi = end;
    if (!lse_pass && !rap_ace_needs_all(o, given) && !(o->columns & RAP_ACE_RESPONSE)) {
        keys.hi = RAP_MIN(end, p->a.start);
    }
    return keys;
}

static inline int32_t
rap_ace_tensor_row_tiles(int64_t rows)
{
    return (int32_t)rap_ceil_div(rows, RAP_ACE_TENSOR_ROWS);
}

/* Shares of the columns: enough blocks for a device, no more than column tiles. */
static inline int32_t
rap_ace_tensor_chunks(int64_t rows, int64_t length)
{
    const int64_t tiles = rap_ceil_div(length, RAP_ACE_TENSOR_COLUMNS);
    const int64_t wanted =
        rap_ceil_div(RAP_ACE_TENSOR_BLOCKS, RAP_MAX(1, rap_ace_tensor_row_tiles(rows)));

    return (int32_t)RAP_MAX(1, RAP_MIN(tiles, wanted));
}

/* --- blocks of each launch; every loop is right for any number ------------------------- */

static inline int64_t
rap_ace_tensor_grid(const rap_ace_tensor_cuda *p)
{
    return (int64_t)p->row_tiles * p->chunks;
}

static inline int64_t
rap_ace_tensor_reference_grid(const rap_ace_tensor_cuda *p) /* a thread a row of a head */
{
    return rap_ace_cuda_blocks(
        rap_ceil_div((int64_t)p->a.hq * p->a.rows, RAP_ACE_CUDA_THREADS));
}

static inline int64_t
rap_ace_tensor_finish_grid(
    const rap_ace_tensor_cuda *p) /* a thread a column, a warp a row */
{
    return rap_ace_cuda_blocks(RAP_MAX(rap_ceil_div(p->a.length, RAP_ACE_CUDA_THREADS),
                                       rap_ceil_div(p->a.rows, RAP_ACE_CUDA_THREADS / 32)));
}

/* --- the host's side: ace_tensor_cuda.c ------------------------------------------------ */

/* Whether these arguments have this form, on a device that has tensor cores for them. */
bool rap_ace_is_tensor(const rap_ace_args *a);
int64_t rap_ace_tensor_bytes(const rap_ace_args *a);

/* The launches of one sample, described by p, with `space` of rap_ace_tensor_bytes. */
bool rap_ace_tensor(const rap_ace_args *a, struct rap_cuda_call *call,
                    const rap_ace_cuda *p, char *space, rap_error *err);

#endif
