/* SPDX-License-Identifier: Apache-2.0
 *
 * CONTRACT: the k hardest samples that can still be solved.
 *
 *   Candidates: 0 < difficulty < 1, eligible, gain not NaN. Order: difficulty down, then
 *   gain down, then index up: total, so the answer is unique. At most k indices come
 *   back, in that order; fewer when there are fewer candidates.
 *   Source: RAP (arXiv 2506.04755) section 3.3; method.md section 3.
 *
 * Shapes: difficulty [N] and gain [N] in float32 or float64 (both become float64 keys),
 * eligible bool [N]; N up to 2^40. NaN selects nothing; -0.0 and 0.0 tie.
 *
 * How: the upper 16 bits of a positive float64 order it coarsely. One scan counts them
 * per chunk of RAP_DRM_CHUNK samples, which gives the bucket where the k-th lies and the
 * place of every index; a second scan writes the indices above the bucket and those in
 * it. The bucket alone is refined digit by digit (difficulty, then gain); ties that
 * remain are cut by index. The k chosen are radix-sorted, stable in the index.
 *
 * Memory beside the input: 8 bytes for each sample in or above the bucket, 32 bytes for
 * each of the k, 64 KiB a chunk. Exact: no arithmetic on the scores at all.
 */
#ifndef RAP_DRM_H
#define RAP_DRM_H

#include "../cpu.h"

#define RAP_DRM_CHUNK (INT64_C(1) << 20)
#define RAP_DRM_BUCKETS 16384 /* 1 + upper 16 bits of a float64 below 1; 0: no candidate */
#define RAP_DRM_LINE 1024     /* samples whose buckets are computed at a time */

typedef struct {
    rap_array difficulty; /* [N] float32 or float64 */
    rap_array gain;       /* [N] float32 or float64, or empty: all equal */
    rap_array eligible;   /* [N] bool, or empty: all */
    rap_array out;        /* int64 [k] */
    int64_t found;        /* answer: how many of out were written */
} rap_drm_args;

bool rap_drm_check(const rap_drm_args *args, rap_error *err);
bool rap_drm_cpu(rap_drm_args *args, rap_exec *exec, rap_error *err);

#endif
