/* SPDX-License-Identifier: Apache-2.0
 *
 * Included once per instruction set, with MR and NR set so that MR x NR sums fill the
 * vector registers. Written as plain loops over constant bounds: gcc keeps `sum` in
 * registers (checked in the assembly: MR * NR / lanes FMAs a step, no spill).
 */

static void
gemm_pack(const float *b, int64_t ldb, int64_t cols, int64_t depth, float *panel)
{
    for (int64_t d = 0; d < depth; d++) {
        for (int64_t j = 0; j < RAP_NR; j++) {
            panel[d * RAP_NR + j] = j < cols ? b[j * ldb + d] : 0.0f;
        }
    }
}

static inline __attribute__((always_inline)) void
gemm_tile(const float *restrict a, int64_t lda, const float *restrict panel, int64_t depth,
          bool add, float *restrict c, int64_t ldc, const int rows)
{
    float sum[RAP_MR][RAP_NR];

    for (int r = 0; r < rows; r++) {
#pragma omp simd
        for (int j = 0; j < RAP_NR; j++) {
            sum[r][j] = 0.0f;
        }
    }
    for (int64_t d = 0; d < depth; d++) {
        const float *b_d = panel + d * RAP_NR;

#pragma GCC unroll 16
        for (int r = 0; r < rows; r++) {
            float a_rd = a[r * lda + d];

#pragma omp simd
            for (int j = 0; j < RAP_NR; j++) {
                sum[r][j] = RAP_FMA(a_rd, b_d[j], sum[r][j]);
            }
        }
    }
    for (int r = 0; r < rows; r++) {
        float *c_r = c + r * ldc;

#pragma omp simd
        for (int j = 0; j < RAP_NR; j++) {
            c_r[j] = add ? c_r[j] + sum[r][j] : sum[r][j];
        }
    }
}

/* One panel of NR columns against `rows` rows: full tiles, then single rows. */
static void
gemm_panel(const float *a, int64_t lda, int64_t rows, const float *panel, int64_t depth,
           bool add, float *c, int64_t ldc)
{
    int64_t r = 0;

    for (; r + RAP_MR <= rows; r += RAP_MR) {
        gemm_tile(a + r * lda, lda, panel, depth, add, c + r * ldc, ldc, RAP_MR);
    }
    for (; r + 2 <= rows; r += 2) {
        gemm_tile(a + r * lda, lda, panel, depth, add, c + r * ldc, ldc, 2);
    }
    for (; r < rows; r++) {
        gemm_tile(a + r * lda, lda, panel, depth, add, c + r * ldc, ldc, 1);
    }
}
