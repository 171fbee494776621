/* SPDX-License-Identifier: Apache-2.0
 *
 * A tile of rows and columns on tensor cores: which a block takes, queries and keys on the
 * way to shared memory, the scores of one head in registers. Part of ace_tensor_cuda.cu,
 * whose head says how.
 */
#ifndef RAP_ACE_TILE_DEVICE_H
#define RAP_ACE_TILE_DEVICE_H

#include "../cuda/tensor_device.h"
#include "ace_device.h"
#include "ace_tensor_cuda.h"

#define ROWS RAP_ACE_TENSOR_ROWS
#define COLUMNS RAP_ACE_TENSOR_COLUMNS
#define DEPTH RAP_ACE_TENSOR_DEPTH
#define THREADS RAP_ACE_TENSOR_THREADS
#define UNITS (DEPTH / 8) /* of 16 bytes a row */
#define WARP_ROWS 32
#define WARP_COLUMNS 64
#define BLOCKS_A_ROW (WARP_COLUMNS / 8)

/* 48 KiB: what a block has without asking for more. */
typedef union {
    rap_u128 all[3072];
    struct {
        uint16_t q[2][ROWS * DEPTH];
        uint16_t k[2][COLUMNS * DEPTH];
    } in;
    struct {
        float w[ROWS * COLUMNS];
        uint32_t largest[RAP_ACE_TOP * ROWS];
    } out;
} ace_tile_shared;

/* A tile of rows and one of columns, of the sample; first rows of both, any head. */
typedef struct {
    const char *q, *k;
    int row, column;   /* inside the sample */
    int rows, columns; /* that there are */
} ace_place;

/* A step of a tile: one head, DEPTH of its dimensions. */
typedef struct {
    int head, deep;
    int key_head, sharer; /* head = key_head group + sharer */
} ace_step;

/* --- queries and keys to shared memory ------------------------------------------------- */

RAP_HD int
ace_steps_deep(const rap_ace_tensor_cuda *p)
{
    return (p->dim + DEPTH - 1) / DEPTH;
}

/* Sixteen dimensions each, of a step. */
RAP_HD int
ace_step_slices(const rap_ace_tensor_cuda *p, const ace_step *step)
{
    return (RAP_MIN(DEPTH, p->dim - step->deep * DEPTH) + 15) / 16;
}

/* Keys of up to two steps stay for the query heads that share them. */
RAP_HD bool
ace_keys_stay(const rap_ace_tensor_cuda *p)
{
    return p->dim <= 2 * DEPTH;
}

/* Which of the two places of queries: that of every other step. */
RAP_HD int
ace_query_slot(const rap_ace_tensor_cuda *p, const ace_step *step)
{
    return (int)(((uint32_t)step->head * (uint32_t)ace_steps_deep(p) + (uint32_t)step->deep)
                 & 1u);
}

RAP_HD int
ace_key_slot(const rap_ace_tensor_cuda *p, const ace_step *step)
{
    if (!ace_keys_stay(p)) {
        return ace_query_slot(p, step);
    }
    return p->dim <= DEPTH ? step->key_head & 1 : step->deep;
}

RAP_HD ace_step
ace_next_step(const rap_ace_tensor_cuda *p, const ace_step *step)
{
    ace_step next = *step;

    if (++next.deep == ace_steps_deep(p)) {
        next.deep = 0;
        next.head++;
        next.sharer = step->sharer + 1 == p->group ? 0 : step->sharer + 1;
        next.key_head += next.sharer == 0;
    }
    return next;
}

/* Where the unit of 16 bytes of a row lies. */
RAP_HD int
ace_unit(int row, int unit)
{
    return row * DEPTH + (unit ^ (row & 7)) * 8;
}

/* n numbers, then zeros, from an address that need not be aligned. */
RAP_HD void
ace_copy8(uint16_t *to, const char *from, int n)
{
#pragma unroll 1
    for (int i = 0; i < 8; i++) {
        to[i] = i < n ? ((const uint16_t *)from)[i] : (uint16_t)0;
    }
}

/* Rows [0, there) of `rows`, zeros below; `left` dimensions, zeros beyond. A thread has the
 * same unit of every THREADS / UNITS-th row. */
RAP_HD void
ace_fetch_rows(const char *from, int64_t stride, int there, int rows, int left, bool wide,
               uint16_t *to)
{
    const int first = rap_thread() / UNITS, unit = rap_thread() % UNITS;
    const int n = RAP_MAX(0, RAP_MIN(8, left - unit * 8));
    const char *at = from + (n > 0 ? first * stride + unit * 16 : 0);
    const int64_t step = n > 0 ? THREADS / UNITS * stride : 0;

    to += ace_unit(first, unit);
    if (!wide) {
#pragma unroll 1
        for (int row = first; row < rows; row += THREADS / UNITS) {
            ace_copy8(to, at, row < there ? n : 0);
            to += THREADS / UNITS * DEPTH;
            at += step;
        }
        return;
    }
#pragma unroll
    for (int i = 0; i < rows * UNITS / THREADS; i++) {
        const bool is = first + i * (THREADS / UNITS) < there;

        rap_fetch16(to + i * (THREADS / UNITS) * DEPTH, is ? at : from, is ? 2 * n : 0);
        at += step;
    }
}

RAP_HD void
ace_fetch_step(const rap_ace_tensor_cuda *p, const ace_place *at, const ace_step *step,
               ace_tile_shared *sh)
{
    const int d = step->deep * DEPTH, left = p->dim - d;

    ace_fetch_rows(at->q + 2 * (step->head * p->q_stride[0] + d), 2 * p->q_stride[1],
                   at->rows, ROWS, left, p->q_wide != 0, sh->in.q[ace_query_slot(p, step)]);
    if (!ace_keys_stay(p) || step->sharer == 0) {
        ace_fetch_rows(at->k + 2 * (step->key_head * p->k_stride[0] + d),
                       2 * p->k_stride[1], at->columns, COLUMNS, left, p->k_wide != 0,
                       sh->in.k[ace_key_slot(p, step)]);
    }
}

/* --- scores of one head in registers ---------------------------------------------------- */

/* Scores or weights of a lane: [16 rows][8 columns][as rap_mma's c]. */
typedef float ace_lane_tile[2][BLOCKS_A_ROW][4];

RAP_HD int
ace_warp_row(void)
{
    return rap_warp() % 2 * WARP_ROWS;
}

RAP_HD int
ace_warp_column(void)
{
    return rap_warp() / 2 * WARP_COLUMNS;
}

/* The lane's rows: 4 of a tile's. */
RAP_HD int
ace_lane_row(int i)
{
    return ace_warp_row() + i * 8 + rap_lane() / 4;
}

RAP_HD int
ace_lane_column(int block, int i)
{
    return ace_warp_column() + block * 8 + 2 * (rap_lane() % 4) + i % 2;
}

RAP_HD void
ace_fill(ace_lane_tile x, float value)
{
#pragma unroll
    for (int m = 0; m < 2; m++) {
#pragma unroll
        for (int n = 0; n < BLOCKS_A_ROW; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                x[m][n][i] = value;
            }
        }
    }
}

/* s += q k of sixteen dimensions. Blocks are whole eights of rows, so that one address, and
 * one place of the unit in it, serves all. */
RAP_HD void
ace_multiply_slice(const uint16_t *q, const uint16_t *k, int slice, int dtype,
                   ace_lane_tile s)
{
    const int lane = rap_lane();
    const uint16_t *row = q + ace_unit(ace_warp_row() + lane % 16, 2 * slice + lane / 16);
    const uint16_t *column =
        k
        + ace_unit(ace_warp_column() + lane / 16 * 8 + lane % 8, 2 * slice + lane / 8 % 2);
    uint32_t a[2][4], b[4];

#pragma unroll
    for (int m = 0; m < 2; m++) {
        rap_ldmatrix4(row + m * 16 * DEPTH, a[m]);
    }
#pragma unroll
    for (int n = 0; n < BLOCKS_A_ROW; n += 2) {
        rap_ldmatrix4(column + n * 8 * DEPTH, b);
#pragma unroll
        for (int m = 0; m < 2; m++) {
            rap_mma(s[m][n], a[m], b, dtype);
            rap_mma(s[m][n + 1], a[m], b + 2, dtype);
        }
    }
}

/* The scores of the head that `step` begins; leaves it at the next head. */
RAP_HD void
ace_scores(const rap_ace_tensor_cuda *p, const ace_place *at, int dtype, ace_step *step,
           ace_tile_shared *sh, ace_lane_tile s)
{
    const int head = step->head;

    ace_fill(s, 0);
#pragma unroll 1
    while (step->head == head) {
        const ace_step now = *step;
        const int slices = ace_step_slices(p, &now);

        *step = ace_next_step(p, &now);
        rap_fetch_wait();
        rap_sync(); /* all has arrived, and the step before has been read */
        if (step->head < p->a.hq) {
            ace_fetch_step(p, at, step, sh);
        }
#pragma unroll 1
        for (int slice = 0; slice < slices; slice++) {
            ace_multiply_slice(sh->in.q[ace_query_slot(p, &now)],
                               sh->in.k[ace_key_slot(p, &now)], slice, dtype, s);
        }
    }
}

/* --- tiles ------------------------------------------------------------------------------ */

/* The tiles of one block: rows of the sample and a share of the columns they need. */
typedef struct {
    int row, end;    /* rows, inside the sample */
    int first, last; /* tiles of columns */
    int row_tile, chunk;
} ace_share;

/* Late rows, which see the most, first; the shares of a tile of rows side by side, so that
 * its queries stay in L2. */
RAP_HD ace_share
ace_share_of(const rap_ace_tensor_cuda *p, int64_t item, bool lse_pass)
{
    ace_share x;
    rap_ace_keys keys;
    int64_t first, tiles;

    x.row_tile = p->row_tiles - 1 - (int)(item / p->chunks);
    x.chunk = (int)(item % p->chunks);
    x.row = (int)p->a.start + x.row_tile * ROWS;
    x.end = (int)RAP_MIN(x.row + ROWS, p->a.length);
    keys = rap_ace_tensor_keys(p, x.row, x.end, lse_pass);
    first = keys.lo / COLUMNS;
    tiles = RAP_MAX(0, (keys.hi + COLUMNS - 1) / COLUMNS - first);
    x.first = (int)(first + tiles * x.chunk / p->chunks);
    x.last = (int)(first + tiles * (x.chunk + 1) / p->chunks);
    return x;
}

RAP_HD ace_place
ace_place_of(const rap_ace_tensor_cuda *p, const ace_share *x, int tile)
{
    ace_place at;

    at.row = x->row;
    at.column = tile * COLUMNS;
    at.rows = x->end - x->row;
    at.columns = (int)RAP_MIN(COLUMNS, p->a.length - at.column);
    at.q = (const char *)p->q + (int64_t)at.row * (2 * p->q_stride[1]);
    at.k = (const char *)p->k + (int64_t)at.column * (2 * p->k_stride[1]);
    return at;
}

/* Columns [lo, hi) of the tile that a row of it sees. */
typedef struct {
    int lo, hi;
} ace_seen;

RAP_HD ace_seen
ace_seen_of(const rap_ace_tensor_cuda *p, const ace_place *at, int row)
{
    const int64_t i = (int64_t)at->row + row;
    const int64_t lo = rap_ace_first_seen(&p->a.o, i) - at->column;
    const int64_t hi = i + 1 - at->column;
    ace_seen x;

    x.lo = (int)RAP_MAX(0, RAP_MIN(lo, COLUMNS));
    x.hi = row < at->rows ? (int)RAP_MAX(0, RAP_MIN(hi, COLUMNS)) : 0;
    return x;
}

RAP_HD ace_step
ace_begin_tile(const rap_ace_tensor_cuda *p, const ace_place *at, ace_tile_shared *sh)
{
    ace_step step;

    step.head = step.deep = step.key_head = step.sharer = 0;
    rap_sync(); /* the tile before has been read */
    ace_fetch_step(p, at, &step, sh);
    return step;
}

#endif
