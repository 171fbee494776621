/* SPDX-License-Identifier: Apache-2.0
 *
 * Which rows and columns count, weights and psi: the formulas of ace.h that the CPU and
 * CUDA share, in one text. Rows, keys and columns are counted inside the sample, whose
 * response is [start, length).
 */
#ifndef RAP_ACE_MATH_H
#define RAP_ACE_MATH_H

#include "../hd.h"
#include "ace.h"

/* --- rows and columns ---------------------------------------------------------------- */

/* Whether rows are needed as a whole, or only candidate columns of them. */
RAP_HD bool
rap_ace_needs_all(const rap_ace_options *o, bool lse_given)
{
    return !lse_given || o->want_stats || o->renormalise;
}

/* Whether the linear form answers. Under a key window prompt columns have rows of their own
 * each: no shared suffix. */
RAP_HD bool
rap_ace_is_linear(const rap_ace_options *o, bool lse_given)
{
    return !rap_ace_needs_all(o, lse_given) && o->heads == RAP_ACE_EACH
           && (o->key_window == 0 || o->columns == RAP_ACE_RESPONSE);
}

/* Rows of a response column, at most: `window`, and no more than can see the column. */
RAP_HD int64_t
rap_ace_window(const rap_ace_options *o, int64_t length)
{
    const int64_t window = o->window > 0 ? RAP_MIN(o->window, length) : length;

    return o->key_window > 0 ? RAP_MIN(window, o->key_window) : window;
}

/* The first key that a row sees. */
RAP_HD int64_t
rap_ace_first_seen(const rap_ace_options *o, int64_t row)
{
    return o->key_window > 0 ? RAP_MAX(0, row - o->key_window + 1) : 0;
}

/* The first key that the rows from `row` on need. */
RAP_HD int64_t
rap_ace_first_key(const rap_ace_options *o, bool lse_given, int64_t length, int64_t start,
                  int64_t row)
{
    const int64_t key = rap_ace_first_seen(o, row);

    if (rap_ace_needs_all(o, lse_given) || (o->columns & RAP_ACE_PROMPT)) {
        return key;
    }
    return RAP_MAX(key, RAP_MAX(start, row - rap_ace_window(o, length) + 1));
}

/* The end of I(j), the rows that count for column j: they begin at max(j, start). */
RAP_HD int64_t
rap_ace_last_row(const rap_ace_options *o, int64_t length, int64_t start, int64_t j)
{
    const int64_t first = RAP_MAX(j, start);
    int64_t last = RAP_MIN(length, first + rap_ace_window(o, length));

    if (o->key_window > 0 && o->key_window < length) {
        last = RAP_MIN(last, j + o->key_window);
    }
    return RAP_MAX(first, last);
}

/* --- weights ------------------------------------------------------------------------- */

/* Exponents are in units of log2: z = scale2 s - shift, and z unit is the natural one. */
RAP_HD float
rap_ace_scale2(const rap_ace_options *o)
{
    return (float)(o->scale * (double)RAP_LOG2E);
}

RAP_HD double
rap_ace_unit(const rap_ace_options *o)
{
    const float scale2 = rap_ace_scale2(o);

    return scale2 != 0 ? o->scale / scale2 : 1 / (double)RAP_LOG2E;
}

RAP_HD float
rap_ace_exponent(float scale2, float s, float shift)
{
    return RAP_FMA(scale2, s, -shift);
}

/* A row's log-sum-exp in units of log2, as a float and the log2 of the rest z: rounding the
 * whole to float32 would move every weight of the row. */
typedef struct {
    float shift;
    double z;
} rap_ace_reference;

RAP_HD rap_ace_reference
rap_ace_given(double lse, double unit)
{
    const double lse2 = lse / unit;
    rap_ace_reference r;

    r.shift = (float)lse2;
    r.z = exp2(lse2 - r.shift);
    return r;
}

/* What a head's terms 2^(s scale2 - shift) are multiplied with for the head mean; for other
 * reductions the log2 that is taken from their exponents. */
RAP_HD float
rap_ace_rest(const rap_ace_options *o, double z, int64_t hq)
{
    return o->heads == RAP_ACE_MEAN ? (float)(1 / (z * (double)hq)) : (float)log2(z);
}

/* Head maximum; NaN wins. */
RAP_HD float
rap_ace_larger(float w, float a)
{
    return w > a || w != w ? w : a;
}

/* ln of a head mean; below RAP_ACE_FLOOR it counts as that; NaN and inf become NaN. */
RAP_HD float
rap_ace_ln(float w)
{
    const float x = w < RAP_ACE_FLOOR ? RAP_ACE_FLOOR : w;

    return rap_logf(x) + (x - x);
}

/* --- psi ----------------------------------------------------------------------------- */

/* log psi_j from the sum of ln w_ij over I(j); -inf where j is no candidate. */
RAP_HD double
rap_ace_psi(const rap_ace_options *o, double ln_sigma, int64_t length, int64_t start,
            int64_t j, bool masked, double sum)
{
    const int64_t count = rap_ace_last_row(o, length, start, j) - RAP_MAX(j, start);
    const int kind = j < start ? RAP_ACE_PROMPT : RAP_ACE_RESPONSE;

    if (!(o->columns & kind) || count < o->min_rows || masked) {
        return -INFINITY;
    }
    sum += (double)count * ln_sigma;
    return o->normalise ? sum / (double)count : sum;
}

/* Whether a later column takes the place of the best so far: NaN from all, else the larger. */
RAP_HD bool
rap_ace_beats(double psi, double best)
{
    return psi > best || (isnan(psi) && !isnan(best));
}

#endif
