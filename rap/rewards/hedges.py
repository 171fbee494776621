"""Responses that say an answer and do not give it: they deny it ("There is no cat"), ask
("Blue?"), list others beside it ("a cat, a dog or a bird"), guess twice ("maybe 6, maybe
7"). None of them earns a reward. Linear: what stands around an answer is cut to size.
"""

from __future__ import annotations

import re

AROUND = 200  # characters before an answer that are its clause, at most

_CLAUSE_END = re.compile(
    r"[.,;:!?]|\b(?:but|only|just|because|since|so|yet)\b|[但而]|只(?=有|是|能|剩|见)"
    r"|(?<!have )(?<!do )(?<!did )(?<!can )\bwe\b"
)
_NO = r"no(?!\s+(?:doubt|question|wonder|more|less|matter)\b|\s+need\s+to\b)"
_NEGATION = re.compile(
    rf"\b(?:{_NO}|not|never|without(?!\s+(?:a\s+|any\s+)?(?:doubt|question)\b)|nor|neither"
    r"|none(?!\s+other\s+than\b)|cannot)\b|n't\b|没(?!错|问题|有(?:问题|疑问))"
    r"|不(?!仅|但|只|止|过|用说|难(?:看出|发现|得出))",
    re.IGNORECASE,
)
_DOUBT = re.compile(
    r"(?:\bnot|n't)\s+(?:\w+\s+)?(?:clear|sure|certain|true|think|believe|say|know|tell)\b",
    re.IGNORECASE,
)
_PREDICATE = re.compile(
    r"\b(?:(?:is|are|was|were|be)\s+(?:(?:\w+ing|located|found)\s+)?"
    r"|(?:stands|sits|lies|points|measures|equals)\s+)"
    r"(?:(?:an?|the|in|on|at|to)\s+)*$"
    r"|(?:没(?!有)|不)[^的]*的.*(?<![没不])[是在为](?:一[只个条张辆匹头位件])?$",
    re.IGNORECASE,
)
_DENIED_SUBJECT = re.compile(
    rf"\W*(?:and\s+|or\s+)?(?:{_NO}|none(?!\s+other)|neither|nor|nothing|nobody|never)\b"
    rf"|.*(?:\b{_NO}|\bnot\b|n't)[^.]*\b(?:who|that|which|whether|if)\s+"
    r"(?:\w+\s+){0,2}?(?:is|are|was|were|be|\w+s)\s+(?:\w+ing\s+|located\s+|found\s+)?"
    r"(?:(?:an?|the|in|on|at|to)\s+)*$",
    re.IGNORECASE,
)


def missing(text: str, start: int) -> bool:
    """Whether the clause denies what stands at ``start``, however far before it: "There is
    no big cat", "I don't see a cat", "No dog is on the left"; not "what is not there is a
    cat", "the man without a hat stands on the left"."""
    before = text[max(start - AROUND, 0) : start]
    ends = [match.end() for match in _CLAUSE_END.finditer(before)]
    clause = before[max(ends, default=0) :]
    if _PREDICATE.search(clause):
        return bool(_DOUBT.search(clause) or _DENIED_SUBJECT.match(clause))
    return bool(_NEGATION.search(clause))


def doubted(text: str) -> bool:
    """Whether it says that something is not true, clear or believed."""
    return bool(_DOUBT.search(text))


_GUESS = (
    r"(?:maybe|perhaps|possibly|(?:might|could|may)(?:\s+also)?\s+be"
    r"|也?可能是?|也许是?|或许是?)"
)
_GUESSED = re.compile(rf"{_GUESS}\s*(?:(?:an?|the|in|on)\s+)*$", re.IGNORECASE)
_GUESS_OF_ONE = re.compile(  # not "it could be more"
    rf"{_GUESS}(?!\s+(?:more|less|fewer|higher|lower|larger|smaller)\b)", re.IGNORECASE
)
_OFFERED = re.compile(
    rf"(?:^|[.!?;\n]\s*)(?:(?:or|alternatively)\b|no[.,;:!]|nope\b|(?:it\s+)?{_GUESS})",
    re.IGNORECASE,
)


def guessed_twice(text: str, start: int) -> bool:
    """Whether what stands at ``start`` is one of several guesses: "maybe 6, maybe 7"."""
    if not _GUESSED.search(text[max(start - 60, 0) : start]):
        return False
    return len(_GUESS_OF_ONE.findall(text)) > 1


def offers_another(rest: str) -> bool:
    """Whether what follows an answer takes it back or adds a guess: "No.", "Or a dog."."""
    return bool(_OFFERED.search(rest))


def asked(sentence: str, after: str) -> bool:
    """Whether a word stands in a question that is not answered with yes."""
    mark = re.match(r"[^.!?;]*\?\s*(.*)", after)
    if mark is not None:
        return not re.match(r"(?:yes|yeah|right|correct|indeed|是|对)", mark[1])
    open_end = sentence.rstrip(" \"'*)").endswith(("?", "\uff1f"))
    return open_end and not re.search(r"[.!?;]", after)


_STOP = (
    "i it he she they we you there this that these those which who whose where when while "
    "because since as so for with without in on at of from to by not no yes right correct "
    "please thanks therefore hence thus and but or if is are was were do does"
)
_WORD = r"[^\W\d][\w'-]*"
_LIST_BEFORE = re.compile(
    r"(?:\b(?:and|or)|[/&+|]|和|与|或|还是)\s*(?:(?:also|maybe|perhaps|possibly)\s+)?"
    r"(?:(?:in|on|at)\s+)?(?:(?:an?|the|some)\s+)?$"
)
_LIST_AFTER = re.compile(
    r"[\s\"')*]*(?:[/&+|]|和|与|或|还是"
    r"|,\s*(?:maybe|perhaps|possibly)\b(?!\s+an?\s+\w+\s+one\b)"
    rf"|[,;]\s*(?:an?|the|some)\s+{_WORD}(?:\s+{_WORD})?\s*(?:[,/]|\b(?:or|and)\b)"
    rf"|,\s*an?\s+{_WORD}\s*$"
    rf"|[,;]\s*(?!(?:{'|'.join(_STOP.split())})\b|\w+(?:ly|ing|ed)\b)"
    rf"{_WORD}(?:\s+{_WORD})?\s*(?:$|[,/]|\b(?:or|and)\b))"
)


def one_of_list(before: str, after: str) -> bool:
    """Whether the word between the two is one of a list: "cat/dog", "cat, dog", "a cat, a
    dog or a bird"; not what a word in apposition says: "gold, the highest one"."""
    return bool(_LIST_BEFORE.search(before) or _LIST_AFTER.match(after))
