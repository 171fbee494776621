# ruff: noqa: E501 -- texts of code stay whole
"""csrc/drm."""

from __future__ import annotations

from ..mutant import Mutant

CHECK, CPU, ORDER = "csrc/drm/drm_check.c", "csrc/drm/drm_cpu.c", "csrc/drm/drm_order.c"
SORT, KERNEL, MATH = "csrc/drm/drm_sort.c", "csrc/drm/drm_kernel.h", "csrc/drm/drm_math.h"
PLAN = "csrc/drm/drm_plan.h"

ANY = ("tests/test_drm.py::test_any_scores",)
CHUNKS = (*ANY, "tests/test_drm.py::test_more_than_one_chunk")
MISLED = ("tests/test_drm.py::test_a_sample_that_misleads_costs_time_only",)
CHANGED = ("tests/test_drm.py::test_fault_28_scores_that_change_during_the_call",)
GUARDED = (
    "tests/test_guarded.py::test_kernels_stay_inside_their_memory_and_read_what_they_wrote",
)
REFUSED = (
    "tests/test_drm.py::test_frameworks_and_errors",
    "tests/test_strides.py::test_masks_of_drm_must_be_dense",
)

DRM = (
    Mutant(
        "drm-one-is-solvable",
        CPU,
        "difficulty > 0 && difficulty < 1 ?",
        "difficulty > 0 && difficulty <= 1 ?",
        CHUNKS,
        equivalent="bucket `buckets` has column -1, as what is no candidate has",
    ),
    Mutant(
        "drm-hits-one",
        MATH,
        "#define RAP_DRM_ONE_F64 (UINT64_C(0x3ff0) << 48)",
        "#define RAP_DRM_ONE_F64 ((UINT64_C(0x3ff0) << 48) + 1)",
        CHUNKS,
        equivalent="column_of asks the same of every hit: it has no column",
    ),
    Mutant(
        "drm-hits-one-f32",
        MATH,
        "#define RAP_DRM_ONE_F32 0x3f800000u",
        "#define RAP_DRM_ONE_F32 0x3f800001u",
        CHUNKS,
        equivalent="column_of asks the same of every hit: it has no column",
    ),
    Mutant(
        "drm-zero-is-trivial",
        CPU,
        "return RAP_MAX(bits, 1); /* 0.0 is no candidate */",
        "return bits;",
        CHUNKS,
        equivalent="column_of asks the same of every hit: it has no column",
    ),
    Mutant("drm-minus-zero-apart", MATH, "bits &= 0 - (uint64_t)(bits != sign);", "", ANY),
    Mutant(
        "drm-negative-gains",
        MATH,
        "return bits ^ ((0 - (bits >> 63)) | sign);",
        "return bits ^ sign;",
        ANY,
    ),
    Mutant(
        "drm-nan-gain",
        CPU,
        "kept += !isnan(value_at(&a->gain, begin + hit[h]));",
        "kept++;",
        ANY,
    ),
    Mutant("drm-not-eligible", KERNEL, "in[j] &= allowed[i + j] != 0;", "in[j] &= 1;", ANY),
    Mutant(
        "drm-mask-bit",
        KERNEL,
        "in[j] &= allowed[i + j] != 0;",
        "in[j] &= allowed[i + j];",
        ("tests/test_drm.py::test_masks_may_hold_any_true_byte",),
    ),
    Mutant(
        "drm-later-index-first",
        PLAN,
        "key << ctx->index_bits | (mask - (uint64_t)index)",
        "key << ctx->index_bits | (uint64_t)index",
        ANY,
    ),
    Mutant(
        "drm-gain-ignored",
        ORDER,
        "by == DIFFICULTY && ctx->a->gain.data != NULL ? GAIN : NOTHING",
        "NOTHING",
        ANY,
    ),
    Mutant(
        "drm-easy-first",
        CPU,
        "return bucket >= ctx->low ? ctx->buckets - 1 - bucket : -1;",
        "return bucket >= ctx->low ? bucket - ctx->low : -1;",
        CHUNKS,
    ),
    Mutant(
        "drm-insertion-turned",
        SORT,
        "j > 0 && x[j - 1] < one; j--",
        "j > 0 && x[j - 1] > one; j--",
        ANY,
    ),
    Mutant(
        "drm-digit-turned",
        SORT,
        "at[~from[i] >> shift & mask]++;\n    }\n    for (uint64_t d",
        "at[from[i] >> shift & mask]++;\n    }\n    for (uint64_t d",
        (*CHUNKS, *GUARDED),
    ),
    Mutant("drm-digit-lost", SORT, "low + p * digit, digit);", "low, digit);", CHUNKS),
    Mutant(
        "drm-flag-digit",
        SORT,
        "const int shift = RAP_MAX(0, top - FLAG_BITS);",
        "const int shift = RAP_MAX(0, top - FLAG_BITS - 1);",
        CHUNKS,
    ),
    Mutant(
        "drm-runs-end",
        ORDER,
        "for (int64_t i = 1; i <= n && by != NOTHING; i++)",
        "for (int64_t i = 1; i < n && by != NOTHING; i++)",
        (*ANY, *CHUNKS),
    ),
    Mutant(
        "drm-float32-bits",
        ORDER,
        "x->dtype == RAP_F32 ? 29 : 0",
        "x->dtype == RAP_F32 ? 29 : 29",
        CHUNKS,
    ),
    Mutant(
        "drm-last-bucket-bits",
        ORDER,
        "return bucket == 0 ? 64 :",
        "return bucket == 0 ? 0 :",
        CHUNKS,
    ),
    Mutant(
        "drm-need",
        CPU,
        "ctx->need = RAP_MIN(ctx->k, total) - above;",
        "ctx->need = total - above;",
        CHUNKS,
    ),
    Mutant(
        "drm-k-not-capped",
        CPU,
        "ctx->need = RAP_MIN(ctx->k, total) - above;",
        "ctx->need = ctx->k - above;",
        (*CHUNKS, *GUARDED),
    ),
    Mutant(
        "drm-misled-for-good",
        CPU,
        "if (!find_last(ctx) && low > 0) {",
        "if (!find_last(ctx) && false) {",
        MISLED,
    ),
    Mutant(
        "drm-class-floor",
        CPU,
        "return r >= ctx->floor ? 5 : 6;",
        "return r > ctx->floor ? 5 : 6;",
        ("tests/test_drm.py::test_ranks_that_no_sample_sees_are_halved_again_and_again",),
    ),
    Mutant(
        "drm-class-edge",
        CPU,
        "if (r > ctx->edge[4]) {",
        "if (r >= ctx->edge[4]) {",
        ("tests/test_drm.py::test_ranks_that_no_sample_sees_are_halved_again_and_again",),
    ),
    Mutant(
        "drm-floor-dropped",
        CPU,
        "if (r < ctx->floor) {\n            return 0;",
        "if (r <= ctx->floor) {\n            return 0;",
        CHUNKS,
    ),
    Mutant(
        "drm-ceiling", CPU, "if (r <= ctx->ceiling) {", "if (r < ctx->ceiling) {", CHUNKS
    ),
    Mutant(
        "drm-places-not-counted",
        CPU,
        "if (spans[column].at == spans[column].end) {\n        return 0;\n    }",
        "",
        CHANGED,
    ),
    Mutant(
        "drm-change-not-told",
        CPU,
        "atomic_store(&ctx->changed, true);",
        "(void)0;",
        ("tests/test_drm.py::test_fault_28_scores_that_fall_during_the_call_are_told",),
    ),
    Mutant(
        "drm-chunk-end",
        CPU,
        "const double fraction = ldexp(1, 64 - ctx->index_bits);",
        "const double fraction = ldexp(1, 60 - ctx->index_bits);",
        ("tests/test_drm.py::test_more_than_one_chunk",),
    ),
    Mutant(
        "drm-rest-unbounded",
        CPU,
        "const int64_t most = rest ? total + ctx->held : INT64_MAX;",
        "const int64_t most = INT64_MAX;",
        (*GUARDED, *CHUNKS),
    ),
    Mutant(
        "drm-own-small",
        CPU,
        "rap_alloc((int64_t)sizeof(*ctx->own) * ctx->held, err)",
        "rap_alloc((int64_t)sizeof(*ctx->own) * ctx->need, err)",
        GUARDED,
    ),
    Mutant(
        "drm-room-small",
        ORDER,
        "(int64_t)sizeof(*ctx->other) * room *",
        "(int64_t)sizeof(*ctx->other) * (room - 1) *",
        GUARDED,
    ),
    Mutant(
        "drm-leak",
        CPU,
        "rap_free(ctx.own);\n",
        "",
        (
            "tests/test_limits.py::"
            "test_each_allocation_that_fails_is_a_memory_error_and_nothing_leaks",
        ),
    ),
    Mutant(
        "drm-no-stop",
        ORDER,
        "(i + 1) % STEPS == 0 && rap_should_stop",
        "false && rap_should_stop",
        ("tests/test_drm.py::test_fault_32_a_signal_ends_the_call_soon",),
        equivalent="sorting asks in its own passes: a stop comes one pass over a column later, which no test can tell from a slow machine",
    ),
    Mutant(
        "drm-eligible-length",
        CHECK,
        "a->eligible.shape[0] != n",
        "a->eligible.shape[0] > n",
        ("tests/test_drm.py::test_masks_and_gains_of_other_lengths",),
    ),
    Mutant(
        "drm-gain-length",
        CHECK,
        "x->ndim != 1 || x->shape[0] != n ||",
        "x->ndim != 1 || x->shape[0] > n ||",
        (*REFUSED, "tests/test_drm.py::test_masks_and_gains_of_other_lengths"),
    ),
    Mutant("drm-gaps", CHECK, "|| (n > 1 && x->stride[0] != 1))", ")", REFUSED),
)
