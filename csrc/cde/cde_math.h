/* SPDX-License-Identifier: Apache-2.0
 *
 * The steps between blocks of logits and from sums to answers: float64, a few a row, the
 * same text for CPU and CUDA. Formulas: cde.h.
 */
#ifndef RAP_CDE_MATH_H
#define RAP_CDE_MATH_H

#include "../hd.h"
#include "cde.h"

/* The references need not be the maxima: a piece is read once, and done again only when an
 * exponent rises more than RAP_CDE_HEADROOM above them. Not more headroom: ln Z - U/Z and
 * its like cancel what lies between the reference and the maximum. */
#define RAP_CDE_HEADROOM 2.0f

RAP_HD void
rap_cde_clear(rap_cde_state *st)
{
    st->m1 = st->m0 = -INFINITY;
    st->z1 = st->z0 = st->s1 = st->s0 = st->u1 = st->u0 = st->b = 0;
    st->target1 = st->target0 = NAN;
    st->js = st->tv = 0;
}

/* A branch that has met no finite logit yet takes its x from 0. */
RAP_HD double
rap_cde_base(double m)
{
    return m == -INFINITY ? 0 : m;
}

/* x = l RAP_LOG2E - m2 is one fused multiply-add with one rounding where m2 = m RAP_LOG2E is
 * a float: references are rounded to such m. Beyond RAP_CDE_COMMON that would move them away
 * from the maximum. */
#define RAP_CDE_COMMON 1e6

/* The reference for logits up to `most`. */
RAP_HD double
rap_cde_reference(double most)
{
    return fabs(most) < RAP_CDE_COMMON
               ? (float)(most * (double)RAP_LOG2E) / (double)RAP_LOG2E
               : most;
}

/* m2 of a reference. */
RAP_HD float
rap_cde_base2(double m)
{
    return (float)(m * (double)RAP_LOG2E);
}

/* False before a branch has met a finite logit (m = -inf), and where logits are large. */
RAP_HD bool
rap_cde_is_common(double m1, double m0)
{
    return fabs(m1) < RAP_CDE_COMMON && fabs(m0) < RAP_CDE_COMMON;
}

/* Moves the sums to new references; a branch without a finite logit has sums of 0. */
RAP_HD void
rap_cde_raise(rap_cde_state *st, double m1, double m0)
{
    double d1 = st->m1 == -INFINITY ? 0 : (m1 - st->m1) * (double)RAP_LOG2E;
    double d0 = st->m0 == -INFINITY ? 0 : (m0 - st->m0) * (double)RAP_LOG2E;
    double a1 = exp2(-d1), a0 = exp2(-d0), shift = d1 - d0;

    st->s1 = isinf(st->s1) ? st->s1 : a1 * (st->s1 - shift * st->z1);
    st->s0 = isinf(st->s0) ? st->s0 : a0 * (st->s0 - shift * st->z0);
    st->u1 = a1 * (st->u1 - d1 * st->z1);
    st->u0 = a0 * (st->u0 - d0 * st->z0);
    st->z1 *= a1;
    st->z0 *= a0;
    st->b *= exp2(-0.5 * (d1 + d0));
    st->m1 = m1;
    st->m0 = m0;
}

/* The sums of a part, taken from the same references. */
RAP_HD void
rap_cde_add(rap_cde_state *st, const rap_cde_state *part)
{
    st->z1 += part->z1;
    st->z0 += part->z0;
    st->s1 += part->s1;
    st->s0 += part->s0;
    st->u1 += part->u1;
    st->u0 += part->u0;
    st->b += part->b;
}

/* The sums of two parts of one row, in `st`; `other` is used up. */
RAP_HD void
rap_cde_merge(rap_cde_state *st, rap_cde_state *other)
{
    const double m1 = fmax(st->m1, other->m1), m0 = fmax(st->m0, other->m0);

    rap_cde_raise(st, m1, m0);
    rap_cde_raise(other, m1, m0);
    rap_cde_add(st, other);
}

/* Rounding may leave a divergence a little outside its range; more than that is left to be
 * seen. */
RAP_HD double
rap_cde_divergence(double value, double most)
{
    if (value < 0 && value > -RAP_CDE_SLACK) {
        return 0;
    }
    return value > most && value < most + RAP_CDE_SLACK ? most : value;
}

RAP_HD void
rap_cde_answer(const rap_cde_state *st, unsigned want, double *out, int64_t stride)
{
    const double unit = 1.0 / (double)RAP_LOG2E;
    const double lnz1 = log2(st->z1), lnz0 = log2(st->z0);
    const double kl = rap_cde_divergence(unit * (st->s1 / st->z1 - lnz1 + lnz0), INFINITY);
    const double rkl = rap_cde_divergence(unit * (lnz1 - lnz0 - st->s0 / st->z0), INFINITY);
    double value[RAP_CDE_OUTPUTS];

    value[RAP_CDE_KL] = kl;
    value[RAP_CDE_RKL] = rkl;
    value[RAP_CDE_JEFFREYS] = kl + rkl;
    value[RAP_CDE_JS] = rap_cde_divergence(unit * st->js, RAP_LN2);
    value[RAP_CDE_TV] = rap_cde_divergence(st->tv, 1);
    value[RAP_CDE_HELLINGER2] = rap_cde_divergence(1 - st->b / sqrt(st->z1 * st->z0), 1);
    value[RAP_CDE_ENTROPY1] = unit * (lnz1 - st->u1 / st->z1);
    value[RAP_CDE_ENTROPY0] = unit * (lnz0 - st->u0 / st->z0);
    value[RAP_CDE_LOGP1] = st->target1 - st->m1 - unit * lnz1;
    value[RAP_CDE_LOGP0] = st->target0 - st->m0 - unit * lnz0;
    for (int i = 0; i < RAP_CDE_OUTPUTS; i++) {
        if (want & RAP_CDE_BIT(i)) {
            out[i * stride] = value[i];
        }
    }
}

/* tanh through e^-2|x|; near 0, where that cancels, x + x^3 q(x^2). */
RAP_HD float
rap_cde_tanh(float x, float least)
{
    float a = fabsf(x), x2 = x * x;
    float e = rap_exp2f(-2.0f * RAP_LOG2E * a, least);
    float far = copysignf((1.0f - e) / (1.0f + e), x);
    float q = RAP_FMA(-5.70498872745e-3f, x2, 2.06390887954e-2f);

    q = RAP_FMA(q, x2, -5.37397155531e-2f);
    q = RAP_FMA(q, x2, 1.33314422036e-1f);
    q = RAP_FMA(q, x2, -3.33332819422e-1f);
    q = RAP_FMA(q * x2, x, x);
    return a < 0.625f ? q : far;
}

/* softcap tanh(x / softcap); inverse = 1 / softcap. */
RAP_HD float
rap_cde_softcap(float x, float softcap, float inverse, float least)
{
    return softcap * rap_cde_tanh(x * inverse, least);
}

#endif
