/* SPDX-License-Identifier: Apache-2.0
 *
 * rap_cde_rows: logits [T, V] of both branches -> answers [OUTPUTS, T], a block a row;
 * formulas: cde.h. float32, bfloat16 or float16, last dimension contiguous, V >= 1.
 * One sweep over the row (cde_sweep_device.h, also for the precision), a second for js and
 * tv; nothing is kept between launches.
 *
 * rap_cde_map: products -> logits in place; rap_cde_means: answers -> means of samples.
 */
#include "../cuda/device.h"

#include "cde_math.h"
#include "cde_sweep_device.h"

/* Exponents of probabilities, at least: what is smaller adds less than 1e-33 to js. */
#define LEAST_LOG2_P -120.0f

typedef struct {
    rap_cde_state part[RAP_CDE_CUDA_THREADS / RAP_WARP];
    rap_cde_state row;
    cde_norm norm1, norm0;
    double js[RAP_CDE_CUDA_THREADS / RAP_WARP], tv[RAP_CDE_CUDA_THREADS / RAP_WARP];
} cde_shared;

/* --- the row's sums --------------------------------------------------------------------- */

static_assert(offsetof(rap_cde_state, b) == (2 + B) * sizeof(double), "in their order");

/* The warp's part, a lane each sum, in shared memory. */
RAP_HD void
cde_put(cde_shared *sh, const cde_part *part)
{
    double *to = (double *)&sh->part[rap_warp()];

    if (rap_lane() == 0) {
        to[0] = part->m1;
        to[1] = part->m0;
    }
    if (rap_lane() % 4 == 0 && cde_which() <= B) {
        to[2 + cde_which()] = part->sum;
    }
}

/* The warps' parts, a lane each, in the references of the row; the first warp. */
RAP_HD void
cde_merge(const cde_shared *sh, rap_cde_state *st)
{
    rap_cde_clear(st);
    if (rap_lane() < rap_threads() / RAP_WARP) {
        const rap_cde_state *part = &sh->part[rap_lane()];

        st->m1 = part->m1;
        st->m0 = part->m0;
        rap_cde_add(st, part);
    }
    rap_cde_raise(st, rap_warp_max_f64(st->m1), rap_warp_max_f64(st->m0));
    st->z1 = rap_warp_sum(st->z1);
    st->z0 = rap_warp_sum(st->z0);
    st->s1 = rap_warp_sum(st->s1);
    st->s0 = rap_warp_sum(st->s0);
    st->u1 = rap_warp_sum(st->u1);
    st->u0 = rap_warp_sum(st->u0);
    st->b = rap_warp_sum(st->b);
}

RAP_HD void
cde_targets(const rap_cde_cuda *p, const cde_pair *x, int64_t row, rap_cde_state *st)
{
    int64_t at;

    if (p->targets == NULL) {
        return;
    }
    at = p->targets[row * p->target_stride];
    if (at >= 0 && at < p->columns) {
        st->target1 = rap_load1(x->l1, p->dtype1, at);
        st->target0 = rap_load1(x->l0, p->dtype0, at);
    }
}

/* Leaves the row's sums in sh->row. */
RAP_HD void
cde_sweep_row(const rap_cde_cuda *p, const cde_pair *x, int64_t row, cde_shared *sh)
{
    cde_part part;
    rap_cde_state st;

    cde_sweep_warp(p, x, &part);
    cde_put(sh, &part);
    rap_sync();
    if (rap_warp() == 0) {
        cde_merge(sh, &st);
        if (rap_lane() == 0) {
            cde_targets(p, x, row, &st);
            sh->row = st;
            sh->norm1 = cde_norm_of(st.m1, st.z1);
            sh->norm0 = cde_norm_of(st.m0, st.z0);
        }
    }
    rap_sync();
}

/* --- the second sweep: js and tv ------------------------------------------------------ */

typedef struct {
    float js, tv;
} cde_mixed;

RAP_HD void
cde_mix_add(cde_mixed *sum, const cde_norm *k1, const cde_norm *k0, float l1, float l0)
{
    const float x1 = RAP_FMA(l1, RAP_LOG2E, -k1->m2) - k1->log2_z;
    const float x0 = RAP_FMA(l0, RAP_LOG2E, -k0->m2) - k0->log2_z;
    const float a1 = fmaxf(x1, LEAST_LOG2_P), a0 = fmaxf(x0, LEAST_LOG2_P);
    const float p1 = rap_ex2(a1), p0 = rap_ex2(a0);
    const float log_mix = rap_lg2(0.5f * (p1 + p0));

    sum->tv += fabsf(p1 - p0);
    sum->js = RAP_FMA(p1, a1 - log_mix, sum->js);
    sum->js = RAP_FMA(p0, a0 - log_mix, sum->js);
}

RAP_HD cde_mixed
cde_mix_chunks(const cde_pair *x, const cde_norm *k1, const cde_norm *k0, int64_t at,
               int count, const int dtype)
{
    const char *at1 = cde_lane_at(x->l1, at, dtype), *at0 = cde_lane_at(x->l0, at, dtype);
    cde_mixed sum = {0, 0};

#pragma unroll 1
    for (int n = count * (CHUNK / cde_step(dtype)); n > 0; n--) {
        float l1[16], l0[16];

        cde_load(&at1, &at0, dtype, l1, l0);
#pragma unroll
        for (int i = 0; i < cde_step(dtype) / RAP_WARP; i++) {
            cde_mix_add(&sum, k1, k0, l1[i], l0[i]);
        }
    }
    return sum;
}

RAP_HD cde_mixed
cde_mix_typed(const rap_cde_cuda *p, const cde_pair *x, const cde_norm *k1,
              const cde_norm *k0, int64_t at, int count)
{
    switch (p->dtype1) {
    case RAP_F32:
        return cde_mix_chunks(x, k1, k0, at, count, RAP_F32);
    case RAP_F16:
        return cde_mix_chunks(x, k1, k0, at, count, RAP_F16);
    default:
        return cde_mix_chunks(x, k1, k0, at, count, RAP_BF16);
    }
}

/* Pairs [from, to), any logits. */
RAP_HD cde_mixed
cde_mix_carefully(const rap_cde_cuda *p, const cde_pair *x, const cde_norm *k1,
                  const cde_norm *k0, int64_t from, int64_t to)
{
    const float least = rap_exp2f_least();
    cde_mixed sum = {0, 0};

#pragma unroll 1
    for (int64_t i = from + rap_lane(); i < to; i += RAP_WARP) {
        const float h1 = cde_from(k1, rap_load1(x->l1, p->dtype1, i));
        const float h0 = cde_from(k0, rap_load1(x->l0, p->dtype0, i));
        const float a1 = RAP_FMA(h1, LOG2E_OF_SMALL, -k1->log2_z);
        const float a0 = RAP_FMA(h0, LOG2E_OF_SMALL, -k0->log2_z);
        const float p1 = rap_exp2f(a1, least), p0 = rap_exp2f(a0, least);
        const float log_mix = rap_log2f(0.5f * (p1 + p0));

        sum.tv += fabsf(p1 - p0);
        sum.js += cde_times(p1, a1 - log_mix) + cde_times(p0, a0 - log_mix);
    }
    return sum;
}

/* This lane's part, tile by tile as in the first sweep; a row whose references are not
 * common is taken carefully as a whole. */
RAP_HD void
cde_mix_lane(const rap_cde_cuda *p, const cde_pair *x, const cde_shared *sh, double *js,
             double *tv)
{
    const int64_t step = rap_threads() / RAP_WARP, each = TILE / CHUNK;
    const cde_norm k1 = sh->norm1, k0 = sh->norm0;
    const bool common = rap_cde_is_common(sh->row.m1, sh->row.m0);
    const int64_t chunks = common ? x->chunks : 0;
    const int64_t head = common ? x->head : p->columns;
    cde_mixed sum;

    for (int64_t tile = rap_warp(); tile * each < chunks; tile += step) {
        sum = cde_mix_typed(p, x, &k1, &k0, head + tile * TILE,
                            (int)RAP_MIN(each, chunks - tile * each));
        *js += sum.js;
        *tv += sum.tv;
    }
#pragma unroll 1
    for (int end = 0; end < 2; end++) {
        const int64_t to = end ? p->columns : head;
        int64_t at = (end ? head + chunks * CHUNK : 0) + TILE * (step - 1 - rap_warp());

        for (; at < to; at += TILE * step) {
            sum = cde_mix_carefully(p, x, &k1, &k0, at, RAP_MIN(at + TILE, to));
            *js += sum.js;
            *tv += sum.tv;
        }
    }
}

/* js and tv of the row, whose sums are complete, added to sh->row. */
RAP_HD void
cde_mix_row(const rap_cde_cuda *p, const cde_pair *x, cde_shared *sh)
{
    double js = 0, tv = 0;

    cde_mix_lane(p, x, sh, &js, &tv);
    js = rap_warp_sum(js);
    tv = rap_warp_sum(tv);
    if (rap_lane() == 0) {
        sh->js[rap_warp()] = js;
        sh->tv[rap_warp()] = tv;
    }
    rap_sync();
    if (rap_thread() == 0) {
        /* the fast form passes over a NaN; the first sweep's sums do not */
        js = tv = 0 * (sh->row.z1 + sh->row.z0);
        for (int w = 0; w < rap_threads() / RAP_WARP; w++) {
            js += sh->js[w];
            tv += sh->tv[w];
        }
        sh->row.js = 0.5 * js;
        sh->row.tv = 0.5 * tv;
    }
}

RAP_KERNEL(rap_cde_rows, rap_cde_cuda, RAP_CDE_CUDA_THREADS, 3)
{
    RAP_SMEM(cde_shared, sh);

    for (int64_t row = rap_block(); row < p.rows; row += rap_blocks()) {
        const cde_pair x = cde_pair_at(&p, row);

        cde_sweep_row(&p, &x, row, sh);
        if (p.want & RAP_CDE_NEEDS_MIX) {
            cde_mix_row(&p, &x, sh);
        }
        if (rap_thread() == 0) {
            rap_cde_answer(&sh->row, p.want, p.out + row, p.out_stride);
        }
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
