"""What a response says beside its answer, taken away before the answer is looked for.

Courtesy ("You are right, it's left"), a closing question ("..., right?"), options that are
ruled out first ("B is wrong. A"), the options said over before one is taken ("(a) red
(b) blue. It's blue"), tags that were left open or mistyped. What stays says the answer; a
response that is nothing but such words stays as it is, or says nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

from ..samples.choices import letter, plain
from ..samples.markup import element, folded, stray_end

_START = r"(?:^|(?<=[.!?\n\u3002\uff01])[^\S\n]*)"
_COURTESY = re.compile(
    _START + r"(?:(?:oh|ok|okay|yes|ah|well|hmm|indeed)\b[,.! ]\s*)?"
    r"(?:(?:you(?:'re|\u2019re|\s+are)|that(?:'s|\u2019s|\s+is)|if\s+i(?:'m|\s+am)|all)\s+"
    r"(?:absolutely\s+|completely\s+|quite\s+|totally\s+|entirely\s+)?(?:right|correct)"
    r"|right\s+you\s+are|(?:there\s+is\s+|without\s+|with\s+)?no\s+(?:doubt|problem"
    r"|worries|question)(?:\s+about\s+(?:it|that))?)\s*(?:[,.:;!-]+|\bthat\b)\s*(?=\S)"
    r"|" + _START + r"(?:[你您](?:说|讲|问)得?(?:很|非常|完全)?对|没错|没问题|毫无疑问)"
    r"[,.:!\uff0c\u3002\uff01\uff1a]\s*(?=\S)",
    re.IGNORECASE,
)
_TAG_QUESTION = re.compile(
    r"(?<=\w)(?:,\s*no|[\s,\uff0c]+"
    r"(?:right|correct|ok|okay|eh|isn't it|对吗|对吧|是吗|对不对))"
    r"\s*[?\uff1f]+",
    re.IGNORECASE,
)
_RIGHT_SIDE = re.compile(
    r"\bright(?=[ -]+(?:angled?|triangles?|prisms?|pyramids?|away|now|here|there|before"
    r"|after|answer|choice|option|one is)\b)",
    re.IGNORECASE,
)
_PRONOUN_ONE = re.compile(
    r"\b(?:this|that|the|which|each|every|no|any|other|first|last|second|third|left|right"
    r"|top|bottom|correct|wrong)\s+one\b",
    re.IGNORECASE,
)
_JSON_ANSWER = re.compile(
    r"\{[^{}]*\"(?:final[_ ]?)?answer\"\s*:\s*(?:\"([^\"{}]*)\"|([^\s\",{}]+))[^{}]*\}",
    re.IGNORECASE,
)


def without_courtesy(text: str) -> str:
    """A response without what only keeps a conversation going, and with its answer tags
    as they were meant."""
    text = _JSON_ANSWER.sub(_as_element, text)
    if element(text) is None:
        text = stray_end(text)
    text = _TAG_QUESTION.sub(_without_question, text)
    return _COURTESY.sub(_kept_break, text)


def _as_element(match: re.Match[str]) -> str:
    return f"<answer>{match[1] if match[1] is not None else match[2]}</answer>"


def _without_question(match: re.Match[str]) -> str:
    """ "It is left, right?" ends with a question, "Left, right?" offers two answers."""
    before = match.string[: match.start()]
    sentence = re.split(r"[.!?\n\u3002]", before)[-1]
    words = len(re.findall(r"[A-Za-z]+|[\u3400-\u9fff]", sentence))
    return "." if words > 1 else match[0]


def _kept_break(match: re.Match[str]) -> str:
    return "\n" if "\n" in match[0] else ""


_DENIED_CLAIM = re.compile(
    r"(?:^|(?<=[.!?\n;]))[ \t]{0,4}[^.!?\n;]{1,80}[?\uff1f]\W{0,3}\s*"
    r"(?:no|nope|not\s+(?:really|at\s+all|quite)|不是?|不对|否)(?=[\s.,;:!\u3002\uff0c]|$)"
    r"[.,;:!\u3002\uff0c\s]*"
    r"|(?:^|(?<=[.!?\n;]))[ \t]{0,4}(?:and\s+|but\s+|so\s+)?(?:it(?:'s|\s+is)\s+not\s+"
    r"(?:true|the\s+case|clear|certain)|i(?:'m|\s+am)\s+not\s+(?:sure|certain)"
    r"|i\s+(?:do\s+not|don't)\s+(?:think|believe)|i\s+doubt)\b"
    r"(?:\s+(?:that|if|whether)\b)?(?:(?!\bbut\b)[^.,;!?\n])*(?:[.,;!?\n]|\bbut\b|$)\s*(?:but\b\s*)?",
    re.IGNORECASE,
)


def without_denied(text: str) -> str:
    """A response without what it asks and denies ("Blue? No. Green."), and without claims
    that it doubts ("I don't think it is a cat."); "" where it says nothing else."""
    return _DENIED_CLAIM.sub(_kept_break, text).strip()


# ---------------------------------------------------------------- options ruled out

_ONE = r"[(\[]?[A-J][)\]]?"
_LETTERS = rf"{_ONE}(?:\s*(?:,\s*(?:and\s+)?|/|&|\u3001|\band\b|\bor\b|和|与)\s*{_ONE})*"
_WRONG = (
    r"(?:(?:is|are|was|were)\s+(?:both\s+|all\s+|clearly\s+|definitely\s+|also\s+)?"
    r"(?:not\s+(?:correct|right|it|possible|the\s+(?:answer|one))|wrong|incorrect|false"
    r"|impossible|out|ruled\s+out|eliminated|too\s+\w+)"
    r"|(?:isn't|aren't|cannot\s+be|can't\s+be)\s+(?:correct|right|it|true))"
)
_CALLED_WRONG = (
    r"\s*(?::|-+)\s*(?:not\s+(?:correct|right)|wrong|incorrect|错误?|不对|不正确)"
)
_RULED_OUT = re.compile(
    r"\W{0,3}(?:(?:so|but|and|now|first|then|clearly|thus|well)\b,?\s*)?"
    rf"(?:(?:(?i:options?|choices?|answers?)\s+)?{_LETTERS}(?:[.:]?\s+{_WRONG}|{_CALLED_WRONG})"
    rf"|(?i:it\s+is\s+|it's\s+|that\s+is\s+)?(?i:not)\s+(?:(?i:option|choice)\s+)?{_LETTERS}"
    rf"|(?i:neither)\s+{_ONE}\s+(?i:nor)\s+{_ONE}"
    rf"|(?i:(?:i|we)\s+)?(?i:rule\s+out|exclude|eliminate)\s+{_LETTERS}"
    rf"|(?:选项)?{_LETTERS}\s*(?:选项|项)?\s*(?:都|均|是)*(?:不对|错误|错的?|不正确|不是|不符合)"
    rf"|(?:排除|不选|不是)\s*(?:选项)?\s*{_LETTERS})"
    r"(?:\s+(?i:because|since|as|for)\b[^.!?;\u3002A-Z]{0,200})?"
    r"\s*(?:[.,;:!\u3002\uff0c\uff1b\uff01]+|\s-+\s)\s*(?=\S)"
)
OPTIONS_RULED_OUT = 26  # a sentence for each, at most


def without_ruled_out(text: str) -> str:
    """A final answer without the letters that it rules out at its beginning: "A" of "B is
    wrong. A"."""
    for _ in range(OPTIONS_RULED_OUT):
        match = _RULED_OUT.match(text)
        if match is None:
            return text
        text = text[match.end() :]
    return text


# ------------------------------------------------------------- options said over

_AND = r"(?:[\s,;.|/&*\uff0c\uff1b\u3002\u3001-]|\band\b|\bor\b|和|或者?|还是)*"
_LISTED = r"(?:[\s,;/\uff0c\uff1b\u3001]|\band\b|\bor\b|和|或者?|还是)+"
_NO_WORD = r"(?![^\W_])(?!\s*[-+*/^=]\s*\w)"
LONGEST_OPTIONS = 4000  # characters of all options that are looked for in a response


def without_options(text: str, choices: Sequence[str]) -> str:
    """A response without the places where it says over what the options are: two or more
    of them from A on, each with its label, or the texts of all. ``choices``: without
    labels."""
    if sum(map(len, choices)) > LONGEST_OPTIONS or not all(map(plain, choices)):
        return text
    labelled, bare = _said_over(tuple(choices))
    text = labelled.sub(_gone, folded(text))
    return bare.sub(_gone, text) if bare is not None else text


def _gone(match: re.Match[str]) -> str:
    return "\n" if "\n" in match[0] else " "


@lru_cache(maxsize=256)
def _said_over(choices: tuple[str, ...]) -> tuple[re.Pattern[str], re.Pattern[str] | None]:
    """(the options with labels, from A on; all of them without, or None where they are
    too short for that)."""
    texts = [r"[\s$]*".join(map(re.escape, plain(choice).split())) for choice in choices]
    items = [
        rf"[(\[]?\s*{letter(k)}\s*[)\].:\u3001-]+\s*\$*\s*{text}\s*\$*"
        for k, text in enumerate(texts)
    ]
    more = ""
    for item in reversed(items[2:]):
        more = rf"(?:{_AND}{item}{more})?"
    pattern = rf"(?<![A-Za-z0-9]){items[0]}{_AND}{items[1]}{more}{_NO_WORD}"
    labelled = re.compile(pattern + r"[\s,;.:|*?\u3002]*", re.IGNORECASE)
    words = [plain(choice) for choice in choices]
    if len(choices) < 2 or not all(re.search(r"\w\w|[\u3400-\u9fff]", w) for w in words):
        return labelled, None
    whole = rf"(?<![^\W_]){_LISTED.join(texts)}{_NO_WORD}[\s,;.:|*?\u3002]*(?=\S)"
    return labelled, re.compile(whole, re.IGNORECASE)


_LABELLED_LINE = re.compile(r"\W{0,3}([A-J])\s*[)\].:\u3001\uff0e\uff1a]\s*\S")


def without_listed(text: str) -> str:
    """A response to an open question without the lines, labelled A, B, ... in order, that
    say over its options, where another line follows that is not the next of them."""
    lines = [line for line in text.splitlines() if line.strip()]
    labels = [m[1] if (m := _LABELLED_LINE.match(folded(x))) else "" for x in lines]
    for start, first in enumerate(labels):
        if first != "A":
            continue
        end = start + 1
        while end < len(lines) and labels[end] == letter(end - start):
            end += 1
        after = folded(lines[end]).strip("(). ") if end < len(lines) else ""
        if end - start > 1 and after and after != letter(end - start):
            return "\n".join([*lines[:start], *lines[end:]])
    return text


def without_other_senses(text: str, choices: Sequence[str]) -> str:
    """A response, in small letters, without words of choices in another sense: "right
    triangle" where one choice is left and one right, "this one" where one is a number."""
    words = {plain(choice) for choice in choices}
    if {"left", "right"} <= words:
        text = _RIGHT_SIDE.sub(lambda match: "\u00b7" * len(match[0]), text)
    if "one" in words:
        text = _PRONOUN_ONE.sub(lambda match: "\u00b7" * len(match[0]), text)
    return text
