/* SPDX-License-Identifier: Apache-2.0
 *
 * What drm_cuda.c hands to the kernels of drm_cuda.cu: one struct by value; the order of
 * launches on one stream, with nothing read back between them:
 *
 *   rap_drm_start
 *   rap_drm_digit         for each step that rap_drm_cuda_digit names
 *   rap_drm_gather
 *   rap_drm_sort_tile     each tile of TILE items
 *   for span = TILE, 2 TILE .. below padded:
 *       rap_drm_merge         runs of span items, two by two, items -> other; then the
 *                             two change places
 *   rap_drm_answer        then state->found and out[0 .. found) are known
 *
 * Keys are bit patterns: 64 bits of difficulty, 64 of gain, RANK_BITS of the index counted
 * down. The digits of all three, most significant first, find the least key that is still
 * chosen; it is unique, so those at or above it are exactly the answer, in any order until
 * they are sorted (total order). No arithmetic on scores, no read-back.
 */
#ifndef RAP_DRM_CUDA_H
#define RAP_DRM_CUDA_H

#include <assert.h>

#include "drm.h"

#define RAP_DRM_CUDA_THREADS 256
#define RAP_DRM_CUDA_BATCH (4 * RAP_DRM_CUDA_THREADS) /* samples a block reads at a time */
#define RAP_DRM_CUDA_TILE 1024 /* items a block sorts in shared memory */
#define RAP_DRM_CUDA_DIGITS 2048
#define RAP_DRM_CUDA_DIGIT_BITS 11
#define RAP_DRM_CUDA_RANK_BITS 44

typedef struct {
    uint64_t difficulty, gain, rank; /* rank = n - index: above 0 */
} rap_drm_cuda_item;

typedef struct {
    int64_t found;               /* the answer's length */
    uint64_t gathered;           /* the same again, unless the scores changed meanwhile */
    uint64_t need;               /* to be chosen among those that tie so far */
    rap_drm_cuda_item threshold; /* the digits decided so far */
    uint32_t ticket, done;
    uint64_t count[RAP_DRM_CUDA_DIGITS];
} rap_drm_cuda_state;

typedef struct {
    const void *difficulty, *gain; /* [N] float32 or float64; gain may be NULL */
    const uint8_t *eligible;       /* [N], or NULL */
    int64_t *out;                  /* [k] */
    rap_drm_cuda_state *state;
    rap_drm_cuda_item *items, *other; /* [padded] each */
    int64_t n, k, padded;
    int64_t span;                         /* of the runs that are merged */
    int32_t difficulty_dtype, gain_dtype; /* rap_dtype */
    int32_t field, shift, bits;           /* of a digit: 0 difficulty, 1 gain, 2 rank */
    int32_t unused;
} rap_drm_cuda;

static_assert(sizeof(rap_drm_cuda) == 112, "launcher and kernel must agree");
static_assert(sizeof(rap_drm_cuda_item) == 24, "launcher and kernel must agree");
static_assert(sizeof(rap_drm_cuda_state) == 56 + 8 * RAP_DRM_CUDA_DIGITS,
              "launcher and kernel must agree");

/* Items of workspace, twice: whole tiles. */
static inline int64_t
rap_drm_cuda_padded(int64_t k)
{
    return rap_ceil_div(k, RAP_DRM_CUDA_TILE) * RAP_DRM_CUDA_TILE;
}

/* Digit number `step`; false: there are no more. A float32 has nothing below bit 32, an
 * index nothing above its length. */
static inline bool
rap_drm_cuda_digit(rap_drm_cuda *p, int step)
{
    const int width = RAP_DRM_CUDA_DIGIT_BITS;

    for (int field = 0; field < 3; field++) {
        const int dtype = field == 0 ? p->difficulty_dtype : p->gain_dtype;
        int top = field == 2 ? RAP_DRM_CUDA_RANK_BITS : 64;
        int low = field < 2 && dtype == RAP_F32 ? 32 : 0;

        while (field == 2 && top > width && p->n >> (top - width) == 0) {
            top -= width;
        }
        for (; top > low && (field != 1 || p->gain != NULL); top -= width) {
            if (step-- == 0) {
                p->field = field;
                p->bits = RAP_MIN(width, top);
                p->shift = top - p->bits;
                return true;
            }
        }
    }
    return false;
}

/* Blocks for a loop over n samples, items or pairs of items. */
static inline int64_t
rap_drm_cuda_grid(int64_t n, int64_t per_block)
{
    return RAP_MAX(1, RAP_MIN(rap_ceil_div(n, per_block), 2048));
}

#endif
