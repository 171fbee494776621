"""A reward function of TRL for a model with random weights: there is something to learn."""

from __future__ import annotations

from typing import Any


def odd(completions: list[Any], **_: Any) -> list[float]:
    """1.0 for a completion of an odd number of characters."""
    return [float(len(c[0]["content"]) % 2) for c in completions]
