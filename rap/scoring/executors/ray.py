"""Workers on a Ray cluster: the driver, which leads them, scores nothing itself.

Each worker is an actor with one model, and is told numbers of shards; samples and scores
do not travel: every node sees data, model and store by the same paths. What is in the store
counts, not what Ray knows: after Ctrl-C, kill -9 of the driver or the loss of the cluster
any executor goes on.
"""

from __future__ import annotations

import dataclasses
import glob
import logging
import math
import os
import shutil
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

from ...config import ExecutorConfig
from ...errors import RapConfigError, RapStoreError, require_extra
from ...samples.remote import is_hub_name, is_url
from ...samples.sampleset import SampleSet
from ...scores.claims import FOLDER as CLAIMS
from ...scores.claims import Claims, require_idle
from ...scores.owner import Owner, me
from ...scores.shardplan import DRIVER_FOLDER
from ..evidence import EVIDENCE
from ..plan import folder_of, name_of, rounds_of
from ..session import Recipe
from .contract import Scored, read_sealed
from .crew import Crew
from .raycluster import RayCluster, connected, most_workers, require_room
from .rayworker import DRIVER, Order

log = logging.getLogger("rap")

GRACE = 60.0
"""Seconds in which workers may keep what they have scored when a run is interrupted."""


class RayExecutor:
    def __init__(self, config: ExecutorConfig) -> None:
        self.config = config
        require_extra("executor 'ray'", "ray", "ray")

    def run(self, recipe: Recipe, store: Path) -> Scored:
        """See ``Executor.run``. Raises ``RapWorkerError`` where workers died too often."""
        require_paths(recipe)
        store = Path(os.path.abspath(store))
        samples = recipe.samples()
        config = self.config
        cascade = EVIDENCE[recipe.config.evidence].staged
        with connected(config.ray_address) as ray:
            asked = _gpus_asked(recipe, config.gpus_per_worker)
            gpus = require_room(ray, asked, config.cpus_per_worker)
            workers = config.workers or most_workers(ray, gpus)
            with Claims(store / DRIVER_FOLDER, lease=config.lease) as claims:
                while not claims.take_over(DRIVER):
                    require_idle(store / DRIVER_FOLDER, claims)  # raises if its owner lives
                order = make_order(recipe, samples, store, workers, config.lease, gpus)
                cluster = RayCluster(ray, order, cpus=config.cpus_per_worker, gpus=gpus)
                rounds = len(rounds_of(samples, recipe.config)) if cascade else 0
                self._lead(Crew(cluster, workers, config), claims, recipe, store, rounds)
        return read_sealed(samples, store, cascade)

    def _lead(
        self, crew: Crew, claims: Claims, recipe: Recipe, store: Path, rounds: int
    ) -> None:
        """Have all passes scored; no worker is left afterwards, however this ends."""
        try:
            for number in range(rounds + 1):
                name = name_of(number, rounds + 1)
                crew.fill(number == rounds, recipe.progress, name)
        except KeyboardInterrupt:
            log.warning("stopping: what was scored is kept; Ctrl-C again stops at once")
            raise
        finally:
            claims.release(DRIVER)  # which the workers see after their batch
            crew.stop(GRACE)
            for folder in (store, *(store / folder_of(k) for k in range(rounds))):
                bury(folder, crew.dead, self.config.lease)
            shutil.rmtree(store / DRIVER_FOLDER, ignore_errors=True)


def bury(folder: Path, dead: Collection[Owner], lease: float) -> None:
    """Give back the claims of workers that are known to be dead, wherever they ran."""
    if not (folder / CLAIMS).exists():
        return
    with suppress(RapStoreError), Claims(folder, lease=lease) as claims:
        claims.dead.update(dead)
        for name, claim in claims.others().items():
            if claim is not None and claim.owner in dead and claims.take_over(name):
                claims.release(name)


# ---------------------------------------------------------------- what is sent


def require_paths(recipe: Recipe) -> None:
    """Raises ``RapConfigError`` for a model or processor that is there in this process
    only."""
    for name, value in (("model", recipe.model), ("processor", recipe.processor)):
        if value is not None and not isinstance(value, (str, os.PathLike)):
            raise RapConfigError(
                f"{name}: executor 'ray' loads it in every worker, and cannot send the "
                f"{type(value).__name__} of this process; give a folder that all nodes see "
                f"({name}.save_pretrained(folder)), or a hub name, and how it is loaded: "
                "loading={'dtype': 'bfloat16', ...}"
            )


def make_order(
    recipe: Recipe, samples: SampleSet, store: Path, workers: int, lease: float, gpus: float
) -> Order:
    """What every worker is given: the recipe with absolute paths, and no data but what is
    in memory only."""
    loading = dict(recipe.loading)
    if gpus == 0 and loading.get("device", "auto") == "auto":
        loading["device"] = "cpu"
    if gpus > 1:
        loading.setdefault("device_map", "auto")
    sent: dict[str, Any] = {
        "model": _absolute(recipe.model),
        "processor": _absolute(recipe.processor),
        "progress": False,
        "loading": loading,
    }
    if samples.path is not None:
        sent |= {
            "dataset": _absolute(samples.path),
            "columns": samples.given_columns,
            "root": _absolute(samples.given_root),
        }
    return Order(
        dataclasses.replace(recipe, **sent),
        store,
        samples.path,
        samples.given_root,
        is_url(samples.path) or is_hub_name(samples.path),
        os.getcwd(),
        workers,
        lease,
        me(),
        gpus=0 if recipe.model is None else math.ceil(gpus),
    )


def _absolute(path: Any) -> Any:
    """A path or pattern of files that are there, from the root; a name of something else
    (on the hub, of an object store) as it is."""
    if path is None:
        return None
    text = os.path.expanduser(os.fspath(path))
    there = os.path.exists(text) or next(glob.iglob(text), None) is not None
    return os.path.abspath(text) if there else os.fspath(path)


def _gpus_asked(recipe: Recipe, gpus: float | None) -> float | None:
    """``gpus_per_worker``, where the device that was given decides it.

    Raises ``RapConfigError`` where the two contradict each other."""
    device = str(recipe.loading.get("device", "auto"))
    if recipe.model is None or device == "cpu":
        return gpus or 0.0
    if device == "auto":
        return gpus
    if device != "cuda" or gpus == 0:
        raise RapConfigError(
            f"device = {device!r}: a worker of executor 'ray' sees the GPU that Ray gives "
            "it, and no other; leave it out, and say gpus_per_worker"
        )
    return 1.0 if gpus is None else gpus
