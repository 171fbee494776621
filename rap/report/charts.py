"""The numbers of the page: histograms with their thresholds, and means."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..scores.columns import floats
from ..scores.kinds import KINDS
from .text import grouped, number

if TYPE_CHECKING:
    from ..scores.selected import Selected

BINS = 41  # odd, over a range half a bin wider on each side: 0 and 1 are bin centres
WIDTH, HEIGHT, KEPT_HEIGHT = 300.0, 80.0, 46.0


@dataclass(frozen=True, slots=True)
class Panel:
    """One histogram, all samples above the axis and kept ones below, each to its own
    scale: a selection of one per cent would vanish beside the whole."""

    name: str
    title: str
    text: str
    measured: int
    bars: list[tuple[float, float, float, float, float, str]]  # x w y_all h_all h_kept tip
    most: tuple[int, int]
    ticks: list[tuple[float, str]]
    line: float | None  # x of the threshold
    line_text: str  # what the line is, or why there is nothing to see


def panels_of(selection: Selected) -> list[Panel]:
    settings = selection.settings
    found, kind = settings["found"], KINDS[settings["evidence"]]
    lambda_c, limit = found["lambda_c"], found["log_lambda_a"]
    many = settings["groups"] and lambda_c is None
    sign = ">" if found.get("biased") == "report" else "\u2264"
    after = ": reported, none dropped for it" if sign == ">" else ""
    return [
        _panel(
            selection,
            "D",
            "What the image changes: D",
            kind.d_text(settings["choose"]["divergence"]),
            (-1.0, 1.0) if kind.signed else None,
            lambda_c,
            "every group has its own threshold"
            if many
            else f"D > {number(lambda_c)}"
            if lambda_c is not None
            else "",
        ),
        _panel(
            selection,
            "difficulty",
            "How hard: difficulty",
            kind.difficulty_text,
            (0.0, 1.0),
            None,
            "1 is never solved, 0 always",
        ),
        _panel(
            selection,
            "log_psi",
            "Attention on one token: log \u03c8",
            "higher: one token gets more of the attention",
            None,
            limit,
            "no limit was set"
            if limit is None
            else f"log \u03c8 {sign} {number(limit)}{after}",
        ),
    ]


def _panel(
    selection: Selected,
    column: str,
    title: str,
    text: str,
    span: tuple[float, float] | None,
    threshold: float | None,
    line_text: str,
) -> Panel:
    values = selection.reader.read([column])[column].to_numpy().astype(np.float64)
    usable = np.isfinite(values)
    measured = int(usable.sum())
    if not measured:
        short = int(np.isneginf(values).sum())
        why = f"{grouped(short)} responses are too short to judge." if short else ""
        return Panel(column, title, text, 0, [], (0, 0), [], None, why or "Not measured.")
    low, high = float(values[usable].min()), float(values[usable].max())
    if span is not None and (column != "D" or high - low > (span[1] - span[0]) / 20):
        low, high = span  # else D lies in a small part of it: look closer
    if threshold is not None and math.isfinite(threshold):
        low, high = min(low, threshold), max(high, threshold)
    if high <= low:
        low, high = low - 0.5, high + 0.5
    half = (high - low) / (BINS - 1) / 2
    edges = np.linspace(low - half, high + half, BINS + 1)
    every, _ = np.histogram(values[usable], edges)
    kept, _ = np.histogram(values[usable & selection.kept], edges)
    most = int(every.max()), int(kept.max())
    step = WIDTH / BINS
    bars: list[tuple[float, float, float, float, float, str]] = []
    for i in np.flatnonzero(every):
        tip = (
            f"{number(edges[i])} to {number(edges[i + 1])}: {grouped(every[i])} samples, "
            f"{grouped(kept[i])} kept"
        )
        h_all = _height(every[i], most[0], HEIGHT)
        h_kept = _height(kept[i], most[1], KEPT_HEIGHT)
        bars.append((i * step + 0.5, step - 1, HEIGHT - h_all, h_all, h_kept, tip))

    def place(x: float) -> float:
        return (x - edges[0]) / (edges[-1] - edges[0]) * WIDTH

    ticks = [(place(x), number(x, 2)) for x in np.linspace(low, high, 5)]
    line = place(threshold) if threshold is not None else None
    return Panel(column, title, text, measured, bars, most, ticks, line, line_text)


def _height(count: int, most: int, full: float) -> float:
    """Bar height; a count of one among a million still leaves a line to see."""
    return max(1.0, full * count / most) if count else 0.0


def averages(selection: Selected) -> list[tuple[str, float | None, float | None]]:
    """(what, mean over all scored samples, mean over the kept ones)."""
    table, kept = selection.table, selection.kept
    rates = KINDS[selection.settings["evidence"]].rates(table)
    columns = [
        ("D", "D"),
        ("Difficulty", "difficulty"),
        ("Ranking key", "rank_key"),
        ("Keep-probability", "keep_probability"),
    ]
    rates += [(n, floats(table[c])) for n, c in columns if c in table.column_names]
    return [(label, *_means(values, kept)) for label, values in rates]


def _means(values: np.ndarray, kept: np.ndarray) -> tuple[float | None, float | None]:
    finite = np.isfinite(values)

    def mean(mask: np.ndarray) -> float | None:
        return float(values[mask].mean()) if mask.any() else None

    return mean(finite), mean(finite & kept)
