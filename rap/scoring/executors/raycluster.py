"""A Ray cluster: connecting to it, what it has, and its workers for a ``crew``."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import socket
import sys
import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

from ...errors import RapConfigError, first_line, require_extra
from .crew import WorkerDied
from .rayworker import Order, as_actor

AUTH_MODE = "RAY_AUTH_MODE"
"""Environment variable of Ray: token or disabled."""


@contextmanager
def connected(address: str | None) -> Iterator[Any]:
    """The module ``ray``, connected: as it is, if this process is already; to ``address``;
    to what RAY_ADDRESS names; or to a cluster of our own on this machine, which ends with
    the block. One that the user has started goes on.

    Raises ``RapConfigError`` if Ray is not installed, or there is no such cluster."""
    require_extra("executor 'ray'", "ray", "ray")
    wanted = address or os.environ.get("RAY_ADDRESS") or "local"
    with _mode_said(wanted), _sigterm_told_apart(), _connected(wanted) as ray:
        yield ray


@contextmanager
def _connected(wanted: str) -> Iterator[Any]:
    import ray

    if ray.is_initialized():
        yield ray
        return
    try:
        _require_answer(wanted)
        with _sigterm_kept():
            own: dict[str, Any] = {"include_dashboard": False} if wanted == "local" else {}
            ray.init(address=wanted, logging_level=logging.WARNING, **own)
    except (OSError, RuntimeError, ValueError, OverflowError) as error:
        raise RapConfigError(
            f"ray_address = {wanted!r}: {first_line(error)}; start a cluster (ray start "
            "--head), or leave the address out: a cluster on this machine is then started "
            "for the run"
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _require_answer(address: str) -> None:
    """Raises ``OSError`` if nobody listens at ``host:port``: Ray would try for minutes, and
    then end the process."""
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=30).close()


@contextmanager
def _mode_said(wanted: str) -> Iterator[None]:
    """A cluster of our own asks for a token, as by Ray's default, of which Ray would warn
    where nobody says so; it reads the variable once, when it is imported."""
    if wanted != "local" or AUTH_MODE in os.environ or "ray" in sys.modules:
        yield
        return
    os.environ[AUTH_MODE] = "token"
    try:
        yield
    finally:
        os.environ.pop(AUTH_MODE, None)


@contextmanager
def _sigterm_told_apart() -> Iterator[None]:
    """What the handler of SIGTERM raises, if that is a KeyboardInterrupt of its own kind:
    Ray's calls make a plain one of it, which is Ctrl-C."""
    handler = _sigterm_handler()
    if not callable(handler):
        yield
        return
    raised: list[KeyboardInterrupt] = []

    def noted(signum: int, frame: FrameType | None) -> None:
        try:
            handler(signum, frame)
        except KeyboardInterrupt as error:
            raised.append(error)
            raise

    signal.signal(signal.SIGTERM, noted)
    try:
        yield
    except KeyboardInterrupt as error:
        if raised and error is not raised[0]:
            raise raised[0] from error
        raise
    finally:
        signal.signal(signal.SIGTERM, handler)


@contextmanager
def _sigterm_kept() -> Iterator[None]:
    """``ray.init`` takes SIGTERM for itself, and ends the process on it."""
    before = _sigterm_handler()
    if before is None:
        yield
        return
    try:
        yield
    except SystemExit as end:
        # which would have been called but for Ray; other ends are no signal's
        if end.code == signal.SIGTERM and callable(before):
            before(signal.SIGTERM, None)
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def _sigterm_handler() -> Any:
    """None in a thread that cannot set another."""
    if threading.current_thread() is not threading.main_thread():
        return None
    return signal.getsignal(signal.SIGTERM)


def require_room(ray: Any, gpus: float | None, cpus: int) -> float:
    """GPUs of a worker: ``gpus``, or 1 if a node has one; raises ``RapConfigError`` if no
    node can ever hold such a worker."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    most = {
        kind: max((node.get(kind, 0.0) for node in nodes), default=0.0)
        for kind in ("GPU", "CPU")
    }
    wanted = float(most["GPU"] > 0) if gpus is None else gpus
    if wanted > most["GPU"]:
        there = f"none of the cluster's {len(nodes)} nodes has "
        if most["GPU"] == 0:
            there += "a GPU; start nodes with GPUs first, or give gpus_per_worker = 0"
        else:
            there += f"more than {most['GPU']:g}, and a worker stays on one node"
        raise RapConfigError(f"gpus_per_worker = {wanted:g}: {there}")
    if cpus > most["CPU"]:
        raise RapConfigError(
            f"cpus_per_worker = {cpus}: no node of the cluster has more than "
            f"{most['CPU']:g} CPU cores"
        )
    return wanted


def most_workers(ray: Any, gpus: float) -> int:
    """How many workers with ``gpus`` GPUs the whole cluster holds; 1 without GPUs."""
    if gpus == 0:
        return 1
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return max(1, sum(int(node.get("GPU", 0.0) / gpus + 1e-6) for node in nodes))


class RayCluster:
    """A ``crew.Cluster``. Raises ``RapConfigError`` for an order that cannot be sent."""

    def __init__(self, ray: Any, order: Order, *, cpus: int, gpus: float) -> None:
        self.ray, self.cpus, self.gpus = ray, cpus, gpus
        self._actor = as_actor(ray, cpus=cpus, gpus=gpus)
        try:
            self._order = ray.put(order)
        except (TypeError, AttributeError, ValueError) as error:
            raise RapConfigError(
                "executor 'ray': what its workers need cannot be sent to them "
                f"({first_line(error)}); give the data set as a path, and a reward "
                "function that is defined in a module"
            ) from error

    def start(self, number: int) -> Any:
        return self._actor.remote(self._order, number)

    def ask(self, worker: Any, what: str, *arguments: Any) -> Any:
        return getattr(worker, what).remote(*arguments)

    def wait(self, asked: Sequence[Any], seconds: float) -> Collection[Any]:
        ready, _ = self.ray.wait(list(asked), num_returns=1, timeout=seconds)
        return ready

    def answer(self, asked: Any) -> Any:
        errors = self.ray.exceptions
        try:
            return self.ray.get(asked)
        except errors.RayTaskError as error:
            cause = error.cause
            if isinstance(cause, errors.RayError) or not isinstance(cause, Exception):
                raise WorkerDied(first_line(error)) from error
            raise cause from error
        except errors.RayError as error:
            if re.search(r"No module named '?rap\b", str(error)):
                raise RapConfigError(
                    "executor 'ray': a worker cannot import rap; install the same "
                    "rap-select on every node of the cluster"
                ) from error
            raise WorkerDied(why(str(error))) from error

    def end(self, worker: Any) -> None:
        with contextlib.suppress(Exception):  # it may be gone, and so may the cluster
            self.ray.kill(worker, no_restart=True)

    def room(self) -> str:
        free = self.ray.available_resources()
        return (
            f"a worker takes {self.cpus} CPU cores and {self.gpus:g} GPUs; free are "
            f"{free.get('CPU', 0.0):g} and {free.get('GPU', 0.0):g} in the whole cluster"
        )


def why(text: str) -> str:
    """What Ray says about a death, as one sentence: its detail, where it knows one."""
    found = re.search(
        r"Worker exit detail: (.+?)(?: There are some potential|$)", text, re.S
    )
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    at = next((i for i, line in enumerate(lines) if line.startswith("ip:")), -1)
    said = found[1] if found else (lines[at + 1] if -1 < at < len(lines) - 1 else text)
    return " ".join(said.split())[:400]
