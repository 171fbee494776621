"""Every allocation of every entry point fails once: an error by name, and nothing is lost.

tests/sweep says how. Here: that each child comes through, and what it must have met.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="LD_PRELOAD and /proc/self/maps"
)
TESTS = Path(__file__).parent


@pytest.fixture(scope="module")
def shim(tmp_path_factory) -> Path:
    from sweep.shim import build

    return build(tmp_path_factory.mktemp("sweep"))


def swept(shim: Path, what: str, *names: str, **env: str) -> list[dict[str, Any]]:
    """What each sweep of a child found. One that crashes names the call it was at."""
    paths = os.pathsep.join((str(TESTS.parent), str(TESTS)))
    done = subprocess.run(
        [sys.executable, "-m", "sweep.child", str(shim), what, *names],
        env=os.environ | {"PYTHONPATH": paths} | env | {"LD_PRELOAD": str(shim)},
        capture_output=True,
        text=True,
        timeout=1500,
    )
    last = done.stdout.splitlines()[-1:]
    assert done.returncode == 0, (done.returncode, last, done.stderr[-2000:])
    return [json.loads(x) for x in done.stdout.splitlines() if x.startswith("{")]


def faults(found: list[dict[str, Any]]) -> dict[tuple[str, str], list[str]]:
    return {(one["name"], one["kind"]): one["faults"] for one in found if one["faults"]}


def failed(found: list[dict[str, Any]], kind: str) -> dict[str, int]:
    """{entry point: how many of its allocations failed}"""
    entries: dict[str, int] = {}
    for one in found:
        if one["kind"] == kind:
            name = one["name"].removeprefix("_C: ").split(":")[0].split(" refused")[0]
            entries[name] = entries.get(name, 0) + one["failed"]
    return entries


def test_fault_41_each_allocation_of_each_entry_point(shim) -> None:
    found = swept(shim, "host")
    assert faults(found) == {}
    python, malloc = failed(found, "inside"), failed(found, "malloc")
    assert set(python) == set(malloc) and len(found) > 280
    # the others answer with what is there already, or ask for nothing
    none = {name for name, times in python.items() if times == 0}
    assert none <= {"default_threads", "cublaslt"}, none
    assert {name for name, times in malloc.items() if times} >= {"linear_cde", "ace", "drm"}


@pytest.mark.proof
def test_fault_41_each_allocation_of_a_whole_call(shim) -> None:
    """Those of rap's Python layer, NumPy and torch, too: none ends the process."""
    found = swept(shim, "whole")
    assert faults(found) == {}
    assert sum(failed(found, "python").values()) > 5_000


@pytest.mark.proof
def test_fault_41_each_allocation_of_a_call_on_a_device(shim) -> None:
    from cuda_emulator import build, gates
    from cuda_emulator.fake.build import environment

    from rap import _C

    if build.compiler() is None or not _C.CUDA_KERNELS or gates.cuobjdump() is None:
        pytest.skip("no CUDA kernels in this build, or no tools to build the fake with")
    found = swept(shim, "device", **environment() | {"RAP_FAKE_THREADS": "32"})
    assert faults(found) == {}
    entries = failed(found, "inside")
    there = {"cuda_alloc", "cuda_dlpack", "cuda_info", "cde", "cde_means",
             "linear_cde", "ace", "drm"}  # fmt: skip
    assert {name for name in there if not entries.get(name)} == set()


def test_fault_41_an_answer_is_not_half_written(shim) -> None:
    found = swept(shim, "answers")
    assert faults(found) == {}
    asked = {one["name"]: one["failed"] for one in found}
    assert set(asked) == {"cde", "linear_cde", "ace: mean", "ace: max", "ace: each"}
    assert all(asked[name] > 2 for name in asked if name != "cde"), asked


def test_fault_41_threads_that_cannot_be_started(shim) -> None:
    """Of four, three are started; with fewer the bytes are the same."""
    found = swept(shim, "threads")
    assert faults(found) == {}
    assert [(one["failed"], one["borne"]) for one in found] == [(3, 3)]


def test_fault_41_the_import_itself(shim) -> None:
    """The pool, the driver and the library of products; all that Python makes of them."""
    found = swept(shim, "import")
    assert faults(found) == {}
    counts = {one["kind"]: one for one in found}
    assert counts["malloc"]["raised"] == {"MemoryError": 3}
    assert counts["python"]["failed"] > 50


def test_a_sweep_finds_faults(shim) -> None:
    found = {one["name"]: " ".join(one["faults"]) for one in swept(shim, "planted")}
    assert "not given back" in found["loses"]
    assert "allocation 1: answers otherwise: -1.0" in found["answers_otherwise"]
    assert "another answer to the next call" in found["spoils"]
    assert "RuntimeError: no such error" in found["misnames"]


def test_a_crash_names_the_call(shim) -> None:
    with pytest.raises(AssertionError, match=r"-11, \['begin crashes malloc'\]"):
        swept(shim, "crashing")
