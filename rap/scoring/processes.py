"""Prepare samples in processes that do not share the interpreter lock with the model.

    thread of jobs.ahead --> row of the sample --> process: decode, hash, tokenise
            waits        <-- pickled Job       <--

The threads stay, each waiting for a process: order, bound and cancelling are those of
``ahead``. The processes are a ``ProcessPoolExecutor``'s, started by spawn (torch has
threads, so no fork), without the user's script: it need not be guarded by
``if __name__ == "__main__"``, and what it defines cannot be sent. They ignore Ctrl-C, which
the parent answers, and end with the parent, whatever ends that.

What a process cannot do is done here once more, where its error is the one that threads
give. That is so, too, for the samples in flight when a process dies (killed, out of
memory); after `MAX_DEATHS` the run goes on with threads.
"""

from __future__ import annotations

import io
import logging
import os
import pickle
import signal
import sys
import threading
import types
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

from ..config import ScoreConfig
from ..errors import RapConfigError, first_line
from ..model.counterfactual import WITH_PARTNER
from ..samples.part import in_whole
from ..samples.remote import allow, folders
from ..samples.sample import Bad, Sample
from ..samples.sampleset import SampleSet
from .jobs import Job
from .prepare import partners, prepare_job

if TYPE_CHECKING:
    from ..model.driver import ModelDriver
    from ..model.preparing import Preparer

log = logging.getLogger("rap")

MAX_DEATHS = 3
"""Processes that may die before the run goes on without them."""

Prepare = Callable[[int], Job]
"""Sample number -> its job; from several threads."""


class Preparation:
    """What prepares the samples of a run, as ``config.prepare`` says: call it with the
    number of a sample, from several threads, and close it when nobody does any more.
    Processes are started at the first call. asked: see `prepare_job`.

    Raises ``RapConfigError`` if processes were asked for and cannot be had.
    """

    def __init__(
        self,
        samples: SampleSet,
        driver: ModelDriver | None,
        config: ScoreConfig,
        *,
        asked: bool,
    ) -> None:
        self._samples = samples
        self._driver = driver
        self._config = config
        self._asked = asked
        self._lock = threading.Lock()
        self._pool: Processes | None = None
        self._pickled: bytes | None = None
        if config.workers and _wants_processes(driver, config):
            self._pickled = pickled_work(driver, config, asked=asked)

    def __call__(self, i: int) -> Job:
        if self._pickled is None:
            return self.here(i)
        with self._lock:
            if self._pool is None:
                self._pool = Processes(self._pickled, self._config.workers)
            pool = self._pool
        return pool.prepare(rows_of(self._samples, self._config, i), i, self.here)

    def here(self, i: int) -> Job:
        """Sample i, in this thread."""
        return prepare_job(self._samples, self._driver, self._config, i, asked=self._asked)

    def close(self) -> None:
        """End the processes; a later call starts others."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.close()


def _wants_processes(driver: ModelDriver | None, config: ScoreConfig) -> bool:
    """By itself only beside a model on a GPU: elsewhere it needs the cores."""
    if config.prepare is not None:
        return config.prepare == "processes"
    if driver is None:
        return False
    from ..model.weights import input_device

    return input_device(driver.model).type == "cuda"


def pickled_work(
    driver: ModelDriver | None, config: ScoreConfig, *, asked: bool
) -> bytes | None:
    """What a process needs besides samples. None, and a line in the log, if the processor
    cannot be sent there; ``RapConfigError`` if processes were asked for."""
    try:
        preparer = None if driver is None else driver.alone()
        pickled = pickle.dumps((preparer, config, asked))
        reason = "is defined in __main__" if b"__main__" in pickled else ""
    except Exception as error:  # whatever the user's processor holds
        reason = f"cannot be pickled ({first_line(error)})"
    if not reason:
        return pickled
    said = f"the processor {reason}"
    if config.prepare == "processes":
        raise RapConfigError(f"prepare = 'processes': {said}; leave it at 'threads'")
    log.info("samples are prepared by threads: %s", said)
    return None


# ---- the rows that are sent ---------------------------------------------------------


class AbsentRow(LookupError):
    """A row that was not sent."""


@dataclass(frozen=True, slots=True)
class Rows:
    """A data set of which a few rows are there."""

    n: int
    rows: dict[int, Sample | Bad]
    whole: Rows | None = None
    """Of a part of a data set: rows of the whole, and where in it these are."""
    places: Mapping[int, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> Sample | Bad:
        if i not in self.rows:
            raise AbsentRow(i)
        return self.rows[i]


def rows_of(samples: SampleSet, config: ScoreConfig, i: int) -> Rows:
    """Sample i, and the first whose image may stand in for its own."""
    alone = Rows(len(samples), {i: samples[i]})
    whole, place = in_whole(samples, i)
    if config.counterfactual not in WITH_PARTNER or len(whole) < 2:
        return alone
    wanted = (place, next(partners(whole, config, place)))
    both = Rows(len(whole), {k: whole[k] for k in wanted})
    return both if whole is samples else replace(alone, whole=both, places={i: place})


# ---- here ---------------------------------------------------------------------------


class Processes:
    """A pool that is made anew when a process dies."""

    def __init__(self, pickled: bytes, workers: int) -> None:
        self._pickled = pickled
        self._workers = workers
        self._lock = threading.Lock()
        self._deaths = 0
        self._useful = False
        self._pool: ProcessPoolExecutor | None = self._start()

    def prepare(self, rows: Rows, i: int, here: Prepare) -> Job:
        """Sample i in a process, or ``here`` if that does not work out."""
        pool = self._pool
        made, died = None, False
        try:
            if pool is not None:
                made = pool.submit(_prepare, rows, i).result()
        except BrokenExecutor:
            died = True
            self._replace(pool)
        except Exception as error:  # a row that cannot be pickled, a pool being closed
            log.debug("sample %d is prepared by a thread: %s", i, first_line(error))
        if made is not None:
            self._useful = True
            job: Job = pickle.loads(made)
            item = rows[i]
            if isinstance(item, Sample):
                job.sample = item
            return job
        return _once_more(rows[i].id, here, i) if died else here(i)

    def close(self) -> None:
        """End the processes."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def _start(self) -> ProcessPoolExecutor | None:
        """A pool with all its processes; None if there can be none."""
        import multiprocessing

        pool = ProcessPoolExecutor(
            self._workers,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_begin,
            initargs=(self._pickled, folders()),
        )
        try:
            with _without_main():  # a pool starts a process for each call that has none
                for _ in range(self._workers):
                    pool.submit(_ready)
        except BrokenExecutor:
            pass  # the first sample will meet it, too
        except OSError as error:
            pool.shutdown(wait=False, cancel_futures=True)
            log.warning("samples are prepared by threads: no process (%s)", error)
            return None
        return pool

    def _replace(self, pool: ProcessPoolExecutor | None) -> None:
        """A new pool in place of a broken one; none if that happens again and again, or
        none of its processes ever came up."""
        with self._lock:
            if pool is None or pool is not self._pool:
                return
            pool.shutdown(wait=False, cancel_futures=True)
            self._deaths += 1
            if self._useful and self._deaths < MAX_DEATHS:
                self._pool = self._start()
                return
            self._pool = None
        what = f"died {self._deaths} times" if self._useful else "did not come up"
        log.warning("processes that prepare samples %s: the run goes on with threads", what)


def _once_more(name: str, here: Prepare, i: int) -> Job:
    said = (
        f"a process died while sample {name!r} was being prepared (killed? out of memory?)"
    )
    log.warning("%s: it is prepared in this process once more", said)
    try:
        return here(i)
    except Exception as error:
        error.add_note(f"{said}, and this is what came of it here")
        raise


@contextmanager
def _without_main() -> Iterator[None]:
    """Inside, a process that is started does not import this one's main module."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


# ---- there --------------------------------------------------------------------------

_work: tuple[Preparer | None, ScoreConfig, bool] | None = None
"""In a process: what it prepares with."""


def _begin(pickled: bytes, fetched: Mapping[str, str]) -> None:
    """The first thing that a process does. ``fetched``: ``remote.folders``."""
    global _work
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    import torch

    torch.set_num_threads(1)
    allow(fetched)
    _work = pickle.loads(pickled)


def _end_with_parent() -> None:
    """A process holds both ends of the pool's pipe, so that it would wait for ever."""
    import multiprocessing

    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _ready() -> None:
    """Starts a process."""


def _prepare(rows: Rows, i: int) -> bytes | None:
    """The pickled job, without its sample; None if the parent has to make it."""
    assert _work is not None  # _begin
    preparer, config, asked = _work
    # evidence calls nothing of a driver but what a Preparer has
    driver = cast("ModelDriver | None", preparer)
    try:
        job = prepare_job(cast(SampleSet, rows), driver, config, i, asked=asked)
        job.sample = None  # type: ignore[assignment]  # the parent has it
        return dumped(job)
    except Exception:  # the parent's own try gives the error
        return None


def dumped(job: Job) -> bytes:
    """A job as bytes, its tensors as arrays: torch would send them through shared memory,
    of which containers have little."""
    file = io.BytesIO()
    _Pickler(file, protocol=5).dump(job)
    return file.getvalue()


class _Pickler(pickle.Pickler):
    def reducer_override(self, thing: Any) -> Any:
        import torch

        if type(thing) is torch.Tensor and thing.dtype != torch.bfloat16:
            return torch.from_numpy, (thing.numpy(),)
        return NotImplemented
