"""Which choice a text means: by its own text, its number or its letter.

Shared by reading a data set (is the reference among the choices?), by evidence (which
letter is teacher-forced?) and by grading (which choice does a response name?).
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from .markup import boxes, element, folded, strip_math, text_commands


def letter(index: int) -> str:
    """0 -> "A", 1 -> "B", ...; beyond 26 the number itself, from 1."""
    return chr(ord("A") + index) if index < 26 else str(index + 1)


_NAMED = r"(?:(?:option|choice|answer|选项|选择|选)\s*[:\uff1a]?\s*)?"
_LETTER = re.compile(_NAMED + r"[(\[{]?\s*([A-Za-z])\s*[)\]}.:,]{0,2}", re.IGNORECASE)
_LABEL = re.compile(
    r"\s*(?:[(\[]\s*([A-Z]|\d{1,2})\s*[)\]]|([A-Z])\s*[).:\u3001\uff0e\uff1a]"
    r"|(\d{1,2})\s*(?:[.\uff0e]\s|[)\u3001]))\s*(?=\S)"
)


def letter_index(text: str, n: int) -> int | None:
    """0-based choice that ``text`` names as a bare letter ("B", "(b)", "B.", "Option B"),
    of ``n``."""
    match = _LETTER.fullmatch(folded(text).strip())
    if match is None:
        return None
    index = ord(match[1].upper()) - ord("A")
    return index if index < n else None


def plain(text: str) -> str:
    """Text for comparing choices: case, spaces, dollar signs and a final dot ignored."""
    return " ".join(folded(text).replace("$", " ").split()).casefold().rstrip(". ")


def as_number(text: str) -> float | None:
    """The number that ``text`` is, thousands commas allowed; None if it is none."""
    text = text.strip().strip("$ ")
    if re.fullmatch(r"[-+]?\d{1,3}(?:,\d{3})+(?:\.\d+)?", text):
        text = text.replace(",", "")
    if not re.fullmatch(r"[-+]?(?:\d+\.?\d*|\.\d+)", text):
        return None
    value = float(text)
    return value if math.isfinite(value) else None


def split_label(text: str) -> tuple[str, str] | None:
    """("B", "13 cm") of "B. 13 cm", "(B) 13 cm", "2) 13 cm"; None without a label."""
    match = _LABEL.match(text)
    if match is None:
        return None
    return next(group for group in match.groups() if group), text[match.end() :].strip()


def unlabelled(choices: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Choices without the letters or numbers they bring along, in the order of those, and
    the labels; labels () where not every choice has its own.

    Raises ``ValueError`` if the letters leave one out (A, B, D): a letter in the reference
    could then mean the label or the place.
    """
    split = [split_label(choice) for choice in choices]
    if len(choices) < 2 or None in split:
        return tuple(choices), ()
    labels = [label for label, _ in split]  # type: ignore[misc]
    expected = [letter(i) for i in range(len(choices))]
    if any(label.isdigit() for label in labels):
        expected = [str(i + 1) for i in range(len(choices))]
    if len(set(labels)) < len(labels) or {x.isdigit() for x in labels} != {
        expected[0].isdigit()
    }:
        return tuple(choices), ()
    if sorted(labels) != sorted(expected):
        if labels[0] == "A" and labels == sorted(labels):
            raise ValueError(f"the choices are labelled {', '.join(labels)}")
        return tuple(choices), ()  # "E. coli", "S. aureus"
    texts = dict(split)  # type: ignore[arg-type]
    return tuple(texts[label] for label in expected), tuple(expected)


def resolve_choice(answer: str, choices: Sequence[str]) -> int | None:
    """0-based choice that the reference answer means; None if it means none.

    A choice's own text comes first, its letter second: with choices ("B", "A") the answer
    "A" is the second. An answer like "(B) 12 cm" or "\\boxed{B}" is understood too.
    """
    if answer in choices:
        return list(choices).index(answer)
    texts = [plain(choice) for choice in choices]
    for text in dict.fromkeys((answer, unwrap(answer))):
        if plain(text) and texts.count(plain(text)) == 1:
            return texts.index(plain(text))
        number = as_number(text)
        equal = [
            k
            for k, t in enumerate(choices)
            if number is not None and as_number(t) == number
        ]
        if len(equal) == 1:
            return equal[0]
        by_letter = letter_index(text, len(choices))
        if by_letter is not None:
            return by_letter
        labelled = split_label(folded(text))
        if labelled is not None:
            label, n = labelled[0], len(choices)
            number_of = int(label) - 1 if label.isdigit() and 0 < int(label) <= n else None
            named = letter_index(label, n) if label.isalpha() else number_of
            if named is not None and plain(labelled[1]) == texts[named]:
                return named
    return None


def unwrap(text: str) -> str:
    """The inside of tags, boxes, math delimiters and text commands around a whole
    answer."""
    for _ in range(4):
        before = text
        inside = element(text)
        if inside is not None and inside[2] and not inside[0]:
            text = inside[1]
        text = strip_math(text)
        box = boxes(text)
        if len(box) == 1 and text[: box[0][0]].strip("$ ") == "":
            text = box[0][2] if text[box[0][1] :].strip("$. ") == "" else text
        if re.fullmatch(r"\\[a-z]+\s*\{[^{}]*\}", text):
            text = text_commands(text)
        text = text.strip().strip("*`").strip()
        if text == before:
            break
    return text
