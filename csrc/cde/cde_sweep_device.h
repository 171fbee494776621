/* SPDX-License-Identifier: Apache-2.0
 *
 * What a warp does with its part of a row in the first sweep of rap_cde_rows (cde_cuda.cu).
 *
 * A warp is what a CPU thread is in cde_kernel.h. It takes tiles of TILE pairs, CHUNK at a
 * time: two 16-byte loads of each branch a lane are in flight, in units of log2
 *     x = l RAP_LOG2E - m2                      one fused multiply-add
 *     e = 2^x                                   ex2.approx.ftz: rap_ex2, device.h
 * and a tile is summed in float32, 64 pairs a lane and then the lanes by a fixed tree that
 * leaves each of the seven sums with a few lanes; these add up tiles in float64 (cde_part),
 * and warps are merged in their order. A tile is read again only when an exponent rises more
 * than RAP_CDE_HEADROOM above the reference m2, which starts at the maximum of the first
 * chunk. What the fast form cannot take (-inf, a NaN: the sums are not finite then; logits
 * beyond 1e6) and the pairs before the first and after the last whole chunk go through the
 * careful form: selects for 0 times infinity, exponents by rap_exp2f.
 *
 * Precision: 2^x to 2 ulp, log2 of a mixture to 2^-22 of max(1, |log2|). Every answer within
 * 4x the error of the float32 log_softmax formula: tests/test_cuda_cde.py against float64,
 * with the worst that the two approximations may do.
 */
#ifndef RAP_CDE_SWEEP_DEVICE_H
#define RAP_CDE_SWEEP_DEVICE_H

#include "../cuda/device.h"

#include "cde_cuda.h"
#include "cde_math.h"

#define CHUNK (2 * 8 * RAP_WARP) /* pairs a warp reads at a time */
#define TILE RAP_CDE_CUDA_TILE

/* The careful form takes logits from their references at 2^-14 of their size:
 * differences and sums of a tile then stay finite for every finite float32, no bit lost. */
#define SMALL 0x1p-14f
#define LOG2E_OF_SMALL (RAP_LOG2E / SMALL)

/* A branch's numbers for the second sweep. */
typedef struct {
    float m2;     /* the reference in log2 units; exact if it is common */
    float hi, lo; /* the reference times SMALL, as a sum */
    float log2_z;
} cde_norm;

/* One row of both branches, and where it can be read 16 bytes at a time: `chunks` of CHUNK
 * pairs from `head` on. */
typedef struct {
    const char *l1, *l0;
    int64_t head;
    int32_t chunks;
} cde_pair;

/* This lane's sums of a tile; top: its largest exponent. */
typedef struct {
    float z1, z0, s1, s0, u1, u0, b, top;
} cde_sums;

/* The warp's part of a row. A lane keeps one of its sums: z1, z0, s1, s0, u1, u0, b by
 * cde_which(). References are the same in all lanes. */
typedef struct {
    double m1, m0, sum;
} cde_part;

enum { Z1, Z0, S1, S0, U1, U0, B };

RAP_HD int
cde_which(void)
{
    return rap_lane() >> 2;
}

RAP_HD int64_t
cde_size(int dtype)
{
    return dtype == RAP_F32 ? 4 : 2;
}

/* Elements before the next 16-byte boundary. */
RAP_HD int64_t
cde_to_boundary(const char *at, int dtype)
{
    return (int64_t)((0 - (uintptr_t)at) & 15u) / cde_size(dtype);
}

/* Rows of two dtypes, or that meet their boundaries apart, are read one by one. */
RAP_HD cde_pair
cde_pair_at(const rap_cde_cuda *p, int64_t row)
{
    cde_pair x;
    int64_t head;

    x.l1 = (const char *)p->l1 + row * p->stride1 * cde_size(p->dtype1);
    x.l0 = (const char *)p->l0 + row * p->stride0 * cde_size(p->dtype0);
    head = cde_to_boundary(x.l1, p->dtype1);
    if (p->dtype1 != p->dtype0 || head != cde_to_boundary(x.l0, p->dtype0)) {
        head = p->columns;
    }
    x.head = RAP_MIN(head, p->columns);
    x.chunks = (int32_t)((p->columns - x.head) / CHUNK);
    return x;
}

/* --- the fast form -------------------------------------------------------------------- */

/* Pairs that a warp reads at a time: 64 bytes a lane. */
RAP_HD int
cde_step(const int dtype)
{
    return dtype == RAP_F32 ? CHUNK / 2 : CHUNK;
}

/* Where this lane begins to read chunks from pair `at` on. */
RAP_HD const char *
cde_lane_at(const char *row, int64_t at, const int dtype)
{
    return row + (at + 8 * rap_lane()) * cde_size(dtype);
}

/* This lane's pairs, eight or sixteen; both places are moved on. */
RAP_HD void
cde_load(const char **at1, const char **at0, const int dtype, float *l1, float *l0)
{
    rap_load8_whole(*at1, dtype, 0, l1);
    rap_load8_whole(*at0, dtype, 0, l0);
    if (dtype != RAP_F32) {
        rap_load8_whole(*at1, dtype, CHUNK / 2, l1 + 8);
        rap_load8_whole(*at0, dtype, CHUNK / 2, l0 + 8);
    }
    *at1 += cde_step(dtype) * cde_size(dtype);
    *at0 += cde_step(dtype) * cde_size(dtype);
}

/* x1, x0: logits from their references in units of log2. */
RAP_HD void
cde_add(cde_sums *sum, float x1, float x0, const bool all)
{
    const float e1 = rap_ex2(x1), e0 = rap_ex2(x0), d = x1 - x0;

    sum->top = fmaxf(sum->top, fmaxf(x1, x0));
    sum->z1 += e1;
    sum->z0 += e0;
    sum->s1 = RAP_FMA(e1, d, sum->s1);
    sum->s0 = RAP_FMA(e0, d, sum->s0);
    if (all) {
        sum->u1 = RAP_FMA(e1, x1, sum->u1);
        sum->u0 = RAP_FMA(e0, x0, sum->u0);
        sum->b += rap_ex2(0.5f * (x1 + x0));
    }
}

/* This lane's sums of whole chunks from pair `at` on. */
RAP_HD cde_sums
cde_chunks(const cde_pair *x, int64_t at, int count, float m1, float m0, const int dtype,
           const bool all)
{
    const char *at1 = cde_lane_at(x->l1, at, dtype), *at0 = cde_lane_at(x->l0, at, dtype);
    cde_sums sum = {0, 0, 0, 0, 0, 0, 0, -INFINITY};

#pragma unroll 1
    for (int n = count * (CHUNK / cde_step(dtype)); n > 0; n--) {
        float l1[16], l0[16];

        cde_load(&at1, &at0, dtype, l1, l0);
#pragma unroll
        for (int i = 0; i < cde_step(dtype) / RAP_WARP; i++) {
            cde_add(&sum, RAP_FMA(l1[i], RAP_LOG2E, -m1), RAP_FMA(l0[i], RAP_LOG2E, -m0),
                    all);
        }
    }
    return sum;
}

RAP_HD cde_sums
cde_chunks_typed(const rap_cde_cuda *p, const cde_pair *x, int64_t at, int count,
                 const cde_part *st, bool all)
{
    const float m1 = rap_cde_base2(st->m1), m0 = rap_cde_base2(st->m0);

    if (p->dtype1 == RAP_F32) {
        return all ? cde_chunks(x, at, count, m1, m0, RAP_F32, true)
                   : cde_chunks(x, at, count, m1, m0, RAP_F32, false);
    }
    if (p->dtype1 == RAP_F16) {
        return all ? cde_chunks(x, at, count, m1, m0, RAP_F16, true)
                   : cde_chunks(x, at, count, m1, m0, RAP_F16, false);
    }
    return all ? cde_chunks(x, at, count, m1, m0, RAP_BF16, true)
               : cde_chunks(x, at, count, m1, m0, RAP_BF16, false);
}

/* --- the careful form ----------------------------------------------------------------- */

RAP_HD float
cde_times(float e, float x)
{
    return e == 0 ? 0 : e * x; /* 0 inf = 0; NaN stays */
}

RAP_HD cde_norm
cde_norm_of(double m, double z)
{
    const double base = rap_cde_base(m);
    cde_norm k;

    k.m2 = rap_cde_base2(m);
    k.hi = SMALL * (float)base;
    k.lo = SMALL * (float)(base - (double)(float)base);
    k.log2_z = (float)log2(z);
    return k;
}

/* A logit from its reference, times SMALL. */
RAP_HD float
cde_from(const cde_norm *k, float l)
{
    return RAP_FMA(l, SMALL, -k->hi) - k->lo;
}

RAP_HD void
cde_add_carefully(cde_sums *sum, float h1, float h0, float least)
{
    const float x1 = h1 * LOG2E_OF_SMALL, x0 = h0 * LOG2E_OF_SMALL, d = h1 - h0;
    const float e1 = rap_exp2f(x1, least), e0 = rap_exp2f(x0, least);

    sum->z1 += e1;
    sum->z0 += e0;
    sum->s1 += cde_times(e1, d);
    sum->s0 += cde_times(e0, d);
    sum->u1 += cde_times(e1, h1);
    sum->u0 += cde_times(e0, h0);
    sum->b += rap_exp2f(0.5f * (x1 + x0), least);
}

/* The same sums of pairs [from, to), which lie below the references; s and u times SMALL, in
 * nats. */
RAP_HD cde_sums
cde_carefully(const rap_cde_cuda *p, const cde_pair *x, int64_t from, int64_t to,
              const cde_part *st)
{
    const cde_norm k1 = cde_norm_of(st->m1, 1), k0 = cde_norm_of(st->m0, 1);
    const float least = rap_exp2f_least();
    cde_sums sum = {0, 0, 0, 0, 0, 0, 0, 0};

#pragma unroll 1
    for (int64_t i = from + rap_lane(); i < to; i += RAP_WARP) {
        cde_add_carefully(&sum, cde_from(&k1, rap_load1(x->l1, p->dtype1, i)),
                          cde_from(&k0, rap_load1(x->l0, p->dtype0, i)), least);
    }
    return sum;
}

/* --- the warp's part -------------------------------------------------------------------- */

/* As rap_cde_raise, a sum a lane. */
RAP_HD void
cde_raise(cde_part *st, double m1, double m0)
{
    const int which = cde_which();
    const double d1 = st->m1 == -INFINITY ? 0 : (m1 - st->m1) * (double)RAP_LOG2E;
    const double d0 = st->m0 == -INFINITY ? 0 : (m0 - st->m0) * (double)RAP_LOG2E;
    const double z = rap_shfl_f64(st->sum, 4 * (which & 1));
    const double d = which == B ? 0.5 * (d1 + d0) : which & 1 ? d0 : d1;
    const bool is_s = which == S1 || which == S0, is_u = which == U1 || which == U0;
    const double shift = is_s ? d1 - d0 : is_u ? d : 0;

    if (!(is_s && isinf(st->sum))) {
        st->sum = exp2(-d) * (st->sum - shift * z);
    }
    st->m1 = m1;
    st->m0 = m0;
}

/* Raises the references to the largest logits of pairs [from, to), as the whole warp
 * sees them. */
RAP_HD void
cde_follow(const rap_cde_cuda *p, const cde_pair *x, int64_t from, int64_t to, cde_part *st)
{
    float m1 = -INFINITY, m0 = -INFINITY;

#pragma unroll 4
    for (int64_t i = from + rap_lane(); i < to; i += RAP_WARP) {
        m1 = fmaxf(m1, rap_load1(x->l1, p->dtype1, i));
        m0 = fmaxf(m0, rap_load1(x->l0, p->dtype0, i));
    }
    m1 = rap_warp_max(m1);
    m0 = rap_warp_max(m0);
    cde_raise(st, rap_cde_reference(fmax(st->m1, (double)m1)),
              rap_cde_reference(fmax(st->m0, (double)m0)));
}

/* What this lane keeps and gives away when two groups of lanes part what they hold. */
RAP_HD float
cde_swap(float low, float high, int bit)
{
    const bool upper = rap_lane() & bit;

    return (upper ? high : low) + rap_shfl_xor_f32(upper ? low : high, bit);
}

/* Adds a tile's sums, each over the whole warp; `unit` for those in units of logits. */
RAP_HD void
cde_add_sums(cde_part *st, const cde_sums *add, double unit)
{
    const int which = cde_which();
    const float a = cde_swap(add->z1, add->u1, 16), b = cde_swap(add->z0, add->u0, 16);
    const float c = cde_swap(add->s1, add->b, 16), d = cde_swap(add->s0, 0, 16);
    float sum = cde_swap(cde_swap(a, c, 8), cde_swap(b, d, 8), 4);

    sum += rap_shfl_xor_f32(sum, 2);
    sum += rap_shfl_xor_f32(sum, 1);
    st->sum += which >= S1 && which <= U0 ? unit * sum : sum;
}

/* --- the first sweep ------------------------------------------------------------------ */

/* Whether every exponent of the warp's tile stayed near the references. */
RAP_HD bool
cde_is_low(const cde_sums *sum)
{
    return rap_all(sum->top < RAP_CDE_HEADROOM);
}

/* Whether the fast form could take every pair of it. */
RAP_HD bool
cde_is_finite(const cde_sums *sum)
{
    const float all = sum->s1 + sum->s0 + sum->u1 + sum->u0; /* NaN or inf if one is */

    return rap_all(fabsf(all) < INFINITY);
}

/* `count` chunks from pair `at` on. */
RAP_HD void
cde_sweep_tile(const rap_cde_cuda *p, const cde_pair *x, int64_t at, int count, bool all,
               cde_part *st)
{
    const int64_t to = at + (int64_t)count * CHUNK;
    cde_sums sum = {0, 0, 0, 0, 0, 0, 0, 0};
    bool low = false, right = false;

    if (st->m1 == -INFINITY || st->m0 == -INFINITY) {
        cde_follow(p, x, at, at + CHUNK, st);
    }
    for (int attempt = 0; attempt < 2 && !low; attempt++) {
        if (attempt == 1) {
            cde_follow(p, x, at, to, st);
        }
        if (rap_cde_is_common(st->m1, st->m0)) {
            sum = cde_chunks_typed(p, x, at, count, st, all);
            low = cde_is_low(&sum);
            right = low && cde_is_finite(&sum);
        }
    }
    if (!right) {
        sum = cde_carefully(p, x, at, to, st);
    }
    cde_add_sums(st, &sum, right ? 1 : LOG2E_OF_SMALL);
}

/* Pairs [from, to), which are no whole chunks: dealt out from the last warp on. */
RAP_HD void
cde_sweep_rest(const rap_cde_cuda *p, const cde_pair *x, int64_t from, int64_t to,
               cde_part *st)
{
    const int warps = rap_threads() / RAP_WARP;

    for (int64_t at = from + (int64_t)TILE * (warps - 1 - rap_warp()); at < to;
         at += (int64_t)TILE * warps)
    {
        const int64_t end = RAP_MIN(at + TILE, to);
        cde_sums sum;

        cde_follow(p, x, at, end, st);
        sum = cde_carefully(p, x, at, end, st);
        cde_add_sums(st, &sum, LOG2E_OF_SMALL);
    }
}

/* The warp's part of the row. */
RAP_HD void
cde_sweep_warp(const rap_cde_cuda *p, const cde_pair *x, cde_part *st)
{
    const uint32_t more = RAP_CDE_NEEDS_ENTROPY | RAP_CDE_BIT(RAP_CDE_HELLINGER2);
    const int64_t step = rap_threads() / RAP_WARP, each = TILE / CHUNK;

    st->m1 = st->m0 = -INFINITY;
    st->sum = 0;
    for (int64_t tile = rap_warp(); tile * each < x->chunks; tile += step) {
        const int count = (int)RAP_MIN(each, x->chunks - tile * each);

        cde_sweep_tile(p, x, x->head + tile * TILE, count, (p->want & more) != 0, st);
    }
#pragma unroll 1
    for (int end = 0; end < 2; end++) {
        cde_sweep_rest(p, x, end ? x->head + x->chunks * CHUNK : 0,
                       end ? p->columns : x->head, st);
    }
}

#endif
