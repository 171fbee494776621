"""Ranges, dates and times of day: numbers joined by signs that are no arithmetic."""

from __future__ import annotations

import re

from ..samples.dates import clock_of, clocks_in, date_of, dates_in
from .numbers import PLAIN_NUMBER, Number, digits_for_words, quantity, same_quantity
from .units import UNIT, normal_unit_text

_END = rf"(?:[$\u20ac\u00a3\u00a5]\s?)?(?:{PLAIN_NUMBER.pattern})"
_SIGN = r"\s*(?:-{1,3}|~|\\sim|to|through|到|至)\s*"
_RANGE = re.compile(
    rf"(?<![\w.\-])(?:between\s+(?P<a>{_END})(?P<u>\s*{UNIT.pattern})??\s+and\s+(?P<b>{_END})"
    rf"|(?:from\s+)?(?P<c>{_END})(?P<v>\s*{UNIT.pattern})??{_SIGN}(?P<d>{_END}))"
    rf"(?P<w>\s*{UNIT.pattern})?(?![\w/]|\.\d|-\d)",
    re.IGNORECASE,
)
Range = tuple[tuple[Number, str], tuple[Number, str]]


def ranges_in(text: str) -> list[Range]:
    """The ranges in a text, each its two ends: "5-7 cm", "5 to 7", "between 5 and 7"."""
    said = normal_unit_text(digits_for_words(text))
    return [found for m in _RANGE.finditer(said) if (found := _ends(m)) is not None]


def range_of(text: str) -> Range | None:
    """The range that a text is, from its lower end to its higher one; else None."""
    said = normal_unit_text(digits_for_words(text)).strip(" .")
    match = _RANGE.fullmatch(said)
    ends = None if match is None else _ends(match)
    return ends if ends is not None and ends[0][0] < ends[1][0] else None


def _ends(match: re.Match[str]) -> Range | None:
    low, high = match["a"] or match["c"], match["b"] or match["d"]
    unit = match["w"] or ""
    own = match["u"] or match["v"] or unit
    first, second = quantity(f"{low}{own}"), quantity(f"{high}{unit or own}")
    return None if first is None or second is None else (first, second)


def as_ratio(text: str) -> str:
    """ "2 to 3", and 2/3 where it is all, as 2:3."""
    whole = re.fullmatch(
        r"\$?\s*(?:(\d+)\s*/\s*(\d+)|\\frac\s*\{(\d+)\}\s*\{(\d+)\})\s*\$?\.?", text
    )
    if whole is not None:
        return ":".join(part for part in whole.groups() if part is not None)
    return re.sub(r"(?<=\d)\s+to\s+(?=\d)", ":", text)


def same_form(reference: str, final: str) -> bool | None:
    """Whether a final answer gives the range, the date or the time of day that the
    reference is. None where the reference is none of them, and the answer no date."""
    wanted = range_of(reference)
    if wanted is not None:
        given = ranges_in(final)
        return len(given) == 1 and _same_range(wanted, given[0])
    date = date_of(reference)
    if date is not None:
        dates = dates_in(final)
        return len(set(dates)) == 1 and date.fits(dates[0])
    clock, clocks = clock_of(reference), clocks_in(final)
    if clock is not None and len(set(clocks)) == 1:
        return clock.fits(clocks[0])
    if date_of(final) is not None and quantity(reference) is not None:
        return False  # May 2023 is not 2023
    return None


def _same_range(wanted: Range, given: Range) -> bool:
    return all(map(same_quantity, wanted, given))
