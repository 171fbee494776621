/* SPDX-License-Identifier: Apache-2.0
 *
 * CONTRACT: attention confidence of a response, from queries and keys.
 *
 *   A^h_ij = softmax_j(scale q_i . k_j), j <= i, query head h reading key head
 *   h / (Hq / Hkv); w_ij = mean or maximum of A^h_ij over heads, or each head alone;
 *   log psi_j = sum over rows i in I(j) of ln(sigma w_ij), divided by |I(j)| if
 *   `normalise`; log psi = max of log psi_j over candidate columns j; ties: least j.
 *   I(j): response rows i >= j, the first `window` of them if window > 0.
 *   Sliding-window layers: with key_window > 0 row i attends to keys j > i - key_window
 *   only, and I(j) holds only rows that can see j.
 *   Candidates: columns of the response, the prompt or both, allowed by column_mask and
 *   seen by at least min_rows rows. None: log psi = -inf, position = -1.
 *   `renormalise`: a row of w is divided by its sum (OPERA's form; for the mean it is 1).
 *   Means over response rows, from w rows that sum to 1: entropy -sum w ln w, mass of the
 *   `top` largest, mass on image tokens.
 *   Source: RAP (arXiv 2506.04755) section 3.2; rap/METHOD.md section 2.
 *
 * Shapes: q [Hq, L, D], k [Hkv, L, D] after rotary embedding, float32, bfloat16 or
 * float16, last dimension contiguous; S samples packed along L by cu_seqlens. F = Hq
 * for RAP_ACE_EACH, else 1. Answers: see rap_ace_args.
 *
 * How: response rows are taken in blocks; a head's scores for a block [rows, L] are
 * multiplied (gemm.h), turned into weights and folded over heads in place, so neither
 * L x L nor rows x L x H ever exists and each score is computed once. Given row
 * log-sum-exps, single heads need no scores at all: sum_i ln A_ij is linear,
 *   scale k_j . (sum_{i in I(j)} q_i) - sum_{i in I(j)} lse_i, O(L D)
 * (ace_linear_cpu.c and ace_linear_cuda.cu). On CUDA devices from sm_80 on, head mean and
 * maximum of 16-bit queries and keys never write a score (ace_tensor_cuda.cu).
 *
 * Precision: scores and weights float32; sums over rows float64. A head-mean weight below
 * 2^-126 counts as 2^-126 (ln = -87.3): log psi stays finite where float32 attention would
 * be 0. One head's e^(s - max) below 2^-126 counts as 0, so a mean just above 2^-126 may
 * lose up to 2^-126. Error at most 4x that of the float32 attention matrix,
 * tests/test_ace.py.
 *
 * Limits: NaN in a score that is computed makes the sample's log psi NaN: every key a
 * response row sees, or with `lse` given and without statistics the candidate columns
 * only. An empty response gives -inf and NaN statistics.
 */
#ifndef RAP_ACE_H
#define RAP_ACE_H

#include <assert.h>

#include "../cpu.h"

#define RAP_ACE_FLOOR 0x1p-126f
#define RAP_ACE_TOP 64                  /* largest `top` */
#define RAP_ACE_MOST (INT64_C(1) << 20) /* heads, dimensions; its square: all rows */
#define RAP_ACE_ROWS 24 /* blocks of rows are multiples of it: whole tiles everywhere */

enum { RAP_ACE_MEAN, RAP_ACE_MAX, RAP_ACE_EACH };
enum { RAP_ACE_RESPONSE = 1, RAP_ACE_PROMPT = 2, RAP_ACE_ALL = 3 };
enum { RAP_ACE_LOG_PSI, RAP_ACE_ENTROPY, RAP_ACE_TOP_MASS, RAP_ACE_IMAGE, RAP_ACE_OUTPUTS };

/* How psi is read off the attention: the caller's options, one struct on the way to the
 * kernels, on either side. */
typedef struct {
    double scale, sigma;
    int64_t min_rows;
    int64_t window;     /* rows of a column, 0: all */
    int64_t key_window; /* keys a row sees, 0: all before it */
    int32_t heads, columns, top;
    int32_t renormalise, normalise, want_stats; /* flags */
} rap_ace_options;

static_assert(sizeof(rap_ace_options) == 64, "launcher and kernel must agree");

typedef struct {
    rap_array q, k;           /* [Hq, L, D], [Hkv, L, D] */
    rap_array cu_seqlens;     /* int64 [S + 1] */
    rap_array response_start; /* int64 [S], inside the sample */
    rap_array column_mask;    /* bool [L]: true may be a candidate; or empty */
    rap_array image_mask;     /* bool [L]; or empty */
    rap_array lse; /* float32 or float64 [Hq, L] of the scaled scores; or empty */
    /* out, contiguous, F in the shape or not where it is 1: */
    rap_array summary;  /* float64 [OUTPUTS, S, F] */
    rap_array position; /* int64 [S, F]: column inside the sample, -1: none */
    rap_array psi;      /* float64 [F, L]: log psi_j, -inf: no candidate */
    rap_ace_options o;
} rap_ace_args;

/* `args` is a rap_ace_args: bindings call them through a table. */
bool rap_ace_check(const void *args, rap_error *err);
bool rap_ace_cpu(void *args, rap_exec *exec, rap_error *err);

/* On a CUDA device (ace_cuda.c): queued on the call's stream. cu_seqlens and response_start
 * are in host memory; masks may be, and are copied. */
struct rap_cuda_call;
int64_t rap_ace_device_bytes(const void *args);
bool rap_ace_device(void *args, struct rap_cuda_call *call, void *workspace,
                    rap_error *err);

#endif
