"""The three scores of a selection as a matplotlib figure."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

from ..scores.columns import floats

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

    from ..scores.selected import Selected

_GREY, _ALL, _KEPT, _LINE = "#7d888d", "#b3babd", "#2a9087", "#c8453b"
"""Colours that tell from white and from black alike: the ground is the notebook's."""
BINS = 41


class Plot(Figure):
    """A figure that any notebook shows, whatever backend of matplotlib it uses."""

    def _repr_png_(self) -> bytes:
        data = io.BytesIO()
        self.savefig(data, format="png", dpi=110)
        return data.getvalue()


def plot(selection: Selected) -> Figure:
    """Histograms of D, difficulty and log psi: all samples, the kept ones over them, the
    thresholds as lines. Transparent: ``figure.savefig(path, facecolor="white")``."""
    found = selection.settings["found"]
    panels = [
        ("D", "D: what the image changes", found["lambda_c"]),
        ("difficulty", "Difficulty: 1 is never solved", None),
        ("log_psi", "log psi: attention on one token", found["log_lambda_a"]),
    ]
    figure = Plot(figsize=(11, 3), layout="constrained", facecolor="none")
    for axes, (name, title, line) in zip(
        figure.subplots(1, len(panels)), panels, strict=True
    ):
        axes.set_title(title, fontsize=11, color=_GREY)
        _style(axes)
        values = floats(selection.reader.read([name])[name])
        usable = np.isfinite(values)
        if not usable.any():
            axes.set(xticks=[], yticks=[])
            axes.text(
                *(0.5, 0.5, "not measured"),
                ha="center",
                color=_GREY,
                transform=axes.transAxes,
            )
            continue
        bins = np.histogram_bin_edges(values[usable], bins=BINS)
        axes.hist(values[usable], bins=bins, color=_ALL, label="all")
        axes.hist(values[usable & selection.kept], bins=bins, color=_KEPT, label="kept")
        axes.set_yscale("symlog")  # a few per cent are kept: seen beside the whole
        axes.set_ylim(bottom=0)
        if line is not None:
            axes.axvline(line, color=_LINE, linestyle="--", label="threshold")
    figure.axes[0].set_ylabel("samples", color=_GREY)
    _legend(figure)
    return figure


def _legend(figure: Figure) -> None:
    """One for all panels, below them: inside of one it would lie over its bars."""
    found: dict[str, Artist] = {}
    for axes in figure.axes:
        handles, labels = axes.get_legend_handles_labels()
        found |= dict(zip(labels, handles, strict=True))
    if found:
        figure.legend(
            handles=list(found.values()),
            labels=list(found),
            loc="outside lower center",
            ncols=len(found),
            frameon=False,
            labelcolor=_GREY,
            fontsize=9,
        )


def _style(axes: Axes) -> None:
    axes.set_facecolor("none")
    axes.tick_params(colors=_GREY, labelsize=9)
    for name, spine in axes.spines.items():
        spine.set_color(_GREY)
        spine.set_visible(name in ("left", "bottom"))
