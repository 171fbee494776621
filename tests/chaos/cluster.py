"""Trials of executor ray: two workers and a driver on a cluster that all trials share."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rap.scores.claims import Claim

from .client import HERE, environment
from .compare import digests, finished, leftovers
from .harms import (
    HARMS,
    Broken,
    Run,
)

if TYPE_CHECKING:
    from .trials import Chaos

OF_WORKERS = (
    *("kill before", "kill after", "kill at a rename", "kill after a rename"),
    *("disk full", "quota, once", "I/O error of a write", "I/O error of fsync"),
    "I/O error of a rename",
)
OF_DRIVERS = (("kill by the clock", -9), ("SIGTERM", 143), ("Ctrl-C", 130))
PATIENCE = 1800.0
"""Seconds after which a run hangs: each worker imports torch, on a busy machine."""
ENDS = ("RapStoreError", "RapWorkerError")
TRIES = 4
"""Starts of Ray: on a busy machine its processes wait in vain for each other."""
OPEN_CLUSTER = {"RAY_AUTH_MODE": "disabled"}
OTHERS = ("plan.json", "profile.json")


class Cluster:
    """The cluster, and what it has used."""

    def __init__(self) -> None:
        self.ticks: dict[int, int] = {}
        self.looked = 0.0
        for _ in range(TRIES):
            self.process = subprocess.Popen(
                [sys.executable, HERE / "rayhead.py"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=os.environ | environment() | OPEN_CLUSTER,
                text=True,
            )
            assert self.process.stdout is not None
            lines = (line.split() for line in self.process.stdout)
            self.address = next((x[1] for x in lines if x[:1] == ["address"]), "")
            if self.address:
                return
            self.close()
        raise RuntimeError("no Ray cluster came up")

    def cpu_seconds(self) -> float:
        """CPU time of its processes, of each as it was when it was last seen."""
        ticks, parents = {}, {}
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                parents[int(folder.name)] = int(fields[1])
                ticks[int(folder.name)] = sum(map(int, fields[11:13]))
        ours = {self.process.pid}
        while more := {pid for pid, of in parents.items() if of in ours} - ours:
            ours |= more
        self.ticks |= {pid: ticks[pid] for pid in ours if pid in ticks}
        return sum(self.ticks.values()) / os.sysconf("SC_CLK_TCK")

    def look(self) -> None:
        """Before processes end; at most once in half a second."""
        if time.monotonic() >= self.looked + 0.5:
            self.looked = time.monotonic()
            self.cpu_seconds()

    def close(self) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(120)
        self.process.stdout.close()


def whole(chaos: Chaos) -> tuple[dict[str, str], list[int], float]:
    """(files, calls, seconds) of one undisturbed process, without Ray."""
    if "ray" not in chaos.wanted:
        chaos.model_folder()
        store = chaos.folder / "whole ray"
        done = chaos.nursery.whole(local(chaos, store))
        chaos.wanted["ray"] = (_files(store), done.kinds, 0.0)
    if chaos.cluster is None:
        chaos.cluster = Cluster()
    found: tuple[dict[str, str], list[int], float] = chaos.wanted["ray"]
    return found


def local(chaos: Chaos, store: Path) -> dict[str, Any]:
    """The order that the same store is filled by one process."""
    order = chaos.score_order(store, "real")
    options = {"evidence": "answer"}
    return {**order, "model": str(chaos.model_folder()), "options": options}


def scoring(
    chaos: Chaos, folder: Path, chance: random.Random, record: dict[str, Any]
) -> None:
    wanted, calls, _ = whole(chaos)
    store = folder / "store"
    for number in range(chance.randint(1, 3)):
        before = finished(store, clocks=True)
        run = _driven(chaos, store, folder / f"mark{number}", calls, chance, record)
        after = finished(store, clocks=True)
        lost = {name for name in before if after.get(name) != before[name]}
        if lost:
            raise Broken(f"finished shards that were lost or changed: {sorted(lost)}")
        if run.code == 0:
            break
    if chance.random() < 0.3:
        run = _end(chaos, chaos.nursery.start(order_of(chaos, store, {})))
        if run.code != 0:
            raise Broken(f"an undisturbed run of executor ray: {run}")
    else:
        _by_local(chaos, store)
    found = _files(store)
    if found != wanted:
        names = {k for k in {*found, *wanted} if found.get(k) != wanted.get(k)}
        raise Broken(f"other files than an undisturbed run's: {sorted(names)}")
    left = [name for name in leftovers(store) if not name.startswith("index/")]
    if left:
        raise Broken(f"left over: {left}")


def order_of(chaos: Chaos, store: Path, of_workers: dict[str, str]) -> dict[str, Any]:
    """The order that two workers fill a store."""
    assert chaos.cluster is not None
    return {
        "command": "ray", "model": str(chaos.model_folder()),
        "store": str(store), "below": str(store),
        "address": chaos.cluster.address, "of_workers": environment() | of_workers,
        "environment": OPEN_CLUSTER,
        "options": {"evidence": "answer", "workers": 2, "max_shard_failures": 9},
    }  # fmt: skip


def _driven(
    chaos: Chaos,
    store: Path,
    mark: Path,
    calls: list[int],
    chance: random.Random,
    record: dict[str, Any],
) -> Run:
    """A run whose workers are harmed: one by its plan, others by the clock; at times the
    driver, too."""
    kind = chance.choice(OF_WORKERS)
    how, what, value = HARMS[kind]
    most = sum(n for i, n in enumerate(calls) if what & 1 << i)
    nth = chance.randint(1, max(1, most // 2))
    plan = f"{how} {what} {nth} {int(value)} {store}\n{mark}"
    shim = {"LD_PRELOAD": str(chaos.nursery.shim), "CHAOS_PLAN": plan}
    started = chaos.nursery.start(order_of(chaos, store, shim))
    driver = chance.choice((None, None, *OF_DRIVERS))
    killed = _hunt(chaos, store, started[0], chance, chance.randint(0, 2), driver)
    run = _end(chaos, started)
    harms = [[kind, nth, run.code, mark.exists(), "worker"]]
    harms += [["kill by the clock", 0, run.code, True, "worker"]] * len(killed)
    if driver is not None:
        harms.append([driver[0], 0, run.code, run.code == driver[1], "driver"])
    record["harms"] += harms
    good = {0, 1} if driver is None else {0, 1, driver[1]}
    name = run.error.split(":")[0]
    if run.code not in good or (run.code == 1 and name not in ENDS):
        raise Broken(f"executor ray, {kind}: ended with {run}")
    return run


def _hunt(
    chaos: Chaos,
    store: Path,
    pid: int,
    chance: random.Random,
    most: int,
    driver: tuple[str, int] | None,
) -> list[int]:
    """Kill ``most`` workers at random moments of their shards, then the driver; those that
    were."""
    killed: list[int] = []
    end = time.monotonic() + PATIENCE
    least = sorted(chance.choices(range(4), k=most + 1))
    while not _ended(chaos, pid):
        if time.monotonic() > end:
            os.kill(pid, signal.SIGKILL)
            raise Broken(f"executor ray: no end after {PATIENCE:g} s")
        at_work = [p for p in _owners(store) if p not in killed]
        done = len(list(store.glob("scores-*.parquet")))
        if at_work and done >= least[len(killed)]:
            time.sleep(chance.uniform(0, 0.2))
            if len(killed) < most:
                killed.append(chance.choice(at_work))
                with contextlib.suppress(ProcessLookupError):
                    os.kill(killed[-1], signal.SIGKILL)
            elif driver is not None:
                how = {-9: signal.SIGKILL, 143: signal.SIGTERM, 130: signal.SIGINT}
                os.kill(pid, how[driver[1]])
                driver = None
        time.sleep(0.03)
    return killed


def _owners(store: Path) -> list[int]:
    """Processes of the workers that are at a shard."""
    found = set()
    for path in (store / "claims").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            claim = Claim.of(path.read_bytes())
            if claim is not None:
                found.add(claim.owner.pid)
    return sorted(found)


def _ended(chaos: Chaos, pid: int) -> bool:
    assert chaos.cluster is not None
    chaos.cluster.look()
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return True
    return text.rpartition(")")[2].split()[0] == "Z"


def _end(chaos: Chaos, started: tuple[int, Path]) -> Run:
    end = time.monotonic() + PATIENCE
    while not _ended(chaos, started[0]):
        if time.monotonic() > end:
            os.kill(started[0], signal.SIGKILL)
            raise Broken(f"executor ray: no end after {PATIENCE:g} s")
        time.sleep(0.05)
    return chaos.nursery.end(started)


def _by_local(chaos: Chaos, store: Path) -> None:
    """As soon as the workers are gone, for which Ray takes its time after kill -9."""
    end = time.monotonic() + PATIENCE
    while True:
        run = chaos.nursery.run(local(chaos, store))
        if run.code == 0:
            return
        if "workers are scoring into this store" not in run.error:
            raise Broken(f"an undisturbed run: {run}")
        if time.monotonic() > end:
            raise Broken(f"workers that do not end: {run.error}")
        time.sleep(1)


def _files(store: Path) -> dict[str, str]:
    found = digests(store, clocks=True)
    return {k: v for k, v in found.items() if k not in OTHERS}
