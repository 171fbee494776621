"""Dates and times of day as people write them: "May 4, 2023", "2023-05-04", "3 o'clock".

They are no arithmetic (2023-05-04 is not 2014), and their commas join no list.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from .markup import folded

_MONTHS = (
    "january february march april may june july august september october november december"
).split()
_MONTH = r"(?P<month>" + "|".join(f"{m[:3]}(?:{m[3:]})?" for m in _MONTHS) + r"|sept)\.?"
_DAY = r"(?P<day>[0-3]?\d)(?:st|nd|rd|th)?"
_YEAR = r"(?P<year>\d{4})"
_FORMS = [
    re.compile(rf"(?<![\w/.-]){form}(?![\w/-]|\.\d)", re.IGNORECASE)
    for form in (
        rf"{_YEAR}(?P<by>[-/.])(?P<number>[01]?\d)(?P=by){_DAY}",
        rf"{_MONTH}\s+{_DAY}(?:\s*,?\s+{_YEAR})?",
        rf"(?:the\s+)?{_DAY}\s+(?:of\s+)?{_MONTH}(?:\s*,?\s+{_YEAR})?",
        rf"{_MONTH}\s*,?\s+{_YEAR}",
        r"(?P<first>[0-3]?\d)(?P<by>[-/.])(?P<second>[0-3]?\d)(?P=by)" + _YEAR,
    )
] + [
    re.compile(
        r"(?<!\d)(?:(?P<year>\d{4})\s*年\s*)?(?P<number>[01]?\d)\s*月"
        r"\s*(?P<day>[0-3]?\d)\s*[日号]"
    ),
    re.compile(r"(?<!\d)(?P<year>\d{4})\s*年\s*(?P<number>[01]?\d)\s*月(?!\s*\d)"),
]
_CLOCK = re.compile(
    r"(?<![\d:.])(?P<hour>[0-2]?\d)"
    r"(?:\s*:\s*(?P<minute>[0-5]\d)(?:\s*(?P<half>[ap]\.?\s?m\b\.?))?"
    r"|\s*(?P<only>[ap]\.?\s?m\b\.?)|\s*o'?clock\b(?:\s*(?P<after>[ap]\.?\s?m\b\.?))?)"
    r"(?![\d:])",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Date:
    """``year``, ``day``: None where they are not said. ``month``: its number, or "3/4" of
    03/04/2020, whose first number may be the month or the day."""

    year: int | None
    month: int | str
    day: int | None

    def fits(self, given: Date) -> bool:
        """Whether ``given`` says this date: a year that is not asked for may be there, and
        03/04/2020 says both dates that it may be."""
        if self.year not in (None, given.year):
            return False
        if isinstance(given.month, str) and isinstance(self.month, int):
            return {self.month, self.day} == set(map(int, given.month.split("/")))
        return (self.month, self.day) == (given.month, given.day)


@dataclass(frozen=True, slots=True)
class Clock:
    """A time of day. ``half``: "a", "p", or None where it is not said."""

    hour: int
    minute: int
    half: str | None

    def fits(self, given: Clock) -> bool:
        """Whether two times are one: half a day that is not said fits any."""
        if self.half and given.half or max(self.hour, given.hour) > 12:
            return self._minutes() == given._minutes()
        return (self.hour % 12, self.minute) == (given.hour % 12, given.minute)

    def _minutes(self) -> int:
        hour = self.hour if self.half is None else self.hour % 12 + 12 * (self.half == "p")
        return 60 * hour + self.minute


def dates_in(text: str) -> list[Date]:
    """The dates in a text; those inside of a longer one left out."""
    return [date for _, _, date in _dates(folded(text))]


def date_of(text: str) -> Date | None:
    """The date that a text is, with its weekday or not; None if it is anything else."""
    text = folded(text).strip(" .$")
    text = re.sub(r"^(?:on\s+)?(?:[a-z]{3,6}day,?\s+)?", "", text, flags=re.IGNORECASE)
    for start, end, date in _dates(text):
        if (start, end) == (0, len(text)):
            return date
    return None


def clocks_in(text: str) -> list[Clock]:
    """The times of day in a text."""
    found = []
    for match in _CLOCK.finditer(folded(text)):
        half = match["half"] or match["only"] or match["after"]
        hour, minute = int(match["hour"]), int(match["minute"] or 0)
        if hour <= 24:
            found.append(Clock(hour, minute, None if half is None else half[0].casefold()))
    return found


def clock_of(text: str) -> Clock | None:
    """The time of day that a text is; None if it is anything else."""
    text = folded(text).strip(" .$")
    match = _CLOCK.fullmatch(text)
    return clocks_in(text)[0] if match is not None and int(match["hour"]) <= 24 else None


def _dates(text: str) -> list[tuple[int, int, Date]]:
    found = [
        (match.start(), match.end(), date)
        for form in _FORMS
        for match in form.finditer(text)
        if (date := _date(match.groupdict())) is not None
    ]
    return list(_outermost(found))


def _outermost(
    found: list[tuple[int, int, Date]],
) -> Iterator[tuple[int, int, Date]]:
    end = -1
    for one in sorted(found, key=lambda f: (f[0], -f[1])):
        if one[0] >= end:
            end = one[1]
            yield one


def _date(said: dict[str, str | None]) -> Date | None:
    year = None if said.get("year") is None else int(said["year"] or 0)
    day = None if said.get("day") is None else int(said["day"] or 0)
    month: int | str = 0
    if name := said.get("month"):
        month = 1 + next(i for i, m in enumerate(_MONTHS) if m[:3] == name[:3].casefold())
    elif number := said.get("number"):
        month = int(number)
    else:
        first, second = int(said["first"] or 0), int(said["second"] or 0)
        if first > 12 or second > 12 or first == second:
            month, day = (second, first) if first > 12 else (first, second)
        else:
            month = f"{first}/{second}"
    if isinstance(month, int) and not 1 <= month <= 12 or day is not None and day > 31:
        return None
    return Date(year, month, day)
