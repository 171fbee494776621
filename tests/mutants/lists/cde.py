# ruff: noqa: E501 -- texts of code stay whole
"""csrc/cde. Known survivors of earlier lists come first."""

from __future__ import annotations

from ..mutant import Mutant

CHECK, CPU, LINEAR = (
    "csrc/cde/cde_check.c",
    "csrc/cde/cde_cpu.c",
    "csrc/cde/cde_linear_cpu.c",
)
KERNEL, MATH = "csrc/cde/cde_kernel.h", "csrc/cde/cde_math.h"

T = "tests/test_cde.py::"
STRIDES = ("tests/test_strides.py",)
GUARDED = (
    "tests/test_guarded.py::test_kernels_stay_inside_their_memory_and_read_what_they_wrote",
)
ACCURATE = (T + "test_error_is_at_most_four_times_the_naive_one",)
SIZES = (T + "test_logits_of_any_finite_size",)
DTYPES = (T + "test_every_dtype_is_its_own_float32",)
OFFSETS = (T + "test_a_common_offset_changes_nothing",)
MASKED = (T + "test_masked_tokens_are_outside_the_support",)
LINEAR_ACCURATE = (T + "test_linear_error_is_at_most_four_times_the_naive_one",)
SAME_BITS = (
    T + "test_linear_equals_cde_of_the_logits_and_threads_and_memory_change_no_bit",
)
RISING = (T + "test_large_vocabulary_and_rising_rows",)
BAD = (T + "test_fault_21_a_bad_logit_makes_its_row_nan_and_no_other",)
EQUAL = (T + "test_equal_rows_have_no_divergence",)

CDE = (
    # --- those that lived at commit a64b6dc
    Mutant(
        "cde-no-vocabulary",
        CHECK,
        "if (a->shape[1] < 1) {",
        "if (a->shape[1] < 0) {",
        (T + "test_rows_without_a_logit_are_refused",),
    ),
    Mutant(
        "cde-targets-without-gaps", CPU, "[row * a->targets.stride[0]]", "[row]", STRIDES
    ),
    Mutant(
        "cde-large-logits",
        MATH,
        "#define RAP_CDE_COMMON 1e6",
        "#define RAP_CDE_COMMON 1e30",
        SIZES,
    ),
    Mutant(
        "cde-mix-of-special-float16",
        KERNEL,
        "!isfinite(js + tv) || !cde_plain(l1, n, dtype) || !cde_plain(l0, n, dtype)",
        "!isfinite(js + tv)",
        (T + "test_float16_with_masked_tokens_has_the_bits_of_its_float32",),
    ),
    Mutant(
        "cde-reference-not-corrected",
        KERNEL,
        "(float)(log2(z) + (m - (double)norm.m) * (double)RAP_LOG2E)",
        "(float)log2(z)",
        OFFSETS,
    ),
    # --- targets
    Mutant(
        "cde-target-not-checked-again",
        CPU,
        "if (target >= 0 && target < a->logits1.shape[1]) {",
        "if (true) {",
        (
            "tests/test_guarded.py::"
            "test_fault_28_a_target_of_cde_that_changes_during_the_call",
        ),
    ),
    Mutant(
        "cde-target-at-end",
        CHECK,
        "target < 0 || target >= vocab",
        "target < 0 || target > vocab",
        (T + "test_targets_are_checked",),
    ),
    Mutant(
        "cde-negative-target",
        CHECK,
        "target < 0 || target >= vocab",
        "target >= vocab",
        (T + "test_targets_are_checked",),
    ),
    Mutant(
        "cde-targets-of-other-length",
        CHECK,
        "|| targets->shape[0] != rows)",
        "|| targets->shape[0] > rows)",
        ("tests/test_cde.py::test_targets_are_checked",),
    ),
    Mutant(
        "cde-shapes-differ",
        CHECK,
        "a->shape[0] != b->shape[0] || a->shape[1] != b->shape[1]",
        "a->shape[0] > b->shape[0] || a->shape[1] != b->shape[1]",
        (T + "test_branches_of_other_shapes_are_refused",),
    ),
    Mutant(
        "cde-vocabularies-differ",
        CHECK,
        "a->shape[0] != b->shape[0] || a->shape[1] != b->shape[1]",
        "a->shape[0] != b->shape[0] || a->shape[1] > b->shape[1]",
        (T + "test_branches_of_other_shapes_are_refused",),
    ),
    Mutant(
        "cde-bias-of-other-length",
        CHECK,
        "bias->shape[0] != w->shape[0]",
        "false",
        (T + "test_linear_rejects_what_does_not_fit",),
    ),
    Mutant(
        "cde-softcap-subnormal",
        CHECK,
        "(float)a->softcap < RAP_FLOAT_TINY",
        "false",
        (T + "test_linear_rejects_what_does_not_fit",),
    ),
    Mutant(
        "cde-out-not-checked",
        CHECK,
        "|| out->shape[1] != rows)",
        "|| out->shape[1] > rows)",
        ("tests/test_arrays.py::test_private_entry_points_refuse_wrong_outputs",),
    ),
    # --- from sums to answers
    Mutant(
        "cde-kl-sign",
        MATH,
        "(st->s1 / st->z1 - lnz1 + lnz0)",
        "(st->s1 / st->z1 - lnz0 + lnz1)",
        ACCURATE,
    ),
    Mutant(
        "cde-rkl-is-kl",
        MATH,
        "(lnz1 - lnz0 - st->s0 / st->z0)",
        "(st->s0 / st->z0 - lnz1 + lnz0)",
        ACCURATE,
    ),
    Mutant(
        "cde-jeffreys-half",
        MATH,
        "value[RAP_CDE_JEFFREYS] = kl + rkl;",
        "value[RAP_CDE_JEFFREYS] = 0.5 * (kl + rkl);",
        ACCURATE,
    ),
    Mutant(
        "cde-js-in-bits",
        MATH,
        "rap_cde_divergence(unit * st->js, RAP_LN2)",
        "rap_cde_divergence(st->js, RAP_LN2)",
        ACCURATE,
    ),
    Mutant("cde-tv-twice", KERNEL, "st->tv += 0.5 * tv;", "st->tv += tv;", ACCURATE),
    Mutant(
        "cde-hellinger-without-root",
        MATH,
        "1 - st->b / sqrt(st->z1 * st->z0)",
        "1 - st->b / (st->z1 * st->z0)",
        ACCURATE,
    ),
    Mutant(
        "cde-entropies-swapped",
        MATH,
        "lnz0 - st->u0 / st->z0",
        "lnz1 - st->u1 / st->z1",
        ACCURATE,
    ),
    Mutant(
        "cde-logp-without-reference",
        MATH,
        "st->target1 - st->m1 - unit * lnz1",
        "st->target1 - unit * lnz1",
        ACCURATE,
    ),
    Mutant(
        "cde-slack-not-clamped",
        MATH,
        "if (value < 0 && value > -RAP_CDE_SLACK) {",
        "if (false) {",
        (
            *EQUAL,
            "tests/test_csrc.py::test_a_divergence_is_clamped_within_its_error_bound_only",
        ),
    ),
    Mutant(
        "cde-clamped-whatever",
        MATH,
        "if (value < 0 && value > -RAP_CDE_SLACK) {",
        "if (value < 0) {",
        ("tests/test_csrc.py::test_a_divergence_is_clamped_within_its_error_bound_only",),
    ),
    Mutant(
        "cde-want-ignored",
        MATH,
        "if (want & RAP_CDE_BIT(i)) {",
        "if (true) {",
        ("tests/test_cde.py::test_only_what_is_wanted_is_written",),
    ),
    # --- references and blocks
    Mutant(
        "cde-headroom",
        MATH,
        "#define RAP_CDE_HEADROOM 2.0f",
        "#define RAP_CDE_HEADROOM 60.0f",
        (T + "test_a_peak_that_comes_late_costs_no_precision",),
    ),
    Mutant("cde-raise-shift", MATH, "shift = d1 - d0;", "shift = d0 - d1;", RISING),
    Mutant("cde-raise-entropy", MATH, "a1 * (st->u1 - d1 * st->z1)", "a1 * st->u1", RISING),
    Mutant(
        "cde-raise-hellinger",
        MATH,
        "exp2(-0.5 * (d1 + d0))",
        "exp2(-(d1 + d0))",
        (T + "test_a_common_peak_that_comes_late_keeps_what_came_before",),
    ),
    Mutant(
        "cde-raise-infinite",
        MATH,
        "isinf(st->s1) ? st->s1 : ",
        "",
        (T + "test_an_infinite_divergence_stays_infinite_when_the_maximum_rises",),
    ),
    Mutant(
        "cde-base-of-nothing", MATH, "return m == -INFINITY ? 0 : m;", "return m;", MASKED
    ),
    Mutant("cde-last-logit-lost", KERNEL, "if (whole < n) {", "if (false) {", ACCURATE),
    Mutant(
        "cde-piece-tail",
        KERNEL,
        "RAP_MIN(RAP_PIECE, whole - v)",
        "RAP_PIECE",
        (*ACCURATE, *GUARDED),
    ),
    Mutant(
        "cde-float16-factor",
        KERNEL,
        "((dtype) == RAP_F16 ? 0x1p112f : 1.0f)",
        "((dtype) == RAP_F16 ? 0x1p111f : 1.0f)",
        DTYPES,
    ),
    Mutant("cde-float16-special", KERNEL, "return most < 0x7c00;", "return true;", DTYPES),
    Mutant(
        "cde-neighbours-swapped",
        KERNEL,
        "two = i == 0 ? ",
        "two = i == 1 ? ",
        (*DTYPES, *ACCURATE),
        equivalent="both branches swap alike, and sums over a row ask for no order",
    ),
    Mutant(
        "cde-exact-not-taken",
        KERNEL,
        "if (!rap_cde_is_common(st->m1, st->m0) || !isfinite(add.s1 + add.s0 + add.u1 + add.u0))",
        "if (!rap_cde_is_common(st->m1, st->m0))",
        MASKED,
    ),
    Mutant(
        "cde-zero-times-inf",
        KERNEL,
        "add->s1 += e1 == 0 ? 0 : e1 * (x1 - x0);",
        "add->s1 += e1 * (x1 - x0);",
        MASKED,
    ),
    Mutant(
        "cde-js-of-zero",
        KERNEL,
        "js_sum += p1 == 0 ? 0 : p1 * (a1 - ln_mix);",
        "js_sum += p1 * (a1 - ln_mix);",
        MASKED,
    ),
    Mutant(
        "cde-mix-not-half",
        KERNEL,
        "rap_log2f(0.5f * (p1 + p0))",
        "rap_log2f(p1 + p0)",
        ACCURATE,
    ),
    Mutant(
        "cde-second-pass-left", CPU, "a->want & RAP_CDE_NEEDS_MIX ? 2 : 1", "1", ACCURATE
    ),
    Mutant(
        "cde-mixed-tail",
        CPU,
        "RAP_MIN(RAP_CDE_BLOCK, vocab - v)",
        "RAP_CDE_BLOCK",
        (*DTYPES, *GUARDED),
    ),
    # --- hidden states
    Mutant(
        "cde-bias-in-second-chunk",
        LINEAR,
        "(ctx->begin + v) * a->bias.stride[0]",
        "v * a->bias.stride[0]",
        LINEAR_ACCURATE,
    ),
    Mutant(
        "cde-bias-without-gaps",
        LINEAR,
        "(ctx->begin + v) * a->bias.stride[0]",
        "(ctx->begin + v)",
        STRIDES,
    ),
    Mutant(
        "cde-softcap-before-scale",
        KERNEL,
        "if (scale != 1.0f) {",
        "if (scale != 1.0f && softcap == 0) {",
        LINEAR_ACCURATE,
    ),
    Mutant(
        "cde-other-branch",
        LINEAR,
        "branch == 0 && rap_cde_reads(a->want, 1)",
        "branch == 0",
        (T + "test_what_reads_one_branch_multiplies_that_branch",),
    ),
    Mutant(
        "cde-target-in-first-chunk",
        LINEAR,
        "if (at >= 0 && at < ctx->n) {",
        "if (at >= 0 && at <= ctx->n) {",
        (
            "tests/test_guarded.py::test_fault_28_a_target_of_linear_cde_that_changes_during_the_call",
        ),
    ),
    Mutant(
        "cde-kept-rows-of-other-block",
        LINEAR,
        "&ctx->states[ctx->first + at]",
        "&ctx->states[at]",
        SAME_BITS,
    ),
    Mutant(
        "cde-last-block",
        LINEAR,
        "ctx.tokens = RAP_MIN(ctx.block_rows, tokens - ctx.first);",
        "ctx.tokens = ctx.block_rows;",
        (*GUARDED, *SAME_BITS),
    ),
    Mutant(
        "cde-odd-pairs",
        LINEAR,
        "&& x->shape[1] % 2 == 0 && x->stride[0] % 2 == 0",
        "&& x->shape[1] % 2 == 0",
        (T + "test_bfloat16_products_are_as_exact_as_those_of_float32",),
        equivalent="only where the processor multiplies bfloat16 (AVX512_BF16); lives on others",
    ),
    Mutant(
        "cde-chunk-tail",
        LINEAR,
        "ctx->n = RAP_MIN(RAP_LINEAR_CHUNK, vocab - ctx->begin);",
        "ctx->n = RAP_LINEAR_CHUNK;",
        (*LINEAR_ACCURATE, *GUARDED),
    ),
    Mutant(
        "cde-bias-small",
        LINEAR,
        "rap_alloc(4 * RAP_LINEAR_CHUNK, err)",
        "rap_alloc(RAP_LINEAR_CHUNK, err)",
        GUARDED,
    ),
    Mutant(
        "cde-scratch-small",
        LINEAR,
        "ctx->rows * (2 * RAP_LINEAR_CHUNK + depth)",
        "ctx->rows * 2 * RAP_LINEAR_CHUNK",
        GUARDED,
    ),
    Mutant(
        "cde-leak",
        LINEAR,
        "rap_free(ctx.states);\n",
        "",
        (
            "tests/test_limits.py::"
            "test_each_allocation_that_fails_is_a_memory_error_and_nothing_leaks",
        ),
    ),
    Mutant(
        "cde-tanh-near-0",
        MATH,
        "return a < 0.625f ? q : far;",
        "return a < 1.625f ? q : far;",
        LINEAR_ACCURATE,
    ),
)
