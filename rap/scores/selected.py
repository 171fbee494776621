"""A selection as data: which samples are kept, and why the others are not.

Counting, comparing, saving. Views (summary, plots, report) are in
``rap.selection.selection``, the decision is in ``rap.selection.choosing``.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..errors import RapInputError
from ..samples.text import flat, taken
from .columns import as_fraction
from .completions import ReadCompletions
from .files import make_folder, write_result
from .match import as_samples, bare_rows, described_again, find, match, reopen
from .reader import Lazily, Without
from .scores import PAPER_LAMBDA_C, TO_MATCH, diagnose, write_saved
from .table import VOLATILE_COLUMNS

if TYPE_CHECKING:
    from ..samples.sampleset import SampleSet
    from .completions import Completions
    from .match import Found
    from .reader import Reader

KEPT = ("kept_cognitive", "kept_replacement", "kept_guard")
ALWAYS_SHOWN = KEPT[:2]
"""Reasons that a summary names also where no sample has them."""
DROPPED = (
    "dropped_unsolved",
    "dropped_attention_biased",
    "dropped_image_hurts",
    "dropped_language_prior",
    "dropped_trivial",
    "dropped_over_budget",
)
REASONS = KEPT + DROPPED
"""All reason codes but the open family ``quarantined_<why>``. The order of the dropped
ones is their precedence: a sample carries the first that holds."""


@dataclass(frozen=True)
class Comparison:
    """Two selections side by side; samples are matched by id.

    ``kept``, ``kept_other``: how many each keeps; ``overlap``: both; ``jaccard``:
    overlap / union (1.0 if both are empty). ``gained``: ids kept here only, in this
    selection's order; ``lost``: ids kept there only, in the other's order. ``moved``:
    {(reason there, reason here): count} over samples that both know and whose reason
    differs. ``unknown``: samples of one that the other has no row for (here, there).
    """

    kept: int
    kept_other: int
    overlap: int
    jaccard: float
    gained: tuple[str, ...]
    lost: tuple[str, ...]
    moved: Mapping[tuple[str, str], int]
    unknown: tuple[int, int]

    def __str__(self) -> str:
        lines = [
            f"kept {self.kept} here, {self.kept_other} there, {self.overlap} in both "
            f"(Jaccard {self.jaccard:.3f})"
        ]
        for (there, here), count in self.moved.items():
            lines.append(f"  {count:>8}  {there} -> {here}")
        if any(self.unknown):
            lines.append(
                f"  samples only here: {self.unknown[0]}, there: {self.unknown[1]}"
            )
        return "\n".join(lines)


@dataclass(frozen=True, eq=False)
class Selected:
    """What was chosen, as data. ``table``: the score table plus ``D``, ``difficulty``,
    ``rank_key`` (float64; null: unknown, or nothing is ranked) and ``reason``, one row an
    input sample, in data-set order. ``settings``: the settings given, the thresholds
    found, texts that say what they mean, the fingerprint of the scores, warnings.
    ``source``: the data set as handed in; None: it is opened again at first need, if it is
    still where it was (``samples``). ``rollouts``: the completions behind the scores
    (``table.ROLLOUT_SCHEMA``) if known; they are not saved. ``profile``: where the time of
    the scoring went (``profile.Profile.as_json``) if it was measured; not saved either.

    ``table`` and ``rollouts`` are read when they are asked for, ``rollouts`` every time;
    ``reader`` gives the columns of the one by name, in batches, ``completions.tables()``
    the others a shard at a time.
    """

    table: pa.Table
    settings: Mapping[str, Any]
    source: Any = None
    rollouts: pa.Table | None = None
    profile: Mapping[str, Any] | None = None

    if TYPE_CHECKING:  # set with ``table`` and ``rollouts``

        @property
        def reader(self) -> Reader:
            """The columns of ``table``, by name, in batches."""

        @property
        def completions(self) -> Completions | None:
            """``rollouts``, a shard at a time."""

    def __len__(self) -> int:
        """Number of samples kept."""
        return len(self.indices)

    @cached_property
    def kept(self) -> np.ndarray:
        """bool [n]: which rows of ``table`` are kept."""
        return self.reader.mask("reason", KEPT)

    @cached_property
    def indices(self) -> np.ndarray:
        """int64, the kept rows' ``index`` in the data set, ascending."""
        return self.of_kept(["index"])["index"].to_numpy()

    @property
    def ids(self) -> list[str]:
        """Ids of the kept samples, in data-set order."""
        return self.of_kept(["id"])["id"].to_pylist()

    def of_kept(self, names: Sequence[str]) -> pa.Table:
        """These columns of ``table``, of the kept samples."""
        found, start = [], 0
        for batch in self.reader.batches(names):
            mask = self.kept[start : start + batch.num_rows]
            found.append(batch.filter(pa.array(mask)))
            start += batch.num_rows
        return pa.concat_tables([self.reader.none(names), *found])

    def to_match(self) -> pa.Table:
        """The columns that tell which sample of a data set each row is."""
        there = self.reader.schema.names
        return self.reader.read([name for name in TO_MATCH if name in there])

    @property
    def warnings(self) -> list[str]:
        """What the user should know: short results, an uncalibrated threshold, ..."""
        return list(self.settings["warnings"])

    @cached_property
    def samples(self) -> SampleSet | None:
        """The data set: ``source``, or what was scored opened again; None if the selection
        does not know it, or it is not there any more. Raises ``RapInputError`` if it cannot
        be read. Nothing is compared yet: ``rows`` and ``match`` do that."""
        data = self.settings.get("data")
        return reopen(data) if self.source is None else as_samples(self.source, data)

    @property
    def data(self) -> dict[str, Any] | None:
        """What is known of the data set that was scored (``scores.match.describe``)."""
        known = self.settings.get("data")
        if known is None and self.source is not None:
            with contextlib.suppress(RapInputError):  # rows that are no samples
                samples = as_samples(self.source, None)
                known = described_again(self.to_match(), samples, None)
        return known

    def require_samples(self) -> SampleSet:
        """``samples``. Raises ``RapInputError`` where there are none."""
        if self.samples is None:
            path = (self.settings.get("data") or {}).get("absolute")
            gone = "" if path is None else f" ({path} is not there any more)"
            raise RapInputError(
                f"the selection does not know its data set{gone}, which has the questions "
                "and the images: rap.load(folder, dataset=...), data=..., or --data FILE"
            )
        return self.samples

    def match(
        self,
        samples: SampleSet | None = None,
        rows: Sequence[int] | np.ndarray | None = None,
    ) -> np.ndarray:
        """int64: the row of ``samples`` (None: its own) of each kept sample, or of the
        given ``rows`` of ``table``. Raises ``RapInputError``, by name, for what is not
        there or not as it was scored (``scores.match``)."""
        rows = np.flatnonzero(self.kept) if rows is None else rows
        samples = self.require_samples() if samples is None else samples
        return match(self.reader, samples, data=self.settings.get("data"), rows=rows)

    def find(self, samples: SampleSet, rows: Sequence[int] | np.ndarray) -> Found:
        """``match``, but what is not there is told and not raised."""
        return find(self.reader, samples, data=self.settings.get("data"), rows=rows)

    @cached_property
    def rows(self) -> np.ndarray:
        """int64: where the kept samples stand in ``samples``, in the order of ``ids``: the
        ``indices``, unless the data set was put in another order since it was scored.
        Raises as ``match``."""
        return self.match()

    @property
    def dataset(self) -> Any:
        """The chosen rows of the data set in the order of ``ids``, original columns
        untouched; None if it is not known or not there any more. Raises ``RapInputError``
        if it is not the one that was scored."""
        try:
            if self.samples is None:
                return None
        except RapInputError:
            rows = bare_rows(self.to_match(), self.source, np.flatnonzero(self.kept))
            if rows is None:
                raise
            return rows
        return self.samples.take(self.rows)

    def counts(self) -> dict[str, int]:
        """{reason: samples}: all of ``REASONS`` in order, then the quarantine reasons
        that occur, by name. They add up to the number of rows."""
        counted: Counter[str] = Counter()
        for batch in self.reader.batches(["reason"]):
            for c in pc.value_counts(batch["reason"]).to_pylist():
                counted[c["values"]] += c["counts"]
        quarantined = sorted(set(counted) - set(REASONS))
        return {r: counted.get(r, 0) for r in (*REASONS, *quarantined)}

    def diagnostics(self) -> dict[str, int]:
        """``Scores.diagnostics`` at the lambda_c found, exactly, and for the divergence
        chosen by; at 0.5 if every group has its own lambda_c (``by``)."""
        found = self.settings["found"]
        if found["lambda_c_exact"] is not None:
            threshold = Fraction(found["lambda_c_exact"])
        else:
            value = found["lambda_c"]
            threshold = as_fraction("lambda_c", PAPER_LAMBDA_C if value is None else value)
        choice = self.settings["choose"]
        return diagnose(
            self.reader,
            threshold,
            divergence=choice["divergence"],
            likelihood=choice.get("likelihood", "product"),
            unsolved=as_fraction("unsolved", choice.get("unsolved", 1.0)),
        )

    def compare(self, other: Selected) -> Comparison:
        """Overlap, Jaccard and what moved from ``other`` to this selection."""
        names = ["id", "reason"]
        table, other_table = self.reader.read(names), other.reader.read(names)
        here, there = (flat(t["id"].cast(pa.large_string())) for t in (table, other_table))
        position = pc.index_in(here, value_set=there)
        shared = position.is_valid().to_numpy(zero_copy_only=False)
        rows = np.flatnonzero(shared)
        partner = pc.drop_null(position).to_numpy()
        reason_here = taken(table["reason"], rows)
        reason_there = taken(other_table["reason"], partner)
        both = self.kept[rows] & other.kept[partner]
        overlap = int(both.sum())
        union = int(self.kept.sum()) + int(other.kept.sum()) - overlap
        moved = pa.table({"there": reason_there, "here": reason_here})
        moved = moved.filter(pc.not_equal(moved["there"], moved["here"]))
        grouped = moved.group_by(["there", "here"], use_threads=False)
        pairs = grouped.aggregate([([], "count_all")]).to_pylist()
        pairs.sort(key=lambda p: (-p["count_all"], p["there"], p["here"]))
        gained, lost = self.kept.copy(), other.kept.copy()
        gained[rows[both]] = False
        lost[partner[both]] = False
        return Comparison(
            kept=int(self.kept.sum()),
            kept_other=int(other.kept.sum()),
            overlap=overlap,
            jaccard=overlap / union if union else 1.0,
            gained=tuple(here.filter(pa.array(gained)).to_pylist()),
            lost=tuple(there.filter(pa.array(lost)).to_pylist()),
            moved={(p["there"], p["here"]): p["count_all"] for p in pairs},
            unknown=(len(here) - len(rows), len(there) - len(rows)),
        )

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write ``selection.parquet`` (the table), ``indices.npy`` (int64) and
        ``settings.json`` into ``folder``, each whole or not at all. ``settings["data"]``
        says which data set it is, so that ``rap.load`` finds it again.

        Byte-same for the same scores and settings: clock readings
        (``table.VOLATILE_COLUMNS``) are saved as null. Raises ``RapStoreError``.
        """
        folder = Path(folder)
        settings = {**self.settings, "data": self.data}
        text = json.dumps(settings, indent=1, sort_keys=True, allow_nan=False)
        make_folder(folder)
        reader = Without(self.reader, VOLATILE_COLUMNS)
        write_saved(folder / "selection.parquet", reader, settings, "selection")
        write_result(folder / "indices.npy", lambda file: np.save(file, self.indices))
        write_result(
            folder / "settings.json", lambda file: file.write(text.encode() + b"\n")
        )


# Descriptors, for readers and Completions; type checkers see the fields as they are read.
Selected.table = Lazily()
Selected.rollouts = ReadCompletions()
