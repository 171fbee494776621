"""Cases 50 to 57 of the list of faults that no other file holds."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from test_claims import files_in, planned
from test_store import fill

import rap
from rap.scores.shardplan import read_plan

TESTS = Path(__file__).parent


@pytest.mark.parametrize("starts", [(11, 0), (0, 11), (10, 20), (-1, 0), (10, 2**40)])
def test_fault_50_a_response_that_begins_beyond_its_own_sample(starts, rng) -> None:
    """Two samples of ten: the first one's eleventh place is the second one's."""
    q = rng.normal(size=(2, 20, 4)).astype(np.float32)
    cu = np.array([0, 10, 20])
    with pytest.raises(rap.RapInputError, match="response_start = .* of sample"):
        rap.ace(q, q, response_start=np.array(starts), cu_seqlens=cu)
    last = np.array([10, 9])  # a response may be empty
    ends = rap.ace(q, q, response_start=last, cu_seqlens=cu, min_rows=1)
    assert np.isfinite(ends.log_psi[1]) and ends.position[0] == -1


CHANGING = """
import threading
import numpy as np, rap

n = 300_000  # samples of one token each: as many offsets to look at, twice
q = np.ones((1, n, 1), np.float32)
cu, start = np.arange(n + 1), np.zeros(n, np.int64)
want = rap.ace(q, q, response_start=start, cu_seqlens=cu, min_rows=1).position.tobytes()
stop = threading.Event()

def change():
    while not stop.is_set():
        cu[n // 2] = -(1 << 50)
        start[n // 3] = 1 << 40
        cu[n // 2], start[n // 3] = n // 2, 0

thread = threading.Thread(target=change)
thread.start()
refused, seen = 0, set()
for _ in range(2000):
    try:
        assert rap.ace(
            q, q, response_start=start, cu_seqlens=cu, min_rows=1
        ).position.tobytes() == want
    except rap.RapInputError as error:
        refused += 1
        seen.add("during" if "changed during" in str(error) else "before")
    if "during" in seen:
        break
stop.set()
thread.join()
cu[n // 2], start[n // 3] = n // 2, 0
got = rap.ace(q, q, response_start=start, cu_seqlens=cu, min_rows=1)
assert got.position.tobytes() == want
print(refused, sorted(seen))
"""


def test_fault_51_offsets_that_another_thread_changes() -> None:
    """Right or refused, never read by: the offsets are looked at again when they are used,
    and a change since the first look was found at least once."""
    done = subprocess.run(
        [sys.executable, "-c", CHANGING], capture_output=True, text=True, timeout=1500
    )
    assert done.returncode == 0, (done.returncode, done.stderr[-2000:])
    assert "during" in done.stdout, done.stdout


CLOCKS = {"monotonic", "perf_counter", "time"}


def short_bounds(code: str) -> list[str]:
    """Comparisons of a clock's difference with less than a minute, and time limits of
    processes below five minutes."""
    found = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Compare) and len(node.ops) == 1:
            names = {n.attr for n in ast.walk(node.left) if isinstance(n, ast.Attribute)}
            limit = node.comparators[0]
            upper = isinstance(node.ops[0], (ast.Lt, ast.LtE))
            if names & CLOCKS and upper and isinstance(limit, ast.Constant):
                if isinstance(limit.value, (int, float)) and limit.value < 60:
                    found.append(f"line {node.lineno}: {ast.unparse(node)}")
        if isinstance(node, ast.Call) and ast.unparse(node.func) in (
            *("subprocess.run", "process.wait", "process.communicate", "child.wait"),
        ):
            for word in node.keywords:
                value = getattr(word.value, "value", None)
                if word.arg == "timeout" and isinstance(value, (int, float)):
                    if value < 300:
                        found.append(f"line {node.lineno}: timeout={value}")
    return found


@pytest.mark.parametrize(
    "path", sorted(TESTS.rglob("*.py")), ids=lambda p: str(p.relative_to(TESTS))
)
def test_fault_52_no_test_asks_for_less_than_a_minute_of_the_clock(path: Path) -> None:
    """With eight busy processes on two cores everything takes ten times as long."""
    assert not short_bounds(path.read_text(encoding="utf-8"))


def test_fault_52_short_bounds_are_found() -> None:
    code = """
    assert time.monotonic() - begin < 59
    assert time.monotonic() - begin < 60
    assert time.process_time() - begin < 1
    subprocess.run(["x"], timeout=120)
    """
    assert len(short_bounds(textwrap.dedent(code))) == 2


WORKER = """
import json, os, sys
from pathlib import Path
sys.path[:0] = json.loads(sys.argv[1])
from test_claims import work
while not Path(sys.argv[3]).exists():
    pass
print(os.getpid(), flush=True)
work(Path(sys.argv[2]), 60)
"""


def test_fault_55_two_containers_whose_processes_have_one_number(tmp_path: Path) -> None:
    """Two processes, each number 1 of a namespace of its own, fill one store together."""
    container = ["unshare", "--pid", "--fork", "--mount-proc"]
    if subprocess.run([*container, "true"], capture_output=True).returncode:
        pytest.skip("namespaces of process numbers cannot be made here (needs root)")
    whole, store, go = tmp_path / "whole", tmp_path / "store", tmp_path / "go"
    fill(whole)
    for round_ in range(3):
        path = store / str(round_)
        planned(path)
        there = f'["{TESTS}", "{TESTS.parent}"]'
        command = [*container, sys.executable, "-c", WORKER, there, str(path), str(go)]
        both = [
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            for _ in range(2)
        ]
        go.touch()
        for one in both:
            out, error = one.communicate()
            assert (one.returncode, out) == (0, b"1\n"), error.decode()[-2000:]
        plan = read_plan(path)
        assert plan is not None and plan.sealed is not None
        fill(path)
        assert files_in(path) == files_in(whole)
        assert not [name for name in os.listdir(path) if name.endswith(".tmp")]
        go.unlink()
