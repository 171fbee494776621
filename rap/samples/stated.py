"""Options that stand inside the question's text: "... Choices: (A) red (B) blue".

Whether a data set states its options so is decided for the column as a whole (``Stated``):
of the rows in whose questions options are found, nearly all must have an answer that is one
of them, by letter or by text. Then a letter is matched with its text when a response is
graded, and the other way round; what a model is asked stays as it is. A question may state
what a column of choices has, too, as a trainer's rows do: ``prompt_text`` lists them once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from .answers import right_choices
from .choices import letter, plain, unlabelled
from .markup import folded
from .prompts import strip_image_tags

MOST_OPTIONS = 10
LONGEST_OPTION = 300
FITTING = 0.9
"""So many of the rows with options must have an answer among them."""
RARE = 0.05
"""Options in fewer of the rows are no trait of the data set."""

_LABELS = (
    r"[(\[]\s*([A-Ja-j])\s*[)\]]",  # (A) red
    r"([A-Ja-j])\s*[)\]]",  # A) red
    r"([A-J])\s*\.",  # A. red
    r"([A-J])\s*:",  # A: red
    r"([A-J])\s*[\u3001]",
)
_STYLES = tuple(re.compile(rf"(?<![A-Za-z0-9_$\\(\[]){label}\s*") for label in _LABELS)
_INSTRUCTION = re.compile(
    r"[.;,\u3002]?\s*(?:\n|\b(?:please|answer|choose|select|hint|provide|give|respond|think)\b"
    r"|请|从中|选出)",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Stated:
    """Rows that were looked at, those with options in their question, and those of them
    whose answer is one."""

    looked_at: int = 0
    found: int = 0
    fitting: int = 0

    def as_list(self) -> list[int]:
        """As JSON."""
        return [self.looked_at, self.found, self.fitting]

    def __bool__(self) -> bool:
        """Whether the data set states its options in the questions."""
        often = self.found > RARE * self.looked_at
        return often and self.fitting >= FITTING * self.found


def stated_in(rows: Iterable[tuple[str, str]]) -> Stated:
    """What (question, answer) of some rows say."""
    looked_at = found = fitting = 0
    for question, answer in rows:
        looked_at += 1
        options = options_in(question)
        found += bool(options)
        fitting += bool(options) and is_one_of(answer, options)
    return Stated(looked_at, found, fitting)


def is_one_of(answer: str, options: Sequence[str]) -> bool:
    """Whether the reference names one of the options, or several."""
    return right_choices(answer, options) is not None


def prompt_text(template: str, question: str, choices: Sequence[str]) -> str:
    """``ScoreConfig.prompt_template`` filled in: what a model is asked. Choices that the
    question itself states, under the same letters, are not listed again."""
    there = bool(choices) and _states(question, choices)
    each = () if there else choices
    lines = "".join(f"\n({letter(i)}) {choice}" for i, choice in enumerate(each))
    values = {"{question}": question, "{choices}": lines}
    # In one pass: a question may hold braces, and the template \boxed{}.
    return re.sub(r"\{question\}|\{choices\}", lambda match: values[match[0]], template)


def _states(question: str, choices: Sequence[str]) -> bool:
    """Whether the options in the question are these choices, in this order."""
    stated = options_in(question)
    if len(stated) != len(choices):
        return False
    try:
        options = unlabelled(choices)[0]
    except ValueError:
        options = tuple(choices)
    return [*map(plain, stated)] == [*map(plain, options)]


def options_in(question: str) -> tuple[str, ...]:
    """The last options that stand in a question, labelled A, B, ... in one style, without
    their labels; () if there are not at least two, or one is empty or there twice."""
    text = folded(question)
    found = [options for style in _STYLES for options in _runs(text, style)]
    return max(found, key=lambda run: run[0], default=(0, ()))[1]


def _runs(text: str, style: re.Pattern[str]) -> Iterator[tuple[int, tuple[str, ...]]]:
    """(where it begins, options) of each run of labels A, B, ..."""
    labels = list(style.finditer(text))
    for at, first in enumerate(labels):
        if first[1].upper() != "A":
            continue
        run = [first]
        for following in labels[at + 1 :]:
            if following[1].upper() == letter(len(run)):
                run.append(following)
            elif following[1] == first[1]:
                break
        runs = (run[:n] for n in range(len(run), 1, -1))  # "B. Only C." ends with no label
        options = next(filter(None, (_between(text, part) for part in runs)), ())
        if options:
            yield first.start(), options


def _between(text: str, run: Sequence[re.Match[str]]) -> tuple[str, ...]:
    ends = [match.start() for match in run[1:]]
    parts = [text[m.end() : end] for m, end in zip(run, ends, strict=False)]
    last = text[run[-1].end() :]
    cut = _INSTRUCTION.search(last)
    parts.append(last if cut is None else last[: cut.start()])
    options = [strip_image_tags(" ".join(part.split()).strip(" ,;"))[0] for part in parts]
    names = {plain(option) for option in options}
    usable = 2 <= len(options) <= MOST_OPTIONS and len(names) == len(options)
    short = max(map(len, options)) <= LONGEST_OPTION
    return tuple(options) if usable and short and "" not in names else ()
