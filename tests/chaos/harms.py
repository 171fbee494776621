"""What is done to a process, and how it may end then."""

from __future__ import annotations

import signal
from dataclasses import dataclass

NOTHING, KILL_BEFORE, KILL_AFTER, SIGNAL, FAIL, FAIL_ON, NO_MEMORY = range(7)
OPEN, WRITE, SYNC, RENAME, REMOVE, FOLDER = (1 << i for i in range(6))
EIO, ENOSPC, EDQUOT = 5, 28, 122
ALL = 63

HARMS: dict[str, tuple[int, int, int]] = {
    "kill before": (KILL_BEFORE, ALL, 0),
    "kill after": (KILL_AFTER, ALL, 0),
    "kill at a rename": (KILL_BEFORE, RENAME, 0),
    "kill after a rename": (KILL_AFTER, RENAME, 0),
    "kill by the clock": (NOTHING, ALL, 0),
    "SIGTERM": (SIGNAL, ALL, signal.SIGTERM),
    "Ctrl-C": (SIGNAL, ALL, signal.SIGINT),
    "disk full": (FAIL_ON, OPEN | WRITE | FOLDER, ENOSPC),
    "quota, once": (FAIL, OPEN | WRITE | FOLDER, EDQUOT),
    "I/O error of a write": (FAIL, WRITE, EIO),
    "I/O error of fsync": (FAIL, SYNC, EIO),
    "I/O error of a rename": (FAIL, RENAME, EIO),
    "no memory": (NO_MEMORY, ALL, 1 << 20),
    "small disk": (NOTHING, ALL, 0),
}
"""{what is done: (how, to which calls, with what)}"""

WEIGHTS = {"kill before": 4, "kill after": 4, "kill by the clock": 3, "small disk": 0.5}

MEMORY = ("MemoryError", "ArrowMemoryError", "OutOfMemoryError")


Harm = tuple[str, list[int]]
"""(one of ``HARMS``, what the shim is told)"""


class Broken(AssertionError):
    """What a trial found."""


@dataclass(slots=True)
class Run:
    """How a process ended."""

    code: int
    count: int
    kinds: list[int]
    error: str
    said: str


def judge(run: Run, kind: str, nth: int) -> bool:
    """Whether the harm was felt. Raises ``Broken`` for an end that it must not have."""
    how = HARMS[kind][0]
    if "fault in rap" in run.said:
        raise Broken(f"{kind}: called a fault in rap: {run.said[-600:]}")
    if run.code == 0:  # it came before the harm, or could do without what failed
        return how != NOTHING and run.count >= nth
    ends = {signal.SIGTERM: 143, signal.SIGINT: 130}
    wanted = {KILL_BEFORE: {-9}, KILL_AFTER: {-9}, NOTHING: {-9, 1}}
    if how == SIGNAL:
        wanted[SIGNAL] = {ends[signal.Signals(HARMS[kind][2])]}
    if run.code not in wanted.get(how, {1}):
        raise Broken(f"{kind}: ended with {run.code}: {run.error} {run.said[-600:]}")
    if run.code != 1 or not run.error:
        return True
    name = run.error.split(":")[0]
    if how == NO_MEMORY:
        thread = "can't start new thread" in run.error  # Python's word for it
        good = name in (*MEMORY, "RapStoreError") or thread
    else:
        good = name == "RapStoreError"
    if not good:
        raise Broken(f"{kind}: ended with {run.error}")
    return True
