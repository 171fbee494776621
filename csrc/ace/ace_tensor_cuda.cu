/* SPDX-License-Identifier: Apache-2.0
 *
 * Head mean and head maximum on tensor cores: see ace_tensor_cuda.h for the order of the
 * kernels, ace.h for the formulas.
 *
 *   lse     m = the larger of m and ceil(max_j scale2 s_j);  z = z 2^(m before - m)
 *           + sum_j 2^(scale2 s_j - m), column tile after column tile
 *   fold    w_ij = sum_h rest_hi 2^(scale2 s_hij - shift_hi)      (mean), or
 *           log2 w_ij = max_h (scale2 s_hij - shift_hi - rest_hi)  (maximum)
 *
 * Four warps, two by two, hold a tile of 64 rows by 128 columns: 32 by 64 a warp, weights
 * and the scores of one head in registers. Queries and keys come in steps of 64 dimensions,
 * 16 bytes a fetch, the next step's while this one is multiplied; rows that do not begin at
 * 16-byte boundaries are copied number by number. Units of 16 bytes are placed by exclusive
 * or with the row, which spares ldmatrix bank conflicts. When all heads are folded the same
 * shared memory holds the tile of weights, read by rows (entropy, image, largest) and by
 * columns (sums of ln w).
 *
 * Shapes: any D, any ratio of query to key heads, any strides of heads and rows.
 *
 * Precision: products exact, added in float32 by the tensor cores, which cut off instead of
 * rounding: a score is within (D / 16 + 16) 2^-23 sum_d |q_d k_d|. 2^x is the special
 * function unit's, 2 ulp; ln polynomial, 1 ulp; 16 terms of a lane and the sums over column
 * tiles of a block float32; m a whole number, so that rescaling is exact; everything across
 * tiles and blocks float64. Tested: log psi within 4x of float32 attention's own error, and
 * within 4e-6 of float64 on the tests' shapes.
 *
 * Limits: sm_80 and later; bfloat16 or float16, both the same. NaN in a score that is
 * computed surfaces, as in ace.h.
 */
#include "../cuda/tensor.h"

#include "ace_device.h"
#include "ace_tensor_cuda.h"

#define ROWS RAP_ACE_TENSOR_ROWS
#define COLUMNS RAP_ACE_TENSOR_COLUMNS
#define DEPTH RAP_ACE_TENSOR_DEPTH
#define THREADS RAP_ACE_TENSOR_THREADS
#define UNITS (DEPTH / 8)  /* of 16 bytes a row */
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
        ace_fetch_rows(at->k + 2 * (step->key_head * p->k_stride[0] + d), 2 * p->k_stride[1],
                       at->columns, COLUMNS, left, p->k_wide != 0,
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
    const uint16_t *column = k
                             + ace_unit(ace_warp_column() + lane / 16 * 8 + lane % 8,
                                        2 * slice + lane / 8 % 2);
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

/* --- log-sum-exps ----------------------------------------------------------------------- */

/* 2^x of a whole number x <= 0, exactly */
RAP_HD float
ace_exp2_whole(float x)
{
    return x < -126 ? 0 : rap_from_bits((uint32_t)((int)x + 127) << 23);
}

RAP_HD int64_t
ace_part_at(const rap_ace_tensor_cuda *p, int64_t part, int64_t head, int64_t row)
{
    return (part * p->a.hq + head) * p->a.rows + row;
}

/* Whether every row of the tile sees every column of it. */
RAP_HD bool
ace_sees_all(const rap_ace_tensor_cuda *p, const ace_place *at)
{
    const int last = at->row + at->rows - 1;

    return at->column + COLUMNS <= at->row + 1
           && rap_ace_first_seen(&p->a.o, last) <= at->column;
}

/* The largest that a lane's row sees in its half of a tile, or -inf. Here and below `all`
 * is a constant: that the row sees all. */
RAP_HD float
ace_quad_max(ace_lane_tile s, int i, const ace_seen *x, const bool all)
{
    float largest = -INFINITY;

#pragma unroll
    for (int n = 0; n < BLOCKS_A_ROW; n++) {
#pragma unroll
        for (int j = 0; j < 2; j++) {
            const int column = ace_lane_column(n, j);
            const bool seen = all || (column >= x->lo && column < x->hi);

            largest = fmaxf(largest, seen ? s[i / 2][n][i % 2 * 2 + j] : -INFINITY);
        }
    }
    largest = fmaxf(largest, rap_shfl_xor_f32(largest, 1));
    return fmaxf(largest, rap_shfl_xor_f32(largest, 2));
}

RAP_HD float
ace_quad_sum(ace_lane_tile s, int i, const ace_seen *x, const bool all, float scale2,
             float shift)
{
    float sum = 0;

#pragma unroll
    for (int n = 0; n < BLOCKS_A_ROW; n++) {
#pragma unroll
        for (int j = 0; j < 2; j++) {
            const int column = ace_lane_column(n, j);
            const bool seen = all || (column >= x->lo && column < x->hi);
            const float z = rap_ace_exponent(scale2, s[i / 2][n][i % 2 * 2 + j], shift);

            sum += seen ? rap_exp2_unit(z) : 0;
        }
    }
    sum += rap_shfl_xor_f32(sum, 1);
    return sum + rap_shfl_xor_f32(sum, 2);
}

/* A head's parts of a lane's rows, so far. */
typedef struct {
    float shift[4], sum[4];
} ace_part;

/* `fresh`: before the first tile of the share. */
RAP_HD ace_part
ace_part_before(const rap_ace_tensor_cuda *p, const ace_place *at, int64_t to, bool fresh)
{
    ace_part part;

#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int row = ace_lane_row(i);
        const bool old = !fresh && row < at->rows;

        part.shift[i] = old ? p->part_max[to + row] : -INFINITY;
        part.sum[i] = old ? p->part_sum[to + row] : 0;
    }
    return part;
}

/* Adds a head's tile. */
RAP_HD void
ace_add_tile(const rap_ace_tensor_cuda *p, const ace_place *at, const ace_part *part,
             int64_t to, const bool all, ace_lane_tile s)
{
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int row = ace_lane_row(i);
        const ace_seen seen = ace_seen_of(p, at, row);
        const float before = part->shift[i];
        const float largest = ace_quad_max(s, i, &seen, all);
        const float shift = fmaxf(before, ceilf(p->a.scale2 * largest));
        const float add = ace_quad_sum(s, i, &seen, all, p->a.scale2, shift);
        const float scale = before == shift ? 1 : ace_exp2_whole(before - shift);

        if (rap_lane() % 4 == 0 && row < at->rows) {
            p->part_max[to + row] = shift;
            p->part_sum[to + row] = RAP_FMA(part->sum[i], scale, add);
        }
    }
}

/* What a share without tiles leaves. */
RAP_HD void
ace_no_part(const rap_ace_tensor_cuda *p, const ace_share *x)
{
    const int rows = x->end - x->row, n = 2 * p->a.hq * rows;

    for (int i = rap_thread_again(); i < n; i += THREADS) {
        const int64_t to = ace_part_at(p, 2 * x->chunk + i / rows / p->a.hq,
                                       i / rows % p->a.hq,
                                       (int64_t)x->row_tile * ROWS + i % rows);

        p->part_max[to] = -INFINITY;
        p->part_sum[to] = 0;
    }
}

RAP_HD void
ace_lse(const rap_ace_tensor_cuda *p, int dtype, ace_tile_shared *sh)
{
    const int64_t n = (int64_t)p->row_tiles * p->chunks;

    for (int64_t item = rap_block(); item < n; item += rap_blocks()) {
        const ace_share x = ace_share_of(p, item, true);

        if (x.first == x.last) {
            ace_no_part(p, &x);
        }
        for (int tile = x.first; tile < x.last; tile++) {
            const ace_place at = ace_place_of(p, &x, tile);
            const bool all = ace_sees_all(p, &at);
            ace_step step = ace_begin_tile(p, &at, sh);

#pragma unroll 1
            while (step.head < p->a.hq) {
                const int64_t to = ace_part_at(p, 2 * x.chunk + rap_warp() / 2, step.head,
                                               (int64_t)x.row_tile * ROWS);
                const ace_part part = ace_part_before(p, &at, to, tile == x.first);
                ace_lane_tile s;

                ace_scores(p, &at, dtype, &step, sh, s);
                if (all) {
                    ace_add_tile(p, &at, &part, to, true, s);
                }
                else {
                    ace_add_tile(p, &at, &part, to, false, s);
                }
            }
        }
    }
}

RAP_KERNEL(rap_fused_lse_bf16, rap_ace_tensor_cuda, RAP_ACE_TENSOR_THREADS, 3)
{
    RAP_SMEM(ace_tile_shared, sh);

    ace_lse(&p, RAP_BF16, sh);
}

RAP_KERNEL(rap_fused_lse_f16, rap_ace_tensor_cuda, RAP_ACE_TENSOR_THREADS, 3)
{
    RAP_SMEM(ace_tile_shared, sh);

    ace_lse(&p, RAP_F16, sh);
}

/* The parts of a head's row together. */
RAP_HD rap_ace_reference
ace_merged(const rap_ace_tensor_cuda *p, int64_t head, int64_t row)
{
    rap_ace_reference ref;

    ref.shift = -INFINITY;
    ref.z = 0;
    for (int part = 0; part < 2 * p->chunks; part++) {
        ref.shift = rap_larger(ref.shift, p->part_max[ace_part_at(p, part, head, row)]);
    }
    for (int part = 0; part < 2 * p->chunks; part++) {
        const int64_t at = ace_part_at(p, part, head, row);
        const float m = p->part_max[at];
        const float scale = m == ref.shift ? 1 : ace_exp2_whole(m - ref.shift);

        ref.z += (double)p->part_sum[at] * (double)scale;
    }
    return ref;
}

RAP_KERNEL(rap_fused_reference, rap_ace_tensor_cuda, RAP_ACE_CUDA_THREADS, 4)
{
    const rap_ace_cuda *a = &p.a;
    const int64_t n = (int64_t)a->hq * a->rows, step = (int64_t)rap_blocks() * rap_threads();

    if (rap_block() == 0 && rap_thread() == 0) {
        *p.ticket = 0;
    }
    for (int64_t i = (int64_t)rap_block() * rap_threads() + rap_thread(); i < n; i += step)
    {
        const int64_t head = i / a->rows, row = i % a->rows;
        rap_ace_reference ref;

        if (a->lse != NULL) {
            const int64_t from = head * a->lse_stride[0]
                                 + (a->begin + a->start + row) * a->lse_stride[1];

            ref = rap_ace_given(a->lse_dtype == RAP_F32 ? (double)((const float *)a->lse)[from]
                                                        : ((const double *)a->lse)[from],
                                a->unit);
        }
        else {
            ref = ace_merged(&p, head, row);
        }
        a->reference[i] = ref.shift;
        a->reference[n + i] = rap_ace_rest(&a->o, ref.z, a->hq);
    }
}

/* --- weights, folded over heads --------------------------------------------------------- */

/* w += rest 2^z, or log2 w = max(log2 w, z - rest); z = scale2 s - shift. `mean` is a
 * constant where this is called. */
RAP_HD void
ace_fold_head(float scale2, ace_lane_tile s, const float *shift, const float *rest,
              const bool mean, ace_lane_tile w)
{
#pragma unroll
    for (int m = 0; m < 2; m++) {
#pragma unroll
        for (int n = 0; n < BLOCKS_A_ROW; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int row = 2 * m + i / 2;
                const float z = rap_ace_exponent(scale2, s[m][n][i], shift[row]);

                w[m][n][i] = mean ? RAP_FMA(rest[row], rap_exp2_unit(z), w[m][n][i])
                                  : rap_ace_larger(w[m][n][i], z - rest[row]);
            }
        }
    }
}

/* The weights of a tile of all heads. */
RAP_HD void
ace_fold_tile(const rap_ace_tensor_cuda *p, const ace_place *at, int dtype,
              ace_tile_shared *sh, ace_lane_tile w)
{
    const int64_t all = (int64_t)p->a.hq * p->a.rows;
    ace_step step = ace_begin_tile(p, at, sh);

    ace_fill(w, p->a.o.heads == RAP_ACE_MEAN ? 0 : -INFINITY);
#pragma unroll 1
    while (step.head < p->a.hq) {
        const float *from =
            p->a.reference + (int64_t)step.head * p->a.rows + (at->row - p->a.start);
        float shift[4], rest[4];
        ace_lane_tile s;

#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int row = ace_lane_row(i);

            shift[i] = row < at->rows ? from[row] : 0;
            rest[i] = row < at->rows ? from[all + row] : 0;
        }
        ace_scores(p, at, dtype, &step, sh, s);
        if (p->a.o.heads == RAP_ACE_MEAN) {
            ace_fold_head(p->a.scale2, s, shift, rest, true, w);
        }
        else {
            ace_fold_head(p->a.scale2, s, shift, rest, false, w);
        }
    }
}

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
    double *to = p->row_sums + share->chunk * (int64_t)p->a.rows + at->row - p->a.start + row;
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
    p->columns[row_tile * (a->length - p->first_column) + j - p->first_column] =
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

RAP_HD void
ace_fold(const rap_ace_tensor_cuda *p, int dtype, ace_tile_shared *sh)
{
    const int64_t n = (int64_t)p->row_tiles * p->chunks;

    for (int64_t item = rap_block(); item < n; item += rap_blocks()) {
        const ace_share x = ace_share_of(p, item, false);

        if (x.first == x.last) {
            ace_gives_nothing(p, &x);
        }
        for (int tile = x.first; tile < x.last; tile++) {
            const ace_place at = ace_place_of(p, &x, tile);
            ace_lane_tile w;

            ace_fold_tile(p, &at, dtype, sh, w);
            rap_sync(); /* the last step has been read: its place is taken */
            ace_keep_tile(w, sh->out.w);
            rap_sync();
            ace_tile_gives(p, &at, &x, tile == x.first, sh);
        }
    }
}

RAP_KERNEL(rap_fused_fold_bf16, rap_ace_tensor_cuda, RAP_ACE_TENSOR_THREADS, 3)
{
    RAP_SMEM(ace_tile_shared, sh);

    ace_fold(&p, RAP_BF16, sh);
}

RAP_KERNEL(rap_fused_fold_f16, rap_ace_tensor_cuda, RAP_ACE_TENSOR_THREADS, 3)
{
    RAP_SMEM(ace_tile_shared, sh);

    ace_fold(&p, RAP_F16, sh);
}

/* --- answers ---------------------------------------------------------------------------- */

/* The parts of a column's sum, in the order of the rows. */
RAP_HD void
ace_add_parts(const rap_ace_tensor_cuda *p, int64_t j)
{
    const rap_ace_cuda *a = &p->a;
    const int64_t first = RAP_MAX(j, a->start), width = a->length - p->first_column;
    const int64_t last = rap_ace_last_row(&a->o, a->length, a->start, j);
    const int kind = j < a->start ? RAP_ACE_PROMPT : RAP_ACE_RESPONSE;
    double sum = 0;

    if ((a->o.columns & kind) && first < last) {
        for (int64_t t = (first - a->start) / ROWS; t <= (last - 1 - a->start) / ROWS; t++)
        {
            sum += p->columns[t * width + j - p->first_column];
        }
    }
    a->sums[a->begin + j] = sum;
}

/* The bits of the `top`-th largest weight of a row, 0 if it has fewer. */
RAP_HD uint32_t
ace_top_bits(const rap_ace_tensor_cuda *p, int64_t r)
{
    const int n = p->chunks * p->a.o.top;
    uint32_t found = 0;

#pragma unroll 1
    for (int bit = 30; bit >= 0; bit--) {
        const uint32_t next = found | 1u << bit;
        int count = 0;

        for (int i = 0; i < n; i += RAP_WARP) {
            const int at = i + rap_lane();

            count += rap_popcount(
                rap_ballot(at < n && p->largest[(int64_t)at * p->a.rows + r] >= next));
        }
        found = count >= p->a.o.top ? next : found;
    }
    return found;
}

/* Mass of the `top` largest weights of a row, known to every lane. */
RAP_HD double
ace_top_mass(const rap_ace_tensor_cuda *p, int64_t r)
{
    const uint32_t bits = ace_top_bits(p, r);
    const int n = p->chunks * p->a.o.top;
    double mass = 0;
    int above = 0;

    for (int i = 0; i < n; i += RAP_WARP) {
        const int at = i + rap_lane();
        const uint32_t here = at < n ? p->largest[(int64_t)at * p->a.rows + r] : 0;

        above += rap_popcount(rap_ballot(here > bits));
        mass += here > bits ? (double)rap_from_bits(here) : 0;
    }
    return rap_warp_sum(mass)
           + (double)(p->a.o.top - above) * (double)rap_from_bits(bits);
}

/* A warp a row: its statistics, and ln of its sum. */
RAP_HD void
ace_row_gives(const rap_ace_tensor_cuda *p, int64_t r)
{
    const rap_ace_cuda *a = &p->a;
    const int64_t all = (int64_t)p->chunks * a->rows;
    double part[3] = {0, 0, 0}, mass;

    for (int chunk = rap_lane(); chunk < p->chunks; chunk += RAP_WARP) {
        for (int i = 0; i < 3; i++) {
            part[i] += p->row_sums[i * all + (int64_t)chunk * a->rows + r];
        }
    }
    for (int i = 0; i < 3; i++) {
        part[i] = rap_warp_sum(part[i]);
    }
    mass = a->o.want_stats ? ace_top_mass(p, r) : 0;
    part[0] = a->o.heads == RAP_ACE_MEAN ? 1 : part[0]; /* their rows sum to 1 */
    if (rap_lane() == 0) {
        double *out = a->stats + a->begin + a->start + r;

        out[0] = log(part[0]) - part[1] / part[0];
        out[a->total_length] = mass / part[0];
        out[2 * a->total_length] = part[2] / part[0];
        p->totals[r] = log(part[0]);
    }
}

/* totals[r] becomes the sum of those before it, by the whole block. */
RAP_HD void
ace_sum_totals(const rap_ace_tensor_cuda *p, ace_finish_shared *sh)
{
    const int64_t share = (p->a.rows + rap_threads() - 1) / rap_threads();
    const int64_t first = RAP_MIN(p->a.rows, share * rap_thread());
    const int64_t last = RAP_MIN(p->a.rows, first + share);
    double sum = 0;

    for (int64_t r = first; r < last; r++) {
        sum += p->totals[r];
    }
    sh->best[rap_thread()] = sum;
    rap_sync();
    sum = 0;
    for (int t = 0; t < rap_thread(); t++) {
        sum += sh->best[t];
    }
    for (int64_t r = first; r < last; r++) {
        const double own = p->totals[r];

        p->totals[r] = sum;
        sum += own;
    }
    if (rap_thread() == rap_threads() - 1) {
        p->totals[p->a.rows] = sum;
    }
    rap_sync();
}

/* Rows of weights divided by their sums: ln of those sums goes from each column's. */
RAP_HD void
ace_renormalise(const rap_ace_tensor_cuda *p, ace_finish_shared *sh)
{
    const rap_ace_cuda *a = &p->a;

    ace_sum_totals(p, sh);
    for (int64_t j = rap_thread(); j < a->length; j += rap_threads()) {
        const int64_t first = RAP_MAX(j, a->start);
        const int64_t last = rap_ace_last_row(&a->o, a->length, a->start, j);

        a->sums[a->begin + j] -= p->totals[last - a->start] - p->totals[first - a->start];
    }
    rap_sync();
}

typedef struct {
    ace_finish_shared answer;
    int last;
} ace_end_shared;

RAP_KERNEL(rap_fused_finish, rap_ace_tensor_cuda, RAP_ACE_CUDA_THREADS, 3)
{
    RAP_SMEM(ace_end_shared, sh);
    const int64_t threads = (int64_t)rap_blocks() * rap_threads();
    const int64_t own = (int64_t)rap_block() * rap_threads() + rap_thread();

    for (int64_t j = own; j < p.a.length; j += threads) {
        ace_add_parts(&p, j);
    }
    for (int64_t r = own / RAP_WARP;
         r < p.a.rows && (p.a.o.want_stats || p.a.o.renormalise); r += threads / RAP_WARP)
    {
        ace_row_gives(&p, r);
    }
    rap_sync();
    if (rap_thread() == 0) {
        sh->last = rap_last_block(p.ticket);
    }
    rap_sync();
    if (sh->last == 0) {
        return;
    }
    if (p.a.o.renormalise && p.a.o.heads == RAP_ACE_MAX) {
        ace_renormalise(&p, &sh->answer);
    }
    ace_answer(&p.a, 0, &sh->answer);
}
