"""A stopwatch: how long named stages took, nested ones counted once.

No global: whoever measures makes a `Stopwatch` and hands it on; whoever is measured takes
`IDLE` where nobody measures, which reads no clock and waits for no device.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


def _no_wait() -> None:
    """A host has finished what it was asked for."""


@dataclass(slots=True)
class _Open:
    """The spans that are open in one thread, outermost first, and the last reading."""

    names: list[str] = field(default_factory=list)
    mark: float = 0.0


class Stopwatch:
    """Seconds by stage, and counts by name.

    A span is charged with its own time only: what a span inside it takes goes to that one.
    ``seconds`` are those of the thread that made the watch, so their sum never exceeds
    its elapsed time; ``beside`` are those of all other threads together, which ran at the
    same time and may add up to more. Thread-safe.

    clock: seconds from any start, never going back. wait: blocks until the device is done,
    so that its work is charged to the span that asked for it; called where a span of the
    watch's own thread begins or ends.
    """

    on = True
    """False for `IDLE`."""

    def __init__(
        self,
        clock: Callable[[], float] = time.perf_counter,
        wait: Callable[[], None] = _no_wait,
    ) -> None:
        self._clock = clock
        self._wait = wait
        self._thread = threading.get_ident()
        self._lock = threading.Lock()
        self._here = threading.local()
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.beside: defaultdict[str, float] = defaultdict(float)
        self.counts: Counter[str] = Counter()
        self._start = clock()

    @property
    def elapsed(self) -> float:
        """Seconds since the watch was made."""
        return self._clock() - self._start

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Charge what happens inside to ``name``, also when it raises."""
        depth = len(self._open().names)
        self.start(name)
        try:
            yield
        finally:
            self._close(depth)

    def start(self, name: str) -> None:
        """Open a span; for hooks, which cannot hold a context manager open."""
        open_ = self._open()
        self._lap(open_)
        open_.names.append(name)

    def stop(self, name: str) -> None:
        """Close the innermost open span of this name, and those inside it that an error
        has left open. Nothing happens without one."""
        names = self._open().names
        if name in names:
            self._close(len(names) - 1 - names[::-1].index(name))

    def count(self, name: str, n: int = 1) -> None:
        """Add ``n`` to the count of ``name``."""
        with self._lock:
            self.counts[name] += n

    def _open(self) -> _Open:
        if not hasattr(self._here, "open"):
            self._here.open = _Open()
        return self._here.open

    def _close(self, depth: int) -> None:
        open_ = self._open()
        self._lap(open_)
        del open_.names[depth:]

    def _lap(self, open_: _Open) -> None:
        """Charge the time since the last reading to the innermost open span."""
        own = threading.get_ident() == self._thread
        if own:
            self._wait()
        now = self._clock()
        if open_.names:
            with self._lock:
                totals = self.seconds if own else self.beside
                totals[open_.names[-1]] += now - open_.mark
        open_.mark = now


class _Idle(Stopwatch):
    """Measures nothing."""

    on = False

    def __init__(self) -> None:
        super().__init__(clock=lambda: 0.0)

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        yield

    def start(self, name: str) -> None:
        pass

    def stop(self, name: str) -> None:
        pass

    def count(self, name: str, n: int = 1) -> None:
        pass


IDLE = _Idle()
"""A stopwatch that nobody reads."""
