"""Choices as cells hold them, and answers that are places among them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..errors import RapInputError
from .cells import kind_of, scalar_text, whole
from .choices import letter, letter_index, resolve_choice, unlabelled
from .listtext import list_in_text
from .prompts import named_images, strip_image_tags
from .sample import BadSample, clean


def place_of(answer: str, choices: Sequence[str], labels: Sequence[str], start: int) -> int:
    """0-based choice at a place counted from ``start``, or with the number that it has."""
    number = whole(answer)
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


def by_own_label(answer: str, choices: Sequence[str], labels: Sequence[str]) -> str:
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


def is_lettered(labels: Sequence[str]) -> bool:
    return list(labels) == [letter(k) for k in range(len(labels))]


def counted_from(
    cells: Iterable[tuple[Any, Any]], column: str, *, is_index: bool = False
) -> int | None:
    """0 or 1 where the answers of a whole column are places of choices, counted from it;
    None where they are texts or letters.

    cells: (answer, choices) of every row. Only integers can be places; other answers among
    them are texts or letters. Read as
    the choices' own texts, as places from 0 and as places from 1, the reading that fits
    the most rows counts. Raises ``RapInputError`` where two readings fit as many rows and
    differ (integers given as text are then read as the choices' texts). ``is_index``: the
    column's name says that it holds places, which then are counted from 0 where nothing
    else decides.
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
        number = whole(value)
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
                place = place_of(str(number), choices, labels, start)
            except BadSample:
                continue
            fits[start] += 1
            differ[start] |= as_text is not None and choices[as_text] != choices[place]
    if others and (not typed or others > max(fits[0], fits[1])):
        return None
    best = max(fits.values())
    likely = [reading for reading, count in fits.items() if count == best > 0]
    if is_index and likely != ["text"]:
        return min(start for start in likely if isinstance(start, int)) if likely else None
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


def read_choices(
    value: Any, *, several_images: bool = False
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(choices as texts, their own numbers or letters where they bring some).

    A mapping label -> text, a list of ``{label, text}``, a struct of the lists ``label``
    and ``text``, and a list written as text (as in MMMU) are understood. Labels inside
    the texts ("A. 12 cm") are taken away; a choice that is only an image tag becomes its
    letter, or with ``several_images`` the name of its image ("image 2"). Raises
    ``BadSample``.
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
        text = clean(text, f"choice {k}")
        text = named_images(text) if several_images else text
        text, _ = strip_image_tags(text)
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
