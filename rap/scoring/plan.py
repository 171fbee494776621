"""The cascade's plan: what is asked of which sample, worked out once for a pool.

A pass over the whole pool scores stage 1 into a store of its own, ``stage1`` in the store's
folder, which is resumed, verified and reused as any. The plan is a pure function of that
finished store: priors of both pass rates, from the answers of all samples and the
completions of the pilot (``rap.scores.prior``), and the floor (``rap.scoring.asking``). So
it is the same after every restart and in every process. The second pass fills the store
itself, whose rows begin with those of stage 1; what it does with a sample depends on the
plan and on that sample alone.

What stands in the store when a run goes on was filled by a plan, too: shards that this plan
would have filled otherwise (stage 1 was scored again, since an image changed, say) are
scored again (``redo_changed``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..config import ScoreConfig
from ..scores.columns import as_fraction, floats, integers, mask_of
from ..scores.posterior import Arm, Prior
from ..scores.prior import FEATURES, WITH_IMAGE, WITHOUT, features, fit, predict
from ..scores.store import ScoreStore
from ..scores.table import QUARANTINED, SCORED
from .asking import FIRST_LOOK, Rule, draw_by_bill, looks
from .jobs import Outlook

FOLDER = "stage1"
"""The store of stage 1, in the folder of the store."""

_COUNTS = ("c1", "m1", "c0", "m0")
_SAME = ("id", "status", "stage", "code", "sample_sha256", *FEATURES)


@dataclass(frozen=True, slots=True)
class Plan:
    """``rows``: the finished table of stage 1, n samples. ``one``, ``zero``: their priors.
    ``rule``: how they are asked. ``drawn``: bool [n], the samples that go on to stage 3.
    ``completions``: {sample: its rows} of the pilot."""

    rows: pa.Table
    one: Prior
    zero: Prior
    rule: Rule
    drawn: np.ndarray
    completions: Mapping[int, list[dict[str, Any]]]

    def settled(self, i: int) -> bool:
        """Stage 1 has the last word on sample ``i``, or it is quarantined."""
        return not self.drawn[i]

    def outlook(self, i: int) -> Outlook:
        """What stage 3 is told of sample ``i``."""
        one, zero = ((int(p.a_steps[i]), int(p.b_steps[i])) for p in (self.one, self.zero))
        return Outlook(one, zero, self.rule.floor)

    def begun(self, wanted: range) -> dict[int, dict[str, Any]]:
        """{sample: its row so far}: as stage 1 left it."""
        rows = self.rows.slice(wanted.start, len(wanted)).to_pylist()
        found = {}
        for i, row in zip(wanted, rows, strict=True):
            kept = {k: v for k, v in row.items() if v is not None} | {"index": i}
            if kept["status"] == SCORED and self.settled(i):
                kept["decided_by"] = "pilot" if row["m1"] else "answer"
            found[i] = kept
        return found

    def rollouts(self, i: int) -> list[dict[str, Any]]:
        """The completions of sample ``i`` that the pilot sampled, in the order sampled."""
        return [rollout | {"index": i} for rollout in self.completions.get(i, ())]

    def accepts(self, i: int, row: Mapping[str, Any]) -> bool:
        """Whether a row of an older data set is what this plan would score again."""
        if self.settled(i) or row["decided_by"] in (None, "answer", "pilot"):
            return False
        return self.leads_to(i, row)

    def leads_to(self, i: int, row: Mapping[str, Any]) -> bool:
        """Whether stage 3 may end in these counts: it would have asked for each completion
        but the last, and for no other after it."""
        rows = np.array([i])
        one, zero = self.one.take(rows), self.zero.take(rows)
        c1, m1, c0, m0 = (row[name] or 0 for name in _COUNTS)

        def asks(right: int, seen: int, c: int, m: int) -> bool:
            arms = (_one(right, seen, one), _one(c, m, zero))
            going = self.rule.worth(*arms)
            if 0 < right < seen:
                going &= self.rule.unsettled(*arms) & (m < self.rule.m0)
            else:
                going &= seen < self.rule.m1
            return bool(going[0])

        seen, right = self._pilot(i, "m1"), self._pilot(i, "c1")
        base = (self._pilot(i, "c0"), self._pilot(i, "m0"))
        if seen > m1 or base[1] > m0:
            return False
        for look in looks(self.rule.m1, FIRST_LOOK, seen):
            if look.start >= m1 or 0 < right < seen:
                break
            if not asks(right, seen, *base):
                return False
            # alike so far: the last look alone can differ
            seen = look.stop
            right = c1 if seen >= m1 else (seen if c1 >= seen else 0)
        if (right, seen) != (c1, m1):
            return False
        going = {base[0]}
        for m in range(base[1], m0):
            going = {c + more for c in going if asks(c1, m1, c, m) for more in (0, 1)}
        return c0 in going and not asks(c1, m1, c0, m0)

    def _pilot(self, i: int, name: str) -> int:
        return self.rows[name][i].as_py() or 0


def _one(c: int, m: int, prior: Prior) -> Arm:
    return Arm(np.array([c]), np.array([m]), prior)


def make_plan(rows: pa.Table, completions: pa.Table | None, config: ScoreConfig) -> Plan:
    """``rows``: the finished table of stage 1; ``completions``: those of the pilot."""
    scored = mask_of(pc.equal(rows["status"], SCORED))
    c1, m1, c0, m0 = (np.where(scored, integers(rows[name]), 0) for name in _COUNTS)
    z = features(
        {n: np.where(scored, floats(rows[n]), np.nan).astype(float) for n in FEATURES}
    )
    one = predict(fit(z, c1, m1, WITH_IMAGE), z)
    zero = predict(fit(z, c0, m0, WITHOUT), z)
    rule = Rule(config.m1, config.m0, config.cascade_sure, 0.0)
    here = np.flatnonzero(scored)
    asked = (m1 + m0)[here]
    pilot = [(int(i), int(asked[i])) for i in np.flatnonzero(asked)]
    share = as_fraction("cascade_completions", config.cascade_completions)
    bill = float(share * (config.m1 + config.m0) * len(here))
    floor, above = draw_by_bill(one.take(here), zero.take(here), pilot, bill, rule)
    drawn = np.zeros(rows.num_rows, bool)
    drawn[here[above]] = True
    rule = Rule(config.m1, config.m0, config.cascade_sure, floor)
    return Plan(rows, one, zero, rule, drawn, _by_sample(completions))


def _by_sample(completions: pa.Table | None) -> dict[int, list[dict[str, Any]]]:
    found: dict[int, list[dict[str, Any]]] = {}
    for rollout in [] if completions is None else completions.to_pylist():
        found.setdefault(rollout["index"], []).append(rollout)
    return found


def redo_changed(shards: ScoreStore, plan: Plan) -> None:
    """Have shards scored again that were filled by another plan."""
    for k in sorted({*shards.finished(), *shards.parts()}):
        part = shards.partial(k)
        table = shards.read_shard(k) if part is None else part.scores
        rows = table.select([*_SAME, *_COUNTS, "index", "decided_by"]).to_pylist()
        if not all(_follows(row, first, plan) for row, first in _with_first(rows, plan)):
            shards.redo(k)


def _with_first(
    rows: list[dict[str, Any]], plan: Plan
) -> Iterable[tuple[dict[str, Any], dict[str, Any]]]:
    first = plan.rows.select([*_SAME, *_COUNTS])
    taken = first.take(pa.array([r["index"] for r in rows]))
    return zip(rows, taken.to_pylist(), strict=True)


def _follows(row: Mapping[str, Any], first: Mapping[str, Any], plan: Plan) -> bool:
    """Whether the second pass would fill ``row`` as it stands."""
    if plan.settled(row["index"]):
        decided: str | None = "pilot" if first["m1"] else "answer"
        if first["status"] != SCORED:
            decided = None
        same = all(row[k] == first[k] for k in (*_SAME, *_COUNTS))
        return row["decided_by"] == decided and same
    if row["status"] == QUARANTINED:  # in stage 3: its scores are dropped
        return row["sample_sha256"] in (None, first["sample_sha256"])
    names = ("id", "sample_sha256", *FEATURES)
    if row["decided_by"] in ("answer", "pilot"):
        return False
    return all(row[k] == first[k] for k in names) and plan.leads_to(row["index"], row)
