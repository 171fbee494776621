"""A trainer's log of pass counts: one JSONL file beside the score store.

A line is one generation batch of one process, and one ``write``: a trainer that is killed
leaves whole lines and at most one torn one, which readers pass over and the next writer
closes. The score store itself is never opened for writing from here.

    {"kind": "start", "step": 0}
    {"kind": "rewards", "step": 12, "process": 0, "ids": ["a", "b"], "passed": [3, 8],
     "judged": [8, 8], "unjudged": [0, 0], "low": [0.0, 1.0], "high": [1.0, 1.0]}

``step`` is the trainer's optimiser step. A ``start`` says that training begins, or goes on
from a checkpoint, at that step: what was logged before for that step and later ones is
void, because it is done again.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from ..errors import RapStoreError
from ..scores.files import store_error

ACCEPTED = 0.5
"""A completion passes from this reward up, as in ``rap.rewards.make_checker``."""

REWARD_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("step", pa.int64()),
        ("passed", pa.int64()),  # completions with a reward of ACCEPTED or more
        ("judged", pa.int64()),  # completions with a finite reward
        ("unjudged", pa.int64()),  # completions whose reward is None, NaN or infinite
        ("low", pa.float64()),  # smallest and largest reward; null if none is finite
        ("high", pa.float64()),
    ]
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the completions of one prompt got."""

    passed: int = 0
    judged: int = 0
    unjudged: int = 0
    low: float | None = None
    high: float | None = None

    @classmethod
    def of(cls, rewards: Sequence[float | None]) -> Outcome:
        """Count rewards; None, NaN and infinity are neither right nor wrong."""
        finite = [float(r) for r in rewards if r is not None and math.isfinite(r)]
        return cls(
            passed=sum(r >= ACCEPTED for r in finite),
            judged=len(finite),
            unjudged=len(rewards) - len(finite),
            low=min(finite, default=None),
            high=max(finite, default=None),
        )

    def __add__(self, other: Outcome) -> Outcome:
        lows = [x for x in (self.low, other.low) if x is not None]
        highs = [x for x in (self.high, other.high) if x is not None]
        return Outcome(
            self.passed + other.passed,
            self.judged + other.judged,
            self.unjudged + other.unjudged,
            min(lows, default=None),
            max(highs, default=None),
        )

    @property
    def varies(self) -> bool:
        """Whether the group teaches anything: its rewards are not all the same."""
        return self.low is not None and self.low != self.high


def grouped(ids: Sequence[str], rewards: Sequence[float | None]) -> dict[str, Outcome]:
    """{id: what its completions got}, in order of first appearance."""
    by_id: dict[str, list[float | None]] = {}
    for name, reward in zip(ids, rewards, strict=True):
        by_id.setdefault(name, []).append(reward)
    return {name: Outcome.of(values) for name, values in by_id.items()}


class LineLog:
    """Writer of the lines at ``path``; several processes may append to one file.

    Nothing is created before the first line. Raises ``RapStoreError`` if the disk refuses.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def write(self, line: str) -> None:
        """Append a line, in one write."""
        data = line.encode() + b"\n"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            try:
                size = os.fstat(handle).st_size
                if size and os.pread(handle, 1, size - 1) != b"\n":
                    data = b"\n" + data  # a torn line is closed, not continued
                if os.write(handle, data) != len(data):
                    raise OSError("only a part was written")
                os.fsync(handle)
            finally:
                os.close(handle)
        except OSError as error:
            raise store_error(f"{self.path}: cannot be written", error) from error


class RewardLog(LineLog):
    """The log of pass counts."""

    def start(self, step: int = 0) -> None:
        """Say that training begins or goes on at ``step``."""
        self._append({"kind": "start", "step": step})

    def append(self, step: int, outcomes: dict[str, Outcome], process: int = 0) -> None:
        """One generation batch: {id: outcome}."""
        names = ("passed", "judged", "unjudged", "low", "high")
        columns = {n: [getattr(o, n) for o in outcomes.values()] for n in names}
        head = {"kind": "rewards", "step": step, "process": process}
        self._append(head | {"ids": list(outcomes)} | columns)

    def _append(self, line: dict[str, Any]) -> None:
        self.write(json.dumps(line, allow_nan=False))


def read_rewards(path: str | os.PathLike[str]) -> pa.Table:
    """The log as a table of ``REWARD_SCHEMA``: one row per (id, step), in the order of the
    file, processes summed; torn lines and what a ``start`` made void are left out.

    Raises ``RapStoreError`` if the file cannot be read or no line of it is one of ours.
    """
    found: dict[tuple[int, str], Outcome] = {}
    known = 0
    for line in _lines(Path(path)):
        known += 1
        if line["kind"] == "start":
            found = {key: o for key, o in found.items() if key[0] < line["step"]}
            continue
        lists = (line[n] for n in ("passed", "judged", "unjudged", "low", "high"))
        for name, *values in zip(line["ids"], *lists, strict=True):
            key = (line["step"], name)
            found[key] = found.get(key, Outcome()) + Outcome(*values)
    if not known:
        raise RapStoreError(f"{path}: holds no line of a rewards log")
    columns = {
        "id": [name for _, name in found],
        "step": [step for step, _ in found],
        **{n: [getattr(o, n) for o in found.values()] for n in REWARD_SCHEMA.names[2:]},
    }
    return pa.table(columns, schema=REWARD_SCHEMA)


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise store_error(f"{path}: cannot be read", error) from error
    for text in data.split(b"\n"):
        try:
            line = json.loads(text)
        except ValueError:  # empty, or torn by a crash
            continue
        if is_line(line):
            yield line


_COLUMNS = ("ids", "passed", "judged", "unjudged", "low", "high")


def is_line(line: object) -> bool:
    """Whether it is a whole line of this log: a damaged one may still be JSON."""
    if not isinstance(line, dict) or not isinstance(line.get("step"), int):
        return False
    if line.get("kind") == "start":
        return True
    lists = [line.get(name) for name in _COLUMNS]
    return (
        line.get("kind") == "rewards"
        and all(isinstance(values, list) for values in lists)
        and len({len(values) for values in lists}) == 1  # type: ignore[arg-type]
    )
