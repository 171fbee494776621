/* SPDX-License-Identifier: Apache-2.0
 *
 * What a tile of weights gives: sums of its rows, their largest, sums of its columns. Part
 * of ace_tensor_cuda.cu.
 */
#ifndef RAP_ACE_GIVES_DEVICE_H
#define RAP_ACE_GIVES_DEVICE_H

#include "ace_tile_device.h"

/* --- weights to shared memory ----------------------------------------------------------- */

/* Where the tile of weights keeps one: rows and columns are read without bank conflicts. */
RAP_HD int
ace_weight_at(int row, int column)
{
    return row * COLUMNS + (column ^ (row & 31));
}

/* ace_weight_at of the lane's rows and columns, put together from what all of them share. */
RAP_HD void
ace_keep_tile(ace_lane_tile w, float *to)
{
    const int lane = rap_lane();
    const int even = (2 * (lane % 4)) ^ (lane / 4), odd = even ^ 1;

    to += (ace_warp_row() + lane / 4) * COLUMNS + ace_warp_column();
#pragma unroll
    for (int m = 0; m < 2; m++) {
#pragma unroll
        for (int n = 0; n < BLOCKS_A_ROW; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int row = m * 16 + i / 2 * 8;

                to[row * COLUMNS + ((n * 8) ^ row) + (i % 2 == 0 ? even : odd)] =
                    w[m][n][i];
            }
        }
    }
}

/* --- what a tile of weights gives ------------------------------------------------------- */

/* A thread a row: adds sums over the columns of the tile that it sees to the share's;
 * `fresh`: the share's first tile. */
RAP_HD void
ace_row_sums(const rap_ace_tensor_cuda *p, const ace_place *at, const ace_share *share,
             bool fresh, int row, const float *tile)
{
    const ace_seen x = ace_seen_of(p, at, row);
    const uint8_t *image =
        p->a.image_mask == NULL ? NULL : p->a.image_mask + p->a.begin + at->column;
    const float least = rap_exp2f_least();
    const int64_t all = (int64_t)p->chunks * p->a.rows;
    double *to =
        p->row_sums + share->chunk * (int64_t)p->a.rows + at->row - p->a.start + row;
    float sum = 0, dot = 0, seen = 0;

#pragma unroll 2
    for (int c = x.lo; c < x.hi; c++) {
        const float v = tile[ace_weight_at(row, c)], w = ace_linear(&p->a, v, least);

        sum += w;
        dot = RAP_FMA(w, ace_ln(&p->a, v), dot);
        seen += image != NULL && image[c] != 0 ? w : 0;
    }
    to[0] = (fresh ? 0 : to[0]) + sum;
    to[all] = (fresh ? 0 : to[all]) + dot;
    to[2 * all] = (fresh ? 0 : to[2 * all]) + seen;
}

/* A thread a row: keeps the `top` largest weights of the share in p->largest. */
RAP_HD void
ace_keep_largest(const rap_ace_tensor_cuda *p, const ace_place *at, const ace_share *share,
                 bool fresh, int row, ace_tile_shared *sh)
{
    const ace_seen x = ace_seen_of(p, at, row);
    const float least = rap_exp2f_least();
    uint32_t *kept = p->largest + (int64_t)share->chunk * p->a.o.top * p->a.rows
                     + (at->row - p->a.start) + row;
    uint32_t *list = sh->out.largest + row;
    uint32_t smallest = 0;
    int place = 0;

    for (int i = 0; i < p->a.o.top; i++) {
        list[i * ROWS] = fresh ? 0 : kept[(int64_t)i * p->a.rows];
    }
    for (int c = x.lo - 1; c < x.hi; c++) {
        if (c >= x.lo) { /* before the first: the smallest is looked for */
            const float v = sh->out.w[ace_weight_at(row, c)];
            const uint32_t bits = rap_bits(ace_linear(&p->a, v, least)) & 0x7fffffffu;

            if (bits <= smallest) {
                continue;
            }
            list[place * ROWS] = bits;
        }
        smallest = 0xffffffffu;
#pragma unroll 4
        for (int i = 0; i < p->a.o.top; i++) {
            const uint32_t here = list[i * ROWS];

            place = here < smallest ? i : place;
            smallest = here < smallest ? here : smallest;
        }
    }
    for (int i = 0; i < p->a.o.top; i++) {
        kept[(int64_t)i * p->a.rows] = list[i * ROWS];
    }
}

/* A thread a column: the sum of ln w over the rows of the tile that count for it. */
RAP_HD void
ace_column_sum(const rap_ace_tensor_cuda *p, const ace_place *at, int row_tile, int c,
               const float *tile)
{
    const rap_ace_cuda *a = &p->a;
    const int64_t j = (int64_t)at->column + c;
    const int64_t first = RAP_MAX(RAP_MAX(j, a->start), at->row);
    const int64_t last =
        RAP_MIN(at->row + at->rows, rap_ace_last_row(&a->o, a->length, a->start, j));
    float hi = 0, lo = 0;

    if (c >= at->columns
        || !(a->o.columns & (j < a->start ? RAP_ACE_PROMPT : RAP_ACE_RESPONSE)))
    {
        return;
    }
#pragma unroll 2
    for (int r = (int)(first - at->row); r < last - at->row; r++) {
        rap_add_exact(&hi, &lo, ace_ln(a, tile[ace_weight_at(r, c)]));
    }
    p->column_sums[row_tile * (a->length - p->first_column) + j - p->first_column] =
        isinf(hi) ? (double)hi : (double)hi + (double)lo;
}

RAP_HD void
ace_tile_gives(const rap_ace_tensor_cuda *p, const ace_place *at, const ace_share *x,
               bool fresh, ace_tile_shared *sh)
{
    const int thread = rap_thread_again(), row = thread % ROWS;
    const bool is = row < at->rows && (p->a.o.want_stats || p->a.o.renormalise);

    if (is && thread < ROWS) {
        ace_row_sums(p, at, x, fresh, row, sh->out.w);
    }
    if (is && thread >= ROWS && p->a.o.want_stats) {
        ace_keep_largest(p, at, x, fresh, row, sh);
    }
    ace_column_sum(p, at, x->row_tile, thread, sh->out.w);
}

/* What a share without tiles leaves of its rows. */
RAP_HD void
ace_gives_nothing(const rap_ace_tensor_cuda *p, const ace_share *x)
{
    const int thread = rap_thread_again(), row = thread % ROWS;
    const int64_t r = (int64_t)x->row_tile * ROWS + row, rows = p->a.rows;
    const int from = thread / ROWS;

    if (row >= x->end - x->row || !(p->a.o.want_stats || p->a.o.renormalise)) {
        return;
    }
    for (int i = from; i < 3; i += THREADS / ROWS) {
        p->row_sums[((int64_t)i * p->chunks + x->chunk) * rows + r] = 0;
    }
    for (int i = from; i < p->a.o.top && p->a.o.want_stats; i += THREADS / ROWS) {
        p->largest[((int64_t)x->chunk * p->a.o.top + i) * rows + r] = 0;
    }
}

#endif
