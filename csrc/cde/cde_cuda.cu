/* SPDX-License-Identifier: Apache-2.0
 *
 * The order of cde_kernel.h on a GPU: a warp is what a CPU thread is there. It reads a tile
 * once with the reference it has, and again only when an exponent rises too far above it.
 * Terms of a tile are summed in float32, 64 a lane; tiles in float64; lanes by a fixed
 * tree, warps in their order. e x = 0 where e = 0 is a select here, so -inf needs no path
 * of its own: beyond a row everything is -inf and adds nothing.
 */
#include "../cuda/device.h"

#include "cde_cuda.h"
#include "cde_math.h"

#define LANE_STEP (8 * RAP_WARP) /* logits a warp reads at a time */

/* Logits are taken from their references at a thousandth of their size: differences and
 * sums of a tile then stay finite for every finite float32, and no bit is lost. */
#define SMALL 0x1p-10f
#define LOG2E_OF_SMALL (RAP_LOG2E / SMALL)

typedef struct {
    rap_cde_state part[RAP_CDE_CUDA_THREADS / RAP_WARP];
    rap_cde_state row;
} cde_shared;

/* One row of one branch. */
typedef struct {
    const void *data;
    int dtype;
    bool wide;
} cde_row;

typedef struct {
    float z1, z0, s1, s0, u1, u0, b, top;
} cde_sums;

RAP_HD cde_row
cde_row_at(const void *data, int dtype, int64_t stride, int64_t row)
{
    const int64_t size = dtype == RAP_F32 ? 4 : 2;
    cde_row r;

    r.data = (const char *)data + row * stride * size;
    r.dtype = dtype;
    r.wide = rap_aligned(r.data);
    return r;
}

RAP_HD void
cde_load8(const rap_cde_cuda *p, const cde_row *r, int64_t at, float *x)
{
    rap_load8(r->data, r->dtype, at, p->columns, r->wide, -INFINITY, x);
}

RAP_HD float
cde_times(float e, float x)
{
    return e == 0 ? 0 : e * x; /* 0 inf = 0; NaN stays */
}

/* h1, h0: logits less their references, times SMALL. */
RAP_HD void
cde_add(cde_sums *sum, float h1, float h0, const bool hellinger, float least)
{
    const float x1 = h1 * LOG2E_OF_SMALL, x0 = h0 * LOG2E_OF_SMALL, d = h1 - h0;
    const float e1 = rap_exp2f(x1, least), e0 = rap_exp2f(x0, least);

    sum->top = rap_larger(sum->top, rap_larger(x1, x0));
    sum->z1 += e1;
    sum->z0 += e0;
    sum->s1 += cde_times(e1, d);
    sum->s0 += cde_times(e0, d);
    sum->u1 += cde_times(e1, h1);
    sum->u0 += cde_times(e0, h0);
    if (hellinger) {
        sum->b += rap_exp2f(0.5f * (x1 + x0), least);
    }
}

/* This lane's sums of a tile, x taken from the references of `st`; s and u times SMALL, in
 * nats. */
RAP_HD cde_sums
cde_tile(const rap_cde_cuda *p, const cde_row *r1, const cde_row *r0, int64_t tile,
         const rap_cde_state *st)
{
    const float m1 = SMALL * (float)rap_cde_base(st->m1);
    const float m0 = SMALL * (float)rap_cde_base(st->m0);
    const float least = rap_exp2f_least();
    const bool hellinger = p->want & RAP_CDE_BIT(RAP_CDE_HELLINGER2);
    cde_sums sum = {0, 0, 0, 0, 0, 0, 0, -INFINITY};

#pragma unroll 1
    for (int c = 0; c < RAP_CDE_CUDA_TILE; c += LANE_STEP) {
        const int64_t at = tile + c + 8 * rap_lane();
        float l1[8], l0[8];

        cde_load8(p, r1, at, l1);
        cde_load8(p, r0, at, l0);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            cde_add(&sum, RAP_FMA(l1[i], SMALL, -m1), RAP_FMA(l0[i], SMALL, -m0), hellinger,
                    least);
        }
    }
    sum.top = rap_warp_max(sum.top);
    return sum;
}

/* The largest logit of a tile, known to the whole warp. */
RAP_HD float
cde_tile_max(const rap_cde_cuda *p, const cde_row *r, int64_t tile)
{
    float m = -INFINITY;

#pragma unroll 1
    for (int c = 0; c < RAP_CDE_CUDA_TILE; c += LANE_STEP) {
        float x[8];

        cde_load8(p, r, tile + c + 8 * rap_lane(), x);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            m = rap_larger(m, x[i]);
        }
    }
    return rap_warp_max(m);
}

/* This lane's part of the row, in its warp's references. */
RAP_HD void
cde_sweep_lane(const rap_cde_cuda *p, const cde_row *r1, const cde_row *r0,
               rap_cde_state *st)
{
    const int64_t step = (int64_t)RAP_CDE_CUDA_TILE * (rap_threads() / RAP_WARP);
    const double unit = LOG2E_OF_SMALL;

    rap_cde_clear(st);
    for (int64_t tile = (int64_t)RAP_CDE_CUDA_TILE * rap_warp(); tile < p->columns;
         tile += step)
    {
        bool known = st->m1 != -INFINITY && st->m0 != -INFINITY;
        cde_sums add = {0, 0, 0, 0, 0, 0, 0, 0};

        for (int attempt = known ? 0 : 1; attempt < 2; attempt++) {
            if (attempt == 1) {
                const double m1 = cde_tile_max(p, r1, tile);
                const double m0 = cde_tile_max(p, r0, tile);

                rap_cde_raise(st, fmax(st->m1, m1), fmax(st->m0, m0));
            }
            add = cde_tile(p, r1, r0, tile, st);
            if (add.top < RAP_CDE_HEADROOM) {
                break;
            }
        }
        st->z1 += add.z1;
        st->z0 += add.z0;
        st->s1 += add.s1 * unit;
        st->s0 += add.s0 * unit;
        st->u1 += add.u1 * unit;
        st->u0 += add.u0 * unit;
        st->b += add.b;
    }
}

RAP_HD void
cde_sum_lanes(rap_cde_state *st)
{
    st->z1 = rap_warp_sum(st->z1);
    st->z0 = rap_warp_sum(st->z0);
    st->s1 = rap_warp_sum(st->s1);
    st->s0 = rap_warp_sum(st->s0);
    st->u1 = rap_warp_sum(st->u1);
    st->u0 = rap_warp_sum(st->u0);
    st->b = rap_warp_sum(st->b);
}

RAP_HD void
cde_targets(const rap_cde_cuda *p, const cde_row *r1, const cde_row *r0, int64_t row,
            rap_cde_state *st)
{
    int64_t at;

    if (p->targets == NULL) {
        return;
    }
    at = p->targets[row * p->target_stride] - p->begin;
    if (at >= 0 && at < p->columns) {
        st->target1 = rap_load1(r1->data, r1->dtype, at);
        st->target0 = rap_load1(r0->data, r0->dtype, at);
    }
}

/* Leaves the row's sums in sh->row. */
RAP_HD void
cde_sweep_row(const rap_cde_cuda *p, const cde_row *r1, const cde_row *r0, int64_t row,
              cde_shared *sh)
{
    rap_cde_state st;

    cde_sweep_lane(p, r1, r0, &st);
    cde_sum_lanes(&st);
    if (rap_lane() == 0) {
        sh->part[rap_warp()] = st;
    }
    rap_sync();
    if (rap_thread() == 0) {
        for (int w = 0; w < rap_threads() / RAP_WARP; w++) {
            rap_cde_merge(&sh->row, &sh->part[w]);
        }
        cde_targets(p, r1, r0, row, &sh->row);
    }
    rap_sync();
}

typedef struct {
    float m1, m0, ln_z1, ln_z0;
} cde_scale;

RAP_HD void
cde_mix_add(const cde_scale *k, float l1, float l0, float least, float *js, float *tv)
{
    const float a1 = RAP_FMA(l1 - k->m1, RAP_LOG2E, -k->ln_z1);
    const float a0 = RAP_FMA(l0 - k->m0, RAP_LOG2E, -k->ln_z0);
    const float p1 = rap_exp2f(a1, least), p0 = rap_exp2f(a0, least);
    const float ln_mix = rap_log2f(0.5f * (p1 + p0));

    *tv += fabsf(p1 - p0);
    *js += cde_times(p1, a1 - ln_mix);
    *js += cde_times(p0, a0 - ln_mix);
}

/* js and tv of these columns added to sh->row, whose sums are complete. */
RAP_HD void
cde_mix_row(const rap_cde_cuda *p, const cde_row *r1, const cde_row *r0, cde_shared *sh)
{
    const int64_t step = (int64_t)LANE_STEP * (rap_threads() / RAP_WARP);
    const float least = rap_exp2f_least();
    double js = 0, tv = 0;
    cde_scale k;

    k.m1 = (float)sh->row.m1;
    k.m0 = (float)sh->row.m0;
    k.ln_z1 = (float)log2(sh->row.z1);
    k.ln_z0 = (float)log2(sh->row.z0);
    for (int64_t c = (int64_t)LANE_STEP * rap_warp() + 8 * rap_lane(); c < p->columns;
         c += 8 * step)
    {
        float js_tile = 0, tv_tile = 0;

        for (int t = 0; t < 8; t++) { /* 64 logits a lane, as in the sweep */
            float l1[8], l0[8];

            cde_load8(p, r1, c + t * step, l1);
            cde_load8(p, r0, c + t * step, l0);
#pragma unroll
            for (int i = 0; i < 8; i++) {
                cde_mix_add(&k, l1[i], l0[i], least, &js_tile, &tv_tile);
            }
        }
        js += js_tile;
        tv += tv_tile;
    }
    js = rap_warp_sum(js);
    tv = rap_warp_sum(tv);
    if (rap_lane() == 0) {
        sh->part[rap_warp()].js = js;
        sh->part[rap_warp()].tv = tv;
    }
    rap_sync();
    for (int w = 0; rap_thread() == 0 && w < rap_threads() / RAP_WARP; w++) {
        sh->row.js += 0.5 * sh->part[w].js;
        sh->row.tv += 0.5 * sh->part[w].tv;
    }
}

/* Before or between launches the row's sums lie in `state`. */
RAP_HD void
cde_open(const rap_cde_cuda *p, int64_t row, cde_shared *sh)
{
    if (rap_thread() == 0) {
        if (p->steps & RAP_CDE_CUDA_START) {
            rap_cde_clear(&sh->row);
        }
        else {
            sh->row = p->state[row];
        }
    }
    rap_sync(); /* and thread 0 has done with the row before */
}

RAP_HD void
cde_close(const rap_cde_cuda *p, int64_t row, cde_shared *sh)
{
    if (rap_thread() == 0) {
        if (p->steps & RAP_CDE_CUDA_FINISH) {
            rap_cde_answer(&sh->row, p->want, p->out + row, p->out_stride);
        }
        else {
            p->state[row] = sh->row;
        }
    }
}

RAP_KERNEL(rap_cde_rows, rap_cde_cuda, RAP_CDE_CUDA_THREADS, 3)
{
    RAP_SMEM(cde_shared, sh);

    for (int64_t row = rap_block(); row < p.rows; row += rap_blocks()) {
        const cde_row r1 = cde_row_at(p.l1, p.dtype1, p.stride1, row);
        const cde_row r0 = cde_row_at(p.l0, p.dtype0, p.stride0, row);

        cde_open(&p, row, sh);
        if (p.steps & RAP_CDE_CUDA_SWEEP) {
            cde_sweep_row(&p, &r1, &r0, row, sh);
        }
        if (p.steps & RAP_CDE_CUDA_MIX) {
            cde_mix_row(&p, &r1, &r0, sh);
        }
        cde_close(&p, row, sh);
    }
}

RAP_HD float
cde_map1(const rap_cde_map_cuda *p, float x, int64_t column, float inverse, float least)
{
    if (p->bias != NULL) {
        x += rap_load1(p->bias, p->bias_dtype, column * p->bias_stride);
    }
    x *= p->scale;
    return p->softcap > 0 ? rap_cde_softcap(x, p->softcap, inverse, least) : x;
}

/* products -> logits = softcap tanh(scale (product + bias) / softcap), in place, four
 * columns a thread */
RAP_KERNEL(rap_cde_map, rap_cde_map_cuda, RAP_CDE_CUDA_THREADS, 4)
{
    const float least = rap_exp2f_least();
    const float inverse = p.softcap > 0 ? 1.0f / p.softcap : 0;
    const int64_t groups = (p.columns + 3) / 4;
    const int64_t step = (int64_t)rap_blocks() * rap_threads();

    for (int64_t i = (int64_t)rap_block() * rap_threads() + rap_thread();
         i < p.rows * groups; i += step)
    {
        const int64_t column = i % groups * 4;
        float *at = p.products + i / groups * p.stride + column;

        if (column + 4 <= p.columns && rap_aligned(at)) {
            const rap_u128 a = rap_load128(at);
            float x[4];

            x[0] = cde_map1(&p, rap_from_bits(a.x), column, inverse, least);
            x[1] = cde_map1(&p, rap_from_bits(a.y), column + 1, inverse, least);
            x[2] = cde_map1(&p, rap_from_bits(a.z), column + 2, inverse, least);
            x[3] = cde_map1(&p, rap_from_bits(a.w), column + 3, inverse, least);
            rap_store128(at, x);
            continue;
        }
        for (int e = 0; e < 4 && column + e < p.columns; e++) {
            at[e] = cde_map1(&p, at[e], column + e, inverse, least);
        }
    }
}

/* --- means of samples ------------------------------------------------------------------ */

typedef struct {
    double part[RAP_CDE_CUDA_THREADS / RAP_WARP];
} cde_means_shared;

/* NaN for what is no weight: the host has not checked it. */
RAP_HD double
cde_weight(const rap_cde_means_cuda *p, int64_t row)
{
    const int64_t at = row * p->weight_stride;
    double w = 1;

    if (p->weights != NULL) {
        w = p->weight_dtype == RAP_F32 ? (double)((const float *)p->weights)[at]
                                       : ((const double *)p->weights)[at];
    }
    return w >= 0 && w < INFINITY ? w : NAN;
}

/* Sum over the rows of a sample of their weights, or of the weighted answers; a row of
 * weight 0 does not count, whatever it holds. Known to every thread. */
RAP_HD double
cde_weighted_sum(const rap_cde_means_cuda *p, const double *answers, int64_t begin,
                 int64_t end, cde_means_shared *sh)
{
    double sum = 0;

    for (int64_t row = begin + rap_thread(); row < end; row += rap_threads()) {
        const double w = cde_weight(p, row);

        if (w != 0) {
            sum += answers != NULL ? w * answers[row] : w;
        }
    }
    return rap_block_sum(sum, sh->part);
}

RAP_KERNEL(rap_cde_means, rap_cde_means_cuda, RAP_CDE_CUDA_THREADS, 4)
{
    RAP_SMEM(cde_means_shared, sh);

    for (int64_t s = rap_block(); s < p.samples; s += rap_blocks()) {
        const int64_t begin = p.cu_seqlens[s * p.cu_stride];
        const int64_t end = p.cu_seqlens[(s + 1) * p.cu_stride];
        const bool inside = begin >= 0 && begin <= end && end <= p.rows;
        const int64_t stop = inside ? end : begin;
        const double total = cde_weighted_sum(&p, NULL, begin, stop, sh);

        for (int o = 0; o < RAP_CDE_OUTPUTS; o++) {
            double sum;

            if (!(p.want & RAP_CDE_BIT(o))) {
                continue;
            }
            sum = cde_weighted_sum(&p, p.answers + o * p.answers_stride, begin, stop, sh);
            if (rap_thread() == 0) {
                p.out[o * p.out_stride + s] = total > 0 ? sum / total : NAN;
            }
        }
    }
}
