/* SPDX-License-Identifier: Apache-2.0
 *
 * Included once per instruction set. cde_sweep folds n logits of one row into the state;
 * cde_mix adds them to js and tv; cde_map turns raw products into logits. Formulas: cde.h.
 *
 * Logits are float32, bfloat16 or float16, both branches alike, and widened in registers:
 * the loops are written once and compiled per dtype. 16-bit logits are taken two a step:
 * neighbours make one 32-bit lane, and parting them there costs one or two operations
 * where gcc's own widening of 16-bit vectors costs four.
 */

#include "cde_math.h"

/* Two neighbours of 16 bits, the first in the lower half. */
typedef uint32_t __attribute__((may_alias, aligned(2))) cde_two;

#define CDE_STEP(dtype) ((dtype) == RAP_F32 ? 1 : 2)

/* Logit i of step v, times 1 / CDE_FACTOR. Float16 is moved in place as an integer: its
 * exponent falls short of float32's bias by 112, subnormals become float32 subnormals
 * (rap_fp_mode_enter keeps them), infinity and NaN come out wrong (cde_plain). */
static inline __attribute__((always_inline)) float
cde_raw(const void *x, int64_t v, const int i, const rap_dtype dtype)
{
    uint32_t two;

    if (dtype == RAP_F32) {
        return ((const float *)x)[v];
    }
    two = i == 0 ? ((const cde_two *)x)[v] << 16 : ((const cde_two *)x)[v] & 0xffff0000u;
    if (dtype == RAP_F16) {
        two = (uint32_t)((int32_t)two >> 3) & 0x8fffe000u;
    }
    return rap_from_bits(two);
}

#define CDE_FACTOR(dtype) ((dtype) == RAP_F16 ? 0x1p112f : 1.0f)

/* Adds n logits (whole steps) of both branches to the state. */
typedef void cde_piece(const void *l1, const void *l0, rap_dtype dtype, int64_t n,
                       unsigned want, rap_cde_state *st);

static const void *
cde_at(const void *x, int64_t v, rap_dtype dtype)
{
    return (const char *)x + v * (int64_t)rap_dtype_size(dtype);
}

/* False for float16 that needs the full conversion. */
static bool
cde_plain(const void *x, int64_t n, rap_dtype dtype)
{
    const uint16_t *half = x;
    uint16_t most = 0;

    if (dtype != RAP_F16) {
        return true;
    }
#pragma omp simd reduction(max : most)
    for (int64_t v = 0; v < n; v++) {
        uint16_t size = half[v] & 0x7fff;

        most = size > most ? size : most;
    }
    return most < 0x7c00;
}

/* Exponents are in units of log2: x = (l - m) RAP_LOG2E. With a fused multiply-add that is
 * l RAP_LOG2E - m2 (cde_math.h). Without one, m is a float and l - m comes first, exact near
 * the maximum. */
#ifdef RAP_NO_FMA
#define CDE_EXPONENT(l, dtype, m) (((l) * CDE_FACTOR(dtype) - (m)) * RAP_LOG2E)
#define CDE_REFERENCE(most) (most)
#define CDE_BASE(m) ((float)(m))
#else
#define CDE_EXPONENT(l, dtype, m2) RAP_FMA((l), CDE_FACTOR(dtype) * RAP_LOG2E, -(m2))
#define CDE_REFERENCE(most) rap_cde_reference(most)
#define CDE_BASE(m) rap_cde_base2(m)
#endif

static inline __attribute__((always_inline)) float
cde_block(const void *restrict l1, const void *restrict l0, const rap_dtype dtype,
          int64_t n, float m1, float m0, rap_cde_state *add, const bool entropy,
          const bool hellinger)
{
    const float least = rap_exp2f_least();
    float z1 = 0, z0 = 0, s1 = 0, s0 = 0, u1 = 0, u0 = 0, b = 0, top = -INFINITY;

#pragma omp simd reduction(+ : z1, z0, s1, s0, u1, u0, b) reduction(max : top)
    for (int64_t v = 0; v < n / CDE_STEP(dtype); v++) {
        for (int i = 0; i < CDE_STEP(dtype); i++) {
            float x1 = CDE_EXPONENT(cde_raw(l1, v, i, dtype), dtype, m1);
            float x0 = CDE_EXPONENT(cde_raw(l0, v, i, dtype), dtype, m0);
            float e1 = rap_exp2f(x1, least), e0 = rap_exp2f(x0, least);
            float d = x1 - x0, larger = x1 > x0 ? x1 : x0;

            top = larger > top ? larger : top;
            z1 += e1;
            z0 += e0;
            s1 = RAP_FMA(e1, d, s1);
            s0 = RAP_FMA(e0, d, s0);
            if (entropy) {
                u1 = RAP_FMA(e1, x1, u1);
                u0 = RAP_FMA(e0, x0, u0);
            }
            if (hellinger) {
                b += rap_exp2f(0.5f * (x1 + x0), least);
            }
        }
    }
    *add =
        (rap_cde_state){.z1 = z1, .z0 = z0, .s1 = s1, .s0 = s0, .u1 = u1, .u0 = u0, .b = b};
    return top;
}

static inline __attribute__((always_inline)) float
cde_block_wanted(const void *l1, const void *l0, const rap_dtype dtype, int64_t n,
                 unsigned want, const rap_cde_state *st, rap_cde_state *add)
{
    const bool entropy = want & RAP_CDE_NEEDS_ENTROPY;
    const bool hellinger = want & RAP_CDE_BIT(RAP_CDE_HELLINGER2);
    const float m1 = CDE_BASE(st->m1), m0 = CDE_BASE(st->m0);

    if (entropy && hellinger) {
        return cde_block(l1, l0, dtype, n, m1, m0, add, true, true);
    }
    if (entropy) {
        return cde_block(l1, l0, dtype, n, m1, m0, add, true, false);
    }
    if (hellinger) {
        return cde_block(l1, l0, dtype, n, m1, m0, add, false, true);
    }
    return cde_block(l1, l0, dtype, n, m1, m0, add, false, false);
}

/* Adds the piece in `add`; returns the largest exponent. */
static float
cde_block_typed(const void *l1, const void *l0, rap_dtype dtype, int64_t n, unsigned want,
                const rap_cde_state *st, rap_cde_state *add)
{
    switch (dtype) {
    case RAP_BF16:
        return cde_block_wanted(l1, l0, RAP_BF16, n, want, st, add);
    case RAP_F16:
        return cde_block_wanted(l1, l0, RAP_F16, n, want, st, add);
    default:
        return cde_block_wanted(l1, l0, RAP_F32, n, want, st, add);
    }
}

/* The same in float64 for pieces that hold -inf: e log e = 0 where e = 0. */
static void
cde_block_exact(const float *l1, const float *l0, int64_t n, const rap_cde_state *st,
                rap_cde_state *add)
{
    const double m1 = rap_cde_base(st->m1), m0 = rap_cde_base(st->m0);
    const double unit = (double)RAP_LOG2E;

    *add = (rap_cde_state){0};
    for (int64_t v = 0; v < n; v++) {
        double x1 = (l1[v] - m1) * unit, x0 = (l0[v] - m0) * unit;
        double e1 = exp2(x1), e0 = exp2(x0);

        add->z1 += e1;
        add->z0 += e0;
        add->s1 += e1 == 0 ? 0 : e1 * (x1 - x0);
        add->s0 += e0 == 0 ? 0 : e0 * (x1 - x0);
        add->u1 += e1 == 0 ? 0 : e1 * x1;
        add->u0 += e0 == 0 ? 0 : e0 * x0;
        add->b += exp2(0.5 * (x1 + x0));
    }
}

static float
cde_max(const float *x, int64_t n)
{
    float m = -INFINITY;

#pragma omp simd reduction(max : m)
    for (int64_t v = 0; v < n; v++) {
        m = x[v] > m ? x[v] : m;
    }
    return m;
}

static void
cde_sweep_piece(const void *l1, const void *l0, rap_dtype dtype, int64_t n, unsigned want,
                rap_cde_state *st)
{
    float a[RAP_PIECE], b[RAP_PIECE];
    rap_cde_state add;

    if (!(rap_cde_is_common(st->m1, st->m0)
          && cde_block_typed(l1, l0, dtype, n, want, st, &add) < RAP_CDE_HEADROOM
          && cde_plain(l1, n, dtype) && cde_plain(l0, n, dtype)))
    {
        widen(l1, dtype, n, a);
        widen(l0, dtype, n, b);
        rap_cde_raise(st, CDE_REFERENCE(fmax(st->m1, cde_max(a, n))),
                      CDE_REFERENCE(fmax(st->m0, cde_max(b, n))));
        cde_block_typed(a, b, RAP_F32, n, want, st, &add);
    }
    if (!rap_cde_is_common(st->m1, st->m0) || !isfinite(add.s1 + add.s0 + add.u1 + add.u0))
    {
        widen(l1, dtype, n, a);
        widen(l0, dtype, n, b);
        cde_block_exact(a, b, n, st, &add);
    }
    rap_cde_add(st, &add);
}

/* Piece by piece; a last logit that makes no whole step is widened. */
static void
cde_pieces(const void *l1, const void *l0, rap_dtype dtype, int64_t n, unsigned want,
           rap_cde_state *st, cde_piece *piece)
{
    const int64_t whole = n - n % CDE_STEP(dtype);

    for (int64_t v = 0; v < whole; v += RAP_PIECE) {
        piece(cde_at(l1, v, dtype), cde_at(l0, v, dtype), dtype,
              RAP_MIN(RAP_PIECE, whole - v), want, st);
    }
    if (whole < n) {
        float a, b;

        widen(cde_at(l1, whole, dtype), dtype, 1, &a);
        widen(cde_at(l0, whole, dtype), dtype, 1, &b);
        piece(&a, &b, RAP_F32, 1, want, st);
    }
}

static void
cde_sweep(const void *l1, const void *l0, rap_dtype dtype, int64_t n, unsigned want,
          rap_cde_state *st)
{
    cde_pieces(l1, l0, dtype, n, want, st, cde_sweep_piece);
}

/* What a second sweep needs of a branch: the row's reference as a float, and log2 Z with
 * what that rounding moved. */
typedef struct {
    float m, log2_z;
} cde_norm;

static cde_norm
cde_norm_of(double m, double z)
{
    cde_norm norm = {.m = (float)m};

    norm.log2_z = (float)(log2(z) + (m - (double)norm.m) * (double)RAP_LOG2E);
    return norm;
}

static inline __attribute__((always_inline)) void
cde_mix_block(const void *restrict l1, const void *restrict l0, const rap_dtype dtype,
              int64_t n, cde_norm norm1, cde_norm norm0, float *js, float *tv,
              const bool want_js)
{
    const float m1 = norm1.m, m0 = norm0.m, ln_z1 = norm1.log2_z, ln_z0 = norm0.log2_z;
    const float least = rap_exp2f_least();
    float js_sum = 0, tv_sum = 0;

#pragma omp simd reduction(+ : js_sum, tv_sum)
    for (int64_t v = 0; v < n / CDE_STEP(dtype); v++) {
        for (int i = 0; i < CDE_STEP(dtype); i++) {
            float x1 = cde_raw(l1, v, i, dtype) * CDE_FACTOR(dtype) - m1;
            float x0 = cde_raw(l0, v, i, dtype) * CDE_FACTOR(dtype) - m0;
            float a1 = RAP_FMA(x1, RAP_LOG2E, -ln_z1), a0 = RAP_FMA(x0, RAP_LOG2E, -ln_z0);
            float p1 = rap_exp2f(a1, least), p0 = rap_exp2f(a0, least);

            tv_sum += fabsf(p1 - p0);
            if (want_js) {
                float ln_mix = rap_log2f(0.5f * (p1 + p0));

                js_sum = RAP_FMA(p1, a1 - ln_mix, js_sum);
                js_sum = RAP_FMA(p0, a0 - ln_mix, js_sum);
            }
        }
    }
    *js = js_sum;
    *tv = tv_sum;
}

static inline __attribute__((always_inline)) void
cde_mix_wanted(const void *l1, const void *l0, const rap_dtype dtype, int64_t n,
               unsigned want, const rap_cde_state *st, float *js, float *tv)
{
    const cde_norm norm1 = cde_norm_of(st->m1, st->z1), norm0 = cde_norm_of(st->m0, st->z0);

    if (want & RAP_CDE_BIT(RAP_CDE_JS)) {
        cde_mix_block(l1, l0, dtype, n, norm1, norm0, js, tv, true);
    }
    else {
        cde_mix_block(l1, l0, dtype, n, norm1, norm0, js, tv, false);
    }
}

static void
cde_mix_typed(const void *l1, const void *l0, rap_dtype dtype, int64_t n, unsigned want,
              const rap_cde_state *st, float *js, float *tv)
{
    switch (dtype) {
    case RAP_BF16:
        cde_mix_wanted(l1, l0, RAP_BF16, n, want, st, js, tv);
        break;
    case RAP_F16:
        cde_mix_wanted(l1, l0, RAP_F16, n, want, st, js, tv);
        break;
    default:
        cde_mix_wanted(l1, l0, RAP_F32, n, want, st, js, tv);
        break;
    }
}

static void
cde_mix_exact(const float *l1, const float *l0, int64_t n, const rap_cde_state *st,
              float *js, float *tv)
{
    const double ln_z1 = log2(st->z1), ln_z0 = log2(st->z0), unit = (double)RAP_LOG2E;
    double js_sum = 0, tv_sum = 0;

    for (int64_t v = 0; v < n; v++) {
        double a1 = (l1[v] - st->m1) * unit - ln_z1, a0 = (l0[v] - st->m0) * unit - ln_z0;
        double p1 = exp2(a1), p0 = exp2(a0), ln_mix = log2(0.5 * (p1 + p0));

        tv_sum += fabs(p1 - p0);
        js_sum += p1 == 0 ? 0 : p1 * (a1 - ln_mix);
        js_sum += p0 == 0 ? 0 : p0 * (a0 - ln_mix);
    }
    *js = (float)js_sum;
    *tv = (float)tv_sum;
}

static void
cde_mix_piece(const void *l1, const void *l0, rap_dtype dtype, int64_t n, unsigned want,
              rap_cde_state *st)
{
    float a[RAP_PIECE], b[RAP_PIECE], js, tv;

    cde_mix_typed(l1, l0, dtype, n, want, st, &js, &tv);
    if (!isfinite(js + tv) || !cde_plain(l1, n, dtype) || !cde_plain(l0, n, dtype)) {
        widen(l1, dtype, n, a);
        widen(l0, dtype, n, b);
        cde_mix_exact(a, b, n, st, &js, &tv);
    }
    st->js += 0.5 * js;
    st->tv += 0.5 * tv;
}

static void
cde_mix(const void *l1, const void *l0, rap_dtype dtype, int64_t n, unsigned want,
        rap_cde_state *st)
{
    cde_pieces(l1, l0, dtype, n, want, st, cde_mix_piece);
}

static void
cde_map(float *logits, int64_t n, const float *bias, float scale, float softcap)
{
    const float least = rap_exp2f_least();
    float inverse = softcap > 0 ? 1.0f / softcap : 0.0f;

    if (bias != NULL) {
#pragma omp simd
        for (int64_t v = 0; v < n; v++) {
            logits[v] += bias[v];
        }
    }
    if (scale != 1.0f) {
#pragma omp simd
        for (int64_t v = 0; v < n; v++) {
            logits[v] *= scale;
        }
    }
    if (softcap > 0) {
#pragma omp simd
        for (int64_t v = 0; v < n; v++) {
            logits[v] = rap_cde_softcap(logits[v], softcap, inverse, least);
        }
    }
}
