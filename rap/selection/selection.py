"""``Selection``, the result of ``choose``: what was chosen, with its views.

The data, and what can be asked of it, are ``rap.scores.selected``; nothing is decided
here: ``rap.selection.choosing`` does that.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from ..errors import RapInputError, RapStoreError, require_extra
from ..scores.columns import floats
from ..scores.display import bars, card, frame_of
from ..scores.scores import read_saved
from ..scores.selected import ALWAYS_SHOWN, Comparison, Selected
from ..scores.stages import mean_of, stages_of
from ..scores.table import CHOSEN_COLUMNS, SCORE_SCHEMA, with_new
from .learn import lines_of, lines_of_groups

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

    from ..export.write import Exported

GROUPS_SHOWN = 10
"""Groups (``by=``) that a summary lists, the largest ones."""

_SAVED = pa.schema([*SCORE_SCHEMA, *((name, pa.float64()) for name in CHOSEN_COLUMNS)])


@dataclass(frozen=True, eq=False, repr=False)
class Selection(Selected):
    """What ``choose`` returns: ``Selected`` (``table``, ``settings``, ``source``,
    ``rollouts``) with its views.
    """

    def __repr__(self) -> str:
        rule = self.settings["choose"]["rule"]
        return f"<rap.Selection: {len(self)} of {self.reader.num_rows}, rule {rule!r}>"

    def summary(self) -> str:
        """A page of text: what was kept, why the rest was not, thresholds, warnings."""
        n, found = self.reader.num_rows, self.settings["found"]
        choice = self.settings["choose"]
        lines = [
            f"{len(self)} of {n} samples kept ({len(self) / n:.2%}); rule "
            f"{choice['rule']}, evidence {self.settings['evidence']}"
        ]
        lines += [
            f"  {count:>9}  {count / n:>7.2%}  {reason}"
            for reason, count in self.counts().items()
            if count or reason in ALWAYS_SHOWN
        ]
        texts = self.settings.get("texts") or {}
        lines += [f"  {line}" for line in _threshold_lines(choice, found, texts)]
        groups = self.settings.get("groups") or []
        if learned := [g["learned"] for g in groups if "learned" in g]:
            lines += [f"  {line}" for line in lines_of_groups(learned, choice)]
        lines += [f"  {line}" for line in self._stage_lines()]
        if again := self.settings.get("reselect"):
            done = [f"{n} {code}" for code, n in again["counts"].items() if n]
            lines.append(f"  selected again, phase {again['phase']}: {', '.join(done)}")
        lines += [f"  {line}" for line in self._group_lines()]
        lines += [f"  warning: {text}" for text in self.warnings]
        return "\n".join(lines)

    def _stage_lines(self) -> list[str]:
        """The stages of a cascade, and the mean keep-probability."""
        lines = [
            f"decided by {s.name}: {s.samples} samples, {s.kept} kept, {s.completions} "
            "completions"
            for s in stages_of(self.reader, self.kept)
        ]
        mean = mean_of(
            floats(self.reader.read(["keep_probability"])["keep_probability"]), self.kept
        )
        if mean is not None:
            lines.append(f"keep-probability of the kept samples: {mean:.2f} on average")
        return lines

    def _group_lines(self) -> list[str]:
        """The largest groups, and what the others come to."""
        groups = self.settings["groups"] or []
        ordered = sorted(groups, key=lambda g: -g["samples"])  # stable
        shown, rest = ordered[:GROUPS_SHOWN], ordered[GROUPS_SHOWN:]
        lines = []
        for group in shown:
            limit = group["lambda_c"]
            above = "" if limit is None else f", D > {limit:.4g}"
            lines.append(
                f"{self.settings['choose']['by']} = {group['group']}: {group['kept']} of "
                f"{group['samples']}{above}"
            )
        if rest:
            kept, samples = (sum(g[name] for g in rest) for name in ("kept", "samples"))
            empty = sum(not g["kept"] for g in rest)
            lines.append(
                f"and {len(rest)} smaller groups: {kept} of {samples} (none in {empty})"
            )
        return lines

    def compare(self, other: Selected | str | os.PathLike[str]) -> Comparison:
        """Overlap, Jaccard and what moved from ``other``, a selection or its folder, to
        this one. Raises ``RapInputError`` for what is none."""
        if isinstance(other, (str, os.PathLike)):
            other = load(other)
        if not isinstance(other, Selected):
            raise RapInputError(
                f"compare: got {type(other).__name__}; expected a selection or its folder"
            )
        return super().compare(other)

    def export(self, to: str, path: str | os.PathLike[str], **options: Any) -> Exported:
        """Write the kept samples as files that a trainer reads: ``to`` is one of
        ``rap.export.TARGETS``; see ``rap.export.export``."""
        from ..export.write import export

        return export(self, to, path, **options)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload the kept samples, with their images, scores and a data set card, as a
        private data set of the Hugging Face hub; see ``rap.export.hub.push_to_hub``."""
        from ..export.hub import push_to_hub

        return push_to_hub(self, repo_id, **options)

    def to_pandas(self, *, kept: bool = False) -> pandas.DataFrame:
        """``table`` as a DataFrame, one row a sample, with its ``index`` as the index;
        ``kept``: only the kept samples. Raises ``RapConfigError`` without pandas."""
        return frame_of(self.table.filter(pa.array(self.kept)) if kept else self.table)

    def report(
        self,
        path: str | os.PathLike[str],
        *,
        compare: Selected | str | os.PathLike[str] | None = None,
        **options: Any,
    ) -> Path:
        """Write one self-contained HTML page, to be read in a browser; see
        ``rap.report.write_report``. ``compare``: another selection of the same data, or
        its folder."""
        from ..report.page import write_report

        if isinstance(compare, (str, os.PathLike)):
            compare = load(compare)
        return write_report(self, path, compare=compare, **options)

    def plot(self) -> Figure:
        """A matplotlib figure: histograms of D, difficulty and log psi, kept samples over
        all, thresholds as lines; a notebook shows it. Raises ``RapConfigError`` without
        matplotlib (extra ``report``)."""
        require_extra("plot", "report", "matplotlib")
        from ..report.plot import plot

        return plot(self)

    def _repr_html_(self) -> str:
        """Counts per reason and, where images are at hand, a few thumbnails."""
        n = self.reader.num_rows
        counts = [(r, k) for r, k in self.counts().items() if k]
        settings = self.settings
        return card(
            f"{len(self):,} of {n:,} samples kept ({len(self) / max(n, 1):.2%})",
            f"rule {settings['choose']['rule']}, evidence {settings['evidence']}",
            bars(counts, n),
            self.warnings,
            self._thumbnails(),
        )

    def _thumbnails(self) -> str:
        try:
            if self.samples is None:
                return ""
            from ..report.page import thumbnails
        except (ImportError, RapInputError):  # no extra "report", no data: counts only
            return ""
        return thumbnails(self, limit=6)


def _threshold_lines(
    choice: Mapping[str, Any], found: Mapping[str, Any], texts: Mapping[str, Any]
) -> list[str]:
    lines = []
    if found["lambda_c"] is not None:
        exact = found["lambda_c_exact"]
        shown = f"{found['lambda_c']:.6g}"
        text = f"D > {shown}" + (f" ({exact})" if exact not in (None, shown) else "")
        taken, tied = found["at_lambda_c"]
        if taken:
            text += f", and {taken} of the {tied} samples with exactly that D"
        lines.append(text)
    if found.get("order") not in (None, "gain"):
        text = texts.get("ranking") or "D times what is left to learn"
        # rule learn has an order of its own, which is no option
        option = "" if found["order"] == "value" else f"order={found['order']!r}, "
        lines.append(f"ranked by {text} ({option}column rank_key)")
    if found["lambda_a"] is not None and found.get("biased") == "report":
        lines.append(
            f"psi > {found['lambda_a']:.6g} in {found['psi_above']} samples "
            f"({found['lambda_a_origin']}), reported only: biased='drop' drops them"
        )
    elif found["lambda_a"] is None:
        lines.append(f"psi: no limit ({found['lambda_a_origin']})")
    else:
        lines.append(f"psi <= {found['lambda_a']:.6g} ({found['lambda_a_origin']})")
    if found["psi_too_short"]:
        lines.append(f"{found['psi_too_short']} responses are too short to judge attention")
    if found.get("cut"):
        lines.append(
            f"{found['cut']} of {found['completions']} completions were cut at "
            "max_new_tokens"
        )
    if "learned" in found:
        lines += lines_of(found["learned"], choice)
    elif choice["replace"] and choice["rule"] == "budget":
        lines.append(
            f"{found['trivial_removed']} trivial samples left out, {found['replaced']} of "
            "the kept ones in their place"
        )
    elif choice["replace"] and choice["rule"] == "paper":
        lines.append(
            f"{found['replaced']} of {found['trivial_removed']} trivial samples replaced"
        )
    return lines


def load(folder: str | os.PathLike[str], dataset: Any = None) -> Selection:
    """The selection that ``Selection.save`` wrote into ``folder``.

    It opens its data set again by itself, when it is first asked for, if that is still
    where it was; ``dataset`` (a ``SampleSet``, or what ``open_samples`` takes) is one from
    elsewhere. Rows are found by id and by content, never by their place, and what is not
    there as it was scored is refused (``scores.match``).

    One that an older version saved has nulls in the columns that are new since.
    Raises ``RapStoreError`` if it is not there, damaged, or of a newer schema.
    """
    path = Path(folder)
    if path.is_dir() or not path.suffix:
        path /= "selection.parquet"
    if (path.parent / "store.json").exists() and not path.exists():
        raise RapStoreError(
            f"{folder}: is a score store, from which nothing was chosen yet: "
            f"rap.choose({str(folder)!r}, budget=...) does "
            f"(rap choose {folder} --budget 0.09 --out selection/)"
        )
    reader = read_saved(path, "selection", lambda table: with_new(table, _SAVED))
    settings = reader.note["meta"]
    lacking = [name for name, kind in _SETTINGS if not isinstance(settings.get(name), kind)]
    if lacking:
        raise RapStoreError(f"{path}: no selection of this project: no {lacking[0]}")
    return Selection(reader, settings, dataset)


_SETTINGS = (("choose", dict), ("found", dict), ("warnings", list))
"""What every selection says of itself."""
