"""Is this response right? The built-in rule: pure functions, no processes, no timeouts.

The reference is read as data (``rap.samples.answers``). The response is read as what
somebody says: its final answer is taken out (``final_answer``) and compared: with choices,
which choice does it name (letter, text, value) - else as text, as a number with thousands
commas and units, or as mathematics (math-verify, on whole formulas only). Without
math-verify the last step is left out. A response that names nothing is wrong, and so is
one that offers two answers, thinks to its end, or is cut off before it answers.

Any of this may run for ever on hostile text (sympy does): ``rap.rewards`` runs it in a
process that it can kill. The regular expressions here are linear.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

from ..samples.answers import Accepted, Reference, read_answer
from ..samples.choices import letter, plain, unlabelled
from ..samples.commas import response_with_points
from ..samples.markup import boxes, element, has_open_box, spoken
from .asides import without_courtesy, without_denied, without_listed, without_options
from .chosen import choices_in, named_choice
from .equal import same_answer, same_value
from .final import (
    MARKDOWN,
    after_cue,
    final_answer,
    lines_of,
    marked_answers,
    parts_of,
    tidy,
)
from .hedges import offers_another
from .judgements import judged_right
from .letters import CLAUSE, letters_said
from .mathematics import LONGEST_FORMULA, split_equation
from .numbers import quantity, same_quantity
from .refusals import may_be_meant, refuses
from .words import corrected, polarity

QUESTION = ("?", "\uff1f")
LONGEST_SENTENCE = 4000  # characters of a sentence, its end, that are searched
RULE_VERSION = 8  # raise it when a grade can change: it is part of the fingerprint

__all__ = ["final_answer", "grade", "marked_answers", "name", "named_choice", "quantity"]


def name() -> str:
    """Identifies the rule and what it runs on."""
    try:
        return f"builtin/{RULE_VERSION}+math-verify-{version('math-verify')}"
    except PackageNotFoundError:
        return f"builtin/{RULE_VERSION} without math-verify: choices, texts and numbers"


def grade(answer: str, choices: Sequence[str], text: str, *, finished: bool = True) -> bool:
    """Whether the response ``text`` gives the reference ``answer``.

    choices: empty for an open question; else ``answer`` names one of them, by text or
    letter, or several that are all needed, and so must the response.
    finished: False for a response that was cut off at its token limit: only an answer that
    it has marked and completed counts.

    Raises ``ValueError`` for a reference that names no choice, or none at all.
    """
    reference = read_answer(answer, tuple(choices))
    said = spoken(text)
    if said is None:
        return False
    response = without_courtesy(_own_turn(said[1]))
    if has_open_box(response) or _marks_nothing(response):
        return False
    response = response if finished else _completed(response)
    if not any(polarity(one) is not None for one in (answer, *choices)):
        kept = without_denied(response)
        if response and not kept:  # it only asks and denies, or is such a reference
            return finished and same_value(answer, said[1])
        response = kept
    judged = judged_right(response) if finished else None
    if choices:
        options = unlabelled(choices)[0]
        right = {plain(options[k]) for k in reference.choices}
        if judged is not None:
            return {plain(options[k]) for k in _places(judged, len(options))} == right
        several, rest = len(right) > 1, without_options(response, options)
        named = choices_in(rest, options, several, finished)
        if several and len(named) < 2:  # all of the options may be the answer
            named = choices_in(response, options, several, finished)
        return {plain(options[k]) for k in named} == right
    if commas := "; ".join(a.commas for a in reference.accepted if a.commas):
        response = response_with_points(response, commas)
    if reference.letters and judged is not None:
        return judged == reference.letters
    return _answers(reference, response, finished)


def _places(letters: str, n: int) -> list[int]:
    """0-based choices, of ``n``, that letters name."""
    return [k for k in range(n) if letter(k) in letters]


_NEXT_TURN = re.compile(
    r"\n[^\S\n]*\n[^\S\n]*(?:Question|Human|User|问题|用户)\s*[:\uff1a]", re.IGNORECASE
)


def _own_turn(text: str) -> str:
    """A response without the questions that a model makes up and answers after its own
    answer, where it has marked that."""
    match = _NEXT_TURN.search(text)
    if match is None or not marked_answers(text[: match.start()]):
        return text
    return text[: match.start()]


def _marks_nothing(text: str) -> bool:
    """Whether the element or the box in which the answer belongs is there, and empty."""
    found, inside = boxes(text), element(text)
    if inside is not None:
        return inside[2] and not inside[1]
    return bool(found) and not any(box[2] for box in found)


def _completed(text: str) -> str:
    """A response that was cut off, without the sentence in which it was; a closed box or
    element at its end stays."""
    last = [
        match.end() for match in re.finditer(r"[.!?](?=\s)|[\u3002\uff01\uff1f\n]", text)
    ]
    found = boxes(text)
    ends = [*last[-1:], *(end for _, end, _ in found[-1:])]
    inside = element(text)
    if inside is not None and inside[2]:
        return text
    return text[: max(ends, default=0)]


# -------------------------------------------------------------------- open answers


def _answers(reference: Reference, text: str, finished: bool) -> bool:
    """Whether a response gives one of the accepted answers to an open question."""
    clean = MARKDOWN.sub("", text)
    whole = clean.strip()
    marked = marked_answers(text)
    for accepted in reference.accepted:
        short = len(whole) <= 2 * len(accepted.text) + LONGEST_FORMULA
        if finished and short and same_value(accepted.text, whole):
            return True
        if marked:
            forms = [marked[0]]
            if element(text) is not None or boxes(text):
                forms.append(after_cue(marked[0]))
            elif "####" not in text:
                forms.append(after_cue(clean, whole=True))
            ok = any(_accepts(reference, accepted, form, False) for form in forms if form)
            if ok or (len(accepted.values) > 1 and _in_boxes(accepted, text)):
                return True
        elif finished and _unmarked(reference, accepted, text):
            return True
    return False


def _unmarked(reference: Reference, accepted: Accepted, text: str) -> bool:
    """The last line, or, where that is about something else, how the response begins."""
    lines = lines_of(without_listed(text) if reference.letters else text)
    if not lines or (refuses(lines[-1]) and not may_be_meant([accepted.text])):
        return False
    labels = {m[1] for line in lines if (m := re.match(r"\(?([A-J])[).:]\s", line))}
    if reference.letters and len(labels) > 1:
        return False
    if _accepts(reference, accepted, lines[-1], True):
        return True
    if len(accepted.values) > 1:
        return _all_given(accepted, parts_of("\n".join(lines)))
    if quantity(accepted.text) is not None and not reference.letters:
        return False
    sentences = re.split(
        r"(?<=[.!?])(?:(?<!\b[A-J]\.)\s+(?=\S)|\s+(?=[^a-z\s]))"  # not "C. is wrong"
        r"|(?<=[\u3002\uff01\uff1f])|\n",
        "\n".join(lines),
    )
    first, rest = sentences[0], " ".join(sentences[1:])
    if not rest or corrected(rest) or offers_another(rest) or first.endswith(QUESTION):
        return False
    return _accepts(reference, accepted, first[:LONGEST_SENTENCE], True)


def _in_boxes(accepted: Accepted, text: str) -> bool:
    """Every value in a box of its own."""
    inside = [box for _, _, box in boxes(text)]
    return _all_given(accepted, inside)


def _accepts(reference: Reference, accepted: Accepted, final: str, search: bool) -> bool:
    if len(final) > LONGEST_FORMULA + len(accepted.text) and not search:
        return False
    final = final[-LONGEST_SENTENCE - len(accepted.text) :]
    if len(accepted.values) > 1:
        if same_value(accepted.text, final):
            return True
        gold, value = quantity(tidy(accepted.text)), quantity(tidy(final))
        if gold is not None and value is not None:  # "2 hours and 30 minutes"
            return same_quantity(gold, value)
        tail = CLAUSE.split(final)[-1]
        if reference.letters:
            return letters_said(final) == reference.letters
        return any(_all_given(accepted, parts_of(form)) for form in (final, tail))
    if reference.letters and letters_said(final) == reference.letters:
        return True
    if len(accepted.text) == 1 and reference.letters:
        return False
    return same_answer(accepted.text, final, search=search)


def _all_given(accepted: Accepted, given: Sequence[str]) -> bool:
    """Whether ``given`` are the values that are wanted: all of them and no other."""
    if len(given) != len(accepted.values):
        return False
    names = [split_equation(tidy(value))[0] for value in accepted.values]
    named = len(set(names)) > 1 and not any(split_equation(tidy(g))[0] for g in given)
    if accepted.ordered or named:
        return all(
            same_answer(value, part, search=False)
            for value, part in zip(accepted.values, given, strict=True)
        )
    left = list(given)
    for value in accepted.values:
        found = next((x for x in left if same_answer(value, x, search=False)), None)
        if found is None:
            return False
        left.remove(found)
    return True
