"""The final answer in a response: where it is marked, the last line that says something,
the values of a list. Part of ``grading``; linear in the length of the text."""

from __future__ import annotations

import re

from ..samples.answers import joined_boxes, split_values
from ..samples.markup import boxes, element, folded, spoken
from .mathematics import bracketed, plain_latex
from .numbers import digits_for_words, ordinal_as_number, quantity
from .words import after_correction, polarity

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
MARKDOWN = re.compile(r"\*\*|__|`+")


def final_answer(text: str) -> tuple[str, bool]:
    """The final answer in a response, and whether it was marked as one: the first of
    ``marked_answers``, else the last line."""
    marked = marked_answers(text)
    if marked:
        return marked[0], True
    lines = lines_of(text)
    return (lines[-1] if lines else ""), False


def marked_answers(text: str) -> list[str]:
    """What a response marks as its answer, best first: the last ``<answer>`` element, the
    last ``\\boxed{}`` (with those it is joined to by "and"), what follows the last
    ``####``, what follows the last "the answer is" or "answer:", the last letter that "is
    the correct option". What stands before ``</think>`` does not count."""
    text = _spoken(text)
    marked = _said_to_be_it(text)
    right_one = _RIGHT_ONE.findall(MARKDOWN.sub("", text))[-1:]
    marked += ["".join(groups) for groups in right_one]
    bold = "" if marked else _in_bold(text)
    return marked or ([bold] if bold else [])


def spoken_answer(text: str) -> str:
    """The best of ``marked_answers`` that is said to be the answer, not only called right;
    "" if there is none."""
    return next(iter(_said_to_be_it(_spoken(text))), "")


def _said_to_be_it(text: str) -> list[str]:
    found = element(text)
    inside = found[1] if found is not None else ""
    inside, boxed = _boxed(inside) or inside, _boxed(text)
    text = MARKDOWN.sub("", text)
    hashes = _first_line(text.rpartition("####")[2]) if "####" in text else ""
    return [x for x in (inside, boxed, hashes, after_cue(text)) if x]


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


def lines_of(text: str) -> list[str]:
    """Lines that say something; the politeness that ends a chat does not."""
    spoken_text = MARKDOWN.sub("", _spoken(text))
    lines = [line.strip() for line in spoken_text.splitlines() if line.strip()]
    while len(lines) > 1 and _GOODBYE.search(lines[-1]):
        lines.pop()
    return lines


_DOUBTED = re.compile(
    r"(?:\bnot\s+(?:true|sure|clear|certain|the\s+case)|(?:\bnot|n't)\s+(?:think|believe|say)"
    r"|\bdoubt)\s+(?:(?:that|if|whether)\s+)?(?:(?:the|my|this|correct|right|final)\s+)*$",
    re.IGNORECASE,
)
_TAKEN_BACK = re.compile(r"\s*[.!?,;]\s*(?:no|sorry|correction)[.,:!]\s*(?=\S)", re.I)


def after_cue(text: str, whole: bool = False) -> str:
    """What follows the last cue: its first sentence, or all of it."""
    for match in list(_CUE.finditer(text))[: -1 - CUES : -1]:
        if _DOUBTED.search(text[max(match.start() - 60, 0) : match.start()]):
            continue
        after = text[match.end() :].strip(" \t\r\n:=\uff1a")
        line = _first_line(after)
        if line and not re.match(r"not\b|n't|不", line, re.IGNORECASE):
            if whole:
                return after
            settled = after_correction(line)
            if _short_answer(settled):
                return settled
            first = _first_sentence(line)
            other = _TAKEN_BACK.match(line, len(first))
            return _first_sentence(line[other.end() :]) if other is not None else first
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


def parts_of(text: str) -> list[str]:
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


def tidy(text: str) -> str:
    """Spellings that mean nothing taken away: LaTeX spacing and text commands, full-width
    characters, markdown."""
    text = plain_latex(folded(MARKDOWN.sub("", text)))
    text = re.sub(r"\b([ap])\.\s?m\b\.?", r"\1m", text, flags=re.IGNORECASE).strip()
    return ordinal_as_number(text)
