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
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version

from ..samples.answers import (
    Accepted,
    Reference,
    joined_boxes,
    read_answer,
    split_values,
)
from ..samples.choices import letter_index, plain, unlabelled
from ..samples.markup import boxes, element, folded, has_open_box, spoken
from .asides import (
    without_courtesy,
    without_listed,
    without_options,
    without_other_senses,
    without_ruled_out,
)
from .letters import CLAUSE, letters_in_any_order, letters_said
from .mathematics import (
    LONGEST_FORMULA,
    bracketed,
    is_formula,
    plain_latex,
    same_formula,
    split_equation,
    squeezed,
)
from .numbers import digits_for_words, ordinal_as_number, quantity, same_quantity
from .prose import formulas_in, said_quantity
from .ranges import as_ratio, same_form
from .refusals import may_be_meant, refuses
from .units import trailing_unit
from .words import (
    after_correction,
    corrected,
    denied,
    gives,
    polarity,
    same_text,
    says_polarity,
)

LONG_TEXT = 15  # characters of a choice that is a sentence
LONGEST_SENTENCE = 4000  # characters of a sentence, its end, that are searched
RULE_VERSION = 5  # raise it when a grade can change: it is part of the fingerprint

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
    if choices:
        options = unlabelled(choices)[0]
        right = {plain(options[k]) for k in reference.choices}
        several, rest = len(right) > 1, without_options(response, options)
        named = _choices_in(rest, options, several, finished)
        if several and len(named) < 2:  # all of the options may be the answer
            named = _choices_in(response, options, several, finished)
        return {plain(options[k]) for k in named} == right
    return _answers(reference, response, finished)


_NEXT_TURN = re.compile(
    r"\n\s*\n\s*(?:Question|Human|User|问题|用户)\s*[:\uff1a]", re.IGNORECASE
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


# --------------------------------------------------------------- the final answer

CUES = 20  # so many of the last "the answer is" are looked at
_CUE = re.compile(
    r"(?<!\bother )\b(?:answers?(?:\s+to\s+(?:the|this|that|your)\s+question)?"
    r"(?:\s+(?:is|are|would be|should be|will be|must be)\b(?:\s*:)?|\s*[:=\uff1a])"
    r"|final\s+(?:value|result|number)\s+is\b(?:\s*:)?)"
    r"|(?<!\bother )\b(?:option|choice|(?:correct|right|best)\s+(?:option|choice)s)"
    r"(?:\s+letter)?\s+(?:is|are)\b(?:\s*:)?"
    r"|(?:答案|正确选项|正确的选项)\s*(?:应该|应)?\s*[是为选:\uff1a\u3011]"
    r"|(?:故|应|所以|因此|我)选(?:择)?"
    r"|(?<![不可能要未])选择?(?=\s*[(\uff08]?[A-J\uff21-\uff2a])",
    re.IGNORECASE,
)
_RIGHT_ONE = re.compile(
    r"\(?\b([A-Z])\)? is (?:the )?(?:correct|right|best)"
    r"(?: (?:answer|option|choice)\b|[.,!]|$)"
    r"|\(?\b([A-Z])\)? is the (?:answer|one)(?=[.,!]|$)"
    r"|(?<![A-Za-z])([A-Z])\s*(?:选项|项)?是?正确(?!的?吗)",
    re.MULTILINE,
)
_ABBREVIATED = re.compile(
    r"^\W*[A-Za-z]$|\b(?:sq|cu|[ap]\.m|mr|mrs|ms|dr|vs|prof)$", re.IGNORECASE
)
_GOODBYE = re.compile(
    r"\b(?:hope (?:this|that) helps|let me know|anything else"
    r"|(?:other|further|more) questions)",
    re.IGNORECASE,
)
_MARKDOWN = re.compile(r"\*\*|__|`+")


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
    last ``\\boxed{}`` (with those it is joined to by "and"), what follows the last
    ``####``, what follows the last "the answer is" or "answer:", the last letter that "is
    the correct option". What stands before ``</think>`` does not count."""
    text = _spoken(text)
    found = element(text)
    inside = found[1] if found is not None else ""
    inside, boxed = _boxed(inside) or inside, _boxed(text)
    bold = _in_bold(text)
    text = _MARKDOWN.sub("", text)
    hashes = _first_line(text.rpartition("####")[2]) if "####" in text else ""
    right_one = ["".join(groups) for groups in _RIGHT_ONE.findall(text)[-1:]]
    marked = [x for x in (inside, boxed, hashes, _after_cue(text), *right_one) if x]
    return marked or ([bold] if bold else [])


_BOLD = re.compile(r"\*\*([^*\n]{1,40})\*\*")
_GOES_ON = re.compile(
    r"\b(?:so|thus|therefore|hence|total|finally|result)\b|=|所以|因此|共"
)


def _in_bold(text: str) -> str:
    """The one letter, number, yes or no in bold; "" where something else is, too, or where
    a result follows."""
    found = list(_BOLD.finditer(text))
    said = {match[1].strip(" .") for match in found}
    if len(said) != 1 or _GOES_ON.search(text, found[-1].end()):
        return ""
    one = said.pop()
    return one if _short_answer(tidy(one)) else ""


def _spoken(text: str) -> str:
    """The response without a model's thoughts and end tokens; empty if it only thinks."""
    said = spoken(text)
    return "" if said is None else said[1]


def _boxed(text: str) -> str:
    found = boxes(text)
    return joined_boxes(text, found) if found else ""


def _lines(text: str) -> list[str]:
    """Lines that say something; the politeness that ends a chat does not."""
    spoken_text = _MARKDOWN.sub("", _spoken(text))
    lines = [line.strip() for line in spoken_text.splitlines() if line.strip()]
    while len(lines) > 1 and _GOODBYE.search(lines[-1]):
        lines.pop()
    return lines


def _after_cue(text: str, whole: bool = False) -> str:
    """What follows the last cue: its first sentence, or all of it."""
    for match in list(_CUE.finditer(text))[: -1 - CUES : -1]:
        after = text[match.end() :].strip(" \t\r\n:=\uff1a")
        line = _first_line(after)
        if line and not re.match(r"not\b|n't|不", line, re.IGNORECASE):
            if whole:
                return after
            settled = after_correction(line)
            return settled if _short_answer(settled) else _first_sentence(line)
    return ""


def _short_answer(text: str) -> bool:
    """A letter, yes or no, or a number, and nothing else."""
    text = text.strip("*() .")
    if polarity(text) is not None or quantity(digits_for_words(text)) is not None:
        return True
    return re.fullmatch("[A-J]", text) is not None


def _first_line(text: str) -> str:
    text = text.strip(" \t\r\n:=\uff1a")
    return text.splitlines()[0].strip() if text else ""


def _first_sentence(line: str) -> str:
    """Up to the first full stop that ends a sentence; not the one in "B. 12 cm"."""
    pattern = r"[.!?](?=[\"'\u201d\u2019)\]]*(?:\s|$))|[\u3002\uff01\uff1f]"
    for match in re.finditer(pattern, line):
        if not _ABBREVIATED.search(line[max(match.start() - 8, 0) : match.start()]):
            return line[: match.start()].strip()
    return line.strip()


# ------------------------------------------------------------------------- choices

_LABEL = re.compile(
    r"\W{0,2}(?:option|choice|选项|选)?\s*[(\[]?\s*([A-Za-z])\s*"
    r"(?:[)\].:\u3002\u3001]|\s-)",
    re.I,
)
_BEFORE_BRACKET = re.compile(r"\W{0,2}([A-Z])\s+(?=\()")  # "C (12 cm)"
_IN_BRACKETS = re.compile(r"[(\[]\s*([A-Za-z])\s*[)\]]")
_ARROW = re.compile(r"^\s*(?:[-=]+>|\u2192|\u21d2)")
_WORD = re.compile(r"(?:\b(?i:option|choice|answer)\s+|选项?\s*)([A-Z])\b")


def _choices_in(
    text: str, choices: Sequence[str], several: bool, finished: bool = True
) -> set[int]:
    """0-based choices that a response names: its best marked answer that names one; if it
    marks none, its last line, else its first. Lines that begin with different letters are
    a list of the choices. Empty if it names none."""
    marked = [*marked_answers(text), _after_cue(_MARKDOWN.sub("", text), whole=True)]
    for final in filter(None, marked):
        if named := _named(final, choices, several):
            return named
    lines = _lines(text)
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
            parts = list(letters_in_any_order(text)) or _parts(text)
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
        elif named is not None and _ANOTHER.match(rest.partition(texts[named])[2]):
            return None  # "(B) 12 cm (C) 13 cm"
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
        gold = quantity(plain_latex(folded(choice)))
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


# -------------------------------------------------------------------- open answers


def _answers(reference: Reference, text: str, finished: bool) -> bool:
    """Whether a response gives one of the accepted answers to an open question."""
    clean = _MARKDOWN.sub("", text)
    whole = clean.strip()
    marked = marked_answers(text)
    for accepted in reference.accepted:
        short = len(whole) <= 2 * len(accepted.text) + LONGEST_FORMULA
        if finished and short and _same(accepted.text, whole):
            return True
        if marked:
            forms = [marked[0]]
            if element(text) is not None or boxes(text):
                forms.append(_after_cue(marked[0]))
            elif "####" not in text:
                forms.append(_after_cue(clean, whole=True))
            ok = any(_accepts(reference, accepted, form, False) for form in forms if form)
            if ok or (len(accepted.values) > 1 and _in_boxes(accepted, text)):
                return True
        elif finished and _unmarked(reference, accepted, text):
            return True
    return False


def _same(reference: str, final: str) -> bool:
    a, b = plain_latex(folded(reference)), plain_latex(folded(final))
    if squeezed(a) == squeezed(b) != "":
        return True
    gold, value = quantity(a), quantity(b)  # 5 mW is not 5 MW
    return same_text(a, b) if gold is None or value is None else same_quantity(gold, value)


def _unmarked(reference: Reference, accepted: Accepted, text: str) -> bool:
    """The last line, or, where that is about something else, how the response begins."""
    lines = _lines(without_listed(text) if reference.letters else text)
    if not lines or (refuses(lines[-1]) and not may_be_meant([accepted.text])):
        return False
    labels = {m[1] for line in lines if (m := re.match(r"\(?([A-J])[).:]\s", line))}
    if reference.letters and len(labels) > 1:
        return False
    if _accepts(reference, accepted, lines[-1], True):
        return True
    if len(accepted.values) > 1:
        return _all_given(accepted, _parts("\n".join(lines)))
    if quantity(accepted.text) is not None and not reference.letters:
        return False
    sentences = re.split(
        r"(?<=[.!?])\s+(?=\S)|(?<=[\u3002\uff01\uff1f])|\n", "\n".join(lines)
    )
    first, rest = sentences[0], " ".join(sentences[1:])
    if not rest or corrected(rest):
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
        if _same(accepted.text, final):
            return True
        gold, value = quantity(tidy(accepted.text)), quantity(tidy(final))
        if gold is not None and value is not None:  # "2 hours and 30 minutes"
            return same_quantity(gold, value)
        tail = CLAUSE.split(final)[-1]
        if reference.letters:
            return letters_said(final) == reference.letters
        return any(_all_given(accepted, _parts(form)) for form in (final, tail))
    if reference.letters and letters_said(final) == reference.letters:
        return True
    if len(accepted.text) == 1 and reference.letters:
        return False
    return same_answer(accepted.text, final, search=search)


def _parts(text: str) -> list[str]:
    """A list of values as a response gives it: lines, commas, "and", a set in braces,
    plus or minus."""
    text = folded(text).replace("\\\\", "\n")
    found = bracketed(plain_latex(text))
    if found is not None and found[0] == "{":
        return found[1]
    bullet = r"^\s*[-*\u2022]\s+"
    lines = [plain_latex(re.sub(bullet, "", line)) for line in text.splitlines()]
    numbered = [re.match(rf"\(?{i + 1}[.):]\s+(?=\S)", x) for i, x in enumerate(lines)]
    if len(lines) > 1 and all(numbered):
        lines = [x[m.end() :] for x, m in zip(lines, numbered, strict=True) if m]
    if len(lines) == 1 and re.fullmatch(r"-?\d+(?:\.\d+)?(?: -?\d+(?:\.\d+)?)+", lines[0]):
        lines = lines[0].split()
    parts = [part for line in lines if line for part in split_values(line)]
    signs = [re.fullmatch(r"(?:\\pm|\u00b1)\s*(.+)", part) for part in parts]
    if len(parts) == 1 and signs[0] is not None:
        return [signs[0][1], f"-{signs[0][1]}"]
    return parts


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


def tidy(text: str) -> str:
    """Spellings that mean nothing taken away: LaTeX spacing and text commands, full-width
    characters, markdown."""
    text = plain_latex(folded(_MARKDOWN.sub("", text)))
    text = re.sub(r"\b([ap])\.\s?m\b\.?", r"\1m", text, flags=re.IGNORECASE).strip()
    return ordinal_as_number(text)


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
    if _same(reference, final):
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
