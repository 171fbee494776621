"""The sweep itself, in the process that may crash: a line for each call that is swept.

    LD_PRELOAD=shim.so python -m sweep.child shim.so WHAT [start of a name ...]

WHAT is one of

    host       the calls of tests/leaks in host memory: what the extension asks of Python's
               allocators, and of malloc
    whole      the same calls: all that Python's allocators are asked for in them
    device     those of tests/leaks on the fake device (tests/cuda_emulator), as ``host``
    answers    kernels that are given the memory of their answer: untouched, or whole
    threads    threads of the pool that cannot be started
    import     rap._C while it is imported
    planted    faults that a sweep must find; ``crashing``: and an end of the process
"""

from __future__ import annotations

import gc
import importlib.util
import itertools
import json
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from leaks import host  # first: it imports what measure takes from rap
from leaks.measure import SHARED, Call, given

import rap
from rap import _C

from .shim import INSIDE, MALLOC, NAMES, PYTHON, THREAD, Shim

ROUNDS = 2
"""Sweeps of each call: the first fills caches, the second may leave nothing more."""
MOST = 5_000
"""Allocations in one call: more is a sweep without an end."""
WARM = 3
BY_PYTHON = ("arrays: refused: DLPack that raises",)
"""Calls in which Python code of the caller's raises, inside of the extension."""


def plain(value: object) -> object:
    """An answer, as what can be compared: all of its bytes."""
    if isinstance(value, torch.Tensor):
        return plain(value.detach().float().numpy())
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    if isinstance(value, (tuple, list)):
        return [plain(one) for one in value]
    if isinstance(value, (rap.CdeResult, rap.AceResult)):
        return plain(list(value.to_dict().values()))
    known = (str, bytes, int, float, dict, type(None))
    return repr(value) if isinstance(value, known) else type(value).__name__


@dataclass
class Swept:
    """One call, with one kind of failure. ``failed``: of its allocations, one a time;
    ``borne``: those that did not matter; ``raised``: {name of the error: times}."""

    name: str
    kind: str
    failed: int = 0
    borne: int = 0
    raised: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)


def allowed(name: str, kind: int) -> tuple[type[BaseException], ...]:
    """What may be raised. A refused call: its own error, where words for it need memory.
    SystemError is the interpreter's own (CPython 3.11): it loses an exception of Python
    code when it has no memory for the traceback."""
    found: tuple[type[BaseException], ...] = (MemoryError, rap.RapError)
    if "refused" in name:
        found += (TypeError, ValueError, OverflowError, RuntimeError)
    if kind == PYTHON:
        found += (SystemError, torch.OutOfMemoryError)
    return (*found, SystemError) if name in BY_PYTHON else found


def failing(shim: Shim, kind: int, nth: int, call: Call) -> tuple[bool, object, Any]:
    """(whether the allocation was asked for, what the call answered, what it raised)."""
    error = answer = None
    shim.arm(kind, nth)
    try:
        answer = call()
    except BaseException as raised:
        error = raised
    shim.disarm()
    return bool(shim.met()), answer, error


def each(shim: Shim, kind: int, call: Call) -> Iterator[tuple[int, object, Any]]:
    """The call with its first allocation failing, with its second, ... until it has no
    such one; then nothing may have gone wrong, or there is no end."""
    for nth in itertools.count(1):
        asked, answer, error = failing(shim, kind, nth, call)
        if not asked:
            assert error is None, f"undisturbed: {error!r}"
            return
        assert nth < MOST, "no end"
        yield nth, answer, error
        answer = error = None


def sweep(
    shim: Shim,
    kind: int,
    name: str,
    call: Call,
    held: Callable[[], int] = lambda: 0,
    python: bool = False,
) -> Swept:
    """``held``: what is held elsewhere. ``python``: Python code fails, too, of which the
    interpreter itself may lose the arguments (CPython 3.11, when a cell is refused)."""
    found = Swept(name, NAMES[kind])
    for _ in range(WARM):
        want = plain(call())
    objects = {} if python or kind == PYTHON else watched(call)
    counts = []
    for number in range(ROUNDS):
        for nth, answer, error in each(shim, kind, call):
            if problem := judged(want, answer, error, allowed(name, kind)):
                found.faults.append(f"allocation {nth}: {problem}")
            if plain(call()) != want:
                found.faults.append(f"allocation {nth}: another answer to the next call")
            if number == 0:
                found.failed += 1
                found.borne += error is None
                found.raised.update([] if error is None else [type(error).__name__])
            answer = error = None
        there = held()  # first: it waits for work that keeps what it was given
        counts.append(counted(objects) | {"malloc": shim.live(), "elsewhere": there})
    before, after = counts[-2:]
    more = {k: after[k] - before[k] for k in before if after[k] != before[k]}
    if more:
        found.faults.append(f"not given back: {more}")
    return found


def judged(want: object, answer: object, error: Any, may: Any) -> str:
    """What is wrong with how a call ended."""
    if error is None:
        return "" if plain(answer) == want else f"answers otherwise: {answer!r:.200}"
    return "" if isinstance(error, may) else f"{type(error).__name__}: {error}"


def watched(call: Call) -> dict[str, object]:
    """What C is given, returns and raises; not numbers and texts, which the sweep has of
    its own."""
    found = {id(x): x for x in (*SHARED, *given(call).values())}
    return {
        f"{number} {x!r:.40}": x
        for number, x in found.items()
        if not isinstance(x, (int, str))
    }


def counted(objects: dict[str, object]) -> dict[str, int]:
    """References to each."""
    gc.collect()
    return {name: sys.getrefcount(x) for name, x in objects.items()}


# ---------------------------------------------------------------- what is swept


def of_calls(
    shim: Shim, calls: dict[str, Call], kinds: tuple[int, ...], names: list[str]
) -> Iterator[Swept]:
    for name, call in calls.items():
        if not names or name.startswith(tuple(names)):
            for kind in kinds:
                say("begin", name, NAMES[kind])
                yield sweep(shim, kind, name, call)


def on_host(shim: Shim, names: list[str]) -> Iterator[Swept]:
    return of_calls(shim, host.calls(), (INSIDE, MALLOC), names)


def whole(shim: Shim, names: list[str]) -> Iterator[Swept]:
    """Not torch's operators: its own dispatcher ends the process for want of memory."""
    calls = {k: v for k, v in host.calls().items() if not k.startswith("torch.ops")}
    return of_calls(shim, calls, (PYTHON,), names)


def on_device(shim: Shim, names: list[str]) -> Iterator[Swept]:
    """As tests.leaks.device: nothing is run there but for drm, which reads answers. Kernels
    call Python code there, which allocates for them."""
    from cuda_emulator.fake.device import FAKE, count
    from leaks import device

    def contexts() -> int:
        device.held_there()
        return count("retained") + count("queued") + count("bound")

    for name, call in device.calls().items():
        if not names or name.startswith(tuple(names)):
            FAKE.rap_fake_idle(not name.startswith("drm"))
            direct = name.startswith("cu") and "taken" not in name
            held = device.held_there if direct else contexts
            for kind in (INSIDE, MALLOC):
                say("begin", name, NAMES[kind])
                yield sweep(shim, kind, name, unseen(call), held, python=not direct)


def unseen(call: Call) -> Call:
    """Without its answer: pointers, and memory that nothing was run in."""

    def called() -> None:
        call()

    return called


def answers(shim: Shim, names: list[str]) -> Iterator[Swept]:
    """What a kernel that fails has left of the answer: nothing, or all of it. Not of drm,
    which sorts in that memory; `rap.drm` shows it to nobody when it fails."""
    for name, (call, outs) in kernels().items():
        found = Swept(name, NAMES[MALLOC])
        untouched = [np.full_like(out, 77) for out in outs]
        call()
        want = plain(outs)
        for nth, _, error in each(shim, MALLOC, fresh(call, outs)):
            found.failed += 1
            found.raised.update([type(error).__name__])
            if not isinstance(error, MemoryError):
                found.faults.append(f"allocation {nth}: {error!r}")
            if plain(outs) not in (plain(untouched), want):
                found.faults.append(f"allocation {nth}: half an answer")
        yield found


def fresh(call: Call, outs: list[np.ndarray]) -> Call:
    def called() -> object:
        for out in outs:
            out.fill(77)
        return call()

    return called


def kernels() -> dict[str, tuple[Call, list[np.ndarray]]]:
    """{name: (a call, the memory of its answer)}: several tasks each, two threads."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 40, 96)).astype(np.float32)
    w = rng.normal(size=(3000, 96)).astype(np.float32)
    q = rng.normal(size=(4, 200, 32)).astype(np.float32)
    rows, every = np.empty((_C.CDE_OUTPUTS, 40)), (1 << _C.CDE_OUTPUTS) - 1
    ids, none = np.arange(40), (None, None, None)
    found: dict[str, tuple[Call, list[np.ndarray]]] = {
        "cde": (lambda: _C.cde(x, y, ids, rows, every, 2), [rows]),
        "linear_cde": (
            lambda: _C.linear_cde(x, y, w, None, ids, rows, 1.0, 0.0, 1 << 20, every, 2),
            [rows],
        ),
    }
    for number, (heads, wide) in enumerate({"mean": 1, "max": 1, "each": 4}.items()):
        outs = [
            np.empty((4, wide, 1)),
            np.empty((wide, 1), np.int64),
            np.empty((wide, 200)),
        ]
        options = (0.2, 2.0, 8, 0, 0, number, 2, 8, False, True, True)
        found[f"ace: {heads}"] = _ace(q, none, outs, options), outs
    return found


def _ace(q: np.ndarray, none: Any, outs: list[np.ndarray], options: Any) -> Call:
    return lambda: _C.ace(q, q, 200, 50, *none, *outs, options, 2)


def threads(shim: Shim, names: list[str]) -> Iterator[Swept]:
    """In a fork each, whose pool has no threads yet."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 40, 3000)).astype(np.float32)
    want, found = plain(rap.cde(x, y, threads=1)), Swept("cde", NAMES[THREAD])

    def forked(nth: int) -> int:
        asked, answer, error = failing(shim, THREAD, nth, lambda: rap.cde(x, y, threads=4))
        if error is not None or plain(answer) != want:
            return 2
        return 3 if plain(rap.cde(x, y, threads=4)) != want else int(asked)

    for nth in itertools.count(1):
        pid = os.fork()
        if pid == 0:
            os._exit(forked(nth))
        ended = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if ended == 0:
            break
        found.failed += 1
        found.borne += ended == 1
        if ended != 1:
            found.faults.append(f"thread {nth}: the fork ended with {ended}")
    yield found


def imported(shim: Shim, names: list[str]) -> Iterator[Swept]:
    """Another module of the same file each time; what it held goes with it."""
    x = np.arange(8.0, dtype=np.float32).reshape(2, 4)
    spec = importlib.util.spec_from_file_location("rap._C", _C.__file__)
    assert spec is not None and spec.loader is not None

    def load() -> list[object]:
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        out = np.zeros((module.CDE_OUTPUTS, 2))
        module.cde(x, x[::-1], None, out, 1, 1)
        return [out, module.CUDA_KERNELS, module.GIL_BYTES, module.isa_names()]

    for kind, more in ((MALLOC, ()), (PYTHON, (ImportError,))):
        say("begin", "import", NAMES[kind])
        found, want = Swept("import", NAMES[kind]), plain(load())
        gc.collect()
        live = shim.live()
        for nth, answer, error in each(shim, kind, load):
            found.failed += 1
            found.borne += error is None
            found.raised.update([] if error is None else [type(error).__name__])
            may = (*allowed("import", kind), *more)
            if problem := judged(want, answer, error, may):
                found.faults.append(f"allocation {nth}: {problem}")
            answer = error = None
            gc.collect()
            if plain(load()) != want:
                found.faults.append(f"allocation {nth}: another module afterwards")
        gc.collect()
        if shim.live() != live:
            found.faults.append(f"not given back: {shim.live() - live} blocks")
        yield found


def planted(shim: Shim, names: list[str]) -> Iterator[Swept]:
    """Each of another fault, where its allocation fails."""
    x, kept, state = np.zeros(3), [], {"sum": 0.0}
    wrong = RuntimeError("no such error")

    def loses() -> float:
        try:
            return float(sum(rap.drm(x, 1)))
        except MemoryError:
            kept.append(x)
            raise

    def answers_otherwise() -> float:
        try:
            return float(len(rap.drm(x, 1)))
        except MemoryError:
            return -1.0

    def spoils() -> float:
        try:
            return float(len(rap.drm(x, 1))) + state["sum"]
        except MemoryError:
            state["sum"] += 1
            raise

    def misnames() -> float:
        try:
            return float(len(rap.drm(x, 1)))
        except MemoryError:
            raise wrong from None

    calls = {c.__name__: c for c in (loses, answers_otherwise, spoils, misnames)}
    return of_calls(shim, calls, (MALLOC,), names)


def crashing(shim: Shim, names: list[str]) -> Iterator[Swept]:
    x = np.zeros(3)

    def crashes() -> None:
        try:
            rap.drm(x, 1)
        except MemoryError:
            os.kill(os.getpid(), signal.SIGSEGV)

    return of_calls(shim, {"crashes": crashes}, (MALLOC,), names)


WHAT: dict[str, Callable[[Shim, list[str]], Iterator[Swept]]] = {
    "host": on_host, "whole": whole, "device": on_device, "answers": answers,
    "threads": threads, "import": imported, "planted": planted,
    "crashing": crashing,
}  # fmt: skip


def say(*words: object) -> None:
    print(*words, flush=True)


def main() -> None:
    path, what, *names = sys.argv[1:]
    shim = Shim(path)
    gc.collect()
    gc.freeze()  # torch's modules take the collector long
    for found in WHAT[what](shim, names):
        say(json.dumps(vars(found)))


if __name__ == "__main__":
    main()
