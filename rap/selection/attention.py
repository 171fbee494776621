"""ACE in a selection: the limit on psi, and which samples it drops.

Source: arXiv 2506.04755, ACE. The limit is calibrated where none is given.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

CALIBRATION_MIN = 20
"""Fewer measured psi than this say nothing about what is usual."""


@dataclass(frozen=True, slots=True)
class Limit:
    """The limit on psi. ``log``: its logarithm, None: no limit. ``origin``: where it comes
    from. ``notes``: warnings."""

    log: float | None
    origin: str
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Attention:
    """ACE per sample, bool [n]. ``passes``: psi <= lambda_a, or too short to measure, or
    ACE is skipped. ``biased``: psi > lambda_a. Neither: not measured, others were."""

    passes: np.ndarray
    biased: np.ndarray
    found: dict[str, Any]
    warnings: list[str]

    def reported(self, asked: bool) -> Attention:
        """The same where psi decides nothing: every sample passes, and what psi cannot say
        is worth a warning only where a limit was ``asked`` for."""
        every, found = np.ones_like(self.passes), self.found | {"biased": "report"}
        return Attention(every, ~every, found, self.warnings if asked else [])


def judge_attention(
    log_psi: np.ndarray,
    limit_of: Callable[[np.ndarray], Limit],
    asked: bool,
    unread: np.ndarray | None = None,
    times: np.ndarray | None = None,
) -> Attention:
    """``log_psi``: float32 [n], NaN where it was not measured or the row is not valid.
    ``limit_of``: the finite ones, float32 -> limit. ``asked``: a limit was given, so that
    it is worth a warning if no attention was measured. ``unread``: bool [n], valid rows
    that pass without a psi, None: none. ``times``: int64 [n], for how many samples each
    counts among those, None: for one."""
    measured = ~np.isnan(log_psi)
    found: dict[str, Any] = {
        "lambda_a": None,
        "log_lambda_a": None,
        "lambda_a_origin": "attention not measured",
        "psi_measured": int(measured.sum()),
        "psi_too_short": 0,
        "psi_above": 0,
        "biased": "drop",
    }
    none = np.zeros(len(log_psi), dtype=bool)
    if not measured.any():
        notes = ["lambda_a was given, but no attention was measured"]
        return Attention(~none, none, found, notes if asked else [])
    found["psi_too_short"] = int(np.isneginf(log_psi).sum())
    finite = np.isfinite(log_psi)
    seen = log_psi[finite]
    limit = limit_of(seen if times is None else np.repeat(seen, times[finite]))
    found["lambda_a_origin"] = limit.origin
    notes = list(limit.notes)
    if limit.log is not None:
        found |= {"log_lambda_a": limit.log, "lambda_a": math.exp(limit.log)}
    passes = log_psi <= _at_most(math.inf if limit.log is None else limit.log)
    biased = measured & ~passes
    found["psi_above"] = int(biased.sum())
    if unread is not None:
        passes |= unread & ~measured
    if 2 * found["psi_too_short"] > found["psi_measured"]:
        notes.append(
            f"{found['psi_too_short']} of {found['psi_measured']} responses are shorter "
            "than AceConfig.min_rows: attention decides little; evidence 'rollouts' or "
            "'logits' reads it off whole responses"
        )
    return Attention(passes, biased, found, notes)


def _at_most(limit: float) -> np.float32:
    """The largest float32 that is not above ``limit``."""
    nearest = np.float32(limit)
    return nearest if float(nearest) <= limit else np.nextafter(nearest, np.float32("-inf"))


def given(lambda_a: float) -> Limit:
    """The limit that the user gave."""
    return Limit(math.log(lambda_a), "given")


def calibrated(log_psi: np.ndarray) -> Limit:
    """The limit that these finite log psi suggest: ``fence``; none for fewer than
    ``CALIBRATION_MIN`` of them. Sorts them in place."""
    if log_psi.size < CALIBRATION_MIN:
        note = (
            f"lambda_a not calibrated: {log_psi.size} samples have a psi, "
            f"{CALIBRATION_MIN} are needed; no sample is dropped for its attention"
        )
        return Limit(None, "too few to calibrate", [note])
    log_psi.sort()
    limit, gap = _fence(log_psi)
    said = "the middle of the gap in log psi" if gap else "upper Tukey fence of log psi"
    return Limit(limit, f"calibrated: {said}")


def fence(log_psi: np.ndarray) -> float:
    """The middle of a gap, if there is one, else the upper Tukey fence
    Q3 + 1.5 (Q3 - Q1).

    A gap is the widest step between neighbours above the median, wider than half of
    Q3 - Q1 of what is below it: attention-biased samples stand apart. Tukey's fence over
    all lies beyond them as soon as they are a quarter, and then drops none; over what is
    below the gap it cuts into the usual samples' tail. Without a gap it is Tukey's: a
    skewed tail or two close modes are no sign of such samples.
    """
    return _fence(np.sort(log_psi))[0]


def _fence(ordered: np.ndarray) -> tuple[float, bool]:
    """(the limit, whether it is in a gap)"""
    half = ordered.size // 2
    widest, step = _widest_step(ordered[half:])
    q1, q3 = _quartiles(ordered[: half + widest + 1])
    if 0 < (q3 - q1) / 2 < step:
        below, above = (float(ordered[half + widest + i]) for i in (0, 1))
        return below + (above - below) / 2, True
    q1, q3 = _quartiles(ordered)
    return float(q3 + 1.5 * (q3 - q1)), False


_PIECE = 2**17


def _widest_step(ordered: np.ndarray) -> tuple[int, float]:
    """(where the widest step to the next begins, its width in float64)"""
    at, width = 0, -math.inf
    for start in range(0, ordered.size - 1, _PIECE):
        steps = np.diff(ordered[start : start + _PIECE + 1].astype(np.float64))
        place = int(steps.argmax())
        if steps[place] > width:
            at, width = start + place, float(steps[place])
    return at, width


def _quartiles(ordered: np.ndarray) -> tuple[float, float]:
    """As ``numpy.percentile(ordered, [25, 75])`` in float64, without another copy."""
    found = []
    for share in (0.25, 0.75):
        place = (ordered.size - 1) * share
        low = math.floor(place)
        t = place - low
        a, b = (float(ordered[min(low + i, ordered.size - 1)]) for i in (0, 1))
        found.append(a + (b - a) * t if t < 0.5 else b - (b - a) * (1 - t))
    return found[0], found[1]
