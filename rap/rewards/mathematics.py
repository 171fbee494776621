"""Formulas: compared by structure first, then by math-verify.

math-verify searches a text for something it can parse and may parse only a part of it
("158 + LK" as 158). Here it only gets whole formulas, and its result must contain every
symbol of the text.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from ..samples.markup import strip_math, text_commands
from .numbers import quantity, same_quantity

LONGEST_FORMULA = 500  # characters beyond the reference's own; more is no final answer
_FUNCTIONS = frozenset(
    "sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln exp sqrt max min "
    "lim pi frac dfrac tfrac cdot times left right infty theta alpha beta gamma".split()
)
_BRACKETS = {"(": ")]", "[": ")]", "{": "}"}


@lru_cache(maxsize=4096)
def plain_latex(text: str) -> str:
    r"""Spacing and text commands taken away: ``12\,\text{cm}`` is ``12 cm``."""
    text = re.sub(r"(?<=\d)\\,(?=\d{3}(?!\d))", "", text_commands(text))
    text = re.sub(
        r"\\(?:left|right|displaystyle|rm|mathrm|,|;|!|:|quad|qquad)(?![a-zA-Z])", " ", text
    )
    text = text.replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac")
    text = re.sub(r"\\[()\[\]]", "$", text).replace("\u2212", "-")
    text = re.sub(r"(?<!\d)~|~(?!\s*\d)", " ", text)  # a space in LaTeX, in 5~7 a range
    text = re.sub(r"(?<![\\A-Za-z])pi(?![A-Za-z])", r"\\pi", text)
    text = text.replace("\u03c0", "\\pi ").replace("\u221e", "\\infty ")
    text = text.replace("\u2220", "\\angle ").replace("\u25b3", "\\triangle ")
    text = re.sub(r"\\overline\s*\{(\w+)\}", r"\1", text.replace("\u2208", "\\in "))
    text = re.sub(r"\\approx(?![a-zA-Z])", "=", text)
    for sign, command in (("\u2264", "\\le "), ("\u2265", "\\ge "), ("\u2260", "\\ne ")):
        text = text.replace(sign, command)
    text = re.sub(r"\\(le|ge|ne)q(?![a-zA-Z])", r"\\\1", text)
    text = text.replace("\u00d7", "\\times ").replace("\u00f7", "/")
    text = re.sub(r"\u221a\s*(?:\{([^{}]*)\}|\(([^()]*)\)|(\w+))", _sqrt, text)
    text = re.sub(r"(?<![\\\w])sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}", text)
    return " ".join(text.split())


def _sqrt(match: re.Match[str]) -> str:
    return f"\\sqrt{{{next(part for part in match.groups() if part is not None)}}}"


def squeezed(text: str) -> str:
    """A formula's characters: no spaces, dollar signs, braces of one character."""
    text = re.sub(r"\\(?:dots|ldots|cdots)", "...", text)
    text = re.sub(r"\\cdot(?![a-zA-Z])|\\times(?![a-zA-Z])", "*", text)
    text = re.sub(r"(?<!\d)\s|\s(?!\d)", "", text.replace("$", "").strip())
    text = re.sub(r"\{(\w)\}", r"\1", text).rstrip(".")
    return re.sub(r"(?<=[A-Za-z])_(?=\w)", "", text)


def is_formula(text: str) -> bool:
    """Symbols without prose: no word that is no function."""
    words = re.findall(r"(?<![\\a-zA-Z])[a-zA-Z]{3,}|[\u3040-\u9fff]", text)
    short = re.findall(
        r"(?<![\\a-zA-Z])(?:or|and|is|to|of|in|it|no|so|if)(?![a-zA-Z])", text
    )
    return not short and all(word in _FUNCTIONS for word in words)


def split_equation(text: str) -> tuple[str, str]:
    """("x", "5") of "x = 5", ("", text) where there is no such left side."""
    match = re.fullmatch(
        r"\$?\s*([A-Za-z](?:\([a-z]\)|_\{?\w+\}?|')?|[A-Z]{2,3}|\\[a-z]+(?:\s*[A-Z]{1,3})?|[\u4e00-\u9fff]{1,6})"
        r"\s*=\s*([^=]+)",
        text.strip(),
    )
    return (match[1].replace(" ", ""), match[2].strip()) if match else ("", text)


def bracketed(text: str) -> tuple[str, list[str], str] | None:
    """("(", ["1", "2"], "]") of an interval, a tuple or a set; None if the text is none."""
    text = re.sub(r"\\([{}])", r"\1", strip_math(text)).strip()
    if len(text) < 2 or text[0] not in _BRACKETS or text[-1] not in _BRACKETS[text[0]]:
        return None
    parts, depth, at = [], 0, 1
    for i, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        if not depth and i < len(text) - 1:
            return None
        if depth == 1 and character in ",;" and not _thousands(text, i):
            parts.append(text[at:i].strip())
            at = i + 1
    parts.append(text[at:-1].strip())
    return (text[0], parts, text[-1]) if len(parts) > 1 else None


def _thousands(text: str, i: int) -> bool:
    return text[0] == "{" and bool(re.fullmatch(r"\d,\d{3}\D", text[i - 1 : i + 5]))


def same_formula(reference: str, final: str) -> bool:
    """Whether two formulas are the same: in their characters, part by part in their
    brackets, their right sides, or as mathematics."""
    reference, final = (_without_name(strip_math(x)) for x in (reference, final))
    if squeezed(reference) == squeezed(final):
        return True
    gold, value = bracketed(reference), bracketed(final)
    if value is None and gold is not None and gold[0] == "[" and len(gold[1]) > 2:
        value = bracketed(f"[{final}]")  # three values are no interval
    if value is None and gold is not None and gold[0] == "(":
        value = _coordinates(final)
    if gold is not None or value is not None:
        return gold is not None and value is not None and _same_parts(gold, value)
    (name, right), (other, side) = split_equation(reference), split_equation(final)
    if (name or other) and not (name and other and name != other):
        a, b = quantity(right), quantity(side)
        if a is not None and b is not None:
            return same_quantity(a, b)
        return same_formula(right, side)
    if name != other:
        return False
    return _same_mathematics(reference, final)


def _coordinates(text: str) -> tuple[str, list[str], str] | None:
    """The point that "x = 3, y = 4" says; None if the text is anything else."""
    sides = [split_equation(part) for part in re.split(r"[,;]|\band\b", text)]
    names = [name for name, _ in sides]
    if len(sides) < 2 or names != ["x", "y", "z"][: len(sides)]:
        return None
    return "(", [side for _, side in sides], ")"


def _without_name(text: str) -> str:
    """ "(1, 2)" of "x \\in (1, 2)"."""
    return re.sub(r"^\s*[a-z]\s*\\in(?![a-z])\s*", "", text)


def _same_parts(
    gold: tuple[str, list[str], str], value: tuple[str, list[str], str]
) -> bool:
    if (gold[0], gold[2]) != (value[0], value[2]) or len(gold[1]) != len(value[1]):
        return False
    if gold[0] != "{":
        return all(map(_same_value, gold[1], value[1]))
    left = list(value[1])
    for part in gold[1]:
        found = next((x for x in left if _same_value(part, x)), None)
        if found is None:
            return False
        left.remove(found)
    return True


def _same_value(a: str, b: str) -> bool:
    x, y = quantity(a), quantity(b)
    if x is not None and y is not None:
        return same_quantity(x, y)
    return same_formula(a, b)


def _same_mathematics(reference: str, final: str) -> bool:
    """math-verify's opinion on two whole formulas; False if it is not installed or cannot
    parse one of them to its end."""
    if len(final) > LONGEST_FORMULA + len(reference):
        return False
    if any(re.search(r"[:']|(?<![_^\d])\d+\s+\d", text) for text in (reference, final)):
        return False  # a ratio, a time, f': math-verify takes a part of them
    try:
        import math_verify
    except ImportError:
        return False
    gold, value = _parsed(math_verify, reference), _parsed(math_verify, final)
    if gold is None or value is None:
        return False
    if _is_number(gold) and _is_number(value) and gold.is_Rational and value.is_Rational:
        return bool(gold == value)
    return bool(math_verify.verify([gold], [value], timeout_seconds=None))


def _is_number(value: Any) -> bool:
    return bool(getattr(value, "is_number", False))


def _parsed(library: Any, text: str) -> Any:
    """The formula as sympy has it; None if it is none, or if only a part was parsed."""
    config = [library.LatexExtractionConfig()]
    found = library.parse(f"${text}$", extraction_config=config, parsing_timeout=None)
    if not found or isinstance(found[0], str):
        return None
    written = re.sub(r"\\text\s*\{[^}]*\}|\\[a-zA-Z]+", " ", text)
    letters = {c.casefold() for c in re.findall(r"[a-zA-Z]", written)}
    seen = str(found[0]).casefold()
    if not letters <= set(re.findall("[a-z]", seen)):
        return None
    if "\\pi" in text and "pi" not in seen:
        return None
    return found[0]
