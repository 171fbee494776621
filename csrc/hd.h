/* SPDX-License-Identifier: Apache-2.0
 *
 * Scalar maths that CPU kernels, CUDA kernels and tests share word for word.
 *
 *   rap_expf(x)   e^x for x <= 0: at most 1 ulp for x >= -87.3, 0 below; NaN stays NaN.
 *   rap_logf(x)   ln x for normal x > 0: at most 1 ulp; not for 0, inf, NaN.
 *   rap_bf16_to_f32, rap_f16_to_f32   exact for every bit pattern.
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

#define RAP_LN2 0.6931471805599453

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

/* x = n ln2 + f, |f| <= ln2 / 2; e^f = 1 + f + f^2 q(f), q minimax of degree 4
 * (relative error 3e-9); 2^n through the exponent bits, 0 for n = -127. */
RAP_HD float
rap_expf(float x)
{
    const float magic = 12582912.0f; /* 1.5 * 2^23: adding it rounds to an integer */
    float c = x < -88.0f ? -88.0f : x; /* NaN compares false and stays */
    float t = RAP_FMA(c, 0x1.715476p+0f, magic);
    float n = t - magic;
    float f = RAP_FMA(n, -0x1.62e4p-1f, c);
    float scale = rap_from_bits((rap_bits(t) << 23) + 0x3f800000u);
    float q;

    f = RAP_FMA(n, -0x1.7f7d1cp-20f, f);
    q = RAP_FMA(0x1.6a2434p-10f, f, 0x1.1239e2p-7f);
    q = RAP_FMA(q, f, 0x1.5558f2p-5f);
    q = RAP_FMA(q, f, 0x1.555492p-3f);
    q = RAP_FMA(q, f, 0x1.fffffcp-2f);
    return RAP_FMA(f * f, q, f) * scale + scale;
}

/* x = 2^e m, m in [sqrt(1/2), sqrt(2)); ln(1+f) = f - f^2/2 + f^3 q(f), q minimax of
 * degree 7 (relative error 6e-9). */
RAP_HD float
rap_logf(float x)
{
    uint32_t u = rap_bits(x) - 0x3f3504f3u;
    float e = (float)((int32_t)u >> 23);
    float f = rap_from_bits((u & 0x007fffffu) + 0x3f3504f3u) - 1.0f;
    float f2 = f * f;
    float q;

    q = RAP_FMA(-0x1.38b578p-4f, f, 0x1.055b68p-3f);
    q = RAP_FMA(q, f, -0x1.0d8542p-3f);
    q = RAP_FMA(q, f, 0x1.22da1ep-3f);
    q = RAP_FMA(q, f, -0x1.547244p-3f);
    q = RAP_FMA(q, f, 0x1.99a008p-3f);
    q = RAP_FMA(q, f, -0x1.000226p-2f);
    q = RAP_FMA(q, f, 0x1.555554p-2f);
    q = RAP_FMA(q * f, f2, e * 0x1.7f7d1cp-20f);
    q = RAP_FMA(-0.5f, f2, q);
    return RAP_FMA(e, 0x1.62e4p-1f, f + q);
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
