/* SPDX-License-Identifier: Apache-2.0
 *
 * Included once per instruction set: which of n samples may be chosen, by the bits of their
 * difficulty, that order positive numbers. Samples with bits in [low, one) and allowed (NULL:
 * all) are hits; their places are written to `hit` in rising order, their number returned.
 * NaN, negative numbers and 0 have bits outside; no float mode changes that.
 *
 * 64 samples at a time: vectorised comparisons give a byte each, the bytes become the bits of
 * one word, and only the bits that are set cost a step.
 */

#include "drm_math.h"

#define DRM_WORD 64

static inline uint64_t
drm_bits(double x)
{
    uint64_t u;

    memcpy(&u, &x, sizeof(u));
    return u;
}

/* 64 bytes, each 0 or 1, as the bits of a word, the first lowest. The product moves eight
 * bytes' bits to its top byte without a carry. */
static inline uint64_t
drm_word(const uint8_t *in)
{
    uint64_t word = 0;

    for (int j = 0; j < 8; j++) {
        uint64_t eight = 0;

        for (int b = 0; b < 8; b++) {
            eight |= (uint64_t)in[8 * j + b]
                     << (8 * b); /* one load, on either endianness */
        }
        word |= (eight * UINT64_C(0x0102040810204080)) >> 56 << (8 * j);
    }
    return word;
}

/* Adds the places of what is in and allowed, of samples [i, i + DRM_WORD). */
static inline int64_t
drm_add(uint8_t *in, const uint8_t *allowed, int64_t i, int64_t n, int32_t *hit)
{
    int64_t hits = 0;

    if (allowed != NULL) {
#pragma omp simd
        for (int64_t j = 0; j < n; j++) {
            in[j] &= allowed[i + j] != 0;
        }
    }
    for (uint64_t word = drm_word(in); word != 0; word &= word - 1) {
        hit[hits++] = (int32_t)(i + __builtin_ctzll(word));
    }
    return hits;
}

static int64_t
drm_hits_f32(const float *difficulty, const uint8_t *allowed, int64_t n, uint64_t low,
             int32_t *restrict hit)
{
    const uint32_t least = (uint32_t)low, span = RAP_DRM_ONE_F32 - least;
    int64_t hits = 0;

    for (int64_t i = 0; i < n; i += DRM_WORD) {
        const int64_t here = RAP_MIN(DRM_WORD, n - i);
        uint8_t in[DRM_WORD] = {0};

#pragma omp simd
        for (int64_t j = 0; j < here; j++) {
            in[j] = rap_bits(difficulty[i + j]) - least < span;
        }
        hits += drm_add(in, allowed, i, here, hit + hits);
    }
    return hits;
}

static int64_t
drm_hits_f64(const double *difficulty, const uint8_t *allowed, int64_t n, uint64_t low,
             int32_t *restrict hit)
{
    const uint64_t span = RAP_DRM_ONE_F64 - low;
    int64_t hits = 0;

    for (int64_t i = 0; i < n; i += DRM_WORD) {
        const int64_t here = RAP_MIN(DRM_WORD, n - i);
        uint8_t in[DRM_WORD] = {0};

#pragma omp simd
        for (int64_t j = 0; j < here; j++) {
            in[j] = drm_bits(difficulty[i + j]) - low < span;
        }
        hits += drm_add(in, allowed, i, here, hit + hits);
    }
    return hits;
}
