"""Runs pytest in children of a process that has imported the slow libraries.

A child imports rap and the tests anew, from the copy. Only its exit code and the first test
that failed come back.
"""

from __future__ import annotations

import importlib
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .tree import ROOT, TREE, WORK

LIGHT = (
    "numpy pyarrow pyarrow.parquet pyarrow.compute pytest hypothesis click click.testing "
    "pydantic"
).split()
FOR_KERNELS = [*LIGHT, "torch", "ml_dtypes"]
FOR_MODELS = [
    *FOR_KERNELS,
    *"PIL.Image jinja2 datasets transformers tqdm math_verify".split(),
    "transformers.models.qwen2_5_vl.modeling_qwen2_5_vl",
]
ON_ARRAYS = ("selection", "posterior", "learn", "store", "claims", "judge", "files")
ON_ARRAYS += ("reselection", "rewardfile", "rewards", "distinct")
ON_ARRAYS += ("selection_oracle", "selection_exact", "selection_attention")
ON_ARRAYS += ("selection_budget", "selection_evidence")
ON_KERNELS = ("ace", "cde", "drm", "arrays", "strides", "guarded", "limits", "parallel")
ON_KERNELS += ("csrc",)


def libraries(tests: Iterable[str]) -> list[str]:
    """What to import before: no more than these files of tests need."""
    names = {test.split("::")[0] for test in tests}
    names = {name.removeprefix("tests/test_").removesuffix(".py") for name in names}
    if names <= set(ON_ARRAYS):
        return LIGHT
    return FOR_KERNELS if names <= {*ON_ARRAYS, *ON_KERNELS} else FOR_MODELS


CPU_SECONDS = 400
WALL_SECONDS = 1500


@dataclass(frozen=True, slots=True)
class Ended:
    """``code``: of the child, negative for a signal, None: it went on for too long.
    ``test``: the first that failed. ``seconds``: of processor time, with its children."""

    code: int | None
    test: str
    seconds: float


class _Recorder:
    """A plugin of pytest: writes down the first test that fails."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed and not self.path.exists():
            self.path.write_text(report.nodeid)

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed and not self.path.exists():
            self.path.write_text(f"{report.nodeid} (cannot be read)")


def prepare(names: Sequence[str]) -> None:
    """Import what is slow to import. Raises if rap came with it."""
    for name in names:
        importlib.import_module(name)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    assert not any(name.split(".")[0] == "rap" for name in sys.modules)


def _child(tests: list[str], failed: Path, log: Path) -> int:
    os.setpgid(0, 0)
    with open(log, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's "&" ignores it
    os.chdir(TREE)
    sys.path[:] = [str(TREE), *(p for p in sys.path if p not in ("", str(ROOT)))]
    os.environ["PYTHONPATH"] = str(TREE)
    os.environ["OMP_NUM_THREADS"] = "1"
    import hypothesis
    import pytest

    first = [phase for phase in hypothesis.Phase if phase.name in ("explicit", "generate")]
    hypothesis.settings.register_profile("mutants", phases=first, database=None)
    hypothesis.settings.load_profile("mutants")  # a failure is enough: none is made smaller
    options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--tb=short"]
    options += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # imported before
    return int(pytest.main([*options, *tests], plugins=[_Recorder(failed)]))


def run(tests: tuple[str, ...]) -> Ended:
    """pytest with these tests, on the copy as it is now."""
    failed, log = WORK / "failed.txt", WORK / "log.txt"
    failed.unlink(missing_ok=True)
    begun = time.monotonic()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            code = _child(list(tests), failed, log)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)
    code: int | None = None
    turns = 0
    while time.monotonic() - begun < WALL_SECONDS:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
            break
        turns += 1
        if turns % 40 == 0 and _cpu_of(pid) > CPU_SECONDS:
            break
        time.sleep(0.05)
    _end_group(pid, wait=code is None)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime)
    test = failed.read_text() if failed.exists() else ""
    return Ended(code, test, round(spent, 1))


def _cpu_of(group: int) -> float:
    """Seconds of all processes of a group, with the children that they have waited for."""
    ticks = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rsplit(")", 1)[1].split()
        except OSError:  # it has ended
            continue
        if int(fields[2]) == group:
            ticks += sum(map(int, fields[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


def _end_group(pid: int, wait: bool) -> None:
    """The child's own group: what a mutant left behind goes with it."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    if wait:
        os.waitpid(pid, 0)
