"""A time limit that does not depend on what else the machine does.

A check that waits for a processor, because others use them all, is not a slow check: the
time that its thread was ready to run and did not is not counted. What it computes and what
it waits for (a server, a lock, the disk) is. Linux says how long in ``schedstat``, see
``Documentation/scheduler/sched-stats.rst``; elsewhere every second counts.
"""

from __future__ import annotations

import time
from pathlib import Path


def process_statistics(pid: int) -> Path:
    """Where Linux says what the main thread of a process did."""
    return Path(f"/proc/{pid}/schedstat")


def thread_statistics(native_id: int | None) -> Path:
    """Where Linux says what a thread of this process did."""
    return Path(f"/proc/self/task/{native_id}/schedstat")


def seconds_ready(statistics: Path) -> float:
    """Seconds that a thread has waited for a processor since it began; 0 if unknown."""
    try:
        _, waited, _ = statistics.read_text().split()
        return int(waited) / 1e9
    except (OSError, ValueError):  # not Linux, or the thread has ended
        return 0.0


class Limit:
    """``seconds`` from now, of a thread's own time."""

    def __init__(self, seconds: float, statistics: Path) -> None:
        self._end = time.monotonic() + seconds
        self._statistics = statistics
        self._ready = seconds_ready(statistics)

    def left(self) -> float:
        """Seconds that are left, at least; 0 or less: the time is up."""
        left = self._end - time.monotonic()
        if left > 0:
            return left
        return left + max(0.0, seconds_ready(self._statistics) - self._ready)
