"""Numbers with a decimal comma: 3,5 and 1.234,5, as most of Europe and South America write.

One such number proves nothing: "3,5" may be 3 and 5, "1,234" a thousand. ``column``
decides for all answers of a data set, by those that can be read in one way only and by the
language of the questions. A reference is then written out as "3.5 (3,5)" (``noted``), which
``answers.read_answer`` understands, and a response to it may have commas, too.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from .markup import folded

_WHOLE = r"(?:[1-9]\d{0,2}(?:\.\d{3})+|\d+)"
_NUMBER = rf"{_WHOLE}(?:,\d+)?"
_UNIT = r"(?:\s*[^\d\s,.;()\[\]=+*/^][^\d,.;()\[\]=]{0,24}(?:[23]\}?)?\.?)?"
_QUANTITY = rf"(?:[A-Za-z]\s*=\s*)?[-+]?\s*[\u20ac\u00a3]?\s*{_NUMBER}{_UNIT}"
_AND = r"\s*(?:;|\b(?:und|oder|et|ou|y|o|e|en|of|and|or)\b)\s*"
_QUANTITIES = re.compile(rf"{_QUANTITY}(?:{_AND}{_QUANTITY})*")
_IN_TEXT = re.compile(rf"(?<![\d.,]){_NUMBER}(?![.,]?\d)")
_ONLY_A_DECIMAL = re.compile(
    rf"(?<![\d.,])(?:{_WHOLE},(?:\d{{1,2}}|\d{{4,}})|0,\d+|\d{{1,3}}(?:\.\d{{3}})+,\d+)"
    r"(?![.,]?\d)"
)
_BARE = re.compile(rf"(?:[A-Za-z]\s*=\s*)?[-+]?\s*{_NUMBER}(?:{_AND}[-+]?\s*{_NUMBER})*")
_POINT = re.compile(
    r"(?<![\d.,])(?:\d{1,3}(?:,\d{3})+\.\d+|(?:0|\d{4,})?\.\d+|\d+\.(?!\d{3}\b)\d+)(?![.,]?\d)"
)
_SEPARATED = re.compile(r"\d\s*,\s+-?\d|\d,-\d|\d+,\d+,(?!\d{3}\b)\d+")
LONGEST = 60  # characters; what is longer is no number
_NOTED = re.compile(r"(.+?) \(([^()]*)\)", re.DOTALL)


def kinds_of(answer: str) -> Iterable[str]:
    """What an answer says of the column's commas: "comma" (it can only be a decimal comma),
    "comma or pair" ("3,5"), "point" (a decimal point), "separated" ("3, 5")."""
    text = _plain(answer)
    if len(text) > LONGEST:
        return
    if _POINT.search(text):
        yield "point"
    elif _SEPARATED.search(text):
        yield "separated"
    elif _QUANTITIES.fullmatch(text) and _ONLY_A_DECIMAL.search(text):
        # no pair has a unit, 05 for its second number, 1.234 for its first, or a {,}
        pair = _BARE.fullmatch(text) and not re.search(r",0\d|\.\d{3},", text)
        pair = pair and "{,}" not in answer
        yield "comma or pair" if pair else "comma"


def are_decimal(kinds: Counter[str], questions: Iterable[str]) -> bool:
    """Whether the column's commas are decimal. ``kinds``: rows of each of ``kinds_of``, and
    "thousands" (1,250); ``questions`` are read only where the answers do not tell."""
    certain, likely = kinds["comma"], kinds["comma or pair"]
    against = kinds["point"] + kinds["separated"]
    if not certain + likely or 20 * against > certain + likely:
        return False
    if kinds["thousands"] > certain + likely:
        return False
    return certain > 0 or written_with_commas(questions)


_WORDS = {
    "en": "the is are what how many of and which in does to",
    "de": "der die das ist sind wie viele was und welche ein eine den im wird",
    "fr": "le la les est sont quel quelle combien des du une dans et il",
    "es": "el los las es son cuál cuántos cuántas qué del una en y",
    "it": "il lo gli è sono quanti quante quale della del una nel che",
    "pt": "o os as é são qual quantos quantas da do uma na em",
    "nl": "de het is zijn wat hoe veel welke een van op en",
    "pl": "jest są ile jaki jaka jakie na w z i do ma",
    "ru": "и в на чему сколько какой какова равна равен с по",
}
"""Commonest words of questions, by language; but for English, languages that write a
decimal comma."""


def written_with_commas(questions: Iterable[str]) -> bool:
    """Whether most of these questions are in a language that writes a decimal comma."""
    told: Counter[bool] = Counter()
    for question in questions:
        said = set(re.findall(r"[^\W\d_]+", question.casefold()))
        counts = {name: len(said.intersection(ws.split())) for name, ws in _WORDS.items()}
        english = counts.pop("en")
        most = max(counts.values())
        if most != english:
            told[most > english] += 1
    return told[True] > told[False]


def with_points(text: str) -> str | None:
    """A reference of decimal commas, numbers and their units, with points: "3.5 cm" of
    "3,5 cm", "1234" of "1.234"; None for any other, and where nothing changes."""
    text = _plain(text)
    if len(text) > LONGEST or _QUANTITIES.fullmatch(text) is None:
        return None
    written = _IN_TEXT.sub(lambda match: _pointed(match[0]), text)
    return None if written == text else written


def noted(text: str) -> str | None:
    """ "3.5 (3,5)" of "3,5"; None where ``with_points`` is."""
    pointed = with_points(text)
    return None if pointed is None else f"{pointed} ({_plain(text)})"


def read_noted(text: str) -> tuple[str, str] | None:
    """("3.5", "3,5") of "3.5 (3,5)"; None for any other text."""
    match = _NOTED.fullmatch(text.strip())
    if match is None or with_points(match[2]) != (pointed := match[1].replace("$", "")):
        return None
    return pointed, match[2]


def in_dollars(pointed: str) -> str:
    """Numbers with points between dollar signs, for checkers that look for those."""
    return re.sub(r"(?<![\d^])-?\d+(?:\.\d+)?", r"$\g<0>$", pointed)


def certain_decimals(text: str) -> str:
    """A text with points in the numbers of which a comma can only be a decimal one, if it
    joins no two numbers: "3.5 m" of "3,5 m"; 1,234 stays."""
    return _ONLY_A_DECIMAL.sub(lambda match: _pointed(match[0]), text)


def response_with_points(text: str, written: str) -> str:
    """A response to a reference of decimal commas, ``written`` with them: its numbers that
    can have nothing else, and those of the reference, with points."""
    own = set(_IN_TEXT.findall(written))
    text = re.sub(r"(?<=\d)\{,\}(?=\d)", ",", text)

    def pointed(match: re.Match[str]) -> str:
        number = match[0]
        certain = number in own or _ONLY_A_DECIMAL.fullmatch(number)
        return _pointed(number) if certain else number

    return _IN_TEXT.sub(pointed, text)


def _plain(text: str) -> str:
    """Full-width characters and LaTeX's ``3{,}5`` as plain ones."""
    return re.sub(r"(?<=\d)\{,\}(?=\d)", ",", folded(text)).strip()


def _pointed(number: str) -> str:
    return number.replace(".", "").replace(",", ".")
