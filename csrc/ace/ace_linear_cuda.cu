/* SPDX-License-Identifier: Apache-2.0
 *
 * sums_j = scale k_j . S_j - sum_{i in I(j)} lse_i with S_j = sum_{i in I(j)} q_i, I(j) the
 * rows [max(j, start), max(j, start) + window) of the response: see ace_linear_cuda.h.
 *
 * Precision: sums of q and products with k are pairs of float32 (error-free sums and
 * products, about 48 bits), sums over tiles and log-sum-exps float64: nearly the CPU's
 * float64 at the rate of float32. Limits: a sum of q or a product with k beyond the range
 * of float32 is infinite. NaN or infinity in row i reaches every column up to i.
 */
#include "../cuda/device.h"

#include "ace_linear_cuda.h"

#define TILE RAP_ACE_LINEAR_TILE
#define LANE_DIMS 8

typedef struct {
    float hi, lo; /* of an infinite hi, lo is NaN and does not count */
} ace_pair;

RAP_HD ace_pair
ace_pair_of(double x)
{
    ace_pair out;

    out.hi = (float)x;
    out.lo = (float)(x - (double)out.hi);
    return out;
}

RAP_HD double
ace_pair_value(const ace_pair *x)
{
    return isinf(x->hi) ? (double)x->hi : (double)x->hi + (double)x->lo;
}

/* x += a; lo stays below the last bit of hi, so that long sums keep their precision. */
RAP_HD void
ace_pair_add(ace_pair *x, float a)
{
    float sum;

    rap_add_exact(&x->hi, &x->lo, a);
    sum = x->hi + x->lo;
    if (!isinf(x->hi)) {
        x->lo -= sum - x->hi;
        x->hi = sum;
    }
}

/* x += s k */
RAP_HD void
ace_pair_product(ace_pair *x, const ace_pair *s, float k)
{
    const float product = s->hi * k;

    rap_add_exact(&x->hi, &x->lo, product);
    x->lo += fmaf(s->lo, k, fmaf(s->hi, k, -product));
}

RAP_HD ace_pair
ace_warp_pair_sum(ace_pair x)
{
    for (int step = RAP_WARP / 2; step > 0; step /= 2) {
        const float hi = rap_shfl_xor_f32(x.hi, step), lo = rap_shfl_xor_f32(x.lo, step);

        rap_add_exact(&x.hi, &x.lo, hi);
        x.lo += lo;
    }
    return x;
}

/* --- what is read -------------------------------------------------------------------- */

/* s += sign q_row, dimensions [d, d + 8) */
RAP_HD void
ace_row_add(const rap_ace_linear_cuda *p, int64_t head, int64_t row, int64_t d, float sign,
            ace_pair *s)
{
    const int64_t size = p->q_dtype == RAP_F32 ? 4 : 2;
    const int64_t at = head * p->q_stride[0] + row * p->q_stride[1];
    float x[LANE_DIMS];

    rap_load8((const char *)p->q + at * size, p->q_dtype, d, p->dim, p->q_wide != 0, 0, x);
#pragma unroll
    for (int i = 0; i < LANE_DIMS; i++) {
        ace_pair_add(&s[i], sign * x[i]);
    }
}

/* k_row, dimensions [d, d + 8); 0 beyond the last */
RAP_HD void
ace_k8(const rap_ace_linear_cuda *p, int64_t head, int64_t row, int64_t d, float *x)
{
    const int64_t size = p->k_dtype == RAP_F32 ? 4 : 2;
    const int64_t at = head / p->group * p->k_stride[0] + row * p->k_stride[1];

    rap_load8((const char *)p->k + at * size, p->k_dtype, d, p->dim, p->k_wide != 0, 0, x);
}

/* 0 beyond the last row */
RAP_HD double
ace_lse_at(const rap_ace_linear_cuda *p, int64_t head, int64_t row)
{
    const int64_t at = head * p->lse_stride[0] + row * p->lse_stride[1];

    if (row >= p->length) {
        return 0;
    }
    return p->lse_dtype == RAP_F32 ? (double)((const float *)p->lse)[at]
                                   : ((const double *)p->lse)[at];
}

/* The sums of one tile, [D + 1]. */
RAP_HD double *
ace_tile_at(const rap_ace_linear_cuda *p, int64_t head, int64_t tile)
{
    return p->tiles + (head * (p->tiles_count + 1) + tile) * (p->dim + 1);
}

/* --- tiles --------------------------------------------------------------------------- */

RAP_HD void
ace_tile_vector(const rap_ace_linear_cuda *p, int64_t head, int64_t tile, int64_t d)
{
    const int64_t first = p->start + tile * TILE;
    double *out = ace_tile_at(p, head, tile) + d;
    ace_pair sum[LANE_DIMS];

#pragma unroll
    for (int i = 0; i < LANE_DIMS; i++) {
        sum[i].hi = sum[i].lo = 0;
    }
    for (int64_t row = first; row < RAP_MIN(first + TILE, p->length); row++) {
        ace_row_add(p, head, row, d, 1, sum);
    }
#pragma unroll
    for (int i = 0; i < LANE_DIMS; i++) {
        if (d + i < p->dim) {
            out[i] = ace_pair_value(&sum[i]);
        }
    }
}

RAP_HD void
ace_tile_lse(const rap_ace_linear_cuda *p, int64_t head, int64_t tile)
{
    const int64_t first = p->start + tile * TILE;
    double sum = 0;

    for (int64_t row = first; row < first + TILE; row++) {
        sum += ace_lse_at(p, head, row);
    }
    ace_tile_at(p, head, tile)[p->dim] = sum;
}

RAP_KERNEL(rap_ace_tiles, rap_ace_linear_cuda, RAP_ACE_LINEAR_THREADS, 4)
{
    const int64_t groups = (p.dim + LANE_DIMS - 1) / LANE_DIMS;
    const int64_t tiles = p.hq * p.tiles_count, vectors = tiles * groups;
    const int64_t step = (int64_t)rap_blocks() * rap_threads();

    for (int64_t i = (int64_t)rap_block() * rap_threads() + rap_thread();
         i < vectors + tiles; i += step)
    {
        const int64_t tile = i < vectors ? i / groups : i - vectors;
        const int64_t head = tile / p.tiles_count;

        if (i < vectors) {
            ace_tile_vector(&p, head, tile % p.tiles_count, i % groups * LANE_DIMS);
        }
        else {
            ace_tile_lse(&p, head, tile % p.tiles_count);
        }
    }
}

RAP_KERNEL(rap_ace_suffix, rap_ace_linear_cuda, RAP_ACE_LINEAR_THREADS, 4)
{
    const int64_t n = (int64_t)p.hq * (p.dim + 1);
    const int64_t step = (int64_t)rap_blocks() * rap_threads();

    for (int64_t i = (int64_t)rap_block() * rap_threads() + rap_thread(); i < n; i += step)
    {
        double *at = ace_tile_at(&p, i / (p.dim + 1), p.tiles_count) + i % (p.dim + 1);
        double sum = 0;

        *at = 0;
        for (int64_t tile = p.tiles_count - 1; tile >= 0; tile--) {
            at -= p.dim + 1;
            sum += *at;
            *at = sum;
        }
    }
}

/* --- columns ------------------------------------------------------------------------- */

/* Columns [first, end), at most 32, and the rows that the state begins with: those of the
 * tiles [from, cut) without the rows [left, right). Taking away instead of adding lets
 * an infinite row do what it does where each row comes and goes alone, on the CPU. */
typedef struct {
    int64_t head, first, end;
    int64_t from, cut, left, right;
    bool response;
} ace_walk;

RAP_HD ace_walk
ace_walk_of(const rap_ace_linear_cuda *p, int64_t head, int64_t tile)
{
    const int64_t prompt = tile - p->tiles_count;
    ace_walk w;
    int64_t edge;

    w.head = head;
    w.response = prompt < 0;
    w.first = w.response ? p->start + tile * TILE : prompt * TILE;
    w.end = RAP_MIN(w.first + TILE, w.response ? p->length : p->start);
    edge = w.response ? w.end : p->start;
    w.from = w.response ? tile + 1 : 0;
    w.cut = RAP_MIN(p->tiles_count, (edge - p->start + p->window + TILE - 1) / TILE);
    w.left = edge + p->window;
    w.right = RAP_MIN(p->length, p->start + w.cut * TILE);
    return w;
}

/* Sum of the log-sum-exps of I(j) for this lane's column j. */
RAP_HD double
ace_walk_lse(const rap_ace_linear_cuda *p, const ace_walk *w)
{
    const int64_t row = w->first + rap_lane();
    const double *from = ace_tile_at(p, w->head, w->from);
    const double *cut = ace_tile_at(p, w->head, w->cut);
    double own = 0, mine = 0, sum;

    own =
        w->left + rap_lane() < w->right ? ace_lse_at(p, w->head, w->left + rap_lane()) : 0;
    sum = from[p->dim] - cut[p->dim] - rap_warp_sum(own);
    own = 0;
    if (w->response && row < w->end) {
        own = ace_lse_at(p, w->head, row) - ace_lse_at(p, w->head, row + p->window);
    }
    for (int r = TILE - 1; r >= 0; r--) {
        sum += rap_shfl_f64(own, r);
        mine = r == rap_lane() ? sum : mine;
    }
    return mine;
}

/* S of the walk's edge. */
RAP_HD void
ace_walk_begin(const rap_ace_linear_cuda *p, const ace_walk *w, int64_t d, ace_pair *s)
{
    const double *from = ace_tile_at(p, w->head, w->from) + d;
    const double *cut = ace_tile_at(p, w->head, w->cut) + d;

#pragma unroll
    for (int i = 0; i < LANE_DIMS; i++) {
        s[i] = ace_pair_of(d + i < p->dim ? from[i] - cut[i] : 0);
    }
    for (int64_t row = w->left; row < w->right; row++) {
        ace_row_add(p, w->head, row, d, -1, s);
    }
}

/* From the columns after `row` to row: one row comes, and one goes if a window ends. */
RAP_HD void
ace_walk_step(const rap_ace_linear_cuda *p, const ace_walk *w, int64_t row, int64_t d,
              ace_pair *s)
{
    ace_row_add(p, w->head, row, d, 1, s);
    if (row + p->window < p->length) {
        ace_row_add(p, w->head, row + p->window, d, -1, s);
    }
}

/* k_j . S_j over 256 dimensions; each lane keeps that of its own column. */
RAP_HD ace_pair
ace_walk_dots(const rap_ace_linear_cuda *p, const ace_walk *w, int64_t d)
{
    ace_pair s[LANE_DIMS], mine = {0, 0};

    ace_walk_begin(p, w, d, s);
    for (int64_t row = w->end - 1; row >= w->first; row--) {
        ace_pair dot = {0, 0};
        float x[LANE_DIMS];

        if (w->response) {
            ace_walk_step(p, w, row, d, s);
        }
        ace_k8(p, w->head, row, d, x);
#pragma unroll
        for (int i = 0; i < LANE_DIMS; i++) {
            ace_pair_product(&dot, &s[i], x[i]);
        }
        dot = ace_warp_pair_sum(dot);
        if (row - w->first == rap_lane()) {
            mine = dot;
        }
    }
    return mine;
}

RAP_KERNEL(rap_ace_linear, rap_ace_linear_cuda, RAP_ACE_LINEAR_THREADS, 3)
{
    const int64_t tiles = p.tiles_count + (p.start + TILE - 1) / TILE, n = p.hq * tiles;
    const int64_t warps = (int64_t)rap_blocks() * rap_threads() / RAP_WARP;

    for (int64_t i = (int64_t)rap_block() * rap_threads() / RAP_WARP + rap_warp(); i < n;
         i += warps)
    {
        const ace_walk w = ace_walk_of(&p, i / tiles, i % tiles);
        const int64_t column = w.first + rap_lane();
        double dot = 0, lse;

        if (!(p.columns & (w.response ? RAP_ACE_RESPONSE : RAP_ACE_PROMPT))) {
            continue;
        }
        for (int64_t d = 0; d < p.dim; d += LANE_DIMS * RAP_WARP) {
            const ace_pair part = ace_walk_dots(&p, &w, d + LANE_DIMS * rap_lane());

            dot += ace_pair_value(&part);
        }
        lse = ace_walk_lse(&p, &w);
        if (column < w.end) {
            p.sums[w.head * p.total_length + column] = p.scale * dot - lse;
        }
    }
}
