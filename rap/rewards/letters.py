"""Letters as answers: which option, or which set of them, does a response say?"""

from __future__ import annotations

import re

from ..samples.answers import letters_of
from ..samples.markup import folded, text_commands
from .asides import without_ruled_out
from .words import denied

CLAUSE = re.compile(r"\b(?:are|is|be)\b|(?<!\d):|:(?!\d)")

_SAID_LETTER = re.compile(
    r"(?:^|\b(?:option|choice|answer|choose|pick|select|is|be|are|to|with|for|so|thus|hence"
    r"|therefore|i(?:'d|\s+would)?\s+(?:say|guess))\b,?|'s|:|选项?|是|为)\s*"
    r"(?:(?:is|option|choice|letter)\s+)?[(\[]?([A-J])(?:[)\]]|(?![\w'])(?=\s*(?:[.,:;!]|$)))",
    re.IGNORECASE,
)
_LEFT = re.compile(
    r"\b(?i:leaves|leaving)\s+(?i:us\s+with\s+|only\s+|option\s+|choice\s+)*\(?([A-J])\)?"
    r"(?=\s*(?:[.,;!]|$|as\b|because\b))(?!\s*[,/]?\s*(?:and|or)\b)"
)
_CHINESE_OPTION = re.compile(r"(?<![A-Za-z])([A-J])\s*(?:选项|项)")


def letters_in_any_order(text: str) -> str:
    """As ``letters_of``: a response may give a set of letters in any order."""
    letters = re.findall("[A-J]", text)
    if len(letters) > 1 and len(set(letters)) == len(letters):
        if re.fullmatch(_LETTER_LIST, text.strip()):
            return "".join(sorted(letters))
    return letters_of(text)


_LETTER_LIST = (
    r"[(\[]?[A-J][)\]]?"
    r"(?:(?:\s*[,;/&\u3001]\s*|\s+and\s+|\s*和\s*|\s*)[(\[]?[A-J][)\]]?)*\.?"
)


def letters_said(final: str) -> str:
    """The letter, or the set of letters, that a final answer to an open question names:
    "C", "(C)", "Option C", "C. a tower", "C: 140", "A, C and D"; "" if it names none."""
    text = " ".join(folded(text_commands(final)).replace("$", " ").split()).strip("*\"' ")
    text = without_ruled_out(text)
    whole = letters_in_any_order(text.upper() if len(text) == 1 else text)
    if whole:
        return whole
    labels = [
        m[1]
        for part in re.split(r"[,;\n]|\band\b", text)
        if (m := re.match(r"\s*[(\[]?([A-J])[)\].:]\s*\S", part))
    ]
    match = re.match(
        r"(?:the\s+)?(?:correct\s+)?(?:option|choice|answer|选项|选)?\s*(?:is\s+)?"
        r"[(\[]?([A-J])(?:[)\]]?\s*[).:\u3001]|[)\]]|\s+-|,|\s*(?=\()"
        r"|\s+(?=(?:because|since|as|which|rather|not|instead)\b))\s*(.*)",
        text,
        re.IGNORECASE,
    ) or re.match(r"(?:option|choice)\s+([A-J])\s+(.*)", text, re.IGNORECASE)
    if match is not None and not match[1].islower():
        rest = match[2]
        several = re.match(
            r"(?:(?:and|or|&|,|/)\s*)*[(\[]?(?:[A-Jb-j]|a(?=\s*(?:,|$)))[)\]]?(?![\w'])",
            rest,
        )
        if several is None and not re.match(r"(?:and|or)\b", rest):
            if denied(text, match.start(1), match.end(1)):
                return ""
            return "".join(sorted(set(labels))) if len(set(labels)) > 1 else match[1]
        return letters_in_any_order(text.rstrip("."))
    if (left := _LEFT.search(text)) is not None:
        return left[1]
    clause = re.split(r"\b(?:choose|pick|select)\b", CLAUSE.split(text)[-1])[-1]
    tail = letters_in_any_order(clause.strip())
    if len(tail) > 1:
        return tail
    found = {
        m[1]
        for pattern in (_SAID_LETTER, _CHINESE_OPTION, re.compile(r"\(([A-J])\)"))
        for m in pattern.finditer(text)
        if not m[1].islower()
        and not denied(text, m.start(1), m.end(1))
        and not denied(text, m.start(), m.end(1))
    }
    hedged = re.search(r"\b[A-J]\)?\s*(?:or|and|/|,)\s*\(?[A-J]\b", text)
    return found.pop() if len(found) == 1 and not hedged else ""
