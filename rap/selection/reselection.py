"""Re-selection during training: pass counts of the training -> the next selection.

Pure: NumPy and Arrow, no torch, no files, no clock, no random numbers. The rules are
those of DRM (METHOD.md section 3, ``choose``), with the difficulty that training shows in
place of the one that scoring measured: samples that became trivial are removed, the hardest
solvable ones are added, and a share of the first selection is always kept.

``rap.trl`` re-selects with it between generation batches, ``rap reselect`` between the
phases of a trainer that has no hook for it. ``rap.trl.rewardfile`` reads logs.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..errors import RapConfigError, RapInputError
from ..scores.columns import floats, mask_of
from ..scores.match import require_equal
from ..scores.selected import KEPT
from ..settings import Ge, Gt, Le, Number, setting, settings
from .selection import Selection

Share = Annotated[Number, Ge(0), Le(1)]

Visits = Iterable[tuple[str, float, float]]
"""(id, passed, graded) of one generation batch each, the oldest first."""

BARRED = ("dropped_unsolved", "dropped_attention_biased")
"""Reasons of ``choose`` that no reward outweighs, besides ``quarantined_<why>``."""

WHY = (
    "stays_first",
    "stays",
    "comes_cognitive",
    "comes_harder",
    "leaves_trivial",
    "leaves_unsolved",
    "leaves_over_size",
)
"""What re-selection did with a sample; null where it did nothing. ``stays_first``: of the
share that is kept whatever its rewards say."""


class NothingLeft(RapInputError):
    """The rules leave no sample to train on."""


@settings
class ReselectConfig:
    """Settings of ``reselect``."""

    keep: Share = setting(
        "Share of the first selection that stays whatever its rewards say: samples that "
        "still teach before those that do not, the largest D first.",
        default=0.25,
    )
    decay: Share = setting(
        "Weight of a visit to a sample against the visit after it: with 0 only the latest "
        "counts, with 1 all count alike.",
        default=0.5,
    )
    trivial: Share = setting(
        "A sample of at most this difficulty in training leaves.", default=0.05
    )
    unsolved: Share = setting(
        "A sample of at least this difficulty in training leaves.", default=0.95
    )
    enough: Annotated[Number, Gt(0)] = setting(
        "Graded completions (decayed) from which on training says how hard a sample is; "
        "with fewer it is as hard as it was scored.",
        default=4.0,
    )
    size: Annotated[int, Ge(1)] | None = setting(
        "Samples to have afterwards.", default=None, none="as many as now"
    )

    def __post_init__(self) -> None:
        if self.trivial >= self.unsolved:
            raise RapConfigError(
                f"trivial = {self.trivial} is not below unsolved = {self.unsolved}: every "
                "sample would leave"
            )


@dataclass(frozen=True, slots=True)
class Decision:
    """What ``decide`` found. Arrays are [n], one entry a row of the selection's table.

    ``active``: bool, the rows to train on. ``why``: one of ``WHY`` or "" (object).
    ``difficulty``: float64, by training where it said enough, else as scored (NaN:
    unknown). ``passed``, ``tried``: float64, the counts by row (0: not in the log).
    ``counts``: {each of ``WHY``: samples}, and ``missing``: by how many samples the
    result is smaller than asked.
    """

    active: np.ndarray
    why: np.ndarray
    difficulty: np.ndarray
    passed: np.ndarray
    tried: np.ndarray
    counts: dict[str, int]


def pass_counts(visits: Visits, *, decay: float = 0.5) -> dict[str, tuple[float, float]]:
    """{id: (passed, tried)} over all visits, an older one weighing ``decay`` times the
    next. A visit without a graded completion counts as nothing: it weighs neither for nor
    against, and does not age the others."""
    counts: dict[str, tuple[float, float]] = {}
    for name, passed, judged in visits:
        _require_count(name, passed, judged)
        if judged == 0:
            continue
        before = counts.get(name, (0.0, 0.0))
        counts[name] = (decay * before[0] + passed, decay * before[1] + judged)
    return counts


def _require_count(name: str, passed: float, judged: float) -> None:
    if not (math.isfinite(judged) and 0 <= passed <= judged):
        raise RapInputError(f"rewards: sample {name[:80]!r} passed {passed} of {judged}")


def decide(
    selection: Selection,
    passes: Mapping[str, tuple[float, float]],
    config: ReselectConfig | None = None,
    *,
    now: Selection | None = None,
) -> Decision:
    """The rules of re-selection, in this order, until ``size`` samples are found:

    1. floor(keep * size of the first selection) samples of the first selection.
    2. The other samples of ``selection`` that have become neither trivial nor unsolved,
       the largest D first.
    3. With ``now``: the samples that it keeps and ``selection`` does not: newly cognitive.
    4. The hardest others by ``rap.drm`` (difficulty down, D down, index up), out of those
       that ``choose`` neither quarantined nor barred (``BARRED``).

    3 and 4 leave out what is trivial or unsolved: by training (``trivial``, ``unsolved``),
    or, where training has not said enough, by the scores (0 < Diff < 1).

    selection: what is trained on now; a result of ``reselect`` remembers the first one.
    passes: as from ``pass_counts``: counts >= 0, whole or decayed. An id that is not here
        was not tried.
    now: ``choose`` on the same data scored again with the current model; D, difficulty and
        bars are taken from it.

    Raises ``RapInputError`` for an id that the selection does not know, an impossible
    count, another data set in ``now``, or if no sample would be left.
    """
    config = config or ReselectConfig()
    table = selection.table
    judged = _aligned(selection, now) if now is not None else table
    passed, tried = _by_row(table, passes)
    d, scored = floats(judged["D"]), floats(judged["difficulty"])
    told = tried >= config.enough
    measured = 1.0 - passed / np.maximum(tried, config.enough)
    difficulty = np.where(told, measured, scored)

    trivial = told & (difficulty <= config.trivial)
    unsolved = told & (difficulty >= config.unsolved)
    out = trivial | unsolved
    before, first = selection.kept, _first(selection)
    size = int(before.sum()) if config.size is None else config.size
    strength = np.where(np.isnan(d), -np.inf, d)

    def best(rows: np.ndarray, count: int, *keys: np.ndarray) -> np.ndarray:
        order = np.lexsort((rows, -strength[rows], *(key[rows] for key in keys)))
        return rows[order[: max(count, 0)]]

    why = np.full(table.num_rows, "", dtype=object)
    active = np.zeros(table.num_rows, dtype=bool)

    def admit(rows: np.ndarray, code: str) -> None:
        active[rows], why[rows] = True, code

    share = min(math.floor(config.keep * first.sum() + 1e-9), size)
    admit(best(np.flatnonzero(first), share, out), "stays_first")
    left = size - int(active.sum())
    admit(best(np.flatnonzero(before & ~out & ~active), left), "stays")
    free = (
        open_rows(judged) & ~active & ~before & ~out & (told | (scored > 0) & (scored < 1))
    )
    if now is not None:
        left = size - int(active.sum())
        admit(best(np.flatnonzero(free & now_kept(judged)), left), "comes_cognitive")
    left = size - int(active.sum())
    admit(_hardest(difficulty, left, free & ~active, strength), "comes_harder")

    gone = before & ~active
    why[gone] = "leaves_over_size"
    why[gone & trivial] = "leaves_trivial"
    why[gone & unsolved] = "leaves_unsolved"
    if not active.any():
        raise NothingLeft("reselect: no sample is left to train on")
    counts = {code: int((why == code).sum()) for code in WHY}
    counts["missing"] = size - int(active.sum())
    return Decision(active, why, difficulty, passed, tried, counts)


def reselect(
    selection: Selection,
    passes: Mapping[str, tuple[float, float]],
    config: ReselectConfig | None = None,
    *,
    now: Selection | None = None,
) -> Selection:
    """The next selection, by ``decide``: same table, new reasons.

    Its table also has ``why`` (what re-selection did), ``passed`` and ``tried`` (null: not
    in the log), ``difficulty_now``, and ``first`` and ``first_reason``, the first
    selection's, which the next call goes by. ``settings["reselect"]`` holds the settings,
    the counts and the number of this phase, from 1. Reasons are those of ``choose``: a
    sample that comes in is ``kept_replacement`` (``kept_cognitive`` if newly so), one that
    leaves is ``dropped_trivial``, ``dropped_unsolved`` or ``dropped_over_budget``.
    Raises as ``decide`` does.
    """
    config = config or ReselectConfig()
    found = decide(selection, passes, config, now=now)
    table = selection.table
    judged = table if now is None else _aligned(selection, now)
    if now is not None:
        table = _with(table, D=judged["D"], difficulty=judged["difficulty"])
    seen = found.tried > 0
    table = _with(
        table,
        reason=_reasons(selection, found),
        first=pa.array(_first(selection)),
        first_reason=_base(judged),
        why=pa.array(found.why, pa.string(), mask=found.why == ""),
        passed=pa.array(found.passed, mask=~seen),
        tried=pa.array(found.tried, mask=~seen),
        difficulty_now=pa.array(found.difficulty, mask=np.isnan(found.difficulty)),
    )
    phase = (selection.settings.get("reselect") or {}).get("phase", 0) + 1
    note = {"phase": phase, "config": dataclasses.asdict(config), "counts": found.counts}
    warnings = list(selection.settings["warnings"])
    if found.counts["missing"]:
        warnings.append(
            f"phase {phase} has {found.counts['missing']} samples fewer than asked: there "
            "are no more that can be solved and are not trivial"
        )
    kept: dict[str, Any] = {**selection.settings["found"], "kept": int(found.active.sum())}
    settings = {
        **selection.settings,
        "found": kept,
        "reselect": note,
        "warnings": warnings,
    }
    return Selection(table, settings, selection.source, selection.completions)


def now_kept(table: pa.Table) -> np.ndarray:
    """bool [n]: rows whose reason is one of ``KEPT``."""
    return mask_of(pc.is_in(table["reason"], value_set=pa.array(KEPT)))


def _by_row(
    table: pa.Table, passes: Mapping[str, tuple[float, float]]
) -> tuple[np.ndarray, np.ndarray]:
    """(passed, tried) [n] float64."""
    ids = pa.array(list(passes), pa.string())
    rows = pc.index_in(ids, value_set=table["id"].combine_chunks())
    if rows.null_count:
        unknown = ids.filter(pc.is_null(rows))
        raise RapInputError(
            f"rewards: {len(unknown)} of {len(ids)} samples are not in the selection's "
            f"data set, the first is {unknown[0].as_py()[:80]!r}"
        )
    for name, (passed, tried) in passes.items():
        _require_count(name, passed, tried)
    found = np.zeros((2, table.num_rows))
    if len(ids):
        found[:, rows.to_numpy()] = np.array(list(passes.values()), dtype=np.float64).T
    return found[0], found[1]


def _first(selection: Selection) -> np.ndarray:
    """bool [n]: the first selection, before any re-selection."""
    there = "first" in selection.table.column_names
    return mask_of(selection.table["first"]) if there else selection.kept


def _base(table: pa.Table) -> pa.ChunkedArray:
    """The reasons that ``choose`` gave."""
    return table["first_reason" if "first_reason" in table.column_names else "reason"]


def open_rows(table: pa.Table) -> np.ndarray:
    """bool [n]: neither quarantined nor barred by ``choose``."""
    base = _base(table)
    closed = pc.or_(
        pc.is_in(base, value_set=pa.array(BARRED)), pc.starts_with(base, "quarantined_")
    )
    return ~mask_of(closed)


def _aligned(selection: Selection, now: Selection) -> pa.Table:
    """``now``'s rows in the order of ``selection``'s."""
    rows = pc.index_in(
        selection.table["id"], value_set=now.table["id"].combine_chunks()
    ).combine_chunks()
    if rows.null_count or len(rows) != now.table.num_rows:
        raise RapInputError(
            f"reselect: the new scores are of {now.table.num_rows} samples, not of the "
            f"{len(rows)} of the selection"
        )
    judged = now.table.take(rows)
    require_equal(selection.table, judged)
    return judged


def _hardest(
    difficulty: np.ndarray, k: int, eligible: np.ndarray, gain: np.ndarray
) -> np.ndarray:
    from ..ops import drm  # lazily: reading a selection needs no compiled kernel

    found = drm(difficulty, max(k, 0), eligible=eligible, gain=gain)
    return np.asarray(found, dtype=np.int64)


def _reasons(selection: Selection, found: Decision) -> pa.ChunkedArray:
    """Reasons of ``choose`` for what re-selection did."""
    codes = {
        "comes_cognitive": "kept_cognitive",
        "comes_harder": "kept_replacement",
        "leaves_trivial": "dropped_trivial",
        "leaves_unsolved": "dropped_unsolved",
        "leaves_over_size": "dropped_over_budget",
    }
    why = pa.array(found.why, pa.string())
    stays = pc.equal(why, "stays_first")
    reasons = pc.if_else(stays, _base(selection.table), selection.table["reason"])
    for code, reason in codes.items():
        reasons = pc.if_else(pc.equal(why, code), reason, reasons)
    return reasons


def _with(table: pa.Table, **columns: Any) -> pa.Table:
    """``table`` with these columns, replaced in place or put at the end."""
    for name, column in columns.items():
        at = table.schema.get_field_index(name)
        if at < 0:
            table = table.append_column(name, column)
        else:
            table = table.set_column(at, name, column)
    return table
