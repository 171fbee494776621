"""What the rules need of each row of a score table, in few bytes a row, read in batches.

Columns of the table pass by a batch at a time; what stays of a row is a byte of flags, two
keys (three where the ranking has its own; ``column``: 2 bytes each for rollouts, else 8)
and, until the limit on psi is known, a float32. Nothing that a batch says depends on its
neighbours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..config import ChooseConfig
from ..scores.columns import as_fraction, look_up
from ..scores.evidence import (
    Evidence,
    codes_of,
    read_evidence,
    usable_rows,
)
from ..scores.kinds import Kind, probability
from ..scores.learning import harm_of
from ..scores.reader import Reader
from ..scores.readings import EVIDENCE_COLUMNS, batch_size, kind_of_rows
from .column import Column
from .rules import Ranking, Rule

VALID, UNSOLVED, EASY, NEGATIVE, ABOVE, KNOWN, PASSES, BIASED = (1 << i for i in range(8))
"""Flags of a row, bits of a byte. ``VALID``: scored, every score finite. ``EASY``: Diff <=
``trivial``. ``ABOVE``: D above the rule's threshold. ``KNOWN``: both D and Diff are.
``PASSES``, ``BIASED``: as ``attention`` finds; neither: psi was not measured."""


@dataclass(frozen=True, slots=True)
class Reading:
    """How the rows of a table are read: the same for every batch of it."""

    kind: Kind
    config: ChooseConfig
    size: int
    threshold: Fraction | None

    def evidence(self, batch: pa.Table) -> Evidence:
        return read_evidence(
            batch,
            divergence=self.config.divergence,
            likelihood=self.config.likelihood,
            unsolved=as_fraction("unsolved", self.config.unsolved),
            threshold=self.threshold,
            kind=self.kind,
        )


@dataclass(slots=True)
class Judged:
    """Arrays are [n]. ``flags``: uint8. ``order``: a key whose order and equality are those
    of D. ``difficulty``: Diff. ``key``: what is ranked by (``order`` itself where that is
    it; None: nothing is ranked). ``harm``: of rules that rank by the value,
    ``learning.harm_of``. ``log_psi``: float32, NaN where it was not measured or the
    row is not valid. ``bad``: quarantine codes of the rows that are not valid, in order.
    ``unread``: bool, valid rows that pass ACE without a psi; None: none.
    ``prior``: of the posterior, in words, if there is one.
    ``bounds``: {bound on D: valid rows of which no more is known}. ``drawn``, ``cut``:
    completions sampled, and cut at their length limit. ``graded``: (right, graded)
    completions with the image, and (right, graded) without; ``graded_rows``: rows that have
    some."""

    reading: Reading
    flags: np.ndarray
    order: Column
    difficulty: Column
    key: Column | None
    ranking: Ranking | None
    log_psi: np.ndarray
    bad: pa.ChunkedArray
    bounds: dict[float, int]
    counted: bool
    drawn: int
    cut: int
    harm: Column | None = None
    unread: np.ndarray | None = None
    prior: str | None = None
    psi_times: np.ndarray | None = None
    graded: tuple[int, int, int, int] = (0, 0, 0, 0)
    graded_rows: int = 0

    def __len__(self) -> int:
        return len(self.flags)

    def has(self, flag: int) -> np.ndarray:
        """bool [n]: rows with this flag."""
        return self.where(lambda f: f & flag != 0)

    def where(self, test: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """bool [n]: rows whose flags pass; ``test`` is asked of all 256 bytes."""
        return look_up(test(np.arange(256, dtype=np.uint8)), self.flags)


def reading_of(reader: Reader, config: ChooseConfig, rule: Rule) -> Reading:
    """Raises ``RapInputError`` for an unknown status or evidence, or two kinds of it."""
    kind = kind_of_rows(reader)
    threshold = rule.threshold(config, kind.name)
    return Reading(kind, config, batch_size(reader, kind), threshold)


def judge(reader: Reader, reading: Reading, rule: Rule) -> Judged:
    """Read what the rule needs of every row."""
    n, config = reader.num_rows, reading.config
    easy_from = as_fraction("trivial", config.trivial)
    found = Judged(
        reading=reading,
        flags=np.zeros(n, np.uint8),
        order=Column(n),
        difficulty=Column(n),
        key=None,
        ranking=None,
        log_psi=np.empty(n, np.float32),
        bad=pa.chunked_array([], pa.string()),
        bounds={},
        counted=True,
        drawn=0,
        cut=0,
    )
    bad: list[pa.Array] = []
    start = 0
    names = [*EVIDENCE_COLUMNS, "n_drawn", "n_cut"]
    for batch in reader.batches(names, reading.size):
        part = _read(reading, batch, slice(start, start + batch.num_rows))
        evidence, rows = part.evidence, part.rows
        start = rows.stop
        found.flags[rows] = _flags(part, reading.threshold, easy_from)
        part.put(found.order, evidence.measured.order)
        part.put(found.difficulty, evidence.difficulty)
        _rank(found, part, rule)
        if rule.by_value:
            found.harm = Column(n) if found.harm is None else found.harm
            part.put(found.harm, harm_of(evidence.difficulty, evidence.d))
        # null is NaN here, and no valid row has a NaN of its own
        psi = batch["log_psi"].to_numpy()
        found.log_psi[rows] = np.where(part.valid, psi, np.float32(np.nan))
        found.unread = _unread(found.unread, rows, n, evidence)
        if evidence.measured.psi_times is not None:  # such a kind is read at once
            found.psi_times = evidence.measured.psi_times
        if evidence.measured.posterior is not None:
            found.prior = evidence.measured.posterior.prior
        bad += part.bad.chunks
        _bound(found.bounds, part)
        found.counted &= evidence.measured.counts is not None
        found.drawn += pc.sum(batch["n_drawn"]).as_py() or 0
        found.cut += pc.sum(batch["n_cut"]).as_py() or 0
        _count_graded(found, batch)
    found.bad = pa.chunked_array([c.dictionary_encode() for c in bad] or [_NO_CODES])
    pa.default_memory_pool().release_unused()
    return found


_NO_CODES = pa.array([], pa.string()).dictionary_encode()


def _count_graded(found: Judged, batch: pa.Table) -> None:
    sums = (pc.sum(batch[name]).as_py() or 0 for name in ("c1", "m1", "c0", "m0"))
    c1, m1, c0, m0 = (a + b for a, b in zip(found.graded, sums, strict=True))
    found.graded = (c1, m1, c0, m0)
    found.graded_rows += batch.num_rows - batch["m1"].null_count


@dataclass(frozen=True, slots=True)
class _Part:
    """Some rows of a table. ``evidence``: of each of them, or, with ``back``, of a row of
    each different one, and ``back`` says which of those a row is as good as. ``valid``:
    bool, of each row. ``bad``: codes of those that are not."""

    rows: slice
    evidence: Evidence
    back: np.ndarray | None
    valid: np.ndarray
    bad: pa.ChunkedArray

    def put(self, column: Column, values: np.ndarray) -> None:
        """``values``: float64, as ``evidence`` has them."""
        if self.back is None:
            column.put(self.rows, values, self.evidence.measured)
        else:
            column.put_few(self.rows, values, self.back)

    def each(self, values: np.ndarray) -> np.ndarray:
        """Of each row."""
        return values if self.back is None else values[self.back]


def _read(reading: Reading, batch: pa.Table, rows: slice) -> _Part:
    alike = reading.kind.alike(batch)
    if alike is None:
        evidence = reading.evidence(batch)
        bad = evidence.code.filter(pa.array(~evidence.valid))
        return _Part(rows, evidence, None, evidence.valid, bad)
    first, back = alike
    evidence = reading.evidence(batch.take(pa.array(first)))
    valid = usable_rows(batch) & evidence.measured.enough[back]
    others = batch.select(EVIDENCE_COLUMNS).filter(pa.array(~valid))
    return _Part(rows, evidence, back, valid, codes_of(others, reading.kind))


def _flags(part: _Part, threshold: Fraction | None, easy_from: Fraction) -> np.ndarray:
    evidence = part.evidence
    known = ~np.isnan(evidence.d) & ~np.isnan(evidence.difficulty)
    found = np.zeros(len(known), np.uint8)
    for flag, mask in (
        (UNSOLVED, evidence.unsolved),
        (EASY, evidence.trivial(easy_from)),
        (NEGATIVE, evidence.negative),
        (ABOVE, evidence.above(threshold)),
        (KNOWN, known),
    ):
        found |= mask.view(np.uint8) * np.uint8(flag)
    return part.each(found) | part.valid.view(np.uint8) * np.uint8(VALID)


def _rank(found: Judged, part: _Part, rule: Rule) -> None:
    ranking = rule.ranking(found.reading.config, part.evidence)
    if ranking is None:
        return
    if ranking.key is part.evidence.measured.order:
        found.key = found.order
    else:
        if found.key is None:
            found.key = Column(len(found))
        part.put(found.key, ranking.key)
    if found.ranking is None:
        found.ranking = ranking


def _unread(
    found: np.ndarray | None, rows: slice, n: int, evidence: Evidence
) -> np.ndarray | None:
    """``Judged.unread``, with these rows."""
    if evidence.measured.psi_unread is not None:
        found = np.zeros(n, bool) if found is None else found
        found[rows] = evidence.measured.psi_unread & evidence.valid
    return found


def _bound(bounds: dict[float, int], part: _Part) -> None:
    bound = part.evidence.measured.d_bound
    if np.isnan(bound).all():
        return
    there = part.each(bound)[part.valid]
    values, counts = np.unique(there[~np.isnan(there)], return_counts=True)
    for value, count in zip(values.tolist(), counts.tolist(), strict=True):
        bounds[value] = bounds.get(value, 0) + count


def probabilities(reader: Reader, judged: Judged) -> np.ndarray:
    """float64: p(answer) with the image of the valid rows that have one."""
    likelihood = judged.reading.config.likelihood
    names = ["p_answer1" if likelihood == "product" else "logp_mean1"]
    found, start = [], 0
    for batch in reader.batches(names):
        flags = judged.flags[start : start + batch.num_rows]
        p = probability(batch, "1", likelihood)[flags & VALID != 0]
        found.append(p[~np.isnan(p)])
        start += batch.num_rows
    return np.concatenate(found) if found else np.empty(0)
