"""One group of samples: the best candidates, and DRM in place of the trivial ones.

Source: arXiv 2506.04755, DRM.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np

from ..scores.reader import Reader
from ..scores.readings import EVIDENCE_COLUMNS
from .judged import Judged


@dataclass(frozen=True, slots=True)
class Candidates:
    """What a group is filled from, bool [n]. ``passes``: above the thresholds. ``easy``:
    above them, but trivial: to be replaced. ``pool``: may replace one. ``last``: may when
    the pool is used up, None: no sample. ``first``: the trivial ones were removed before
    (they are not in ``passes``), so that others pass in their place."""

    judged: Judged
    passes: np.ndarray
    easy: np.ndarray
    pool: np.ndarray
    last: np.ndarray | None = None
    first: bool = False


@dataclass(frozen=True, slots=True)
class Picked:
    """Rows chosen in one group. ``border``: the best candidate that is no survivor.
    ``guard``, ``learned``: of rule learn (``learn.Learner``)."""

    target: int | None
    candidates: int
    survivors: int
    border: int | None
    at_border: tuple[int, int]
    removed: int
    cognitive: np.ndarray
    replacement: np.ndarray
    guard: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    learned: Mapping[str, Any] | None = None


def pick(of: Candidates, rows: np.ndarray | slice, target: int | None) -> Picked:
    """CDE and ACE survivors of one group, then DRM. ``rows`` ascend, or are all."""
    judged = of.judged
    candidates = np.flatnonzero(of.passes[rows])
    if not isinstance(rows, slice):
        candidates = rows[candidates]
    survivors, border, at_border = candidates, None, (0, 0)
    if judged.ranking is not None and target is not None and target < len(candidates):
        survivors, border, at_border = _best(judged, candidates, target)
        if not judged.ranking.of_d:
            border, at_border = None, (0, 0)  # no threshold on D
    cognitive = survivors[~of.easy[survivors]]
    removed = missing = len(survivors) - len(cognitive)
    if of.first:
        removed = int(np.count_nonzero(of.easy[rows]))
        missing = min(removed, (target or 0) - len(survivors))
    replacement = _replacements(of, rows, missing, cognitive)
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


def _replacements(
    of: Candidates, rows: np.ndarray | slice, k: int, taken: np.ndarray
) -> np.ndarray:
    """The k hardest of the pool that are not taken, then of the last; rows, or fewer."""
    found = np.empty(0, dtype=np.int64)
    judged = of.judged
    for pool in (of.pool, of.last):
        if pool is None or len(found) >= k:
            continue
        eligible, used = pool[rows].copy(), np.concatenate([taken, found])
        here = used if isinstance(rows, slice) else np.searchsorted(rows, used)
        eligible[here] = False
        more = _hardest(
            judged.difficulty[rows], k - len(found), eligible, judged.order[rows]
        )
        found = np.concatenate([found, more if isinstance(rows, slice) else rows[more]])
    return found


def ranks(of: Candidates) -> np.ndarray:
    """int64 [n]: the place of each row in the whole ranking, as ``pick`` has it in a group;
    candidates before the others."""
    found = of.judged
    key = found.order if found.key is None else found.key
    difficulty = np.nan_to_num(found.difficulty, nan=-1.0)
    order = np.lexsort((-difficulty, -found.order, -key, ~of.passes))
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    return rank


def _best(
    judged: Judged, candidates: np.ndarray, target: int
) -> tuple[np.ndarray, int, tuple[int, int]]:
    """(the first ``target`` by ``key`` down, then as below; border row; ties there).

    Ties: by D down if ``key`` is another, by Diff down, by index up.

    Partition, then sort only the ties at the border: candidates may be millions.
    """
    assert judged.key is not None
    d = judged.key[candidates]
    if target == 0:
        border_d = d.max()
    else:
        np.negative(d, out=d)
        d.partition(target - 1)
        border_d = -d[target - 1]
        d = judged.key[candidates]
    larger, tied = candidates[d > border_d], candidates[d == border_d]
    need = target - len(larger)
    difficulty = np.nan_to_num(judged.difficulty[tied], nan=-1.0)
    hard_first = np.lexsort((-difficulty, -judged.order[tied]))
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


def border_d(
    reader: Reader, judged: Judged, picked: Iterable[Picked]
) -> dict[int, tuple[float, Fraction | None]]:
    """{border row: D, and as a fraction where it is one}"""
    rows = np.array([p.border for p in picked if p.border is not None], np.int64)
    rows = np.unique(rows)
    if not rows.size:
        return {}
    if not judged.counted:
        return {int(row): (float(judged.order[row]), None) for row in rows}
    evidence = judged.reading.evidence(reader.take(rows, EVIDENCE_COLUMNS))
    return {
        int(row): (float(evidence.d[at]), evidence.exact(at)) for at, row in enumerate(rows)
    }


def found_in(
    judged: Judged,
    picked: Picked,
    threshold: Fraction | None,
    rows: int,
    borders: Mapping[int, tuple[float, Fraction | None]],
) -> dict[str, Any]:
    """What was found in one group, as JSON holds it. ``borders``: as ``border_d``."""
    value = None if threshold is None else float(threshold)
    exact = threshold if judged.counted else None
    if picked.border is not None:
        value, exact = borders[picked.border]
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
        "kept": len(picked.cognitive) + len(picked.replacement) + len(picked.guard),
        **({} if picked.learned is None else {"learned": picked.learned}),
    }
