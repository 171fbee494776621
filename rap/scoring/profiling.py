"""Profile one run of scoring: a stopwatch for its stages, and the counts of its work."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING

from ..scores.profile import STAGES, Profile, add_profile
from ..stopwatch import IDLE, Stopwatch
from .jobs import Job

if TYPE_CHECKING:
    from ..model.batching import Prepared
    from ..model.driver import ModelDriver

BLIND = "blind"
"""What the fields of `Job` without the image begin with."""


def stopwatch(driver: ModelDriver | None, profile: bool) -> Stopwatch:
    """A stopwatch that waits for the model's device; `IDLE` without ``profile``."""
    if not profile:
        return IDLE
    if driver is None:
        return Stopwatch()
    from ..model.timing import waiter

    return Stopwatch(wait=waiter(driver.model))


@contextmanager
def profiled(
    driver: ModelDriver | None,
    watch: Stopwatch,
    folder: Path,
    alone: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Iterator[None]:
    """Inside, the driver's work is measured; what it was is added to the store's profile
    at the end, whatever ends it in order (Ctrl-C, an error). ``kill -9`` loses it.
    ``alone``: what keeps others from doing so at the same time."""
    if not watch.on:
        yield
        return
    before = _counts(driver)
    try:
        with _timed(driver, watch):
            yield
    finally:
        done = {name: n - before[name] for name, n in _counts(driver).items()}
        samples = watch.counts.pop("samples", 0)
        run = Profile(
            1,
            samples,
            watch.elapsed,
            {name: watch.seconds[name] for name in STAGES if name in watch.seconds},
            dict(watch.beside),
            done | dict(watch.counts),
        )
        with alone():
            add_profile(folder, run)


def _timed(driver: ModelDriver | None, watch: Stopwatch) -> AbstractContextManager[None]:
    if driver is None:
        return nullcontext()
    from ..model.timing import timed

    return timed(driver, watch)


def _counts(driver: ModelDriver | None) -> dict[str, int]:
    return {} if driver is None else asdict(driver.counts)


def note(watch: Stopwatch, job: Job, which: str, prepared: Prepared | None) -> None:
    """Take note of a sequence that the model is to read for a job."""
    if watch.on and prepared is not None:
        ids = prepared.inputs["input_ids"][0].tolist() + prepared.response_ids.tolist()
        job.read.append((which.startswith(BLIND), bool(prepared.image_mask.any()), ids))


def count_asked(watch: Stopwatch, jobs: Iterable[Job]) -> None:
    """Count the distinct tokens and images of what these jobs have asked the model."""
    for job in jobs if watch.on else ():
        for blind in (False, True):
            asked = [(shown, ids) for b, shown, ids in job.read if b == blind]
            watch.count("distinct_tokens", distinct_tokens([ids for _, ids in asked]))
            if any(shown for shown, _ in asked):
                images = job.row["image_sha256"].count(",") + 1
                watch.count("images_distinct", images)
        job.read.clear()


def distinct_tokens(sequences: Iterable[Sequence[int]]) -> int:
    """Tokens that must be read where shared beginnings are read once: the nodes of the
    trie of these sequences."""
    total = 0
    last: tuple[int, ...] = ()
    for ids in sorted(map(tuple, sequences)):
        pairs = zip(last, ids, strict=False)
        total += len(ids) - sum(1 for _ in takewhile(lambda p: p[0] == p[1], pairs))
        last = ids
    return total
