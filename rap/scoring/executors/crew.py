"""Which worker scores which shard: workers begin, die, are replaced and are ended.

Nothing here knows Ray. A ``Cluster`` starts workers (`rayworker.RayWorker`), asks them, and
says which have answered; each is asked one thing at a time:

    look     where it runs, and whether it sees the store
    open     data set, model, checker: a minute, or many
    begin    a pass over the pool: the plan is made, or read
    score    one shard, by its number
    seal     verify the whole store and judge it
    close    end in order

A worker that dies is replaced and its shard is scored again. Neither goes on for ever:
``ExecutorConfig.max_restarts`` and ``max_shard_failures``.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Protocol

from ...config import ExecutorConfig
from ...errors import (
    RapConfigError,
    RapDeviceError,
    RapError,
    RapStoreError,
    RapWorkerError,
    first_line,
)
from ...installed import version
from ...scores.owner import Owner
from ..filling import Bar

log = logging.getLogger("rap")

AGAIN = 2.0
"""Seconds until a shard that a process of another run has claimed is asked for again."""
PATIENCE = 60.0
"""Seconds after which it is said that the cluster has no room, and between two such
lines."""
SAME = (
    *("rap-select", "torch", "torchvision", "transformers", "tokenizers", "numpy"),
    *("pillow", "math-verify"),
)
"""Distributions on whose version a score may depend."""


class WorkerDied(Exception):
    """The process of a worker is gone; the text says why."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a worker runs. ``versions``: of `SAME`. ``sees``: the folder of the store is
    the one that the driver sees."""

    node: str
    owner: Owner
    versions: Mapping[str, str | None]
    sees: bool


@dataclass(frozen=True, slots=True)
class Begun:
    """A pass over the pool. ``missing``: numbers of its shards."""

    n_samples: int
    shard_size: int
    missing: tuple[int, ...]
    sealed: bool

    def size(self, k: int) -> int:
        """Samples of shard ``k``."""
        return min(self.shard_size, self.n_samples - k * self.shard_size)

    def name(self, k: int) -> str:
        first = k * self.shard_size
        return f"shard {k} (samples {first} to {first + self.size(k) - 1})"


@dataclass(frozen=True, slots=True)
class Report:
    """What became of a shard. ``whole``: its scores are in the store. ``bad``: samples of
    it that were quarantined. ``stopped``: the driver's claim was gone."""

    whole: bool
    bad: int = 0
    stopped: bool = False


class Cluster(Protocol):
    def start(self, number: int) -> Any:
        """A new worker. It may have to wait for room; so does what it is asked."""

    def ask(self, worker: Any, what: str, *arguments: Any) -> Any:
        """Have a worker do something, after what it does now."""

    def wait(self, asked: Sequence[Any], seconds: float) -> Collection[Any]:
        """Those that are answered, as soon as one is; none after ``seconds``."""

    def answer(self, asked: Any) -> Any:
        """What came of it. Raises ``WorkerDied``, or what the worker raised."""

    def end(self, worker: Any) -> None:
        """Kill a worker, wherever it is. Harmless for one that is gone."""

    def room(self) -> str:
        """What of the cluster is free, in words."""


@dataclass(slots=True)
class Member:
    """A worker, or one after the other. ``deaths``: in a row. ``begun``: the number of the
    pass that it has begun; ``asked_in``: of that in which it was asked ``what``."""

    number: int
    worker: Any
    deaths: int = 0
    place: Place | None = None
    opened: bool = False
    begun: int = 0
    what: str = ""
    asked: Any = None
    asked_in: int = 0
    shard: int = -1

    @property
    def stays(self) -> bool:
        return self.what != "close"

    def __str__(self) -> str:
        on = "" if self.place is None else f" on {self.place.node}"
        return f"worker {self.number}{on}"


@dataclass(slots=True)
class _Work:
    """What is left of a pass. ``later``: (when, shard) of those that others have claimed;
    ``given_up``: {shard: what its worker died of the last time}."""

    begun: Begun
    todo: deque[int]
    bar: Bar
    later: list[tuple[float, int]] = field(default_factory=list)
    failures: Counter[int] = field(default_factory=Counter)
    given_up: dict[int, str] = field(default_factory=dict)
    bad: int = 0
    sealed: bool = False

    def take(self, now: float) -> int | None:
        """The next shard, if one is free by now."""
        if self.later and self.later[0][0] <= now:
            self.todo.append(self.later.pop(0)[1])
        return self.todo.popleft() if self.todo else None

    @property
    def left(self) -> int:
        """Shards that nobody is at."""
        return len(self.todo) + len(self.later)


class Crew:
    """The workers of a run; ``workers`` of them, at most. ``dead``: owners of claims that
    nobody will give back."""

    def __init__(
        self,
        cluster: Cluster,
        workers: int,
        config: ExecutorConfig,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.cluster, self.config, self.clock = cluster, config, clock
        self.least = min(config.min_workers, workers)
        self.members = [Member(i, cluster.start(i)) for i in range(workers)]
        self.dead: set[Owner] = set()
        self._passes, self._last = 0, False
        self._going = False
        self._work: _Work | None = None
        self._name = ""
        self._versions = {"rap-select": (version("rap-select"), "the driver")}
        self._told = self.clock()

    def fill(self, last: bool, progress: bool | str, name: str = "scoring") -> None:
        """Have a pass scored and sealed: the ``last``, or the one before. ``name``: of the
        pass, for people.

        Raises what `rap.score` does, and ``RapWorkerError`` where workers died too often;
        everything that could be scored is scored then."""
        self._passes, self._last, self._work = self._passes + 1, last, None
        self._name = name
        with ExitStack() as stack:
            while self._work is None or not self._work.sealed:
                for member in list(self.members):
                    self._ask(member)
                self._hear(stack, progress)

    def stop(self, seconds: float) -> None:
        """End all workers. One that is at a shard has so many seconds to keep what it has
        scored of it; whoever calls has told it."""
        try:
            asked = [
                self.cluster.ask(member.worker, "close")
                for member in self.members
                if member.opened and member.what != "close"
            ]
            end = self.clock() + seconds
            while asked and (left := end - self.clock()) > 0:
                ready = self.cluster.wait(asked, left)
                for answered in ready:
                    self._closed(answered)
                asked = [a for a in asked if a not in ready]
        finally:
            for member in self.members:
                self.cluster.end(member.worker)
                if member.place is not None:
                    self.dead.add(member.place.owner)
            self.members = []

    # -- asking

    def _ask(self, member: Member) -> None:
        """Give a worker that has nothing to do something to do, if there is something."""
        if member.asked is None and (step := self._step(member)) is not None:
            member.what, *arguments = step
            member.asked = self.cluster.ask(member.worker, member.what, *arguments)
            member.asked_in = self._passes

    def _step(self, member: Member) -> tuple[Any, ...] | None:
        if member.place is None:
            return ("look",)
        if not member.opened:
            return ("open",)
        if member.begun != self._passes:
            return "begin", self._passes - 1
        ready = sum(m.begun == self._passes for m in self.members)
        self._going = self._going or ready >= min(self.least, len(self.members))
        work = self._work
        if work is None or not self._going:
            return None
        k = work.take(self.clock())
        if k is not None:
            member.shard = k
            return "score", k, frozenset(self.dead)
        if work.left or any(m.what in ("score", "seal") for m in self.members if m.asked):
            staying = sum(m.stays for m in self.members)
            surplus = self._last and not work.left and staying > self.least
            return ("close",) if surplus else None
        if work.given_up:
            raise RapWorkerError(_given_up(work, self.config.max_shard_failures))
        return ("seal",)

    # -- hearing

    def _hear(self, stack: ExitStack, progress: bool | str) -> None:
        """Wait for an answer, and take all that are there."""
        asked = {m.asked: m for m in self.members if m.asked is not None}
        waiting = self._work is not None and self._work.later
        for ready in self._answered(list(asked), AGAIN if waiting else PATIENCE):
            member = asked[ready]
            member.asked = None
            try:
                answer = self.cluster.answer(ready)
            except (WorkerDied, MemoryError, OSError, RuntimeError) as error:
                self._failed(member, error)
            else:
                self._heard(member, answer, stack, progress)
        self._end_surplus()
        self._tell()

    def _answered(self, asked: Sequence[Any], seconds: float) -> Collection[Any]:
        if asked:
            return self.cluster.wait(asked, seconds)
        time.sleep(seconds / 4)  # all are idle: what is left others have claimed
        return ()

    def _failed(self, member: Member, error: Exception) -> None:
        """A worker died, or what it met may be its machine's fault. Anything else is an
        error of the run."""
        if isinstance(error, RapError) and not isinstance(error, RapDeviceError):
            if member.what in ("look", "open") and member.place is not None:
                raise type(error)(f"{member}: {error}") from error
            raise error
        known = isinstance(error, WorkerDied)
        cause = first_line(error) if known else f"{type(error).__name__}: {error}"
        self._replace(member, " ".join(cause.split()))

    def _heard(
        self, member: Member, answer: Any, stack: ExitStack, progress: bool | str
    ) -> None:
        if member.what == "look":
            self._require_place(answer)
            member.place = answer
        elif member.what == "open":
            member.opened = True
        elif member.what == "begin":
            member.begun = member.asked_in  # the pass may be over by now
            if self._work is None and member.begun == self._passes:
                self._work = _work_of(answer, stack, progress, self._name)
        elif member.what == "score":
            self._scored(member, answer)
        elif member.what == "seal":
            assert self._work is not None
            self._work.sealed = answer.sealed
            self._work.todo.extend(answer.missing)
        else:  # close
            self._leave(member)

    def _scored(self, member: Member, report: Report) -> None:
        work = self._work
        assert work is not None
        if report.stopped:
            raise RapStoreError(
                "executor 'ray': another run has taken this store for itself; the same "
                "command goes on once that is over"
            )
        if not report.whole:  # a process of another run has claimed it
            work.later.append((self.clock() + AGAIN, member.shard))
            return
        member.deaths = 0
        work.bad += report.bad
        work.bar.advance(work.begun.size(member.shard), work.bad)

    def _require_place(self, place: Place) -> None:
        """Raises ``RapStoreError``, ``RapConfigError`` for a worker that is no help."""
        if not place.sees:
            raise RapStoreError(
                "executor 'ray': the folder of the store is not there on "
                f"{place.node}, or is another one than the driver's; give a folder on a "
                "file system that all nodes share"
            )
        for name, found in place.versions.items():
            known, where = self._versions.setdefault(name, (found, place.node))
            if found != known:
                raise RapConfigError(
                    f"executor 'ray': {name} is {found or 'not installed'} on "
                    f"{place.node}, {known or 'not installed'} on {where}; scores may "
                    "depend on it: install the same version everywhere"
                )

    # -- deaths and ends

    def _replace(self, member: Member, cause: str) -> None:
        """A new worker for one that is dead, or of no use any more."""
        self.cluster.end(member.worker)
        if member.place is not None:
            self.dead.add(member.place.owner)
        if member.what == "close":
            self.members.remove(member)
            return
        who = str(member)
        member.place, member.opened, member.begun = None, False, 0
        member.deaths += 1
        at = self._shard_failed(member.shard, cause) if member.what == "score" else ""
        most = self.config.max_restarts
        if member.deaths > most:
            raise RapWorkerError(
                f"{who} died {member.deaths} times in a row (max_restarts = {most})"
                f"{at or f', the last time in {member.what!r}'}: {cause}. What was scored "
                "stays, and the same command goes on from there"
            )
        log.warning(
            "%s died%s: %s. It is started again (%d of %d)",
            *(who, at or f" in {member.what!r}", cause, member.deaths, most),
        )
        member.worker = self.cluster.start(member.number)

    def _shard_failed(self, k: int, cause: str) -> str:
        """Have a shard scored again, if its worker has not died too often; which it is."""
        work = self._work
        assert work is not None
        work.failures[k] += 1
        if work.failures[k] < self.config.max_shard_failures:
            work.todo.appendleft(k)
        else:
            work.given_up[k] = cause
            log.error("%s is left out: %s", work.begun.name(k), cause)
        return f" at {work.begun.name(k)}"

    def _leave(self, member: Member) -> None:
        self.cluster.end(member.worker)
        self.members.remove(member)

    def _closed(self, asked: Any) -> None:
        """A worker that dies while it closes has nothing to lose."""
        try:
            self.cluster.answer(asked)
        except Exception as error:
            log.info("a worker did not end in order: %s", first_line(error))

    def _end_surplus(self) -> None:
        """End workers that still wait for room when there is nothing for them to do."""
        work = self._work
        if work is None or not self._last:
            return
        waiting = [m for m in self.members if m.place is None]
        staying = sum(m.stays for m in self.members)
        kept = max(work.left, 1 if len(waiting) == staying else 0)
        for member in waiting[kept:]:
            self._leave(member)

    def _tell(self) -> None:
        """Say so where no worker could be started for long."""
        if any(m.place is not None for m in self.members):
            self._told = self.clock()
        elif self.clock() - self._told >= PATIENCE:
            self._told = self.clock()
            log.warning("no worker could be started yet: %s", self.cluster.room())


def _work_of(begun: Begun, stack: ExitStack, progress: bool | str, name: str) -> _Work:
    done = begun.n_samples - sum(map(begun.size, begun.missing))
    bar = stack.enter_context(Bar(begun.n_samples, done, progress, name=name))
    return _Work(begun, deque(begun.missing), bar, sealed=begun.sealed)


def _given_up(work: _Work, times: int) -> str:
    k, cause = next(iter(work.given_up.items()))
    names = ", ".join(map(work.begun.name, sorted(work.given_up)[:5]))
    more = ", ..." * (len(work.given_up) > 5)
    return (
        f"{len(work.given_up)} shards killed their workers {times} times each and are not "
        f"scored: {names}{more}; the rest is. Shard {k}: {cause}. The same command tries "
        "them again; look at their samples, or give a smaller batch_tokens"
    )
