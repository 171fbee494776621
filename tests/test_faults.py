"""The numbered faults that no other file holds, and that every number has a test.

The numbers are those of the lists in ``faults``: a test that proves one carries its number
in its name, ``test_fault_31_...``, ``test_case_13_...``; ``make faults`` prints the table.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import faults
import pytest
from faults import ALL, CASES, FAULTS, NEEDED, PENDING, held_by

from rap.export import formats

TESTS = Path(__file__).parent

# Fails the nth block that rap/_C itself asks for, and counts what it has not given back.
SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdint.h>
#include <stdlib.h>

static uintptr_t low, high;
static long asked, failing, live;

void
shim_watch(uintptr_t from, uintptr_t to)
{
    low = from;
    high = to;
}

void
shim_fail(long nth)
{
    asked = 0;
    failing = nth;
}

long
shim_asked(void)
{
    return asked;
}

long
shim_live(void)
{
    return live;
}

static int
ours(void *caller)
{
    return (uintptr_t)caller >= low && (uintptr_t)caller < high;
}

static int
refused(void *caller)
{
    if (!ours(caller))
        return 0;
    if (++asked == failing)
        return 1;
    live++;
    return 0;
}

int
posix_memalign(void **block, size_t align, size_t bytes)
{
    static int (*real)(void **, size_t, size_t);

    if (real == NULL)
        real = (int (*)(void **, size_t, size_t))dlsym(RTLD_NEXT, "posix_memalign");
    if (refused(__builtin_return_address(0)))
        return ENOMEM;
    return real(block, align, bytes);
}

void
free(void *block)
{
    static void (*real)(void *);

    if (real == NULL)
        real = (void (*)(void *))dlsym(RTLD_NEXT, "free");
    if (block != NULL && ours(__builtin_return_address(0)))
        live--;
    real(block);
}
"""

SWEEP = """
import ctypes, sys
import numpy as np
import rap
from rap import _C

shim = ctypes.CDLL(sys.argv[1])
shim.shim_watch.argtypes = [ctypes.c_size_t, ctypes.c_size_t]
shim.shim_asked.restype = shim.shim_live.restype = ctypes.c_long
spans = [line.split()[0].split("-") for line in open("/proc/self/maps")
         if _C.__file__ in line]
ends = [int(x, 16) for span in spans for x in span]
shim.shim_watch(min(ends), max(ends))

rng = np.random.default_rng(0)
x, y = rng.standard_normal((2, 64, 96)).astype(np.float32)
w = rng.standard_normal((500, 96)).astype(np.float32)
q = rng.standard_normal((4, 200, 32)).astype(np.float32)
scores = rng.random(50_000).astype(np.float32)
kept = rng.random(50_000).astype(np.float32)
CALLS = {
    "cde": lambda threads: rap.cde(x, y, targets=[3] * 64, threads=threads),
    "linear_cde": lambda threads: rap.linear_cde(x, y, w, threads=threads),
    "ace": lambda threads: rap.ace(q, q, response_start=50, threads=threads),
    "ace each": lambda threads: rap.ace(
        q, q, response_start=50, heads="each", columns="all", threads=threads),
    "drm": lambda threads: rap.drm(scores, 9_000, gain=kept, threads=threads),
}


def bytes_of(result):
    values = result if isinstance(result, np.ndarray) else vars_of(result)
    return values.tobytes() if isinstance(values, np.ndarray) else values


def vars_of(result):
    names = getattr(result, "_fields", None) or sorted(
        n for n in dir(result) if not n.startswith("_"))
    values = [getattr(result, n) for n in names]
    return b"".join(np.asarray(v).tobytes() for v in values if isinstance(v, np.ndarray))


for name, call in CALLS.items():
    for threads in (1, 2):
        want = bytes_of(call(threads))
        assert want, name
        shim.shim_fail(0)
        call(threads)
        blocks, live = shim.shim_asked(), shim.shim_live()
        failed = 0
        for nth in range(1, blocks + 1):
            shim.shim_fail(nth)
            try:
                call(threads)
            except MemoryError:
                failed += 1
            shim.shim_fail(0)
            assert bytes_of(call(threads)) == want, (name, threads, nth)
            assert shim.shim_live() == live, (name, threads, nth, "leaks")
        print(name, threads, blocks, failed, flush=True)
        assert failed == blocks, (name, threads, blocks, failed)
"""


def run_python(code: str, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-c", code, *args],
        capture_output=True,
        text=True,
        env=os.environ | env,
        timeout=1500,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def test_every_numbered_fault_and_case_has_a_test() -> None:
    found = held_by(TESTS)
    missing = [one for one in NEEDED if not found.get(one)]
    assert not missing, f"no test for {missing}"
    unknown = [one for one in found if one not in ALL]
    assert not unknown, f"tests for what is in no list: {unknown}"
    late = [number for number in PENDING if found.get(("case", number))]
    assert not late, f"cases that have a test now, and are no longer pending: {late}"
    assert sorted(CASES) == list(range(1, 49)) and sorted(FAULTS) == list(range(1, 58))


def test_the_table_of_numbers_tells_what_does_not_hold(tmp_path, capsys) -> None:
    """One test a number, of which one failed, and one number without a result."""
    assert faults.numbers_of("test_case_05_06_several") == [("case", 5), ("case", 6)]
    assert faults.numbers_of("test_fault_31_kill[a]") == [("fault", 31)]
    assert faults.numbers_of("test_of_a_case_05") == []
    junit = tmp_path / "junit.xml"
    all_named = [f"test_{kind}_{number:02}_x" for kind, number in NEEDED]

    def told(names: list[str], failed: str = "") -> tuple[int, str]:
        cases = "".join(
            f'<testcase name="{n}">{"<failure/>" if n == failed else ""}</testcase>'
            for n in names
        )
        junit.write_text(f"<testsuites><testsuite>{cases}</testsuite></testsuites>")
        return faults.main(str(junit)), capsys.readouterr().out

    code, text = told(all_named)
    assert code == 0 and f"{len(NEEDED)} of {len(NEEDED)} held; failed: none" in text
    assert "| 13 | train, validation and test in one folder | test_sources.py::" in text
    code, text = told(all_named, failed="test_case_13_x")
    assert code == 1 and "failed: case 13" in text
    code, text = told([n for n in all_named if n != "test_case_13_x"])
    assert code == 1 and f"{len(NEEDED) - 1} of {len(NEEDED)} held" in text


@pytest.mark.skipif(sys.platform != "linux", reason="LD_PRELOAD and /proc")
def test_fault_41_a_kernel_whose_memory_is_refused(tmp_path: Path) -> None:
    """Every block a kernel asks for fails once: MemoryError, no leak, next call right."""
    source, shim = tmp_path / "shim.c", tmp_path / "shim.so"
    source.write_text(SHIM)
    built = ["gcc", "-shared", "-fPIC", "-O1", "-o", str(shim), str(source), "-ldl"]
    subprocess.run(built, check=True, timeout=600)
    done = run_python(SWEEP, str(shim), LD_PRELOAD=str(shim))
    counts = {}
    for line in done.stdout.splitlines():
        *name, threads, blocks, _ = line.split()
        counts[" ".join(name), threads] = int(blocks)
    assert len(counts) == 10
    for room in ("linear_cde", "ace", "ace each", "drm"):
        assert counts[room, "1"] > 0, (room, "asked for nothing: the shim saw no call")


@pytest.mark.skipif(
    importlib.util.find_spec("_testcapi") is None, reason="this Python has no _testcapi"
)
def test_fault_41_an_object_that_python_cannot_make() -> None:
    """The binding: each of Python's own allocations in a call fails once."""
    code = """
import _testcapi, numpy as np
from rap import _C
import rap
x = np.random.default_rng(0).standard_normal((8, 50)).astype(np.float32)
q = np.ones((2, 30, 8), np.float32)
calls = {
    "cde": lambda: rap.cde(x, x[::-1].copy()),
    "linear_cde": lambda: rap.linear_cde(x, x, x),
    "ace": lambda: rap.ace(q, q, response_start=5),
    "drm": lambda: rap.drm(x[0], 3),
    "isa": lambda: _C.isa("scalar"),
    "isa_names": _C.isa_names,
    "cuda_info": _C.cuda_info,
}
for name, call in calls.items():
    call()
    failed = 0
    for nth in range(400):  # the count begins after this many
        error = None
        _testcapi.set_nomemory(nth, nth + 1)
        try:
            call()
        except MemoryError as e:
            error = 1
        finally:
            _testcapi.remove_mem_hooks()
        failed += error is not None
        call()
    print(name, failed, flush=True)
    assert failed > 0, name
"""
    assert len(run_python(code).stdout.splitlines()) == 7


FREE_THREADED = """
import runpy, sysconfig
real = sysconfig.get_config_var
sysconfig.get_config_var = lambda name: 1 if name == "Py_GIL_DISABLED" else real(name)
runpy.run_path("setup.py")
"""


def test_fault_40_a_free_threaded_python_is_refused_by_name() -> None:
    """rap._C is built for the stable ABI, which such a Python has not: pip takes no wheel
    of it there, and builds from source, where the reason is said."""
    done = subprocess.run(
        [sys.executable, "-c", FREE_THREADED],
        cwd=TESTS.parent, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 1
    assert "is free-threaded (PEP 703), for which rap._C cannot be built" in done.stderr


def test_fault_40_a_free_threaded_python_that_imports_a_clone_is_told_so() -> None:
    """It passes over _C.abi3.so, and would say that rap has no _C."""
    code = """
import sys
sys.abiflags = "t"
try:
    import rap
except ImportError as error:
    print(error)
"""
    assert "is free-threaded (PEP 703) and loads no extension" in run_python(code).stdout


CHOOSING = """
import locale, os, sys
if sys.argv[1]:
    locale.setlocale(locale.LC_ALL, sys.argv[1])
    assert locale.localeconv()["decimal_point"] == ","
from rap.__main__ import main
sys.argv = ["rap", *sys.argv[2:]]
main()
"""


@pytest.fixture(scope="module")
def judged(tmp_path_factory) -> Path:
    """A data set and judged completions, whose selection prints and writes fractions."""
    folder = tmp_path_factory.mktemp("judged")
    rows = [
        {"id": f"{i}\u00e4", "question": f"{i} = \u4e09?", "answer": "3", "image": "x.png"}
        for i in range(60)
    ]
    said = [
        {"id": row["id"], "with_image": arm, "correct": i * k % 7 <= 2 + arm}
        for i, row in enumerate(rows)
        for arm in (True, False)
        for k in range(5)
    ]
    for name, what in (("data", rows), ("said", said)):
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in what)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    return folder


def comma_locale(folder: Path) -> str:
    """A locale whose decimal point is a comma, built where the system has its sources."""
    made = subprocess.run(
        ["localedef", "-i", "de_DE", "-f", "UTF-8", str(folder / "de_DE.UTF-8")],
        capture_output=True,
        timeout=600,
    )
    if made.returncode > 1:  # 1: made, with warnings
        pytest.skip("no sources of the locale de_DE here")
    return "de_DE.UTF-8"


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


SURROUNDINGS = {
    "C": {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "another time zone": {"TZ": "Pacific/Kiritimati"},
    "a decimal comma": {},
}


@pytest.mark.parametrize("surroundings", SURROUNDINGS)
def test_fault_39_locale_and_time_zone_change_no_byte(judged, tmp_path, surroundings):
    env = dict(SURROUNDINGS[surroundings])
    name = ""
    if surroundings == "a decimal comma":
        name = comma_locale(tmp_path)
        env = {"LOCPATH": str(tmp_path)}
    data, said = judged / "data.jsonl", judged / "said.jsonl"
    wanted = ["select", str(data), "--rollouts", str(said), "--budget", "0.2", "--out"]
    plain = run_python(CHOOSING, "", *wanted, str(tmp_path / "plain"))
    other = run_python(CHOOSING, name, *wanted, str(tmp_path / "other"), **env)
    assert other.stdout.replace("other", "plain") == plain.stdout
    assert files_of(tmp_path / "plain") == files_of(tmp_path / "other")


def test_fault_48_no_export_is_a_spreadsheet() -> None:
    """Cells that start with =, +, -, @ are run by spreadsheets: none of our exports is a
    file that one opens. A target that writes CSV must bring the prefix, and its test."""
    written = (TESTS.parent / "rap").rglob("*.py")
    makers = re.compile(r"csv\.writer|csv\.DictWriter|write_csv|to_csv|to_excel")
    found = [str(path) for path in written if makers.search(path.read_text())]
    assert not found, found
    assert "csv" not in formats.TARGETS
