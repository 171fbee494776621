/* SPDX-License-Identifier: Apache-2.0 */
#include "gemm.h"

int64_t
rap_gemm_packed_size(const rap_kernels *kernels, int64_t n, int64_t k)
{
    return rap_ceil_div(n, kernels->gemm_nr) * kernels->gemm_nr * k;
}

/* Layout: K blocks outside, panels inside, so that rap_gemm walks it forwards. */
void
rap_gemm_pack(const rap_kernels *kernels, const void *b, rap_dtype dtype, int64_t ldb,
              int64_t n, int64_t k, float *packed, float *lines)
{
    const int nr = kernels->gemm_nr;
    const int64_t panels = rap_ceil_div(n, nr);
    const size_t size = rap_dtype_size(dtype);

    for (int64_t p = 0; p < panels; p++) {
        int64_t cols = RAP_MIN(nr, n - p * nr);
        const float *rows = lines;
        int64_t ld = k;

        if (dtype == RAP_F32) {
            rows = (const float *)b + p * nr * ldb;
            ld = ldb;
        }
        for (int64_t j = 0; j < cols && dtype != RAP_F32; j++) {
            kernels->widen((const char *)b + (size_t)((p * nr + j) * ldb) * size, dtype, k,
                           lines + j * k);
        }
        for (int64_t d = 0; d < k; d += RAP_GEMM_DEPTH) {
            int64_t depth = RAP_MIN(RAP_GEMM_DEPTH, k - d);

            kernels->gemm_pack(rows + d, ld, cols, depth,
                               packed + d * panels * nr + p * depth * nr);
        }
    }
}

void
rap_gemm(const rap_kernels *kernels, rap_gemm_panel *panel, const float *a, int64_t lda,
         int64_t m, const float *packed, int64_t n, int64_t k, float *c, int64_t ldc)
{
    const int nr = kernels->gemm_nr;
    const int64_t panels = rap_ceil_div(n, nr);

    for (int64_t d = 0; d < k; d += RAP_GEMM_DEPTH) {
        int64_t depth = RAP_MIN(RAP_GEMM_DEPTH, k - d);

        for (int64_t p = 0; p < panels; p++) {
            panel(a + d, lda, m, packed + d * panels * nr + p * depth * nr, depth, d > 0,
                  c + p * nr, ldc);
        }
    }
}
