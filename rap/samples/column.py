"""What the answers of a whole column decide about one that could be read in two ways.

- "1,250" is a number, or 1 and 250: where the other answers are pairs, it is a pair.
- "AB" and "A" are options, or a segment and a word: where no other answer is a letter, or
  letters are rare, they are text.
- "3,5" is 3.5, or 3 and 5 (``commas``).
- 03/04/2021 is in March or in April: where another answer has a day above 12, that tells
  which number is the day.

``Column.settled`` writes such an answer out so that ``read_answer`` reads it in the
column's way; every other answer stays as it is. The data set's own text is what is hashed.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .answers import bare, letters_of, listed, quoted_list
from .commas import are_decimal, kinds_of, noted
from .markup import folded, strip_math

LETTERS_ARE_RARE = 0.05
"""Answers that are letters, of all: below that they are no options."""
ENOUGH = 20
"""Rows, below which nothing is rare."""

_THOUSANDS = re.compile(r"-?\d{1,3},\d{3}")
_PAIR = re.compile(r"-?\d+(?:\.\d+)?\s*[,;]\s*-?\d+(?:\.\d+)?")
_NUMERIC_DATE = re.compile(r"([0-3]?\d)([-/.])([0-3]?\d)\2(\d{4})")
_NAME = re.compile(r"[A-Z]{2,4}")


@dataclass(frozen=True, slots=True)
class Column:
    """``pairs``: "1,250" is two numbers. ``letters``: single letters and sets of them are
    options. ``day``: "first" or "second" number of 03/04/2021; "" where no answer tells.
    ``commas``: decimal ones: "3,5" is 3.5, "1.234" is 1234."""

    pairs: bool = False
    letters: bool = True
    day: str = ""
    commas: bool = False

    def settled(self, answer: str) -> str:
        """The answer as the column reads it."""
        text = _bare(answer)
        if self.commas and (decimals := _with_commas(text)) is not None:
            return decimals
        if self.pairs and _THOUSANDS.fullmatch(text):
            return text.replace(",", ", ")
        if not self.letters and letters_of(text):
            return json.dumps([text])
        date = _NUMERIC_DATE.fullmatch(text) if self.day else None
        if date is not None:
            day, month = (1, 3) if self.day == "first" else (3, 1)
            if int(date[month]) <= 12:
                return f"{date[4]}-{int(date[month]):02}-{int(date[day]):02}"
        return answer

    def said(self) -> list[str]:
        """What was decided, in sentences; empty where nothing had to be."""
        found = []
        if self.pairs:
            found.append("answers are pairs of numbers: 1,250 is 1 and 250")
        if not self.letters:
            found.append("answers are no options: a single letter, or AB, is text")
        if self.commas:
            found.append(
                "answers have decimal commas: 3,5 is 3.5, and 1.234 is 1234; a response "
                "may write them with commas or points"
            )
        if self.day:
            found.append(f"the {self.day} number of dates as 03/04/2021 is the day")
        return found

    def as_list(self) -> list[object]:
        """As JSON."""
        return [self.pairs, self.letters, self.day, self.commas]


def column_of_answers(
    answers: Iterable[tuple[str, Sequence[str]]], questions: Iterable[str] = ()
) -> Column:
    """The reading that the open ones of (answer, choices) decide; where they leave it open
    whether commas are decimal, the language of the ``questions``."""
    kinds: Counter[str] = Counter()
    for answer, choices in answers:
        if not choices:
            kinds.update(_kinds(answer))
    commas = are_decimal(kinds, questions)
    pairs = not commas and _are_pairs(kinds)
    return Column(pairs, _are_letters(kinds), _day(kinds), commas)


def _with_commas(text: str) -> str | None:
    """A reference, or a list of accepted ones, with its decimal commas noted; None where
    none is a number with them."""
    items = quoted_list(text) or [text]
    found = [noted(item) for item in items]
    if not any(found):
        return None
    return listed([note or item for note, item in zip(found, items, strict=True)])


def _bare(answer: str) -> str:
    try:
        return strip_math(folded(bare(answer)[0])).strip()
    except ValueError:
        return ""


def _kinds(answer: str) -> Iterable[str]:
    text = _bare(answer)
    yield "all"
    if _THOUSANDS.fullmatch(text):
        yield "thousands"
    elif _PAIR.fullmatch(text):
        yield "pair"
    elif re.fullmatch(r"-?\d+(?:\.\d+)?", text):
        yield "number"
    for item in quoted_list(text) or [text]:
        yield from kinds_of(item)
    letters = letters_of(text)
    if letters:
        yield "letter" if len(letters) == 1 else "set"
    elif _NAME.fullmatch(text):
        yield "name"
    date = _NUMERIC_DATE.fullmatch(text)
    if date is not None and (int(date[1]) > 12) != (int(date[3]) > 12):
        yield "day first" if int(date[1]) > 12 else "day second"


def _are_pairs(kinds: Counter[str]) -> bool:
    """More pairs than anything else that has numbers."""
    return kinds["thousands"] > 0 and kinds["pair"] > kinds["number"] + kinds["thousands"]


def _are_letters(kinds: Counter[str]) -> bool:
    if not kinds["letter"] + kinds["set"]:
        return True
    if not kinds["letter"] and kinds["name"]:
        return False  # AB, PQ, CBA
    rare = kinds["letter"] + kinds["set"] < LETTERS_ARE_RARE * kinds["all"]
    return not (rare and kinds["all"] >= ENOUGH)


def _day(kinds: Counter[str]) -> str:
    first, second = kinds["day first"] > 0, kinds["day second"] > 0
    return "" if first == second else "first" if first else "second"
