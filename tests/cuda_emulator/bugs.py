"""One seeded bug each, and the check that must catch it (tests/test_cuda_bugs.py).

A bug is a change of one text in a copy of the source. Numbers below 100: device code.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from . import checks_ace, checks_cde, checks_drm
from .build import Mutation


@dataclass(frozen=True)
class Bug:
    """``what`` was broken, ``caught_by`` which check raises."""

    number: int
    what: str
    mutation: Mutation
    caught_by: Callable[[Mutation | None], None]


def _bug(number, what, file, before, after, caught_by) -> Bug:
    return Bug(number, what, Mutation(file, before, after), caught_by)


ACE = "ace/ace_cuda.cu"
CDE = "cde/cde_cuda.cu"
DRM = "drm/drm_cuda.cu"
DEVICE = "cuda/device.h"

BUGS = (
    _bug(1, "no barrier before thread 0 merges the warps", CDE,
         "        sh->part[rap_warp()] = st;\n    }\n    rap_sync();\n",
         "        sh->part[rap_warp()] = st;\n    }\n", checks_cde.races),
    _bug(2, "the same, seen by its answers under random schedules", CDE,
         "        sh->part[rap_warp()] = st;\n    }\n    rap_sync();\n",
         "        sh->part[rap_warp()] = st;\n    }\n", checks_cde.schedules),
    _bug(3, "no barrier before js and tv of the warps are added", CDE,
         "        sh->part[rap_warp()].tv = tv;\n    }\n    rap_sync();\n",
         "        sh->part[rap_warp()].tv = tv;\n    }\n", checks_cde.races),
    _bug(4, "no barrier between a row and the next", CDE,
         "    rap_sync(); /* and thread 0 has done with the row before */\n", "",
         checks_cde.races),
    _bug(5, "a barrier that one warp does not reach", CDE,
         "        cde_targets(p, r1, r0, row, &sh->row);\n    }\n    rap_sync();\n",
         "        cde_targets(p, r1, r0, row, &sh->row);\n    }\n"
         "    if (rap_warp() == 0) {\n        rap_sync();\n    }\n",
         checks_cde.schedules),
    _bug(6, "a shuffle that one lane leaves out", DEVICE,
         "        x += rap_shfl_xor_f64(x, step);\n",
         "        x += rap_thread() == 3 ? 0 : rap_shfl_xor_f64(x, step);\n",
         checks_cde.schedules),
    _bug(7, "a tree that stops one step early", DEVICE,
         "    for (int step = RAP_WARP / 2; step > 0; step /= 2) {\n        x += ",
         "    for (int step = RAP_WARP / 2; step > 1; step /= 2) {\n        x += ",
         checks_cde.values),
    _bug(8, "no bound check at the end of a row", DEVICE,
         "x[i] = at + i < n ? rap_load1(row, dtype, at + i) : beyond;",
         "x[i] = rap_load1(row, dtype, at + i);", checks_cde.unaligned),
    _bug(9, "128-bit loads from rows that are not aligned", CDE,
         "    r.wide = rap_aligned(r.data);\n", "    r.wide = true;\n",
         checks_cde.unaligned),
    _bug(10, "what lies beyond a row counts as a logit", CDE,
         "p->columns, r->wide, -INFINITY, x)", "p->columns, r->wide, 0.0f, x)",
         checks_cde.values),
    _bug(11, "0 times infinity", CDE,
         "return e == 0 ? 0 : e * x;", "return e * x;", checks_cde.masked),
    _bug(12, "the references do not follow the maximum", CDE,
         "if (add.top < RAP_CDE_HEADROOM) {", "if (true) {", checks_cde.late_peak),
    _bug(13, "targets counted from the chunk, not from the vocabulary", CDE,
         "p->targets[row * p->target_stride] - p->begin;",
         "p->targets[row * p->target_stride];", checks_cde.chunks),
    _bug(14, "the bias of the first column for all", CDE,
         "column * p->bias_stride)", "0)", checks_cde.chunks),
    _bug(15, "a row of weight 0 is asked what it holds", CDE,
         "        if (w != 0) {\n", "        if (true) {\n", checks_cde.packed),
    _bug(16, "offsets that nobody checked are believed", CDE,
         "const int64_t stop = inside ? end : begin;", "const int64_t stop = end;",
         checks_cde.packed),
    _bug(20, "a block's counts and its ticket without a barrier between", DRM,
         "    rap_sync();\n    if (rap_thread() == 0) {\n        sh->last",
         "    if (rap_thread() == 0) {\n        sh->last", checks_drm.races),
    _bug(21, "counts of other blocks added to without atomics", DRM,
         "rap_atomic_add_u64(&p.state->count[i], sh->count[i]);",
         "p.state->count[i] += sh->count[i];", checks_drm.races),
    _bug(22, "no barrier between two distances of the sort", DRM,
         "distance /= 2) {\n                rap_sync();\n", "distance /= 2) {\n",
         checks_drm.races),
    _bug(23, "who is eligible is not asked", DRM,
         "p->eligible == NULL || p->eligible[at + i] != 0", "true", checks_drm.exact),
    _bug(24, "a NaN gain may be chosen", DRM,
         "p->gain != NULL && drm_is_nan(", "false && drm_is_nan(", checks_drm.exact),
    _bug(25, "-0.0 below 0.0", DRM,
         "    bits = bits << 1 == 0 ? 0 : bits;\n", "", checks_drm.exact),
    _bug(26, "four scores read where fewer are left", DRM,
         "if (at + 4 <= n && ", "if (at < n && ", checks_drm.bounds),
    _bug(27, "a merge that starts one item too far", DRM,
         "int64_t low = RAP_MAX(0, n - r->n_b)", "int64_t low = RAP_MAX(0, n - r->n_b + 1)",
         checks_drm.large_order),
    _bug(30, "no barrier between the parts of a merge and their ranks", DRM,
         "i < n_a ? a[i] : b[i - n_a];\n    }\n    rap_sync();\n",
         "i < n_a ? a[i] : b[i - n_a];\n    }\n", checks_drm.merge_races),
    _bug(28, "digits counted of samples that fell behind", DRM,
         "above >= 64\n", "true || above >= 64\n", checks_drm.exact),
    _bug(29, "two lanes take the same place", DRM,
         "(uint64_t)rap_popcount(before);", "(uint64_t)rap_popcount(before / 2);",
         checks_drm.exact),
    _bug(40, "the causal mask one key too far", ACE,
         "    x.hi = x.row + 1 - p->key;\n", "    x.hi = x.row + 2 - p->key;\n",
         checks_ace.values),
    _bug(41, "the key window one key too wide", ACE,
         "RAP_MAX(0, x.row - p->key_window + 1)", "RAP_MAX(0, x.row - p->key_window)",
         checks_ace.windows),
    _bug(42, "rows of a block added without the lower part of the sum", ACE,
         "isinf(hi) ? (double)hi : (double)hi + (double)lo;", "(double)hi;",
         checks_ace.sums_of_logarithms),
    _bug(43, "no barrier between clearing a digit's counts and counting", ACE,
         "        sh->count[i] = 0;\n    }\n    rap_sync();\n",
         "        sh->count[i] = 0;\n    }\n", checks_ace.races),
    _bug(44, "one thread of each warp leaves its best where another looks", ACE,
         "    sh->best[rap_thread()] = best;\n", "    sh->best[rap_warp()] = best;\n",
         checks_ace.races),
    _bug(45, "the sum of a block read before every warp has written", DEVICE,
         "        part[rap_warp()] = x;\n    }\n    rap_sync();\n",
         "        part[rap_warp()] = x;\n    }\n", checks_ace.races),
    _bug(46, "a part of a shared sum overwritten while it is read", DEVICE,
         "    rap_sync(); /* the last sum has been read */\n", "", checks_ace.races),
    _bug(47, "the image mask of the first sample for all", ACE,
         "p->image_mask + p->begin + p->key;", "p->image_mask + p->key;",
         checks_ace.packed),
    _bug(48, "the column mask is not asked", ACE,
         "p->column_mask != NULL && p->column_mask", "false && p->column_mask",
         checks_ace.values),
    _bug(49, "one reference for all rows of a head", ACE,
         "shift = p->reference[at], rest",
         "shift = p->reference[head * p->block_rows], rest", checks_ace.large_scores),
    _bug(50, "scores taken in that the row does not see", ACE,
         "if (c >= x->lo && c + 4 <= x->hi) {", "if (true) {", checks_ace.large_scores),
    _bug(51, "ties for the largest weights counted in full", ACE,
         "large += (double)sh->need *", "large += (double)p->top *", checks_ace.values),
)  # fmt: skip
