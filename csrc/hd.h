/* SPDX-License-Identifier: Apache-2.0
 *
 * Scalar maths that CPU kernels, CUDA kernels and tests share word for word.
 *
 *   rap_exp2f(z, rap_exp2f_least())
 *                 2^z for z < 128: at most 1 ulp for z >= -126, 0 below -126.5; NaN stays
 *                 NaN. Natural exponents are taken in units of RAP_LOG2E, one fused
 *                 multiply-add away, which spares the second step of a range reduction.
 *   rap_logf(x)   ln x for normal x > 0: at most 1 ulp; finite but wrong for 0, inf, NaN.
 *   rap_log2f(x)  log2 x likewise, absolute error at most 1 ulp of the answer or 2^-24.
 *   rap_bf16_to_f32, rap_f16_to_f32   exact for every bit pattern.
 *
 * Without a fused multiply-add the bounds are 1.25 ulp.
 *
 * No branch and no table, so a loop over them vectorises. -ffp-contract=off holds
 * everywhere; RAP_FMA says where a fused multiply-add is meant, and is an ordinary
 * multiply and add where the target has none (a libm fmaf there would be 50x slower).
 */
#ifndef RAP_HD_H
#define RAP_HD_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#ifndef RAP_HD
#define RAP_HD static inline
#endif

#ifdef RAP_NO_FMA
#define RAP_FMA(a, b, c) ((a) * (b) + (c))
#else
#define RAP_FMA(a, b, c) fmaf((a), (b), (c))
#endif

/* log2(e) as the kernels use it. Dividing by the same float, not by the true constant,
 * makes z / RAP_LOG2E the natural value exactly; what is left is a relative 1.3e-8 in the
 * logits themselves, a quarter of their own rounding. */
#define RAP_LOG2E 0x1.715476p+0f
#define RAP_LN2 0.6931471805599453
#define RAP_FLOAT_TINY 0x1p-126f /* least normal float */

RAP_HD uint32_t
rap_bits(float x)
{
    uint32_t u;

    memcpy(&u, &x, sizeof(u));
    return u;
}

RAP_HD float
rap_from_bits(uint32_t u)
{
    float x;

    memcpy(&x, &u, sizeof(x));
    return x;
}

/* -127, in a form the compiler cannot see through: knowing it, gcc splits the clamp in
 * rap_exp2f into a comparison and two masks where one maximum would do. Take it outside
 * the loop. */
RAP_HD float
rap_exp2f_least(void)
{
    float least = -127.0f;

#ifndef __CUDACC__
    __asm__("" : "+m"(least));
#endif
    return least;
}

/* z = n + f, |f| <= 1/2; 2^f = 1 + f q(f), q minimax of degree 5 (relative error 2e-9);
 * 2^n through the exponent bits: the constant holds their bias, and n = -127 gives 0. */
RAP_HD float
rap_exp2f(float z, float least)
{
    const float magic = 12582912.0f + 127.0f; /* 1.5 * 2^23: adding it rounds */
    float c = z < least ? least : z;          /* NaN compares false and stays */
    float t = c + magic;
    float f = c - (t - magic);
    float scale = rap_from_bits(rap_bits(t) << 23);
    float q;

    q = RAP_FMA(0x1.41fbbap-13f, f, 0x1.5f3e58p-10f);
    q = RAP_FMA(q, f, 0x1.3b2d4cp-7f);
    q = RAP_FMA(q, f, 0x1.c6aee8p-5f);
    q = RAP_FMA(q, f, 0x1.ebfbdcp-3f);
    q = RAP_FMA(q, f, 0x1.62e430p-1f);
    return RAP_FMA(q, f, 1.0f) * scale;
}

/* x = 2^e m, m in [sqrt(1/2), sqrt(2)): *e, and ln(m) = ln(1+f) = f - f^2/2 + f^3 q(f) as
 * the sum of the answer and *f; q minimax of degree 7 (relative error 6e-9). */
RAP_HD float
rap_log_parts(float x, float *e, float *f)
{
    uint32_t u = rap_bits(x) - 0x3f3504f3u;
    float g = rap_from_bits((u & 0x007fffffu) + 0x3f3504f3u) - 1.0f, g2 = g * g;
    float q;

    *e = (float)((int32_t)u >> 23);
    *f = g;
    q = RAP_FMA(-0x1.38b578p-4f, g, 0x1.055b68p-3f);
    q = RAP_FMA(q, g, -0x1.0d8542p-3f);
    q = RAP_FMA(q, g, 0x1.22da1ep-3f);
    q = RAP_FMA(q, g, -0x1.547244p-3f);
    q = RAP_FMA(q, g, 0x1.99a008p-3f);
    q = RAP_FMA(q, g, -0x1.000226p-2f);
    q = RAP_FMA(q, g, 0x1.555554p-2f);
    return RAP_FMA(q * g, g2, -0.5f * g2);
}

RAP_HD float
rap_logf(float x)
{
    float e, f, rest = rap_log_parts(x, &e, &f);

    rest = RAP_FMA(e, 0x1.7f7d1cp-20f, rest);
    return RAP_FMA(e, 0x1.62e4p-1f, f + rest);
}

RAP_HD float
rap_log2f(float x)
{
    float e, f, rest = rap_log_parts(x, &e, &f);

    return RAP_FMA(f + rest, RAP_LOG2E, e);
}

RAP_HD float
rap_bf16_to_f32(uint16_t h)
{
    return rap_from_bits((uint32_t)h << 16);
}

/* Subnormals through a subtraction of normal numbers: right with flush-to-zero on. */
RAP_HD float
rap_f16_to_f32(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16;
    uint32_t body = (uint32_t)(h & 0x7fffu) << 13;
    uint32_t normal = body + 0x38000000u;
    uint32_t special = body | 0x7f800000u;
    float small = rap_from_bits(body + 0x38800000u) - 0x1p-14f;
    uint32_t u = body < 0x00800000u ? rap_bits(small) : normal;

    return rap_from_bits((body >= 0x0f800000u ? special : u) | sign);
}

#endif
