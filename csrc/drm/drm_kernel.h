/* SPDX-License-Identifier: Apache-2.0
 *
 * Included once per instruction set: the bucket of each of n samples, 0 for one that is
 * no candidate (see drm.h). NaN fails every comparison.
 */

static inline __attribute__((always_inline)) uint32_t
drm_bucket(double difficulty, uint8_t allowed)
{
    uint64_t bits;
    bool candidate = (difficulty > 0) & (difficulty < 1) & (allowed != 0);

    memcpy(&bits, &difficulty, sizeof(bits));
    /* the mask changes nothing; it holds even if the score changes under our hands */
    return candidate ? ((uint32_t)(bits >> 48) + 1) & (RAP_DRM_BUCKETS - 1) : 0;
}

static void
drm_buckets_f64(const double *restrict difficulty, const uint8_t *restrict allowed,
                int64_t n, uint32_t *restrict bucket)
{
    if (allowed == NULL) {
#pragma omp simd
        for (int64_t i = 0; i < n; i++) {
            bucket[i] = drm_bucket(difficulty[i], 1);
        }
        return;
    }
#pragma omp simd
    for (int64_t i = 0; i < n; i++) {
        bucket[i] = drm_bucket(difficulty[i], allowed[i]);
    }
}

static void
drm_buckets_f32(const float *restrict difficulty, const uint8_t *restrict allowed,
                int64_t n, uint32_t *restrict bucket)
{
    if (allowed == NULL) {
#pragma omp simd
        for (int64_t i = 0; i < n; i++) {
            bucket[i] = drm_bucket((double)difficulty[i], 1);
        }
        return;
    }
#pragma omp simd
    for (int64_t i = 0; i < n; i++) {
        bucket[i] = drm_bucket((double)difficulty[i], allowed[i]);
    }
}
