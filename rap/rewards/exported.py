"""The built-in checker as the reward that exported data are trained with.

The reward files that `rap export` writes call ``reward``, so that training counts what
scoring counted. A trainer that hands its reward one text only gets answer and choices
packed into it (``packed``).
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence

from ..samples.sample import Sample
from .checker import Checker, make_checker

TRUTH = "rap_truth"
"""Column of a packed answer."""


@functools.cache
def _checker() -> Checker:
    return make_checker()


def reward(
    text: str, answer: str, choices: Sequence[str] | None = (), *, finished: bool = True
) -> float:
    """1.0 if the completion ``text`` is right by the rule that scored, else 0.0.

    finished: False for a completion that was cut off at its token limit, where the trainer
    tells: only an answer that it has marked and completed counts.
    """
    options = () if choices is None else tuple(choices)
    sample = Sample(0, "", "", answer, options, (), None, {})
    return float(_checker().check(sample, text, finished=finished).correct is True)


def packed(answer: str, choices: Sequence[str]) -> str:
    """Answer and choices as one text, for a trainer's answer column."""
    return json.dumps({"answer": answer, "choices": list(choices)}, ensure_ascii=False)


def unpacked(truth: str) -> tuple[str, tuple[str, ...]]:
    """(answer, choices) of ``packed``; any other text is the answer itself."""
    try:
        found = json.loads(truth)
        return str(found["answer"]), tuple(map(str, found["choices"]))
    except (ValueError, KeyError, TypeError, RecursionError):
        return truth, ()
