"""The result of ``choose``: which samples are kept, why the others are not.

``Selection`` shows itself (summary, plot, HTML), is compared with another, saved and
loaded. Nothing is decided here; the rules are in ``rap.selection``.
"""

from __future__ import annotations

import html
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .errors import RapStoreError
from .files import write_atomic
from .scores import (
    PAPER_LAMBDA_C,
    as_fraction,
    diagnose,
    floats,
    mask_of,
    read_saved,
    write_saved,
)
from .table import VOLATILE_COLUMNS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .export import Exported

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
class Selection:
    """What ``choose`` returns. ``table``: the score table plus ``D`` (float64),
    ``difficulty`` (float64) and ``reason``, one row an input sample, in data-set order;
    an unknown D or difficulty is null. ``settings``: the settings given, the thresholds
    found, the fingerprint of the scores, warnings. ``source``: the data set if known.
    """

    table: pa.Table
    settings: Mapping[str, Any]
    source: Any = None

    def __len__(self) -> int:
        """Number of samples kept."""
        return len(self.indices)

    def __repr__(self) -> str:
        rule = self.settings["choose"]["rule"]
        return f"<rap.Selection: {len(self)} of {self.table.num_rows}, rule {rule!r}>"

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
        return diagnose(self.table, threshold, self.settings["choose"]["divergence"])

    def summary(self) -> str:
        """A page of text: what was kept, why the rest was not, thresholds, warnings."""
        n, found = self.table.num_rows, self.settings["found"]
        choice = self.settings["choose"]
        lines = [
            f"{len(self)} of {n} samples kept ({len(self) / n:.2%}); rule "
            f"{choice['rule']}, evidence {self.settings['evidence']}"
        ]
        lines += [
            f"  {count:>9}  {count / n:>7.2%}  {reason}"
            for reason, count in self.counts().items()
            if count or reason in KEPT
        ]
        lines += [f"  {line}" for line in _threshold_lines(choice, found)]
        if again := self.settings.get("reselect"):
            done = [f"{n} {code}" for code, n in again["counts"].items() if n]
            lines.append(f"  selected again, phase {again['phase']}: {', '.join(done)}")
        for group in self.settings["groups"] or ():
            lines.append(
                f"  {choice['by']} = {group['group']}: {group['kept']} of "
                f"{group['samples']}, D > {group['lambda_c']:.4g}"
            )
        lines += [f"  warning: {text}" for text in self.warnings]
        return "\n".join(lines)

    def compare(self, other: Selection) -> Comparison:
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

    def export(self, to: str, path: str | os.PathLike[str], **options: Any) -> Exported:
        """Write the kept samples as files that a trainer reads: trl, verl, easyr1,
        openrlhf, ms-swift or llamafactory; see ``rap.export.export``."""
        from .export import export

        return export(self, to, path, **options)

    def report(self, path: str | os.PathLike[str], **options: Any) -> Any:
        """Write one self-contained HTML page; see ``rap.report.write_report``."""
        from .report import write_report

        return write_report(self, path, **options)

    def plot(self) -> Figure:
        """A matplotlib figure: histograms of D, difficulty and log psi, kept samples
        over all, thresholds as lines. Needs the extra ``report`` (matplotlib)."""
        from matplotlib.figure import Figure

        found = self.settings["found"]
        panels = [
            ("D", "D: what the image changes", found["lambda_c"]),
            ("difficulty", "difficulty", None),
            ("log_psi", "log psi: attention on one token", found["log_lambda_a"]),
        ]
        figure = Figure(figsize=(11, 3), layout="constrained")
        for axes, (name, title, line) in zip(
            figure.subplots(1, len(panels)), panels, strict=True
        ):
            values = floats(self.table[name])
            usable = np.isfinite(values)
            axes.set(title=title, ylabel="samples")
            if not usable.any():
                axes.text(0.5, 0.5, "not measured", ha="center", transform=axes.transAxes)
                continue
            bins = np.histogram_bin_edges(values[usable], bins=40)
            axes.hist(values[usable], bins=bins, color="0.8", label="all")
            axes.hist(values[usable & self.kept], bins=bins, color="C0", label="kept")
            axes.set_yscale("symlog")
            if line is not None:
                axes.axvline(line, color="C3", linestyle="--", label="threshold")
            axes.legend()
        return figure

    def _repr_html_(self) -> str:
        """Counts per reason and, where images are at hand, a few thumbnails."""
        n = self.table.num_rows
        rows = "".join(
            f"<tr><td style='text-align:left'>{html.escape(reason)}</td>"
            f"<td>{count}</td><td>{count / n:.2%}</td></tr>"
            for reason, count in self.counts().items()
            if count
        )
        notes = "".join(f"<p><b>warning:</b> {html.escape(w)}</p>" for w in self.warnings)
        head = f"<p><b>{len(self)} of {n} samples kept</b> ({len(self) / n:.2%})</p>"
        return f"<div>{head}<table>{rows}</table>{notes}{self._thumbnails()}</div>"

    def _thumbnails(self) -> str:
        if self.source is None:
            return ""
        try:
            from .report import thumbnails
        except ImportError:  # the extra "report" is not installed: counts only
            return ""
        return thumbnails(self, limit=6)


def _threshold_lines(choice: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    lines = []
    if found["lambda_c"] is not None:
        exact = found["lambda_c_exact"]
        text = f"D > {found['lambda_c']:.6g}" + (f" ({exact})" if exact else "")
        taken, tied = found["at_lambda_c"]
        if taken:
            text += f", and {taken} of the {tied} samples with exactly that D"
        lines.append(text)
    if found.get("order") == "learnable":
        lines.append("ranked by D times what is left to learn (order='learnable')")
    if found["lambda_a"] is None:
        lines.append(f"psi: no limit ({found['lambda_a_origin']})")
    else:
        lines.append(f"psi <= {found['lambda_a']:.6g} ({found['lambda_a_origin']})")
    if found["psi_too_short"]:
        lines.append(f"{found['psi_too_short']} responses are too short to judge attention")
    if choice["replace"]:
        lines.append(
            f"{found['replaced']} of {found['trivial_removed']} trivial samples replaced"
        )
    return lines


def load(folder: str | os.PathLike[str], dataset: Any = None) -> Selection:
    """The selection that ``Selection.save`` wrote; ``dataset`` gives it its data again.

    Raises ``RapStoreError`` if it is not there, damaged, or of a newer schema.
    """
    table, settings = read_saved(Path(folder) / "selection.parquet", "selection")
    return Selection(table, settings, dataset)
