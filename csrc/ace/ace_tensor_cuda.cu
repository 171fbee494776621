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
 * Limits: sm_80 and later; bfloat16 or float16, both the same; 2^31 - 129 rows in all. NaN
 * in a score that is computed surfaces, as in ace.h; under `renormalise` NaN in a row's sum
 * reaches all columns from that row on.
 */
#include "../cuda/tensor_device.h"

#include "ace_gives_device.h"
#include "ace_parts_device.h"
#include "ace_tile_device.h"

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

            sum += seen ? rap_ex2(z) : 0;
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
        const int64_t to =
            ace_part_at(p, 2 * x->chunk + i / rows / p->a.hq, i / rows % p->a.hq,
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
    const int64_t n = (int64_t)a->hq * a->rows,
                  step = (int64_t)rap_blocks() * rap_threads();

    if (rap_block() == 0 && rap_thread() == 0) {
        *p.ticket = 0;
    }
    for (int64_t i = (int64_t)rap_block() * rap_threads() + rap_thread(); i < n; i += step)
    {
        const int64_t head = i / a->rows, row = i % a->rows;
        rap_ace_reference ref;

        if (a->lse != NULL) {
            const int64_t from =
                head * a->lse_stride[0] + (a->begin + a->start + row) * a->lse_stride[1];

            ref = rap_ace_given(a->lse_dtype == RAP_F32
                                    ? (double)((const float *)a->lse)[from]
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

                w[m][n][i] = mean ? RAP_FMA(rest[row], rap_ex2(z), w[m][n][i])
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
