"""The samples that the page lets a reader browse: packed columns and some thumbnails.

The page's script (``page.js``) filters, sorts, searches and pages them; without a script
the table of ``rap.report.samples`` stays. Size: at most ``ROWS`` samples, whose texts
share ``TEXT_BYTES`` (a sample has at least 1/ROWS of them), gzip and base64, and
``IMAGES`` thumbnails of 4 kB or so: under 30 MB whatever the data, about 9 MB for 50,000
samples of ordinary English.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..samples.sample import Bad
from ..samples.text import flat
from ..scores.columns import floats
from ..scores.completions import Completions
from ..scores.kinds import KINDS
from .parts import Reason
from .samples import first_of_each, found_samples, strongest, thumbnail
from .text import token_text, visible

if TYPE_CHECKING:
    from ..scores.selected import Selected

ROWS = 50_000
"""Samples listed, unless asked otherwise: all that are kept come first."""
IMAGES = 200
"""Thumbnails besides those of the table: of the strongest kept samples."""
TEXT_BYTES = 20_000_000
"""UTF-8 bytes of all texts together."""
LONGEST = 12_000
"""UTF-8 bytes of the texts of one sample: whole completions where there is room."""
SOURCES = 100
"""Sources that the filter names, the largest; others are found by search."""

SCORES = (
    ("D", "D"),
    ("difficulty", "Difficulty"),
    ("rank_key", "Ranking key"),
    ("keep_probability", "Keep-probability"),
    ("log_psi", "log \u03c8"),
)


@dataclass(frozen=True, slots=True)
class Browsed:
    """``data``, ``images``: base64 of gzip of JSON; what it holds is in ``columns_of``.
    ``scores``: labels of the scores in ``data``. ``sources``: (place, name, samples)."""

    rows: int
    left_out: int
    scores: Sequence[str]
    sources: Sequence[tuple[int, str, int]]
    data: str
    images: str


def browsed(
    selection: Selected,
    source: Any,
    reasons: Sequence[Reason],
    rollouts: Completions | None,
    there: Selected | None,
    shown: Iterable[int],
    rows: int,
) -> Browsed | None:
    """None where there is nothing to browse.

    reasons: those that the page names; their places stand for them.
    there: a selection that this one is compared with.
    shown: rows of the table that the page shows with their images anyway.
    rows: how many samples at most.
    """
    places = listed(selection, rows)
    if not places.size:
        return None
    columns, names = columns_of(selection, source, places, reasons, rollouts, there)
    counts = np.bincount([s for s in columns["source"] if s >= 0], minlength=len(names))
    largest = np.argsort(-counts, kind="stable")[:SOURCES]
    return Browsed(
        rows=len(places),
        left_out=selection.reader.num_rows - len(places),
        scores=list(columns["scores"]),
        sources=[(int(k), names[k], int(counts[k])) for k in largest],
        data=packed(columns),
        images=packed(_images(selection, source, places, set(shown))),
    )


def listed(selection: Selected, most: int) -> np.ndarray:
    """int64, ascending: the rows of the table to list: all, or the kept ones (the strongest
    half of ``most``, where they are more and there are others) and others evenly spread
    over the data set."""
    n = selection.reader.num_rows
    if n <= most:
        return np.arange(n)
    kept, others = np.flatnonzero(selection.kept), np.flatnonzero(~selection.kept)
    share = max(most - most // 2, most - len(others))
    if len(kept) > share:
        kept = strongest(selection.reader, kept)[:share]
    some = np.linspace(0, len(others) - 1, most - len(kept)).astype(np.int64)
    return np.sort(np.concatenate([kept, others[some]]))


def columns_of(
    selection: Selected,
    source: Any,
    places: np.ndarray,
    reasons: Sequence[Reason],
    rollouts: Completions | None,
    there: Selected | None,
) -> tuple[dict[str, Any], list[str]]:
    """What the script reads, a list a column, and the names of the sources.

    ``row``: row of the table; ``id``, ``question``, ``answer``, ``message``, ``token``,
    ``before``, ``after``: texts; ``reason``: place in ``names``; ``there``: the same of the
    other selection, -1: it does not know the sample, empty: there is no other; ``source``:
    place in ``sources``, -1: none; ``scores``: {label: numbers or null}; ``said``: lists of
    [with the image, mark, cut, text].
    """
    share = min(LONGEST, max(TEXT_BYTES // max(len(places), 1), TEXT_BYTES // ROWS))
    table = selection.reader.take(places, _wanted(selection))
    ids = table["id"].to_pylist()
    labels, names = _sources(table)
    codes = [reason.code for reason in reasons]
    here = _places(table["reason"].to_pylist(), codes)
    other = [] if there is None else _places(_reasons_there(there, table["id"]), codes)
    found: dict[str, Any] = {
        "row": places.tolist(),
        "id": [visible(name, 80) for name in ids],
        "reason": here,
        "there": other,
        "names": [visible(code, 80) for code in codes],
        "source": labels,
        "sources": names,
        "scores": _scores(selection, table),
    }
    found |= _texts(table, share)
    found |= _questions(selection, source, places, share)
    found["said"] = _said(rollouts, ids, share)
    return found, names


def _wanted(selection: Selected) -> list[str]:
    """Columns of the table that are shown, and those that rates are worked out from."""
    names = ["id", "reason", "source", "stage", "message", "psi_token"]
    names += ["psi_before", "psi_after", "c1", "m1", "c0", "m0", "p_answer1", "p_answer0"]
    names += [name for name, _ in SCORES]
    return [name for name in names if name in selection.reader.schema.names]


def _places(found: Iterable[str | None], codes: list[str]) -> list[int]:
    """The place in ``codes`` of each, which are added where they are new; -1 for None."""
    known = {code: k for k, code in enumerate(codes)}
    places = [-1 if code is None else known.setdefault(code, len(known)) for code in found]
    codes[:] = known
    return places


def _reasons_there(other: Selected, ids: pa.ChunkedArray) -> list[str | None]:
    table = other.reader.read(["id", "reason"])
    known = flat(table["id"].cast(pa.large_string()))
    at = pc.index_in(flat(ids.cast(pa.large_string())), value_set=known)
    found: list[str | None] = flat(table["reason"]).take(at).to_pylist()
    return found


def _scores(selection: Selected, table: pa.Table) -> dict[str, list[float | None]]:
    """Four significant digits are more than the page shows."""
    found = KINDS[selection.settings["evidence"]].rates(table)
    found += [(label, floats(table[n])) for n, label in SCORES if n in table.column_names]
    return {
        label: [float(f"{x:.4g}") if abs(x) < np.inf else None for x in values.tolist()]
        for label, values in found
        if np.isfinite(values).any()
    }


def _sources(table: pa.Table) -> tuple[list[int], list[str]]:
    column = pc.dictionary_encode(table["source"]).combine_chunks()
    if isinstance(column, pa.ChunkedArray):  # of a table without rows
        return [], []
    places = pc.fill_null(column.indices, -1).to_pylist()
    return places, [visible(name, 80) for name in column.dictionary.to_pylist()]


def _texts(table: pa.Table, share: int) -> dict[str, list[str]]:
    """Why a sample was set aside, and the attended token with the text around it."""

    def column(name: str) -> list[str | None]:
        there = name in table.column_names
        found: list[str | None] = table[name].to_pylist() if there else []
        return found or [None] * table.num_rows

    pairs = zip(column("stage"), column("message"), strict=True)
    tokens = column("psi_token")
    return {
        "message": [cut(": ".join(p for p in pair if p), share // 4) for pair in pairs],
        "token": ["" if t is None else cut(token_text(t, 40), 80) for t in tokens],
        "before": [cut(t or "", share // 8, end=True) for t in column("psi_before")],
        "after": [cut(t or "", share // 8) for t in column("psi_after")],
    }


def _questions(
    selection: Selected, source: Any, places: np.ndarray, share: int
) -> dict[str, list[str]]:
    """Question (with its choices) and answer of each sample; empty where it is not there
    as it was scored."""
    if source is None:
        return {"question": [""] * len(places), "answer": [""] * len(places)}
    questions: list[str] = []
    answers: list[str] = []
    for at in selection.find(source, places).rows.tolist():
        sample = source[at] if at >= 0 else None  # one at a time: rows may hold images
        if sample is None or isinstance(sample, Bad):
            questions.append("")
            answers.append("")
            continue
        lines = [sample.question[:share]]
        lines += [f"{chr(65 + k)}) {c}" for k, c in enumerate(sample.choices[:10])]
        questions.append(cut("\n".join(lines), share // 3))
        answers.append(cut(str(sample.answer), share // 8))
    return {"question": questions, "answer": answers}


def _said(
    rollouts: Completions | None, ids: Sequence[str], share: int
) -> list[list[list[Any]]]:
    """Of each sample the first right and the first wrong completion of either arm."""
    each = share // 3 // 4
    found = first_of_each(rollouts, ids)
    marks = {False: 0, True: 1, None: 2}
    return [
        [
            [
                int(row["arm"] == "image"),
                marks[row["correct"]],
                int(row["finish_reason"] == "length"),
                both_ends((row["text"] or "").strip(), each),
            ]
            for row in found.get(name, ())
        ]
        for name in ids
    ]


def _images(
    selection: Selected, source: Any, places: np.ndarray, shown: set[int]
) -> dict[str, Any]:
    """{row: data URI} of the strongest kept samples that are listed."""
    if source is None:
        return {}
    kept = np.flatnonzero(selection.kept)
    strong = strongest(selection.reader, np.intersect1d(kept, places))[:IMAGES]
    rows = np.array([row for row in strong.tolist() if row not in shown], np.int64)
    hashes = selection.reader.take(rows, ["image_sha256"]).to_pylist()
    samples = found_samples(selection, source, rows)
    found = {}
    for row, hashed, (sample, _) in zip(rows.tolist(), hashes, samples, strict=True):
        uri = None if sample is None else thumbnail(sample, hashed, (200, 150))[0]
        if uri is not None:
            found[str(row)] = uri
    return found


def cut(text: str, most: int, *, end: bool = False) -> str:
    """``text`` with nothing in it that hides, in at most ``most`` + 3 UTF-8 bytes: its
    beginning, or its ``end``."""
    some = text[-most:] if end else text[:most]
    shown = visible(some, most)
    data = shown.encode()
    if len(data) <= most and len(some) == len(text):
        return shown
    data = data[-most:] if end else data[:most]
    part = data.decode("utf-8", "ignore")
    return f"\u2026{part}" if end else f"{part}\u2026"


def both_ends(text: str, most: int) -> str:
    """As ``cut``, without its middle: a completion's last words hold the answer."""
    if len(text) <= most and len(visible(text, most).encode()) <= most:
        return cut(text, most)
    head = cut(text, most // 3).removesuffix("\u2026")
    return head + cut(text, most - most // 3, end=True)


def packed(value: Any) -> str:
    """base64 of gzip of JSON: letters that no HTML parser reads anything into, the same
    for the same ``value``."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return base64.b64encode(gzip.compress(text.encode(), 6, mtime=0)).decode()
