/* SPDX-License-Identifier: Apache-2.0
 *
 * The host twins of the device's approximate instructions: right, and then off by as much as
 * PTX allows. How far is drawn from the bits of x, or, with RAP_EMU_BIAS=1 or -1, always all
 * the way up or down: a bias that no sum averages out.
 */
#include <math.h>
#include <stdlib.h>

#include "emulator.h"

#define LEAST_NORMAL 0x1p-126f

static uint32_t
bits_of(float x)
{
    uint32_t u;

    memcpy(&u, &x, sizeof(u));
    return u;
}

static float
from_bits(uint32_t u)
{
    float x;

    memcpy(&x, &u, sizeof(x));
    return x;
}

/* In [-1, 1]. */
static double
error_of(float x)
{
    static int bias = 2; /* unknown */
    const uint32_t mixed = bits_of(x) * 2654435761u;

    if (bias == 2) {
        const char *asked = getenv("RAP_EMU_BIAS");

        bias = asked != NULL ? atoi(asked) : 0;
    }
    return bias != 0 ? bias : (double)(mixed >> 8) / (1 << 23) - 1;
}

static float
flushed(float x)
{
    return fabsf(x) < LEAST_NORMAL ? copysignf(0, x) : x;
}

/* At most 2 ulp; subnormal x and answers are 0. */
float
rap_emu_ex2(float x)
{
    const float right = (float)exp2((double)flushed(x));

    if (!(right >= LEAST_NORMAL) || right == INFINITY || right == 1) {
        return flushed(right);
    }
    return from_bits(bits_of(right) + (uint32_t)(int32_t)lrint(2 * error_of(x)));
}

/* Absolute error 2^-22 for x in (1/2, 2), relative 2^-22 elsewhere; -inf for 0. */
float
rap_emu_lg2(float x)
{
    const double right = log2((double)flushed(x));

    if (!isfinite(right) || right == 0) {
        return (float)right;
    }
    return (float)(right + 0x1p-22 * fmax(1, fabs(right)) * 0.98 * error_of(x));
}

/* Exactly: cvt.f32.f16 rounds nothing. */
float
rap_emu_half(uint16_t h)
{
    const int exponent = (h >> 10) & 31, mantissa = h & 1023;
    float x = ldexpf((float)(exponent == 0 ? mantissa : mantissa + 1024),
                     (exponent == 0 ? 1 : exponent) - 25);

    if (exponent == 31) {
        x = mantissa == 0 ? INFINITY : NAN;
    }
    return h & 0x8000 ? -x : x;
}
