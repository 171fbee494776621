"""How scores and selections show themselves in a notebook, and as a DataFrame.

HTML without a style sheet of its own (several may stand on one page), a script or a fixed
colour of text or ground: what is set is set for both, or taken from the notebook's theme.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

import pyarrow as pa

from ..errors import require_extra

if TYPE_CHECKING:
    import pandas

_COLOURS = {"kept": "#2a9087", "scored": "#2a9087", "quarantined": "#c9822b"}
_OTHERS = "#8d989d"
_CELL = "padding:2px 12px 2px 0;text-align:left;background:none;border:0"


def bars(counts: Sequence[tuple[str, int]], n: int) -> str:
    """A table of (name, count), with the share of ``n`` as a number and a bar. Colours
    that tell from white and from black alike."""
    most = max((count for _, count in counts), default=1) or 1
    rows = []
    for name, count in counts:
        colour = _COLOURS.get(name.partition("_")[0], _OTHERS)
        bar = (
            f"<div style='background:{colour};height:9px;border-radius:2px;min-width:1px;"
            f"width:{180 * count / most:.0f}px'></div>"
        )
        rows.append(
            f"<tr style='background:none'><td style='{_CELL}'><code>{escape(name)}</code>"
            f"</td><td style='{_CELL};text-align:right'>{count:,}</td>"
            f"<td style='{_CELL};text-align:right'>{count / max(n, 1):.1%}</td>"
            f"<td style='{_CELL};width:190px'>{bar}</td></tr>"
        )
    return f"<table style='border:0;margin:4px 0'>{''.join(rows)}</table>"


def card(
    title: str, subtitle: str, body: str, warnings: Sequence[str], more: str = ""
) -> str:
    """A heading over ``body`` (HTML), warnings (text), ``more`` (HTML)."""
    notes = "".join(
        "<p style='margin:4px 0;padding-left:8px;border-left:3px solid #c9822b'>"
        f"{escape(text)}</p>"
        for text in warnings
    )
    return (
        f"<div><p style='margin:4px 0'><b>{escape(title)}</b> "
        f"<span style='opacity:.7'>{escape(subtitle)}</span></p>{body}{notes}{more}</div>"
    )


def frame_of(table: pa.Table) -> pandas.DataFrame:
    """``table`` with its column ``index`` as the index."""
    require_extra("to_pandas", "hf", "pandas")
    return table.to_pandas().set_index("index")
