"""What was chosen, as data: which samples are kept, why the others are not.

It counts, compares and saves itself. How it is shown is in ``rap.selection.selection``,
how it is decided in ``rap.selection.choosing``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..errors import RapStoreError
from .columns import as_fraction, mask_of
from .files import write_atomic
from .scores import PAPER_LAMBDA_C, diagnose, write_saved
from .table import VOLATILE_COLUMNS

KEPT = ("kept_cognitive", "kept_replacement")
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
    ``source``: the data set if known. ``rollouts``: the completions behind the scores
    (``table.ROLLOUT_SCHEMA``) if known; they are not saved.
    """

    table: pa.Table
    settings: Mapping[str, Any]
    source: Any = None
    rollouts: pa.Table | None = None

    def __len__(self) -> int:
        """Number of samples kept."""
        return len(self.indices)

    @cached_property
    def kept(self) -> np.ndarray:
        """bool [n]: which rows of ``table`` are kept."""
        return mask_of(pc.is_in(self.table["reason"], value_set=pa.array(KEPT)))

    @cached_property
    def indices(self) -> np.ndarray:
        """int64, the kept rows' ``index`` in the data set, ascending."""
        return self.table["index"].to_numpy()[self.kept]

    @property
    def ids(self) -> list[str]:
        """Ids of the kept samples, in data-set order."""
        return self.table["id"].filter(pa.array(self.kept)).to_pylist()

    @property
    def warnings(self) -> list[str]:
        """What the user should know: short results, an uncalibrated threshold, ..."""
        return list(self.settings["warnings"])

    @property
    def dataset(self) -> Any:
        """The chosen rows of the data set, original columns untouched; None if the
        scores do not know their data set."""
        if self.source is None:
            return None
        if hasattr(self.source, "take") and not hasattr(self.source, "select"):
            return self.source.take(self.indices)
        return self.source.select(self.indices)

    def counts(self) -> dict[str, int]:
        """{reason: samples}: all of ``REASONS`` in order, then the quarantine reasons
        that occur, by name. They add up to the number of rows."""
        counted = {
            c["values"]: c["counts"]
            for c in pc.value_counts(self.table["reason"]).to_pylist()
        }
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
            self.table,
            threshold,
            divergence=choice["divergence"],
            likelihood=choice.get("likelihood", "product"),
            unsolved=as_fraction("unsolved", choice.get("unsolved", 1.0)),
        )

    def compare(self, other: Selected) -> Comparison:
        """Overlap, Jaccard and what moved from ``other`` to this selection."""
        here, there = self.table["id"], other.table["id"]
        position = pc.index_in(here, value_set=there.combine_chunks())
        shared = position.is_valid().to_numpy()
        rows = np.flatnonzero(shared)
        partner = pc.drop_null(position).to_numpy()
        reason_here = self.table["reason"].take(rows)
        reason_there = other.table["reason"].take(partner)
        both = self.kept[rows] & other.kept[partner]
        overlap = int(both.sum())
        union = int(self.kept.sum()) + int(other.kept.sum()) - overlap
        moved = pa.table({"there": reason_there, "here": reason_here})
        moved = moved.filter(pc.not_equal(moved["there"], moved["here"]))
        pairs = moved.group_by(["there", "here"]).aggregate([([], "count_all")]).to_pylist()
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
        ``settings.json`` into ``folder``, each whole or not at all.

        Byte-same for the same scores and settings: clock readings
        (``table.VOLATILE_COLUMNS``) are saved as null. Raises ``RapStoreError``.
        """
        folder = Path(folder)
        table = self.table
        for name in VOLATILE_COLUMNS:
            position = table.schema.get_field_index(name)
            nulls = pa.nulls(table.num_rows, table.schema.field(name).type)
            table = table.set_column(position, table.schema.field(name), nulls)
        text = json.dumps(self.settings, indent=1, sort_keys=True, allow_nan=False)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RapStoreError(f"{folder}: cannot be made: {error}") from error
        write_saved(folder / "selection.parquet", table, dict(self.settings), "selection")
        write_atomic(folder / "indices.npy", lambda file: np.save(file, self.indices))
        write_atomic(
            folder / "settings.json", lambda file: file.write(text.encode() + b"\n")
        )
