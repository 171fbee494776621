/* SPDX-License-Identifier: Apache-2.0
 *
 * Included once per instruction set: the steps of one row of attention. n keys, scores
 * s_j = q_i . k_j; `shift` + `ln_z` is the row's log-sum-exp in two parts, so that
 * rounding it to float32 does not move a whole row. Formulas: ace.h.
 */

#include "ace_math.h"

static float
ace_max(const float *x, int64_t n)
{
    float m = -INFINITY;

#pragma omp simd reduction(max : m)
    for (int64_t j = 0; j < n; j++) {
        m = x[j] > m ? x[j] : m;
    }
    return m;
}

/* sum_j e^(scale s_j - shift), both in units of log2: times RAP_LOG2E */
static float
ace_sum_exp(const float *s, int64_t n, float scale2, float shift2)
{
    const float least = rap_exp2f_least();
    float sum = 0;

#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < n; j++) {
        sum += rap_exp2f(rap_ace_exponent(scale2, s[j], shift2), least);
    }
    return sum;
}

/* The same, keeping the terms in s. */
static float
ace_exp(float *s, int64_t n, float scale2, float shift2)
{
    const float least = rap_exp2f_least();
    float sum = 0;

#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < n; j++) {
        s[j] = rap_exp2f(rap_ace_exponent(scale2, s[j], shift2), least);
        sum += s[j];
    }
    return sum;
}

/* w_j (+)= factor e_j: the head mean */
static void
ace_add(float *restrict w, const float *restrict e, int64_t n, float factor, bool first)
{
    if (first) {
#pragma omp simd
        for (int64_t j = 0; j < n; j++) {
            w[j] = factor * e[j];
        }
        return;
    }
#pragma omp simd
    for (int64_t j = 0; j < n; j++) {
        w[j] = RAP_FMA(factor, e[j], w[j]);
    }
}

/* w_j = max(w_j, log2 A_j): head maximum in the log domain; NaN wins */
static void
ace_log_max(float *restrict w, const float *restrict s, int64_t n, float scale2,
            float shift2, float log2_z, bool first)
{
    if (first) {
#pragma omp simd
        for (int64_t j = 0; j < n; j++) {
            w[j] = rap_ace_exponent(scale2, s[j], shift2) - log2_z;
        }
        return;
    }
#pragma omp simd
    for (int64_t j = 0; j < n; j++) {
        w[j] = rap_ace_larger(w[j], rap_ace_exponent(scale2, s[j], shift2) - log2_z);
    }
}

static void
ace_ln(float *restrict ln_w, const float *restrict w, int64_t n)
{
#pragma omp simd
    for (int64_t j = 0; j < n; j++) {
        ln_w[j] = rap_ace_ln(w[j]);
    }
}

/* column_j += ln w_j - shift */
static void
ace_columns(double *restrict column, const float *restrict ln_w, int64_t n, double shift)
{
#pragma omp simd
    for (int64_t j = 0; j < n; j++) {
        column[j] += (double)ln_w[j] - shift;
    }
}

/* sum += sign x: rows that enter or leave a suffix sum */
static void
ace_suffix_add(double *restrict sum, const float *restrict x, int64_t n, double sign)
{
#pragma omp simd
    for (int64_t d = 0; d < n; d++) {
        sum[d] += sign * (double)x[d];
    }
}

/* sum_d suffix_d k_d in float64 */
static double
ace_suffix_dot(const double *suffix, const float *k, int64_t n)
{
    double dot = 0;

#pragma omp simd reduction(+ : dot)
    for (int64_t d = 0; d < n; d++) {
        dot += suffix[d] * (double)k[d];
    }
    return dot;
}

/* sum_j w_j x_j: entropy (x = ln w) and image mass (x = 0 or 1) */
static float
ace_dot(const float *w, const float *x, int64_t n)
{
    float sum = 0;

#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < n; j++) {
        sum = RAP_FMA(w[j], x[j], sum);
    }
    return sum;
}
