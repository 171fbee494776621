/* SPDX-License-Identifier: Apache-2.0
 *
 * The bfloat16 form of gemm_kernel.h: the same panels, where every 32 bits of A and B hold
 * two neighbours along K in bfloat16 and one instruction (AVX512_BF16) multiplies and adds
 * both.
 * Intrinsics because no compiler makes vdpbf16ps of a loop. Products of bfloat16 are exact
 * in float32 and sums are rounded to nearest, so the error bound of gemm.h holds; subnormal
 * inputs count as 0.
 */

#define GEMM_BF16 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")))

static inline GEMM_BF16 __attribute__((always_inline)) void
gemm_tile_bf16(const float *a, int64_t lda, const float *panel, int64_t depth, bool add,
               float *c, int64_t ldc, const int rows)
{
    __m512 sum[RAP_MR][2];

    for (int r = 0; r < rows; r++) {
        sum[r][0] = sum[r][1] = _mm512_setzero_ps();
    }
    for (int64_t d = 0; d < depth; d++) {
        __m512bh b0 = (__m512bh)_mm512_loadu_ps(panel + d * RAP_NR);
        __m512bh b1 = (__m512bh)_mm512_loadu_ps(panel + d * RAP_NR + 16);

#pragma GCC unroll 16
        for (int r = 0; r < rows; r++) {
            __m512bh a_rd = (__m512bh)_mm512_set1_ps(a[r * lda + d]);

            sum[r][0] = _mm512_dpbf16_ps(sum[r][0], a_rd, b0);
            sum[r][1] = _mm512_dpbf16_ps(sum[r][1], a_rd, b1);
        }
    }
    for (int r = 0; r < rows; r++) {
        for (int j = 0; j < 2; j++) {
            float *c_rj = c + r * ldc + 16 * j;

            _mm512_storeu_ps(c_rj, add ? _mm512_add_ps(_mm512_loadu_ps(c_rj), sum[r][j])
                                       : sum[r][j]);
        }
    }
}

static GEMM_BF16 void
gemm_panel_bf16(const float *a, int64_t lda, int64_t rows, const float *panel,
                int64_t depth, bool add, float *c, int64_t ldc)
{
    int64_t r = 0;

    for (; r + RAP_MR <= rows; r += RAP_MR) {
        gemm_tile_bf16(a + r * lda, lda, panel, depth, add, c + r * ldc, ldc, RAP_MR);
    }
    for (; r + 2 <= rows; r += 2) {
        gemm_tile_bf16(a + r * lda, lda, panel, depth, add, c + r * ldc, ldc, 2);
    }
    for (; r < rows; r++) {
        gemm_tile_bf16(a + r * lda, lda, panel, depth, add, c + r * ldc, ldc, 1);
    }
}
