"""One group of samples: the best candidates, and DRM in place of the trivial ones.

Source: arXiv 2506.04755, DRM.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from ..scores.evidence import Evidence
from .rules.rule import Ranking


@dataclass(frozen=True, slots=True)
class Candidates:
    """What a group is filled from, bool [n]. ``passes``: above the thresholds. ``easy``:
    trivial, to be replaced. ``pool``: may replace one."""

    evidence: Evidence
    passes: np.ndarray
    easy: np.ndarray
    pool: np.ndarray


@dataclass(frozen=True, slots=True)
class Picked:
    """Rows chosen in one group. ``border``: the best candidate that is no survivor."""

    target: int | None
    candidates: int
    survivors: int
    border: int | None
    at_border: tuple[int, int]
    removed: int
    cognitive: np.ndarray
    replacement: np.ndarray


def pick(
    of: Candidates, rows: np.ndarray, target: int | None, ranking: Ranking | None
) -> Picked:
    """CDE and ACE survivors of one group, then DRM. ``rows`` ascend."""
    candidates = rows[of.passes[rows]]
    survivors, border, at_border = candidates, None, (0, 0)
    if ranking is not None and target is not None and target < len(candidates):
        survivors, border, at_border = _best(of.evidence, candidates, target, ranking.key)
        if not ranking.of_d:
            border, at_border = None, (0, 0)  # no threshold on D
    cognitive = survivors[~of.easy[survivors]]
    removed = len(survivors) - len(cognitive)
    replacement = np.empty(0, dtype=np.int64)
    if removed:
        eligible = of.pool[rows]
        eligible[np.searchsorted(rows, cognitive)] = False
        found = of.evidence.measured
        hardest = _hardest(found.difficulty[rows], removed, eligible, found.order[rows])
        replacement = rows[hardest]
    return Picked(
        target,
        len(candidates),
        len(survivors),
        border,
        at_border,
        removed,
        cognitive,
        replacement,
    )


def ranks(of: Candidates, ranking: Ranking | None) -> np.ndarray:
    """int64 [n]: the place of each row in the whole ranking, as ``pick`` has it in a group;
    candidates before the others."""
    found = of.evidence.measured
    key = found.order if ranking is None else ranking.key
    difficulty = np.nan_to_num(found.difficulty, nan=-1.0)
    order = np.lexsort((-difficulty, -found.order, -key, ~of.passes))
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    return rank


def _best(
    evidence: Evidence, candidates: np.ndarray, target: int, key: np.ndarray
) -> tuple[np.ndarray, int, tuple[int, int]]:
    """(the first ``target`` by ``key`` down, then as below; border row; ties there).

    Ties: by D down if ``key`` is another, by Diff down, by index up.

    Partition, then sort only the ties at the border: candidates may be millions.
    """
    d = key[candidates]
    if target == 0:
        border_d = d.max()
    else:
        border_d = -np.partition(-d, target - 1)[target - 1]
    larger, tied = candidates[d > border_d], candidates[d == border_d]
    need = target - len(larger)
    difficulty = np.nan_to_num(evidence.difficulty[tied], nan=-1.0)
    hard_first = np.lexsort((-difficulty, -evidence.measured.order[tied]))
    survivors = np.sort(np.concatenate([larger, tied[hard_first[:need]]]))
    if need < len(tied):
        return survivors, int(tied[0]), (need, len(tied))
    rest = d[d < border_d].max()  # there is one: target < len(candidates)
    tied = candidates[d == rest]
    return survivors, int(tied[0]), (0, len(tied))


def _hardest(
    difficulty: np.ndarray, k: int, eligible: np.ndarray, gain: np.ndarray
) -> np.ndarray:
    from ..ops import drm  # lazily: reading a selection needs no compiled kernel

    return np.asarray(drm(difficulty, k, eligible=eligible, gain=gain), dtype=np.int64)


def found_in(
    evidence: Evidence, picked: Picked, threshold: Fraction | None, rows: int
) -> dict[str, Any]:
    """What was found in one group, as JSON holds it."""
    value = None if threshold is None else float(threshold)
    exact = threshold if evidence.measured.counts is not None else None
    if picked.border is not None:
        value, exact = float(evidence.d[picked.border]), evidence.exact(picked.border)
    return {
        "samples": rows,
        "target": picked.target,
        "candidates": picked.candidates,
        "survivors": picked.survivors,
        "lambda_c": value,
        "lambda_c_exact": None if exact is None else str(exact),
        "at_lambda_c": list(picked.at_border),
        "trivial_removed": picked.removed,
        "replaced": len(picked.replacement),
        "kept": len(picked.cognitive) + len(picked.replacement),
    }
