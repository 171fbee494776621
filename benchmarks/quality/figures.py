"""Figures of the tables, PNG."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

Rows = list[dict[str, Any]]


def _means(rows: Rows, key: str, value: str) -> tuple[list[str], list[float], list[float]]:
    groups: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        groups[row[key]].append(row[value])
    means = {k: float(np.nanmean(v)) for k, v in groups.items() if np.isfinite(v).any()}
    spreads = [float(np.nanstd(groups[k])) for k in means]
    return list(means), list(means.values()), spreads


def _bars(rows: Rows, key: str, value: str, label: str, line: float, path: Path) -> None:
    import matplotlib.pyplot as plt

    names, means, spreads = _means(rows, key, value)
    fig, ax = plt.subplots(figsize=(8, 0.8 + 0.22 * len(names)), layout="constrained")
    ax.barh(names, means, xerr=spreads, color="#4477aa", ecolor="#222222", height=0.7)
    ax.axvline(line, color="#cc3311", linewidth=1)
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.set_xlabel(label)
    fig.savefig(path, dpi=120)
    plt.close(fig)


def draw(made: dict[str, Rows], out: Path) -> None:
    """Selections against the pool, forms of psi, what adaptive sampling saves."""
    import matplotlib

    matplotlib.use("Agg")
    planted = {t: [r for r in made[t] if r["against"] == "planted"] for t in _BARS}
    for table, (key, value, label, line) in _BARS.items():
        path = out / f"quality_{table}.png"
        _bars(planted[table], key, value, label, line, path)
    _adaptive(made["adaptive"], out / "quality_adaptive.png")


_BARS = {
    "selections": (
        "selection",
        "times",
        "cognitive share, times the pool's (goal: 4)",
        4.0,
    ),
    "psi": (
        "psi",
        "auroc",
        "AUROC for attention_biased (goal: 0.85)",
        0.85,
    ),
}


def _adaptive(rows: Rows, path: Path) -> None:
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(6, 4), layout="constrained")
    for m in sorted({r["m"] for r in rows}):
        mine = [r for r in rows if r["m"] == m and r["order"] == "gain"]
        mine = [r for r in mine if r["look"] != "2"]
        _, saved, _ = _means(mine, "look", "saved")
        looks, same, _ = _means(mine, "look", "same_reason")
        ax.plot(saved, same, "o-", label=f"M = {m}")
        for look, x, y in zip(looks, saved, same, strict=True):
            ax.annotate(look, (x, y), textcoords="offset points", xytext=(4, 4))
    ax.axvline(0.4, color="#cc3311", linewidth=1)
    ax.set_xlabel("completions saved (number: first look, or plain M; line: the goal)")
    ax.set_ylabel("samples with the same reason as at all M")
    ax.legend()
    fig.savefig(path, dpi=120)
    plt.close(fig)
