"""ACE in a selection: the limit on psi, and which samples it drops.

Source: arXiv 2506.04755, ACE. The limit is calibrated where none is given.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from ..scores.columns import floats

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
    ACE is skipped. ``biased``: psi > lambda_a. ``missing``: not measured, others were."""

    passes: np.ndarray
    biased: np.ndarray
    missing: np.ndarray
    found: dict[str, Any]
    warnings: list[str]


def judge_attention(
    table: pa.Table,
    valid: np.ndarray,
    limit_of: Callable[[np.ndarray], Limit],
    asked: bool,
    unread: np.ndarray | None = None,
) -> Attention:
    """``limit_of``: finite log psi of valid rows -> limit. ``asked``: a limit was given,
    so that it is worth a warning if no attention was measured. ``unread``: bool [n], rows
    that pass without a psi, None: none."""
    column = table["log_psi"]
    measured = ~column.is_null().to_numpy() & valid
    found: dict[str, Any] = {
        "lambda_a": None,
        "log_lambda_a": None,
        "lambda_a_origin": "attention not measured",
        "psi_measured": int(measured.sum()),
        "psi_too_short": 0,
    }
    none = np.zeros(len(valid), dtype=bool)
    if not measured.any():
        notes = ["lambda_a was given, but no attention was measured"]
        return Attention(~none, none, none, found, notes if asked else [])
    log_psi = np.where(measured, floats(column), np.nan)
    found["psi_too_short"] = int(np.isneginf(log_psi).sum())
    limit = limit_of(log_psi[np.isfinite(log_psi)])
    found["lambda_a_origin"] = limit.origin
    notes = list(limit.notes)
    if limit.log is not None:
        found |= {"log_lambda_a": limit.log, "lambda_a": math.exp(limit.log)}
    free = none if unread is None else unread & valid & ~measured
    passes = measured & (log_psi <= (math.inf if limit.log is None else limit.log))
    if 2 * found["psi_too_short"] > found["psi_measured"]:
        notes.append(
            f"{found['psi_too_short']} of {found['psi_measured']} responses are shorter "
            "than AceConfig.min_rows: attention decides little; evidence 'rollouts' or "
            "'logits' reads it off whole responses"
        )
    missing = valid & ~measured & ~free
    return Attention(passes | free, measured & ~passes, missing, found, notes)


def given(lambda_a: float) -> Limit:
    """The limit that the user gave."""
    return Limit(math.log(lambda_a), "given")


def calibrated(log_psi: np.ndarray) -> Limit:
    """The limit that these finite log psi suggest: ``fence``; none for fewer than
    ``CALIBRATION_MIN`` of them."""
    if log_psi.size < CALIBRATION_MIN:
        note = (
            f"lambda_a not calibrated: {log_psi.size} samples have a psi, "
            f"{CALIBRATION_MIN} are needed; no sample is dropped for its attention"
        )
        return Limit(None, "too few to calibrate", [note])
    return Limit(fence(log_psi), "calibrated: upper Tukey fence of log psi below a gap")


def fence(log_psi: np.ndarray) -> float:
    """Upper Tukey fence Q3 + 1.5 (Q3 - Q1) of what lies below a gap, if there is one.

    A gap is the widest step between neighbours above the median, wider than half of
    Q3 - Q1 of what is below it: attention-biased samples stand apart. Tukey's fence over
    all lies beyond them as soon as they are a quarter, and then drops none. Without a gap
    it is Tukey's: a skewed tail or two close modes are no sign of such samples.
    """
    ordered = np.sort(log_psi)
    steps = np.diff(ordered[ordered.size // 2 :])
    widest = int(steps.argmax())
    below = ordered[: ordered.size // 2 + widest + 1]
    q1, q3 = np.percentile(below, [25, 75])
    if not 0 < (q3 - q1) / 2 < steps[widest]:
        q1, q3 = np.percentile(ordered, [25, 75])
    return float(q3 + 1.5 * (q3 - q1))
