"""Responses that judge every option: "A: wrong. B: right. C: wrong.", "A错误，B正确".

What is called right is the answer. Only a response in which each letter that it names is
judged is read so; true and false are no such words, for the question may ask for what is
false.
"""

from __future__ import annotations

import re

from ..samples.markup import folded
from .final import MARKDOWN, spoken_answer

_LABEL = re.compile(
    r"(?<![A-Za-z0-9\\$])(?:(?:[Oo]ptions?|[Cc]hoices?|[Ss]tatements?|选项)\s*)?"
    r"[(\[]?([A-J])[)\]]?"
    r"(?=\s*(?:选项|项|[:.)\u3001,&/(\-\u00d7\u221a\u2705\u2713\u2714\u2717\u2718\u274c]"
    r"|是|都|均|正确|错|不正确|不对|对|和|与|及"
    r"|(?i:is|are|was|isn't|and|or|correct|incorrect|wrong|right|not)\b|[.)]?$))"
)
_JOINED = re.compile(
    r"(?:选项|项)?(?:[\s,&/\u3001]|\band\b|\bor\b|和|与|及)*(?:(?:[Oo]ptions?|选项)\s*)?"
)
_VERDICT = (
    r"(?:(?:is|are|was|isn't|是|都|均|all|both|clearly|definitely|also|therefore)\s*)*"
    r"(?:(?P<wrong>(?<=isn't )(?:correct|right)\b|not\s+(?:correct|right)\b"
    r"|incorrect\b|wrong\b|错误?的?|不正确|不对|[\u00d7\u2717\u2718\u274c])"
    r"|(?P<right>correct\b|right\b|正确的?|对的?|[\u221a\u2705\u2713\u2714]))"
    r"(?=\W*(?:$|[.,;!)\n]|because\b|since\b|as\b|and\b|but\b|while\b|因为|由于))"
)
_AT_ONCE = re.compile(
    rf"\s*(?:(?:选项|项)\s*)?(?P<sign>[:.)\u3001-]*)\s*{_VERDICT}", re.IGNORECASE
)
_BEHIND_TEXT = re.compile(
    rf"(?P<sign>[.):\s])(?:[^.;:\n]|[.:](?=\S)){{1,80}}?[-:,(\s]\s*{_VERDICT}",
    re.IGNORECASE,
)
_OPTIONS_THEMSELVES = ".)\u3001"  # "A. Correct B. Incorrect" may be the options


def judged_right(text: str) -> str | None:
    """The letters that a response calls right, in order; None where it judges fewer than
    two options, calls none right, or says something else to be its answer."""
    said = folded(MARKDOWN.sub("", text)).strip()
    labels = list(_LABEL.finditer(said))
    if len(labels) < 2 or spoken_answer(text):
        return None
    ends = [*(label.start() for label in labels[1:]), len(said)]
    found: dict[str, bool] = {}
    waiting: list[str] = []
    bare = True
    for label, end in zip(labels, ends, strict=True):
        waiting.append(label[1])
        body = said[label.end() : end]
        if end < len(said) and _JOINED.fullmatch(body):
            continue
        verdict = _AT_ONCE.match(body) or _BEHIND_TEXT.match(body)
        if verdict is None or not found.keys().isdisjoint(waiting):
            return None
        at_end = not body[verdict.end() :].strip(" .,;!\n")
        bare = bare and at_end and verdict["sign"] in tuple(_OPTIONS_THEMSELVES)
        found |= dict.fromkeys(waiting, verdict["right"] is not None)
        waiting = []
    if waiting or len(found) < 2 or (bare and len(found) == 2):
        return None
    return "".join(sorted(letter for letter, right in found.items() if right)) or None
