/* SPDX-License-Identifier: Apache-2.0
 *
 * Included once per instruction set: which of n samples may be chosen, by the bits of their
 * difficulty, that order positive numbers. Samples with bits in [low, one) and allowed (NULL:
 * all) are hits; their places are written to `hit` in rising order, their number returned.
 * NaN, negative numbers and 0 have bits outside; no float mode changes that.
 *
 * A stretch without a hit is passed over by one vectorised comparison. Where there are hits,
 * each sample writes its place and only hits advance: no branch to mispredict.
 */

#define DRM_STRETCH 256

static inline uint64_t
drm_bits(double x)
{
    uint64_t u;

    memcpy(&u, &x, sizeof(u));
    return u;
}

static int64_t
drm_hits_f32(const float *difficulty, const uint8_t *allowed, int64_t n, uint64_t low,
             int32_t *restrict hit)
{
    const uint32_t least = (uint32_t)low, span = 0x3f800000u - least;
    int64_t hits = 0;

    for (int64_t i = 0; i < n; i += DRM_STRETCH) {
        const int64_t end = RAP_MIN(n, i + DRM_STRETCH);
        uint32_t nearest = UINT32_MAX;

#pragma omp simd reduction(min : nearest)
        for (int64_t j = i; j < end; j++) {
            nearest = RAP_MIN(nearest, rap_bits(difficulty[j]) - least);
        }
        if (nearest >= span) {
            continue;
        }
        for (int64_t j = i; j < end; j++) {
            hit[hits] = (int32_t)j;
            hits += rap_bits(difficulty[j]) - least < span
                    && (allowed == NULL || allowed[j] != 0);
        }
    }
    return hits;
}

static int64_t
drm_hits_f64(const double *difficulty, const uint8_t *allowed, int64_t n, uint64_t low,
             int32_t *restrict hit)
{
    const uint64_t span = UINT64_C(0x3ff0000000000000) - low;
    int64_t hits = 0;

    for (int64_t i = 0; i < n; i += DRM_STRETCH) {
        const int64_t end = RAP_MIN(n, i + DRM_STRETCH);
        uint64_t nearest = UINT64_MAX;

#pragma omp simd reduction(min : nearest)
        for (int64_t j = i; j < end; j++) {
            nearest = RAP_MIN(nearest, drm_bits(difficulty[j]) - low);
        }
        if (nearest >= span) {
            continue;
        }
        for (int64_t j = i; j < end; j++) {
            hit[hits] = (int32_t)j;
            hits += drm_bits(difficulty[j]) - low < span
                    && (allowed == NULL || allowed[j] != 0);
        }
    }
    return hits;
}
