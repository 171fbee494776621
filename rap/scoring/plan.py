"""The cascade's rounds: which samples are scored when, and what decides each of them.

The first round is the pilot, a share of the samples that is told by their ids; what follows
is scored in one more round, or, of pools so small that a pilot foresees their bill too
badly, in several, each with three times as many samples as were scored before it. A sample
is scored in one round alone, from its own images and prompts, read once.

A round before the last fills a store of its own, ``round-0``, ``round-1`` in the store's
folder, which is resumed, verified and reused as any. The last fills the store itself,
which takes the rows of the others over. What a round decides by (``asking.Asking``) is a
pure function of the finished stores of the rounds before it: priors of both pass rates,
fitted to their completions (``rap.scores.prior``), and the floor that keeps the bill, what
they have spent taken off. So it is the same after every restart and in every process.

What stands in a store when a run goes on was filled by a plan, too: shards that this plan
would have filled otherwise (the pilot was scored again, since an image changed, say) are
scored again (``redo_changed``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..config import ScoreConfig
from ..samples.part import Part
from ..samples.sampleset import SampleSet
from ..scores.columns import as_fraction, floats, integers, mask_of
from ..scores.prior import FEATURES, WITH_IMAGE, WITHOUT, features, fit, predict
from ..scores.store import ScoreStore
from ..scores.table import ROLLOUT_SCHEMA, SCORED
from .asking import Asking, Rule, floor_by_bill, share_of

FIRST = 0.08
"""Share of the first round where there is no pilot."""
GROWTH = 3
"""A round ends with so many times the samples that were scored before it."""
LAST = 0.75
"""No round but the last ends with a larger share of the samples."""
ENOUGH = 4000
"""Samples by which a bill is foreseen within a 30th."""

_COUNTS = ("c1", "m1", "c0", "m0")
_SAME = ("id", "status", "stage", "code", "sample_sha256", *FEATURES, *_COUNTS)


def folder_of(number: int) -> str:
    """The store of a round before the last, in the folder of the store."""
    return f"round-{number}"


def name_of(number: int, of: int) -> str:
    """What the pass ``number`` (from 0) of ``of`` is called, in bars and logs: the pilot
    first, the rest of the samples last."""
    if of == 1:
        return "scoring"
    part = " the pilot" if not number else " the rest" if number == of - 1 else ""
    return f"scoring{part}, round {number + 1} of {of}"


def shares(n: int, pilot: float) -> list[float]:
    """The share of ``n`` samples with which each round before the last ends."""
    found = [pilot or FIRST]
    while found[-1] * GROWTH < LAST and found[-1] * n < ENOUGH:
        found.append(found[-1] * GROWTH)
    return found


def rounds_of(samples: SampleSet, config: ScoreConfig) -> tuple[Part, ...]:
    """The samples of each round before the last: at least one, none is empty."""
    place = np.array([share_of(config.seed, name, "pilot") for name in samples.ids])
    ends = [0.0, *shares(len(samples), config.cascade_pilot)]
    found = (
        np.flatnonzero((place >= start) & (place < end))
        for start, end in zip(ends, ends[1:], strict=False)
    )
    rounds = tuple(Part(samples, places) for places in found if len(places))
    # of very few samples none may fall to a round: the nearest is the first
    return rounds or (Part(samples, np.array([np.argmin(place)])),)


@dataclass(frozen=True)
class Round:
    """A finished round. ``places``: int64 [k], its samples in the data set; ``rows``: their
    scores, ``completions``: those behind them; ``tally``: groups of completions."""

    places: np.ndarray
    rows: pa.Table
    completions: pa.Table
    tally: Mapping[str, int] = field(default_factory=dict)

    @cached_property
    def index(self) -> np.ndarray:
        """int64, ascending: the row of each completion."""
        return self.completions["index"].to_numpy()

    @classmethod
    def of(cls, part: Part, shards: ScoreStore) -> Round:
        """Of its store."""
        said, tally = shards.completions(), Counter[str]()
        for k in shards.finished():
            tally.update(shards.tally(k))
        none = ROLLOUT_SCHEMA.empty_table()
        return cls(part.places, shards.read(), none if said is None else said.read(), tally)


@dataclass(frozen=True, slots=True)
class Plan:
    """``asking``: what the round decides by. ``done``: the rounds that it takes over; those
    before it where it is the last."""

    asking: Asking
    done: tuple[Round, ...] = ()

    def settled(self, i: int) -> bool:
        """Sample ``i`` was scored in a round before."""
        return self._place(i) is not None

    def begun(self, wanted: range) -> dict[int, dict[str, Any]]:
        """{sample: its row} of those that were scored before. The pilot's samples that the
        last floor draws count as decided by their completions: they stand for others."""
        found = {}
        for done in self.done:
            first, last = np.searchsorted(done.places, [wanted.start, wanted.stop])
            rows = done.rows.slice(first, last - first).to_pylist()
            pilot = [row for row in rows if row["decided_by"] == "pilot"]
            for row, drawn in zip(pilot, self._drawn(pilot), strict=True):
                row["decided_by"] = "text" if drawn else "pilot"
            for i, row in zip(done.places[first:last].tolist(), rows, strict=True):
                found[i] = {k: v for k, v in row.items() if v is not None} | {"index": i}
        return found

    def rollouts(self, i: int) -> Iterator[dict[str, Any]]:
        """The completions of sample ``i`` that were sampled before, in their order."""
        at = self._place(i)
        if at is not None:
            done, k = at
            first, last = np.searchsorted(done.index, [k, k + 1])
            for rollout in done.completions.slice(first, last - first).to_pylist():
                yield rollout | {"index": i}

    @property
    def groups(self) -> tuple[int, int]:
        """(groups of completions, degenerate ones) of the rounds before."""
        names = ("groups", "degenerate")
        a, b = (sum(d.tally.get(name, 0) for d in self.done) for name in names)
        return a, b

    def accepts(self, i: int, row: Mapping[str, Any]) -> bool:
        """Whether a row, of an older data set or plan, is what this one would lead to."""
        at = self._place(i)
        if at is not None:
            done, k = at
            first = done.rows.slice(k, 1).to_pylist()[0]
            return all(row.get(name) == first[name] for name in _SAME)
        return row["status"] != SCORED or self.asking.leads_to(row)

    def _drawn(self, rows: Sequence[Mapping[str, Any]]) -> list[bool]:
        if not rows:
            return []
        found = self.asking.drawn([row["id"] for row in rows], *self.asking.priors(rows))
        return list(found.tolist())

    def _place(self, i: int) -> tuple[Round, int] | None:
        for done in self.done:
            k = int(np.searchsorted(done.places, i))
            if k < len(done.places) and done.places[k] == i:
                return done, k
        return None


def make_plan(done: Sequence[Round], n: int, config: ScoreConfig) -> Plan:
    """What the round after these decides by, of a pool of ``n`` samples."""
    if not done:
        return Plan(Asking(config))
    rows = pa.concat_tables([d.rows for d in done])
    rows = rows.filter(mask_of(pc.equal(rows["status"], SCORED)))
    c1, m1, c0, m0 = (integers(rows[name]) for name in _COUNTS)
    z = features({name: floats(rows[name]) for name in FEATURES})
    found = fit(z, c1, m1, WITH_IMAGE), fit(z, c0, m0, WITHOUT)
    seen = sum(len(d.places) for d in done)
    usable = rows.num_rows / seen
    share = as_fraction("cascade_completions", config.cascade_completions)
    bill = float(share) * (config.m1 + config.m0) * usable * n
    rule = Rule(config.m1, config.m0, config.cascade_sure, 0.0)
    one, zero = predict(found[0], z), predict(found[1], z)
    spent = float((m1 + m0).sum())
    floor = floor_by_bill(one, zero, spent, usable * (n - seen), bill, rule)
    return Plan(Asking(config, floor, *found), tuple(done))


def redo_changed(shards: ScoreStore, plan: Plan) -> None:
    """Have shards scored again that were filled by another plan."""
    names = [*_SAME, "index", "n_drawn"]
    for k in sorted({*shards.finished(), *shards.parts()}):
        part = shards.partial(k)
        table = shards.read_shard(k) if part is None else part.scores
        rows = table.select(names).to_pylist()
        if not all(plan.accepts(row["index"], row) for row in rows):
            shards.redo(k)
