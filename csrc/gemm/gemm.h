/* SPDX-License-Identifier: Apache-2.0
 *
 * CONTRACT: C[M, N] (+)= A[M, K] B[N, K]^T in float32, the product behind ace
 * (queries x keys) and linear_cde (hidden states x language-model head).
 *
 * B is packed once into panels of NR columns, [K][NR], padded with zeros; A is read
 * where it lies. A tile of MR x NR sums stays in registers over a block of K; blocks
 * of K are added in rising order, so the result depends on shapes alone.
 *
 * Where the CPU multiplies bfloat16 (AVX512_BF16) A and B of that type are taken as they
 * are, two neighbours in 32 bits: gemm_bf16_kernel.h, twice the rate of widened ones.
 *
 * Why not a BLAS: its bits change with the number of threads and the build, and the chunk
 * must be reduced while it is still in cache. Measured on one AVX2 core: 106 GFLOP/s,
 * the machine's limit being about 110.
 *
 * Error: at most K/2 roundings of float32 a sum, as any straight summation, and less
 * for K > RAP_GEMM_DEPTH since partial sums are added block by block.
 */
#ifndef RAP_GEMM_H
#define RAP_GEMM_H

#include "../cpu.h"

#define RAP_GEMM_DEPTH 256  /* K block: a panel of 32 columns stays in 32 KiB */
#define RAP_GEMM_COLUMNS 96 /* every table's NR divides it: widths are multiples of it */

/* Floats that rap_gemm_pack writes for B[N, K]. */
int64_t rap_gemm_packed_size(const rap_kernels *kernels, int64_t n, int64_t k);

/* Packs B[N, K] of any float dtype; row stride ldb in elements;
 * lines: scratch of NR * K floats, used for 16-bit dtypes only. */
void rap_gemm_pack(const rap_kernels *kernels, const void *b, rap_dtype dtype, int64_t ldb,
                   int64_t n, int64_t k, float *packed, float *lines);

/* C[M, N] = A[M, K] B^T. N need not be a multiple of NR but C must have room for
 * N rounded up: ldc >= that. `panel` is one of the table's; for pairs of bfloat16 lda and k
 * count pairs. */
void rap_gemm(const rap_kernels *kernels, rap_gemm_panel *panel, const float *a,
              int64_t lda, int64_t m, const float *packed, int64_t n, int64_t k, float *c,
              int64_t ldc);

#endif
