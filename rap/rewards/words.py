"""Words as answers: "Blue", "Yes", "蓝色", and sentences that give them.

A sentence gives a word where it says it, at its beginning or its end, and neither denies
it ("not blue", "I see no cat") nor asks ("Blue?") nor offers another ("blue or green", "a
cat, a dog").
"""

from __future__ import annotations

import re

from ..samples.markup import folded
from .hedges import asked, doubted, guessed_twice, missing, one_of_list

PLACES = 5  # so many of the last places where a word stands are looked at
_SPELLINGS = {
    "colour": "color",
    "grey": "gray",
    "metre": "meter",
    "centre": "center",
    "litre": "liter",
    "favourite": "favorite",
    "neighbour": "neighbor",
    "aeroplane": "airplane",
    "&": "and",
}
_YES = "yes yeah yep 是 是的 对 对的".split()
_NO = "no nope 否 不 不是 不对".split()
_FUNCTION = (
    "is are was were be been it's its that's he's she's they're the a an to by as from in "
    "at on of with for called named say said choose pick select answer : = , - like shows "
    "show see have has into yes no because so this that"
).split()
_FUNCTION_CJK = "是为叫选有在到于成答:,=.;! "
# what Chinese has for "a": 一只猫
_MEASURED = re.compile(r"一[只个条张把辆匹头座棵朵本台架艘件双块片位名种幅栋颗根]$")
_DOING = re.compile(r"(?:\b(?:is|are|was|were)|'(?:s|re))\s+(?:\w+ly\s+)?\w+ing\s+$")
_NOT_BUT = re.compile(r"\bnot\b[^.;]{1,80}\bbut\s+$")
_AFTER = (
    "because since as so in on at for with of from due which when while where that and "
    "therefore hence not rather instead color colour one ones"
).split()
_DENIAL = re.compile(
    r"(?:\b(?:not|never|neither|nor|isn't|aren't|wasn't|weren't|don't|doesn't|can't|cannot"
    r"|no|except|without|no longer|rather than|instead of|(?<!none )other than|unlike)"
    r"(?:\s+(?:really|the|a|an|be|in|at|on|to|of|exactly|actually|go|with|choose|pick|select))*\s*|不是?|并非|非|没有?)\s*$",
    re.IGNORECASE,
)
_WRONG_AFTER = re.compile(
    r"(?:\s+(?:ones?|options?|choices?|answers?)\b)?"
    r"(?:[)\]\"'*]*\s*[.:]?\s*(?:,?\s*(?:which|that)\s+)?"
    r"(?:is|are|was|would be|seems|looks)\s+"
    r"(?:definitely |clearly |also |probably )?"
    r"(?:not\b|n't|incorrect|wrong|false|impossible|ruled out|out\b)|\s*(?:isn't|wasn't)\b"
    r"|\s*(?:选项|项)?(?:是错|不对|不正确|错误)"
    r"|[)\]\"'*]*\s*(?::|--?|\u2014)\s*(?-i:incorrect|wrong|not\s+(?:correct|right))\b"
    r"(?=\W*(?:$|[.,;!\n]|because\b|since\b|as\b)))",
    re.IGNORECASE,
)
_REFUSED = re.compile(
    r"\b(?:(?:is|was|are|would\s+be|seems)\s+(?:not\s+(?:correct|right|it|the\s+answer)"
    r"|wrong|incorrect)|(?:isn't|wasn't)\s+(?:correct|right|it|the\s+answer))\W*$"
    r"|[:-]\s*(?:wrong|incorrect|not\s+(?:correct|right))\W*$"
    r"|(?:是错误?的?|错误|不对|不正确)\W*$",
    re.IGNORECASE,
)
_CORRECTION = re.compile(
    r"\b(?:wait|actually|however|but|correction|instead|sorry|mistake|no,)|不对|但|等等",
    re.IGNORECASE,
)


def normal(text: str) -> str:
    """Text for comparing: case, articles in front, punctuation at the ends, hyphens and
    British spelling ignored."""
    text = folded(text).casefold().strip("* ")
    if re.search(r"[a-z]{3}", text) and not re.search(r"[\d=+*/^\\]", text):
        text = re.sub(r"(?<=[a-z])-(?=[a-z])|_", " ", text)
    text = " ".join(text.split())
    text = re.sub(r"(?<=[^\W\d])\s*[.,;:!?]+(?=\s|$)", lambda m: m[0].strip(), text)
    text = text.lstrip("\"'` ").rstrip(".,;: ")
    if re.search(r"[^\W\d_]{2}[\"'`.!?]+$", text):  # not n! or f'
        text = text.rstrip("\"'`.!?,;: ")
    text = re.sub(r"^(?:the|an?)\s+(?=\S\S)", "", text)
    return re.sub(r"[a-z&]+", lambda m: _spelled(m[0]), text)


def _spelled(word: str) -> str:
    for british, american in _SPELLINGS.items():
        if word.startswith(british):
            return american + word[len(british) :]
    return word


def same_text(reference: str, final: str) -> bool:
    """Whether two texts are the same words."""
    a, b = normal(reference), normal(final)
    if not a or not b:
        return False
    colours = re.fullmatch(r"[\u3400-\u9fff]{2,3}", max(a, b, key=len))
    if colours and a.removesuffix("色") == b.removesuffix("色"):
        return True
    a, b = (re.sub(r"(?<!\d)\.(?!\d)|(?<!\d)[,;:](?=\s)", "", x) for x in (a, b))
    if not a or not b:
        return False
    return a == b or len(a) > 3 and _closed_up(a) == _closed_up(b)


def _closed_up(text: str) -> str:
    """Without spaces, but for those between two digits."""
    return re.sub(r"(?<!\d)\s|\s(?!\d)", "", text)


def denied(text: str, start: int, end: int) -> bool:
    """Whether what stands at ``start`` to ``end`` is said not to be it."""
    before = text[:start].rstrip("([\"'* ") + " "
    return bool(_DENIAL.search(before)) or bool(_WRONG_AFTER.match(text, end))


def refused(final: str) -> bool:
    """Whether an answer ends with saying that it is none: "12 is not correct"."""
    return bool(_REFUSED.search(final))


_TAKEN_BACK = re.compile(
    r"(?:\bwait\b|\bactually\b|\bsorry\b|\bcorrection\b|\bi mean\b|\bno,|等等|更正)"
    r"[\s,.:!\u2026-]*(?:(?:it|that|this|i|the answer|should|be|is|was|mean|meant|'s)\b"
    r"[\s,.:]*)*",
    re.IGNORECASE,
)


def after_correction(line: str) -> str:
    """What a line says after it has taken back what stands before: "7" of "8. Wait, it is
    7"; "" where it takes nothing back."""
    found = list(_TAKEN_BACK.finditer(line))
    return line[found[-1].end() :].strip() if found and found[-1].start() else ""


def corrected(text: str) -> bool:
    """Whether a text takes back what was said before it."""
    return bool(_CORRECTION.search(text))


def polarity(text: str) -> bool | None:
    """True for "yes" and its kind, False for "no", None for anything else."""
    word = normal(text)
    return True if word in _YES else False if word in _NO else None


def says_polarity(text: str) -> bool | None:
    """What a sentence answers: its first word, where it is yes or no and a clause of its
    own, else its last. None if neither, or both."""
    said = normal(text)
    settled = polarity(after_correction(said))
    if settled is not None:
        return settled
    said = re.sub(r"^(?:yes|no)\?\s*(?=(?:yes|no)\b)", "", said)  # "Yes? No."
    first = re.match(r"(yes|yeah|yep|no|nope)\b(?!\s+(?:one|way|idea|more|longer)\b)", said)
    last = re.search(r"\b(?:is|be|say|answer|:)\s*:?\s*(yes|no)$", said)
    if first is not None:
        word = first[1].startswith("y")
        rest = said[first.end() :].strip()
        both = re.match(r"(?:,\s*|and\s+|or\s+|/\s*)+(?:yes|no)\b(?!\s*(?:,|one))", rest)
        return None if both and not rest.startswith(",") else word
    if last is not None:
        return None if doubted(said[: last.start()]) else last[1] == "yes"
    answered = {m[1] for m in re.finditer(r"\?\s*(yes|no)\b", said)}
    if len(answered) == 1:
        return answered == {"yes"}
    chinese = re.match(
        r"(不是|不对|否|不|是的|对的|是|对)(?=[,.!;\s]|$)",
        said,
    )
    if chinese is not None:
        return chinese[1] not in _NO
    return None


def gives(sentence: str, word: str) -> bool:
    """Whether a sentence gives ``word`` as what it says."""
    said, wanted = normal(sentence), normal(word)
    if not wanted or len(wanted) > len(said):
        return False
    places = _places(said, wanted)[-PLACES:]
    found = [at for at in places if _stands_alone(said, at, wanted)]
    if not found:
        return False
    at, end = found[-1], found[-1] + len(wanted)
    if denied(said, at, end) or missing(said, at) or guessed_twice(said, at):
        return False
    return not asked(sentence, said[end:]) and not _CORRECTION.search(said[at:])


def _places(said: str, wanted: str) -> list[int]:
    out, at = [], said.find(wanted)
    while at >= 0:
        out.append(at)
        at = said.find(wanted, at + 1)
    return out


_AFTER_COMMA = re.compile(r"\w\s*,\s*(?:(?:an?|the|some)\s+)?$")
_LEAD = re.compile(
    r"\W*(?:so|thus|hence|therefore|yes|no|well|in|on|from|as|because|since|looking|based"
    r"|given|if|when|after|with|without|by|here|finally|overall|not|clearly|actually"
    r"|certainly|definitely|undoubtedly|obviously|probably)\b"
)
_GOES_ON = re.compile(
    r"\s*and\s+(?:(?:not|no|it|this|so|there|that)\b"
    r"|the\s+(?:[\w'-]+\s+){1,3}(?:is|are|was|were|has|have|does|do|can|shows?|lies)\b)"
)


def _stands_alone(said: str, at: int, wanted: str) -> bool:
    """At the beginning or after "is", "the", ...; then the end, or a word like
    "because"."""
    before, after = said[max(at - 200, 0) : at], said[at + len(wanted) :][:200]
    if re.match(r"[\u3400-\u9fff]", wanted):
        before = _MEASURED.sub("", before)
        ok = not before or before[-1] in _FUNCTION_CJK
        return ok and bool(re.match(r"(?:色|的|了|吗)?(?:$|[,.;!]|因为|而)", after))
    if (before and before[-1].isalnum()) or (after and after[0].isalnum()):
        return False
    if one_of_list(before, after):
        return False
    last = re.findall(r"[\w']+|[^\w\s]", before)[-1:]
    function = not last or last[0] in (*_FUNCTION, '"', "'", "(", "*", ".", "!")
    if not function and not (_DOING.search(before) or _NOT_BUT.search(before)):
        return False
    if (listed := _AFTER_COMMA.search(before)) is not None:
        lead = re.split(r"[.!?;]\s", before[: listed.start() + 1])[-1]
        if not _LEAD.match(lead):
            return False
    follow = re.match(r"[\s\"')*]*([,.;:!?-]|[\w']+)?", after)
    word = follow[1] if follow is not None else None
    if word is None:
        return True
    if word in ",.;:!?-":
        rest = re.sub(r"^[\W_]+", "", after)
        if word == "," and _GOES_ON.match(" " + rest):
            return True
        return not re.match(r"(?:or|and)\b", rest)
    if word == "and":
        return bool(_GOES_ON.match(after))
    return word in _AFTER
