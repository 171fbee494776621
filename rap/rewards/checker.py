"""Answer checking with a time limit: the built-in rule or the user's reward function.

A check runs in one worker process, started once and kept. It is a plain
``python -c`` child that speaks over pipes: no fork (torch has threads), and no
``multiprocessing`` spawn, which would run the user's script again. A check that takes
longer than ``timeout`` is answered by killing the process; the next check gets a new one
(1 to 2 seconds). Signals and threads would not do: sympy and ``re`` can hold the
interpreter forever. Time in which the check waits for a processor is not counted, so that
a busy machine changes no verdict (``patience``).

A reward function that cannot be pickled (a lambda, a closure, anything defined in
``__main__`` or in a notebook cell) runs in a thread of this process instead. A thread
cannot be killed: after ``timeout`` it is left behind, still running, and the next check
gets a new one; while it holds the interpreter lock (a regular expression does), the
time-out itself is late. Put such a function in a module to have it killed.

A checker that raises, returns None or NaN, or hangs leaves the response without a grade:
``Verdict(None, "verifier_error" | "verifier_timeout", message)``.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import inspect
import json
import math
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
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, Protocol

from ..errors import RapConfigError
from ..samples.sample import Sample
from . import grading
from .patience import Limit, process_statistics, thread_statistics

START_SECONDS = 120.0  # a reward function's module may import torch
WORKER_BYTES = (
    8 << 30
)  # address space of the built-in worker: 9**9**9 must not eat the host
CACHED_VERDICTS = 8192
MESSAGE_CHARS = 500

_BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from rap.rewards.checker import _worker; _worker()"
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Was the answer right?"""

    correct: bool | None
    """None: not graded."""
    code: str | None = None
    """None, or ``verifier_error`` / ``verifier_timeout`` when not graded."""
    message: str | None = None


class _CheckTimeout(Exception):
    pass


class _CheckFailed(Exception):
    pass


class _Runner(Protocol):
    def start(self) -> None: ...
    def run(self, request: object, timeout: float) -> Any: ...
    def close(self) -> None: ...


class Checker:
    """Grades responses one by one; made by ``make_checker``. Safe to call from several
    threads (checks then wait for each other). Close it, or use it as a context manager."""

    def __init__(
        self,
        name: str,
        runner: _Runner,
        request: Callable[[Sample, str, Sequence[int], bool], object],
        verdict: Callable[[Any], Verdict],
        timeout: float,
        cached: bool,
    ) -> None:
        self.name = name
        """The grader and its version: part of a score store's fingerprint."""
        self._runner, self._request, self._verdict = runner, request, verdict
        self._timeout, self._cached = timeout, cached
        self._cache: OrderedDict[object, Verdict] = OrderedDict()
        self._lock = threading.Lock()

    def check(
        self,
        sample: Sample,
        text: str,
        *,
        token_ids: Sequence[int] = (),
        finished: bool = True,
    ) -> Verdict:
        """Grade one response. Takes at most ``timeout`` seconds and the restart of
        the worker. ``token_ids`` reach a reward function as ``completion_ids``.
        ``finished``: False for a response that was cut off at its token limit; the
        built-in rule then takes only an answer that was marked and completed.

        Raises ``RapConfigError`` if the worker cannot be started; nothing else.
        """
        key = (sample.reference, sample.options, text, finished)
        with self._lock:
            if self._cached and key in self._cache:
                self._cache.move_to_end(key)
                return self._cache[key]
            verdict = self._judge(sample, text, token_ids, finished)
            if self._cached:
                self._cache[key] = verdict
                if len(self._cache) > CACHED_VERDICTS:
                    self._cache.popitem(last=False)
            return verdict

    def _judge(
        self, sample: Sample, text: str, token_ids: Sequence[int], finished: bool
    ) -> Verdict:
        try:
            request = self._request(sample, text, token_ids, finished)
            return self._verdict(self._runner.run(request, self._timeout))
        except _CheckTimeout:
            message = f"no verdict within {self._timeout:g} s"
            return Verdict(None, "verifier_timeout", message)
        except _CheckFailed as error:
            # the store is UTF-8, an exception's text may be anything
            message = str(error)[:MESSAGE_CHARS].encode("utf-8", "replace").decode()
            return Verdict(None, "verifier_error", message)

    def close(self) -> None:
        """End the worker process."""
        self._runner.close()

    def __enter__(self) -> Checker:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def make_checker(
    reward: Callable[..., Any] | None = None, *, timeout: float = 5.0
) -> Checker:
    """Make the checker.

    reward: None is the built-in rule (``grading``: choice letters and texts, numbers,
        math-verify if it is installed). Else a reward function as TRL's trainers take it,
        called as GRPOTrainer (1.16) calls it, for one completion at a time::

            reward(prompts=[...], completions=[...], completion_ids=[...],
                   **{column: [value]}, trainer_state=None, log_extra=f, log_metric=g)

        Every column of the data set is passed except prompt, completion, completion_ids
        and the images. Where the data set has a text column ``prompt``, prompt and
        completion are texts; else they are conversational: a list of messages each, the
        completion ``[{"role": "assistant", "content": text}]``. A coroutine function is
        awaited. The one value that comes back is accepted from 0.5 up.
    timeout: seconds one check may take, without those it waits for a processor.

    Raises ``RapConfigError`` if ``reward`` cannot be called like that, or cannot be
    imported where it runs.
    """
    if not (isinstance(timeout, (int, float)) and math.isfinite(timeout) and timeout > 0):
        raise RapConfigError(f"timeout = {timeout!r}: expected seconds > 0")
    if reward is None:
        return Checker(
            grading.name(),
            _Process(None, timeout),
            _grading_request,
            _graded,
            timeout,
            True,
        )
    _require_trl_signature(reward)
    pickled = _pickled(reward)
    runner = _Thread(reward) if pickled is None else _Process(pickled, timeout)
    runner.start()
    return Checker(
        callable_name(reward), runner, _reward_request, _rewarded, timeout, False
    )


def _grading_request(
    sample: Sample, text: str, token_ids: Sequence[int], finished: bool
) -> object:
    return sample.reference, sample.options, text, finished


def _graded(value: Any) -> Verdict:
    return Verdict(bool(value))


def _reward_request(
    sample: Sample, text: str, token_ids: Sequence[int], finished: bool
) -> object:
    """Keyword arguments of the reward function, as far as they can travel."""
    prompt = sample.extra.get("prompt")
    completion: object = [{"role": "assistant", "content": text}]
    if isinstance(prompt, str):
        completion = text
    elif not isinstance(prompt, (list, tuple)):
        said = (*sample.turns, ("user", sample.question))
        prompt = [{"role": role, "content": text} for role, text in said]
    taken = ("prompt", "completion", "completion_ids")
    columns = {k: [v] for k, v in sample.extra.items() if k not in taken}
    return {
        **columns,
        "prompts": [prompt],
        "completions": [completion],
        "completion_ids": [list(token_ids)],
    }


def _rewarded(value: Any) -> Verdict:
    if value is None:
        return Verdict(None, "verifier_error", "the reward function returned None")
    if not math.isfinite(value):
        return Verdict(None, "verifier_error", f"the reward function returned {value}")
    return Verdict(value >= 0.5)


def _require_trl_signature(reward: object) -> None:
    if not callable(reward) or isinstance(reward, type):
        raise RapConfigError(
            f"reward is {type(reward).__name__}; expected a function as TRL's trainers "
            "take it: reward(prompts, completions, **columns) -> list of numbers"
        )
    if hasattr(reward, "state_dict"):
        raise RapConfigError("reward is a model; expected a function that calls it")
    try:
        parameters = inspect.signature(reward).parameters.values()
    except (TypeError, ValueError):
        return  # built in C: nothing to be seen before it is called
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        raise RapConfigError(
            f"reward {callable_name(reward)} must take **kwargs: it is called with every "
            "column of the data set, as TRL does"
        )
    for p in parameters:
        if p.name in ("image", "images", "environments") and p.default is p.empty:
            raise RapConfigError(f"reward needs {p.name!r}, which is not passed to it")


def callable_name(reward: Callable[..., Any]) -> str:
    """module:qualname and a hash of the source, so that an edited function is another."""
    function = reward
    while hasattr(function, "func"):  # functools.partial
        function = function.func
    named = function if hasattr(function, "__qualname__") else type(function)
    try:
        source = inspect.getsource(named).encode()
    except (OSError, TypeError):
        code = getattr(named, "__code__", None)
        source = repr((code.co_code, code.co_consts) if code else named).encode()
    with contextlib.suppress(Exception):  # what a partial or an object holds
        source += b"" if reward is named else pickle.dumps(reward, protocol=4)
    digest = hashlib.sha256(source).hexdigest()[:12]
    return f"{named.__module__}:{named.__qualname__}@{digest}"


def _pickled(reward: Callable[..., Any]) -> bytes | None:
    """Bytes from which another process can make the function; None if it cannot."""
    try:
        data = pickle.dumps(reward)
    except Exception:  # anything at all can be raised by a user's __reduce__
        return None
    return None if b"__main__" in data else data


# ------------------------------------------------------------------- in a process


class _Process:
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
        except (_CheckTimeout, _CheckFailed) as error:
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
            raise _CheckFailed(f"columns cannot be sent to the checker: {error}") from None
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
            raise _CheckFailed(answer["error"])
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
                    raise _CheckTimeout("no answer in time")
            part = os.read(fd, min(size - len(data), 1 << 20))
            if not part:
                raise _CheckFailed(f"the checking process died (status {child.wait()})")
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


def _with_reward(reward: Callable[..., Any]) -> Callable[[Any], float | None]:
    return lambda request: call_reward(reward, request)


def call_reward(reward: Callable[..., Any], columns: Mapping[str, Any]) -> float | None:
    """Call a reward function for one completion, as GRPOTrainer does; its one value."""
    value = reward(
        **columns, trainer_state=None, log_extra=_log_nothing, log_metric=_log_nothing
    )
    if inspect.isawaitable(value):
        value = asyncio.run(_awaited(value))
    try:
        values = [None if one is None else float(one) for one in value]
    except (TypeError, ValueError):
        raise TypeError(
            f"it returned {repr(value)[:80]}; expected a list with a number or None a "
            "completion"
        ) from None
    if len(values) != 1:
        raise ValueError(f"it returned {len(values)} rewards for 1 completion")
    return values[0]


async def _awaited(value: Any) -> Any:
    return await value


def _log_nothing(name: str, value: object) -> None:
    """Stands for TRL's log_extra and log_metric."""


# -------------------------------------------------------------------- in a thread


class _Thread:
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
            raise _CheckFailed(f"{type(error).__name__}: {error}")
        return value

    def _answer(self, answers: queue.SimpleQueue[Any], timeout: float) -> Any:
        limit = Limit(timeout, thread_statistics(self._thread.native_id))
        while True:
            left = limit.left()
            try:
                return answers.get(timeout=max(0.0, left))
            except queue.Empty:
                if left <= 0:
                    raise _CheckTimeout from None

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
