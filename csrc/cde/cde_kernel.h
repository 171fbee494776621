/* SPDX-License-Identifier: Apache-2.0
 *
 * Included once per instruction set. cde_sweep folds one block of n <= RAP_CDE_BLOCK
 * logits into the state; cde_mix adds one block to js and tv; cde_map turns raw products
 * into logits. Formulas: cde.h.
 */

/* Exponents are in units of log2: x = (l - m) RAP_LOG2E. Subtracting first keeps x exact
 * near the maximum; one multiply-add of l would round m RAP_LOG2E into every x. */

static inline __attribute__((always_inline)) float
cde_block(const float *restrict l1, const float *restrict l0, int64_t n, float m1, float m0,
          rap_cde_state *add, const bool entropy, const bool hellinger)
{
    const float least = rap_exp2f_least();
    float z1 = 0, z0 = 0, s1 = 0, s0 = 0, u1 = 0, u0 = 0, b = 0, top = -INFINITY;

#pragma omp simd reduction(+ : z1, z0, s1, s0, u1, u0, b) reduction(max : top)
    for (int64_t v = 0; v < n; v++) {
        float x1 = (l1[v] - m1) * RAP_LOG2E, x0 = (l0[v] - m0) * RAP_LOG2E;
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
    *add =
        (rap_cde_state){.z1 = z1, .z0 = z0, .s1 = s1, .s0 = s0, .u1 = u1, .u0 = u0, .b = b};
    return top;
}

/* A branch that has met no finite logit yet takes its x from 0. */
static double
cde_base(double m)
{
    return m == -INFINITY ? 0 : m;
}

static float
cde_block_wanted(const float *l1, const float *l0, int64_t n, unsigned want,
                 const rap_cde_state *st, rap_cde_state *add)
{
    const bool entropy = want & RAP_CDE_NEEDS_ENTROPY;
    const bool hellinger = want & RAP_CDE_BIT(RAP_CDE_HELLINGER2);
    const float m1 = (float)cde_base(st->m1), m0 = (float)cde_base(st->m0);

    if (entropy && hellinger) {
        return cde_block(l1, l0, n, m1, m0, add, true, true);
    }
    if (entropy) {
        return cde_block(l1, l0, n, m1, m0, add, true, false);
    }
    if (hellinger) {
        return cde_block(l1, l0, n, m1, m0, add, false, true);
    }
    return cde_block(l1, l0, n, m1, m0, add, false, false);
}

/* The same in float64 for blocks that hold -inf: e log e = 0 where e = 0. */
static void
cde_block_exact(const float *l1, const float *l0, int64_t n, const rap_cde_state *st,
                rap_cde_state *add)
{
    const double m1 = cde_base(st->m1), m0 = cde_base(st->m0), unit = (double)RAP_LOG2E;

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

/* Moves the sums to new maxima; a branch without a finite logit has sums of 0. */
static void
cde_raise(rap_cde_state *st, double m1, double m0)
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

/* The references need not be the maxima: a piece is read once, and done again only when an
 * exponent rises more than CDE_HEADROOM above them. Not more headroom: ln Z - U/Z and its
 * like cancel what lies between the reference and the maximum. */
#define CDE_HEADROOM 2.0f

static void
cde_sweep_piece(const float *l1, const float *l0, int64_t n, unsigned want,
                rap_cde_state *st)
{
    rap_cde_state add;
    bool first = st->m1 == -INFINITY || st->m0 == -INFINITY;

    if (first || !(cde_block_wanted(l1, l0, n, want, st, &add) < CDE_HEADROOM)) {
        cde_raise(st, fmax(st->m1, cde_max(l1, n)), fmax(st->m0, cde_max(l0, n)));
        cde_block_wanted(l1, l0, n, want, st, &add);
    }
    if (!isfinite(add.s1 + add.s0 + add.u1 + add.u0)) {
        cde_block_exact(l1, l0, n, st, &add);
    }
    st->z1 += add.z1;
    st->z0 += add.z0;
    st->s1 += add.s1;
    st->s0 += add.s0;
    st->u1 += add.u1;
    st->u0 += add.u0;
    st->b += add.b;
}

static void
cde_sweep(const float *l1, const float *l0, int64_t n, unsigned want, rap_cde_state *st)
{
    for (int64_t v = 0; v < n; v += RAP_PIECE) {
        cde_sweep_piece(l1 + v, l0 + v, RAP_MIN(RAP_PIECE, n - v), want, st);
    }
}

static inline __attribute__((always_inline)) void
cde_mix_block(const float *restrict l1, const float *restrict l0, int64_t n,
              const float m[2], const float ln_z[2], float *js, float *tv,
              const bool want_js)
{
    const float m1 = m[0], m0 = m[1], ln_z1 = ln_z[0], ln_z0 = ln_z[1];
    const float least = rap_exp2f_least();
    float js_sum = 0, tv_sum = 0;

#pragma omp simd reduction(+ : js_sum, tv_sum)
    for (int64_t v = 0; v < n; v++) {
        float a1 = RAP_FMA(l1[v] - m1, RAP_LOG2E, -ln_z1);
        float a0 = RAP_FMA(l0[v] - m0, RAP_LOG2E, -ln_z0);
        float p1 = rap_exp2f(a1, least), p0 = rap_exp2f(a0, least);

        tv_sum += fabsf(p1 - p0);
        if (want_js) {
            float ln_mix = rap_log2f(0.5f * (p1 + p0));

            js_sum = RAP_FMA(p1, a1 - ln_mix, js_sum);
            js_sum = RAP_FMA(p0, a0 - ln_mix, js_sum);
        }
    }
    *js = js_sum;
    *tv = tv_sum;
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
cde_mix_piece(const float *l1, const float *l0, int64_t n, unsigned want, rap_cde_state *st)
{
    const float m[2] = {(float)st->m1, (float)st->m0};
    const float ln_z[2] = {(float)log2(st->z1), (float)log2(st->z0)};
    float js, tv;

    if (want & RAP_CDE_BIT(RAP_CDE_JS)) {
        cde_mix_block(l1, l0, n, m, ln_z, &js, &tv, true);
    }
    else {
        cde_mix_block(l1, l0, n, m, ln_z, &js, &tv, false);
    }
    if (!isfinite(js + tv)) {
        cde_mix_exact(l1, l0, n, st, &js, &tv);
    }
    st->js += 0.5 * js;
    st->tv += 0.5 * tv;
}

static void
cde_mix(const float *l1, const float *l0, int64_t n, unsigned want, rap_cde_state *st)
{
    for (int64_t v = 0; v < n; v += RAP_PIECE) {
        cde_mix_piece(l1 + v, l0 + v, RAP_MIN(RAP_PIECE, n - v), want, st);
    }
}

/* tanh through e^-2|x|; near 0, where that cancels, x + x^3 q(x^2). */
static inline __attribute__((always_inline)) float
cde_tanh(float x, float least)
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
            logits[v] = softcap * cde_tanh(logits[v] * inverse, least);
        }
    }
}
