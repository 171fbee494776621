"""The cascade's plan: which samples completions are sampled for.

A pass over the whole pool scores stage 1 into a store of its own, ``stage1`` in the store's
folder: an ordinary store of evidence ``answer``, which is resumed, verified and reused as
any. The plan is a pure function of that finished store, so it is the same after every
restart; the second pass fills the store itself, whose rows begin with those of stage 1.

What stands in the store when a run goes on was filled by a plan, too: shards that this plan
would have filled otherwise (stage 1 was scored again, since an image changed, say) are
scored again (``redo_changed``).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..scores.columns import as_fraction, floats, mask_of
from ..scores.store import ScoreStore
from ..scores.table import QUARANTINED, SCORED
from .evidence.base import PSI

FOLDER = "stage1"
"""The store of stage 1, in the folder of the store."""

_SAME = ("id", "status", "stage", "code", "sample_sha256", "p_answer1", "p_answer0")


@dataclass(frozen=True, slots=True)
class Plan:
    """``rows``: the finished table of stage 1. ``drawn``: bool [n], the samples that go on
    to completions. ``evidence``: the name that the rows of the second pass have."""

    rows: pa.Table
    drawn: np.ndarray
    evidence: str

    def settled(self, i: int) -> bool:
        """Stage 1 has the last word on sample ``i``, or it is quarantined."""
        return not self.drawn[i]

    def begun(self, wanted: range) -> dict[int, dict[str, Any]]:
        """{sample: its row so far}: as stage 1 left it, without what it read of the
        attention to the answer, which is no response."""
        rows = self.rows.slice(wanted.start, len(wanted)).to_pylist()
        found = {}
        for i, row in zip(wanted, rows, strict=True):
            kept = {k: v for k, v in row.items() if k not in PSI and v is not None}
            kept |= {"index": i, "evidence": self.evidence}
            if kept["status"] == SCORED and self.settled(i):
                kept["decided_by"] = "answer"
            found[i] = kept
        return found

    def accepts(self, i: int, row: Mapping[str, Any]) -> bool:
        """Whether a row of an older data set is what this plan would score again."""
        decided = row["decided_by"]
        return not self.settled(i) and decided != "answer"


def make_plan(rows: pa.Table, share: float, evidence: str) -> Plan:
    """floor(share * n) of the n samples with a p(answer), those with the largest
    p (1 - p), ties by index; and every scored sample without one."""
    scored = mask_of(pc.equal(rows["status"], SCORED))
    p = np.where(scored, floats(rows["p_answer1"]), np.nan)
    known = np.flatnonzero(~np.isnan(p))
    score = p[known] * (1.0 - p[known])
    many = math.floor(as_fraction("cascade_share", share) * len(known))
    drawn = scored & np.isnan(p)
    drawn[known[np.argsort(-score, kind="stable")[:many]]] = True
    return Plan(rows, drawn, evidence)


def redo_changed(shards: ScoreStore, plan: Plan) -> None:
    """Have shards scored again that were filled by another plan."""
    for k in sorted({*shards.finished(), *shards.parts()}):
        part = shards.partial(k)
        table = shards.read_shard(k) if part is None else part.scores
        rows = table.select([*_SAME, "index", "decided_by"]).to_pylist()
        if not all(_follows(row, first, plan) for row, first in _with_first(rows, plan)):
            shards.redo(k)


def _with_first(
    rows: list[dict[str, Any]], plan: Plan
) -> Iterable[tuple[dict[str, Any], dict[str, Any]]]:
    first = plan.rows.select(list(_SAME)).take(pa.array([r["index"] for r in rows]))
    return zip(rows, first.to_pylist(), strict=True)


def _follows(row: Mapping[str, Any], first: Mapping[str, Any], plan: Plan) -> bool:
    """Whether the second pass would begin ``row`` as it stands."""
    if plan.settled(row["index"]):
        decided = "answer" if first["status"] == SCORED else None
        return row["decided_by"] == decided and all(row[k] == first[k] for k in _SAME)
    if row["status"] == QUARANTINED:  # in stage 2 or 3: its scores are dropped
        return row["sample_sha256"] in (None, first["sample_sha256"])
    names = ("id", "sample_sha256", "p_answer1", "p_answer0")
    return row["decided_by"] != "answer" and all(row[k] == first[k] for k in names)
