"""Whether two final answers say the same: as text, as a number with its unit, or as
mathematics. Part of ``grading``."""

from __future__ import annotations

import re

from ..samples.markup import folded
from .final import tidy
from .mathematics import is_formula, plain_latex, same_formula, split_equation, squeezed
from .numbers import digits_for_words, quantity, same_quantity
from .prose import formulas_in, said_quantity
from .ranges import as_ratio, same_form
from .units import trailing_unit
from .words import gives, polarity, refused, same_text, says_polarity


def same_answer(reference: str, final: str, *, search: bool) -> bool:
    """Whether two final answers say the same: as text, as a number (units may be left out
    but not contradict), else as mathematics.

    search: ``final`` is a sentence nobody marked as the answer; the last number or formula
    in it counts, or the word that it says.
    """
    reference, final = tidy(reference), tidy(final)
    if re.fullmatch(r"\d+\s*:\s*\d+", reference):
        final = as_ratio(final)
    if not final or _of_others(reference, final):
        return False
    if polarity(reference) is None and refused(final) and not refused(f"is {reference}"):
        return False  # "12 is not correct"
    if same_value(reference, final):
        return True
    gold, value = quantity(reference), quantity(final)
    if gold is not None and value is not None:
        return same_quantity(gold, value)
    if squeezed(reference).casefold() == squeezed(final).casefold():
        return True
    wanted = polarity(reference)
    if wanted is not None:
        said = polarity(final)
        return (says_polarity(final) if said is None else said) == wanted
    told = same_form(reference, final)
    if told is not None:
        return told
    gold, value = quantity(digits_for_words(reference)), quantity(digits_for_words(final))
    if gold is not None and value is not None:
        return same_quantity(gold, value)
    if gold is not None and (search or _is_phrase(final)):
        number = said_quantity(final)
        if number is not None:
            return same_quantity(gold, number)
    if gold is None and _is_phrase(final) and not is_formula(reference):
        return gives(final, reference)
    if gold is None and re.fullmatch(r"[A-Za-z ]+", reference):
        return search and gives(final, reference)
    return _as_formula(reference, final, search)


def _of_others(reference: str, final: str) -> bool:
    """Whether two equations name different unknowns: y = 5 is not x = 5."""
    (name, _), (other, _) = split_equation(reference), split_equation(final)
    return len(name) == len(other) == 1 and name.casefold() != other.casefold()


def _as_formula(reference: str, final: str, search: bool) -> bool:
    gold, unit = trailing_unit(reference)
    if not is_formula(gold.replace("$", "")):
        return gives(final, reference) if search else False
    candidates = [final] if is_formula(trailing_unit(final)[0].replace("$", "")) else []
    if search or _is_phrase(final):
        candidates += formulas_in(final)
    for candidate in candidates:
        value, other = trailing_unit(candidate)
        if unit and other and unit != other:
            continue
        if same_formula(gold, value):
            return True
    return False


def _is_phrase(text: str) -> bool:
    """Words around a number, not a formula like 5x."""
    if "\\" in text:
        return len(re.findall(r"[A-Za-z]{2,}\s", re.sub(r"\\[a-z]+", "", text))) > 1
    return bool(re.search(r"[A-Za-z]{2,}\s|[\s(][A-Za-z]{2,}|[\u3400-\u9fff]", text))


def same_value(reference: str, final: str) -> bool:
    a, b = plain_latex(folded(reference)), plain_latex(folded(final))
    if refused(b) and not refused(f"is {a}"):
        return False
    if squeezed(a) == squeezed(b) != "":
        return True
    gold, value = quantity(a), quantity(b)  # 5 mW is not 5 MW
    return same_text(a, b) if gold is None or value is None else same_quantity(gold, value)
