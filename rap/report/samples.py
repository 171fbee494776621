"""The samples that the page shows: image, question, scores, completions, reason."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..config import MAX_IMAGE_PIXELS
from ..samples.sample import Bad
from ..scores.columns import floats
from ..scores.completions import Completions
from ..scores.kinds import KINDS
from ..scores.match import as_samples
from ..scores.reader import Reader
from ..scores.table import SCORED
from .parts import Reason
from .text import number, token_text, visible

if TYPE_CHECKING:
    from ..scores.selected import Selected

THUMBNAIL = (320, 240)  # pixels; shown at half that size, for screens of high density
QUESTION, SHORT, COMPLETION = 700, 200, 240  # characters of a text that are shown
AROUND = 60  # characters before and after the attended token

_COLUMNS = {"id", "arm", "number", "text", "correct", "finish_reason"}  # of a rollout


@dataclass(frozen=True, slots=True)
class Said:
    """One completion. ``mark``: right, wrong or not graded, and whether it was cut."""

    arm: str
    mark: str
    text: str


@dataclass(frozen=True, slots=True)
class Shown:
    """One row of the table of samples, ready to print."""

    row: int  # of the table
    reason: int  # place in the list of reasons
    id: str
    question: str
    choices: list[str]
    answer: str
    image: str | None  # data URI
    note: str
    scores: list[tuple[str, str]]
    token: str
    before: str  # the text around that token
    after: str
    message: str
    completions: list[Said]


def shown_samples(
    selection: Selected,
    source: Any,
    reasons: Sequence[Reason],
    per_reason: int,
    rollouts: Completions | None = None,
) -> list[Shown]:
    """At most ``per_reason`` samples for each reason: kept ones by the ranking key, others
    evenly spread. rollouts: the completions (``ROLLOUT_SCHEMA``), to show some of them."""
    given = selection.reader.read(["reason"])["reason"]
    chosen: list[tuple[int, int]] = []  # (place of the reason, row of the table)
    for number_, reason in enumerate(reasons):
        rows = np.flatnonzero(pc.equal(given, reason.code).to_numpy())
        if reason.kind == "kept":
            rows = strongest(selection.reader, rows)[:per_reason]
        elif len(rows) > per_reason:
            rows = rows[np.linspace(0, len(rows) - 1, per_reason).astype(np.int64)]
        chosen += [(number_, int(row)) for row in rows]
    places = np.array([row for _, row in chosen], np.int64)
    shown = selection.reader.take(places).to_pylist()
    said = _said(rollouts, [row["id"] for row in shown])
    found = found_samples(selection, source, places)
    return [
        _shown(row, place, sample, why, said.get(row["id"], []))
        for row, place, (sample, why) in zip(shown, chosen, found, strict=True)
    ]


def strongest(reader: Reader, rows: np.ndarray) -> np.ndarray:
    """``rows`` with the largest ranking key first, then the largest D; ties in data-set
    order."""

    def down(name: str) -> np.ndarray:
        if name not in reader.schema.names:  # a table of an older version
            return np.zeros(len(rows))
        values = floats(reader.read([name])[name])
        return -np.nan_to_num(values[rows], nan=-np.inf)

    return rows[np.lexsort((rows, down("D"), down("rank_key")))]


def first_of_each(
    rollouts: Completions | None, ids: Sequence[str]
) -> dict[str, list[dict[str, Any]]]:
    """{id: rows}: of each sample the first right, the first wrong and the first ungraded
    completion with the image, then without."""
    if rollouts is None or not _COLUMNS <= set(rollouts.column_names):
        return {}
    wanted = pa.array(ids, pa.string())
    firsts = []
    for table in rollouts.tables():
        theirs = table.select(sorted(_COLUMNS))
        theirs = theirs.filter(pc.is_in(theirs["id"], value_set=wanted))
        # one row a sample, arm and verdict, before anything becomes a Python value
        theirs = theirs.append_column("at", pa.array(np.arange(theirs.num_rows)))
        order = [("arm", "descending"), ("number", "ascending"), ("at", "ascending")]
        theirs = theirs.sort_by(order)
        theirs = theirs.set_column(
            theirs.schema.get_field_index("at"), "at", pa.array(np.arange(theirs.num_rows))
        )
        groups = theirs.group_by(["id", "arm", "correct"], use_threads=False)
        at = groups.aggregate([("at", "min")])["at_min"]
        firsts.append(theirs.take(at.combine_chunks().sort()))
    found: dict[str, list[dict[str, Any]]] = {}
    seen = set()
    for row in (row for table in firsts for row in table.to_pylist()):
        key = row["id"], row["arm"], row["correct"]
        if key not in seen:
            seen.add(key)
            found.setdefault(row["id"], []).append(row)
    return found


def _said(rollouts: Completions | None, ids: Sequence[str]) -> dict[str, list[Said]]:
    """Of each sample and arm the first right and the first wrong completion."""
    return {
        name: [_said_one(row) for row in rows]
        for name, rows in first_of_each(rollouts, ids).items()
    }


def _said_one(row: Mapping[str, Any]) -> Said:
    mark = {True: "right", False: "wrong", None: "not graded"}[row["correct"]]
    cut = ", cut at max_new_tokens" if row["finish_reason"] == "length" else ""
    arm = "with image" if row["arm"] == "image" else "without"
    return Said(arm, mark + cut, visible((row["text"] or "").strip(), COMPLETION))


def _shown(
    row: Mapping[str, Any],
    place: tuple[int, int],
    sample: Any,
    why: str,
    completions: list[Said],
) -> Shown:
    image, note = thumbnail(sample, row) if sample else (None, visible(why, SHORT))
    message = ": ".join(str(row[k]) for k in ("stage", "message") if row[k])
    return Shown(
        row=place[1],
        reason=place[0],
        id=visible(row["id"], SHORT // 2),
        question="" if sample is None else visible(sample.question, QUESTION),
        choices=[]
        if sample is None
        else [visible(c, SHORT // 2) for c in sample.choices[:10]],
        answer="" if sample is None else visible(sample.answer, SHORT),
        image=image,
        note=note,
        scores=_score_lines(row),
        token="" if row["psi_token"] is None else token_text(row["psi_token"], 40),
        before=visible((row.get("psi_before") or "")[-AROUND:], AROUND),
        after=visible((row.get("psi_after") or "")[:AROUND], AROUND),
        message=visible(message, SHORT * 2),
        completions=completions,
    )


def _score_lines(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    kind = KINDS.get(row["evidence"])
    lines = [
        (label, value if isinstance(value, str) else number(value))
        for label, value in (() if kind is None else kind.lines(row))
    ]
    if row.get("decided_by"):
        lines.append(("decided by", row["decided_by"]))
    for label, name in (
        ("D", "D"),
        ("difficulty", "difficulty"),
        ("ranking key", "rank_key"),
        ("keep-probability", "keep_probability"),
        ("log \u03c8", "log_psi"),
    ):
        if row.get(name) is not None:
            short = name == "log_psi" and row[name] == -math.inf
            lines.append((label, "too short" if short else number(row[name])))
    return lines


def open_source(selection: Selected, dataset: Any) -> Any:
    """The ``SampleSet`` that questions and images come from, or None."""
    if dataset is None:
        return selection.samples
    return as_samples(dataset, selection.settings.get("data"))


def found_samples(
    selection: Selected, source: Any, rows: np.ndarray
) -> list[tuple[Any, str]]:
    """(sample or None, why it is not shown) of each of these rows of the table."""
    if source is None:
        return [(None, "")] * len(rows)
    status = selection.reader.take(rows, ["status"])["status"]
    scored = pc.equal(status, SCORED).to_numpy()
    found = selection.find(source, rows)
    samples = [source[int(i)] if i >= 0 else None for i in found.rows]
    return [
        (None, found.why.get(at, "") if scored[at] else "")
        if sample is None or isinstance(sample, Bad)
        else (sample, "")
        for at, sample in enumerate(samples)
    ]


def strangers(shown: Sequence[Shown]) -> list[str]:
    """A warning where samples are not in the data set as they were scored."""
    missing = [one for one in shown if one.question == "" and one.note]
    if not missing:
        return []
    return [
        f"{len(missing)} of {len(shown)} samples shown here are not in the data set, or "
        f"not as they were scored: {missing[0].note}"
    ]


def thumbnail(
    sample: Any, row: Mapping[str, Any], size: tuple[int, int] = THUMBNAIL
) -> tuple[str | None, str]:
    """(data URI or None, what there is to say about the image)."""
    from ..samples.sample import BadSample
    from ..samples.sampleset import load_images

    try:
        images, hashes = load_images(sample, max_pixels=MAX_IMAGE_PIXELS)
    except BadSample as bad:
        return None, visible(f"{bad.code}: {bad.message}", SHORT)
    if not images:
        return None, "no image"
    notes = []
    if row["image_sha256"] and row["image_sha256"] != ",".join(hashes):
        notes.append("the image changed since it was scored")
    if len(images) > 1:
        notes.append(f"first of {len(images)} images")
    image = images[0].convert("RGB")
    image.thumbnail(size)
    data = io.BytesIO()
    image.save(data, "WEBP", quality=80)
    text = base64.b64encode(data.getvalue()).decode()
    return f"data:image/webp;base64,{text}", "; ".join(notes)
