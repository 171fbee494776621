"""One row of a data set -> one ``Sample``: columns, texts, choices, image references.

No row is trusted: an image path must stay inside ``root``, an URL is never fetched, text
that a Parquet file cannot hold is refused, JSON is parsed strictly. What cannot be used
raises ``BadSample``, which ``rap.samples`` turns into a ``Bad``.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from ..errors import RapInputError
from .answers import listed, read_answer
from .choices import letter, letter_index, resolve_choice, unlabelled
from .imagecells import read_image_cell
from .listtext import list_in_text
from .prompts import (
    images_in,
    last_reply,
    messages_of,
    place_images,
    read_turns,
    strip_image_tags,
)
from .sample import BadSample, Sample, Turn, clean

# `question` comes before `prompt`: a prompt often holds a trainer's instructions too,
# and ScoreConfig.prompt_template writes ours.
CANDIDATES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "id": (
            "id",
            "rap_id",
            "qid",
            "question_id",
            "sample_id",
            "problem_id",
            "pid",
            "uid",
        ),
        "question": (
            "question",
            "problem",
            "prompt",
            "query",
            "messages",
            "conversations",
            "instruction",
            "extra_info.question",
        ),
        "answer": (
            "answer",
            "final_answer",
            "reward_model.ground_truth",
            "ground_truth",
            "gold",
            "solution",
            "label",
            "target",
            "extra_info.answer",
            "multiple_choice_answer",
            "answers",
            "direct_answers",
        ),
        "choices": ("choices", "options"),
        "images": (
            "images",
            "image",
            "decoded_image",
            "image_path",
            "image_paths",
            "img",
            "imgname",
        ),
        "source": ("source", "data_source", "datasource", "dataset"),
    }
)
INDEX_CANDIDATES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "answer_index": ("correct_choice_idx", "answer_index", "answer_idx", "correct_idx"),
        "answer_number": (),
    }
)
"""Roles that take the place of ``answer``: a column that holds the right choice's place,
counted from 0 or from 1. They are among the columns only where one is played."""
REQUIRED = ("question", "answer", "images")
ANNOTATORS = 10  # answers to one question, from which on single opinions do not count
OPTION_STEM = re.compile(
    r"(?:(?:option|choice|opt|op|ending|candidate)s?[ _]?)?", re.IGNORECASE
)
IMAGE_STEM = re.compile(r"(?:decoded_)?(?:image|img)(?:_path)?[ _]?", re.IGNORECASE)
"""What the names of columns begin with that hold a choice, or an image, each."""


# ------------------------------------------------------------------------- columns


def detect_columns(
    available: Sequence[str],
    first: Mapping[str, Any],
    image_columns: frozenset[str] = frozenset(),
    columns: Mapping[str, str] | None = None,
) -> dict[str, str | None]:
    """Which column plays which role: ``{"question": "problem", "choices": None, ...}``.

    ``first`` is a row, to see which struct columns have the fields looked for. A column
    that `datasets` has typed as image wins over a better name without that type (in
    MathVista and MathVision ``image`` is only a path, ``decoded_image`` the image).
    ``columns`` overrides; an empty name says that an optional role has none.
    Raises ``RapInputError`` on a role or column that does not exist, and when question,
    answer or images cannot be found; it lists what is there.
    """
    there = ", ".join(available) or "none"
    found: dict[str, str | None] = {}
    unnamed: list[str] = []  # typed as images, under names that say nothing
    given = {**(columns or {})}
    for role, names in CANDIDATES.items():
        usable = [name for name in names if _has(available, first, name)]
        if role == "images" and image_columns:
            typed = [name for name in usable if name in image_columns]
            unnamed = [] if typed else [n for n in available if n in image_columns]
            usable = typed or unnamed or usable
        found[role] = usable[0] if usable else None
    if found["images"] is None or found["images"] in unnamed:
        found["images"] = _spread(available, IMAGE_STEM, "01") or found["images"]
    if found["images"] in unnamed and len(unnamed) > 1 and "images" not in given:
        raise RapInputError(
            f"several columns hold images: {', '.join(unnamed)}. Name the one to use, or "
            'several by commas, with columns={"images": "..."} (--columns images=...)'
        )
    found["choices"] = found["choices"] or _spread(available, OPTION_STEM, "aA01")
    roles = (*CANDIDATES, *INDEX_CANDIDATES)
    for role, name in given.items():
        if role not in roles:
            raise RapInputError(f"columns: no role {role!r}; roles are {', '.join(roles)}")
        if not name and role not in REQUIRED:
            if role in CANDIDATES:
                found[role] = None
            continue
        if not isinstance(name, str) or not _has(available, first, name):
            raise RapInputError(
                f"columns: no column {name!r} for {role}; there are: {there}"
            )
        found[role] = name
    _find_index(found, given, available)
    _find_in_chat(found, first)
    for role in REQUIRED:
        if found[role] is None:
            raise RapInputError(
                f"no column for {role} found; there are: {there}. Name it with "
                f'columns={{"{role}": "..."}} (--columns {role}=...; looked for '
                f"{', '.join(CANDIDATES[role])})"
            )
    return found


def _find_index(
    found: dict[str, str | None], given: Mapping[str, str], available: Sequence[str]
) -> None:
    """The column that holds the right choice's place, where one is named or known by its
    name: it is the answer's column, too."""
    if "answer" not in given and found["choices"] is not None:
        for role, names in INDEX_CANDIDATES.items():
            usable = [name for name in names if name in available]
            known = found["answer"] in (None, "answers", "direct_answers")
            if usable and role not in given and known:
                found.setdefault(role, usable[0])
    for role in INDEX_CANDIDATES:
        if found.get(role):
            found["answer"] = found[role]


def _find_in_chat(found: dict[str, str | None], first: Mapping[str, Any]) -> None:
    """A chat may hold its images, and end with the answer: where no column does."""
    messages = messages_of(cell(first, found["question"]))
    if messages is None:
        return
    if found["images"] is None and images_in(messages):
        found["images"] = found["question"]
    if found["answer"] is None and last_reply(messages):
        found["answer"] = found["question"]


def _spread(available: Sequence[str], stem: re.Pattern[str], starts: str) -> str | None:
    """Names of columns of one stem that go on from one of ``starts`` (option_a, option_b,
    ...; image_1, image_2, ...), joined by commas; None if there are not at least two."""
    for name in available:
        if name[-1:] not in starts or not stem.fullmatch(name[:-1]):
            continue
        if name[:-1] == "" and name.isdigit():
            continue  # a column called 0
        first = int(name[-1]) if name[-1].isdigit() else ord(name[-1])
        names = [name]
        while True:
            k = first + len(names)
            after = name[:-1] + (str(k) if name[-1].isdigit() else chr(k))
            if after not in available:
                break
            names.append(after)
        if len(names) > 1:
            return ",".join(names)
    return None


def _has(available: Sequence[str], first: Mapping[str, Any], name: str) -> bool:
    if name in available:
        return True
    if "," in name:
        return all(part in available for part in name.split(","))
    outer, dot, inner = name.partition(".")
    value = first.get(outer)
    return (
        bool(dot) and outer in available and isinstance(value, Mapping) and inner in value
    )


def cell(row: Mapping[str, Any], name: str | None) -> Any:
    if name is None:
        return None
    if name in row:
        return row[name]
    if "," in name:  # choices or images spread over columns
        return {letter(k): row.get(part) for k, part in enumerate(name.split(","))}
    outer, _, inner = name.partition(".")
    value = row.get(outer)
    return value.get(inner) if isinstance(value, Mapping) else None


def image_cell(row: Mapping[str, Any], name: str | None) -> Any:
    """As ``cell``, for images: of several columns a list."""
    value = cell(row, name)
    spread = name is not None and name not in row and "," in name
    return list(value.values()) if spread else value


# --------------------------------------------------------------- one row -> one sample


def parse_row(
    row: Mapping[str, Any],
    columns: Mapping[str, str | None],
    *,
    index: int,
    id: str,
    root: str | None,
    image_columns: frozenset[str] = frozenset(),
    counted: int | None = None,
) -> Sample:
    """One row -> ``Sample``. ``columns`` as from ``detect_columns``; ``root`` is a real
    path (links resolved) or None, where no path is allowed; ``counted``: the column of the
    answer holds the right choice's place, counted from this number. Raises
    ``BadSample``."""
    turns, question = _turns(cell(row, columns["question"]))
    choices, labels = read_choices(cell(row, columns["choices"]))
    answer = _answer(cell(row, columns["answer"]))
    if choices and counted is not None:
        answer = choices[_place(answer, choices, labels, counted)]
    elif labels and not _is_lettered(labels):
        answer = _by_own_label(answer, choices, labels)
    try:
        read_answer(answer, choices)
    except ValueError as error:
        raise BadSample("data", "bad_answer", str(error)) from None
    source = cell(row, columns["source"])
    images = read_image_cell(image_cell(row, columns["images"]), root)
    if not images:
        raise BadSample("data", "image_count", "the row has no image")
    turns, question = place_images(turns, question, len(images))
    hidden = {*image_columns, *(columns["images"] or "").split(","), columns["images"]}
    return Sample(
        index=index,
        id=id,
        question=question,
        answer=answer,
        choices=choices,
        images=images,
        source=None if source is None else clean(str(source), "source"),
        extra={k: v for k, v in row.items() if k not in hidden},
        turns=turns,
    )


def _turns(value: Any) -> tuple[tuple[Turn, ...], str]:
    """Earlier turns and the user's last one, as they stand."""
    turns, text = read_turns(value)
    for said in (*(said for _, said in turns), text):
        clean(said, "question")
    if not strip_image_tags(text)[0]:
        raise BadSample("data", "bad_answer", "question is empty")
    return turns, text


def scalar_text(value: Any) -> str | None:
    """Text of a string, number or yes/no; None for anything else. Numbers in full."""
    if isinstance(value, str):
        return value
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, (bool, int, float)):
        try:
            return str(value)
        except ValueError:  # more digits than int -> text allows
            return None
    return None


def _answer(value: Any) -> str:
    """The reference as one text; of several accepted answers a list in it; of a chat the
    assistant's turn that ends it."""
    messages = messages_of(value)
    if messages is not None:
        value = last_reply(messages)
    if isinstance(value, (list, tuple)):
        value = listed(_accepted(value)) if value else None
    text = scalar_text(value)
    if text is None:
        raise BadSample("data", "bad_answer", f"answer is {kind_of(value)}, not text")
    if not clean(text, "answer").strip():
        raise BadSample("data", "bad_answer", "answer is empty")
    return text.strip()


def _accepted(values: Sequence[Any]) -> list[str]:
    """The answers in a list, the commonest first. Of the ten that annotators gave (VQA)
    those that at least three of them gave."""
    texts = []
    for value in values:
        item = (
            value.get("answer", value.get("text")) if isinstance(value, Mapping) else value
        )
        text = scalar_text(item)
        if text is None or not text.strip():
            raise BadSample(
                "data",
                "bad_answer",
                f"an answer of {len(values)} is {kind_of(item)}, not text",
            )
        texts.append(text.strip())
    counts = Counter(texts)
    if len(texts) >= ANNOTATORS:
        counts = Counter({t: n for t, n in counts.items() if n >= 3}) or counts
    return [text for text, _ in counts.most_common()]


def _place(answer: str, choices: Sequence[str], labels: Sequence[str], start: int) -> int:
    """0-based choice at a place counted from ``start``, or with the number that it has."""
    number = _whole(answer)
    if number is not None and str(number) in labels:
        return labels.index(str(number))
    if number is None or not 0 <= number - start < len(choices):
        raise BadSample(
            "data",
            "bad_answer",
            f"answer {answer[:80]!r} is no place among {len(choices)} choices counted from "
            f"{start}",
        )
    return number - start


def _by_own_label(answer: str, choices: Sequence[str], labels: Sequence[str]) -> str:
    """The choice whose own label the answer is, where labels are not A, B, C, ... in
    order: a letter is that label before it is a place. A choice's own text comes first."""
    if answer in choices:
        return answer
    if answer.strip("(). ") in labels:
        lettered = len(answer.strip("(). ")) == 1 and answer.strip("(). ").isalpha()
        if lettered or resolve_choice(answer, choices) is None:
            return choices[labels.index(answer.strip("(). "))]
    place = letter_index(answer, 26)
    named = None if place is None else letter(place)
    same = [k for k, label in enumerate(labels) if label.upper() == named]
    return choices[same[0]] if len(same) == 1 else answer


def _is_lettered(labels: Sequence[str]) -> bool:
    return list(labels) == [letter(k) for k in range(len(labels))]


def _whole(value: Any) -> int | None:
    """The integer that a cell holds, as a number or as text."""
    if isinstance(value, (list, tuple)) and len(value) == 1:
        value = value[0]
    if isinstance(value, str) and re.fullmatch(r"\s*[-+]?\d{1,4}(?:\.0)?\s*", value):
        return int(float(value))
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return (
        int(value)
        if value == value and abs(value) < 10**4 and value == int(value)
        else None
    )


def counted_from(cells: Iterable[tuple[Any, Any]], column: str) -> int | None:
    """0 or 1 where the answers of a whole column are places of choices, counted from it;
    None where they are texts or letters.

    cells: (answer, choices) of every row. Only integers can be places; other answers among
    them are texts or letters. Read as
    the choices' own texts, as places from 0 and as places from 1, the reading that fits
    the most rows counts. Raises ``RapInputError`` where two readings fit as many rows and
    differ (integers given as text are then read as the choices' texts).
    """
    fits = {"text": 0, 0: 0, 1: 0}
    differ: dict[int, bool] = {0: False, 1: False}
    typed, seen, counted_alike, others = False, set(), True, 0
    for value, cell_of_choices in cells:
        try:
            choices, labels = read_choices(cell_of_choices)
        except BadSample:
            continue
        if not choices or value is None:
            continue
        number = _whole(value)
        if number is None:
            others += 1
            said = scalar_text(value)
            fits["text"] += said is not None and resolve_choice(said, choices) is not None
            continue
        typed = typed or not isinstance(value, str) or str(number) in labels
        counted_alike &= str(number) in labels
        seen.add(number)
        as_text = resolve_choice(str(number), choices)
        fits["text"] += as_text is not None
        for start in (0, 1):
            try:
                place = _place(str(number), choices, labels, start)
            except BadSample:
                continue
            fits[start] += 1
            differ[start] |= as_text is not None and choices[as_text] != choices[place]
    if others and (not typed or others > max(fits[0], fits[1])):
        return None
    best = max(fits.values())
    likely = [reading for reading, count in fits.items() if count == best > 0]
    if "text" in likely:
        other = [k for k in (0, 1) if k in likely and differ[k]]
        if not other or not typed:
            return None
    elif len(likely) < 2 or counted_alike:
        return likely[0] if likely else None  # type: ignore[return-value]
    numbers = ", ".join(map(str, sorted(seen)[:5]))
    raise RapInputError(
        f"column {column!r} holds the numbers {numbers}, which can be read in more than "
        "one way. Say which: places of the choices counted from 0 with columns="
        f'{{"answer_index": {column!r}}} (--columns answer_index={column}), from 1 with '
        f'{{"answer_number": {column!r}}}, the choices\' own texts with '
        '{"answer_index": ""}'
    )


def kind_of(value: Any) -> str:
    return "missing" if value is None else type(value).__name__


def read_choices(value: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(choices as texts, their own numbers or letters where they bring some).

    A mapping label -> text, a list of ``{label, text}``, a struct of the lists ``label``
    and ``text``, and a list written as text (as in MMMU) are understood. Labels inside
    the texts ("A. 12 cm") are taken away; a choice that is only an image tag becomes its
    letter. Raises ``BadSample``.
    """
    if isinstance(value, str):
        value = list_in_text(value)
    labels: list[str] = []
    if isinstance(value, Mapping):
        value, labels = _mapped_choices(value)
    if value is None:
        return (), ()
    if not isinstance(value, (list, tuple)):
        raise BadSample("data", "bad_answer", f"choices are {kind_of(value)}, not a list")
    if value and all(isinstance(item, Mapping) for item in value):
        fields = [_labelled_choice(item) for item in value]
        value, labels = _by_label(
            [text for _, text in fields],
            [label for label, _ in fields if label is not None],
        )
    out = []
    for k, item in enumerate(value):
        text = scalar_text(item)
        if text is None:
            raise BadSample(
                "data", "bad_answer", f"choice {k} is {kind_of(item)}, not text"
            )
        text, _ = strip_image_tags(clean(text, f"choice {k}"))
        out.append(text or letter(k))
    try:
        texts, own = unlabelled(out)
    except ValueError as error:
        raise BadSample("data", "bad_answer", str(error)) from None
    labels = labels if len(labels) == len(texts) else list(own)
    return texts, tuple(labels)


CHOICE_TEXTS = ("text", "texts", "value", "content", "option", "choice", "answer")
CHOICE_LABELS = ("label", "labels", "key", "letter", "id", "option_id")


def _mapped_choices(value: Mapping[str, Any]) -> tuple[Any, list[str]]:
    """A mapping of choices as a list and its labels, numbers in their order; Arrow structs
    bring the keys that other rows have as None."""
    texts = next((value[n] for n in CHOICE_TEXTS if isinstance(value.get(n), list)), None)
    if texts is not None:
        labels: list[Any] = next(
            (value[n] for n in CHOICE_LABELS if isinstance(value.get(n), list)), []
        )
        return _by_label(texts, [scalar_text(label) or "" for label in labels])
    keys = [key for key in value if value[key] is not None]
    keys.sort(key=_natural)
    return [value[k] for k in keys], [str(k) for k in keys]


def _natural(key: object) -> list[Any]:
    """Sort key: numbers inside a name by their value."""
    parts = re.split(r"(\d{1,9})", str(key))
    return [int(part) if k % 2 else part for k, part in enumerate(parts)]


def _by_label(texts: Sequence[Any], labels: list[str]) -> tuple[Any, list[str]]:
    """Texts in the order of their letters, if those are A, B, C, ..."""
    if sorted(labels) == [letter(k) for k in range(len(texts))]:
        order = sorted(range(len(texts)), key=labels.__getitem__)
        return [texts[k] for k in order], [labels[k] for k in order]
    return texts, labels if len(labels) == len(texts) else []


def _labelled_choice(item: Mapping[str, Any]) -> tuple[str | None, Any]:
    """(label or None, text) of a choice that is a mapping."""
    text = next((item[name] for name in CHOICE_TEXTS if item.get(name) is not None), None)
    label = next((item[name] for name in CHOICE_LABELS if item.get(name) is not None), None)
    if text is None and len(item) == 1:
        label, text = next(iter(item.items()))
    return None if label is None else scalar_text(label), text
