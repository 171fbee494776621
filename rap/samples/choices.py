"""Which choice a text means: by its own text, its number or its letter.

Shared by reading a data set (is the reference among the choices?), by evidence (which
letter is teacher-forced?) and by grading (which choice does a response name?).
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence


def letter(index: int) -> str:
    """0 -> "A", 1 -> "B", ...; beyond 26 the number itself, from 1."""
    return chr(ord("A") + index) if index < 26 else str(index + 1)


def prompt_text(template: str, question: str, choices: Sequence[str]) -> str:
    """``ScoreConfig.prompt_template`` filled in: what a model is asked."""
    lines = "".join(f"\n({letter(i)}) {choice}" for i, choice in enumerate(choices))
    values = {"{question}": question, "{choices}": lines}
    # In one pass: a question may hold braces, and the template \boxed{}.
    return re.sub(r"\{question\}|\{choices\}", lambda match: values[match[0]], template)


_LETTER = re.compile(r"[(\[{]?\s*([A-Za-z])\s*[)\]}.:]{0,2}")


def letter_index(text: str, n: int) -> int | None:
    """0-based choice that ``text`` names as a bare letter ("B", "(b)", "B."), of ``n``."""
    match = _LETTER.fullmatch(text.strip())
    if match is None:
        return None
    index = ord(match[1].upper()) - ord("A")
    return index if index < n else None


def plain(text: str) -> str:
    """Text for comparing choices: case, spaces, dollar signs and a final dot ignored."""
    return " ".join(text.replace("$", " ").split()).casefold().rstrip(". ")


def as_number(text: str) -> float | None:
    """The number that ``text`` is, thousands commas allowed; None if it is none."""
    text = text.strip().strip("$ ")
    if re.fullmatch(r"[-+]?\d{1,3}(?:,\d{3})+(?:\.\d+)?", text):
        text = text.replace(",", "")
    if not re.fullmatch(r"[-+]?(?:\d+\.?\d*|\.\d+)", text):
        return None
    value = float(text)
    return value if math.isfinite(value) else None


def resolve_choice(answer: str, choices: Sequence[str]) -> int | None:
    """0-based choice that the reference answer means; None if it means none.

    A choice's own text comes first, its letter second: with choices ("B", "A") the answer
    "A" is the second. An answer like "(B) 12 cm" or "\\boxed{B}" is understood too.
    """
    if answer in choices:
        return list(choices).index(answer)
    for text in (answer, unwrap(answer)):
        texts = [plain(choice) for choice in choices]
        if plain(text) and texts.count(plain(text)) == 1:
            return texts.index(plain(text))
        number = as_number(text)
        equal = [
            k
            for k, t in enumerate(choices)
            if number is not None and as_number(t) == number
        ]
        if len(equal) == 1:
            return equal[0]
        by_letter = letter_index(text, len(choices))
        if by_letter is not None:
            return by_letter
        labelled = re.match(r"\s*[(\[]?([A-Za-z])[)\].:]+\s+(?=\S)", text)
        if labelled is not None:
            named = letter_index(labelled[1], len(choices))
            if named is not None and plain(text[labelled.end() :]) == texts[named]:
                return named
    return None


def unwrap(text: str) -> str:
    """The inside of ``<answer>...</answer>`` or ``\\boxed{...}`` around a whole answer."""
    text = text.strip()
    if text.startswith("<answer>") and text.endswith("</answer>"):
        text = text[len("<answer>") : -len("</answer>")].strip()
    inner = text.strip("$ ")
    if inner.startswith("\\boxed{") and inner.endswith("}"):
        text = inner[len("\\boxed{") : -1].strip()
    return text
