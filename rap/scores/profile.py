"""Where the time of scoring went, as data: seconds by stage and counts of the work.

``profile.json`` of a score store holds the sum of its profiled runs. Clock readings: no
score and no fingerprint depends on it, and a store without one is as good.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from .files import read_regular, write_atomic

VERSION = 1
NAME = "profile.json"

STAGES: Mapping[str, str] = {
    "prepare": "waiting for samples: decoding, hashing, processor, tokenizer",
    "copy": "padding batches, and copying them to the model's device",
    "vision": "vision tower and projector",
    "prefill": "prompts and teacher-forced responses through the text decoder",
    "decode": "sampling, a token at a time",
    "kernels": "head product, divergences, attention confidence",
    "checking": "grading completions",
    "store": "opening, reading and writing the score store",
    "other": "identity and check of the model, and what is between the stages",
}
"""Stage -> what it is; the seconds of all of them add up to the wall time."""

COUNTS: Mapping[str, str] = {
    "forwards": "calls of the model",
    "images_encoded": "images through the vision tower",
    "images_distinct": "different images among them",
    "prefilled_tokens": "prompt and teacher-forced tokens read",
    "distinct_tokens": "of these, what no shared prefix could have saved",
    "padded_tokens": "padding read besides",
    "decoded_tokens": "tokens sampled",
    "kernel_launches": "calls of rap.ops",
}
"""Count -> what it counts, over the batches that were scored (the model's check is left
out)."""


@dataclass(frozen=True, slots=True)
class Profile:
    """One profiled run, or the sum of several."""

    runs: int
    samples: int
    """Samples that these runs scored or quarantined."""
    wall: float
    """Seconds of the calls of ``score``, without loading the model."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Of `STAGES`, without ``other``, in the thread that runs the model."""
    beside: Mapping[str, float] = field(default_factory=dict)
    """Of worker threads, at the same time: summed over the threads, no part of ``wall``."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """Of `COUNTS`."""

    def __add__(self, other: Profile) -> Profile:
        """Both together: every number is a sum."""
        return Profile(
            self.runs + other.runs,
            self.samples + other.samples,
            self.wall + other.wall,
            _sum(self.seconds, other.seconds),
            _sum(self.beside, other.beside),
            {name: int(n) for name, n in _sum(self.counts, other.counts).items()},
        )

    def stages(self) -> list[tuple[str, float, float]]:
        """(stage, seconds, share of the wall time), in the order of `STAGES`; ``other`` is
        the rest."""
        rest = max(0.0, self.wall - sum(self.seconds.values()))
        found = {**self.seconds, "other": rest}
        return [
            (name, found.get(name, 0.0), found.get(name, 0.0) / self.wall)
            if self.wall > 0
            else (name, found.get(name, 0.0), 0.0)
            for name in STAGES
        ]

    def ratios(self) -> dict[str, float | None]:
        """What is gate and goal of the counts; None where nothing was counted.

        ``images_encoded`` and ``prefilled_tokens``: against the distinct ones;
        ``padded_tokens``: padding and tokens together, against the tokens.
        """
        c = self.counts
        prefilled = c.get("prefilled_tokens", 0)
        return {
            "images_encoded": _ratio(c.get("images_encoded", 0), c.get("images_distinct")),
            "prefilled_tokens": _ratio(prefilled, c.get("distinct_tokens")),
            "padded_tokens": _ratio(prefilled + c.get("padded_tokens", 0), prefilled),
        }

    def text(self) -> str:
        """The tables for a terminal."""
        runs = f"{self.runs} profiled run" + "s" * (self.runs != 1)
        lines = [
            f"where the time went: {self.wall:,.1f} s, {self.samples:,} samples, {runs}"
        ]
        for name, seconds, share in self.stages():
            lines.append(f"  {seconds:>10,.2f} s  {share:>6.1%}  {name}: {STAGES[name]}")
        for name, seconds in self.beside.items():
            lines.append(f"  {seconds:>10,.2f} s          {name}, in worker threads beside")
        lines.append("counts")
        ratios = self.ratios()
        for name, what in COUNTS.items():
            ratio = ratios.get(name)
            more = "" if ratio is None else f" ({_against(name)} {ratio:.2f})"
            lines.append(f"  {self.counts.get(name, 0):>12,}  {name}: {what}{more}")
        return "\n".join(lines)

    def as_json(self) -> dict[str, Any]:
        """Plain values; `of` reads them."""
        return {"kind": "profile", "version": VERSION, **asdict(self)}

    @classmethod
    def of(cls, found: object) -> Self | None:
        """What ``as_json`` gave; None if it is anything else."""
        if not isinstance(found, Mapping) or found.get("version") != VERSION:
            return None
        try:
            return cls(
                int(found["runs"]),
                int(found["samples"]),
                _number(found["wall"]),
                {str(k): _number(x) for k, x in found["seconds"].items()},
                {str(k): _number(x) for k, x in found["beside"].items()},
                {str(k): int(n) for k, n in found["counts"].items()},
            )
        except (KeyError, TypeError, ValueError, AttributeError):
            return None


def _against(name: str) -> str:
    return "with the tokens, x" if name == "padded_tokens" else "of the distinct ones, x"


def _sum(a: Mapping[str, float], b: Mapping[str, float]) -> dict[str, float]:
    return {name: a.get(name, 0) + b.get(name, 0) for name in dict.fromkeys((*a, *b))}


def _ratio(n: int, of: int | None) -> float | None:
    return n / of if of else None


def _number(value: Any) -> float:
    number = float(value)
    if not (math.isfinite(number) and number >= 0):
        raise ValueError(f"{number} seconds")
    return number


def read_profile(folder: Path) -> Profile | None:
    """The profile of a store; None if no profiled run ended there, or it is damaged: then
    a ``UserWarning`` says so."""
    path = folder / NAME
    try:
        found = Profile.of(json.loads(read_regular(path)))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError):
        found = None
    if found is None:
        warnings.warn(f"{path}: cannot be read; left out", UserWarning, stacklevel=2)
    return found


def add_profile(folder: Path, run: Profile) -> Profile:
    """Add a run to the profile of a store that is open for writing; the sum, which is
    stored. Raises ``RapStoreError``."""
    earlier = read_profile(folder)
    total = run if earlier is None else earlier + run
    _write(folder, total)
    return total


def join_profiles(folders: Sequence[Path], out: Path) -> None:
    """Give the store ``out`` the sum of the profiles of these stores, as far as they have
    one. Raises ``RapStoreError``."""
    total: Profile | None = None
    for found in filter(None, map(read_profile, folders)):
        total = found if total is None else total + found
    if total is not None:
        _write(out, total)


def _write(folder: Path, profile: Profile) -> None:
    text = json.dumps(profile.as_json(), indent=1, sort_keys=True, allow_nan=False)
    write_atomic(folder / NAME, lambda file: file.write(text.encode() + b"\n"))
