"""Numbers and quantities as people write them, exact.

An integer or a fraction is a ``Fraction``; what has decimals is a ``Decimal``, which keeps
how many there are. Integers are compared exactly, decimals to 1e-6 of their value.
"""

from __future__ import annotations

import re
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache

from .units import UNIT, read_unit, unit_name

Number = Fraction | Decimal
RELATIVE = Fraction(1, 10**6)
LONGEST_NUMBER = 400
"""Digits; a longer one is compared as text."""

_DIGITS = (
    r"(?:\d{1,3}(?:\.\d{3}){2,}(?![\d.])|\d{1,3}(?:(?:,|\{,\})\d{3})+(?!\d)"
    r"|\d{1,3}(?:[\u00a0\u202f]\d{3})+(?!\d)|\d+)"
)
_PLAIN = rf"(?:{_DIGITS}(?:\.\d+|\{{,\}}\d{{1,2}}(?!\d))?|\.\d+)"  # in LaTeX 3{,}5
_POWER = (
    r"(?:[eE][-+]?\d{1,3}(?![\w.])"
    r"|\s*(?:\\times|\\cdot|\u00d7|x|\*)\s*10\s*\^\s*\{?\s*[-+]?\d{1,3}\s*\}?)"
)
PLAIN_NUMBER = re.compile(rf"{_PLAIN}(?:{_POWER})?")
_FRAC = re.compile(
    rf"\\[dt]?frac\s*(?:\{{\s*(-?{_PLAIN})\s*\}}|(\d))\s*(?:\{{\s*({_PLAIN})\s*\}}|(\d))"
)
_SLASH = re.compile(rf"({_PLAIN})\s*/\s*({_PLAIN})(?![\d/])")
_MIXED = re.compile(
    r"(\d+)(?:\s+(\d+)\s*/\s*(\d+)|\s*\\[dt]?frac\s*\{?(\d+)\}?\s*\{?(\d+)\}?)"
)
_SCALES = {
    "hundred": 100,
    "thousand": 1000,
    "million": 10**6,
    "billion": 10**9,
    "trillion": 10**12,
    "dozen": 12,
    "百": 100,
    "千": 1000,
    "万": 10**4,
    "亿": 10**8,
}
_SCALE = re.compile(
    r"\s*(hundred|thousand|million|billion|trillion|dozen)s?\b"
    r"|\s*([万亿]|[百千](?![克米瓦]))",
    re.IGNORECASE,
)
_DECADE = re.compile(r"(?:1[5-9]|20)\d0s\b")
_CURRENCY = re.compile(r"(?:US|us)?\\?\$|[\u20ac\u00a3\u00a5\uffe5]|RMB\s*|USD\s*")


@lru_cache(maxsize=4096)
def quantity(text: str) -> tuple[Number, str] | None:
    """(number, unit's name) if the text is nothing else: "1,250", "6 cm", "$5", "3/4",
    "1 1/2", "50%", "3 \u00d7 10^8", "5 million", "2 hours 30 minutes"."""
    found = leading_quantity(text)
    if found is None:
        return None
    value, currency, rest = found
    unit = rest.strip()
    if currency and unit and not re.match(r"/|per\b", unit):
        money, other = read_unit(currency), read_unit(unit)
        if other is None or money is None or money[0] != other[0]:
            return None
        unit = ""
    unit = currency + unit if currency else unit
    if read_unit(unit) is not None:
        return value, unit_name(unit)
    return _compound(text)


def _compound(text: str) -> tuple[Number, str] | None:
    """ "2 hours 30 minutes": quantities of one dimension, the larger unit first."""
    total, first, last = Fraction(0), "", None
    rest = text.strip().rstrip(".")
    while rest:
        found = _number_at(rest)
        match = None if found is None else UNIT.match(rest[found[1] :].lstrip())
        if found is None or match is None:
            return None
        value, end = found
        rest = rest[end:].lstrip()[match.end() :]
        read = read_unit(match[0])
        if read is None or read[0] not in _COMPOUND:
            return None
        if last is not None and (read[0] != last[0] or read[1] >= last[1]):
            return None
        total, first, last = total + Fraction(value) * read[1], first or match[0], read
        rest = re.sub(r"^\s*(?:,|and\b)?\s*", "", rest)
    base = read_unit(first)
    return None if base is None else (total / base[1], unit_name(first))


_COMPOUND = frozenset({"length", "time", "mass", "volume", "month", "dollar", "yuan"})


def leading_quantity(text: str) -> tuple[Number, str, str] | None:
    """(number, currency sign before it, what follows) of a text that begins with one."""
    text = text.strip()
    if text.startswith("$") and text.endswith("$") and len(text) > 1:
        text = text[1:-1].strip()
    text = text.rstrip(".").strip()
    sign, match = 1, re.match(r"[-+]\s*", text)
    if match is not None:
        sign, text = (-1 if text[0] == "-" else 1), text[match.end() :]
    money = _CURRENCY.match(text)
    currency = "" if money is None else money[0].strip().lstrip("\\")
    text = text if money is None else text[money.end() :].lstrip()
    if money is not None and text.startswith("-"):
        sign, text = -sign, text[1:].lstrip()
    found = None if _DECADE.match(text) else _number_at(text)
    if found is None:
        return None
    value, end = found
    if (scale := _SCALE.match(text, end)) is not None:
        value *= _SCALES[(scale[1] or scale[2]).casefold()]
        value = _exact(value)
        end = scale.end()
    rest = text[end:].rstrip("$").rstrip(". ")
    if re.fullmatch("st|nd|rd|th", rest) and not currency:
        rest = ""  # 3rd
    return sign * value, currency, rest


def _number_at(text: str) -> tuple[Number, int] | None:
    for pattern in (_MIXED, _FRAC, _SLASH):
        match = pattern.match(text)
        if match is not None:
            groups = [g for g in match.groups() if g is not None]
            value = _fraction(groups)
            return None if value is None else (value, match.end())
    match = PLAIN_NUMBER.match(text)
    if match is None or len(match[0]) > LONGEST_NUMBER:
        return None
    return _plain_value(match[0]), match.end()


def _fraction(groups: list[str]) -> Number | None:
    numbers = [Fraction(str(_plain_value(g))) for g in groups]
    if any(len(g) > LONGEST_NUMBER for g in groups) or not numbers[-1]:
        return None
    *whole, above, below = numbers
    return (whole[0] if whole else 0) + above / below


def _plain_value(text: str) -> Number:
    text = re.sub(r"\{,\}(?=\d{1,2}(?!\d))", ".", text)
    text = re.sub(r"\{,\}|,|[\u00a0\u202f]", "", text)
    sign = -1 if text.startswith("-") else 1
    text = text.lstrip("-")
    text = text.replace(".", "") if text.count(".") > 1 else text
    power = re.search(r"(?:[eE]|10\s*\^\s*\{?\s*)([-+]?\d+)\s*\}?$", text)
    exponent = 0
    if power is not None and re.search(_POWER + "$", text):
        exponent = int(power[1])
        text = re.split(r"[eE]|\s*(?:\\times|\\cdot|\u00d7|x|\*)", text)[0]
    if "." in text:
        return sign * _exact(Decimal(text).scaleb(exponent))
    return sign * Fraction(int(text)) * Fraction(10) ** exponent


def _exact(value: Number) -> Number:
    """A decimal without a fractional part is an integer."""
    if isinstance(value, Decimal) and value == value.to_integral_value():
        return Fraction(int(value))
    return value


def same_number(reference: Number, value: Number) -> bool:
    """Equal: integers and fractions exactly; where one has decimals and the reference is
    no integer, to 1e-6 of it, and two decimals only if one is the other one rounded."""
    a, b = Fraction(reference), Fraction(value)
    if a == b:
        return True
    exact = isinstance(reference, Fraction) and isinstance(value, Fraction)
    if exact or a.denominator == 1 or abs(a - b) > RELATIVE * abs(a):
        return False
    if isinstance(reference, Decimal) and isinstance(value, Decimal):
        return _rounds_to(reference, value) or _rounds_to(value, reference)
    return True


def _rounds_to(fine: Decimal, coarse: Decimal) -> bool:
    digits, other = fine.as_tuple().exponent, coarse.as_tuple().exponent
    if not isinstance(digits, int) or not isinstance(other, int):  # infinite
        return False
    return digits < other and fine.quantize(coarse) == coarse


def same_quantity(reference: tuple[Number, str], value: tuple[Number, str]) -> bool:
    """Equal numbers in units that do not contradict: a missing unit fits any, 1 m is
    100 cm, 50% is 0.5."""
    unit, other = read_unit(reference[1]), read_unit(value[1])
    if unit is None or other is None:
        return False
    (dimension, factor), (kind, by) = unit, other
    if {dimension, kind} == {"percent", ""}:
        share = Fraction(1, 100)
        a, b = (Fraction(reference[0]), Fraction(value[0]))
        exact = a * share == b if dimension == "percent" else a == b * share
        return exact or same_number(reference[0], value[0])
    temperature = {"angle", "celsius", "fahrenheit"}
    if {dimension, kind} == {"sterling", "mass"}:  # "5 pounds" may be money
        pounds = {reference[1], value[1]} & {"pound", "pounds"}
        return bool(pounds) and same_number(reference[0], value[0])
    loose = "angle" in (dimension, kind) and {dimension, kind} <= temperature
    if not dimension or not kind or loose:
        return same_number(reference[0], value[0])
    if dimension != kind:
        return False
    if factor == by:
        return same_number(reference[0], value[0])
    return Fraction(reference[0]) * factor == Fraction(value[0]) * by


# ------------------------------------------------------------------- numbers in words

_SMALL = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen"
).split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_WORDS = {w: i for i, w in enumerate(_SMALL)} | {
    w: 20 + 10 * i for i, w in enumerate(_TENS)
}
_BELOW_100 = (
    rf"(?:(?:{'|'.join(_TENS)})(?:[\s-]+(?:{'|'.join(_SMALL[1:10])})\b)?"
    rf"|(?:{'|'.join(sorted(_SMALL, key=len, reverse=True))}))\b"
)
_BELOW_1000 = rf"{_BELOW_100}(?:\s+hundred\b(?:\s+(?:and\s+)?{_BELOW_100})?)?"
NUMBER_WORDS = re.compile(
    rf"\b{_BELOW_1000}(?:\s+(?:thousand|million)\b(?:\s+(?:and\s+)?{_BELOW_1000})?)*",
    re.IGNORECASE,
)
_CHINESE = "零一二三四五六七八九"
_NUMERALS = r"[零一二两三四五六七八九十百千]{1,9}|\d{1,9}"
_SIGN_OR_POINT = re.compile(
    rf"(负)?({_NUMERALS})(?:点([零一二三四五六七八九]{{1,9}})(?![零一二三四五六七八九十百分]))?"
)
_PARTS_OF = re.compile(rf"({_NUMERALS})分之({_NUMERALS})")
CHINESE_NUMBER = re.compile(r"[零一二两三四五六七八九十百千万亿]+")


def words_value(words: str) -> int:
    """The number that English number words say: "one hundred and five"."""
    total = current = 0
    for word in re.findall(r"[a-z]+", words.casefold()):
        if word == "and":
            continue
        if word in _WORDS:
            current += _WORDS[word]
        elif word == "hundred":
            current = max(current, 1) * 100
        else:
            total += max(current, 1) * _SCALES[word]
            current = 0
    return total + current


def chinese_value(text: str) -> int | None:
    """The number that Chinese numerals say: "两", "十二", "一百零五"."""
    total = section = digit = 0
    for character in text.replace("两", "二"):
        if character in _CHINESE:
            if digit:
                return None
            digit = _CHINESE.index(character)
        elif character in "十百千":
            by = {"十": 10, "百": 100, "千": 1000}[character]
            section += (digit or 1) * by
            digit = 0
        else:
            total = (total + section + digit) * _SCALES[character]
            section = digit = 0
    return total + section + digit


_A_ZERO = re.compile(
    r"(?:\d|\b(?:one|two|three|four|a|the|each|every|only|single|no|real))\s+$",
    re.IGNORECASE,
)


@lru_cache(maxsize=4096)
def digits_for_words(text: str) -> str:
    """Number words as digits: "three cats" is "3 cats", "两只" is "2只". "One" stays where
    it stands for a thing ("the left one")."""

    def english(match: re.Match[str]) -> str:
        if match[0].casefold() == "one":
            before = text[: match.start()].rstrip().casefold()
            counted = re.search(
                r"(?:^|\b(?:is|are|be|has|have|only|just|exactly|get|see|point|=|:))$",
                before,
            )
            if counted is None:
                return match[0]
        if match[0].casefold() == "zero" and _A_ZERO.search(text[: match.start()]):
            return match[0]
        return str(words_value(match[0]))

    def chinese(match: re.Match[str]) -> str:
        after = text[match.end() : match.end() + 1]
        value = chinese_value(match[0])
        alone = match.start() == 0 and not after.strip(".,!")
        if value is None or not (alone or len(match[0]) > 1 or after in _AFTER_NUMERAL):
            return match[0]
        return str(value)

    text = re.sub(r"^half$", "1/2", text.strip(), flags=re.IGNORECASE)
    text = re.sub(
        r"\ban?\s+(?=(?:hundred|thousand|million|billion|dozen)\b)",
        "one ",
        text,
        flags=re.I,
    )
    text = re.sub(r"\bone (?=(?:billion|dozen)\b)", "1 ", text)
    text = _SIGN_OR_POINT.sub(_decimal, _PARTS_OF.sub(_part_of, text))
    text = CHINESE_NUMBER.sub(chinese, NUMBER_WORDS.sub(english, text))
    text = re.sub(r"(?<=\d) point (\d(?: \d)*)(?!\d)", _point, text)
    text = re.sub(r"\b(\d)[ -](half|halves|third|quarter|fifth)s?\b", _share, text)
    return re.sub(r"\b(?:minus|negative)\s+(?=\$?\d)", "-", text)


_ORDINALS = "first second third fourth fifth sixth seventh eighth ninth tenth".split()


def ordinal_as_number(text: str) -> str:
    """ "third" is 3rd, where the text is nothing else."""
    word = text.casefold().removeprefix("the ").strip(" .")
    if word not in _ORDINALS:
        return text
    place = 1 + _ORDINALS.index(word)
    ending = {1: "st", 2: "nd", 3: "rd"}.get(place, "th")
    return f"{place}{ending}"


def _decimal(match: re.Match[str]) -> str:
    """ "一点五" is 1.5, "负三" is -3."""
    sign, whole, behind = match.groups()
    value = int(whole) if whole.isdigit() else chinese_value(whole)
    if value is None or not (sign or behind):
        return match[0]
    digits = "".join(c if c.isdigit() else str(_CHINESE.index(c)) for c in behind or "")
    return f"{'-' if sign else ''}{value}{digits and '.' + digits}"


def _point(match: re.Match[str]) -> str:
    """ "3 point 1 4" is 3.14."""
    return "." + match[1].replace(" ", "")


def _share(match: re.Match[str]) -> str:
    """ "2 thirds" is 2/3."""
    below = {"half": 2, "halves": 2, "third": 3, "quarter": 4, "fifth": 5}[match[2]]
    return f"{match[1]}/{below}"


def _part_of(match: re.Match[str]) -> str:
    """ "四分之三" is 3/4, "百分之五十" 50%."""
    below, above = (x if x.isdigit() else chinese_value(x) for x in match.groups())
    if below is None or above is None:
        return match[0]
    return f"{above}%" if match[1] == "百" else f"{above}/{below}"


_AFTER_NUMERAL = tuple(
    "个只条张本人名位辆棵头匹朵枚支把件颗台次层座间块元角米千厘毫分克公吨秒小天年月度升种倍"
)
