/* SPDX-License-Identifier: Apache-2.0
 *
 * CONTRACT: divergences between two next-token distributions, row by row.
 *
 *   p1 = softmax(l1), p0 = softmax(l0) over V logits, natural logarithms;
 *   kl = KL(p1 || p0), rkl = KL(p0 || p1), jeffreys = kl + rkl,
 *   js (<= ln 2), tv (<= 1), hellinger2 = 1 - sum sqrt(p1 p0), entropies of both,
 *   logp1, logp0: log-probability of a target token under each.
 *   Source: RAP (arXiv 2506.04755) section 3.1; rap/METHOD.md section 1.
 *
 * Shapes: logits [T, V] in float32, bfloat16 or float16, last dimension contiguous, any
 * row stride; or hidden [T, E] x head [V, E] (rap_linear_cde). Answers: float64 [T].
 *
 * One online sweep over the row, piece by piece, keeps per branch a reference m
 * near the maximum and Z = sum e^x, U = sum e^x x, and S1 = sum e^x1 (x1 - x0),
 * S0 = sum e^x0 (x1 - x0), B = sum e^((x1 + x0)/2), with x = l - m:
 *   kl = S1/Z1 - ln Z1 + ln Z0     rkl = ln Z1 - ln Z0 - S0/Z0
 *   H = ln Z - U/Z                 hellinger2 = 1 - B / sqrt(Z1 Z0)
 * The code takes x in units of log2 (hd.h) and divides by RAP_LOG2E at the end.
 * js and tv need both log-sum-exps first: a second sweep (cde_mix), only if asked for.
 *
 * Precision: terms and sums of a piece (isa/table.h) in float32, sums of pieces in
 * float64. Error at most 4x that of the float32 log_softmax formula over rows of a kind,
 * held against float64 by tests/test_cde.py; of one row at most what a lane's 64 additions
 * can lose, tests/test_fuzz_kernels.py. A divergence that rounding leaves outside its
 * range by less than RAP_CDE_SLACK is set to the end of it; anything further out is left
 * to be seen.
 *
 * Limits: -inf is a token outside the support (0 log 0 = 0; kl = inf where p1 > 0 = p0);
 * infinite divergences are equal: +inf, above every finite one, whatever mass is outside.
 * NaN or +inf in a row makes NaN of all that reads its branch. V >= 1.
 */
#ifndef RAP_CDE_H
#define RAP_CDE_H

#include <assert.h>

#include "../cpu.h"

#define RAP_CDE_BLOCK 2048 /* of branches that differ in dtype; 2 x 8 KiB: stays in L1 */
#define RAP_CDE_SLACK 1e-5

enum {
    RAP_CDE_KL,
    RAP_CDE_RKL,
    RAP_CDE_JEFFREYS,
    RAP_CDE_JS,
    RAP_CDE_TV,
    RAP_CDE_HELLINGER2,
    RAP_CDE_ENTROPY1,
    RAP_CDE_ENTROPY0,
    RAP_CDE_LOGP1,
    RAP_CDE_LOGP0,
    RAP_CDE_OUTPUTS
};

/* Bits of `want`: which outputs. */
#define RAP_CDE_BIT(output) (1u << (output))
#define RAP_CDE_NEEDS_MIX (RAP_CDE_BIT(RAP_CDE_JS) | RAP_CDE_BIT(RAP_CDE_TV))
#define RAP_CDE_NEEDS_ENTROPY \
    (RAP_CDE_BIT(RAP_CDE_ENTROPY1) | RAP_CDE_BIT(RAP_CDE_ENTROPY0))

/* Whether an answer that is wanted reads branch 1 or 0, and how many branches are read: at
 * least one. */
static inline bool
rap_cde_reads(unsigned want, int branch)
{
    const unsigned of1 = RAP_CDE_BIT(RAP_CDE_ENTROPY1) | RAP_CDE_BIT(RAP_CDE_LOGP1);
    const unsigned of0 = RAP_CDE_BIT(RAP_CDE_ENTROPY0) | RAP_CDE_BIT(RAP_CDE_LOGP0);

    return (want & ~(branch == 1 ? of0 : of1)) != 0;
}

static inline int
rap_cde_branches(unsigned want)
{
    return rap_cde_reads(want, 1) && rap_cde_reads(want, 0) ? 2 : 1;
}

typedef struct rap_cde_state {
    double m1, m0; /* references; -inf before a finite logit */
    double z1, z0, s1, s0, u1, u0, b;
    double target1, target0; /* logits of the target token; NaN until met */
    double js, tv;           /* second sweep; js in log2 units */
} rap_cde_state;

static_assert(sizeof(rap_cde_state) == 13 * sizeof(double),
              "launcher and kernel must agree");

typedef struct {
    rap_array logits1, logits0; /* [T, V] */
    rap_array targets;          /* int64 [T], or data == NULL */
    rap_array out;              /* float64 [OUTPUTS, T] */
    unsigned want;
} rap_cde_args;

typedef struct {
    rap_array hidden1, hidden0; /* [T, E] */
    rap_array weight;           /* [V, E] */
    rap_array bias;             /* [V], or data == NULL */
    rap_array targets;          /* int64 [T], or data == NULL */
    rap_array out;              /* float64 [OUTPUTS, T] */
    double scale;               /* logits = softcap tanh(scale (h W^T + bias) / softcap) */
    double softcap;             /* 0: none */
    int64_t memory; /* bytes of float32 logits kept at a time, about: a row at least */
    unsigned want;
} rap_linear_cde_args;

typedef struct {
    rap_array answers;    /* float64 [OUTPUTS, T] */
    rap_array weights;    /* float32 or float64 [T], or data == NULL: all 1 */
    rap_array cu_seqlens; /* int64 [S + 1] */
    rap_array out;        /* float64 [OUTPUTS, S] */
    unsigned want;
} rap_cde_means_args;

/* `args` is the struct above of the same name: bindings call them through a table. */
bool rap_cde_check(const void *args, rap_error *err);
bool rap_cde_cpu(void *args, rap_exec *exec, rap_error *err);
bool rap_linear_cde_check(const void *args, rap_error *err);
bool rap_linear_cde_cpu(void *args, rap_exec *exec, rap_error *err);

/* On a CUDA device (cde_cuda.c): queued on the call's stream. Targets in host memory are
 * range-checked and copied; of targets on the device, one out of range makes NaN. */
struct rap_cuda_call;
int64_t rap_cde_device_bytes(const void *args); /* of workspace */
bool rap_cde_device(void *args, struct rap_cuda_call *call, void *workspace,
                    rap_error *err);
int64_t rap_linear_cde_device_bytes(const void *args);
bool rap_linear_cde_device(void *args, struct rap_cuda_call *call, void *workspace,
                           rap_error *err);

/* Weighted means of rows over packed samples, as sample_means of rap/reference.py, in
 * cde_means_cuda.c. Offsets and weights on the device are not checked before: a sample that
 * is not inside [0, T], or with a weight that is no number >= 0, is NaN. */
bool rap_cde_means_check(const void *args, rap_error *err);
int64_t rap_cde_means_device_bytes(const void *args);
bool rap_cde_means_device(void *args, struct rap_cuda_call *call, void *workspace,
                          rap_error *err);

#endif
