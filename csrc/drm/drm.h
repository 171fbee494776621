/* SPDX-License-Identifier: Apache-2.0
 *
 * CONTRACT: the k hardest samples that can still be solved.
 *
 *   Candidates: 0 < difficulty < 1, eligible, gain not NaN. Order: difficulty down, then
 *   gain down, then index up: total, so the answer is unique. At most k indices come
 *   back, in that order; fewer when there are fewer candidates.
 *   Source: RAP (arXiv 2506.04755) section 3.3; rap/METHOD.md section 3.
 *
 * Shapes: difficulty [N] and gain [N] in float32 or float64 (both become float64 keys),
 * eligible bool [N]; N up to 2^40. NaN selects nothing; -0.0 and 0.0 tie.
 *
 * How: difficulty in [0, 1) is cut into equal buckets. The bucket of the k-th score is
 * estimated from a sample of scores at even steps, rounded down so that it is a lower bound.
 * One scan counts scores from there on, per chunk of RAP_DRM_CHUNK and bucket, which gives the
 * bucket of the k-th score and the position of every item. A second scan writes items, 64 bits
 * each (leading bits of the rank within the bucket, index), sorted by bucket, into `out`
 * itself. Each bucket is then sorted there; low bits of float64 and gain, which the keys do
 * not hold, are looked up for items that tie.
 *
 * The last bucket may hold far more than is needed of it: pass rates take few values. Further
 * scans that store nothing then narrow it down, each between two ranks of a random sample,
 * until the undecided items have one rank (selected by index) or are few enough to be stored
 * and sorted. A misleading sample costs one more scan; the result never depends on it.
 *
 * Memory beside the input and `out`: half of the scores' bytes for what is undecided, at most
 * 64 KiB a chunk for the counts, and 512 KiB a worker, whatever the scores. Exact: of the
 * scores nothing but leading bits is computed.
 */
#ifndef RAP_DRM_H
#define RAP_DRM_H

#include "../cpu.h"

#define RAP_DRM_CHUNK (INT64_C(1) << 20)
#define RAP_DRM_BUCKETS 4096    /* at most: a power of two */
#define RAP_DRM_PER_BUCKET 1024 /* samples, where that makes fewer */
#define RAP_DRM_LINE 1024       /* samples searched at a time */
#define RAP_DRM_SAMPLE 16384    /* scores that are looked at first */

typedef struct {
    rap_array difficulty; /* [N] float32 or float64 */
    rap_array gain;       /* [N] float32 or float64, or empty: all equal */
    rap_array eligible;   /* [N] bool, or empty: all */
    rap_array out;        /* int64 [k] */
    int64_t found;        /* answer: how many of out were written */
} rap_drm_args;

/* `args` is a rap_drm_args: bindings call them through a table. */
bool rap_drm_check(const void *args, rap_error *err);
bool rap_drm_cpu(void *args, rap_exec *exec, rap_error *err);

/* On a CUDA device (drm_cuda.c); waits for the stream, since `found` depends on the data. */
struct rap_cuda_call;
int64_t rap_drm_device_bytes(const void *args);
bool rap_drm_device(void *args, struct rap_cuda_call *call, void *workspace,
                    rap_error *err);

#endif
