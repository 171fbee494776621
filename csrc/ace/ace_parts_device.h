/* SPDX-License-Identifier: Apache-2.0
 *
 * The parts that blocks left of columns and rows, put together. Part of ace_tensor_cuda.cu.
 */
#ifndef RAP_ACE_PARTS_DEVICE_H
#define RAP_ACE_PARTS_DEVICE_H

#include "ace_tile_device.h"

/* The parts of a column's sum, in the order of the rows. */
RAP_HD void
ace_add_parts(const rap_ace_tensor_cuda *p, int64_t j)
{
    const rap_ace_cuda *a = &p->a;
    const int64_t first = RAP_MAX(j, a->start), width = a->length - p->first_column;
    const int64_t last = rap_ace_last_row(&a->o, a->length, a->start, j);
    const int kind = j < a->start ? RAP_ACE_PROMPT : RAP_ACE_RESPONSE;
    double sum = 0;

    if ((a->o.columns & kind) && first < last) {
        for (int64_t t = (first - a->start) / ROWS; t <= (last - 1 - a->start) / ROWS; t++)
        {
            sum += p->column_sums[t * width + j - p->first_column];
        }
    }
    a->sums[a->begin + j] = sum;
}

/* The bits of the `top`-th largest weight of a row, 0 if it has fewer. */
RAP_HD uint32_t
ace_top_bits(const rap_ace_tensor_cuda *p, int64_t r)
{
    const int n = p->chunks * p->a.o.top;
    uint32_t found = 0;

#pragma unroll 1
    for (int bit = 30; bit >= 0; bit--) {
        const uint32_t next = found | 1u << bit;
        int count = 0;

        for (int i = 0; i < n; i += RAP_WARP) {
            const int at = i + rap_lane();

            count += rap_popcount(
                rap_ballot(at < n && p->largest[(int64_t)at * p->a.rows + r] >= next));
        }
        found = count >= p->a.o.top ? next : found;
    }
    return found;
}

/* Mass of the `top` largest weights of a row, known to every lane. */
RAP_HD double
ace_top_mass(const rap_ace_tensor_cuda *p, int64_t r)
{
    const uint32_t bits = ace_top_bits(p, r);
    const int n = p->chunks * p->a.o.top;
    double mass = 0;
    int above = 0;

    for (int i = 0; i < n; i += RAP_WARP) {
        const int at = i + rap_lane();
        const uint32_t here = at < n ? p->largest[(int64_t)at * p->a.rows + r] : 0;

        above += rap_popcount(rap_ballot(here > bits));
        mass += here > bits ? (double)rap_from_bits(here) : 0;
    }
    return rap_warp_sum(mass) + (double)(p->a.o.top - above) * (double)rap_from_bits(bits);
}

/* A warp a row: its statistics, and ln of its sum. */
RAP_HD void
ace_row_gives(const rap_ace_tensor_cuda *p, int64_t r)
{
    const rap_ace_cuda *a = &p->a;
    const int64_t all = (int64_t)p->chunks * a->rows;
    double part[3] = {0, 0, 0}, mass;

    for (int chunk = rap_lane(); chunk < p->chunks; chunk += RAP_WARP) {
        for (int i = 0; i < 3; i++) {
            part[i] += p->row_sums[i * all + (int64_t)chunk * a->rows + r];
        }
    }
    for (int i = 0; i < 3; i++) {
        part[i] = rap_warp_sum(part[i]);
    }
    mass = a->o.want_stats ? ace_top_mass(p, r) : 0;
    part[0] = a->o.heads == RAP_ACE_MEAN ? 1 : part[0]; /* their rows sum to 1 */
    if (rap_lane() == 0) {
        double *out = a->stats + a->begin + a->start + r;

        out[0] = log(part[0]) - part[1] / part[0];
        out[a->total_length] = mass / part[0];
        out[2 * a->total_length] = part[2] / part[0];
        p->totals[r] = log(part[0]);
    }
}

/* totals[r] becomes the sum of those before it, by the whole block. */
RAP_HD void
ace_sum_totals(const rap_ace_tensor_cuda *p, ace_finish_shared *sh)
{
    const int64_t share = (p->a.rows + rap_threads() - 1) / rap_threads();
    const int64_t first = RAP_MIN(p->a.rows, share * rap_thread());
    const int64_t last = RAP_MIN(p->a.rows, first + share);
    double sum = 0;

    for (int64_t r = first; r < last; r++) {
        sum += p->totals[r];
    }
    sh->best[rap_thread()] = sum;
    rap_sync();
    sum = 0;
    for (int t = 0; t < rap_thread(); t++) {
        sum += sh->best[t];
    }
    for (int64_t r = first; r < last; r++) {
        const double own = p->totals[r];

        p->totals[r] = sum;
        sum += own;
    }
    if (rap_thread() == rap_threads() - 1) {
        p->totals[p->a.rows] = sum;
    }
    rap_sync();
}

/* Rows of weights divided by their sums: ln of those sums goes from each column's. */
RAP_HD void
ace_renormalise(const rap_ace_tensor_cuda *p, ace_finish_shared *sh)
{
    const rap_ace_cuda *a = &p->a;

    ace_sum_totals(p, sh);
    for (int64_t j = rap_thread(); j < a->length; j += rap_threads()) {
        const int64_t first = RAP_MAX(j, a->start);
        const int64_t last = rap_ace_last_row(&a->o, a->length, a->start, j);

        a->sums[a->begin + j] -= p->totals[last - a->start] - p->totals[first - a->start];
    }
    rap_sync();
}

#endif
