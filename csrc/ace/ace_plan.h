/* SPDX-License-Identifier: Apache-2.0
 *
 * How an ace call on the CPU is cut into tasks, and what the files that run them share:
 * ace_plan.c plans, packs the keys and multiplies a block; ace_cpu.c runs the blocks;
 * ace_linear_cpu.c is the linear form.
 */
#ifndef RAP_ACE_PLAN_H
#define RAP_ACE_PLAN_H

#include "ace_math.h"

#define RAP_ACE_BLOCK 98304 /* floats of scores a block: with the weights, inside L2 */
#define RAP_ACE_GROUPS 64   /* groups a sample, at most: bounds the partial sums */

typedef struct {
    int64_t begin, length, start; /* start of the response, inside the sample */
    int64_t block_rows, blocks, groups, ld;
    int64_t task_at;                /* its first task */
    int64_t sums_at;                /* doubles */
    int64_t packed_at, packed_size; /* floats; size of one key head */
} ace_sample;

typedef struct {
    const rap_ace_args *a;
    rap_exec *exec;
    int64_t samples, fields, tasks;
    int64_t hq, group, dim; /* group: query heads a key head */
    float scale2;           /* scale in units of log2 */
    double unit;            /* from those units back: scale / scale2 */
    double ln_sigma;
    bool linear;
    ace_sample *sample; /* [S] */
    float *packed;
    float *image; /* [L] 0 or 1, or NULL */
    double *sums; /* a task: [length] column sums, then three statistics */
    float *scratch;
    int64_t scratch_size; /* floats a worker */
} ace_ctx;

bool rap_ace_plan(const rap_ace_args *a, rap_exec *exec, ace_ctx *ctx, rap_error *err);
void rap_ace_plan_free(ace_ctx *ctx);
const ace_sample *rap_ace_sample_of(const ace_ctx *ctx, int64_t task);

bool rap_ace_pack(ace_ctx *ctx, rap_error *err);

/* scores[rows, keys] = q[rows, D] . k of columns [key, key + keys); key is a multiple
 * of the panel width. */
void rap_ace_scores(const ace_ctx *ctx, const float *q, int64_t ldq, int64_t rows,
                    const float *packed, const ace_sample *s, int64_t key, int64_t keys,
                    float *scores, int64_t ld);

/* The given log-sum-exp of a head's row, `at` counted along the packed sequence. */
double rap_ace_lse(const ace_ctx *ctx, int64_t head, int64_t at);

static inline bool
rap_ace_lse_given(const ace_ctx *ctx)
{
    return ctx->a->lse.data != NULL;
}

/* Column sums of one head from suffix sums of the queries, O(L D). */
void rap_ace_linear(const ace_ctx *ctx, const ace_sample *s, int64_t head, float *scratch,
                    double *sums);

#endif
