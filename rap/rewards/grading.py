"""Is this response right? The built-in rule: pure functions, no processes, no timeouts.

``grade`` takes the final answer out of the response (``final_answer``) and compares it:
with choices, which choice does it name (letter, text, value) - else as text, as a number
with thousands commas and units, or through math-verify as mathematics. Without
math-verify the last step is left out. A response that names nothing is wrong.

Any of this may run for ever on hostile text (sympy does): ``rap.rewards`` runs it in a
process that it can kill. The regular expressions here are linear.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

from ..samples.choices import as_number, letter_index, plain, resolve_choice

LONGEST_FORMULA = 500  # characters beyond the reference's own; more is no final answer
RULE_VERSION = 1  # raise it when a verdict can change: it is part of the fingerprint


def name() -> str:
    """Identifies the rule and what it runs on."""
    try:
        return f"builtin/{RULE_VERSION}+math-verify-{version('math-verify')}"
    except PackageNotFoundError:
        return f"builtin/{RULE_VERSION} without math-verify: choices, texts and numbers"


def grade(answer: str, choices: Sequence[str], text: str) -> bool:
    """Whether the response ``text`` gives the reference ``answer``.

    choices: empty for an open question; else ``answer`` names one of them, by text or
    letter, and so must the response.
    """
    if choices:
        gold = resolve_choice(answer, choices)
        if gold is None:
            raise ValueError(f"answer {answer[:80]!r} is not among the choices")
        named = _choice_in(text, choices)
        return named is not None and plain(choices[named]) == plain(choices[gold])
    final, marked = final_answer(text)
    reference, _ = final_answer(answer)
    return bool(final) and same_answer(reference or answer, final, search=not marked)


# --------------------------------------------------------------- the final answer

_CUE = re.compile(
    r"\banswer(?:\s+(?:is|would be|should be|will be|must be)\b(?:\s*:)?|\s*[:=\uff1a])"
    r"|\b(?:option|choice)(?:\s+letter)?\s+is\b(?:\s*:)?|\u7b54\u6848[\u662f\u4e3a:\uff1a]",
    re.IGNORECASE,
)
_RIGHT_ONE = re.compile(
    r"\(?\b([A-Z])\)? is (?:the )?(?:correct|right|best) (?:answer|option|choice)\b"
)
_GOODBYE = re.compile(
    r"\b(?:hope (?:this|that) helps|let me know|anything else"
    r"|(?:other|further|more) questions)",
    re.IGNORECASE,
)
_MARKDOWN = re.compile(r"\*\*|__|`+")
_END_TOKENS = re.compile(r"</s>|<\|(?:im_end|endoftext|eot_id|end)\|>|<end_of_turn>|<eos>")


def final_answer(text: str) -> tuple[str, bool]:
    """The final answer in a response, and whether it was marked as one: the first of
    ``marked_answers``, else the last line."""
    marked = marked_answers(text)
    if marked:
        return marked[0], True
    lines = _lines(text)
    return (lines[-1] if lines else ""), False


def marked_answers(text: str) -> list[str]:
    """What a response marks as its answer, best first: the last ``<answer>`` element, the
    last ``\\boxed{}``, what follows the last ``####``, what follows the last "the answer
    is" or "answer:", the last letter that "is the correct option". What stands before
    ``</think>`` does not count."""
    text = _spoken(text)
    inside, boxed = _last_element(text), _last_boxed(text)
    if inside is not None:
        inside = _last_boxed(inside) or inside
    text = _MARKDOWN.sub("", text)
    hashes = _first_line(text.rpartition("####")[2]) if "####" in text else ""
    right_one = _RIGHT_ONE.findall(text)[-1:]
    return [x for x in (inside, boxed, hashes, _after_cue(text), *right_one) if x]


def _spoken(text: str) -> str:
    """The response without a model's thoughts and end tokens."""
    text = _END_TOKENS.sub("", text)
    thought, _, rest = text.rpartition("</think>")
    return rest if rest.strip() else thought


def _lines(text: str) -> list[str]:
    """Lines that say something; the politeness that ends a chat does not."""
    spoken = _MARKDOWN.sub("", _spoken(text))
    lines = [line.strip() for line in spoken.splitlines() if line.strip()]
    while len(lines) > 1 and _GOODBYE.search(lines[-1]):
        lines.pop()
    return lines


def _after_cue(text: str) -> str:
    for match in reversed(list(_CUE.finditer(text))):
        after = _first_line(text[match.end() :])
        if after and not after.lower().startswith("not "):
            return _first_sentence(after)
    return ""


def _last_element(text: str) -> str | None:
    """The inside of the last ``<answer>`` element, closed or not."""
    start = text.rfind("<answer>")
    if start < 0:
        return None
    return text[start + len("<answer>") :].partition("</answer>")[0].strip() or None


def _last_boxed(text: str) -> str | None:
    """The inside of the last ``\\boxed{}``, braces balanced; None if there is none."""
    start = max(text.rfind("\\boxed{"), text.rfind("\\fbox{"))
    if start < 0:
        return None
    begin = text.index("{", start) + 1
    depth = 1
    for i in range(begin, len(text)):
        depth += (text[i] == "{") - (text[i] == "}")
        if not depth:
            return text[begin:i].strip() or None
    return None


def _first_line(text: str) -> str:
    text = text.strip(" \t\r\n:=\uff1a")
    return text.splitlines()[0].strip() if text else ""


def _first_sentence(line: str) -> str:
    """Up to the first full stop that ends a sentence; not the one in "B. 12 cm"."""
    for match in re.finditer(r"[.!?](?=[\"'\u201d\u2019)\]]*(?:\s|$))", line):
        if not re.fullmatch(r"\W*[A-Za-z]", line[: match.start()]):
            return line[: match.start()].strip()
    return line.strip()


# ------------------------------------------------------------------------- choices

_LABEL = re.compile(
    r"\W{0,2}(?:option|choice)?\s*[(\[]?\s*([A-Za-z])\s*(?:[)\].:\u3002]|\s-)", re.I
)
_BEFORE_BRACKET = re.compile(r"\W{0,2}([A-Z])\s+(?=\()")  # "C (12 cm)"
_IN_BRACKETS = re.compile(r"[(\[]\s*([A-Za-z])\s*[)\]]")
_WORD = re.compile(r"\b(?i:option|choice|answer)\s+([A-Z])\b")


def _choice_in(text: str, choices: Sequence[str]) -> int | None:
    """0-based choice that a response names: its best marked answer that names one; if it
    marks none, its last line, else its first. Lines that begin with different letters are
    a list of the choices."""
    marked = marked_answers(text)
    for final in marked:
        if (named := named_choice(final, choices)) is not None:
            return named
    lines = _lines(text)
    labels = {match[1].upper() for line in lines if (match := _LABEL.match(line))}
    if marked or not lines or len(labels) > 1:
        return None
    named = named_choice(lines[-1], choices)
    return named_choice(lines[0], choices) if named is None else named


def named_choice(final: str, choices: Sequence[str]) -> int | None:
    """0-based choice that a final answer names; None if it names none, or several.

    Tried in order: the choice's text; its letter ("B", "(b)", "B."); a letter as a label
    ("(B) 12 cm", "B. 12 cm"); its value as a number; one letter in brackets; the text that
    the answer opens with, or the only one that stands in it; its value as mathematics.
    """
    final = _plain_latex(final)
    texts = [plain(_plain_latex(choice)) for choice in choices]
    if plain(final) in texts:
        return texts.index(plain(final))
    n = len(choices)
    named = letter_index(final, n)
    if named is None and (match := _LABEL.match(final) or _BEFORE_BRACKET.match(final)):
        named = letter_index(match[1], n)
        others = set(_IN_BRACKETS.findall(final[match.end() :])) - {match[1]}
        if others and named is not None and texts[named] not in plain(final):
            return None  # "(A), (B) and (C)"
    if named is None:
        named = _only(_equal_numbers(final, choices))
    if named is None:
        letters = {letter_index(x, n) for x in _IN_BRACKETS.findall(final)}
        letters |= {letter_index(x, n) for x in _WORD.findall(final)}
        named = _only(letters - {None})
    if named is None:  # "No, the set is ..."
        named = _only(k for k, t in enumerate(texts) if t and _opens_with(plain(final), t))
    if named is None:
        named = _only(_texts_inside(plain(final), texts))
    if named is None:
        named = _only(k for k in range(n) if same_answer(choices[k], final, search=False))
    return named


def _only(indices: object) -> int | None:
    """The one index there is; None if there are none or several."""
    found = set(indices)  # type: ignore[call-overload]
    return found.pop() if len(found) == 1 else None


def _equal_numbers(final: str, choices: Sequence[str]) -> list[int]:
    value = quantity(final)
    return [
        k for k, c in enumerate(choices) if value is not None and _equal(quantity(c), value)
    ]


def _texts_inside(final: str, texts: Sequence[str]) -> set[int]:
    """Choices whose text stands in ``final`` as whole words, those inside a longer one
    that stands there left out ("red" in "dark red")."""
    spans = []
    for k, text in enumerate(texts):
        # a single letter is a word of its own ("a mirror"), not the choice
        if len(text) > 1 - text.isdigit() and (at := _find_words(final, text)) is not None:
            spans.append((at, at + len(text), k))
    return {
        k
        for a, b, k in spans
        if not any(c <= a and b <= d and d - c > b - a for c, d, _ in spans)
    }


def _opens_with(final: str, text: str) -> bool:
    if len(text) == 1 and text.isalpha():  # "A, b and c"
        return False
    return final.startswith(text) and final[len(text) : len(text) + 1] in (
        ",",
        ".",
        ":",
        ";",
    )


def _find_words(text: str, words: str) -> int | None:
    """Where ``words`` stands in ``text``, not as a part of a word, number or formula."""
    if "\\" in text:
        return None
    at = text.find(words)
    while at >= 0:
        before, after = text[max(at - 2, 0) : at], text[at + len(words) :][:2]
        if not (_joins(before[::-1], words[0]) or _joins(after, words[-1])):
            return at
        at = text.find(words, at + 1)
    return None


def _joins(neighbours: str, edge: str) -> bool:
    """Whether the characters outwards from an edge go on with what stands inside it."""
    if not neighbours:
        return False
    if neighbours[0] in "/^_{}=+*":
        return True
    number = edge.isdigit() and neighbours[0] in ".,:-" and neighbours[1:].isdigit()
    signed = edge.isdigit() and neighbours == "-" or neighbours == "- "
    return number or signed or (edge.isalnum() and neighbours[0].isalnum())


# -------------------------------------------------------------------- open answers

_OPERATION = re.compile(r"\d\s*[+*/^]|[+*/^]\s*\d")
_FRACTION = re.compile(r"([-+]?\d+)\s*/\s*(\d+)")
_NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|[-+]?\.\d+")
_LATEX_TEXT = re.compile(
    r"\\(?:text|mathrm|textbf|mathbf|textit|mbox|operatorname)\s*\{([^{}]*)\}"
)
# A unit: a word, a short name from the list, squared or not, one per another. Not any
# letter: 5x is no quantity of 5.
_NAME = (
    r"(?:[a-zA-Z]{3,}|[cdkmn]?m|[km]?g|[cdm]?[lL]|in|ft|yd|mi|lb|oz|cc|hr?|s|am|pm"
    r"|k?[NJWVA]|k?Hz|k?Pa|\u00b0\s*[CF])(?:\s*\^?\s*\{?[23]\}?|\s*[\u00b2\u00b3])?"
)
_UNIT = re.compile(
    r"[\u00b0\u00a2\u20ac\u00a3%$]|\^?\s*\{?\s*\\circ\s*\}?|\\%|\\\$"
    rf"|(?:(?:square|cubic|sq\.?|cu\.?)\s+)?{_NAME}(?:\s*(?:/|per)\s*{_NAME})?"
)


def same_answer(reference: str, final: str, *, search: bool) -> bool:
    """Whether two final answers say the same: as text, as a number (units may be left out
    but not contradict), else as mathematics.

    search: ``final`` is a sentence nobody marked as the answer; the last number or formula
    in it counts.
    """
    reference, final = _plain_latex(reference), _plain_latex(final)
    if _squeezed(reference) == _squeezed(final):
        return True
    gold, value = quantity(reference), quantity(final)
    if gold is not None and value is not None:
        return _equal(gold, value)
    if gold is not None and (search or _is_phrase(final)):
        said = final.rpartition("=")[2]
        numbers = _NUMBER.findall(said)
        if numbers and "\\" not in said and not _OPERATION.search(said):
            return _equal(gold, (float(numbers[-1].replace(",", "")), ""))
    longest = LONGEST_FORMULA + len(reference)
    if len(final) > longest and not search:
        return False
    return _same_mathematics(reference, final[-longest:])


def quantity(text: str) -> tuple[float, str] | None:
    """(number, unit) if the text is nothing else: "1,250", "6 cm", "$5", "3/4", "50%"."""
    text = text.strip().strip("$ ").rstrip(".").strip()
    text = re.sub(r"^(?:\\\$|[\u20ac\u00a3$])\s*", "", text)
    match = _FRACTION.match(text)
    if match and int(match[2]):
        value: float | None = int(match[1]) / int(match[2])
    else:
        match = _NUMBER.match(text)
        value = as_number(match[0]) if match else None
    if match is None or value is None:
        return None
    unit = text[match.end() :].replace("\\ ", " ").strip()
    if unit and not _UNIT.fullmatch(unit):
        return None
    return value, _unit_name(unit)


def _unit_name(unit: str) -> str:
    unit = re.sub(r"[\s^{}\\.]", "", unit).casefold()
    unit = {"\u00b0": "degree", "circ": "degree", "%": "percent", "$": "dollar"}.get(
        unit, unit
    )
    unit = unit.replace("\u00b2", "2").replace("\u00b3", "3")
    return unit[:-1] if len(unit) > 2 and unit.endswith("s") else unit


def _equal(a: tuple[float, str] | None, b: tuple[float, str] | None) -> bool:
    """Equal to 1e-6 of the value, and no unit against another."""
    if a is None or b is None or (a[1] and b[1] and a[1] != b[1]):
        return False
    return math.isclose(a[0], b[0], rel_tol=1e-6, abs_tol=1e-9)


def _plain_latex(text: str) -> str:
    r"""Spacing and text commands taken away: ``12\,\text{cm}`` is ``12 cm``."""
    text = _LATEX_TEXT.sub(r" \1 ", text)
    text = re.sub(
        r"\\(?:left|right|displaystyle|,|;|!|:|quad|qquad)(?![a-zA-Z])", " ", text
    )
    text = text.replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac")
    text = re.sub(r"\\[()\[\]]", "$", text).replace("\u2212", "-").replace("~", " ")
    text = re.sub(r"\u221a\s*(?:\{([^{}]*)\}|\(([^()]*)\)|(\w+))", _sqrt, text)
    return " ".join(text.split())


def _sqrt(match: re.Match[str]) -> str:
    return f"\\sqrt{{{next(part for part in match.groups() if part is not None)}}}"


def _squeezed(text: str) -> str:
    return re.sub(r"[\s$]", "", text).casefold().rstrip(".")


def _is_phrase(text: str) -> bool:
    """Words around a number, not a formula like 5x."""
    return bool(re.search(r"[A-Za-z]{2,}\s|\s[A-Za-z]{2,}", text)) and "\\" not in text


def _same_mathematics(reference: str, final: str) -> bool:
    """math-verify's opinion; False if it is not installed or can parse neither."""
    try:
        import math_verify
    except ImportError:
        return False
    gold = math_verify.parse(_as_formula(reference), parsing_timeout=None)
    value = math_verify.parse(_as_formula(final), parsing_timeout=None)
    if not gold or not value:
        return False
    return bool(math_verify.verify(gold, value, timeout_seconds=None))


def _as_formula(text: str) -> str:
    """Marked as LaTeX if it is a bare formula; text is left for math-verify to search."""
    words = re.findall(r"(?<![\\a-zA-Z])[a-zA-Z]{3,}", text)
    return text if "$" in text or words else f"${text}$"
