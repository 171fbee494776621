"""How many completions a store holds, by arm: what they cost."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc


@dataclass(frozen=True, slots=True)
class Sampled:
    """Completions of one arm: the samples that have some, how many they are, how many of
    them have tokens, and all their tokens."""

    samples: int = 0
    rollouts: int = 0
    counted: int = 0
    tokens: int = 0

    @classmethod
    def of(cls, rollouts: pa.Table, arm: str) -> Sampled:
        own = rollouts.filter(pc.equal(rollouts["arm"], arm))
        token_ids = own["token_ids"]
        return cls(
            samples=pc.count_distinct(own["index"]).as_py(),
            rollouts=own.num_rows,
            counted=len(token_ids) - token_ids.null_count,
            tokens=pc.sum(pc.list_value_length(token_ids)).as_py() or 0,
        )

    def __add__(self, other: Sampled) -> Sampled:
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        return Sampled(*(a + b for a, b in pairs))


@dataclass(frozen=True, slots=True)
class Drawn:
    """Completions with the ``image``, and with the ``text`` alone."""

    image: Sampled = field(default_factory=Sampled)
    text: Sampled = field(default_factory=Sampled)

    @classmethod
    def of(cls, rollouts: pa.Table) -> Drawn:
        """``rollouts``: with the columns ``DRAWN_COLUMNS``."""
        return cls(*(Sampled.of(rollouts, arm) for arm in ("image", "counterfactual")))

    @classmethod
    def of_json(cls, found: Mapping[str, Any]) -> Drawn:
        """What ``dataclasses.asdict`` gave."""
        return cls(Sampled(**found["image"]), Sampled(**found["text"]))

    @property
    def rollouts(self) -> int:
        return self.image.rollouts + self.text.rollouts

    def __add__(self, other: Drawn) -> Drawn:
        return Drawn(self.image + other.image, self.text + other.text)


DRAWN_COLUMNS = ("index", "arm", "token_ids")
