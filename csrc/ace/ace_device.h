/* SPDX-License-Identifier: Apache-2.0
 *
 * Device code that ace_cuda.cu and ace_tensor_cuda.cu share: what a weight says, and the
 * answers from the sums of columns and rows.
 */
#ifndef RAP_ACE_DEVICE_H
#define RAP_ACE_DEVICE_H

#include "../cuda/device.h"
#include "ace_launch_cuda.h"
#include "ace_math.h"

/* --- weights: w for the head mean, log2 w otherwise ------------------------------------ */

RAP_HD float
ace_linear(const rap_ace_cuda *p, float v, float least)
{
    return p->o.heads == RAP_ACE_MEAN ? v : rap_exp2f(v, least);
}

RAP_HD float
ace_ln(const rap_ace_cuda *p, float v)
{
    return p->o.heads == RAP_ACE_MEAN ? rap_ace_ln(v) : v * p->unit32;
}

/* --- answers --------------------------------------------------------------------------- */

typedef struct {
    double part[RAP_ACE_CUDA_THREADS / RAP_WARP];
    double best[RAP_ACE_CUDA_THREADS];
    int64_t position[RAP_ACE_CUDA_THREADS];
} ace_finish_shared;

/* Whether a is to be preferred: NaN to all, then the larger, then the earlier column. */
RAP_HD bool
ace_better(double a, int64_t at_a, double b, int64_t at_b)
{
    if (isnan(a) || isnan(b)) {
        return isnan(a) && !isnan(b);
    }
    return a > b || (a == b && at_a < at_b);
}

/* Writes psi of every column; leaves the best of each thread in sh. */
RAP_HD void
ace_psi(const rap_ace_cuda *p, int64_t field, ace_finish_shared *sh)
{
    const int64_t at = field * p->total_length + p->begin;
    double best = -INFINITY;
    int64_t position = -1;

#pragma unroll 1
    for (int64_t j = rap_thread(); j < p->length; j += rap_threads()) {
        const bool masked = p->column_mask != NULL && p->column_mask[p->begin + j] == 0;
        const double psi = rap_ace_psi(&p->o, p->ln_sigma, p->length, p->start, j, masked,
                                       p->sums[at + j]);

        p->psi[at + j] = psi;
        if (rap_ace_beats(psi, best)) {
            best = psi;
            position = j;
        }
    }
    sh->best[rap_thread()] = best;
    sh->position[rap_thread()] = position;
}

RAP_HD double
ace_mean_stat(const rap_ace_cuda *p, int64_t field, int which, ace_finish_shared *sh)
{
    const int64_t rows = p->length - p->start;
    const double *stat =
        p->stats + (which * (int64_t)p->fields + field) * p->total_length + p->begin;
    double sum = 0;

    for (int64_t i = p->start + rap_thread(); i < p->length; i += rap_threads()) {
        sum += stat[i];
    }
    sum = rap_block_sum(sum, sh->part);
    if (rows == 0 || !p->o.want_stats || (which == 2 && p->image_mask == NULL)) {
        return NAN;
    }
    return sum / (double)rows;
}

/* Answers of one field, by the whole block. */
RAP_HD void
ace_answer(const rap_ace_cuda *p, int64_t field, ace_finish_shared *sh)
{
    const int64_t outputs = p->samples * p->fields, task = p->sample * p->fields + field;
    double stat[3];
    int best = 0;

    ace_psi(p, field, sh);
    for (int which = 0; which < 3; which++) {
        stat[which] = ace_mean_stat(p, field, which, sh);
    }
    for (int t = 1; rap_thread() == 0 && t < rap_threads(); t++) {
        best = ace_better(sh->best[t], sh->position[t], sh->best[best], sh->position[best])
                   ? t
                   : best;
    }
    if (rap_thread() == 0) {
        const double log_psi = sh->best[best];

        p->summary[RAP_ACE_LOG_PSI * outputs + task] = log_psi;
        p->position[task] =
            isnan(log_psi) || log_psi == -INFINITY ? -1 : sh->position[best];
        p->summary[RAP_ACE_ENTROPY * outputs + task] = stat[0];
        p->summary[RAP_ACE_TOP_MASS * outputs + task] = stat[1];
        p->summary[RAP_ACE_IMAGE * outputs + task] = stat[2];
    }
    rap_sync();
}

#endif
