/* SPDX-License-Identifier: Apache-2.0
 *
 * The kernel table: one const struct per instruction set, filled by
 * isa/kernels_<isa>.c from the same plain C loops. rap_cpu_table picks the best one
 * this processor runs; RAP_ISA=<name> (or a test) forces another.
 *
 * To add a kernel: one line here, one in isa/table.h, and the kernel module it belongs to.
 */
#ifndef RAP_CPU_H
#define RAP_CPU_H

#include "rap.h"

struct rap_cde_state; /* cde/cde.h */

typedef void rap_gemm_panel(const float *a, int64_t lda, int64_t rows, const float *panel,
                            int64_t depth, bool add, float *c, int64_t ldc);

typedef struct rap_kernels {
    const char *name;
    int piece; /* terms summed in float32 before float64 */

    /* n values of dtype f32, f16 or bf16 -> float */
    void (*widen)(const void *src, rap_dtype dtype, int64_t n, float *dst);

    /* gemm/gemm.h */
    int gemm_nr;
    void (*gemm_pack)(const float *b, int64_t ldb, int64_t cols, int64_t depth,
                      float *panel);
    rap_gemm_panel *gemm_panel;
    rap_gemm_panel *gemm_panel_bf16; /* NULL or gemm/gemm_bf16_kernel.h */

    /* cde/cde.h */
    void (*cde_sweep)(const void *l1, const void *l0, rap_dtype dtype, int64_t n,
                      unsigned want, struct rap_cde_state *state);
    void (*cde_mix)(const void *l1, const void *l0, rap_dtype dtype, int64_t n,
                    unsigned want, struct rap_cde_state *state);
    void (*cde_map)(float *logits, int64_t n, const float *bias, float scale,
                    float softcap);

    /* ace/ace_kernel.h */
    float (*ace_max)(const float *x, int64_t n);
    float (*ace_sum_exp)(const float *s, int64_t n, float scale2, float shift2);
    float (*ace_exp)(float *s, int64_t n, float scale2, float shift2);
    void (*ace_add)(float *w, const float *e, int64_t n, float factor, bool first);
    void (*ace_log_max)(float *w, const float *s, int64_t n, float scale2, float shift2,
                        float log2_z, bool first);
    void (*ace_ln)(float *ln_w, const float *w, int64_t n);
    void (*ace_columns)(double *column, const float *ln_w, int64_t n, double shift);
    void (*ace_suffix_add)(double *sum, const float *x, int64_t n, double sign);
    double (*ace_suffix_dot)(const double *suffix, const float *k, int64_t n);
    float (*ace_dot)(const float *w, const float *x, int64_t n);

    /* drm/drm_kernel.h */
    int64_t (*drm_hits_f32)(const float *difficulty, const uint8_t *allowed, int64_t n,
                            uint64_t low, int32_t *hit);
    int64_t (*drm_hits_f64)(const double *difficulty, const uint8_t *allowed, int64_t n,
                            uint64_t low, int32_t *hit);
} rap_kernels;

/* The table called name, or the best one for name == NULL; NULL if this processor
 * cannot run it or it was not built. */
const rap_kernels *rap_cpu_table(const char *name);

/* Names of all tables this processor can run, best first; returns how many. */
int rap_cpu_names(const char **names, int most);

#endif
