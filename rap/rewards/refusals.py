"""Responses that say why they give no answer: the numbers and words in them are none."""

from __future__ import annotations

import re
from collections.abc import Iterable

_CANNOT = re.compile(
    r"\b(?:can(?:not|'t|\u2019t| not)|could\s?n(?:o|['\u2019])t|unable to|impossible to"
    r"|(?:not|isn't|isn\u2019t) possible to|difficult to|hard to)\s+"
    r"(?:be\s+)?(?:(?:definitively|accurately|directly|reliably|provide|give|really)\s+){0,2}"
    r"(?:determine|determining|answer|provide|providing|tell|see\b|view|process|solv|help|say\b"
    r"|calculate|calculating|compute|give"
    r"|analy[sz]|identif|conclude|compare|know|find|access|estimat)"
    r"|(?:\bnot|n't|n\u2019t|without)\s+(?:\w+\s+){0,2}?(?:any\s+)?"
    r"(?:enough|sufficient|more|additional|further|clear|specific)\s+(?:\w+\s+)?"
    r"(?:information|context|data|details|measurements)"
    r"|(?:\bnot|n't|n\u2019t)\s+(?:provide|contain|give|specify|have|include)\s+"
    r"(?:\w+\s+){0,2}information"
    r"|\bplease\s+(?:provide|upload|share)\s+(?:\w+\s+){0,5}(?:question|details?|context"
    r"|information|images?|picture|photo|data|table|figure|diagram|functions?|problem|graph"
    r"|description|ages|values?|equation|text)\b"
    r"|\bnone of the (?:given |provided |listed )?(?:options|choices|answers)\b"
    r"|\b(?:mistake|error) in the (?:question|problem|options|choices)"
    r"|无法(?:确定|判断|回答|看到|得出|提供|识别|计算)|(?:信息|条件)不足|不能(?:确定|判断|回答)"
    r"|没有足够的?(?:信息|数据)|请提供",
    re.IGNORECASE,
)
_AFTER_ALL = re.compile(
    r"\b(?:but|however|though|although|still|guess|assume|assuming|likely|probably"
    r"|if i had to|best (?:answer|estimate|option))\b|[:=]|但|不过|猜|可能是",
    re.IGNORECASE,
)
LAST = 600  # characters at a response's end in which a refusal is looked for


def refuses(text: str) -> bool:
    """Whether a response ends with saying that it cannot answer, and guesses nothing after
    that."""
    end = text[-LAST:]
    found = list(_CANNOT.finditer(end))
    return bool(found) and not _AFTER_ALL.search(end, found[-1].end())


def may_be_meant(answers: Iterable[str]) -> bool:
    """Whether one of these answers itself says that nothing can be said ("cannot be
    determined", "none of the above", "not enough information")."""
    return any(
        _CANNOT.search(answer)
        or re.search(
            r"\b(?:none|neither|cannot|can't|unable|impossible|insufficient|not|depends|unknown"
            r"|undetermined)\b|不能|无法|都不|不足|以上",
            answer,
            re.IGNORECASE,
        )
        for answer in answers
    )
