"""When the cascade asks for another completion of a sample, and what that will cost.

One rule for both arms, of one sample's own completions and three numbers of the plan: its
priors and ``floor``, the keep-probability (``rap.scores.posterior``) below which nothing is
asked:

* with the image, two, then one at a time, while all are right or all are wrong, fewer than
  m1 are sampled and the keep-probability is at least ``floor``;
* without it, where the first are mixed, one or more, one at a time, until P(p1 > p0) is at
  least ``sure`` or at most 1 - ``sure``, m0 are sampled or the keep-probability is below
  ``floor``.

``draw_by_bill``: the lowest floor whose expected bill fits. The expectation is exact under
the priors: the tree of what the completions can say has few nodes, since an arm with the
image is followed only while it is not mixed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..config import TRAIN_GROUP
from ..scores.posterior import Arm, Prior, keep_probability, prob_above

FIRST_LOOK = 2
"""Completions with the image that are sampled together: fewer cannot be mixed."""
ROWS = 256
"""Rows that stand for a pool where its bill is foreseen, at most."""
_HALVINGS = 14


def looks(m: int, first: int, start: int = 0) -> Iterator[range]:
    """The numbers of m completions from ``start`` on: the first few together, then one at
    a time."""
    if start < first:
        yield range(start, min(first, m))
    for number in range(max(start, first), m):
        yield range(number, number + 1)


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
        p = prob_above(one, zero)
        return (zero.m == 0) | ((p > 1.0 - self.sure) & (p < self.sure))


def draw_by_bill(
    one: Prior, zero: Prior, pilot: Sequence[tuple[int, int]], bill: float, rule: Rule
) -> tuple[float, np.ndarray]:
    """(floor, bool [n]: the samples that are asked) for so many completions.

    All above the lowest floor at which ``bill`` or fewer are expected, and of those within
    1e-4 below it, who may be many where the evidence does not tell samples apart, as many
    as the rest allows, in the order of the keep-probability, then of the pool.

    ``one``, ``zero``: the priors of the pool. ``pilot``: (sample, completions) of the
    pilot, which were asked whatever the floor. ``rule``: its own floor plays no role.
    """
    n = len(one.a_steps)
    nothing = np.zeros(n, np.int64)
    keep = rule.keep(Arm(nothing, nothing, one), Arm(nothing, nothing, zero))
    order = np.argsort(-keep, kind="stable")
    rows = order[(np.arange(min(n, ROWS)) * n + n // 2) // max(1, min(n, ROWS))]
    tree = _Tree(one.take(rows), zero.take(rows), rule)

    def expected(floor: float) -> float:
        lost = sum(m for i, m in pilot if keep[i] < floor)
        return float(tree.expected(floor).mean()) * n + lost

    low, high = 0.0, 1.0
    for _ in range(_HALVINGS if n and expected(0.0) > bill else 0):
        middle = (low + high) / 2
        if expected(middle) > bill:
            low = middle
        else:
            high = middle
    if not n or high == 1.0:
        return low, keep >= low
    drawn = keep >= high
    least, most = expected(high), expected(low)
    near = order[(keep[order] >= low) & (keep[order] < high)]
    share = (bill - least) / (most - least) if most > least else 0.0
    drawn[near[: int(share * len(near))]] = True
    return low, drawn


@dataclass(frozen=True, slots=True)
class _Tree:
    """All that can come of asking about these rows."""

    one: Prior
    zero: Prior
    rule: Rule
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

    def _state(self, *counts: int) -> tuple[np.ndarray, np.ndarray]:
        """(keep-probability, whether the sign is open) after c1, m1, c0, m0."""
        if counts not in self.seen:
            n = len(self.one.a_steps)
            c1, m1, c0, m0 = (np.full(n, x, np.int64) for x in counts)
            arms = Arm(c1, m1, self.one), Arm(c0, m0, self.zero)
            self.seen[counts] = self.rule.keep(*arms), self.rule.unsettled(*arms)
        return self.seen[counts]
