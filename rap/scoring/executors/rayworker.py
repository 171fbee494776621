"""A process on a Ray cluster that scores shards: one model, one session, told numbers."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import socket
import time
from collections.abc import Collection
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import RapConfigError
from ...installed import version
from ...samples.sampleset import SampleSet, open_samples
from ...scores.claims import FOLDER as CLAIMS
from ...scores.claims import Claim
from ...scores.owner import Owner, me
from ...scores.shardplan import DRIVER_FOLDER
from ..session import Recipe, Session, kept_samples
from ..worker import Worker
from .contract import profiled_beside_others
from .crew import SAME, Begun, Place, Report

DRIVER = "driver"
"""The driver holds this claim in `DRIVER_FOLDER` of the store while its workers are to
go on. It is also how they know the store."""
SHOWS = 20.0
"""Seconds that a network file system may take to show a new file."""


@dataclass(frozen=True, slots=True)
class Order:
    """What a worker is to do. ``recipe``: with paths that are absolute; ``path``, ``root``:
    those of the data set as they were given; ``network``: it was fetched, and may be here.
    ``cwd``: the folder that the driver works in. ``of``: how many workers there are.
    ``gpus``: how many GPUs the model of a worker is on."""

    recipe: Recipe
    store: Path
    path: str | None
    root: str | None
    network: bool
    cwd: str
    of: int
    lease: float
    driver: Owner
    gpus: int = 0


class RayWorker:
    """See ``crew`` for what it is asked, in which order."""

    def __init__(self, order: Order, number: int) -> None:
        self.order, self.number = order, number
        self._stack = ExitStack()
        self._session: Session | None = None
        self._worker: Worker | None = None

    def look(self) -> Place:
        """Where this is. Nothing is loaded."""
        end = time.monotonic() + SHOWS
        while not (sees := self._sees()) and time.monotonic() < end:
            time.sleep(0.5)
        versions = {name: version(name) for name in SAME}
        return Place(socket.gethostname(), me(), versions, sees)

    def open(self) -> None:
        """Data set, model, checker. Raises what ``Recipe.open`` does."""
        order = self.order
        require_seen(order.gpus)
        with contextlib.suppress(OSError):  # reward functions may read files there
            os.chdir(order.cwd)
        with contextlib.suppress(ImportError):
            from transformers.utils import logging

            logging.disable_progress_bar()  # the driver has the bar
        samples = self._samples()
        recipe = dataclasses.replace(order.recipe, dataset=samples)
        session = self._stack.enter_context(recipe.open(order.store))
        self._stack.enter_context(
            profiled_beside_others(session, order.store, self.number, order.lease)
        )
        self._stack.callback(self._leave)
        self._session = session

    def begin(self, number: int) -> Begun:
        """Go to a pass; those before it are sealed. Raises what `Worker` does."""
        session = self._session
        assert session is not None
        self._leave()
        by = session.pass_of(number)
        self._worker = Worker(
            session, by, rank=self.number, of=self.order.of, lease=self.order.lease
        )
        return self._begun(self._worker.plan.sealed is not None)

    def score(self, k: int, dead: Collection[Owner]) -> Report:
        """Score a shard. ``dead``: processes whose claims nobody will give back.

        Raises what ``Worker.run_shards`` does. Stops after a batch, in order, when the
        driver has gone."""
        worker = self._worker
        assert worker is not None
        worker.claims.dead.update(dead)
        before = worker.bad
        try:
            worker.run_shards([k], after=self._go_on)
        except KeyboardInterrupt:  # _go_on
            return Report(whole=False, stopped=True)
        return Report(worker.store.is_whole(k), worker.bad - before)

    def seal(self) -> Begun:
        """Seal the store, if it is whole. Raises what ``Worker.finish`` does."""
        assert self._worker is not None
        return self._begun(self._worker.finish())

    def close(self) -> None:
        """Give everything back."""
        self._stack.close()

    # -- inside

    def _samples(self) -> SampleSet:
        order, recipe = self.order, self.order.recipe
        if order.path is None:
            return recipe.samples()
        kept = kept_samples(order.store, order.path, recipe.columns, order.root)
        if kept is not None:
            return kept
        samples = open_samples(
            recipe.dataset,
            columns=recipe.columns,
            root=recipe.root,
            allow_network=order.network,
        )
        # the store says where the data are as a run of one process would
        samples.path, samples.given_root = order.path, order.root
        return samples

    def _begun(self, sealed: bool) -> Begun:
        assert self._worker is not None
        store = self._worker.store
        missing = () if sealed else tuple(store.missing())
        return Begun(store.n_samples, store.shard_size, missing, sealed)

    def _leave(self) -> None:
        if self._worker is not None:
            self._worker.close()
            self._worker = None

    def _sees(self) -> bool:
        """Whether the driver's claim is there, and its own."""
        path = self.order.store / DRIVER_FOLDER / CLAIMS / DRIVER
        try:
            claim = Claim.of(path.read_bytes())
        except OSError:
            return False
        return claim is not None and claim.owner == self.order.driver

    def _go_on(self) -> None:
        if not (self.order.store / DRIVER_FOLDER / CLAIMS / DRIVER).exists():
            raise KeyboardInterrupt("the driver has gone")


def require_seen(gpus: int) -> None:
    """Raises ``RapConfigError`` where torch does not see the GPUs that Ray gave."""
    if not gpus:
        return
    import torch

    seen = torch.cuda.device_count()
    if seen < gpus:
        raise RapConfigError(
            f"Ray gave this worker GPUs ({gpus}), and torch {torch.__version__} sees "
            f"{seen} of them; install a torch that fits the driver, or give "
            "gpus_per_worker = 0"
        )


def as_actor(ray: Any, *, cpus: float, gpus: float) -> Any:
    """The class as a Ray actor. A worker that dies is the crew's to replace."""
    return ray.remote(num_cpus=cpus, num_gpus=gpus, max_restarts=0, max_task_retries=0)(
        RayWorker
    )
