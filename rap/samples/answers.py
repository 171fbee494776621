"""One reading of a reference answer, for the grader, teacher forcing, export and rewards.

A reference is data: it is read whole, never searched for a last number as a response is.
``read_answer`` takes the markup away (``<answer>``, a thought, ``\\boxed{}``, ``####``,
``$``, "the answer is"), finds which choices it names, or which values an open question
wants: one, several that are all needed ("14 and 25", two lines), or several of which one
is enough (a list). What was worked out beside the answer is its ``solution``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from .choices import letter, resolve_choice, unlabelled, unwrap
from .commas import in_dollars, read_noted
from .dates import date_of
from .markup import boxes, element, folded, spoken, strip_math, text_commands

WORDS_BESIDE_A_BOX = 3
"""Up to so many words around a box belong to the answer ("x = \\boxed{3} cm")."""
LONGEST_LIST = 2000  # characters; what is longer is no list of values


@dataclass(frozen=True, slots=True)
class Accepted:
    """One answer that is right. ``values``: what must be given, all of it; ``ordered``:
    in this order."""

    text: str
    values: tuple[str, ...]
    ordered: bool = False
    commas: str = ""
    """The same with decimal commas, where its column has them (``commas``)."""

    @property
    def written(self) -> str:
        """As its column writes it."""
        return self.commas or self.text


@dataclass(frozen=True, slots=True)
class Reference:
    """What a reference answer says."""

    text: str
    """The answer without markup; of several that are accepted the first."""
    choices: tuple[int, ...]
    """0-based right choices in order, all of which must be named; () for open questions."""
    letters: str
    """Open question whose reference is a letter or a set of them ("C", "ACD"): the options
    stand in the question. Else empty."""
    accepted: tuple[Accepted, ...]
    """Open question: answers of which one is enough."""
    solution: str | None
    """What the reference works out beside the answer."""

    @property
    def letter(self) -> str:
        """The right choices as letters: "B", or "A, C" where several are needed."""
        return ", ".join(map(letter, self.choices)) or ", ".join(self.letters)


@lru_cache(maxsize=4096)
def read_answer(answer: str, choices: tuple[str, ...] = ()) -> Reference:
    """Read a reference. ``choices``: () for an open question.

    Raises ``ValueError`` if it is empty without its markup, if its thought never ends, or
    if it names none of the choices.
    """
    if choices:
        return _among(answer, choices)
    text, solution = bare(answer)
    texts = quoted_list(text) or [text]
    letters = letters_of(text)
    if len(texts) > 1 and all(re.fullmatch("[A-J]", t) for t in texts):
        letters, texts = "".join(sorted(set(texts))), [", ".join(texts)]
    texts = list(dict.fromkeys(filter(None, (bare(t)[0] for t in texts))))
    if not texts:
        raise ValueError("the answer is empty")
    accepted = tuple(map(_accepted, texts))
    return Reference(accepted[0].text, (), letters, accepted, solution)


def _accepted(text: str) -> Accepted:
    noted = read_noted(text)
    if noted is None:
        return required(text)
    return replace(required(noted[0]), commas=noted[1])


def _among(answer: str, choices: tuple[str, ...]) -> Reference:
    options = unlabelled(choices)[0]
    text, solution = answer.strip(), None
    right = right_choices(text, choices) or right_choices(text, options)
    if right is None:
        text, solution = bare(answer)
        right = right_choices(text, options)
    if right is None:
        raise ValueError(f"answer {answer[:80]!r} is not among the choices")
    texts = ", ".join(options[k] for k in right)
    return Reference(texts, right, "", (), solution)


def answer_to_train(
    answer: str, choices: Sequence[str], lettered: bool, *, latex: bool = False
) -> str:
    """The reference for a trainer's answer column, as the prompt asks for it: letters where
    the prompt lists the choices by letter (``lettered``), else what ``read_answer`` reads;
    of several accepted answers the list.

    latex: for checkers that read mathematics only (math-verify in TRL and ms-swift, to
    which a bare B is nothing): letters and lists of numbers between dollar signs.

    Raises ``ValueError`` as ``read_answer`` does.
    """
    reference = read_answer(answer, tuple(choices))
    if choices and not lettered:
        return reference.text
    # an open question's AB may be a line: it stays as it is written
    if letters := reference.letter if choices else reference.letters and reference.text:
        return f"${letters}$" if latex else letters
    if len(reference.accepted) > 1:
        return listed([_noted(accepted) for accepted in reference.accepted])
    (accepted,) = reference.accepted
    if accepted.commas:
        return _noted(accepted, latex)
    numbers = all(re.fullmatch(r"[-+]?[\d.,/]*\d", value) for value in accepted.values)
    if latex and numbers and len(accepted.values) > 1:
        return f"${', '.join(accepted.values)}$"
    return reference.text


def _noted(accepted: Accepted, latex: bool = False) -> str:
    """With its decimal commas noted behind it, so that the reward knows them, too."""
    if not accepted.commas:
        return accepted.text
    pointed = in_dollars(accepted.text) if latex else accepted.text
    return f"{pointed} ({accepted.commas})"


# ---------------------------------------------------------------------- the markup

_CUE = re.compile(
    r"(?:(?:so|thus|hence|therefore)\b[,:]?\s*)?"
    r"(?:(?:the|my|final|correct|right)\s+)*answer\s*(?:is\b|[:=])\s*:?\s*"
    r"|(?:因此|所以|故)?[,\s]*[\u3010]?(?:正确|最终)?"
    r"(?:答案|答)\s*(?:[是为:\u3011]|应为)+\s*"
    r"|(?:故|应|因此)?选(?:择|项)?\s*:?\s*(?=\(?[A-J]\b)",
    re.IGNORECASE,
)


def bare(text: str) -> tuple[str, str | None]:
    """(the answer without markup, the solution that stood beside it or None).

    Raises ``ValueError`` for a thought that never ends.
    """
    said = spoken(text)
    if said is None:
        raise ValueError("its thought never ends, and no answer follows")
    thought, text = said
    beside = [thought]
    inside = element(text)
    if inside is not None:
        beside.append(inside[0])
        text = inside[1]
    if "####" in text:
        before, _, text = text.rpartition("####")
        beside.append(before.strip())
    text, around = _unboxed(text.strip())
    beside.append(around)
    text, before = _after_cue(text)
    beside.append(before)
    solution = "\n".join(part for part in beside if part).strip()
    return unwrap(text), solution or None


def _unboxed(text: str) -> tuple[str, str]:
    """A text with a box: what is boxed, and the whole where it is more than a frame."""
    found = boxes(text)
    if not found:
        return text, ""
    outside, at = "", 0
    for start, end, _ in found:
        outside += text[at:start] + " "
        at = end
    outside += text[at:]
    if len(re.findall(r"[^\W\d_]+", outside)) <= WORDS_BESIDE_A_BOX and len(outside) < 40:
        return replace_boxes(text, found), ""
    return joined_boxes(text, found), text


def replace_boxes(text: str, found: Sequence[tuple[int, int, str]]) -> str:
    """The text with each box's inside in its place, the dollar signs around it gone."""
    out, at = "", 0
    for start, end, inside in found:
        out += text[at:start].rstrip("$") + inside
        at = end
        while text[at : at + 1] == "$":
            at += 1
    return (out + text[at:]).strip()


def joined_boxes(text: str, found: Sequence[tuple[int, int, str]]) -> str:
    """The last boxes with nothing but "and" or a comma between them, as one text."""
    kept = [found[-1][2]]
    for before, after in zip(found[-2::-1], found[::-1], strict=False):
        between = folded(text[before[1] : after[0]]).strip("$ \n\\()[]")
        if not re.fullmatch(r"(?:[,;\u3001]|and|or|&|和|与|\s)*", between):
            break
        kept.insert(0, before[2])
    return ", ".join(kept)


def _after_cue(text: str) -> tuple[str, str]:
    """What follows "the answer is" where the text begins with it, or where its last line
    does and nothing else in it; and what stands before."""
    lines = text.splitlines()
    if not lines:
        return text, ""
    if (match := _CUE.match(folded(text))) is not None and text[match.end() :].strip():
        return folded(text)[match.end() :].strip().rstrip("."), ""
    last = folded(lines[-1].strip())
    match = _CUE.match(last)
    if len(lines) > 1 and match is not None and last[match.end() :].strip():
        return last[match.end() :].strip().rstrip("."), "\n".join(lines[:-1]).strip()
    return text, ""


# ----------------------------------------------------------------- several answers

_ITEM = re.compile(r"""\s*(?:'((?:[^'\\]|\\.)*+)'|"((?:[^"\\]|\\.)*+)")\s*(,|$)""")
_AND = re.compile(
    r"\s*,?\s+(?:and|&)\s+|\s*[,;\uff0c\uff1b]\s*(?:and\b|&)\s*|\s*[和与\u3001及]\s*"
)


def quoted_list(text: str) -> list[str] | None:
    """The items of a list of quoted texts, in JSON's or Python's spelling; else None.
    ``[1, 2]`` is mathematics."""
    text = text.strip()
    if not (text.startswith("[") and text.endswith("]")):
        return None
    try:
        items = json.loads(text)
        if items and isinstance(items, list) and all(isinstance(i, str) for i in items):
            return items
    except (ValueError, RecursionError):
        pass
    body, at, out = text[1:-1].strip(), 0, []
    while at < len(body):
        match = _ITEM.match(body, at)
        if match is None:
            return None
        item = match[1] if match[1] is not None else match[2]
        out.append(re.sub(r"\\(['\"\\])", r"\1", item))
        at = match.end()
    return out or None


def listed(texts: Sequence[str]) -> str:
    """Several accepted answers as the text that ``read_answer`` reads."""
    return texts[0] if len(texts) == 1 else json.dumps(list(texts), ensure_ascii=False)


_ANSWERED_BY = re.compile(
    r"(?:(?:option|choice|answer)s?|选项|选择|选)?\s*[:]?\s*"
    r"([(\[]?[A-J][)\]]?(?:(?:\s*[,;/&\u3001]\s*|\s+and\s+|\s*和\s*|\s*)"
    r"[(\[]?[A-J][)\]]?)*)\s*[.)]?",
)


def letters_of(text: str) -> str:
    """ "C", or "ACD" for a set ("ACD", "A, C", "(A)(C)"): distinct letters in the order of
    the alphabet. Empty if the text is anything else."""
    match = _ANSWERED_BY.fullmatch(folded(text_commands(text)).strip())
    if match is None:
        return ""
    letters = re.findall("[A-J]", re.sub(r"\band\b", "", match[1]))
    return "".join(letters) if letters == sorted(set(letters)) else ""


def right_choices(text: str, choices: Sequence[str]) -> tuple[int, ...] | None:
    """Choices that a reference names, in order; None if it, or a part of it, names none."""
    one = resolve_choice(text, choices)
    if one is not None:
        return (one,)
    items = quoted_list(text)
    if items is None:
        letters = letters_of(text) if len(text) > 1 else ""
        items = list(letters) or split_values(text)
    found = [resolve_choice(item, choices) for item in items]
    if len(items) < 2 or None in found:
        return None
    return tuple(sorted(set(found)))  # type: ignore[arg-type]


def required(text: str) -> Accepted:
    """The values that a reference wants, all of them: lines, or parts joined by "and" or
    commas, where each is a value of its own."""
    lines = [unwrap(line) for line in text.splitlines() if line.strip()]
    if len(lines) > 1:
        if any(len(line) > 80 for line in lines):
            return Accepted(text, (text,))
        numbers = all(re.fullmatch(r"[-+]?[\d.,/ ]+\D{0,12}", line) for line in lines)
        return Accepted(text, tuple(lines), ordered=numbers)
    parts = split_values(text)
    both = _BOTH_SIGNS.fullmatch(strip_math(parts[0])) if len(parts) == 1 else None
    if both is not None:
        return Accepted(text, (both[1], f"-{both[1]}"))
    return Accepted(text, tuple(parts))


def split_values(text: str) -> list[str]:
    """The parts of "14 and 25", "3, 4", "x = 1, y = 2", "red and blue"; [text] if it is
    one value: "1,250", "(3, 6)", a sentence."""
    text = text.strip()
    if len(text) > LONGEST_LIST:
        return [text]
    inner = strip_math(text)
    text = inner if "$" not in inner else text
    if date_of(text) is not None or _BETWEEN.fullmatch(text):
        return [text]
    parts = [p for piece in re.split(r"\n", text) for p in _parts(piece)]
    if len(parts) < 2 or not all(map(_is_value, parts)):
        return [text]
    return parts


def _parts(text: str) -> list[str]:
    """Split at "and", semicolons and commas outside of brackets; commas of thousands and
    of one sentence's clauses stay."""
    out, depth, at, i = [], 0, 0, 0
    while i < len(text):
        character = text[i]
        if character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
        if depth <= 0:
            match = _AND.match(text, i) or _COMMA.match(text, i)
            if match is None:
                match = _OR.match(text, i)
                if match is not None and not _numeric(text[at:i], text[match.end() :]):
                    match = None
            if match is not None and match.end() > i:
                out.append(text[at:i])
                at = i = match.end()
                continue
        i += 1
    out.append(text[at:])
    return [part.strip(" $.") if part.strip(" $.") else part for part in out]


_COMMA = re.compile(r"(?<!\d),\s*|,(?!\d{3}(?!\d))\s*|\s*[;\uff0c\uff1b]\s*")
_BOTH_SIGNS = re.compile(r"(?:\\pm|\u00b1)\s*([^\s\u00b1].*)")
_BETWEEN = re.compile(r"between\b.{1,40}\band\b.{1,40}", re.IGNORECASE)
_OR = re.compile(r"\s+or\s+|\s*或者?\s*|\s*\\text\{\s*(?:or|and)\s*\}\s*")


def _numeric(before: str, after: str) -> bool:
    """Whether "or" joins two numbers: both solve an equation. Of words, one is enough."""
    return bool(
        re.search(r"\d\W*$", before)
        and re.match(r"\W*(?:(?:\\text)?\b[A-Za-z]\s*=\W*)?\d", after)
    )


def _is_value(part: str) -> bool:
    """A short part of a list, not a clause of a sentence."""
    words = re.findall(r"[^\W\d_]{2,}", re.sub(r"\\[a-zA-Z]+", "", part))
    return bool(part.strip()) and len(words) <= 3 and len(part) <= 60
