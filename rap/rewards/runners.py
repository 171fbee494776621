"""Where checks run: a process that is killed, or a thread that is left behind, when one is
late.

A process is a plain ``python -c`` child that speaks over pipes: no fork (torch has
threads), and no ``multiprocessing`` spawn, which would run the user's script again.
Signals and threads would not do: sympy and ``re`` can hold the interpreter forever. Time in
which a check waits for a processor is not counted, so that a busy machine changes no
verdict (``patience``).
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import queue
import select
import signal
import struct
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO, Protocol

from ..errors import RapConfigError
from . import grading
from .functions import call_reward
from .patience import Limit, process_statistics, thread_statistics

START_SECONDS = 120.0  # a reward function's module may import torch
WORKER_BYTES = (
    8 << 30
)  # address space of the built-in worker: 9**9**9 must not eat the host

_BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from rap.rewards.runners import _worker; _worker()"
)


class CheckTimeout(Exception):
    """No answer in time."""


class CheckFailed(Exception):
    """What was called raised, ended its process, or cannot be asked."""


class Runner(Protocol):
    """Where checks run, one at a time."""

    def start(self) -> None:
        """Raises ``RapConfigError`` if it cannot."""

    def run(self, request: object, timeout: float) -> Any:
        """The answer. Raises ``CheckTimeout``, ``CheckFailed``."""

    def close(self) -> None:
        """End it."""


def runner_of(reward: Callable[..., Any], timeout: float) -> Runner:
    """A process for ``reward``; a thread where it cannot be sent to one."""
    pickled = _pickled(reward)
    return ThreadRunner(reward) if pickled is None else ProcessRunner(pickled, timeout)


def _pickled(reward: Callable[..., Any]) -> bytes | None:
    """Bytes from which another process can make the function; None if it cannot."""
    try:
        data = pickle.dumps(reward)
    except Exception:  # anything at all can be raised by a user's __reduce__
        return None
    return None if b"__main__" in data else data


# ------------------------------------------------------------------- in a process


class ProcessRunner:
    """One worker process at a time; killed when a check is late."""

    def __init__(self, pickled: bytes | None, timeout: float) -> None:
        self._setup = pickle.dumps((pickled, timeout))
        self._child: list[subprocess.Popen[bytes]] = []  # shared with the finalizer
        self._ready = False
        self._finalizer = weakref.finalize(self, _kill_all, self._child)

    def start(self) -> None:
        """Start the worker and wait until it can check; ``RapConfigError`` if it cannot."""
        if self._ready:
            return
        if not self._finalizer.alive:
            raise RapConfigError("the checker was closed")
        self._spawn()
        try:
            answer = self._receive(START_SECONDS)
        except (CheckTimeout, CheckFailed) as error:
            self._kill()
            raise RapConfigError(f"the checking process did not start: {error}") from None
        if "error" in answer:
            self._kill()
            raise RapConfigError(f"the checking process cannot start: {answer['error']}")
        self._ready = True

    def run(self, request: object, timeout: float) -> Any:
        try:
            payload = pickle.dumps(request)
        except Exception as error:  # a column's own type may raise anything
            raise CheckFailed(f"columns cannot be sent to the checker: {error}") from None
        self.start()
        try:
            try:
                self._send(payload)
            except OSError:  # it died since the last check
                self._kill()
                self.start()
                self._send(payload)
            answer = self._receive(timeout)
        except BaseException:
            # Late, dead, or we are interrupted: its answer must not meet the next question.
            self._kill()
            raise
        if "error" in answer:
            raise CheckFailed(answer["error"])
        return answer["value"]

    def close(self) -> None:
        self._ready = False
        self._finalizer()

    def _spawn(self) -> None:
        self._kill()
        try:
            child = subprocess.Popen(
                [sys.executable, "-c", _BOOT, json.dumps(sys.path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=0,
                start_new_session=True,  # Ctrl-C is for us; we end it
            )
        except OSError as error:
            raise RapConfigError(f"the checking process did not start: {error}") from None
        self._child.append(child)
        with contextlib.suppress(OSError):  # it died at once: _receive will say so
            self._send(self._setup)

    def _send(self, payload: bytes) -> None:
        _write_frame(self._child[-1].stdin, payload)

    def _receive(self, seconds: float) -> dict[str, Any]:
        child = self._child[-1]
        limit = Limit(seconds, process_statistics(child.pid))
        size = struct.unpack("<q", self._read(child, 8, limit))[0]
        return json.loads(self._read(child, size, limit))

    def _read(self, child: subprocess.Popen[bytes], size: int, limit: Limit) -> bytes:
        fd, data = child.stdout.fileno(), b""  # type: ignore[union-attr]
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        while len(data) < size:
            while not poll.poll(max(0.0, left := limit.left()) * 1000):
                if left <= 0:
                    raise CheckTimeout("no answer in time")
            part = os.read(fd, min(size - len(data), 1 << 20))
            if not part:
                raise CheckFailed(f"the checking process died (status {child.wait()})")
            data += part
        return data

    def _kill(self) -> None:
        self._ready = False
        _kill_all(self._child)


def _kill_all(children: list[subprocess.Popen[bytes]]) -> None:
    while children:
        child = children.pop()
        child.kill()
        with contextlib.suppress(OSError):  # a half-written frame cannot be flushed
            child.stdin.close()  # type: ignore[union-attr]
        child.stdout.close()  # type: ignore[union-attr]
        child.wait()


def _write_frame(file: BinaryIO | Any, payload: bytes) -> None:
    view = memoryview(struct.pack("<q", len(payload)) + payload)
    while view:
        view = view[os.write(file.fileno(), view) :]


def _read_frame(file: BinaryIO) -> bytes | None:
    head = file.read(8)
    return file.read(struct.unpack("<q", head)[0]) if len(head) == 8 else None


def _worker() -> None:
    """The worker process: answers frames until its input ends."""
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    # What a reward function prints goes to our standard error, not into the answers.
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    setup = _read_frame(requests)
    if setup is None:
        return
    try:
        pickled, timeout = pickle.loads(setup)
        answer = _built_in() if pickled is None else _with_reward(pickle.loads(pickled))
    except BaseException as error:
        _write_frame(answers, _as_json({"error": f"{type(error).__name__}: {error}"}))
        return
    _write_frame(answers, _as_json({"value": "ready"}))
    # If our parent is killed while a check hangs, nobody is left to end us: the kernel is.
    limit = (timeout + 10) * (os.cpu_count() or 1)
    while (frame := _read_frame(requests)) is not None:
        signal.setitimer(signal.ITIMER_PROF, limit)
        try:
            result: dict[str, Any] = {"value": answer(pickle.loads(frame))}
        except BaseException as error:  # SystemExit, math-verify's TimeoutException, ...
            result = {"error": f"{type(error).__name__}: {error}"}
        signal.setitimer(signal.ITIMER_PROF, 0)
        _write_frame(answers, _as_json(result))


def _end_with_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(0)


def _as_json(result: Mapping[str, Any]) -> bytes:
    return json.dumps(result).encode()


def _built_in() -> Callable[[Any], bool]:
    import logging
    import resource
    import warnings

    # math-verify warns that its own time-outs are off; ours is this process's end.
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    grading.grade("\\frac{1}{2}", (), "\\boxed{x}")  # its parser is built on first use
    with contextlib.suppress(OSError, ValueError):  # a tighter limit is in force
        resource.setrlimit(resource.RLIMIT_AS, (WORKER_BYTES, WORKER_BYTES))
    return lambda request: grading.grade(*request[:3], finished=request[3])


def _with_reward(reward: Callable[..., Any]) -> Callable[[Any], Any]:
    return lambda call: call_reward(reward, call)


# -------------------------------------------------------------------- in a thread


class ThreadRunner:
    """A function that cannot leave this process; see the module's text for what a
    time-out means here."""

    def __init__(self, reward: Callable[..., Any]) -> None:
        self._reward = reward
        self._requests: queue.SimpleQueue[Any] | None = None

    def start(self) -> None:
        if self._requests is None:
            self._requests = queue.SimpleQueue()
            self._thread = threading.Thread(
                target=_serve,
                args=(self._reward, self._requests),
                name="rap-reward",
                daemon=True,
            )
            self._thread.start()

    def run(self, request: object, timeout: float) -> Any:
        self.start()
        answers: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()
        self._requests.put((request, answers))  # type: ignore[union-attr]
        try:
            value, error = self._answer(answers, timeout)
        except BaseException:
            self.close()  # leave the thread behind
            raise
        if error is not None:
            raise CheckFailed(f"{type(error).__name__}: {error}")
        return value

    def _answer(self, answers: queue.SimpleQueue[Any], timeout: float) -> Any:
        limit = Limit(timeout, thread_statistics(self._thread.native_id))
        while True:
            left = limit.left()
            try:
                return answers.get(timeout=max(0.0, left))
            except queue.Empty:
                if left <= 0:
                    raise CheckTimeout from None

    def close(self) -> None:
        if self._requests is not None:
            self._requests.put(None)
            self._requests = None


def _serve(reward: Callable[..., Any], requests: queue.SimpleQueue[Any]) -> None:
    while (item := requests.get()) is not None:
        request, answers = item
        try:
            answers.put((call_reward(reward, request), None))
        except BaseException as error:  # also SystemExit: it is the function's, not ours
            answers.put((None, error))
