/* SPDX-License-Identifier: Apache-2.0
 *
 * The steps of ace_kernel.h and ace_cpu.c on a GPU: see ace_cuda.h for their order. A row's
 * columns are counted inside the block: column c is key p.key + c.
 */
#include "../cuda/device.h"

#include "ace_cuda.h"
#include "ace_device.h"
#include "ace_math.h"

#define LANE_TERMS 64 /* terms a lane sums in float32 before float64 */

/* The columns [lo, hi) that a row sees. */
typedef struct {
    int64_t row, lo, hi;
} ace_span;

RAP_HD ace_span
ace_span_of(const rap_ace_cuda *p, int64_t r)
{
    ace_span x;

    x.row = p->row + r;
    x.lo = RAP_MAX(rap_ace_first_seen(&p->o, x.row), p->key) - p->key;
    x.hi = x.row + 1 - p->key;
    return x;
}

/* Columns [c, c + 4), c a multiple of 4; those outside the span become `beyond`. */
RAP_HD void
ace_load4(const float *row, int64_t c, const ace_span *x, float beyond, float *out)
{
    if (c >= x->lo && c + 4 <= x->hi) {
        const rap_u128 a = rap_load128(row + c);

        out[0] = rap_from_bits(a.x), out[1] = rap_from_bits(a.y);
        out[2] = rap_from_bits(a.z), out[3] = rap_from_bits(a.w);
        return;
    }
    for (int i = 0; i < 4; i++) {
        out[i] = c + i >= x->lo && c + i < x->hi ? row[c + i] : beyond;
    }
}

RAP_KERNEL(rap_ace_start, rap_ace_cuda, RAP_ACE_CUDA_THREADS, 4)
{
    const int64_t n = (int64_t)p.fields * p.total_length;
    const int64_t step = (int64_t)rap_blocks() * rap_threads();

    for (int64_t i = (int64_t)rap_block() * rap_threads() + rap_thread(); i < n; i += step)
    {
        p.sums[i] = 0;
        p.stats[i] = p.stats[n + i] = p.stats[2 * n + i] = 0;
    }
}

/* --- log-sum-exp of a head's row ------------------------------------------------------- */

RAP_HD float
ace_row_max(const float *row, const ace_span *x)
{
    float m = -INFINITY;

    for (int64_t c = x->lo / 4 * 4 + 4 * rap_lane(); c < x->hi; c += 4 * RAP_WARP) {
        float s[4];

        ace_load4(row, c, x, -INFINITY, s);
        for (int i = 0; i < 4; i++) {
            m = rap_larger(m, s[i]);
        }
    }
    return rap_warp_max(m);
}

/* sum_c 2^(scale2 s_c - shift) */
RAP_HD double
ace_row_sum(const float *row, const ace_span *x, float scale2, float shift)
{
    const float least = rap_exp2f_least();
    const int64_t step = 4 * RAP_WARP;
    double sum = 0;

    for (int64_t c = x->lo / 4 * 4 + 4 * rap_lane(); c < x->hi; c += step * LANE_TERMS / 4)
    {
        float part = 0;

        for (int64_t t = c; t < RAP_MIN(x->hi, c + step * LANE_TERMS / 4); t += step) {
            float s[4];

            ace_load4(row, t, x, -INFINITY, s);
            for (int i = 0; i < 4; i++) {
                float z = rap_ace_exponent(scale2, s[i], shift);

                part += t + i >= x->lo && t + i < x->hi ? rap_exp2f(z, least) : 0;
            }
        }
        sum += part;
    }
    return rap_warp_sum(sum);
}

RAP_KERNEL(rap_ace_lse, rap_ace_cuda, RAP_ACE_CUDA_THREADS, 4)
{
    const int64_t warps = (int64_t)rap_blocks() * rap_threads() / RAP_WARP;
    const int64_t n = (int64_t)p.hq * p.rows, all = (int64_t)p.hq * p.block_rows;

    for (int64_t i = (int64_t)rap_block() * rap_threads() / RAP_WARP + rap_warp(); i < n;
         i += warps)
    {
        const int64_t head = i / p.rows, r = i % p.rows;
        const int64_t at = head * p.block_rows + r;
        const ace_span x = ace_span_of(&p, r);
        rap_ace_reference ref;

        if (p.lse != NULL) {
            const int64_t from =
                head * p.lse_stride[0] + (p.begin + x.row) * p.lse_stride[1];
            const double lse = p.lse_dtype == RAP_F32 ? (double)((const float *)p.lse)[from]
                                                      : ((const double *)p.lse)[from];

            ref = rap_ace_given(lse, p.unit);
        }
        else {
            ref.shift = p.scale2 * ace_row_max(p.scores + at * p.ld, &x);
            ref.z = ace_row_sum(p.scores + at * p.ld, &x, p.scale2, ref.shift);
        }
        if (rap_lane() == 0) {
            p.reference[at] = ref.shift;
            p.reference[all + at] = rap_ace_rest(&p.o, ref.z, p.hq);
        }
    }
}

/* --- weights: w for the head mean, log2 w otherwise ------------------------------------ */

RAP_HD void
ace_fold4(const rap_ace_cuda *p, int64_t r, int64_t c, int64_t first, int64_t last,
          float *w)
{
    const int64_t all = (int64_t)p->hq * p->block_rows;
    const float least = rap_exp2f_least();
    const ace_span x = ace_span_of(p, r);

    for (int64_t head = first; head < last; head++) {
        const int64_t at = head * p->block_rows + r;
        const float shift = p->reference[at], rest = p->reference[all + at];
        float s[4];

        ace_load4(p->scores + at * p->ld, c, &x, 0, s);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const float z = rap_ace_exponent(p->scale2, s[i], shift);

            if (p->o.heads == RAP_ACE_MEAN) {
                const float e = rap_exp2f(z, least);

                w[i] = head == first ? rest * e : RAP_FMA(rest, e, w[i]);
            }
            else {
                w[i] = head == first ? z - rest : rap_ace_larger(w[i], z - rest);
            }
        }
    }
}

RAP_KERNEL(rap_ace_fold, rap_ace_cuda, RAP_ACE_CUDA_THREADS, 4)
{
    const int64_t groups = (p.row + p.rows - p.key + 3) / 4;
    const int64_t n = p.fields * p.rows * groups;
    const int64_t step = (int64_t)rap_blocks() * rap_threads();
    const bool each = p.o.heads == RAP_ACE_EACH;

    for (int64_t i = (int64_t)rap_block() * rap_threads() + rap_thread(); i < n; i += step)
    {
        const int64_t line = i / groups, c = i % groups * 4;
        const int64_t field = line / p.rows, r = line % p.rows;
        const ace_span x = ace_span_of(&p, r);
        float w[4] = {0, 0, 0, 0};

        if (c < x.hi && c + 4 > x.lo) {
            ace_fold4(&p, r, c, each ? field : 0, each ? field + 1 : p.hq, w);
            rap_store128(p.weights + (field * p.block_rows + r) * p.ld + c, w);
        }
    }
}

/* --- what a row of weights gives ------------------------------------------------------- */

typedef struct {
    double part[RAP_ACE_CUDA_THREADS / RAP_WARP];
    uint32_t count[256];
    uint32_t threshold, need;
} ace_stats_shared;

typedef struct {
    double sum, dot, image, large;
} ace_row_sums;

/* This thread's part of a row's sums; `large`: of the weights whose bits exceed `above`. */
RAP_HD ace_row_sums
ace_thread_sums(const rap_ace_cuda *p, const float *row, const ace_span *x, uint32_t above)
{
    const float least = rap_exp2f_least();
    const int64_t step = 4 * rap_threads(), piece = step * LANE_TERMS / 4;
    const uint8_t *image = p->image_mask == NULL ? NULL : p->image_mask + p->begin + p->key;
    ace_row_sums all = {0, 0, 0, 0};

    for (int64_t c = x->lo / 4 * 4 + 4 * rap_thread(); c < x->hi; c += piece) {
        float sum = 0, dot = 0, seen = 0, large = 0;

        for (int64_t t = c; t < RAP_MIN(x->hi, c + piece); t += step) {
            float v[4];

            ace_load4(row, t, x, 0, v);
            for (int i = 0; i < 4; i++) {
                if (t + i >= x->lo && t + i < x->hi) {
                    const float w = ace_linear(p, v[i], least);

                    sum += w;
                    dot = RAP_FMA(w, ace_ln(p, v[i]), dot);
                    seen += image != NULL && image[t + i] != 0 ? w : 0;
                    large += (rap_bits(w) & 0x7fffffffu) > above ? w : 0;
                }
            }
        }
        all.sum += sum;
        all.dot += dot;
        all.image += seen;
        all.large += large;
    }
    return all;
}

/* Counts one digit of the weights that tie with the threshold so far. */
RAP_HD void
ace_count_digit(const rap_ace_cuda *p, const float *row, const ace_span *x, int shift,
                ace_stats_shared *sh)
{
    const float least = rap_exp2f_least();

    for (int i = rap_thread(); i < 256; i += rap_threads()) {
        sh->count[i] = 0;
    }
    rap_sync();
    for (int64_t c = x->lo + rap_thread(); c < x->hi; c += rap_threads()) {
        const uint32_t bits = rap_bits(ace_linear(p, row[c], least)) & 0x7fffffffu;

        if (shift == 24 || bits >> (shift + 8) == sh->threshold >> (shift + 8)) {
            rap_atomic_add_u32(&sh->count[bits >> shift & 255], 1);
        }
    }
    rap_sync();
}

/* Leaves in sh the bits of the `top`-th largest weight, and how many of that value count. */
RAP_HD void
ace_top_threshold(const rap_ace_cuda *p, const float *row, const ace_span *x,
                  ace_stats_shared *sh)
{
    if (rap_thread() == 0) {
        sh->threshold = 0;
        sh->need = (uint32_t)RAP_MIN(p->o.top, x->hi - x->lo);
    }
    for (int shift = 24; shift >= 0; shift -= 8) {
        rap_sync();
        ace_count_digit(p, row, x, shift, sh);
        if (rap_thread() == 0) {
            int digit = 255;

            while (digit > 0 && sh->count[digit] < sh->need) {
                sh->need -= sh->count[digit--];
            }
            sh->threshold |= (uint32_t)digit << shift;
        }
    }
    rap_sync();
}

/* Entropy, mass of the largest weights and mass on image tokens of one row. */
RAP_HD void
ace_row_stats(const rap_ace_cuda *p, int64_t field, const float *row, const ace_span *x,
              ace_stats_shared *sh)
{
    const int64_t n = (int64_t)p->fields * p->total_length;
    double *out = p->stats + field * p->total_length + p->begin + x->row;
    double sum, dot, image, large;
    ace_row_sums own;

    ace_top_threshold(p, row, x, sh);
    own = ace_thread_sums(p, row, x, sh->threshold);
    sum = rap_block_sum(own.sum, sh->part);
    dot = rap_block_sum(own.dot, sh->part);
    image = rap_block_sum(own.image, sh->part);
    large = rap_block_sum(own.large, sh->part);
    sum = p->o.heads == RAP_ACE_MEAN ? 1 : sum;
    if (rap_thread() == 0) {
        large += (double)sh->need * (double)rap_from_bits(sh->threshold);
        out[0] = log(sum) - dot / sum;
        out[n] = large / sum;
        out[2 * n] = image / sum;
    }
}

RAP_KERNEL(rap_ace_stats, rap_ace_cuda, RAP_ACE_CUDA_THREADS, 4)
{
    RAP_SMEM(ace_stats_shared, sh);
    const int64_t n = (int64_t)p.fields * p.rows, all = (int64_t)p.fields * p.block_rows;

    for (int64_t line = rap_block(); line < n; line += rap_blocks()) {
        const int64_t field = line / p.rows, r = line % p.rows;
        const int64_t at = field * p.block_rows + r;
        const float *row = p.weights + at * p.ld;
        const ace_span x = ace_span_of(&p, r);

        if (p.o.renormalise) {
            ace_row_sums own = ace_thread_sums(&p, row, &x, 0);
            double total = log(rap_block_sum(own.sum, sh->part));

            total = p.o.heads == RAP_ACE_MEAN ? 0 : total; /* their rows sum to 1 */
            if (rap_thread() == 0) {
                p.total[at] = (float)total;
                p.total[all + at] = (float)(total - (float)total);
            }
        }
        if (p.o.want_stats) {
            ace_row_stats(&p, field, row, &x, sh);
        }
        rap_sync();
    }
}

/* --- columns --------------------------------------------------------------------------- */

RAP_KERNEL(rap_ace_columns, rap_ace_cuda, RAP_ACE_CUDA_THREADS, 4)
{
    const int64_t keys = p.row + p.rows - p.key, n = p.fields * keys;
    const int64_t step = (int64_t)rap_blocks() * rap_threads();

    for (int64_t i = (int64_t)rap_block() * rap_threads() + rap_thread(); i < n; i += step)
    {
        const int64_t field = i / keys, c = i % keys, j = p.key + c;
        const int64_t end =
            RAP_MIN(p.row + p.rows, rap_ace_last_row(&p.o, p.length, p.start, j));
        const float *total = p.total + field * p.block_rows;
        const float *rest = total + (int64_t)p.fields * p.block_rows;
        float hi = 0, lo = 0;

        if (!(p.o.columns & (j < p.start ? RAP_ACE_PROMPT : RAP_ACE_RESPONSE))) {
            continue;
        }
        for (int64_t r = RAP_MAX(j - p.row, 0); r < end - p.row; r++) {
            const float v = p.weights[(field * p.block_rows + r) * p.ld + c];

            rap_add_exact(&hi, &lo, ace_ln(&p, v));
            if (p.o.renormalise) {
                rap_add_exact(&hi, &lo, -total[r]);
                lo -= rest[r];
            }
        }
        p.sums[field * p.total_length + p.begin + j] +=
            isinf(hi) ? (double)hi : (double)hi + (double)lo;
    }
}

/* --- answers --------------------------------------------------------------------------- */

RAP_KERNEL(rap_ace_finish, rap_ace_cuda, RAP_ACE_CUDA_THREADS, 4)
{
    RAP_SMEM(ace_finish_shared, sh);

    for (int64_t field = rap_block(); field < p.fields; field += rap_blocks()) {
        ace_answer(&p, field, sh);
    }
}
