"""Which of its choices a response takes: by letter, by text, by value. Part of
``grading``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from ..samples.choices import letter_index, plain
from ..samples.commas import certain_decimals
from ..samples.markup import folded
from .asides import without_other_senses, without_ruled_out
from .equal import same_answer
from .final import MARKDOWN, after_cue, lines_of, marked_answers, parts_of
from .hedges import missing
from .letters import CLAUSE, letters_in_any_order, letters_said
from .mathematics import plain_latex
from .numbers import quantity, same_quantity
from .refusals import may_be_meant, refuses
from .words import denied

LONG_TEXT = 15  # characters of a choice that is a sentence

_LABEL = re.compile(
    r"\W{0,2}(?:option|choice|选项|选)?\s*[(\[]?\s*([A-Za-z])\s*"
    r"(?:[)\].:\u3002\u3001]|\s-)",
    re.I,
)
_BEFORE_BRACKET = re.compile(r"\W{0,2}([A-Z])\s+(?=\()")  # "C (12 cm)"
_IN_BRACKETS = re.compile(r"[(\[]\s*([A-Za-z])\s*[)\]]")
_ARROW = re.compile(r"^\s*(?:[-=]+>|\u2192|\u21d2)")
_WORD = re.compile(r"(?:\b(?i:option|choice|answer)\s+|选项?\s*)([A-Z])\b")


def choices_in(
    text: str, choices: Sequence[str], several: bool, finished: bool = True
) -> set[int]:
    """0-based choices that a response names: its best marked answer that names one; if it
    marks none, its last line, else its first. Lines that begin with different letters are
    a list of the choices. Empty if it names none."""
    marked = [*marked_answers(text), after_cue(MARKDOWN.sub("", text), whole=True)]
    for final in filter(None, marked):
        if named := _named(final, choices, several):
            return named
    lines = lines_of(text)
    labels = {match[1].upper() for line in lines if (match := _LABEL.match(line))}
    if any(marked) or not lines or not finished:
        return set()
    if refuses(lines[-1]) and not may_be_meant(choices):
        return set()
    if len(labels) > 1:
        return _named("\n".join(lines), choices, several) if several else set()
    return _named(lines[-1], choices, several) or _named(lines[0], choices, several)


_AT_LABEL = re.compile(r"(?<=\S)[\s,;]+(?=\(?[A-J][).:]\s*\S)")
_ANOTHER = re.compile(
    r"[\s,;]*(?:(?:and|or)\s+)?[(\[]?[A-J](?:[)\]]|[.:]\s)", re.IGNORECASE
)
_BOTH = re.compile(
    r"^(?:so\b|thus\b|therefore\b|,|\s)*(?:both\s+)?(?:(?:options?|choices?|answers?)\s+)?"
    r"|\s+(?:are|is)\s+(?:both\s+|all\s+)?(?:the\s+)?(?:correct|right|true)\b.*$",
    re.IGNORECASE,
)


def _named(final: str, choices: Sequence[str], several: bool) -> set[int]:
    """As ``named_choice``; with ``several``, all choices of a list."""
    if several:
        lines = [plain_latex(line) for line in folded(final).splitlines()]
        final = "\n".join(filter(None, lines))
        tail = CLAUSE.split(final)[-1]
        for text in (final, tail, _BOTH.sub("", final)):
            parts = list(letters_in_any_order(text)) or parts_of(text)
            for items in (parts, _AT_LABEL.split(text)):
                found = {named_choice(item, choices) for item in items}
                if len(found) > 1 and None not in found:
                    return found  # type: ignore[return-value]
    one = named_choice(final, choices)
    return set() if one is None else {one}


def named_choice(final: str, choices: Sequence[str]) -> int | None:
    """0-based choice that a final answer names; None if it names none, or several.

    Tried in order: the choice's text; its letter ("B", "(b)", "B."); a letter as a label
    ("(B) 12 cm", "B. 12 cm"); its value as a number; one letter in brackets; the text that
    the answer opens with, or the only one that stands in it; its value as mathematics.
    What is said not to be it ("not (B)") is not named.
    """
    final = without_ruled_out(_ARROW.sub("", plain_latex(folded(final))).strip())
    texts = [plain(plain_latex(folded(choice))) for choice in choices]
    if plain(final) in texts:
        return texts.index(plain(final))
    n = len(choices)
    named = letter_index(final.strip("$*\"'` "), n)
    if named is None and (match := _LABEL.match(final) or _BEFORE_BRACKET.match(final)):
        named = letter_index(match[1], n)
        rest = plain(final[match.end() :])
        others = set(_IN_BRACKETS.findall(final[match.end() :])) - {match[1]}
        if final.startswith("A:") and rest in texts:
            return texts.index(rest)  # a short "Answer:", not the letter
        if named is not None and texts[named] not in plain(final):
            others |= set(re.findall(r"^[A-J](?=[\s.,;\u3001]|$)", final[match.end() :]))
            if others or rest in texts or denied(final, match.start(1), match.end(1)):
                return None  # "(A), (B) and (C)", "B. 14 cm" where 14 cm is C
        elif named is not None:
            behind = rest.partition(texts[named])[2]
            if _ANOTHER.match(behind) or denied(behind, 0, 0):
                return None  # "(B) 12 cm (C) 13 cm", "(B) 12 cm is not correct"
    if named is None:
        named = _only(_equal_numbers(final, choices))
    if named is None:
        named = _only(_letters_inside(final, n))
    if named is None and len(said := letters_said(final)) == 1:
        named = letter_index(said, n)
    if named is None:  # "No, the set is ..."
        named = _only(k for k, t in enumerate(texts) if t and _opens_with(plain(final), t))
    if named is None:
        inside = _texts_inside(without_other_senses(plain(final), choices), texts)
        if len(inside) > 1:
            inside = _concluded(final, choices, texts) or inside
        whole = (k for k in inside if _is_end(plain(final), texts[k]))
        named = _only(inside) if len(inside) < 2 else _only(whole)
    if named is None:
        named = _only(k for k in range(n) if same_answer(choices[k], final, search=False))
    return named


def _only(indices: Iterable[int]) -> int | None:
    """The one index there is; None if there are none or several."""
    found = set(indices)
    return found.pop() if len(found) == 1 else None


def _letters_inside(final: str, n: int) -> set[int]:
    found = [*_IN_BRACKETS.finditer(final), *_WORD.finditer(final)]
    named = {letter_index(m[1], n) for m in found if not denied(final, m.start(), m.end())}
    return {k for k in named if k is not None}


def _equal_numbers(final: str, choices: Sequence[str]) -> list[int]:
    value = quantity(final)
    found = []
    for k, choice in enumerate(choices):
        text = plain_latex(folded(choice))
        gold = quantity(text) or quantity(certain_decimals(text))
        if value is not None and gold is not None and same_quantity(gold, value):
            found.append(k)
    return found


def _texts_inside(final: str, texts: Sequence[str]) -> set[int]:
    """Choices whose text stands in ``final`` as whole words, those inside a longer one
    that stands there left out ("red" in "dark red"), and those it denies."""
    final, spans = _unhyphened(final), []
    for k, text in enumerate(texts):
        text = text.removeprefix("it ") if len(text) > LONG_TEXT else text
        for form in (_unhyphened(text), *_other_number(text, texts)):
            # a single letter is a word of its own ("a mirror"), not the choice
            if len(form) < 2 - form.isdigit() or (at := _find_words(final, form)) is None:
                continue
            spans.append((at, at + len(form), k))
            break
    return {
        k
        for a, b, k in spans
        if not any(c <= a and b <= d and d - c > b - a for c, d, _ in spans)
        and not denied(final, a, b)
        and not missing(final, a)
    }


_CONCLUSION = re.compile(
    r"(?:^|(?<=[.!?;\n])\s+)"
    r"(?:so|therefore|thus|hence|consequently|in conclusion|overall)\b"
    r"|因此|所以|故",
    re.IGNORECASE,
)
_COMPARED_WITH = re.compile(
    r",?\s+(?:than|compared\s+(?:to|with)|rather\s+than|unlike|as\s+opposed\s+to)\b[^.;\n]*",
    re.IGNORECASE,
)


def _concluded(final: str, choices: Sequence[str], texts: Sequence[str]) -> set[int]:
    """The one choice that the last conclusion names ("Therefore, ..."), or that what is
    compared is ("the sun is larger than the moon"); empty if there is none such."""
    found = list(_CONCLUSION.finditer(final))
    last = final[found[-1].end() :] if found else final
    for said in (last, _COMPARED_WITH.sub("", last)):
        inside = _texts_inside(without_other_senses(plain(said), choices), texts)
        if len(inside) == 1:
            return inside
    return set()


def _unhyphened(text: str) -> str:
    """Of the same length: "pde refiner" of "pde-refiner"."""
    return re.sub(r"(?<=[a-z]{2})-(?=[a-z]{2})", " ", text)


def _other_number(text: str, texts: Sequence[str]) -> list[str]:
    """The plural of a choice that is words, or its singular, where that is no choice."""
    if not re.fullmatch(r"[a-z][a-z -]{2,}[a-z]", text) or text.endswith("ss"):
        return []
    other = text[:-1] if text.endswith("s") else text + "s"
    return [] if other in texts else [_unhyphened(other)]


def _is_end(final: str, text: str) -> bool:
    """Whether a sentence of a choice ends the answer: "it cannot be determined"."""
    return len(text) > LONG_TEXT and final.endswith(text.removeprefix("it "))


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
    formula = re.search(r"[-+=]", words) is not None
    at = text.find(words)
    while at >= 0:
        before, after = text[max(at - 2, 0) : at], text[at + len(words) :][:2]
        longer = formula and (re.search(r"\w[-+]$", before) or re.match(r"[-+]\w", after))
        if not (longer or _joins(before[::-1], words[0]) or _joins(after, words[-1])):
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
    word = edge.isalnum() and neighbours[0].isalnum() and edge.isascii()
    return number or signed or word
