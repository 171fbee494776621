"""Rule ``learn`` on one group of rows: main part, guards, coverage, and what fills up.

1. Mixed: valid samples with ``value > 0`` (``rap.scores.learning``).
2. Guards: floor(guard_attention k) of the k samples to keep are the best mixed ones with
   psi above its limit (``biased="drop"``; else psi decides nothing), floor(guard_hurt k)
   the best mixed ones of the others with D < 0.
3. Main part: mixed, D above the threshold, psi not above its limit; the best of them fill
   what is left, by value, or with coverage by what each adds to ``coverage.reward``.
4. Fill: if fewer than k are found, the mixed samples that are left, then the others that
   are valid and not unsolved, by value.
Ties go by row. METHOD.md section 7.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..config import ChooseConfig
from ..samples.text import counted
from ..scores.columns import as_fraction
from ..scores.scores import Scores
from .clusters import clusters_of
from .coverage import SCALE, marginal, reward, top
from .groups import codes_of
from .judged import ABOVE, BIASED, NEGATIVE, UNSOLVED, VALID, Judged
from .picking import Picked

SHOWN = 40
"""Groups of coverage that the settings of a selection name, those with most kept."""


@dataclass(frozen=True, slots=True)
class Groups:
    """``code``: int [n], places in ``names``. ``by``: where they are from, in words."""

    code: np.ndarray
    names: list[Any]
    by: str


def groups_to_cover(scores: Scores, config: ChooseConfig) -> Groups | None:
    """What coverage is over; None: there is none to be had, or none is wanted.

    Raises ``RapConfigError`` for a ``coverage_by`` that is no column, or no groups."""
    if config.coverage is False:
        return None
    if config.coverage_by is not None:
        code, names = codes_of(scores, "coverage_by", config.coverage_by)
        return Groups(code, names, config.coverage_by)
    found = clusters_of(scores.reader)
    if not found.known:
        return None
    names = [*map(str, range(found.k)), "no state"]
    return Groups(found.code, names, f"{found.k} clusters of hidden states")


@dataclass(frozen=True, slots=True)
class Learner:
    """Picks samples by rule ``learn``, a group of rows at a time."""

    judged: Judged
    cover: Groups | None

    def __call__(self, rows: np.ndarray | slice, target: int) -> Picked:
        """``rows`` ascend, or are all. ``target``: samples to keep."""
        assert self.judged.key is not None
        config = self.judged.reading.config
        value, flags = self.judged.key[rows], self.judged.flags[rows]
        assert self.judged.harm is not None
        harm = self.judged.harm[rows]
        usable = (flags & (VALID | UNSOLVED) == VALID) & ~np.isnan(value)
        strata = _strata(usable & (value > 0), usable & (harm > 0), flags)
        worth = {"attention": value, "hurt": harm}
        free = usable.copy()
        guards, told = [], {}
        for name, share in zip(strata.guards, config.shares, strict=True):
            many = math.floor(as_fraction(f"guard_{name}", share) * target)
            own = np.flatnonzero(strata.guards[name])
            adds = self._adds(worth[name][own], rows, own, self.cover)
            guards.append(own[top(adds, many)])
            told[name] = {"target": many, "candidates": len(own), "kept": len(guards[-1])}
        guard = np.concatenate(guards)
        candidates = np.flatnonzero(strata.main)
        cover = self.cover if config.coverage else None
        adds = self._adds(value[candidates], rows, candidates, cover)
        main = candidates[top(adds, target - len(guard))]
        free[guard] = free[main] = False
        rest = np.flatnonzero(free)
        fill = rest[top(value[rest], target - len(guard) - len(main))]
        mixed = int((value[fill] > 0).sum())
        learned = {
            "mixed": int(np.count_nonzero(usable & (value > 0))),
            "main": len(main),
            "guard": told,
            "filled": {
                "mixed": mixed,
                "others": len(fill) - mixed,
                **{name: int(own[fill].sum()) for name, own in strata.guards.items()},
            },
            "coverage": self._covered(value, rows, candidates, main),
        }
        back = [x if isinstance(rows, slice) else rows[x] for x in (main, fill, guard)]
        return Picked(
            target,
            len(candidates),
            len(main),
            None,
            (0, 0),
            0,
            cognitive=back[0],
            replacement=back[1],
            guard=back[2],
            learned=learned,
        )

    def _adds(
        self,
        value: np.ndarray,
        rows: np.ndarray | slice,
        candidates: np.ndarray,
        cover: Groups | None,
    ) -> np.ndarray:
        """What the candidates are ranked by."""
        if cover is None:
            return value
        return marginal(value, cover.code[rows][candidates])

    def _covered(
        self,
        value: np.ndarray,
        rows: np.ndarray | slice,
        candidates: np.ndarray,
        main: np.ndarray,
    ) -> dict[str, Any] | None:
        """What coverage did, as JSON holds it."""
        if self.cover is None:
            return None
        code, many = self.cover.code[rows], len(self.cover.names)
        have, kept = (np.bincount(code[x], minlength=many) for x in (candidates, main))
        order = np.lexsort((-have, -kept))
        order = order[have[order] > 0]
        return {
            "by": self.cover.by,
            "scale": SCALE,
            "reward": reward(value[main], code[main]),
            "n_groups": len(order),
            "groups": [
                {
                    "group": self.cover.names[g],
                    "candidates": int(have[g]),
                    "kept": int(kept[g]),
                }
                for g in order[:SHOWN].tolist()
            ],
        }


@dataclass(frozen=True, slots=True)
class _Strata:
    """bool [n] each, no row in two: ``main``, and the ``guards`` by name."""

    main: np.ndarray
    guards: dict[str, np.ndarray]


def _strata(mixed: np.ndarray, harmed: np.ndarray, flags: np.ndarray) -> _Strata:
    above, captured = flags & ABOVE != 0, flags & BIASED != 0
    biased = mixed & captured
    usual = mixed & ~biased
    hurt = harmed & ~captured & ~above & (flags & NEGATIVE != 0)
    return _Strata(usual & above, {"attention": biased, "hurt": hurt})


# ---------------------------------------------------------------- in words

GUARDED = {"attention": "attention-biased", "hurt": "hurt by the image"}
"""What each guard is for, in words."""


def lines_of(learned: Mapping[str, Any]) -> Iterator[str]:
    """What a summary says of ``Picked.learned``."""
    yield from _lines_of(learned, _about_coverage(learned["coverage"]))


def lines_of_groups(groups: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """As ``lines_of``, of the ``Picked.learned`` of several groups together."""
    covered = {str(g["coverage"]["by"]) for g in groups if g["coverage"] is not None}
    told = f"coverage by {', '.join(sorted(covered))}, in each group by itself"
    yield from _lines_of(_sum(groups), told if covered else _about_coverage(None))


def _sum(groups: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The counts of several groups, added."""
    first = groups[0]
    return {
        name: _sum([g[name] for g in groups])
        if isinstance(value, Mapping)
        else sum(g[name] for g in groups)
        for name, value in first.items()
        if name != "coverage"
    }


def _lines_of(learned: Mapping[str, Any], covered: str) -> Iterator[str]:
    mixed = counted(learned["mixed"], "sample")
    yield f"mixed outcomes: {mixed}; the main part keeps {learned['main']}"
    for name, told in learned["guard"].items():
        text = f"guard, {GUARDED[name]}: {told['kept']} of {told['target']}"
        there = counted(told["candidates"], "candidate")
        if told["candidates"] and not told["target"]:
            text += f" ({there}; the share is 0, or less than one)"
        elif told["kept"] < told["target"]:
            text += f" ({there}; its share goes to the others)"
        yield text
    yield covered
    filled = learned["filled"]
    if filled["mixed"] or filled["others"]:
        yield (
            f"budget filled with {counted(filled['mixed'], 'other mixed sample')} "
            f"({filled['attention']} of them {GUARDED['attention']}, {filled['hurt']} "
            f"{GUARDED['hurt']}) and {filled['others']} whose outcomes are not mixed"
        )


def _about_coverage(told: Mapping[str, Any] | None) -> str:
    if told is None:
        return "coverage: none (off, or the scores hold no hidden states of the prompts)"
    if told["n_groups"] < 2:
        return f"coverage by {told['by']}: {told['n_groups']} group, which changes nothing"
    kept = [g["kept"] for g in told["groups"]]
    return (
        f"coverage by {told['by']}: {told['n_groups']} groups with candidates, "
        f"{min(kept)} to {max(kept)} kept of each"
    )


def warnings_of(groups: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the user should know besides. ``groups``: ``Picked.learned`` of each."""
    if not sum(one["mixed"] for one in groups):
        return ["no sample has mixed outcomes: what is kept teaches little"]
    filled = sum(one["filled"]["others"] for one in groups)
    if not filled:
        return []
    return [f"{filled} of the kept have no mixed outcomes: too few have for this budget"]
