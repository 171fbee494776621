"""A reward that is the same for every completion tells no sample from another.

It may be a mistake (the function does not find the answer in what it is given) or a pool
that is too hard or too easy: said, not refused.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

log = logging.getLogger("rap")

LEAST = 64
"""Completions after which it is said while a run goes on."""
LEAST_SAMPLES = 8
"""Samples below which nothing is said."""


class Sameness:
    """Says once that reward ``name`` gave one value for all completions, with and without
    the image."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._value: float | None = None
        self._count = 0
        self._seen: dict[str, set[str]] = {}
        """{arm: first samples of it}"""
        self._over = False

    def add(self, sample: str, arm: str, rewards: Sequence[float | None]) -> None:
        """Take note of the rewards of a group; None was not graded."""
        if self._over:
            return
        given = [reward for reward in rewards if reward is not None]
        if not given:
            return
        first = given[0] if self._value is None else self._value
        if any(reward != first for reward in given):
            self._over, self._seen = True, {}
            return
        self._value, self._count = first, self._count + len(given)
        seen = self._seen.setdefault(arm, set())
        if len(seen) < LEAST_SAMPLES:
            seen.add(sample)
        if self._count >= LEAST:
            self._say()

    def finish(self) -> None:
        """At the end of a run, whose completions may be fewer than ``LEAST``."""
        if not self._over:
            self._say()

    def _say(self) -> None:
        samples = set().union(*self._seen.values())
        if len(self._seen) < 2 or len(samples) < LEAST_SAMPLES:
            return
        self._over, self._seen = True, {}
        log.warning("%s", same_text(self._name, f"{self._value:g}", self._count))


def same_text(name: str, value: str, count: int) -> str:
    """What is said. ``value``: what each of the ``count`` completions got."""
    return (
        f"reward {name!r} gave {value} for all {count:,} completions, with and without the "
        "image, and so tells no sample from another: does it read the column of the answer "
        "and the text of a completion?"
    )
