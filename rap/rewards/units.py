"""Units as people write them: "m", "meters", "square metres", "km/h", "\u00b0", "千克".

A unit is read as (dimension, factor to that dimension's base unit), so that 12 m, 12
meters and 1200 cm are one length. A word that is no known unit counts things: its own
dimension, factor 1.
"""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache

_UNITS = """
length 1 m meter metre 米
length 1000 km kilometer kilometre 千米 公里
length 1/10 dm decimeter decimetre 分米
length 1/100 cm centimeter centimetre 厘米
length 1/1000 mm millimeter millimetre 毫米
length 1/1000000 \u03bcm um micrometer micrometre micron 微米
length 1/1000000000 nm nanometer nanometre 纳米
length 127/5000 in inch inches
length 381/1250 ft foot feet
length 1143/1250 yd yard
length 201168/125 mi mile
mass 1 kg kilogram kilogramme kilo 千克 公斤
mass 1/1000 g gram gramme 克
mass 1/1000000 mg milligram 毫克
mass 1000 t tonne 吨
mass 45359237/100000000 lb lbs pound
mass 45359237/1600000000 oz ounce
time 1 s sec second 秒 秒钟
time 1/1000 ms millisecond 毫秒
time 60 min mins minute 分钟
time 3600 h hr hrs hour 小时 时
time 86400 d day 天 日
time 604800 wk week 周 星期
month 1 month 月 个月
month 12 year yr yrs 年 岁
volume 1 l liter litre 升
volume 1/1000 ml milliliter millilitre cc 毫升
angle 1 degree deg degrees \u00b0 度
celsius 1 \u00b0c celsius 摄氏度
fahrenheit 1 \u00b0f fahrenheit 华氏度
radian 1 rad radian
percent 1 % percent percentage
dollar 1 $ dollar usd us$ 美元
dollar 1/100 \u00a2 cent cents
euro 1 \u20ac euro eur 欧元
sterling 1 \u00a3 gbp quid
yuan 1 \uffe5 \u00a5 yuan rmb cny 元 块 块钱
yuan 1/10 角 jiao
energy 1 j joule
energy 1000 kj kilojoule
power 1 w watt
power 1000 kw kilowatt
voltage 1 v volt
current 1 a amp ampere
force 1 n newton
force 1000 kn kilonewton
frequency 1 hz hertz
frequency 1000 khz kilohertz
frequency 1000000 mhz megahertz
pressure 1 pa pascal
pressure 1000 kpa kilopascal
resistance 1 \u03c9 ohm
speed 1397/3125 mph
speed 5/18 kph kmh kmph
clock-am 1 am
clock-pm 1 pm
"""
_TABLE: dict[str, tuple[str, Fraction]] = {}
for _line in _UNITS.split("\n"):
    if _line:
        _dimension, _factor, *_names = _line.split()
        _TABLE |= {_name: (_dimension, Fraction(_factor)) for _name in _names}
_SI_DIMENSIONS = {
    "N": "force",
    "J": "energy",
    "W": "power",
    "V": "voltage",
    "A": "current",
    "Hz": "frequency",
    "Pa": "pressure",
    "\u03a9": "resistance",
}
_SI_PREFIXES = {
    "": 0,
    "k": 3,
    "m": -3,
    "\u03bc": -6,
    "u": -6,
    "n": -9,
    "M": 6,
    "G": 9,
}
_SI = {
    prefix + name: (dimension, Fraction(10) ** power)
    for name, dimension in _SI_DIMENSIONS.items()
    for prefix, power in _SI_PREFIXES.items()
}
"""Units whose capitals matter: 1 mW is not 1 MW."""
_COUNTERS = "个只条张本人名位辆棵头匹朵枚支把件颗台次层座间块头"
_NUMBER_OF = {"people": "person", "children": "child", "men": "man", "women": "woman"}
# a word, a short unit, squared or not; no other letter: 5x is no quantity of 5
_NAME = (
    r"(?:\u00b0\s?[CFcf]\b|[\u00b0%\u00a2\u20ac\u00a3\u00a5\u03c9$]|[a-zA-Z\u03bc]{3,}"
    r"|(?:[cdkmn\u03bcu]?m|[km]?g|[cdm]?[lL]|in|ft|yd|mi|lb|oz|cc|hr?|s|am|pm|wk|yr|ms|[td]"
    r"|[kmnu\u03bc]?[NJWVA\u03a9]|[kmMG]?(?:Hz|Pa|W|J|\u03a9))(?![a-zA-Z])"
    r"|[\u4e00-\u9fff]{1,4})"
    r"(?:\s*\^?\s*\{?[23]\}?(?!\d))?"
)
UNIT = re.compile(
    rf"(?:(?:square|cubic|sq\.?|cu\.?)\s+|[平立]方)?{_NAME}"
    rf"(?:\s*(?:/|per\b|每)\s*{_NAME})?"
)


def normal_unit_text(text: str) -> str:
    """LaTeX and dotted spellings taken away: ``^{\\circ}`` is \u00b0, ``P.M.`` is pm."""
    text = re.sub(r"\*?\s*\^?\s*\{?\s*\\(?:circ|degree)(?![a-zA-Z])\s*\}?", "\u00b0", text)
    text = re.sub(r"\\([%$])", r"\1", text).replace("\\ ", " ")
    text = text.replace("\u00b2", "^2").replace("\u00b3", "^3")
    return re.sub(r"\b([ap])\.\s?m\b\.?", r"\1m", text, flags=re.IGNORECASE)


@lru_cache(maxsize=4096)
def read_unit(text: str) -> tuple[str, Fraction] | None:
    """(dimension, factor) of a unit; ("", 1) of none; None if the text is no unit."""
    text = normal_unit_text(text).strip().rstrip(".").strip()
    if not text:
        return "", Fraction(1)
    if not UNIT.fullmatch(text):
        return None
    above, _, below = re.sub(r"\s*(?:\bper\b|每)\s*", "/", text).partition("/")
    dimension, factor = _simple(above)
    if below:
        other, divisor = _simple(below)
        dimension, factor = f"{dimension}/{other}", factor / divisor
        if dimension == "length/time":
            dimension = "speed"
    return dimension, factor


def _simple(text: str) -> tuple[str, Fraction]:
    text = text.strip()
    power = 1
    words = r"(?:(square|sq\.?|平方)|(cubic|cu\.?|立方))\s*"
    if (match := re.match(words, text, re.IGNORECASE)) is not None:
        power, text = (2 if match[1] else 3), text[match.end() :]
    if (match := re.search(r"\s*\^?\s*\{?([23])\}?$", text)) is not None:
        power, text = int(match[1]), text[: match.start()]
    dimension, factor = _known(text.strip())
    if power == 1:
        return dimension, factor
    if dimension == "length" and power == 3:
        return "volume", 1000 * factor**3
    return f"{dimension}{power}", factor**power


def _known(name: str) -> tuple[str, Fraction]:
    """A unit from the table; any other word counts things of that name."""
    if name in _SI:
        return _SI[name]
    folded = name.replace(" ", "").casefold().replace("\u00b5", "\u03bc")
    exact = _TABLE.get(folded)
    if exact is None and folded.endswith("s") and len(folded) > 3:
        exact = _TABLE.get(folded[:-1])
    if exact is not None:
        return exact
    if folded[:1] in _COUNTERS:
        folded = folded[1:]
        if not folded:
            return "", Fraction(1)
    word = _NUMBER_OF.get(folded, folded)
    if len(word) > 3 and word.endswith("ies"):
        word = word[:-3] + "y"
    elif len(word) > 3 and re.search(r"(?:ch|sh|x|ss)es$", word):
        word = word[:-2]
    elif len(word) > 2 and word.endswith("s") and not word.endswith("ss"):
        word = word[:-1]
    return "count:" + word, Fraction(1)


def unit_name(text: str) -> str:
    """A unit's name without LaTeX and plural: "\u00b0" and "^\\circ" are "degree"."""
    text = re.sub(r"\s+per\s+", "/", normal_unit_text(text))
    name = re.sub(r"[\s^{}\\.]", "", text)
    if name in _SI:
        return name
    name = name.casefold()
    name = {"\u00b0": "degree", "%": "percent", "$": "dollar"}.get(name, name)
    name = name.replace("\u00b2", "2").replace("\u00b3", "3")
    return name[:-1] if len(name) > 3 and name.endswith("s") and name != "inches" else name


def is_known(text: str) -> bool:
    """Whether a unit is one of the table, not a word that counts things."""
    read = read_unit(text)
    return read is not None and bool(read[0]) and "count:" not in read[0]


def trailing_unit(text: str) -> tuple[str, tuple[str, Fraction] | None]:
    """A formula without the known unit at its end, and that unit: "4\\\\pi cm^2"."""
    plain = normal_unit_text(text)
    words = plain.rstrip(". ").split(" ")
    for count in (3, 2, 1):
        tail = " ".join(words[-count:])
        if len(words) > count and is_known(tail) and not tail.startswith("$"):
            return " ".join(words[:-count]), read_unit(tail)
    if plain.rstrip(". $").endswith(("\u00b0", "%")):
        stripped = plain.rstrip(". $")
        return stripped[:-1], read_unit(stripped[-1])
    return text, None
