"""What a mutant is."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True)
class Mutant:
    """``name``: of its own, begins with the part of the code. ``file``: from the root.
    ``old``: in it exactly once. ``tests``: files or node ids of pytest; at least one fails,
    in the order in which they are tried. ``equivalent``: why no test can see it, for those
    that change nothing anyone can tell; such a mutant must live."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    equivalent: str = ""

    @property
    def key(self) -> str:
        """Another for another mutation or other tests."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]
