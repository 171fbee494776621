"""Rule ``learn`` on one group of rows: main part, guards, coverage, and what fills up.

1. Mixed: valid samples with ``value > 0`` (``rap.scores.learning``).
2. Guards: floor(guard_attention k) of the k samples to keep are the best mixed ones with
   psi above its limit (``biased="drop"``; else psi decides nothing), by value;
   floor(guard_hurt k) are others with D < 0, by ``learning.harm_of``: known to be mixed, or
   expected to be (no completions). Both by what each adds to ``coverage.reward``.
3. Main part: mixed, D above the threshold, psi not above its limit; the best of them fill
   what is left, by value; with ``coverage``, too, by what each adds.
4. Fill: if fewer than k are found, the mixed samples that are left, then the others that
   are valid and not unsolved, by value: those that the cascade did not ask first.
Ties go by row. METHOD.md section 7.
"""

from __future__ import annotations

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
from .groups import budget_size, codes_of
from .judged import ABOVE, BIASED, NEGATIVE, UNSOLVED, VALID, Judged
from .picking import Picked

Rows = np.ndarray | slice

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
    return Groups(found.code, names, f"{counted(found.k, 'cluster')} of hidden states")


@dataclass(frozen=True, slots=True)
class Learner:
    """Picks samples by rule ``learn``, a group of rows at a time."""

    judged: Judged
    cover: Groups | None

    def guards(self, parts: Sequence[tuple[Rows, int]]) -> list[dict[str, int]]:
        """How many samples of each guard each group (its rows, samples to keep) is to have:
        the guard's share of the whole, by largest remainder, as budgets are dealt. Of a
        group all guards together have no more than it is to keep."""
        shares = dict(zip(GUARDED, self.judged.reading.config.shares, strict=True))
        found = [
            {name: budget_size(share, k) if k else 0 for name, share in shares.items()}
            for _, k in parts
        ]  # 1/3 of 30 is 10
        total = sum(target for _, target in parts)
        for name, share in shares.items():
            whole = budget_size(share, total) if total else 0
            left = whole - sum(size[name] for size in found)
            more = []
            for i, (rows, target) in enumerate(parts if left > 0 else ()):
                strata, size = self._strata(rows), found[i][name]
                worth = -strata.worth[name][strata.guards[name]]
                if size < len(worth) and sum(found[i].values()) < target:
                    best = np.partition(worth, size)[size]
                    more.append((size - as_fraction(name, share) * target, best, i))
            for *_, i in sorted(more)[: max(left, 0)]:
                found[i][name] += 1
        return found

    def _strata(self, rows: Rows) -> _Strata:
        assert self.judged.key is not None and self.judged.harm is not None
        value, harm = self.judged.key[rows], self.judged.harm[rows]
        return _strata(value, harm, self.judged.flags[rows])

    def __call__(self, rows: Rows, target: int, guard_sizes: Mapping[str, int]) -> Picked:
        """``rows`` ascend, or are all. ``target``: samples to keep; ``guard_sizes``: of
        these, of each guard, at most."""
        config, strata = self.judged.reading.config, self._strata(rows)
        value, usable = strata.value, strata.usable
        code = None if self.cover is None else self.cover.code[rows]
        guards, told = {}, {}
        for name, many in guard_sizes.items():
            part = _Part.of(strata.guards[name], strata.worth[name], many, code)
            guards[name], have = part, len(part.rows)
            told[name] = {"target": many, "candidates": have, "kept": len(part.kept)}
        guard = np.concatenate([part.kept for part in guards.values()])
        over = code if config.covers_main else None
        main = _Part.of(strata.main, value, target - len(guard), over)
        free = usable.copy()
        free[guard] = free[main.kept] = False
        fill = _Part.of(free, value, target - len(guard) - len(main.kept), None).kept
        many = int((value[fill] > 0).sum())
        learned = {
            "mixed": int(np.count_nonzero(usable & (value > 0))),
            "main": len(main.kept),
            "guard": told,
            "filled": {
                "mixed": many,
                "others": len(fill) - many,
                **{name: int(own[fill].sum()) for name, own in strata.guards.items()},
            },
            "coverage": self._covered(
                code, [main] if config.covers_main else [*guards.values()]
            ),
        }
        places = (main.kept, fill, guard)
        back = [x if isinstance(rows, slice) else rows[x] for x in places]
        return Picked(
            target,
            len(main.rows),
            len(main.kept),
            None,
            (0, 0),
            0,
            cognitive=back[0],
            replacement=back[1],
            guard=back[2],
            learned=learned,
        )

    def _covered(
        self, code: np.ndarray | None, parts: Sequence[_Part]
    ) -> dict[str, Any] | None:
        """What coverage did in these parts of a selection, as JSON holds it."""
        if self.cover is None or code is None:
            return None
        candidates, kept, worth = (
            np.concatenate(x)
            for x in zip(*((p.rows, p.kept, p.worth) for p in parts), strict=True)
        )
        # of the groups that are there: of the others there may be far more
        there, place = np.unique(code[candidates], return_inverse=True)
        have = np.bincount(place.reshape(-1), minlength=len(there))
        took = np.bincount(np.searchsorted(there, code[kept]), minlength=len(there))
        order = np.lexsort((-have, -took))
        return {
            "by": self.cover.by,
            "of": "main" if self.judged.reading.config.covers_main else "guards",
            "scale": SCALE,
            "reward": reward(worth, code[kept]),
            "n_groups": len(order),
            "least_kept": int(took[order[-1]]) if len(order) else 0,
            "groups": [
                {
                    "group": self.cover.names[there[g]],
                    "candidates": int(have[g]),
                    "kept": int(took[g]),
                }
                for g in order[:SHOWN].tolist()
            ],
        }


@dataclass(frozen=True, slots=True)
class _Part:
    """Of a selection. ``rows``: its candidates; ``kept``: those taken, ascending;
    ``worth``: float64, what each of these is worth."""

    rows: np.ndarray
    kept: np.ndarray
    worth: np.ndarray

    @classmethod
    def of(
        cls, among: np.ndarray, worth: np.ndarray, many: int, code: np.ndarray | None
    ) -> _Part:
        """The best ``many`` of the rows that are ``among`` (bool [n]); with ``code``, by
        what each adds to ``coverage.reward``."""
        rows = np.flatnonzero(among)
        adds = worth[rows] if code is None else marginal(worth[rows], code[rows])
        kept = rows[top(adds, many)]
        return cls(rows, kept, worth[kept])


@dataclass(frozen=True, slots=True)
class _Strata:
    """float64 [n]: ``value``, and what a sample is ``worth`` to each guard. bool [n]:
    ``usable``, and, no row in two, ``main`` and the ``guards`` by name."""

    value: np.ndarray
    worth: dict[str, np.ndarray]
    usable: np.ndarray
    main: np.ndarray
    guards: dict[str, np.ndarray]


def _strata(value: np.ndarray, harm: np.ndarray, flags: np.ndarray) -> _Strata:
    usable = (flags & (VALID | UNSOLVED) == VALID) & ~np.isnan(value)
    mixed = usable & (value > 0)
    above, captured = flags & ABOVE != 0, flags & BIASED != 0
    biased = mixed & captured
    hurt = usable & (harm > 0) & ~captured & ~above & (flags & NEGATIVE != 0)
    return _Strata(
        value,
        {"attention": value, "hurt": harm},
        usable,
        mixed & ~biased & above,
        {"attention": biased, "hurt": hurt},
    )


# ---------------------------------------------------------------- in words

GUARDED = {"attention": "attention-biased", "hurt": "hurt by the image"}
"""What each guard is for, in words."""


def lines_of(learned: Mapping[str, Any], choice: Mapping[str, Any]) -> Iterator[str]:
    """What a summary says of ``Picked.learned``. ``choice``: ``ChooseConfig.as_json``."""
    yield from _lines_of(learned, _about_coverage(learned["coverage"], choice))


def lines_of_groups(
    groups: Sequence[Mapping[str, Any]], choice: Mapping[str, Any]
) -> Iterator[str]:
    """As ``lines_of``, of the ``Picked.learned`` of several groups together."""
    covered = {_named(g["coverage"]) for g in groups if g["coverage"] is not None}
    told = f"{', '.join(sorted(covered))}, in each group by itself"
    yield from _lines_of(_sum(groups), told if covered else _about_coverage(None, choice))


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
            f"budget filled with {counted(filled['mixed'], 'other mixed sample')} and "
            f"{filled['others']} not known to have mixed outcomes; of all these "
            f"{filled['attention']} {GUARDED['attention']}, {filled['hurt']} "
            f"{GUARDED['hurt']}"
        )


def _about_coverage(told: Mapping[str, Any] | None, choice: Mapping[str, Any]) -> str:
    if told is None and choice.get("coverage") is False:
        return "coverage: off"
    if told is None:
        return "coverage: none, the scores hold no hidden states of the prompts"
    if told["n_groups"] < 2:
        many = counted(told["n_groups"], "group")
        return f"{_named(told)}: {many}, which changes nothing"
    kept = [g["kept"] for g in told["groups"]]  # those with most kept come first
    least = told.get("least_kept", min(kept))
    return (
        f"{_named(told)}: {told['n_groups']} groups with candidates, "
        f"{least} to {max(kept)} kept of each"
    )


def _named(told: Mapping[str, Any]) -> str:
    """Selections of before say nothing of ``of``: theirs was of the main part."""
    of = " in the guards" if told.get("of") == "guards" else ""
    return f"coverage by {told['by']}{of}"


def warnings_of(groups: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the user should know besides. ``groups``: ``Picked.learned`` of each."""
    if not sum(one["mixed"] for one in groups):
        return ["no sample is known to have mixed outcomes: what is kept may teach little"]
    filled = sum(one["filled"]["others"] for one in groups)
    if not filled:
        return []
    return [
        f"{filled} of the kept are not known to have mixed outcomes: too few are for this "
        "budget"
    ]
