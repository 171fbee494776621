"""What was understood of a data set: for people, as JSON, for a store's metadata."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from itertools import islice
from typing import Any, Protocol

from ..config import MAX_IMAGE_PIXELS
from ..errors import RapInputError
from .answers import read_answer
from .column import Column
from .forms import LETTERS, Forms
from .images import load_images
from .remote import is_hub_name, is_url
from .sample import Bad, BadSample, Sample
from .sources import Rows
from .stated import Stated

SHOWN = 2
"""Sample rows that are shown."""
LOOKED_AT = 100
"""First rows, among which usable ones are looked for."""
OPENED = 20
"""Rows, spread over the data set, whose images are opened."""
LOOKED_FOR = 200
"""Such rows whose image files are looked for."""


class Told(Protocol):
    """What of a ``SampleSet`` is told."""

    columns: Mapping[str, str | None]
    given_columns: Mapping[str, str] | None
    root: str | None
    path: str | None

    @property
    def kind(self) -> str: ...
    @property
    def rows(self) -> Rows: ...
    @property
    def counted_from(self) -> int | None: ...
    @property
    def answer_forms(self) -> Forms: ...
    @property
    def stated_options(self) -> Stated: ...
    @property
    def answer_column(self) -> Column: ...
    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Sample | Bad: ...


def guessed(samples: Told) -> dict[str, Any]:
    """What was guessed and not given, as JSON: ``columns`` that play a role,
    ``counted_from`` (0 or 1 where answers are places of choices), ``answers``, their form
    by column."""
    given = samples.given_columns or {}
    columns = {
        role: name
        for role, name in samples.columns.items()
        if role not in given and name is not None
    }
    forms = samples.answer_forms.as_dict()
    return {"columns": columns, "counted_from": samples.counted_from, "answers": forms}


def told(samples: Told) -> dict[str, Any]:
    """Everything that ``text_of`` says, as JSON."""
    first = [samples[i] for i in range(min(len(samples), LOOKED_AT))]
    bad = Counter(row.code for row in first if isinstance(row, Bad))
    example = {row.code: row.message for row in reversed(first) if isinstance(row, Bad)}
    usable = (row for row in first if isinstance(row, Sample))
    return {
        "kind": samples.kind,
        "rows": len(samples),
        "columns": dict(samples.columns),
        "guessed": guessed(samples),
        "root": samples.root,
        "samples": [_shown(samples, sample) for sample in islice(usable, SHOWN)],
        "images": images_of(samples),
        "looked_at": len(first),
        "unusable": {code: [n, example[code]] for code, n in bad.most_common()},
        "notes": notes(samples),
    }


def images_of(samples: Told) -> dict[str, Any]:
    """What opening images says, as JSON: of how many ``rows``, spread over the data set,
    they were opened as for scoring, and what was ``unreadable``: {code: [rows, how the
    first one failed]}. Where images are files, also for how many rows the files were
    ``looked_for``, how many are ``missing`` one, and the ``first`` of them. Images that may
    have to be fetched are left alone."""
    if samples.path is not None and (is_url(samples.path) or is_hub_name(samples.path)):
        return {}
    rows = _spread(samples, OPENED)
    reasons = [reason for row in rows if (reason := _unopened(row)) is not None]
    example = dict(reversed(reasons))
    counts = Counter(code for code, _ in reasons)
    unreadable = {code: [n, example[code]] for code, n in counts.most_common()}
    found = {"rows": len(rows), "unreadable": unreadable}
    if not any(ref.path is not None for row in rows for ref in row.images):
        return found
    looked_for = _spread(samples, LOOKED_FOR)
    missing = [name for row in looked_for if (name := _missing(samples, row)) is not None]
    return found | {
        "looked_for": len(looked_for),
        "missing": len(missing),
        "first": next(iter(missing), None),
    }


def _spread(samples: Told, most: int) -> list[Sample]:
    """The usable ones of up to so many rows, spread over the data set."""
    last, count = len(samples) - 1, min(len(samples), most)
    places = sorted({k * last // max(count - 1, 1) for k in range(count)})
    return [row for k in places if isinstance(row := samples[k], Sample)]


def _unopened(sample: Sample) -> tuple[str, str] | None:
    """(code, message): why the images cannot be read; None if they can."""
    try:
        load_images(sample.images, max_pixels=MAX_IMAGE_PIXELS)
    except BadSample as bad:
        return bad.code, bad.message
    except RapInputError as error:  # no Pillow here
        return "not_opened", str(error)
    return None


def _missing(samples: Told, sample: Sample) -> str | None:
    """Row and path of the first image file that is not there."""
    for ref in sample.images:
        if ref.path is not None and not os.path.isfile(ref.path):
            return f"{samples.rows.where(sample.index)}: {ref.path[-200:]}"
    return None


def notes(samples: Told) -> list[str]:
    """What a user should know before a model runs."""
    forms = samples.answer_forms
    if forms.are_boxes:
        return [no_boxes(samples)]
    stated, said = samples.stated_options, samples.answer_column.said()
    if stated:
        return [
            *said,
            f"options stand in the questions ({stated.found:,} of {stated.looked_at:,} "
            f"rows, the answer is one in {stated.fitting:,}): a letter is matched with its "
            "text, too",
        ]
    if forms.form in LETTERS:
        said.append(
            "answers are letters, and the questions state no options as text: only the "
            "letter counts"
        )
    return said


def no_boxes(samples: Told) -> str:
    """The sentence that refuses answers that are boxes."""
    return (
        f"answers in column {samples.columns['answer']!r} are boxes, which the built-in "
        "checker cannot compare: score with evidence 'rollouts' and a reward function of "
        "your own, such as overlap (IoU) above 0.5: reward=... (--reward MODULE:FUNCTION)"
    )


def _shown(samples: Told, sample: Sample) -> dict[str, Any]:
    reference = read_answer(sample.reference, sample.options)
    return {
        "row": samples.rows.where(sample.index),
        "id": sample.id,
        "turns": [list(turn) for turn in sample.turns],
        "question": sample.question,
        "choices": list(sample.choices),
        "stated": list(sample.stated),
        "answer": reference.text,
        "letter": reference.letter or None,
        "accepted": [accepted.text for accepted in reference.accepted],
        "images": len(sample.images),
    }


def text_of(found: Mapping[str, Any]) -> str:
    """``told`` as lines."""
    lines = [f"{found['kind']}: {found['rows']:,} rows"]
    for role, name in found["columns"].items():
        missing = "row numbers are used" if role == "id" else "none"
        lines.append(f"  {role:<8} <- {missing if name is None else name}")
    guess = found["guessed"]
    if guess["counted_from"] is not None:
        lines.append(
            f"  answers are places of the choices, counted from {guess['counted_from']}"
        )
    lines.append(f"  form of the answers: {Forms(guess['answers']['counts'])}")
    lines += [f"  note: {note}" for note in found["notes"]]
    lines.append(f"  images inside {found['root'] or '(no folder: bytes only)'}")
    lines += _image_lines(found["images"])
    for code, (count, message) in found["unusable"].items():
        lines.append(f"  {count} of the first {found['looked_at']} rows: {code}: {message}")
    for sample in found["samples"]:
        lines += _sample_lines(sample)
    return "\n".join(lines)


def _image_lines(found: Mapping[str, Any]) -> list[str]:
    if not found:
        return []
    n, unreadable = found["rows"], found["unreadable"]
    lines = [f"  images of {n} rows, spread over all: each can be read"]
    if unreadable:
        lines = [
            f"  images of {count} of {n} rows: {code}: {message}"
            for code, (count, message) in unreadable.items()
        ]
    if "looked_for" in found:
        first = f"{found['missing']} lack one, first {found['first']}"
        lines.append(
            f"  looked for the image files of {found['looked_for']} rows, spread over all: "
            f"{first if found['missing'] else 'all are there'}"
        )
    if "image_missing" in unreadable or found.get("missing"):
        lines.append("  image paths are relative to the data's folder, or to --root")
    return lines


def _sample_lines(sample: Mapping[str, Any]) -> list[str]:
    answer = sample["answer"]
    if sample["choices"]:
        answer = f"({sample['letter']}) {answer}, one of {len(sample['choices'])} choices"
    elif sample["stated"]:
        n = len(sample["stated"])
        answer = f"({sample['letter']}) {answer}, one of {n} options in the question"
    elif len(sample["accepted"]) > 1:
        answer = " or ".join(sample["accepted"])
    lines = [f"  {sample['row']}: {short(sample['question'])}"]
    lines += [f"    before it, {role}: {short(text)}" for role, text in sample["turns"]]
    return [*lines, f"    answer {short(answer)}, images {sample['images']}"]


def short(text: str, limit: int = 60) -> str:
    """On one line, cut."""
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return text if len(text) <= limit else text[: limit - 3] + "..."
