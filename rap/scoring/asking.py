"""When the cascade asks for another completion of a sample, and what that will cost.

One rule for both arms, of one sample's own completions, its priors and ``floor``, the
keep-probability (``rap.scores.posterior``) below which nothing is asked:

* with the image, two, then one at a time, while all are right or all are wrong, fewer than
  m1 are sampled and the keep-probability is at least ``floor``;
* without it, where the first are mixed, one or more, one at a time, until P(p1 > p0) is at
  least ``sure`` or at most 1 - ``sure``, m0 are sampled or the keep-probability is below
  ``floor``.

`Asking` holds what a round decides by, for any sample: the priors' coefficients
(``rap.scores.prior``) and the rule. ``floor_by_bill``: the lowest floor whose expected bill
fits. The expectation is exact under the priors: the tree of what the completions can say
has few nodes, since an arm with the image is followed only while it is not mixed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..config import TRAIN_GROUP, ScoreConfig
from ..model.rollouts import row_seed
from ..scores.posterior import Arm, Foreseen, Prior, keep_probability, prob_above
from ..scores.prior import (
    FEATURES,
    WITH_IMAGE,
    WITHOUT,
    Coefficients,
    features,
    predict,
)
from .rounding import rounded

FIRST_LOOK = 2
"""Completions with the image that are sampled together: fewer cannot be mixed."""
ROWS = 256
"""Rows that stand for a pool where its bill is foreseen, at most."""
START_FLOOR = 0.3
"""The floor of the pilot, whose completions nothing is known before."""
_HALVINGS = 14


def looks(m: int, first: int, start: int = 0) -> Iterator[range]:
    """The numbers of m completions from ``start`` on: the first few together, then one at
    a time."""
    if start < first:
        yield range(start, min(first, m))
    for number in range(max(start, first), m):
        yield range(number, number + 1)


def share_of(seed: int, sample_id: str, what: str) -> float:
    """A number in [0, 1) that a sample's id decides, evenly spread."""
    return row_seed(seed, sample_id, what, 0) / 2.0**63


def in_pilot(config: ScoreConfig, sample_id: str) -> bool:
    """Whether a sample is of the pilot: told by its id and the seed alone."""
    return share_of(config.seed, sample_id, "pilot") < config.cascade_pilot


@dataclass(frozen=True, slots=True)
class Rule:
    """See the module's docstring."""

    m1: int
    m0: int
    sure: float
    floor: float

    @staticmethod
    def keep(one: Arm, zero: Arm) -> np.ndarray:
        """float64 [n]: the keep-probability."""
        return keep_probability(one, zero, 0.0, TRAIN_GROUP)

    def worth(self, one: Arm, zero: Arm) -> np.ndarray:
        """bool [n]: the keep-probability is at least ``floor``."""
        return self.keep(one, zero) >= self.floor

    def unsettled(self, one: Arm, zero: Arm) -> np.ndarray:
        """bool [n]: the sign of D is not probable enough; True without a completion in
        ``zero``, since a prior alone settles nothing."""
        return (zero.m == 0) | self.is_open(prob_above(one, zero))

    def is_open(self, p: np.ndarray) -> np.ndarray:
        """bool [n]: P(p1 > p0) = p tells no sign."""
        return (p > 1.0 - self.sure) & (p < self.sure)


@dataclass(frozen=True, slots=True)
class Floor:
    """A sample is asked from a keep-probability of ``sure`` on, and of those between
    ``least`` and ``sure``, who may be many where the evidence does not tell samples apart,
    the share ``lot``, told by their ids. No further completion is asked below ``least``."""

    least: float
    sure: float
    lot: float


@dataclass(frozen=True, slots=True)
class Asking:
    """What a round of the cascade decides by. ``one``, ``zero``: the priors' coefficients
    with and without the image."""

    config: ScoreConfig
    floor: Floor = Floor(START_FLOOR, START_FLOOR, 0.0)
    one: Coefficients = WITH_IMAGE
    zero: Coefficients = WITHOUT

    @property
    def rule(self) -> Rule:
        config = self.config
        return Rule(config.m1, config.m0, config.cascade_sure, self.floor.least)

    def priors(self, rows: Sequence[Mapping[str, Any]]) -> tuple[Prior, Prior]:
        """With and without the image, of rows of the score table: as they are stored, so
        that none depends on the noise of a batch."""
        z = features_of(rows)
        return predict(self.one, z), predict(self.zero, z)

    def drawn(self, ids: Sequence[str], one: Prior, zero: Prior) -> np.ndarray:
        """bool [n]: the samples that are asked at all; the pilot is whatever this says."""
        none = np.zeros(len(ids), np.int64)
        keep = self.rule.keep(Arm(none, none, one), Arm(none, none, zero))
        lots = np.array([share_of(self.config.seed, name, "lot") for name in ids])
        near = (keep >= self.floor.least) & (lots < self.floor.lot)
        return (keep >= self.floor.sure) | near

    def leads_to(self, row: Mapping[str, Any]) -> bool:
        """Whether a scored row of the table may have been filled by this: each completion
        but the last would have been asked for, and no other after it."""
        c1, m1, c0, m0 = (row[name] or 0 for name in ("c1", "m1", "c0", "m0"))
        if (row["n_drawn"] or 0) != m1 + m0:
            return True  # some could not be graded: nothing tells which
        one, zero = self.priors([row])
        pilot = in_pilot(self.config, row["id"])
        asked = pilot or bool(self.drawn([row["id"]], one, zero)[0])
        if not asked or not m1:
            return not asked and not m1

        def state(c: int, m: int, prior: Prior) -> Arm:
            return Arm(np.array([c]), np.array([m]), prior)

        def more1(c: int, m: int) -> bool:
            alike = m < self.rule.m1 and c in (0, m)
            return alike and bool(self.rule.worth(state(c, m, one), state(0, 0, zero))[0])

        def more0(c: int, m: int) -> bool:
            arms = state(c1, m1, one), state(c, m, zero)
            open_ = 0 < c1 < m1 and m < self.rule.m0
            return open_ and bool((self.rule.worth(*arms) & self.rule.unsettled(*arms))[0])

        first = min(FIRST_LOOK, self.rule.m1)

        def straight(right: bool) -> bool:
            return all(more1(m if right else 0, m) for m in range(first, m1))

        got = m1 == first or (m1 > first and c1 in (m1 - 1, m1) and straight(True))
        got = got or (m1 > first and c1 in (0, 1) and straight(False))
        if not got or more1(c1, m1):
            return False
        going = {0}
        for m in range(m0):
            forced = pilot and m == 0
            going = {c + x for c in going if forced or more0(c, m) for x in (0, 1)}
        return c0 in going and not (pilot and m0 == 0) and not more0(c0, m0)


def features_of(rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """``prior.features`` of rows of the score table."""
    known = [rounded({name: row.get(name) for name in FEATURES}) for row in rows]
    return features(
        {
            name: np.array([row[name] for row in known], np.float64)  # None is NaN
            for name in FEATURES
        }
    )


def floor_by_bill(
    one: Prior, zero: Prior, spent: float, rest: float, bill: float, rule: Rule
) -> Floor:
    """The lowest floor at which ``bill`` completions or fewer are expected, ``spent`` by
    the samples before and the others by ``rest`` samples, of which those with these priors
    are a random part; none: `START_FLOOR`. ``rule``: its own floor plays no role.
    """
    n = len(one.a_steps)
    if not n:
        return Floor(START_FLOOR, START_FLOOR, 0.0)
    nothing = np.zeros(n, np.int64)
    keep = rule.keep(Arm(nothing, nothing, one), Arm(nothing, nothing, zero))
    order = np.argsort(-keep, kind="stable")
    rows = order[(np.arange(min(n, ROWS)) * n + n // 2) // min(n, ROWS)]
    few = one.take(rows), zero.take(rows)
    tree = _Tree(*few, rule, Foreseen(*few, TRAIN_GROUP))

    def expected(floor: float) -> float:
        return spent + rest * float(tree.expected(floor).mean())

    low, high = 0.0, 1.0
    if expected(low) <= bill:
        return Floor(low, low, 0.0)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if expected(middle) > bill:
            low = middle
        else:
            high = middle
    least, most = expected(high), expected(low)
    lot = (bill - least) / (most - least) if most > least else 0.0
    return Floor(low, high, min(1.0, max(0.0, lot)))


@dataclass(frozen=True, slots=True)
class _Tree:
    """All that can come of asking about these rows."""

    one: Prior
    zero: Prior
    rule: Rule
    foreseen: Foreseen
    seen: dict[tuple[int, ...], tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)

    def expected(self, floor: float) -> np.ndarray:
        """float64 [n]: completions that are asked of each row, on average."""
        n = len(self.one.a_steps)
        total = np.zeros(n)
        mixed: dict[tuple[int, int], np.ndarray] = {}
        alike = {0: np.ones(n)}  # right ones, of ``start`` completions: all or none
        for look in looks(self.rule.m1, FIRST_LOOK):
            asked = {
                c: p * (self._state(c, look.start, 0, 0)[0] >= floor)
                for c, p in alike.items()
            }
            total += sum(asked.values()) * len(look)
            alike = {}
            for c, p in self._after(self.one, asked, look).items():
                if 0 < c < look.stop:
                    mixed[c, look.stop] = p
                else:
                    alike[c] = p
        for (c1, m1), p in mixed.items():
            total += self._text(floor, c1, m1, p)
        return total

    def _text(self, floor: float, c1: int, m1: int, p: np.ndarray) -> np.ndarray:
        """Completions without the image, where c1 of m1 with it were right: with
        probability p."""
        total, going = np.zeros(len(p)), {0: p}
        for look in looks(self.rule.m0, 1):
            asked = {}
            for c, share in going.items():
                keep, open_ = self._state(c1, m1, c, look.start)
                asked[c] = share * ((keep >= floor) & open_)
            total += sum(asked.values())
            going = self._after(self.zero, asked, look)
        return total

    def _after(
        self, prior: Prior, asked: dict[int, np.ndarray], look: range
    ) -> dict[int, np.ndarray]:
        """{right ones: probability} after the completions of a look."""
        a, b = prior.ab
        for m in look:
            after: dict[int, np.ndarray] = {}
            for c, p in asked.items():
                right = p * (a + c) / (a + b + m)
                after[c + 1] = after.get(c + 1, 0.0) + right
                after[c] = after.get(c, 0.0) + p - right
            asked = after
        return asked

    def _state(self, c1: int, m1: int, c0: int, m0: int) -> tuple[np.ndarray, np.ndarray]:
        """(keep-probability, whether the sign is open) after c1, m1, c0, m0."""
        counts = c1, m1, c0, m0
        if counts not in self.seen:
            keep, above = self.foreseen.after(*counts)
            self.seen[counts] = keep, (m0 == 0) | self.rule.is_open(above)
        return self.seen[counts]
