"""In which form the answers of a data set are given: decided for the column, not by row.

A form is said before a model runs, because what a response is compared with follows from
it: letters name options, a list is one of several accepted answers, a box (of pixels) is
nothing that the built-in checker can compare.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .answers import Reference, bare, read_answer
from .choices import letter_index, unwrap
from .dates import clock_of, date_of
from .markup import folded, strip_math

BOX = "box"
LETTERS = ("letter", "set of letters")
LOOKED_AT = 2000
"""Rows, spread over the whole column, by which its form is decided."""

_DIGITS = r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+"
_NUMBER = rf"[-+]?(?:{_DIGITS})(?:\s*/\s*\d+)?(?:[eE][-+]?\d+)?"
_PERCENTAGE = re.compile(rf"(?:{_NUMBER})\s*\\?(?:%|percent\b|per cent\b|\uff05)\.?", re.I)
_UNIT = (
    r"(?:[A-Za-z\u00b0\u03bc\u4e00-\u9fff]{1,12}\.?)(?:\s*\^?\s*\{?[23\u00b2\u00b3]\}?)?"
)
_MEASURED = re.compile(
    rf"(?:[$\u20ac\u00a3\u00a5]\s*(?:{_NUMBER})"
    rf"|(?:{_NUMBER})\s*(?:\^?\{{?\\circ\}}?|{_UNIT}(?:\s*/\s*{_UNIT})?"
    rf"|\\(?:text|mathrm)\s*\{{[^{{}}]*\}}(?:\^\{{?[23]\}}?)?)\.?)"
)
_COORDINATE = r"\s*\"?[-+]?\d+(?:\.\d+)?\"?\s*"
_FOUR = re.compile(r"[\[(]" + ",".join([rf"({_COORDINATE})"] * 4) + r"[\])]")
_NAMED_BOX = re.compile(r"bbox(?:_2d)?[\"']?\s*:|<\|?box(?:_start)?\|?>", re.IGNORECASE)
_WORDS = re.compile(r"[^\W\d_]{3,}")


@dataclass(frozen=True, slots=True)
class Forms:
    """``counts``: {form: rows}, the commonest first; ``looked_at``: rows with an answer
    that could be read."""

    counts: Mapping[str, int] = field(default_factory=dict)

    @property
    def looked_at(self) -> int:
        return sum(self.counts.values())

    @property
    def form(self) -> str | None:
        """The column's: the commonest; None where no answer could be read."""
        return next(iter(self.counts), None)

    @property
    def are_boxes(self) -> bool:
        """Whether most answers are boxes."""
        return 2 * self.counts.get(BOX, 0) > self.looked_at

    def __str__(self) -> str:
        if self.form is None:
            return "none could be read"
        n = self.looked_at
        shown = [f"{form} ({_share(count, n)})" for form, count in self.counts.items()]
        more = "" if len(shown) < 6 else f" and {len(shown) - 5} more"
        return f"{', '.join(shown[:5])}{more}, by {n:,} rows"

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {"form": self.form, "counts": dict(self.counts), "looked_at": self.looked_at}


def _share(count: int, n: int) -> str:
    if count == n:
        return "all"
    return f"{max(min(100 * count / n, 99.9), 0.1):.1f} %"


def forms_of(
    answers: Iterable[tuple[str, Sequence[str]]], counted: int | None = None
) -> Forms:
    """The forms of (answer, choices) of many rows; those that cannot be read are left out.
    ``counted``: as from ``counted_from``."""
    found: Counter[str] = Counter()
    for answer, choices in answers:
        try:
            found[form_of(answer, choices, counted)] += 1
        except ValueError:
            continue
    return Forms(dict(found.most_common()))


def form_of(answer: str, choices: Sequence[str] = (), counted: int | None = None) -> str:
    """The form of one answer. Raises ``ValueError`` where it cannot be read."""
    reference = read_answer(answer, tuple(choices))
    if choices:
        return _among(answer, reference, len(choices), counted)
    if is_box(answer):
        return BOX
    if reference.letters:
        return LETTERS[len(reference.letters) > 1]
    if len(reference.accepted) > 1:
        return "list of accepted answers"
    return _open(answer, reference)


def _among(answer: str, reference: Reference, n: int, counted: int | None) -> str:
    if len(reference.choices) > 1:
        return "set of choices"
    if counted is not None:
        return f"place of a choice, counted from {counted}"
    named = letter_index(unwrap(answer), n)
    if named is None:
        named = letter_index(bare(answer)[0], n)
    return "letter of a choice" if named == reference.choices[0] else "text of a choice"


def _open(answer: str, reference: Reference) -> str:
    (accepted,) = reference.accepted
    text = strip_math(folded(reference.text))
    if re.fullmatch(_NUMBER, text):
        return "number"
    if _PERCENTAGE.fullmatch(text):
        return "percentage"
    if date_of(text) is not None or clock_of(text) is not None:
        return "date or time"
    if _is_interval(text):
        return "interval"
    if re.fullmatch(r"(?:\\left)?\s*\(.*,.*\)", text, re.DOTALL):
        return "tuple"
    if len(accepted.values) > 1:
        return "several values, all needed"
    if text.casefold().strip(".") in ("yes", "no", "true", "false", "是", "否", "对", "错"):
        return "yes or no"
    if _MEASURED.fullmatch(text):
        return "number with unit"
    if re.search(r"\\[a-zA-Z]|[\^_=]", text) or "$" in answer:
        return "LaTeX"
    return "text" if _WORDS.search(text) or not re.search(r"\d", text) else "expression"


def _is_interval(text: str) -> bool:
    """Half open, open to infinity, or a range of two numbers: not (3, 4), a point."""
    plain = re.sub(r"\\(?:left|right)", "", text).strip()
    if re.fullmatch(r"[\[(][^,]+,[^,]+[\])]", plain):
        return (
            plain[0] + plain[-1] in ("[)", "(]", "[]") or "infty" in plain or "∞" in plain
        )
    return re.fullmatch(rf"(?:{_NUMBER})\s*(?:-|~|to)\s*(?:{_NUMBER})", plain) is not None


def is_box(answer: str) -> bool:
    """Whether an answer is a box of pixels: [x1, y1, x2, y2], or an object that names
    one."""
    text = unwrap(answer)
    if _NAMED_BOX.search(text):
        return True
    match = _FOUR.fullmatch(text.strip())
    if match is None:
        return False
    x1, y1, x2, y2 = (float(group.strip(' "')) for group in match.groups())
    return x1 < x2 and y1 < y2 and min(x1, y1) >= 0
