/* SPDX-License-Identifier: Apache-2.0
 *
 * Included once per instruction set: n float16 or bfloat16 (or float32) -> float32.
 */

static void
widen(const void *src, rap_dtype dtype, int64_t n, float *restrict dst)
{
    const uint16_t *restrict half = src;

    if (dtype == RAP_BF16) {
#pragma omp simd
        for (int64_t i = 0; i < n; i++) {
            dst[i] = rap_bf16_to_f32(half[i]);
        }
    }
    else if (dtype == RAP_F16) {
#pragma omp simd
        for (int64_t i = 0; i < n; i++) {
            dst[i] = rap_f16_to_f32(half[i]);
        }
    }
    else {
        memcpy(dst, src, (size_t)n * sizeof(float));
    }
}
