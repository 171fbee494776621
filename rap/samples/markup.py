"""Removes the markup around an answer: boxes, tags, math delimiters, thoughts.

Shared by reading a reference (``answers``) and by taking the answer out of a response
(``rap.rewards.grading``). Every expression here is linear in the text's length.
"""

from __future__ import annotations

import re
import unicodedata

_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_ELEMENT = re.compile(r"<\s*(?:answer|\u7b54\u6848)\s*>", re.IGNORECASE)
_ELEMENT_END = re.compile(
    r"<\s*[/\\]\s*(?:answer|\u7b54\u6848)\s*>|<\s*answer\s*/\s*>"
    r"|(?P<cut><\s*/\s*(?:a(?:n(?:s(?:w(?:er?)?)?)?)?)?\s*\Z)",
    re.IGNORECASE,
)
"""Also <\\answer>, <answer/>; ``cut``: the end of a text in the midst of </answer>."""
_THOUGHT = re.compile(
    r"<\s*(?:think|thinking|thought|reasoning)\s*>|\u25c1think\u25b7|<\|begin_of_thought\|>",
    re.IGNORECASE,
)
_THOUGHT_END = re.compile(
    r"<\s*/\s*(?:think|thinking|thought|reasoning)\s*>|\u25c1/think\u25b7"
    r"|<\|end_of_thought\|>",
    re.IGNORECASE,
)
_END_TOKENS = re.compile(r"</s>|<\|(?:im_end|endoftext|eot_id|end)\|>|<end_of_turn>|<eos>")
_SUPERSCRIPTS = str.maketrans(
    "\u2070\u00b9\u2074\u2075\u2076\u2077\u2078\u2079", "01456789"
)
_HALVES = re.compile(r"(?<=\d)(?=[\u00bc-\u00be\u2150-\u215e])")
_TEXT_COMMAND = re.compile(
    r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|mathsf|mbox|operatorname)"
    r"\s*\{([^{}]*)\}"
)


def boxes(text: str) -> list[tuple[int, int, str]]:
    """Every closed ``\\boxed{}`` that is in no other: (start, end, inside). Escaped braces
    do not count; where braces never balance, a box ends at the last brace of the text."""
    found: list[tuple[int, int, str]] = []
    at = 0
    while (match := _BOX.search(text, at)) is not None:
        end = _closing(text, match.end())
        if end is None:
            end = text.rfind("}")
            if end < match.end():
                return found
        found.append((match.start(), end + 1, text[match.end() : end].strip()))
        at = end + 1
    return found


def _closing(text: str, begin: int) -> int | None:
    depth, escaped = 1, False
    for i in range(begin, len(text)):
        character = text[i]
        if not escaped and character in "{}":
            depth += 1 if character == "{" else -1
            if not depth:
                return i
        escaped = character == "\\" and not escaped
    return None


def has_open_box(text: str) -> bool:
    """Whether the last box of the text was never closed."""
    starts = [match.end() for match in _BOX.finditer(text)]
    return bool(starts) and "}" not in text[starts[-1] :]


def element(text: str) -> tuple[str, str, bool] | None:
    """(before, inside, closed) of the last ``<answer>`` element; None if there is none. A
    second ``<answer>`` with nothing behind it closes the first."""
    starts = list(_ELEMENT.finditer(text))
    if not starts:
        return None
    if len(starts) > 1 and not text[starts[-1].end() :].strip():
        text = text[: starts[-1].start()] + "</answer>"
        starts.pop()
    rest = text[starts[-1].end() :]
    end = _ELEMENT_END.search(rest)
    inside = rest if end is None else rest[: end.start()]
    closed = end is not None and end["cut"] is None
    return text[: starts[-1].start()].strip(), inside.strip(), closed


def stray_end(text: str) -> str:
    """A text without element without a ``</answer>`` that ends nothing."""
    return _ELEMENT_END.sub("\n", text)


def spoken(text: str) -> tuple[str, str] | None:
    """(thought, what is said after it), end tokens taken away; None if a thought began and
    never ended: nothing was said."""
    text = _END_TOKENS.sub("", text)
    text = text.replace("<|begin_of_box|>", "\\boxed{").replace("<|end_of_box|>", "}")
    ends = list(_THOUGHT_END.finditer(text))
    thought = text[: ends[-1].start()] if ends else ""
    rest = text[ends[-1].end() :] if ends else text
    if _THOUGHT.search(rest):
        return None
    return _THOUGHT.sub("", thought).strip(), rest


def strip_math(text: str) -> str:
    """The inside of ``$..$``, ``$$..$$``, ``\\(..\\)``, ``\\[..\\]`` around a text."""
    text = text.strip()
    for begin, end in (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]")):
        inside = text[len(begin) : -len(end)]
        whole = len(text) > len(begin) + len(end) - 1 and text.startswith(begin)
        if whole and text.endswith(end) and begin not in inside and end not in inside:
            return inside.strip()
    return text


def text_commands(text: str) -> str:
    r"""``\text{cm}`` and its kind as the text inside, spaces around it."""
    for _ in range(3):  # nested: \textbf{\text{B}}
        shorter = _TEXT_COMMAND.sub(r" \1 ", text)
        if shorter == text:
            return text
        text = shorter
    return text


def folded(text: str) -> str:
    """Full-width and compatibility characters as plain ones: ``\uff22`` is B, ``\uff0c`` a
    comma, ``\u33a0`` cm2, ``1\u00bd`` is 1 1/2. Exponents stay exponents."""
    if text.isascii():
        return text
    text = re.sub(r"(?<=\d)[\u00a0\u202f\u2009](?=\d{3}(?!\d))", ",", text)
    text = re.sub(r"[\u2070\u00b9\u00b2\u00b3\u2074-\u2079]+", _exponent, text)
    text = unicodedata.normalize("NFKC", _HALVES.sub(" ", text))
    for old, new in (
        ("\u2044", "/"),
        ("\u2212", "-"),
        ("\u2013", "-"),
        ("\u2014", "-"),
        ("\u3002", "."),
        ("\u2018", "'"),
        ("\u2019", "'"),
        ("\u201c", '"'),
        ("\u201d", '"'),
    ):
        text = text.replace(old, new)
    return text


def _exponent(match: re.Match[str]) -> str:
    digits = match[0].translate(_SUPERSCRIPTS)
    return "^" + digits.replace("\u00b2", "2").replace("\u00b3", "3")
