"""Numbers and formulas inside sentences: which one does the sentence give?"""

from __future__ import annotations

import re

from .hedges import guessed_twice
from .mathematics import is_formula
from .numbers import PLAIN_NUMBER, Number, digits_for_words, leading_quantity, quantity
from .units import UNIT, is_known, normal_unit_text

_OPERATION = re.compile(r"\d\s*[+*^]|[+*^]\s*\d|\d\s*/\s*[a-z(]")
_NUMBER = PLAIN_NUMBER.pattern
_TOKEN = re.compile(
    rf"(?:(?<![\w.)\]])[-+]\s?)?(?:{_NUMBER})(?:\s*(?:[:/]|\s-\s|-(?=\d))\s*(?:{_NUMBER}))*"
)
_LIST = re.compile(
    r"\s*[^\W\d]{0,15}\W{0,2}?\s*(?:,|;|\band\b|\bor\b|\bto\b|-|&|和|或|\u3001|到|至)+\s*"
    r"(?:and\s+|or\s+)?(?:\$|\u00a3|\u20ac)?",
    re.IGNORECASE,
)
_COMPARED = re.compile(
    r"(?:\b(?:more|less|fewer|greater|larger|smaller|higher|lower|bigger|other|rather)\s+than"
    r"|\b(?:at least|at most|up to|under|over|below|above|between|not"
    r"|there\s+(?:is|are|was|were)\s+no|never|wrong|instead of|from)|n't"
    r"|不是|不到|超过|大于|小于|至少|[<>\u2264\u2265])"
    r"\s*(?:be(?:\s+|$)|exactly\s+|equal to\s+)?\$?$",
    re.IGNORECASE,
)
_COUNTED = re.compile(
    r"(?:^|[.!?]\s+)\W*$|\bthere\s+(?:are|is|were|was)\s+"
    r"(?:exactly\s+|only\s+|a\s+total\s+of\s+)?$",
    re.IGNORECASE,
)
_DENIES_ANOTHER = re.compile(
    r"(?<=\w),?\s+(?:and\s+)?(?:not|rather than|instead of)\s+[^,.;]*[.!]?$"
    r"|(?<=\w)[,\uff0c]\s*而?不是[^,.;\uff0c\u3002\uff1b]*[.!\u3002\uff01]?$",
    re.IGNORECASE,
)
_THERE_ARE = re.compile(
    r"\bthere\s+(?:is|are|was|were)\s+(?:exactly\s+|only\s+|a\s+total\s+of\s+|about\s+)?$",
    re.IGNORECASE,
)
_BESIDE = re.compile(
    r",\s+(?:with|which\s+(?:is|was|are|means|shows)|while|where|as|since|compared)\b.*$"
    r"|\s+(?:because|since)\s.*$|,?\s*因为.*$",
    re.IGNORECASE | re.DOTALL,
)
_COMES_TO = re.compile(
    r"\b(?:so|thus|therefore|hence|total|gives?|giving|makes?|making|equals?|leaving|leaves"
    r"|altogether|answer)\b|=|所以|因此|共",
    re.IGNORECASE,
)
_ASKED = re.compile(r"[^.!?;]*[?\uff1f]\W*$")
_DENIED_AFTER = re.compile(
    r"\W*(?:(?:is|was|would be|seems)\s+(?:not|wrong|incorrect|too)|isn't|是错)",
    re.IGNORECASE,
)


def said_quantity(text: str) -> tuple[Number, str] | None:
    """The quantity that a sentence gives: its last number, behind the last "=". None if it
    gives several ("14 and 25", "6 or 7", "5-7"), compares ("more than 6"), denies it, or
    has a formula or a ratio there. A unit after the number counts where it is a known
    one."""
    said = normal_unit_text(digits_for_words(text)).rpartition("=")[2]
    said = _main_clause(_DENIES_ANOTHER.sub("", said))
    if re.search(r"[\\{}]", said) or _OPERATION.search(said):
        return None
    tokens = list(_TOKEN.finditer(said))
    if not tokens:
        return None
    while len(tokens) > 1 and _COMPARED.search(said[: tokens[-1].start()]):
        if not _COUNTED.search(said[: tokens[-2].start()]):
            return None
        tokens.pop()  # "there are 3 bars smaller than 40"
    last = _counted_there(said, tokens) or tokens[-1]
    before, after = said[: last.start()], said[last.end() :]
    if re.search(r"(?<![A-Za-z])(?!US$|USD$|RMB$)[A-Za-z]{1,3}$", before):
        return None  # vitamin B12
    if _COMPARED.search(before) or _DENIED_AFTER.match(after):
        return None
    if guessed_twice(said, last.start()) or (len(tokens) > 1 and _ASKED.match(after)):
        return None
    if (
        last is tokens[-1]
        and len(tokens) > 1
        and _LIST.fullmatch(said[tokens[-2].end() : last.start()])
    ):
        return None
    if quantity(last[0]) is None:
        return None
    found = leading_quantity(said[last.start() :])
    if found is None:
        return None
    value, currency, rest = found
    if re.match(r"(?:st|nd|rd|th)\b", after):
        return value, ""
    if re.match(r"[a-zA-Z]{1,2}(?![a-zA-Z])", after) and not _unit(after):
        return None  # 5x
    money = re.search(r"(?:US)?(\$|\u00a3|\u20ac|\u00a5)\s*$", before)
    return value, currency or (money[1] if money else _unit(rest))


def _main_clause(said: str) -> str:
    """A sentence without the clause that only adds to its number, or gives the reason:
    "2019" of "2019, with 25.8 in 2020"; all of it where that clause comes to a result."""
    match = _BESIDE.search(said)
    if match is None or _COMES_TO.search(match[0]) or re.search(r"[.!?]\s", match[0]):
        return said
    head = said[: match.start()]
    return head if _TOKEN.search(head) else said


def _counted_there(said: str, tokens: list[re.Match[str]]) -> re.Match[str] | None:
    """The count in the last sentence "there are 4 bars that have a value below 8": the
    first number, where what follows it is one clause."""
    for token, following in zip(tokens, tokens[1:], strict=False):
        rest = said[token.end() :]
        if (
            _THERE_ARE.search(said[: token.start()])
            and not re.search(r"[,;]|[.!?]\s|\bout\s+of\s+\d", rest)
            and not _COMES_TO.search(rest)
            and not _LIST.fullmatch(said[token.end() : following.start()])
        ):
            return token
    return None


def _unit(rest: str) -> str:
    """The known unit that a sentence goes on with after its number."""
    rest = rest.lstrip(" -")
    match = UNIT.match(rest)
    if match is None:
        return ""
    name = match[0].strip()
    while name and not is_known(name):
        shorter = re.sub(r"\s*(?:/|per\b)?\s*[^\s/]+$", "", name)
        name = shorter if shorter != name else ""
    short = len(name) <= 2 and name.isalpha() and name.isascii()
    if short and not re.match(
        r"\s*(?:$|[.,;:!?)]|(?:long|wide|tall|high|deep|away)\b)", rest[len(name) :]
    ):
        return ""
    return name


def formulas_in(text: str) -> list[str]:
    """Formulas that a sentence gives: the last one between dollar signs with what follows,
    else what stands behind its last "=" or "is"."""
    marked = list(re.finditer(r"\$+([^$]+)\$+([^$]*)$", text))
    if marked:
        inside, rest = marked[-1][1].strip(), marked[-1][2].strip(" .")
        before = text[: marked[-1].start()]
        if _COMPARED.search(before) or re.search(r"\$\s*(?:,|and|or)\s*$", before):
            return []
        tail = inside.rpartition("=")[2].strip()
        unit = _unit(rest)
        return [f"{x} {unit}".strip() for x in dict.fromkeys((inside, tail)) if x]
    found = []
    for cut in (r"=", r"\b(?:is|are|be)\b|(?<!\d):|:(?!\d)|是|为"):
        tail = re.split(cut, text)[-1].strip().rstrip(".")
        if (
            tail
            and tail != text
            and is_formula(tail)
            and not _COMPARED.search(text.rstrip(" .")[: -len(tail)].rstrip(". "))
            and not guessed_twice(text, text.rindex(tail))
        ):
            found.append(tail)
    return found
