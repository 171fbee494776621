# ruff: noqa: E501 -- texts of code stay whole
"""csrc/ace and the product under it. Known survivors of earlier lists come first."""

from __future__ import annotations

from ..mutant import Mutant

CHECK, PLAN = "csrc/ace/ace_check.c", "csrc/ace/ace_plan.c"
CPU, LINEAR = "csrc/ace/ace_cpu.c", "csrc/ace/ace_linear_cpu.c"
MATH, KERNEL = "csrc/ace/ace_math.h", "csrc/ace/ace_kernel.h"
GEMM, GEMM_KERNEL = "csrc/gemm/gemm_cpu.c", "csrc/gemm/gemm_kernel.h"

OPTIONS = ("tests/test_ace.py::test_every_option",)
GIVEN = ("tests/test_ace.py::test_given_log_sum_exps",)
WINDOWS = ("tests/test_ace.py::test_sliding_window_layers_with_given_log_sum_exps",)
PACKED = (
    "tests/test_ace.py::test_packed_samples_equal_single_ones",
    "tests/test_ace.py::test_packed_samples_with_masks_and_log_sum_exps",
)
REFUSED = ("tests/test_ace.py::test_wrong_shapes_and_settings",)
GUARDED = (
    "tests/test_guarded.py::test_kernels_stay_inside_their_memory_and_read_what_they_wrote",
)
STRIDES = ("tests/test_strides.py",)
LARGE = ("tests/test_ace.py::test_large_scores",)
SCALE = ("tests/test_ace.py::test_a_scale_of_0_is_even_attention",)
LONG = ("tests/test_ace.py::test_fault_24_long_sinks_and_vanishing_columns_stay_finite",)
BAD = ("tests/test_ace.py::test_fault_21_nan_and_inf_surface",)
SHORT = ("tests/test_ace.py::test_fault_23_short_and_empty_responses",)
ACCURATE = ("tests/test_ace.py::test_error_is_at_most_four_times_the_naive_one",)

ACE = (
    # --- those that lived at commit a64b6dc
    Mutant(
        "ace-start-beyond-own-end",
        CHECK,
        "start < 0 || start > end - before",
        "start < 0 || start > end",
        ("tests/test_ace.py::test_a_response_lies_inside_its_own_sample",),
    ),
    Mutant(
        "ace-offsets-not-checked-again",
        PLAN,
        "if (s->begin < 0 || s->length < 0 || s->length > ctx->a->q.shape[1] - s->begin\n"
        "        || s->start < 0 || s->start > s->length)",
        "if (s->begin < -1)",
        ("tests/test_guarded.py::test_fault_28_offsets_that_change_between_check_and_use",),
    ),
    Mutant(
        "ace-depth-blocks-not-added",
        PLAN,
        "depth, d > 0,",
        "depth, false,",
        ("tests/test_ace.py::test_heads_of_more_than_one_block_of_the_product",),
    ),
    Mutant(
        "ace-lse-without-gaps",
        PLAN,
        "head * lse->stride[0] + at * lse->stride[1]",
        "head * lse->shape[1] + at",
        STRIDES,
    ),
    Mutant(
        "ace-image-mask-without-gaps", PLAN, "[i * a->image_mask.stride[0]]", "[i]", STRIDES
    ),
    Mutant(
        "ace-linear-scratch-small",
        PLAN,
        "return 3 * ctx->dim;",
        "return 2 * ctx->dim;",
        GUARDED,
    ),
    Mutant(
        "ace-scale-0",
        MATH,
        "return scale2 != 0 ? o->scale / scale2 : 1 / (double)RAP_LOG2E;",
        "return o->scale / scale2;",
        SCALE,
    ),
    Mutant(
        "ace-query-rows-without-gaps",
        CPU,
        "*ld = q->stride[1];\n    if (q->dtype == RAP_F32)",
        "*ld = ctx->dim;\n    if (q->dtype == RAP_F32)",
        STRIDES,
    ),
    Mutant(
        "ace-no-stop-between-heads",
        CPU,
        "if (rap_should_stop(ctx->exec, worker)) {\n            return;\n        }\n"
        "        head_scores",
        "head_scores",
        (
            "tests/test_ace.py::"
            "test_fault_32_one_long_block_of_rows_is_left_between_two_heads",
        ),
    ),
    Mutant("ace-column-mask-without-gaps", CPU, "[at * mask->stride[0]]", "[at]", STRIDES),
    # --- what is checked
    Mutant(
        "ace-start-at-end-refused",
        CHECK,
        "start > end - before",
        "start >= end - before",
        SHORT,
    ),
    Mutant(
        "ace-negative-start",
        CHECK,
        "end < before || start < 0 || start",
        "end < before || start",
        ("tests/test_ace.py::test_a_response_lies_inside_its_own_sample",),
    ),
    Mutant(
        "ace-falling-offsets",
        CHECK,
        "end < before || start < 0",
        "start < 0",
        ("tests/test_ace.py::test_offsets_and_heads_that_do_not_fit",),
    ),
    Mutant(
        "ace-offsets-from-anywhere",
        CHECK,
        "rap_i64_at(&a->cu_seqlens, 0) != 0\n        || ",
        "false\n        || ",
        ("tests/test_ace.py::test_offsets_and_heads_that_do_not_fit",),
    ),
    Mutant(
        "ace-offsets-to-anywhere",
        CHECK,
        "rap_i64_at(&a->cu_seqlens, samples) != a->q.shape[1])",
        "rap_i64_at(&a->cu_seqlens, samples) > a->q.shape[1])",
        REFUSED,
    ),
    Mutant(
        "ace-heads-that-do-not-share",
        CHECK,
        "q->shape[0] % k->shape[0] != 0",
        "q->shape[0] < k->shape[0]",
        REFUSED,
    ),
    Mutant(
        "ace-keys-of-other-length",
        CHECK,
        "q->shape[1] != k->shape[1] || ",
        "q->shape[1] > k->shape[1] || ",
        ("tests/test_ace.py::test_offsets_and_heads_that_do_not_fit",),
    ),
    Mutant(
        "ace-lse-of-other-length",
        CHECK,
        "|| lse->shape[1] != a->q.shape[1]",
        "|| false",
        REFUSED,
    ),
    Mutant("ace-negative-scale", CHECK, " || o->scale < 0) {", ") {", REFUSED),
    Mutant("ace-sigma-0", CHECK, "o->sigma <= 0", "o->sigma < 0", REFUSED),
    Mutant(
        "ace-top-65", CHECK, "RAP_ACE_TOP < o->top", "RAP_ACE_TOP + 1 < o->top", REFUSED
    ),
    Mutant(
        "ace-mask-of-other-length",
        CHECK,
        "v->dtype == dtype && v->shape[0] == n",
        "v->dtype == dtype && v->shape[0] <= n",
        REFUSED,
    ),
    Mutant(
        "ace-outputs-not-checked",
        CHECK,
        "return size == elements && (dense || size == 0);",
        "return size <= elements;",
        ("tests/test_arrays.py::test_private_entry_points_refuse_wrong_outputs",),
    ),
    # --- rows and columns
    Mutant(
        "ace-window-one-more",
        MATH,
        "RAP_MIN(length, first + rap_ace_window(o, length))",
        "RAP_MIN(length, first + rap_ace_window(o, length) + 1)",
        OPTIONS,
    ),
    Mutant(
        "ace-key-window-one-more",
        MATH,
        "RAP_MAX(0, row - o->key_window + 1)",
        "RAP_MAX(0, row - o->key_window)",
        OPTIONS,
    ),
    Mutant(
        "ace-key-window-of-columns",
        MATH,
        "RAP_MIN(last, j + o->key_window)",
        "RAP_MIN(last, j + o->key_window - 1)",
        OPTIONS,
    ),
    Mutant(
        "ace-first-key-late",
        MATH,
        "RAP_MAX(start, row - rap_ace_window(o, length) + 1)",
        "RAP_MAX(start, row - rap_ace_window(o, length) + 2)",
        (
            "tests/test_ace.py::test_given_log_sum_exps_and_a_window_over_several_blocks_of_rows",
        ),
    ),
    Mutant(
        "ace-columns-mixed-up",
        MATH,
        "j < start ? RAP_ACE_PROMPT : RAP_ACE_RESPONSE",
        "j <= start ? RAP_ACE_PROMPT : RAP_ACE_RESPONSE",
        OPTIONS,
    ),
    Mutant(
        "ace-min-rows-one-more",
        MATH,
        "count < o->min_rows",
        "count <= o->min_rows",
        OPTIONS,
    ),
    Mutant(
        "ace-mask-turned",
        MATH,
        "count < o->min_rows || masked)",
        "count < o->min_rows || !masked)",
        OPTIONS,
    ),
    Mutant(
        "ace-no-sigma",
        MATH,
        "sum += (double)count * ln_sigma;",
        "sum += ln_sigma;",
        OPTIONS,
    ),
    Mutant(
        "ace-not-normalised",
        MATH,
        "return o->normalise ? sum / (double)count : sum;",
        "return sum / (double)count;",
        OPTIONS,
    ),
    Mutant(
        "ace-later-tie-wins",
        MATH,
        "return psi > best || (isnan",
        "return psi >= best || (isnan",
        ("tests/test_ace.py::test_equal_columns_and_nan",),
    ),
    Mutant(
        "ace-nan-does-not-win",
        MATH,
        "psi > best || (isnan(psi) && !isnan(best))",
        "psi > best",
        BAD,
    ),
    Mutant("ace-floor", MATH, "w < RAP_ACE_FLOOR ? RAP_ACE_FLOOR : w", "w", LONG),
    Mutant(
        "ace-inf-is-a-logarithm",
        MATH,
        "rap_logf(x) + (x - x)",
        "rap_logf(x)",
        (*BAD, "tests/test_ace.py::test_equal_columns_and_nan"),
    ),
    Mutant(
        "ace-max-forgets-nan",
        MATH,
        "return w > a || w != w ? w : a;",
        "return w > a ? w : a;",
        BAD,
    ),
    Mutant(
        "ace-rest-of-lse",
        MATH,
        "r.z = exp2(lse2 - r.shift);",
        "r.z = 1;",
        ("tests/test_ace.py::test_a_given_log_sum_exp_that_no_float32_holds",),
    ),
    # --- sums
    Mutant(
        "ace-piece-tail",
        CPU,
        "RAP_MIN(kernels->piece, n - j)",
        "kernels->piece",
        (*OPTIONS, *ACCURATE),
    ),
    Mutant(
        "ace-span-one-short",
        CPU,
        "x.n = x.row + 1 - x.key;",
        "x.n = x.row - x.key;",
        OPTIONS,
    ),
    Mutant(
        "ace-top-unsorted",
        CPU,
        "best[at - 1] < w[j]; at--",
        "best[at - 1] > w[j]; at--",
        OPTIONS,
    ),
    Mutant(
        "ace-top-skips-block",
        CPU,
        "<= best[top - 1]",
        "<= best[0]",
        ("tests/test_ace.py::test_the_largest_weights_of_long_rows",),
    ),
    Mutant(
        "ace-prompt-window",
        CPU,
        "x->row - s->start < window",
        "x->row - s->start <= window",
        OPTIONS,
    ),
    Mutant(
        "ace-renormalise-sign",
        CPU,
        "? log(w.sum) : 0, sums)",
        "? -log(w.sum) : 0, sums)",
        OPTIONS,
    ),
    Mutant("ace-entropy-of-sum", CPU, "stats[0] += log(w.sum) - ", "stats[0] -= ", OPTIONS),
    Mutant(
        "ace-image-of-other-sample",
        CPU,
        "ctx->image + s->begin + x.key",
        "ctx->image + x.key",
        PACKED,
    ),
    Mutant(
        "ace-mask-of-other-sample",
        CPU,
        "is_masked(ctx, s->begin + j)",
        "is_masked(ctx, j)",
        PACKED,
    ),
    Mutant(
        "ace-sums-not-cleared",
        CPU,
        "memset(sums, 0, (size_t)(s->length + 3) * sizeof(double));",
        "memset(sums, 0, (size_t)s->length * sizeof(double));",
        GUARDED,
    ),
    Mutant(
        "ace-one-group-lost",
        CPU,
        "for (int64_t g = 0; g < s->groups; g++)",
        "for (int64_t g = 0; g < RAP_MAX(1, s->groups - 1); g++)",
        ("tests/test_ace.py::test_error_is_at_most_four_times_the_naive_one",),
    ),
    Mutant(
        "ace-key-head-of-other-group",
        CPU,
        "head / ctx->group * s->packed_size",
        "head % (ctx->hq / ctx->group) * s->packed_size",
        OPTIONS,
    ),
    Mutant(
        "ace-freed-early",
        CPU,
        "&& rap_parallel(exec, ctx.tasks, group_task, &ctx, err)\n"
        "              && rap_parallel(exec, ctx.samples * ctx.fields, reduce_task, &ctx, "
        "err);\n\n    rap_ace_plan_free(&ctx);",
        "&& rap_parallel(exec, ctx.tasks, group_task, &ctx, err);\n\n"
        "    rap_ace_plan_free(&ctx);\n    ok = ok && rap_parallel(exec, ctx.samples * "
        "ctx.fields, reduce_task, &ctx, err);",
        GUARDED,
    ),
    Mutant(
        "ace-leak",
        PLAN,
        "rap_free(ctx->sums);\n",
        "",
        (
            "tests/test_limits.py::"
            "test_each_allocation_that_fails_is_a_memory_error_and_nothing_leaks",
        ),
    ),
    Mutant(
        "ace-sums-small",
        PLAN,
        "s->groups * (s->length + 3);\n        packed",
        "s->groups * (s->length + 2);\n        packed",
        GUARDED,
    ),
    Mutant(
        "ace-packed-small",
        PLAN,
        "s->packed_size = s->ld * ctx->dim;",
        "s->packed_size = s->length * ctx->dim;",
        GUARDED,
    ),
    Mutant(
        "ace-scratch-small",
        PLAN,
        "(2 * s->block_rows + 1) * s->ld",
        "2 * s->block_rows * s->ld",
        GUARDED,
    ),
    Mutant(
        "ace-sample-search",
        PLAN,
        "ctx->sample[middle].task_at <= task",
        "ctx->sample[middle].task_at < task",
        PACKED,
    ),
    Mutant(
        "ace-lse-as-float32",
        PLAN,
        "return lse->dtype == RAP_F32 ?",
        "return lse->dtype != RAP_F32 ?",
        GIVEN,
    ),
    # --- the linear form
    Mutant(
        "ace-linear-nothing-leaves",
        LINEAR,
        "if (j + window < s->length)",
        "if (false)",
        GIVEN,
    ),
    Mutant(
        "ace-linear-leaves-late",
        LINEAR,
        "if (j + window < s->length) {\n            suffix_add(ctx, s, head, j + window,",
        "if (j + window + 1 < s->length) {\n            suffix_add(ctx, s, head, j + window + 1,",
        GIVEN,
    ),
    Mutant(
        "ace-linear-lse-sign",
        LINEAR,
        "*lse += sign * rap_ace_lse",
        "*lse += rap_ace_lse",
        GIVEN,
    ),
    Mutant(
        "ace-linear-group",
        LINEAR,
        "&ctx->a->k, head / ctx->group,",
        "&ctx->a->k, 0,",
        GIVEN,
    ),
    Mutant(
        "ace-linear-start",
        LINEAR,
        "j >= s->start; j--",
        "j > s->start; j--",
        (*GIVEN, *GUARDED),
    ),
    Mutant(
        "ace-linear-not-cleared",
        LINEAR,
        "memset(suffix, 0, (size_t)ctx->dim * sizeof(double));",
        "memset(suffix, 0, (size_t)ctx->dim * sizeof(float));",
        GUARDED,
    ),
    # --- loops over keys
    Mutant(
        "ace-max-of-max",
        KERNEL,
        "m = x[j] > m ? x[j] : m;",
        "m = x[j] < m ? x[j] : m;",
        LARGE,
    ),
    Mutant(
        "ace-columns-shift-sign",
        KERNEL,
        "(double)ln_w[j] - shift",
        "(double)ln_w[j] + shift",
        OPTIONS,
    ),
    Mutant(
        "ace-log-max-first",
        KERNEL,
        "w[j] = rap_ace_exponent(scale2, s[j], shift2) - log2_z;\n        }\n        return;",
        "w[j] = rap_ace_larger(w[j], rap_ace_exponent(scale2, s[j], shift2) - log2_z);\n        }\n        return;",
        GUARDED,
    ),
    Mutant(
        "ace-suffix-sign",
        KERNEL,
        "sum[d] += sign * (double)x[d];",
        "sum[d] += (double)x[d];",
        GIVEN,
    ),
    # --- the product
    Mutant(
        "gemm-last-rows",
        GEMM_KERNEL,
        "for (; r < rows; r++)",
        "for (; r + 1 < rows; r++)",
        (*OPTIONS, *GUARDED),
    ),
    Mutant(
        "gemm-padding",
        GEMM_KERNEL,
        "j < cols ? b[j * ldb + d] : 0.0f",
        "b[j * ldb + d]",
        GUARDED,
    ),
    Mutant(
        "gemm-not-added",
        GEMM_KERNEL,
        "add ? c_r[j] + sum[r][j] : sum[r][j]",
        "sum[r][j]",
        ("tests/test_ace.py::test_heads_of_more_than_one_block_of_the_product",),
    ),
    Mutant(
        "gemm-depth-tail",
        GEMM,
        "int64_t depth = RAP_MIN(RAP_GEMM_DEPTH, k - d);\n\n            kernels",
        "int64_t depth = RAP_GEMM_DEPTH;\n\n            kernels",
        (*OPTIONS, *GUARDED),
    ),
)
